"""A runtime that is started here: unpacked for it, or asked what it says to arguments."""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from pyllamafile.native.building import tools


@contextlib.contextmanager
def unpacked(program: bytes) -> Iterator[Path]:
    """A runtime in a folder of its own, for as long as it is needed."""
    with tempfile.TemporaryDirectory(dir=tools.folder("run"), prefix="runtime-") as folder:
        path = Path(folder) / "runtime"
        path.write_bytes(program)
        path.chmod(0o700)
        yield path


def refusal(program: bytes, text: bytes) -> str | None:
    """Why a file with these default arguments would not start, in one line.

    Args:
        program: A runtime that runs here.
        text: The text of `.args`.

    Returns:
        The runtime's own words; None if it would start, or if no program may be started here.
    """
    with unpacked(program) as path:
        file = path.with_name("args")
        file.write_bytes(text)
        said = _said(path, "--check-args", file)
    return said.removeprefix(".args of this file: ") if said is not None else None


def weights_refusal(program: bytes, weights: Sequence[Path]) -> str | None:
    """Why weights could not be loaded, in one line; their tensors are not read.

    Args:
        program: A runtime that runs here.
        weights: A GGUF; of a split model all parts in order, in one folder.

    Returns:
        The runtime's own words; None if they could be, or if no program may be started here.
    """
    with unpacked(program) as path:
        return _said(path, "--check-weights", *weights)


def _said(program: Path, *question: str | Path) -> str | None:
    """What a runtime says is wrong; None if it says nothing."""
    # a variable that stands for an option is a matter of whoever starts the file
    environment = {k: v for k, v in os.environ.items() if not k.startswith("LLAMA_")}
    try:
        done = subprocess.run([program, *question], env=environment,
                              stdin=subprocess.DEVNULL, capture_output=True)  # fmt: skip
    except OSError:
        return None
    if done.returncode != 1:
        return None
    return done.stderr.decode(errors="replace").rpartition("error: ")[2].strip()
