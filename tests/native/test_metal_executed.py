"""Upstream's Metal code, unpatched and with our declarations, executed on Linux.

Its Objective-C is compiled by zig as for macOS, but into ELF. `metal/` beside this file has the
rest: what leads Apple's calls to GCC's runtime and GNUstep's Foundation, a Metal over the
processor, and each kernel that is taken in C++. The kernels' text is unpacked as in a runtime, and
read for names alone.

What computes over it: layers of a transformer by ggml, the trial that a runtime takes of a GPU, and
the whole runtime where that has been compiled for Vulkan.
"""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import shutil
import subprocess
import zipfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import gguf
import loadable
import numpy as np
import pytest
from running import OnGpu, check_report, need
from witnesses import kept

from pyllamafile import native
from pyllamafile.models import tiny
from pyllamafile.native.building import debian, driver, metal, tools
from pyllamafile.native.building.debian import Package
from pyllamafile.native.building.source import ZSTD, vendored
from pyllamafile.progress import silent
from pyllamafile.targets import WITH_GPU

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
GGML += ("ggml-backend-dl.cpp", "ggml-backend-reg.cpp", "ggml-quants.c", "ggml-threading.cpp")
GGML += ("gguf.cpp", "ggml-metal/*.cpp")
GGML += ("ggml-cpu/*.c", "ggml-cpu/*.cpp", "ggml-cpu/tiled/*.cpp")
# Upstream's Objective-C: for macOS, in which residency sets are known, but into ELF.
FOR_MACOS = ("-target", "x86_64-linux-gnu", "-fobjc-runtime=macosx-13.0", "-std=gnu11")
FOR_MACOS += ("-DTARGET_OS_OSX=1", "-D__MAC_OS_X_VERSION_MAX_ALLOWED=150000")
FOR_MACOS += ("-fno-sanitize=undefined", "-O1")
# Ours, as GNUstep's headers want it.
FOR_GNUSTEP = ("-fobjc-runtime=gcc", "-fconstant-string-class=NSConstantString")
FOR_GNUSTEP += ("-fobjc-exceptions", "-D_NATIVE_OBJC_EXCEPTIONS", "-DGNUSTEP", "-DGNU_RUNTIME=1")
FOR_GNUSTEP += ("-DGNUSTEP_BASE_LIBRARY=1", "-fblocks", "-Wall", "-Werror")

# What of the runtime decides whether a GPU is used, below its folder; and a system without a
# sandbox, for GNUstep reads files that Foundation doesn't.
RUNTIME = ("arguments.cpp", "container.cpp", "gpu/child_posix.cpp", "gpu/choice.cpp")
RUNTIME += ("gpu/devices.cpp", "gpu/findings.cpp", "gpu/gpu.cpp", "gpu/trial.cpp")
RUNTIME += ("prove/products.cpp", "system/groups.cpp", "system/identity.cpp", "system/threads.cpp")
RUNTIME += ("system/files.cpp", "system/sandbox.cpp", "system/sandbox/netbsd.cpp")
RUNTIME += ("system/system.cpp", "text.cpp", "weights.cpp", "../metal/backend.cpp")
# What the whole runtime has otherwise when it uses Metal, by the files that it is linked of.
IN_PLACE_OF = r"vulkan(?!/environment\.c)|/gpu/choice\.cpp|/sandbox/linux\.cpp"
# It opens files in place of ggml. Without it, ggml does.
ALONE = "-Wl,--defsym,ggml_fopen=ggml_fopen_upstream"

KERNELS = {
    "kernel_bin_fuse_f32",
    "kernel_cpy_",
    "kernel_get_rows_",
    "kernel_mul_mv_",
    "kernel_mul_mv_ext_",
    "kernel_rms_norm_",
    "kernel_rope_norm_f32",
    "kernel_soft_max_f32",
    "kernel_swiglu_f32",
}
# Sources of ours that are no part of the program with layers.
OF_OTHERS = ("frame.cpp", "whole.cpp")
# Types of weights that people have, for the trial.
TYPES = ("F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1")
TYPES += ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K")


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
        language += ["-Dggml_fopen=ggml_fopen_upstream"] if name == "ggml.c" else []
        return [
            *[self.clang, "-w", "-O0", *language, "-D_GNU_SOURCE"],
            *["-DGGML_CPU_GENERIC", "-DGGML_USE_CPU"],
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

    def of_ours(
        self, source: Path, *more: str, to: str = ".", by: Path | None = None
    ) -> list[str | Path]:
        ggml, zstd = native.llama_source() / "ggml", vendored(ZSTD)
        vendor = native.llama_source() / "vendor"
        runtime = self.said("-print-file-name=libobjc.so").parent / "include"
        ggmls = [f"-I{ggml / name}" for name in ("include", "src", "src/ggml-metal")]
        ggmls += [f"-I{ggml.parent / name}" for name in ("common", "include")]
        runtimes = [f"-I{path}" for path in (metal.FOLDER, driver.RUNTIME, zstd, vendor)]
        gnusteps = [f"-I{self.root / name}" for name in ("include/GNUstep", "include")]
        flags: dict[str, Sequence[str | Path]] = {
            ".S": [],
            ".c": ["-w", "-DZSTD_DISABLE_ASM", "-DZSTD_LEGACY_SUPPORT=0", f"-I{vendor / 'hash'}"],
            ".cpp": ["-std=c++17", "-Wall", "-Werror", *ggmls, *runtimes],
            ".m": [*FOR_GNUSTEP, f"-I{OURS / 'gnustep'}", *gnusteps, "-idirafter", runtime],
        }
        output = self.folder / to / f"{source.name}.o"
        command = [by or self.clang, "-O1", "-g", *flags[source.suffix], *more]
        return [*command, "-c", source, "-o", output]

    @property
    def root(self) -> Path:
        return self.gnustep / "usr"

    def said(self, question: str) -> Path:
        return Path(subprocess.check_output([self.clang, question], text=True).strip())

    @property
    def libraries(self) -> list[str | Path]:
        """For the linker: GNUstep, and what it takes."""
        blocks = self.root / "lib" / "x86_64-linux-gnu" / "libBlocksRuntime.a"
        # GNUstep has functions of the same names, which only pretend; the first are taken.
        whole = ["-Wl,--whole-archive", blocks, "-Wl,--no-whole-archive"]
        gnustep = [self.root / "lib" / "libgnustep-base.so", f"-Wl,-rpath,{self.root / 'lib'}"]
        return [*whole, *gnustep, self.said("-print-file-name=libobjc.so")]

    def linked(self, objects: Sequence[Path], program: Path, *more: str) -> Path:
        ends = [*self.libraries, "-lstdc++", "-lm", "-lpthread", *more]
        finished([self.clang, "-no-pie", "-o", program, *objects, *ends])
        return program

    def whole(self, out: Path, folder: Path) -> Path:
        """The runtime that uses Vulkan, with Metal in Vulkan's place.

        Args:
            out: Where CMake compiled it.
            folder: What is compiled goes there.
        """
        compiler = out.parent / "tools" / "zig-c++"
        more = ["-w", "-fno-sanitize=undefined", "-DGGML_METAL_EMBED_LIBRARY"]
        ours = [OURS / "kernels.cpp", OURS / "whole.cpp"]
        ours += [metal.FOLDER / name for name in ("backend.cpp", "texts.cpp")]
        ours += [driver.RUNTIME / "system" / "sandbox" / "netbsd.cpp"]
        upstreams = native.llama_source() / "ggml" / "src" / "ggml-metal"
        for source in (*ours, *upstreams.glob("*.cpp")):
            finished(self.of_ours(source, *more, to=folder.name, by=compiler))
        shared = ["bridge.m", "device.m", "sends.S", "texts.S"]
        shared += [source.name for source in objective()]
        # What Objective-C is made of first: whole.cpp's constructor takes it.
        objects = [*(self.folder / f"{name}.o" for name in shared), *folder.glob("*.o")]
        asked = [driver.programs()[2], "-C", out, "-t", "commands", "-s", "runtime"]
        words = shlex.split(subprocess.check_output(asked, text=True).splitlines()[-1])
        words = [word for word in words[2:-2] if not re.search(IN_PLACE_OF, word)]
        words[words.index("-o") + 1] = str(folder / "program")
        ends = ["-Wl,--allow-shlib-undefined", *self.libraries]
        finished([*words, *objects, *ends], folder=out)
        return folder / "program"


def finished(command: Sequence[str | Path], folder: Path | None = None) -> None:
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, env=tools.environment()
    )
    assert done.returncode == 0, done.stderr[-2000:]


def sources() -> list[Path]:
    root = native.llama_source() / "ggml" / "src"
    return [path for pattern in GGML for path in sorted(root.glob(pattern))]


def objective() -> list[Path]:
    return sorted((native.llama_source() / "ggml" / "src" / "ggml-metal").glob("*.m"))


def key(clang: str) -> str:
    """Over everything that the objects are made of."""
    digest = hashlib.sha256(f"{native.SDIST_SHA256} {tools.version('ziglang')} {GNUSTEP}".encode())
    digest.update(subprocess.check_output([clang, "--version"]))
    for folder in (OURS, metal.FOLDER):
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            digest.update(path.relative_to(folder).as_posix().encode() + path.read_bytes())
    used = [*sorted(driver.RUNTIME.rglob("*.h")), *(driver.RUNTIME / name for name in RUNTIME)]
    for path in (Path(__file__), Path(metal.__file__), *used):
        digest.update(path.read_bytes())
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
    with tools.lock("metal-on-gnustep", "compiles Metal on GNUstep", silent):
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
            own = [path for path in own if path.name not in OF_OTHERS]
            own += [metal.FOLDER / "texts.cpp", metal.packed_texts(silent) / "texts.S"]
            own += [vendored(ZSTD) / "zstd.c"]
            commands += [made.of_ours(source) for source in own]
            (folder / "frame").mkdir()
            frame = [OURS / "frame.cpp", *(driver.RUNTIME / name for name in RUNTIME)]
            hashes = native.llama_source() / "vendor" / "hash"
            frame += [hashes / "hash.cpp", hashes / "sha256" / "sha256.c"]
            has = ("-DRUNTIME_HAS_GPU", "-DRUNTIME_TARGET=", '-DRUNTIME_VERSION=""', "-w", "-O0")
            for source in frame:
                apple = ["-D__APPLE__"] if source.name == "choice.cpp" else []
                commands.append(made.of_ours(source, *has, *apple, to="frame"))
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                list(pool.map(finished, commands))
            objects = sorted(folder.glob("*.o"))
            made.linked(objects, folder / "program", ALONE)
            objects.remove(folder / "layers.cpp.o")
            made.linked([*folder.glob("frame/*.o"), *objects], folder / "frame" / "program")
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
    "out of memory": {"METAL_FAILS": "command"},
    "kernels that macOS can't compile": {"METAL_FAILS": "kernels"},
}
# Of newer GPUs.
NEVER_SENT = {"containsObject:", "setLanguageVersion:"}


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


# The frame: whether a GPU is used is found out by a process of its own


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GGUF with a matrix of each type."""
    path = tmp_path_factory.mktemp("weights") / "types.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    for name in TYPES:
        kind = gguf.GGMLQuantizationType[name]
        numbers, size = gguf.GGML_QUANT_SIZES[kind]
        rows = np.zeros((32, 256 // numbers * size), np.uint8)
        writer.add_tensor(name, rows, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def framed(workshop: Workshop, weights: Path, **variables: str) -> tuple[int, str, str]:
    program = workshop.folder / "frame" / "program"
    done = subprocess.run(
        [program, weights, weights],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "GGML_VK_VISIBLE_DEVICES": "0", **variables},
    )
    return done.returncode, done.stdout, done.stderr


def test_a_gpu_that_computes_rightly_is_used(workshop: Workshop, weights: Path) -> None:
    code, said, errors = framed(workshop, weights)
    assert (code, errors) == (0, "")
    assert said == "Available devices:\n  MTL0: Apple M1 (8192 MiB, 8192 MiB free)\n"


BROKEN = {
    "command": "Apple M1: it fails when it computes",
    "crash": "its driver ended with SIGABRT",
    "device": "macOS offers no device for Metal",
    "hang": "its driver did not answer within 5 seconds",
    "kernels": "Apple M1: it can't be started",
    "memory": "Apple M1: it has no memory",
    "product": "Apple M1: it computes wrongly: mul_mat f16 x 32",
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_one_is_not_used(workshop: Workshop, weights: Path, what: str) -> None:
    seconds = {"PYLLAMAFILE_GPU_SECONDS": "5"} if what == "hang" else {}
    code, said, errors = framed(workshop, weights, METAL_FAILS=what, **seconds)
    assert (code, said) == (0, "Available devices:\n  (none)\n")
    assert errors == f"GPU: not used: {BROKEN[what]}; --gpu off silences this\n"
    code, said, errors = framed(workshop, weights, METAL_FAILS=what, NEEDED="1", **seconds)
    assert (code, said, errors) == (1, "", f"--gpu metal: {BROKEN[what]}\n")


# The whole runtime, for who has compiled the one that uses Vulkan


@pytest.fixture(scope="module")
def over_metal(workshop: Workshop, tmp_path_factory: pytest.TempPathFactory) -> OnGpu:
    target = WITH_GPU["linux-amd64-gnu"]
    runtime, compiled = native.find(target), driver.build_folder(target) / "out" / "runtime"
    if not runtime or not compiled.is_file() or compiled.read_bytes() != runtime.program():
        pytest.skip(f"{target.name} was not compiled here: pyllamafile runtimes build --gpu")
    folder = workshop.folder / f"whole-{driver.key(target)}"
    with tools.lock("metal-on-gnustep", "compiles Metal on GNUstep", silent):
        if not (folder / "program").is_file():
            folder.mkdir(exist_ok=True)
            workshop.whole(compiled.parent, folder)
    file = tmp_path_factory.mktemp("metal") / "file.zip"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("empty", "")
    variables = {"GGML_VK_VISIBLE_DEVICES": "0", "PYLLAMAFILE_CACHE": str(file.parent / "cache")}
    return OnGpu((folder / "program", "--llamafile", file), {**os.environ, **variables})


Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def runs(over_metal: OnGpu) -> Run:
    """Runs it, for at most ten minutes; a small model may write bytes that are no text."""

    def runs(*words: str | Path) -> subprocess.CompletedProcess[str]:
        command = [*over_metal.command, *words]
        return subprocess.run(
            command, env=over_metal.env, capture_output=True, encoding="latin-1", timeout=600
        )

    return runs


def written(runs: Run, model: Path, prompt: str) -> tuple[str, str]:
    """What a model writes over Metal, which is what it writes on the processor; and the log."""
    words = ["-m", model, "-p", prompt, "-n", "24", "--temp", "0", "--no-display-prompt"]
    processor = runs(*words, "--gpu", "off")
    over_metal = runs(*words, "--gpu", "metal", "-v")
    assert (processor.returncode, over_metal.returncode) == (0, 0), over_metal.stderr[-2000:]
    assert over_metal.stdout == processor.stdout
    assert re.search(r"offloaded (\d+)/\1 layers to GPU", over_metal.stderr)
    return over_metal.stdout, over_metal.stderr


def test_a_model_over_metal_says_what_was_recorded(runs: Run, tmp_path: Path) -> None:
    """That of --prove; upstream has no flash attention for heads as narrow as its."""
    (tmp_path / "tiny.gguf").write_bytes(tiny.model())
    said, log = written(runs, tmp_path / "tiny.gguf", tiny.PROMPT)
    assert said.strip() == tiny.ANSWER
    assert "kernel_soft_max_f32" in log
    assert "kernel_flash_attn_ext" not in log


def test_a_model_over_metal_with_flash_attention(runs: Run, tmp_path: Path) -> None:
    """Of a prompt, and of a token."""
    model = loadable.sure(4).write(tmp_path / "sure.gguf")
    said, log = written(runs, model, "the tone in the house is the tone on it")
    assert len(said) > 20
    assert "kernel_flash_attn_ext_f16_dk32_dv32" in log
    assert "kernel_flash_attn_ext_vec_f16_dk32_dv32" in log


@pytest.mark.slow
def test_a_report_about_metal(runs: Run, tmp_path: Path) -> None:
    (tmp_path / "tiny.gguf").write_bytes(tiny.model())
    done = runs("--gpu-trial", "-m", tmp_path / "tiny.gguf")
    assert done.stderr == ""
    assert "-gnu, GPUs by metal\n" in done.stdout
    last = check_report(done.stdout, "MTL0: Apple M1, 8192 MiB, 8192 of them free")
    # It is a processor itself, and may be passed over for its speed.
    assert (done.returncode, last) == (0, "GPU: used") or (
        done.returncode == 1
        and re.match(r"GPU: not used: Apple M1: the processor does \S+ times", last)
    )


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
    program = own.linked(objects, tmp_path / "program", ALONE)
    report = run(program)
    assert report.code != 0
    assert said in report.errors
