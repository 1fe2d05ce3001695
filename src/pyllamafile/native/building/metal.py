"""The runtime with ggml-metal, for Macs: a trial, which no file has in it yet.

It takes nothing of Apple's. llama.cpp's sources are compiled with declarations of our own, linked
with stubs that name symbols and libraries, and carry the kernels as text, which macOS compiles.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from pyllamafile.errors import RefusedError
from pyllamafile.native.building import driver, tools
from pyllamafile.native.building.driver import Variant
from pyllamafile.progress import Progress
from pyllamafile.targets import Target

FOLDER = Path(__file__).parent.parent / "metal"
SDK = FOLDER / "sdk"  # in place of Apple's

VARIANT = Variant(
    "metal",
    {"CMAKE_PROJECT_runtime_INCLUDE": FOLDER / "project.cmake", "METAL_SDK": SDK},
    FOLDER,
)


def path(target: Target) -> Path:
    """Where such a program is kept, whether it is there or not."""
    digest = hashlib.sha256(driver.key(target).encode())
    for file in sorted(path for path in FOLDER.rglob("*") if path.is_file()):
        digest.update(file.relative_to(FOLDER).as_posix().encode() + b"\0" + file.read_bytes())
    return tools.cache() / "metal" / f"{target.name}-{digest.hexdigest()[:16]}"


def build(target: Target, source: Path, jobs: int | None, tell: Progress) -> Path:
    """Compile such a program, unless it is in the cache already.

    Args:
        target: One of macOS.
        source: llama.cpp's folder.
        jobs: How many compilers run at once; None for as many as there are processors.
        tell: Told about every step.

    Raises:
        PyllamafileError: The target has no Metal, a tool is missing, or a step failed.
    """
    if target.os != "macos":
        raise RefusedError(f"{target.name} has no Metal: macOS alone has")
    program = path(target)
    with tools.lock(f"runtime-{target.name}-metal", f"builds {target.name} with Metal", tell):
        if not program.is_file():
            made, _ = driver.compile_runtime(target, source, jobs, tell, VARIANT)
            program.parent.mkdir(parents=True, exist_ok=True)
            tools.write(program, made)
    return program
