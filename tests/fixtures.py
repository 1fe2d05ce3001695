"""Models and files that tests are made of, written in code."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np


def tiny_gguf(path: Path, *, name: str = "Tiny", tokens: int = 64, arch: str = "llama") -> Path:
    """A structurally complete GGUF with random weights, some KiB small."""
    writer = gguf.GGUFWriter(path, arch)
    writer.add_name(name)
    writer.add_context_length(128)
    writer.add_embedding_length(32)
    writer.add_block_count(1)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_tokenizer_model("llama")
    writer.add_token_list([f"t{i}" for i in range(tokens)])
    writer.add_token_scores([0.0] * tokens)
    writer.add_chat_template("{{ messages[0].content }}")
    rng = np.random.default_rng(7)
    writer.add_tensor("token_embd.weight", rng.random((tokens, 32), dtype=np.float32))
    writer.add_tensor("output_norm.weight", rng.random(32, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def tiny_phi3(
    path: Path,
    vocabulary: Path,
    *,
    width: int = 64,
    inner: int = 128,
    heads: int = 2,
    kv_heads: int = 2,
) -> Path:
    """A phi3 model with Phi-3's real vocabulary and random weights, one layer deep.

    Args:
        path: The file to write.
        vocabulary: The sdist's models/ggml-vocab-phi-3.gguf.
        width: Of the embedding.
        inner: Width of the feed-forward network.
        heads: Of attention.
        kv_heads: How many of them have keys and values of their own.
    """
    queries = (heads + 2 * kv_heads) * width // heads
    hyperparameters = {
        "phi3.context_length": 4096,
        "phi3.embedding_length": width,
        "phi3.feed_forward_length": inner,
        "phi3.block_count": 1,
        "phi3.attention.head_count": heads,
        "phi3.attention.head_count_kv": kv_heads,
        "phi3.rope.dimension_count": width // heads,
    }
    writer = gguf.GGUFWriter(path, "phi3")
    tokens = 0
    for key, field in gguf.GGUFReader(vocabulary).fields.items():
        if key.startswith("GGUF.") or key == "general.architecture" or key in hyperparameters:
            continue
        element = field.types[-1] if len(field.types) > 1 else None
        writer.add_key_value(key, field.contents(), field.types[0], element)
        if key == "tokenizer.ggml.tokens":
            tokens = len(field.data)
    for key, value in hyperparameters.items():
        writer.add_uint32(key, value)
    rng = np.random.default_rng(3)
    for name, shape in {
        "token_embd.weight": (tokens, width),
        "output_norm.weight": (width,),
        "output.weight": (tokens, width),
        "blk.0.attn_norm.weight": (width,),
        "blk.0.attn_qkv.weight": (queries, width),
        "blk.0.attn_output.weight": (width, width),
        "blk.0.ffn_norm.weight": (width,),
        "blk.0.ffn_up.weight": (2 * inner, width),
        "blk.0.ffn_down.weight": (width, inner),
    }.items():
        writer.add_tensor(name, rng.normal(0, 0.05, shape).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
