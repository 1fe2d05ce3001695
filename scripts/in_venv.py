"""Lets a script of this folder be started with any Python: .venv runs it, made first if need be."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

PROJECT = Path(__file__).parent.parent


SET_UP = "PYLLAMAFILE_SET_UP"  # in the environment of what was started again


def ensure(extras: str, *modules: str) -> None:
    """Go on if all modules can be imported; otherwise start the script again where they can.

    Args:
        extras: Those of pyproject.toml that bring them, with commas between them.
        modules: What the script needs.
    """
    again = os.environ.pop(SET_UP, None)
    missing = [module for module in modules if not importlib.util.find_spec(module)]
    if not missing:
        return
    if again:
        raise SystemExit(f"{', '.join(missing)} can't be imported: scripts/setup {extras}")
    try:
        subprocess.run([PROJECT / "scripts" / "setup", extras], check=True)
    except subprocess.CalledProcessError as error:  # which has said why
        raise SystemExit(error.returncode) from None
    python = PROJECT / ".venv" / "bin" / "python"
    os.execve(python, [python, *sys.argv], {**os.environ, SET_UP: extras})
