"""Which format a model should be quantized to, for a machine and a use."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from pyllamafile import documents, engine
from pyllamafile.errors import RefusedError, UnavailableError
from pyllamafile.machine import memory
from pyllamafile.models import forecast, sources
from pyllamafile.models.forecast import FORMATS, Memory
from pyllamafile.models.gguf import Weights
from pyllamafile.paths import PathLike, path_of, several
from pyllamafile.state import TYPES
from pyllamafile.targets import TOO_LARGE

# Reading is bound by computing, writing by memory: the smaller, the faster. As measured with
# scripts/bench_speed.py (the README's table), and at Phi-3's sizes.
_GOOD_FOR: Final[Mapping[str, str]] = {
    "F16": "",
    "BF16": "reading",
    "Q8_0": "reading",
    "Q6_K": "reading",
    "Q5_K_M": "reading, writing",
    "Q4_K_M": "reading, writing",
    "Q4_0": "writing",
    "Q2_K": "writing",
}

# What to take, the first that will do, and why.
_PREFERRED: Final[Mapping[str, str]] = {
    "Q5_K_M": "answers hardly worse than in F16, and is good for reading and writing",
    "Q4_K_M": "answers a little worse than in F16, and is good for reading and writing",
    "Q4_0": "answers somewhat worse than in F16, and writes fast",
    "Q2_K": "makes mistakes that F16 doesn't, but it runs",
}
_SMALL: Final = 1_500_000_000
_FOR_SMALL: Final = {"Q8_0": "answers as in F16, which a model this small needs; it is fast anyway"}

_BESIDE: Final = 64 << 20  # bytes that twelve runtimes and the web GUI take at most
_DEFAULT_CONTEXT: Final = 4096


@dataclass(frozen=True)
class Row:
    """A format that the model could be in.

    Attributes:
        format: For example ``Q5_K_M``.
        size: Of the GGUF, in bytes.
        memory: What it takes when it runs.
        fits: Whether the machine has so much.
        good_for: ``reading`` prompts, ``writing`` answers, both, or ``""``.
        windows: Whether a llamafile of it is one file on Windows.
    """

    format: str
    size: int
    memory: Memory
    fits: bool
    good_for: str
    windows: bool


@dataclass(frozen=True)
class Reading:
    """What a model would remember of documents (`build` with `read`).

    Attributes:
        text: The bytes of their text.
        tokens: How many tokens that is.
        exact: Whether the model's own tokenizer said so; else a token counts as four bytes.
        fits: Whether so many are within the context that the model was trained for.
        per_token: What it remembers of each, in bytes, by the type of keys and values.
    """

    text: int
    tokens: int
    exact: bool
    fits: bool
    per_token: Mapping[str, int]


@dataclass(frozen=True)
class Advice:
    """What to do with a model.

    Attributes:
        name: The GGUF that was looked at.
        parameters: How many the model has.
        quantization: What most of it is quantized to already, or None.
        context: The tokens of context that the memory is for.
        own_context: The most that the model was trained for, or None.
        machine: The machine's memory, in bytes.
        usable: How much of it may be taken, in bytes.
        rows: The formats, best first; of a model that is quantized, that one first.
        recommended: The format to take, or None if none fits.
        reason: Why.
        reading: What it would remember of documents, if any were given.
    """

    name: str
    parameters: int
    quantization: str | None
    context: int
    own_context: int | None
    machine: int
    usable: int
    rows: tuple[Row, ...]
    recommended: str | None
    reason: str
    reading: Reading | None = None

    def as_dict(self) -> dict[str, Any]:
        """All of it in types that JSON has, with the sum of each row's memory."""
        found = asdict(self)
        for row, facts in zip(self.rows, found["rows"], strict=True):
            facts["memory"]["total"] = row.memory.total
        return found


def advise(
    given: PathLike,
    *,
    context: int | None = None,
    machine: int | None = None,
    read: PathLike | Sequence[PathLike] = (),
) -> Advice:
    """Say what a model would be in each format, and which one to take.

    Args:
        given: A GGUF, as `sources.find` knows it; of one on the hub only the header is fetched.
        context: In tokens; by default the model's own, and 4096 at most.
        machine: The memory to fit into, in bytes; by default this machine's.
        read: Documents that the model is to have read. Their tokens are counted by the runtime of
            this system, if it is at hand and the GGUF is a file.

    Raises:
        PyllamafileError: There is no such model, it is no language model, or it can't have so
            long a context.
    """
    for what, value in {"context": context, "machine": machine}.items():
        if value is not None and not 1 <= value < math.inf:
            raise RefusedError(f"the {what} is {value}, and has to be a number from 1")
    path_of(given)
    source = sources.find(given)
    parts = sources.headers(source)
    own = parts[0].context_length
    if not parts[0].vocabulary or not any(part.tensors for part in parts):
        raise RefusedError(f"{given}: not a language model with weights", path=source.path)
    if context is not None and own and context > own:
        raise RefusedError(
            f"{given}: its context is at most {own} tokens, not {context}", path=source.path
        )
    context = context or min(own or _DEFAULT_CONTEXT, _DEFAULT_CONTEXT)
    machine = memory().usable if machine is None else machine
    if machine is None:
        raise UnavailableError(
            "this system doesn't say how much memory it has", hint="--memory GB says it"
        )
    usable = machine * 7 // 8  # the rest is for the system
    as_it_is = forecast.quantized(parts)

    def row(format: str, size: int, taken: Memory) -> Row:
        return Row(
            format,
            size,
            taken,
            fits=taken.total <= usable,
            good_for=_GOOD_FOR.get(format, ""),
            windows=size + _BESIDE < TOO_LARGE,
        )

    rows = [
        row(format, forecast.size(parts, format), forecast.memory(parts, context, format))
        for format in FORMATS
    ]
    if as_it_is:
        called = parts[0].quantization or as_it_is
        size = sum(part.size for part in parts)
        rows = [r for r in rows if r.format != called]
        rows.insert(0, row(called, size, forecast.memory(parts, context)))
    parameters = sum(part.parameters for part in parts)
    recommended, reason = _recommend(rows, parameters, usable, bool(as_it_is))
    return Advice(
        name=source.name,
        parameters=parameters,
        quantization=rows[0].format if as_it_is else None,
        context=context,
        own_context=own,
        machine=machine,
        usable=usable,
        rows=tuple(rows),
        recommended=recommended,
        reason=reason,
        reading=_reading(source.path, parts, own, several(read)) if several(read) else None,
    )


def _reading(
    path: Path | None, parts: Sequence[Weights], own: int | None, given: Sequence[PathLike]
) -> Reading:
    """What a model would remember of documents."""
    text = documents.joined([path_of(each) for each in given]).encode()
    counted = engine.tokens(path, text) if path else None
    tokens = len(text) // 4 if counted is None else counted
    return Reading(
        text=len(text),
        tokens=tokens,
        exact=counted is not None,
        fits=own is None or tokens < own,
        per_token=forecast.remembered(parts, TYPES),
    )


def _recommend(
    rows: Sequence[Row], parameters: int, usable: int, is_quantized: bool
) -> tuple[str | None, str]:
    """The format to take, if there is one, and the reason."""
    least = min(rows, key=lambda row: row.memory.total)
    if is_quantized and rows[0].fits:
        return rows[0].format, "it is quantized already, and quantizing again would lose more"
    if not least.fits:
        return None, (
            f"the smallest, {least.format}, takes {least.memory.total:,} bytes of memory, and"
            f" {usable:,} can be had: a shorter context (-c) takes less"
        )
    reasons = {**(_FOR_SMALL if parameters < _SMALL else {}), **_PREFERRED}
    fitting = {row.format: row for row in rows if row.fits and row.format in reasons}
    ranked = [fitting[format] for format in reasons if format in fitting]
    if not ranked:
        return least.format, "nothing else fits"
    # One file for Windows is worth a step down, but not a plunge.
    good = [row for row in ranked if row.format in ("Q8_0", "Q5_K_M", "Q4_K_M")]
    best = next((row for row in good if row.windows), ranked[0])
    reason = f"it fits, {reasons[best.format]}"
    if not best.windows:
        reason += "; on Windows it takes a small .exe beside it"
    elif best is not ranked[0]:
        reason += f"; unlike {ranked[0].format} it is one file on Windows"
    if is_quantized:
        reason += "; make it of a GGUF in F16, for this one is quantized already"
    return best.format, reason
