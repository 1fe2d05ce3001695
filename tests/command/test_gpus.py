"""What uses GPUs in a file: put in, left out, replaced, and shown. Nothing of it is started."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
import zipfile
from pathlib import Path

import pytest
from fixtures import (
    NEW,
    PROGRAM,
    SECOND,
    SHADERS,
    frame,
    put_runtime,
    put_second,
    tiny_elf,
    tiny_gguf,
    tiny_pe,
)
from judging import check_whole, contents, manifest
from oci import images
from running import package

import pyllamafile
from pyllamafile import difference, native, zipalign
from pyllamafile.ops.verify import verify
from pyllamafile.targets import WITH_GPU, Target

ENTRY, BLOB = "gpu/linux-amd64.zst", "gpu/shaders.zst"


@pytest.fixture
def here(folder, model, prebuilt):
    shutil.copy(model, "m.gguf")
    put_second(prebuilt)
    return folder


@pytest.fixture
def built(here):
    return pyllamafile.build("m.gguf", "f.llamafile").path


def without_gpus(prebuilt: Path) -> None:
    """Another engine is at hand now, which has nothing for GPUs."""
    put_runtime(prebuilt, NEW)
    for name in ("linux-amd64-gnu.zst", "linux-amd64-gnu.json", "shaders.zst"):
        (prebuilt / name).unlink()


def gpus(path: Path) -> set[str]:
    return {name for name in contents(path) if name.startswith("gpu/")}


def test_what_is_at_hand_goes_in(run, here, model):
    done = run("build", "--gguf", "m.gguf", "-o", "f.llamafile")
    assert (done.code, done.err) == (0, "")
    assert "  GPUs on   linux-amd64\n" in done.out
    inside = contents("f.llamafile")
    assert inside[ENTRY] == frame(SECOND)
    assert inside[BLOB] == SHADERS
    assert inside["LICENSES/glibc.txt"] == b"LGPL, glibc"
    with zipfile.ZipFile("f.llamafile") as archive:
        assert {archive.getinfo(name).compress_type for name in (ENTRY, BLOB)} == {0}
    facts = manifest("f.llamafile")
    assert "gpu" not in facts
    (runtime,) = facts["runtimes"]
    assert runtime["gpu"] == {"size": len(SECOND), "sha256": hashlib.sha256(SECOND).hexdigest()}
    assert verify("f.llamafile") == []
    check_whole("f.llamafile", model)
    shown = run("inspect", "f.llamafile").out
    assert "  GPUs          linux-amd64, " in shown
    report = json.loads(run("inspect", "f.llamafile", "--json").out)
    assert report["gpus"] == {"linux-amd64": len(frame(SECOND))}
    assert run("extract", "f.llamafile", ENTRY, "-C", "out").code == 0
    assert Path("out", ENTRY).read_bytes() == frame(SECOND)


def test_it_is_left_out_and_stays_out(run, here, prebuilt):
    done = run("build", "--gguf", "m.gguf", "-o", "f.llamafile", "--no-gpu")
    assert (done.code, "GPUs" in done.out) == (0, False)
    assert gpus(Path("f.llamafile")) == set()
    assert "LICENSES/glibc.txt" not in contents("f.llamafile")
    assert manifest("f.llamafile")["gpu"] is False
    assert "gpu" not in manifest("f.llamafile")["runtimes"][0]
    assert "GPUs" not in run("inspect", "f.llamafile").out
    assert run("upgrade", "f.llamafile").code == 0
    assert gpus(Path("f.llamafile")) == set()
    done = run("upgrade", "f.llamafile", "--gpu")
    assert "  GPUs on   linux-amd64\n" in done.out
    assert gpus(Path("f.llamafile")) == {ENTRY, BLOB}
    assert "gpu" not in manifest("f.llamafile")
    assert verify("f.llamafile") == []
    assert run("upgrade", "f.llamafile", "--no-gpu").code == 0
    assert gpus(Path("f.llamafile")) == set()
    assert manifest("f.llamafile")["gpu"] is False


def test_another_engine_replaces_it(run, built, prebuilt):
    put_runtime(prebuilt, NEW)
    put_second(prebuilt, NEW + b"# uses GPUs")
    assert run("upgrade", built).code == 0
    assert contents(built)[ENTRY] == frame(NEW + b"# uses GPUs")
    assert verify(built) == []
    without_gpus(prebuilt)
    assert run("upgrade", built).code == 0
    assert gpus(built) == set()
    assert "gpu" not in manifest(built)
    assert verify(built) == []
    put_second(prebuilt)
    assert run("upgrade", built).code == 0
    assert gpus(built) == {ENTRY, BLOB}


def test_a_program_of_linux_has_it_too(here, prebuilt, model):
    put_runtime(prebuilt, tiny_elf())
    path = pyllamafile.build("m.gguf", "f", targets="linux-amd64", format="elf").path
    assert gpus(path) == {ENTRY, BLOB}
    assert verify(path) == []
    check_whole(path, model)


@pytest.mark.parametrize("kind", ["wheel", "llamafile", "program"])
def test_an_engine_from(run, here, prebuilt, kind):
    if kind == "wheel":
        with zipfile.ZipFile("engine", "w", zipfile.ZIP_DEFLATED) as archive:
            for path in prebuilt.iterdir():
                archive.write(path, f"pyllamafile/native/prebuilt/{path.name}")
    elif kind == "program":
        put_runtime(prebuilt, tiny_elf())
        pyllamafile.build(output="engine", targets="linux-amd64", format="elf")
    else:
        pyllamafile.build(output="engine")
    without_gpus(prebuilt)
    path = pyllamafile.build("m.gguf", "f.llamafile").path
    assert gpus(path) == set()
    assert run("upgrade", path, "--engine", "engine").code == 0
    inside = contents(path)
    assert (inside[ENTRY], inside[BLOB]) == (frame(SECOND), SHADERS)
    assert inside["LICENSES/glibc.txt"] == b"LGPL, glibc"
    assert verify(path) == []
    assert run("upgrade", path, "--engine", "engine", "--no-gpu").code == 0
    assert gpus(path) == set()


def test_an_engine_without_it(fails, built, prebuilt):
    without_gpus(prebuilt)
    pyllamafile.build(output="engine")
    told = "engine: has nothing that uses GPUs"
    fails(told, "upgrade", built, "--engine", "engine", "--gpu")


def test_shaders_alone_are_of_no_use(here, prebuilt):
    (prebuilt / "linux-amd64-gnu.zst").unlink()
    assert gpus(pyllamafile.build("m.gguf", "a").path) == set()
    put_second(prebuilt)
    (prebuilt / "shaders.zst").unlink()
    assert gpus(pyllamafile.build("m.gguf", "b").path) == set()


def test_nobody_puts_it_in_or_takes_it_out_by_hand(fails, built):
    Path("x").write_text("x")
    told = "cannot add 'gpu/x': pyllamafile itself writes what has such a name"
    fails(told, "build", "--gguf", "m.gguf", "-o", "g", "--add", "x=gpu/x")
    fails(f"{built}: {told}", "add", built, "x=gpu/x")
    told = f"{built}: {ENTRY} can't be removed: it belongs to the engine"
    way = f"pyllamafile upgrade {built} --no-gpu takes all of that out"
    fails(told, "remove", built, ENTRY, hint=way)


def test_an_older_files_own_entry_of_that_name_is_not_lost(run, fails, here, prebuilt):
    put_second(prebuilt)
    path = pyllamafile.build("m.gguf", "f.llamafile", gpu=False).path
    found = pyllamafile.llamafile.read(path)
    own = zipalign.Entry(ENTRY, b"of mine")
    facts = {key: value for key, value in found.manifest.items() if key != "gpu"}
    older = dataclasses.replace(found, manifest=facts)
    zipalign.add(path, [own, older.updated_manifest([own])])
    way = "--drop-unknown drops it; `pyllamafile extract` saves it before"
    told = f"{path}: an upgrade would drop what belongs to no engine: {ENTRY}"
    fails(told, "upgrade", path, hint=way)
    without_gpus(prebuilt)
    assert run("upgrade", path).code == 0
    assert contents(path)[ENTRY] == b"of mine"


def test_what_people_put_there_is_theirs(run, fails, built):
    """zipalign gives an entry the name that it is told."""
    Path("gpu").mkdir()
    Path("gpu/notes.txt").write_text("mine")
    assert run("zipalign", built, "gpu/notes.txt").code == 0
    assert run("upgrade", built).code == 0
    assert contents(built)["gpu/notes.txt"] == b"mine"
    assert gpus(built) == {ENTRY, BLOB, "gpu/notes.txt"}
    assert run("upgrade", built, "--no-gpu").code == 0
    assert gpus(built) == {"gpu/notes.txt"}
    assert run("remove", built, "gpu/notes.txt").code == 0
    assert gpus(built) == set()


def test_an_engine_that_lacks_it_takes_it_out_and_says_so(run, built, prebuilt):
    without_gpus(prebuilt)
    done = run("upgrade", built)
    assert (done.code, gpus(built)) == (0, set())
    assert "uses no GPU any more on linux-amd64: upgrade --gpu brings that back" in done.err
    assert "GPU" not in run("upgrade", built).err  # it has none, and nobody lost one


def test_an_image_has_nothing_of_it(run, built):
    assert run("export", built, "--oci", "image").code == 0
    (image,) = images(Path("image")).values()
    rest = Path("rest.zip")
    rest.write_bytes(image.files["usr/share/llamafile/model.zip"][1])
    assert gpus(rest) == set()


def test_what_is_missing_is_built(run, here, prebuilt, monkeypatch):
    without_gpus(prebuilt)
    asked = []

    def build_all(targets: list[Target], *, gui, shaders, progress, finished) -> None:
        asked.append(([target.name for target in targets], gui, shaders))
        put_second(prebuilt)

    monkeypatch.setattr(native, "build_all", build_all)
    monkeypatch.setattr(native, "check_tools", lambda: None)
    done = run("build", "--gguf", "m.gguf", "-o", "f.llamafile", "--gpu")
    assert done.code == 0, done.err
    assert asked == [(["linux-amd64-gnu"], False, True)]
    assert "No runtime for linux-amd64-gnu is at hand yet" in done.err
    assert gpus(Path("f.llamafile")) == {ENTRY, BLOB}
    assert run("build", "--gguf", "m.gguf", "-o", "g.llamafile", "--gpu").err == ""
    assert len(asked) == 1


def test_a_target_that_can_have_none(fails, here, prebuilt):
    put_runtime(prebuilt, PROGRAM, "macos-amd64")
    known = ", ".join(target.plain for target in WITH_GPU.values())
    told = "no program that uses GPUs is known for macos-amd64"
    words = ("build", "--gguf", "m.gguf", "-o", "f", "--gpu", "--target", "macos-amd64")
    fails(told, *words, hint=f"there are such for {known}")


def test_the_head_for_windows_is_what_its_second_program_is_made_of(run, here, prebuilt):
    """Whatever script and persona are in it, and whatever the file is upgraded from."""
    package("zstandard", "runtimes")
    plain = tiny_pe(debug_data=False)
    second = plain + b"uses GPUs"
    put_runtime(prebuilt, plain, "windows-amd64")
    put_second(prebuilt, second, "windows-amd64-gpu", difference.made(second, plain))
    words = ("--gguf", "m.gguf", "-o", "f.llamafile", "--greeting", "Hi", "--name", "Ada")
    assert run("build", *words).code == 0
    path = Path("f.llamafile")
    assert gpus(path) == {ENTRY, BLOB, "gpu/windows-amd64.zst"}
    assert verify(path) == []
    head = path.read_bytes()[: manifest(path)["head"]["size"]]
    packed = contents(path)["gpu/windows-amd64.zst"]
    assert difference.program(packed, head, len(second)) == second
    tiny_gguf(Path("other.gguf"))
    other = pyllamafile.build("other.gguf", "g.llamafile", gpu=False).path
    assert run("upgrade", other, "--engine", path, "--gpu").code == 0
    assert verify(other) == []
    assert contents(other)["gpu/windows-amd64.zst"] == packed
