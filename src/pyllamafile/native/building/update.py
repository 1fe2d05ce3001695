"""The move to another llama.cpp: what of ours it doesn't fit, and the new pin in ``source.py``.

scripts/update-llama has the order of the steps. Nothing of the tree is touched before the last one:
what is tried out is a copy.
"""

from __future__ import annotations

import difflib
import importlib.util
import os
import re
import runpy
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pyllamafile.errors import DamagedError, RefusedError, UnavailableError
from pyllamafile.models.gguf import FILE_TYPES, TENSOR_TYPES
from pyllamafile.native.building import driver, seams, source, tools
from pyllamafile.native.building.seams import Difference, Seam
from pyllamafile.progress import Progress, Step

SOURCE = "src/pyllamafile/native/building/source.py"

_CONTEXT = 3  # lines in front of a text and behind it
_MOST = 3  # places of a text that are shown

# A flag where C++ or the manual has one; a variable of the environment that stands for one.
_QUOTED = re.compile(r'"(--?[A-Za-z][\w-]*)"')
_NAMED = re.compile(r"(?<!\S)(--?[a-z][\w-]*)")
_VARIABLE = re.compile(r"\bLLAMA_ARG_\w+\b")
_SWITCH = re.compile(r"\b(?:GGML|LLAMA|MTMD)_[A-Z0-9_]+\b")
_LIBRARY = re.compile(r"\b(?:llama|ggml|mtmd|server)-[\w-]+\b")


@dataclass(frozen=True)
class Candidate:
    """An sdist that may become the one that runtimes are made of.

    Attributes:
        version: Of llama-cpp-python.
        sha256: Of the sdist.
        commit: Of the llama.cpp in it.
        source: The folder that it is unpacked into.
    """

    version: str
    sha256: str
    commit: str
    source: Path


@dataclass(frozen=True)
class Finding:
    """What of ours a llama.cpp doesn't fit: a seam by its name, or a table; and how, in lines."""

    name: str
    lines: tuple[str, ...]


def fetch(folder: Path, version: str | None) -> Candidate:
    """Bring an sdist and unpack the llama.cpp in it.

    Args:
        folder: Where to.
        version: Which one; None for the newest on the index.

    Raises:
        PyllamafileError: It can't be had, or doesn't say which llama.cpp it has.
    """
    sdist = source.fetch(folder, version)
    named = re.fullmatch(r"llama_cpp_python-(.+)\.tar\.gz", sdist.name)
    if not named:
        raise DamagedError(f"{sdist.name}: is no sdist of {source.SDIST}")
    commit = source.vendored_commit(sdist, named[1])
    unpacked = source.unpack(sdist, folder / "unpacked")
    return Candidate(named[1], source.digest_of(sdist), commit, unpacked)


def compare(old: Path, new: Path, width: int = 160) -> list[Finding]:
    """Everything of ours that doesn't fit a new llama.cpp.

    Args:
        old: The llama.cpp that all fits.
        new: The other one.
        width: Of the lines that show both side by side, in characters.
    """
    found: dict[str, list[str]] = {}
    for difference in seams.differences(seams.read(), new):
        lines = found.setdefault(difference.seam.name, [])
        lines += [str(difference), *_side_by_side(difference, old, new, width), ""]
    held = [*_tables(new), *_names(old, new)]
    return [Finding(name, tuple(lines)) for name, lines in [*found.items(), *held] if lines]


def _side_by_side(difference: Difference, old: Path, new: Path, width: int) -> list[str]:
    """Where the text stands in the one, and where it should stand in the other."""
    text = difference.place.text
    columns = []
    for folder in (old, new):
        path = folder / difference.place.file
        columns.append(_excerpt(path.read_text(errors="replace"), text) if path.is_file() else [])
    half = (width - 5) // 2
    rows = max(map(len, columns))
    left, right = ([*lines, *[""] * (rows - len(lines))] for lines in columns)
    return [f"  {a[:half]:{half}} | {b[:half]}" for a, b in zip(left, right, strict=True)]


def _excerpt(content: str, text: str) -> list[str]:
    """The lines around a text, with their numbers; of one that isn't there, around the likest."""
    lines = content.splitlines()
    needle = text.strip("\n").splitlines()
    starts = [
        content.count("\n", 0, match.start()) for match in re.finditer(re.escape(text), content)
    ]
    if not starts:
        wanted = needle[0].strip()
        likest = max(range(len(lines)), key=lambda n: _likeness(wanted, lines[n]), default=0)
        starts = [likest]
    shown: list[str] = []
    for start in starts[:_MOST]:
        first, end = max(start - _CONTEXT, 0), start + len(needle) + _CONTEXT
        shown += [f"{n + 1:5} {lines[n].expandtabs(4)}" for n in range(first, min(end, len(lines)))]
        shown.append("")
    return shown[:-1]


def _likeness(wanted: str, line: str) -> float:
    matcher = difflib.SequenceMatcher(None, line.strip(), wanted, autojunk=False)
    return matcher.ratio() if matcher.real_quick_ratio() > 0.3 < matcher.quick_ratio() else 0


def _tables(new: Path) -> Iterator[tuple[str, list[str]]]:
    """The tables of models/gguf.py against the constants of the llama.cpp's own gguf package."""
    theirs = runpy.run_path(str(new / "gguf-py" / "gguf" / "constants.py"))
    sizes = theirs["GGML_QUANT_SIZES"]
    tensor_types = {kind.value: (kind.name, *sizes[kind]) for kind in sizes}
    yield (
        "tensor types",
        _unlike({n: tuple(kind) for n, kind in TENSOR_TYPES.items()}, tensor_types),
    )
    file_types = {
        kind.value: re.sub("^(ALL|MOSTLY)_", "", kind.name)
        for kind in theirs["LlamaFileType"]
        if kind.name != "GUESSED"
    }
    yield "file types", _unlike(FILE_TYPES, file_types)


def _unlike(ours: Mapping[int, object], theirs: Mapping[int, object]) -> list[str]:
    return [
        f"{number}: ours {ours.get(number, 'none')}, theirs {theirs.get(number, 'none')}"
        for number in sorted(ours.keys() | theirs.keys())
        if ours.get(number) != theirs.get(number)
    ]


def _names(old: Path, new: Path) -> Iterator[tuple[str, list[str]]]:
    """Names that ours takes from the old llama.cpp, and that the new one hasn't."""
    sources = [*driver.RUNTIME.rglob("*.cpp"), *driver.RUNTIME.rglob("*.h")]
    manual = (driver.RUNTIME / "manual.txt").read_text()
    ours = "\n".join(path.read_text() for path in sources)
    cmake = (driver.RUNTIME / "CMakeLists.txt").read_text()
    flags = {*_QUOTED.findall(ours), *_NAMED.findall(manual)}
    variables = {*_VARIABLE.findall(ours), *_VARIABLE.findall(manual)}
    options = ("common/arg.cpp", "tools/llama-bench/llama-bench.cpp", "tools/tokenize/tokenize.cpp")
    for what, names, files, pattern in (
        ("options", flags, options, _QUOTED),
        ("options as variables", variables, options, _VARIABLE),
        ("switches of CMake", {*_SWITCH.findall(cmake)}, _CMAKE_FILES, _SWITCH),
        ("libraries", {*_LIBRARY.findall(cmake)}, _CMAKE_FILES, _LIBRARY),
    ):
        before, after = ({*pattern.findall(_texts(folder, files))} for folder in (old, new))
        yield what, [f"{name} is gone" for name in sorted(names & before - after)]


_CMAKE_FILES = ("CMakeLists.txt", "*/CMakeLists.txt", "*/*/CMakeLists.txt", "*/*/*/CMakeLists.txt")


def _texts(folder: Path, patterns: Sequence[str]) -> str:
    paths = (path for pattern in patterns for path in sorted(folder.glob(pattern)))
    return "\n".join(path.read_text(errors="replace") for path in paths)


def try_out(candidate: Candidate, project: Path, tell: Progress) -> None:
    """Build the runtime of this machine out of a candidate, and run a test for every seam.

    Args:
        candidate: Which one.
        project: The tree; what is built is a copy of it that has the new pin.
        tell: Told about every step.

    Raises:
        RefusedError: A test fails, or can't run here; the message has the seams that it is for.
        PyllamafileError: It can't be built.
    """
    if importlib.util.find_spec("pytest") is None:
        raise UnavailableError("pytest is missing", hint="scripts/setup runtimes,test")
    with _copied(project) as copy:
        pin(candidate, copy)
        environment = {"PYTHONPATH": str(copy / "src")}
        python = [sys.executable, "-m"]
        what = f"building the runtime of {candidate.version}"
        tell(Step("waiting", what))
        tools.run(
            [*python, "pyllamafile", "runtimes", "build"],
            log="update",
            what=what,
            variables=environment,
            each_line=lambda line: tell(Step("waiting", line)),
        )
        rows = seams.read()
        results: dict[str, str] = {}

        def each(line: str) -> None:
            if match := re.match(r".*::(test_seam_\w+)\S* (PASSED|FAILED|ERROR|SKIPPED)", line):
                worse = match[2] if match[2] != "PASSED" else results.get(match[1], "PASSED")
                results[match[1]] = worse
                tell(Step("steps", "trying the seams", len(results), len({r.test for r in rows})))

        tests = ["pytest", "-v", "-p", "no:cacheprovider", "-m", "native", "-k", "test_seam_"]
        what, failure = "trying the seams", None
        tell(Step("waiting", what))
        try:
            tools.run([*python, *tests], log="update", what=what, append=True, each_line=each,
                      cwd=copy, variables=environment)  # fmt: skip
        except UnavailableError as error:
            failure = error
        _judge(rows, results, failure)


def _judge(rows: Sequence[Seam], results: Mapping[str, str], failure: Exception | None) -> None:
    wrong = [
        f"{seam.name}: {seam.test}: {results.get(seam.test, 'did not run').lower()}"
        for seam in rows
        if results.get(seam.test) != "PASSED"
    ]
    if wrong or failure:
        lines = "".join(f"\n  {line}" for line in wrong)
        raise RefusedError(
            f"not every seam has shown that it works:{lines}",
            hint=f"{tools.log_hint('update')}; scripts/test installs what no test is skipped with",
        ) from failure


@contextmanager
def _copied(project: Path) -> Iterator[Path]:
    """A copy of the tree; what was compiled of it goes with it, but the finished runtime stays."""
    with tempfile.TemporaryDirectory(prefix="update-", dir=tools.folder("run")) as scratch:
        copy = Path(scratch) / "tree"
        ignored = shutil.ignore_patterns("__pycache__", "prebuilt", ".*")
        for name in ("src", "tests", "scripts"):
            shutil.copytree(project / name, copy / name, ignore=ignored)
        for name in ("pyproject.toml", "README.md", "CONTRIBUTING.md", "LICENSE"):
            shutil.copy(project / name, copy)
        try:
            yield copy
        finally:
            for folder in _build_folders(copy):
                shutil.rmtree(folder, ignore_errors=True)


def _build_folders(copy: Path) -> list[str]:
    script = (
        "from pyllamafile import native, targets\n"
        "every = [*targets.TARGETS.values(), *targets.WITH_GPU.values()]\n"
        "print(*{native.build_folder(target) for target in every}, sep='\\n')"
    )
    environment = {**os.environ, "PYTHONPATH": str(copy / "src")}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True)
    return done.stdout.decode().splitlines()


def pin(candidate: Candidate, project: Path) -> None:
    """Write the candidate's version, digest and commit into a tree's source.py.

    Raises:
        DamagedError: source.py hasn't each of the three exactly once.
    """
    path = project / SOURCE
    text = path.read_text()
    for name, value in (
        ("SDIST_VERSION", candidate.version),
        ("SDIST_SHA256", candidate.sha256),
        ("LLAMA_COMMIT", candidate.commit),
    ):
        text, count = re.subn(rf'^{name} = ".*"$', f'{name} = "{value}"', text, flags=re.MULTILINE)
        if count != 1:
            raise DamagedError(f"{path}: {name} is there {count} times", path=path)
    tools.write(path, text.encode())
