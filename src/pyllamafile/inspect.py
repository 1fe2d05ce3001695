"""What is in a llamafile, a GGUF, or any zip; and taking it out."""

from __future__ import annotations

import json
import os
import secrets
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pyllamafile import zipalign
from pyllamafile.errors import PyllamafileError
from pyllamafile.plan import ARGS, MANIFEST
from pyllamafile.weights import Kind, Weights
from pyllamafile.weights import read as read_weights
from pyllamafile.zipalign import DEFLATED, STORED, Archive, Member

_CHUNK = 1 << 20
_SMALL = 1 << 20  # bytes; `.args` and the manifest are far below


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
        name: What the model is called, if it is a llamafile of ours.
        built_by: The version of pyllamafile that built it.
        models: The GGUFs.
        runtimes: As in the manifest: target, offset, sizes, digests.
        entries: Everything in the zip, in the order of the file.
        args: The text of `.args`.
    """

    path: str
    size: int
    name: str | None
    built_by: str | None
    models: tuple[ModelFacts, ...]
    runtimes: tuple[dict[str, Any], ...]
    entries: tuple[EntryFacts, ...]
    args: str | None

    def as_dict(self) -> dict[str, Any]:
        """The same as plain dictionaries and lists, ready for JSON."""
        return asdict(self)


def inspect(path: str | os.PathLike[str]) -> Report:
    """Look into a llamafile, a bare GGUF, or any zip.

    Raises:
        PyllamafileError: The file can't be read, or is none of these.
    """
    path = Path(path)
    if _starts_with_gguf(path):
        models = (_facts(path.name, read_weights(path)),)
        return Report(str(path), path.stat().st_size, None, None, models, (), (), None)
    archive = zipalign.read(path)
    manifest = _manifest(path, archive)
    args = next((m for m in archive.members if m.name == ARGS), None)
    listed = manifest.get("runtimes")
    runtimes = listed if isinstance(listed, list) else []
    return Report(
        path=str(path),
        size=archive.size,
        name=_text(manifest.get("name")),
        built_by=_text(manifest.get("pyllamafile")),
        models=tuple(_models(path, archive)),
        runtimes=tuple(runtime for runtime in runtimes if isinstance(runtime, dict)),
        entries=tuple(_entry(member) for member in archive.members),
        args=content(path, args).decode(errors="replace") if args else None,
    )


def extract(
    path: str | os.PathLike[str],
    directory: str | os.PathLike[str] = ".",
    names: Sequence[str] = (),
    *,
    force: bool = False,
    progress: Callable[[str, int, int], None] | None = None,
) -> list[Path]:
    """Take entries out of a llamafile or any zip.

    Args:
        path: The file.
        directory: Where to, made if it isn't there; nothing is ever written outside of it.
        names: Which entries; all if there are none.
        force: Whether existing files may be replaced.
        progress: Called with what is being done, the bytes done and the bytes in all.

    Returns:
        The files written.

    Raises:
        PyllamafileError: A name is not there or leads outside, a file exists, or the
            content doesn't match its checksum.
    """
    path = Path(path)
    members = {member.name: member for member in zipalign.read(path).members}
    for name in names:
        if name not in members:
            raise PyllamafileError(f"{path}: has no entry {name!r}", hint="inspect lists them")
    chosen = [members[name] for name in dict.fromkeys(names)] if names else list(members.values())
    chosen = [member for member in chosen if not member.name.endswith("/")]
    root = Path(directory)
    if root.exists() and not root.is_dir():
        raise PyllamafileError(f"{root}: not a directory")
    plan = [(member, _inside(path, root, member)) for member in chosen]
    for _, target in plan:
        if target.exists() and not force:
            raise PyllamafileError(f"{target}: exists already", hint="--force replaces it")
    done, total = 0, sum(member.size for member in chosen)

    def written(count: int) -> None:
        nonlocal done
        done += count
        if progress:
            progress(f"extracting {path.name}", done, total)

    for member, target in plan:
        _extract_one(path, member, target, written)
    return [target for _, target in plan]


def content(path: Path, member: Member, limit: int = _SMALL) -> bytes:
    """The uncompressed content of a small entry.

    Raises:
        PyllamafileError: It is larger than `limit` bytes, or damaged.
    """
    if member.size > limit:
        raise PyllamafileError(f"{path}: {member.name} has {member.size:,} bytes, not believable")
    return b"".join(_chunks(path, member))


def _starts_with_gguf(path: Path) -> bool:
    try:
        if not path.is_file():
            return False  # zipalign.read says what it is
        with path.open("rb") as file:
            return file.read(4) == b"GGUF"
    except OSError as error:
        raise PyllamafileError(f"{path}: {error.strerror}") from error


def _manifest(path: Path, archive: Archive) -> dict[str, Any]:
    for member in archive.members:
        if member.name == MANIFEST:
            try:
                found = json.loads(content(path, member))
            except (ValueError, RecursionError, PyllamafileError):
                break  # `verify` says what is wrong with it
            return found if isinstance(found, dict) else {}
    return {}


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _models(path: Path, archive: Archive) -> Iterator[ModelFacts]:
    for member in archive.members:
        if member.name.endswith(".gguf"):
            try:
                if member.method != STORED:
                    raise PyllamafileError("compressed, so it can't be used where it is")
                yield _facts(member.name, read_weights(path, member.data_offset, member.size))
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
    at = member.data_offset
    return EntryFacts(
        name=member.name,
        offset=at,
        size=member.size,
        stored_size=member.stored_size,
        method={STORED: "stored", DEFLATED: "deflated"}.get(member.method, str(member.method)),
        alignment=min(at & -at, zipalign.BLOCK) if at else zipalign.BLOCK,
        crc=f"{member.crc:08x}",
    )


def _inside(path: Path, root: Path, member: Member) -> Path:
    """Where an entry goes, which is inside of `root` whatever its name says."""
    parts = member.name.split("/")
    hostile = (
        not {"", ".", ".."}.isdisjoint(parts)
        or "\\" in member.name
        or ":" in parts[0]
        or any(ord(character) < 32 for character in member.name)
        or member.mode & 0o170000 == 0o120000  # a symbolic link
    )
    target = root.joinpath(*parts)
    if hostile or not target.parent.resolve().is_relative_to(root.resolve()):
        raise PyllamafileError(
            f"{path}: the entry {member.name!r} would be written outside of {root}, or is a link",
            hint="name the entries that you want",
        )
    return target


def _extract_one(path: Path, member: Member, target: Path, written: Callable[[int], None]) -> None:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        draft = target.with_name(f".pyllamafile-{secrets.token_hex(8)}")
        mode = 0o777 if member.mode & 0o100 else 0o666  # less what the umask takes away
        try:
            with open(draft, "xb", opener=lambda name, flags: os.open(name, flags, mode)) as file:
                for chunk in _chunks(path, member):
                    written(file.write(chunk))
            draft.replace(target)
        finally:
            draft.unlink(missing_ok=True)
    except OSError as error:
        raise PyllamafileError(f"{target}: {error.strerror}") from error


def _chunks(path: Path, member: Member) -> Iterator[bytes]:
    """The content of an entry, piece by piece, checked at the end against its checksum."""
    size = crc = 0
    for chunk in _inflated(path, member):
        size += len(chunk)
        crc = zlib.crc32(chunk, crc)
        if size > member.size:
            raise PyllamafileError(f"{path}: {member.name} is longer than it says")
        yield chunk
    if (size, crc) != (member.size, member.crc):
        raise PyllamafileError(f"{path}: {member.name} is damaged: its checksum doesn't match")


def _inflated(path: Path, member: Member) -> Iterator[bytes]:
    if member.method not in (STORED, DEFLATED) or member.flags & 1:
        raise PyllamafileError(f"{path}: {member.name} is encrypted or compressed in another way")
    if member.method == STORED:
        yield from _stored(path, member)
        return
    inflate = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        for raw in _stored(path, member):
            while raw:
                yield inflate.decompress(raw, _CHUNK)
                # At the end zlib leaves the tail as it was, for ever.
                raw = b"" if inflate.eof else inflate.unconsumed_tail
        yield inflate.flush()
    except zlib.error as error:
        raise PyllamafileError(f"{path}: {member.name} is damaged") from error


def _stored(path: Path, member: Member) -> Iterator[bytes]:
    left = member.stored_size
    with path.open("rb") as file:
        file.seek(member.data_offset)
        while left > 0:
            raw = file.read(min(left, _CHUNK))
            if not raw:
                raise PyllamafileError(f"{path}: cut off inside of {member.name}")
            left -= len(raw)
            yield raw
