"""A llamafile's server, for as long as something is measured."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def serving(llamafile: Path, *words: str, **variables: str) -> Iterator[str]:
    """Start it with these arguments and variables; gives its URL, which ends with a slash."""
    process = subprocess.Popen(
        [llamafile, "--server", "--nobrowser", "--port", "0", *words],
        stdout=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        env=os.environ | variables,
        text=True,
    )
    assert process.stdout is not None
    try:
        ready = next((line for line in process.stdout if " is ready: " in line), "")
        url = re.search(r"http://\S+", ready)
        if url is None:
            raise SystemExit(f"the server ended with {process.wait()}")
        yield url[0]
    finally:
        process.send_signal(signal.SIGINT)
        process.wait()
        process.stdout.close()
