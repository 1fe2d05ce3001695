"""Native runtimes: where the built ones are, and how to get one.

A runtime is one program made of llama.cpp, whose source comes with the sdist of
llama-cpp-python, and of the C++ in ``runtime``. zig compiles it, CMake and Ninja drive zig, npm
builds the web GUI: all that is in ``building``. What was built is kept in the user's cache under a
key over everything that determines it, so only the first time takes minutes; a wheel brings it
along.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from pyllamafile import difference
from pyllamafile.errors import PyllamafileError, RefusedError
from pyllamafile.launcher import pack, pe
from pyllamafile.native.building import driver, gui, shaders, tools
from pyllamafile.native.building.aside import Aside
from pyllamafile.native.building.driver import build_folder
from pyllamafile.native.building.source import LLAMA_COMMIT, SDIST_SHA256, llama_source
from pyllamafile.native.building.tools import cache
from pyllamafile.progress import Progress, Shares, Step, silent
from pyllamafile.runtimes import Runtime, Second
from pyllamafile.targets import TARGETS, WITH_GPU, Target, with_gpu

__all__ = [
    "LLAMA_COMMIT",
    "PREBUILT",
    "SDIST_SHA256",
    "available",
    "build",
    "build_all",
    "build_folder",
    "build_gui",
    "build_shaders",
    "cache",
    "check_tools",
    "find",
    "find_gui",
    "find_shaders",
    "llama_source",
    "prepare",
]

# Seconds of a processor that a runtime, the web GUI and the shaders take, about: shares of a bar.
COMPILE, PACK, GUI, SHADERS = 350.0, 5.0, 100.0, 420.0

FORGOTTEN = 30 * 86400  # seconds until a runtime that nothing asks for any more is removed

# Runtimes that came with the package, so that nobody has to compile.
PREBUILT = Path(__file__).parent / "prebuilt"


def available() -> list[Runtime]:
    """Every runtime at hand, in the table's order."""
    return [runtime for target in TARGETS.values() if (runtime := find(target))]


def find(target: Target) -> Runtime | None:
    """The runtime for a target: the packaged one, else the cached one, else None.

    It brings its second program, if that and all that it takes are at hand.

    Args:
        target: One of `TARGETS`, or one of `WITH_GPU`, which is found beside the plain one.
    """
    if target.name in WITH_GPU:
        plain = _find(TARGETS[target.plain])
        return _find(target, plain) if plain else None
    runtime = _find(target)
    second = with_gpu(target)
    if runtime and second and (second.gpu != "vulkan" or find_shaders()):
        found = _find(second, runtime)
        return replace(runtime, gpu=found) if isinstance(found, Second) else runtime
    return runtime


def _find(target: Target, plain: Runtime | None = None) -> Runtime | None:
    """One program; of a second one `plain` is the first."""
    if packaged := _load(PREBUILT, target.name, "package", plain):
        return packaged
    built = cache() / "runtimes"
    if not any(built.glob(f"{target.name}-*")):
        return None  # a key takes reading all that a runtime is made of
    return _load(built, _name(target, plain), "cache", plain)


def find_gui() -> Path | None:
    """The zip with the web GUI's files: the packaged one, else the cached one, else None."""
    for path in (PREBUILT / "ui.zip", gui.path()):
        if path.is_file():
            return path
    return None


def find_shaders() -> Path | None:
    """The shaders for GPUs, packed: the packaged ones, else the cached ones, else None."""
    for path in (PREBUILT / "shaders.zst", shaders.path()):
        if path.is_file():
            return path
    return None


def build(target: Target, *, jobs: int | None = None, progress: Progress | None = None) -> Runtime:
    """Compile the runtime of a target into the cache, unless it is there already.

    A second program is packed as what it has beside the plain one, which is compiled before it if
    it isn't at hand.

    Args:
        target: One of `TARGETS` or of `WITH_GPU`.
        jobs: How many compilers run at once; by default as many as there are processors.
        progress: Told about every step.

    Raises:
        PyllamafileError: A tool is missing, or a step failed; the message names the log.
    """
    tell = progress or silent
    plain = None
    if target.name in WITH_GPU:
        first = TARGETS[target.plain]
        plain = _find(first) or build(first, jobs=jobs, progress=progress)
    folder = cache() / "runtimes"
    name = _name(target, plain)
    if found := _load(folder, name, "cache", plain):
        return found  # without waiting for whoever builds another one
    with tools.lock(f"runtime-{target.plain}", f"builds {target.plain}", tell):
        if found := _load(folder, name, "cache", plain):
            return found
        source = prepare(progress=tell)
        shares = Shares(tell, {"compile": COMPILE, "pack": PACK}, numbered=False)
        program, notices = driver.compile_runtime(target, source, jobs, shares.of("compile"))
        shares.of("pack")(Step("waiting", f"packing the runtime for {target.name}"))
        packed = _beside(program, plain) if plain else pack(program, _squeezed(program))
        facts = {
            "target": target.name,
            "packed_size": len(packed),
            "packed_sha256": hashlib.sha256(packed).hexdigest(),
            "size": len(program),
            "sha256": hashlib.sha256(program).hexdigest(),
            "llama_cpp": f"{driver.llama_version(target)} ({LLAMA_COMMIT})",
            "levels": [level.name for level in target.levels],
            "licenses": notices,
        }
        folder.mkdir(parents=True, exist_ok=True)
        tools.write(folder / f"{name}{_ending(plain)}", packed)
        tools.write(folder / f"{name}.json", json.dumps(facts, indent=1).encode())
        _forget(target, name)
    found = _load(folder, name, "cache", plain)
    assert found is not None
    return found


def build_gui(*, progress: Progress | None = None) -> Path:
    """Build the web GUI into the cache, unless it is there already; returns its zip.

    Raises:
        PyllamafileError: A tool is missing, or a step failed; the message names the log.
    """
    return gui.build(progress or silent)


def build_shaders(*, jobs: int | None = None, progress: Progress | None = None) -> Path:
    """Compile the shaders for GPUs into the cache, unless they are there already.

    They take some seven minutes of a processor. What is compiled stays if that is ended.

    Args:
        jobs: How many compilers run at once; by default as many as there are processors.
        progress: Told about every step.

    Raises:
        PyllamafileError: A tool is missing, or a step failed; the message names the log.
    """
    return shaders.build(shaders.Programs(*driver.programs()), jobs, progress or silent)


def build_all(
    targets: Sequence[Target],
    *,
    gui: bool,
    shaders: bool = False,
    jobs: int | None = None,
    progress: Progress | None = None,
    finished: Callable[[Runtime | Path], None] | None = None,
    failed: Callable[[str, PyllamafileError], None] | None = None,
) -> None:
    """Compile runtimes one after another, and build the web GUI beside them.

    Args:
        targets: Which runtimes.
        gui: Whether the web GUI is built.
        shaders: Whether the shaders for GPUs are compiled, behind the runtimes.
        jobs: How many compilers run at once, as in `build`.
        progress: Told about every step.
        finished: Told about each runtime, and at last about the shaders and the web GUI's zip.
        failed: Told of the name and the error of what fails, which then doesn't stop the rest.

    Raises:
        PyllamafileError: A tool or the source is missing; or, without `failed`, a part failed.
    """
    tell = progress or silent
    prepare(progress=tell)
    pages, blob = "web GUI", "shaders"
    work = {target.name: COMPILE + PACK for target in targets}
    work.update({blob: SHADERS} if shaders else {})
    work.update({pages: GUI} if gui else {})
    shares = Shares(tell, work)
    with contextlib.ExitStack() as stack:
        beside = None
        if gui:
            work_aside = functools.partial(build_gui, progress=shares.of(pages))
            beside = stack.enter_context(Aside(work_aside, nice=bool(targets)))

        def attempt(name: str, part: Callable[[], Runtime | Path]) -> None:
            try:
                made = part()
            except PyllamafileError as error:
                if failed is None:
                    raise
                failed(name, error)
            else:
                shares.finished(name)
                if finished:
                    finished(made)

        def stopping(tell: Progress) -> Progress:
            """The same, until the other thread fails: whoever waits minutes should hear of it."""

            def told(step: Step) -> None:
                if beside and beside.error and failed is None:
                    raise beside.error
                tell(step)

            return told

        for target in targets:
            told = stopping(shares.of(target.name))
            attempt(target.name, functools.partial(build, target, jobs=jobs, progress=told))
        if shaders:
            told = stopping(shares.of(blob))
            attempt(blob, functools.partial(build_shaders, jobs=jobs, progress=told))
        if beside:
            attempt(pages, beside.result)


def check_tools() -> None:
    """Look for what every target takes.

    Raises:
        UnavailableError: A tool is missing.
    """
    driver.programs()
    tools.package("deflate")
    tools.package("zstandard")


def prepare(*, progress: Progress | None = None) -> Path:
    """Llama.cpp's source, which every target takes, once the tools are known to be there.

    Raises:
        PyllamafileError: A tool is missing, or the source can't be had.
    """
    check_tools()
    return llama_source(progress=progress)


def _name(target: Target, plain: Runtime | None) -> str:
    """What a program in the cache is called: its key covers the one that it is made of, too."""
    key = driver.key(target)
    if plain:
        parts = (key, plain.sha256, *difference.WAY, tools.version("zstandard"))
        key = hashlib.sha256(repr(parts).encode()).hexdigest()[:16]
    return f"{target.name}-{key}"


def _ending(plain: Runtime | None) -> str:
    """What a program's file ends in: a second one is no gzip member."""
    return ".zst" if plain else ".gz"


def _load(folder: Path, name: str, origin: str, plain: Runtime | None) -> Runtime | None:
    path = folder / f"{name}{_ending(plain)}"
    try:
        facts = json.loads((folder / f"{name}.json").read_bytes())
        if path.stat().st_size != facts["packed_size"]:
            return None
        facts["levels"] = tuple(facts["levels"])
        if plain:
            return Second(path=path, origin=origin, plain=plain, **facts)
        return Runtime(path=path, origin=origin, **facts)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _forget(target: Target, name: str) -> None:
    """Remove a target's runtimes of other keys, unless somebody may still switch back."""
    for path in (cache() / "runtimes").glob(f"{target.name}-*"):
        # linux-amd64-gnu, which begins like linux-amd64, is a target of its own
        own = path.stem.rpartition("-")[0] == target.name
        if own and path.stem != name and time.time() - path.stat().st_mtime > FORGOTTEN:
            path.unlink()


def _beside(program: bytes, plain: Runtime) -> bytes:
    """A second program as what it has beside the plain one, which may become the head of a file."""
    first = plain.program()
    if TARGETS[plain.target].os == "windows":
        head = pe.graft(first, b"")
        if difference.common(head) != difference.common(first):
            raise RefusedError(f"{plain.path}: becomes another program as the head of a file")
    return difference.made(program, first)


def _squeezed(program: bytes) -> bytes:
    """A raw deflate stream that is 3 % smaller than zlib's best."""
    import deflate  # of the extra `runtimes`

    return bytes(deflate.deflate_compress(program, 12))
