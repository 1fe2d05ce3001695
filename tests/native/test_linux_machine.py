"""Files and the sandbox on kernels of their own: arm64, and the oldest that we run on."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from pathlib import Path

import linux_machine
import pytest
from duties import MAY, REFUSED, ROUTES, SERVES, Tried, assert_held, compiled
from running import need, run

import pyllamafile

pytestmark = pytest.mark.native

ASKED = ("-p", "The capital of France is", "-n", "6", "--temp", "0")
# What seccomp alone can't tell from what a duty may do.
WITHOUT_LANDLOCK = {
    "bind own": {"bind other"},
    "connect own": {"connect other"},
    "exec itself": {"exec other", "signal another"},
}
# In the machine somebody listens on 81, and on 82, which is the duties' own; on 83 nobody does.
TRY = """\
httpd -p 127.0.0.1:81
httpd -p 127.0.0.1:82
for duty in {duties}; do
    rm -rf folder secret
    mkdir folder
    for name in secret folder/named folder/old folder/other; do
        echo text >$name
    done
    case $duty in {serve}) own=83 ;; *) own=82 ;; esac
    echo "= $duty"
    echo "= $duty" >&2
    ./sandbox $duty $PWD/secret '' $PWD/folder 81 $own || exit
done
"""


def machine(
    files: Mapping[str, Path], command: str, *, on: str = "arm64", kernel: str = "trixie"
) -> subprocess.CompletedProcess[bytes]:
    try:
        return linux_machine.run(files, command, on=on, kernel=kernel)
    except pyllamafile.UnavailableError as error:
        pytest.skip(str(error))


def tried(target: str, kernel: str, folder: Path) -> dict[int, Tried]:
    """What each duty could do there."""
    command = TRY.format(duties=" ".join(map(str, MAY)), serve=f"{SERVES}|{ROUTES}")
    program = compiled(target, folder)
    done = machine({"sandbox": program}, command, on=target.split("-")[1], kernel=kernel)
    assert done.returncode == 0, done.stderr
    streams = [stream.decode().split("= ")[1:] for stream in (done.stdout, done.stderr)]
    found = {}
    for output, errors in zip(*streams, strict=True):
        duty, _, said = output.partition("\n")
        found[int(duty)] = Tried.read(said, errors.partition("\n")[2])
    assert found.keys() == MAY.keys()
    return found


def test_the_sandbox_holds_on_arm64(tmp_path: Path) -> None:
    for duty, each in tried("linux-arm64", "trixie", tmp_path).items():
        assert each.line == "sandbox: Landlock ABI 6, seccomp"
        assert_held(each, duty)


@pytest.mark.parametrize("target", ["linux-amd64", "linux-arm64"])
def test_on_the_oldest_kernel_seccomp_holds(target: str, tmp_path: Path) -> None:
    """Landlock, which it lacks, is what confines reading and ports. Root reads environments."""
    for duty, each in tried(target, "bullseye", tmp_path).items():
        assert each.line == "sandbox: seccomp (no Landlock: reading is not confined)"
        allowed = MAY[duty] | {"read secret", "list"}
        for own, others in WITHOUT_LANDLOCK.items():
            allowed |= others if own in MAY[duty] else set()
        # nobody listens there, and this kernel has no MPTCP
        never = ({"connect own"} if duty == ROUTES else set()) | {"socket MPTCP"}
        assert each.done() - {"another's environment"} == allowed - never
        refused = each.first.keys() - allowed - {"another's environment", "write named"}
        assert {each.first[what] for what in refused} <= REFUSED


@pytest.fixture(scope="module")
def files(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """SmolLM2 for one processor each, by the processor."""
    folder = tmp_path_factory.mktemp("files")
    return {
        on: pyllamafile.build(smollm2, folder / on, targets=[f"linux-{on}"], gui=False).path
        for on in linux_machine.EMULATORS
    }


def test_a_file_proves_itself_on_arm64(
    files: dict[str, Path], runtime_arm64: Path, smollm2: Path
) -> None:
    """Where qemu's own system calls stand in for a kernel's, the same text is written."""
    asked = " ".join(f"'{word}'" for word in ASKED)
    done = machine({"f": files["arm64"]}, f"./f {asked} >&2 && ./f --prove --json")
    report = json.loads(done.stdout)
    assert [check for check in report["checks"] if not check["ok"]] == []
    assert done.returncode == 0
    sandbox = next(check for check in report["checks"] if "sandbox" in check["name"])
    assert "Landlock ABI 6, seccomp" in sandbox["remark"]
    qemu = need("qemu-aarch64-static", "qemu-user-static")
    here = run(qemu, "-cpu", "neoverse-n1", runtime_arm64, "-m", smollm2, *ASKED)
    assert here.stdout.strip() in done.stderr


@pytest.mark.parametrize("on", ["amd64", "arm64"])
def test_a_file_runs_on_the_oldest_kernel(files: dict[str, Path], on: str) -> None:
    command = "./f --version && ./f -p 'The capital of France is' -n 2 --temp 0"
    done = machine({"f": files[on]}, command, on=on, kernel="bullseye")
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"sandbox: seccomp (no Landlock: reading is not confined)\n" in done.stdout
    assert b"The capital of France is Paris" in done.stdout
