"""Windows on arm64: the amd64 program unpacks the arm64 one and hands over to it.

The real code, in a program that always hands over, and a child for the same processor: under Wine
on amd64, and compiled for arm64 under Wine for arm64. Nothing here runs both, as a Windows on arm64
does.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import subprocess
import zipfile
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from running import at_hand
from wine_arm64 import Windows, windows_path

import pyllamafile
from pyllamafile import native
from pyllamafile.launcher import BLOCK, pack
from pyllamafile.native.building import driver, tools
from pyllamafile.native.building.source import ZSTD, vendored
from pyllamafile.targets import TARGETS

pytestmark = pytest.mark.native
TESTS = Path(__file__).parent
SOURCES = (
    "container.cpp",
    "manifest.cpp",
    "gpu/child_windows.cpp",
    "gpu/choice.cpp",
    "gpu/devices.cpp",
    "system/files.cpp",
    "system/system.cpp",
    "system/handover/handover.cpp",
    "system/handover/places.cpp",
    "system/handover/unpack.cpp",
)


def compiled(output: Path, target: str, language: list[str], *options: str | Path) -> Path:
    zig = tools.package("ziglang") / "zig"
    flags = ["-target", TARGETS[target].triple, "-Os", "-s", "-w"]
    command = [zig, *language, *flags, *options, "-o", output]
    done = subprocess.run(command, capture_output=True, text=True, env=tools.environment())
    assert (done.returncode, done.stderr) == (0, "")
    return output


@dataclass(frozen=True)
class Machine:
    """A Windows with the two programs and a llamafile."""

    words: tuple[str, ...]
    parent: Path
    child: bytes
    file: Path
    cache: Path
    env: dict[str, str]

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*self.words, windows_path(self.parent), *arguments],
            env=self.env,
            cwd=Path(self.env["WINEPREFIX"]) / "drive_c",  # which both can name
            input="typed\n",
            capture_output=True,
            text=True,
            timeout=120,
        )

    @property
    def unpacked(self) -> list[Path]:
        return [path for path in self.cache.rglob("*") if path.is_file()]


@pytest.fixture(scope="module", params=["windows-amd64", "windows-arm64"])
def started(request: pytest.FixtureRequest) -> tuple[str, Windows]:
    """What the two programs are compiled for, and what runs that."""
    return request.param, request.getfixturevalue(request.param.replace("-", "_"))


@pytest.fixture(scope="module")
def programs(
    started: tuple[str, Windows], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    target, _ = started
    folder = tmp_path_factory.mktemp("programs")
    vendor, zstd = native.llama_source() / "vendor", vendored(ZSTD)
    hashes = [vendor / "hash" / "sha256" / "sha256.c", f"-I{vendor / 'hash'}"]
    includes = [f"-I{path}" for path in (driver.RUNTIME, vendor, zstd)]
    windows = driver.RUNTIME / "system" / "handover" / "windows.cpp"
    renamed = ["c++", "-c", "-std=c++17", "-Dis_emulated=windows_emulates", *includes]
    parent = compiled(
        folder / "parent.exe",
        target,
        ["c++", "-std=c++17"],
        TESTS / "handover.cpp",
        *(driver.RUNTIME / name for name in SOURCES),
        compiled(folder / "windows.o", target, renamed, windows),
        vendor / "hash" / "hash.cpp",
        compiled(folder / "sha256.o", target, ["cc", "-c"], *hashes),
        compiled(folder / "zstd.o", target, ["cc", "-c", "-DZSTD_DISABLE_ASM"], zstd / "zstd.c"),
        # what hands over to it, and to none for GPUs
        '-DRUNTIME_TARGET="windows-amd64"',
        "-DRUNTIME_HAS_GPU",
        *includes,
    )
    language = ["cc", "-municode"]
    return parent, compiled(folder / "child.exe", target, language, TESTS / "handover_child.c")


@pytest.fixture
def machine(programs: tuple[Path, Path], started: tuple[str, Windows], tmp_path: Path) -> Machine:
    parent, child = programs
    _, windows = started
    file = tmp_path / "my model.llamafile"
    cache = tmp_path / "cache"
    env = {**windows.env, "PYLLAMAFILE_CACHE": windows_path(cache), "LLAMAFILE": windows_path(file)}
    llamafile(file, child.read_bytes())
    return Machine(windows.words, parent, child.read_bytes(), file, cache, env)


def llamafile(path: Path, program: bytes, **changes: object) -> Path:
    """A prefix with one packed program, and the zip with the manifest that says where it is."""
    packed = pack(program)
    row = {
        "target": "windows-arm64",
        "offset": BLOCK,
        "packed_size": len(packed),
        "size": len(program),
        "sha256": hashlib.sha256(program).hexdigest(),
        **changes,
    }
    path.write_bytes(b"head".ljust(BLOCK, b"\0") + packed)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("llamafile.json", json.dumps({"format": 1, "runtimes": [row]}))
    return path


def test_the_command_line_streams_and_exit_code_pass_through(machine: Machine) -> None:
    arguments = ["-p", 'two words, a "quote", a \\', "", "\u00fcn\u00ef \u65e5\u672c"]
    done = machine.run(*arguments)
    lines = done.stdout.splitlines()
    name = hashlib.sha256(machine.child).hexdigest()
    assert lines[0].endswith(f"\\cache\\run\\{name}.exe")
    assert lines[1:] == ["--llamafile", windows_path(machine.file), *arguments, "typed"]
    assert done.returncode == 3 + len(arguments)
    assert [path.read_bytes() for path in machine.unpacked] == [machine.child]


def test_what_is_unpacked_is_used_again(machine: Machine) -> None:
    assert machine.run().returncode == 3
    before = machine.unpacked[0].stat()
    assert machine.run("more").returncode == 4
    assert machine.unpacked[0].stat().st_mtime_ns == before.st_mtime_ns


def test_half_a_program_is_replaced(machine: Machine) -> None:
    machine.run()
    (path,) = machine.unpacked
    path.write_bytes(machine.child[:1000])
    assert machine.run().returncode == 3
    assert [path.read_bytes() for path in machine.unpacked] == [machine.child]


@pytest.mark.parametrize(
    ("changes", "damaged"),
    [
        ({"target": "windows-amd64"}, False),
        ({"sha256": "0" * 64}, True),
        ({"sha256": "../../escaped"}, False),
        ({"size": 1}, True),
        ({"size": 1 << 20}, True),
        ({"size": 1 << 30}, False),  # more than so few bytes can be
        ({"offset": 1 << 40}, True),
        ({"offset": BLOCK + 1}, True),
        ({"packed_size": 1000}, True),
        ({"packed_size": 1 << 30}, True),
        ({"packed_size": "many"}, False),
    ],
    ids=str,
)
def test_where_there_is_no_such_program_this_one_does_the_work(
    machine: Machine, changes: dict[str, object], damaged: bool
) -> None:
    llamafile(machine.file, machine.child, **changes)
    done = machine.run()
    assert (done.returncode, done.stdout) == (99, "")
    assert ("is damaged; this one goes on" in done.stderr) is damaged
    assert machine.unpacked == []


@pytest.mark.parametrize("started", ["windows-arm64"], indirect=True)
def test_a_built_file_is_handed_over_to_its_program(
    machine: Machine, smollm2: Path, tmp_path: Path
) -> None:
    target = at_hand("windows-arm64")
    targets = ["windows-amd64", target]
    options = {"targets": targets, "gui": False, "gpu": False}  # one program is unpacked
    file = pyllamafile.build(smollm2, tmp_path / "f.exe", **options).path
    machine = replace(machine, env={**machine.env, "LLAMAFILE": windows_path(file)})
    version = machine.run("--version")
    assert (version.returncode, version.stderr) == (0, "")
    assert f"{target}, CPU level" in version.stdout
    text = machine.run("-p", "The capital of France is", "-n", "6", "--temp", "0")
    assert text.returncode == 0
    assert "Paris" in text.stdout
    (unpacked,) = machine.unpacked
    assert unpacked.read_bytes() == gzip.decompress(native.find(TARGETS[target]).path.read_bytes())


def test_the_child_ends_with_its_parent(machine: Machine) -> None:
    process = subprocess.Popen(
        [*machine.words, windows_path(machine.parent)],
        env=machine.env,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    with process.stdin, process.stdout:
        assert process.stdout.readline()  # the child is there, and waits for its input
        kill = [*machine.words, "taskkill", "/f", "/im", machine.parent.name]
        subprocess.run(kill, env=machine.env, capture_output=True, timeout=60, check=True)
        process.stdout.read()  # ends when nobody has the other end any more
    process.wait(timeout=60)
