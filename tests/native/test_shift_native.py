"""Weights that are shifted under the real runtime, on the file system that the tests run on."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from test_shift import exchange

import pyllamafile
from pyllamafile import shift


@pytest.mark.native
def test_the_real_runtime_finds_its_weights_at_every_step(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole way, from a GGUF to another engine."""
    monkeypatch.chdir(tmp_path)
    if shift.unit(tmp_path) is None:
        pytest.skip("files here can't be shifted")
    shutil.copy(model, "m.gguf")

    def answer() -> str:
        command = ["sh", "./m.llamafile", "-p", "Once upon a time", "-n", "4", "--temp", "0"]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    pyllamafile.build("m.gguf", targets=["linux-amd64"], in_place=True)
    expected = answer()
    assert expected.startswith("Once upon a time")
    for step in exchange(Path("m.llamafile")).steps():
        step()
        assert answer() == expected
    assert pyllamafile.verify("m.llamafile") == []
    assert pyllamafile.upgrade("m.llamafile").shifted
    assert answer() == expected
