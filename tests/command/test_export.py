"""A llamafile as an image: an independent reader judges it (oci.py), as containers will."""

from __future__ import annotations

import io
import os
import shutil
import tarfile
import time
import zipfile
from pathlib import Path

import pytest
from fixtures import NEW, PROGRAM, put_runtime, sparse_gguf, split_gguf, tiny_gguf, tiny_lora
from judging import contents, names, snapshot
from oci import images

import pyllamafile
from pyllamafile import arguments, zipalign
from pyllamafile.ops import export
from pyllamafile.zipalign import Entry

FILE = "f.llamafile"
REST = "usr/share/llamafile/model.zip"


@pytest.fixture
def here(folder, model):
    shutil.copy(model, "m.gguf")
    Path("notes.txt").write_text("notes\n" * 99)
    return folder


@pytest.fixture
def built(here):
    pyllamafile.build("m.gguf", FILE, args=["-c", "64"], add=["notes.txt"])
    return Path(FILE)


def rest(image) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(image.files[REST][1])) as file:
        assert file.testzip() is None
        return {name: file.read(name) for name in file.namelist()}


def args(folder: str = "image") -> list[str]:
    """The lines of `.args` in the only image."""
    (image,) = images(Path(folder)).values()
    return rest(image)[".args"].decode().splitlines()


def test_what_it_writes_and_says(run, built):
    before = built.read_bytes()
    done = run("export", FILE, "--oci", "image")
    assert (done.code, done.err) == (0, "")
    assert built.read_bytes() == before
    assert names() == [FILE, "image", "m.gguf", "notes.txt"]
    (image,) = images(Path("image")).values()
    assert image.files.keys() == {"models/m.gguf", "usr/bin/llamafile", REST}
    assert image.files["models/m.gguf"] == (0o644, Path("m.gguf").read_bytes())
    assert image.files["usr/bin/llamafile"] == (0o755, PROGRAM)
    config = image.config["config"]
    assert config["Entrypoint"] == ["/usr/bin/llamafile", "--llamafile", f"/{REST}"]
    assert config["User"] == "65532:65532"
    assert config["ExposedPorts"] == {"8080/tcp": {}}
    assert args() == ["-m /models/m.gguf --host 0.0.0.0 --nobrowser", "-c", "64"]
    inside = contents(FILE)
    for gone in ("m.gguf", "llamafile.json", ".args"):
        del inside[gone]
    now = rest(image)
    del now[".args"]
    assert now == inside
    lines = done.out.splitlines()
    assert len(lines) == 4
    for line, layer, name in zip(
        lines[1:], image.layers[:1] + image.layers[:0:-1], ("m.gguf", ".args", "linux-amd64"),
        strict=True,
    ):  # fmt: skip
        assert line.split()[-2:] == [layer[:19], name]


def test_the_same_file_gives_the_same_bytes(built, monkeypatch):
    pyllamafile.export(FILE, "one")
    shutil.copy(FILE, "copy")
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "Asia/Tokyo")
        time.tzset()
        mask = os.umask(0o077)
        pyllamafile.export("copy", "other")
        os.umask(mask)
    time.tzset()
    assert snapshot(Path("one")) == snapshot(Path("other"))
    assert Path("one").stat().st_mode & 0o077


def test_an_upgrade_leaves_the_weights_layer(built, prebuilt):
    before = pyllamafile.export(FILE, "before")
    put_runtime(prebuilt, NEW)
    pyllamafile.upgrade(FILE)
    after = pyllamafile.export(FILE, "after")
    same = {layer.kind: layer.digest for layer in before.layers}.items() & {
        layer.kind: layer.digest for layer in after.layers
    }.items()
    assert {kind for kind, _ in same} >= {"weights"}
    assert "engine" not in {kind for kind, _ in same}


def test_models_share_the_engines_layer(built):
    tiny_gguf(Path("other.gguf"), name="Other", tokens=32)
    pyllamafile.build("other.gguf", "o.llamafile")
    engines = {
        layer.digest
        for number, file in enumerate((FILE, "o.llamafile"))
        for layer in pyllamafile.export(file, f"image{number}").layers
        if layer.kind == "engine"
    }
    assert len(engines) == 1


def test_several_targets(run, here, prebuilt):
    put_runtime(prebuilt, NEW, "linux-arm64")
    put_runtime(prebuilt, NEW, "macos-arm64")
    pyllamafile.build("m.gguf", FILE)
    done = pyllamafile.export(FILE, "image")
    assert done.targets == ("linux-amd64", "linux-arm64")
    found = images(Path("image"))
    assert found.keys() == {"amd64", "arm64"}
    programs = {name: image.files["usr/bin/llamafile"][1] for name, image in found.items()}
    assert programs == {"amd64": PROGRAM, "arm64": NEW}
    amd64, arm64 = (image.layers for image in found.values())
    assert [one == other for one, other in zip(amd64, arm64, strict=True)] == [True, False, True]
    one = pyllamafile.export(FILE, "one", targets="linux-arm64")
    assert images(Path("one")).keys() == {"arm64"}
    assert one.digest != done.digest


def test_no_target_for_containers(run, fails, here, prebuilt):
    put_runtime(prebuilt, NEW, "macos-arm64")
    pyllamafile.build("m.gguf", FILE, targets="macos-arm64")
    what = "containers take a target for Linux, and none that the file runs on is one"
    hint = f"pyllamafile upgrade {FILE} --target linux adds them"
    fails(f"{FILE}: {what}", "export", FILE, "--oci", "image", hint=hint)
    pyllamafile.build("m.gguf", FILE, targets="linux-amd64", force=True)
    fails(".* no runtime for linux-arm64", "export", FILE, "--oci", "i", "--target", "linux-arm64")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("-m @m -c 5\n", "-m /models/m.gguf -c 5"),
        ("--model @m.gguf ... -n 3", "--model /models/m.gguf ... -n 3"),
        ('# a comment\n-sys "$WHO @m"', '# a comment\n-sys "$WHO @m"'),
    ],
)
def test_arguments(built, given, expected):
    Path("args").write_text(given)
    pyllamafile.add(FILE, [("args", ".args")])
    pyllamafile.export(FILE, "image")
    model = "" if "-m" in given.split("#")[0] else "-m /models/m.gguf "
    lines = [f"{model}--host 0.0.0.0 --nobrowser", *expected.split("\n")]
    assert args() == lines


def test_what_goes_with_the_model(here):
    pyllamafile.build(
        "m.gguf",
        FILE,
        lora=[pyllamafile.Adapter(tiny_lora(Path("a.gguf"), Path("m.gguf")), 0.5)],
        draft=tiny_gguf(Path("d.gguf"), name="Draft"),
    )
    pyllamafile.export(FILE, "image")
    first, *others = args()
    assert first == "-m /models/m.gguf --host 0.0.0.0 --nobrowser"
    words = " ".join(others).split()
    assert words[words.index("--lora-scaled") + 1] == "/models/a.gguf:0.5"
    assert words[words.index("--model-draft") + 1] == "/models/d.gguf"
    assert len(images(Path("image"))["amd64"].layers) == 5


def test_several_models(run, built):
    tiny_gguf(Path("b.gguf"), name="Second")
    pyllamafile.add(FILE, "b.gguf")
    pyllamafile.export(FILE, "image")
    assert args() == ["--models-dir /models --host 0.0.0.0 --nobrowser", "-c", "64"]
    assert len(images(Path("image"))["amd64"].layers) == 4
    Path("args").write_text("--model-draft @b")
    tiny_gguf(Path("c.gguf"), name="Third")
    pyllamafile.add(FILE, ["c.gguf", ("args", ".args")])
    done = run("export", FILE, "--oci", "other")
    assert done.code == 1
    assert done.err.startswith(f"error: {FILE}: an image can have several models, or one with")
    Path("args").write_text("-m @m --model-draft @b")
    pyllamafile.add(FILE, [("args", ".args")])
    pyllamafile.export(FILE, "other")
    assert args("other")[1:] == ["-m /models/m.gguf --model-draft /models/b.gguf"]


def test_a_model_in_parts(here):
    parts = split_gguf(here)
    pyllamafile.build(parts[0], FILE)
    pyllamafile.export(FILE, "image")
    assert args()[0] == f"-m /models/{parts[0].name} --host 0.0.0.0 --nobrowser"
    (image,) = images(Path("image")).values()
    assert {f"models/{part.name}" for part in parts} <= image.files.keys()


def test_a_file_without_weights(here):
    pyllamafile.build((), FILE)
    pyllamafile.export(FILE, "image")
    assert args() == ["--host 0.0.0.0 --nobrowser"]


@pytest.mark.parametrize(
    "name",
    ["sub/folder/x.gguf", "ä 日 '\".gguf", "x" * 250 + ".gguf", "/".join(["y" * 99] * 9) + ".gguf"],
)
def test_names(built, name):
    pyllamafile.add(FILE, [("m.gguf", name)])
    pyllamafile.remove(FILE, "m.gguf")
    pyllamafile.export(FILE, "image")
    (image,) = images(Path("image")).values()
    assert image.files[f"models/{name}"][1] == Path("m.gguf").read_bytes()
    words = [word.text for word in arguments.parse("\n".join(args()).encode())]
    assert words[:2] == ["-m", f"/models/{name}"]


def test_a_name_that_would_remove_files(run, built):
    pyllamafile.add(FILE, [("m.gguf", "sub/.wh.m.gguf")])
    done = run("export", FILE, "--oci", "image")
    assert done.code == 1
    assert "sub/.wh.m.gguf can't be in an image, where .wh. removes files" in done.err


def test_tar_knows_large_files():
    for size in (1 << 33, (1 << 43) + 5):
        heads = export._heads("models/w.gguf", 0o644, size, set(), 0)
        assert len(heads) % 4096 == 0
        with tarfile.open(fileobj=io.BytesIO(heads)) as archive:
            (*_, member) = (archive.next(), archive.next())
        assert (member.name, member.size) == ("models/w.gguf", size)


@pytest.mark.slow
def test_4_gib(here):
    sparse_gguf(Path("w.gguf"), 1 << 32)
    pyllamafile.build("w.gguf", FILE)
    done = pyllamafile.export(FILE, "image")
    layer = Path("image/blobs/sha256", done.layers[0].digest[7:])
    assert layer.stat().st_blocks * 512 < 1 << 30
    with tarfile.open(layer) as archive, Path("w.gguf").open("rb") as file:
        member = archive.getmember("models/w.gguf")
        assert member.size == Path("w.gguf").stat().st_size
        content = archive.extractfile(member)
        for at in (0, member.size - 4096):
            content.seek(at)
            file.seek(at)
            assert content.read(4096) == file.read(4096)


# What is in the way


def test_a_place_that_is_taken(run, fails, built):
    command = ("export", FILE, "--oci", "image")
    Path("image").mkdir()  # an empty one is as good as none
    assert run(*command).code == 0
    before = snapshot(Path("image"))
    fails("image: exists already", *command, hint="--force replaces it")
    pyllamafile.remove(FILE, "notes.txt")
    assert run(*command, "--force").code == 0
    assert snapshot(Path("image")) != before
    images(Path("image"))
    Path("mine").mkdir()
    Path("mine/thesis.txt").write_text("years")
    for place in ("mine", "m.gguf"):
        fails(f"{place}: is there, and no image", "export", FILE, "--oci", place, "--force",
              hint="name another")  # fmt: skip
    fails("nowhere: .*", "export", FILE, "--oci", "nowhere/image")


def test_what_is_no_file_of_ours(fails, built):
    with zipfile.ZipFile("foreign", "w") as file:
        file.write("m.gguf")
    hint = "`pyllamafile upgrade` makes it one of ours, `zipalign` adds to any zip"
    fails("foreign: was not built by pyllamafile", "export", "foreign", "--oci", "i", hint=hint)


@pytest.mark.parametrize("where", ["m.gguf", "notes.txt", "llamafile.json"])
def test_damage_is_not_exported(run, built, where):
    raw = bytearray(built.read_bytes())
    at = next(e.offset for e in pyllamafile.inspect(FILE).entries if e.name == where)
    raw[at + 99] ^= 1
    built.write_bytes(raw)
    before = names()
    done = run("export", FILE, "--oci", "image")
    assert (done.code, done.out) == (1, "")
    assert len(done.err.splitlines()) <= 2
    assert names() == before


def test_a_file_with_an_entry_that_is_not_listed(run, built):
    zipalign.add(built, [Entry("more", b"more")])
    assert run("export", FILE, "--oci", "image").err.startswith(f"error: {FILE}: is not sound: ")


def test_a_full_disk(run, built, small_disk):
    sparse_gguf(Path("w.gguf"), 4 << 20)
    pyllamafile.build("w.gguf", "w.llamafile")
    raw = bytearray(Path("w.llamafile").read_bytes())
    Path("w.llamafile").write_bytes(raw)  # no holes
    done = run("export", "w.llamafile", "--oci", small_disk / "image")
    assert done.code == 1
    assert f"{small_disk}/image: cannot write: No space left on device" in done.err
    assert names(small_disk) == []
