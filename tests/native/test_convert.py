"""Folders of safetensors made into llamafiles, by llama.cpp's own converters."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import gguf
import numpy as np
import pytest

import pyllamafile
from pyllamafile import PyllamafileError, native
from pyllamafile.models import convert

pytestmark = pytest.mark.native

LINUX = ["linux-amd64"]
# What llama.cpp calls the tensors of a Phi-3.
NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
    **{
        f"model.layers.{layer}.{theirs}.weight": f"blk.{layer}.{ours}.weight"
        for layer in range(2)
        for theirs, ours in {
            "input_layernorm": "attn_norm",
            "self_attn.qkv_proj": "attn_qkv",
            "self_attn.o_proj": "attn_output",
            "post_attention_layernorm": "ffn_norm",
            "mlp.gate_up_proj": "ffn_up",
            "mlp.down_proj": "ffn_down",
        }.items()
    },
}


@pytest.fixture(scope="module")
def reference() -> ModuleType:
    for needed in ("torch", "transformers", "sentencepiece"):
        pytest.importorskip(needed, reason=f"{needed} is missing: pip install '.[reference]'")
    import reference

    return reference


@pytest.fixture(scope="module")
def original(reference: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny Phi-3 in F32 that transformers saved."""
    folder = tmp_path_factory.mktemp("original") / "tiny-phi"
    folder.mkdir()
    words = reference.vocabulary(native.llama_source() / "models" / "ggml-vocab-phi-3.gguf")
    reference.make(words, "{{ messages[0].content }}", folder)
    return folder


@pytest.fixture
def copy(original: Path, tmp_path: Path) -> Path:
    """The same, to be damaged."""
    return shutil.copytree(original, tmp_path / "copy")


@pytest.fixture
def nothing_left(tmp_path: Path) -> Iterator[Path]:
    """A folder for the output, which has to be empty afterwards."""
    folder = tmp_path / "out"
    folder.mkdir()
    yield folder
    assert list(folder.iterdir()) == []


def saved(folder: Path, file: str = "model.safetensors") -> dict[str, np.ndarray]:
    from safetensors.numpy import load_file

    return load_file(folder / file)


def taken_out(file: Path, name: str, folder: Path) -> gguf.GGUFReader:
    pyllamafile.extract(file, folder, [name])
    return gguf.GGUFReader(folder / name)


def same(tensor: gguf.ReaderTensor, expected: np.ndarray) -> bool:
    return np.array_equal(np.asarray(tensor.data).reshape(expected.shape), expected)


def in_f16(folder: Path) -> None:
    """Round a model as transformers would save it with another dtype."""
    from safetensors.numpy import save_file

    halves = {name: values.astype(np.float16) for name, values in saved(folder).items()}
    save_file(halves, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize("type", ["F32", "F16"])
def test_seam_a_folder_becomes_a_llamafile(type: str, copy: Path, tmp_path: Path) -> None:
    """By the command; in the floats that it has, each of them as it is."""
    if type == "F16":
        in_f16(copy)
    file = tmp_path / "f.llamafile"
    command = [sys.executable, "-m", "pyllamafile", "build", "--gguf", str(copy), "-o", str(file)]
    done = subprocess.run(
        [*command, "--target", *LINUX, "--no-gui"], capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "  weights   copy.gguf\n" in done.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy", "f.llamafile"]
    assert pyllamafile.verify(file) == []

    found = taken_out(file, "copy.gguf", tmp_path)
    assert found.fields["general.architecture"].contents() == "phi3"
    assert found.fields["general.name"].contents() == "copy"
    assert found.fields["phi3.context_length"].contents() == 4096
    assert len(found.fields["tokenizer.ggml.tokens"].data) == 32064
    expected = saved(copy)
    assert {tensor.name for tensor in found.tensors} == {NAMES[name] for name in expected}
    tensors = {tensor.name: tensor for tensor in found.tensors}
    for name, values in expected.items():
        tensor = tensors[NAMES[name]]
        assert tensor.tensor_type.name == (type if values.ndim > 1 else "F32")
        assert same(tensor, values if values.ndim > 1 else values.astype(np.float32)), name

    prompt = subprocess.run([file, "-p", "a", "-n", "4", "--temp", "0"], capture_output=True)
    assert (prompt.returncode, prompt.stderr) == (0, b"")


def test_it_may_be_quantized_on_the_way(original: Path, tmp_path: Path) -> None:
    file = pyllamafile.build(
        original, tmp_path / "f", targets=LINUX, gui=False, quantize_to="Q8_0"
    ).path
    found = taken_out(file, "tiny-phi-Q8_0.gguf", tmp_path)
    assert {t.tensor_type.name for t in found.tensors if len(t.shape) > 1} == {"Q8_0"}


def test_progress_moves(original: Path, tmp_path: Path) -> None:
    """As the converter writes: its bar is drawn over itself with carriage returns."""
    told: list[tuple[int, int]] = []
    convert.convert(
        original, tmp_path / "m.gguf", lambda step: told.append((step.done, step.total))
    )
    total = (original / "model.safetensors").stat().st_size
    assert told[0] == (0, 0)
    assert {whole for done, whole in told[1:]} == {total}
    parts = [done for done, whole in told[1:]]
    assert parts == sorted(parts)
    assert {0, total} <= set(parts)  # between them as often as the converter has the time for
    assert parts[-1] == total


# Adapters


@pytest.fixture
def lora(original: Path, tmp_path: Path) -> Path:
    """A LoRA adapter for the original, beside a copy of which it lies, as PEFT saves one."""
    from safetensors.numpy import save_file

    shutil.copytree(original, tmp_path / "tiny-phi")
    folder = tmp_path / "pirate"
    folder.mkdir()
    rng = np.random.default_rng(5)
    tensors = {}
    for layer in range(2):
        stem = f"base_model.model.model.layers.{layer}.self_attn.o_proj"
        for letter, shape in {"A": (4, 192), "B": (192, 4)}.items():
            values = rng.normal(size=shape).astype(np.float32)
            tensors[f"{stem}.lora_{letter}.weight"] = values
    save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})
    config = {
        "peft_type": "LORA",
        "base_model_name_or_path": "somebody/tiny-phi",
        "r": 4,
        "lora_alpha": 8,
        "target_modules": ["o_proj"],
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def test_an_adapter_becomes_a_gguf(lora: Path, tmp_path: Path) -> None:
    """With the settings of its base, of which only the configuration is read."""
    (lora.parent / "tiny-phi" / "model.safetensors").unlink()
    file = pyllamafile.build(lora, tmp_path / "f", targets=LINUX, gui=False).path
    found = taken_out(file, "pirate.gguf", tmp_path)
    assert found.fields["general.type"].contents() == "adapter"
    assert found.fields["general.architecture"].contents() == "phi3"
    assert found.fields["adapter.lora.alpha"].contents() == 8
    expected = saved(lora, "adapter_model.safetensors")
    tensors = {tensor.name: tensor for tensor in found.tensors}
    assert len(tensors) == len(expected) == 4
    for name, values in expected.items():
        layer, letter = name.split(".")[4], name[-len("A.weight")].lower()
        assert same(tensors[f"blk.{layer}.attn_output.weight.lora_{letter}"], values)


def test_a_runtime_takes_the_adapter(lora: Path, tmp_path: Path) -> None:
    base = pyllamafile.build(
        lora.parent / "tiny-phi", tmp_path / "f", targets=LINUX, gui=False
    ).path
    adapter = convert.convert(lora, tmp_path / "pirate.gguf", lambda *step: None)
    command = [base, "-p", "a b c", "-n", "16", "--temp", "0"]
    plain = subprocess.run(command, capture_output=True)
    adapted = subprocess.run([*command, "--lora", adapter], capture_output=True)
    assert (plain.returncode, adapted.returncode, adapted.stderr) == (0, 0, b"")
    assert plain.stdout != adapted.stdout


# What is no good


def remove(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def other_architecture(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["architectures"] = ["NobodysForCausalLM"]
    (folder / "config.json").write_text(json.dumps(config))


def cut_off(folder: Path) -> None:
    os.truncate(folder / "model.safetensors", 5000)


def cut_off_in_the_header(folder: Path) -> None:
    os.truncate(folder / "model.safetensors", 500)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (remove("config.json"), "has safetensors but no config.json"),
        (remove("model.safetensors"), "has a config.json but no safetensors"),
        (other_architecture, "Model NobodysForCausalLM is not supported"),
        (cut_off, "model.safetensors: incomplete: "),
        (cut_off_in_the_header, "model.safetensors: its header is none of safetensors"),
        (remove("tokenizer.model"), "Missing "),
    ],
    ids=["no config", "no weights", "architecture", "cut off", "cut in header", "no tokenizer"],
)
def test_a_folder_that_is_no_model(
    damage: Callable[[Path], None], said: str, copy: Path, nothing_left: Path
) -> None:
    damage(copy)
    with pytest.raises(PyllamafileError) as caught:
        pyllamafile.build(copy, nothing_left / "f", targets=LINUX, gui=False)
    assert str(copy) in caught.value.message
    assert said in caught.value.message
    assert "\n" not in caught.value.message


@pytest.mark.parametrize("base", ["somebody/tiny-phi", "/nowhere/tiny-phi", "../tiny-phi", None])
def test_an_adapter_whose_base_is_missing(
    base: str | None, lora: Path, nothing_left: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")  # the hub is asked for what could be there
    shutil.rmtree(lora.parent / "tiny-phi")
    path = lora / "adapter_config.json"
    config = {**json.loads(path.read_text()), "base_model_name_or_path": base}
    path.write_text(json.dumps(config))
    with pytest.raises(PyllamafileError) as caught:
        pyllamafile.build(lora, nothing_left / "f", targets=LINUX, gui=False)
    assert str(lora) in caught.value.message
    assert "\n" not in caught.value.message
    assert "base model" in caught.value.message or base is None
    assert base is None or "beside the adapter's" in caught.value.hint


# Interruptions


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interruption_leaves_nothing(how: int, original: Path, nothing_left: Path) -> None:
    """Neither a file nor the converter, which the signal doesn't reach."""
    command = [sys.executable, "-m", "pyllamafile", "build", "--gguf", str(original)]
    command += ["-o", str(nothing_left / "f"), "--target", *LINUX, "--no-gui"]
    with subprocess.Popen(command, stderr=subprocess.PIPE) as process:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        while not (running := [int(pid) for pid in children.read_text().split()]):
            assert process.poll() is None
            time.sleep(0.01)
        assert list(nothing_left.glob(".pyllamafile-*"))
        time.sleep(0.5)
        process.send_signal(how)
        said = process.stderr.read().strip()
        assert said == (b"interrupted" if how == signal.SIGINT else b"")
        assert process.wait(timeout=30) == 128 + how
    assert [pid for pid in running if Path(f"/proc/{pid}").exists()] == []
