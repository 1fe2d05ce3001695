"""GPUs by Vulkan: the program that can use them, on Mesa's lavapipe and on drivers that are broken.

Compiling that program and the shaders takes many minutes, so this is for who has both in the cache:
`pyllamafile runtimes build --gpu`. lavapipe is a processor that acts as a GPU. It compiles every
shader when it is first used, which takes seconds each.
"""

from __future__ import annotations

import gzip
import json
import os
import re
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path

import lief
import pytest
from running import need, ready

from pyllamafile import native
from pyllamafile.models import tiny
from pyllamafile.native.building import driver, shaders, tools, vulkan
from pyllamafile.native.building.source import ZSTD, llama_source, vendored
from pyllamafile.progress import silent
from pyllamafile.targets import WITH_GPU

pytestmark = pytest.mark.native

TARGET = WITH_GPU["linux-amd64-gnu"]
LIBRARIES = ("libggml-vulkan.a", "ggml-base.a", "libggml-base.a")
TYPES = ("f16", "q8_0", "q4_0", "q4_K")
HERE = Path(__file__).parent
Done = subprocess.CompletedProcess[str]


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runtime that can use a GPU."""
    if (found := native.find(TARGET)) is None:
        pytest.skip(f"no {TARGET.name} is at hand: pyllamafile runtimes build --gpu")
    path = tmp_path_factory.mktemp("program") / "runtime"
    path.write_bytes(gzip.decompress(found.path.read_bytes()))
    path.chmod(0o755)
    return path


@pytest.fixture(scope="module")
def file(blob: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the runtime takes for its llamafile: the shaders."""
    path = tmp_path_factory.mktemp("file") / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(blob, "shaders/vulkan.zst")
    return path


@pytest.fixture(scope="module")
def lavapipe() -> Path:
    """lavapipe's manifest."""
    manifests = sorted(Path("/usr/share/vulkan/icd.d").glob("lvp*.json"))
    if not manifests:
        pytest.skip("lavapipe is missing: apt install mesa-vulkan-drivers libvulkan1")
    return manifests[0]


@pytest.fixture(scope="module")
def broken(lavapipe: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The variables by which the loader finds the broken driver, and that the driver's."""
    folder = tmp_path_factory.mktemp("broken")
    library = folder / "broken.so"
    headers = vulkan.headers(silent) / "usr" / "include"
    command = [tools.package("ziglang") / "zig", "cc", "-target", TARGET.triple, "-shared", "-O1"]
    command += ["-fno-sanitize=all", "-Wall", "-Werror", f"-I{headers}", "-o", library]
    subprocess.run([*command, HERE / "broken_driver.c"], check=True, env=tools.environment())
    facts = {"library_path": str(library), "api_version": "1.3.230"}
    manifest = folder / "broken.json"
    manifest.write_text(json.dumps({"file_format_version": "1.0.0", "ICD": facts}))
    theirs = json.loads(lavapipe.read_text())["ICD"]["library_path"]
    return {"VK_ICD_FILENAMES": str(manifest), "LAVAPIPE": theirs}


@pytest.fixture
def runs(program: Path, file: Path, lavapipe: Path) -> Callable[..., Done]:
    """Runs the runtime with lavapipe as the only GPU, unless variables say otherwise."""

    def runs(*words: str | Path, **variables: str) -> Done:
        env = {
            **os.environ,
            "GGML_VK_VISIBLE_DEVICES": "0",
            "VK_ICD_FILENAMES": str(lavapipe),
            "PYLLAMAFILE_GPU_SECONDS": "600",
            **variables,
        }
        command = [program, "--llamafile", file, *words]
        return subprocess.run(command, env=env, capture_output=True, text=True, timeout=1800)

    return runs


def test_the_program_takes_an_old_glibc_and_no_loader(program: Path) -> None:
    binary = lief.parse(program)
    assert set(binary.libraries) <= {"libc.so.6", "libm.so.6", "libdl.so.2", "libpthread.so.0",
                                     "ld-linux-x86-64.so.2"}  # fmt: skip
    versions = {
        tuple(map(int, auxiliary.name.removeprefix("GLIBC_").split(".")))
        for requirement in binary.symbols_version_requirement
        for auxiliary in requirement.get_auxiliary_symbols()
    }
    assert max(versions) <= (2, 28)


def test_smollm2_on_lavapipe_writes_what_the_processor_writes(runs, smollm2: Path) -> None:
    words = ("-m", smollm2, "-p", "The capital of France is", "-n", "4", "--temp", "0")
    processor = runs(*words, "--gpu", "off")
    assert (processor.returncode, processor.stderr) == (0, "")
    gpu = runs(*words, "--gpu", "vulkan", "-ngl", "99", "-v")
    assert gpu.returncode == 0, gpu.stderr[-2000:]
    assert re.search(r"offloaded (\d+)/\1 layers to GPU", gpu.stderr)
    assert re.search(r"^sandbox: .*\(with the driver of a GPU\)$", gpu.stderr, re.M)
    assert gpu.stdout == processor.stdout


def test_the_server_computes_on_lavapipe(
    program: Path, file: Path, lavapipe: Path, tmp_path: Path
) -> None:
    """The model of --prove, in the server's sandbox."""
    weights = tmp_path / "tiny.gguf"
    weights.write_bytes(tiny.model())
    env = {**os.environ, "GGML_VK_VISIBLE_DEVICES": "0", "VK_ICD_FILENAMES": str(lavapipe)}
    env["PYLLAMAFILE_GPU_SECONDS"] = "600"
    words = ["-m", weights, "--server", "--nobrowser", "--gpu", "vulkan", "-ngl", "99"]
    words += ["--temp", "0", "--no-warmup", "-c", "512"]
    process = subprocess.Popen(
        [program, "--llamafile", file, *words],
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        url = ready(process)
        body = json.dumps({"prompt": tiny.PROMPT, "n_predict": 4, "temperature": 0})
        curl = [need("curl"), "-sS", "--max-time", "600", "-d", body, f"{url}completion"]
        answer = json.loads(subprocess.run(curl, capture_output=True, check=True).stdout)
        assert tiny.ANSWER.startswith(answer["content"])
        assert answer["content"]
        maps = Path(f"/proc/{process.pid}/maps").read_text()
        assert "libvulkan_lvp.so" in maps
    finally:
        process.kill()
        process.communicate()


def test_devices_are_listed(runs, tmp_path: Path) -> None:
    weights = tmp_path / "tiny.gguf"
    weights.write_bytes(tiny.model())
    done = runs("-m", weights, "--list-devices")
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(
        r"Available devices:\n  Vulkan0: .*llvmpipe.* \(\d+ MiB, \d+ MiB free\)\n", done.stdout
    )
    assert done.stderr == ""
    done = runs("-m", weights, "--list-devices", "--gpu", "off")
    assert (done.returncode, done.stdout) == (0, "Available devices:\n  (none)\n")


BROKEN = {
    "aborts when it is loaded": "its driver ended with SIGABRT",
    "hangs when it is loaded": "its driver did not answer within 2 seconds",
    "has no device": "no Vulkan driver has a GPU that computes",
    "computes nothing": "llvmpipe[^:]*: it computes wrongly: mul_mat f16 x 1",
    "crashes when it computes": "llvmpipe[^:]*: its driver ended with SIGSEGV",
    "has no memory": "llvmpipe[^:]*: it has no memory",
}


@pytest.mark.parametrize("how", BROKEN)
def test_of_a_broken_driver_one_line_is_said_and_the_processor_computes(
    runs, broken: dict[str, str], how: str, tmp_path: Path
) -> None:
    weights = tmp_path / "tiny.gguf"
    weights.write_bytes(tiny.model())
    variables = {**broken, "BROKEN_DRIVER": how}
    if how.startswith("hangs"):
        variables["PYLLAMAFILE_GPU_SECONDS"] = "2"
    words = ("-m", weights, "-p", tiny.PROMPT, "-n", "24", "--temp", "0", "-ngl", "99")
    done = runs(*words, **variables)
    assert done.returncode == 0, done.stderr
    assert tiny.ANSWER in done.stdout
    line = rf"GPU: not used: {BROKEN[how]}; --gpu off silences this\n"
    assert re.fullmatch(line, done.stderr), done.stderr
    silent = runs(*words, "--gpu", "off", **variables)
    assert (silent.returncode, silent.stdout, silent.stderr) == (0, done.stdout, "")
    needed = runs(*words, "--gpu", "vulkan", **variables)
    assert (needed.returncode, needed.stdout) == (1, "")
    assert re.fullmatch(rf"error: --gpu vulkan: {BROKEN[how]}\n", needed.stderr), needed.stderr


def test_without_a_gpu_nothing_is_said_unless_one_is_needed(
    program: Path, file: Path, tmp_path: Path
) -> None:
    if [*Path("/dev").glob("dri/renderD*"), *Path("/dev").glob("nvidiactl")]:
        pytest.skip("this machine has a GPU")
    weights = tmp_path / "tiny.gguf"
    weights.write_bytes(tiny.model())
    env = {name: value for name, value in os.environ.items() if name != "GGML_VK_VISIBLE_DEVICES"}
    words = ["-m", weights, "-p", tiny.PROMPT, "-n", "24", "--temp", "0", "-ngl", "99"]
    command = [program, "--llamafile", file, *words]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr) == (0, "")
    assert tiny.ANSWER in done.stdout
    command += ["--gpu", "vulkan"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        "error: --gpu vulkan: this machine has no GPU: there is no /dev/dri/renderD*, "
        "/dev/nvidiactl or /dev/dxg\n"
    )


def test_a_choice_that_there_is_not_is_refused(runs) -> None:
    done = runs("-p", "x", "--gpu", "nvidia")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "error: --gpu nvidia: there are auto, off and vulkan\n"


# The trial alone, for what no model has


@pytest.fixture(scope="module")
def trial(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trial, as a program of its own."""
    out = driver.build_folder(TARGET) / "out"
    built = [path for name in LIBRARIES for path in out.rglob(name)]
    if len(built) != 2:
        pytest.skip(f"{TARGET.name} was not compiled here: pyllamafile runtimes build --gpu")
    zig, cmake, ninja = driver.programs()
    made = shaders.tables(shaders.Programs(zig, cmake, ninja), silent)
    zstd, llama = vendored(ZSTD), llama_source()
    ours = [vulkan.FOLDER / f"{name}.cpp" for name in ("loader", "shaders", "trial")]
    sources = [HERE / "vulkan_trial.cpp", driver.RUNTIME / "container.cpp"]
    folders = [vulkan.FOLDER, driver.RUNTIME, vulkan.headers(silent) / "usr" / "include", zstd]
    folders += [made, llama / "ggml" / "include", llama / "vendor"]
    work = tmp_path_factory.mktemp("vulkan")
    options = ["-target", TARGET.triple, "-Os", "-w", *(f"-I{folder}" for folder in folders)]
    run = {"check": True, "env": tools.environment()}
    subprocess.run([zig, "cc", *options, "-c", "-o", work / "zstd.o", zstd / "zstd.c"], **run)
    command = [zig, "c++", "-std=c++17", *options, "-o", work / "trial", *sources, *ours]
    subprocess.run([*command, work / "zstd.o", *built, "-ldl", "-lpthread"], **run)
    return work / "trial"


def tried(program: Path, file: Path, *types: str, **variables: str) -> Done:
    env = {**os.environ, "GGML_VK_VISIBLE_DEVICES": "0", **variables}
    command = [program, file, *types]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=900)


def test_lavapipe_computes_what_the_processor_does(trial: Path, file: Path, lavapipe: Path) -> None:
    done = tried(trial, file, *TYPES, VK_ICD_FILENAMES=str(lavapipe))
    assert done.returncode == 0, done.stderr
    lines = [line.split("\t") for line in done.stdout.splitlines()]
    products = [f"mul_mat {name} x {tokens}" for name in TYPES for tokens in (1, 32)]
    assert [line[1] for line in lines] == [*products, "attention"]
    assert [line for line in lines if line[3] != "right"] == []


@pytest.mark.parametrize("damage", ["none", "cut", "another"])
def test_a_file_with_wrong_shaders_uses_no_gpu(
    trial: Path, blob: Path, lavapipe: Path, damage: str, tmp_path: Path
) -> None:
    zstandard = pytest.importorskip("zstandard")
    packed = blob.read_bytes()
    if damage == "cut":
        packed = packed[: len(packed) // 2]
    if damage == "another":
        modules = shaders.unpack(zstandard.decompress(packed))
        del modules[min(modules)]
        packed = zstandard.compress(shaders.pack(modules))
    other = tmp_path / "b.zip"
    with zipfile.ZipFile(other, "w") as archive:
        archive.writestr("shaders/vulkan.zst" if damage != "none" else "a", packed)
    done = tried(trial, other, VK_ICD_FILENAMES=str(lavapipe))
    said = {
        "none": "this file was built without shaders",
        "cut": "its shaders are damaged",
        "another": "its shaders are another llama.cpp's",
    }
    assert (done.returncode, done.stderr) == (2, f"{said[damage]}\n")
