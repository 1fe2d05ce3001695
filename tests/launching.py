"""Files that are started: a head, a program of a few bytes, and the shells that read them."""

from __future__ import annotations

import functools
import hashlib
import os
import random
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from fixtures import tiny_pe

from pyllamafile.launcher import BLOCK, HeadProgram, Program, head, pack
from pyllamafile.runtimes import Runtime
from pyllamafile.targets import host

HOST = host()
if HOST is None:  # pragma: no cover
    pytest.skip("no target for this machine", allow_module_level=True)

SHELLS = {  # how to call it: the Debian package that has it
    "sh": "dash",
    "bash": "bash",
    "bash --posix": "bash",
    "dash": "dash",
    "zsh": "zsh",
    "ksh93": "ksh93u+m",
    "mksh": "mksh",
    "yash": "yash",
    "posh": "posh",
    "busybox ash": "busybox",
}
if os.path.realpath(shutil.which("sh") or "") == shutil.which("dash"):
    del SHELLS["sh"]
# Those that are most people's; with the others a test is slow.
COMMON = {"sh", "bash", "dash"}

# What stands for llama.cpp: it does what its first words say, or prints them all.
SCRIPT = b"""#!/bin/sh
if [ "$1" = --probe ]; then exit 0; fi
case ${3-} in
cat) exec cat ;;
env) exec env ;;
exit) exit "$4" ;;
path) printf %s "$PATH" ;;
pid) echo $$; exec sleep 60 ;;
*) printf '%s\\0' "$@" ;;
esac
exit
"""
# Something for gzip to do; the shell never reads so far.
SCRIPT += random.Random(7).randbytes(100_000)


def runtime(program: bytes, packed: bytes, target: str = HOST.name) -> Runtime:
    return Runtime(
        target=target,
        path=Path("runtime.gz"),
        packed_size=len(packed),
        packed_sha256=hashlib.sha256(packed).hexdigest(),
        size=len(program),
        sha256=hashlib.sha256(program).hexdigest(),
        llama_cpp="0",
        levels=(),
        origin="package",
    )


packed_once = functools.cache(pack)


def llamafile(
    path: Path, program: bytes = SCRIPT, outer: HeadProgram | None = None, **changes: object
) -> Path:
    """A head, a gap, the program at the second block, and something behind it."""
    packed = packed_once(program)
    row = replace(runtime(program, packed), **changes)  # type: ignore[arg-type]
    begin = head([Program(row, 2 * BLOCK)], outer)
    path.write_bytes(begin.ljust(2 * BLOCK, b"\0") + packed + b"PK weights")
    path.chmod(0o755)
    return path


# What a file itself is.
KINDS = {
    "script": None,
    "windows": HeadProgram(runtime(tiny_pe(), b"", "windows-amd64"), tiny_pe()),
}
