"""The small model in every file, by which `--prove` sees whether the file computes what it should.

It is made here, of numbers that are the same on every machine: exact arithmetic on what Python's
generator of random numbers yields.
"""

from __future__ import annotations

import random
import struct
from functools import lru_cache
from typing import Final

PROMPT: Final = "The quick brown fox"
"""What it is given."""

ANSWER: Final = "0pa8Xf|#+y'*,2@,_8u/^0y4"
"""What it goes on with at temperature 0: recorded of the lowest level on amd64."""

_WIDTH, _INNER, _HEADS, _LAYERS, _CONTEXT = 64, 128, 4, 2, 2048
_SEED = 14  # one whose tokens are the same by weights in Q8_0: none is a matter of rounding
_SPREAD = 0.45
_BLOCK = 32  # what data of tensors are aligned to, in bytes
_LETTERS = [chr(code) for code in range(0x21, 0x7F)]
_CONTROLS = ["<unk>", "<s>", "</s>"]
_BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
_SPACE = "\u2581"
_TOKENS = [*_CONTROLS, *_BYTES, _SPACE, *_LETTERS]
_UNSAID = len(_CONTROLS) + len(_BYTES)  # of the first so many tokens it never says one

_U32, _F32, _BOOL, _STRING, _ARRAY, _I32 = 4, 6, 7, 8, 9, 5  # gguf.h, enum gguf_type
_TYPE_F32, _TYPE_F16 = 0, 1  # ggml.h, enum ggml_type


@lru_cache
def model() -> bytes:
    """The model, as the bytes of a GGUF."""
    values = _metadata()
    tensors = _tensors()
    head = struct.pack("<4sIQQ", b"GGUF", 3, len(tensors), len(values))
    head += b"".join(_text(key) + struct.pack("<I", kind) + data for key, kind, data in values)
    body = b""
    for name, shape, data in tensors:
        kind = _TYPE_F32 if len(shape) == 1 else _TYPE_F16
        head += _text(name) + struct.pack("<I", len(shape))
        head += struct.pack(f"<{len(shape)}QIQ", *shape, kind, len(body))
        body += _padded(data)
    return _padded(head) + body


def _metadata() -> list[tuple[str, int, bytes]]:
    kinds = [2, 3, 3, *[6] * 256, *[1] * (len(_LETTERS) + 1)]  # llama.h, enum llama_token_type
    numbers = {
        "context_length": _CONTEXT,
        "embedding_length": _WIDTH,
        "block_count": _LAYERS,
        "feed_forward_length": _INNER,
        "attention.head_count": _HEADS,
        "attention.head_count_kv": _HEADS // 2,
        "rope.dimension_count": _WIDTH // _HEADS,
        "vocab_size": len(_TOKENS),
    }
    return [
        ("general.architecture", _STRING, _text("llama")),
        ("general.name", _STRING, _text("proof")),
        ("general.file_type", _U32, struct.pack("<I", 1)),
        *((f"llama.{key}", _U32, struct.pack("<I", value)) for key, value in numbers.items()),
        ("llama.attention.layer_norm_rms_epsilon", _F32, struct.pack("<f", 1e-5)),
        ("tokenizer.ggml.model", _STRING, _text("llama")),
        ("tokenizer.ggml.tokens", _ARRAY, _array(_STRING, [_text(token) for token in _TOKENS])),
        ("tokenizer.ggml.scores", _ARRAY, _array(_F32, [struct.pack("<f", 0)] * len(_TOKENS))),
        ("tokenizer.ggml.token_type", _ARRAY, _array(_I32, [struct.pack("<i", k) for k in kinds])),
        ("tokenizer.ggml.bos_token_id", _U32, struct.pack("<I", 1)),
        ("tokenizer.ggml.eos_token_id", _U32, struct.pack("<I", 2)),
        ("tokenizer.ggml.add_space_prefix", _BOOL, b"\0"),
        ("prove.prompt", _STRING, _text(PROMPT)),
        ("prove.answer", _STRING, _text(ANSWER)),
    ]


def _tensors() -> list[tuple[str, tuple[int, ...], bytes]]:
    """Names, shapes as GGUF has them (the length of a row first), and data."""
    numbers = random.Random(_SEED)
    shared = (_WIDTH, _WIDTH // 2)
    layers: dict[str, tuple[int, ...]] = {
        "attn_norm": (_WIDTH,),
        "attn_q": (_WIDTH, _WIDTH),
        "attn_k": shared,
        "attn_v": shared,
        "attn_output": (_WIDTH, _WIDTH),
        "ffn_norm": (_WIDTH,),
        "ffn_gate": (_WIDTH, _INNER),
        "ffn_up": (_WIDTH, _INNER),
        "ffn_down": (_INNER, _WIDTH),
    }
    words = (_WIDTH, len(_TOKENS))
    shapes = {"token_embd": words, "output_norm": (_WIDTH,), "output": words} | {
        f"blk.{layer}.{name}": shape for layer in range(_LAYERS) for name, shape in layers.items()
    }
    out = []
    for name, shape in shapes.items():
        if len(shape) == 1:
            data = struct.pack("<f", 1) * shape[0]
        else:
            count = shape[0] * shape[1]
            row = [(numbers.random() - 0.5) * _SPREAD for _ in range(count)]
            if name == "output":
                row[: _UNSAID * _WIDTH] = [0.0] * (_UNSAID * _WIDTH)
            data = struct.pack(f"<{count}e", *row)
        out.append((f"{name}.weight", shape, data))
    return out


def _text(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _array(kind: int, items: list[bytes]) -> bytes:
    return struct.pack("<IQ", kind, len(items)) + b"".join(items)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % _BLOCK)
