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
