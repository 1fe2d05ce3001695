"""GPUs on Windows: the program that can use them, under Wine, which has a loader of Vulkan's.

That one hands every call to the loader of Linux, so that the drivers are those of test_vulkan.py.
It does so where Wine has a screen, and else has no driver. On arm64, where qemu runs Wine, nothing
gets that far. This is for who has these programs and the shaders in the cache: `pyllamafile
runtimes build --gpu --target windows`.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from running import need, run
from wine_arm64 import Windows, windows_path

import pyllamafile
from pyllamafile import native
from pyllamafile.models import tiny
from pyllamafile.native.building import driver, tools
from pyllamafile.targets import TARGETS, WITH_GPU, Target

pytestmark = pytest.mark.native

AMD64 = WITH_GPU["windows-amd64-gpu"]
HERE = Path(__file__).parent
Says = Callable[..., tuple[int, str, str]]
on_both = pytest.mark.parametrize(
    "target", ["windows-amd64-gpu", "windows-arm64-gpu"], indirect=True, scope="module"
)


@pytest.fixture(scope="module")
def target(request: pytest.FixtureRequest) -> Target:
    """Which of the two is tried."""
    return WITH_GPU[getattr(request, "param", AMD64.name)]


@pytest.fixture(scope="module")
def file(target: Target, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file for Windows that has it, with the model of --prove."""
    plain = native.find(TARGETS[target.plain])
    if plain is None or plain.gpu is None:
        pytest.skip(f"no {target.name} is at hand: pyllamafile runtimes build --gpu")
    folder = tmp_path_factory.mktemp("windows")
    (folder / "m.gguf").write_bytes(tiny.model())
    options = {"targets": target.plain, "gui": False, "prove": False}
    return pyllamafile.build(folder / "m.gguf", folder / "f.exe", **options).path


@pytest.fixture
def system(target: Target, request: pytest.FixtureRequest) -> Windows:
    """The Windows that runs it."""
    found = request.getfixturevalue(target.plain.replace("-", "_"))
    assert isinstance(found, Windows)
    return found


@pytest.fixture
def says(file: Path, system: Windows, tmp_path: Path) -> Says:
    """Runs it with a cache of its own: its exit code, and what it says."""

    def says(*words: str, **variables: str) -> tuple[int, str, str]:
        command = [*system.words, windows_path(file), "-p", tiny.PROMPT, "-n", "4"]
        cache = {"PYLLAMAFILE_CACHE": windows_path(tmp_path / "cache")}
        done = subprocess.run(
            [*command, "--temp", "0", *words],
            env={**system.env, **cache, **variables},
            cwd=Path(system.env["WINEPREFIX"]) / "drive_c",
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=900,
        )
        # Wine's own processes write there, too, and qemu says when one of them crashes.
        lines = done.stderr.splitlines(keepends=True)
        errors = "".join(line for line in lines if not line.startswith("qemu: uncaught "))
        return done.returncode, done.stdout, errors

    return says


@pytest.fixture
def no_loader(system: Windows) -> Iterator[None]:
    """Wine brings one. Windows has it of the drivers of GPUs."""
    loader = Path(system.env["WINEPREFIX"]) / "drive_c" / "windows" / "system32" / "vulkan-1.dll"
    aside = loader.with_suffix(".aside")
    loader.rename(aside)
    yield
    aside.rename(loader)


@pytest.fixture(scope="module")
def screen(wine: dict[str, str], lavapipe: Path) -> Iterator[dict[str, str]]:
    """The variables with which Wine has a screen, and lavapipe, slow as it is, for a GPU."""
    kill = ["wine", "wineboot", "--kill"]  # what runs has no screen, or will have none
    ends = os.pipe()
    command = [need("Xvfb", "xvfb"), "-displayfd", str(ends[1]), "-screen", "0", "640x480x24"]
    server = subprocess.Popen(command, pass_fds=ends[1:], stderr=subprocess.DEVNULL)
    os.close(ends[1])
    try:
        with os.fdopen(ends[0]) as number:
            display = number.readline().strip()
        subprocess.run(kill, env=wine, capture_output=True)
        yield {
            "DISPLAY": f":{display}",
            "GGML_VK_VISIBLE_DEVICES": "0",
            "VK_ICD_FILENAMES": str(lavapipe),
            "PYLLAMAFILE_GPU_SECONDS": "600",
        }
        subprocess.run(kill, env=wine, capture_output=True)
    finally:
        server.terminate()
        server.wait()


def unpacked(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "cache").glob("run/*"))


@on_both
def test_without_a_loader_nothing_is_said_unless_a_gpu_is_needed(
    says: Says, no_loader: None, tmp_path: Path
) -> None:
    code, text, errors = says()
    assert (code, errors) == (0, "")
    assert tiny.ANSWER[:3] in text
    told = "error: --gpu vulkan: this machine has no GPU: there is no vulkan-1.dll\n"
    assert says("--gpu", "vulkan") == (1, "", told)
    assert unpacked(tmp_path) == []


@on_both
def test_without_a_driver_one_line_is_said(says: Says) -> None:
    why = "no Vulkan driver has a GPU that computes"
    code, text, errors = says()
    assert (code, errors) == (0, f"GPU: not used: {why}; --gpu off silences this\n")
    assert tiny.ANSWER[:3] in text
    assert says("--gpu", "off") == (0, text, "")
    assert says("--gpu", "vulkan") == (1, "", f"error: --gpu vulkan: {why}\n")


@on_both
def test_a_program_in_a_folder_that_somebody_named_is_known_by_its_digest(
    says: Says, tmp_path: Path
) -> None:
    """Others may write there, and Windows is asked for nobody's rights."""
    before = says()
    (program,) = (tmp_path / "cache").glob("run/*.exe")
    whole = program.read_bytes()
    assert b"This program cannot be run in DOS mode" in whole
    program.write_bytes(whole.replace(b"in DOS mode", b"in dos mode", 1))
    assert says() == before
    assert program.read_bytes() == whole


@on_both
def test_programs_that_it_unpacked_can_be_removed(
    says: Says, system: Windows, file: Path, tmp_path: Path
) -> None:
    says()
    (program,) = (tmp_path / "cache").glob("run/*.exe")
    env = {**system.env, "PYLLAMAFILE_CACHE": windows_path(tmp_path / "cache")}
    done = run(*system.words, windows_path(file), "--clean-cache", env=env)
    assert done.returncode == 0
    assert b"run: 1 removed, " in done.stdout
    assert not program.exists()


ADAPTER = r"HKLM\SYSTEM\CurrentControlSet\Control\Class\{4d36e968-e325-11ce-bfc1-08002be10318}\0099"
OLDER_WAY = r"HKLM\SOFTWARE\Khronos\Vulkan\Drivers"


def test_a_driver_that_was_installed_is_tried(
    says: Says, wine: dict[str, str], tmp_path: Path
) -> None:
    """Both ways in which Windows knows of one."""

    def registry(*words: str) -> int:
        return run("wine", "reg", *words, "/f", env=wine).returncode

    def records() -> int:
        assert says("--list-devices")[0] == 0
        return len([*(tmp_path / "cache" / "gpus").iterdir()])

    older, newer = tmp_path / "a.json", tmp_path / "b.json"
    for manifest in (older, newer):
        manifest.write_text(json.dumps({"ICD": {"library_path": r".\driver.dll"}}))
    value = (OLDER_WAY, "/v", windows_path(older))
    try:
        assert (records(), records()) == (1, 1)
        assert registry("add", *value, "/t", "REG_DWORD", "/d", "0") == 0
        assert (records(), records()) == (2, 2)
        assert registry("add", ADAPTER, "/v", "VulkanDriverName", "/d", windows_path(newer)) == 0
        assert records() == 3
    finally:
        registry("delete", *value)
        registry("delete", ADAPTER)


def test_a_file_hands_over_and_computes_on_lavapipe(
    says: Says, file: Path, screen: dict[str, str], tmp_path: Path
) -> None:
    processor = says("--gpu", "off", **screen)
    assert (processor[0], processor[2]) == (0, "")
    assert unpacked(tmp_path) == []
    assert says("--gpu", "vulkan", **screen) == processor
    (facts,) = pyllamafile.inspect(file).runtimes
    assert unpacked(tmp_path) == [f"{facts['gpu']['sha256']}.exe"]
    (record,) = (tmp_path / "cache" / "gpus").iterdir()
    found = r"gpu: device 0 llvmpipe.*\ngpu: right 0 [\d.e+]+\n"
    assert re.fullmatch(found, record.read_text())
    code, text, log = says("--gpu", "vulkan", "-v", **screen)
    assert (code, text) == processor[:2]
    assert re.search(r"offloaded (\d+)/\1 layers to GPU", log)
    assert re.search(r"^sandbox: dynamic code \(with the driver of a GPU\), ", log, re.M)


@pytest.mark.parametrize(
    ("how", "why"),
    {
        "hangs when it is loaded": "its driver did not answer within 8 seconds",
        "computes nothing": "llvmpipe[^:]*: it computes wrongly: mul_mat f16 x 1",
    }.items(),
)
def test_of_a_broken_driver_one_line_is_said_and_the_processor_computes(
    says: Says, screen: dict[str, str], broken: dict[str, str], how: str, why: str
) -> None:
    variables = {**screen, **broken, "BROKEN_DRIVER": how}
    if how.startswith("hangs"):
        variables["PYLLAMAFILE_GPU_SECONDS"] = "8"  # Wine takes some of them for itself
    code, text, errors = says(**variables)
    assert code == 0, errors
    assert tiny.ANSWER[:3] in text
    line = rf"GPU: not used: {why}; --gpu off silences this\n"
    assert re.fullmatch(line, errors), errors


# The process that a trial is in, for who has Wine alone


@pytest.fixture(scope="module")
def child(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A program that starts itself as trials of GPUs are started."""
    output = tmp_path_factory.mktemp("child") / "child.exe"
    command = [tools.package("ziglang") / "zig", "c++", "-std=c++17", "-target", AMD64.triple]
    command += ["-Os", "-s", "-w", f"-I{driver.RUNTIME}", "-o", output, HERE / "gpu_child.cpp"]
    sources = [driver.RUNTIME / "gpu" / "child_windows.cpp"]
    subprocess.run([*command, *sources], check=True, env=tools.environment())
    return output


@pytest.mark.parametrize(
    ("words", "end"),
    [
        (("7", "a b", 'a "quote"', "back\\slash \\", "\\\\", ""), "0||7"),
        (("crashes", "x"), "0|an access violation|-1073741819"),
        (("hangs", "x"), "1||0"),
    ],
    ids=["ends", "crashes", "hangs"],
)
def test_how_a_process_ends_is_told(
    windows_amd64: Windows, child: Path, words: tuple[str, ...], end: str
) -> None:
    # Without its debugger, which would write where the process does.
    overrides = f"{windows_amd64.env['WINEDLLOVERRIDES']};winedbg.exe=d"
    env = {**windows_amd64.env, "WINEDLLOVERRIDES": overrides}
    done = run(*windows_amd64.words, windows_path(child), *words, env=env)
    assert done.returncode == 0
    assert all(line.startswith(b"wine: ") for line in done.stderr.splitlines())  # of the crash
    # Both of them write lines as Windows does.
    assert done.stdout.replace(b"\r", b"").decode().splitlines() == [end, *words[1:]]
