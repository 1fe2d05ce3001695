"""Strange files, and the one verdict on each that every reader has to come to.

A row of `ROWS` is a file: its name, its verdict, and how it is made of a sound one (`Bench`). A row
of `RULES` is a verdict: what each reader makes of such a file. No reader has a rule for one file.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import struct
import subprocess
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from fixtures import PROGRAM, put_runtime, tiny_gguf, tiny_pe
from hostile import MAX_16, MAX_32, MAX_64, archive, extra64, member
from judging import snapshot
from running import Command, Result, need

import pyllamafile
from pyllamafile.targets import host

MANIFEST = "llamafile.json"
SIGNATURE = "llamafile.json.sig"
BLOCK = 65536
FILE = "f.llamafile"
MODEL = "m.gguf"
NEWER = PROGRAM + b"# of another version\n"

# ---------------------------------------------------------------- the verdicts

# reading    what llamafile.py says: the maker, interrupted, or an error
# inspect    shows: all of it; partly: what can be relied on, and what is wrong; error
# verify     sound, or named: what is wrong is
# extract    all, or error: nothing outside, exit status 1
# upgrade …  works: nothing that people put in is lost; error: the file keeps every byte;
#            asks: an error that names what would be dropped, and --drop-unknown does it
# doctor     well: exit status 0, for it starts; ill
# start      the launch script reaches the program, or not
# container  container.cpp reads its directory, or not
# runtime    the whole program can make use of it, or says in one line why it can't
# -          is not asked
_RULES = """
verdict      reading      inspect  verify  extract  upgrade  add    remove  zipalign  doctor  start  container  runtime
sound        ours         shows    sound   all      works    works  works   works     well    yes    yes        yes
signed       ours         shows    sound   all      works    works  works   works     well    yes    yes        yes
ill-signed   ours         shows    named   all      works    works  works   works     well    yes    yes        yes
changed      ours         shows    named   all      works    works  works   works     well    yes    yes        yes
corrupt      ours         shows    named   error    error    works  works   works     well    yes    yes        yes
awkward      ours         shows    named   all      error    works  works   works     well    yes    yes        yes
hostile      ours         shows    named   error    error    works  works   works     well    yes    yes        yes
engine       ours         shows    named   all      works    works  works   works     ill     no     yes        yes
newer        newer        partly   named   all      error    error  error   error     well    yes    yes        yes
damaged      damaged      partly   named   all      error    error  error   error     well    yes    yes        yes
unreadable   damaged      partly   named   error    error    error  error   error     well    yes    yes        yes
overlong     ours         shows    named   all      error    works  works   works     ill     yes    yes        no
interrupted  interrupted  partly   named   all      works    error  error   error     well    yes    yes        yes
displaced    interrupted  partly   named   all      works    error  error   error     ill     -      no         no
misled       ours         shows    named   all      works    works  works   works     ill     -      no         no
foreign      foreign      shows    named   all      works    error  error   works     ill     -      yes        yes
mixed        foreign      shows    named   all      asks     error  error   works     ill     -      yes        yes
zip          none         shows    named   all      error    error  error   works     ill     -      yes        yes
gguf         error        shows    named   error    error    error  error   error     ill     -      no         no
broken       error        error    named   error    error    error  error   error     ill     -      no         no
nothing      error        error    named   error    error    error  error   -         ill     -      -          -
"""  # noqa: E501
_HEADER, *_LINES = (line.split() for line in _RULES.strip().splitlines())
RULES: dict[str, dict[str, str]] = {
    words[0]: dict(zip(_HEADER[1:], words[1:], strict=True)) for words in _LINES
}
READERS = tuple(_HEADER[1:])

# What a refusal has to name, whoever refuses.
SAYS = {
    "newer": r"format",
    "damaged": r"llamafile\.json|manifest",
    "unreadable": r"llamafile\.json|manifest",
    "overlong": r"\.args",
    "interrupted": r"interrupted",
    "ill-signed": r"signature|\.sig",
}

# ------------------------------------------------------------- what they are made of


@dataclass(frozen=True)
class Bench:
    """A sound llamafile, whole and in parts.

    Attributes:
        folder: For what needs a file on the way.
        prebuilt: Where the engine is that is at hand, which is another one than the file's.
        built: The file as `build` writes it.
        front: All in front of the zip.
        contents: Every entry but the manifest, in the file's order.
        facts: The manifest but for its ``entries``.
        windows: Another one, whose head is a Windows program.
        plain: One without a GUI.
        bare: One without weights.
        two: One of two models.
    """

    folder: Path
    prebuilt: Path
    built: bytes
    front: bytes
    contents: Mapping[str, bytes]
    facts: Mapping[str, Any]
    windows: bytes
    plain: bytes
    bare: bytes
    two: bytes

    @property
    def engines(self) -> frozenset[str]:
        """The names of the entries that come with an engine."""
        return frozenset(n for n in self.contents if n.startswith(("ui/", "LICENSES/")))

    @property
    def gguf(self) -> bytes:
        return self.contents[MODEL]


def bench(folder: Path, prebuilt: Path) -> Bench:
    """Build it, and have another engine at hand afterwards."""
    here = host()
    if here is None:
        pytest.skip("this system is no target")
    put_runtime(prebuilt, PROGRAM, here.name)
    put_runtime(prebuilt, tiny_pe(), "windows-amd64")
    model, notes = tiny_gguf(folder / MODEL), folder / "notes.txt"
    notes.write_text("notes\n" * 100)
    page = folder / "page.html"
    page.write_text("<html>mine")

    def build(name: str, *targets: str, **options: Any) -> bytes:
        done = pyllamafile.build(model, folder / name, targets=[here.name, *targets], **options)
        return done.path.read_bytes()

    options: dict[str, Any] = {"args": ["-c", "64"], "add": [(notes, "notes.txt")]}
    built = build("built", **options)
    with zipfile.ZipFile(folder / "built") as file:
        contents = {name: file.read(name) for name in file.namelist()}
        start = min(info.header_offset for info in file.infolist())
    facts = json.loads(contents.pop(MANIFEST))
    made = Bench(
        folder=folder,
        prebuilt=prebuilt,
        built=built,
        front=built[:start],
        contents=contents,
        facts={key: value for key, value in facts.items() if key != "entries"},
        windows=build("windows", "windows-amd64", **options),
        plain=build("plain", gui=False, add=[(notes, "notes.txt"), (page, "ui/page.html")]),
        bare=pyllamafile.build((), folder / "bare", targets=[here.name]).path.read_bytes(),
        two=build("two", add=[(notes, "notes.txt"), (tiny_gguf(folder / "second.gguf"), "b.gguf")]),
    )
    put_runtime(prebuilt, NEWER, here.name)
    return made


def listing(contents: Mapping[str, bytes]) -> dict[str, dict[str, Any]]:
    """The manifest's ``entries``."""
    return {
        name: {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
        for name, data in contents.items()
    }


def as_text(facts: object) -> bytes:
    return json.dumps(facts, indent=1, sort_keys=True).encode() + b"\n"


Members = list[dict[str, Any]]


def ours(
    bench: Bench,
    more: Mapping[str, bytes] | None = None,
    *,
    without: Iterable[str] = (),
    unlisted: Mapping[str, bytes] | None = None,
    forget: Iterable[str] = (),
    facts: Callable[[dict[str, Any]], object] = lambda facts: facts,
    text: Callable[[bytes], bytes] = lambda text: text,
    manifest: Mapping[str, Any] | None = None,
    change: Mapping[str, Mapping[str, Any]] | None = None,
    last: Members | None = None,
    front: bytes | None = None,
    **ends: Any,
) -> bytes:
    """A llamafile written by nobody's writer but this one.

    Args:
        bench: What it is made of.
        more: More entries, or others in the place of those that there are.
        without: Entries that are left out, of the manifest too.
        unlisted: More entries that the manifest doesn't know.
        forget: Entries that the manifest lists and the zip lacks.
        facts: What the manifest says instead of what it should.
        text: The same of its text.
        manifest: Fields of its header.
        change: Fields of the headers of other entries.
        last: More entries, behind the manifest.
        front: Instead of the engine.
        ends: Fields of the end records.
    """
    contents = {**bench.contents, **(more or {})}
    contents = {name: data for name, data in contents.items() if name not in without}
    said = facts({**bench.facts, "entries": listing(contents)})
    present = {name: data for name, data in contents.items() if name not in forget}
    members = [
        member(name.encode(), data, **(change or {}).get(name, {}))
        for name, data in {**present, **(unlisted or {})}.items()
    ]
    told = said if isinstance(said, bytes) else as_text(said)
    members.append(member(MANIFEST.encode(), text(told), **(manifest or {})))
    wide = {"count": MAX_16, "size": MAX_32, "offset": MAX_32, "zip64": {}}
    ends = (wide if len(members) > MAX_16 else {}) | ends
    return archive(*members, *(last or []), prefix=bench.front if front is None else front, **ends)


def said(**changes: object) -> Callable[[Bench], bytes]:
    """A manifest with other values, or without a key where the value is ``...``."""

    def other(facts: dict[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in {**facts, **changes}.items() if value is not ...}

    return lambda bench: ours(bench, facts=other)


def runtime_said(**changes: object) -> Callable[[Bench], bytes]:
    """The same of its first runtime."""

    def other(facts: dict[str, Any]) -> dict[str, Any]:
        first, *rest = facts["runtimes"]
        changed = {k: v for k, v in {**first, **changes}.items() if v is not ...}
        return {**facts, "runtimes": [changed, *rest]}

    return lambda bench: ours(bench, facts=other)


def entry_said(value: object) -> Callable[[Bench], bytes]:
    """The same of an entry that it lists."""
    return lambda bench: ours(
        bench, facts=lambda facts: {**facts, "entries": {**facts["entries"], "notes.txt": value}}
    )


def texts(text: bytes) -> Callable[[Bench], bytes]:
    """A manifest that consists of this text."""
    return lambda bench: ours(bench, text=lambda _: text)


def edited(edit: Callable[[bytes], bytes]) -> Callable[[Bench], bytes]:
    """What `build` wrote, with other bytes in it."""
    return lambda bench: edit(bench.built)


def by_info_zip(*arguments: str, of: str = "built") -> Callable[[Bench], bytes]:
    """What Info-ZIP's zip makes of it; of the folder's files `docs/` and `second.gguf` are new."""

    def make(bench: Bench) -> bytes:
        need("zip")
        place = bench.folder / "zip"
        shutil.rmtree(place, ignore_errors=True)
        (place / "docs").mkdir(parents=True)
        (place / "docs/new.txt").write_text("new\n" * 50)
        (place / "notes.txt").write_text("other notes\n")
        (place / ".args").write_text("-c 128\n")
        tiny_gguf(place / "second.gguf", name="Second")
        file = place / "f.zip"
        file.write_bytes(getattr(bench, of))
        # At the end of a year that DOS knows, so that nothing depends on the time zone.
        for path in place.rglob("*"):
            os.utime(path, (1e9, 1e9))
        command = ["zip", "-q", *(word.replace("FILE", "f.zip") for word in arguments)]
        done = subprocess.run(command, cwd=place, capture_output=True, text=True)
        assert done.returncode == 0, done
        return file.read_bytes()

    return make


def by_zipfile(put: Callable[[zipfile.ZipFile, Bench], object]) -> Callable[[Bench], bytes]:
    """What Python's own module makes of it."""

    def make(bench: Bench) -> bytes:
        file = bench.folder / "zipfile"
        file.write_bytes(bench.built)
        with zipfile.ZipFile(file, "a") as opened:
            put(opened, bench)
        return file.read_bytes()

    return make


def symbolic_link(file: zipfile.ZipFile, bench: Bench) -> None:
    info = zipfile.ZipInfo("link")
    info.create_system, info.external_attr = 3, 0o120777 << 16
    file.writestr(info, "/etc/passwd")


def streamed(file: zipfile.ZipFile, bench: Bench) -> None:
    """With a data descriptor, as of what is written to a pipe."""
    file._seekable = False  # type: ignore[attr-defined]
    file.writestr("streamed.txt", "x" * 1000)


def off_alignment(bench: Bench) -> bytes:
    """As a tool leaves it that closes gaps: everything 100 bytes nearer to the front."""
    return ours(bench, front=bench.front[:-100])


def signature(of: bytes, kind: str = "ed25519", namespace: str = "llamafile") -> bytes:
    """A signature by a key of this type, which is made for it."""
    need("ssh-keygen", "openssh-client")
    with tempfile.TemporaryDirectory() as place:
        key = Path(place, "key")
        subprocess.run(["ssh-keygen", "-q", "-t", kind, "-N", "", "-f", key], check=True)
        command = ["ssh-keygen", "-Y", "sign", "-n", namespace, "-f", str(key)]
        return subprocess.run(command, input=of, capture_output=True, check=True).stdout


def signed_with(
    kind: str = "ed25519",
    *,
    of: bytes | None = None,
    namespace: str = "llamafile",
    edit: Callable[[bytes], bytes] = lambda text: text,
    first: bool = False,
    method: int = 0,
) -> Callable[[Bench], bytes]:
    """A llamafile with a signature of its manifest, or of something else."""

    def make(bench: Bench) -> bytes:
        manifest = as_text({**bench.facts, "entries": listing(bench.contents)})
        text = edit(signature(manifest if of is None else of, kind, namespace))
        if first:
            return ours(bench, unlisted={SIGNATURE: text})
        return ours(bench, last=[member(SIGNATURE.encode(), text, method=method)])

    return make


def moved(front: bytes, file: bytes, start: int) -> bytes:
    """`file` with all from `start` on moved behind `front`, in the midst of an upgrade (FORMAT, 7).

    The locator leads to a directory with the offsets that are right now. What stands right before
    the end has those from when all stood at `start`.
    """
    end = file.rindex(b"PK\5\6")
    count, size, at = struct.unpack_from("<10xH2L", file, end)
    directory, distance = file[at : at + size], len(front) - start

    def ends(of: int) -> bytes:
        return struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, count, count, size, of)

    here = bytearray(directory)
    position = 0
    for _ in range(count):
        lengths = struct.unpack_from("<3H", here, position + 28)
        (offset,) = struct.unpack_from("<L", here, position + 42)
        struct.pack_into("<L", here, position + 42, offset + distance)
        position += 46 + sum(lengths)
    out = front + file[start:at]
    first = len(out)
    # As far apart as all has moved: the locator names the same place before and afterwards.
    out = (out + here + ends(first)).ljust(first + distance, b"\0")
    out += directory + ends(first)
    out += struct.pack("<4sLQL", b"PK\6\7", 0, first + size, 1)
    marks = (MAX_16, MAX_16, MAX_32, MAX_32, 0)
    return out + struct.pack("<4s2H2H2LH", b"PK\5\6", 0, 0, *marks)


def upgrade_begun(bench: Bench) -> bytes:
    """Room is made behind the old engine, and the new one may stand in it."""
    start = len(bench.front) // BLOCK * BLOCK
    return moved(bench.front[:start] + bytes(2 * BLOCK), bench.built, start)


def upgrade_nearly_done(bench: Bench) -> bytes:
    """All of the new file is there. Only the old engine has yet to go."""
    start = len(bench.front) // BLOCK * BLOCK
    return moved(bench.front[:start], bench.built, 0)


def conversion_begun(bench: Bench) -> bytes:
    """A GGUF with the end of a llamafile behind it; the room in front has yet to be made."""
    contents = {name: data for name, data in bench.contents.items() if name != MODEL}
    out = bytearray(bench.gguf)
    room = len(bench.front) + 30 + len(MODEL)
    members = [member(MODEL.encode(), bench.gguf, data=b"", offset=len(bench.front))]
    tail = archive(*(member(name.encode(), data) for name, data in contents.items()))
    (at,) = struct.unpack_from("<L", tail, len(tail) - 6)
    position = 0
    for name, data in contents.items():
        members.append(member(name.encode(), data, data=b"", offset=room + len(out) + position))
        position += 30 + len(name.encode()) + len(data)
    assert position == at
    out += tail[:at]
    whole = archive(*members)
    (begins,) = struct.unpack_from("<L", whole, len(whole) - 6)
    directory = whole[begins:-22]
    ends = (0, 0, len(members), len(members), len(directory), room + len(out), 0)
    return bytes(out + directory + struct.pack("<4s4H2LH", b"PK\5\6", *ends))


def mozillas(**entries: bytes) -> Callable[[Bench], bytes]:
    """A llamafile of Mozilla's: a program of theirs, their assets, `.args`, weights."""

    def make(bench: Bench) -> bytes:
        args = b"-m\nm.gguf\n--host\n0.0.0.0\n-ngl\n9999\n...\n"
        return archive(
            member(b"usr/share/zoneinfo/UTC", b"TZif" * 100),
            member(b"llamafile/highlight/c.gperf.c", b"x" * 5000, method=8),
            member(b".args", args, method=8),
            *(member(name.encode(), data) for name, data in entries.items()),
            member(b"m.gguf", bench.gguf),
            member(b".symtab.amd64", b"symbols"),
            prefix=b"MZqFpD='\n" + bytes(10_000) + b"\n'\nexit 1\n",
        )

    return make


def long_names(count: int) -> dict[str, bytes]:
    """So few entries as it takes to make a large manifest: few, because their names are long."""
    return {"/".join(["long" + "x" * 196] * 17 + [f"{number:04}"]): b"" for number in range(count)}


def many(count: int, folder: str = "many") -> dict[str, bytes]:
    return {f"{folder}/{number // 1000}/{number:06}.txt": b"x" for number in range(count)}


# ------------------------------------------------------------------- the files

Make = Callable[[Bench], bytes]
Put = Callable[[Path], None]


@dataclass(frozen=True)
class Row:
    """A strange file.

    Attributes:
        verdict: A row of `RULES`.
        make: Gives its bytes.
        put: What puts it where it should be, where bytes alone are not it.
        slow: Whether it has so much in it that every reader takes a while.
    """

    verdict: str
    make: Make = lambda bench: b""
    put: Put | None = None
    slow: bool = False


def swap(old: bytes, new: bytes) -> Callable[[bytes], bytes]:
    """Other bytes where these stand for the last time."""

    def edit(raw: bytes) -> bytes:
        at = raw.rindex(old)
        return raw[:at] + new + raw[at + len(new) :]

    return edit


def at_offset(at: int, new: bytes) -> Callable[[bytes], bytes]:
    return lambda raw: raw[:at] + new + raw[at + len(new) :]


def link_to(name: str) -> Put:
    def put(path: Path) -> None:
        path.rename(path.with_name(name))
        path.symlink_to(name)

    return put


def folder_instead(path: Path) -> None:
    path.unlink()
    path.mkdir()


def pipe_instead(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


LOUD = {"entries": "are no list of them"}
WIDE: dict[str, Any] = {"count": MAX_16, "size": MAX_32, "offset": MAX_32}

ROWS: dict[str, Row] = {
    # Sound
    "as built": Row("sound", lambda b: b.built),
    "by another writer": Row("sound", ours),
    "a Windows program": Row("sound", lambda b: b.windows),
    "no GUI, and a page of one's own": Row("sound", lambda b: b.plain),
    "an engine alone": Row("sound", lambda b: b.bare),
    "behind a symbolic link": Row("sound", lambda b: b.built, link_to("real")),
    "two models": Row("sound", lambda b: b.two),
    "a manifest of 1.2 MB": Row("sound", lambda b: ours(b, long_names(340))),
    "a manifest of 5 MB": Row("sound", lambda b: ours(b, long_names(1430)), slow=True),
    "a manifest that is deflated": Row("sound", lambda b: ours(b, manifest={"method": 8})),
    "a manifest with more in it": Row("sound", said(later={"x": [1, None]})),
    "a manifest in one line": Row(
        "sound", lambda b: ours(b, text=lambda t: json.dumps(json.loads(t)).encode())
    ),
    ".args of 1 MiB": Row("sound", lambda b: ours(b, {".args": b"#".ljust(1 << 20, b"x")})),
    ".args in Latin-1": Row("sound", lambda b: ours(b, {".args": b"-p '\xe4'\n"})),
    "an empty .args": Row("sound", lambda b: ours(b, {".args": b""})),
    "an entry with a name in UTF-8": Row(
        "sound",
        lambda b: ours(b, {"docs/ä 日.txt": b"x"}, change={"docs/ä 日.txt": {"flags": 1 << 11}}),
    ),
    # more than a count of 16 bits says
    "66,000 entries": Row("sound", lambda b: ours(b, many(66_000)), slow=True),
    # With a signature, whether it holds or not: who signed is asked by other means (test_sign.py)
    "signed": Row("signed", signed_with()),
    "signed by RSA": Row("signed", signed_with("rsa")),
    "a signature that is deflated": Row("signed", signed_with(method=8)),
    "a signature of another manifest": Row("signed", signed_with(of=b"{}")),
    "a signature for git": Row("signed", signed_with(namespace="git")),
    "a signature in another place": Row("signed", signed_with(first=True)),
    "an empty signature": Row("ill-signed", signed_with(edit=lambda text: b"")),
    "a signature that is cut": Row("ill-signed", signed_with(edit=lambda text: text[:100])),
    "a signature cut inside of its armor": Row(
        "ill-signed", signed_with(edit=lambda text: b"\n".join(text.split(b"\n")[::2]))
    ),
    "a signature that lacks a line": Row(
        "ill-signed",
        signed_with(
            edit=lambda text: b"".join(text.splitlines(True)[:2] + text.splitlines(True)[3:])
        ),
    ),
    "two signatures in one": Row("ill-signed", signed_with(edit=lambda text: text * 2)),
    "a signature of 10 MB": Row(
        "ill-signed", signed_with(edit=lambda text: text + b"\n" * 10_000_000)
    ),
    "a signature of PGP's": Row(
        "ill-signed", signed_with(edit=lambda text: text.replace(b"SSH", b"PGP"))
    ),
    "a signature that the manifest lists": Row(
        "ill-signed", lambda b: ours(b, {SIGNATURE: signature(as_text(b.facts))})
    ),
    "two entries with signatures": Row(
        "ill-signed",
        lambda b: ours(b, last=[member(SIGNATURE.encode(), signature(b"x"))] * 2),
    ),
    # Changed by other programs, as FORMAT.md allows
    "an entry added by zip": Row("changed", by_info_zip("FILE", "docs/new.txt")),
    "an entry added by zip, stored": Row("changed", by_info_zip("-0", "FILE", "docs/new.txt")),
    "a folder added by zip": Row("changed", by_info_zip("-r", "FILE", "docs")),
    "an entry replaced by zip": Row("changed", by_info_zip("FILE", "notes.txt")),
    ".args replaced by zip": Row("changed", by_info_zip("FILE", ".args")),
    "an entry removed by zip": Row("changed", by_info_zip("-d", "FILE", "notes.txt")),
    "weights added by zip": Row("changed", by_info_zip("-0", "FILE", "second.gguf")),
    "a Windows program, an entry added by zip": Row(
        "changed", by_info_zip("FILE", "docs/new.txt", of="windows")
    ),
    "an entry added by zipfile": Row(
        "changed", by_zipfile(lambda file, _: file.writestr("new.txt", "new"))
    ),
    "a page of one's own beside the GUI": Row(
        "changed", by_zipfile(lambda file, _: file.writestr("ui/mine.html", "<html>mine"))
    ),
    "a notice added by zipfile": Row(
        "changed", by_zipfile(lambda file, _: file.writestr("LICENSES/model.txt", "mine"))
    ),
    "a data descriptor": Row("changed", by_zipfile(streamed)),
    "weights off their alignment": Row("changed", off_alignment),
    "an entry that is gone": Row("changed", lambda b: ours(b, forget=["notes.txt"])),
    "bytes behind the end": Row("changed", lambda b: ours(b, behind=b"behind")),
    # Contents that are not what they were
    "weights with a flipped byte": Row("corrupt", lambda b: flipped(b, MODEL)),
    "an entry with a flipped byte": Row("corrupt", lambda b: flipped(b, "notes.txt")),
    # Entries that no llamafile may hold
    "weights compressed by zip": Row("awkward", by_info_zip("-9", "FILE", "second.gguf")),
    "the same name twice": Row("awkward", lambda b: ours(b, last=[member(b"notes.txt", b"other")])),
    "a name with ..": Row("hostile", lambda b: ours(b, unlisted={"../up": b"x"})),
    "an absolute name": Row("hostile", lambda b: ours(b, unlisted={"/tmp/up": b"x"})),
    "a name with a backslash": Row("hostile", lambda b: ours(b, unlisted={"..\\up": b"x"})),
    "a symbolic link inside": Row("hostile", by_zipfile(symbolic_link)),
    "an encrypted entry": Row(
        "hostile", lambda b: ours(b, unlisted={"secret": b"x"}, change={"secret": {"flags": 1}})
    ),
    "a method that nobody knows": Row(
        "hostile", lambda b: ours(b, unlisted={"odd": b"x"}, change={"odd": {"method": 99}})
    ),
    # Engines that are damaged
    "a head of zeros": Row("engine", edited(at_offset(0, bytes(4096)))),
    "a runtime of zeros": Row("engine", edited(at_offset(BLOCK + 8192, bytes(BLOCK - 8192)))),
    # Made by a newer version
    "format 2": Row("newer", said(format=2)),
    "format 2 of another shape": Row("newer", texts(b'{"format": 2, "parts": [], "name": 5}')),
    "format 2, and 1.2 MB": Row(
        "newer", lambda b: ours(b, long_names(340), facts=lambda f: {**f, "format": 2})
    ),
    "format 1000000": Row("newer", said(format=1_000_000)),
    # Manifests that can't be understood
    "a manifest that is no JSON": Row("damaged", texts(b"oops")),
    "an empty manifest": Row("damaged", texts(b"")),
    "a manifest that is cut": Row("damaged", lambda b: ours(b, text=lambda t: t[:-30])),
    "a manifest that is a list": Row("damaged", texts(b"[]")),
    "a manifest that is a word": Row("damaged", texts(b'"llamafile"')),
    "a manifest that is null": Row("damaged", texts(b"null")),
    "a manifest of 100,000 brackets": Row("damaged", texts(b"[" * 100_000)),
    "a manifest in UTF-16": Row(
        "damaged", lambda b: ours(b, text=lambda t: t.decode().encode("utf-16"))
    ),
    "a manifest in Latin-1": Row(
        "damaged",
        lambda b: ours(b, text=lambda t: t.replace(b'"name": "', b'"name": "\xe4')),
    ),
    "a manifest with a byte order mark": Row(
        "damaged", lambda b: ours(b, text=lambda t: b"\xef\xbb\xbf" + t)
    ),
    "a manifest with a key twice": Row(
        "damaged", lambda b: ours(b, text=lambda t: t.replace(b"{", b'{"name": "x",', 1))
    ),
    "format 0": Row("damaged", said(format=0)),
    "no format": Row("damaged", said(format=...)),
    "a format in quotes": Row("damaged", said(format="1")),
    "format 1.0": Row("damaged", said(format=1.0)),
    "format true": Row("damaged", said(format=True)),
    "a format of 5,000 digits": Row("damaged", texts(b'{"format": ' + b"1" * 5000 + b"}")),
    "entries that are a list": Row("damaged", said(entries=[])),
    "no entries": Row("damaged", said(entries=...)),
    "an entry that is a number": Row("damaged", entry_said(1)),
    "an entry of negative size": Row("damaged", entry_said({"size": -1, "sha256": "0" * 64})),
    "an entry with a digest that is none": Row("damaged", entry_said({"size": 1, "sha256": "x"})),
    "runtimes that are none": Row("damaged", said(runtimes="none")),
    "a runtime without an offset": Row("damaged", runtime_said(offset=...)),
    "a runtime for ../../evil": Row("damaged", runtime_said(target="../../evil")),
    "a runtime with a size of 2^63": Row("damaged", runtime_said(size=1 << 63)),
    "no head": Row("damaged", said(head=...)),
    "a name that is a number": Row("damaged", said(name=5)),
    "two manifests": Row(
        "damaged", lambda b: ours(b, last=[member(MANIFEST.encode(), as_text(LOUD))])
    ),
    "a manifest of 65 MiB": Row(
        "damaged",
        lambda b: ours(b, text=lambda t: t + b" " * (65 << 20), manifest={"method": 8}),
        slow=True,
    ),
    "a manifest with a flipped byte": Row("unreadable", lambda b: flipped(b, MANIFEST)),
    "a manifest that is encrypted": Row("unreadable", lambda b: ours(b, manifest={"flags": 1})),
    "a manifest that is longer than it says": Row(
        "unreadable", lambda b: ours(b, manifest={"method": 8, "size": 10})
    ),
    ".args with a flipped byte": Row("corrupt", lambda b: flipped(b, ".args")),
    ".args of 1 MiB and a byte": Row(
        "overlong", lambda b: ours(b, {".args": b"#".ljust((1 << 20) + 1, b"x")})
    ),
    ".args of 2 MB": Row("overlong", lambda b: ours(b, {".args": b"-c 64 " * 333_334})),
    ".args of 2 MB, deflated": Row(
        "overlong",
        lambda b: ours(b, {".args": b"-c 64 " * 333_334}, change={".args": {"method": 8}}),
    ),
    # Upgrades that were killed, and what looks like it
    "an upgrade that had begun": Row("interrupted", upgrade_begun),
    "an upgrade that was nearly done": Row("interrupted", upgrade_nearly_done),
    "bytes in front": Row("displaced", edited(lambda raw: b"#!/bin/sh\nexit 3\n" + raw)),
    "the first block is gone": Row("displaced", edited(lambda raw: raw[BLOCK:])),
    "a locator that points nowhere": Row(
        "misled", lambda b: ours(b, zip64={}, locator=MAX_64, **WIDE)
    ),
    # Of others
    "Mozilla's": Row("foreign", mozillas()),
    "Mozilla's, with more in it": Row("mixed", mozillas(**{"notes.txt": b"notes"})),
    "a zip of weights": Row("foreign", lambda b: archive(member(b"w.gguf", b.gguf))),
    "a zip of weights and more": Row(
        "mixed",
        lambda b: archive(member(b"w.gguf", b.gguf), member(b"docs/a.txt", b"a", method=8)),
    ),
    "the manifest removed by zip": Row("mixed", by_info_zip("-d", "FILE", MANIFEST)),
    "a plain zip": Row("zip", lambda b: archive(member(b"a.txt", b"a"), member(b"b", b"b" * 99))),
    "an empty zip": Row("zip", lambda b: archive()),
    "a zip with a comment": Row("zip", lambda b: archive(member(b"a"), comment=b"words")),
    "a wheel": Row(
        "zip",
        lambda b: archive(
            member(b"p/__init__.py", b"x = 1\n" * 20, method=8), member(b"p.dist-info/RECORD", b"")
        ),
    ),
    "a bare GGUF": Row("gguf", lambda b: b.gguf),
    "a GGUF on its way": Row("gguf", conversion_begun),
    # Broken
    "nothing in it": Row("broken"),
    "a text": Row("broken", lambda b: b"Dear reader,\n"),
    "the last byte is gone": Row("broken", edited(lambda raw: raw[:-1])),
    "the end record is gone": Row("broken", edited(lambda raw: raw[:-22])),
    "half of it is gone": Row("broken", edited(lambda raw: raw[: len(raw) // 2])),
    "the end record alone": Row("broken", edited(lambda raw: raw[-22:])),
    "a central header that is none": Row(
        "broken", lambda b: ours(b, change={"notes.txt": {"sign": b"PK\0\0"}})
    ),
    "a local header that is none": Row(
        "broken", lambda b: ours(b, change={"notes.txt": {"local_sign": b"PK\0\0"}})
    ),
    "an offset past the end": Row("broken", lambda b: ours(b, change={MODEL: {"offset": 1 << 30}})),
    "an offset of 2^64 - 1": Row(
        "broken",
        lambda b: ours(b, change={MODEL: {"offset": MAX_64, "extra": extra64(MAX_64)}}),
    ),
    "an offset of 2^63": Row(
        "broken",
        lambda b: ours(b, change={MODEL: {"offset": MAX_64, "extra": extra64(1 << 63)}}),
    ),
    "a size of 2^64 - 1": Row("broken", lambda b: ours(b, change={MODEL: huge(MAX_64)})),
    "a size that wraps around": Row(
        "broken", lambda b: ours(b, change={MODEL: huge(MAX_64 - len(b.front) - 35)})
    ),
    "stored, with two sizes": Row("broken", lambda b: ours(b, change={"notes.txt": {"size": 5}})),
    "zip64 sizes that are missing": Row(
        "broken", lambda b: ours(b, change={"notes.txt": {"size": MAX_32, "stored": MAX_32}})
    ),
    "a name that is too long": Row("broken", lambda b: ours(b, manifest={"name_size": MAX_16})),
    "no name": Row("broken", lambda b: ours(b, unlisted={"": b"x"})),
    "a NUL in a name": Row("broken", lambda b: ours(b, unlisted={"a\0.gguf": b"x"})),
    "overlapping entries": Row(
        "broken", lambda b: ours(b, last=[member(b"w.gguf", b.gguf, data=b"", offset=start(b))])
    ),
    "more entries than there are": Row("broken", lambda b: ours(b, count=len(b.contents) + 2)),
    "fewer entries than there are": Row("broken", lambda b: ours(b, count=len(b.contents))),
    "2^64 - 1 entries": Row("broken", lambda b: ours(b, zip64={"count": MAX_64}, **WIDE)),
    "a directory of 2^64 - 1 bytes": Row(
        "broken", lambda b: ours(b, zip64={"size": MAX_64}, **WIDE)
    ),
    "a directory at 2^63": Row("broken", lambda b: ours(b, zip64={"offset": 1 << 63}, **WIDE)),
    "a directory past the end": Row("broken", lambda b: ours(b, offset=1 << 30)),
    "a directory larger than the file": Row("broken", lambda b: ours(b, size=1 << 30)),
    "on another disk": Row("broken", lambda b: ours(b, disk=1)),
    # No files
    "a folder": Row("nothing", put=folder_instead),
    "a pipe": Row("nothing", put=pipe_instead),
    "not there": Row("nothing", put=Path.unlink),
}


def huge(size: int) -> dict[str, Any]:
    return {"size": MAX_64, "stored": MAX_64, "extra": extra64(size, size)}


def start(bench: Bench) -> int:
    return len(bench.front)


def flipped(bench: Bench, name: str) -> bytes:
    """A byte in the midst of an entry's data is another one than its CRC-32 is of."""
    raw = bytearray(ours(bench))
    path = bench.folder / "flipped"
    path.write_bytes(raw)
    with zipfile.ZipFile(path) as file:
        info = file.getinfo(name)
    raw[info.header_offset + 30 + len(name) + info.file_size // 2] ^= 0xFF
    return bytes(raw)


# ------------------------------------------------------------------ what is in them


def raw_entries(path: Path) -> list[tuple[str, int, bytes]]:
    """Name, method and data of every entry as they stand in the file, by zipfile's directory."""
    found = []
    raw = path.read_bytes()
    with zipfile.ZipFile(path) as file:
        for info in file.infolist():
            lengths = struct.unpack_from("<2H", raw, info.header_offset + 26)
            at = info.header_offset + 30 + sum(lengths)
            data = raw[at : at + info.compress_size]
            found.append((info.orig_filename, info.compress_type, data))
    return found


def numberless(text: str) -> set[str]:
    """Lines without offsets and digests, which differ from file to file."""
    return {re.sub(r"\b[0-9a-f]{8,}\b|\d+", "N", line) for line in text.splitlines()}


# ---------------------------------------------------------------- what all refusals share


def refused(command: Command, *words: str) -> Result:
    """Run what must fail: in one line, and nothing is written, here or beside it."""
    before = snapshot(Path().absolute().parent)
    done = command(*words)
    assert (done.code, done.out) == (1, ""), done
    check_error(done.err)
    assert snapshot(Path().absolute().parent) == before
    return done


def check_error(text: str) -> None:
    """That it is one line, and a hint at most."""
    first, *rest = text.splitlines()
    assert first.startswith("error: ")
    assert all(line.startswith("hint: ") for line in rest), text
    assert len(rest) <= 1
    assert "bug in pyllamafile" not in text
