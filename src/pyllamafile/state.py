"""What a model remembers of what a file has read (launcher/FORMAT.md, section 12)."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from pyllamafile.errors import DamagedError

MOST: Final = 2 << 30
"""Bytes that a state may have: a runtime reads no more."""

FRONT: Final = 1 << 20
"""Bytes of a state in which everything is that `State.of` reads; what else follows is larger."""

LEAST_TEXT: Final = 256
"""Bytes of text, and tokens of it, that are worth a state: a runtime makes none for less."""

CERTAIN: Final = 4096
"""Bytes of text that have so many tokens in any case."""

TYPES: Final = ("f16", "q8_0", "q4_0")
"""What keys and values are kept as, from the most exact on."""

_MAGIC: Final = b"llamSTA1"
_SLOT: Final = b"llamSLT2"
_HEAD = struct.Struct("<8sQ")  # magic, bytes of the conditions
_OF_SLOT = struct.Struct("<8sQQQ")  # magic, sum, tokens, bytes of memory


@dataclass(frozen=True)
class State:
    """What a state says of itself.

    Attributes:
        tokens: How many tokens it is of.
        size: Its length in bytes.
        conditions: What it was made with: name and value.
    """

    tokens: int
    size: int
    conditions: Mapping[str, str]

    @classmethod
    def of(cls, front: bytes, size: int) -> State:
        """Read it.

        Args:
            front: The first bytes, `FRONT` at most.
            size: How many there are.

        Raises:
            DamagedError: It is no state.
        """
        try:
            magic, length = _HEAD.unpack_from(front)
            lines = front[_HEAD.size : _HEAD.size + length].decode()
            slot, _, tokens, memory = _OF_SLOT.unpack_from(front, _HEAD.size + length)
        except (struct.error, UnicodeDecodeError, OverflowError) as error:
            raise DamagedError("is no state") from error
        whole = _HEAD.size + length + _OF_SLOT.size + 4 * tokens + memory
        if magic != _MAGIC or slot != _SLOT or whole != size:
            raise DamagedError("is no state, or is cut off")
        pairs = (line.partition(" ") for line in lines.splitlines() if line)
        return cls(tokens, size, {name: value for name, _, value in pairs})
