"""One program, several builds of the kernels: which one a processor gets, and that they agree."""

from __future__ import annotations

import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

import instructions
import pytest
from running import need, run

import pyllamafile
from pyllamafile import native
from pyllamafile.native.building import driver, levels, tools
from pyllamafile.native.building.levels import external_symbols, header, identifier
from pyllamafile.progress import silent
from pyllamafile.targets import TARGETS, Target

LEVELS = {name: [level.name for level in target.levels] for name, target in TARGETS.items()}

# Which of qemu's processors gets which level; the highest last.
PROCESSORS = {
    "linux-amd64": {"Nehalem": "v2", "Haswell": "v3"},
    "linux-arm64": {"cortex-a53": "v8", "cortex-a76": "dotprod", "max": "i8mm"},
}
QEMU = {"linux-amd64": "qemu-x86_64-static", "linux-arm64": "qemu-aarch64-static"}

# Itanium C++ ABI, 5.1: `St` is the namespace std, `Z` what is local to a function.
# DW.ref.: a pointer that exception handling reads.
STANDARD = re.compile(r"_ZZ?N?St|DW\.ref\.")


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


@pytest.mark.native
def test_names_of_every_format(tmp_path: Path) -> None:
    """Mach-O puts an underscore in front, COFF has names in a table when they are long."""
    source = tmp_path / "s.cpp"
    source.write_text(
        "namespace repack { int function_with_a_long_name(int x) { return x; } }\n"
        "struct traits { virtual ~traits(); }; traits::~traits() {}\n"
        'extern "C" int short_(int x) { return x; }\n'
        "extern int elsewhere; static int own = 1;\n"
        "int exported = 2; int *use() { own++; return own ? &elsewhere : &exported; }\n"
    )
    zig = tools.package("ziglang") / "zig"
    for name in ("linux-amd64", "macos-arm64", "windows-amd64", "windows-arm64"):
        output = tmp_path / f"{name}.o"
        command = [zig, "c++", "-target", TARGETS[name].triple, "-O2", "-ffunction-sections"]
        subprocess.run([*command, "-c", source, "-o", output], check=True)
        found = {identifier(symbol) for symbol in external_symbols(output)} - {None}
        assert found == {"repack", "traits", "short_", "exported", "use"}


def test_header_renames_everything_once() -> None:
    text = header({"b": "v3", "a": "v3"})
    assert re.findall(r"#define (\w+) (\w+)", text) == [("a", "a__v3"), ("b", "b__v3")]


def test_a_level_with_sources_has_these_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    symbols = {"x/a.c.o": ["a", "shared"], "y/a.c.o": ["more"], "b.cpp.obj": ["_Z1bv", "_ZSt1cv"]}
    monkeypatch.setattr(levels, "external_symbols", lambda path: symbols[str(path)])
    made = levels.headers(["v3=", "big=", "best=b.cpp"], map(Path, symbols))
    found = {level: re.findall(r"#define (\S+) (\S+)", text) for level, text in made.items()}
    everything = ["a", "b", "more", "shared"]
    assert found == {
        "v3": [(name, f"{name}__v3") for name in everything],
        "big": [
            *((name, f"{name}__big") for name in everything),
            ("BETTER(name)", "name##__best"),
        ],
        "best": [(name, f"{name}__{'best' if name == 'b' else 'big'}") for name in everything],
    }


# the compiled thing, on processors that it is made for and on one that it isn't


@pytest.fixture(scope="module")
def qemu() -> str:
    return need("qemu-x86_64-static", "qemu-user-static")


@pytest.fixture(scope="module")
def expected(runtime: Path, phi3: Path) -> bytes:
    done = run(runtime, *prompt(phi3))
    assert done.returncode == 0
    return done.stdout


@pytest.mark.native
@pytest.mark.parametrize(
    ("target", "cpu"), [(target, cpu) for target, row in PROCESSORS.items() for cpu in row]
)
def test_a_processor_gets_its_level(
    target: str, cpu: str, phi3: Path, expected: bytes, request: pytest.FixtureRequest
) -> None:
    program = request.getfixturevalue("runtime_arm64" if "arm64" in target else "runtime")
    emulated = [need(QEMU[target], "qemu-user-static"), "-cpu", cpu, program]
    done = run(*emulated, "--version")
    assert done.returncode == 0
    assert f"{target}, CPU level {PROCESSORS[target][cpu]}\n" in done.stdout.decode()
    done = run(*emulated, *prompt(phi3))
    assert (done.returncode, done.stdout) == (0, expected)


@pytest.mark.native
def test_real_weights_on_arm64(
    runtime: Path, runtime_arm64: Path, smollm2: Path, tmp_path: Path
) -> None:
    """Out of the file that runs here as well: the launch script's choice, then the program."""
    qemu = need("qemu-aarch64-static", "qemu-user-static")
    file = pyllamafile.build(smollm2, tmp_path / "f", targets=["linux-amd64", "linux-arm64"]).path
    # The fifth token is a near tie, which rounding decides.
    arguments = ("-p", "The capital of France is", "-n", "4", "--temp", "0")
    # Where no binfmt handler is set up the script tries the program in vain and removes it; what it
    # had unpacked is kept by the last tool that it gives it to before.
    unpacked = tmp_path / "unpacked"
    substitutes = {
        "uname": "echo Linux aarch64",
        "chmod": f'/bin/chmod "$@"; for file; do :; done; cp "$file" {unpacked}',
    }
    for name, text in substitutes.items():
        substitute = tmp_path / "bin" / name
        substitute.parent.mkdir(exist_ok=True)
        substitute.write_text(f"#!/bin/sh\n{text}\n")
        substitute.chmod(0o755)
    environment = {
        **os.environ,
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
        "PYLLAMAFILE_CACHE": str(tmp_path / "cache"),
    }
    run(file, "--version", env=environment)
    assert unpacked.read_bytes() == runtime_arm64.read_bytes()
    done = run(qemu, "-cpu", "max", unpacked, "--llamafile", file, *arguments)
    assert (done.returncode, done.stdout) == (0, run(file, *arguments).stdout)
    assert b"Paris" in done.stdout


@pytest.mark.native
@pytest.mark.parametrize("cpu", ["qemu64", "Penryn"])
def test_an_older_one_gets_a_clear_line(cpu: str, qemu: str, runtime: Path) -> None:
    done = run(qemu, "-cpu", cpu, runtime, "--version")
    assert (done.returncode, done.stdout) == (1, b"")
    assert b"error: this processor is too old: SSE4.2 is needed" in done.stderr


@pytest.mark.native
@pytest.mark.parametrize("level", LEVELS["linux-amd64"])
def test_seam_a_level_can_be_asked_for(
    level: str, runtime: Path, phi3: Path, expected: bytes
) -> None:
    environment = {**os.environ, "PYLLAMAFILE_CPU": level}
    done = run(runtime, "--version", env=environment)
    if done.returncode != 0:
        assert level.encode() not in done.stderr.split(b"has:")[1]  # too old for it
        return
    assert f"CPU level {level}\n" in done.stdout.decode()
    assert run(runtime, *prompt(phi3), env=environment).stdout == expected


@pytest.mark.native
def test_a_level_that_is_not_there_is_refused(qemu: str, runtime: Path) -> None:
    done = run(qemu, "-cpu", "Nehalem", "-E", "PYLLAMAFILE_CPU=v3", runtime, "--version")
    assert (done.returncode, done.stdout) == (1, b"")
    assert b"error: PYLLAMAFILE_CPU=v3" in done.stderr
    done = run(runtime, "--version", env={**os.environ, "PYLLAMAFILE_CPU": "v9"})
    assert (done.returncode, done.stdout) == (1, b"")
    assert b"it has: v2" in done.stderr


@dataclass(frozen=True)
class Linking:
    """How a program was linked: the command, the folder where, and for which architecture."""

    command: str
    folder: Path
    target: Target

    @property
    def archives(self) -> list[Path]:
        """The levels' libraries, the lowest first."""
        own = [
            self.folder / f"z{number}-ggml-cpu-{level}.a"
            for number, level in enumerate(LEVELS[self.target.name][1:], 1)
        ]
        return [self.folder / "llama/ggml/src/libggml-cpu.a", *own]


@pytest.fixture(scope="module", params=PROCESSORS)
def linking(request: pytest.FixtureRequest) -> Linking:
    target = TARGETS[request.param]
    need(instructions.OBJDUMP[target.arch], "binutils binutils-aarch64-linux-gnu")
    native.build(target)
    folder = native.build_folder(target) / "out"
    if not (folder / "build.ninja").exists():
        driver.compile_runtime(target, native.llama_source(), None, silent)
    command = [tools.program("ninja"), "-t", "commands", "runtime"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    return Linking(done.stdout.strip().splitlines()[-1], folder, target)


@pytest.mark.native
def test_no_instruction_stands_outside_of_its_level(linking: Linking, tmp_path: Path) -> None:
    program = tmp_path / "program"
    arch = linking.target.arch
    parts = instructions.link(linking.command, linking.folder, program, arch)
    assert {part.level for part in parts} == {"", *LEVELS[linking.target.name]}
    assert instructions.misplaced(program, parts, arch) == []
    lowest = instructions.external(linking.archives[0])
    assert instructions.taken_too_high(parts, lowest) == []


@pytest.mark.native
def test_a_program_is_linked_again_when_kernels_change(linking: Linking) -> None:
    """Their libraries are a text in the link's command, which Ninja doesn't look into."""
    command = [tools.program("ninja"), "-t", "query", "runtime"]
    done = subprocess.run(command, cwd=linking.folder, capture_output=True, text=True, check=True)
    # What stands behind two strokes is only made before.
    inputs = re.findall(r"^    (?:\| )?([^| \n]+)$", done.stdout.partition("outputs:")[0], re.M)
    names = {Path(path).name for path in inputs}
    assert {archive.name for archive in linking.archives} <= names


@pytest.mark.native
def test_the_wrong_order_of_linking_is_found(linking: Linking, tmp_path: Path) -> None:
    # One that is whole: what else there is has no templates.
    levels = zip(linking.archives, linking.target.levels, strict=True)
    highest = [archive.name for archive, level in levels if not level.sources][-1]
    assert linking.command.count(f" {highest}") == 1
    command = linking.command.replace(f" {highest}", "")
    command = command.replace(" -o runtime ", f" -o runtime {highest} ")
    parts = instructions.link(command, linking.folder, tmp_path / "program", linking.target.arch)
    assert instructions.taken_too_high(parts, instructions.external(linking.archives[0]))


@pytest.mark.native
def test_levels_share_nothing_but_templates_of_the_standard_library(linking: Linking) -> None:
    sets = [instructions.external(archive) for archive in linking.archives]
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
        ("{vex} vpdpbusd %ymm1,%ymm2,%ymm3", "avxvnni"),
        ("vpdpbusd %ymm1,%ymm2,%ymm17", "avx512"),
        ("vpaddd %zmm1,%zmm2,%zmm3", "avx512"),
        ("vpaddd %ymm1,%ymm2,%ymm17", "avx512"),
        ("kmovw %k1,%eax", "avx512"),
        ("vdpbf16ps (%rax){1to16},%zmm1,%zmm2", "avx512bf16"),
    ],
)
def test_the_level_of_an_instruction(text: str, level: str) -> None:
    assert instructions.level(text) == level


@pytest.mark.parametrize(
    ("text", "level"),
    [
        ("fmla\tv0.4s, v1.4s, v2.4s", ""),
        ("fcvtl\tv0.4s, v1.4h", ""),
        ("fcvt\ts0, h1", ""),
        ("smull\tv0.8h, v1.8b, v2.8b", ""),
        ("ldaxr\tw0, [x1]", ""),
        ("sdot\tv0.4s, v1.16b, v2.16b", "dotprod"),
        ("fmla\tv0.8h, v1.8h, v2.8h", "dotprod"),
        ("fadd\th0, h1, h2", "dotprod"),
        ("smmla\tv0.4s, v1.16b, v2.16b", "i8mm"),
        ("usdot\tv0.4s, v1.16b, v2.16b", "i8mm"),
        ("ldadd\tw0, w1, [x2]", "dotprod"),
        ("fmla\tz0.s, p0/m, z1.s, z2.s", "none"),
    ],
)
def test_the_level_of_an_instruction_of_arm(text: str, level: str) -> None:
    assert instructions.level(text, "arm64") == level


def prompt(model: Path) -> tuple[str | Path, ...]:
    return ("-m", model, "-p", "Once upon a time", "-n", "8", "--temp", "0")
