"""A program as what it has beside another one, with the package zstandard as the witness."""

from __future__ import annotations

import os
import random
import subprocess
from pathlib import Path

import pytest
from fixtures import tiny_pe
from running import need, package

from pyllamafile import difference
from pyllamafile.errors import DamagedError, RefusedError
from pyllamafile.launcher import pe
from pyllamafile.launcher.rsrc import Look

PLAIN = random.Random(1).randbytes(300_000)
SECOND = PLAIN[:200_000] + random.Random(2).randbytes(5_000) + PLAIN[200_000:]
LOOK = Look("Ada", None, "0.1.0", "windows-amd64", "pyllamafile")


@pytest.fixture(autouse=True)
def zstandard():
    return package("zstandard", "runtimes")


def test_what_both_have_costs_next_to_nothing(zstandard) -> None:
    frame = difference.made(SECOND, PLAIN)
    assert len(frame) < 5_200
    assert frame == difference.made(SECOND, PLAIN)
    assert difference.program(frame, PLAIN, len(SECOND)) == SECOND
    facts = zstandard.get_frame_parameters(frame)
    assert (facts.content_size, facts.dict_id) == (len(SECOND), 0)
    prefix = zstandard.ZstdCompressionDict(PLAIN, dict_type=zstandard.DICT_TYPE_RAWCONTENT)
    assert zstandard.ZstdDecompressor(prefix).decompress(frame) == SECOND


def test_zstd_itself_unpacks_it(tmp_path: Path) -> None:
    zstd = need("zstd")
    (tmp_path / "plain").write_bytes(PLAIN)
    (tmp_path / "frame.zst").write_bytes(difference.made(SECOND, PLAIN))
    command = [zstd, "-q", "-d", "--patch-from=plain", "frame.zst", "-o", "second"]
    subprocess.run(command, check=True, cwd=tmp_path, env=os.environ)
    assert (tmp_path / "second").read_bytes() == SECOND


def test_of_a_program_for_windows_it_is_what_no_script_and_no_persona_changes() -> None:
    program = tiny_pe(debug_data=False)
    head = pe.graft(program, b"exit 0")
    common = difference.common(program)
    assert common == program[0x400:]
    for other in (head, pe.dressed(program, LOOK), pe.graft(pe.dressed(program, LOOK), b"exit")):
        assert difference.common(other) == common
    frame = difference.made(program + b"for GPUs", program)
    assert difference.program(frame, head, len(program) + 8) == program + b"for GPUs"


def test_damage_is_named() -> None:
    frame = difference.made(SECOND, PLAIN)
    size = len(SECOND)
    for wrong, plain in ((frame[:-9], PLAIN), (b"x" + frame, PLAIN), (frame + b"x", PLAIN)):
        with pytest.raises(DamagedError, match="is damaged"):
            difference.program(wrong, plain, size)
    with pytest.raises(DamagedError, match="another size"):
        difference.program(frame, PLAIN, size + 1)
    for broken in (b"MZ", tiny_pe()[:0x90]):
        with pytest.raises(RefusedError, match="not a Windows program"):
            difference.common(broken)
