"""Weights that are shifted and not copied: whatever happens, and wherever it ends."""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import random
import shutil
import signal
import struct
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gguf
import pytest
from fixtures import NEW, PROGRAM, put_runtime, tiny_gguf
from judging import contents, runs
from running import need

import pyllamafile
from pyllamafile import PyllamafileError, llamafile, shift, zipalign
from pyllamafile.llamafile import MANIFEST
from pyllamafile.ops import in_place
from pyllamafile.ops import upgrade as upgrading
from pyllamafile.zipalign import BLOCK, Entry

MODEL = 3 << 20  # bytes of a model's


@pytest.fixture(params=["ext4", pytest.param("xfs", marks=pytest.mark.slow)])
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A file system that can shift, and can't share."""
    options = {"ext4": ["-q"], "xfs": ["-q", "-m", "reflink=0"]}[request.param]
    image, place = tmp_path / "image", tmp_path / "disk"
    place.mkdir()
    with image.open("wb") as file:
        file.truncate(400 << 20)
    for command, package in (
        ([f"mkfs.{request.param}", *options, image], {"ext4": "e2fsprogs", "xfs": "xfsprogs"}),
        (["mount", "-o", "loop", image, place], {}),
    ):
        try:
            done = subprocess.run(command, capture_output=True, text=True)
        except FileNotFoundError:
            pytest.skip(f"{command[0]} is missing: apt install {package.get(request.param)}")
        if done.returncode:
            pytest.skip(f"cannot {command[0]}: {done.stderr.strip()}")
    yield place
    subprocess.run(["umount", place], check=True)


@pytest.fixture
def here(disk: Path, prebuilt: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory on it, with a model of some size."""
    monkeypatch.chdir(disk)
    tiny_gguf(Path("m.gguf"))
    with Path("m.gguf").open("ab") as file:
        file.write(os.urandom(MODEL))
    return disk


def test_a_gguf_becomes_the_file_that_build_would_write(here: Path) -> None:
    Path("notes.txt").write_text("notes")
    options = {"args": ["-c", "64"], "add": [("notes.txt", "docs/notes.txt")]}
    expected = pyllamafile.build("m.gguf", "copy", **options)
    number = Path("m.gguf").stat().st_ino
    built = pyllamafile.build("m.gguf", in_place=True, **options)
    assert (built.path, built.size) == (Path("m.llamafile"), expected.size)
    assert built.path.read_bytes() == expected.path.read_bytes()
    assert built.path.stat().st_ino == number
    assert built.path.stat().st_mode & 0o777 == 0o755
    assert os.listxattr(built.path) == []
    assert not Path("m.gguf").exists()
    assert pyllamafile.verify(built.path) == []


# A GGUF that becomes a llamafile


def conversion(**options: object) -> in_place.Conversion:
    """What `build --in-place` runs, not run yet."""
    caught = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(in_place.Conversion, "run", lambda self: caught.append(self))
        with pytest.raises(PyllamafileError):  # there is nothing to check
            pyllamafile.build("m.gguf", in_place=True, **options)
    return caught[0]


@pytest.mark.parametrize("count", range(7))
def test_killed_behind_each_step_a_gguf_can_be_had_again(here: Path, count: int) -> None:
    content = Path("m.gguf").read_bytes()
    expected = pyllamafile.build("m.gguf", "copy").path.read_bytes()
    steps = conversion().steps()
    assert len(steps) == 6
    for step in steps[:count]:
        step()
    if count < 3:
        assert gguf.GGUFReader("m.gguf").tensors  # it still is one, with something behind
        assert Path("m.gguf").read_bytes().startswith(content)
    if count < 6:
        assert in_place.undo(Path("m.gguf")) == (count > 0)
        assert Path("m.gguf").read_bytes() == content
        assert os.listxattr("m.gguf") == []
        for step in conversion().steps()[:count]:
            step()
        pyllamafile.build("m.gguf", in_place=True)
    assert Path("m.llamafile").read_bytes() == expected
    assert not Path("m.gguf").exists()


@pytest.mark.parametrize("count", range(6))
def test_a_conversion_that_fails_is_undone(here: Path, count: int) -> None:
    content = Path("m.gguf").read_bytes()
    convert = conversion()
    steps = list(convert.steps())

    def fail() -> None:
        raise OSError(28, "No space left on device")

    steps[count] = fail
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(in_place.Conversion, "steps", lambda self: steps)
        with pytest.raises(PyllamafileError, match=r"m\.gguf: No space left"):
            pyllamafile.build("m.gguf", in_place=True)
    assert Path("m.gguf").read_bytes() == content
    assert os.listxattr("m.gguf") == []
    assert sorted(path.name for path in Path().iterdir()) in (
        ["lost+found", "m.gguf"],
        ["m.gguf"],
    )


def test_what_cannot_become_the_file_itself(here: Path, tmp_path: Path) -> None:
    def refused(message: str, *gguf: str, **options: object) -> None:
        content = Path("m.gguf").read_bytes()
        with pytest.raises(PyllamafileError, match=message):
            pyllamafile.build(gguf or "m.gguf", in_place=True, **options)
        assert Path("m.gguf").read_bytes() == content

    Path("link.gguf").symlink_to("m.gguf")
    refused("link.gguf: has other names", "link.gguf")
    refused("takes one GGUF", "m.gguf", "m.gguf")
    refused("takes one GGUF", quantize_to="Q4_0")
    refused("is on another file system", output=tmp_path / "o")
    refused("is to be put in twice", add=[("m.gguf", "again.gguf")])
    refused("input and output at once", output="m.gguf", force=True)
    with Path("m.gguf").open("rb"):
        refused("m.gguf: is in use")
    Path("hard.gguf").hardlink_to("m.gguf")
    refused("m.gguf: has other names")
    Path("m.llamafile").write_text("old")
    Path("hard.gguf").unlink()
    refused("m.llamafile: exists already")


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[Path]:
    """A file system that can neither shift nor share."""
    place = tmp_path / "memory"
    place.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "tmpfs", place], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"cannot mount: {done.stderr.strip()}")
    yield place
    subprocess.run(["umount", place], check=True)


def test_a_file_system_that_cannot(memory: Path, prebuilt: Path, model: Path) -> None:
    path = Path(shutil.copy(model, memory))
    with pytest.raises(PyllamafileError, match="can't make room in front") as caught:
        pyllamafile.build(path, in_place=True)
    assert caught.value.hint == (
        "ext4 and XFS on Linux can; leave out --in-place, which copies the weights"
    )
    assert path.read_bytes() == model.read_bytes()
    assert shift.unit(memory) is None
    assert not shift.shares(memory)


# Another engine


@pytest.fixture
def old(here: Path, prebuilt: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A llamafile whose engine is not what is at hand now."""
    monkeypatch.setattr(upgrading, "SMALL", 0)
    Path("notes.txt").write_text("notes")
    path = Path("f.llamafile")
    options = {"args": ["-c", "64"], "add": [("notes.txt", "notes.txt")]}
    pyllamafile.build("m.gguf", path, name="Model", **options)
    put_runtime(prebuilt, NEW)
    with zipfile.ZipFile(prebuilt / "ui.zip", "w") as archive:
        archive.writestr(zipfile.ZipInfo("ui/new.html"), b"<html>" * 1000)
    return path


def absolute(path: Path) -> dict[str, bytes]:
    """Stored entries, as a reader finds them that counts from the start of the file alone."""
    raw = path.read_bytes()
    end = raw.rindex(b"PK\5\6")
    count, at = struct.unpack_from("<10xH4xL", raw, end)
    if raw[end - 20 :].startswith(b"PK\6\7"):
        (wide,) = struct.unpack_from("<8xQ", raw, end - 20)
        assert raw[wide : wide + 4] == b"PK\6\6"
        count, at = struct.unpack_from("<32xQ8xQ", raw, wide)
    found = {}
    for _ in range(count):
        assert raw[at : at + 4] == b"PK\1\2"
        method, stored, name, extra, comment, header = struct.unpack_from(
            "<10xH8xL4x3H8xL", raw, at
        )
        text = raw[at + 46 : at + 46 + name].decode()
        assert raw[header : header + 4] == b"PK\3\4"
        data = header + 30 + sum(struct.unpack_from("<2H", raw, header + 26))
        if not method:
            found[text] = raw[data : data + stored]
        at += 46 + name + extra + comment
    return found


def started(path: Path) -> tuple[bytes, dict[str, bytes]]:
    """What counts for who starts the file: its script, and what is read then."""
    return path.read_bytes()[:BLOCK].rstrip(b"\0"), absolute(path)


def upgraded_by_copy(path: Path) -> dict[str, bytes]:
    copy = Path(shutil.copy(path, "by-copy"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shift, "unit", lambda folder: None)
        assert not pyllamafile.upgrade(copy).shifted
    assert pyllamafile.verify(copy) == []
    return contents(copy)


def exchange(path: Path) -> upgrading.Exchange:
    """What `upgrade` runs, not run yet."""
    caught = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(upgrading.Exchange, "run", lambda self: caught.append(self))
        pyllamafile.upgrade(path)
    return caught[0]


def test_upgraded_by_shifting(old: Path) -> None:
    weights = Path("m.gguf").read_bytes()
    expected = upgraded_by_copy(old)
    number, mode = old.stat().st_ino, old.stat().st_mode
    done = pyllamafile.upgrade(old)
    assert done.shifted
    assert (done.models, done.targets, done.size) == (
        ("m.gguf",),
        ("linux-amd64",),
        old.stat().st_size,
    )
    assert (old.stat().st_ino, old.stat().st_mode) == (number, mode)
    found = contents(old)
    assert found == absolute(old) | {k: v for k, v in found.items() if k not in absolute(old)}
    assert found["m.gguf"] == weights
    assert {name: found[name] for name in ("notes.txt", ".args", "ui/new.html")} == {
        "notes.txt": b"notes",
        ".args": b"-c\n64\n",
        "ui/new.html": b"<html>" * 1000,
    }
    assert found == expected  # the manifest too
    assert pyllamafile.verify(old) == []
    assert runs(old)
    report = pyllamafile.inspect(old)
    assert report.name == "Model"
    assert report.entries[0].alignment == 65536
    assert report.size - Path("by-copy").stat().st_size < 1 << 16


def test_upgraded_there_and_back(old: Path, prebuilt: Path) -> None:
    """Longer and shorter engines, and what was dead does not pile up."""
    sizes = []
    for _ in range(3):
        for program in (NEW, PROGRAM):
            put_runtime(prebuilt, program)
            assert pyllamafile.upgrade(old).shifted
            assert pyllamafile.verify(old) == []
            assert runs(old)
        sizes.append(old.stat().st_size)
    assert len(set(sizes)) == 1


@pytest.mark.parametrize("count", range(7))
def test_killed_behind_each_step_it_starts_and_the_next_time_is_whole(
    old: Path, count: int
) -> None:
    before, expected = contents(old), upgraded_by_copy(old)
    first = started(old)
    assert first[0] != started(Path("by-copy"))[0]
    steps = exchange(old).steps()
    assert len(steps) == 6
    for step in steps[:count]:
        step()
    assert runs(old)
    assert contents(old) == (before if count < 4 else expected)
    assert started(old) == (first if count < 5 else started(Path("by-copy")))
    command = [sys.executable, "-m", "pyllamafile", "verify", old]
    done = subprocess.run(command, capture_output=True, text=True)
    assert ("an upgrade of it was interrupted" in done.stderr) == (1 < count < 5)
    if 0 < count < 5:
        assert old.stat().st_size % 4096 == 0  # see test_a_shift_is_killed
    assert pyllamafile.inspect(old).models[0].name == "Tiny"
    if shutil.which("unzip"):
        done = subprocess.run(["unzip", "-t", old], capture_output=True, text=True)
        assert done.returncode in (0, 1), done.stdout  # 1: a warning
    assert pyllamafile.upgrade(old).shifted
    assert contents(old) == expected
    assert pyllamafile.verify(old) == []
    assert runs(old)


@pytest.mark.parametrize("count", range(7))
def test_killed_behind_each_step_nothing_is_signed_that_was_not(
    old: Path, tmp_path: Path, count: int
) -> None:
    key = tmp_path / "key"
    command = [need("ssh-keygen", "openssh-client"), "-q", "-t", "ed25519", "-N", "", "-f", key]
    subprocess.run(command, check=True)
    pyllamafile.sign(old, key=key)
    for step in exchange(old).steps()[:count]:
        step()
    who = key.with_suffix(".pub")
    found = pyllamafile.signed_by(old, who)
    assert count or not found.problems
    # Until the new engine counts it is the old file, maybe with more in it than was signed.
    before = "changed" if found.problems else "signed"
    assert found.verdict == (before if count < 4 else "unsigned")
    assert pyllamafile.upgrade(old).shifted
    found = pyllamafile.signed_by(old, who)
    assert (found.verdict, found.problems) == ("unsigned", ())


def test_what_is_dead_is_left_to_the_old_file(
    old: Path, prebuilt: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The new directory would fit in there, but then what is behind would be cut off."""
    monkeypatch.setattr(zipalign, "_MOVE", 0)
    put_runtime(prebuilt, PROGRAM)
    Path("big").write_bytes(bytes(4 << 20))
    files = [("big", "big")]
    pyllamafile.build("m.gguf", old, add=files, name="Model", force=True)
    pyllamafile.remove(old, ["big"])
    put_runtime(prebuilt, NEW)
    first = started(old)
    expected = upgraded_by_copy(old)
    for step in exchange(old).steps()[:4]:
        step()
    assert started(old) == first
    assert pyllamafile.upgrade(old).shifted
    assert contents(old) == expected


@pytest.mark.parametrize(  # which gives each its own numbers
    "number", [*range(8), *(pytest.param(n, marks=pytest.mark.slow) for n in range(8, 40))]
)
def test_a_shift_makes_one_archive_of_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rng: random.Random, number: int
) -> None:
    """Whatever is added, replaced and removed, and whatever gaps there are."""
    monkeypatch.setattr(zipalign, "_MOVE", rng.choice([0, 5000, 16 << 20]))
    path, front = tmp_path / "a.zip", rng.randint(1, 3) * BLOCK
    path.write_bytes(bytes(front))

    def some(count: int) -> list[Entry]:
        names = rng.sample("abcdefghij", count)
        sizes = [rng.choice([0, 10, 3000, 300_000, 3_000_000]) for _ in names]
        return [
            Entry(name, rng.randbytes(size), align=rng.choice([1, BLOCK]))
            for name, size in zip(names, sizes, strict=True)
        ]

    with path.open("r+b") as file:
        zipalign.write(file, zipalign.layout(some(6), front))
    for _ in range(rng.randint(0, 2)):
        names = [member.name for member in zipalign.read(path).members]
        zipalign.add(path, some(1), remove=rng.sample(names, 2))
    before = contents(path)
    new = some(rng.randint(0, 4))
    gone = {name for name in before if rng.random() < 0.4}
    after = {name: content for name, content in before.items() if name not in gone}
    after |= {entry.name: entry.data for entry in new}

    zipalign.add(path, new, remove=gone, displacements=(0, -front))
    assert absolute(path) == before
    assert contents(path) == after  # by who takes what stands at the end
    path.write_bytes(path.read_bytes()[front:])
    assert absolute(path) == contents(path) == after
    zipalign.compact(path)
    assert absolute(path) == contents(path) == after


def test_what_is_nearly_done_is_finished_first(old: Path) -> None:
    """For nothing else makes the new file of the old one at once."""
    expected = upgraded_by_copy(old)
    for step in exchange(old).steps()[:4]:
        step()
    exchange(old)  # what it would do then is not done
    assert contents(old) == expected
    assert started(old) == started(Path("by-copy"))
    assert pyllamafile.verify(old) == []


def test_what_is_half_written_is_not_taken_for_that(old: Path, prebuilt: Path) -> None:
    """Not even where the engine is the same again, and its head is there already."""
    put_runtime(prebuilt, PROGRAM)
    pyllamafile.upgrade(old)
    started_over = exchange(old)
    assert started_over.old == started_over.new
    for step in started_over.steps()[:2]:
        step()
    head, _ = started_over.engine.pieces()
    with old.open("r+b") as file:
        file.seek(started_over.old + head[0])
        file.write(head[1])
    raw = old.read_bytes()
    with pytest.raises(PyllamafileError, match="came out wrong"):  # for nothing was done
        exchange(old)
    assert old.read_bytes() == raw
    started_over.steps()[2]()
    exchange(old)  # all of it stands there now: to take out one or the other is the same
    assert pyllamafile.verify(old) == []
    assert runs(old)


@pytest.mark.parametrize(
    "manifest",
    [
        {},
        {"head": None, "runtimes": []},
        {"head": {"size": -1, "sha256": ""}, "runtimes": []},
        {"head": {"size": 1 << 60, "sha256": "0" * 64}, "runtimes": []},
        {"head": {"size": 1, "sha256": "0" * 64}},
        {"head": {"size": "1", "sha256": ""}, "runtimes": []},
        {"head": {"size": 1.5, "sha256": ""}, "runtimes": []},
        {"head": {"size": 1, "sha256": 0}, "runtimes": [0]},
    ],
)
def test_no_engine_is_like_a_manifest_that_says_nonsense(old: Path, manifest: Any) -> None:
    facts = {**llamafile.read(old).manifest, **manifest} if manifest else {}
    text = json.dumps({**facts, "nonsense": 1}).encode()
    zipalign.add(old, [Entry(MANIFEST, text)])
    old.write_bytes(raw := bytes(BLOCK) + old.read_bytes())
    found = llamafile.read(old)
    if found.ours:
        assert upgrading._finish(found) == found
    else:
        with pytest.raises(PyllamafileError, match="can't be understood"):
            pyllamafile.upgrade(old)
    assert old.read_bytes() == raw


def test_what_others_put_in_front_is_not_taken_for_that(old: Path) -> None:
    raw = bytearray(bytes(BLOCK) + old.read_bytes())
    raw[BLOCK + 100] ^= 1
    old.write_bytes(raw)
    with pytest.raises(PyllamafileError, match="came out wrong"):  # for nothing was done
        exchange(old)
    assert old.read_bytes() == raw


@pytest.mark.parametrize("count", range(6))
@pytest.mark.parametrize("after", [False, True])
def test_an_upgrade_that_fails_is_undone_or_done(old: Path, count: int, after: bool) -> None:
    before, expected = contents(old), upgraded_by_copy(old)
    size = old.stat().st_size
    steps = list(exchange(old).steps())
    real = steps[count]

    def fail() -> None:
        if after:
            real()
        raise KeyboardInterrupt

    steps[count] = fail
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(upgrading.Exchange, "steps", lambda self: steps)
        with pytest.raises(KeyboardInterrupt):
            pyllamafile.upgrade(old)
    assert contents(old) == (expected if (count, after) >= (3, True) else before)
    assert pyllamafile.verify(old) == []
    assert runs(old)
    if contents(old) == before:
        assert old.stat().st_size == size


@pytest.mark.slow
def test_killed_at_any_moment(old: Path, prebuilt: Path, rng: random.Random) -> None:
    """By SIGKILL, in a process of its own: whatever it was doing."""
    before, expected = contents(old), upgraded_by_copy(old)
    states = started(old), started(Path("by-copy"))
    original = old.read_bytes()
    code = (
        "import pathlib, sys, pyllamafile.ops.upgrade as upgrading\n"
        "from pyllamafile import native\n"
        "native.PREBUILT = pathlib.Path(sys.argv[1]); upgrading.SMALL = 0\n"
        "print(flush=True); upgrading.upgrade(sys.argv[2]); print(flush=True)"
    )
    command = [sys.executable, "-c", code, str(prebuilt), str(old)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    process.stdout.readline()
    begin = time.monotonic()
    process.communicate()
    took = time.monotonic() - begin
    assert process.returncode == 0
    for _ in range(12):
        old.write_bytes(original)
        process = subprocess.Popen(command, stdout=subprocess.PIPE)
        process.stdout.readline()
        moment = rng.uniform(0, 1) * took
        time.sleep(moment)
        process.kill()
        process.communicate()
        assert runs(old), moment
        assert contents(old) in (before, expected), moment
        assert started(old) in states, moment
        assert pyllamafile.upgrade(old).shifted
        assert contents(old) == expected
        assert pyllamafile.verify(old) == []


@pytest.mark.slow
@pytest.mark.parametrize("how", [shift.collapse, shift.insert])
def test_a_shift_is_killed(
    disk: Path, rng: random.Random, how: Callable[[Path, int, int], None]
) -> None:
    """XFS lets a kill come between moving blocks and the new length, but not if there is no
    part of a block to be cut off at the end. (If there is, this fails within a few rounds.)"""
    path = disk / "f"
    content = random.Random(2).randbytes(BLOCK) * 48
    moved = {
        shift.collapse: content[3 * BLOCK :],
        shift.insert: content[: 3 * BLOCK] + bytes(3 * BLOCK) + content[3 * BLOCK :],
    }[how]
    for _ in range(300):
        path.write_bytes(content)
        reader, writer = os.pipe()
        child = os.fork()
        if not child:
            with contextlib.suppress(OSError):
                fd = os.open(path, os.O_RDWR)
                os.fsync(fd)
                os.write(writer, b".")
                how(path, 3 * BLOCK if how is shift.insert else 0, 3 * BLOCK)
            os._exit(0)
        os.read(reader, 1)
        time.sleep(rng.uniform(0, 2e-3))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(reader)
        os.close(writer)
        assert path.read_bytes() in (content, moved)


def test_an_interrupted_upgrade_comes_first(old: Path) -> None:
    for step in exchange(old).steps()[:4]:
        step()
    with pytest.raises(PyllamafileError, match="an upgrade of it was interrupted"):
        pyllamafile.add(old, [("notes.txt", "more.txt")])
    pyllamafile.upgrade(old)
    pyllamafile.add(old, [("notes.txt", "more.txt")])
    assert pyllamafile.verify(old) == []


def test_in_use_it_is_copied(old: Path) -> None:
    expected = upgraded_by_copy(old)
    number = old.stat().st_ino
    weights = Path("m.gguf").read_bytes()
    at = pyllamafile.inspect(old).entries[0].offset
    with old.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        assert not pyllamafile.upgrade(old).shifted
        assert mapped[at : at + len(weights)] == weights  # who uses it sees no change
    assert old.stat().st_ino != number
    assert contents(old) == expected


def test_entries_that_nobody_vouches_for_are_read(old: Path) -> None:
    with zipfile.ZipFile(old, "a") as archive:
        archive.writestr("foreign.txt", "x")
    assert not pyllamafile.upgrade(old).shifted
    assert contents(old)["foreign.txt"] == b"x"
    assert pyllamafile.verify(old) == []


# Under the real runtime, on the file system that the tests run on


@pytest.mark.native
def test_the_real_runtime_finds_its_weights_at_every_step(
    smollm2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole way, from a GGUF to another engine."""
    monkeypatch.chdir(tmp_path)
    if shift.unit(tmp_path) is None:
        pytest.skip("files here can't be shifted")
    shutil.copy(smollm2, "m.gguf")

    def answer() -> str:
        command = ["sh", "./m.llamafile", "-p", "Once upon a time", "-n", "4", "--temp", "0"]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    pyllamafile.build("m.gguf", targets=["linux-amd64"], in_place=True)
    expected = answer()
    assert expected.startswith("Once upon a time")
    for step in exchange(Path("m.llamafile")).steps():
        step()
        assert answer() == expected
    assert pyllamafile.verify("m.llamafile") == []
    assert pyllamafile.upgrade("m.llamafile").shifted
    assert answer() == expected
