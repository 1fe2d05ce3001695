"""Where the runtime takes hold of llama.cpp: the table ``seams.toml``, checked and met.

llama.cpp lies unchanged in the cache. A row of the table names a text of one of its files, how
often it must stand there, and how ours meets it. Before CMake configures a runtime, every row is
held against the source. One that doesn't fit stops the build and names itself: a macro over a call
that is gone would do nothing, and say nothing. CMake's commands are made of the rows.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pyllamafile.errors import PyllamafileError, RefusedError
from pyllamafile.native.building import tools

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FOLDER = Path(__file__).parent.parent / "runtime" / "seams"
TABLE = FOLDER / "seams.toml"

# By how a seam is met, the keys that such a row has beside those that every row has.
_EVERY: Final = {"name", "met", "file", "text", "count", "ours", "why", "test"}
_MAY: Final = {"also", "system"}
_KINDS: Final[Mapping[str, tuple[set[str], set[str]]]] = {
    "renamed": ({"target", "rename"}, set()),
    "header": ({"target", "header"}, set()),
    "edited": ({"target", "becomes"}, {"header"}),
    "replaced": ({"target", "header"}, set()),
    "called": (set(), set()),
}
_PLACE: Final = {"file", "text", "count"}


@dataclass(frozen=True)
class Place:
    """What must stand in a file of llama.cpp's.

    Attributes:
        file: Below llama.cpp's folder.
        text: The exact text.
        count: How often it must be found.
    """

    file: str
    text: str
    count: int

    def found(self, source: Path) -> int | None:
        """How often it stands in a llama.cpp; None if there is no such file."""
        path = source / self.file
        return path.read_text(errors="replace").count(self.text) if path.is_file() else None


@dataclass(frozen=True)
class Seam:
    """A row of the table, as its head explains it."""

    name: str
    met: str
    place: Place
    also: tuple[Place, ...]
    ours: str
    why: str
    test: str
    target: str = ""
    system: str = ""
    rename: tuple[str, ...] = ()
    header: str = ""
    becomes: str = ""

    @property
    def places(self) -> tuple[Place, ...]:
        """All that must stand in llama.cpp."""
        return (self.place, *self.also)


@dataclass(frozen=True)
class Difference:
    """A place that is not as a seam needs it; `found` is None where the file is missing."""

    seam: Seam
    place: Place
    found: int | None

    def __str__(self) -> str:
        line = self.place.text.strip().splitlines()[0]
        missing = f"there is no {self.place.file}"
        counts = f"{self.place.file} has it {self.found} times instead of {self.place.count}"
        return f"{self.seam.name}: {missing if self.found is None else counts}: {line}"


def read(path: Path | None = None) -> list[Seam]:
    """Read the table, ours unless another is named.

    Raises:
        PyllamafileError: A row lacks a key, has one too many, or is there twice.
    """
    path = path or TABLE
    try:
        rows = tomllib.loads(path.read_text())["seam"]
    except (ValueError, KeyError) as error:
        raise PyllamafileError(f"{path}: is no table of seams: {error}", path=path) from error
    seams = [_seam(row, path) for row in rows]
    names = [seam.name for seam in seams]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise PyllamafileError(f"{path}: {twice[0]} is there twice", path=path)
    return seams


def _seam(row: Mapping[str, Any], path: Path) -> Seam:
    name = row.get("name", "a row without a name")
    if row.get("met") not in _KINDS:
        raise PyllamafileError(
            f"{path}: {name} is met in no known way: {row.get('met')!r}",
            hint=f"there are {', '.join(_KINDS)}",
            path=path,
        )
    must, may = _KINDS[row["met"]]
    for keys, what in (
        ((_EVERY | must) - row.keys(), "lacks"),
        (row.keys() - _EVERY - must - may - _MAY, "can't have"),
        *(({*place} ^ _PLACE, "has a place that is off by") for place in row.get("also", ())),
    ):
        if keys:
            raise PyllamafileError(f"{path}: {name} {what} {', '.join(sorted(keys))}", path=path)
    rest = {key: row[key] for key in ("target", "system", "header", "becomes") if key in row}
    return Seam(
        name=name,
        met=row["met"],
        place=Place(row["file"], row["text"], row["count"]),
        also=tuple(Place(**place) for place in row.get("also", ())),
        ours=row["ours"],
        why=row["why"],
        test=row["test"],
        rename=tuple(row.get("rename", ())),
        **rest,
    )


def differences(seams: Iterable[Seam], source: Path) -> list[Difference]:
    """What of a llama.cpp is not as the seams need it.

    Args:
        seams: The rows.
        source: llama.cpp's folder.
    """
    return [
        Difference(seam, place, found)
        for seam in seams
        for place in seam.places
        if (found := place.found(source)) != place.count
    ]


def check(seams: Iterable[Seam], source: Path) -> None:
    """Refuse a llama.cpp that the seams don't fit.

    Raises:
        RefusedError: A row doesn't match; the message has every such row.
    """
    if wrong := differences(seams, source):
        lines = "".join(f"\n  {difference}" for difference in wrong)
        raise RefusedError(
            f"this llama.cpp is not what the runtime was made for:{lines}",
            hint=f"a row of {TABLE.name} has to follow it; scripts/update-llama --check shows how",
            path=source,
        )


def edited(seams: Iterable[Seam], source: Path) -> dict[str, str]:
    """The texts of the copies that are compiled in place of files of llama.cpp's, by file.

    Raises:
        RefusedError: A text that is replaced doesn't stand there as often as its row says.
    """
    copies: dict[str, str] = {}
    for seam in seams:
        if seam.met == "edited":
            text = copies.get(seam.place.file) or (source / seam.place.file).read_text()
            if (found := text.count(seam.place.text)) != seam.place.count:
                raise RefusedError(f"{Difference(seam, seam.place, found)}", path=source)
            copies[seam.place.file] = text.replace(seam.place.text, seam.becomes)
    return copies


def cmake(seams: Sequence[Seam], system: str) -> str:
    """CMake's commands for the rows of a system: calls of functions in seams.cmake.

    Copies come first, for what else holds for such a file holds for its copy.
    """
    rows = [seam for seam in seams if seam.system in ("", system)]
    lines = ["# Made of seams.toml by seams.py."]
    copies = {seam.place.file: seam for seam in rows if seam.met == "edited"}
    for seam in copies.values():
        lines.append(f"seam_copy({seam.name} {seam.target} {seam.place.file})")
    included = set()
    for seam in rows:
        row = f"{seam.name} {seam.target} {seam.place.file}"
        header = (seam.target, seam.place.file, seam.header)
        if seam.met == "renamed":
            lines += [f'seam_rename({row} "{pair}")' for pair in seam.rename]
        elif seam.met == "replaced":
            lines.append(f"seam_replaced({row} {seam.header})")
        elif seam.header and header not in included:
            included.add(header)
            lines.append(f"seam_header({row} {seam.header})")
    return "\n".join([*lines, ""])


def meet(source: Path, folder: Path, system: str) -> Path:
    """Prepare what CMake needs to meet the seams: its commands and the edited copies.

    Args:
        source: llama.cpp's folder.
        folder: Where both go; what is there and right stays as it is, and compiles nothing again.
        system: CMake's name of the system.

    Returns:
        The file with CMake's commands.

    Raises:
        PyllamafileError: A row of the table is wrong, or doesn't match.
    """
    seams = read()
    check(seams, source)
    for file, text in edited(seams, source).items():
        _put(folder / file, text)
    commands = folder / "seams.cmake"
    _put(commands, cmake(seams, system))
    return commands


def _put(path: Path, text: str) -> None:
    if not path.is_file() or path.read_text() != text:
        path.parent.mkdir(parents=True, exist_ok=True)
        tools.write(path, text.encode())


def original(file: str, folder: Path, source: Path) -> str:
    """The file of llama.cpp's that an edited copy was made of; another file is itself."""
    path = Path(file)
    return str(source / path.relative_to(folder)) if path.is_relative_to(folder) else file


def as_markdown(seams: Iterable[Seam]) -> str:
    """The table for docs/porting.md."""
    lines = ["| seam | in llama.cpp | met | ours | why | test |", "|---|---|---|---|---|---|"]
    for seam in seams:
        cells = (seam.name, f"`{seam.place.file}`", seam.met, seam.ours, seam.why, f"`{seam.test}`")
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join([*lines, ""])
