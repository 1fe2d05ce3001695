"""Lets a script of this folder be started with any Python: .venv runs it, made first if need be."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

PROJECT = Path(__file__).parent.parent


def ensure(module: str, extras: str) -> None:
    """Go on if a module can be imported; otherwise start the script again where it can.

    Args:
        module: What the script needs.
        extras: Those of pyproject.toml that bring it, with commas between them.
    """
    if importlib.util.find_spec(module):
        return
    python = PROJECT / ".venv" / "bin" / "python"
    if Path(sys.prefix) == python.parent.parent:
        raise SystemExit(f"{module} can't be imported: scripts/setup {extras}")
    try:
        subprocess.run([PROJECT / "scripts" / "setup", extras], check=True)
    except subprocess.CalledProcessError as error:  # which has said why
        raise SystemExit(error.returncode) from None
    os.execv(python, [python, *sys.argv])
