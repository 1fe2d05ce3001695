"""What a state says of itself."""

from __future__ import annotations

import struct

import pytest

from pyllamafile import DamagedError
from pyllamafile.state import State

CONDITIONS = b"weights 00\nkeys q8_0\n\n\n"
TOKENS, MEMORY = 3, 40


def state() -> bytes:
    head = struct.pack("<8sQ", b"llamSTA1", len(CONDITIONS)) + CONDITIONS
    slot = struct.pack("<8sQQQ", b"llamSLT2", 0, TOKENS, MEMORY)
    return head + slot + bytes(4 * TOKENS + MEMORY)


def test_it_is_read():
    good = state()
    read = State.of(good, len(good))
    assert read == State(TOKENS, len(good), {"weights": "00", "keys": "q8_0"})
    assert State.of(good[:-MEMORY], len(good)) == read  # the rest is the model's


def test_what_is_none_is_refused(rng):
    good = state()
    for size in range(len(good) - 4 * TOKENS - MEMORY):
        with pytest.raises(DamagedError):
            State.of(good[:size], len(good))
    for size in (len(good) - 1, len(good) + 1, 0, 1 << 62):
        with pytest.raises(DamagedError):
            State.of(good, size)
    lengths = (8, 16 + len(CONDITIONS) + 16, 16 + len(CONDITIONS) + 24)
    for at in (0, *lengths, 16 + len(CONDITIONS)):
        for value in (b"\xff" * 8, bytes(8), rng.randbytes(8)):
            with pytest.raises(DamagedError):
                State.of(good[:at] + value + good[at + 8 :], len(good))
    assert State.of(good.replace(b"keys", b"k\xc3\xa4y"), len(good)).conditions["k\xe4y"] == "q8_0"
