"""The machine that measures: which it is, what it can do at the most, and who else works on it."""

from __future__ import annotations

import math
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from pyllamafile.targets import Target, host

T = TypeVar("T")


def this_target() -> Target:
    """The target whose programs run here.

    Raises:
        SystemExit: There is none.
    """
    here = host()
    if here is None:
        raise SystemExit("no target is like this machine")
    return here


def model_name() -> str:
    """What the processor calls itself."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":")[1].strip()
    return "some processor"


def processors() -> tuple[float, float]:
    """Seconds that all processors have worked so far, and that they had (proc_stat(5))."""
    ticks = [int(word) for word in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    idle = ticks[3] + ticks[4]  # what waits for a disk is idle, too
    per_second = os.sysconf("SC_CLK_TCK")
    return (sum(ticks) - idle) / per_second, sum(ticks) / per_second


def aside(act: Callable[..., T], *arguments: object) -> T:
    """Act in a process of its own: a child's peak of memory begins with that of its parent."""
    with ProcessPoolExecutor(1) as pool:
        return pool.submit(act, *arguments).result()


def bandwidth(threads: int) -> float:
    """Bytes per second that this machine reads from memory, with all threads."""
    import numpy as np

    data = np.ones(1 << 27, dtype=np.uint64)  # 1 GiB
    parts = np.array_split(data, threads)
    with ThreadPoolExecutor(threads) as pool:
        best = math.inf
        for _ in range(5):
            start = time.perf_counter()
            list(pool.map(np.max, parts))
            best = min(best, time.perf_counter() - start)
    return data.nbytes / best


def arithmetic(threads: int, flags: Sequence[str]) -> tuple[str, float]:
    """The best instruction for products, and how many products a second it makes (limits.c).

    Args:
        threads: That compute.
        flags: The compiler's, for a level of the kernels.
    """
    source = Path(__file__).with_name("limits.c")
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "limits"
        compiler = [
            sys.executable,
            "-m",
            "ziglang",
            "cc",
            "-target",
            f"{os.uname().machine}-linux-musl",
        ]
        command = [*compiler, "-O2", *flags, source, "-lpthread", "-o", program]
        subprocess.run(command, check=True)
        said = subprocess.run([program, str(threads)], check=True, capture_output=True, text=True)
    name, rate = said.stdout.splitlines()
    return name, float(rate)


class Neighbours:
    """How much of the processors programs take that this one didn't start."""

    def __init__(self) -> None:
        self._begun = self._now()

    @staticmethod
    def _now() -> tuple[float, float, float]:
        """Seconds that all processors worked, that they could have, and that our programs took."""
        who = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
        usages = [resource.getrusage(each) for each in who]
        own = sum(usage.ru_utime + usage.ru_stime for usage in usages)
        return (*processors(), own)

    def share(self) -> float:
        """Of all processors' time since this was made; 0 to 1."""
        worked, possible, own = (b - a for a, b in zip(self._begun, self._now(), strict=True))
        return min(max((worked - own) / possible, 0.0), 1.0) if possible else 0.0
