"""Phi-3 by people who have nothing to do with llama.cpp: a tiny one, made and run by transformers.

Its shape is Phi-3-mini-4k's (the width of a head, the sliding window, the rope, the 32,064 tokens),
its size is not: two layers, 192 wide, with random weights.

Random weights leave the best token a hair ahead of the next. These are random as well, but put
together like a trained model's: a head of attention brings along what an earlier token means, and
the rows of the output are the embeddings in another order. So the best token is clearly the best,
and which one it is hangs on what was said before.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import gguf
import torch
from sentencepiece import sentencepiece_model_pb2
from transformers import Phi3Config, Phi3ForCausalLM

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6  # sentencepiece's


@dataclass(frozen=True)
class Vocabulary:
    """What a GGUF says about its tokens, in the order of their numbers."""

    tokens: list[str]
    scores: list[float]
    types: list[int]


def vocabulary(path: Path) -> Vocabulary:
    fields = gguf.GGUFReader(path).fields
    keys = ("tokens", "scores", "token_type")
    return Vocabulary(*(fields[f"tokenizer.ggml.{key}"].contents() for key in keys))


def save_tokenizer(words: Vocabulary, template: str, folder: Path) -> None:
    """The files that Phi-3's own repository has, made of what the GGUF kept of them."""
    model = sentencepiece_model_pb2.ModelProto()
    model.trainer_spec.model_type = model.trainer_spec.BPE
    model.trainer_spec.byte_fallback = True
    model.trainer_spec.vocab_size = first_added = words.tokens.index("<|endoftext|>")
    model.normalizer_spec.name = "identity"
    model.normalizer_spec.add_dummy_prefix = True
    model.normalizer_spec.remove_extra_whitespaces = False
    kinds = {"<unk>": UNKNOWN, "<s>": CONTROL, "</s>": CONTROL}
    for token, score, kind in zip(words.tokens, words.scores, words.types, strict=True):
        if len(model.pieces) == first_added:
            break
        model.pieces.add(piece=token, score=score, type=kinds.get(token, kind))
    (folder / "tokenizer.model").write_bytes(model.SerializeToString())

    added = {
        str(number): {"content": token, "special": words.types[number] == CONTROL}
        for number, token in enumerate(words.tokens)
        if token in kinds or (number >= first_added and words.types[number] == CONTROL)
    }
    config = {
        "tokenizer_class": "LlamaTokenizer",
        "added_tokens_decoder": added,
        "chat_template": template,
        "bos_token": "<s>",
        "eos_token": "<|endoftext|>",
        "unk_token": "<unk>",
        "pad_token": "<|endoftext|>",
        "add_bos_token": True,
        "add_eos_token": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


HEADS, WIDTH, INNER, LAYERS = 2, 192, 512, 2  # heads of 96 elements, as Phi-3's are
CONTEXT, WINDOW = 4096, 2047
SEED = 3
# How much of what each head of each layer attends to is added to the stream.
GAINS = ((4.0, 0.3), (1.0, 1.0))


def make(words: Vocabulary, template: str, folder: Path) -> None:
    """A model in the folder, as transformers saves it."""
    torch.manual_seed(SEED)
    config = Phi3Config(
        vocab_size=len(words.tokens),
        hidden_size=WIDTH,
        intermediate_size=INNER,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        max_position_embeddings=CONTEXT,
        original_max_position_embeddings=CONTEXT,
        sliding_window=WINDOW,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        bos_token_id=1,
        eos_token_id=32000,
        pad_token_id=32000,
        tie_word_embeddings=False,
    )
    model = Phi3ForCausalLM(config)
    with torch.no_grad():
        embeddings = model.model.embed_tokens.weight.normal_(0, 1)
        model.lm_head.weight.copy_(embeddings[torch.randperm(len(embeddings))] * 0.05)
        for layer, gains in zip(model.model.layers, GAINS, strict=True):
            attention = layer.self_attn
            attention.qkv_proj.weight[: 2 * WIDTH].normal_(0, 0.2)  # heeds few tokens
            values = torch.linalg.qr(torch.randn(WIDTH, WIDTH))[0]
            attention.qkv_proj.weight[2 * WIDTH :].copy_(values)
            gain = torch.tensor(gains).repeat_interleave(WIDTH // HEADS)
            attention.o_proj.weight.copy_(values.T * gain)
            layer.mlp.gate_up_proj.weight.normal_(0, WIDTH**-0.5)
            layer.mlp.down_proj.weight.normal_(0, 0.5 * INNER**-0.5)
    model.save_pretrained(folder)
    save_tokenizer(words, template, folder)


def convert(source: Path, folder: Path, type: str, path: Path) -> Path:
    """The GGUF that llama.cpp's own converter makes of it."""
    command = [sys.executable, source / "convert_hf_to_gguf.py", folder, "--outtype", type]
    done = subprocess.run([*command, "--outfile", path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return path


def load(folder: Path, type: str, window: int | None = WINDOW) -> Phi3ForCausalLM:
    """The model for computing in F32, its matrices rounded as in a file of the type."""
    model = Phi3ForCausalLM.from_pretrained(
        folder, dtype=torch.float32, sliding_window=window, attn_implementation="eager"
    ).eval()
    if type == "f16":
        for weight in model.parameters():
            if weight.ndim == 2:  # the vectors stay as they are
                weight.data = weight.data.half().float()
    return model


def logits(model: Phi3ForCausalLM, tokens: Sequence[int], first: int) -> torch.Tensor:
    """What the model thinks of the token after `first` of them, and so on to the last.

    A row whose largest is the token that follows, for each: then greedy decoding by this model
    writes these tokens.
    """
    with torch.inference_mode():
        out = model(torch.tensor([tokens]), logits_to_keep=len(tokens) - first + 1)
    return out.logits[0, :-1]


def prompts(count: int, last: int) -> list[list[int]]:
    """Random tokens, 3 to 60 of them, with BOS in front and the same token at the end of all."""
    chance = torch.Generator().manual_seed(SEED)
    lengths = torch.randint(1, 59, (count,), generator=chance).tolist()
    return [[1, *random_tokens(length, chance), last] for length in lengths]


def random_tokens(count: int, chance: torch.Generator) -> list[int]:
    return torch.randint(260, 31000, (count,), generator=chance).tolist()
