"""Weights that are shifted and not copied: whatever happens, and wherever it ends."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from fixtures import tiny_gguf
from test_build import folder, model, prebuilt

import pyllamafile

__all__ = ["folder", "model", "prebuilt"]  # fixtures

MODEL = 3 << 20  # bytes of a model's


@pytest.fixture(params=["ext4", "xfs"])
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A file system that can shift, and can't share."""
    options = {"ext4": ["-q"], "xfs": ["-q", "-m", "reflink=0"]}[request.param]
    image, place = tmp_path / "image", tmp_path / "disk"
    place.mkdir()
    with image.open("wb") as file:
        file.truncate(400 << 20)
    for command, package in (
        ([f"mkfs.{request.param}", *options, image], {"ext4": "e2fsprogs", "xfs": "xfsprogs"}),
        (["mount", "-o", "loop", image, place], {}),
    ):
        try:
            done = subprocess.run(command, capture_output=True, text=True)
        except FileNotFoundError:
            pytest.skip(f"{command[0]} is missing: apt install {package.get(request.param)}")
        if done.returncode:
            pytest.skip(f"cannot {command[0]}: {done.stderr.strip()}")
    yield place
    subprocess.run(["umount", place], check=True)


@pytest.fixture
def here(disk: Path, prebuilt: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory on it, with a model of some size."""
    monkeypatch.chdir(disk)
    tiny_gguf(Path("m.gguf"))
    with Path("m.gguf").open("ab") as file:
        file.write(os.urandom(MODEL))
    return disk


def test_a_gguf_becomes_the_file_that_build_would_write(here: Path) -> None:
    Path("notes.txt").write_text("notes")
    options = {"args": ["-c", "64"], "add": [("notes.txt", "docs/notes.txt")]}
    expected = pyllamafile.build("m.gguf", "copy", **options)
    number = Path("m.gguf").stat().st_ino
    built = pyllamafile.build("m.gguf", in_place=True, **options)
    assert (built.path, built.size) == (Path("m.llamafile"), expected.size)
    assert built.path.read_bytes() == expected.path.read_bytes()
    assert built.path.stat().st_ino == number
    assert built.path.stat().st_mode & 0o777 == 0o755
    assert os.listxattr(built.path) == []
    assert not Path("m.gguf").exists()
    assert pyllamafile.verify(built.path) == []
