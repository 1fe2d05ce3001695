"""Every operation that the small models use, on lavapipe, by upstream's own test of operations.

Upstream's exporter says what a model computes: each operation with its types, shapes and strides.
Upstream's test has ggml-vulkan compute each, and the reference code of the processor's kernels, on
numbers at random. Both are linked with the objects of our program, so it is our build of
ggml-vulkan, with our shaders and our loader.

lavapipe ends with SIGSEGV after some 200 pipelines in one process, so there is one process for
each kind of operation, and several for those that there are many of. It compiles a pipeline in a
second or more: of each operation, every combination of types is tried, for a prompt and for a
token. With PYLLAMAFILE_TEST_LAVAPIPE in the environment, all shapes and strides are.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from collections import defaultdict
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import loadable
import pytest
from running import need, run

from pyllamafile.native.building import driver, tools
from pyllamafile.native.building.source import llama_source
from pyllamafile.targets import WITH_GPU

pytestmark = pytest.mark.native

TARGET = WITH_GPU["linux-amd64-gnu"]
HERE = Path(__file__).parent
LARGE = "PYLLAMAFILE_TEST_LAVAPIPE"
AT_ONCE = 60  # operations in one process
# Of weights; the exporter is asked of each model as it is, and of one in each of these.
TYPES = ("F16", "Q8_0", "Q4_0", "Q4_K_M", "Q5_K_M", "Q2_K")
# What each model computes of a prompt and of a token, in a context of 64.
SIZES = ("-c", "64", "-b", "32", "-ub", "32")
OPERATIONS = (
    "ADD", "ARGSORT", "CLAMP", "CONCAT", "CONT", "CPY", "DIV", "FLASH_ATTN_EXT", "GET_ROWS", "GLU",
    "MUL", "MUL_MAT", "MUL_MAT_ID", "NORM", "RMS_NORM", "ROPE", "SCALE", "SET_ROWS", "SOFT_MAX",
    "SSM_CONV", "SSM_SCAN", "SUM_ROWS", "UNARY",
)  # fmt: skip
# ggml-vulkan has it for states of 128 and 256 numbers, and the small Mamba's has 4: the processor
# computes it.
PROCESSORS = ("SSM_SCAN",)
# What upstream's test says against a result, and where that is as it should be. It leaves what
# stands before and behind an operation's numbers as the memory was, and holds against both sides
# that it is no number, though both have the same bits.
COMPLAINT = re.compile(r"\[(\w+)\] (?!ERR)[^\[]*|\[(\w+)\] ERR = (\S+) > (\S+) ")
BESIDE = "NONE"
# Upstream allows 1e-7 to most operations, normalised and squared, and lavapipe's tanh takes twice
# that.
ALLOWED = {"GEGLU": 1e-6, "GELU": 1e-6}


@pytest.fixture(scope="module")
def operations(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Upstream's exporter and its test, linked in place of the runtime's main."""
    out = driver.build_folder(TARGET) / "out"
    if not (out / "runtime").is_file():
        pytest.skip(f"{TARGET.name} was not compiled here: pyllamafile runtimes build --gpu")
    work, llama = tmp_path_factory.mktemp("operations"), llama_source()
    zig, _, ninja = driver.programs()
    environment = tools.environment()
    folders = [llama / name for name in ("common", "include", "ggml/include", "tests", "vendor")]
    compiler = [
        zig,
        "c++",
        "-target",
        TARGET.triple,
        "-std=c++17",
        "-O0",
        "-fno-sanitize=all",
        "-w",
    ]
    compiler += [f"-I{folder}" for folder in (driver.RUNTIME, *folders)]
    sources = {
        HERE / "vulkan_operations.cpp": (),
        llama / "tests" / "test-backend-ops.cpp": ("-Dmain=operations_main",),
        # Each of the two has a type of this name, and they differ.
        llama / "tests" / "test-export-graph-ops.cpp": (
            "-Dmain=export_main",
            "-Dinput_tensor=exported_tensor",
        ),
    }

    def compiled(source: Path) -> Path:
        made = work / f"{source.name}.o"
        command = [*compiler, *sources[source], "-c", source, "-o", made]
        subprocess.run(command, check=True, env=environment)
        return made

    with ThreadPoolExecutor() as pool:
        objects = list(pool.map(compiled, sources))
    # The rest of the runtime asks its main.cpp for some things, but not to be the program.
    ours = work / "main.cpp.o"
    rename = [need("objcopy", "binutils"), "--redefine-sym", "main=runtime_main"]
    subprocess.run([*rename, out / "CMakeFiles/runtime.dir/main.cpp.o", ours], check=True)
    commands = subprocess.run(
        [ninja, "-C", out, "-t", "commands", "runtime"], capture_output=True, text=True, check=True
    )
    link = shlex.split(commands.stdout.splitlines()[-1].split("&&")[1])
    place = link.index("CMakeFiles/runtime.dir/main.cpp.o")
    link[place : place + 1] = [str(each) for each in (*objects, ours)]
    link[link.index("-o") + 1] = str(work / "operations")
    subprocess.run(link, cwd=out, check=True, env=environment)
    return work / "operations"


@dataclass(frozen=True)
class Line:
    """What upstream's exporter writes of an operation.

    It is the operation, its type, four sizes, parameters and sources behind how many there are of
    each, and its tensor's name. A source is a type, four sizes and four strides.
    """

    words: tuple[str, ...]

    @classmethod
    def of(cls, text: str) -> Line:
        """The same without the name, which tells nothing of what is computed."""
        words = text.split()
        sources = 7 + int(words[6])
        return cls((*words[: sources + 1 + 9 * int(words[sources])], "-"))

    def kind(self) -> tuple[object, ...]:
        """What decides over the shader, about: operation and mode, types, one token or many."""
        sources = 7 + int(self.words[6])
        many = any(int(size) > 8 for size in self.words[3:6])
        return (*self.words[:2], many, self.words[7], self.words[sources + 1 :: 9])


@pytest.fixture(scope="module")
def exported(
    operations: Path, gpu_program: Path, tmp_path_factory: pytest.TempPathFactory
) -> Mapping[str, list[Line]]:
    """What the models compute, by the operation's name."""
    folder = tmp_path_factory.mktemp("models")
    files = [make().write(folder / f"{make.__name__}.gguf") for make in loadable.MODELS]
    plain = loadable.sure().write(folder / "sure.gguf")
    for type in TYPES:
        files.append(folder / f"{type}.gguf")
        assert run(gpu_program, "--quantize", plain, files[-1], type).returncode == 0
    lines: set[Line] = set()
    for file in files:
        done = run(operations, "export", "-m", file, "-o", folder / "operations.txt", *SIZES)
        assert done.returncode == 0, done.stderr.decode()[-2000:]
        for line in (folder / "operations.txt").read_text().splitlines():
            lines.add(Line.of(line))
    header = (llama_source() / "ggml" / "include" / "ggml.h").read_text()
    names = re.findall(r"GGML_OP_(\w+)", header.split("enum ggml_op {")[1].split("}")[0])
    chosen = sorted(lines, key=lambda line: line.words)
    if LARGE not in os.environ:
        chosen = list({line.kind(): line for line in chosen}.values())
    found = defaultdict(list)
    for line in chosen:
        found[names[int(line.words[0])]].append(line)
    return found


def test_the_models_use_no_other_operation(exported: Mapping[str, list[Line]]) -> None:
    assert sorted(exported) == sorted(OPERATIONS)


@pytest.mark.parametrize("name", OPERATIONS)
def test_operation(
    operations: Path,
    gpu_file: Path,
    lavapipe: Path,
    exported: Mapping[str, list[Line]],
    name: str,
    tmp_path: Path,
) -> None:
    env = {**os.environ, "GGML_VK_VISIBLE_DEVICES": "0", "VK_ICD_FILENAMES": str(lavapipe)}
    lines = exported[name]
    results: list[tuple[str, str, str]] = []
    for start in range(0, len(lines), AT_ONCE):
        some = tmp_path / "some.txt"
        texts = (" ".join(line.words) for line in lines[start : start + AT_ONCE])
        some.write_text("\n".join([*texts, ""]))
        command = [operations, gpu_file, "--test-file", some]
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=900)
        said = re.sub(r"\x1b\[[0-9;]*m", "", done.stdout)
        results += re.findall(r"^(.*)  (\w+\(.*\)): (OK|FAIL|not supported.*)$", said, re.M)
        assert done.returncode in (0, 1), f"{done.returncode}\n{said[-1000:]}{done.stderr[-1000:]}"
    assert len(results) == len(lines)
    wanted = "not supported" if name in PROCESSORS else "OK"
    for said, what, how in results:
        faults = COMPLAINT.sub(lambda found: "" if is_none(found) else found[0], said).strip()
        is_right = how == "FAIL" and said and not faults
        assert is_right or how.startswith(wanted), f"{said}{what}: {how}"


def is_none(complaint: re.Match[str]) -> bool:
    """Whether what upstream's test says is no fault."""
    _, operation, error, _ = complaint.groups()
    return complaint[1] == BESIDE or float(error or "inf") <= ALLOWED.get(operation, 0)
