"""One program, several builds of the kernels: which one a processor gets, and that they agree."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import instructions
import pytest
from conftest import Run, need

from pyllamafile import native
from pyllamafile.native.levels import header, identifier
from pyllamafile.targets import TARGETS

LEVELS = [level.name for level in TARGETS["linux-amd64"].levels]

# Itanium C++ ABI, 5.1: `St` is the namespace std, `Z` what is local to a function.
STANDARD = re.compile(r"_ZZ?N?St")


@pytest.mark.parametrize(
    ("symbol", "name"),
    [
        ("ggml_vec_dot_q4_0_q8_0", "ggml_vec_dot_q4_0_q8_0"),
        ("_Z16ggml_vec_dot_f16ilPfPtS0_S0_i", "ggml_vec_dot_f16"),
        ("_ZN4ggml3cpu6repack4gemmI10block_q4_0EEvv", "repack"),
        ("_ZNK4ggml3cpu13tensor_traits9work_sizeEi", "tensor_traits"),
        ("_ZTVN4ggml3cpu17extra_buffer_typeE", "extra_buffer_type"),
        ("_ZTSN4ggml3cpu6repack17extra_buffer_typeE", "repack"),
        ("_ZNSt3__16vectorIiE9push_backEOi", None),
        ("_ZSt9terminatev", None),
    ],
)
def test_what_to_rename(symbol: str, name: str | None) -> None:
    assert identifier(symbol) == name


def test_header_renames_everything_once() -> None:
    text = header({"b", "a"}, "v3")
    assert re.findall(r"#define (\w+) (\w+)", text) == [("a", "a__v3"), ("b", "b__v3")]


# the compiled thing, on processors that it is made for and on one that it isn't


@pytest.fixture(scope="module")
def qemu() -> str:
    return need("qemu-x86_64-static", "qemu-user-static")


@pytest.fixture(scope="module")
def expected(runtime: Path, phi3: Path, run: Run) -> bytes:
    done = run(runtime, *prompt(phi3))
    assert done.returncode == 0
    return done.stdout


@pytest.mark.native
@pytest.mark.parametrize(("cpu", "level"), [("Nehalem", "v2"), ("Haswell", "v3")])
def test_a_processor_gets_its_level(
    cpu: str, level: str, qemu: str, runtime: Path, phi3: Path, run: Run, expected: bytes
) -> None:
    done = run(qemu, "-cpu", cpu, runtime, "--version")
    assert done.returncode == 0
    assert f"CPU level {level}\n" in done.stdout.decode()
    done = run(qemu, "-cpu", cpu, runtime, *prompt(phi3))
    assert (done.returncode, done.stdout) == (0, expected)


@pytest.mark.native
@pytest.mark.parametrize("cpu", ["qemu64", "Penryn"])
def test_an_older_one_gets_a_clear_line(cpu: str, qemu: str, runtime: Path, run: Run) -> None:
    done = run(qemu, "-cpu", cpu, runtime, "--version")
    assert (done.returncode, done.stdout) == (1, b"")
    assert b"error: this processor is too old: SSE4.2 is needed" in done.stderr


@pytest.mark.native
@pytest.mark.parametrize("level", LEVELS)
def test_a_level_can_be_asked_for(
    level: str, runtime: Path, phi3: Path, run: Run, expected: bytes
) -> None:
    environment = {**os.environ, "PYLLAMAFILE_CPU": level}
    done = run(runtime, "--version", env=environment)
    if done.returncode != 0:
        assert level.encode() not in done.stderr.split(b"has:")[1]  # too old for it
        return
    assert f"CPU level {level}\n" in done.stdout.decode()
    assert run(runtime, *prompt(phi3), env=environment).stdout == expected


@pytest.mark.native
def test_a_level_that_is_not_there_is_refused(qemu: str, runtime: Path, run: Run) -> None:
    done = run(qemu, "-cpu", "Nehalem", "-E", "PYLLAMAFILE_CPU=v3", runtime, "--version")
    assert (done.returncode, done.stdout) == (1, b"")
    assert b"error: PYLLAMAFILE_CPU=v3" in done.stderr
    done = run(runtime, "--version", env={**os.environ, "PYLLAMAFILE_CPU": "v9"})
    assert (done.returncode, done.stdout) == (1, b"")
    assert b"it has: v2" in done.stderr


@pytest.fixture(scope="module")
def linking(runtime: Path) -> tuple[str, Path]:
    """The command that links the program, and the folder where it does."""
    need("objdump", "binutils")
    target = TARGETS["linux-amd64"]
    folder = native.build_folder(target) / "out"
    if not (folder / "build.ninja").exists():
        native._compile(target, native.llama_source(), None, native._silent)
    command = [native._program("ninja"), "-t", "commands", "runtime"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip().splitlines()[-1], folder


@pytest.mark.native
def test_no_instruction_stands_outside_of_its_level(
    linking: tuple[str, Path], tmp_path: Path
) -> None:
    program = tmp_path / "program"
    parts = instructions.link(*linking, program)
    assert {part.level for part in parts} == {"", *LEVELS}
    assert instructions.misplaced(program, parts) == []
    lowest = instructions.external(linking[1] / "llama/ggml/src/libggml-cpu.a")
    assert instructions.taken_too_high(parts, lowest) == []


@pytest.mark.native
def test_the_wrong_order_of_linking_is_found(linking: tuple[str, Path], tmp_path: Path) -> None:
    command, folder = linking
    assert command.count(" ggml-cpu-avx512.a") == 1
    command = command.replace(" ggml-cpu-avx512.a", "")
    command = command.replace(" -o runtime ", " -o runtime ggml-cpu-avx512.a ")
    parts = instructions.link(command, folder, tmp_path / "program")
    lowest = instructions.external(folder / "llama/ggml/src/libggml-cpu.a")
    assert instructions.taken_too_high(parts, lowest)


@pytest.mark.native
def test_levels_share_nothing_but_templates_of_the_standard_library(
    linking: tuple[str, Path],
) -> None:
    archives = ["llama/ggml/src/libggml-cpu.a", *(f"ggml-cpu-{level}.a" for level in LEVELS[1:])]
    sets = [instructions.external(linking[1] / archive) for archive in archives]
    for number, names in enumerate(sets):
        for others in sets[number + 1 :]:
            assert [name for name in names & others if not STANDARD.match(name)] == []


@pytest.mark.parametrize(
    ("text", "level"),
    [
        ("mov %rax,%rbx", ""),
        ("movdqa %xmm1,%xmm2", ""),
        ("verw %ax", ""),
        ("pshufb %xmm1,%xmm2", "v2"),
        ("popcnt %rax,%rbx", "v2"),
        ("vaddps %xmm1,%xmm2,%xmm3", "v3"),
        ("vpaddd %ymm1,%ymm2,%ymm3", "v3"),
        ("shlx %rax,%rbx,%rcx", "v3"),
        ("vpaddd %zmm1,%zmm2,%zmm3", "avx512"),
        ("vpaddd %ymm1,%ymm2,%ymm17", "avx512"),
        ("kmovw %k1,%eax", "avx512"),
    ],
)
def test_the_level_of_an_instruction(text: str, level: str) -> None:
    assert instructions.level(text) == level


def prompt(model: Path) -> tuple[str | Path, ...]:
    return ("-m", model, "-p", "Once upon a time", "-n", "8", "--temp", "0")
