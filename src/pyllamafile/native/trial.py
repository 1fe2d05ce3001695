"""A runtime that is started here: unpacked for it, or asked what it says to arguments."""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
from collections.abc import Iterator
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
        # a variable that stands for an option is a matter of whoever starts the file
        environment = {k: v for k, v in os.environ.items() if not k.startswith("LLAMA_")}
        try:
            done = subprocess.run([path, "--check-args", file], env=environment,
                                  stdin=subprocess.DEVNULL, capture_output=True)  # fmt: skip
        except OSError:
            return None
    if done.returncode != 1:
        return None
    said = done.stderr.decode(errors="replace").rpartition("error: ")[2].strip()
    return said.removeprefix(".args of this file: ")
