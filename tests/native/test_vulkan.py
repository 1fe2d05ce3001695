"""GPUs by Vulkan: the program that can use them, on Mesa's lavapipe and on drivers that are broken.

Compiling that program and the shaders takes many minutes, so this is for who has both in the cache:
`pyllamafile runtimes build --gpu`. lavapipe is a processor that acts as a GPU. It compiles every
shader when it is first used, which takes seconds each.
"""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path

import lief
import loadable
import pytest
from fixtures import png, tiny_projector
from running import (
    OnGpu,
    eventually,
    limited,
    need,
    package,
    post,
    ready,
    run,
    second_program,
    serving,
)

import pyllamafile
from pyllamafile import native
from pyllamafile.llamafile import SHADERS
from pyllamafile.models import tiny
from pyllamafile.native.building import driver, shaders, tools, vulkan
from pyllamafile.native.building.source import ZSTD, llama_source, vendored
from pyllamafile.ops.verify import verify
from pyllamafile.progress import silent
from pyllamafile.targets import TARGETS, WITH_GPU

pytestmark = pytest.mark.native

TARGET = WITH_GPU["linux-amd64-gnu"]
LIBRARIES = ("libggml-vulkan.a", "ggml-base.a", "libggml-base.a")
TYPES = ("f16", "q8_0", "q4_0", "q4_K")
WRITES = ("-p", tiny.PROMPT, "-n", "24", "--temp", "0")  # what --prove knows the answer to
HERE = Path(__file__).parent
Done = subprocess.CompletedProcess[str]


@pytest.fixture
def runs(on_lavapipe: OnGpu) -> Callable[..., Done]:
    """Runs the runtime with lavapipe as the only GPU, unless variables say otherwise."""

    def runs(*words: str | Path, **variables: str) -> Done:
        command, env = [*on_lavapipe.command, *words], {**on_lavapipe.env, **variables}
        return subprocess.run(command, env=env, capture_output=True, text=True, timeout=1800)

    return runs


@pytest.fixture
def passes_over(runs, weights: Path) -> Callable[..., Done]:
    """Runs it where no GPU can be used, for a reason that a pattern knows.

    One line says so, and the processor computes. Who needs a GPU gets an error.
    """

    def passes_over(why: str, *more: str, **variables: str) -> Done:
        words = ("-m", weights, *WRITES, *more)
        done = runs(*words, **variables)
        assert done.returncode == 0, done.stderr
        assert tiny.ANSWER in done.stdout
        line = rf"GPU: not used: {why}; --gpu off silences this\n"
        assert re.fullmatch(line, done.stderr), done.stderr
        needed = runs(*words, "--gpu", "vulkan", **variables)
        assert (needed.returncode, needed.stdout) == (1, "")
        assert re.fullmatch(rf"error: --gpu vulkan: {why}\n", needed.stderr), needed.stderr
        return done

    return passes_over


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    """A file that has it: an engine alone."""
    runtime = native.find(TARGETS[TARGET.plain])
    if runtime is None or runtime.gpu is None:
        pytest.skip(f"no {TARGET.name} is at hand: pyllamafile runtimes build --gpu")
    return pyllamafile.build(output=tmp_path / "f", targets=TARGET.plain, gui=False).path


def test_a_file_has_the_program_and_others_can_read_it(packed: Path) -> None:
    zstandard = package("zstandard", "runtimes")
    assert verify(packed) == []
    with zipfile.ZipFile(packed) as archive:
        shaders.unpack(zstandard.ZstdDecompressor().decompress(archive.read(SHADERS)))
    program = lief.ELF.parse(list(second_program(packed)))
    assert program.interpreter == "/lib64/ld-linux-x86-64.so.2"


def test_a_file_hands_over_to_the_program(lavapipe: Path, tmp_path: Path) -> None:
    """From the script to the static program, and from that to the one with a driver in it."""
    (tmp_path / "m.gguf").write_bytes(tiny.model())
    options = {"targets": TARGET.plain, "gui": False, "prove": False}
    file = pyllamafile.build(tmp_path / "m.gguf", tmp_path / "f", **options).path
    if not pyllamafile.inspect(file).gpus:
        pytest.skip(f"no {TARGET.name} is at hand: pyllamafile runtimes build --gpu")
    env = {
        **os.environ,
        "PYLLAMAFILE_CACHE": str(tmp_path / "cache"),
        "PYLLAMAFILE_GPU_SECONDS": "600",
        "VK_ICD_FILENAMES": str(lavapipe),
        "GGML_VK_VISIBLE_DEVICES": "0",
    }

    def said(choice: str) -> str:
        words = [file, "--gpu", choice, "-p", tiny.PROMPT, "-n", "4", "--temp", "0"]
        done = subprocess.run(words, env=env, capture_output=True, text=True, timeout=1800)
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout

    def unpacked() -> set[str]:
        return {path.name for path in (tmp_path / "cache" / "run").iterdir()}

    (facts,) = pyllamafile.inspect(file).runtimes
    processor = said("off")
    assert unpacked() == {facts["sha256"]}
    assert said("vulkan") == processor
    assert unpacked() == {facts["sha256"], facts["gpu"]["sha256"]}


def test_smollm2_on_lavapipe_writes_what_the_processor_writes(runs, smollm2: Path) -> None:
    words = ("-m", smollm2, "-p", "The capital of France is", "-n", "4", "--temp", "0")
    processor = runs(*words, "--gpu", "off")
    assert (processor.returncode, processor.stderr) == (0, "")
    gpu = runs(*words, "--gpu", "vulkan", "-ngl", "99", "-v")
    assert gpu.returncode == 0, gpu.stderr[-2000:]
    assert re.search(r"offloaded (\d+)/\1 layers to GPU", gpu.stderr)
    assert re.search(r"^sandbox: .*\(with the driver of a GPU\)$", gpu.stderr, re.M)
    assert gpu.stdout == processor.stdout


def test_seam_the_server_says_what_a_gpu_computes(on_lavapipe: OnGpu, weights: Path) -> None:
    """The model of --prove, in the server's sandbox."""
    words = ["-m", weights, "--server", "--nobrowser", "--gpu", "vulkan", "-ngl", "99"]
    words += ["--temp", "0", "--no-warmup", "-c", "512"]
    process = subprocess.Popen(
        [*on_lavapipe.command, *words],
        env=on_lavapipe.env,
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
        curl = [need("curl"), "-sS", "--max-time", "600", f"{url}props"]
        gpu = json.loads(subprocess.run(curl, capture_output=True, check=True).stdout)["gpu"]
        assert gpu["layers"] == gpu["of"] > 1
        (device,) = gpu["devices"]
        assert "llvmpipe" in device
        said = process.stdout.readline().decode()
        assert said == f"  on {device}: {gpu['of']} of {gpu['of']} layers\n"
    finally:
        process.kill()
        process.communicate()


def test_a_gpu_computes_each_of_several_models(
    on_lavapipe: OnGpu, blob: Path, tmp_path: Path
) -> None:
    """In a process of its own, which the router tells what its trial found."""
    file = tmp_path / "several"
    with zipfile.ZipFile(file, "w") as archive:
        archive.write(blob, SHADERS)
        for name in ("one.gguf", "two.gguf"):
            archive.writestr(name, tiny.model())
    program, *_ = on_lavapipe.command
    words = ("--server", "--nobrowser", "--gpu", "vulkan", "-ngl", "2", "--no-warmup", "-c", "512")
    with serving(program, "--llamafile", file, *words, env=on_lavapipe.env) as url:
        answer = post(
            url, "completion", model="two", prompt=tiny.PROMPT, n_predict=4, temperature=0
        )
        assert tiny.ANSWER.startswith(answer["content"])
        curl = [need("curl"), "-sS", "--max-time", "600", f"{url}props?model=two"]
        gpu = json.loads(subprocess.run(curl, capture_output=True, check=True).stdout)["gpu"]
        assert gpu["layers"] == 2 < gpu["of"]
        assert "llvmpipe" in gpu["devices"][0]


def test_devices_are_listed(runs, weights: Path) -> None:
    done = runs("-m", weights, "--list-devices")
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(
        r"Available devices:\n  Vulkan0: .*llvmpipe.* \(\d+ MiB, \d+ MiB free\)\n", done.stdout
    )
    assert done.stderr == ""
    done = runs("-m", weights, "--list-devices", "--gpu", "off")
    assert (done.returncode, done.stdout) == (0, "Available devices:\n  (none)\n")


def test_a_list_leaves_the_shaders_packed(
    runs, weights: Path, on_lavapipe: OnGpu, tmp_path: Path
) -> None:
    """It takes as long as its driver then: a file that has none lists the same, and can't compute.

    The file of before has been tried, which is kept for the program.
    """
    options = ("-m", weights, "--list-devices")
    listed = runs(*options).stdout
    assert "llvmpipe" in listed
    without = tmp_path / "f.zip"
    zipfile.ZipFile(without, "w").close()
    program, told, _ = on_lavapipe.command
    command = [program, told, without]
    done = run(*command, *options, env=on_lavapipe.env)
    assert (done.returncode, done.stdout.decode()) == (0, listed)
    done = run(*command, "-m", weights, *WRITES, "--gpu", "vulkan", env=on_lavapipe.env)
    said = b"error: --gpu vulkan: this file was built without shaders\n"
    assert (done.returncode, done.stderr) == (1, said)


def test_the_version_says_what_was_found_last(runs, weights: Path, tmp_path: Path) -> None:
    other = {"PYLLAMAFILE_CACHE": str(tmp_path)}
    assert "GPU" not in runs("--version", **other).stdout
    assert runs("-m", weights, "--list-devices").returncode == 0  # tried, if no test did before
    said = runs("--version").stdout.splitlines()[-1]
    # On a busy machine it may have been the faster one.
    slower = r"not used: llvmpipe.*: the processor does [\d.]+ times .*"
    assert re.fullmatch(rf"GPU: ({slower}|llvmpipe [^:]*)", said)
    said = runs("--version", "--gpu", "vulkan").stdout.splitlines()[-1]
    assert re.fullmatch(r"GPU: llvmpipe [^:]*", said)
    assert "GPU" not in runs("--version", "--gpu", "off").stdout


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
    runs, passes_over, broken: dict[str, str], how: str, weights: Path, tmp_path: Path
) -> None:
    variables = {**broken, "BROKEN_DRIVER": how, "PYLLAMAFILE_CACHE": str(tmp_path / "cache")}
    if how.startswith("hangs"):
        variables["PYLLAMAFILE_GPU_SECONDS"] = "2"
    done = passes_over(BROKEN[how], "-ngl", "99", **variables)
    silent = runs("-m", weights, *WRITES, "-ngl", "99", "--gpu", "off", **variables)
    assert (silent.returncode, silent.stdout, silent.stderr) == (0, done.stdout, "")


@pytest.fixture
def lists(runs, weights: Path, tmp_path: Path) -> Callable[..., Done]:
    """Runs the runtime so that it says which GPUs there are, with a cache of its own."""

    def lists(**variables: str) -> Done:
        cache = {"PYLLAMAFILE_CACHE": str(tmp_path / "cache"), **variables}
        return runs("-m", weights, "--list-devices", **cache)

    return lists


def test_what_was_found_is_kept_until_something_changes(lists, tmp_path: Path) -> None:
    def records() -> list[Path]:
        return sorted((tmp_path / "cache" / "gpus").iterdir())

    done = lists()
    assert done.returncode == 0, done.stderr
    (record,) = records()
    text = record.read_text()
    assert re.fullmatch(r"gpu: device 0 llvmpipe.*\ngpu: right 0 [\d.e+]+\n", text)
    refused = re.sub("right 0 .*", "wrong 0 a test has written this", text)
    record.write_text(refused)
    said = r"GPU: not used: llvmpipe.*: a test has written this; --gpu off silences this\n"
    done = lists()
    assert done.stdout == "Available devices:\n  (none)\n"
    assert re.fullmatch(said, done.stderr)
    # what was refused is tried again after a day
    day = 24 * 3600
    os.utime(record, (record.stat().st_atime, record.stat().st_mtime - day - 60))
    assert lists().stderr == ""
    assert "right" in record.read_text()
    # another setting of ggml's, and another program
    record.write_text(refused)
    assert lists(GGML_VK_DISABLE_INTEGER_DOT_PRODUCT="1").stderr == ""
    assert len(records()) == 2
    assert lists().stderr != ""
    # nobody else's folder is believed
    (tmp_path / "cache" / "gpus").chmod(0o777)
    assert lists().stderr == ""


def test_a_gpu_that_is_slower_than_the_processor_computes_for_who_asks(
    lists, runs, weights: Path, tmp_path: Path
) -> None:
    """lavapipe is the processor, with more to do."""
    listed = lists()
    assert "llvmpipe" in listed.stdout
    assert listed.stderr == ""
    words = ("-m", weights, *WRITES)
    cache = str(tmp_path / "cache")
    done = runs(*words, PYLLAMAFILE_CACHE=cache)
    line = r"GPU: not used: llvmpipe.*: the processor does (\d+|\d\.\d) times as much meanwhile; "
    assert re.fullmatch(line + r"--gpu off silences this\n", done.stderr), done.stderr
    assert tiny.ANSWER in done.stdout
    done = runs(*words, "--gpu", "vulkan", "-v", PYLLAMAFILE_CACHE=cache)
    assert re.search(r"offloaded \d+/\d+ layers to GPU", done.stderr)
    assert tiny.ANSWER in done.stdout


def test_of_two_gpus_the_one_that_computes_rightly_is_used(
    lists, broken: dict[str, str], lavapipe: Path, tmp_path: Path
) -> None:
    both = f"{broken['VK_ICD_FILENAMES']}:{lavapipe}"
    variables = {**broken, "VK_ICD_FILENAMES": both, "GGML_VK_VISIBLE_DEVICES": "0,1"}
    for how, why in BROKEN.items():
        if "computes" in how:
            why = why.removeprefix("llvmpipe[^:]*: ")
            # a cache for each, where nothing is kept of the one before
            variables |= {"BROKEN_DRIVER": how, "PYLLAMAFILE_CACHE": str(tmp_path / how)}
            done = lists(**variables)
            assert done.stdout.count("llvmpipe") == 1
            assert re.fullmatch(rf"GPU: not used: llvmpipe[^:]*: {why}\n", done.stderr), done.stderr


@pytest.fixture
def faster(runs, broken: dict[str, str], tmp_path: Path) -> Callable[[Path], dict[str, str]]:
    """The variables with which lavapipe counts as faster than the processor for such weights."""
    variables = {**broken, "PYLLAMAFILE_CACHE": str(tmp_path / "cache")}

    def faster(weights: Path) -> dict[str, str]:
        assert runs("-m", weights, "--list-devices", **variables).returncode == 0
        (record,) = (tmp_path / "cache" / "gpus").iterdir()
        record.write_text(re.sub("right 0 .*", "right 0 0.5", record.read_text()))
        return variables

    return faster


def test_seam_less_goes_to_a_gpu_that_has_no_room(passes_over, faster, weights: Path) -> None:
    variables = {**faster(weights), "BROKEN_DRIVER": "has memory for a trial"}
    passes_over("llvmpipe.* has no room for this model", **variables)


def test_where_a_gpu_has_no_room_the_context_fits_the_memory(
    on_lavapipe: OnGpu, faster, smollm2: Path
) -> None:
    env = {**on_lavapipe.env, **faster(smollm2), "BROKEN_DRIVER": "has memory for a trial"}
    limit = str(1280 << 20)  # upstream leaves a GiB to others
    with limited("memory", ("memory.max", limit), ("memory.limit_in_bytes", limit)) as inside:
        command = [*inside, *on_lavapipe.command, "-m", smollm2, "-p", "A", "-n", "1", "-v"]
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stderr
    assert "has no room for this model" in done.stderr
    assert 4096 <= int(re.findall(r" n_ctx += (\d+)", done.stderr)[-1]) < 8192


def test_a_gpu_that_is_gone_since_it_was_tried(passes_over, faster, weights: Path) -> None:
    variables = {**faster(weights), "BROKEN_DRIVER": "has no device"}
    passes_over("no Vulkan driver has a GPU that computes", **variables)


def test_a_driver_lies_where_its_manifest_says(
    lists, broken: dict[str, str], tmp_path: Path
) -> None:
    """In the sandbox, which nobody told of that folder."""
    manifest = tmp_path / "manifests" / "icd.json"
    manifest.parent.mkdir()
    manifest.write_bytes(Path(broken["VK_ICD_FILENAMES"]).read_bytes())
    done = lists(**{**broken, "VK_ICD_FILENAMES": str(manifest)})
    assert "llvmpipe" in done.stdout
    assert done.stderr == ""


def test_a_trial_ends_with_whoever_has_started_it(
    on_lavapipe: OnGpu, broken: dict[str, str], weights: Path, tmp_path: Path
) -> None:
    variables = {"BROKEN_DRIVER": "hangs when it is loaded", "PYLLAMAFILE_CACHE": str(tmp_path)}
    env = {**on_lavapipe.env, **broken, **variables}
    command = [*on_lavapipe.command, "-m", weights, *WRITES]
    with subprocess.Popen(command, env=env, stderr=subprocess.DEVNULL) as process:
        started = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        trial = Path("/proc", eventually(lambda: started.read_text().strip()))
        eventually(lambda: "broken.so" in (trial / "maps").read_text())
        process.kill()
    eventually(lambda: not trial.exists() or ") Z " in (trial / "stat").read_text())


def test_seam_a_projector_stays_where_there_is_room(
    on_lavapipe: OnGpu, faster, tmp_path: Path
) -> None:
    model = loadable.llama().write(tmp_path / "llama.gguf")
    eye = tiny_projector(tmp_path / "eye.gguf", width=loadable.WIDTH)
    variables = {**faster(model), "BROKEN_DRIVER": "has memory for a trial"}
    words = ("-m", model, "--mmproj", eye, "--server", "--nobrowser")
    log = tmp_path / "log"
    with (
        log.open("w") as stderr,
        serving(*on_lavapipe.command, *words, env={**on_lavapipe.env, **variables}, stderr=stderr),
    ):
        pass
    lines = log.read_text().splitlines()
    assert re.fullmatch(r"GPU: not used: llvmpipe.* has no room for this model; .*", lines[0])
    assert re.fullmatch(r"GPU: llvmpipe.* has no room for the projector", lines[1])


def test_a_picture_is_seen_as_the_processor_sees_it(
    on_lavapipe: OnGpu, broken: dict[str, str], tmp_path: Path
) -> None:
    """lavapipe itself ends with SIGSEGV where a projector computes beside the model."""
    model = loadable.sure().write(tmp_path / "sure.gguf")
    eye = tiny_projector(tmp_path / "eye.gguf", width=loadable.WIDTH * 16)
    picture = f"data:image/png;base64,{base64.b64encode(png((255, 0, 0))).decode()}"
    message = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": picture}}]}
    env = {**on_lavapipe.env, **broken, "BROKEN_DRIVER": "is mended"}
    words = ("-m", model, "--mmproj", eye, "--server", "--nobrowser", "--no-warmup", "-c", "256")
    log, seen = tmp_path / "log", []
    for where in (("--gpu", "off"), ("--gpu", "vulkan", "-ngl", "99", "-v")):
        with (
            log.open("w") as stderr,
            serving(*on_lavapipe.command, *words, *where, env=env, stderr=stderr) as url,
        ):
            answer = post(
                url, "v1/chat/completions", messages=[message], max_tokens=4, temperature=0,
                logprobs=True, top_logprobs=20, ignore_eos=True,
            )  # fmt: skip
        first = answer["choices"][0]["logprobs"]["content"][0]
        seen.append({choice["id"]: choice["logprob"] for choice in first["top_logprobs"]})
    assert b"CLIP using Vulkan0 backend" in log.read_bytes()  # tokens in it are parts of letters
    processor, gpu = seen
    both = processor.keys() & gpu.keys()
    assert processor != gpu
    assert len(both) >= 15
    assert max(abs(processor[token] - gpu[token]) for token in both) < 0.1


def test_without_a_gpu_nothing_is_said_unless_one_is_needed(
    gpu_program: Path, gpu_file: Path, weights: Path
) -> None:
    if [*Path("/dev").glob("dri/renderD*"), *Path("/dev").glob("nvidiactl")]:
        pytest.skip("this machine has a GPU")
    env = {name: value for name, value in os.environ.items() if name != "GGML_VK_VISIBLE_DEVICES"}
    words = ["-m", weights, *WRITES, "-ngl", "99"]
    command = [gpu_program, "--llamafile", gpu_file, *words]
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


def test_a_gpu_is_chosen_by_its_name(runs, weights: Path) -> None:
    for name in ("LLVM", "vulkan0"):
        done = runs("-m", weights, "--list-devices", "--gpu", name)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.count("llvmpipe") == 1
    for name in ("nvidia", "Vulkan1", "vulkan0 "):
        done = runs("-m", weights, "-p", "x", "--gpu", name)
        assert (done.returncode, done.stdout) == (1, "")
        wanted = rf"error: --gpu {name}: no GPU of this machine is called so: there is "
        assert re.fullmatch(wanted + r"llvmpipe[^:]* \(Vulkan0\)\n", done.stderr), done.stderr


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
    ours = [vulkan.FOLDER / "loader.cpp", vulkan.FOLDER / "shaders.cpp"]
    ours += [driver.RUNTIME / "gpu" / "trial.cpp", driver.RUNTIME / "container.cpp"]
    ours += [driver.RUNTIME / "prove" / "products.cpp"]
    sources = [HERE / "vulkan_trial.cpp", *ours]
    folders = [vulkan.FOLDER, driver.RUNTIME, driver.RUNTIME / "gpu", made, zstd]
    folders += [vulkan.headers(silent) / "usr" / "include"]
    folders += [llama / "ggml" / "include", llama / "vendor"]
    work = tmp_path_factory.mktemp("vulkan")
    options = ["-target", TARGET.triple, "-Os", "-w", *(f"-I{folder}" for folder in folders)]
    run = {"check": True, "env": tools.environment()}
    subprocess.run([zig, "cc", *options, "-c", "-o", work / "zstd.o", zstd / "zstd.c"], **run)
    command = [zig, "c++", "-std=c++17", *options, "-o", work / "trial", *sources]
    subprocess.run([*command, work / "zstd.o", *built, "-ldl", "-lpthread"], **run)
    return work / "trial"


def tried(program: Path, file: Path, *types: str, **variables: str) -> Done:
    env = {**os.environ, "GGML_VK_VISIBLE_DEVICES": "0", **variables}
    command = [program, file, *types]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=900)


def test_lavapipe_computes_what_the_processor_does(
    trial: Path, gpu_file: Path, lavapipe: Path
) -> None:
    done = tried(trial, gpu_file, *TYPES, VK_ICD_FILENAMES=str(lavapipe))
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
        archive.writestr(SHADERS if damage != "none" else "a", packed)
    done = tried(trial, other, VK_ICD_FILENAMES=str(lavapipe))
    said = {
        "none": "this file was built without shaders",
        "cut": "its shaders are damaged",
        "another": "its shaders are another llama.cpp's",
    }
    assert (done.returncode, done.stderr) == (2, f"{said[damage]}\n")
