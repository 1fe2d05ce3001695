"""Upstream's Metal code, unpatched and with our declarations, executed on Linux.

Its Objective-C is compiled by zig as for macOS, but into ELF. `metal/` beside this file has the
rest: what leads Apple's calls to GCC's runtime and GNUstep's Foundation, a Metal over the
processor, and each kernel that the model takes in C++. Kernels' text is read for names alone.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
from running import need
from witnesses import kept

from pyllamafile import native
from pyllamafile.native.building import debian, driver, metal, tools
from pyllamafile.native.building.debian import Package

pytestmark = pytest.mark.native

OURS = Path(__file__).parent / "metal"
# Debian 12's, which this runs on, and what their library is linked with.
SUITE = "bookworm"
GNUSTEP = (
    Package(
        "libgnustep-base1.28",
        "1.28.1+really1.28.0-5",
        "5433cc473fd1b457aa669a56a6095a276dfc634e83f20e9121bce86e02ab7aef",
    ),
    Package(
        "libgnustep-base-dev",
        "1.28.1+really1.28.0-5",
        "14ca051d7df4ee82dcb46098242e7cf388f48a26bc7ab11836f04de8e039a645",
    ),
    Package(
        "libblocksruntime-dev",
        "0.4.1-1.1",
        "940de8b75b98a7f8938cc9705b23db3d8dab94bc6097ee37f56ed7c74ad079e4",
    ),
)
LIBRARIES = "libavahi-client3 libffi8 libgnutls30 libobjc4 libxml2 libxslt1.1"

# What of ggml the program takes beside Metal's part; its processor without instructions of amd64.
GGML = ("ggml.c", "ggml.cpp", "ggml-alloc.c", "ggml-backend.cpp", "ggml-backend-meta.cpp")
GGML += ("ggml-quants.c", "ggml-threading.cpp", "gguf.cpp", "ggml-metal/*.cpp")
GGML += ("ggml-cpu/*.c", "ggml-cpu/*.cpp", "ggml-cpu/tiled/*.cpp")
# Upstream's Objective-C: for macOS, in which residency sets are known, but into ELF.
FOR_MACOS = ("-target", "x86_64-linux-gnu", "-fobjc-runtime=macosx-13.0", "-std=gnu11")
FOR_MACOS += ("-DTARGET_OS_OSX=1", "-D__MAC_OS_X_VERSION_MAX_ALLOWED=150000")
FOR_MACOS += ("-fno-sanitize=undefined", "-O1")
# Ours, as GNUstep's headers want it.
FOR_GNUSTEP = ("-fobjc-runtime=gcc", "-fconstant-string-class=NSConstantString")
FOR_GNUSTEP += ("-fobjc-exceptions", "-D_NATIVE_OBJC_EXCEPTIONS", "-DGNUSTEP", "-DGNU_RUNTIME=1")
FOR_GNUSTEP += ("-DGNUSTEP_BASE_LIBRARY=1", "-fblocks", "-Wall", "-Werror")

KERNELS = {
    "kernel_bin_fuse_f32",
    "kernel_cpy_f32_f32",
    "kernel_get_rows_f32",
    "kernel_mul_mv_ext_f32_f32",
    "kernel_mul_mv_f32_f32",
    "kernel_rms_norm_",
    "kernel_rope_norm_f32",
    "kernel_soft_max_f32",
    "kernel_swiglu_f32",
}


@dataclass(frozen=True)
class Workshop:
    """What compiles and links, into which folder."""

    folder: Path
    zig: Path
    clang: str
    gnustep: Path

    def of_ggml(self, source: Path) -> list[str | Path]:
        ggml = native.llama_source() / "ggml"
        name = source.relative_to(ggml / "src").as_posix().replace("/", "-")
        own = source.is_relative_to(ggml / "src" / "ggml-metal")
        # It takes std::unique_ptr for granted, which libc++ has everywhere.
        language = ["-std=c++17", "-include", "memory"] if source.suffix == ".cpp" else []
        return [
            *[self.clang, "-w", "-O0", *language, "-D_GNU_SOURCE", "-DGGML_CPU_GENERIC"],
            *[f"-I{self.folder}", f"-I{ggml / 'include'}", f"-I{ggml / 'src'}"],
            *(["-DGGML_METAL_EMBED_LIBRARY"] if own else [f"-I{ggml / 'src' / 'ggml-cpu'}"]),
            *["-c", source, "-o", self.folder / f"{name}.o"],
        ]

    @property
    def declared(self) -> Path:
        """Our declarations, which zig's cache takes no notice of where `-F` names them."""
        folder = self.folder / "declared"
        if not folder.is_dir():
            for framework in ("Foundation", "Metal"):
                headers = metal.SDK / f"{framework}.framework" / "Headers"
                shutil.copytree(headers, folder / framework)
        return folder

    def of_upstreams(self, source: Path) -> list[str | Path]:
        ggml = native.llama_source() / "ggml"
        return [
            *[self.zig, "cc", *FOR_MACOS, "-DGGML_METAL_EMBED_LIBRARY=1", "-fblocks", "-Werror"],
            *[
                "-Wno-unused",
                f"-I{OURS / 'apple'}",
                f"-I{self.declared}",
                f"-I{self.root / 'include'}",
            ],
            *[f"-I{ggml / 'include'}", f"-I{ggml / 'src'}"],
            *["-c", source, "-o", self.folder / f"{source.name}.o"],
        ]

    def of_ours(self, source: Path) -> list[str | Path]:
        ggml = native.llama_source() / "ggml"
        runtime = self.said("-print-file-name=libobjc.so").parent / "include"
        ggmls = [f"-I{ggml / name}" for name in ("include", "src", "src/ggml-metal")]
        gnusteps = [f"-I{self.root / name}" for name in ("include/GNUstep", "include")]
        flags: dict[str, Sequence[str | Path]] = {
            ".S": [],
            ".cpp": ["-std=c++17", "-Wall", "-Werror", *ggmls],
            ".m": [*FOR_GNUSTEP, f"-I{OURS / 'gnustep'}", *gnusteps, "-idirafter", runtime],
        }
        output = self.folder / f"{source.name}.o"
        return [self.clang, "-O1", "-g", *flags[source.suffix], "-c", source, "-o", output]

    @property
    def root(self) -> Path:
        return self.gnustep / "usr"

    def said(self, question: str) -> Path:
        return Path(subprocess.check_output([self.clang, question], text=True).strip())

    def linked(self, objects: Sequence[Path], program: Path) -> Path:
        blocks = self.root / "lib" / "x86_64-linux-gnu" / "libBlocksRuntime.a"
        # GNUstep has functions of the same names, which only pretend; the first are taken.
        whole = ["-Wl,--whole-archive", blocks, "-Wl,--no-whole-archive"]
        ends = [f"-L{self.root / 'lib'}", f"-Wl,-rpath,{self.root / 'lib'}"]
        ends += ["-lgnustep-base", "-lobjc", "-lstdc++", "-lm", "-lpthread"]
        finished([self.clang, "-no-pie", "-o", program, *objects, *whole, *ends])
        return program


def finished(command: Sequence[str | Path]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, env=tools.environment())
    assert done.returncode == 0, done.stderr[-2000:]


def sources() -> list[Path]:
    root = native.llama_source() / "ggml" / "src"
    return [path for pattern in GGML for path in sorted(root.glob(pattern))]


def objective() -> list[Path]:
    return sorted((native.llama_source() / "ggml" / "src" / "ggml-metal").glob("*.m"))


def kernels(folder: Path) -> Path:
    """The kernels' text where upstream looks for it. Nobody compiles it, so no header is in it."""
    kinds = (native.llama_source() / "ggml" / "src" / "ggml-metal" / "kernels").glob("*.metal")
    lines = [".data"]
    for kind in sorted(kinds):
        for end, what in (("start", f'.incbin "{kind}"'), ("end", ".byte 0")):
            name = f"ggml_metallib_{kind.stem}_{end}"
            lines += [f".globl {name}", f"{name}:", what]
    lines.append('.section .note.GNU-stack, "", @progbits')
    path = folder / "kernels-text.S"
    path.write_text("\n".join(lines) + "\n")
    return path


def key(clang: str) -> str:
    """Over everything that the objects are made of."""
    digest = hashlib.sha256(f"{native.SDIST_SHA256} {tools.version('ziglang')} {GNUSTEP}".encode())
    digest.update(subprocess.check_output([clang, "--version"]))
    for folder in (OURS, metal.SDK):
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            digest.update(path.relative_to(folder).as_posix().encode() + path.read_bytes())
    digest.update(Path(__file__).read_bytes())
    return digest.hexdigest()[:16]


@pytest.fixture(scope="module")
def workshop() -> Workshop:
    """With every object that the program is linked of, compiled once."""
    clang = need("clang")

    def fetch(folder: Path) -> None:
        packages = debian.pinned(folder / "apt", GNUSTEP, "GNUstep", SUITE)
        debian.unpack(packages, folder / "root")
        shutil.rmtree(folder / "apt")

    gnustep = kept(f"{GNUSTEP[0].name}-{GNUSTEP[0].version}", fetch) / "root"
    (library,) = gnustep.glob("usr/lib/libgnustep-base.so.*.*.*")
    if "not found" in subprocess.check_output(["ldd", library], text=True):
        pytest.skip(f"libraries are missing: apt install {LIBRARIES}")
    folder = tools.folder("metal-on-gnustep") / key(clang)
    made = Workshop(folder, driver.programs()[0], clang, gnustep)
    mark = folder / "complete"
    with tools.lock("metal-on-gnustep", "compiles Metal on GNUstep", lambda step: None):
        if not mark.is_file():
            for old in folder.parent.iterdir():
                shutil.rmtree(old)
            folder.mkdir()
            (folder / "ggml-version.h").write_text(
                '#define GGML_VERSION "a test\'s"\n#define GGML_COMMIT "none"\n'
            )
            commands = [made.of_ggml(source) for source in sources()]
            commands += [made.of_upstreams(source) for source in objective()]
            own = [path for path in OURS.iterdir() if path.suffix in (".S", ".m", ".cpp")]
            commands += [made.of_ours(source) for source in [*own, kernels(folder)]]
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                list(pool.map(finished, commands))
            made.linked(sorted(folder.glob("*.o")), folder / "program")
            mark.touch()
    return made


@dataclass(frozen=True)
class Report:
    """How the program ended, which kernels it computed, which messages it sent, and numbers."""

    code: int
    errors: str
    kernels: set[str]
    sent: set[str]
    unsent: set[str]
    numbers: dict[str, float]


def run(program: Path, **variables: str) -> Report:
    done = subprocess.run(
        [program], capture_output=True, text=True, timeout=120, env={**os.environ, **variables}
    )
    lists: dict[str, set[str]] = {"kernel": set(), "sent": set(), "unsent": set()}
    numbers = {}
    for name, value in map(str.split, done.stdout.splitlines()):
        if name in lists:
            lists[name].add(value)
        else:
            numbers[name] = float(value)
    return Report(done.returncode, done.stderr, *lists.values(), numbers)


def check(report: Report, left: int = 0, sets: int = 4) -> None:
    """The logits are the processor's, but for sums of F32 that are added in another order.

    Args:
        report: The program's.
        left: How many of Metal's objects a model leaves behind.
        sets: How many residency sets there were: for two models, weights and the rest.
    """
    assert report.code == 0, report.errors[-2000:]
    assert report.kernels == KERNELS
    numbers = report.numbers
    assert numbers["logits"] == 5 * 96
    assert numbers["square"] > 1
    assert numbers["error"] < 1e-10
    assert numbers["left"] == left
    assert numbers["residency_sets"] == numbers["allocations"] == numbers["ends"] == sets
    assert numbers["requests"] >= sets
    # Of two models two times: the mask, an event's two, the graph's two, the logits.
    assert numbers["command_buffers"] >= 2 * 2 * 6


RUNS = {
    "as it comes": {},
    "without residency sets": {"GGML_METAL_NO_RESIDENCY": "1"},
    "memory that a GPU alone sees": {"GGML_METAL_SHARED_BUFFERS_DISABLE": "1"},
    "one kernel after another": {"GGML_METAL_CONCURRENCY_DISABLE": "1"},
    "a trace": {"GGML_METAL_CAPTURE_COMPUTE": "1"},
    "out of memory": {"METAL_FAILS": "1"},
}
# Of newer GPUs, and of kernels that the system can't compile.
NEVER_SENT = {"containsObject:", "description", "setLanguageVersion:"}


@pytest.fixture(scope="module")
def reports(workshop: Workshop) -> dict[str, Report]:
    return {name: run(workshop.folder / "program", **RUNS[name]) for name in RUNS}


def test_layers_give_the_processors_logits(reports: dict[str, Report]) -> None:
    check(reports["as it comes"])
    check(reports["one kernel after another"])


def test_without_residency_sets(reports: dict[str, Report]) -> None:
    """As before macOS 15."""
    check(reports["without residency sets"], sets=0)


def test_memory_that_a_gpu_alone_sees(reports: dict[str, Report]) -> None:
    """As on Macs with a graphics card; upstream doesn't release what it sends two tensors by."""
    check(reports["memory that a GPU alone sees"], left=2)


def test_a_trace(reports: dict[str, Report]) -> None:
    """Upstream doesn't release what it describes it by, nor its scope."""
    check(reports["a trace"], left=2)


def test_a_command_buffer_that_failed(reports: dict[str, Report]) -> None:
    report = reports["out of memory"]
    assert report.code == 1
    assert "command buffer 0 failed with status 5\nerror: out of memory\n" in report.errors
    assert report.errors.endswith("\nthe graph was not computed\n")


def test_which_messages_were_sent(reports: dict[str, Report]) -> None:
    known = reports["as it comes"].sent | reports["as it comes"].unsent
    assert len(known) > 60
    assert known - set().union(*(report.sent for report in reports.values())) == NEVER_SENT


# What is wrong in the header: what stands there, what stands there instead, and what comes of it.
WRONG = {
    "a structure's type": (
        "NSUInteger width;\n    NSUInteger height;",
        "uint32_t width, height;",
        "our Metal, line",
    ),
    "an argument's type": (
        "length:(NSUInteger)length atIndex:(NSUInteger)index;",
        "length:(NSUInteger)length atIndex:(double)index;",
        "our Metal, line",
    ),
    "a selector": (
        "(readonly) BOOL hasUnified",
        "(readonly, getter=isUnified) BOOL hasUnified",
        "isUnified",
    ),
    "a number": ("MTLDataTypeShort = 37", "MTLDataTypeShort = 38", "type == SHORT"),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_declaration_fails(workshop: Workshop, what: str, tmp_path: Path) -> None:
    """The same program, with Objective-C out of a header in which one thing is wrong."""
    own = Workshop(tmp_path, workshop.zig, workshop.clang, workshop.gnustep)
    header = own.declared / "Metal" / "Metal.h"
    right, wrong, said = WRONG[what]
    assert right in header.read_text()
    header.write_text(header.read_text().replace(right, wrong))
    for source in objective():
        finished(own.of_upstreams(source))
    replaced = {path.name: path for path in tmp_path.glob("*.o")}
    objects = [replaced.get(path.name, path) for path in sorted(workshop.folder.glob("*.o"))]
    program = own.linked(objects, tmp_path / "program")
    report = run(program)
    assert report.code != 0
    assert said in report.errors
