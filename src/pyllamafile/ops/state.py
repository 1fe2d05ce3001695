"""What the model remembers of what a file has read, put into the file."""

from __future__ import annotations

import gzip
import zlib
from dataclasses import replace
from pathlib import Path

from pyllamafile import native, plan, zipalign
from pyllamafile.errors import AccessError, DamagedError, PyllamafileError, RefusedError
from pyllamafile.llamafile import READ, STATE, Llamafile, read
from pyllamafile.native import trial
from pyllamafile.progress import Progress, Step
from pyllamafile.state import CERTAIN, FRONT, LEAST_TEXT, State
from pyllamafile.targets import host


def put_in(path: Path, destination: Path, progress: Progress) -> State | None:
    """Let a runtime evaluate what a file has read, and put the state into the file, in place.

    Args:
        path: Where the file can be read and written.
        destination: What it is called, for messages.
        progress: Told about every step, and why there is no state.

    Returns:
        What there is then; None if there is none: the text is too short for it, or no runtime for
        this system is at hand.

    Raises:
        PyllamafileError: The text does not fit the context, or the file can't be written.
    """
    found = read(path)
    text = found.members.get(READ)
    if text is None or text.size < LEAST_TEXT:
        return None
    program = _program(found)
    if program is None:
        why = "there is no runtime for this system like those in the file, to evaluate the text"
        progress(Step("notice", f"{destination}: has no state: {why}"))
        return None
    what = "evaluating what it has read"
    progress(Step("waiting", what))
    first = found.weights[0].name if found.weights else ""
    evaluating = lambda done, total: progress(Step("share", what, done, total))  # noqa: E731
    try:
        with trial.evaluated(program, path, first, evaluating) as file:
            if file is None:
                if text.size >= CERTAIN:
                    why = (
                        "its runtime makes none: it has a draft, .args say so, or there is no room "
                        "for it, or it would have more than 2 GiB"
                    )
                    progress(Step("notice", f"{destination}: has no state: {why}"))
                return None
            size = file.stat().st_size
            with file.open("rb") as stream:
                state = State.of(stream.read(FRONT), size)
            entry = zipalign.from_file(file, STATE, align=plan.alignment(STATE))
            tell = lambda step: progress(replace(step, what=f"writing {destination.name}"))  # noqa: E731
            zipalign.add(path, [entry, found.updated_manifest([entry])], progress=tell)
    except trial.FailedError as error:
        raise RefusedError(
            f"{destination}: what it has read can't be evaluated: {error}",
            hint="with less text it works, or with a model that has a longer context",
            path=destination,
        ) from error
    return state


def renew(path: Path, progress: Progress) -> State | None:
    """The same for a finished file; where it can't be done, that is said and no error."""
    try:
        return put_in(path, path, progress)
    except PyllamafileError as error:
        progress(Step("notice", f"{path}: has no state any more: {error.message}"))
        return None


def _program(found: Llamafile) -> bytes | None:
    """The runtime in a file for this system, or one at hand that is like those in it."""
    here = host()
    if here is None:
        return None
    facts = next((row for row in found.runtimes if row["target"] == here.name), None)
    if facts is None:
        runtime = native.find(here)
        versions = {row["llama_cpp"] for row in found.runtimes}
        alike = runtime and versions == {runtime.llama_cpp}
        return runtime.program() if runtime and alike else None
    try:
        with found.path.open("rb") as file:
            file.seek(facts["offset"])
            packed = file.read(facts["packed_size"])
    except OSError as error:
        raise AccessError(f"{found.path}: {error.strerror}", path=found.path) from error
    try:
        return gzip.decompress(packed) if facts["offset"] else packed
    except (OSError, EOFError, zlib.error) as error:
        raise DamagedError(
            f"{found.path}: its runtime for {facts['target']} is damaged", path=found.path
        ) from error
