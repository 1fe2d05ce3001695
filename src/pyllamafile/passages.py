"""What a llamafile can look up: documents, cut into passages (launcher/FORMAT.md, section 11)."""

from __future__ import annotations

import json
import os
import re
import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

from pyllamafile import documents
from pyllamafile.errors import AccessError, DamagedError, NotFoundError, RefusedError

MOST: Final = 64 << 20
"""Bytes that the texts of all passages may have, as JSON: a runtime reads no more."""

MOST_PASSAGES: Final = 200_000
"""How many of them there may be."""

MOST_DIMENSION: Final = 8192
"""Numbers that a vector may have."""

MOST_VECTORS: Final = 2_000_000
"""How many vectors all passages together may have."""

MOST_ENTRY: Final = 1 << 30
"""Bytes that all of it may have: a runtime holds it in memory."""

ALIGNMENT: Final = 64
"""What the vectors are aligned to, in bytes, in the entry; and the entry in the file."""

_LONGEST: Final = 1200  # bytes of a passage: about 300 tokens
_OVERLAP: Final = 160  # bytes of the end of a passage that the next one begins with
_LONGEST_PARAGRAPH: Final = 500  # bytes that one vector is made of, without what stands above

_MAGIC: Final = b"passages"
_ONE, _SEVERAL = 1, 2  # the versions: how many vectors a passage has
# magic, version, passages, dimension, vectors, JSON: deflated and inflated, vectors' place
_HEADER: Final = struct.Struct("<8s4I3Q")
_TEXTS_AT: Final = 64


class Passage(NamedTuple):
    """A piece of a document.

    Attributes:
        source: The document's name: its path in the folder, with forward slashes.
        page: The page that it begins on, from 1; 0 where there are no pages.
        heading: The headings above it, the outermost first, with ` > ` between them.
        text: What it says.
    """

    source: str
    page: int
    heading: str
    text: str

    @property
    def embedded(self) -> tuple[str, ...]:
        """What its vectors are made of: its paragraphs, each below where it stands.

        A vector of several paragraphs is near to the questions about none of them. Where they
        stand says what they are about.
        """
        name = self.source.rpartition("/")[2]
        title = name.rpartition(".")[0] or name
        texts = tuple(_paragraphs(self.text)) or (self.text,)
        return tuple("\n".join(each for each in (title, self.heading, t) if each) for t in texts)


@dataclass(frozen=True)
class Found:
    """The documents of a folder.

    Attributes:
        passages: What they were cut into, in order.
        left_out: Names of files that are no documents, each with the reason.
    """

    passages: tuple[Passage, ...]
    left_out: tuple[tuple[str, str], ...]

    @property
    def sources(self) -> list[str]:
        """The names of the documents."""
        return list(dict.fromkeys(passage.source for passage in self.passages))


@dataclass(frozen=True)
class Documents:
    """What a llamafile can look things up in.

    Attributes:
        sources: The names of the documents.
        passages: How many passages there are.
        dimension: Numbers of each passage's vector; 0 where there are none.
    """

    sources: tuple[str, ...]
    passages: int
    dimension: int


class Task(NamedTuple):
    """What a model for embeddings wants in front of a text, by what the text is."""

    passage: str = ""
    query: str = ""


# By what the names of such models have in them, as their makers say. The first one counts.
_TASKS: Final[Mapping[str, Task]] = {
    "nomic-embed": Task("search_document: ", "search_query: "),
    "qwen3-embedding": Task(
        "",
        "Instruct: Given a question, retrieve passages that answer it\nQuery:",
    ),
    "embeddinggemma": Task("title: none | text: ", "task: search result | query: "),
    "e5": Task("passage: ", "query: "),
    "bge": Task("", "Represent this sentence for searching relevant passages: "),
    "arctic-embed": Task("", "Represent this sentence for searching relevant passages: "),
    "mxbai-embed": Task("", "Represent this sentence for searching relevant passages: "),
}

EMBEDDERS: Final[Mapping[str, str]] = {
    "english": "hf:CompendiumLabs/bge-small-en-v1.5-gguf:Q8_0",
    "multilingual": "hf:Qwen/Qwen3-Embedding-0.6B-GGUF:Q8_0",
}
"""Models for embeddings that go by a short name, each with where it is."""


def task_of(name: str) -> Task:
    """What a model of this name wants in front of texts; nothing where that is not known."""
    plain = name.lower().replace("_", "-").replace(" ", "-")
    return next((task for part, task in _TASKS.items() if part in plain), Task())


# Cutting


def in_folder(folder: Path) -> Found:
    """Read the documents in a folder and the folders in it, and cut them.

    Files and folders whose names begin with a dot are passed over.

    Raises:
        PyllamafileError: The folder has no document, one can't be read, or they are too many.
    """
    if not folder.is_dir():
        what = "not a folder" if folder.exists() else "no such folder"
        raise NotFoundError(f"{folder}: {what}", path=folder)
    made: list[Passage] = []
    left_out = []
    for path in _files(folder):
        name = path.relative_to(folder).as_posix()
        try:
            name.encode()
            made += cut(name, documents.pages_of(path))
        except UnicodeEncodeError as error:
            raise RefusedError(f"{path!r}: its name is not UTF-8", path=path) from error
        except (DamagedError, RefusedError) as error:
            left_out.append((name, error.message.removeprefix(f"{path}: ")))
        if len(made) > MOST_PASSAGES:
            raise RefusedError(
                f"{folder}: has more than {MOST_PASSAGES:,} passages of text", path=folder
            )
    if not made:
        raise RefusedError(f"{folder}: has no document with text in it", path=folder)
    return Found(tuple(made), tuple(left_out))


def _files(folder: Path) -> Iterator[Path]:
    def fail(error: OSError) -> None:
        raise AccessError(f"{error.filename}: {error.strerror}", path=folder) from error

    for place, folders, files in os.walk(folder, onerror=fail):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            path = Path(place, name)
            if not name.startswith(".") and path.is_file():
                yield path


def cut(source: str, pages: Sequence[str]) -> list[Passage]:
    """Cut a document into passages, none of them over the end of a page or a section.

    Args:
        source: Its name, by whose end its headings are known.
        pages: Its text.
    """
    numbered = len(pages) > 1 or source.lower().endswith(".pdf")
    marked = Path(source).suffix.lower() in _WITH_MARKS
    out = []
    # A page goes on with the section of the one before.
    trail = [] if marked else _titles(pages[0])
    for number, page in enumerate(pages, 1):
        for heading, text in _sections(page, trail, marked):
            for piece in _pieces(text):
                out.append(Passage(source, number if numbered else 0, heading, piece))
    return out


def _titles(page: str) -> list[str]:
    """What a manual page is about, which its first section says in a line."""
    match = re.search(
        r"^(?:NAME|Name)\n+[ \t]+(\S.{0,300}(?:\n[ \t]+\S.{0,300})?)", page, re.MULTILINE
    )
    found = " ".join(match[1].split()) if match else ""
    return [found] if re.search(r" [-\u2013\u2014] ", found) else []


_WITH_MARKS: Final = {".md", ".markdown", ".html", ".htm", ".xhtml", ".docx"}
_MARKED: Final = re.compile(r" {0,3}(#{1,6})[ \t]+(.*?)[ \t]*#*[ \t]*$")  # CommonMark, ATX
_FENCE: Final = re.compile(r" {0,3}(```|~~~)")
_UNDERLINE: Final = re.compile(r" {0,3}(=+|-{2,})[ \t]*$")  # CommonMark, setext
_CAPITALS: Final = re.compile(r"[A-Z][A-Z0-9 ,/&()'.-]{2,60}$")  # as manual pages have them


def _sections(page: str, trail: list[str], marked: bool) -> Iterator[tuple[str, str]]:
    """The sections of a page, each with its headings. The trail is left as it is at the end."""
    lines = page.expandtabs(4).splitlines()
    text: list[str] = []
    fenced, at = False, 0
    while at < len(lines):
        fenced ^= bool(marked and _FENCE.match(lines[at]))
        level, title, height = (0, "", 1) if fenced else _heading(lines, at, marked)
        if level:
            yield _trail(trail), "\n".join(text)
            text = []
            del trail[level - 1 :]
            trail += ["" for _ in range(level - 1 - len(trail))]
            trail.append(title)
        else:
            text.append(lines[at].rstrip())
        at += height
    yield _trail(trail), "\n".join(text)


def _heading(lines: Sequence[str], at: int, marked: bool) -> tuple[int, str, int]:
    """The level of the heading that begins here, its words, and its lines; level 0 if none does."""
    line, below = lines[at], lines[at + 1] if at + 1 < len(lines) else ""
    mark = _MARKED.match(line) if marked else None
    if mark:
        return len(mark[1]), mark[2], 1
    if at and lines[at - 1].strip():
        return 0, "", 1
    underline = _UNDERLINE.match(below)
    if underline and line[:1].isalnum():
        return (1 if underline[1][0] == "=" else 2), line.strip(), 2
    capitals = not marked and _CAPITALS.match(line.rstrip())
    return (2, line.strip(), 1) if capitals else (0, "", 1)


def _trail(trail: Sequence[str]) -> str:
    return " > ".join(" ".join(title.split())[:200] for title in trail if title.strip())


def _pieces(text: str) -> Iterator[str]:
    """A section in pieces of `_LONGEST`, along its paragraphs, sentences and words."""
    piece = ""
    for part, between in _parts(text):
        if piece and _size(piece) + _size(between) + _size(part) > _LONGEST:
            yield piece
            tail = _tail(piece)
            fits = _size(tail) + 1 + _size(part) <= _LONGEST
            piece = f"{tail} {part}" if tail and fits else part
        else:
            piece = f"{piece}{between}{part}" if piece else part
    if any(c.isalnum() for c in piece):
        yield piece


def _size(text: str) -> int:
    return len(text.encode())


def _parts(text: str) -> Iterator[tuple[str, str]]:
    """What is not cut, and what stands in front of it."""
    for paragraph in re.split(r"\n\s*\n", text):
        paragraph = paragraph.strip("\n")
        if not paragraph.strip():
            continue
        if _size(paragraph) <= _LONGEST:
            yield paragraph, "\n\n"
            continue
        between = "\n\n"
        for line in paragraph.split("\n"):
            for sentence in re.split(_SENTENCE_END, line.strip()):
                for words in _bounded(sentence, _LONGEST):
                    yield words, between
                    between = " "
            between = "\n"


_SENTENCE_END: Final = r"(?<=[.!?:;])\s+|(?<=[\u3002\uff01\uff1f])"


def _bounded(text: str, most: int) -> Iterator[str]:
    """A text along its words, or, where a word has more bytes than fit, along its letters."""
    while _size(text) > most:
        head = text.encode()[:most].decode(errors="ignore")
        end = head.rfind(" ") if " " in head.strip() else len(head)
        yield head[:end]
        text = text[end:].lstrip()
    if text:
        yield text


def _paragraphs(text: str) -> Iterator[str]:
    """The paragraphs of a passage; those that are too long in pieces, along sentences and words."""
    for paragraph in re.split(r"\n\s*\n", text):
        piece = ""
        for sentence in re.split(_SENTENCE_END, " ".join(paragraph.split())):
            for words in _bounded(sentence, _LONGEST_PARAGRAPH):
                if piece and _size(piece) + 1 + _size(words) > _LONGEST_PARAGRAPH:
                    yield piece
                    piece = words
                else:
                    piece = f"{piece} {words}" if piece else words
        if any(c.isalnum() for c in piece):
            yield piece


def _tail(piece: str) -> str:
    """The last whole words of a piece."""
    end = piece.encode()[-_OVERLAP:].decode(errors="ignore")
    sentence = re.search(r"[.!?]\s+(\S.*)$", end, re.DOTALL)
    return sentence[1] if sentence else end.partition(" ")[2]


# The entry


def entry(
    passages: Sequence[Passage],
    vectors: Iterable[Sequence[float]] = (),
    query: str = "",
    counts: Sequence[int] = (),
) -> bytes:
    """The content of the entry.

    Args:
        passages: What can be found.
        vectors: Those of the first passage, those of the second, and so on, all as long and of the
            length 1; or none at all.
        query: What stands in front of a question when it is embedded.
        counts: How many vectors each passage has; without it, one.

    Raises:
        RefusedError: They have more bytes than a runtime reads.
    """
    sources = list(dict.fromkeys(passage.source for passage in passages))
    number = {name: at for at, name in enumerate(sources)}
    several = any(each != 1 for each in counts)  # else every version's runtime can read it
    says = {
        "sources": sources,
        "query": query,
        "passages": [
            [number[p.source], p.page, p.heading, p.text, *([counts[at]] if several else [])]
            for at, p in enumerate(passages)
        ],
    }
    text = json.dumps(says, ensure_ascii=False, separators=(",", ":")).encode()
    if len(text) > MOST:
        raise RefusedError(f"the documents have {len(text):,} bytes of text, and may have {MOST:,}")
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
    packed = deflate.compress(text) + deflate.flush()
    rows = [struct.pack(f"<{len(vector)}e", *vector) for vector in vectors]
    dimension = len(rows[0]) // 2 if rows else 0
    end = _TEXTS_AT + len(packed)
    at = -(-end // ALIGNMENT) * ALIGNMENT if rows else 0
    count = len(passages)
    version, total = (_SEVERAL, len(rows)) if several else (_ONE, 0)
    head = _HEADER.pack(_MAGIC, version, count, dimension, total, len(packed), len(text), at)
    gap = bytes(at - end) if rows else b""
    content = b"".join([head.ljust(_TEXTS_AT, b"\0"), packed, gap, *rows])
    if len(content) > MOST_ENTRY:
        raise RefusedError(f"the documents take {len(content):,} bytes, and may {MOST_ENTRY:,}")
    return content


def facts(content: bytes) -> Documents:
    """What an entry has, if a runtime can read it.

    Raises:
        RefusedError: It can't.
    """
    try:
        magic, version, count, dimension, total, stored, size, at = _HEADER.unpack_from(content)
    except struct.error as error:
        raise RefusedError("holds no passages: it is too short") from error
    several = version == _SEVERAL and count <= total <= MOST_VECTORS and dimension > 0
    if magic != _MAGIC or not (several or (version == _ONE and not total)):
        raise RefusedError("holds no passages that this version knows")
    end = _TEXTS_AT + stored
    rows = total if several else count
    whole = at + rows * dimension * 2 if dimension else end
    fits = size <= MOST and 0 < count <= MOST_PASSAGES and dimension <= MOST_DIMENSION
    placed = (end <= at and at % ALIGNMENT == 0) if dimension else at == 0
    if not (fits and placed and whole == len(content)):
        raise RefusedError("holds no passages: its numbers don't fit its size")
    try:
        inflate = zlib.decompressobj(-15)
        text = inflate.decompress(content[_TEXTS_AT:end], size + 1)
        whole_text = len(text) == size and inflate.eof
        said = json.loads(text.decode(), object_pairs_hook=_each_once) if whole_text else None
        sources = _checked(said, count, total)
    except (zlib.error, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise RefusedError("holds no passages: its texts are damaged") from error
    return Documents(tuple(sources), count, dimension)


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise ValueError("a key is there twice")
    return made


def _checked(said: Any, count: int, total: int) -> list[str]:  # noqa: ANN401
    """The names of the documents. Where the total of the vectors is 0, each passage has one.

    Raises:
        ValueError: Or another error of Python's: it is not what an entry says.
    """
    sources, passages = said["sources"], said["passages"]
    fine = (
        said.keys() == {"sources", "query", "passages"}
        and isinstance(said["query"], str)
        and isinstance(sources, list)
        and all(isinstance(name, str) for name in sources)
        and isinstance(passages, list)
        and len(passages) == count
    )
    vectors = 0
    for source, page, heading, text, *parts in passages if fine else ():
        fine &= type(source) is int and 0 <= source < len(sources)
        fine &= type(page) is int and 0 <= page < 1 << 31
        fine &= isinstance(heading, str) and isinstance(text, str)
        fine &= [type(each) for each in parts] == ([int] if total else [])
        fine &= all(0 < each <= total for each in parts)
        vectors += sum(parts)
        f"{heading}{text}".encode()  # half a surrogate pair is no text
    if not fine or vectors != total:
        raise ValueError(said)
    "".join([said["query"], *sources]).encode()
    return list(sources)
