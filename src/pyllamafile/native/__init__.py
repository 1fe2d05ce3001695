"""Native runtimes: where the built ones are, and how they are built.

A runtime is one program made of llama.cpp, whose source comes with the sdist of
llama-cpp-python, and of the C++ beside this module. zig compiles it, CMake and Ninja drive zig,
npm builds the web GUI. What was built is kept in the user's cache under a key over everything
that determines it, so only the first time takes minutes; a wheel brings it along.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from pyllamafile.errors import PyllamafileError
from pyllamafile.launcher import pack
from pyllamafile.native import gui, licenses, tools
from pyllamafile.native.source import LLAMA_COMMIT, SDIST_SHA256, llama_source
from pyllamafile.native.tools import Progress, cache
from pyllamafile.targets import TARGETS, Runtime, Target

__all__ = [
    "LLAMA_COMMIT",
    "PREBUILT",
    "SDIST_SHA256",
    "Progress",
    "available",
    "build",
    "build_gui",
    "cache",
    "find",
    "find_gui",
    "llama_source",
    "prepare",
]

# The version of ziglang that a runtime takes; pyproject.toml names it, too.
ZIG = "0.17.1"

# Size for everything but the kernels, for which CMakeLists.txt asks for speed.
OPTIMIZE = "-Os -DNDEBUG"
# For zig's libc++ and libc, which it compiles when it links: for size they copy byte by byte, and
# the first token comes 80 ms later.
LINK = "-O2 -s -Wl,--gc-sections"

FORGOTTEN = 30 * 86400  # seconds until a runtime that nothing asks for any more is removed

HERE = Path(__file__).parent
# Runtimes that came with the package, so that nobody has to compile.
PREBUILT = HERE / "prebuilt"


def available() -> list[Runtime]:
    """Every runtime at hand, in the table's order."""
    return [runtime for target in TARGETS.values() if (runtime := find(target))]


def find(target: Target) -> Runtime | None:
    """The runtime for a target: the packaged one, else the cached one, else None."""
    packaged = _load(PREBUILT, target.name, "package")
    return packaged or _load(cache() / "runtimes", f"{target.name}-{_key(target)}", "cache")


def find_gui() -> Path | None:
    """The zip with the web GUI's files: the packaged one, else the cached one, else None."""
    for path in (PREBUILT / "ui.zip", gui.path()):
        if path.is_file():
            return path
    return None


def build(target: Target, *, jobs: int | None = None, progress: Progress | None = None) -> Runtime:
    """Compile the runtime of a target into the cache, unless it is there already.

    Args:
        target: Which one.
        jobs: How many compilers run at once; by default as many as there are processors.
        progress: Told about every step.

    Raises:
        PyllamafileError: A tool is missing, or a step failed; the message names the log.
    """
    tell = progress or tools.silent
    folder = cache() / "runtimes"
    name = f"{target.name}-{_key(target)}"
    if found := _load(folder, name, "cache"):
        return found  # without waiting for whoever builds another one
    with tools.lock(f"runtime-{target.name}", f"builds {target.name}", tell):
        if found := _load(folder, name, "cache"):
            return found
        source = prepare(progress=tell)
        program, notices = _compile(target, source, jobs, tell)
        tell(f"packing the runtime for {target.name}", 0, 0)
        packed = pack(program, _squeezed(program))
        facts = {
            "target": target.name,
            "packed_size": len(packed),
            "packed_sha256": hashlib.sha256(packed).hexdigest(),
            "size": len(program),
            "sha256": hashlib.sha256(program).hexdigest(),
            "llama_cpp": f"{_llama_version(build_folder(target) / 'out')} ({LLAMA_COMMIT})",
            "levels": [level.name for level in target.levels],
            "licenses": notices,
        }
        folder.mkdir(parents=True, exist_ok=True)
        tools.write(folder / f"{name}.gz", packed)
        tools.write(folder / f"{name}.json", json.dumps(facts, indent=1).encode())
        _forget(target, name)
    found = _load(folder, name, "cache")
    assert found is not None
    return found


def build_gui(*, progress: Progress | None = None) -> Path:
    """Build the web GUI into the cache, unless it is there already; returns its zip.

    Raises:
        PyllamafileError: A tool is missing, or a step failed; the message names the log.
    """
    return gui.build(progress or tools.silent)


def prepare(*, progress: Progress | None = None) -> Path:
    """What every target takes: the tools, which are looked for, and llama.cpp's source.

    Raises:
        PyllamafileError: A tool is missing, or the source can't be had.
    """
    _programs()
    tools.package("zopfli")
    return llama_source(progress=progress)


# Runtimes


def _llama_version(compiled: Path) -> str:
    """What upstream's build calls itself, which is what the runtime says, too."""
    text = (compiled / "llama" / "src" / "llama-version.h").read_text()
    (version,) = re.findall(r'#define LLAMA_VERSION "(.+)"', text)
    return str(version)


def _key(target: Target) -> str:
    """A digest over everything that determines what a runtime becomes."""
    digest = hashlib.sha256()
    for part in (SDIST_SHA256, ZIG, *_options(target), str(_settings(target))):
        digest.update(part.encode() + b"\0")
    suffixes = {".cpp", ".h", ".txt", ".in", ".manifest"}
    sources = (path for path in HERE.iterdir() if path.suffix in suffixes)
    scripts = (HERE / f"{name}.py" for name in ("icon", "levels", "licenses"))
    for path in sorted([*sources, *scripts]):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def _load(folder: Path, name: str, origin: str) -> Runtime | None:
    path = folder / f"{name}.gz"
    try:
        facts = json.loads((folder / f"{name}.json").read_bytes())
        if path.stat().st_size != facts["packed_size"]:
            return None
        return Runtime(path=path, origin=origin, **{**facts, "levels": tuple(facts["levels"])})
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _forget(target: Target, name: str) -> None:
    """Remove a target's runtimes of other keys, unless somebody may still switch back."""
    for path in (cache() / "runtimes").glob(f"{target.name}-*"):
        if path.stem != name and time.time() - path.stat().st_mtime > FORGOTTEN:
            path.unlink()


def _squeezed(program: bytes) -> bytes:
    """A raw deflate stream that is 3 % smaller than zlib's best; it takes half a minute."""
    import zopfli.zlib  # type: ignore[import-untyped] # of the extra `runtimes`

    return bytes(zopfli.zlib.compress(program, numiterations=5)[2:-4])  # RFC 1950: head, Adler-32


def _options(target: Target) -> list[str]:
    """What the compiler is told about the target."""
    return ["-target", target.triple, f"-mcpu={target.base}"]


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
    }


def _programs() -> tuple[Path, Path, Path]:
    """zig, CMake and Ninja."""
    zig = tools.package("ziglang") / "zig"
    if (found := tools.version("ziglang")) != ZIG:
        raise PyllamafileError(
            f"ziglang is {found} here, and compiling takes {ZIG}",
            hint="pip install 'pyllamafile[runtimes]'",
        )
    return zig, tools.program("cmake"), tools.program("ninja")


def _toolchain(folder: Path, target: Target, zig: Path, source: Path) -> dict[str, Path]:
    """Make zig something that CMake can call: CMake's variable and a script for each."""
    # Paths of this machine would end up in assertion messages.
    hidden = [f"-ffile-prefix-map={path}=." for path in (source, HERE, zig.parent)]
    options = [*_options(target), *hidden]
    folder.mkdir(parents=True, exist_ok=True)
    # CMake asks a compiler who it is by linking a program, but an object will do, too.
    object_will_do = 'case "$*" in *CompilerId*) set -- -c "$@" ;; esac\n'
    return {
        "CMAKE_C_COMPILER": tools.script(folder / "zig-cc", zig, "cc", *options),
        "CMAKE_CXX_COMPILER": tools.script(
            folder / "zig-c++", zig, "c++", *options, before=object_will_do
        ),
        "CMAKE_AR": tools.script(folder / "zig-ar", zig, "ar"),
        "CMAKE_RANLIB": tools.script(folder / "zig-ranlib", zig, "ranlib"),
        "CMAKE_RC_COMPILER": tools.script(folder / "zig-rc", zig, "rc", "/:no-preprocess"),
        # For Darwin CMake insists on a tool that only libraries need.
        "CMAKE_INSTALL_NAME_TOOL": tools.script(folder / "install-name-tool", "true"),
    }


def build_folder(target: Target) -> Path:
    """Where a target is compiled; ``out`` in it is CMake's, and stays for the next time."""
    # CMake holds on to the paths that it began with, and sees no change in the compiler's options,
    # which are in a script.
    began = f"{SDIST_SHA256} {ZIG} {tools.package('ziglang')} {cache()} {HERE} {_options(target)}"
    key = hashlib.sha256(began.encode()).hexdigest()[:8]
    return cache() / "build" / f"{target.name}-{key}"


def _compile(
    target: Target, source: Path, jobs: int | None, tell: Progress
) -> tuple[bytes, dict[str, str]]:
    """The program, and the notices of what is linked into it by the names of the components."""
    zig, cmake, ninja = _programs()
    folder = build_folder(target)
    out = folder / "out"
    scripts = _toolchain(folder / "tools", target, zig, source)
    settings = {
        **_settings(target),
        **scripts,
        "CMAKE_MAKE_PROGRAM": ninja,
        "LLAMA_SOURCE": source,
        "PYTHON": sys.executable,
    }
    what = f"building the runtime for {target.name}"
    log = f"runtime-{target.name}"
    configure: list[str] = [str(cmake), "-S", str(HERE), "-B", str(out), "-G", "Ninja"]
    configure += [f"-D{name}={value}" for name, value in settings.items()]
    command = [str(ninja), "-C", str(out), "runtime"]
    command += ["-j", str(jobs)] if jobs else []

    def step(line: str) -> None:
        if match := re.match(r"\[(\d+)/(\d+)\]", line):
            tell(what, int(match[1]), int(match[2]))

    tell(what, 0, 0)
    with _libraries_compiling(scripts["CMAKE_CXX_COMPILER"], folder):
        tools.run(configure, log=log, what=what)
        tools.run(command, log=log, what=what, append=True, each_line=step)
    program = (out / "runtime").read_bytes()
    return program, licenses.notices(target, licenses.linked(ninja, out), source, zig.parent)


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
