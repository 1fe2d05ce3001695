"""The shaders' blob and tables, without a compiler; and how their sources are fetched."""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
import struct
import subprocess
import tarfile
from pathlib import Path

import pytest

from pyllamafile.errors import DamagedError, PyllamafileError, UnavailableError
from pyllamafile.native.building import debian, shaders, source, tools, vulkan
from pyllamafile.native.building.gpus import GPUS
from pyllamafile.native.building.shaders import Tables, pack, strip, unpack
from pyllamafile.targets import TARGETS, WITH_GPU, groups


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache."""
    monkeypatch.setenv("PYLLAMAFILE_CACHE", str(tmp_path / "cache"))
    return tmp_path


# Modules of SPIR-V


def instruction(code: int, *operands: int) -> list[int]:
    return [(len(operands) + 1) << 16 | code, *operands]


def module(*instructions: list[int]) -> bytes:
    words = [0x07230203, 0x10500, 8, 100, 0, *(word for each in instructions for word in each)]
    return struct.pack(f"<{len(words)}I", *words)


CAPABILITY, ENTRY, MODE = (
    instruction(17, 1),
    instruction(15, 5, 4, 0x6E69616D, 0),
    [3 << 16 | 16, 4, 17],
)
SOURCE, NAME = instruction(3, 2, 450), instruction(5, 4, 0x6E69616D, 0)
DECORATION, LATER_NAME = instruction(71, 4, 1), instruction(5, 9, 9)


def test_names_and_sources_are_left_out_of_a_module_and_nothing_else() -> None:
    whole = module(CAPABILITY, ENTRY, MODE, SOURCE, NAME, DECORATION, LATER_NAME)
    # Behind the first annotation no name can stand: what looks like one is something else.
    assert strip(whole) == module(CAPABILITY, ENTRY, MODE, DECORATION, LATER_NAME)
    assert strip(strip(whole)) == strip(whole)


@pytest.mark.parametrize(
    "wrong",
    [b"", b"\x03\x02#", b"\0" * 20, module(CAPABILITY)[:18], module([3])],
    ids=["nothing", "short", "no magic", "cut", "an instruction without a size"],
)
def test_what_is_no_module_is_refused(wrong: bytes) -> None:
    with pytest.raises(DamagedError, match="SPIR-V"):
        strip(wrong)


# The blob


def test_a_blob_gives_back_what_was_packed_and_every_module_is_aligned() -> None:
    modules = {"b": b"22222222", "a_long_name": b"1111", "c": b"333333333333"}
    blob = pack(modules)
    assert unpack(blob) == modules
    assert list(unpack(blob)) == sorted(modules)
    for content in modules.values():
        assert blob.index(content) % 4 == 0


@pytest.mark.parametrize("cut", range(1, 60, 7))
def test_a_cut_blob_is_refused(cut: int) -> None:
    blob = pack({"one": b"1111", "two": b"22222222"})
    with pytest.raises(DamagedError, match="no shaders"):
        unpack(blob[:-cut])
    with pytest.raises(DamagedError, match="no shaders"):
        unpack(blob + bytes(cut))


def test_the_blob_is_one_frame_that_says_its_size() -> None:
    zstandard = pytest.importorskip("zstandard")
    blob = pack({"one": b"1111" * 1000})
    packed = shaders.compress(blob)
    assert packed == shaders.compress(blob)
    assert zstandard.get_frame_parameters(packed).content_size == len(blob)
    assert zstandard.decompress(packed) == blob


# Tables

HEADER = """\
#include <cstdint>

extern const uint64_t mul_f32_len;
extern const unsigned char mul_f32_data[];

extern const uint64_t add_f32_len;
extern const unsigned char add_f32_data[];

extern const void * ops_data[2][1];
extern const uint64_t ops_len[2][1];
"""
SOURCES = (
    "#include <x>\n",
    """\
const void * ops_data[2][1] = {{add_f32_data,}, {mul_f32_data,}, };
const uint64_t ops_len[2][1] = {{add_f32_len,}, {mul_f32_len,}, };
""",
)


def test_tables_are_filled_when_the_program_runs(tmp_path: Path) -> None:
    compiler = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("there is no compiler for C++")
    tables = Tables.read(iter([HEADER, *SOURCES]))
    assert tables.names == ("add_f32", "mul_f32")
    (tmp_path / "ggml-vulkan-shaders.hpp").write_text(tables.header())
    (tmp_path / "table.cpp").write_text(tables.source())
    (tmp_path / "main.cpp").write_text("""
#include "ggml-vulkan-shaders.hpp"
#include <cstdio>
int main() {
    static const unsigned char bytes[] = "am";
    for (size_t i = 0; i < SHADER_MODULES; i++) {
        shader_modules[i].data = bytes + i;
        shader_modules[i].size = 10 + i;
    }
    fill_shader_arrays();
    for (size_t i = 0; i < SHADER_MODULES; i++) {
        printf("%s %c %d\\n", shader_modules[i].name, *(const char *)ops_data[i][0],
               (int)ops_len[i][0]);
    }
    printf("%c %d\\n", *mul_f32_data, (int)mul_f32_len);
}
""")
    program = tmp_path / "program"
    files = [tmp_path / "table.cpp", tmp_path / "main.cpp"]
    subprocess.run([compiler, "-std=c++17", "-Wall", "-Werror", "-o", program, *files], check=True)
    done = subprocess.run([program], capture_output=True, text=True, check=True)
    assert done.stdout == "add_f32 a 10\nmul_f32 m 11\nm 11\n"


@pytest.mark.parametrize(
    ("header", "sources"),
    [
        (HEADER + "extern const int32_t something_new;\n", SOURCES),
        (HEADER.replace("extern const uint64_t add_f32_len;\n", ""), SOURCES),
        ("", ()),
        (HEADER, SOURCES[:1]),
    ],
    ids=["a new kind", "no length", "nothing", "a table without values"],
)
def test_tables_that_are_not_known_stop_the_build(header: str, sources: tuple[str, ...]) -> None:
    with pytest.raises(DamagedError, match="not known here"):
        Tables.read(iter([header, *sources]))


# Sources


def test_an_sdist_whose_version_is_a_day_is_fetched_by_its_address(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """pip builds a little of an sdist, and this one says that it is of today."""
    sdist = home / "thing-1.0.2.tar.gz"
    (home / "a.cpp").write_text("int a;\n")
    with tarfile.open(sdist, "w:gz") as archive:
        archive.add(home / "a.cpp", "thing-1.0.2/inner/a.cpp")
        archive.add(home / "a.cpp", "thing-1.0.2/other/a.cpp")
    digest = hashlib.sha256(sdist.read_bytes()).hexdigest()
    thing = source.Sdist("thing", "1.0.2", digest, "inner", "a thing", dated=True)
    address = "https://index.invalid/thing-1.0.2.tar.gz"
    asked: list[list[str]] = []

    def run(command: list[str], **options: object) -> None:
        asked.append(command)
        if "index" in command:
            each = options["each_line"]
            each("  Found link https://index.invalid/thing-1.0.3.tar.gz (from x), version: 1.0.3")
            each(f"  Found link {address} (from x) (requires-python:>=3.5), version: 1.0.2")
        else:
            shutil.copy(sdist, command[command.index("--dest") + 1])

    monkeypatch.setattr(tools, "run", run)
    folder = source.vendored(thing)
    assert [path.name for path in folder.iterdir()] == ["a.cpp"]
    assert asked[1][-1] == f"{address}#sha256={digest}"
    assert source.vendored(thing) == folder
    assert len(asked) == 2
    missing = dataclasses.replace(thing, version="1.0.4")
    with pytest.raises(UnavailableError, match=r"has no thing 1\.0\.4"):
        source.vendored(missing)


def test_other_headers_than_the_pinned_ones_are_refused(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def download(folder: Path, *rest: object) -> list[Path]:
        path = folder / "libvulkan-dev_1.deb"
        path.write_bytes(b"something else")
        return [path]

    monkeypatch.setattr(debian, "download", download)
    with pytest.raises(DamagedError, match=r"libvulkan-dev_1\.deb is not the file"):
        vulkan.headers(lambda step: None)
    assert list((home / "cache" / "source").iterdir()) == []


def test_without_apt_the_headers_name_what_is_missing(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(home))
    with pytest.raises(PyllamafileError, match="apt-get is missing"):
        vulkan.headers(lambda step: None)


# Programs


def test_programs_with_gpus_are_no_targets_of_their_own() -> None:
    assert not WITH_GPU.keys() & (TARGETS.keys() | groups().keys())
    assert not any(target.gpu for target in TARGETS.values())
    for target in WITH_GPU.values():
        assert target.gpu in GPUS
        assert TARGETS[target.plain].levels == target.levels


def test_what_determines_the_shaders_is_in_their_key(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = {shaders.key()}
    for name, value in (("_PACKING", 99), ("_LEVEL", 3), ("GLSLC", ""), ("SDIST_SHA256", "0")):
        with monkeypatch.context() as changed:
            changed.setattr(shaders, name, value)
            keys.add(shaders.key())
    assert len(keys) == 5
