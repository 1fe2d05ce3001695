"""The recipe: weights -> plan -> write -> verify -> replace."""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
import os
import re
import stat
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

import pyllamafile
from pyllamafile import arguments, engine, passages, plan, zipalign
from pyllamafile.appearing import appearing, exists, permitted, scratch_folder
from pyllamafile.arguments import SYSTEM, quote
from pyllamafile.documents import joined
from pyllamafile.engine import Format
from pyllamafile.errors import AccessError, NotFoundError, RefusedError
from pyllamafile.llamafile import (
    ARGS,
    EMBEDDER,
    GPU,
    GUI,
    MANIFEST,
    PROOF,
    SIGNATURE,
    STATE,
    WEIGHTS,
)
from pyllamafile.models import convert, forecast, sources
from pyllamafile.models.fit import (
    broken_template,
    chat_template,
    family_template,
    misfit,
    partner_args,
    unmappable,
    unsound,
)
from pyllamafile.models.gguf import Weights, part_of, read, shards
from pyllamafile.models.source import PathLike, Source, gguf_name
from pyllamafile.native import trial
from pyllamafile.native.building.aside import Aside
from pyllamafile.ops import in_place as conversion
from pyllamafile.ops.state import put_in, renew
from pyllamafile.output import check_written, companion_path, write, write_companion
from pyllamafile.paths import named, path_of, several, strings
from pyllamafile.persona import Persona
from pyllamafile.plan import File, Plan
from pyllamafile.progress import Progress, Step, silent
from pyllamafile.state import MOST, TYPES, State
from pyllamafile.targets import TARGETS, TOO_LARGE, select


@dataclass(frozen=True)
class Built:
    """A finished llamafile.

    Attributes:
        path: Where it is.
        size: Its length in bytes.
        name: What the model is called.
        models: Names of the models inside, added ones too.
        partners: What goes with the first of them: adapters, a projector, a draft, each by
            its option and its name; of an adapter the scale is in it.
        targets: Names of the systems that it runs on.
        missing: Names of the systems for which no runtime was at hand.
        too_large: Whether it is for Windows, but has more bytes than Windows lets a
            program have.
        companion: The program beside it that starts it there nevertheless.
        template: The chat template of its family that went into `.args`, because the weights
            have none.
        untemplated: Names of weights that have no chat template and got none.
        base: Names of those of them whose vocabulary has the tokens of no chat format either:
            base models, which are none for chats, as far as can be known.
        broken: Names of weights whose chat template can't be parsed, each with the reason;
            nothing is looked for where the package jinja2 is missing.
        gpus: Names of the systems on which it can use a GPU.
        persona: What of a persona went in, such as "name, greeting"; None without one.
        read: Bytes of text that it has read.
        documents: How many documents it can look things up in.
        passages: How many passages these were cut into.
        embedder: What the model for embeddings is called by which it finds them, too.
        left_out: Names of files that are no documents, each with the reason.
        state: What it remembers of that; None if nothing.
        own_args: The arguments that came with the weights and went into `.args`.
        remarks: What else came with the weights and was left out.
    """

    path: Path
    size: int
    name: str
    models: tuple[str, ...]
    partners: tuple[tuple[str, str], ...]
    targets: tuple[str, ...]
    missing: tuple[str, ...]
    too_large: bool
    companion: Path | None
    template: str | None
    untemplated: tuple[str, ...]
    base: tuple[str, ...] = ()
    broken: tuple[tuple[str, str], ...] = ()
    gpus: tuple[str, ...] = ()
    persona: str | None = None
    read: int = 0
    documents: int = 0
    passages: int = 0
    embedder: str | None = None
    left_out: tuple[tuple[str, str], ...] = ()
    state: State | None = None
    own_args: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Adapter:
    """A LoRA adapter that goes with the first model of a file.

    Attributes:
        source: What `sources.find` knows: a GGUF, a folder, ``hf:OWNER/REPO:FILE``.
        scale: How much of it is applied; 1 is what it was trained for.
    """

    source: PathLike
    scale: float = 1


def build(
    gguf: PathLike | Sequence[PathLike] = (),
    output: PathLike | None = None,
    *,
    lora: PathLike | Adapter | Sequence[PathLike | Adapter] = (),
    mmproj: PathLike | None = None,
    draft: PathLike | None = None,
    name: str | None = None,
    read: PathLike | Sequence[PathLike] = (),
    documents: PathLike | None = None,
    embedder: PathLike | None = None,
    read_as: str | None = None,
    state: bool = True,
    persona: Persona | None = None,
    targets: str | Sequence[str] = (),
    args: str | Sequence[str] = (),
    args_file: PathLike | None = None,
    add: PathLike | Sequence[PathLike | tuple[PathLike, str]] = (),
    gui: bool = True,
    gpu: bool | None = None,
    prove: bool = True,
    format: Format = "portable",
    companion: bool = True,
    quantize_to: str | None = None,
    requantize: bool = False,
    force: bool = False,
    in_place: bool = False,
    progress: Progress | None = None,
) -> Built:
    """Pack weights, launcher and runtimes into one file.

    The file appears under its name when it is complete and not before; whatever goes wrong
    leaves no partial file and no damaged one.

    Args:
        gguf: The weights, each a path or what else `sources.find` knows, such as
            ``hf:OWNER/REPO:Q4_K_M``; parts of a split GGUF are taken together. Without any
            the file is an engine alone.
        output: The file to write; by default ``NAME.llamafile`` in the current directory.
        lora: LoRA adapters that go with the first of them, and are applied to it.
        mmproj: The projector that lets it see or hear.
        draft: A small model of the same vocabulary that drafts for it (speculative decoding).
        name: What the model is called; by default as the persona, or as its file is.
        read: Documents whose text stands behind the system prompt of every conversation:
            Markdown, HTML, PDF, DOCX, or any other text.
        documents: A folder of such documents, in which the file looks up what a question is about.
        embedder: A model for embeddings, which finds passages worded otherwise than the question:
            what `sources.find` knows, or a name in `passages.EMBEDDERS`. Without one, words count.
        read_as: What the model remembers texts as, one of `state.TYPES`: its keys and values. It
            goes into ``.args``; by default they are of the type f16.
        state: Whether what is read is evaluated now, with the runtime of this system, and what the
            model remembers of it goes in: then no start evaluates it.
        persona: Who the file says it is. One that has no name takes `name`, if that is given.
        targets: Systems to run on, or groups of them such as ``linux``, ``arm64`` and
            ``all``; by default those whose runtimes are at hand.
        args: Default arguments of the file, put into ``.args`` one by one.
        args_file: A file with the text of ``.args``, in front of `args`.
        add: More files, each by itself or with the name of its entry.
        gui: Whether the web GUI goes in.
        gpu: Whether what uses GPUs goes in, a second program for each target that can have one;
            then it is built if it isn't at hand. By default it goes in where it is at hand.
        prove: Whether the small model goes in by which the file proves itself (`--prove`).
        format: ``portable``, or ``elf`` for a file that is a program of one Linux target.
        companion: Whether a file that is too large for Windows to start gets a small
            Windows program beside it, called as it is, with ``.exe`` for ``.llamafile``.
        quantize_to: What the models are quantized to, one of `forecast.FORMATS`; adapters,
            projectors and drafts stay what they are.
        requantize: Whether that may happen to what is quantized already, and loses twice.
        force: Whether existing output may be replaced.
        in_place: Whether the GGUF itself becomes the file, which takes neither its time nor its
            room again; the GGUF is gone then. A file system that can't is an error. Killed
            halfway, the same call again undoes what was begun and does it all.
        progress: Told about every step.

    Raises:
        PyllamafileError: Some input is no good, or the output can't be written.
        TypeError: A value has a wrong type, such as None where a path is taken.
    """
    tell = progress or silent
    asked = _Asked.of(gguf, lora, mmproj, draft, embedder, quantize_to)
    systems = _systems(targets, format)
    persona = persona or Persona()
    sources_of_text = [path_of(path) for path in several(read)]
    read_text = joined(sources_of_text).encode() if sources_of_text else None
    if asked.embedder and documents is None:
        raise RefusedError(
            f"{asked.embedder.name} finds passages of documents, and there are none",
            hint="give their folder with --documents",
        )
    found = passages.in_folder(path_of(documents)) if documents is not None else None
    args = [*_remembered_as(read_as, bool(sources_of_text)), *strings(args, "args")]
    stem = asked.stem(quantize_to)
    if name and name != stem and not persona.name:
        persona = replace(persona, name=name)
    name = name or persona.name or stem
    destination = _destination(asked, output, name, quantize_to, in_place)
    with contextlib.ExitStack() as scratch:
        folder = destination.parent
        if quantize_to or asked.remote:
            # Now rather than after gigabytes were fetched or written.
            _check_output(destination, asked.paths, force)
            folder = scratch.enter_context(scratch_folder(folder))
        given = _gathered(
            asked, add, args, args_file, persona.system, quantize_to, gui, prove, folder, tell
        )
        _check_output(destination, given.paths, force)
        checked = scratch.enter_context(Aside(given.check, nice=False))
        if quantize_to or in_place:  # else it is written meanwhile, and has no name yet
            checked.result()
        quantized = _Quantized(quantize_to, requantize, folder) if quantize_to else None
        if quantized:
            quantized.check(given)
        tell = _stopping(tell, checked)

        # From here on it may take minutes.
        runtimes = engine.runtimes_for(systems, gui, tell, gpu)
        program = engine.head_program(runtimes, format, pyllamafile.__version__, persona)
        models = quantized.made(given, tell) if quantized else given.models
        looked_up = _looked_up(found, given, asked, tell) if found else None
        decided = plan.whole(
            name=name,
            version=pyllamafile.__version__,
            models=[*itertools.chain(*models, *given.partners.values())],
            runtimes=runtimes,
            head_program=program,
            extras=given.extras,
            args=given.args,
            read=read_text,
            persona=persona.text,
            documents=looked_up,
            gui=engine.gui_entries(tell) if gui else (),
            gpu=gpu is not False,
            shaders=engine.shaders_entry(runtimes),
            proof=engine.proof_entry() if prove else None,
            state=state,
        )
        reads = state and read_text is not None
        context = next((facts.context_length for facts in given.facts.values()), None)
        if not reads and context and len(read_text or b"") // 4 > context:
            about = f"about {len(read_text or b'') // 4:,} tokens"
            trained = f"the model was trained on {context:,}"
            tell(Step("notice", f"{destination}: has read too much: {about}, and {trained}"))
        most = decided.size + (MOST if reads else 0)
        for_windows = bool(program) and format == "portable"
        starter = program if for_windows and companion and most >= TOO_LARGE else None

        def beside(size: int) -> tuple[Path, bytes] | None:
            """The program that a file of so many bytes needs beside it."""
            if starter is None or size < TOO_LARGE:
                return None
            exe = companion_path(destination)
            _check_output(exe, given.paths, force)
            return exe, starter.program

        beside(decided.size)  # now rather than after gigabytes were written
        del program  # as many bytes again as the head has; writing needs memory of its own
        if in_place:
            _convert(decided, given, destination, beside(decided.size), force, tell)
            kept = renew(destination, tell) if reads else None
        else:
            kept = _write(decided, given, checked, destination, beside, force, reads, tell)
        size = destination.stat().st_size
        too_large = for_windows and size >= TOO_LARGE

    included = tuple(runtime.target for runtime in runtimes)
    untemplated = () if isinstance(given.template, str) else given.template
    return Built(
        path=destination,
        size=size,
        name=name,
        models=(*(file.name for file in itertools.chain(*models)), *given.added_models),
        partners=tuple(
            (f"--{partner.role}", files[0].name + partner.suffix)
            for partner, files in given.partners.items()
        ),
        targets=included,
        missing=tuple(target for target in TARGETS if target not in included),
        too_large=too_large,
        companion=companion_path(destination) if too_large and companion else None,
        template=given.template if isinstance(given.template, str) else None,
        untemplated=untemplated,
        base=tuple(name for name in untemplated if not family_template(given.facts[name])),
        broken=tuple(
            (name, problem)
            for name, facts in given.facts.items()
            if facts.chat_template and (problem := broken_template(facts.chat_template))
        ),
        gpus=tuple(runtime.target for runtime in runtimes if runtime.gpu),
        persona=persona.summary or None,
        read=len(read_text or b""),
        documents=len(found.sources) if found else 0,
        passages=len(found.passages) if found else 0,
        embedder=asked.embedder.name if asked.embedder else None,
        left_out=found.left_out if found else (),
        state=kept,
        own_args=tuple(itertools.chain(*asked.args)),
        remarks=tuple(asked.remarks),
    )


# What was asked for: nothing is read yet


@dataclass(frozen=True)
class _Asked:
    """The weights that a file is to have.

    Attributes:
        models: Where the models are from.
        partners: What goes with the first of them.
        embedder: What finds passages of documents.
    """

    models: Sequence[Source]
    partners: Sequence[_Partner]
    embedder: Source | None

    @classmethod
    def of(
        cls,
        gguf: PathLike | Sequence[PathLike],
        lora: PathLike | Adapter | Sequence[PathLike | Adapter],
        mmproj: PathLike | None,
        draft: PathLike | None,
        embedder: PathLike | None,
        format: str | None,
    ) -> _Asked:
        """Find it.

        Raises:
            PyllamafileError: There is no such thing, or no model that partners could go with.
        """
        if format is not None:
            forecast.check(format)
        models = [_found(each) for each in several(gguf)]
        partners = _partners(lora, mmproj, draft)
        # What belongs to the first model, but for what was given in its place.
        replaced = {partner.role for partner in partners} - {"lora"}  # there may be several
        own = models[0].partners if models else ()
        partners += [_Partner(role, source) for role, source in own if role not in replaced]
        if partners and not models:
            raise RefusedError(
                f"{partners[0].source.name} goes with a model, and there is none",
                hint="give it with --gguf",
            )
        given = passages.EMBEDDERS.get(str(embedder), embedder)
        return cls(models, partners, _found(given) if given is not None else None)

    @property
    def sources(self) -> list[Source]:
        partners = (partner.source for partner in self.partners)
        return [*self.models, *partners, *([self.embedder] if self.embedder else [])]

    @property
    def paths(self) -> list[Path]:
        """Those that are files already."""
        return [source.path for source in self.sources if source.path]

    @property
    def remote(self) -> bool:
        """Whether something has to be fetched or converted."""
        return any(source.path is None for source in self.sources)

    @property
    def args(self) -> tuple[tuple[str, str], ...]:
        """The options that belong to the model; to one of several none, as they hold for all."""
        return self.models[0].args if len(self.models) == 1 else ()

    @property
    def remarks(self) -> list[str]:
        """What belongs to the models and is left out."""
        return [
            *(f"{source.name}: {remark}" for source in self.models for remark in source.remarks),
            *(
                f"{source.name}: its {option}, which would hold for all models"
                for source in self.models
                for option, _ in source.args
                if not self.args
            ),
        ]

    def stem(self, format: str | None) -> str:
        """What the model is called by default, quantized to a format or as it is."""
        if not self.models:
            return "llamafile"
        name = self.models[0].name
        if format:
            name = convert.quantized_name(name, format)
        part = part_of(name)
        return part[0] if part else name.removesuffix(".gguf")


def _found(given: PathLike) -> Source:
    path_of(given)
    return sources.find(given)


def _systems(targets: str | Sequence[str], format: Format) -> Sequence[str]:
    """The names of the targets to run on; none stands for those at hand."""
    if format not in get_args(Format):
        raise RefusedError(
            f"no such format of a file: {format!r}", hint=f"there are {', '.join(get_args(Format))}"
        )
    names = strings(targets, "targets")
    return engine.one_linux(names) if format == "elf" else [t.name for t in select(names)]


def _destination(
    asked: _Asked, output: PathLike | None, name: str, format: str | None, in_place: bool
) -> Path:
    given = path_of(output) if output is not None else None
    if in_place:
        return conversion.destination(asked.models, given, asked.stem(None), format)
    return given or Path(re.sub(r"[/\\\0]", "-", name) + ".llamafile")


# What goes in


class _Headers:
    """The headers of weights, each read once, and what the files were then."""

    def __init__(self) -> None:
        self._read: dict[Path, Weights] = {}
        self._stamps: dict[Path, tuple[int, ...] | None] = {}

    def of(self, path: Path) -> Weights:
        self.watch(path)
        if path not in self._read:  # to walk a large vocabulary takes a twentieth of a second
            self._read[path] = read(path)
        return self._read[path]

    def watch(self, path: Path) -> None:
        """Remember what a file is now."""
        if path not in self._stamps:
            self._stamps[path] = _stamp(path)

    def check_unchanged(self) -> None:
        """Refuse what is no longer what it was when it was looked at."""
        for path, stamp in self._stamps.items():
            if _stamp(path) != stamp:
                raise RefusedError(f"{path}: changed while it was being packed", path=path)


@dataclass(frozen=True)
class _Given:
    """All that goes in but the engine, looked at and found to go together.

    Attributes:
        models: Of each model its files.
        partners: What goes with the first of them, and its files.
        extras: More files.
        added_models: Names of those of them that are models.
        args: The text of `.args`.
        args_file: Where some of it is from.
        template: The chat template that is in there, or the names of weights that have none.
        headers: What was read of the files.
        facts: Of all weights but the partners, by their names, what their headers say.
        checks: Raise what llama.cpp says against weights: half a second for a large vocabulary.
    """

    models: Sequence[Sequence[File]]
    partners: Mapping[_Partner, Sequence[File]]
    extras: Sequence[File]
    added_models: Sequence[str]
    args: str | None
    args_file: Path | None
    template: str | tuple[str, ...]
    headers: _Headers
    facts: Mapping[str, Weights]
    checks: Sequence[Callable[[], None]]

    def check(self) -> None:
        """Make the checks."""
        for check in self.checks:
            check()

    @property
    def paths(self) -> list[Path]:
        """Every file that is read."""
        files = itertools.chain(*self.models, *self.partners.values(), self.extras)
        return [*(file.path for file in files), *([self.args_file] if self.args_file else [])]


def _gathered(
    asked: _Asked,
    add: PathLike | Sequence[PathLike | tuple[PathLike, str]],
    args: str | Sequence[str],
    args_file: PathLike | None,
    system: str | None,
    format: str | None,
    gui: bool,
    prove: bool,
    folder: Path,
    tell: Progress,
) -> _Given:
    """Fetch what has to be fetched, and look at everything.

    Raises:
        PyllamafileError: Something is missing, or doesn't go with the rest.
    """
    headers = _Headers()
    models = _models(asked.models, folder, headers, tell)
    partners = {
        partner: _models([partner.source], folder, headers, tell)[0] for partner in asked.partners
    }
    extras = [_file(*named(each)) for each in several(add)]
    _check_names(extras, gui, prove)
    weights = [extra for extra in extras if extra.name.endswith(WEIGHTS)]  # they are to a runtime
    if asked.embedder:
        extras.append(_embedder(asked.embedder, folder, headers, tell))
    text_file = path_of(args_file) if args_file is not None else None
    text = _args_text(strings(args, "args"), text_file)
    files = [*itertools.chain(*models, *partners.values()), *extras]
    for extra in extras:
        engine.check_text(extra.path, extra.name)
    for file in files:
        headers.watch(file.path)
        arguments.check_nameable(file.path, file.name)
    names = [name for model in models for name in _names(model, headers, format)]
    names += [file.name for file in (*itertools.chain(*partners.values()), *extras)]
    if text is not None:
        arguments.check(text.encode(), names, str(text_file or "--arg"), text_file)
        engine.check_arguments(text.encode(), str(text_file or "--arg"), text_file)
    facts = {file.name: headers.of(file.path) for file in (*itertools.chain(*models), *weights)}
    for each in (*itertools.chain(*models), *weights):
        if problem := unmappable(facts[each.name]):
            raise RefusedError(f"{each.path}: {problem}", path=each.path)
    checks: list[Callable[[], None]] = []
    for whole in (*models, *([extra] for extra in weights)):
        header = facts[whole[0].name]
        if header.kind == "model" and (whole in models or not header.split):
            paths = [file.path for file in whole]
            checks.append(functools.partial(engine.check_weights, paths, unsound(header)))
    lines = [list(pair) for pair in asked.args if not (system and pair[0] == SYSTEM)]
    if system:
        lines.append([SYSTEM, system])
    template = chat_template(facts, text)
    if isinstance(template, str):
        lines.append(["--chat-template", template])
    for partner, (first, *_) in partners.items():
        _check_fit(partner, first, headers.of(first.path), [facts[f.name] for f in models[0]])
        lines.append(partner_args(partner.role, first.name, partner.scale))
    if lines:
        text = "".join(" ".join(map(quote, line)) + "\n" for line in lines) + (text or "")
        arguments.check(text.encode(), names, ARGS)
    zipalign.layout([zipalign.Entry(file.name, b"") for file in files], 0)  # refuses odd names
    return _Given(
        models=models,
        partners=partners,
        extras=extras,
        added_models=[file.name for file in weights if facts[file.name].kind == "model"],
        args=text,
        args_file=text_file,
        template=template,
        headers=headers,
        facts=facts,
        checks=checks,
    )


@dataclass(frozen=True, eq=False)  # the same adapter may be given twice
class _Partner:
    """Weights that go with the first model, in one of `fit.ROLES`."""

    role: str
    source: Source
    scale: float = 1

    @property
    def suffix(self) -> str:
        return "" if self.scale == 1 else f"={self.scale:g}"


def _partners(
    lora: PathLike | Adapter | Sequence[PathLike | Adapter],
    mmproj: PathLike | None,
    draft: PathLike | None,
) -> list[_Partner]:
    loras = [lora] if isinstance(lora, (Adapter, str, os.PathLike)) else lora
    adapters = [each if isinstance(each, Adapter) else Adapter(each) for each in loras]
    for adapter in adapters:
        if not math.isfinite(adapter.scale):
            raise RefusedError(f"{adapter.source}: {adapter.scale} is no scale")
    return [
        *(_Partner("lora", _found(each.source), each.scale) for each in adapters),
        *([_Partner("mmproj", _found(mmproj))] if mmproj is not None else []),
        *([_Partner("draft", _found(draft))] if draft is not None else []),
    ]


def _check_fit(partner: _Partner, file: File, own: Weights, model: Sequence[Weights]) -> None:
    if problem := misfit(partner.role, own, model):
        raise RefusedError(f"{file.path}: {problem}", path=file.path)
    if partner.role == "lora" and re.search(r'[,:"]', file.name):
        raise RefusedError(
            f"{file.name}: an adapter's name can't have a comma, a colon or a quote",
            hint="llama.cpp takes lists of adapters with scales, and those separate them",
        )


def _models(
    found: Sequence[Source], folder: Path, headers: _Headers, tell: Progress
) -> list[list[File]]:
    """Of each model its files; those that have to be written first are in `folder`."""
    models: list[list[File]] = []
    for source in found:
        files = shards(source.fetch(folder, tell))
        for path in files:
            if headers.of(path).split and len(files) == 1:
                raise RefusedError(
                    f"{path}: one part of a split model, under a name that doesn't say so",
                    hint="give it back its name, such as NAME-00001-of-00003.gguf",
                    path=path,
                )
        if len(files) == 1:
            models.append([_file(files[0], source.name)])
        else:
            parts = [_file(path, gguf_name(path.name)) for path in files]
            if parts not in models:  # somebody may name every part
                models.append(parts)
    return models


def _embedder(source: Source, folder: Path, headers: _Headers, tell: Progress) -> File:
    """The model for embeddings, under the name by which a runtime knows it.

    Raises:
        PyllamafileError: It can't be had, or is no model in one file that could be loaded.
    """
    first, *more = _models([source], folder, headers, tell)[0]
    facts = headers.of(first.path)
    if facts.kind != "model" or more:
        what = "has several parts" if more else f"is no model, but of the kind {facts.kind}"
        raise RefusedError(f"{first.path}: {what}", path=first.path)
    if problem := unmappable(facts):
        raise RefusedError(f"{first.path}: {problem}", path=first.path)
    engine.check_weights([first.path], unsound(facts))
    return replace(first, name=EMBEDDER)


def _looked_up(found: passages.Found, given: _Given, asked: _Asked, tell: Progress) -> bytes:
    """The entry of passages, with vectors if there is a model that makes them.

    Raises:
        PyllamafileError: The passages are too many, or the model makes none.
    """
    if not asked.embedder:
        return passages.entry(found.passages)
    model = next(file.path for file in given.extras if file.name == EMBEDDER)
    task = passages.task_of(f"{asked.embedder.name} {given.headers.of(model).name}")
    parts = [passage.embedded for passage in found.passages]
    texts = [task.passage + text for texts in parts for text in texts]
    program = engine.host_runtime(tell).program()
    vectors = trial.embedded(program, model, texts, tell)
    return passages.entry(found.passages, vectors, task.query, [len(texts) for texts in parts])


def _names(model: Sequence[File], headers: _Headers, format: str | None) -> list[str]:
    """What the files of a model will be called."""
    if format and headers.of(model[0].path).kind == "model":
        return [convert.quantized_name(model[0].name, format)]
    return [file.name for file in model]


@dataclass(frozen=True)
class _Quantized:
    """Models in another format; what is no model stays what it is.

    Attributes:
        format: One of `forecast.FORMATS`.
        again: Whether what is quantized may be quantized again.
        folder: Where they are written.
    """

    format: str
    again: bool
    folder: Path

    def check(self, given: _Given) -> None:
        """Refuse what can't be quantized, before a runtime is compiled for it."""
        for first in self._chosen(given):
            convert.check_format(
                first.path, self.folder / first.name, self.format, again=self.again
            )

    def made(self, given: _Given, tell: Progress) -> list[Sequence[File]]:
        """Quantize them."""
        chosen = self._chosen(given)
        return [
            [self._one(files[0], tell)] if files[0] in chosen else files for files in given.models
        ]

    def _chosen(self, given: _Given) -> list[File]:
        """The first file of each."""
        return [f for f, *_ in given.models if given.headers.of(f.path).kind == "model"]

    def _one(self, first: File, tell: Progress) -> File:
        name = convert.quantized_name(first.name, self.format)
        program = engine.host_runtime(tell).program()
        path = convert.to_format(
            first.path, self.folder / name, self.format, program, again=self.again, tell=tell
        )
        return _file(path, name)


def _file(path: Path, name: str) -> File:
    try:
        status = path.stat()
    except OSError as error:
        raise AccessError(f"{path}: {error.strerror}", path=path) from error
    if not stat.S_ISREG(status.st_mode):
        what = "is a directory" if stat.S_ISDIR(status.st_mode) else "not a regular file"
        raise RefusedError(f"{path}: {what}", path=path)
    return File(path, name, status.st_size)


def _stamp(path: Path) -> tuple[int, ...] | None:
    """What changes with a file's content; None for one that is out of reach."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _check_names(extras: Sequence[File], gui: bool, prove: bool) -> None:
    """Leave to us what we write ourselves."""
    own = {ARGS, MANIFEST, SIGNATURE, STATE, *([PROOF] if prove else [])}
    for file in extras:
        if file.name in own or file.name.startswith((GPU, *([GUI] if gui else []))):
            raise RefusedError(
                f"cannot add {file.name!r}: pyllamafile itself writes what has such a name",
                hint="--args-file FILE gives the text of .args" if file.name == ARGS else None,
            )


def _remembered_as(type: str | None, reads: bool) -> Sequence[str]:
    """The arguments for keys and values of a type.

    Raises:
        RefusedError: There is no such type, or nothing is read.
    """
    if type is None:
        return ()
    if type not in TYPES:
        raise RefusedError(
            f"keys and values can't be {type!r} here", hint=f"there are {', '.join(TYPES)}"
        )
    if not reads:
        raise RefusedError(
            "nothing is read whose keys and values could be of a type",
            hint="--read names a document; --arg -ctk --arg TYPE holds for every context",
        )
    return ("-ctk", type, "-ctv", type)


def _args_text(args: Sequence[str], args_file: Path | None) -> str | None:
    lines = []
    if args_file is not None:
        file = _file(args_file, ARGS)
        lines.append(arguments.of_file(file.path).decode().rstrip("\n"))
    for argument in args:
        if "\0" in argument:
            raise RefusedError(f"the argument {argument!r} has a character that none can have")
        try:
            argument.encode()
        except UnicodeEncodeError as error:
            raise RefusedError(f"the argument {argument!r} is not UTF-8 text") from error
        lines.append(quote(argument))
    return "\n".join(lines) + "\n" if lines else None


def _stopping(tell: Progress, checked: Aside[None]) -> Progress:
    """The same, until what is done aside fails."""

    def told(step: Step) -> None:
        if checked.error:
            raise checked.error
        tell(step)

    return told


# Where it goes


def _check_output(path: Path, inputs: Sequence[Path], force: bool) -> None:
    try:
        if path.is_dir():
            raise RefusedError(f"{path}: is a directory", hint="name a file with -o", path=path)
        if not path.parent.is_dir():
            raise NotFoundError(f"{path.parent}: no such directory", path=path.parent)
        if not path.exists():
            return
        if any(path.samefile(given) for given in inputs):
            raise RefusedError(
                f"{path}: is input and output at once", hint="name another -o", path=path
            )
        if not path.is_file():
            raise RefusedError(f"{path}: not a regular file, so it can't be replaced", path=path)
    except OSError as error:  # a name too long, a directory that may not be searched
        raise AccessError(f"{path}: {error.strerror}", path=path) from error
    if not force:
        raise exists(path)


def _write(
    decided: Plan,
    given: _Given,
    checked: Aside[None],
    destination: Path,
    beside: Callable[[int], tuple[Path, bytes] | None],
    force: bool,
    state: bool,
    tell: Progress,
) -> State | None:
    """Write the file, with a state or without, and its companion before it gets its name."""
    kept = None
    with contextlib.ExitStack() as undo:
        mode = permitted(0o777)
        with appearing(destination, decided.size, force=force, mode=mode) as (file, path):
            write(file, decided, tell)
            checked.result()
            check_written(path, destination)
            given.headers.check_unchanged()
            if state:
                kept = put_in(path, destination, tell)
                check_written(path, destination)
            if companion := beside(path.stat().st_size):
                write_companion(*companion, force, undo)
        undo.pop_all()
    return kept


def _convert(
    decided: Plan,
    given: _Given,
    destination: Path,
    companion: tuple[Path, bytes] | None,
    force: bool,
    tell: Progress,
) -> None:
    """Make the file of the GGUF itself."""
    first, *rest = [*itertools.chain(*given.models, *given.partners.values()), *given.extras]
    with contextlib.ExitStack() as undo:
        if companion:
            write_companion(*companion, force, undo)
        conversion.convert(decided, first.path, destination, rest, tell)
        undo.pop_all()
    check_written(destination, destination)
