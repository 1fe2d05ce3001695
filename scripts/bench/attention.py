#!/usr/bin/env python3
"""Attention by each level's kernels over many positions, for one token, a few and many: how fast,
how exact, and whether what comes out for a token depends on the others.

The program is attention.cpp beside this, linked to the kernels of this machine's runtime, which is
compiled first if need be. ``--beside`` is the folder of another compiled runtime (``out`` in its
folder below the cache's ``build``): its kernels take turns with these, and ratios are printed.

    scripts/bench/attention.py [--shapes smollm2,phi3,...] [--types f16,...] [--levels v3,...]
        [--positions 2000,4000] [--tokens 1,8,64,512] [--threads N] [--sequences N] [--window N]
        [--bias X] [--cap X] [--sinks] [--milliseconds N] [--rounds N] [--beside FOLDER]
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from dataclasses import dataclass
from itertools import product
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent.parent))

import in_venv

in_venv.ensure("runtimes", "pyllamafile")

from kernels import built  # noqa: E402

# Numbers of a key and of a value, heads, and those that keys and values are made for.
SHAPES = {
    "smollm2": (64, 64, 9, 3),
    "llama3": (64, 64, 32, 8),
    "phi3": (96, 96, 32, 32),
    "qwen2": (128, 128, 12, 2),
    "gemma3": (256, 256, 4, 1),
}


@dataclass(frozen=True)
class Line:
    """What attention.cpp says."""

    alone: bool  # every token gets the bits that it gets by itself
    error: float  # relative to 64-bit numbers
    microseconds: dict[int, float]  # by how many tokens there are


def measured(
    program: Path, level: str, kind: str, shape: str, positions: str, options: argparse.Namespace
) -> Line:
    """One round of one case by one level."""
    sizes = shape.split("x") if "x" in shape else [str(size) for size in SHAPES[shape]]
    command = [program, level, kind, *sizes, positions, options.tokens, str(options.threads)]
    command += [str(options.milliseconds), str(options.sequences), str(options.window)]
    command += [str(options.bias), str(options.cap), str(int(options.sinks))]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(map(str, command))}: {done.stderr or done.returncode}")
    alone, error, *times = done.stdout.split()
    pairs = (time.split("=") for time in times)
    return Line(alone == "alone", float(error), {int(n): float(took) for n, took in pairs})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--shapes", default=",".join(SHAPES), help="or sizes, such as 64x64x9x3")
    parser.add_argument("--types", default="f16", help="of keys and values")
    parser.add_argument("--levels", help="this processor's, if not given")
    parser.add_argument("--positions", default="2000,4000")
    parser.add_argument("--tokens", default="1,8,64,512", help="at once")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--sequences", type=int, default=1, help="in the cache")
    parser.add_argument("--window", type=int, default=0, help="positions that a token sees; 0: all")
    parser.add_argument("--bias", type=float, default=0, help="ALiBi's")
    parser.add_argument("--cap", type=float, default=0, help="of scores")
    parser.add_argument("--sinks", action="store_true")
    parser.add_argument("--milliseconds", type=int, default=200, help="at the least, of each")
    parser.add_argument("--rounds", type=int, default=3, help="the least time of all is printed")
    parser.add_argument("--beside", type=Path, help="the folder of another compiled runtime")
    options = parser.parse_args()
    with built(Path(__file__).with_suffix(".cpp"), options.beside) as kernels:
        levels = options.levels.split(",") if options.levels else kernels.whole
        cases = (levels, options.types, options.shapes, options.positions)
        split = (case.split(",") if isinstance(case, str) else case for case in cases)
        for level, kind, shape, positions in product(*split):
            suffix = kernels.suffix(level)
            turns = [
                [
                    measured(program, suffix, kind, shape, positions, options)
                    for program in kernels.programs
                ]
                for _ in range(options.rounds)
            ]
            ours, *others = zip(*turns, strict=True)
            cells = []
            for tokens in ours[0].microseconds:
                took = min(line.microseconds[tokens] for line in ours)
                cell = f"{tokens}: {took:.0f}"
                if others:
                    cell += f" x{min(line.microseconds[tokens] for line in others[0]) / took:.2f}"
                cells.append(cell)
            same = "alone" if all(line.alone for line in ours) else "apart"
            head = f"{level:7} {kind:5} {shape:12} {positions:>5} {same} {ours[0].error:.7f}"
            print(head, "  ".join(f"{cell:14}" for cell in cells).rstrip(), flush=True)


if __name__ == "__main__":
    main()
