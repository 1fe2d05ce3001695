"""The one reading of a finished file: whose it is, and what its manifest becomes."""

from __future__ import annotations

import hashlib
import json
import zipfile
from pathlib import Path
from typing import Any

import pytest

from pyllamafile import llamafile
from pyllamafile.copying import Digest
from pyllamafile.errors import PyllamafileError
from pyllamafile.zipalign import Entry

SHA256 = "0" * 64


def facts(**entries: bytes) -> dict[str, Any]:
    return {
        "format": 1,
        "name": "m",
        "pyllamafile": "1",
        "head": {"size": 1, "sha256": SHA256},
        "runtimes": [],
        "entries": {
            name: {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
            for name, data in entries.items()
        },
    }


def with_manifest(path: Path, text: bytes) -> llamafile.Llamafile:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(llamafile.MANIFEST, text)
    return llamafile.read(path)


def test_a_changed_entry_changes_the_manifest(tmp_path):
    old = json.dumps(facts(a=b"old a", b=b"b", gone=b"gone")).encode()
    found = with_manifest(tmp_path / "f", old)
    assert found.ours
    entry = found.updated_manifest([Entry("a", b"newer a"), Entry("c", b"c")], ["gone"])
    text = entry.data.make({"a": Digest(7, 0, "d" * 64), "c": Digest(1, 0, "e" * 64)})
    assert len(text) == entry.data.size
    assert json.loads(text) == {
        **facts(),
        "entries": {
            "a": {"size": 7, "sha256": "d" * 64},
            "b": {"size": 1, "sha256": hashlib.sha256(b"b").hexdigest()},
            "c": {"size": 1, "sha256": "e" * 64},
        },
    }


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"\xff",
        b"[]",
        b"1",
        b"{}",
        b'{"format": 2, "entries": {}}',
        b'{"format": "2"}',
        b'{"format": true}',
        b'{"format": 1}',
        b'{"format": 1, "entries": []}',
        b'{"format": 1, "entries": {"a": 1}}',
        b"[" * 100_000,
    ],
)
def test_a_manifest_that_cannot_be_understood_is_left_alone(tmp_path, text):
    found = with_manifest(tmp_path / "f", text)
    assert found.maker == ("newer" if text.startswith(b'{"format": 2') else "damaged")
    assert found.problem
    assert found.manifest == {}
    with pytest.raises(PyllamafileError, match=r"f: "):
        found.check_known()
