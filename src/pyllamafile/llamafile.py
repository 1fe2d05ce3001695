"""The one reading of a finished file: what is in it, whose it is, and whether it is whole.

Everything that asks a finished file something asks it here, so that no two parts of the package
can disagree about it. (`ops.verify` is the second opinion, and shares nothing with this.) The
manifest's format is in launcher/FORMAT.md, section 6.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Final, Literal

from pyllamafile import arguments, zipalign
from pyllamafile import signature as signatures
from pyllamafile.copying import Digest
from pyllamafile.errors import DamagedError, PyllamafileError, RefusedError
from pyllamafile.progress import Step
from pyllamafile.signature import Signature
from pyllamafile.zipalign import Archive, Entry, Late, Member

MANIFEST: Final = "llamafile.json"
SIGNATURE: Final = f"{MANIFEST}.sig"
"""Whose file it is: of the manifest, which therefore doesn't list it."""

ARGS: Final = ".args"
PERSONA: Final = "persona.json"
READ: Final = ".read"
DOCUMENTS: Final = ".documents"
EMBEDDER: Final = "embedder.model"
"""A model that makes vectors of questions about the documents: a GGUF, and none of those that the
file is for."""
STATE: Final = ".state"
"""What the model remembers of what the file has read."""

GPU: Final = "gpu/"
"""What the entries begin with by which GPUs are used: `SHADERS`, and programs."""
SHADERS: Final = f"{GPU}shaders.zst"

GUI: Final = "ui/"
LICENSES: Final = "LICENSES/"
GUI_NOTICES: Final = f"{LICENSES}web-gui.txt"
PROOF: Final = "proof.model"
"""A small model, by which a file proves itself: a GGUF, and none of those that it is for."""

WEIGHTS: Final = ".gguf"
"""How the names of entries end that are weights."""

FORMAT: Final = 1
"""The format of the manifest that this version writes and reads."""

MOST_MANIFEST: Final = 64 << 20
"""Bytes that a manifest may have: some hundred thousand entries."""

MOST_ARGS: Final = arguments.MOST
"""Bytes that `.args` may have: a runtime reads no more."""

Maker = Literal["ours", "newer", "damaged", "foreign", "none"]
"""Whose a file is: ``ours``; ours of a ``newer`` format; ours, but its manifest is ``damaged``;
a ``foreign`` llamafile, which has weights and no manifest; or ``none``, just a zip."""

_UNKNOWN = "0" * 64  # as long as every SHA-256 in hex, which is all that a size depends on


@dataclass(frozen=True)
class Llamafile:
    """A finished file, or any other zip, as it was when it was read.

    Attributes:
        path: Where it is.
        archive: Its zip.
        maker: Whose it is.
        manifest: What its manifest says; nothing unless it is ours.
        problem: What is wrong with the manifest, if anything is.
    """

    path: Path
    archive: Archive
    maker: Maker
    manifest: Mapping[str, Any] = field(default_factory=dict)
    problem: str | None = None

    @property
    def ours(self) -> bool:
        """Whether this version made it, or one whose files it understands."""
        return self.maker == "ours"

    @property
    def interrupted(self) -> bool:
        """Whether an upgrade was killed before the old engine was taken out from the front."""
        return self.ours and self.archive.origin != 0

    @property
    def name(self) -> str | None:
        """What the model is called."""
        return self.manifest.get("name")

    @property
    def built_by(self) -> str | None:
        """The version of pyllamafile that built it."""
        return self.manifest.get("pyllamafile")

    @property
    def runtimes(self) -> Sequence[Mapping[str, Any]]:
        """What the manifest says of each runtime."""
        runtimes: Sequence[Mapping[str, Any]] = self.manifest.get("runtimes", ())
        return runtimes

    @cached_property
    def weights(self) -> tuple[Member, ...]:
        """The members that are weights, in file order."""
        return tuple(m for m in self.archive.members if m.name.endswith(WEIGHTS))

    @cached_property
    def members(self) -> Mapping[str, Member]:
        """The members by name."""
        return {member.name: member for member in self.archive.members}

    @property
    def has_gui(self) -> bool:
        """Whether the web GUI was put in. Files under ``ui/`` without its notices are people's."""
        return GUI_NOTICES in self.members

    @property
    def gpus(self) -> tuple[str, ...]:
        """The targets that have a second program, which can use a GPU."""
        return tuple(runtime["target"] for runtime in self.runtimes if "gpu" in runtime)

    @property
    def of_gpus(self) -> frozenset[str]:
        """What the entries are called by which these use GPUs."""
        return frozenset({SHADERS, *map(second_name, self.gpus)} if self.gpus else ())

    @property
    def wants_gpu(self) -> bool:
        """Whether another engine brings such programs: unless the file was built without them."""
        return self.manifest.get("gpu") is not False

    @property
    def has_proof(self) -> bool:
        """Whether the model of `--prove` was put in. Elsewhere an entry of its name is people's."""
        return self.manifest.get("proof") is True

    @property
    def wants_proof(self) -> bool:
        """Whether another engine brings that model: unless the file was built without it."""
        return self.manifest.get("proof") is not False

    @property
    def wants_state(self) -> bool:
        """Whether it is to have a state: it has read something, and was not built without one."""
        return READ in self.members and self.manifest.get("state") is not False

    def is_engine(self, name: str) -> bool:
        """Whether an entry of this name belongs to the engine, so that an upgrade replaces it."""
        of_gui = self.has_gui and name.startswith(GUI) and name in self.digests
        of_proof = self.has_proof and name == PROOF
        of_gpus = name in self.of_gpus and name in self.digests
        return of_gui or of_proof or of_gpus or name in (MANIFEST, SIGNATURE, GUI_NOTICES, STATE)

    @cached_property
    def digests(self) -> Mapping[str, Digest]:
        """Of the members that are as the manifest lists them, what it lists."""
        listed = self.manifest.get("entries", {})
        return {
            name: Digest(member.size, member.crc, listed[name]["sha256"])
            for name, member in self.members.items()
            if name in listed and listed[name]["size"] == member.size
        }

    def content(self, name: str, limit: int = MOST_ARGS) -> bytes:
        """The content of a member that has to fit into memory.

        Raises:
            PyllamafileError: It has more than `limit` bytes, or is damaged.
        """
        return zipalign.content(self.path, self.members[name], limit)

    def args(self) -> str | None:
        """The text of `.args`, or None if there is none; what is not UTF-8 is shown as U+FFFD.

        Raises:
            PyllamafileError: It is too large or damaged. The hint says how to be rid of it.
        """
        if ARGS not in self.members:
            return None
        try:
            return self.content(ARGS).decode(errors="replace")
        except PyllamafileError as error:
            if self.ours:
                error.hint = f"pyllamafile remove {self.path} {ARGS}, or add a file as NEW={ARGS}"
            raise

    def signature(self) -> Signature | None:
        """What the signature says of itself, or None if there is none. It may not hold.

        Raises:
            DamagedError: It says nothing that can be understood.
        """
        if not self.signature_entry:
            return None
        try:
            text = self.content(SIGNATURE, signatures.MOST)
        except RefusedError as error:
            raise DamagedError(
                f"{self.path}: its signature is damaged: {self.members[SIGNATURE].size:,} bytes",
                path=self.path,
            ) from error
        return signatures.parsed(text, self.path)

    @property
    def signature_entry(self) -> Collection[str]:
        """The names of entries that go when something in it changes: that of its signature."""
        return {SIGNATURE} & self.members.keys() if self.maker not in ("foreign", "none") else ()

    def unsigned(self) -> Sequence[Step]:
        """What to say once it was changed: that its signature is gone, if there is one."""
        if not self.signature_entry:
            return ()
        try:
            key = f" by {self.signature()}"
        except DamagedError:
            key = ""
        what = f"{self.path}: is no longer signed{key}: `pyllamafile sign` signs it again"
        return (Step("notice", what),)

    def stale(self, changed: Collection[str]) -> Collection[str]:
        """The names of entries that are no longer right once others were changed: of a state.

        Args:
            changed: Names of what is added, replaced or removed.
        """
        matters = any(name in (ARGS, READ) or name.endswith(WEIGHTS) for name in changed)
        there = {STATE} & self.members.keys() if self.ours else set()
        return there if matters and STATE not in changed else ()

    def lost_state(self, gone: Collection[str]) -> Sequence[Step]:
        """What to say once entries are gone: that its state is, if it is to have one."""
        if STATE not in gone or READ in gone:
            return ()
        how = f"`pyllamafile upgrade {self.path}` evaluates anew what it has read"
        return (Step("notice", f"{self.path}: has no state any more: {how}"),)

    def old_look(self, changed: Collection[str]) -> Sequence[Step]:
        """What to say once entries were changed: that Windows shows what the persona was.

        Args:
            changed: Names of what was added, replaced or removed.
        """
        shown = any(r["offset"] == 0 and r["target"].startswith("windows-") for r in self.runtimes)
        if PERSONA not in changed or not shown:
            return ()
        how = f"`pyllamafile upgrade {self.path}` makes it show the new ones"
        return (Step("notice", f"{self.path}: Windows shows the name and icon of before: {how}"),)

    def check_known(self) -> None:
        """Refuse a file of ours that this version must not change (FORMAT.md, section 6).

        Raises:
            PyllamafileError: It is of a newer format, or its manifest is damaged.
        """
        if self.maker == "newer":
            raise RefusedError(
                f"{self.path}: {self.problem}",
                hint="pip install --upgrade pyllamafile brings one that knows it",
                path=self.path,
            )
        if self.maker == "damaged":
            raise DamagedError(
                f"{self.path}: its manifest can't be understood: {self.problem}",
                hint="get the file again; `pyllamafile extract` takes out what is in it",
                path=self.path,
            )

    def check_whole(self) -> None:
        """Refuse a file whose upgrade was interrupted.

        Raises:
            RefusedError: It was.
        """
        if self.interrupted:
            raise RefusedError(
                f"{self.path}: an upgrade of it was interrupted",
                hint=f"pyllamafile upgrade {self.path} ends it",
                path=self.path,
            )

    def check_ours(self) -> None:
        """Refuse what is not a whole file of ours.

        Raises:
            PyllamafileError: It isn't.
        """
        self.check_known()
        self.check_whole()
        if not self.ours:
            raise RefusedError(
                f"{self.path}: was not built by pyllamafile",
                hint="`pyllamafile upgrade` makes it one of ours, `zipalign` adds to any zip",
                path=self.path,
            )

    def check_room(self, entries: Iterable[Entry]) -> None:
        """Refuse entries that a file of ours can't hold.

        Raises:
            RefusedError: A new `.args` is longer than what a runtime reads, or it is a signature.
        """
        for entry in entries:
            if self.ours and entry.name == SIGNATURE:
                raise RefusedError(
                    f"{self.path}: cannot add {entry.name!r}: `pyllamafile sign` writes it",
                    path=self.path,
                )
            if self.ours and entry.name == ARGS:
                check_args(self.path, entry.full_size)

    def updated_manifest(self, entries: Sequence[Entry], removed: Collection[str] = ()) -> Entry:
        """The manifest of this file once entries were added, replaced, and removed.

        Args:
            entries: What is added or replaced.
            removed: Names of what is taken out.
        """
        gone = {MANIFEST, SIGNATURE, *removed, *(entry.name for entry in entries)}
        facts = {key: value for key, value in self.manifest.items() if key != "entries"}
        known = {
            name: Digest(value["size"], 0, value["sha256"])
            for name, value in self.manifest["entries"].items()
            if name not in gone
        }
        return manifest_entry(facts, known, entries)


def second_name(target: str) -> str:
    """What the entry of a target's second program is called, which can use a GPU."""
    return f"{GPU}{target}.zst"


def check_args(path: Path, size: int) -> None:
    """Refuse an `.args` of more bytes than a runtime reads.

    Args:
        path: The file that it is for, or from.
        size: How many it has.

    Raises:
        RefusedError: They are too many.
    """
    if size > MOST_ARGS:
        raise RefusedError(
            f"{path}: {ARGS} can't have {size:,} bytes: {MOST_ARGS:,} is the most for it",
            path=path,
        )


def read(path: Path) -> Llamafile:
    """Read a finished file, or any other zip. Nothing in it is trusted.

    Raises:
        PyllamafileError: It can't be read, or it is no zip.
    """
    return of_archive(path, zipalign.read(path))


def of_archive(path: Path, archive: Archive) -> Llamafile:
    """The same of a file whose zip was read already."""
    manifests = [member for member in archive.members if member.name == MANIFEST]
    if not manifests:
        foreign = any(m.name.endswith(WEIGHTS) for m in archive.members)
        return Llamafile(path, archive, "foreign" if foreign else "none")
    if len(manifests) > 1:
        return Llamafile(path, archive, "damaged", problem=f"there are {len(manifests)} of it")
    try:
        text = zipalign.content(path, manifests[0], MOST_MANIFEST).decode()
        facts = json.loads(text, object_pairs_hook=_each_once)
        number = facts["format"] if isinstance(facts, dict) else None
    except PyllamafileError as error:
        what = error.message.removeprefix(f"{path}: ")
        return Llamafile(path, archive, "damaged", problem=what)
    except (ValueError, RecursionError, KeyError) as error:
        what = "it doesn't say its format" if isinstance(error, KeyError) else "it is not JSON"
        return Llamafile(path, archive, "damaged", problem=what)
    if type(number) is int and number > FORMAT:
        what = f"its manifest is of format {number}, and this version knows {FORMAT}"
        return Llamafile(path, archive, "newer", problem=what)
    if type(number) is not int or number != FORMAT:
        what = f"{number!r} is no format that there ever was"
        return Llamafile(path, archive, "damaged", problem=what)
    if problem := next(misfits(facts, _SHAPE, "it"), None):
        return Llamafile(path, archive, "damaged", problem=problem)
    return Llamafile(path, archive, "ours", facts)


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise ValueError("a key is there twice")
    return made


def _is_size(value: object) -> bool:
    return type(value) is int and 0 <= value < 1 << 63


def _is_sha256(value: object) -> bool:
    return isinstance(value, str) and len(value) == 64 and set(value) <= set("0123456789abcdef")


def is_text(value: object) -> bool:
    """Whether it is text, as a shape of `misfits`."""
    return isinstance(value, str)


def _is_target(value: object) -> bool:
    """It becomes the name of a file, so nothing else will do."""
    return isinstance(value, str) and bool(re.fullmatch("[a-z0-9]+-[a-z0-9]+", value))


RUNTIME: Final = {
    "target": _is_target,
    "offset": _is_size,
    "packed_size": _is_size,
    "packed_sha256": _is_sha256,
    "size": _is_size,
    "sha256": _is_sha256,
    "llama_cpp": is_text,
    "levels": [is_text],
    "gpu?": {"size": _is_size, "sha256": _is_sha256},
}
"""What is said of a runtime, for `misfits`."""

# What a manifest looks like (FORMAT.md, section 6).
_SHAPE: Final = {
    "name": is_text,
    "pyllamafile": is_text,
    "head": {"size": _is_size, "sha256": _is_sha256},
    "runtimes": [RUNTIME],
    "entries": {"*": {"size": _is_size, "sha256": _is_sha256}},
}


def misfits(value: object, shape: object, at: str) -> Iterator[str]:
    """What of a value is not as a table has it, in words.

    Args:
        value: What was read from JSON.
        shape: A function that says whether a value is one; a dictionary of shapes, in which ``*``
            stands for every key, and a key that ends in ``?`` may be missing; or a list of one
            shape, which each item has.
        at: What to call the value.
    """
    if isinstance(shape, dict):
        if not isinstance(value, dict):
            yield f"{at} is not an object"
            return
        for name, inner in (dict.fromkeys(value, shape["*"]) if "*" in shape else shape).items():
            key = name if "*" in shape else name.removesuffix("?")
            if key in value:
                yield from misfits(value[key], inner, f"{at}[{key!r}]")
            elif key == name:
                yield f"{at} lacks {key!r}"
    elif isinstance(shape, list):
        if not isinstance(value, list):
            yield f"{at} is not an array"
            return
        for index, item in enumerate(value):
            yield from misfits(item, shape[0], f"{at}[{index}]")
    elif callable(shape) and not shape(value):
        yield f"{at} is not what it should be: {str(value)[:40]!r}"


def manifest_entry(
    facts: Mapping[str, Any], known: Mapping[str, Digest], entries: Iterable[Entry]
) -> Entry:
    """The manifest's entry: its size is known now, its digests once the others are written.

    Args:
        facts: Everything in it but ``entries``.
        known: Entries that are in the file already.
        entries: Entries that are written before it.
    """
    sizes = {entry.name: entry.full_size for entry in entries}

    def make(digests: Mapping[str, Digest]) -> bytes:
        listed = {
            name: {"size": digest.size, "sha256": digest.sha256}
            for name, digest in {**known, **{name: digests[name] for name in sizes}}.items()
        }
        text = json.dumps({**facts, "entries": listed}, indent=1, sort_keys=True)
        return text.encode() + b"\n"

    draft = make({name: Digest(size, 0, _UNKNOWN) for name, size in sizes.items()})
    return Entry(MANIFEST, Late(len(draft), make))
