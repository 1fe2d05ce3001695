"""Containers that nobody would write, and what is made at random, for every reader that we have."""

from __future__ import annotations

import json
import os
import re
import struct
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import gguf
import hostile
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from running import need

from pyllamafile import zipalign
from pyllamafile.errors import PyllamafileError
from pyllamafile.models import gguf as weights

CONTAINERS = hostile.containers()
# Where the standard library gives an answer that is wrong, or refuses without need.
ODD = {"zip64 end that is not needed and lies", "an extra field that is too long"}
# What no reader of ours may take for an archive.
REFUSED = [
    "empty",
    "overlapping entries",
    "an entry in the directory",
    "an offset past the end",
    "an offset of 2^64 - 1",
    "an offset of 2^63",
    "a size of 2^64 - 1",
    "a size that wraps around",
    "stored, with a size of 2^64 - 1",
    "zip64 sizes that are cut",
    "no central header",
    "2^64 - 1 entries",
    "a directory of 2^64 - 1 bytes",
    "a directory at 2^64 - 1",
    "a directory at 2^63",
    "a directory that wraps around",
    "a directory larger than the file",
]
# Of those, what the runtime reads nevertheless: it looks entries up and unpacks none together.
RUNTIME_READS = {"overlapping entries", "stored, with a size of 2^64 - 1"}


@pytest.mark.parametrize("name", CONTAINERS)
def test_an_answer_or_an_error(tmp_path, name):
    path = tmp_path / "c.zip"
    path.write_bytes(CONTAINERS[name])
    with hostile.little_memory(256 << 20):
        sound = hostile.check_python_readers(path)
    assert path.read_bytes() == CONTAINERS[name]
    assert not (sound and name in REFUSED)
    if sound and name not in ODD:
        members = zipalign.read(path).members
        assert [(m.name, m.size, m.header_offset) for m in members] == hostile.zipfile_answer(path)


def test_a_directory_of_gigabytes_is_not_read(tmp_path):
    """A sparse file has room for a directory that no memory has."""
    path = tmp_path / "c.zip"
    size = 64 << 30
    with path.open("wb") as file:
        file.write(b"PK\1\2")
        file.truncate(size)
        file.seek(size)
        file.write(struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, 1, 1, size, 0))
        file.write(struct.pack("<4sLQL", b"PK\6\7", 0, size, 1))
        file.write(struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 65535, 65535, 2**32 - 1, 2**32 - 1, 0))
    with hostile.little_memory(256 << 20):
        assert not hostile.check_python_readers(path)
    with pytest.raises(PyllamafileError, match="is the most for one"):
        zipalign.read(path)


# What is made at random


quickly = settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
names = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
good_names = st.lists(
    st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="/\\:"), min_size=1),
    min_size=1,
    max_size=3,
).map("/".join)
# Not what an end record begins with: Python's zipfile before 3.13 takes it for one.
comments = st.binary(max_size=50).filter(lambda comment: b"PK\5\6" not in comment)
entries = st.lists(
    st.tuples(
        st.one_of(good_names, names),
        st.one_of(st.binary(max_size=200), st.binary(max_size=9).map(lambda b: b * 500)),
        st.booleans(),
        st.sampled_from([1, 1, 64, 4096]),
    ),
    max_size=6,
)


@quickly
@given(entries, st.binary(max_size=300), comments)
def test_what_is_written_is_what_zipfile_reads(entries, prefix, comment):
    made = [
        zipalign.deflate(name, content, align=align)
        if deflated
        else zipalign.Entry(name, content, align=align)
        for name, content, deflated, align in entries
    ]
    try:
        layout = zipalign.layout(made, len(prefix), comment=comment)
    except PyllamafileError:
        bad = {"", ".", ".."}
        parts = [part for name, *_ in entries for part in name.split("/")]
        control = any(c in "\\\x7f" or c < " " for name, *_ in entries for c in name)
        twice = len({name for name, *_ in entries}) < len(entries)
        drive = any(name[1:2] == ":" for name, *_ in entries)
        assert control or twice or drive or not bad.isdisjoint(parts)
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.zip"
        path.write_bytes(prefix)
        with path.open("r+b") as file:
            zipalign.write(file, layout)
        assert path.stat().st_size == layout.size
        assert path.read_bytes().startswith(prefix)
        with zipfile.ZipFile(path) as archive:
            assert archive.testzip() is None
            assert archive.comment == comment
            found = [(info.filename, archive.read(info)) for info in archive.infolist()]
        assert found == [(name, content) for name, content, *_ in entries]
        members = zipalign.read(path).members
        assert [member.name for member in members] == [name for name, *_ in entries]
        for member, (*_, align) in zip(members, entries, strict=True):
            assert member.data_offset % align == 0


keys = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=30)
T = gguf.GGUFValueType
values = st.one_of(
    st.tuples(st.just(T.UINT8), st.integers(0, 2**8 - 1)),
    st.tuples(st.just(T.INT16), st.integers(-(2**15), 2**15 - 1)),
    st.tuples(st.just(T.INT32), st.integers(-(2**31), 2**31 - 1)),
    st.tuples(st.just(T.UINT64), st.integers(0, 2**64 - 1)),
    st.tuples(st.just(T.FLOAT64), st.floats(allow_nan=False)),
    st.tuples(st.just(T.BOOL), st.booleans()),
    st.tuples(st.just(T.STRING), st.text(st.characters(codec="utf-8"), max_size=40)),
    st.tuples(st.just(T.ARRAY), st.lists(st.text(st.characters(codec="utf-8")), min_size=1)),
    st.tuples(st.just(T.ARRAY), st.lists(st.integers(0, 9), min_size=1, max_size=50)),
)
kinds = st.sampled_from([np.float32, np.float16, np.int8, np.int32, np.float64])
shapes = st.lists(st.integers(1, 5), min_size=1, max_size=4).map(tuple)


@quickly
@given(
    st.dictionaries(keys.map("x.".__add__), values, max_size=8),
    st.dictionaries(
        st.text("abc.0ü", min_size=1, max_size=20), st.tuples(kinds, shapes), max_size=5
    ),
    st.sampled_from([8, 32, 128]),
)
def test_headers_are_read_as_gguf_reads_them(metadata, tensors, alignment):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "m.gguf"
        writer = gguf.GGUFWriter(path, "llama")
        writer.add_custom_alignment(alignment)
        for key, (kind, value) in metadata.items():
            writer.add_key_value(key, value, kind)
        for name, (dtype, shape) in tensors.items():
            writer.add_tensor(name, np.ones(shape, dtype))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        ours, theirs = weights.read(path), gguf.GGUFReader(path)
        expected = {key: field for key, field in theirs.fields.items() if key[:5] != "GGUF."}
        assert list(ours.metadata) == list(expected)
        for key, field in expected.items():
            value = ours.metadata[key]
            if isinstance(value, weights.Array):
                assert (field.types[0], value.length) == (T.ARRAY, len(field.data))
                assert value.type.upper() == field.types[-1].name
            else:
                assert value == field.contents()
        found = [(t.name, t.shape, t.type, t.offset, t.size) for t in ours.tensors]
        assert found == [
            (t.name, tuple(map(int, t.shape)), t.tensor_type.name, t.data_offset, t.n_bytes)
            for t in theirs.tensors
        ]


@quickly
@given(st.data())
def test_mutated_headers_are_refused_or_read_within_the_file(data):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "m.gguf"
        content = bytearray(hostile.tiny_gguf(path, tokens=4).read_bytes())
        header = weights.read(path).data_offset
        for _ in range(data.draw(st.integers(1, 4))):
            at = data.draw(st.integers(0, header - 1))
            width = data.draw(st.sampled_from([1, 1, 4, 8]))
            new = data.draw(st.integers(0, 256**width - 1)).to_bytes(width, "little")
            content[at : at + width] = new
        path.write_bytes(content)
        try:
            with hostile.little_memory(256 << 20):
                found = weights.read(path)
        except PyllamafileError as error:
            hostile.check_message(error)
            return
        assert all(t.offset + t.size <= len(content) for t in found.tensors)


# The runtime's own reader


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    """container.cpp as a program, under AddressSanitizer and UBSan."""
    clang = need("clang++", "clang")
    program = tmp_path_factory.mktemp("reader") / "reader"
    flags = ["-O1", "-DPROGRAM", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    done = subprocess.run([clang, *flags, *hostile.sources(), "-o", program], capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")

    def read(path: Path) -> list[list] | None:
        options = "allocator_may_return_null=0:max_allocation_size_mb=256"
        done = subprocess.run(
            [program, path],
            capture_output=True,
            text=True,
            timeout=20,
            env={**os.environ, "ASAN_OPTIONS": options},
        )
        assert (done.returncode, done.stderr) == (0, "")
        return json.loads(done.stdout)

    return read


@pytest.mark.native
@pytest.mark.parametrize("name", CONTAINERS)
def test_the_runtime_gives_the_same_answer_or_none(tmp_path, reader, name):
    path = tmp_path / "c.zip"
    path.write_bytes(CONTAINERS[name])
    found = reader(path)
    if found is None:
        return
    assert name not in set(REFUSED) - RUNTIME_READS
    try:
        members = zipalign.read(path).members
    except PyllamafileError:
        return
    ours = [m for m in members if m.method in (0, 8) and not m.flags & 1]
    facts = [[m.data_offset, m.stored_size, m.size, m.crc] for m in ours]
    assert [row[1:5] for row in found] == facts
    with zipfile.ZipFile(path) as archive:
        for info, row in zip(archive.infolist(), found, strict=False):
            assert row[0].encode("latin-1") in (
                info.orig_filename.encode("cp437", "replace"),
                info.orig_filename.encode(),
            )
            try:
                content = archive.read(info)
            except Exception:  # damaged for both
                continue
            assert row[5].encode("latin-1") == content


@pytest.mark.native
def test_the_fuzzer_runs(tmp_path):
    """Briefly, and without all of llama.cpp, which scripts/fuzz by itself compiles first."""
    need("clang++", "clang")
    script = Path(__file__).parents[2] / "scripts" / "fuzz"
    command = [sys.executable, script, "--seconds", "5", "--corpus", tmp_path, "container", "gguf"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Python readers:" in done.stdout


@pytest.mark.native
def test_the_fuzzer_names_its_readers():
    script = Path(__file__).parents[2] / "scripts" / "fuzz"
    wrong = subprocess.run([sys.executable, script, "none"], capture_output=True, text=True)
    assert wrong.returncode == 2
    readers = wrong.stderr.split("; there are ")[1].strip().split(", ")
    assert {"container", "model", "slot", "documents", "messages"} <= {*readers}
    said = subprocess.run([sys.executable, script, "--help"], capture_output=True, text=True)
    assert re.findall(r"^ {4}([a-z]+)", said.stdout, re.MULTILINE) == readers
