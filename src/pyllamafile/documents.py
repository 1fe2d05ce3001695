"""The text in documents: what a llamafile has read (launcher/FORMAT.md, section 10)."""

from __future__ import annotations

import io
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from html.parser import HTMLParser
from importlib import import_module
from pathlib import Path
from typing import Any, Final

from pyllamafile.arguments import decoded
from pyllamafile.errors import (
    AccessError,
    DamagedError,
    PyllamafileError,
    RefusedError,
    UnavailableError,
)

MOST: Final = 16 << 20
"""Bytes that the text of all documents together may have: a runtime reads no more."""

_MOST_FILE: Final = 256 << 20  # bytes of one document, pictures included
_PAGE_END: Final = "\f"


def joined(paths: Sequence[Path]) -> str:
    """The texts of documents, one behind the other, each below the name of its file.

    Args:
        paths: Markdown, HTML, PDF, DOCX, or any other text.

    Raises:
        PyllamafileError: One can't be read, has no text, or all have more than `MOST` bytes.
    """
    texts = [f"File {path.name}:\n{text_of(path)}" for path in paths]
    text = "\n\n".join(texts) + "\n"
    if (size := len(text.encode())) > MOST:
        raise RefusedError(f"the documents have {size:,} bytes of text, and may have {MOST:,}")
    return text


def text_of(path: Path) -> str:
    """The text in a document, by what its name ends in, without white space around it.

    Raises:
        PyllamafileError: It can't be read, has no text, or the package that reads it is missing.
    """
    return _text(path, _READERS).strip()


def pages_of(path: Path) -> list[str]:
    """The same page by page: those of a PDF, and of a text with form feeds; else one.

    Raises:
        PyllamafileError: As `text_of`.
    """
    return _text(path, {**_READERS, ".pdf": _pdf_pages}).split(_PAGE_END)


def _text(path: Path, readers: Mapping[str, Callable[[bytes], str]]) -> str:
    try:
        if path.stat().st_size > _MOST_FILE:
            raise RefusedError(f"{path}: has more than {_MOST_FILE:,} bytes", path=path)
        content = path.read_bytes()
    except OSError as error:
        raise AccessError(f"{path}: {error.strerror}", path=path) from error
    read = readers.get(path.suffix.lower(), _plain)
    try:
        text = read(content)
        text.encode()
    except UnicodeError as error:
        raise RefusedError(f"{path}: is no text in UTF-8 or UTF-16", path=path) from error
    except PyllamafileError as error:
        raise type(error)(f"{path}: {error.message}", error.hint, path=path) from error
    if "\0" in text:
        raise RefusedError(f"{path}: is no text", path=path)
    if not text.strip():
        pictures = ": its pages may be pictures" if read in (_pdf, _pdf_pages) else ""
        raise RefusedError(f"{path}: has no text in it{pictures}", path=path)
    return text


def check(text: bytes) -> None:
    """Refuse what a runtime would not take for what the file has read.

    Raises:
        RefusedError: It is no text in UTF-8, or has more than `MOST` bytes.
    """
    if len(text) > MOST:
        raise RefusedError(f"has {len(text):,} bytes of text, and may have {MOST:,}")
    try:
        fine = text.strip() and "\0" not in text.decode()
    except UnicodeDecodeError:
        fine = False
    if not fine:
        raise RefusedError("is no text in UTF-8")


def _plain(content: bytes) -> str:
    return decoded(content)


def _library(name: str, package: str) -> Any:  # noqa: ANN401
    try:
        return import_module(name)
    except ImportError as error:
        raise UnavailableError(
            f"the Python package {package} is missing, which reads it",
            hint="pip install 'pyllamafile[documents]'",
        ) from error


def _pdf(content: bytes) -> str:
    pages = (page.strip() for page in _pdf_pages(content).split(_PAGE_END))
    return "\n\n".join(page for page in pages if page)


def _pdf_pages(content: bytes) -> str:
    pypdf = _library("pypdf", "pypdf")
    logging.getLogger("pypdf").setLevel(logging.CRITICAL)  # of what it mends it says too much
    try:
        reader = pypdf.PdfReader(io.BytesIO(content))
        locked = reader.is_encrypted and not reader.decrypt("")
        pages = [] if locked else [page.extract_text() for page in reader.pages]
        pages = [page.replace(_PAGE_END, "\n") for page in pages]
    except Exception as error:  # of damaged files it raises whatever comes
        raise DamagedError(f"can't be read as PDF: {_line(error)}") from error
    if locked:
        raise RefusedError("is encrypted, with a password")
    # what has no form in Unicode comes as half a surrogate pair
    text = _PAGE_END.join(pages)
    return text.encode(errors="replace").decode().replace("\0", "")


def _docx(content: bytes) -> str:
    docx = _library("docx", "python-docx")
    try:
        document = docx.Document(io.BytesIO(content))
        blocks = [_block(block) for block in document.iter_inner_content()]
    except Exception as error:
        raise DamagedError(f"can't be read as DOCX: {_line(error)}") from error
    return "\n\n".join(block for block in blocks if block)


def _block(block: Any) -> str:  # noqa: ANN401
    if hasattr(block, "rows"):
        rows = ([cell.text.strip() for cell in row.cells] for row in block.rows)
        return "\n".join(" | ".join(row) for row in rows)
    style = re.fullmatch(r"Heading (\d)", block.style.name if block.style else "")
    text = str(block.text).strip()
    return f"{'#' * int(style[1])} {text}" if style and text else text


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def _html(content: bytes) -> str:
    text = _Text()
    text.feed(_of_page(content))
    text.close()
    return text.text()


def _of_page(content: bytes) -> str:
    """A page in the encoding that it names, or else as any text."""
    named = re.search(rb"<meta[^>]{0,200}charset=[\"' ]*([\w.:-]+)", content[:2048], re.IGNORECASE)
    try:
        return decoded(content)
    except UnicodeDecodeError:
        if not named:
            raise
    try:
        return content.decode(named[1].decode(), errors="replace")
    except (LookupError, UnicodeDecodeError) as error:
        raise RefusedError(f"is in an unknown encoding: {named[1].decode()}") from error


_HIDDEN: Final = {"head", "script", "style", "template", "noscript", "svg", "iframe", "object"}
_HEADINGS: Final = {f"h{level}": f"{'#' * level} " for level in range(1, 7)}
_LINES: Final = {"br", "tr", "dt", "dd", "caption", "option"}  # begin a line
_BLOCKS: Final = {
    *("address", "article", "aside", "blockquote", "details", "dialog", "div", "dl", "fieldset"),
    *("figcaption", "figure", "footer", "form", "header", "hr", "main", "nav", "ol", "p", "pre"),
    *("section", "summary", "table", "ul", *_HEADINGS),
}


class _Text(HTMLParser):
    """What a page shows, with line feeds where the browser begins a line."""

    def __init__(self) -> None:
        super().__init__()
        self._parts: list[str] = []
        self._hidden: list[str] = []  # the elements around, of which nothing is shown
        self._kept = 0  # elements around whose white space counts
        self._fresh = 2  # line feeds that were just written; text needs none in front

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in _HIDDEN:
            self._hidden.append(tag)
        if self._hidden:
            return
        self._kept += tag == "pre"
        if tag in _BLOCKS:
            self._begin(2, _HEADINGS.get(tag, ""))
        elif tag in _LINES:
            self._begin(1)
        elif tag == "li":
            self._begin(1, "- ")
        elif tag in ("td", "th") and not self._fresh:
            self._parts.append(" | ")

    def handle_endtag(self, tag: str) -> None:
        if tag in self._hidden:
            del self._hidden[self._hidden.index(tag) :]
        elif not self._hidden:
            self._kept -= tag == "pre" and self._kept > 0
            if tag in _BLOCKS:
                self._begin(2)

    def handle_data(self, data: str) -> None:
        if self._hidden:
            return
        if not self._kept:
            data = re.sub(r"[ \t\n\r\f]+", " ", data)
            if self._fresh or self._parts[-1].endswith(" "):
                data = data.lstrip(" ")
        if data:
            self._parts.append(data)
            self._fresh = len(data) - len(data.rstrip("\n"))

    def text(self) -> str:
        """All of it."""
        return "".join(self._parts).replace("\xa0", " ")

    def _begin(self, lines: int, mark: str = "") -> None:
        """Begin a line behind so many line feeds; what follows at once stays behind its mark."""
        if self._parts:
            self._parts[-1] = self._parts[-1].rstrip(" ") if not self._fresh else self._parts[-1]
            self._parts.append("\n" * max(lines - self._fresh, 0))
        self._fresh = max(lines, self._fresh)
        if mark:
            self._parts.append(mark)
            self._fresh = 2


_READERS: Final[Mapping[str, Callable[[bytes], str]]] = {
    **dict.fromkeys((".html", ".htm", ".xhtml"), _html),
    ".pdf": _pdf,
    ".docx": _docx,
}
