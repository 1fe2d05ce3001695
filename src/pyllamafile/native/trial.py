"""A runtime that is started here: unpacked for it, or asked what it says to arguments."""

from __future__ import annotations

import contextlib
import json
import os
import re
import struct
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from pyllamafile.errors import RefusedError
from pyllamafile.native.building import tools
from pyllamafile.progress import Progress, Step


@contextlib.contextmanager
def unpacked(program: bytes) -> Iterator[Path]:
    """A runtime in a folder of its own, for as long as it is needed."""
    with tempfile.TemporaryDirectory(dir=tools.folder("run"), prefix="runtime-") as folder:
        path = Path(folder) / "runtime"
        path.write_bytes(program)
        path.chmod(0o700)
        del program  # a dozen megabytes, while it runs
        yield path


def refusal(program: Path, text: bytes) -> str | None:
    """Why a file with these default arguments would not start, in one line.

    Args:
        program: A runtime that runs here, unpacked.
        text: The text of `.args`.

    Returns:
        The runtime's own words; None if it would start, or if no program may be started here.
    """
    file = program.with_name("args")
    file.write_bytes(text)
    said = _said(program, "--check-args", file)
    return said.removeprefix(".args of this file: ") if said is not None else None


def weights_refusal(program: Path, weights: Sequence[Path]) -> str | None:
    """Why weights could not be loaded, in one line; their tensors are not read.

    Args:
        program: A runtime that runs here, unpacked.
        weights: A GGUF; of a split model all parts in order, in one folder.

    Returns:
        The runtime's own words; None if they could be, or if no program may be started here.
    """
    return _said(program, "--check-weights", *weights)


def embedded(
    program: bytes, model: Path, texts: Sequence[str], tell: Progress
) -> Iterator[tuple[float, ...]]:
    """The vector of each text, of the length 1, in order.

    Args:
        program: A runtime that runs here.
        model: A model for embeddings.
        texts: What is embedded; of what is too long for the model, the beginning.
        tell: Told how many are done.

    Raises:
        RefusedError: The model makes no vectors.
    """
    what = f"embedding passages with {model.name}"
    tell(Step("share", what, 0, len(texts)))
    with unpacked(program) as path, contextlib.ExitStack() as ends:
        file = path.with_name("texts")
        file.write_text("".join(json.dumps(text) + "\n" for text in texts))
        errors = ends.enter_context(tempfile.TemporaryFile())
        process = ends.enter_context(
            subprocess.Popen(
                [path, "--embed-texts", model, file],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
            )
        )
        ends.callback(process.kill)
        assert process.stdout is not None
        numbers = process.stdout.read(4)
        size = struct.unpack("<I", numbers)[0] if len(numbers) == 4 else 0
        done = 0
        while size and done < len(texts) and len(row := process.stdout.read(4 * size)) == 4 * size:
            yield struct.unpack(f"<{size}f", row)
            done += 1
            tell(Step("share", what, done, len(texts)))
        if done < len(texts) or process.wait() != 0:
            errors.seek(0)
            said = errors.read().decode(errors="replace").rpartition("error: ")[2].strip()
            said = said or "makes no vectors of texts"
            raise RefusedError(said if str(model) in said else f"{model}: {said}", path=model)


def tokens(program: Path, weights: Path, text: bytes) -> int | None:
    """How many tokens a text has for a model.

    Args:
        program: A runtime that runs here, unpacked.
        weights: A GGUF.
        text: In UTF-8.

    Returns:
        None if no program may be started here, or the weights can't be loaded.
    """
    file = program.with_name("text")
    file.write_bytes(text)
    words = ("--tokenize", "-m", weights, "-f", file, "--ids", "--no-bos", "--show-count")
    done = _run(program, *words)
    found = re.search(rb"Total number of tokens: (\d+)", done.stdout) if done else None
    return int(found[1]) if found else None


def _said(program: Path, *question: str | Path) -> str | None:
    """What a runtime says is wrong; None if it says nothing."""
    done = _run(program, *question)
    return _reason(done) if done and done.returncode == 1 else None


def _run(program: Path, *words: str | Path) -> subprocess.CompletedProcess[bytes] | None:
    """Run a runtime to its end; None if no program may be started here."""
    try:
        return subprocess.run(
            [program, *words],
            env=_environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
        )
    except OSError:
        return None


def _watched(
    program: Path,
    *words: str | Path,
    keep: int | None,
    tell: Callable[[int, int], None],
    **variables: str,
) -> subprocess.CompletedProcess[bytes] | None:
    """The same with an open file, and with how far it is; what it prints goes nowhere."""
    with contextlib.ExitStack() as ends:
        try:
            process = ends.enter_context(
                subprocess.Popen(
                    [program, *words],
                    env=_environment() | {"PYLLAMAFILE_PROGRESS": "1"} | variables,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.PIPE,
                    pass_fds=() if keep is None else (keep,),
                )
            )
        except OSError:
            return None
        ends.callback(process.kill)
        assert process.stderr is not None
        said = b""
        for line in process.stderr:
            if found := re.fullmatch(rb"progress: (\d+) of (\d+) tokens\n", line):
                tell(int(found[1]), int(found[2]))
            else:
                said += line
        return subprocess.CompletedProcess(process.args, process.wait(), b"", said)


def _environment() -> dict[str, str]:
    """Without variables that stand for options: a matter of whoever starts the file."""
    return {k: v for k, v in os.environ.items() if not k.startswith("LLAMA_")}


def _reason(done: subprocess.CompletedProcess[bytes]) -> str:
    return done.stderr.decode(errors="replace").rpartition("error: ")[2].strip()


_SEVERAL = ": several models inside; "  # weights.cpp


class FailedError(Exception):
    """A runtime ended with an error; the text is its own words."""


@contextlib.contextmanager
def evaluated(
    program: bytes, llamafile: Path, model: str, tell: Callable[[int, int], None]
) -> Iterator[Path | None]:
    """A file with what the model of a llamafile remembers of what it has read.

    Args:
        program: A runtime that runs here.
        llamafile: Whose text, weights and default arguments are taken.
        model: The name of the weights to take where it doesn't say so itself.
        tell: Told how many tokens of how many are evaluated.

    Yields:
        The file, for as long as it is needed; None if there is none, because the text is short or
        no program may be started here.

    Raises:
        FailedError: The runtime could not evaluate it.
    """
    # a file without a name keeps its number in the runtime
    own = llamafile.match("/proc/self/fd/*")
    with unpacked(program) as runtime:
        cache = runtime.with_name("cache")
        question = ("--ask", "?", "-n", "1", "--temp", "0")
        for choice in ((), ("-m", f"@{model}")):
            done = _watched(
                *(runtime, "--llamafile", llamafile, *question, *choice),
                keep=int(llamafile.name) if own else None,
                tell=tell,
                PYLLAMAFILE_CACHE=str(cache),
            )
            reason = _reason(done) if done and done.returncode == 1 else ""
            if _SEVERAL not in reason:
                break
        if reason:
            raise FailedError(reason)
        yield next((cache / "state").glob("*.state"), None)
