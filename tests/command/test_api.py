"""The functions as a program calls them: what they take, and how they refuse what is no good."""

from __future__ import annotations

import dataclasses
import inspect
import os
import subprocess
import sys
from pathlib import Path

import pytest
from fixtures import put_runtime, tiny_gguf, tiny_lora
from judging import names, snapshot

import pyllamafile
from pyllamafile import Adapter, PyllamafileError
from pyllamafile.models.forecast import FORMATS
from pyllamafile.paths import named, several, strings


@pytest.fixture
def here(folder, prebuilt):
    """A working directory with a model and a file of it."""
    tiny_gguf(Path("m.gguf"))
    Path("notes.txt").write_text("notes")
    pyllamafile.build("m.gguf", "f.llamafile", args=["-c", "128"])
    return folder


def entries(path: str | Path) -> set[str]:
    return {entry.name for entry in pyllamafile.inspect(path).entries}


# One where several are taken


def test_one_string_is_one(here):
    built = pyllamafile.build("m.gguf", "o", targets="linux-amd64", args="--mlock", add="notes.txt")
    assert (built.models, built.targets) == (("m.gguf",), ("linux-amd64",))
    assert pyllamafile.inspect("o").args == "--mlock\n"
    assert "notes.txt" in entries("o")
    assert pyllamafile.extract("o", "out", "notes.txt") == [Path("out/notes.txt")]
    pyllamafile.remove("o", "notes.txt")
    assert "notes.txt" not in entries("o")
    assert pyllamafile.upgrade("o", targets="linux-amd64").targets == ("linux-amd64",)


def test_one_path_is_one(here):
    built = pyllamafile.build(Path("m.gguf"), Path("o"), add=Path("notes.txt"))
    assert built.models == ("m.gguf",)
    assert pyllamafile.add(Path("o"), Path("m.gguf")) == ["m.gguf"]


def test_one_adapter_is_one(here):
    tiny_lora(Path("a.gguf"), Path("m.gguf"))
    for lora, partner in (("a.gguf", "a.gguf"), (Adapter("a.gguf", 0.5), "a.gguf=0.5")):
        built = pyllamafile.build("m.gguf", "o", lora=lora, force=True)
        assert built.partners == (("--lora", partner),)


def test_a_file_is_added_under_its_own_name(here):
    Path("sub").mkdir()
    Path("sub/x.txt").write_text("x")
    added = [Path("sub/x.txt"), "notes.txt", ("notes.txt", "about/notes.txt")]
    expected = {"x.txt", "notes.txt", "about/notes.txt"}
    pyllamafile.build("m.gguf", "o", add=added)
    assert expected <= entries("o")
    assert set(pyllamafile.add("f.llamafile", added)) == expected
    assert pyllamafile.verify("f.llamafile") == []


def test_an_iterator_is_taken_once(here):
    put_runtime(pyllamafile.native.PREBUILT, target="linux-arm64")
    built = pyllamafile.build(
        iter(["m.gguf"]),
        "o",
        targets=iter(["linux-amd64", "linux-arm64"]),
        args=iter(["-c", "64"]),
        add=iter(["notes.txt"]),
    )
    assert built.targets == ("linux-amd64", "linux-arm64")
    assert pyllamafile.inspect("o").args == "-c\n64\n"
    pyllamafile.remove("o", iter(["notes.txt", ".args"]))
    assert not {"notes.txt", ".args"} & entries("o")


# What is refused


CALLS = {
    "build(gguf)": lambda value: pyllamafile.build(value, "o"),
    "build([gguf])": lambda value: pyllamafile.build([value], "o"),
    "build(output)": lambda value: pyllamafile.build("m.gguf", value),
    "build(lora)": lambda value: pyllamafile.build("m.gguf", "o", lora=value),
    "build(Adapter)": lambda value: pyllamafile.build("m.gguf", "o", lora=Adapter(value)),
    "build(mmproj)": lambda value: pyllamafile.build("m.gguf", "o", mmproj=value),
    "build(draft)": lambda value: pyllamafile.build("m.gguf", "o", draft=value),
    "build(targets)": lambda value: pyllamafile.build("m.gguf", "o", targets=value),
    "build([targets])": lambda value: pyllamafile.build("m.gguf", "o", targets=[value]),
    "build([args])": lambda value: pyllamafile.build("m.gguf", "o", args=[value]),
    "build(args_file)": lambda value: pyllamafile.build("m.gguf", "o", args_file=value),
    "build(add)": lambda value: pyllamafile.build("m.gguf", "o", add=value),
    "build([add])": lambda value: pyllamafile.build("m.gguf", "o", add=[value]),
    "build(add name)": lambda value: pyllamafile.build("m.gguf", "o", add=[("m.gguf", value)]),
    "build(format)": lambda value: pyllamafile.build("m.gguf", "o", format=value),
    "build(quantize_to)": lambda value: pyllamafile.build("m.gguf", "o", quantize_to=value),
    "build(in_place)": lambda value: pyllamafile.build(value, "o", in_place=True),
    "advise": pyllamafile.advise,
    "inspect": pyllamafile.inspect,
    "verify": pyllamafile.verify,
    "examine": pyllamafile.examine,
    "extract": pyllamafile.extract,
    "extract(directory)": lambda value: pyllamafile.extract("f.llamafile", value),
    "extract(names)": lambda value: pyllamafile.extract("f.llamafile", "d", value),
    "extract([names])": lambda value: pyllamafile.extract("f.llamafile", "d", [value]),
    "add": lambda value: pyllamafile.add(value, "m.gguf"),
    "add(files)": lambda value: pyllamafile.add("f.llamafile", value),
    "add([files])": lambda value: pyllamafile.add("f.llamafile", [value]),
    "add(name)": lambda value: pyllamafile.add("f.llamafile", [("m.gguf", value)]),
    "remove": lambda value: pyllamafile.remove(value, "x"),
    "remove(names)": lambda value: pyllamafile.remove("f.llamafile", value),
    "remove([names])": lambda value: pyllamafile.remove("f.llamafile", [value]),
    "upgrade": pyllamafile.upgrade,
    "upgrade(engine)": lambda value: pyllamafile.upgrade("f.llamafile", engine=value),
    "upgrade(targets)": lambda value: pyllamafile.upgrade("f.llamafile", targets=value),
}
# What somebody may have typed, that is of no use anywhere.
NONSENSE = ["nul\0", "\ud800", "hf:nul\0/x", "ollama:nul\0"]
# None means the default in some places.
OPTIONAL = {"build(output)", "build(mmproj)", "build(draft)", "build(args_file)", "examine"}
OPTIONAL |= {"build(quantize_to)", "upgrade(engine)"}


@pytest.mark.parametrize("call", CALLS)
def test_nonsense_is_an_error_of_ours(here, call):
    before = snapshot(Path())
    for value in NONSENSE:
        with pytest.raises(PyllamafileError) as caught:
            CALLS[call](value)
        assert caught.value.message, value
        assert snapshot(Path()) == before, value


@pytest.mark.parametrize("call", CALLS)
def test_a_wrong_type_is_the_mistake_of_a_program(here, call):
    before = snapshot(Path())
    for value in (5, None, b"m.gguf", [5], [None], object()):
        if value is not None or call not in OPTIONAL:
            with pytest.raises((TypeError, PyllamafileError)):
                CALLS[call](value)
            assert snapshot(Path()) == before, value


@pytest.mark.parametrize("format", ["exe", "", "PORTABLE"])
def test_a_format_that_does_not_exist(here, format):
    with pytest.raises(PyllamafileError) as caught:
        pyllamafile.build("m.gguf", "o", format=format)
    assert caught.value.message == f"no such format of a file: {format!r}"
    assert caught.value.hint == "there are portable, elf"
    assert "o" not in names()


@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf")])
@pytest.mark.parametrize("what", ["context", "machine"])
def test_advice_for_no_machine(here, what, value):
    with pytest.raises(PyllamafileError, match=f"^the {what} is {value}"):
        pyllamafile.advise("m.gguf", **{what: value})


def test_a_name_too_long_is_an_error_of_ours(here):
    for call in (
        lambda name: pyllamafile.build("m.gguf", name),
        lambda name: pyllamafile.extract("f.llamafile", name),
        pyllamafile.upgrade,
        pyllamafile.inspect,
        pyllamafile.verify,
    ):
        with pytest.raises(PyllamafileError, match="File name too long"):
            call("x" * 5000)


def test_several_things_and_one():
    assert several("ab") == ["ab"]
    assert several(["ab", "c"]) == ["ab", "c"]
    assert several(Path("ab")) == [Path("ab")]
    assert several(()) == []
    with pytest.raises(TypeError, match="no string"):
        strings([5], "names")
    with pytest.raises(TypeError, match="no pair"):
        named(("a", "b", "c"))


# What is exported


def test_every_result_is_exported():
    """A type that a public function gives or takes, or that is in one, has a public name."""
    public = {getattr(pyllamafile, name) for name in pyllamafile.__all__}
    classes = [thing for thing in public if dataclasses.is_dataclass(thing)]
    functions = [thing for thing in public if inspect.isfunction(thing)]
    assert len(classes) >= 12
    assert len(functions) == 13
    annotations = [
        annotation
        for thing in (*classes, *functions)
        for name, annotation in inspect.get_annotations(thing).items()
        if name != "machine"  # of `examine`, by which the tests give it another one
    ]
    ours = {
        name: value
        for thing in (*classes, *functions)
        for name, value in vars(sys.modules[thing.__module__]).items()
        if dataclasses.is_dataclass(value) and value.__module__.startswith("pyllamafile.")
    }
    for name, value in ours.items():
        if any(name in str(a).replace("[", " ").replace("]", " ").split() for a in annotations):
            assert value in public, name


def test_results_have_paths(here):
    report = pyllamafile.inspect("f.llamafile")
    assert report.path == Path("f.llamafile")
    assert report.as_dict()["path"] == "f.llamafile"
    assert pyllamafile.build("m.gguf", "o").path == Path("o")
    assert pyllamafile.upgrade("f.llamafile").path == Path("f.llamafile")


def test_advice_in_rows(here):
    advice = pyllamafile.advise("m.gguf")
    assert isinstance(advice.rows[0], pyllamafile.Row)
    assert isinstance(advice.rows[0].memory, pyllamafile.Memory)
    assert {row.format for row in advice.rows} <= {*FORMATS, "F32"}


# What it costs


def test_importing_it_imports_nothing_else():
    """15 ms over Python's own start; what takes time is imported when it is asked for."""
    code = (
        "import sys; before = {*sys.modules}; import pyllamafile\n"
        "print(*sorted({*sys.modules} - before))"
    )
    said = subprocess.check_output([sys.executable, "-c", code], text=True).split()
    assert {name for name in said if name.startswith("pyllamafile")} == {"pyllamafile"}
    heavy = {"typing", "click", "rich", "asyncio", "json", "dataclasses", "subprocess", "pathlib"}
    started = subprocess.check_output(
        [sys.executable, "-c", "import sys; print(*sys.modules)"], text=True
    ).split()
    assert not (heavy - {*started}) & {*said}


def test_a_name_that_does_not_exist():
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = pyllamafile.nothing
    assert {*pyllamafile.__all__} <= {*dir(pyllamafile)}
    assert os.path.isdir(pyllamafile.__path__[0])  # noqa: PTH112
