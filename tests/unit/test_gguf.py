"""GGUF headers: facts held against the `gguf` package's own reader, and what must be refused."""

from __future__ import annotations

import os
import random
import struct
import threading
import time
import tracemalloc
from pathlib import Path

import gguf
import numpy as np
import pytest
from fixtures import tiny_gguf

from pyllamafile.errors import PyllamafileError
from pyllamafile.models import gguf as weights
from pyllamafile.models.gguf import Array

U32, F32, STRING, ARRAY, U64 = 4, 6, 8, 9, 10


def text(value: str | bytes) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(raw)) + raw


def entry(key: str, kind: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + value


def u32(key: str, value: int) -> bytes:
    return entry(key, U32, struct.pack("<I", value))


def tensor(name: str, shape: tuple[int, ...] = (8,), kind: int = 0, offset: int = 0) -> bytes:
    head = text(name) + struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
    return head + struct.pack("<IQ", kind, offset)


def raw(
    entries: tuple[bytes, ...] = (),
    tensors: tuple[bytes, ...] = (),
    *,
    data: int = 0,
    version: int = 3,
    counts: tuple[int, int] | None = None,
    alignment: int = 32,
) -> bytes:
    """A GGUF by hand, for what `gguf.GGUFWriter` would not write."""
    head = b"GGUF" + struct.pack("<I2Q", version, *(counts or (len(tensors), len(entries))))
    head += b"".join(entries) + b"".join(tensors)
    return head + bytes(-len(head) % alignment + data if tensors else 0)


def refusal(path: Path, content: bytes) -> PyllamafileError:
    path.write_bytes(content)
    with pytest.raises(PyllamafileError) as caught:
        weights.read(path)
    message = caught.value.message
    assert str(path) in message
    assert "\n" not in message
    return caught.value


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "model.gguf"


def mixed(path: Path) -> Path:
    """Every kind of value, tensors of several types, an alignment of its own."""
    writer = gguf.GGUFWriter(path, "phi3")
    writer.add_name("Phi 3 \N{GREEK SMALL LETTER PHI}")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q5_K_M)
    writer.add_custom_alignment(128)
    writer.add_context_length(4096)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("llama-bpe")
    writer.add_token_list(["", "a", "\N{PILE OF POO}", "x" * 1000])
    writer.add_token_merges(["a b", "c d"])
    writer.add_token_types([1, 2, 3, 4])
    writer.add_token_scores([0.5, 0.25])
    writer.add_chat_template("{% for m in messages %}\n{{ m }}{% endfor %}")
    writer.add_uint8("t.u8", 255)
    writer.add_int8("t.i8", -128)
    writer.add_uint16("t.u16", 65535)
    writer.add_int16("t.i16", -32768)
    writer.add_uint32("t.u32", 2**32 - 1)
    writer.add_int32("t.i32", -(2**31))
    writer.add_float32("t.f32", 0.1)
    writer.add_bool("t.yes", True)
    writer.add_bool("t.no", False)
    writer.add_uint64("t.u64", 2**64 - 1)
    writer.add_int64("t.i64", -(2**63))
    writer.add_float64("t.f64", 0.1)
    writer.add_array("t.bools", [True, False])
    writer.add_string("t.empty", "")
    rng = np.random.default_rng(1)
    kinds = gguf.GGMLQuantizationType
    writer.add_tensor("a", rng.random((3, 5), dtype=np.float32))
    writer.add_tensor("b", rng.random((2, 3, 4, 5)).astype(np.float16))
    for kind in (kinds.Q4_1, kinds.Q5_K, kinds.Q8_0, kinds.BF16):
        elements, size = gguf.GGML_QUANT_SIZES[kind]
        row = rng.integers(0, 256, (7, 512 // elements * size), dtype=np.uint8)
        writer.add_tensor(f"blk.{kind.name}", row, raw_dtype=kind)
    writer.add_tensor("z", rng.integers(0, 9, 3, dtype=np.int32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("make", [tiny_gguf, mixed])
def test_agrees_with_the_gguf_package(file: Path, make) -> None:
    make(file)
    other = gguf.GGUFReader(file)
    found = weights.read(file)

    fields = {key: f for key, f in other.fields.items() if not key.startswith("GGUF.")}
    assert list(found.metadata) == list(fields)
    for key, field in fields.items():
        value = found.metadata[key]
        if isinstance(value, Array):
            assert value == (field.types[1].name.lower(), len(field.data)), key
        else:
            assert value == field.contents(), key
            assert isinstance(value, bool) == (field.types == [gguf.GGUFValueType.BOOL]), key
    assert [
        (t.name, list(t.shape), t.type, t.offset, t.size) for t in found.tensors
    ] == [
        (t.name, list(t.shape), t.tensor_type.name, t.data_offset, t.n_bytes)
        for t in other.tensors
    ]  # fmt: skip
    assert (found.alignment, found.data_offset) == (other.alignment, other.data_offset)
    assert found.parameters == sum(int(t.n_elements) for t in other.tensors)
    last = found.tensors[-1]
    assert found.size == last.offset + last.size <= file.stat().st_size


def test_facts(file: Path) -> None:
    found = weights.read(mixed(file))
    assert found.version == 3
    assert found.architecture == "phi3"
    assert found.name == "Phi 3 \N{GREEK SMALL LETTER PHI}"
    assert found.quantization == "Q5_K_M"
    assert found.context_length == 4096
    assert found.tokenizer == "gpt2 (llama-bpe)"
    assert found.vocabulary == 4
    assert found.chat_template == "{% for m in messages %}\n{{ m }}{% endfor %}"
    assert found.split is None


def test_facts_that_are_missing_or_of_the_wrong_type(file: Path) -> None:
    file.write_bytes(raw((u32("general.name", 5), entry("general.file_type", STRING, text("x")))))
    found = weights.read(file)
    assert found.tensors == ()
    assert found.size == found.data_offset == file.stat().st_size
    assert found.parameters == 0
    for fact in ("architecture", "name", "quantization", "context_length", "chat_template"):
        assert getattr(found, fact) is None
    assert (found.tokenizer, found.vocabulary, found.split) == (None, None, None)


def test_vocabulary_without_tokens(file: Path) -> None:
    name = entry("general.architecture", STRING, text("llama"))
    file.write_bytes(raw((name, u32("llama.vocab_size", 32064))))
    assert weights.read(file).vocabulary == 32064


def test_quantization_without_the_files_word_is_the_type_of_most_bytes(file: Path) -> None:
    tensors = (
        tensor("a"),
        tensor("b", (256, 2), 14, 32),
        tensor("c", (256,), 12, 32 + 448),
        tensor("d", (256,), 12, 32 + 448 + 160),
    )
    for entries in ((), (u32("general.file_type", 999),)):
        file.write_bytes(raw(entries, tensors, data=32 + 448 + 160 + 160))
        assert weights.read(file).quantization == "Q6_K"


def test_tensor_types_are_those_of_the_gguf_package() -> None:
    ours = {number: tuple(kind) for number, kind in weights.TENSOR_TYPES.items()}
    theirs = {
        kind.value: (kind.name, *gguf.GGML_QUANT_SIZES[kind]) for kind in gguf.GGMLQuantizationType
    }
    # The pinned llama.cpp is newer than the package: ggml-common.h, block_q8_1 and block_q2_0.
    newer = {9: ("Q8_1", 32, 36), 42: ("Q2_0", 64, 18)}
    assert theirs | newer == ours


def test_file_types_are_those_of_the_gguf_package() -> None:
    theirs = {
        kind.value: kind.name.removeprefix("ALL_").removeprefix("MOSTLY_")
        for kind in gguf.LlamaFileType
        if kind is not gguf.LlamaFileType.GUESSED
    }
    assert {41: "Q2_0"} | theirs == weights.FILE_TYPES


def test_version_2_is_read_like_3(file: Path) -> None:
    file.write_bytes(raw((u32("a", 7),), version=2))
    found = weights.read(file)
    assert (found.version, found.metadata) == (2, {"a": 7})


def test_inside_another_file(file: Path) -> None:
    bare = weights.read(tiny_gguf(file))
    content = file.read_bytes()
    holder = file.with_name("holder")
    holder.write_bytes(b"#" * 70000 + content + b"PK" * 50)
    found = weights.read(holder, 70000, len(content))
    assert found.metadata == bare.metadata
    assert found.data_offset == bare.data_offset + 70000
    assert [t.offset for t in found.tensors] == [t.offset + 70000 for t in bare.tensors]
    assert found.size == bare.size
    assert weights.read(holder, 70000).tensors == found.tensors
    with pytest.raises(PyllamafileError, match=r"1 of [0-9]+ bytes are missing"):
        weights.read(holder, 70000, bare.size - 1)
    for offset, size in ((0, 10**6), (10**6, None), (-1, None), (5, -1)):
        with pytest.raises(PyllamafileError, match="are not within"):
            weights.read(holder, offset, size)


def test_bytes_that_are_not_utf8_are_shown_as_escapes(file: Path) -> None:
    file.write_bytes(raw((entry("general.name", STRING, text(b"caf\xe9")),)))
    assert weights.read(file).name == "caf\\xe9"


def test_tensors_of_no_dimension_and_of_no_element(file: Path) -> None:
    tensors = (tensor("scalar", ()), tensor("none", (0, 5), 0, 32), tensor("last", (2,), 0, 32))
    file.write_bytes(raw((), tensors, data=40))
    found = weights.read(file)
    assert [(t.shape, t.size) for t in found.tensors] == [((), 4), ((0, 5), 0), ((2,), 8)]
    assert found.parameters == 3


ALIGN = "general.alignment"
REFUSED = {
    "big-endian": (raw((), version=3 << 24), "big-endian"),
    "version 1": (raw((), version=1), "version 1, only 2 and 3"),
    "version 4": (raw((), version=4), "version 4, only 2 and 3"),
    "version 0": (raw((), version=0), "version 0"),
    "many tensors": (raw(counts=(2**60, 0)), f"claims {2**60} tensors"),
    "many entries": (raw(counts=(0, 2**60)), f"claims {2**60} metadata entries"),
    "long key": (raw((struct.pack("<Q", 2**60) + bytes(20),)), "key claims to be"),
    "long string": (raw((entry("a", STRING, struct.pack("<Q", 2**64 - 1)),)), "'a' claims to be"),
    "many numbers": (raw((entry("a", ARRAY, struct.pack("<IQ", U64, 2**60)),)), f"claims {2**60}"),
    "many strings": (
        raw((entry("a", ARRAY, struct.pack("<IQ", STRING, 2**60)),)),
        f"claims {2**60} strings in 'a'",
    ),
    "array's string too long": (
        raw((entry("a", ARRAY, struct.pack("<IQ", STRING, 2) + struct.pack("<QQ", 2**63, 0)),)),
        "'a' reaches past the end",
    ),
    "array's last string too long": (
        raw((entry("a", ARRAY, struct.pack("<IQ", STRING, 2) + text("abc") + bytes(7) + b"\1"),)),
        "'a' reaches past the end",
    ),
    "value type": (raw((entry("a", 13, bytes(8)),)), "of type 13, which GGUF does not have"),
    "element type": (raw((entry("a", ARRAY, struct.pack("<IQ", 99, 1)),)), "an array of type 99"),
    "nested array": (raw((entry("a", ARRAY, struct.pack("<IQ", ARRAY, 1)),)), "array of arrays"),
    "empty key": (raw((u32("", 1),)), "key is empty"),
    "key twice": (raw((u32("a", 1), u32("a", 1))), "'a' is there twice"),
    "tensor twice": (raw((), (tensor("a"), tensor("a", offset=32)), data=64), "'a' is there twice"),
    "alignment 0": (raw((u32(ALIGN, 0),)), "alignment is 0"),
    "alignment 48": (raw((u32(ALIGN, 48),)), "alignment is 48"),
    "alignment as text": (raw((entry(ALIGN, STRING, text("32")),)), "alignment is '32'"),
    "alignment as u64": (raw((entry(ALIGN, U64, bytes([32] + [0] * 7)),)), "alignment is 32"),
    "alignment as float": (raw((entry(ALIGN, F32, struct.pack("<f", 32)),)), "alignment is 32.0"),
    "unaligned": (raw((), (tensor("a", offset=4),), data=64), "'a' at 4 is not aligned"),
    "gap": (raw((), (tensor("a", offset=32),), data=64), "'a' lies at 32 of the data, not at 0"),
    "overlap": (
        raw((), (tensor("a", (64,)), tensor("b", offset=32)), data=999),
        "'b' lies at 32 of the data, not at 256",
    ),
    "offset overflow": (raw((), (tensor("a", offset=2**64 - 32),), data=64), "'a' lies at 1844"),
    "tensor type": (raw((), (tensor("a", kind=31),), data=64), "'a' is of type 31"),
    "tensor type 2^32-1": (raw((), (tensor("a", kind=2**32 - 1),), data=64), "of type 4294967295"),
    "dimensions": (raw((), (tensor("a", (1,) * 5),), data=64), "'a' has 5 dimensions"),
    "dimension overflow": (raw((), (tensor("a", (2**63,)),), data=64), "cannot have the shape"),
    "size overflow": (raw((), (tensor("a", (2**32, 2**32)),), data=64), "cannot have the shape"),
    "half a block": (raw((), (tensor("a", (31,), 2),), data=64), "'a' of type Q4_0 cannot have"),
    "tensor name": (raw((), (tensor("a" * 64),), data=64), "name claims to be 64 bytes"),
    "split": (raw((u32("split.no", 3), u32("split.count", 3))), "part 3 (from 0) of 3"),
    "truncated by 1": (raw((), (tensor("a"),), data=31), "1 of 96 bytes are missing"),
    "truncated in the second": (
        raw((), (tensor("a"), tensor("b", (1024,), offset=32)), data=40),
        "4088 of 4224 bytes are missing, from tensor 'b' on",
    ),
    "truncated to nothing": (raw((), (tensor("a", (1024,)),)), "4096 of 4160 bytes are missing"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refuses(file: Path, case: str) -> None:
    content, said = REFUSED[case]
    start = time.process_time()
    assert said in refusal(file, content).message
    assert time.process_time() - start < 0.5


@pytest.mark.parametrize(
    ("start", "hint"),
    [
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"<!DOCTYPE html><html>", "web page"),
        (struct.pack("<Q", 50) + b'{"__metadata__":{}}', "safetensors"),
        (b"PK\3\4" + bytes(40), "ZIP archive"),
        (b"MZ" + bytes(40), "unzip"),
        (b"#!/bin/sh\nexec false\n", "unzip"),
        (b"tjgg" + bytes(40), "older than GGUF"),
        (b"GGU", None),
        (bytes(100), None),
    ],
)
def test_tells_what_it_is_instead(file: Path, start: bytes, hint: str | None) -> None:
    error = refusal(file, start)
    assert "not a GGUF file" in error.message
    assert error.hint is None if hint is None else hint in str(error.hint)


def test_what_is_no_file(file: Path, tmp_path: Path) -> None:
    assert "is empty" in refusal(file, b"").message
    with pytest.raises(PyllamafileError, match="is a directory"):
        weights.read(tmp_path)
    with pytest.raises(PyllamafileError, match="No such file"):
        weights.read(tmp_path / "nowhere.gguf")
    with pytest.raises(PyllamafileError, match="null"):
        weights.read(tmp_path / "a\0b")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no FIFOs")
def test_a_fifo_is_refused_without_waiting(file: Path) -> None:
    os.mkfifo(file)
    caught: list[BaseException] = []

    def attempt() -> None:
        try:
            weights.read(file)
        except PyllamafileError as error:
            caught.append(error)

    thread = threading.Thread(target=attempt, daemon=True)
    thread.start()
    thread.join(5)
    assert [str(error) for error in caught] == [f"{file} is not a regular file"]


def test_permission_denied(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_gguf(file)

    def denied(*args: object, **kwargs: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", denied)  # root may read everything: chmod would not do
    with pytest.raises(PyllamafileError) as caught:
        weights.read(file)
    assert caught.value.message == f"cannot read {file}: Permission denied"


def test_a_file_that_shrinks_while_it_is_read(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_gguf(file)
    open_file = Path.open

    def shrinking(path: Path, *args: object, **kwargs: object) -> object:
        os.truncate(path, 100)  # after its size was asked for
        return open_file(path, *args, **kwargs)

    monkeypatch.setattr(Path, "open", shrinking)
    with pytest.raises(PyllamafileError) as caught:
        weights.read(file)
    assert caught.value.message == f"{file}: became shorter while it was read"


def test_a_large_vocabulary_is_skipped_fast(file: Path) -> None:
    tokens = b"".join(text(f"token{i}") for i in range(150_000))
    array = struct.pack("<IQ", STRING, 150_000) + tokens
    keys = ("tokenizer.ggml.tokens", "tokenizer.ggml.merges")
    file.write_bytes(raw(tuple(entry(key, ARRAY, array) for key in keys)))
    times = []
    for _ in range(3):
        start = time.process_time()
        found = weights.read(file)
        times.append(time.process_time() - start)
    assert found.vocabulary == 150_000
    assert min(times) < 0.1


@pytest.mark.parametrize("most", [0, 9, 63, 64, 70, 300, 600_000])
def test_strings_of_any_length_are_stepped_over(file: Path, rng: random.Random, most: int) -> None:
    """Some hundred at once, or one by one: what is behind them is found."""
    count = rng.choice((127, 128, 129, 20_000)) if most <= 300 else 40
    lengths = [rng.randint(0, most) if rng.random() < 0.1 else min(most, 9) for _ in range(count)]
    array = b"".join(text(rng.choice((b"\0", b"\1", b"<")) * length) for length in lengths)
    several = struct.pack("<IQ", STRING, count) + array
    entries = (entry("tokenizer.ggml.tokens", ARRAY, several), u32("behind", 7))
    file.write_bytes(raw(entries))
    found = weights.read(file)
    assert (found.vocabulary, found.metadata["behind"]) == (count, 7)
    assert found.size == file.stat().st_size
    for cut in (1, 8, len(entries[1]) - 1, len(entries[1]) + 1):
        refusal(file, raw(entries)[:-cut])


def test_a_sparse_file_that_claims_the_most_costs_little(file: Path) -> None:
    empty = struct.pack("<IQ", STRING, 2**30)
    file.write_bytes(raw((entry("a", ARRAY, empty),)))
    os.truncate(file, 2**34)
    tracemalloc.start()
    start = time.process_time()
    with pytest.raises(PyllamafileError, match="claims 1073741824 strings"):
        weights.read(file)
    took, (_, peak) = time.process_time() - start, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert took < 0.5
    assert peak < 1 << 20


def test_every_truncation_is_refused(file: Path) -> None:
    content = tiny_gguf(file, tokens=4).read_bytes()
    complete = weights.read(file).size
    for length in range(complete):
        refusal(file, content[:length])
    file.write_bytes(content[:complete])
    assert weights.read(file).size == complete


def test_damage_is_refused_or_harmless(file: Path, rng: random.Random) -> None:
    content = tiny_gguf(file, tokens=8).read_bytes()
    header = weights.read(file).data_offset
    refused = sound = 0
    for _ in range(3000):
        damaged = bytearray(content)
        for _ in range(rng.choice((1, 1, 2, 8))):
            at = rng.randrange(header)
            damaged[at] = rng.choice((0, 0xFF, 0x80, damaged[at] ^ 1 << rng.randrange(8)))
        file.write_bytes(damaged)
        try:
            found = weights.read(file)
        except PyllamafileError as error:
            refused += str(file) in error.message and "\n" not in error.message
        else:
            assert found.size <= len(content)
            assert all(found.data_offset <= t.offset for t in found.tensors)
            assert all(t.offset + t.size <= len(content) for t in found.tensors)
            _ = (found.quantization, found.parameters, found.tokenizer, found.vocabulary)
            sound += 1
    assert refused + sound == 3000
    assert refused > 1000
    assert sound > 100


def part(path: Path, number: int, count: int) -> Path:
    key = struct.pack("<H", number), struct.pack("<H", count)
    path.write_bytes(raw((entry("split.no", 2, key[0]), entry("split.count", 2, key[1]))))
    return path


def test_shards_are_found_from_any_of_them(tmp_path: Path) -> None:
    paths = [part(tmp_path / f"m-v2-{i + 1:05}-of-00003.gguf", i, 3) for i in range(3)]
    for path in paths:
        assert weights.shards(path) == tuple(paths)
    assert weights.read(paths[1]).split == (1, 3)


def test_a_name_without_parts_is_alone(tmp_path: Path) -> None:
    for name in ("m.gguf", "m-0001-of-0003.gguf", "m-00001-of-00003.bin", "m-00001-of-00003"):
        assert weights.shards(tmp_path / name) == (tmp_path / name,)


def test_one_of_one(tmp_path: Path) -> None:
    path = tiny_gguf(tmp_path / "m-00001-of-00001.gguf")
    assert weights.shards(path) == (path,)


def test_the_first_missing_shard_is_named(tmp_path: Path) -> None:
    last = part(tmp_path / "m-00004-of-00004.gguf", 3, 4)
    part(tmp_path / "m-00001-of-00004.gguf", 0, 4)
    with pytest.raises(PyllamafileError, match=r"m-00002-of-00004\.gguf is missing"):
        weights.shards(last)
    for name in ("m-00005-of-00004.gguf", "m-00000-of-00004.gguf", "m-00000-of-00000.gguf"):
        with pytest.raises(PyllamafileError, match="there is no part"):
            weights.shards(tmp_path / name)


def test_a_shard_that_is_another_part_than_its_name_says(tmp_path: Path) -> None:
    first = part(tmp_path / "m-00001-of-00002.gguf", 0, 2)
    second = part(tmp_path / "m-00002-of-00002.gguf", 0, 2)
    with pytest.raises(PyllamafileError, match=r"m-00002-of-00002\.gguf.*part 1 of 2"):
        weights.shards(first)
    tiny_gguf(second)
    with pytest.raises(PyllamafileError, match="a model in one file"):
        weights.shards(first)
