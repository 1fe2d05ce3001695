"""Programs that are linked to the kernels of this machine's runtime, to measure them one by one."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from machine import this_target

from pyllamafile import native
from pyllamafile.native.building import driver
from pyllamafile.progress import silent
from pyllamafile.targets import Target


@dataclass(frozen=True)
class Kernels:
    """A program with the kernels, and the same with others beside it.

    Attributes:
        target: This machine's.
        programs: One, or two.
        levels: That this processor has, the lowest first.
    """

    target: Target
    programs: list[Path]
    levels: list[str]

    @property
    def whole(self) -> list[str]:
        """Those of the levels that have all kernels, and not only some."""
        whole = {level.name for level in self.target.levels if not level.sources}
        return [level for level in self.levels if level in whole]

    def suffix(self, level: str) -> str:
        """What the names of a level's functions end in."""
        return "" if level == self.target.levels[0].name else f"__{level}"


@contextmanager
def built(source: Path, beside: Path | None) -> Iterator[Kernels]:
    """The program, which is gone afterwards; the runtime is compiled first if need be.

    Args:
        source: Of the program.
        beside: ``out`` in the folder of another compiled runtime, if there are two.
    """
    target = this_target()
    out = native.build_folder(target) / "out"
    driver.compile_runtime(target, native.llama_source(), None, silent)
    with tempfile.TemporaryDirectory() as name:
        programs = [linked(source, target, out, Path(name))]
        if beside:
            other = Path(name, "other")
            other.mkdir()
            programs.append(linked(source, target, beside, other))
        yield Kernels(target, programs, here(out / "runtime"))


def linked(source: Path, target: Target, out: Path, folder: Path) -> Path:
    """A program, linked to the kernels in the folder in which CMake compiled a runtime."""
    levels = ["", *(f"__{level.name}" for level in target.levels[1:])]
    (folder / "levels.inc").write_text("".join(f"LEVEL({suffix})\n" for suffix in levels))
    program = folder / source.stem
    upstream = out / "llama" / "ggml" / "src"
    libraries = [upstream / "libggml-cpu.a", upstream / "libggml-base.a"]
    libraries += sorted(out.glob("z*-ggml-cpu-*.a"))
    compiler = native.build_folder(target) / "tools" / "zig-c++"
    include = native.llama_source() / "ggml" / "include"
    options = ["-O2", "-std=c++17", f"-I{folder}", f"-I{include}", "-o", program]
    subprocess.run([compiler, *options, source, *libraries, "-lpthread"], check=True)
    return program


def here(runtime: Path) -> list[str]:
    """The levels that this processor has, the lowest first."""
    asked = {**os.environ, "PYLLAMAFILE_CPU": "none"}
    done = subprocess.run([runtime, "--version"], capture_output=True, text=True, env=asked)
    return done.stderr.partition("it has: ")[2].split()
