"""What goes where in a llamafile, decided before a byte is written. Pure.

The result follows launcher/FORMAT.md; the order of `_entries` is the order in the file.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pyllamafile import launcher, zipalign
from pyllamafile.errors import PyllamafileError
from pyllamafile.launcher import Outer
from pyllamafile.targets import Runtime
from pyllamafile.weights import Kind, Weights
from pyllamafile.zipalign import Digest, Entry, Late, Layout, Member, Source

MANIFEST = "llamafile.json"
ARGS = ".args"
GUI = "ui/"
LICENSES = "LICENSES/"
FORMAT = 1

# How families talk whose weights may not say it, by architecture and tokenizer, in Jinja.
TEMPLATES = {
    ("phi3", "llama"): (  # Phi-3 and Phi-3.5; Phi-4 has another tokenizer
        "{% for message in messages %}"
        '{{ "<|" + message.role + "|>\\n" + message.content + "<|end|>\\n" }}'
        "{% endfor %}"
        '{% if add_generation_prompt %}{{ "<|assistant|>\\n" }}{% endif %}'
    ),
}

# What weights are, for people.
KINDS: Mapping[Kind, str] = {
    "model": "a model",
    "adapter": "a LoRA adapter",
    "projector": "a projector",
}


@dataclass(frozen=True)
class Role:
    """A way in which weights go with the first model of a file.

    Attributes:
        kind: What they have to be.
        flag: The runtime's option for them.
    """

    kind: Kind
    flag: str


ROLES = {
    "lora": Role("adapter", "--lora"),
    "mmproj": Role("projector", "--mmproj"),
    "draft": Role("model", "--model-draft"),
}

# speculative.cpp, SPEC_VOCAB_MAX_SIZE_DIFFERENCE
_SAME_VOCABULARY = 128

_UNKNOWN = "0" * 64  # as long as every SHA-256 in hex, which is all that a size depends on


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
        entries: Notices and web GUI.
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


@dataclass(frozen=True)
class Plan:
    """A llamafile with every offset decided.

    Attributes:
        engine: What stands in front of the zip, and what of it is in there.
        layout: The zip.
    """

    engine: Engine
    layout: Layout

    @property
    def head(self) -> bytes:
        """The first bytes."""
        return self.engine.head

    @property
    def programs(self) -> tuple[launcher.Program, ...]:
        """The runtimes behind the head and their offsets."""
        return self.engine.programs

    @property
    def size(self) -> int:
        """Length of the whole file in bytes."""
        return self.layout.size


def engine(
    *,
    name: str,
    version: str,
    runtimes: Sequence[Runtime],
    outer: Outer | None = None,
    gui: Sequence[Entry] = (),
) -> Engine:
    """Decide what a llamafile runs with.

    Args:
        name: What the model is called.
        version: The version of pyllamafile that builds the file.
        runtimes: The native programs; the launch script picks among them.
        outer: The program that the file itself is, besides those.
        gui: The web GUI's entries, its notices among them.

    Raises:
        PyllamafileError: An outer program can't be one, or the script has no room for so many.
    """
    programs = _programs(runtimes, launcher.head_size(outer))
    head = launcher.head(programs, outer)
    facts: dict[str, Any] = {
        "format": FORMAT,
        "name": name,
        "pyllamafile": version,
        "head": {"size": len(head), "sha256": hashlib.sha256(head).hexdigest()},
        "runtimes": [
            *([_facts(_as_it_stands(outer.runtime, head))] if outer else []),
            *(_facts(program) for program in programs),
        ],
    }
    notices = _licenses([outer.runtime, *runtimes] if outer else runtimes)
    return Engine(head, programs, (*notices, *gui), facts)


def plan(
    *,
    name: str,
    version: str,
    models: Sequence[File],
    runtimes: Sequence[Runtime],
    outer: Outer | None = None,
    extras: Sequence[File] = (),
    args: str | None = None,
    gui: Sequence[Entry] = (),
) -> Plan:
    """Decide what a llamafile consists of and where each part goes.

    Args:
        name: What the model is called.
        version: The version of pyllamafile that builds the file.
        models: The weights, in order: files, or entries of other archives.
        runtimes: The native programs; the launch script picks among them.
        outer: The program that the file itself is, besides those.
        extras: More files.
        args: The text of `.args`.
        gui: The web GUI's entries, its notices among them.

    Raises:
        PyllamafileError: Two entries of one name, a name that isn't portable, or an outer
            program that can't be one.
    """
    runs = engine(name=name, version=version, runtimes=runtimes, outer=outer, gui=gui)
    entries = [
        *(_entry(file) for file in (*models, *extras)),
        *([Entry(ARGS, args.encode())] if args is not None else []),
    ]
    return laid_out(runs, entries)


def laid_out(engine: Engine, entries: Sequence[Entry]) -> Plan:
    """An engine and what it runs, in this order: weights, more files, `.args`."""
    entries = [*entries, *engine.entries]
    entries.append(manifest(engine.facts, {}, entries))
    return Plan(engine, zipalign.layout(entries, engine.end))


def manifest(
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


def updated_manifest(
    text: bytes, entries: Sequence[Entry], removed: Collection[str] = ()
) -> Entry | None:
    """The manifest of a file whose entries are about to change.

    Args:
        text: The present manifest.
        entries: What is added or replaced.
        removed: Names of what is taken out.

    Returns:
        The entry to write behind `entries`, or None if the present one isn't of this format.
    """
    try:
        facts = json.loads(text)
        if facts["format"] != FORMAT:
            return None
        gone = {MANIFEST, *removed, *(entry.name for entry in entries)}
        known = {
            name: Digest(value["size"], 0, value["sha256"])
            for name, value in facts.pop("entries").items()
            if name not in gone
        }
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    return manifest(facts, known, entries)


def chat_template(models: Mapping[str, Weights], args: str | None) -> str | tuple[str, ...]:
    """How conversations with these weights are written down, where they don't say it themselves.

    Args:
        models: The weights by their names.
        args: The text of `.args`, which may already settle it.

    Returns:
        The template that `.args` has to bring, or else the names of the weights that need one:
        it would hold for all weights, so among several there is none to bring.
    """
    talking = {
        name: facts
        for name, facts in models.items()
        if "tokenizer.ggml.model" in facts.metadata  # not in a split model's later parts
        and f"{facts.architecture}.pooling_type" not in facts.metadata  # it makes embeddings
    }
    silent = tuple(name for name, facts in talking.items() if not facts.chat_template)
    if not silent or "--chat-template" in (args or ""):
        return ()
    facts = talking[silent[0]]
    family = (facts.architecture, facts.metadata["tokenizer.ggml.model"])
    template = TEMPLATES.get(family) if len(talking) == 1 else None  # type: ignore[arg-type]
    return template or silent


def misfit(role: str, given: Weights, model: Sequence[Weights]) -> str | None:
    """Why weights can't go with a model; None if nothing in the headers is against it.

    Args:
        role: One of `ROLES`.
        given: The weights.
        model: The model, every part of it.
    """
    wanted = ROLES[role].kind
    if given.kind != wanted:
        return f"is {KINDS[given.kind]}, not {KINDS[wanted]}"
    first = model[0]
    if role == "lora":
        if given.architecture != first.architecture:
            return f"is for {given.architecture}, and the model is {first.architecture}"
        return _misshapen(given, model)
    if role == "draft" and first.tokenizer and given.tokenizer:
        difference = abs((first.vocabulary or 0) - (given.vocabulary or 0))
        if given.tokenizer != first.tokenizer or difference > _SAME_VOCABULARY:
            return "has another vocabulary than the model, so it can't draft for it"
    return None


def _misshapen(adapter: Weights, model: Sequence[Weights]) -> str | None:
    """What of an adapter its model has no place for, as llama-adapter.cpp sees it."""
    shapes = {tensor.name: tensor.shape for part in model for tensor in part.tensors}
    for tensor in adapter.tensors:
        base, side = tensor.name.rpartition(".lora_")[::2]
        # Which dimension of it has to be which of the model's; embeddings have the two swapped.
        swapped = base == "token_embd.weight"
        mine, its = {"a": (1, 1) if swapped else (0, 0), "b": (1, int(not swapped))}.get(
            side, (0, 0)
        )
        shape = shapes.get(base, ())
        if len(shape) <= its or len(tensor.shape) <= mine or tensor.shape[mine] != shape[its]:
            return f"is for another model: this one has no {base} of such a shape"
    return None


def partner_args(role: str, name: str, scale: float = 1) -> list[str]:
    """The arguments by which a runtime uses weights beside a model in the same file.

    >>> partner_args("lora", "pirate.gguf", 0.5)
    ['--lora-scaled', '@pirate:0.5']
    """
    flag, value = ROLES[role].flag, f"@{name.removesuffix('.gguf')}"
    return [flag, value] if scale == 1 else [f"{flag}-scaled", f"{value}:{scale:g}"]


def quote(argument: str) -> str:
    """Spell an argument so that a runtime that reads `.args` finds just this one.

    ``...`` is where the user's own arguments go, however it is spelled.
    """
    if re.fullmatch(r"[\w@%+=:,./-]+", argument, re.ASCII):
        return argument
    if "'" not in argument:
        return f"'{argument}'"
    return '"' + re.sub(r'(["\\$])', r"\\\1", argument) + '"'


def entry(path: Path, member: Member) -> Entry:
    """A member of an archive for another one, as it is: its bytes are copied, or shared.

    Raises:
        PyllamafileError: It is encrypted, or compressed in a way that no llamafile may hold.
    """
    if member.method not in (zipalign.STORED, zipalign.DEFLATED) or member.flags & 1:
        raise PyllamafileError(f"{path}: {member.name} is encrypted or compressed in another way")
    return Entry(
        member.name,
        Source(path, offset=member.data_offset, size=member.stored_size),
        method=member.method,
        size=member.size,
        crc=member.crc,
        align=alignment(member.name),
    )


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
    """An outer program: it begins the file and is not packed."""
    size, digest = len(program), hashlib.sha256(program).hexdigest()
    stands = replace(runtime, size=size, sha256=digest, packed_size=size, packed_sha256=digest)
    return launcher.Program(stands, 0)


def _facts(program: launcher.Program) -> dict[str, Any]:
    facts = asdict(program.runtime)
    del facts["path"], facts["origin"], facts["licenses"]
    return {**facts, "offset": program.offset}


def _entry(file: File) -> Entry:
    return Entry(file.name, Source(file.path, size=file.size), align=alignment(file.name))


def alignment(name: str) -> int:
    """What the data of an entry of this name are aligned to: weights are mapped."""
    return launcher.BLOCK if name.endswith(".gguf") else 1
