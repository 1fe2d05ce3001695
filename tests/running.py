"""Programs that tests run: whether they are there, how they end, and what they wait for."""

from __future__ import annotations

import gzip
import importlib.util
import json
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest

from pyllamafile import native
from pyllamafile.targets import TARGETS

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
    *command: str | Path, stdin: bytes = b"", **options: object
) -> subprocess.CompletedProcess[bytes]:
    """Runs a program to its end; gives its exit code, stdout and stderr."""
    words = [str(word) for word in command]
    return subprocess.run(words, input=stdin, capture_output=True, timeout=300, **options)


def unpacked(target: str, folder: Path) -> Path:
    """The native program of a target."""
    built = native.find(TARGETS[target]) or native.build(TARGETS[target])
    path = folder / f"runtime-{target}"
    path.write_bytes(gzip.decompress(built.path.read_bytes()))
    path.chmod(0o755)
    return path


def at_hand(target: str) -> str:
    """The target, or a skip where its runtime would have to be compiled for one file of tests."""
    if target in EXECUTED_AT_HAND and native.find(TARGETS[target]) is None:
        pytest.skip(f"no runtime is at hand: pyllamafile runtimes build --target {target}")
    return target


@contextmanager
def serving(*command: str | Path, env: dict[str, str] | None = None) -> Iterator[str]:
    """A server that was started by a command; gives the URL that it prints."""
    process = subprocess.Popen(
        [str(word) for word in command],
        stdout=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
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


def childless(server: str | Path) -> bool:
    """Whether they all end, in half a minute."""
    deadline = time.monotonic() + 30
    while children(server) and time.monotonic() < deadline:
        time.sleep(0.1)
    return not children(server)


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


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
