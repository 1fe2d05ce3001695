"""Small models that llama.cpp loads, as tables of keys and tensors: to run, to change, to break."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import gguf
import numpy as np

Type = gguf.GGUFValueType

WIDTH, HEADS, INNER, LAYERS = 16, 2, 16, 2


@dataclass(frozen=True)
class Typed:
    """A value of a type that its key does not have by itself."""

    type: gguf.GGUFValueType
    value: Any
    element: gguf.GGUFValueType | None = None


@dataclass(frozen=True)
class Model:
    """A GGUF to be written.

    Attributes:
        keys: Its metadata. Integers are written as uint32, floats as float32.
        tensors: Its tensors: of a shape, outermost dimension first, and then of small random
            numbers, or as they are.
    """

    keys: Mapping[str, Any]
    tensors: Mapping[str, tuple[int, ...] | np.ndarray]

    def but(
        self, keys: Mapping[str, Any] | None = None, tensors: Mapping[str, Any] | None = None
    ) -> Model:
        """The same with some of it changed; None leaves it out."""
        return Model(*(
            {key: value for key, value in {**old, **(new or {})}.items() if value is not None}
            for old, new in ((self.keys, keys), (self.tensors, tensors))
        ))  # fmt: skip

    def write(self, path: Path) -> Path:
        """Write it."""
        architecture = self.keys.get("general.architecture")
        writer = gguf.GGUFWriter(path, architecture if isinstance(architecture, str) else "")
        del writer.kv_data[0]["general.architecture"]
        for key, value in self.keys.items():
            kind, element = None, None
            if isinstance(value, Typed):
                kind, element, value = value.type, value.element, value.value
            elif isinstance(value, int) and not isinstance(value, bool):
                kind = Type.UINT32
            writer.add_key_value(key, value, kind or Type.get_type(value), element)
        rng = np.random.default_rng(9)
        for name, tensor in self.tensors.items():
            if isinstance(tensor, tuple):
                tensor = rng.normal(0, 0.1, tensor).astype(np.float32)
            writer.add_tensor(name, tensor)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path


# Vocabularies, one of each kind


def _sentencepiece() -> dict[str, Any]:
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces += ["\u2581", *"etaoinshrdlu", "\u2581t", "he", "\u2581the", "on", "in"]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": pieces,
        "tokenizer.ggml.scores": [-float(number) for number in range(len(pieces))],
        "tokenizer.ggml.token_type": Typed(
            Type.ARRAY, [2, 3, 3, *[6] * 256, *[1] * (len(pieces) - 259)], Type.INT32
        ),
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
    }


def _byte_pairs() -> dict[str, Any]:
    # GPT-2's letters for bytes: those that can be printed stand for themselves
    printed = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = [chr(byte) for byte in printed] + [chr(256 + n) for n in range(256 - len(printed))]
    tokens = [*letters, "th", "the", "\u0120t", "<|im_start|>", "<|im_end|>"]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "qwen2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": Typed(
            Type.ARRAY, [*[1] * (len(tokens) - 2), 3, 3], Type.INT32
        ),
        "tokenizer.ggml.merges": ["t h", "th e", "\u0120 t"],
        "tokenizer.ggml.eos_token_id": len(tokens) - 1,
        "tokenizer.ggml.padding_token_id": len(tokens) - 1,
    }


def _word_pieces() -> dict[str, Any]:
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"\u2581{c}" for c in "abcdot")]
    tokens += [*"abcdefghijklmnop", "\u2581the", "ing"]
    return {
        "tokenizer.ggml.model": "bert",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type_count": 2,
        "tokenizer.ggml.token_type": Typed(
            Type.ARRAY, [*[3] * 5, *[1] * (len(tokens) - 5)], Type.INT32
        ),
        "tokenizer.ggml.unknown_token_id": 1,
        "tokenizer.ggml.seperator_token_id": 3,
        "tokenizer.ggml.padding_token_id": 0,
        "tokenizer.ggml.bos_token_id": 2,
        "tokenizer.ggml.eos_token_id": 3,
        "tokenizer.ggml.mask_token_id": 4,
    }


def _unigrams() -> dict[str, Any]:
    tokens = ["<pad>", "</s>", "<unk>", "\u2581", *"etaoinshr", "\u2581th", "the"]
    return {
        "tokenizer.ggml.model": "t5",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": [0.0, 0.0, 0.0, *(-float(n) for n in range(len(tokens) - 3))],
        "tokenizer.ggml.token_type": Typed(
            Type.ARRAY, [3, 3, 2, *[1] * (len(tokens) - 3)], Type.INT32
        ),
        "tokenizer.ggml.remove_extra_whitespaces": True,
        "tokenizer.ggml.eos_token_id": 1,
        "tokenizer.ggml.unknown_token_id": 2,
        "tokenizer.ggml.padding_token_id": 0,
    }


# Architectures


def _head(arch: str, vocabulary: Mapping[str, Any], **more: Any) -> tuple[dict[str, Any], int]:
    keys = {
        "general.architecture": arch,
        "general.name": f"tiny {arch}",
        f"{arch}.context_length": 64,
        f"{arch}.embedding_length": WIDTH,
        f"{arch}.feed_forward_length": INNER,
        f"{arch}.block_count": LAYERS,
        f"{arch}.attention.head_count": HEADS,
    }
    keys |= {f"{arch}.{key.replace('__', '.')}": value for key, value in more.items()}
    return {**keys, **vocabulary}, len(vocabulary["tokenizer.ggml.tokens"])


RMS: Final = {"attention__layer_norm_rms_epsilon": 1e-5}


def _blocks(shapes: Mapping[str, tuple[int, ...]], prefix: str = "") -> dict[str, tuple[int, ...]]:
    return {
        f"{prefix}blk.{layer}.{name}": shape
        for layer in range(LAYERS)
        for name, shape in shapes.items()
    }


_FEED_FORWARD: Final = {
    "ffn_norm.weight": (WIDTH,),
    "ffn_gate.weight": (INNER, WIDTH),
    "ffn_up.weight": (INNER, WIDTH),
    "ffn_down.weight": (WIDTH, INNER),
}


def _attention(keys: int = WIDTH) -> dict[str, tuple[int, ...]]:
    return {
        "attn_norm.weight": (WIDTH,),
        "attn_q.weight": (WIDTH, WIDTH),
        "attn_k.weight": (keys, WIDTH),
        "attn_v.weight": (keys, WIDTH),
        "attn_output.weight": (WIDTH, WIDTH),
    }


def _ends(tokens: int) -> dict[str, tuple[int, ...]]:
    return {"token_embd.weight": (tokens, WIDTH), "output_norm.weight": (WIDTH,)}


def llama() -> Model:
    """Llama 2's kind, with a vocabulary of SentencePiece's and a chat template."""
    keys, tokens = _head("llama", _sentencepiece(), rope__dimension_count=WIDTH // HEADS,
                         attention__head_count_kv=1, **RMS)  # fmt: skip
    keys["tokenizer.chat_template"] = (
        "{% for m in messages %}[{{ m.role }}] {{ m.content }}{{ eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}[assistant] {% endif %}"
    )
    return Model(
        keys, {**_ends(tokens), **_blocks({**_attention(WIDTH // HEADS), **_FEED_FORWARD})}
    )


def sure(times: int = 16) -> Model:
    """The same as wide as a block of the K types, whose best token is far from the next.

    Weights at random are arranged for that: the norms keep what they get, and the last product
    spreads it.
    """
    small = llama()
    tokens = len(small.keys["tokenizer.ggml.tokens"])
    rng = np.random.default_rng(21)
    tensors: dict[str, np.ndarray] = {}
    for name, shape in {**small.tensors, "output.weight": (tokens, WIDTH)}.items():
        wide = [size if size == tokens else size * times for size in shape]
        spread = 0.2 if name == "output.weight" else 0.1
        values = rng.normal(0, spread, wide) if len(wide) > 1 else np.ones(wide)
        tensors[name] = values.astype(np.float32)
    scaled = ("embedding_length", "feed_forward_length", "rope.dimension_count")
    keys = {f"llama.{key}": small.keys[f"llama.{key}"] * times for key in scaled}
    return Model({**small.keys, **keys, "llama.context_length": 256}, tensors)


def qwen2() -> Model:
    """Qwen 2's kind, with byte pairs."""
    keys, tokens = _head("qwen2", _byte_pairs(), **RMS)
    biases = {f"attn_{part}.bias": (WIDTH,) for part in "qkv"}
    return Model(keys, {**_ends(tokens), **_blocks({**_attention(), **biases, **_FEED_FORWARD})})


def qwen3moe() -> Model:
    """A mixture of experts."""
    experts = 3
    keys, tokens = _head("qwen3moe", _byte_pairs(), expert_count=experts, expert_used_count=2,
                         expert_feed_forward_length=INNER, **RMS)  # fmt: skip
    norms = {f"attn_{part}_norm.weight": (WIDTH // HEADS,) for part in "qk"}
    mixture = {
        "ffn_norm.weight": (WIDTH,),
        "ffn_gate_inp.weight": (experts, WIDTH),
        "ffn_gate_exps.weight": (experts, INNER, WIDTH),
        "ffn_up_exps.weight": (experts, INNER, WIDTH),
        "ffn_down_exps.weight": (experts, WIDTH, INNER),
    }
    return Model(keys, {**_ends(tokens), **_blocks({**_attention(), **norms, **mixture})})


def gemma3() -> Model:
    """Layers with a sliding window and without, and tied embeddings."""
    keys, tokens = _head("gemma3", _sentencepiece(), attention__sliding_window=8, **RMS)
    more = {f"attn_{part}_norm.weight": (WIDTH // HEADS,) for part in "qk"}
    more |= {"post_attention_norm.weight": (WIDTH,), "post_ffw_norm.weight": (WIDTH,)}
    return Model(keys, {**_ends(tokens), **_blocks({**_attention(), **more, **_FEED_FORWARD})})


def mamba() -> Model:
    """A recurrent model."""
    inner, state, kernel, rank = 2 * WIDTH, 4, 4, 2
    keys, tokens = _head("mamba", _byte_pairs(), ssm__conv_kernel=kernel, ssm__inner_size=inner,
                         ssm__state_size=state, ssm__time_step_rank=rank, **RMS)  # fmt: skip
    keys |= {"mamba.attention.head_count": 0, "mamba.feed_forward_length": 0}
    layer = {
        "attn_norm.weight": (WIDTH,),
        "ssm_in.weight": (2 * inner, WIDTH),
        "ssm_conv1d.weight": (inner, kernel),
        "ssm_conv1d.bias": (inner,),
        "ssm_x.weight": (rank + 2 * state, inner),
        "ssm_dt.weight": (inner, rank),
        "ssm_dt.bias": (inner,),
        "ssm_a": (inner, state),
        "ssm_d": (inner,),
        "ssm_out.weight": (WIDTH, inner),
    }
    return Model(keys, {**_ends(tokens), **_blocks(layer)})


def bert() -> Model:
    """A model for embeddings, with word pieces."""
    keys, tokens = _head("bert", _word_pieces(), attention__layer_norm_epsilon=1e-5,
                         attention__causal=False, pooling_type=1)  # fmt: skip
    layer = _attention()
    del layer["attn_norm.weight"]
    layer |= {f"{norm}.{side}": (WIDTH,) for norm in ("attn_output_norm", "layer_output_norm")
              for side in ("weight", "bias")}  # fmt: skip
    layer |= {"ffn_up.weight": (INNER, WIDTH), "ffn_down.weight": (WIDTH, INNER)}
    ends = {
        "token_embd.weight": (tokens, WIDTH),
        "token_types.weight": (2, WIDTH),
        "position_embd.weight": (64, WIDTH),
        "token_embd_norm.weight": (WIDTH,),
        "token_embd_norm.bias": (WIDTH,),
    }
    return Model(keys, {**ends, **_blocks(layer)})


def reranker() -> Model:
    """A model that says how well a text answers a question, with its weights at random."""
    model = bert()
    return model.but(
        {"bert.pooling_type": 4},
        {"cls.weight": (WIDTH, WIDTH), "cls.bias": (WIDTH,), "cls.output.weight": (1, WIDTH),
         "cls.output.bias": (1,)},
    )  # fmt: skip


def t5() -> Model:
    """An encoder and a decoder, with unigrams."""
    keys, tokens = _head("t5", _unigrams(), attention__relative_buckets_count=8,
                         attention__key_length=WIDTH // HEADS,
                         attention__value_length=WIDTH // HEADS,
                         decoder_start_token_id=0, **RMS)  # fmt: skip
    attention = {
        "attn_norm.weight": (WIDTH,),
        "attn_q.weight": (WIDTH, WIDTH),
        "attn_k.weight": (WIDTH, WIDTH),
        "attn_v.weight": (WIDTH, WIDTH),
        "attn_o.weight": (WIDTH, WIDTH),
        "attn_rel_b.weight": (8, HEADS),
    }
    crossed = {f"cross_{name}": shape for name, shape in attention.items()}
    blocks = {
        **_blocks({**attention, **_FEED_FORWARD}, "enc."),
        **_blocks({**attention, **crossed, **_FEED_FORWARD}, "dec."),
    }
    ends = {
        "token_embd.weight": (tokens, WIDTH),
        "enc.output_norm.weight": (WIDTH,),
        "dec.output_norm.weight": (WIDTH,),
    }
    return Model(keys, {**ends, **blocks})


MODELS: Final[tuple[Callable[[], Model], ...]] = (
    llama, qwen2, qwen3moe, gemma3, mamba, bert, reranker, t5,
)  # fmt: skip
