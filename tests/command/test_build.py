"""Whole files, built with a runtime of a few bytes and judged by other programs."""

from __future__ import annotations

import errno
import gzip
import hashlib
import importlib
import json
import os
import shutil
import struct
import subprocess
import tarfile
import time
import zipfile
from pathlib import Path

import lief
import pytest
from fixtures import (
    PROGRAM,
    put_runtime,
    sparse_gguf,
    split_gguf,
    tiny_elf,
    tiny_gguf,
    tiny_pe,
    tiny_quantized,
)
from judging import CHECKERS, check_whole, compare, manifest, names, snapshot
from running import COMMAND, need

import pyllamafile
from pyllamafile import PyllamafileError, RefusedError, engine, native
from pyllamafile.launcher import BLOCK, HEAD, pack
from pyllamafile.progress import Step
from pyllamafile.targets import TARGETS

# A good file


@pytest.fixture
def built(folder, model):
    (folder / "notes.txt").write_text("notes")
    return pyllamafile.build(
        model,
        "out.llamafile",
        args=["-c", "2048", "two words"],
        add=[("notes.txt", "docs/ä.txt")],
    )


def test_what_build_says(built):
    assert built.path == Path("out.llamafile")
    assert built.size == built.path.stat().st_size
    assert built.name == "m"
    assert built.models == ("m.gguf",)
    assert built.targets == ("linux-amd64",)
    assert built.missing == tuple(name for name in TARGETS if name != "linux-amd64")


def test_zipfile_reads_it(built, model):
    with zipfile.ZipFile(built.path) as archive:
        assert archive.testzip() is None
        names = ["m.gguf", "docs/ä.txt", ".args"]
        names += [f"LICENSES/{name}.txt" for name in ("llama.cpp", "musl", "web-gui")]
        names += ["ui/index.html", "ui/tiny", "proof.model", "llamafile.json"]
        assert archive.namelist() == names
        assert archive.read("m.gguf") == model.read_bytes()
        assert archive.read("docs/ä.txt") == b"notes"
        assert archive.read(".args") == b"-c\n2048\n'two words'\n"
        assert archive.read("ui/index.html") == b"<html>" * 500
        assert archive.read("LICENSES/musl.txt") == b"MIT License, musl"
        manifest = json.loads(archive.read("llamafile.json"))
        assert manifest["entries"].keys() == set(names) - {"llamafile.json"}
        for name, facts in manifest["entries"].items():
            content = archive.read(name)
            assert facts == {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        for info in archive.infolist():
            assert info.date_time == (1980, 1, 1, 0, 0, 0)
            assert info.external_attr >> 16 == 0o100644
            assert info.flag_bits == (0 if info.filename.isascii() else 1 << 11)


def test_the_weights_lie_where_they_can_be_mapped(built, model):
    with zipfile.ZipFile(built.path) as archive:
        info = archive.getinfo("m.gguf")
    raw = built.path.read_bytes()
    names, extras = struct.unpack_from("<2H", raw, info.header_offset + 26)
    data = info.header_offset + 30 + names + extras
    assert data % BLOCK == 0
    assert raw[data : data + info.file_size] == model.read_bytes()


def test_the_runtime_is_what_the_manifest_says(built, prebuilt):
    raw = built.path.read_bytes()
    with zipfile.ZipFile(built.path) as archive:
        (runtime,) = json.loads(archive.read("llamafile.json"))["runtimes"]
    packed = raw[runtime["offset"] :][: runtime["packed_size"]]
    assert packed == (prebuilt / "linux-amd64.gz").read_bytes()
    assert runtime["sha256"] == hashlib.sha256(PROGRAM).hexdigest()


@pytest.mark.parametrize(("program", "package", "options"), CHECKERS)
def test_other_programs_find_it_sound(built, program, package, options):
    done = subprocess.run(
        [need(program, package), *options, built.path], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "warning" not in (done.stdout + done.stderr).lower()


def test_it_runs(built):
    expected = "<--llamafile>\n<./out.llamafile>\n<-p>\n<two words>\n<>\n<$HOME>\n"
    for command in (["sh", "./out.llamafile"], ["./out.llamafile"]):
        done = subprocess.run(
            [*command, "-p", "two words", "", "$HOME"], capture_output=True, text=True
        )
        assert (done.returncode, done.stdout, done.stderr) == (0, expected, "")


def test_it_is_sound_and_inspect_tells_the_same(built):
    assert pyllamafile.verify(str(built.path)) == []
    report = pyllamafile.inspect(built.path)
    assert (report.name, report.built_by) == ("m", pyllamafile.__version__)
    assert report.size == built.size
    assert report.args == "-c\n2048\n'two words'\n"
    assert report.entries[0].alignment == BLOCK
    assert report.models[0].name == "Tiny"
    assert report.runtimes[0]["target"] == "linux-amd64"


def test_extract_brings_the_same_weights(built, model, tmp_path):
    (path,) = pyllamafile.extract(built.path, tmp_path / "new", ["m.gguf"])
    assert path.read_bytes() == model.read_bytes()


def test_extract_tells_its_progress(built, tmp_path):
    heard = []
    pyllamafile.extract(built.path, tmp_path / "new", progress=heard.append)
    total = sum(entry.size for entry in pyllamafile.inspect(built.path).entries)
    assert heard[-1] == Step("bytes", "extracting out.llamafile", total, total)
    assert [step.done for step in heard] == sorted(step.done for step in heard)


def test_an_interrupted_extraction_leaves_nothing(built, tmp_path):
    def progress(step):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pyllamafile.extract(built.path, tmp_path / "new" / "er", progress=progress)
    assert not (tmp_path / "new").exists()
    (tmp_path / "there").mkdir()
    with pytest.raises(KeyboardInterrupt):
        pyllamafile.extract(built.path, tmp_path / "there", progress=progress)
    assert names(tmp_path / "there") == []


def test_an_extraction_that_fails_leaves_what_it_has_extracted(built, tmp_path):
    def progress(step):
        if (tmp_path / "new" / "m.gguf").exists():
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pyllamafile.extract(
            built.path, tmp_path / "new", ["m.gguf", "llamafile.json"], progress=progress
        )
    assert names(tmp_path / "new") == ["m.gguf"]


def test_bytes_behind_the_last_tensor_are_kept(folder, model):
    with model.open("ab") as file:
        file.write(b"behind")
    built = pyllamafile.build(model)
    with zipfile.ZipFile(built.path) as archive:
        assert archive.read("m.gguf") == model.read_bytes()
    assert pyllamafile.verify(built.path) == []


def test_an_engine_alone(folder):
    built = pyllamafile.build()
    assert (built.path.name, built.models) == ("llamafile.llamafile", ())
    assert pyllamafile.verify(built.path) == []
    assert pyllamafile.inspect(built.path).models == ()
    assert b"--llamafile" in subprocess.run(["sh", built.path], capture_output=True).stdout


def test_without_the_web_gui(folder, model, prebuilt):
    (prebuilt / "ui.zip").unlink()  # so that it would have to be compiled
    built = pyllamafile.build(model, gui=False)
    with zipfile.ZipFile(built.path) as archive:
        notices = ["LICENSES/llama.cpp.txt", "LICENSES/musl.txt"]
        assert archive.namelist() == ["m.gguf", *notices, "proof.model", "llamafile.json"]


def test_without_the_model_of_prove(run, fails, folder, model):
    Path("notes.txt").write_text("notes")
    message = "cannot add 'proof.model': pyllamafile itself writes what has such a name"
    fails(message, "build", "--gguf", model, "--add", "notes.txt=proof.model")
    added = ("--add", "notes.txt=proof.model")  # it is nobody else's then
    assert run("build", "--gguf", model, "-o", "bare", "--no-prove", *added).code == 0
    assert run("verify", "bare").code == 0
    with zipfile.ZipFile("bare") as archive:
        assert archive.read("proof.model") == b"notes"
        assert json.loads(archive.read("llamafile.json"))["proof"] is False


def test_the_model_of_prove_is_the_same_everywhere(built):
    (entry,) = [e for e in pyllamafile.inspect(built.path).entries if e.name == "proof.model"]
    assert (entry.method, entry.offset % 32) == ("stored", 0)
    with zipfile.ZipFile(built.path) as archive:
        content = archive.read("proof.model")
    assert 200_000 < len(content) < 300_000
    digest = "cbd744285ca5fd7130a96c1122f06babf889a44ea89443c424d6f0bd60ffb2a7"
    assert hashlib.sha256(content).hexdigest() == digest


def test_several_models(folder, model, tmp_path):
    other = tiny_gguf(tmp_path / "other.gguf", name="Other")
    built = pyllamafile.build([model, other])
    assert built.path.name == "m.llamafile"
    assert built.models == ("m.gguf", "other.gguf")
    assert [facts.name for facts in pyllamafile.inspect(built.path).models] == ["Tiny", "Other"]
    assert pyllamafile.verify(built.path) == []


@pytest.mark.parametrize("given", [[0], [1], [0, 1], [1, 0]], ids=str)
def test_the_parts_of_a_split_model_are_taken_together(folder, tmp_path, given):
    parts = split_gguf(tmp_path)
    assert len(parts) == 2
    built = pyllamafile.build([parts[index] for index in given])
    assert built.path.name == "s.llamafile"
    assert built.models == tuple(part.name for part in parts)
    with zipfile.ZipFile(built.path) as archive:
        for part in parts:
            assert archive.read(part.name) == part.read_bytes()


@pytest.mark.parametrize("name", ["m", "sha256-0123", "m.GGUF"])
def test_the_entry_is_called_as_a_runtime_knows_it(folder, model, name):
    path = model.rename(model.with_name(name))
    built = pyllamafile.build(path, "o")
    assert built.models == (name.removesuffix(".GGUF") + ".gguf",)
    with zipfile.ZipFile(built.path) as archive:
        assert archive.namelist()[0] == built.models[0]


def test_arguments_from_a_file_come_first(folder):
    (folder / "args").write_text("# comment\n-c 5 ä\n\n")
    built = pyllamafile.build(args=["-n", "#"], args_file="args")
    assert pyllamafile.inspect(built.path).args == "# comment\n-c 5 ä\n-n\n'#'\n"


def test_no_arguments_make_no_entry(folder):
    assert pyllamafile.inspect(pyllamafile.build().path).args is None


def test_the_same_bytes_everywhere(prebuilt, model, tmp_path):
    """Directory, time zone, locale, umask, dates of the inputs and hash seed do not matter."""
    digests, modes = [], []
    for number, (zone, language, mask) in enumerate(
        [("UTC", "C", 0o022), ("Asia/Tokyo", "de_DE.UTF-8", 0o077)]
    ):
        here = tmp_path / f"here{number}" / ("deep" * number)
        here.mkdir(parents=True)
        copy = shutil.copyfile(model, here / "m.gguf")
        os.utime(copy, (10**9 * number, 10**9 * number))
        subprocess.run(
            [
                *(*COMMAND, prebuilt, "build", "--gguf", "m.gguf", "--add", "m.gguf=x"),
                *("--arg", "--alias", "--arg", "ä"),
            ],
            cwd=here,
            env={
                **os.environ,
                "TZ": zone,
                "LC_ALL": language,
                "PYTHONHASHSEED": str(number),
                "PYTHONUTF8": "1",
            },
            umask=mask,
            check=True,
            capture_output=True,
        )
        output = here / "m.llamafile"
        digests.append(hashlib.sha256(output.read_bytes()).hexdigest())
        modes.append(output.stat().st_mode & 0o777)
    assert digests[0] == digests[1]
    assert modes == [0o755, 0o700]


def test_source_date_epoch(folder, monkeypatch):
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    with zipfile.ZipFile(pyllamafile.build().path) as archive:
        assert {info.date_time for info in archive.infolist()} == {(2023, 11, 14, 22, 13, 20)}


def test_nothing_of_this_machine_is_inside(built, tmp_path):
    raw = built.path.read_bytes()
    for secret in (str(tmp_path), str(Path.home()), os.uname().nodename):
        assert len(secret) < 4 or secret.encode() not in raw


def test_progress(folder, model):
    heard = []
    built = pyllamafile.build(model, progress=heard.append)
    assert {step.what for step in heard} == {"writing m.llamafile"}
    done = [step.done for step in heard]
    assert done == sorted(done)
    assert heard[-1] == Step("bytes", "writing m.llamafile", built.size, built.size)


# A file that is a program


def test_a_file_for_windows_too(windows, model):
    built = pyllamafile.build(model)
    assert built.targets == ("linux-amd64", "windows-amd64", "windows-arm64")
    assert (built.too_large, built.companion) == (False, None)
    check_whole(built.path, model)
    raw = built.path.read_bytes()
    outer, *packed = manifest(built.path)["runtimes"]
    assert (outer["target"], outer["offset"]) == ("windows-amd64", 0)
    assert [runtime["target"] for runtime in packed] == ["linux-amd64", "windows-arm64"]
    for runtime, program in zip(packed, [PROGRAM, tiny_pe(0xAA64)], strict=True):
        assert runtime["offset"] % BLOCK == runtime["packed_size"] % BLOCK == 0
        member = raw[runtime["offset"] :][: runtime["packed_size"]]
        assert gzip.decompress(member) == program
    assert raw.count(pack(tiny_pe())) == 0  # not there a second time
    program = raw[: outer["size"]]
    assert outer["packed_size"] == outer["size"] == len(tiny_pe()) + 0x3C00
    assert outer["sha256"] == outer["packed_sha256"] == hashlib.sha256(program).hexdigest()
    compare(tiny_pe(), program)
    done = subprocess.run(["sh", "./m.llamafile", "x y"], capture_output=True, text=True)
    assert done.stdout == "<--llamafile>\n<./m.llamafile>\n<x y>\n"
    assert pyllamafile.inspect(built.path).runtimes[0]["offset"] == 0


@pytest.mark.parametrize(
    ("targets", "machine"),
    [
        (["windows"], lief.PE.Header.MACHINE_TYPES.AMD64),
        (["windows-amd64"], lief.PE.Header.MACHINE_TYPES.AMD64),
        (["windows-arm64"], lief.PE.Header.MACHINE_TYPES.ARM64),
        (["windows-arm64", "linux-amd64"], lief.PE.Header.MACHINE_TYPES.ARM64),
        (["all"], lief.PE.Header.MACHINE_TYPES.AMD64),
    ],
)
def test_which_program_the_file_is(windows, model, monkeypatch, prebuilt, targets, machine):
    for target in TARGETS:
        if not (prebuilt / f"{target}.gz").exists():
            put_runtime(prebuilt, f"#!/bin/sh\necho {target}\n".encode(), target)
    built = pyllamafile.build(model, targets=targets)
    check_whole(built.path, model)
    binary = lief.PE.parse(str(built.path))
    assert binary.header.machine == machine
    listed = [runtime["target"] for runtime in manifest(built.path)["runtimes"]]
    assert sorted(listed) == sorted(built.targets)
    assert built.targets == tuple(t for t in TARGETS if t in listed)
    if targets == ["windows-amd64"]:  # nothing else is in the prefix
        assert pyllamafile.inspect(built.path).entries[0].offset == BLOCK


def test_without_windows_it_is_a_script(windows, model):
    built = pyllamafile.build(model, targets=["linux-amd64"])
    assert built.path.read_bytes().startswith(b"#!/bin/sh\n")
    assert manifest(built.path)["head"]["size"] == HEAD


def test_a_windows_program_is_the_same_every_time(windows, model):
    one = pyllamafile.build(model, "one").path.read_bytes()
    assert pyllamafile.build(model, "two", name="m").path.read_bytes() == one


def test_what_cannot_be_a_windows_program(folder, model, prebuilt):
    put_runtime(prebuilt, tiny_pe(certificate=0x1000), "windows-amd64")
    fails(r"windows-amd64\.gz: not a Windows program that can head a llamafile: it carries", model)


def test_a_packed_program_that_is_another(folder, model, prebuilt):
    put_runtime(prebuilt, tiny_pe(), "windows-amd64")
    path = prebuilt / "windows-amd64.json"
    facts = json.loads(path.read_text())
    path.write_text(json.dumps(facts | {"sha256": "0" * 64}))
    fails(r"windows-amd64\.gz: damaged", model)


def test_zipalign_keeps_a_windows_program_whole(windows, model):
    path = pyllamafile.build(model).path
    before = path.read_bytes()[: manifest(path)["head"]["size"]]
    Path(".args").write_text("-c 5\n")
    subprocess.run([*COMMAND, "none", "zipalign", path, ".args"], check=True)
    assert path.read_bytes().startswith(before)
    assert pyllamafile.inspect(path).args == "-c 5\n"
    check_whole(path, model)


@pytest.fixture
def elf(folder, prebuilt):
    put_runtime(prebuilt, tiny_elf())
    return tiny_elf()


def test_an_elf_file(elf, model):
    built = pyllamafile.build(model, targets=["linux-amd64"], format="elf")
    check_whole(built.path, model)
    raw = built.path.read_bytes()
    assert raw.startswith(elf)
    (runtime,) = manifest(built.path)["runtimes"]
    digest = hashlib.sha256(elf).hexdigest()
    assert (runtime["offset"], runtime["size"], runtime["sha256"]) == (0, len(elf), digest)
    assert manifest(built.path)["head"] == {"size": len(elf), "sha256": digest}
    assert lief.ELF.parse(str(built.path)).header.machine_type == lief.ELF.ARCH.X86_64
    assert pyllamafile.build(model, "again", format="elf", name="m").path.read_bytes() == raw
    done = subprocess.run([built.path.absolute()], capture_output=True)  # without any shell
    assert (done.returncode, done.stdout) == (0, b"hello\n")
    Path(".args").write_text("-c 5\n")
    subprocess.run([*COMMAND, "none", "zipalign", built.path, ".args"], check=True)
    check_whole(built.path, model)
    assert subprocess.run([built.path.absolute()], capture_output=True).stdout == b"hello\n"


@pytest.mark.parametrize("targets", [["linux"], ["windows-amd64"], ["linux-amd64", "all"]])
def test_an_elf_file_is_for_one_linux_target(elf, windows, model, targets):
    fails("for one Linux target", model, targets=targets, format="elf")


def test_an_elf_file_needs_an_elf_program(folder, model):
    fails(r"linux-amd64\.gz: not an ELF program", model, targets=["linux-amd64"], format="elf")


# More than Windows starts


@pytest.fixture
def small_limit(monkeypatch):
    """As if 100,000 bytes were 4 GiB."""
    monkeypatch.setattr(importlib.import_module("pyllamafile.ops.build"), "TOO_LARGE", 100_000)


@pytest.mark.parametrize(
    ("output", "companion"),
    [
        ("big.llamafile", "big.exe"),
        ("phi-3.5.llamafile", "phi-3.5.exe"),
        ("phi-3.5", "phi-3.5.exe"),
        ("big.LLAMAFILE", "big.LLAMAFILE.exe"),
    ],
)
def test_a_companion_for_a_large_file(windows, small_limit, model, output, companion):
    built = pyllamafile.build(model, output)
    assert (built.too_large, built.companion) == (True, Path(companion))
    assert names() == sorted([output, companion])
    assert Path(companion).read_bytes() == tiny_pe()
    assert Path(companion).stat().st_mode == Path(output).stat().st_mode
    check_whole(built.path, model)


def test_no_companion_unless_it_is_needed_and_wanted(windows, small_limit, model, monkeypatch):
    built = pyllamafile.build(model, companion=False)
    assert (built.too_large, built.companion) == (True, None)
    built = pyllamafile.build(model, targets=["linux-amd64"], force=True)
    assert (built.too_large, built.companion) == (False, None)
    module = importlib.import_module("pyllamafile.ops.build")
    monkeypatch.setattr(module, "TOO_LARGE", built.size * 10)
    assert pyllamafile.build(model, force=True).companion is None
    assert names() == ["m.llamafile"]


def test_a_companion_that_exists_is_replaced_by_force_only(windows, small_limit, model):
    Path("m.exe").write_text("precious")
    fails(r"m\.exe: exists already", model)
    pyllamafile.build(model, force=True)
    assert Path("m.exe").read_bytes() == tiny_pe()
    pyllamafile.build(model, force=True)
    assert names() == ["m.exe", "m.llamafile"]


def test_a_large_file_may_not_look_like_a_program(windows, small_limit, model):
    error = fails("can't start a program of 4 GiB", model, "m.exe")
    assert ".llamafile" in (error.hint or "")
    assert pyllamafile.build(model, "m.exe", companion=False).companion is None


@pytest.mark.parametrize("stop", [KeyboardInterrupt, MemoryError])
def test_an_interruption_leaves_no_companion(windows, small_limit, model, drafts, stop):
    def progress(step):
        raise stop

    with pytest.raises(stop):
        pyllamafile.build(model, progress=progress)
    assert names() == []


def test_a_companion_that_appears_meanwhile_is_not_replaced(windows, small_limit, model):
    with pytest.raises(PyllamafileError, match=r"m\.exe: exists already"):
        pyllamafile.build(model, progress=lambda step: Path("m.exe").write_text("precious"))
    assert names() == ["m.exe"]
    assert Path("m.exe").read_text() == "precious"


def test_a_file_that_cannot_be_named_leaves_no_companion(windows, small_limit, model, drafts):
    """The companion comes first; then somebody else takes the name of the file."""

    def progress(step):
        Path("m.llamafile").mkdir(exist_ok=True)

    with pytest.raises(PyllamafileError, match=r"m\.llamafile: "):
        pyllamafile.build(model, progress=progress)
    assert names() == ["m.llamafile"]


@pytest.mark.native  # some 20 seconds
def test_beyond_4_gib(windows, tmp_path):
    """For real, with a sparse file; a second model begins behind the 4 GiB."""
    big = sparse_gguf(tmp_path / "big.gguf", (4 << 30) + 4096)
    small = tiny_gguf(tmp_path / "small.gguf")
    built = pyllamafile.build([big, small])
    assert built.size > 4 << 30
    assert (built.too_large, built.companion) == (True, Path("big.exe"))
    assert Path("big.exe").read_bytes() == tiny_pe()
    with built.path.open("rb") as file:
        assert file.read(2) == b"MZ"
    assert built.path.stat().st_blocks * 512 < 100 << 20  # holes stay holes
    with zipfile.ZipFile(built.path) as archive:
        first, second = archive.infolist()[:2]
        assert first.file_size == big.stat().st_size
        assert second.header_offset > 4 << 30
        assert archive.read("small.gguf") == small.read_bytes()
        with archive.open("big.gguf") as member, big.open("rb") as source:
            assert member.read(1 << 20) == source.read(1 << 20)
    data = pyllamafile.inspect(built.path).entries[0].offset
    with built.path.open("rb") as file:
        file.seek(data + big.stat().st_size - 4)
        assert file.read(4) == b"last"
    assert pyllamafile.verify(built.path) == []
    assert subprocess.run(["sh", built.path, "x"], capture_output=True).stdout.endswith(b"<x>\n")


# What goes wrong


def fails(match, *arguments, **options):
    """The build fails with this message, and every file is what it was before."""
    before = snapshot(Path())
    with pytest.raises(PyllamafileError, match=match) as caught:
        pyllamafile.build(*arguments, **options)
    assert "\n" not in caught.value.message
    assert snapshot(Path()) == before
    return caught.value


def test_a_model_that_vanishes_meanwhile(folder, model, monkeypatch):
    available = native.available
    monkeypatch.setattr(native, "available", lambda: model.unlink() or available())
    fails(r"m\.gguf: .*No such file", model)


def test_a_model_that_shrinks_meanwhile(folder, model, monkeypatch):
    available = native.available
    monkeypatch.setattr(native, "available", lambda: os.truncate(model, 5000) or available())
    fails(r"m\.gguf: ", model)


def test_a_model_that_changes_while_it_is_copied(folder, model):
    def progress(step):
        with model.open("ab") as file:
            file.write(b"more")

    fails(r"m\.gguf: changed while", model, progress=progress)


def test_a_model_that_changes_behind_its_header(folder, model, monkeypatch):
    """What was read of the header is used to the end, so the file has to be the same from there."""
    module, walked = importlib.import_module("pyllamafile.ops.build"), []
    read = module.read

    def then_change(path):
        walked.append(path)
        found = read(path)
        with path.open("ab") as file:
            file.write(b"more")
        return found

    monkeypatch.setattr(module, "read", then_change)
    fails(r"m\.gguf: changed while", model)
    assert walked == [model]  # once, for a large vocabulary takes its time


@pytest.mark.parametrize(("size", "seconds"), [(64 << 30, 0.0), (1 << 20, 0.5)])
def test_a_file_is_written_while_its_weights_are_checked(
    folder, tmp_path, monkeypatch, size, seconds
):
    """What is refused meanwhile is not written to its end, and never has a name."""

    def refuse(paths, otherwise):
        time.sleep(seconds)
        raise RefusedError(f"{paths[0]}: no good")

    monkeypatch.setattr(engine, "check_weights", refuse)
    start = time.monotonic()
    fails(r"big\.gguf: no good", sparse_gguf(tmp_path / "big.gguf", size))
    assert time.monotonic() - start < 20  # 64 GiB take a minute and more


def test_a_missing_part(folder, tmp_path):
    first, second = split_gguf(tmp_path)
    second.unlink()
    fails("00002-of-00002.gguf is missing", first)


def test_a_part_under_another_name(folder, tmp_path):
    first, _ = split_gguf(tmp_path)
    error = fails("one part of a split model", first.rename(tmp_path / "s.gguf"))
    assert "00001-of-" in (error.hint or "")


def test_a_file_that_appears_meanwhile_is_not_replaced(folder, model):
    path = folder / "m.llamafile"
    with pytest.raises(PyllamafileError, match=r"m\.llamafile: exists already"):
        pyllamafile.build(model, progress=lambda step: path.write_text("precious"))
    assert path.read_text() == "precious"
    assert names() == ["m.llamafile"]


@pytest.fixture(params=["without a name", "with a name"])
def drafts(request, monkeypatch):
    """Both ways to write a file: not every file system can do without a name."""
    if request.param == "with a name":
        module = importlib.import_module("pyllamafile.appearing")
        monkeypatch.setattr(module, "_nameless", lambda folder: None)
    return request.param


@pytest.mark.parametrize("old", [None, b"old"])
def test_either_way_the_file_appears_when_it_is_complete(folder, model, drafts, old):
    path = folder / "m.llamafile"
    if old is not None:
        path.write_bytes(old)
    seen = set()
    pyllamafile.build(
        model,
        force=True,
        progress=lambda step: seen.add(path.read_bytes() if path.exists() else None),
    )
    assert seen == {old}
    assert names() == ["m.llamafile"]
    assert pyllamafile.verify(path) == []
    assert path.stat().st_mode & 0o777 == 0o777 & ~umask()


def umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


@pytest.mark.parametrize("stop", [KeyboardInterrupt, MemoryError])
@pytest.mark.parametrize("old", [None, b"old"])
def test_either_way_an_interruption_leaves_nothing(folder, model, drafts, old, stop):
    path = folder / "m.llamafile"
    if old is not None:
        path.write_bytes(old)

    def progress(step):
        raise stop

    before, opened = snapshot(folder), len(names(Path("/proc/self/fd")))
    with pytest.raises(stop):
        pyllamafile.build(model, force=True, progress=progress)
    assert snapshot(folder) == before
    assert len(names(Path("/proc/self/fd"))) == opened


def test_either_way_a_failing_disk_is_reported(folder, model, drafts, monkeypatch):
    def fsync(descriptor):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", fsync)
    fails("m.llamafile: Input/output error", model)


def test_a_damaged_runtime_is_not_put_in(folder, model, prebuilt):
    path = prebuilt / "linux-amd64.gz"
    raw = bytearray(path.read_bytes())
    raw[-100] ^= 1
    path.write_bytes(raw)
    error = fails("linux-amd64.gz: damaged", model)
    assert "runtimes build" in (error.hint or "")


def test_names_are_checked_before_a_runtime_is_compiled(folder, model, monkeypatch):
    def refuse(target, **options):
        raise AssertionError("compiling")

    monkeypatch.setattr(native, "find", lambda target: None)
    monkeypatch.setattr(native, "build", refuse)
    fails("twice", [model, model])


@pytest.mark.parametrize(
    ("error", "options"),
    [
        ("is quantized already", {"quantize_to": "Q4_0"}),
        ("can't have 1,048,579 bytes", {"args": "#" * (1 << 20)}),
        ("no such target", {"targets": "linux-vax"}),
        ("no such format", {"format": "exe"}),
        ("nothing: No such file", {"add": ["nothing"]}),
    ],
)
def test_cheap_checks_come_before_a_runtime_is_compiled(
    folder, tmp_path, monkeypatch, error, options
):
    def refuse(target, **options):
        raise AssertionError("compiling")

    monkeypatch.setattr(native, "find", lambda target: None)
    monkeypatch.setattr(native, "build", refuse)
    model = tiny_quantized(tmp_path / "q.gguf")
    fails(error, model, **options)


@pytest.mark.parametrize("name", ["Phi 3/mini", "Phi 3\\mini"])
def test_a_name_that_no_file_has(folder, model, name):
    """The file is called as near to it as can be."""
    built = pyllamafile.build(model, name=name)
    assert (built.path, built.name) == (Path("Phi 3-mini.llamafile"), name)
    assert pyllamafile.inspect(built.path).name == name


def test_a_single_string_is_a_list_of_one(folder, model):
    Path("notes.txt").write_text("notes")
    built = pyllamafile.build(model, "o", targets="linux-amd64", args="-v", add="notes.txt")
    assert built.targets == ("linux-amd64",)
    assert pyllamafile.inspect("o").args == "-v\n"
    pyllamafile.remove("o", "notes.txt")
    assert pyllamafile.add("o", "notes.txt") == ["notes.txt"]
    assert pyllamafile.extract("o", "out", "notes.txt") == [Path("out/notes.txt")]
    assert pyllamafile.upgrade("o", targets="linux-amd64").targets == ("linux-amd64",)
    assert pyllamafile.verify("o") == []


def test_every_target_that_is_asked_for_must_exist(folder, model):
    error = fails("no such target: linux-vax", model, targets=["linux-amd64", "linux-vax"])
    assert "linux-amd64" in (error.hint or "")


def test_an_argument_that_is_no_text(folder):
    fails("not UTF-8", args=["\udcff"])


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda path: None, "No such file"),
        (Path.mkdir, "is a directory"),
        (os.mkfifo, "not a regular file"),
        (lambda path: path.write_bytes(b"\xff\xfe"), "not UTF-8"),
    ],
    ids=["missing", "directory", "fifo", "binary"],
)
def test_bad_files_of_arguments(folder, make, reason):
    make(folder / "args")
    before = names()
    with pytest.raises(PyllamafileError, match=f"args: {reason}"):
        pyllamafile.build(args_file="args")
    assert names() == before


def test_the_output_may_not_be_the_file_of_arguments(folder):
    (folder / "args").write_text("-c 5")
    fails("args: is input and output at once", None or (), "args", args_file="args", force=True)


def test_hostile_manifests_are_inspected_without_harm(folder):
    for text in (b"[1]", b'{"runtimes": [1, {"levels": 5}], "name": 7}', b"[" * 99_999, b"\xff"):
        with zipfile.ZipFile("x.zip", "w") as archive:
            archive.writestr("llamafile.json", text)
        report = pyllamafile.inspect("x.zip")
        assert report.name is None
        assert all(isinstance(runtime, dict) for runtime in report.runtimes)


# Taking out


def hostile_zip(path: Path, name: str, *, link: bool = False) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("good", b"good")
        info = zipfile.ZipInfo("x")
        info.filename = name  # as it is: the constructor cuts names at a NUL
        info.create_system = 3
        info.external_attr = (0o120777 if link else 0o100644) << 16
        archive.writestr(info, b"/etc/passwd")
    return path


@pytest.mark.parametrize(
    "name",
    ["../x", "/abs", "a/../../b", "..", ".", "a//b", "./a", "a\\..\\b", "C:/x", "C:x", "a\nb"],
)
def test_hostile_names_are_refused(tmp_path, name):
    archive = hostile_zip(tmp_path / "evil.zip", name)
    inner = tmp_path / "one" / "two"
    with pytest.raises(PyllamafileError, match="outside"):
        pyllamafile.extract(archive, inner)
    assert not inner.exists()
    assert names(tmp_path) == ["evil.zip"]
    assert pyllamafile.extract(archive, inner, ["good"]) == [inner / "good"]
    assert names(inner) == ["good"]


def test_links_are_refused(tmp_path):
    archive = hostile_zip(tmp_path / "evil.zip", "link", link=True)
    with pytest.raises(PyllamafileError, match="is a link"):
        pyllamafile.extract(archive, tmp_path / "d")
    assert names(tmp_path) == ["evil.zip"]


def test_links_in_the_destination_are_not_followed_out_of_it(tmp_path):
    archive = hostile_zip(tmp_path / "evil.zip", "way/out")
    (tmp_path / "outside").mkdir()
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "way").symlink_to("../outside")
    with pytest.raises(PyllamafileError, match="outside"):
        pyllamafile.extract(archive, tmp_path / "d", force=True)
    assert names(tmp_path / "outside") == []
    (tmp_path / "d" / "way").unlink()
    (tmp_path / "d" / "way").mkdir()
    (tmp_path / "d" / "way" / "out").symlink_to("../../outside/file")  # leads nowhere
    pyllamafile.extract(archive, tmp_path / "d", force=True)
    assert names(tmp_path / "outside") == []
    assert not (tmp_path / "d" / "way" / "out").is_symlink()


def test_existing_files_are_kept_unless_forced(tmp_path):
    archive = hostile_zip(tmp_path / "x.zip", "other")
    (tmp_path / "other").write_text("mine")
    with pytest.raises(PyllamafileError, match="other: exists already") as caught:
        pyllamafile.extract(archive, tmp_path)
    assert "--force" in (caught.value.hint or "")
    assert names(tmp_path) == ["other", "x.zip"]
    assert (tmp_path / "other").read_text() == "mine"
    pyllamafile.extract(archive, tmp_path, force=True)
    assert (tmp_path / "other").read_text() == "/etc/passwd"


def test_an_entry_that_is_not_there(tmp_path):
    archive = hostile_zip(tmp_path / "x.zip", "other")
    with pytest.raises(PyllamafileError, match="no entry 'nix'"):
        pyllamafile.extract(archive, tmp_path / "d", ["good", "nix"])
    assert not (tmp_path / "d").exists()


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_damaged_entry_leaves_no_file(tmp_path, method):
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("a", bytes(range(256)) * 50)
    raw = bytearray(path.read_bytes())
    raw[150] ^= 1
    path.write_bytes(raw)
    with pytest.raises(PyllamafileError, match=r"a is (damaged|longer)"):
        pyllamafile.extract(path, tmp_path / "d")
    assert not (tmp_path / "d").exists()


def test_a_bomb_stops_at_the_size_it_states(tmp_path):
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a", bytes(50 << 20))
    raw = path.read_bytes()
    path.write_bytes(raw.replace(struct.pack("<L", 50 << 20), struct.pack("<L", 1000)))
    with pytest.raises(PyllamafileError, match="longer than it says"):
        pyllamafile.extract(path, tmp_path / "d")
    assert not (tmp_path / "d").exists()


def test_extracted_files_get_plain_modes(tmp_path):
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name, mode in (("plain", 0o666), ("tool", 0o6777), ("none", 0)):
            info = zipfile.ZipInfo(name)
            info.create_system = 3
            info.external_attr = (0o100000 | mode) << 16
            archive.writestr(info, b"")
        archive.writestr("empty/", b"")
    pyllamafile.extract(path, tmp_path / "d")
    modes = {file.name: file.stat().st_mode & 0o7777 for file in (tmp_path / "d").iterdir()}
    plain, tool = 0o666 & ~umask(), 0o777 & ~umask()
    assert modes == {"plain": plain, "tool": tool, "none": plain}


def test_the_destination_may_not_be_a_file(tmp_path):
    archive = hostile_zip(tmp_path / "x.zip", "other")
    with pytest.raises(PyllamafileError, match=r"x\.zip: not a directory"):
        pyllamafile.extract(archive, archive)


def test_inspect_of_other_files(tmp_path, model):
    report = pyllamafile.inspect(model)
    assert (report.name, report.entries, report.runtimes) == (None, (), ())
    assert report.models[0].file == "m.gguf"
    with zipfile.ZipFile(tmp_path / "x.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(model, "m.gguf")
        archive.writestr("bad.gguf", b"GGUF", zipfile.ZIP_STORED)
    report = pyllamafile.inspect(tmp_path / "x.zip")
    assert "compressed" in (report.models[0].problem or "")
    assert "cut short" in (report.models[1].problem or "")
    with tarfile.open(tmp_path / "x.tar", "w"), pytest.raises(PyllamafileError, match="not a zip"):
        pyllamafile.inspect(tmp_path / "x.tar")
