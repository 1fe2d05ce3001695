"""What a program with ggml-vulkan takes beside what every runtime takes."""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path

from pyllamafile.native.building import debian, shaders, tools
from pyllamafile.native.building.debian import Package
from pyllamafile.progress import Progress, Step

BUILDING = Path(__file__).parent
FOLDER = BUILDING.parent / "vulkan"

# No package index is known to have vulkan.hpp of 1.4.309 or newer.
HEADERS = (
    Package(
        "libvulkan-dev",
        "1.4.309.0-1",
        "8d329d465e16168afff58b1bd0dd6db46aac2cc3f56054a481b25a04e90b345a",
    ),
    Package(
        "spirv-headers",
        "1.6.1+1.4.309.0-1",
        "dc18db866d63680351c40ac6b6bece34cb52da64a7799ce1cc4f16f6bff4d064",
    ),
)


def sources() -> dict[str, Path]:
    """What of ours determines such a program beside the runtime's own files, by name."""
    files = {f"../vulkan/{path.name}": path for path in FOLDER.iterdir() if path.is_file()}
    made = (shaders.FOLDER / "CMakeLists.txt", Path(shaders.__file__), Path(__file__))
    return {**files, **{f"../{path.parent.name}/{path.name}": path for path in made}}


def settings(programs: shaders.Programs, tell: Progress) -> dict[str, Path]:
    """CMake's variables for such a program.

    Raises:
        PyllamafileError: The headers can't be had, or the tables of shaders can't be made.
    """
    return {
        "CMAKE_PROJECT_runtime_INCLUDE": FOLDER / "project.cmake",
        "VULKAN": FOLDER,
        "VULKAN_HEADERS": headers(tell) / "usr" / "include",
        "SHADER_TABLES": shaders.tables(programs, tell),
    }


def headers(tell: Progress) -> Path:
    """The folder with the packages of Vulkan's headers in it, fetched if need be.

    Raises:
        PyllamafileError: They can't be fetched, or are others.
    """
    pins = hashlib.sha256(repr(HEADERS).encode()).hexdigest()[:12]
    folder = tools.cache() / "source" / f"vulkan-headers-{HEADERS[0].version}-{pins}"
    if folder.is_dir():
        return folder
    with tools.lock("source", "fetches Vulkan's headers", tell):
        if not folder.is_dir():
            tell(Step("waiting", "fetching Vulkan's headers"))
            parent = tools.folder("source")
            with tempfile.TemporaryDirectory(prefix="source-", dir=parent) as scratch:
                packages = debian.pinned(Path(scratch), HEADERS, "Vulkan's headers")
                debian.unpack(packages, Path(scratch) / "unpacked").rename(folder)
    return folder
