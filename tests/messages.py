"""What a worker is told: the numbers are those of llama.cpp's ggml-rpc.cpp."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Final

ALLOCATE, BASE, FREE, CLEAR, SET_TENSOR, GET_TENSOR, COPY, GRAPH = 0, 3, 4, 5, 6, 8, 9, 10
MEMORY, INIT, SIZE, HELLO, RECOMPUTE, FILL = 11, 12, 13, 14, 16, 17
ADD: Final = 2  # GGML_OP_ADD
VIEW: Final = 37  # GGML_OP_VIEW
CUSTOM: Final = 92  # GGML_OP_MAP_CUSTOM1
COMPUTE: Final = 16  # GGML_TENSOR_FLAG_COMPUTE
TENSOR: Final = struct.Struct("<Q I Q 4I 4I I 16i i 10Q Q Q Q 64s i")


def tensor(
    id: int, buffer: int, data: int, *, ne: tuple[int, ...] = (4, 1, 1, 1),
    nb: tuple[int, ...] = (4, 16, 16, 16), op: int = 0, src: tuple[int, ...] = (), view: int = 0,
) -> bytes:  # fmt: skip
    """A tensor of 32-bit floats."""
    sources = (*src, *[0] * (10 - len(src)))
    return TENSOR.pack(
        id, 0, buffer, *ne, *nb, op, *[0] * 16, COMPUTE, *sources, view, 0, data, b"t", 0
    )


def graph(nodes: Sequence[int], tensors: Sequence[bytes]) -> bytes:
    """A graph to be computed."""
    return (
        struct.pack("<II", 0, len(nodes))
        + b"".join(struct.pack("<Q", node) for node in nodes)
        + struct.pack("<I", len(tensors))
        + b"".join(tensors)
    )


def conversations(folder: Path) -> None:
    """Write some as tests/fuzzing/messages.cpp reads them: 1 is the first buffer."""
    a, b = tensor(1, 1, 0), tensor(2, 1, 64)
    total = tensor(3, 1, 128, op=ADD, src=(1, 2))
    part = tensor(4, 1, 128, op=VIEW, src=(3,), view=3)
    some = struct.pack("<QQ", 0, 16)
    start = (ALLOCATE, struct.pack("<IQ", 0, 4096))
    ways = {
        "compute": [
            (SET_TENSOR, a + struct.pack("<BQ4f", 0, 0, 1, 2, 3, 4)),
            (SET_TENSOR, b + struct.pack("<BQ4f", 0, 0, 1, 2, 3, 4)),
            (GRAPH, graph([3, 4], [a, b, total, part])),
            (RECOMPUTE, struct.pack("<I", 0)),
            (GET_TENSOR, total + some),
        ],
        "chain": [(GRAPH, graph(range(3, 12), [a, b, *(
            tensor(n, 1, 64 * n, op=ADD, src=(n - 1, n - 2)) for n in range(3, 12)
        )]))],
        "buffers": [
            (ALLOCATE, struct.pack("<IQ", 0, 256)),
            (BASE, struct.pack("<Q", 2)),
            (CLEAR, struct.pack("<QB", 2, 7)),
            (COPY, a + tensor(2, 2, 32)),
            (FREE, struct.pack("<Q", 2)),
            (MEMORY, struct.pack("<I", 0)),
        ],
        "tensors": [
            (INIT, a),
            (SIZE, struct.pack("<I", 0) + total + a + b + bytes(8 * TENSOR.size)),
            (FILL, a + some + b"\7"),
            (7, a + some),  # SET_TENSOR_HASH
        ],
    }  # fmt: skip
    for name, messages in ways.items():
        parts = [
            struct.pack("<II", command, len(body)) + body + bytes(-len(body) % 4)
            for command, body in [start, *messages]
        ]
        (folder / name).write_bytes(b"".join(parts))
