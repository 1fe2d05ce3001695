"""The runtime's reader of documents, held against ours on what nobody would write."""

from __future__ import annotations

import json
import random
import struct
import subprocess
import zlib
from collections.abc import Callable
from typing import Any

import pytest
from hostile import IN_PARTS, NO_DOCUMENTS, PASSAGES, TESTS
from running import need

from pyllamafile import native, passages
from pyllamafile.errors import RefusedError
from pyllamafile.passages import Passage

pytestmark = pytest.mark.native

Reader = Callable[[list[bytes]], list[Any]]


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Reader:
    """passages.cpp as a program, under AddressSanitizer and UBSan."""
    clang = need("clang++", "clang")
    folder = tmp_path_factory.mktemp("reader")
    ours = TESTS.parent / "src" / "pyllamafile" / "native" / "runtime"
    vendor = native.llama_source() / "vendor"
    flags = ["-std=c++17", "-w", "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    includes = [f"-I{ours}", f"-isystem{vendor}", f"-isystem{vendor / 'stb'}"]
    sources = [ours / "container.cpp", ours / "documents" / "passages.cpp"]
    sources.append(TESTS / "container" / "fuzz_passages.cpp")
    done = subprocess.run([clang, *flags, *includes, *sources, "-o", folder / "reader"],
                          capture_output=True)  # fmt: skip
    assert (done.returncode, done.stderr) == (0, b"")

    def read(entries: list[bytes]) -> list[Any]:
        paths = []
        for number, content in enumerate(entries):
            paths.append(folder / str(number))
            paths[-1].write_bytes(content)
        done = subprocess.run([folder / "reader", *paths], capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")
        return [json.loads(line) for line in done.stdout.splitlines()]

    return read


MANY = passages.entry(
    [
        Passage("more/handbook.md", 0, "Handbook > [1] Prices", "A card costs seven."),
        Passage("a.pdf", 12, "", "\u56fe\u4e66\u9986 \u00e9 \U0001f600"),
        Passage(".x", 0, "X", ""),
    ],
    [(1.0, 0.0), (0.0, -1.0), (0.5, 0.25)],
    "query: ",
)


PARTS = passages.entry(
    [Passage("a.txt", 0, "", "One.\n\nTwo."), Passage("a.txt", 0, "", "Three.")],
    [(1.0, 0.0), (0.0, -1.0), (0.5, 0.25)],
    "",
    [2, 1],
)


def agreed(reader: Reader, entries: list[bytes]) -> int:
    """How many are documents, to both readers."""
    found = reader(entries)
    count = 0
    for content, theirs in zip(entries, found, strict=True):
        try:
            ours = passages.facts(content)
        except RefusedError:
            assert theirs is None, content
            continue
        assert theirs is not None, content
        sources, _, dimension, _, read = theirs
        assert (tuple(sources), dimension, len(read)) == (
            ours.sources,
            ours.dimension,
            ours.passages,
        )
        count += 1
    return count


def test_what_is_right(reader: Reader) -> None:
    [[sources, query, dimension, vectors, read]] = reader([MANY])
    assert sources == ["more/handbook.md", "a.pdf", ".x"]
    assert (query, dimension) == ("query: ", 2)
    halves = struct.unpack("<6e", struct.pack("<6H", *vectors))
    assert halves == (1.0, 0.0, 0.0, -1.0, 0.5, 0.25)
    assert [(row[4], row[5]) for row in read] == [
        ("more/handbook.md, (1) Prices", "handbook\nHandbook > [1] Prices\nA card costs seven."),
        ("a.pdf, p. 12", "a\n\n\u56fe\u4e66\u9986 \u00e9 \U0001f600"),
        (".x, X", ".x\nX\n"),
    ]


def test_parts_of_passages(reader: Reader) -> None:
    [[_, _, dimension, vectors, read]] = reader([PARTS])
    assert (dimension, len(vectors), [row[6] for row in read]) == (2, 6, [2, 1])
    [[*_, read]] = reader([MANY])
    assert [row[6] for row in read] == [1, 1, 1]


def test_what_is_wrong(reader: Reader) -> None:
    assert agreed(reader, NO_DOCUMENTS) == 0
    assert agreed(reader, [PASSAGES, MANY, IN_PARTS, PARTS]) == 4


def test_bytes_at_random(reader: Reader, rng: random.Random) -> None:
    entries = []
    for _ in range(1000):
        content = bytearray(rng.choice([PASSAGES, MANY, IN_PARTS, PARTS]))
        for _ in range(rng.randrange(1, 4)):
            content[rng.randrange(len(content))] = rng.choice([0, 1, 0xFF, rng.randrange(256)])
        entries.append(
            bytes(content[: rng.randrange(len(content))] if rng.random() < 0.1 else content)
        )
    assert agreed(reader, entries) > 0


def test_texts_at_random(reader: Reader, rng: random.Random) -> None:
    """Whatever is deflated, with numbers that fit it."""
    parts = [b"[", b"]", b"{", b"}", b",", b":", b'"', b"0", b"1", b"-1", b"1.5", b"null", b"true",
             b'"query"', b'"passages"', b'"a"', b"\\ud800", b"\xff", b" "]  # fmt: skip
    right = zlib.decompress(MANY[64 : 64 + struct.unpack_from("<Q", MANY, 24)[0]], -15)
    entries = []
    for _ in range(1000):
        text = right
        for _ in range(rng.randrange(0, 3)):
            at = rng.randrange(len(text) + 1)
            text = text[:at] + rng.choice(parts) + text[at + rng.randrange(2) :]
        deflate = zlib.compressobj(wbits=-15)
        packed = deflate.compress(text) + deflate.flush()
        head = struct.pack("<8s4I3Q", b"passages", 1, 3, 0, 0, len(packed), len(text), 0)
        entries.append(head.ljust(64, b"\0") + packed)
    assert agreed(reader, entries) > 100
