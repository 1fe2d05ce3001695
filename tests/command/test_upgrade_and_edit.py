"""Finished files get another engine, more entries, and fewer."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from fixtures import NEW, PROGRAM, put_runtime, tiny_elf, tiny_gguf, tiny_pe
from judging import check_whole, contents, manifest, names, runs

import pyllamafile
from pyllamafile import plan
from pyllamafile.llamafile import manifest_entry, read
from pyllamafile.models import tiny
from pyllamafile.ops import edit
from pyllamafile.ops.verify import verify
from pyllamafile.zipalign import Entry


@pytest.fixture
def here(folder, model):
    shutil.copy(model, "m.gguf")
    return folder


@pytest.fixture
def old(here, prebuilt):
    """A llamafile whose engine is not what is at hand now."""
    Path("notes.txt").write_text("notes")
    options = {"args": ["-c", "64"], "add": [("notes.txt", "notes.txt")]}
    path = pyllamafile.build("m.gguf", "f.llamafile", **options).path
    put_runtime(prebuilt, NEW)
    return path


def program(path: Path, *arguments: str) -> bytes:
    """The program that a file unpacks on this machine."""
    cache = Path("cache").absolute()
    env = {**os.environ, "PYLLAMAFILE_CACHE": str(cache)}
    subprocess.run(["sh", f"./{path}", *arguments], env=env, check=True, capture_output=True)
    (unpacked,) = (cache / "run").glob("*")
    content = unpacked.read_bytes()
    shutil.rmtree(cache)
    return content


# upgrade


def test_what_upgrade_says_and_does(run, old, model):
    assert program(old) == PROGRAM
    old.chmod(0o750)
    done = run("upgrade", "f.llamafile")
    assert (done.code, done.err) == (0, "")
    lines = done.out.splitlines()
    assert lines[0].split()[0] == "f.llamafile"
    assert lines[1:] == [
        "  weights   m.gguf",
        "  runs on   linux-amd64",
        "  engine    1.2.3 (abc)",
    ]
    check_whole(old, model)
    assert program(old) == NEW
    assert old.stat().st_mode & 0o777 == 0o750
    assert contents(old)[".args"] == b"-c\n64\n"
    assert contents(old)["notes.txt"] == b"notes"
    assert names() == ["f.llamafile", "m.gguf", "notes.txt"]


def test_it_is_what_build_makes(old):
    """Byte for byte, so nothing of the old engine is left."""
    options = {"args": ["-c", "64"], "add": [("notes.txt", "notes.txt")]}
    fresh = pyllamafile.build("m.gguf", "fresh", name="m", **options).path
    pyllamafile.upgrade(old)
    assert old.read_bytes() == fresh.read_bytes()


def test_a_link_stays_a_link(old):
    Path("link").symlink_to(old)
    pyllamafile.upgrade("link")
    assert Path("link").is_symlink()
    assert program(old) == NEW


def test_without_a_gui_it_stays_without(here, prebuilt):
    path = pyllamafile.build("m.gguf", gui=False).path
    pyllamafile.upgrade(path)
    assert not any(name.startswith("ui/") for name in contents(path))
    assert pyllamafile.verify(path) == []


def test_without_the_model_of_prove_it_stays_without(here, prebuilt):
    path = pyllamafile.build("m.gguf", prove=False).path
    pyllamafile.upgrade(path)
    assert "proof.model" not in contents(path)
    assert manifest(path)["proof"] is False


@pytest.fixture
def older(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Builds a file whose manifest knows nothing of the model of --prove."""

    def older(**options: object) -> Path:
        def without(facts: dict[str, object], *rest: object) -> Entry:
            known = {key: value for key, value in facts.items() if key != "proof"}
            return manifest_entry(known, *rest)

        with monkeypatch.context() as patch:
            patch.setattr(plan, "manifest_entry", without)
            return pyllamafile.build("m.gguf", prove=False, **options).path

    return older


def test_an_older_file_gets_the_model_of_prove(here, prebuilt, older):
    path = older()
    assert "proof" not in manifest(path)
    pyllamafile.upgrade(path)
    assert contents(path)["proof.model"] == tiny.model()
    assert manifest(path)["proof"] is True
    assert pyllamafile.verify(path) == []


def test_an_older_files_own_entry_of_that_name_is_not_lost(fails, here, prebuilt, older):
    Path("notes").write_text("notes")
    path = older(add=[("notes", "proof.model")])
    fails(
        rf"{path}: an upgrade would drop what belongs to no engine: proof\.model",
        "upgrade",
        path,
        hint="--drop-unknown drops it; `pyllamafile extract` saves it before",
    )
    assert contents(path)["proof.model"] == b"notes"


def test_targets_that_are_there_are_kept(run, fails, here, prebuilt):
    put_runtime(prebuilt, PROGRAM, "macos-arm64")
    path = pyllamafile.build("m.gguf").path
    put_runtime(prebuilt, NEW, "freebsd-amd64")
    assert pyllamafile.upgrade(path).targets == ("linux-amd64", "macos-arm64")
    done = pyllamafile.upgrade(path, targets=["linux-amd64", "freebsd-amd64"])
    assert done.targets == ("linux-amd64", "freebsd-amd64")
    assert [runtime["target"] for runtime in manifest(path)["runtimes"]] == list(done.targets)
    (prebuilt / "freebsd-amd64.json").unlink()
    fails(
        "no runtime is at hand for freebsd-amd64",
        "upgrade",
        path,
        hint="pyllamafile runtimes build --target freebsd-amd64, or do without: "
        "--target linux-amd64",
    )


def test_windows_is_the_file_itself(here, prebuilt, model):
    put_runtime(prebuilt, tiny_pe(), "windows-amd64")
    put_runtime(prebuilt, tiny_pe(0xAA64), "windows-arm64")
    path = pyllamafile.build("m.gguf").path
    put_runtime(prebuilt, NEW)
    pyllamafile.upgrade(path)
    check_whole(path, model)
    assert path.read_bytes().startswith(b"MZ=;eval")
    fresh = pyllamafile.build("m.gguf", "fresh").path
    assert path.read_bytes() == fresh.read_bytes()
    # and as an engine, with its script replaced
    put_runtime(prebuilt, PROGRAM)
    other = pyllamafile.build("m.gguf", "other", targets=["linux-amd64"]).path
    done = pyllamafile.upgrade(other, engine=path, targets=["windows"])
    assert done.targets == ("windows-amd64", "windows-arm64")
    check_whole(other, model)


def test_a_linux_program_stays_one(here, prebuilt, model):
    put_runtime(prebuilt, tiny_elf())
    path = pyllamafile.build("m.gguf", format="elf").path
    put_runtime(prebuilt, tiny_elf() + b"newer")
    pyllamafile.upgrade(path)
    assert path.read_bytes().startswith(tiny_elf() + b"newer")
    check_whole(path, model)
    # as an engine of a file of another kind it is packed
    put_runtime(prebuilt, PROGRAM)
    other = pyllamafile.build("m.gguf", "other").path
    pyllamafile.upgrade(other, engine=path)
    assert program(other) == tiny_elf() + b"newer"
    check_whole(other, model)


@pytest.mark.parametrize("kind", ["wheel", "llamafile"])
def test_an_engine_from(run, old, prebuilt, model, kind):
    if kind == "wheel":
        with zipfile.ZipFile("p.whl", "w", zipfile.ZIP_DEFLATED) as archive:
            for path in prebuilt.iterdir():
                archive.write(path, f"pyllamafile/native/prebuilt/{path.name}")
            archive.writestr("pyllamafile/__init__.py", "")
        engine = "p.whl"
    else:
        tiny_gguf(Path("other.gguf"), name="Other")
        engine = str(pyllamafile.build("other.gguf").path)
    put_runtime(prebuilt, b"#!/bin/sh\nexit 1 # of a version that is not wanted\n")
    before = names()
    assert run("upgrade", old, "--engine", engine).code == 0
    assert names() == before
    assert program(old) == NEW
    check_whole(old, model)
    found = contents(old)
    assert set(found) == {
        "m.gguf", "notes.txt", ".args", "LICENSES/llama.cpp.txt", "LICENSES/musl.txt",
        "LICENSES/web-gui.txt", "ui/index.html", "ui/tiny", "proof.model", "llamafile.json",
    }  # fmt: skip


def test_engines_that_are_none(fails, old, prebuilt):
    Path("text").write_text("x")
    again = "if it was downloaded, get it again"
    fails("text: not a zip archive, or cut off", "upgrade", old, "--engine", "text", hint=again)
    with zipfile.ZipFile("empty.whl", "w") as archive:
        archive.writestr("pyllamafile/native/prebuilt/ui.zip", "")
    fails(r"empty\.whl: ui\.zip can't be understood", "upgrade", old, "--engine", "empty.whl")
    with zipfile.ZipFile("bad.whl", "w") as archive:
        archive.writestr("pyllamafile/native/prebuilt/linux-amd64.json", "[]")
    fails(r"bad\.whl: linux-amd64.json can't be understood", "upgrade", old, "--engine", "bad.whl")
    other = Path(shutil.copy(old, "other"))
    raw = bytearray(other.read_bytes())
    at = manifest(other)["runtimes"][0]["offset"]
    raw[at + 70_000 : at + 70_004] = b"\0\0\0\0"
    raw[at + 100 : at + 104] = b"\1\1\1\1"
    other.write_bytes(raw)
    fails("other: its runtime for linux-amd64 is damaged", "upgrade", old, "--engine", "other")


def test_what_is_no_llamafile(fails, here):
    with zipfile.ZipFile("a.zip", "w") as archive:
        archive.writestr("x", "y")
    fails(
        r"a\.zip: is no llamafile: it has no weights",
        "upgrade",
        "a.zip",
        hint="build makes one of a GGUF",
    )
    fails("nothing: cannot read: No such file or directory", "upgrade", "nothing")
    hint = "it is a bare GGUF: `pyllamafile build` makes a llamafile of it"
    fails(r"m\.gguf: not a zip archive, or cut off", "upgrade", "m.gguf", hint=hint)


def test_damaged_weights_are_not_carried_on(fails, old):
    raw = bytearray(old.read_bytes())
    at = pyllamafile.inspect(old).entries[0].offset
    raw[at + 5000] ^= 1
    old.write_bytes(raw)
    fails("m.gguf: the content is not what it was announced to be", "upgrade", old)


# Mozilla's


def mozilla(path: Path, model: Path, *, compressed: bool = False) -> Path:
    """A file as Mozilla's tools make it: a program of theirs, their assets, .args, weights."""
    path.write_bytes(b"MZqFpD='\n" + os.urandom(100_000) + b"\n'\nexit 1\n")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("usr/share/zoneinfo/UTC", os.urandom(600))
        archive.writestr("llamafile/highlight/c.gperf.c", "x" * 5000, zipfile.ZIP_DEFLATED)
        args = "-m\nm.gguf\n--mmproj\n/zip/mm.gguf\n--host\n0.0.0.0\n-ngl\n9999\n...\n"
        archive.writestr(".args", args, zipfile.ZIP_DEFLATED)
        method = zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED
        archive.write(model, "m.gguf", method)
        archive.write(model, "mm.gguf", method)
        archive.writestr(".symtab.amd64", b"symbols")
    path.chmod(0o755)
    return path


def test_mozillas_weights_and_arguments_are_taken(run, here, model):
    path = mozilla(Path("moz.llamafile"), model)
    assert run("upgrade", path).code == 0
    found = contents(path)
    assert found["m.gguf"] == found["mm.gguf"] == model.read_bytes()
    assert (
        found[".args"].split()
        == b"-m @m.gguf --mmproj @mm.gguf --host 0.0.0.0 -ngl 9999 ...".split()
    )
    assert not any(name.startswith(("usr/", "llamafile/", ".symtab")) for name in found)
    assert pyllamafile.verify(path) == []
    report = pyllamafile.inspect(path)
    assert report.name == "moz"
    assert all(e.alignment == 65536 for e in report.entries if e.name.endswith(".gguf"))
    assert runs(path)


def test_mozillas_compressed_weights(fails, here, model):
    fails(
        r"moz\.llamafile: m\.gguf is compressed, and can't be used where it is",
        "upgrade",
        mozilla(Path("moz.llamafile"), model, compressed=True),
        hint="extract it, and build a file of it",
    )


# add, remove


def test_add_and_remove(run, old, model):
    tiny_gguf(Path("second.gguf"), name="Second")
    Path("arguments").write_text("-m @m\n")
    before = pyllamafile.inspect(old).entries[0].offset
    done = run("add", old, "notes.txt=docs/n.txt", "second.gguf", "arguments=.args")
    assert done == (0, "docs/n.txt\nsecond.gguf\n.args\n", "")
    check_whole(old, model)
    found = contents(old)
    assert (found["docs/n.txt"], found[".args"]) == (b"notes", b"-m @m\n")
    assert found["second.gguf"] == Path("second.gguf").read_bytes()
    report = pyllamafile.inspect(old)
    assert report.entries[0].offset == before
    assert {e.alignment for e in report.entries if e.name.endswith(".gguf")} == {65536}
    assert [facts.name for facts in report.models] == ["Tiny", "Second"]
    assert run("remove", old, "docs/n.txt", "notes.txt", "second.gguf") == (0, "", "")
    check_whole(old, model)
    assert not {"docs/n.txt", "notes.txt", "second.gguf"} & set(contents(old))
    assert pyllamafile.inspect(old).entries[0].offset == before
    assert program(old) == PROGRAM


@pytest.mark.parametrize("name", ["faq?", "?", "*", "faq??"])
def test_a_name_that_means_something_in_a_table_of_ours(run, old, name):
    Path("x").write_text("what people ask")
    assert run("add", old, f"x={name}").code == 0
    assert verify(old) == []
    assert read(old).digests[name].size == 15
    assert run("remove", old, name).code == 0
    assert verify(old) == []


def test_adding_and_removing_leaves_nothing_behind(old):
    size = old.stat().st_size
    Path("big").write_bytes(os.urandom(1 << 20))
    for _ in range(3):
        edit.add(old, [("big", "big")])
        edit.remove(old, ["big"])
    assert old.stat().st_size - size < 1 << 16


def test_what_cannot_be_added_or_removed(fails, old, model):
    Path("latin").write_bytes(b"\xe4")
    fails("latin: not UTF-8 text", "add", old, "latin=.args")
    for name in ("llamafile.json", "ui/x", "proof.model"):
        message = rf"f\.llamafile: cannot add '{name}': pyllamafile itself writes what has such .*"
        fails(message, "add", old, f"notes.txt={name}")
    fails("nothing: cannot read: No such file or directory", "add", old, "nothing")
    fails(r"notes\.txt: not a GGUF file", "add", old, "notes.txt=x.gguf")
    fails("f.llamafile: cannot be added to itself", "add", old, old)
    fails("f.llamafile: has no entry 'x'", "remove", old, "x", hint="inspect lists them")
    fails("f.llamafile: llamafile.json can't be removed.*", "remove", old, "llamafile.json")
    moz = mozilla(Path("moz"), model)
    hint = "`pyllamafile upgrade` makes it one of ours, `zipalign` adds to any zip"
    fails("moz: was not built by pyllamafile", "add", moz, "notes.txt", hint=hint)
    fails("moz: was not built by pyllamafile", "remove", moz, ".args", hint=hint)


def test_an_upgrade_keeps_what_was_added(old, prebuilt):
    edit.add(old, [("notes.txt", "LICENSES/model.txt"), ("notes.txt", "more/n.txt")])
    edit.remove(old, ["notes.txt"])
    pyllamafile.upgrade(old)
    found = contents(old)
    assert found["LICENSES/model.txt"] == found["more/n.txt"] == b"notes"
    assert "notes.txt" not in found
    assert set(json.loads(found["llamafile.json"])["entries"]) == set(found) - {"llamafile.json"}
