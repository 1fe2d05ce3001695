#!/usr/bin/env python3
"""Products of weights with columns by each level's kernels, as prompts and writing make them: how
fast, how exact, and whether a column's depends on the others.

The program is products.cpp beside this, linked to the kernels of this machine's runtime, which is
compiled first if need be. ``--beside`` is the folder of another compiled runtime (``out`` in its
folder below the cache's ``build``): its kernels take turns with these, and ratios are printed.

    scripts/bench/products.py [--types q4_K,...] [--levels v3,...] [--columns 1,8,512]
        [--rows N] [--depth N] [--milliseconds N] [--rounds N] [--threads N]
        [--beside FOLDER]
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent.parent))

import in_venv

in_venv.ensure("runtimes", "pyllamafile")

from kernels import built  # noqa: E402

TYPES = "q8_0,q4_0,q4_1,q5_0,q5_1,iq4_nl,mxfp4,q2_K,q3_K,q4_K,q5_K,q6_K,iq4_xs,"
TYPES += "iq3_s,iq3_xxs,iq2_s,iq2_xs,iq2_xxs,iq1_m,iq1_s"


@dataclass(frozen=True)
class Line:
    """What products.cpp says of weights in one form: as in a file, of an expert, or repacked."""

    form: str
    alone: bool  # each column's product has the bits that it has alone
    error: float  # relative to columns that aren't rounded
    microseconds: dict[int, float]  # by how many columns there are


def measured(program: Path, level: str, kind: str, options: argparse.Namespace) -> Iterator[Line]:
    """One round of one type by one level."""
    sizes = [str(options.rows), str(options.depth), options.columns, str(options.milliseconds)]
    command = [program, level, kind, *sizes, str(options.threads)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(map(str, command))}: {done.stderr}")
    for line in done.stdout.splitlines():
        _, form, alone, error, *times = line.split()
        pairs = (time.split("=") for time in times)
        yield Line(form, alone == "alone", float(error), {int(n): float(t) for n, t in pairs})


def best(rounds: list[list[Line]], form: int, columns: int) -> float:
    """The least microseconds of all rounds."""
    return min(lines[form].microseconds[columns] for lines in rounds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--types", default=TYPES)
    parser.add_argument("--levels", help="this processor's, but for the lowest, if not given")
    parser.add_argument("--columns", default="1,4,8,45,512")
    parser.add_argument("--rows", type=int, default=4096)
    parser.add_argument("--depth", type=int, default=3072)
    parser.add_argument("--milliseconds", type=int, default=200, help="at the least, of each")
    parser.add_argument("--rounds", type=int, default=3, help="the least time of all is printed")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--beside", type=Path, help="the folder of another compiled runtime")
    options = parser.parse_args()
    with built(Path(__file__).with_suffix(".cpp"), options.beside) as kernels:
        levels = options.levels.split(",") if options.levels else kernels.levels[1:]
        for level in levels:
            suffix = kernels.suffix(level)
            for kind in options.types.split(","):
                turns = [
                    [list(measured(program, suffix, kind, options)) for program in kernels.programs]
                    for _ in range(options.rounds)
                ]
                report(level, kind, [list(rounds) for rounds in zip(*turns, strict=True)], options)


def report(
    level: str, kind: str, rounds: list[list[list[Line]]], options: argparse.Namespace
) -> None:
    """A line for each form: 10^9 products a second, and the ratio to the other program's."""
    ours, *others = rounds
    for form, line in enumerate(ours[0]):
        cells = []
        for columns in line.microseconds:
            took = best(ours, form, columns)
            speed = options.rows * options.depth * columns / took / 1000
            cell = f"{columns}: {speed:.0f}"
            if others:
                cell += f" x{best(others[0], form, columns) / took:.2f}"
            cells.append(cell)
        same = "alone" if all(lines[form].alone for lines in ours) else "apart"
        head = f"{level:10} {kind:7} {line.form:8} {same} {line.error:.5f}"
        print(head, "  ".join(f"{cell:14}" for cell in cells).rstrip(), flush=True)


if __name__ == "__main__":
    main()
