"""What other people have published, of which tests read something: fetched once, into the cache."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from pyllamafile import native
from pyllamafile.errors import UnavailableError
from pyllamafile.native.building import tools


def kept(name: str, fetch: Callable[[Path], object]) -> Path:
    """The folder in the cache with what is read of a package, or a skip where it can't be had."""
    folder = native.cache() / "witnesses" / re.sub(r"\W+", "-", name).strip("-")
    if not folder.is_dir():
        draft = folder.with_suffix(".draft")
        with tools.lock("witnesses", "fetches witnesses", lambda step: None):
            if not folder.is_dir():
                shutil.rmtree(draft, ignore_errors=True)
                draft.mkdir(parents=True)
                try:
                    fetch(draft)
                except (subprocess.SubprocessError, UnavailableError) as error:
                    pytest.skip(f"{name} can't be fetched: {error}")
                draft.rename(folder)
    return folder
