"""How whoever takes long says how far it is: one protocol for all of the package."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

Kind = Literal["bytes", "share", "steps", "waiting", "notice"]


@dataclass(frozen=True)
class Step:
    """How far something is.

    Attributes:
        kind: How it is counted. ``bytes`` pass at an even speed. A ``share`` is one of everything
            that is to be done, and nearly as even. ``steps`` each take another time. Of
            ``waiting`` nobody knows how long it takes. A ``notice`` is no work: `what` is a
            sentence that people should read.
        what: What is being done, for people.
        done: How much of it is done.
        total: How much there is; 0 for ``waiting`` and ``notice``.
    """

    kind: Kind
    what: str
    done: int = 0
    total: int = 0


Progress = Callable[[Step], None]
"""Called with every `Step`, often: it should be quick."""


def silent(step: Step) -> None:
    """The progress of somebody who doesn't look."""


class Shares:
    """The progress of a whole with several parts, which may be done at once.

    Args:
        tell: Told about the whole, as a ``share``.
        parts: The work that each part takes, in a unit that they have in common.
        numbered: Whether people are told which of how many parts it is, where there are several.
    """

    TOTAL = 1 << 16
    """What the whole is counted as."""

    def __init__(
        self, tell: Progress, parts: Mapping[str, float], *, numbered: bool = True
    ) -> None:
        self._tell = tell
        self._parts = dict(parts)
        self._done = dict.fromkeys(parts, 0.0)
        self._numbered = numbered and len(self._parts) > 1
        self._lock = threading.Lock()

    def of(self, part: str) -> Progress:
        """The progress of one part. Steps of an unknown end leave the whole where it is."""
        number = [*self._parts].index(part) + 1
        place = f" ({number} of {len(self._parts)})" if self._numbered else ""

        def tell(step: Step) -> None:
            with self._lock:
                if step.kind == "notice":
                    self._tell(step)
                    return
                if step.total:
                    share = self._parts[part] * step.done / step.total
                    self._done[part] = max(self._done[part], share)
                whole = sum(self._done.values()) / sum(self._parts.values())
                self._tell(Step("share", step.what + place, int(whole * self.TOTAL), self.TOTAL))

        return tell

    def finished(self, part: str) -> None:
        """Count a part as done, however much of it was told."""
        with self._lock:
            self._done[part] = self._parts[part]
