"""What goes where in a llamafile, decided before a byte is written. Pure.

The result follows launcher/FORMAT.md; the order of `_entries` is the order in the file.
"""

from __future__ import annotations

import hashlib
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pyllamafile import launcher, passages, zipalign
from pyllamafile.copying import Source
from pyllamafile.errors import RefusedError
from pyllamafile.launcher import HeadProgram
from pyllamafile.llamafile import (
    ARGS,
    DOCUMENTS,
    EMBEDDER,
    FORMAT,
    LICENSES,
    PERSONA,
    PROOF,
    READ,
    RUNTIME,
    SHADERS,
    STATE,
    WEIGHTS,
    manifest_entry,
    second_name,
)
from pyllamafile.runtimes import Runtime
from pyllamafile.zipalign import Entry, Layout, Member

TENSORS = 32
"""What tensors in a GGUF are aligned to, in bytes."""

_ALIGNED = {
    EMBEDDER: launcher.BLOCK,
    STATE: launcher.BLOCK,
    PROOF: TENSORS,
    DOCUMENTS: passages.ALIGNMENT,
}

# What the manifest says of a runtime beside where it is and what it has for GPUs.
_FACTS = tuple(key for key in RUNTIME if key not in ("offset", "gpu?"))


@dataclass(frozen=True)
class File:
    """A file to put in as it is.

    Attributes:
        path: Where it is.
        name: What the entry is called.
        size: Its length in bytes.
    """

    path: Path
    name: str
    size: int


@dataclass(frozen=True)
class Engine:
    """What a llamafile runs with: everything in it but weights and what people add to them.

    Attributes:
        head: The first bytes: the launch script, or a program that may hold it.
        programs: The runtimes behind it and their offsets.
        entries: Notices, web GUI, what uses GPUs, and the model of `--prove`.
        facts: Everything in the manifest but its ``entries``.
    """

    head: bytes
    programs: tuple[launcher.Program, ...]
    entries: tuple[Entry, ...]
    facts: Mapping[str, Any]

    @property
    def end(self) -> int:
        """Where head and runtimes end, in bytes."""
        if not self.programs:
            return len(self.head)
        last = self.programs[-1]
        return last.offset + last.runtime.packed_size

    def pieces(self) -> Iterator[tuple[int, bytes]]:
        """Head and programs, one after the other: where each belongs, and its bytes.

        Raises:
            PyllamafileError: A runtime can't be read, or isn't what it was.
        """
        yield 0, self.head
        for program in self.programs:
            yield program.offset, program.runtime.packed()


@dataclass(frozen=True)
class Plan:
    """A llamafile with every offset decided.

    Attributes:
        engine: What stands in front of the zip, and what of it is in there.
        zip: What stands behind that.
    """

    engine: Engine
    zip: Layout

    @property
    def size(self) -> int:
        """Length of the whole file in bytes."""
        return self.zip.size


def engine(
    *,
    name: str,
    version: str,
    runtimes: Sequence[Runtime],
    head_program: HeadProgram | None = None,
    gui: Sequence[Entry] = (),
    gpu: bool = True,
    shaders: Entry | None = None,
    proof: Entry | None = None,
    state: bool = True,
) -> Engine:
    """Decide what a llamafile runs with.

    Args:
        name: What the model is called.
        version: The version of pyllamafile that builds the file.
        runtimes: The native programs; the launch script picks among them.
        head_program: The program that the file itself is, one of those.
        gui: The web GUI's entries, its notices among them.
        gpu: Whether it is to have what uses GPUs: the second programs that the runtimes bring.
        shaders: What these take beside themselves, if one of them does.
        proof: The model of `--prove`, or None to leave it out.
        state: Whether a file that has read something is to have a state.

    Raises:
        PyllamafileError: A program can't be the head, or the script has no room for so many.
    """
    behind = [
        runtime for runtime in runtimes if not head_program or runtime != head_program.runtime
    ]
    programs = _programs(behind, launcher.head_size(head_program))
    head = launcher.head(programs, head_program)
    facts: dict[str, Any] = {
        "format": FORMAT,
        "name": name,
        "pyllamafile": version,
        "proof": proof is not None,
        **({} if state else {"state": False}),
        **({} if gpu else {"gpu": False}),
        "head": {"size": len(head), "sha256": hashlib.sha256(head).hexdigest()},
        "runtimes": [
            *([_facts(_as_it_stands(head_program.runtime, head))] if head_program else []),
            *(_facts(program) for program in programs),
        ],
    }
    inside = [head_program.runtime, *behind] if head_program else behind
    seconds = {runtime.target: runtime.gpu for runtime in inside if runtime.gpu}
    entries = [
        *_licenses([*inside, *seconds.values()]),
        *gui,
        *([shaders] if shaders and seconds else []),
        *(Entry(second_name(target), second.packed()) for target, second in seconds.items()),
        *([proof] if proof else []),
    ]
    return Engine(head, programs, tuple(entries), facts)


def whole(
    *,
    name: str,
    version: str,
    models: Sequence[File],
    runtimes: Sequence[Runtime],
    head_program: HeadProgram | None = None,
    extras: Sequence[File] = (),
    args: str | None = None,
    read: bytes | None = None,
    persona: bytes | None = None,
    documents: bytes | None = None,
    gui: Sequence[Entry] = (),
    gpu: bool = True,
    shaders: Entry | None = None,
    proof: Entry | None = None,
    state: bool = True,
) -> Plan:
    """Decide what a llamafile consists of and where each part goes.

    Args:
        name: What the model is called.
        version: The version of pyllamafile that builds the file.
        models: The weights, in order: files, or entries of other archives.
        runtimes: The native programs; the launch script picks among them.
        head_program: The program that the file itself is, one of those.
        extras: More files.
        args: The text of `.args`.
        read: The text that the file has read.
        persona: The text of `persona.json`.
        documents: The passages that the file can look up.
        gui: The web GUI's entries, its notices among them.
        gpu: Whether it is to have what uses GPUs, as in `engine`.
        shaders: What that takes, as in `engine`.
        proof: The model of `--prove`, or None to leave it out.
        state: Whether a file that has read something is to have a state.

    Raises:
        PyllamafileError: Two entries of one name, a name that isn't portable, or a program that
            can't be the head.
    """
    runs = engine(
        name=name,
        version=version,
        runtimes=runtimes,
        head_program=head_program,
        gui=gui,
        gpu=gpu,
        shaders=shaders,
        proof=proof,
        state=state,
    )
    entries = [
        *(_entry(file) for file in (*models, *extras)),
        *([Entry(ARGS, args.encode())] if args is not None else []),
        *([Entry(READ, read)] if read is not None else []),
        *([Entry(PERSONA, persona)] if persona is not None else []),
        *([_documents(documents)] if documents is not None else []),
    ]
    return laid_out(runs, entries)


def laid_out(engine: Engine, entries: Sequence[Entry]) -> Plan:
    """An engine and what it runs, in this order: weights, more files, `.args`."""
    entries = [*entries, *engine.entries]
    entries.append(manifest_entry(engine.facts, {}, entries))
    return Plan(engine, zipalign.layout(entries, engine.end))


def entry(path: Path, member: Member) -> Entry:
    """A member of an archive for another one, as it is: its bytes are copied, or shared.

    Raises:
        RefusedError: It is encrypted, compressed in a way that no llamafile may hold, or a link.
    """
    if member.method not in (zipalign.STORED, zipalign.DEFLATED) or member.flags & 1:
        raise RefusedError(
            f"{path}: {member.name} is encrypted or compressed in another way", path=path
        )
    if stat.S_ISLNK(member.mode):
        raise RefusedError(f"{path}: {member.name} is a symbolic link", path=path)
    return Entry(
        member.name,
        Source(path, offset=member.data_offset, size=member.stored_size),
        method=member.method,
        size=member.size,
        crc=member.crc,
        align=alignment(member.name),
    )


def proof_entry(model: bytes) -> Entry:
    """The entry of the model of `--prove`."""
    return Entry(PROOF, model, align=alignment(PROOF))


def shaders_entry(path: Path) -> Entry:
    """The entry of the shaders for GPUs, packed as they already are."""
    return _entry(File(path, SHADERS, path.stat().st_size))


def gui_entries(path: Path) -> list[Entry]:
    """The entries of the web GUI, named and compressed as they already are in its zip."""
    return [entry(path, member) for member in zipalign.read(path).members]


def _licenses(runtimes: Sequence[Runtime]) -> list[Entry]:
    """The notices of what is linked into the runtimes: once for all, they share their sources."""
    notices = {name: text for runtime in runtimes for name, text in runtime.licenses.items()}
    return [Entry(f"{LICENSES}{name}.txt", text.encode()) for name, text in notices.items()]


def _programs(runtimes: Sequence[Runtime], start: int) -> tuple[launcher.Program, ...]:
    programs = []
    offset = -(-start // launcher.BLOCK) * launcher.BLOCK
    for runtime in runtimes:
        programs.append(launcher.Program(runtime, offset))
        offset += runtime.packed_size
    return tuple(programs)


def _as_it_stands(runtime: Runtime, program: bytes) -> launcher.Program:
    """The program that is the head: it begins the file and is not packed."""
    size, digest = len(program), hashlib.sha256(program).hexdigest()
    stands = replace(runtime, size=size, sha256=digest, packed_size=size, packed_sha256=digest)
    return launcher.Program(stands, 0)


def _facts(program: launcher.Program) -> dict[str, Any]:
    facts = {key: getattr(program.runtime, key) for key in _FACTS}
    second = program.runtime.gpu
    gpu = {"gpu": {"size": second.size, "sha256": second.sha256}} if second else {}
    return {**facts, **gpu, "offset": program.offset}


def _documents(content: bytes) -> Entry:
    return Entry(DOCUMENTS, content, align=alignment(DOCUMENTS))


def _entry(file: File) -> Entry:
    return Entry(file.name, Source(file.path, size=file.size), align=alignment(file.name))


def alignment(name: str) -> int:
    """What the data of an entry of this name are aligned to: weights are mapped, states can be."""
    # The runtime maps whole files, so for a small model it is enough that tensors are aligned.
    return launcher.BLOCK if name.endswith(WEIGHTS) else _ALIGNED.get(name, 1)
