"""The text of ggml-metal's kernels: what is in a program, and where upstream looks for it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pyllamafile.errors import DamagedError
from pyllamafile.native.building import metal, shaders
from pyllamafile.progress import silent

CODE = """\
#define GGML_METAL_LIBS \\
    X(ONE,   one)       \\
    X(OTHER, other)
"""
FILES = {
    "ggml/src/ggml-metal/ggml-metal-device.m": CODE,
    "ggml/src/ggml-metal/kernels/one.metal": '#include "common.h"\n#include "more.h"\nONE\n',
    "ggml/src/ggml-metal/kernels/other.metal": '#include "common.h"\nOTHER\n',
    "ggml/src/ggml-metal/kernels/unlisted.metal": "UNLISTED\n",
    "ggml/src/ggml-metal/kernels/common.h": (
        '#pragma once\n#include "impl.h"\n#include <metal_stdlib>\nCOMMON\n'
    ),
    "ggml/src/ggml-metal/kernels/more.h": (
        '#pragma once\n#include "common.h"\n#if EMBED\n__embed_tables.h__\n#else\n'
        '#include "tables.h"\n#endif\nMORE\n'
    ),
    "ggml/src/ggml-metal/impl.h": "IMPL\n",
    "ggml/src/tables.h": "TABLES\n",
}
ONE = b"IMPL\n#include <metal_stdlib>\nCOMMON\n#if EMBED\nTABLES\n#else\n#endif\nMORE\nONE\n"
OTHER = b"IMPL\n#include <metal_stdlib>\nCOMMON\nOTHER\n"


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    """A folder as llama.cpp's, with kernels of two kinds."""
    for name, content in FILES.items():
        path = tmp_path / "llama" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return tmp_path / "llama"


def test_each_text_has_its_headers_once(llama: Path) -> None:
    assert metal.texts(llama) == {"one": ONE, "other": OTHER}


def test_a_program_has_one_stream_and_room_for_each_text(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    zstandard = pytest.importorskip("zstandard")
    monkeypatch.setenv("PYLLAMAFILE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(metal, "llama_source", lambda progress: llama)
    folder = metal.packed_texts(silent)
    lines = (folder / "texts.S").read_text()
    room = re.findall(r"^NAME\(ggml_metallib_(\w+)_start\):\n +\.space (\d+)$", lines, re.MULTILINE)
    assert room == [("one", str(len(ONE))), ("other", str(len(OTHER)))]
    (stream,) = re.findall(r'^ +\.incbin "(.+)"$', lines, re.MULTILINE)
    assert zstandard.ZstdDecompressor().decompress(Path(stream).read_bytes()) == ONE + OTHER
    monkeypatch.setattr(shaders, "compress", None)
    assert metal.packed_texts(silent) == folder


def test_other_sources_are_refused(llama: Path) -> None:
    (llama / "ggml/src/tables.h").unlink()
    with pytest.raises(DamagedError, match=r"include tables\.h"):
        metal.texts(llama)
    (llama / "ggml/src/ggml-metal/ggml-metal-device.m").write_text("")
    with pytest.raises(DamagedError, match="lists its kernels"):
        metal.texts(llama)
