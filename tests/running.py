"""Programs that tests run: whether they are there, how they end, and what they wait for."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import importlib.util
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import IO, Any, NamedTuple

import pytest

from pyllamafile import native
from pyllamafile.targets import TARGETS, WITH_GPU

# What the tests run, natively or emulated, and compile if need be.
EXECUTED = ("linux-amd64", "linux-arm64", "windows-amd64")
# What they run where it is at hand. The others are linked and checked, not executed.
EXECUTED_AT_HAND = ("windows-arm64",)
ARTIFACTS = Path(__file__).parent.parent / "artifacts"

# The command line in a process of its own, with the runtimes of the folder given first.
COMMAND = [
    sys.executable,
    "-c",
    "import sys, pathlib\n"
    "from pyllamafile import native\n"
    "native.PREBUILT = pathlib.Path(sys.argv.pop(1))\n"
    "from pyllamafile.__main__ import main\n"
    "main()",
]


class Result(NamedTuple):
    """How a command of ours ended, and what it said."""

    code: int
    out: str
    err: str


Command = Callable[..., Result]


class OnGpu(NamedTuple):
    """How a program that can use a GPU is started: what stands before options, and variables."""

    command: tuple[str | Path, ...]
    env: dict[str, str]


def need(program: str, package: str | None = None) -> str:
    """The path of a program, or a skip that names the Debian package it is in."""
    found = shutil.which(program)
    if found is None:
        pytest.skip(f"{program} is missing: apt install {package or program}")
    return found


def needs(package: str, extra: str = "runtimes") -> pytest.MarkDecorator:
    """A skip, where a Python package is missing, that names the extra that has it."""
    missing = importlib.util.find_spec(package) is None
    return pytest.mark.skipif(missing, reason=f"{package} is missing: pip install '.[{extra}]'")


def package(name: str, extra: str = "clients") -> ModuleType:
    """A package that an extra has, or a skip that says how to have it."""
    return pytest.importorskip(name, reason=f"{name} is missing: pip install '.[{extra}]'")


def run(
    *command: str | Path, stdin: bytes = b"", timeout: float = 300, **options: object
) -> subprocess.CompletedProcess[bytes]:
    """Runs a program to its end; gives its exit code, stdout and stderr."""
    words = [str(word) for word in command]
    return subprocess.run(words, input=stdin, capture_output=True, timeout=timeout, **options)


def unpacked(target: str, folder: Path) -> Path:
    """The native program of a target."""
    row = {**TARGETS, **WITH_GPU}[target]
    built = native.find(row) or native.build(row)
    path = folder / f"runtime-{target}"
    path.write_bytes(built.program())
    path.chmod(0o755)
    return path


# elf(5): a program of 64 bits, EM_AARCH64, that has one place or any.
ARM64 = b"\x7fELF\2\1\1" + bytes(9) + b"\2\0\xb7\0"
THAT = b"\xff" * 7 + bytes(9) + b"\xfe\xff\xff\xff"
EMULATING = """\
mount -t binfmt_misc binfmt_misc {folder}/handlers || exit 77
printf %s ':arm64:M::{magic}:{mask}:{qemu}:F' >{folder}/handlers/register || exit 77
{line}
"""


def on_arm64(folder: Path, line: str) -> tuple[str, ...]:
    """The command that runs a line of a shell where Linux starts programs for arm64, by qemu.

    It does so in a user namespace of the line's own (Linux 6.7), or the test is skipped.

    Args:
        folder: A folder that is made, and that the command takes.
        line: It has what stands behind the command as its arguments.
    """
    qemu, unshare = need("qemu-aarch64-static", "qemu-user-static"), need("unshare", "util-linux")
    magic, mask = ("".join(f"\\x{byte:02x}" for byte in part) for part in (ARM64, THAT))
    known = {"folder": folder, "magic": magic, "mask": mask, "qemu": qemu}
    (folder / "handlers").mkdir(parents=True)
    script = folder / "script"
    command = (unshare, "-Urm", "sh", str(script))
    script.write_text(EMULATING.format(**known, line="exit 0"))
    if run(*command).returncode:
        pytest.skip("no handlers of a user namespace's own here")
    script.write_text(EMULATING.format(**known, line=line))
    return command


def at_hand(target: str) -> str:
    """The target, or a skip where its runtime would have to be compiled for one file of tests."""
    if target in EXECUTED_AT_HAND and native.find(TARGETS[target]) is None:
        pytest.skip(f"no runtime is at hand: pyllamafile runtimes build --target {target}")
    return target


@contextmanager
def serving(
    *command: str | Path, env: dict[str, str] | None = None, stderr: IO[str] | None = None
) -> Iterator[str]:
    """A server that was started by a command; gives the URL that it prints."""
    process = subprocess.Popen(
        [str(word) for word in command],
        stdout=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        stderr=stderr,
        env=env,
    )
    try:
        yield ready(process)
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) in (0, 130)
        process.stdout.close()


def post(url: str, path: str, **body: Any) -> Any:
    """What a server answers to JSON, as JSON."""
    request = urllib.request.Request(
        url + path, json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request) as answer:
        return json.load(answer)


def ready(process: subprocess.Popen[bytes]) -> str:
    """Waits for the line that a server prints when it is ready; returns the URL in it."""
    for line in process.stdout:
        if b" is ready: " in line:
            return line.split(b" is ready: ")[1].split()[0].decode()
    raise AssertionError(f"the server ended with {process.wait()}")


def children(server: str | Path) -> list[str]:
    """The command lines of the processes that the router of a llamafile has started."""
    lines = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().decode(errors="replace")
        except OSError:
            continue
        if f"--child-of={server}" in line:
            lines.append(line)
    return lines


def eventually(holds: Callable[[], Any], seconds: float = 60) -> Any:
    """What comes of it as soon as it holds, and nobody refuses to say so."""
    deadline = time.monotonic() + seconds
    while True:
        with contextlib.suppress(OSError):
            if found := holds():
                return found
        assert time.monotonic() < deadline, "it doesn't happen"
        time.sleep(0.05)


def childless(server: str | Path) -> bool:
    """Whether they all end, in half a minute."""
    deadline = time.monotonic() + 30
    while children(server) and time.monotonic() < deadline:
        time.sleep(0.1)
    return not children(server)


@contextmanager
def limited(
    controller: str, v2: tuple[str, str], v1: tuple[str, str]
) -> Iterator[list[str | Path]]:
    """The words in front of a command that put it into a control group of its own, in which a file
    says what it may have. Where this machine lets us make none, the test is skipped.
    """
    roots = (Path("/sys/fs/cgroup", controller), Path("/sys/fs/cgroup"))
    root = next((path for path in roots if (path / "cgroup.procs").exists()), None)
    if root is None:
        pytest.skip("no control groups to be had here")
    group = root / f"pyllamafile-{os.getpid()}"
    try:
        group.mkdir()
        name, value = v2 if (group / v2[0]).exists() else v1
        (group / name).write_text(value)
    except OSError as error:
        if group.exists():
            group.rmdir()
        pytest.skip(f"control groups can't be made here: {error}")
    try:
        yield ["sh", "-c", 'echo $$ >"$0/cgroup.procs" && exec "$@"', group]
    finally:
        group.rmdir()


@contextmanager
def browsing(url: str, at: str | None = None, profile: Path | None = None) -> Iterator[Any]:
    """The GUI of a server, in a browser; it may ask nobody else for anything.

    It is opened at the URL, or at what stands behind it in `at`. The browser is a new one, or that
    of a profile, a folder which it keeps its things in.
    """
    playwright = pytest.importorskip("playwright.sync_api")
    chromium = need("chromium")
    ARTIFACTS.mkdir(exist_ok=True)
    elsewhere: list[str] = []

    def asked(request: Any) -> None:
        if not request.url.startswith((url, "data:", "blob:")):
            elsewhere.append(request.url)

    with playwright.sync_playwright() as p:
        flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        size = {"width": 1280, "height": 800}
        if profile is None:
            browser = p.chromium.launch(executable_path=chromium, args=flags)
            page = browser.new_page(viewport=size)
        else:
            browser = p.chromium.launch_persistent_context(
                profile, executable_path=chromium, args=flags, viewport=size
            )
            page = browser.new_page()
        page.on("request", asked)
        page.goto(at or url)
        page.get_by_role("textbox").first.wait_for()
        yield page
        browser.close()
    assert elsewhere == []


def second_program(file: Path) -> bytes:
    """The program for GPUs in a file with one target, as others read it: by zipfile and zstandard.

    It is what the manifest says.
    """
    zstandard = package("zstandard", "runtimes")
    with zipfile.ZipFile(file) as archive:
        (facts,) = json.loads(archive.read("llamafile.json"))["runtimes"]
        frame = archive.read(f"gpu/{facts['target']}.zst")
    member = file.read_bytes()[facts["offset"] :][: facts["packed_size"]]
    prefix = zstandard.ZstdCompressionDict(
        gzip.decompress(member), dict_type=zstandard.DICT_TYPE_RAWCONTENT
    )
    program: bytes = zstandard.ZstdDecompressor(prefix).decompress(frame)
    assert len(program) == facts["gpu"]["size"]
    assert hashlib.sha256(program).hexdigest() == facts["gpu"]["sha256"]
    assert len(frame) < 0.6 * len(member)  # what both have costs little
    return program


# Upstream has products of these types on Vulkan and on Metal, and --gpu-trial asks for them.
TRIED = {"f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "q5_0", "q5_1", "iq4_nl", "iq4_xs", "mxfp4"}
TRIED |= {f"q{bits}_K" for bits in range(2, 7)}


def check_report(said: str, device: str) -> str:
    """Holds a report about GPUs (--gpu-trial) against what one says when all was right.

    Args:
        said: The report.
        device: A pattern for the line that names the only GPU.

    Returns:
        Its last line.
    """

    def lines(pattern: str) -> list[tuple[str, ...]]:
        return [match.groups() for match in re.finditer(f"^{pattern}$", said, re.MULTILINE)]

    assert len(lines(device)) == 1, said
    products = lines(r"  mul_mat (\S+) x (\d+) +right +error \S+ +\S+ ms")
    assert sorted(products) == sorted((kind, count) for kind in TRIED for count in ("1", "32"))
    assert len(lines(r"  attention +right +error \S+ +\S+ ms")) == 1
    assert lines(r"in \S+ seconds, and once more in \S+")
    assert lines(r"(\d+)/\1 layers to GPU")
    speeds = r"with the (GPU|processor) +[\d.]+ tokens a second read, [\d.]+ written"
    assert lines(speeds) == [("GPU",), ("processor",)]
    return said.splitlines()[-1]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
