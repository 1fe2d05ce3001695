"""Documents that a file can look things up in: cut into passages, and packed."""

from __future__ import annotations

import json
import random
import struct
import zipfile
import zlib
from pathlib import Path

import pytest
from fixtures import pdf
from hostile import IN_PARTS, NO_DOCUMENTS, PASSAGES

import pyllamafile
from pyllamafile import passages
from pyllamafile.errors import PyllamafileError, RefusedError
from pyllamafile.llamafile import DOCUMENTS, EMBEDDER
from pyllamafile.passages import Passage

HANDBOOK = """# Handbook

Welcome to the library.

## Opening hours

Open from nine to five.

```
# no heading
```

Prices
------

A card costs seven.
"""


@pytest.fixture
def here(folder, model):
    Path("m.gguf").write_bytes(model.read_bytes())
    Path("docs/.hidden").mkdir(parents=True)
    Path("docs/.hidden/x.md").write_text("never")
    Path("docs/handbook.md").write_text(HANDBOOK)
    Path("docs/sub").mkdir()
    Path("docs/sub/notes.txt").write_text("Notes of Tuesday.")
    Path("docs/picture.png").write_bytes(b"\x89PNG\r\n\x1a\n\0\xff")
    return folder


def read_entry(content: bytes) -> tuple[dict, list[tuple[float, ...]]]:
    """What FORMAT.md, section 11 says that is there; by another reader than ours."""
    magic, version, count, dimension, unused = struct.unpack("<8s4I", content[:24])
    stored, size, at = struct.unpack("<3Q", content[24:48])
    assert (magic, version, unused, content[48:64]) == (b"passages", 1, 0, bytes(16))
    text = zlib.decompress(content[64 : 64 + stored], -15)
    assert len(text) == size
    said = json.loads(text)
    assert len(said["passages"]) == count
    if not dimension:
        assert (at, len(content)) == (0, 64 + stored)
        return said, []
    assert at % 64 == 0
    assert len(content) == at + count * dimension * 2
    return said, list(struct.iter_unpack(f"<{dimension}e", content[at:]))


def test_sections_and_headings():
    found = passages.cut("handbook.md", [HANDBOOK])
    assert found == [
        Passage("handbook.md", 0, "Handbook", "Welcome to the library."),
        Passage(
            "handbook.md",
            0,
            "Handbook > Opening hours",
            "Open from nine to five.\n\n```\n# no heading\n```",
        ),
        Passage("handbook.md", 0, "Handbook > Prices", "A card costs seven."),
    ]
    manual = "LS(1)\n\nNAME\n     ls - list\n\nSEE ALSO\n     cd\n# no heading\n"
    assert [(p.heading, p.text) for p in passages.cut("ls.txt", [manual])] == [
        ("ls - list > NAME", "     ls - list"),
        ("ls - list > SEE ALSO", "     cd\n# no heading"),
    ]


def test_pages():
    found = passages.cut("a.pdf", ["One.", "", "Three."])
    assert [(p.page, p.text) for p in found] == [(1, "One."), (3, "Three.")]
    assert [p.page for p in passages.cut("a.pdf", ["One."])] == [1]
    assert [p.page for p in passages.cut("a.txt", ["One."])] == [0]


def test_pieces_hold_all_words_and_overlap(rng: random.Random):
    words = [f"w{number}{'x' * rng.randrange(12)}" for number in range(4000)]
    text = "".join(word + rng.choice([" ", " ", " ", ". ", "\n", "\n\n"]) for word in words)
    found = passages.cut("a.txt", [text])
    assert all(len(p.text.encode()) <= 1200 for p in found)
    assert len(found) > 20
    seen = [word.strip(".") for p in found for word in p.text.split()]
    assert list(dict.fromkeys(seen)) == words  # in order, and each at least once
    assert len(seen) > len(words)
    assert len(seen) < 1.3 * len(words)


@pytest.mark.parametrize("text", ["x" * 5000, "\u00e9" * 5000, "\u4e2d\u3002" * 2000, "a " * 3000])
def test_what_has_no_words_or_sentences(text):
    found = passages.cut("a.txt", [text])
    assert all(0 < len(p.text.encode()) <= 1200 for p in found)
    assert sum(len(p.text.replace(" ", "")) for p in found) >= len(text.replace(" ", ""))


def test_a_folder_goes_in(run, here):
    done = run("build", "--gguf", "m.gguf", "--documents", "docs", "-o", "o")
    assert done.code == 0, done.err
    assert "documents 2, in 4 passages, found by words alone (no --embedder)\n" in done.out
    assert "left out  picture.png: is no text in UTF-8 or UTF-16\n" in done.out
    with zipfile.ZipFile("o") as archive:
        said, vectors = read_entry(archive.read(DOCUMENTS))
    assert said["sources"] == ["handbook.md", "sub/notes.txt"]
    assert said["passages"][2] == [0, 0, "Handbook > Prices", "A card costs seven."]
    assert said["passages"][3] == [1, 0, "", "Notes of Tuesday."]
    assert vectors == []
    assert pyllamafile.verify("o") == []
    shown = run("inspect", "o").out
    assert "documents\n  passages      4, found by words\n  document      handbook.md" in shown
    documents = pyllamafile.inspect("o").as_dict()["documents"]
    assert documents["sources"] == ("handbook.md", "sub/notes.txt")
    assert documents["passages"] == 4


def test_one_damaged_document_is_left_out(run, here):
    pytest.importorskip("pypdf", reason="pip install 'pyllamafile[documents]'")
    Path("docs/broken.pdf").write_bytes(b"x")
    done = run("build", "--gguf", "m.gguf", "--documents", "docs", "-o", "o")
    assert done.code == 0, done.err
    assert "left out  broken.pdf: can't be read as PDF: " in done.out


def test_pages_of_a_pdf_go_in(run, here):
    pytest.importorskip("pypdf", reason="pip install 'pyllamafile[documents]'")
    Path("docs/a.pdf").write_bytes(pdf("One turnip costs seven."))
    assert run("build", "--gguf", "m.gguf", "--documents", "docs", "-o", "o").code == 0
    with zipfile.ZipFile("o") as archive:
        said, _ = read_entry(archive.read(DOCUMENTS))
    assert said["passages"][0] == [0, 1, "", "One turnip costs seven."]


def test_other_changes_keep_it(run, here, prebuilt):
    run("build", "--gguf", "m.gguf", "--documents", "docs", "-o", "o")
    with zipfile.ZipFile("o") as archive:
        before = archive.read(DOCUMENTS)
    Path("note").write_text("x")
    assert run("add", "o", "note").code == 0
    assert run("upgrade", "o").code == 0
    with zipfile.ZipFile("o") as archive:
        assert archive.read(DOCUMENTS) == before
    assert run("remove", "o", DOCUMENTS).code == 0
    assert pyllamafile.inspect("o").documents is None
    Path("p").write_bytes(before)
    assert run("add", "o", f"p={DOCUMENTS}").code == 0
    assert pyllamafile.inspect("o").documents.passages == 4
    assert pyllamafile.verify("o") == []


def test_the_same_folder_gives_the_same_bytes(here):
    made = [pyllamafile.build("m.gguf", name, documents="docs").path for name in ("a", "b")]
    assert made[0].read_bytes() == made[1].read_bytes()


def test_vectors():
    found = passages.cut("handbook.md", [HANDBOOK])
    content = passages.entry(found, [(1.0, 0.0), (0.0, 1.0), (0.5, -0.5)], "query: ")
    said, vectors = read_entry(content)
    assert said["query"] == "query: "
    assert vectors == [(1.0, 0.0), (0.0, 1.0), (0.5, -0.5)]
    assert passages.facts(content).dimension == 2


def test_what_vectors_are_made_of():
    long = " ".join(f"Sentence number {number}." for number in range(60))
    one = Passage("man/ls.1.txt", 0, "ls - list > OPTIONS", f"-a\n    all\n\n***\n\n{long}")
    first, *others = one.embedded
    assert first == "ls.1\nls - list > OPTIONS\n-a all"
    above = "ls.1\nls - list > OPTIONS\n"
    assert all(text.startswith(above + "Sentence") and text.endswith(".") for text in others)
    assert all(len(text) <= len(above) + 500 for text in others)
    assert " ".join(text.removeprefix(above) for text in others) == long
    assert Passage("a.md", 0, "", "...").embedded == ("a\n...",)


def test_a_passage_has_several_vectors():
    found = passages.cut("handbook.md", [HANDBOOK])
    rows = [(1.0, 0.0), (0.0, 1.0), (0.5, -0.5), (-1.0, 0.0)]
    content = passages.entry(found, rows, "", [1, 2, 1])
    assert struct.unpack_from("<4I", content, 8) == (2, 3, 2, 4)
    stored, _, at = struct.unpack_from("<3Q", content, 24)
    said = json.loads(zlib.decompress(content[64 : 64 + stored], -15))
    assert [row[4] for row in said["passages"]] == [1, 2, 1]
    assert list(struct.iter_unpack("<2e", content[at:])) == rows
    assert passages.facts(content) == passages.Documents(("handbook.md",), 3, 2)
    assert passages.entry(found, rows[:3], "", [1, 1, 1]) == passages.entry(found, rows[:3])


def test_what_goes_wrong(fails, here):
    command = ("build", "--gguf", "m.gguf", "-o", "o", "--documents")
    fails("none: no such folder", *command, "none")
    fails("m.gguf: not a folder", *command, "m.gguf")
    Path("empty").mkdir()
    Path("empty/a.txt").write_text("...")
    fails("empty: has no document with text in it", *command, "empty")
    hint = "give their folder with --documents"
    message = "m.gguf finds passages of documents, and there are none"
    fails(message, *command[:-1], "--embedder", "m.gguf", hint=hint)
    fails(
        "cannot read none.gguf: No such file or directory",
        *command,
        "docs",
        "--embedder",
        "none.gguf",
    )


def test_the_embedder_lies_where_it_can_be_mapped(here, monkeypatch):
    monkeypatch.setattr(
        pyllamafile.ops.build.trial,
        "embedded",
        lambda _, __, texts, ___: [(1.0, 0.0) for _ in texts],
        raising=True,
    )
    monkeypatch.setattr(pyllamafile.ops.build.engine, "host_runtime", lambda _: Nothing())
    built = pyllamafile.build("m.gguf", "o", documents="docs", embedder="m.gguf")
    assert (built.embedder, built.documents, built.passages) == ("m.gguf", 2, 4)
    report = pyllamafile.inspect("o")
    entries = {entry.name: entry for entry in report.entries}
    assert entries[EMBEDDER].alignment == 65536
    assert entries[DOCUMENTS].alignment >= 64
    assert [model.file for model in report.models] == ["m.gguf"]
    assert report.documents.dimension == 2
    assert pyllamafile.verify("o") == []


class Nothing:
    def program(self) -> bytes:
        return b""


def test_names_of_embedders():
    assert passages.task_of("Qwen3 Embedding 0.6B").query.startswith("Instruct: ")
    assert passages.task_of("nomic-embed-text-v1.5.Q8_0.gguf").passage == "search_document: "
    assert passages.task_of("all-MiniLM-L6-v2") == passages.Task()


@pytest.mark.parametrize("content", NO_DOCUMENTS, ids=range(len(NO_DOCUMENTS)))
def test_entries_that_are_none(here, content):
    with pytest.raises(RefusedError, match="holds no passages"):
        passages.facts(content)


def test_an_entry_that_is_none_is_refused_and_shown(fails, run, here):
    Path("x").write_bytes(PASSAGES[:-1])
    message = "x: holds no passages: its numbers don't fit its size"
    fails(message, "build", "--gguf", "m.gguf", "-o", "o", "--add", f"x={DOCUMENTS}")
    run("build", "--gguf", "m.gguf", "-o", "o")
    fails(message, "add", "o", f"x={DOCUMENTS}")
    Path(DOCUMENTS).write_bytes(PASSAGES[:-1])
    assert run("zipalign", "o", DOCUMENTS).code == 0  # any zip tool can
    shown = run("inspect", "o")
    assert shown.code == 0
    assert "documents     holds no passages: its numbers don't fit its size" in shown.out


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (PASSAGES[:40], "it has 40 bytes, and documents begin with 64"),
        (b"x" + PASSAGES[1:], "it does not begin as documents do"),
        (PASSAGES[:-1], f"its numbers are those of {len(PASSAGES)} bytes, not {len(PASSAGES) - 1}"),
        (IN_PARTS[:-1], f"its numbers are those of {len(IN_PARTS)} bytes, not {len(IN_PARTS) - 1}"),
    ],
)
def test_verify_sees_documents_that_are_none(run, here, content, what):
    run("build", "--gguf", "m.gguf", "-o", "o")
    Path(DOCUMENTS).write_bytes(content)
    assert run("zipalign", "o", DOCUMENTS).code == 0
    assert [each.what for each in pyllamafile.verify("o")] == [what]


def test_whatever_stands_there_is_read_or_refused(rng: random.Random):
    for _ in range(300):
        content = bytearray(rng.choice([PASSAGES, IN_PARTS]))
        for _ in range(rng.randrange(1, 4)):
            content[rng.randrange(len(content))] = rng.randrange(256)
        try:
            passages.facts(bytes(content))
        except PyllamafileError:
            continue
