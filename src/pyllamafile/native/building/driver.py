"""The driver of zig, CMake and Ninja, which compile a runtime out of ``native/runtime``."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from pyllamafile.errors import UnavailableError
from pyllamafile.native.building import tools
from pyllamafile.native.building.gpus import GPUS
from pyllamafile.native.building.shaders import Programs
from pyllamafile.native.building.source import LLAMA_COMMIT, SDIST_SHA256, ZSTD, vendored
from pyllamafile.progress import Progress, Step
from pyllamafile.targets import Target

# The version of ziglang that a runtime takes; pyproject.toml names it, too.
ZIG = "0.17.1"

# Size for everything but the kernels, for which CMakeLists.txt asks for speed.
OPTIMIZE = "-Os -DNDEBUG"
# For zig's libc++ and libc, which it compiles when it links: for size they copy byte by byte, and
# the first token comes 80 ms later.
LINK = "-O2 -s -Wl,--gc-sections"

# CMake asks a compiler who it is by linking a program, but an object will do, too: for the first
# program zig compiles its libc, which nothing has to wait for.
OBJECT_WILL_DO = 'case "$*" in *CompilerId*) set -- -c "$@" ;; esac\n'

BUILDING = Path(__file__).parent
RUNTIME = BUILDING.parent / "runtime"

# What CMake runs of ours, and what decides over a runtime's facts.
_SCRIPTS = ("icon.py", "levels.py", "licenses.py", "seams.py")


def key(target: Target) -> str:
    """A digest over everything that determines what a runtime becomes."""
    digest = hashlib.sha256()
    for part in (SDIST_SHA256, ZSTD.sha256, ZIG, *_options(target), str(_settings(target))):
        digest.update(part.encode() + b"\0")
    sources = {
        path.relative_to(RUNTIME).as_posix(): path for path in RUNTIME.rglob("*") if path.is_file()
    }
    scripts = {f"../{BUILDING.name}/{name}": BUILDING / name for name in _SCRIPTS}
    gpu = GPUS[target.gpu].sources()
    for name, path in sorted({**sources, **scripts, **gpu}.items()):
        status = path.stat()
        content = _content(path, status.st_size, status.st_mtime_ns)
        digest.update(name.encode() + b"\0" + content + b"\0")
    return digest.hexdigest()[:16]


@functools.cache  # a file with all targets takes a dozen keys
def _content(path: Path, size: int, changed: int) -> bytes:
    return path.read_bytes()


def build_folder(target: Target) -> Path:
    """Where a target is compiled; ``out`` in it is CMake's, and stays for the next time."""
    # CMake holds on to the paths that it began with, and sees no change in the compiler's options,
    # which are in a script. A second program with the options of the plain one shares its folder:
    # nearly all that it takes is compiled there.
    ziglang, cache = tools.package("ziglang"), tools.cache()
    began = f"{SDIST_SHA256} {ZIG} {ziglang} {cache} {RUNTIME} {_options(target)}"
    return cache / "build" / f"{target.plain}-{hashlib.sha256(began.encode()).hexdigest()[:8]}"


def programs() -> tuple[Path, Path, Path]:
    """Find zig, CMake and Ninja.

    Raises:
        UnavailableError: One is missing, or zig has another version.
    """
    zig = tools.package("ziglang") / "zig"
    if (found := tools.version("ziglang")) != ZIG:
        raise UnavailableError(
            f"ziglang is {found} here, and compiling takes {ZIG}",
            hint="pip install 'pyllamafile[runtimes]'",
        )
    return zig, tools.program("cmake"), tools.program("ninja")


def llama_version(target: Target) -> str:
    """What upstream's build calls itself, which is what the compiled runtime says, too."""
    header = build_folder(target) / "out" / "llama" / "src" / "llama-version.h"
    (version,) = re.findall(r'#define LLAMA_VERSION "(.+)"', header.read_text())
    return str(version)


def compile_runtime(
    target: Target,
    source: Path,
    jobs: int | None,
    tell: Progress,
) -> tuple[bytes, dict[str, str]]:
    """Compile the program of a target.

    Args:
        target: Which one.
        source: llama.cpp's folder.
        jobs: How many compilers run at once; None for as many as there are processors.
        tell: Told about every step.

    Returns:
        The program, and the notices of what is linked into it by the names of the components.

    Raises:
        PyllamafileError: A tool is missing, or a step failed; the message names the log.
    """
    from pyllamafile.native.building import licenses, seams  # only who compiles needs them

    zig, cmake, ninja = programs()
    folder = build_folder(target)
    out = folder / "out"
    edited = folder / "edited"
    seams.meet(source, edited, target.system)
    scripts = _toolchain(folder / "tools", target, zig, source)
    more = {
        "ZSTD": vendored(ZSTD, progress=tell),
        **GPUS[target.gpu].settings(Programs(zig, cmake, ninja), tell),
    }
    settings = {
        **_settings(target),
        **scripts,
        "CMAKE_MAKE_PROGRAM": ninja,
        "LLAMA_SOURCE": source,
        "EDITED": edited,
        "BUILDING": BUILDING,
        "PYTHON": sys.executable,
        "CMAKE_PROJECT_runtime_INCLUDE": "",  # or CMake keeps that of the folder's other program
        **more,
    }
    what = f"building the runtime for {target.name}"
    log = f"runtime-{target.name}"
    configure: list[str] = [str(cmake), "-S", str(RUNTIME), "-B", str(out), "-G", "Ninja"]
    configure += [f"-D{name}={value}" for name, value in settings.items()]
    command = [str(ninja), "-C", str(out), "runtime"]
    command += ["-j", str(jobs)] if jobs else []

    def step(line: str) -> None:
        if match := re.match(r"\[(\d+)/(\d+)\]", line):
            tell(Step("steps", what, int(match[1]), int(match[2])))

    tell(Step("waiting", what))
    with _libraries_compiling(scripts["CMAKE_CXX_COMPILER"], folder):
        tools.run(configure, log=log, what=what)
        tools.run(command, log=log, what=what, append=True, each_line=step)
    program = (out / "runtime").read_bytes()
    linked = licenses.linked(ninja, out)
    files = [seams.original(file, edited, source) for file in linked]
    others = {name: folder for name, folder in more.items() if name in licenses.ADDED}
    return program, licenses.notices(target, files, source, zig.parent, RUNTIME.parent, others)


def _options(target: Target) -> list[str]:
    """What the compiler is told about the target."""
    return ["-target", target.triple, f"-mcpu={target.base}", *target.flags]


def _settings(target: Target) -> dict[str, str]:
    """CMake's variables that determine the program; those with the machine's paths don't."""
    return {
        "CMAKE_BUILD_TYPE": "Release",
        "CMAKE_SYSTEM_NAME": target.system,
        "CMAKE_SYSTEM_PROCESSOR": {"amd64": "x86_64", "arm64": "aarch64"}[target.arch],
        # Linking makes zig compile its libc++, a minute in which nothing else would happen.
        "CMAKE_TRY_COMPILE_TARGET_TYPE": "STATIC_LIBRARY",
        "CMAKE_C_FLAGS_RELEASE": OPTIMIZE,
        "CMAKE_CXX_FLAGS_RELEASE": OPTIMIZE,
        "CMAKE_EXE_LINKER_FLAGS": LINK,
        "LLAMA_COMMIT": LLAMA_COMMIT,
        "RUNTIME_VERSION": tools.version("pyllamafile"),
        "RUNTIME_TARGET": target.name,
        "RUNTIME_LEVELS": ";".join(level.name for level in target.levels),
        **{f"FLAGS_{level.name}": ";".join(level.flags) for level in target.levels},
        **{f"SOURCES_{level.name}": ";".join(level.sources) for level in target.levels},
    }


def _toolchain(folder: Path, target: Target, zig: Path, source: Path) -> dict[str, Path]:
    """Make zig something that CMake can call: CMake's variable and a script for each."""
    # Paths of this machine would end up in assertion messages.
    places = (source, folder.parent / "edited", RUNTIME, zig.parent)
    hidden = [f"-ffile-prefix-map={path}=." for path in places]
    options = [*_options(target), *hidden]
    folder.mkdir(parents=True, exist_ok=True)
    return {
        "CMAKE_C_COMPILER": tools.script(
            folder / "zig-cc", zig, "cc", *options, before=OBJECT_WILL_DO
        ),
        "CMAKE_CXX_COMPILER": tools.script(
            folder / "zig-c++", zig, "c++", *options, before=OBJECT_WILL_DO
        ),
        "CMAKE_AR": tools.script(folder / "zig-ar", zig, "ar"),
        "CMAKE_RANLIB": tools.script(folder / "zig-ranlib", zig, "ranlib"),
        "CMAKE_RC_COMPILER": tools.script(folder / "zig-rc", zig, "rc", "/:no-preprocess"),
        # For Darwin CMake insists on a tool that only libraries need.
        "CMAKE_INSTALL_NAME_TOOL": tools.script(folder / "install-name-tool", "true"),
    }


@contextlib.contextmanager
def _libraries_compiling(compiler: Path, folder: Path) -> Iterator[None]:
    """Let zig compile its libc++ and libc meanwhile: it does so on the first link, on one core."""
    sample = folder / "sample.cpp"
    sample.write_text("int main() { throw 0; }\n")
    process = subprocess.Popen(
        [compiler, *OPTIMIZE.split(), *LINK.split(), sample, "-o", folder / "sample"],
        env=tools.environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,  # if it fails, so does the real link, with a log
    )
    try:
        yield
    finally:
        process.terminate()
        process.wait()
