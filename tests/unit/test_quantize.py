"""What the quantizer makes of a model: foretold from the header, and made."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import gguf
import numpy as np
import pytest
from fixtures import tiny_gguf, tiny_phi3
from running import run

import pyllamafile
from pyllamafile import PyllamafileError, advise, native
from pyllamafile.cli import main as cli_main
from pyllamafile.models import convert
from pyllamafile.models import forecast as quantize
from pyllamafile.models import gguf as weights
from pyllamafile.models.forecast import FORMATS

native_test = pytest.mark.native


@pytest.fixture(scope="module")
def f16(smollm2, runtime, tmp_path_factory) -> Path:
    """SmolLM2 in F16."""
    path = tmp_path_factory.mktemp("f16") / "SmolLM2-135M-Instruct.F16.gguf"
    assert run(runtime, "--quantize", "--allow-requantize", smollm2, path, "F16").returncode == 0
    return path


@pytest.fixture(scope="module")
def made(f16, runtime, tmp_path_factory) -> dict[str, Path]:
    """SmolLM2 in each format, as the quantizer makes it."""
    folder = tmp_path_factory.mktemp("made")
    for format in FORMATS:
        path = folder / f"{format}.gguf"
        assert run(runtime, "--quantize", f16, path, format).returncode == 0
    return {format: folder / f"{format}.gguf" for format in FORMATS}


def experts(path: Path, count: int, layers: int = 9) -> Path:
    """A llama with experts and random weights, as the quantizer reads it: nobody could run it."""
    writer = gguf.GGUFWriter(path, "llama")
    for key, value in {
        "context_length": 128, "embedding_length": 256, "feed_forward_length": 256,
        "block_count": layers, "attention.head_count": 4, "attention.head_count_kv": 4,
        "rope.dimension_count": 64, "expert_count": count, "expert_used_count": 2,
    }.items():  # fmt: skip
        writer.add_uint32(f"llama.{key}", value)
    writer.add_float32("llama.attention.layer_norm_rms_epsilon", 1e-5)
    writer.add_tokenizer_model("llama")
    writer.add_token_list([f"t{i}" for i in range(256)])
    writer.add_token_scores([0.0] * 256)
    rng = np.random.default_rng(5)
    shapes = {"token_embd.weight": (256, 256), "output.weight": (256, 256)}
    for layer in range(layers):
        for name in ("q", "k", "v", "output"):
            shapes[f"blk.{layer}.attn_{name}.weight"] = (256, 256)
        for name in ("up", "gate", "down"):
            shapes[f"blk.{layer}.ffn_{name}_exps.weight"] = (count, 256, 256)
        shapes[f"blk.{layer}.ffn_gate_inp.weight"] = (count, 256)
    for name, shape in shapes.items():
        writer.add_tensor(name, rng.normal(0, 0.05, shape).astype(np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


# Foretold


@native_test
@pytest.mark.parametrize("format", FORMATS)
def test_sizes_and_types_are_what_the_quantizer_makes(f16, made, format):
    foretold = [weights.read(f16)]
    really = weights.read(made[format])
    assert {t.name: t.type for t in really.tensors} == quantize.types(foretold, format)
    size = made[format].stat().st_size
    assert abs(quantize.size(foretold, format) - size) <= size // 1000


@native_test
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("kind", ["phi3", "shared", "8 experts", "3 experts"])
def test_types_of_other_kinds(kind, format, runtime, tmp_path):
    source = tmp_path / "source.gguf"
    if "experts" in kind:
        experts(source, int(kind[0]))
    else:
        vocabulary = native.llama_source() / "models" / "ggml-vocab-phi-3.gguf"
        tiny_phi3(
            source, vocabulary, width=512, inner=512, heads=8, kv_heads=8 if kind == "phi3" else 2
        )
    done = run(runtime, "--quantize", source, tmp_path / "made.gguf", format)
    assert done.returncode == 0, done.stderr
    really = weights.read(tmp_path / "made.gguf")
    foretold = [weights.read(source)]
    assert {t.name: t.type for t in really.tensors} == quantize.types(foretold, format)
    size = (tmp_path / "made.gguf").stat().st_size
    assert abs(quantize.size(foretold, format) - size) <= size // 100


@native_test
@pytest.mark.parametrize("context", [512, 5000, 8192])
def test_memory_is_what_the_runtime_takes(made, runtime, context):
    path = made["Q8_0"]
    done = run(runtime, "-m", path, "-c", context, "-p", "Hi", "-n", "1", "-v")
    log = done.stderr.decode()
    taken = {
        what: float(re.findall(rf"{what} buffer size = +([\d.]+) MiB", log)[-1]) * (1 << 20)
        for what in ("CPU_Mapped model", "KV", "CPU compute")
    }
    foretold = quantize.memory([weights.read(path)], context)
    assert foretold.weights == pytest.approx(taken["CPU_Mapped model"], rel=0.01)
    assert foretold.cache == pytest.approx(taken["KV"], rel=0.01)
    assert foretold.compute == pytest.approx(taken["CPU compute"], rel=0.1)
    assert foretold.total == foretold.weights + foretold.cache + foretold.compute


def test_the_cache_of_heads_that_are_fused(tmp_path):
    """Phi-3's: 32 layers, 3072 wide, keys and values of two bytes."""
    vocabulary = tmp_path / "vocabulary.gguf"
    path = tiny_phi3(tmp_path / "phi3.gguf", tiny_gguf(vocabulary, arch="phi3"), width=64)
    assert quantize.memory([weights.read(path)], 256).cache == 2 * 256 * (64 + 64)
    path = tiny_phi3(tmp_path / "shared.gguf", vocabulary, width=64, heads=4, kv_heads=1)
    assert quantize.memory([weights.read(path)], 257).cache == 2 * 512 * (16 + 16)


def test_no_such_format(tmp_path):
    parts = [weights.read(tiny_gguf(tmp_path / "m.gguf"))]
    with pytest.raises(PyllamafileError, match="'Q9' is no format to quantize to"):
        quantize.size(parts, "Q9")
    with pytest.raises(PyllamafileError, match="'q8_0' is no format"):
        pyllamafile.build(tmp_path / "m.gguf", tmp_path / "o", quantize_to="q8_0")


@pytest.mark.parametrize(
    ("name", "called"),
    [
        ("phi-3-mini-fp16.gguf", "phi-3-mini-Q5_K_M.gguf"),
        ("SmolLM2-135M-Instruct.Q4_1.gguf", "SmolLM2-135M-Instruct-Q5_K_M.gguf"),
        ("m-Q3_K_S-00001-of-00002.gguf", "m-Q5_K_M.gguf"),
        ("BF16.gguf", "Q5_K_M.gguf"),
        ("mixtral-8x7b.gguf", "mixtral-8x7b-Q5_K_M.gguf"),
        ("m_IQ4_NL.gguf", "m_IQ4_NL-Q5_K_M.gguf"),
    ],
)
def test_what_it_is_called(name, called):
    assert convert.quantized_name(name, "Q5_K_M") == called


# Made


@native_test
@pytest.mark.parametrize("format", FORMATS)
def test_seam_each_format_is_built_and_answers(f16, made, tmp_path, format):
    output = tmp_path / "f.llamafile"
    done: list[tuple[int, int]] = []
    built = pyllamafile.build(
        f16, output, targets=["linux-amd64"], gui=False, quantize_to=format,
        progress=lambda s: done.append((s.done, s.total)) if format in s.what else None,
    )  # fmt: skip
    assert built.models == (f"SmolLM2-135M-Instruct-{format}.gguf",)
    pyllamafile.extract(output, tmp_path)
    assert (tmp_path / built.models[0]).read_bytes() == made[format].read_bytes()
    assert done == sorted(done)
    assert done[-1][0] == done[-1][1] > 1 << 16
    assert list(tmp_path.glob(".pyllamafile*")) == []
    answer = run(output, "-p", "The capital of France is", "-n", "4", "--temp", "0")
    assert answer.returncode == 0
    assert b"Paris" in answer.stdout or format in ("Q4_0", "Q2_K")


@native_test
def test_a_split_model_becomes_one_file(f16, made, tmp_path):
    """The quantizer's own --keep-split is for others: here parts are made by hand."""
    parts = split(f16, tmp_path)
    built = pyllamafile.build(
        parts[0], tmp_path / "f", targets=["linux-amd64"], gui=False, quantize_to="Q8_0"
    )
    assert built.models == ("s-Q8_0.gguf",)
    pyllamafile.extract(built.path, tmp_path)
    ours, theirs = (weights.read(p) for p in (tmp_path / "s-Q8_0.gguf", made["Q8_0"]))
    assert [(t.name, t.type, t.size) for t in ours.tensors] == [
        (t.name, t.type, t.size) for t in theirs.tensors
    ]


def split(source: Path, folder: Path) -> list[Path]:
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(folder / "s.gguf", "llama", split_max_tensors=150)
    for key, field in reader.fields.items():
        if not key.startswith("GGUF.") and key != "general.architecture":
            element = field.types[-1] if len(field.types) > 1 else None
            writer.add_key_value(key, field.contents(), field.types[0], element)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return sorted(folder.glob("s-*-of-*.gguf"))


@native_test
def test_what_is_quantized_already(smollm2, tmp_path):
    options = {"targets": ["linux-amd64"], "gui": False, "quantize_to": "Q4_0"}
    with pytest.raises(PyllamafileError, match=r"is quantized already \(Q4_1\), and would lose"):
        pyllamafile.build(smollm2, tmp_path / "f", **options)
    assert list(tmp_path.iterdir()) == []
    built = pyllamafile.build(smollm2, tmp_path / "f", requantize=True, **options)
    assert pyllamafile.inspect(built.path).models[0].quantization == "Q4_0"


@native_test
def test_a_model_that_the_quantizer_refuses(tmp_path):
    tiny_gguf(tmp_path / "m.gguf", arch="unheard-of")
    with pytest.raises(PyllamafileError) as raised:
        pyllamafile.build(tmp_path / "m.gguf", tmp_path / "f", quantize_to="Q8_0")
    assert "m.gguf can't be loaded: " in raised.value.message  # before the quantizer is asked
    assert "unheard-of" in raised.value.message
    assert "\n" not in raised.value.message
    assert [path.name for path in tmp_path.iterdir()] == ["m.gguf"]


@native_test
def test_no_room_for_it(f16, tmp_path, monkeypatch):
    usage = convert.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(convert.shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(PyllamafileError, match=r"Q8_0 takes [\d,]+ bytes for a while, and 1,000"):
        pyllamafile.build(f16, tmp_path / "f", quantize_to="Q8_0")
    assert list(tmp_path.iterdir()) == []


@native_test
@pytest.mark.parametrize(
    ("how", "to_all"),
    [
        (signal.SIGINT, True),  # Ctrl-C in a terminal reaches the quantizer, too
        (signal.SIGINT, False),
        (signal.SIGTERM, False),
        (signal.SIGHUP, True),  # a terminal that is closed
    ],
)
def test_an_interruption_leaves_nothing(f16, tmp_path, how, to_all):
    run = native.cache() / "run"  # where another run may be at work, or was killed
    before = set(run.glob("runtime-*"))
    command = [sys.executable, "-m", "pyllamafile", "build", "--gguf", str(f16)]
    command += ["--quantize", "Q2_K", "-o", str(tmp_path / "f")]
    with subprocess.Popen(command, start_new_session=True, stderr=subprocess.PIPE) as process:
        while not list(tmp_path.glob(".pyllamafile-*/*.gguf")):
            assert process.poll() is None
            time.sleep(0.01)
        (os.killpg if to_all else os.kill)(process.pid, how)
        said = process.stderr.read().strip()  # click begins a line
        assert said == (b"interrupted" if how == signal.SIGINT else b"")
        assert process.wait(timeout=30) == 128 + how
    assert list(tmp_path.iterdir()) == []
    assert set(run.glob("runtime-*")) <= before


# Advice

GIB = 1 << 30


def test_advice_takes_the_best_that_fits(tmp_path):
    """A model of Phi-3-mini's size, of which only the header and a hole are there."""
    path = holed(tmp_path / "big-F16.gguf", layers=32, width=3072, inner=8192)
    plenty = advise(path, machine=64 * GIB)
    assert plenty.recommended == "Q5_K_M"
    need = {row.format: row.memory.total for row in plenty.rows}
    for name in ("Q5_K_M", "Q4_K_M", "Q4_0", "Q2_K"):
        advice = advise(path, machine=need[name] * 8 // 7 + 8)  # an eighth is left free
        assert advice.recommended == name
        for row in advice.rows:
            assert row.fits == (row.memory.total <= advice.usable)
    assert advise(path, machine=GIB).recommended is None
    assert "a shorter context" in advise(path, machine=GIB).reason


def test_advice_minds_windows(tmp_path):
    path = holed(tmp_path / "big-F16.gguf", layers=43, width=3584, inner=9728)
    advice = advise(path, machine=64 * GIB)
    rows = {row.format: row for row in advice.rows}
    assert not rows["Q5_K_M"].windows
    assert rows["Q4_K_M"].windows
    assert advice.recommended == "Q4_K_M"
    assert advice.reason.endswith("unlike Q5_K_M it is one file on Windows")
    huge = holed(tmp_path / "huge-F16.gguf", layers=80, width=4096, inner=16384)
    advice = advise(huge, machine=64 * GIB)
    assert advice.recommended == "Q5_K_M"
    assert advice.reason.endswith("on Windows it takes a small .exe beside it")


def holed(path: Path, *, layers: int, width: int, inner: int) -> Path:
    """A model of the given size in F16, whose tensors are a hole in the file."""
    writer = gguf.GGUFWriter(path, "llama")
    for key, value in {
        "context_length": 4096, "embedding_length": width, "feed_forward_length": inner,
        "block_count": layers, "attention.head_count": 32, "attention.head_count_kv": 32,
    }.items():  # fmt: skip
        writer.add_uint32(f"llama.{key}", value)
    writer.add_token_list([f"t{i}" for i in range(32064)])
    shapes = {"token_embd.weight": (32064, width), "output.weight": (32064, width)}
    for layer in range(layers):
        for name in ("q", "k", "v", "output"):
            shapes[f"blk.{layer}.attn_{name}.weight"] = (width, width)
        shapes[f"blk.{layer}.ffn_up.weight"] = (inner, width)
        shapes[f"blk.{layer}.ffn_gate.weight"] = (inner, width)
        shapes[f"blk.{layer}.ffn_down.weight"] = (width, inner)
    size = 0
    for name, shape in shapes.items():
        bytes_ = 2 * int(np.prod(shape))
        writer.add_tensor_info(name, shape, np.dtype(np.float16), bytes_)
        size += bytes_
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    os.truncate(path, -(-path.stat().st_size // 32) * 32 + size)
    return path


def test_advice_on_what_is_quantized_is_to_leave_it(tmp_path):
    path = tmp_path / "m.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_token_list(["a", "b"])
    writer.add_context_length(64)
    writer.add_tensor(
        "token_embd.weight", np.zeros((2, 34), np.uint8), raw_dtype=gguf.GGMLQuantizationType.Q8_0
    )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    advice = advise(path)
    assert advice.recommended == advice.quantization == advice.rows[0].format == "Q8_0"
    assert [row.format for row in advice.rows].count("Q8_0") == 1
    assert advice.context == 64


def test_advice_that_cannot_be_given(tmp_path):
    path = tiny_gguf(tmp_path / "m.gguf")
    with pytest.raises(PyllamafileError, match="at most 128 tokens, not 129"):
        advise(path, context=129)
    assert advise(path, context=128).context == 128
    (tmp_path / "m").mkdir()
    with pytest.raises(PyllamafileError, match="is a directory"):
        advise(tmp_path / "m")
    (tmp_path / "m" / "config.json").write_text("{}")
    (tmp_path / "m" / "model.safetensors").write_text("")
    with pytest.raises(PyllamafileError, match="m is no GGUF yet"):
        advise(tmp_path / "m")


def test_advice_as_json_says_what_the_table_does(tmp_path, capfd):
    path = tiny_gguf(tmp_path / "m.gguf")
    outputs = []
    for options in ([], ["--json"]):
        with pytest.raises(SystemExit) as ended:
            cli_main(["advise", str(path), "--memory", "8", *options])
        assert not ended.value.code
        outputs.append(capfd.readouterr().out)
    table, facts = outputs[0].splitlines(), json.loads(outputs[1])
    assert [line.split()[0] for line in table[3:11]] == list(FORMATS)
    assert [row["format"] for row in facts["rows"]] == list(FORMATS)
    assert table[-1] == f"{facts['recommended']}: {facts['reason']}"
    assert facts["machine"] == 8_000_000_000
    for row in facts["rows"]:
        memory = row["memory"]
        assert memory["total"] == memory["weights"] + memory["cache"] + memory["compute"]


def test_advise_on_a_part_is_on_the_whole(tmp_path):
    """As `build` sees it: all parts, or an error that says which is missing."""
    names = [f"m-{n:05}-of-00002.gguf" for n in (1, 2)]
    for number, name in enumerate(names):
        writer = gguf.GGUFWriter(tmp_path / name, "llama")
        writer.add_uint16("split.no", number)
        writer.add_uint16("split.count", 2)
        if number == 0:
            writer.add_context_length(64)
            writer.add_embedding_length(32)
            writer.add_block_count(1)
            writer.add_head_count(2)
            writer.add_tokenizer_model("llama")
            writer.add_token_list(["a"] * 8)
        writer.add_tensor(f"blk.{number}.ffn_up.weight", np.ones((64, 32), np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    whole = advise(tmp_path / names[0], machine=1 << 30)
    assert whole.parameters == 2 * 64 * 32
    assert advise(tmp_path / names[1], machine=1 << 30).rows == whole.rows
    (tmp_path / names[0]).rename(tmp_path / "renamed.gguf")
    with pytest.raises(PyllamafileError, match=r"renamed.gguf: part 1 of 2 of a split model") as it:
        advise(tmp_path / "renamed.gguf", machine=1 << 30)
    assert "NAME-00001-of-00003.gguf" in (it.value.hint or "")
    with pytest.raises(PyllamafileError, match=f"{names[0]} is missing"):
        advise(tmp_path / names[1], machine=1 << 30)
