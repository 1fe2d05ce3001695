"""The seams to llama.cpp as a table: what is checked, what is edited, what CMake is told."""

from __future__ import annotations

import ast
import json
import re
import subprocess
from pathlib import Path

import pytest

from pyllamafile.errors import PyllamafileError, RefusedError
from pyllamafile.native.building import driver, seams, tools
from pyllamafile.native.building.seams import Place, Seam

TESTS = Path(__file__).parents[1]
TABLE = seams.read()
ROW = {
    "name": "one",
    "met": "called",
    "file": "a.cpp",
    "text": "int f();",
    "count": 1,
    "ours": "main.cpp",
    "why": "it is needed",
    "test": "test_seam_one",
}


def row(**changes: object) -> str:
    """A row in TOML; None leaves a key out."""
    keys = {key: value for key, value in {**ROW, **changes}.items() if value is not None}
    return "[[seam]]\n" + "".join(f"{key} = {value!r}\n" for key, value in keys.items())


@pytest.fixture
def table(tmp_path: Path) -> Path:
    return tmp_path / "seams.toml"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A llama.cpp of two files."""
    folder = tmp_path / "llama.cpp"
    (folder / "src").mkdir(parents=True)
    (folder / "a.cpp").write_text("int f();\nint g() { return f() + f(); }\n")
    (folder / "src" / "b.cpp").write_text("#define X 1\n")
    return folder


def seam(
    met: str = "called", file: str = "a.cpp", text: str = "f()", count: int = 3, **more
) -> Seam:
    facts = {"also": (), "ours": "main.cpp", "why": "", "test": "", **more}
    return Seam(name=facts.pop("name", "one"), met=met, place=Place(file, text, count), **facts)


# The table itself


def test_every_row_names_a_test_that_is_there() -> None:
    defined = {
        node.name
        for path in TESTS.rglob("test_*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef)
    }
    named = {seam.test for seam in TABLE}
    assert all(name.startswith("test_seam_") for name in named)  # which is what -k seam finds
    assert named - defined == set()


def test_every_header_that_is_included_is_in_the_table_and_there() -> None:
    headers = {path.name for path in seams.FOLDER.glob("*.h")}
    assert {seam.header for seam in TABLE if seam.header} == headers


def test_what_meets_a_seam_is_there() -> None:
    for seam in TABLE:
        for name in seam.ours.split(", "):
            if name != "this row":
                assert (driver.RUNTIME / name).is_file(), seam.name


def test_no_seam_is_made_beside_the_table() -> None:
    """CMakeLists.txt sets no property of a file of llama.cpp's but for speed, size and unity."""
    text = (driver.RUNTIME / "CMakeLists.txt").read_text()
    assert "-include;" not in text
    assert "_upstream" not in text
    included = re.findall(r"-include (\S+)", text)
    assert included == ["${CMAKE_CURRENT_BINARY_DIR}/level-${level}.h"]


def test_the_table_as_markdown_has_a_line_for_every_row() -> None:
    lines = seams.as_markdown(TABLE).splitlines()
    assert len(lines) == 2 + len(TABLE)
    assert {line.count(" | ") for line in lines[2:]} == {5}


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[[seam]", "is no table of seams"),
        ("", "is no table of seams: 'seam'"),
        (row(why=None), "one lacks why"),
        (row(wy="typing error"), "one can't have wy"),
        (row(met="patched"), "one is met in no known way: 'patched'"),
        (row(met="renamed", target="llama"), "one lacks rename"),
        (row(met="header", header="x.h"), "one lacks target"),
        (row(becomes="int g();"), "one can't have becomes"),
        (row() + row(), "one is there twice"),
        (
            row() + "also = [{ file = 'b.cpp', text = 'x' }]\n",
            "one has a place that is off by count",
        ),
    ],
)
def test_a_wrong_table_is_refused(table: Path, text: str, complaint: str) -> None:
    table.write_text(text)
    with pytest.raises(PyllamafileError) as caught:
        seams.read(table)
    assert caught.value.message.startswith(f"{table}: {complaint}")


# Held against a llama.cpp


def test_a_row_that_fits(source: Path) -> None:
    also = (Place("src/b.cpp", "#define X", 1), Place("src/b.cpp", "#define Y", 0))
    assert seams.differences([seam(also=also)], source) == []
    seams.check([seam(also=also)], source)


@pytest.mark.parametrize(
    ("place", "found"),
    [
        (Place("a.cpp", "f()", 2), 3),
        (Place("a.cpp", "f ()", 1), 0),
        (Place("a.cpp", "int f();\nint h()", 1), 0),
        (Place("src/c.cpp", "f()", 1), None),
    ],
)
def test_a_row_that_does_not_fit_stops(source: Path, place: Place, found: int | None) -> None:
    """Whether it is the row's own place, or what else it needs."""
    for wrong in (
        Seam("one", "called", place, (), "", "", ""),
        Seam("one", "called", Place("a.cpp", "f()", 3), (place,), "", "", ""),
    ):
        (difference,) = seams.differences([seam(name="two"), wrong], source)
        assert (difference.seam, difference.place, difference.found) == (wrong, place, found)
        with pytest.raises(RefusedError) as caught:
            seams.check([seam(name="two"), wrong], source)
        head, line = caught.value.message.split("\n")
        assert head == "this llama.cpp is not what the runtime was made for:"
        assert line.startswith("  one: ")
        assert place.file in line
        assert line.endswith(place.text.splitlines()[0])
        if found is not None:
            assert f"has it {found} times instead of {place.count}" in line
        assert "scripts/update-llama" in caught.value.hint


def test_every_row_that_does_not_fit_is_named(source: Path) -> None:
    rows = [seam(name=name, count=count) for name, count in (("a", 1), ("b", 3), ("c", 2))]
    with pytest.raises(RefusedError) as caught:
        seams.check(rows, source)
    assert re.findall(r"^  (\w): ", caught.value.message, re.M) == ["a", "c"]


# Edited copies


def test_copies_are_edited_one_row_after_the_other(source: Path) -> None:
    rows = [
        seam("edited", text="f() + f()", count=1, becomes="twice(f)", name="one"),
        seam("edited", text="int f();", count=1, becomes="int f(), twice(int());", name="two"),
        seam("edited", "src/b.cpp", "1", 1, becomes="2", name="three"),
        seam(),
    ]
    before = {path: path.read_bytes() for path in source.rglob("*.cpp")}
    assert seams.edited(rows, source) == {
        "a.cpp": "int f(), twice(int());\nint g() { return twice(f); }\n",
        "src/b.cpp": "#define X 2\n",
    }
    assert {path: path.read_bytes() for path in source.rglob("*.cpp")} == before


def test_an_edit_of_what_another_has_edited_away_stops(source: Path) -> None:
    """Each row fits the source, and the second not what the first has made of it."""
    rows = [
        seam("edited", text="f() + f()", count=1, becomes="0", name="one"),
        seam("edited", text="f()", count=3, becomes="h()", name="two"),
    ]
    seams.check(rows, source)
    with pytest.raises(RefusedError, match=r"^two: a\.cpp has it 1 times instead of 3: f\(\)$"):
        seams.edited(rows, source)


# What CMake is told

EVERY_KIND = [
    seam("renamed", name="a", target="base", rename=("f=f_upstream", "g=g_upstream")),
    seam("header", name="b", target="base", header="b.h"),
    seam("edited", name="c", target="base", becomes="0"),
    seam("edited", "src/b.cpp", "1", 1, name="d", target="core", becomes="2", header="d.h"),
    seam("replaced", name="e", target="core", header="ui.h"),
    seam("header", name="w", target="base", header="w.h", system="Windows"),
    seam(name="f"),
]


def test_every_kind_becomes_commands() -> None:
    expected = [
        "seam_copy(c base a.cpp)",
        "seam_copy(d core src/b.cpp)",
        'seam_rename(a base a.cpp "f=f_upstream")',
        'seam_rename(a base a.cpp "g=g_upstream")',
        "seam_header(b base a.cpp b.h)",
        "seam_header(d core src/b.cpp d.h)",
        "seam_replaced(e core a.cpp ui.h)",
    ]
    assert seams.cmake(EVERY_KIND, "Linux").splitlines()[1:] == expected
    windows = [*expected, "seam_header(w base a.cpp w.h)"]
    assert seams.cmake(EVERY_KIND, "Windows").splitlines()[1:] == windows


def test_a_file_is_copied_once_however_many_rows_edit_it() -> None:
    rows = [seam("edited", name=name, target="base", becomes="0", header="h.h") for name in "ab"]
    text = seams.cmake(rows, "Linux")
    assert text.count("seam_copy(") == text.count("seam_header(") == 1


def test_every_command_is_a_function_of_ours() -> None:
    text = (seams.FOLDER / "seams.cmake").read_text()
    defined = set(re.findall(r"^function\((\w+)", text, re.M))
    for system in ("Linux", "Windows"):
        called = set(re.findall(r"^(\w+)\(", seams.cmake(TABLE, system), re.M))
        assert called <= defined


def test_what_is_right_already_is_not_written_again(
    source: Path, table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or everything that is made of it would be compiled again."""
    edit = {"met": "edited", "target": "base", "becomes": "int f(void);"}
    table.write_text(row(**edit))
    monkeypatch.setattr(seams, "TABLE", table)
    commands = seams.meet(source, tmp_path / "edited", "Linux")
    copy = tmp_path / "edited" / "a.cpp"
    assert copy.read_text().startswith("int f(void);\n")
    assert commands.read_text().endswith("seam_copy(one base a.cpp)\n")
    before = [path.stat().st_mtime_ns for path in (copy, commands)]
    seams.meet(source, tmp_path / "edited", "Linux")
    assert [path.stat().st_mtime_ns for path in (copy, commands)] == before
    table.write_text(row(**edit, count=2))
    with pytest.raises(RefusedError, match="one: "):
        seams.meet(source, tmp_path / "edited", "Linux")
    assert copy.stat().st_mtime_ns == before[0]


def test_an_edited_copy_counts_as_its_original(tmp_path: Path) -> None:
    """For the notices: whose a copy is, the original's path says."""
    edited, source = tmp_path / "edited", tmp_path / "source"
    assert seams.original(f"{edited}/src/b.cpp", edited, source) == f"{source}/src/b.cpp"
    assert seams.original("/usr/include/x.h", edited, source) == "/usr/include/x.h"


# With CMake, which compiles nothing


@pytest.mark.native
@pytest.mark.parametrize(
    ("commands", "complaint"),
    [
        ('seam_rename(one base a.cpp "f=g")', ""),
        ("seam_copy(one base a.cpp)\nseam_header(two base a.cpp two.h)", ""),
        ("seam_header(one base src/b.cpp one.h)", "seam one: base doesn't compile src/b.cpp"),
        ("seam_copy(one base c.cpp)", "seam one: base doesn't compile c.cpp"),
        ("seam_replaced(one base a.cpp ui.h)", ""),
        ("seam_replaced(one base a.cpp b.h)", "seam one: upstream has a b.h beside a.cpp"),
    ],
)
def test_seam_properties_get_to_the_compiler(
    source: Path, tmp_path: Path, commands: str, complaint: str
) -> None:
    """CMake's own list of what it would run; a property of a file that nobody compiles stops it."""
    project, out, edited = tmp_path / "project", tmp_path / "out", tmp_path / "edited"
    for folder in (project, edited):
        folder.mkdir()
    (source / "b.h").touch()
    (source / "CMakeLists.txt").write_text("add_library(base STATIC a.cpp)\n")
    (edited / "a.cpp").write_text("int edited();\n")
    (edited / "seams.cmake").write_text(commands + "\n")
    (project / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.28)\nproject(p CXX)\n"
        "add_subdirectory(${LLAMA_SOURCE} llama)\n"
        f"include({seams.FOLDER}/seams.cmake)\ninclude(${{EDITED}}/seams.cmake)\n"
    )
    zig, cmake, ninja = driver.programs()
    compiler = tools.script(tmp_path / "c++", zig, "c++", before=driver.OBJECT_WILL_DO)
    settings = {
        "LLAMA_SOURCE": source,
        "EDITED": edited,
        "SEAMS": "/seams",
        "CMAKE_CXX_COMPILER": compiler,
        "CMAKE_MAKE_PROGRAM": ninja,
        "CMAKE_TRY_COMPILE_TARGET_TYPE": "STATIC_LIBRARY",
        "CMAKE_EXPORT_COMPILE_COMMANDS": "ON",
    }
    command = [cmake, "-G", "Ninja", "-S", project, "-B", out]
    command += [f"-D{name}={value}" for name, value in settings.items()]
    done = subprocess.run(command, capture_output=True, text=True, env=tools.environment())
    if complaint:
        assert done.returncode == 1
        assert complaint in done.stderr
        return
    assert done.returncode == 0, done.stderr
    (entry,) = json.loads((out / "compile_commands.json").read_text())
    copied = "seam_copy" in commands
    assert entry["file"] == str((edited if copied else source) / "a.cpp")
    assert ("-Df=g" in entry["command"]) == ("seam_rename" in commands)
    assert ("-include /seams/two.h" in entry["command"]) == copied
    assert (f"-iquote {source}" in entry["command"]) == copied
