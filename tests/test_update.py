"""The move to another llama.cpp, on two small ones: what differs is found, and the tree stays."""

from __future__ import annotations

import hashlib
import io
import re
import tarfile
from pathlib import Path

import pytest

from pyllamafile.errors import DamagedError, RefusedError, UnavailableError
from pyllamafile.models.gguf import FILE_TYPES, TENSOR_TYPES
from pyllamafile.native.building import driver, seams, source, tools, update
from pyllamafile.native.building.update import Candidate
from pyllamafile.progress import Step, silent

PROJECT = Path(__file__).parent.parent

TABLE = """
[[seam]]
name = "open"
met = "called"
file = "src/a.cpp"
text = "open(name);"
count = 1
ours = "main.cpp"
why = "it opens"
test = "test_seam_open"

[[seam]]
name = "close"
met = "called"
file = "src/a.cpp"
text = "close();"
count = 2
ours = "main.cpp"
why = "it closes"
test = "test_seam_close"
"""
CODE = "// first\n\nvoid f() {\n    open(name);\n    close();\n}\nvoid g() {\n    close();\n}\n"


def constants() -> str:
    """What of llama.cpp's gguf package is looked at, as the tables have it."""
    kinds = "".join(f"    {kind.name} = {number}\n" for number, kind in TENSOR_TYPES.items())
    sizes = "".join(f"    T.{k.name}: ({k.elements}, {k.bytes}),\n" for k in TENSOR_TYPES.values())
    files = "".join(f"    MOSTLY_{name} = {number}\n" for number, name in FILE_TYPES.items())
    return (
        f"from enum import IntEnum\nclass T(IntEnum):\n{kinds}\nGGML_QUANT_SIZES = {{\n{sizes}}}\n"
        f"class LlamaFileType(IntEnum):\n{files}    GUESSED = 1024\n"
    )


FILES = {
    "src/a.cpp": CODE,
    "gguf-py/gguf/constants.py": constants(),
    "common/arg.cpp": '{"-c", "--ctx-size"}, {"--temp"}, {"--lora"} .set_env("LLAMA_ARG_TEMP")',
    "CMakeLists.txt": "option(LLAMA_OPENSSL)\nadd_library(llama-common)\n",
}


def written(folder: Path, **changes: str) -> Path:
    """A llama.cpp; what is changed is told by the last part of a file's name."""
    for name, text in FILES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(changes.get(path.name.replace(".", "_"), text))
    return folder


@pytest.fixture
def old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The llama.cpp that all fits, with a runtime that needs something of it."""
    runtime = tmp_path / "runtime"
    runtime.mkdir()
    (runtime / "main.cpp").write_text('{ "--temp", "-c", "--ours", "LLAMA_ARG_TEMP" }\n')
    (runtime / "manual.txt").write_text("    --lora FILE   An adapter; --nobrowser is ours\n")
    (runtime / "CMakeLists.txt").write_text("set(LLAMA_OPENSSL OFF)\ntarget(llama-common)\n")
    (tmp_path / "seams.toml").write_text(TABLE)
    monkeypatch.setattr(driver, "RUNTIME", runtime)
    monkeypatch.setattr(seams, "TABLE", tmp_path / "seams.toml")
    return written(tmp_path / "old")


def test_what_fits_leaves_nothing_to_say(old: Path, tmp_path: Path) -> None:
    moved = "\n\n\n" + CODE.replace("first", "moved down")
    assert update.compare(old, old) == []
    assert update.compare(old, written(tmp_path / "new", a_cpp=moved)) == []


@pytest.mark.parametrize(
    ("changes", "name", "line"),
    [
        (
            {"a_cpp": CODE.replace("open(name);", "open(name, 0);")},
            "open",
            "open: src/a.cpp has it 0 times instead of 1: open(name);",
        ),
        (
            {"a_cpp": CODE + "void h() { close(); }\n"},
            "close",
            "close: src/a.cpp has it 3 times instead of 2: close();",
        ),
        (
            {"constants_py": constants().replace("T.Q4_0: (32, 18)", "T.Q4_0: (32, 20)")},
            "tensor types",
            "2: ours ('Q4_0', 32, 18), theirs ('Q4_0', 32, 20)",
        ),
        (
            {"constants_py": constants().replace("GUESSED", "MOSTLY_Q9_9 = 99\n    GUESSED")},
            "file types",
            "99: ours none, theirs Q9_9",
        ),
        ({"arg_cpp": FILES["common/arg.cpp"].replace('"-c", ', "")}, "options", "-c is gone"),
        (
            {"arg_cpp": FILES["common/arg.cpp"].replace("--lora", "--l")},
            "options",
            "--lora is gone",
        ),
        (
            {"arg_cpp": FILES["common/arg.cpp"].replace("_ARG_TEMP", "_ARG_T")},
            "options as variables",
            "LLAMA_ARG_TEMP is gone",
        ),
        (
            {"CMakeLists_txt": "option(LLAMA_SSL)\nadd_library(llama-common)\n"},
            "switches of CMake",
            "LLAMA_OPENSSL is gone",
        ),
        (
            {"CMakeLists_txt": "option(LLAMA_OPENSSL)\nadd_library(llama-base)\n"},
            "libraries",
            "llama-common is gone",
        ),
    ],
)
def test_what_differs_is_named(
    old: Path, tmp_path: Path, changes: dict[str, str], name: str, line: str
) -> None:
    (finding,) = update.compare(old, written(tmp_path / "new", **changes))
    assert (finding.name, finding.lines[0]) == (name, line)


def test_old_and_new_stand_side_by_side(old: Path, tmp_path: Path) -> None:
    """On the right, the likest line stands for one that is gone."""
    changed = "// one line more\n" + CODE.replace("open(name);", "open(name, 0);")
    (finding,) = update.compare(old, written(tmp_path / "new", a_cpp=changed), width=69)
    *rows, last = finding.lines[1:]
    assert [[column.strip() for column in row.split(" | ")] for row in rows] == [
        ["1 // first", "2 // first"],
        ["2", "3"],
        ["3 void f() {", "4 void f() {"],
        ["4     open(name);", "5     open(name, 0);"],
        ["5     close();", "6     close();"],
        ["6 }", "7 }"],
        ["7 void g() {", "8 void g() {"],
    ]
    assert {row.index(" | ") for row in rows} == {34}
    assert last == ""


def test_a_file_that_is_gone(old: Path, tmp_path: Path) -> None:
    new = written(tmp_path / "new")
    (new / "src" / "a.cpp").unlink()
    first, second = update.compare(old, new)
    assert first.lines[0] == "open: there is no src/a.cpp: open(name);"
    assert second.lines[0] == "close: there is no src/a.cpp: close();"


# The sdist


def sdist(path: Path, changes: str) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, text in {"CHANGELOG.md": changes, "vendor/llama.cpp/a.cpp": CODE}.items():
            member = tarfile.TarInfo(f"llama_cpp_python-1/{name}")
            member.size = len(text.encode())
            archive.addfile(member, io.BytesIO(text.encode()))
    return path


CHANGES = """# Changelog

## [Unreleased]

- feat: update llama.cpp to ggml-org/llama.cpp@fffffff

## [1.2.3]

- fix: something
- feat: update llama.cpp to ggml-org/llama.cpp@0c1e57098

## [1.2.2]

- feat: update llama.cpp to ggml-org/llama.cpp@4df29be4f
"""


def test_an_sdist_says_what_it_vendors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(command: list[str], **options: object) -> None:
        assert command[-1] == "llama-cpp-python==1.2.3"
        folder = Path(command[command.index("--dest") + 1])
        sdist(folder / "llama_cpp_python-1.2.3.tar.gz", CHANGES)

    monkeypatch.setattr(tools, "run", run)
    candidate = update.fetch(tmp_path, "1.2.3")
    content = (tmp_path / "llama_cpp_python-1.2.3.tar.gz").read_bytes()
    assert candidate.version == "1.2.3"
    assert candidate.commit == "0c1e57098"
    assert candidate.sha256 == hashlib.sha256(content).hexdigest()
    assert (candidate.source / "a.cpp").read_text() == CODE


@pytest.mark.parametrize("version", ["1.2.4", "1.2"])
def test_an_sdist_that_does_not_say_it(tmp_path: Path, version: str) -> None:
    path = sdist(tmp_path / "x.tar.gz", CHANGES)
    with pytest.raises(DamagedError, match=r"names no commit of llama\.cpp"):
        source.vendored_commit(path, version)


# The pin, and what comes before


@pytest.fixture
def candidate(tmp_path: Path) -> Candidate:
    return Candidate("9.9.9", "ab" * 32, "fedcba987", tmp_path)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A tree with what trying out takes a copy of."""
    folder = tmp_path / "tree"
    for name in ("tests/test_x.py", "scripts/x", "pyproject.toml", "README.md", "LICENSE"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("")
    (folder / "CONTRIBUTING.md").write_text("")
    path = folder / update.SOURCE
    path.parent.mkdir(parents=True)
    path.write_text((PROJECT / update.SOURCE).read_text())
    return folder


def content(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_pin_is_three_lines(tree: Path, candidate: Candidate) -> None:
    before = (tree / update.SOURCE).read_text().splitlines()
    update.pin(candidate, tree)
    after = (tree / update.SOURCE).read_text().splitlines()
    changed = [new for line, new in zip(before, after, strict=True) if line != new]
    assert changed == [
        'SDIST_VERSION = "9.9.9"',
        f'SDIST_SHA256 = "{"ab" * 32}"',
        'LLAMA_COMMIT = "fedcba987"',
    ]


def test_where_the_pin_can_not_be_written_nothing_is(tree: Path, candidate: Candidate) -> None:
    path = tree / update.SOURCE
    path.write_text(path.read_text().replace("LLAMA_COMMIT =", "COMMIT ="))
    before = content(tree)
    with pytest.raises(DamagedError, match="LLAMA_COMMIT is there 0 times"):
        update.pin(candidate, tree)
    assert content(tree) == before


RESULTS = {"test_seam_open": ["PASSED"], "test_seam_close": ["PASSED", "PASSED"]}


@pytest.fixture
def trying(old: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Let trying out find nothing wrong; gives the copies that it is done in."""
    copies: list[Path] = []

    def run(command: list[str], **options: object) -> None:
        variables = options["variables"]
        assert isinstance(variables, dict)
        copy = Path(variables["PYTHONPATH"]).parent
        assert 'SDIST_VERSION = "9.9.9"' in (copy / update.SOURCE).read_text()
        copies.append(copy)
        if "pytest" in command:
            for test, results in RESULTS.items():
                for result in results:
                    options["each_line"](f"tests/test_x.py::{test}[a] {result} [ 50%]")
            if any(result == "FAILED" for results in RESULTS.values() for result in results):
                raise UnavailableError("pytest ended with 1")

    monkeypatch.setenv("PYLLAMAFILE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(tools, "run", run)
    monkeypatch.setattr(update, "_build_folders", lambda copy: [])
    return copies


def test_a_candidate_is_tried_out_in_a_copy(
    tree: Path, candidate: Candidate, trying: list[Path]
) -> None:
    before = content(tree)
    told: list[Step] = []
    update.try_out(candidate, tree, told.append)
    assert len(trying) == 2
    assert not any(copy.exists() for copy in trying)
    assert content(tree) == before
    assert told[-1] == Step("steps", "trying the seams", 2, 2)


@pytest.mark.parametrize(
    ("results", "named"),
    [
        (["FAILED"], ["close: test_seam_close: failed"]),
        (["FAILED", "PASSED"], ["close: test_seam_close: failed"]),
        (["PASSED", "SKIPPED"], ["close: test_seam_close: skipped"]),
        ([], ["close: test_seam_close: did not run"]),
    ],
)
def test_a_seam_that_has_not_shown_that_it_works_stops(
    tree: Path,
    candidate: Candidate,
    trying: list[Path],
    monkeypatch: pytest.MonkeyPatch,
    results: list[str],
    named: list[str],
) -> None:
    monkeypatch.setitem(RESULTS, "test_seam_close", results)
    before = content(tree)
    with pytest.raises(RefusedError) as caught:
        update.try_out(candidate, tree, silent)
    assert re.findall(r"^  (.+)$", caught.value.message, re.M) == named
    assert content(tree) == before
    assert not any(copy.exists() for copy in trying)
