"""How much memory a machine has, and how much of it this process may take."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Memory:
    """Memory, in bytes; None where nothing says how much it is.

    Attributes:
        total: What the machine has.
        group: What the control groups of this process leave of it, on Linux.
    """

    total: int | None
    group: int | None

    @property
    def usable(self) -> int | None:
        """What this process may take."""
        known = [size for size in (self.total, self.group) if size is not None]
        return min(known, default=None)


def memory(root: Path = Path("/")) -> Memory:
    """The memory of this machine.

    Args:
        root: Where ``proc`` and ``sys`` are.
    """
    return Memory(_total(root), min(_group_limits(root), default=None))


def _total(root: Path) -> int | None:
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in (root / "proc/meminfo").read_text().splitlines():
            if line.startswith("MemTotal:"):
                return int(line.split()[1]) * 1024
    if root == Path("/"):
        with contextlib.suppress(OSError, ValueError):  # a name that the system doesn't know
            return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return None


def _group_limits(root: Path) -> Iterator[int]:
    """The limits of the groups that this process is in, and of those around them.

    In a container its own group is often at the root, whatever it is called outside.
    """
    groups = root / "sys/fs/cgroup"
    mine: list[tuple[str, str]] = []
    with contextlib.suppress(OSError, UnicodeDecodeError):
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)  # man 7 cgroups
            mine.append((controllers, path))
    for name, controller, file in (
        ("", "", "memory.max"),
        ("memory", "memory", "memory.limit_in_bytes"),
    ):
        paths = [path for given, path in mine if controller in given.split(",")]
        for folder in {"", *(above for path in paths for above in _above(path))}:
            with contextlib.suppress(OSError, ValueError):  # no such limit is the word max
                yield int((groups / name / folder / file).read_text())


def _above(path: str) -> Iterator[str]:
    """A path below the root, and all that it is in."""
    parts = path.strip("/").split("/")
    return ("/".join(parts[:count]) for count in range(1, len(parts) + 1))
