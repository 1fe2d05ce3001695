"""Facts about a model, read from the header of its GGUF file.

The header is walked through a window on the file: what is not asked for is skipped, so a
vocabulary of 150,000 tokens costs milliseconds. (In a memory map it would cost no more, but the
whole program, if somebody else shortens the file.) Nothing in the file is believed before it is
checked, and what llama.cpp's own loader would refuse is refused here, before gigabytes are copied.

Where a fact about the format comes from: "GGUF" is the specification in ggml's docs/gguf.md,
"gguf.cpp" is llama.cpp's loader (ggml/src/gguf.cpp).
"""

from __future__ import annotations

import functools
import re
import stat
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import BinaryIO, Final, Literal, NamedTuple, TypeAlias

from pyllamafile.errors import AccessError, DamagedError, NotFoundError, RefusedError


class Array(NamedTuple):
    """An array in the metadata; `Weights.marks` and `Weights.numbers` have what was kept of it.

    Attributes:
        type: The type of its elements, for example ``string`` or ``float32``.
        length: The number of its elements.
    """

    type: str
    length: int


Kind: TypeAlias = Literal["model", "adapter", "projector"]
"""What a GGUF is: to talk with, or to go with such a one."""

KINDS: Final[Mapping[Kind, str]] = {
    "model": "a model",
    "adapter": "a LoRA adapter",
    "projector": "a projector",
}
"""What people call each."""

Value: TypeAlias = int | float | bool | str | Array


class TensorType(NamedTuple):
    """How ggml stores the elements of a tensor.

    Attributes:
        name: ggml's name, for example ``Q4_1``.
        elements: The number of elements in a block.
        bytes: The size of a block in bytes.
    """

    name: str
    elements: int
    bytes: int


# ggml.h, `enum ggml_type`. The numbers that are left out were removed from the format.
TENSOR_TYPES: Final[Mapping[int, TensorType]] = {
    0: TensorType("F32", 1, 4),
    1: TensorType("F16", 1, 2),
    2: TensorType("Q4_0", 32, 18),
    3: TensorType("Q4_1", 32, 20),
    6: TensorType("Q5_0", 32, 22),
    7: TensorType("Q5_1", 32, 24),
    8: TensorType("Q8_0", 32, 34),
    9: TensorType("Q8_1", 32, 36),
    10: TensorType("Q2_K", 256, 84),
    11: TensorType("Q3_K", 256, 110),
    12: TensorType("Q4_K", 256, 144),
    13: TensorType("Q5_K", 256, 176),
    14: TensorType("Q6_K", 256, 210),
    15: TensorType("Q8_K", 256, 292),
    16: TensorType("IQ2_XXS", 256, 66),
    17: TensorType("IQ2_XS", 256, 74),
    18: TensorType("IQ3_XXS", 256, 98),
    19: TensorType("IQ1_S", 256, 50),
    20: TensorType("IQ4_NL", 32, 18),
    21: TensorType("IQ3_S", 256, 110),
    22: TensorType("IQ2_S", 256, 82),
    23: TensorType("IQ4_XS", 256, 136),
    24: TensorType("I8", 1, 1),
    25: TensorType("I16", 1, 2),
    26: TensorType("I32", 1, 4),
    27: TensorType("I64", 1, 8),
    28: TensorType("F64", 1, 8),
    29: TensorType("IQ1_M", 256, 56),
    30: TensorType("BF16", 1, 2),
    34: TensorType("TQ1_0", 256, 54),
    35: TensorType("TQ2_0", 256, 66),
    39: TensorType("MXFP4", 32, 17),
    40: TensorType("NVFP4", 64, 36),
    41: TensorType("Q1_0", 128, 18),
    42: TensorType("Q2_0", 64, 18),
}

# llama.h, `enum llama_ftype`, as llama-quantize spells them: the values of general.file_type.
FILE_TYPES: Final[Mapping[int, str]] = {
    0: "F32",
    1: "F16",
    2: "Q4_0",
    3: "Q4_1",
    7: "Q8_0",
    8: "Q5_0",
    9: "Q5_1",
    10: "Q2_K",
    11: "Q3_K_S",
    12: "Q3_K_M",
    13: "Q3_K_L",
    14: "Q4_K_S",
    15: "Q4_K_M",
    16: "Q5_K_S",
    17: "Q5_K_M",
    18: "Q6_K",
    19: "IQ2_XXS",
    20: "IQ2_XS",
    21: "Q2_K_S",
    22: "IQ3_XS",
    23: "IQ3_XXS",
    24: "IQ1_S",
    25: "IQ4_NL",
    26: "IQ3_S",
    27: "IQ3_M",
    28: "IQ2_S",
    29: "IQ2_M",
    30: "IQ4_XS",
    31: "IQ1_M",
    32: "BF16",
    36: "TQ1_0",
    37: "TQ2_0",
    38: "MXFP4_MOE",
    39: "NVFP4",
    40: "Q1_0",
    41: "Q2_0",
}

_U32: Final = struct.Struct("<I")
_U64: Final = struct.Struct("<Q")

# GGUF, `enum gguf_metadata_value_type`; strings and arrays are walked by code of their own.
_SCALARS: Final[Mapping[int, tuple[str, struct.Struct]]] = {
    0: ("uint8", struct.Struct("<B")),
    1: ("int8", struct.Struct("<b")),
    2: ("uint16", struct.Struct("<H")),
    3: ("int16", struct.Struct("<h")),
    4: ("uint32", _U32),
    5: ("int32", struct.Struct("<i")),
    6: ("float32", struct.Struct("<f")),
    7: ("bool", struct.Struct("<?")),
    10: ("uint64", _U64),
    11: ("int64", struct.Struct("<q")),
    12: ("float64", struct.Struct("<d")),
}
_UINT32: Final = 4
_STRING: Final = 8
_ARRAY: Final = 9

_PROGRAM: Final = "it is a program; if it is a llamafile, `unzip` extracts the model from it"
_BEFORE: Final = "it is in a format older than GGUF: get the model as GGUF"

# What people pass for a GGUF by mistake: where which bytes tell, and what to do about it.
_OTHERS: Final = (
    (0, b"version https://git-lfs", "it is a Git LFS pointer: `git lfs pull` gets the file itself"),
    (0, b"<", "it looks like a web page: download the file itself, not the page about it"),
    (8, b'{"', "it looks like safetensors: convert it with llama.cpp's convert_hf_to_gguf.py"),
    (0, b"PK\x03\x04", "it is a ZIP archive, as PyTorch's weights are: get the model as GGUF"),
    (0, b"MZ", _PROGRAM),
    (0, b"#!", _PROGRAM),
    (0, b"\x7fELF", _PROGRAM),
    (0, b"lmgg", _BEFORE),
    (0, b"fmgg", _BEFORE),
    (0, b"tjgg", _BEFORE),
)

_AGAIN: Final = "the download may have been interrupted: get the file again"
_CONVERT: Final = "get a newer GGUF of this model, or convert it again with llama.cpp"

# Far beyond any model (hundreds of entries, some 10,000 tensors, some 500,000 merges): what keeps
# a hostile header from costing minutes or gigabytes.
_MOST_ENTRIES: Final = 1 << 20
_MOST_STRINGS: Final = 1 << 24
_LONGEST_STRING: Final = 1 << 30  # gguf.cpp, GGUF_MAX_STRING_LENGTH

_TOKENS: Final = "tokenizer.ggml.tokens"
# A string below 256 bytes that begins like the tokens that mark the turns of a chat.
_MARK: Final = re.compile(rb"\0\0\0\0\0\0\0[<[]")
_LONGEST_MARK: Final = 64  # in bytes
_Marks: TypeAlias = set[bytes]
_MOST_MARKS: Final = 1 << 14
_MOST_NUMBERS: Final = 1 << 10  # what an array has per layer

_WINDOW: Final = 1 << 18  # the bytes that are read at once
_AT_ONCE: Final = 128  # strings that are stepped over at once

# The least that an entry takes: key length, one byte of key, type, one byte of value; and name
# length, dimension count, type, offset.
_LEAST_ENTRY: Final = 8 + 1 + 4 + 1
_LEAST_TENSOR: Final = 8 + 4 + 4 + 8

_LONGEST_TENSOR_NAME: Final = 63  # ggml.h, GGML_MAX_NAME less the NUL
_MOST_DIMENSIONS: Final = 4  # ggml.h, GGML_MAX_DIMS
_DEFAULT_ALIGNMENT: Final = 32  # GGUF, general.alignment


@dataclass(frozen=True)
class Tensor:
    """Where a tensor lies.

    Attributes:
        name: For example ``token_embd.weight``.
        shape: Elements in each dimension, innermost first, as GGUF writes them.
        type: ggml's name of its type, for example ``Q4_1``.
        offset: Its first byte, in bytes from the start of the file that was read.
        size: Its length in bytes.
    """

    name: str
    shape: tuple[int, ...]
    type: str
    offset: int
    size: int


@dataclass(frozen=True)
class Weights:
    """What the header of a GGUF says.

    Attributes:
        version: The version of the format: 2 or 3.
        metadata: Every key with its value, in the order of the file; of an array only type and
            length.
        tensors: Every tensor, in the order of the file; none if there is only a vocabulary.
        alignment: What the tensors' data are aligned to, in bytes from the start of the GGUF.
        data_offset: Where the tensors' data begin, in bytes from the start of the file that
            was read.
        size: The bytes that a complete GGUF has at least, from its own first byte.
        marks: The tokens of the vocabulary in ``<…>`` or ``[…]``, among which are those that
            mark the turns of a chat.
        numbers: The arrays of at most 1024 numbers by their keys: what differs between layers.
    """

    version: int
    metadata: Mapping[str, Value]
    tensors: tuple[Tensor, ...]
    alignment: int
    data_offset: int
    size: int
    marks: frozenset[str] = frozenset()
    numbers: Mapping[str, tuple[float, ...]] = field(default_factory=dict)

    def _text(self, key: str) -> str | None:
        value = self.metadata.get(key)
        return value if isinstance(value, str) else None

    def _count(self, key: str) -> int | None:
        value = self.metadata.get(key)
        return value if isinstance(value, int) and not isinstance(value, bool) else None

    @property
    def architecture(self) -> str | None:
        """The model's family, for example ``phi3``."""
        return self._text("general.architecture")

    @property
    def kind(self) -> Kind:
        """A model, a LoRA adapter, or the projector that makes a model see or hear."""
        if self._text("general.type") == "adapter":
            return "adapter"
        if self._text("general.type") == "mmproj" or self.architecture == "clip":
            return "projector"
        return "model"

    @property
    def name(self) -> str | None:
        """The name that its makers gave it."""
        return self._text("general.name")

    @property
    def parameters(self) -> int:
        """The number of elements of all tensors in this file."""
        return sum(prod(tensor.shape) for tensor in self.tensors)

    @property
    def quantization(self) -> str | None:
        """The mixture it was quantized to, for example ``Q4_K_M``.

        The file's own word for it if it has one, otherwise the type that most bytes are of.
        None without either.
        """
        file_type = self._count("general.file_type")
        if file_type is not None and file_type in FILE_TYPES:
            return FILE_TYPES[file_type]
        held: dict[str, int] = {}
        for tensor in self.tensors:
            held[tensor.type] = held.get(tensor.type, 0) + tensor.size
        return max(held, key=held.__getitem__, default=None)

    @property
    def context_length(self) -> int | None:
        """The most tokens that it was trained to attend to."""
        return self._count(f"{self.architecture}.context_length")

    @property
    def chat_template(self) -> str | None:
        """The Jinja template that makes a prompt of a conversation."""
        return self._text("tokenizer.chat_template")

    @property
    def tokenizer(self) -> str | None:
        """Tokenizer and, in parentheses, pre-tokenizer, for example ``gpt2 (llama-bpe)``."""
        model, pre = self._text("tokenizer.ggml.model"), self._text("tokenizer.ggml.pre")
        return f"{model} ({pre})" if model and pre else model

    @property
    def vocabulary(self) -> int | None:
        """The number of tokens it knows."""
        tokens = self.metadata.get(_TOKENS)
        if isinstance(tokens, Array):
            return tokens.length
        return self._count(f"{self.architecture}.vocab_size")

    @property
    def split(self) -> tuple[int, int] | None:
        """Which part this is, counted from 0, of how many; None for a model in one file."""
        number, count = self._count("split.no"), self._count("split.count")
        return (number, count) if number is not None and count is not None and count > 1 else None


def read(path: Path, offset: int = 0, size: int | None = None) -> Weights:
    """Read the header of a GGUF.

    Args:
        path: A file that is a GGUF or that holds one.
        offset: Where the GGUF begins, in bytes from the start of the file.
        size: The bytes that it may take; None for all the rest of the file.

    Returns:
        Everything the header says.

    Raises:
        PyllamafileError: If the file can't be read, is no GGUF, is cut short or damaged, or is
            of a kind that llama.cpp refuses.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # asked before opening: to open a FIFO is to wait
            what = "a directory" if stat.S_ISDIR(status.st_mode) else "not a regular file"
            raise RefusedError(f"{path} is {what}", "pass the .gguf file itself", path=path)
        end = status.st_size if size is None else offset + size
        if not 0 <= offset <= end <= status.st_size:
            raise DamagedError(
                f"{path}: bytes {offset} to {end} are not within its {status.st_size} bytes",
                path=path,
            )
        if not status.st_size:
            raise DamagedError(f"{path} is empty", _AGAIN, path=path)
        with path.open("rb") as file:
            return _parse(_Cursor(file, offset, end - offset, str(path)), offset)
    except FileNotFoundError as error:
        raise NotFoundError(f"cannot read {path}: {error.strerror}", path=path) from error
    except OSError as error:
        raise AccessError(f"cannot read {path}: {error.strerror or error}", path=path) from error
    except ValueError as error:  # a NUL in the path
        raise RefusedError(f"cannot read {path}: {error}", path=path) from error


def parse(file: BinaryIO, size: int, name: str) -> Weights:
    """Read the header of a GGUF out of something that can be read and sought like a file.

    Args:
        file: It; no more of it is read than the header takes, in steps of 256 KiB.
        size: The bytes that the GGUF may take, from the start of the file.
        name: What to call it in a message.

    Returns:
        Everything the header says.

    Raises:
        DamagedError: If it is no GGUF, is cut short or damaged, or is of a kind that llama.cpp
            refuses.
        OSError: If it can't be read.
    """
    if not size:
        raise DamagedError(f"{name} is empty", _AGAIN, path=name)
    return _parse(_Cursor(file, 0, size, name), 0)


def part_of(name: str) -> tuple[str, int, int] | None:
    """What the name of a part of a split model says, by llama.cpp's SPLIT_PATH_FORMAT.

    Args:
        name: For example ``phi3-00002-of-00003.gguf``.

    Returns:
        What is in front of the numbers, which part it is (from 1), and how many there are; None if
        it is no name of a part.
    """
    match = re.fullmatch(r"(.*)-([0-9]{5})-of-([0-9]{5})\.gguf", name, re.DOTALL)
    return (match[1], int(match[2]), int(match[3])) if match else None


def shards(path: Path) -> tuple[Path, ...]:
    """Find the files that a model is split into, by their names.

    Args:
        path: Any of ``NAME-00001-of-00003.gguf`` and its like (llama.cpp, SPLIT_PATH_FORMAT),
            or a model in one file.

    Returns:
        All of them in order; ``path`` alone, not looked at, if its name is of no such form.

    Raises:
        PyllamafileError: If one of them is missing, is no sound GGUF, or calls itself another
            part than its name does.
    """
    found = part_of(path.name)
    if not found:
        return (path,)
    stem, number, count = found
    if not 1 <= number <= count:
        raise NotFoundError(f"{path}: there is no part {number} of {count}", path=path)
    parts = [path.with_name(f"{stem}-{i + 1:05}-of-{count:05}.gguf") for i in range(count)]
    if lacking := list(filter(_missing, parts)):
        more = f", and so are {len(lacking) - 1} others" if len(lacking) > 1 else ""
        raise NotFoundError(
            f"{lacking[0]} is missing{more}: the model is split into {count} files",
            "put all of them into the same directory",
            path=lacking[0],
        )
    for index, file in enumerate(parts):
        split = read(file).split
        if split != (index, count) and not (split is None and count == 1):
            inside = f"part {split[0] + 1} of {split[1]}" if split else "a model in one file"
            raise DamagedError(f"{file}: its header says that it is {inside}", path=file)
    return tuple(parts)


def _missing(path: Path) -> bool:
    try:
        path.stat()
    except FileNotFoundError:
        return True
    except (OSError, ValueError):
        return False  # there, but out of reach: `read` says why
    return False


class _Cursor:
    """A position in a header; every step is checked against the end.

    Attributes:
        position: The next byte, from the start of the GGUF.
        size: The bytes that there are.
    """

    def __init__(self, file: BinaryIO, base: int, size: int, label: str) -> None:
        self.size = size
        self.label = label
        self.position = 0
        self._file = file
        self._base = base
        self._window = b""
        self._start = 0

    def wrong(self, what: str, hint: str | None = None) -> DamagedError:
        return DamagedError(f"{self.label}: {what}", hint, path=self.label)

    def skip(self, count: int) -> int:
        """Step over `count` bytes, all of which must exist; returns where they begin."""
        start = self.position
        if count > self.size - start:
            raise self.wrong(f"the header is cut short at byte {self.size}", _AGAIN)
        self.position += count
        return start

    def window(self, start: int, count: int) -> tuple[bytes, int]:
        """A part of the file with these bytes in it, which have to exist, and where it begins."""
        if not self._start <= start <= start + count <= self._start + len(self._window):
            self._file.seek(self._base + start)
            self._window = self._file.read(min(max(count, _WINDOW), self.size - start))
            self._start = start
            if len(self._window) < count:
                raise self.wrong("became shorter while it was read", _AGAIN)
        return self._window, self._start

    def bytes(self, count: int) -> bytes:
        """The next bytes."""
        at = self.skip(count)
        window, start = self.window(at, count)
        return window[at - start : at - start + count]

    def number(self, form: struct.Struct) -> int:
        at = self.skip(form.size)
        window, start = self.window(at, form.size)
        value: int = form.unpack_from(window, at - start)[0]
        return value

    def text(self, what: str, longest: int = _LONGEST_STRING) -> str:
        """A string; bytes that are not UTF-8 become escapes, as llama.cpp does not mind them."""
        length = self.number(_U64)
        if length > min(self.size - self.position, longest):
            raise self.wrong(f"{what} claims to be {length} bytes long", _AGAIN)
        return str(self.bytes(length), "utf-8", "backslashreplace")

    def count(self, what: str, least: int, most: int) -> int:
        """A number of things, of which each takes at least `least` bytes."""
        count = self.number(_U64)
        if count > most or count * least > self.size - self.position:
            raise self.wrong(f"the header claims {count} {what}, which cannot be", _AGAIN)
        return count

    def skip_strings(self, count: int, what: str, kept: _Marks | None = None) -> None:
        """Step over strings, of which there may be 100,000 and more.

        Args:
            count: How many there are.
            what: What to call them in a message.
            kept: Gets those that look like marks of chats.
        """
        unpack, size, width, position = _U64.unpack_from, self.size, _U64.size, self.position
        several = _short_strings()
        window, start, last = b"", 0, -1  # the last place in the window where a length may begin
        while count:
            if position > last:
                if position > size - width:
                    raise self.wrong(f"{what} reaches past the end of the file", _AGAIN)
                room = min(width + _LONGEST_MARK, size - position)  # for the whole of a mark
                window, start = self.window(position, room)
                last = start + len(window) - room
                if kept is not None and len(kept) < _MOST_MARKS:
                    kept.update(_marks(window))
            if count >= _AT_ONCE and (found := several.match(window, position - start)):
                position = start + found.end()
                count -= _AT_ONCE
                continue
            for _ in range(min(count, _AT_ONCE)):  # a long one among them, or the window's end
                position += width + unpack(window, position - start)[0]
                count -= 1
                if position > last:
                    break
        if position > size:
            raise self.wrong(f"{what} reaches past the end of the file", _AGAIN)
        self.position = position


@functools.cache
def _short_strings() -> re.Pattern[bytes]:
    """So many strings below 64 bytes, one behind the other.

    An expression, because Python's own machine steps over them in a third of the time that a loop
    takes. The lengths that are frequent come first.
    """
    lengths = sorted(range(64), key=lambda length: abs(length - 7))
    each = b"|".join(rb"\x%02x\0\0\0\0\0\0\0.{%d}" % (length, length) for length in lengths)
    return re.compile(rb"(?:%b){%d}" % (each, _AT_ONCE), re.DOTALL)


def _marks(window: bytes) -> Iterator[bytes]:
    """The short strings in ``<…>`` and ``[…]`` that begin in a part of a header."""
    for found in _MARK.finditer(window, 1):
        text = found.end() - 1
        length = window[found.start() - 1]
        mark = window[text : text + length]
        if len(mark) == length <= _LONGEST_MARK and mark.endswith((b">", b"]")):
            yield mark


def _parse(at: _Cursor, base: int) -> Weights:
    """Read a whole header; `base` is where the GGUF begins in the file, in bytes."""
    version = _version(at)
    tensor_count = at.count("tensors", _LEAST_TENSOR, _MOST_ENTRIES)
    entry_count = at.count("metadata entries", _LEAST_ENTRY, _MOST_ENTRIES)

    metadata: dict[str, Value] = {}
    marks: _Marks = set()
    numbers: dict[str, tuple[float, ...]] = {}
    alignment = _DEFAULT_ALIGNMENT
    for _ in range(entry_count):
        key = at.text("a metadata key")
        if not key:
            raise at.wrong("a metadata key is empty")
        if key in metadata:
            raise at.wrong(f"the metadata key {key[:80]!r} is there twice")
        type_ = at.number(_U32)
        metadata[key] = value = _value(at, key, type_, marks, numbers)
        if key == "general.alignment":
            if type_ != _UINT32 or not isinstance(value, int) or value.bit_count() != 1:
                raise at.wrong(f"general.alignment is {value!r}, not a power of two (uint32)")
            alignment = value

    number, count = metadata.get("split.no", 0), metadata.get("split.count", 0)
    if isinstance(number, int) and isinstance(count, int) and number >= max(count, 1):
        raise at.wrong(f"the header calls it part {number} (from 0) of {count}")

    headed = [_tensor(at) for _ in range(tensor_count)]
    heads = f"{metadata.get('general.architecture')}.attention.head_count"
    fused = next((t.name for t in headed if ".attn_qkv." in t.name), None)
    if fused and metadata.get(heads) == 0:  # no shape of the tensor is right then
        raise at.wrong(f"{heads} is 0, and there is attention: tensor {fused!r}")
    # gguf.cpp: without tensors there is no padding, and the file may end here
    data = -(-at.position // alignment) * alignment if headed else at.position
    tensors: dict[str, Tensor] = {}
    expected, end = 0, data
    for tensor in headed:
        label = f"tensor {tensor.name!r}"
        if tensor.name in tensors:
            raise at.wrong(f"{label} is there twice")
        if tensor.offset % alignment:
            raise at.wrong(f"{label} at {tensor.offset} is not aligned to {alignment} bytes")
        if tensor.offset != expected:  # gguf.cpp allows neither gaps nor another order
            raise at.wrong(f"{label} lies at {tensor.offset} of the data, not at {expected}")
        end = data + expected + tensor.size
        expected += -(-tensor.size // alignment) * alignment
        tensors[tensor.name] = Tensor(
            tensor.name, tensor.shape, tensor.type, base + data + tensor.offset, tensor.size
        )
    if end > at.size:
        first = next(t for t in tensors.values() if t.offset + t.size > base + at.size)
        raise at.wrong(
            f"incomplete: {end - at.size} of {end} bytes are missing, from tensor"
            f" {first.name!r} on",
            _AGAIN,
        )
    return Weights(
        version,
        metadata,
        tuple(tensors.values()),
        alignment,
        base + data,
        end,
        frozenset(str(mark, "utf-8", "replace") for mark in marks),
        numbers,
    )


def _version(at: _Cursor) -> int:
    """Magic and version: the first 8 bytes."""
    first, _ = at.window(0, min(32, at.size))
    if not first.startswith(b"GGUF"):
        hint = next((h for where, sign, h in _OTHERS if first.startswith(sign, where)), None)
        raise at.wrong("not a GGUF file", hint)
    at.skip(4)
    version = at.number(_U32)
    if version in (2, 3):
        return version
    if version and not version & 0xFFFF:  # gguf.cpp's test; the magic is the same in both orders
        raise at.wrong(
            "a big-endian GGUF, which only big-endian machines can use",
            "convert it with `gguf-convert-endian FILE little` of the package gguf",
        )
    raise at.wrong(
        f"GGUF version {version}, only 2 and 3 can be read",
        _CONVERT if version < 2 else "a newer pyllamafile may know it",
    )


def _value(
    at: _Cursor, key: str, type_: int, marks: _Marks, numbers: dict[str, tuple[float, ...]]
) -> Value:
    """The value of a metadata entry; what is kept of an array goes into `marks` or `numbers`."""
    label = f"the value of {key[:80]!r}"
    if type_ in _SCALARS:
        return at.number(_SCALARS[type_][1])
    if type_ == _STRING:
        return at.text(label)
    if type_ != _ARRAY:
        raise at.wrong(f"{label} is of type {type_}, which GGUF does not have")
    element = at.number(_U32)
    if element == _STRING:
        length = at.count(f"strings in {key[:80]!r}", _U64.size, _MOST_STRINGS)
        at.skip_strings(length, label, marks if key == _TOKENS else None)
        return Array("string", length)
    if element not in _SCALARS:
        nested = "arrays, which llama.cpp refuses" if element == _ARRAY else f"type {element}"
        raise at.wrong(f"{label} is an array of {nested}")
    name, form = _SCALARS[element]
    length = at.count(f"elements in {key[:80]!r}", form.size, at.size)
    if length > _MOST_NUMBERS or len(numbers) >= _MOST_NUMBERS:
        at.skip(length * form.size)
    else:
        numbers[key] = tuple(at.number(form) for _ in range(length))
    return Array(name, length)


def _tensor(at: _Cursor) -> Tensor:
    """One tensor's description; its offset is still that from the start of the data."""
    name = at.text("a tensor's name", _LONGEST_TENSOR_NAME)
    label = f"tensor {name[:80]!r}"
    dimensions = at.number(_U32)
    if dimensions > _MOST_DIMENSIONS:
        raise at.wrong(f"{label} has {dimensions} dimensions, not 0 to {_MOST_DIMENSIONS}")
    shape = tuple(at.number(_U64) for _ in range(dimensions))
    number = at.number(_U32)
    if number not in TENSOR_TYPES:
        raise at.wrong(f"{label} is of type {number}, which llama.cpp does not have", _CONVERT)
    kind = TENSOR_TYPES[number]
    row = shape[0] if shape else 1
    if max(shape, default=1) >= 1 << 63 or prod(shape) >= 1 << 63 or row % kind.elements:
        raise at.wrong(f"{label} of type {kind.name} cannot have the shape {shape}")
    size = prod(shape) // kind.elements * kind.bytes
    return Tensor(name, shape, kind.name, at.number(_U64), size)
