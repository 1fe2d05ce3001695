"""Who a file says it is: read, refused, packed, shown, kept."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import lief
import pytest
from fixtures import grey_png, tiny_pe
from judging import manifest

import pyllamafile
from pyllamafile import Persona, PyllamafileError, persona

ADA = {
    "name": "Ada",
    "greeting": "Ask me about engines.",
    "suggestions": ["Who was Ada?", "What is an engine?"],
    "accent": "#3b82f6",
}


@pytest.fixture
def here(folder: Path, model: Path) -> Path:
    shutil.copy(model, folder / "m.gguf")
    return folder


@pytest.fixture
def toml(tmp_path: Path) -> Path:
    (tmp_path / "ada.png").write_bytes(grey_png())
    (tmp_path / "ada.txt").write_bytes("You are Ada.\r\n".encode("utf-16"))
    path = tmp_path / "ada.toml"
    lines = [f"{key} = {json.dumps(value)}" for key, value in ADA.items()]
    path.write_text("\n".join([*lines, 'icon = "ada.png"', 'system-file = "ada.txt"']))
    return path


def test_a_file_of_toml(toml):
    assert Persona.read(toml) == Persona(
        name="Ada",
        greeting="Ask me about engines.",
        suggestions=("Who was Ada?", "What is an engine?"),
        accent="#3b82f6",
        icon=grey_png(),
        system="You are Ada.",
    )


def test_the_options_take_the_place_of_the_keys(run, here, toml):
    command = ["build", "--gguf", "m.gguf", "-o", "o", "--persona", toml, "--name", "Eve"]
    done = run(*command, "--suggest", "Why?")
    assert "  persona   name, icon, system, greeting, suggestions, accent\n" in done.out
    with zipfile.ZipFile("o") as archive:
        says = json.loads(archive.read("persona.json"))
        assert archive.read(".args").decode().startswith("-sys 'You are Ada.'\n")
        assert json.loads(archive.read("llamafile.json"))["name"] == "Eve"
    icon = says.pop("icon")
    assert icon.startswith("data:image/png;base64,iVBORw0KGgo")
    assert says == {**ADA, "name": "Eve", "suggestions": ["Why?"]}
    shown = run("inspect", "o").out
    for line in ("name          Eve", "suggestion    Why?", "icon          PNG, "):
        assert f"\n  {line}" in shown
    assert json.loads(run("inspect", "--json", "o").out)["persona"]["name"] == "Eve"


def test_a_name_alone_is_a_persona_and_the_default_name_is_none(run, here):
    run("build", "--gguf", "m.gguf", "-o", "plain", "--name", "m")
    run("build", "--gguf", "m.gguf", "-o", "named", "--name", "Field Expert")
    assert "persona.json" not in zipfile.ZipFile("plain").namelist()
    assert json.loads(zipfile.ZipFile("named").read("persona.json")) == {"name": "Field Expert"}


def test_the_system_prompt_alone_is_an_argument(run, here):
    Path("s.txt").write_text("Be brief.\n")
    run("build", "--gguf", "m.gguf", "-o", "o", "--system", "s.txt", "--arg", "-c", "--arg", "64")
    with zipfile.ZipFile("o") as archive:
        assert archive.read(".args").decode() == "-sys 'Be brief.'\n-c\n64\n"
        assert "persona.json" not in archive.namelist()


def test_an_upgrade_keeps_it(run, here, toml):
    run("build", "--gguf", "m.gguf", "-o", "o", "--persona", toml)
    before = pyllamafile.inspect("o").persona
    assert before is not None
    assert before.icon == grey_png()
    assert run("upgrade", "o").code == 0
    assert pyllamafile.inspect("o").persona == before
    assert run("verify", "o").code == 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name = Ada", "line 1"),
        ("nome = 'Ada'", "there is no key 'nome'"),
        ("name = 3", "name is not a text in quotes"),
        ("suggestions = 'Why?'", "suggestions is not a list of texts"),
        ("suggestions = [3]", "suggestions is not a list of texts"),
        ("accent = 'blue'", "'blue' is no colour"),
        ("name = ' '", "name is empty"),
        ('name = "A\\nda"', "more than one line"),
        ('greeting = "\\u001b[2J"', "character that can't be shown"),
        (f"greeting = '{'a' * 4097}'", "has 4,097 characters, and may have 4,096"),
        ("icon = 'none.png'", "none.png: No such file"),
        ("icon = 'p.toml'", "p.toml: is no PNG"),
        ("system-file = 'none.txt'", "none.txt: No such file"),
        ("system = 'a'\nsystem-file = 'p.toml'", "both system and system-file"),
    ],
)
def test_what_is_no_persona(run, here, text, message):
    Path("p.toml").write_text(text)
    done = run("build", "--gguf", "m.gguf", "-o", "o", "--persona", "p.toml")
    assert done.code == 1
    assert done.err.startswith("error: p.toml: " if "none" not in message else "error: none.")
    assert message in done.err.splitlines()[0]
    assert not Path("o").exists()


@pytest.mark.parametrize(
    ("option", "content", "message"),
    [
        ("--icon", b"GIF89a", "f: is no PNG"),
        (
            "--icon",
            grey_png() + bytes(1 << 20),
            "f: has 1,048,647 bytes, and an icon may have 1,048,576",
        ),
        ("--system", b"\xff\xff", "f: is no text in UTF-8 or UTF-16"),
        ("--system", b" \n", "f: is empty"),
        ("--system", b"a\0b", "f: is no text"),
    ],
)
def test_files_that_are_no_good(fails, here, option, content, message):
    Path("f").write_bytes(content)
    hint = "make it smaller: 256 pixels are enough" if "may have" in message else None
    fails(message, "build", "--gguf", "m.gguf", "-o", "o", option, "f", hint=hint)
    assert not Path("o").exists()


DAMAGED = [b"[]", b"{", b'{"name": 3}', b'{"icon": "data:x"}', b"\xff", b'{"suggestions": "a"}']


@pytest.mark.parametrize("text", DAMAGED)
def test_a_damaged_one_is_shown_as_such(run, here, monkeypatch, text):
    with monkeypatch.context() as patched:
        patched.setattr(Persona, "text", text)
        pyllamafile.build("m.gguf", "o")
    assert "\n  persona       persona.json says no persona\n" in run("inspect", "o").out


@pytest.mark.parametrize("text", DAMAGED)
def test_a_damaged_one_is_not_added(fails, run, here, text):
    Path("p.json").write_bytes(text)
    message = r"p\.json: persona\.json says no persona"
    fails(message, "build", "--gguf", "m.gguf", "-o", "o", "--add", "p.json=persona.json")
    run("build", "--gguf", "m.gguf", "-o", "o")
    fails(message, "add", "o", "p.json=persona.json")
    Path("p.json").write_text(json.dumps({"name": "Eve"}))
    assert run("add", "o", "p.json=persona.json").code == 0
    assert pyllamafile.inspect("o").persona == Persona(name="Eve")


# What Windows shows of it


def shown(path: Path) -> tuple[str | None, bytes | None]:
    """The name and the icon in a Windows program, or in a file that begins with one."""
    content = path.read_bytes()
    if zipfile.is_zipfile(path):
        content = content[: manifest(path)["head"]["size"]]
    binary = lief.PE.parse(content)
    if not binary.has_resources:
        return None, None
    found = binary.resources_manager
    icons = [bytes(icon.pixels) for icon in found.icons] if found.has_icons else [None]
    if not found.has_version:
        return None, icons[0]
    (version,) = found.version
    (table,) = version.string_file_info.children
    says = {entry.key: entry.value for entry in table.entries}
    assert says["FileDescription"] == says["ProductName"]
    assert says["FileVersion"] == pyllamafile.__version__
    return says["ProductName"], icons[0]


WINDOWS = ("--target", "windows-amd64", "--target", "linux-amd64")


def test_windows_shows_it_after_an_upgrade_too(run, windows, here, toml):
    for name in ("o", "again"):
        run("build", "--gguf", "m.gguf", "-o", name, "--persona", toml, *WINDOWS)
    assert Path("o").read_bytes() == Path("again").read_bytes()
    assert shown(Path("o")) == ("Ada", grey_png())
    assert run("verify", "o").code == 0
    before = manifest(Path("o"))["head"]
    assert run("upgrade", "o").code == 0
    assert manifest(Path("o"))["head"] == before
    assert subprocess.run(["sh", "./o", "x"], capture_output=True).returncode == 0


def test_without_a_name_and_an_icon_the_program_is_as_it_was_linked(run, windows, here):
    for name, options in (("plain", ()), ("greets", ("--greeting", "Hello."))):
        run("build", "--gguf", "m.gguf", "-o", name, *WINDOWS, *options)
    assert manifest(Path("plain"))["head"] == manifest(Path("greets"))["head"]
    assert shown(Path("plain")) == (None, None)


def test_what_windows_shows_after_the_persona_was_changed(run, windows, here, toml):
    """The head stays; `upgrade` makes it right."""
    run("build", "--gguf", "m.gguf", "-o", "o", "--persona", toml, *WINDOWS)
    Path("p.json").write_text(json.dumps({"name": "Eve"}))
    said = "o: Windows shows the name and icon of before: `pyllamafile upgrade o` makes it show"
    for command, after in (
        (("add", "o", "p.json=persona.json"), ("Eve", None)),
        (("remove", "o", "persona.json"), (None, None)),
    ):
        before = shown(Path("o"))
        done = run(*command)
        assert (done.code, said in done.err) == (0, True)
        assert shown(Path("o")) == before
        assert run("verify", "o").code == 0
        assert run("upgrade", "o").code == 0
        assert shown(Path("o")) == after
        assert run("verify", "o").code == 0
    Path("persona.json").write_text(json.dumps({"name": "Zoe"}))
    assert said in run("zipalign", "o", "persona.json").err
    Path("note.txt").write_text("x")
    assert said not in run("add", "o", "note.txt").err
    run("build", "--gguf", "m.gguf", "-o", "linux", "--persona", toml, "--target", "linux-amd64")
    assert "Windows" not in run("add", "linux", "p.json=persona.json").err


def test_another_files_engine_brings_no_persona(run, windows, here, toml):
    run("build", "--gguf", "m.gguf", "-o", "ada", "--persona", toml, *WINDOWS)
    run("build", "--gguf", "m.gguf", "-o", "plain", *WINDOWS)
    assert run("upgrade", "plain", "--engine", "ada").code == 0
    assert shown(Path("plain")) == (None, None)
    assert b".persona" not in Path("plain").read_bytes()[:4096]
    assert run("upgrade", "ada", "--engine", "plain").code == 0
    assert shown(Path("ada")) == ("Ada", grey_png())


@pytest.mark.parametrize("icon", [b"GIF89a", grey_png()[:20], b""])
def test_an_icon_that_is_none_is_not_shown(run, windows, here, monkeypatch, icon):
    """Of a file that somebody else wrote."""
    says = {"name": "Eve", "icon": "data:image/png;base64," + base64.b64encode(icon).decode()}
    Path("p.json").write_text(json.dumps(says))
    run("build", "--gguf", "m.gguf", "-o", "o", *WINDOWS)
    assert run("add", "o", "p.json=persona.json").code == 0
    assert run("upgrade", "o").code == 0
    assert shown(Path("o")) == ("Eve", None)


def test_the_program_beside_a_large_file_looks_like_it(run, windows, here, toml, monkeypatch):
    for module in ("build", "upgrade"):
        monkeypatch.setattr(f"pyllamafile.ops.{module}.TOO_LARGE", 10_000)
    run("build", "--gguf", "m.gguf", "-o", "o.llamafile", "--persona", toml, *WINDOWS)
    assert shown(Path("o.exe")) == ("Ada", grey_png())
    Path("p.json").write_text(json.dumps({"name": "Eve"}))
    assert run("add", "o.llamafile", "p.json=persona.json").code == 0
    assert run("upgrade", "o.llamafile").code == 0
    assert shown(Path("o.exe")) == shown(Path("o.llamafile")) == ("Eve", None)
    assert run("remove", "o.llamafile", "persona.json").code == 0
    assert run("upgrade", "o.llamafile").code == 0
    assert Path("o.exe").read_bytes() == tiny_pe()


def test_an_older_python_without_tomli(toml, monkeypatch):
    monkeypatch.setattr(sys, "version_info", (3, 10))
    monkeypatch.setitem(sys.modules, "tomli", None)
    with pytest.raises(PyllamafileError, match=r"Python before 3\.11 reads no TOML"):
        persona.Persona.read(toml)
