"""Native runtimes: where the built ones are, and how to get one.

A runtime is one program made of llama.cpp, whose source comes with the sdist of
llama-cpp-python, and of the C++ in ``runtime``. zig compiles it, CMake and Ninja drive zig, npm
builds the web GUI: all that is in ``building``. What was built is kept in the user's cache under a
key over everything that determines it, so only the first time takes minutes; a wheel brings it
along.
"""

from __future__ import annotations

import hashlib
import json
import time
from pathlib import Path

from pyllamafile.launcher import pack
from pyllamafile.native.building import driver, gui, tools
from pyllamafile.native.building.driver import build_folder
from pyllamafile.native.building.source import LLAMA_COMMIT, SDIST_SHA256, llama_source
from pyllamafile.native.building.tools import cache
from pyllamafile.progress import Progress, Step, silent
from pyllamafile.runtimes import Runtime
from pyllamafile.targets import TARGETS, Target

__all__ = [
    "LLAMA_COMMIT",
    "PREBUILT",
    "SDIST_SHA256",
    "available",
    "build",
    "build_folder",
    "build_gui",
    "cache",
    "find",
    "find_gui",
    "llama_source",
    "prepare",
]

FORGOTTEN = 30 * 86400  # seconds until a runtime that nothing asks for any more is removed

# Runtimes that came with the package, so that nobody has to compile.
PREBUILT = Path(__file__).parent / "prebuilt"


def available() -> list[Runtime]:
    """Every runtime at hand, in the table's order."""
    return [runtime for target in TARGETS.values() if (runtime := find(target))]


def find(target: Target) -> Runtime | None:
    """The runtime for a target: the packaged one, else the cached one, else None."""
    packaged = _load(PREBUILT, target.name, "package")
    return packaged or _load(cache() / "runtimes", f"{target.name}-{driver.key(target)}", "cache")


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
    tell = progress or silent
    folder = cache() / "runtimes"
    name = f"{target.name}-{driver.key(target)}"
    if found := _load(folder, name, "cache"):
        return found  # without waiting for whoever builds another one
    with tools.lock(f"runtime-{target.name}", f"builds {target.name}", tell):
        if found := _load(folder, name, "cache"):
            return found
        source = prepare(progress=tell)
        program, notices = driver.compile_runtime(target, source, jobs, tell)
        tell(Step("waiting", f"packing the runtime for {target.name}"))
        packed = pack(program, _squeezed(program))
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
    return gui.build(progress or silent)


def prepare(*, progress: Progress | None = None) -> Path:
    """What every target takes: the tools, which are looked for, and llama.cpp's source.

    Raises:
        PyllamafileError: A tool is missing, or the source can't be had.
    """
    driver.programs()
    tools.package("deflate")
    return llama_source(progress=progress)


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
    """A raw deflate stream that is 3 % smaller than zlib's best."""
    import deflate  # of the extra `runtimes`

    return bytes(deflate.deflate_compress(program, 12))
