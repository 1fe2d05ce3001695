"""Products of matrices and attention: ours against upstream's kernels, which level v2 has alone."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from pathlib import Path

import lief
import numpy as np
import pytest
from fixtures import tiny_phi3
from running import need, run

from pyllamafile import native
from pyllamafile.native.building import driver, tools
from pyllamafile.progress import silent
from pyllamafile.targets import TARGETS

# Of every product: five tiles of eight, one of four, one of one; too few for tiles.
COLUMNS = [45, 5]
TYPES = ["F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "IQ4_NL"]
K_TYPES = ["Q2_K", "Q3_K_S", "Q4_K_S", "Q5_K_S", "Q6_K", "IQ4_XS"]  # with --pure, all of one type
OTHERS = ["mxfp4", "nvfp4", "q1_0", "q2_0", "tq1_0", "tq2_0"]
TABLES = ["iq3_s", "iq3_xxs", "iq2_s", "iq2_xs", "iq2_xxs", "iq1_m", "iq1_s"]
# As they are, and rearranged by repack.cpp, which the lowest level doesn't do.
CASES = [
    *((kind, ["--no-repack"]) for kind in [*TYPES, *K_TYPES]),
    *((kind, []) for kind in ["Q4_0", "Q2_K", "Q4_K_S"]),
]


Emulator = tuple[str, ...]
"""What stands in front of a program that doesn't run here by itself."""


def odd(folder: Path, **sizes: int) -> Path:
    vocabulary = native.llama_source() / "models" / "ggml-vocab-phi-3.gguf"
    return tiny_phi3(folder / "phi3-odd.gguf", vocabulary, kv_heads=1, **sizes)


@pytest.fixture(scope="module")
def odd_phi3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Matrices whose rows fill no panel (104) and are deeper than one (1056)."""
    return odd(tmp_path_factory.mktemp("odd"), width=96, inner=1056, heads=24)


@pytest.fixture(scope="module")
def odd_phi3_of_256(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Blocks of 256 in every row, and matrices whose rows fill no panel (264)."""
    return odd(tmp_path_factory.mktemp("odd"), width=256, inner=1280, heads=64)


def here(runtime: Path, emulator: Emulator = ()) -> list[str]:
    """The levels that this processor has, the lowest first."""
    done = run(*emulator, runtime, "--version", env={**os.environ, "PYLLAMAFILE_CPU": "none"})
    return done.stderr.decode().partition("it has: ")[2].split()


def probabilities(
    runtime: Path,
    model: Path,
    level: str,
    flags: list[str],
    folder: Path,
    tokens: int = 128,
    emulator: Emulator = (),
) -> np.ndarray:
    """Logarithms of what every token of a text was given, as --perplexity saves them."""
    text = folder / "text.txt"
    line = "All human beings are born free and equal in dignity and rights. "
    text.write_text(line * (24 * max(tokens, 64) // 128))
    saved = folder / f"{level}.logits"
    sizes = ["-c", str(tokens), "--chunks", "1", "-b", str(tokens)]
    options = ["--perplexity", "-m", model, "-f", text, "--save-all-logits", saved, *sizes, *flags]
    done = run(*emulator, runtime, *options, env={**os.environ, "PYLLAMAFILE_CPU": level})
    assert done.returncode == 0, done.stderr.decode()
    # tools/perplexity/perplexity.cpp: magic, context, vocabulary, chunks; tokens; then a row per
    # token of scale and minimum as floats, and a 16-bit number per word of the vocabulary.
    content = saved.read_bytes()
    assert content[:8] == b"_logits_"
    context, words, chunks = np.frombuffer(content, np.int32, 3, 8)
    width = (words + 1) // 2 * 2 + 4
    rows = np.frombuffer(content, np.uint16, offset=20 + 4 * context * chunks).reshape(-1, width)
    scale, least = np.ascontiguousarray(rows[:, :4]).view(np.float32).T
    return least[:, None] + scale[:, None] * rows[:, 4 : 4 + words]


@pytest.mark.native
def test_seam_products_come_to_ours() -> None:
    """Upstream's kernels would give the same results, slower; the objects say whom they ask."""
    target = TARGETS["linux-amd64"]
    out = native.build_folder(target) / "out"
    # Where the runtime came from elsewhere, its objects may be missing, or another commit's.
    driver.compile_runtime(target, native.llama_source(), None, silent)
    command = [tools.program("ninja"), "-t", "inputs", "runtime"]
    linked = subprocess.run(command, cwd=out, capture_output=True, text=True).stdout.splitlines()
    suffixes = ["", *(f"__{level.name}" for level in target.levels[1:] if not level.sources)]
    above = suffixes[1:]  # the lowest has none for the K types
    of_k_types = ("tiled_product", "tiled_expert", "quantize_row_q8_K")
    repacked = ("gemm_iq4_nl", "gemm_mxfp4", "gemm_q4_K", "gemm_q2_K", "quantize_mat_q8_K")
    # The last of them stands in for a better one, and asks ours which it is.
    dots = {"our_vec_dot_bf16", *(f"ggml_vec_dot_bf16{suffix}" for suffix in suffixes[:-1])}
    for source, asks, expected in (
        (
            "ggml-cpu.c",
            ("our_", "llamafile_sgemm", "ggml_vec_dot_bf16", "ggml_compute_forward_flash_attn_ext"),
            {f"our_{name}{suffix}" for name in ("sgemm", "attention") for suffix in suffixes}
            | {f"our_{name}{s}" for name in of_k_types for s in above}
            | dots,
        ),
        (
            "repack.cpp",
            ("our_", "ggml_gemm_q4_0_8x8_q8_0"),
            {f"our_{name}{s}" for name in ("gemm_q4_0", "repacked_expert") for s in suffixes}
            | {f"our_{name}{s}" for name in repacked for s in above},
        ),
    ):
        asked = set()
        for path in (path for path in linked if path.endswith(f"ggml-cpu/{source}.o")):
            binary = lief.ELF.parse(str(out / path))
            assert binary is not None
            missing = {str(symbol.name) for symbol in binary.symbols if symbol.shndx == 0}
            asked |= {name for name in missing if name.startswith(asks)}
        assert asked == expected


@pytest.mark.native
@pytest.mark.parametrize("columns", COLUMNS)
@pytest.mark.parametrize(("kind", "flags"), CASES)
def test_all_levels_compute_the_same(
    kind: str,
    flags: list[str],
    columns: int,
    odd_phi3: Path,
    odd_phi3_of_256: Path,
    runtime: Path,
    tmp_path: Path,
) -> None:
    model = tmp_path / "model.gguf"
    whole = odd_phi3_of_256 if kind in K_TYPES else odd_phi3
    done = run(runtime, "--quantize", "--pure", whole, model, kind)
    assert done.returncode == 0, done.stderr.decode()
    base, *levels = here(runtime)
    flags = ["-ub", str(columns), *flags]
    expected = probabilities(runtime, model, base, flags, tmp_path)
    spread = expected.std()
    for level in levels:
        got = probabilities(runtime, model, level, flags, tmp_path)
        # BF16 rounds what it multiplies to eight bits, and quants are rounded before: a value on
        # the edge between two falls to the other side.
        assert np.abs(got - expected).max() < 0.02 * spread


def products(
    rows: int, depth: int, kinds: list[str], levels: list[str]
) -> dict[tuple[str, str, str], tuple[str, float]]:
    """What products.py says of each level, type and form; columns for tiles of each width."""
    script = Path(__file__).parents[2] / "scripts" / "bench" / "products.py"
    command = [sys.executable, script, "--rows", str(rows), "--depth", str(depth), "--rounds", "1"]
    command += ["--milliseconds", "0", "--threads", "3", "--columns", "1,2,3,4,5,6,7,8,9,13,45,64"]
    command += ["--types", ",".join(kinds), "--levels", ",".join(levels)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = (line.split()[:5] for line in done.stdout.splitlines())
    return {(level, kind, form): (same, float(error)) for level, kind, form, same, error in lines}


@pytest.mark.native
# Rows that fill no panel, and depths that fill no register, or more than one panel.
@pytest.mark.parametrize(("rows", "depth"), [(104, 1280), (51, 1286), (3, 5)])
def test_a_product_of_numbers_does_not_depend_on_how_many_there_are(
    rows: int, depth: int, runtime: Path
) -> None:
    """Each column of a product, beside the product of that column alone, bit by bit."""
    base, *_ = levels = here(runtime)
    kinds = ["f32", "f16", "bf16"]
    found = products(rows, depth, kinds, levels)
    assert list(found) == list(itertools.product(levels, kinds, ["file", "expert"]))
    for (level, kind, form), (alone, error) in found.items():
        # columns, to eight bits; upstream makes the products of experts, and all of the lowest
        rounded = (level, kind) == ("avx512bf16", "bf16") or form == "expert" or level == base
        assert error <= (0.005 if rounded else 0.00001), (level, kind, form)
        assert alone == "alone", (level, kind, form)


@pytest.mark.native
@pytest.mark.parametrize(
    ("rows", "depth", "kinds"),
    [
        # Rows that fill no panel but groups of eight, which repack.cpp takes; blocks that don't
        # come in fours.
        (104, 1280, [kind.removesuffix("_S").lower() for kind in [*TYPES[3:], *K_TYPES]] + OTHERS),
        (40, 768, TABLES),  # which take long to be made
    ],
    ids=["plain", "tables"],
)
def test_a_product_of_quants_does_not_depend_on_how_many_there_are(
    rows: int, depth: int, kinds: list[str], runtime: Path
) -> None:
    """The same, and beside what upstream's kernels of the lowest level make of it."""
    whole = {level.name for level in TARGETS["linux-amd64"].levels if not level.sources}
    base, *_ = levels = [level for level in here(runtime) if level in whole]
    found = products(rows, depth, kinds, levels)
    assert {(level, kind) for level, kind, _ in found} == {*itertools.product(levels, kinds)}
    if "v3" in levels and "q4_k" in kinds:
        for form in ("file", "expert", "repacked", "repacked-expert"):
            assert all(("v3", kind, form) in found for kind in ("q4_k", "iq4_nl", "mxfp4"))
    for (level, kind, form), (alone, error) in found.items():
        assert alone == "alone", (level, kind, form)
        of_base = found[base, kind, "file"][1]
        assert error < 0.005, (level, kind, form)
        assert abs(error - of_base) < 0.05 * of_base, (level, kind, form)


# Numbers of a key and of a value, heads, and those that keys and values are made for.
SHAPES = [
    "64x64x9x3",
    "80x80x8x8",
    "96x96x6x6",
    "128x128x8x1",
    "40x24x4x2",
    "4x4x24x1",
    "256x256x2x1",
]


@pytest.mark.native
@pytest.mark.parametrize(
    ("kinds", "options"),
    [
        ("f16,f32,bf16,q8_0,q4_0", ["--shapes", "64x64x9x3"]),
        ("f16", []),
        ("f16", ["--threads", "3"]),
        ("f16", ["--threads", "16"]),  # more than tiles, and than parts of some
        ("f16", ["--sequences", "3", "--threads", "2"]),
        ("f16", ["--window", "100"]),
        ("f16", ["--bias", "8"]),
        ("f16", ["--cap", "30"]),
        ("f16", ["--sinks", "--threads", "2"]),
    ],
    ids=lambda case: "".join(case),
)
def test_attention_does_not_depend_on_what_is_computed_beside_it(
    kinds: str, options: list[str], runtime: Path
) -> None:
    """What a token gets beside others, beside what it gets alone of a cache that has nothing else,
    bit by bit; and beside what 64-bit numbers give."""
    script = Path(__file__).parents[2] / "scripts" / "bench" / "attention.py"
    command = [sys.executable, script, "--shapes", ",".join(SHAPES), "--types", kinds]
    # Tiles of each width, more tokens than a tile has, and a block of positions that isn't full.
    command += ["--positions", "700", "--tokens", "1,2,3,5,6,7,8,17,45,64,100", "--rounds", "1"]
    done = subprocess.run(
        [*command, "--milliseconds", "0", *options], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    lines = [line.split()[:5] for line in done.stdout.splitlines()]
    whole = {level.name for level in TARGETS["linux-amd64"].levels if not level.sources}
    assert {level for level, *_ in lines} == whole & set(here(runtime))
    for level, kind, shape, _, alone in lines:
        assert alone == "alone", (level, kind, shape)
    for line in done.stdout.splitlines():
        assert float(line.split()[5]) < 1e-5, line


@pytest.mark.native
@pytest.mark.parametrize(
    "kind", ["F32", "F16", "BF16", "Q8_0", "Q5_1", "Q4_0", "Q2_K", "Q4_K_S", "Q6_K"]
)
def test_a_text_in_pieces_gives_the_same_numbers(
    kind: str, odd_phi3: Path, odd_phi3_of_256: Path, runtime: Path, tmp_path: Path
) -> None:
    model = tmp_path / "model.gguf"
    whole = odd_phi3_of_256 if kind in K_TYPES else odd_phi3
    done = run(runtime, "--quantize", "--pure", whole, model, kind)
    assert done.returncode == 0, done.stderr.decode()
    for level in here(runtime):
        expected, *others = (
            probabilities(runtime, model, level, ["-ub", size, "-t", threads], tmp_path)
            for size, threads in (("128", "2"), ("45", "3"), ("5", "1"), ("1", "2"))
        )
        for got in others:
            assert np.array_equal(got, expected)


@pytest.mark.native
# Q4_1 is not repacked there; upstream has kernels for pairs of its rows.
@pytest.mark.parametrize("kind", ["F16", "Q4_0", "Q4_1", "Q8_0", "Q4_K_S", "Q5_K_S", "Q6_K"])
def test_seam_a_text_in_pieces_gives_the_same_numbers_on_arm64(
    kind: str,
    odd_phi3: Path,
    odd_phi3_of_256: Path,
    runtime: Path,
    runtime_arm64: Path,
    tmp_path: Path,
) -> None:
    """Emulated, and therefore fewer tokens."""
    emulator = (need("qemu-aarch64-static", "qemu-user-static"), "-cpu", "max")
    model = tmp_path / "model.gguf"
    whole = odd_phi3_of_256 if kind in K_TYPES else odd_phi3
    done = run(runtime, "--quantize", "--pure", whole, model, kind)
    assert done.returncode == 0, done.stderr.decode()
    levels = here(runtime_arm64, emulator)
    assert levels == [level.name for level in TARGETS["linux-arm64"].levels]
    near = probabilities(runtime, model, here(runtime)[0], [], tmp_path, 32)
    for level in levels:
        expected, *others = (
            probabilities(
                runtime_arm64, model, level, ["-ub", size, "-t", "2"], tmp_path, 32, emulator
            )
            for size in ("32", "5", "1")
        )
        assert np.abs(expected - near).max() < 0.02 * near.std()
        for got in others:
            assert np.array_equal(got, expected)


@pytest.mark.native
@pytest.mark.parametrize("flags", [[], ["-ctk", "q8_0", "-ctv", "q8_0"]], ids="".join)
def test_a_long_text_in_pieces_gives_the_same_numbers(
    flags: list[str], smollm2: Path, runtime: Path, tmp_path: Path
) -> None:
    """Real weights, and more than 512 tokens: from there upstream's attention for a single token is
    divided among the threads."""
    for level in here(runtime)[1:]:
        expected, *others = (
            probabilities(runtime, smollm2, level, ["-ub", size, *flags], tmp_path, 640)
            for size in ("512", "64", "45", "5", "1")
        )
        assert expected.std() > 0.1
        for got in others:
            assert np.array_equal(got, expected)
