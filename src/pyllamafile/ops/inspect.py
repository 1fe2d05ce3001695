"""What is in a llamafile, a GGUF, or any zip.

What reads a part of a file is imported when there is such a part. For a bare GGUF that is little.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pyllamafile.errors import AccessError, PyllamafileError, RefusedError
from pyllamafile.models import gguf
from pyllamafile.models.gguf import Kind, Weights
from pyllamafile.paths import path_of

if TYPE_CHECKING:
    from pyllamafile.llamafile import Llamafile, Maker
    from pyllamafile.passages import Documents
    from pyllamafile.persona import Persona
    from pyllamafile.state import State
    from pyllamafile.zipalign import Member

Said = TypeVar("Said")


@dataclass(frozen=True)
class ModelFacts:
    """What a GGUF's header says.

    Attributes:
        file: Its file or entry.
        kind: ``model``, ``adapter`` or ``projector``.
        architecture: For example ``phi3``.
        name: The model's name for people.
        parameters: Number of weights.
        quantization: For example ``Q4_K_M``.
        context_length: Tokens that it was trained for.
        tokenizer: For example ``llama``.
        vocabulary: Number of tokens.
        tensors: Number of tensors.
        chat_template: The Jinja template of its conversations.
        problem: Why the header can't be read, in which case the rest is empty.
    """

    file: str
    kind: Kind | None = None
    architecture: str | None = None
    name: str | None = None
    parameters: int | None = None
    quantization: str | None = None
    context_length: int | None = None
    tokenizer: str | None = None
    vocabulary: int | None = None
    tensors: int | None = None
    chat_template: str | None = None
    problem: str | None = None


@dataclass(frozen=True)
class EntryFacts:
    """An entry of the zip: offsets and sizes in bytes, from the start of the file.

    `alignment` is the largest power of two, up to 64 KiB, that divides the data's offset.
    """

    name: str
    offset: int
    size: int
    stored_size: int
    method: str
    alignment: int
    crc: str


@dataclass(frozen=True)
class Report:
    """What is in a file.

    Attributes:
        path: The file.
        size: Its length in bytes.
        maker: Whose it is, as `llamafile.Maker` has it.
        problem: Why its manifest can't be understood, if it can't.
        args_problem: Why `.args` can't be shown, if it can't.
        interrupted: Whether an upgrade of it was interrupted; another `upgrade` ends it.
        signed_with: The key that its signature says it is of: type and fingerprint. Whether that
            is true `verify --signed-by` says.
        signature_problem: Why its signature can't be understood, if it can't.
        name: What the model is called, if it is a llamafile of ours.
        built_by: The version of pyllamafile that built it.
        models: The GGUFs.
        runtimes: As in the manifest: target, offset, sizes, digests.
        gpus: The targets on which it can use a GPU, each with the bytes in this file of the second
            program that does.
        entries: Everything in the zip, in the order of the file.
        persona: Who it says it is; its system prompt is in `args`.
        persona_problem: Why that can't be shown, if it can't.
        read: Bytes of text that it has read.
        read_problem: Why that is nothing that it could have read, if it isn't.
        documents: What it can look things up in.
        documents_problem: Why that can't be shown, if it can't.
        state: What it remembers of what it has read.
        state_problem: Why that can't be shown, if it can't.
        args: The text of `.args`; what is not UTF-8 in it is shown as U+FFFD.
    """

    path: Path
    size: int
    maker: Maker
    problem: str | None = None
    args_problem: str | None = None
    interrupted: bool = False
    signed_with: str | None = None
    signature_problem: str | None = None
    name: str | None = None
    built_by: str | None = None
    models: tuple[ModelFacts, ...] = ()
    runtimes: tuple[dict[str, Any], ...] = ()
    gpus: Mapping[str, int] = field(default_factory=dict)
    entries: tuple[EntryFacts, ...] = ()
    persona: Persona | None = None
    persona_problem: str | None = None
    read: int | None = None
    read_problem: str | None = None
    documents: Documents | None = None
    documents_problem: str | None = None
    state: State | None = None
    state_problem: str | None = None
    args: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """The same as plain dictionaries and lists, ready for JSON."""
        plain = {**asdict(self), "path": str(self.path)}
        if self.persona and self.persona.icon:
            plain["persona"]["icon"] = f"{len(self.persona.icon)} bytes"
        return plain


def inspect(path: str | os.PathLike[str]) -> Report:
    """Look into a llamafile, a bare GGUF, or any zip.

    Raises:
        PyllamafileError: The file can't be read, or is none of these.
    """
    path = path_of(path)
    if _starts_with_gguf(path):
        models = (_facts(path.name, gguf.read(path)),)
        return Report(path, path.stat().st_size, "none", models=models)
    return _archive(path)


def _archive(path: Path) -> Report:
    from pyllamafile import llamafile
    from pyllamafile.llamafile import DOCUMENTS, PERSONA, READ, STATE

    found = llamafile.read(path)
    args, args_problem = _tried(found, found.args)
    signature, signature_problem = _tried(found, found.signature)
    who, persona_problem = _part(found, PERSONA, _persona)
    read, read_problem = _part(found, READ, _read)
    looked_up, documents_problem = _part(found, DOCUMENTS, _documents)
    state, state_problem = _part(found, STATE, _state)
    return Report(
        path=path,
        size=found.archive.size,
        maker=found.maker,
        problem=found.problem,
        args_problem=args_problem,
        interrupted=found.interrupted,
        signed_with=str(signature) if signature else None,
        signature_problem=signature_problem,
        name=found.name,
        built_by=found.built_by,
        models=tuple(_models(found)),
        runtimes=tuple(dict(runtime) for runtime in found.runtimes),
        gpus=_gpus(found),
        entries=tuple(_entry(member) for member in found.archive.members),
        persona=who,
        persona_problem=persona_problem,
        read=read,
        read_problem=read_problem,
        documents=looked_up,
        documents_problem=documents_problem,
        state=state,
        state_problem=state_problem,
        args=args,
    )


def _gpus(found: Llamafile) -> dict[str, int]:
    """What each second program takes in the file; nothing of one that is not there."""
    from pyllamafile.llamafile import second_name

    there = {target: found.members.get(second_name(target)) for target in found.gpus}
    return {target: member.stored_size for target, member in there.items() if member}


def _tried(found: Llamafile, read: Callable[[], Said]) -> tuple[Said | None, str | None]:
    """What is in a file, or why that can't be known."""
    try:
        return read(), None
    except PyllamafileError as error:
        return None, error.message.removeprefix(f"{found.path}: ")


def _part(
    found: Llamafile, name: str, read: Callable[[Llamafile, str], Said]
) -> tuple[Said | None, str | None]:
    """What an entry of ours says, or why that can't be known; nothing where there is none."""
    if not found.ours or name not in found.members:
        return None, None
    return _tried(found, lambda: read(found, name))


def _persona(found: Llamafile, name: str) -> Persona:
    from pyllamafile import persona

    return persona.said_in(found.content(name, persona.MOST))


def _read(found: Llamafile, name: str) -> int:
    from pyllamafile import documents

    text = found.content(name, documents.MOST)
    documents.check(text)
    return len(text)


def _documents(found: Llamafile, name: str) -> Documents:
    from pyllamafile import passages

    return passages.facts(found.content(name, passages.MOST_ENTRY))


def _state(found: Llamafile, name: str) -> State:
    from pyllamafile import zipalign
    from pyllamafile.state import State

    member = found.members[name]
    return State.of(next(zipalign.chunks(found.path, member), b""), member.size)


def _starts_with_gguf(path: Path) -> bool:
    try:
        if not path.is_file():
            return False  # llamafile.read says what it is
        with path.open("rb") as file:
            return file.read(4) == b"GGUF"
    except OSError as error:
        raise AccessError(f"{path}: {error.strerror}", path=path) from error


def _models(found: Llamafile) -> Iterator[ModelFacts]:
    from pyllamafile.zipalign import STORED

    for member in found.weights:
        try:
            if member.method != STORED:
                raise RefusedError("compressed, so it can't be used where it is")
            yield _facts(member.name, gguf.read(found.path, member.data_offset, member.size))
        except PyllamafileError as error:
            yield ModelFacts(member.name, problem=error.message)


def _facts(file: str, weights: Weights) -> ModelFacts:
    return ModelFacts(
        file=file,
        kind=weights.kind,
        architecture=weights.architecture,
        name=weights.name,
        parameters=weights.parameters,
        quantization=weights.quantization,
        context_length=weights.context_length,
        tokenizer=weights.tokenizer,
        vocabulary=weights.vocabulary,
        tensors=len(weights.tensors),
        chat_template=weights.chat_template,
    )


def _entry(member: Member) -> EntryFacts:
    from pyllamafile.zipalign import BLOCK, DEFLATED, STORED

    at = member.data_offset
    return EntryFacts(
        name=member.name,
        offset=at,
        size=member.size,
        stored_size=member.stored_size,
        method={STORED: "stored", DEFLATED: "deflated"}.get(member.method, str(member.method)),
        alignment=min(at & -at, BLOCK) if at else BLOCK,
        crc=f"{member.crc:08x}",
    )
