"""A plain program hands over to the one for GPUs that is in the file: unpacked once, and become.

The real program hands over, to a small one that stands for the other. `test_vulkan.py` has both.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import stat
import subprocess
import time
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from running import need

from pyllamafile.models import tiny
from pyllamafile.native.building import driver, tools

pytestmark = pytest.mark.native

TARGET = "linux-amd64"
ENTRY = f"gpu/{TARGET}.zst"
HERE = Path(__file__).parent
Done = subprocess.CompletedProcess[str]
SILENCE = "; --gpu off silences this\n"


def compiled(output: Path, probe: int) -> bytes:
    zig = tools.package("ziglang") / "zig"
    words = ["-target", "x86_64-linux-gnu.2.28", "-Os", "-s", f"-DPROBE={probe}", "-o", output]
    subprocess.run([zig, "cc", *words, HERE / "second.c"], check=True, env=tools.environment())
    return output.read_bytes()


@pytest.fixture(scope="module")
def second(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return compiled(tmp_path_factory.mktemp("second") / "program", 0)


@dataclass(frozen=True)
class Machine:
    """A machine with a GPU, as far as the plain program can tell, and a llamafile."""

    plain: Path
    second: bytes
    file: Path
    weights: Path
    cache: Path
    variables: Mapping[str, str] = field(default_factory=dict)

    def pack(self, program: bytes | None = None, damage: str = "", **changes: object) -> None:
        """Make the llamafile: with the second program, compressed against the plain one."""
        zstandard = pytest.importorskip("zstandard")
        program = self.second if program is None else program
        plain = self.plain.read_bytes()
        prefix = zstandard.ZstdCompressionDict(plain, dict_type=zstandard.DICT_TYPE_RAWCONTENT)
        parameters = zstandard.ZstdCompressionParameters.from_level(
            3, window_log=27, source_size=len(program), dict_size=len(plain), write_dict_id=False
        )
        compressor = zstandard.ZstdCompressor(dict_data=prefix, compression_params=parameters)
        frame = compressor.compress(program)
        if damage == "cut":
            frame = frame[:-8]
        if damage == "changed":
            frame = frame[:-8] + bytes(byte ^ 255 for byte in frame[-8:])
        gpu = {"size": len(program), "sha256": hashlib.sha256(program).hexdigest(), **changes}
        row = {"target": TARGET, "size": len(plain), "gpu": gpu}
        with zipfile.ZipFile(self.file, "w") as archive:
            archive.writestr("llamafile.json", json.dumps({"format": 1, "runtimes": [row]}))
            if damage != "left out":
                method = zipfile.ZIP_DEFLATED if damage == "deflated" else zipfile.ZIP_STORED
                archive.writestr(ENTRY, frame, method)

    @property
    def command(self) -> list[str | Path]:
        return [self.plain, "--llamafile", self.file]

    def env(self, **variables: str) -> dict[str, str]:
        of_cache = {"PYLLAMAFILE_CACHE": str(self.cache), "GGML_VK_VISIBLE_DEVICES": "0"}
        return {**os.environ, **of_cache, **self.variables, **variables}

    def run(self, *words: str | Path, **variables: str) -> Done:
        return subprocess.run(
            [*self.command, *words],
            env=self.env(**variables),
            input="typed\n",
            capture_output=True,
            text=True,
            timeout=300,
        )

    def computes(self, *words: str, **variables: str) -> Done:
        text = ("-m", self.weights, "-p", tiny.PROMPT, "-n", "24", "--temp", "0")
        return self.run(*text, *words, **variables)

    @property
    def unpacked(self) -> list[Path]:
        files = (path for path in self.cache.rglob("*") if path.is_file())
        return [path for path in files if path not in self.records]

    @property
    def records(self) -> list[Path]:
        return list(self.cache.glob("gpus/*.gpu"))


@pytest.fixture
def machine(runtime: Path, second: bytes, tmp_path: Path) -> Machine:
    weights = tmp_path / "tiny.gguf"
    weights.write_bytes(tiny.model())
    out = Machine(runtime, second, tmp_path / "my model", weights, tmp_path / "cache")
    out.pack()
    return out


def handed_over(machine: Machine, done: Done, *words: str) -> bool:
    """Whether the second program has answered, to these words."""
    lines = done.stdout.splitlines()
    return lines[2:] == ["--llamafile", str(machine.file), *words, "typed"]


def test_it_becomes_the_second_program(machine: Machine) -> None:
    """The same process, with the same words and streams."""
    words = ["-p", 'two words, a "quote"', "", "\u00fcn\u00ef \u65e5\u672c"]
    process = subprocess.Popen(
        [*machine.command, *words],
        env=machine.env(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    out, err = process.communicate("typed\n", timeout=300)
    program = machine.cache / "run" / hashlib.sha256(machine.second).hexdigest()
    lines = [str(process.pid), str(program), "--llamafile", str(machine.file), *words, "typed"]
    assert (out.splitlines(), err) == (lines, "")
    assert process.returncode == 3 + len(words)
    assert machine.unpacked == [program]
    assert program.read_bytes() == machine.second
    facts = program.stat()
    assert (facts.st_mode & 0o777, time.gmtime(facts.st_mtime).tm_year) == (0o700, 1980)
    assert program.parent.stat().st_mode & 0o777 == 0o700


def test_what_is_unpacked_is_used_again_unless_it_was_written_to(machine: Machine) -> None:
    assert handed_over(machine, machine.run("-p", "x"), "-p", "x")
    (program,) = machine.unpacked
    before = program.stat()
    assert handed_over(machine, machine.run("-p", "y"), "-p", "y")
    assert program.stat().st_ino == before.st_ino
    with program.open("r+b") as file:
        file.write(b"\x7fELF")
    assert handed_over(machine, machine.run("-p", "z"), "-p", "z")
    assert program.stat().st_ino != before.st_ino
    os.utime(program, ns=(0, program.stat().st_mtime_ns))  # when it was read doesn't matter
    inode = program.stat().st_ino
    assert handed_over(machine, machine.run("-p", "z"), "-p", "z")
    assert program.stat().st_ino == inode


def test_many_first_starts_at_once_are_harmless(machine: Machine) -> None:
    several = [
        subprocess.Popen(
            [*machine.command, "-p", "x"],
            env=machine.env(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(8)
    ]
    for process in several:
        out, _ = process.communicate(timeout=300)
        assert (process.returncode, out.splitlines()[-2:]) == (5, ["-p", "x"])
    assert [path.read_bytes() for path in machine.unpacked] == [machine.second]


@pytest.mark.parametrize(
    "words",
    [
        ("-p", "x", "-n", "1", "--gpu", "off"),
        ("-p", "x", "-n", "1", "-ngl", "0"),
        ("-p", "x", "-n", "1", "--device", "none"),
        ("--version",),
        ("--help",),
        ("--licenses",),
        ("--quantize", "--help"),
        ("--tokenize", "-p", "x"),
    ],
    ids=" ".join,
)
def test_what_needs_no_gpu_is_not_handed_over(machine: Machine, words: tuple[str, ...]) -> None:
    done = machine.run(*words, "-m", str(machine.weights))
    assert not handed_over(machine, done, *words)
    assert "GPU" not in done.stderr
    assert not [path for path in machine.unpacked if path.parent.name == "run"]


def test_which_gpus_there_are_the_second_program_knows(machine: Machine) -> None:
    for name in ("vulkan", "nvidia"):
        words = ("-p", "x", "--gpu", name)
        assert handed_over(machine, machine.run(*words), *words)


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (("--on", "nobody"), "a model over several machines"),
        (("--models-dir", "."), "models that the server finds elsewhere"),
    ],
    ids=str,
)
def test_what_no_gpu_computes_says_so(machine: Machine, words: tuple[str, ...], what: str) -> None:
    model = ("-m", str(machine.weights)) if words[0] == "--on" else ()
    line = f"the processor alone computes {what}"
    # the first to fail is a port that nobody has
    command = (*words, *model, "--server", "--port", "70000")
    assert f"GPU: not used: {line}{SILENCE}" in machine.run(*command).stderr
    assert "GPU" not in machine.run(*command, "--gpu", "off").stderr
    done = machine.run(*command, "--gpu", "vulkan")
    assert (done.returncode, done.stderr) == (1, f"error: --gpu vulkan: {line}\n")
    assert machine.unpacked == []


def test_what_was_found_of_gpus_the_second_program_says(machine: Machine) -> None:
    """If it is there: for that alone it is not unpacked."""
    assert not handed_over(machine, machine.run("--version"), "--version")
    machine.run("-p", "x")
    assert handed_over(machine, machine.run("--version"), "--version")
    off = ("--version", "--gpu", "off")
    assert not handed_over(machine, machine.run(*off), *off)


@pytest.mark.parametrize(
    "variable", ["PYLLAMAFILE_GPU=off", "LLAMA_ARG_N_GPU_LAYERS=0", "LLAMA_ARG_DEVICE=none"]
)
def test_nothing_is_handed_over_where_the_environment_says_so(
    machine: Machine, variable: str
) -> None:
    name, _, value = variable.partition("=")
    done = machine.computes(**{name: value})
    assert (done.returncode, done.stderr) == (0, "")
    assert tiny.ANSWER in done.stdout


def no_gpu() -> None:
    if [*Path("/dev").glob("dri/renderD*"), *Path("/dev").glob("nvidiactl")]:
        pytest.skip("this machine has a GPU")


def test_without_a_device_nothing_is_unpacked(machine: Machine) -> None:
    no_gpu()
    env = machine.env()
    del env["GGML_VK_VISIBLE_DEVICES"]
    words = ["-m", machine.weights, "-p", tiny.PROMPT, "-n", "24", "--temp", "0"]
    run = {"env": env, "capture_output": True, "text": True, "timeout": 300}
    done = subprocess.run([*machine.command, *words], **run)
    assert (done.returncode, done.stderr, machine.unpacked) == (0, "", [])
    assert tiny.ANSWER in done.stdout
    for name in ("vulkan", "NVIDIA"):
        done = subprocess.run([*machine.command, *words, "--gpu", name], **run)
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr == (
            f"error: --gpu {name}: this machine has no GPU: there is no /dev/dri/renderD*, "
            "/dev/nvidiactl or /dev/dxg\n"
        )


def test_a_file_without_a_second_program_says_so_where_a_gpu_is_needed(machine: Machine) -> None:
    machine.pack(damage="left out")
    done = machine.computes()
    assert (done.returncode, done.stderr) == (0, "")
    assert tiny.ANSWER in done.stdout
    done = machine.computes("--gpu", "vulkan")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "error: --gpu vulkan: this file has no program for GPUs\n"


def goes_on(machine: Machine, why: str, **variables: str) -> None:
    """The processor computes, and one line says why; who needs a GPU gets an error."""
    done = machine.computes(**variables)
    said = f"this file's program for it {why}"
    assert (done.returncode, done.stderr) == (0, f"GPU: not used: {said}{SILENCE}")
    assert tiny.ANSWER in done.stdout
    done = machine.computes("--gpu", "vulkan", **variables)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"error: --gpu vulkan: {said}\n"
    assert machine.unpacked == []


@pytest.mark.parametrize(
    ("damage", "changes"),
    [
        ("cut", {}),
        ("changed", {}),
        ("", {"sha256": "0" * 64}),
        ("", {"size": 1}),
        ("", {"size": 1 << 27}),
    ],
    ids=str,
)
def test_a_damaged_program_is_not_used(
    machine: Machine, damage: str, changes: dict[str, object]
) -> None:
    machine.pack(damage=damage, **changes)
    goes_on(machine, "is damaged")


@pytest.mark.parametrize(
    ("damage", "changes"),
    [
        ("deflated", {}),
        ("", {"sha256": "../../escaped"}),
        ("", {"sha256": ""}),
        ("", {"size": 1 << 40}),
        ("", {"size": "many"}),
    ],
    ids=str,
)
def test_what_makes_no_sense_counts_as_no_program(
    machine: Machine, damage: str, changes: dict[str, object]
) -> None:
    machine.pack(damage=damage, **changes)
    done = machine.computes()
    assert (done.returncode, done.stderr, machine.unpacked) == (0, "", [])
    assert tiny.ANSWER in done.stdout


def test_a_cache_that_takes_nothing(machine: Machine) -> None:
    machine.cache.parent.joinpath("file").write_bytes(b"")
    there = str(machine.cache.parent / "file" / "cache")
    goes_on(machine, "can't be written to the cache", PYLLAMAFILE_CACHE=there)
    others = machine.cache / "run"
    others.mkdir(parents=True)
    others.chmod(0o777)  # where anybody could put a program
    goes_on(machine, "can't be written to the cache")


def test_a_link_in_a_place_beside_those_of_others_is_not_followed(
    machine: Machine, tmp_path: Path
) -> None:
    """Where everybody may write, a folder may be anybody's, and its `run` lead to what is ours."""
    if os.geteuid() != 0:
        pytest.skip("only root may mount a /var/tmp of the test's own")
    mine, place = tmp_path / "mine" / "run", tmp_path / "tmp" / f"pyllamafile-{os.geteuid()}"
    for folder in (mine, place):
        folder.mkdir(parents=True)
        folder.chmod(0o700)
    program = mine / hashlib.sha256(machine.second).hexdigest()
    program.write_bytes(b"#!/bin/sh\necho planted; exit\n".ljust(len(machine.second), b"\n"))
    program.chmod(0o700)
    os.utime(program, (331_257_600, 331_257_600))
    (place / "run").symlink_to(mine)
    script = 'mount -t tmpfs -o mode=1777 tmpfs /var/tmp && exec "$@"'
    done = subprocess.run(
        [need("unshare"), "-m", "sh", "-c", script, "sh", *machine.command, "-p", "x"],
        env=machine.env(
            PYLLAMAFILE_CACHE="", XDG_CACHE_HOME="", HOME="/none", TMPDIR=str(place.parent)
        ),
        input="typed\n",
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert handed_over(machine, done, "-p", "x"), (done.stdout, done.stderr)
    assert list(mine.iterdir()) == [program]


def test_a_program_that_does_not_run_here_is_not_kept(machine: Machine, tmp_path: Path) -> None:
    machine.pack(compiled(tmp_path / "other", 3))
    goes_on(machine, "does not run here: it ended with 3")
    machine.pack(b"\x7fELF, but not really")
    done = machine.computes()
    assert (done.returncode, tiny.ANSWER in done.stdout) == (0, True)
    assert done.stderr.startswith("GPU: not used: this file's program for it does not run here: ")


def test_a_program_that_does_not_run_here_is_tried_once_a_day(
    machine: Machine, tmp_path: Path
) -> None:
    machine.pack(compiled(tmp_path / "other", 3))
    line = "GPU: not used: this file's program for it does not run here: it ended with 3"
    assert machine.computes().stderr == f"{line}{SILENCE}"
    (record,) = machine.records
    record.write_text("gpu: problem a test has written this\n")
    assert machine.computes().stderr == f"GPU: not used: a test has written this{SILENCE}"
    day = 24 * 3600
    os.utime(record, (record.stat().st_atime, record.stat().st_mtime - day - 60))
    assert machine.computes().stderr == f"{line}{SILENCE}"
    assert "ended with 3" in record.read_text()
    # and one that is another program at once
    machine.pack()
    assert handed_over(machine, machine.run("-p", "x"), "-p", "x")


def test_where_there_is_no_glibc(machine: Machine, tmp_path: Path) -> None:
    """A root folder with nothing but the static program and its file, as far as it goes."""
    if os.geteuid() != 0:
        pytest.skip("only root may change the root folder")
    root = tmp_path / "root"
    (root / "tmp").mkdir(parents=True)
    (root / "dev").mkdir()
    os.mknod(root / "dev" / "urandom", stat.S_IFCHR | 0o666, os.makedev(1, 9))
    for path, name in ((machine.plain, "run"), (machine.file, "f"), (machine.weights, "w.gguf")):
        shutil.copy(path, root / name)
    words = ["/run", "--llamafile", "/f", "-m", "/w.gguf", "-p", tiny.PROMPT, "-n", "24"]
    done = subprocess.run(
        [need("chroot"), root, *words, "--temp", "0"],
        env={"PYLLAMAFILE_CACHE": "/tmp/cache", "GGML_VK_VISIBLE_DEVICES": "0"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert (done.returncode, tiny.ANSWER in done.stdout) == (0, True), done.stderr
    assert done.stderr == (
        "GPU: not used: this file's program for it does not run here: it takes glibc: there is no "
        f"/lib64/ld-linux-x86-64.so.2{SILENCE}"
    )
    assert list((root / "tmp").iterdir()) == []


@pytest.fixture(scope="module")
def child(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What starts itself by gpu/child.h, and says what came of it."""
    output = tmp_path_factory.mktemp("child") / "child"
    sources = [HERE / "gpu_child.cpp", driver.RUNTIME / "gpu" / "child_posix.cpp"]
    include = f"-I{driver.RUNTIME}"
    words = ["-target", "x86_64-linux-musl", "-std=c++17", "-Os", include, "-o", output, *sources]
    zig = tools.package("ziglang") / "zig"
    subprocess.run([zig, "c++", *words], check=True, env=tools.environment())
    return output


@pytest.mark.parametrize(
    ("words", "end"),
    [
        (["0", "a", "b"], "0||0\na\nb\n"),
        (["7"], "0||7\n"),
        (["crashes", "a"], "0|SIGSEGV|1\na\n"),
        (["hangs", "a"], "1||0\na\n"),
    ],
    ids=str,
)
@pytest.mark.parametrize("heeded", [True, False])
def test_how_a_process_with_a_driver_ends(
    child: Path, words: list[str], end: str, heeded: bool
) -> None:
    """Also where who started all of this lets the system forget how children end."""

    def ignore() -> None:
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)

    done = subprocess.run(
        [child, *words],
        capture_output=True,
        text=True,
        timeout=60,
        preexec_fn=None if heeded else ignore,
    )
    assert (done.returncode, done.stdout) == (0, end)


def test_a_process_that_speaks_without_end_is_ended(child: Path) -> None:
    began = time.monotonic()
    done = subprocess.run([child, "chatters"], capture_output=True, text=True, timeout=60)
    assert done.stdout.startswith("1||0\na line of many\n")
    assert len(done.stdout) < 2 << 20
    assert time.monotonic() - began < 30
