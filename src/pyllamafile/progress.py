"""How whoever takes long says how far it is: one protocol for all of the package."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Kind = Literal["bytes", "steps", "waiting"]


@dataclass(frozen=True)
class Step:
    """How far something is.

    Attributes:
        kind: ``bytes`` pass at an even speed. ``steps`` each take another time. Of ``waiting``
            nobody knows how long it takes.
        what: What is being done, for people.
        done: How much of it is done.
        total: How much there is; 0 for ``waiting``.
    """

    kind: Kind
    what: str
    done: int = 0
    total: int = 0


Progress = Callable[[Step], None]
"""Called with every `Step`, often: it should be quick."""


def silent(step: Step) -> None:
    """The progress of somebody who doesn't look."""
