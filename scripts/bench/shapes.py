"""Models of random weights with the matrices of real ones, for measurements: they say nothing
sensible, at that model's speed by layer."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from pathlib import Path

import gguf
import numpy as np

from pyllamafile import native
from pyllamafile.models.gguf import Tensor, Weights


@dataclass(frozen=True)
class Shape:
    """The sizes of a model's matrices."""

    arch: str
    width: int
    inner: int
    heads: int
    kv_heads: int
    layers: int  # unless somebody says otherwise
    experts: int = 0  # in a layer
    used: int = 0  # of those, for a token


# Their vocabulary is Phi-3's. Rows are multiples of 256, as the K types want them.
SHAPES = {
    "phi3": Shape("phi3", 3072, 8192, 32, 32, 8),  # Phi-3-mini has 32 layers
    "llama-1b": Shape("llama", 2048, 8192, 32, 8, 16),  # Llama-3.2-1B
    "qwen-1.5b": Shape("qwen2", 1536, 8960, 12, 2, 28),  # Qwen2.5-1.5B
    "olmoe": Shape("olmoe", 2048, 1024, 16, 16, 4, experts=64, used=8),  # OLMoE-1B-7B has 16 layers
}


def matrices(shape: Shape) -> dict[str, tuple[int, ...]]:
    """What a layer consists of, as llama.cpp names it."""
    width, inner = shape.width, shape.inner
    keys = width // shape.heads * shape.kv_heads
    parts: dict[str, tuple[int, ...]] = {
        "attn_norm.weight": (width,),
        "ffn_norm.weight": (width,),
        "attn_output.weight": (width, width),
    }
    if shape.arch == "phi3":
        parts["attn_qkv.weight"] = (width + 2 * keys, width)
        parts["ffn_up.weight"] = (2 * inner, width)
        parts["ffn_down.weight"] = (width, inner)
        return parts
    for part, rows in (("q", width), ("k", keys), ("v", keys)):
        parts[f"attn_{part}.weight"] = (rows, width)
        if shape.arch == "qwen2":
            parts[f"attn_{part}.bias"] = (rows,)
    if shape.arch == "olmoe":
        parts["attn_q_norm.weight"] = parts["attn_k_norm.weight"] = (width,)
    if shape.experts:
        parts["ffn_gate_inp.weight"] = (shape.experts, width)
    kind, many = ("_exps", (shape.experts,)) if shape.experts else ("", ())
    for part in ("gate", "up"):
        parts[f"ffn_{part}{kind}.weight"] = (*many, inner, width)
    parts[f"ffn_down{kind}.weight"] = (*many, width, inner)
    return parts


def shaped(name: str, layers: int | None, folder: Path) -> Path:
    """A model of random weights in F16, in the folder; it stays there.

    Args:
        name: Of SHAPES.
        layers: How many; None for what the shape says.
        folder: Where it is made.
    """
    count = layers or SHAPES[name].layers
    path = folder / f"{name}-{count}-layers.gguf"
    if path.exists():
        return path
    unfinished = path.with_suffix(".unfinished")
    writer, sizes = _described(name, count, unfinished)
    rng = np.random.default_rng(1)
    for part, size in sizes.items():
        values = rng.standard_normal(size, dtype=np.float32) * np.float32(0.02)
        writer.add_tensor(part, values.astype(np.float32 if _exact(part, size) else np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return unfinished.rename(path)


def outline(name: str, layers: int | None, path: Path) -> list[tuple[int, bool]]:
    """What stands in front of the weights of such a model, in a file, for somebody to go on.

    Returns:
        How many numbers each tensor has, and whether they are in F32. Their data follow in this
        order, each aligned to 32 bytes.
    """
    writer, sizes = _described(name, layers or SHAPES[name].layers, path)
    tensors = []
    for part, size in sizes.items():
        exact = _exact(part, size)
        kind = np.dtype(np.float32 if exact else np.float16)
        writer.add_tensor_info(part, size, kind, prod(size) * kind.itemsize)
        tensors.append((prod(size), exact))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    return tensors


def _exact(part: str, size: tuple[int, ...]) -> bool:
    """Whether a tensor is in F32."""
    return len(size) == 1 or part.endswith("ffn_gate_inp.weight")


def _described(
    name: str, count: int, path: Path
) -> tuple[gguf.GGUFWriter, dict[str, tuple[int, ...]]]:
    """A file that all is told but the tensors, and their shapes."""
    shape = SHAPES[name]
    writer = gguf.GGUFWriter(path, shape.arch, use_temp_file=False)
    vocabulary = native.llama_source() / "models" / "ggml-vocab-phi-3.gguf"
    words = 0
    for key, field in gguf.GGUFReader(vocabulary).fields.items():
        if key.startswith("tokenizer."):
            element = field.types[-1] if len(field.types) > 1 else None
            writer.add_key_value(key, field.contents(), field.types[0], element)
            words = len(field.data) if key == "tokenizer.ggml.tokens" else words
    writer.add_context_length(4096)
    writer.add_embedding_length(shape.width)
    writer.add_feed_forward_length(shape.inner)
    writer.add_block_count(count)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_rope_dimension_count(shape.width // shape.heads)
    writer.add_layer_norm_rms_eps(1e-5)
    if shape.arch == "phi3":
        writer.add_sliding_window(2047)  # as Phi-3-mini-4k says; llama.cpp passes over it
    if shape.experts:
        writer.add_expert_count(shape.experts)
        writer.add_expert_used_count(shape.used)
    sizes: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (words, shape.width),
        "output_norm.weight": (shape.width,),
        "output.weight": (words, shape.width),
    }
    for layer in range(count):
        sizes |= {f"blk.{layer}.{part}": size for part, size in matrices(shape).items()}
    return writer, sizes


def share(tensor: Tensor, model: Weights) -> float:
    """How much of a tensor a token takes: of experts, those that it is sent to."""
    counts = [
        model.metadata.get(f"{model.architecture}.expert{key}_count") for key in ("_used", "")
    ]
    used, all_of_them = (count if isinstance(count, int) else 0 for count in counts)
    return used / all_of_them if "_exps." in tensor.name and all_of_them else 1.0


def read_to_write(model: Weights) -> float:
    """The bytes of weights that a token takes: of embeddings by themselves, it takes a row."""
    alone = any(tensor.name == "output.weight" for tensor in model.tensors)
    return sum(
        tensor.size * share(tensor, model)
        for tensor in model.tensors
        if not (alone and tensor.name == "token_embd.weight")
    )


def products_to_read(model: Weights) -> float:
    """The products of two numbers that a token of a prompt takes, those of attention left out.

    Only the last token of a prompt is multiplied by the output's matrix.
    """
    return sum(
        prod(tensor.shape) * share(tensor, model)
        for tensor in model.tensors
        if len(tensor.shape) > 1 and tensor.name.startswith("blk.")
    )
