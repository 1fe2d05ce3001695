"""How a program can use GPUs: a row per way, which has what that takes in addition."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from pyllamafile.native.building import metal, vulkan
from pyllamafile.native.building.shaders import Programs
from pyllamafile.progress import Progress


@dataclass(frozen=True)
class Gpu:
    """What a program takes beside what every runtime takes.

    Attributes:
        sources: What determines it, and is ours, by name.
        settings: CMake's variables. What they name is fetched or made where it is missing. Whose
            software is in the folders among them, `licenses.ADDED` says.
    """

    sources: Callable[[], dict[str, Path]]
    settings: Callable[[Programs, Progress], dict[str, Path]]


# By the word of `Target.gpu`.
GPUS: Mapping[str, Gpu] = {
    "": Gpu(dict, lambda programs, tell: {}),
    "vulkan": Gpu(vulkan.sources, vulkan.settings),
    "metal": Gpu(metal.sources, metal.settings),
}
