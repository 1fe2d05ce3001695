"""What llama.cpp's quantizer makes of a model, and what it takes to run it: from the header alone.

The quantizer doesn't give every tensor the type that the format is called after. Which one gets
which is its rule, kept here as tables, so that sizes are known before a byte is written.

The quantizer could be asked: `--quantize --dry-run` on a sparse file with the real header takes
some 50 ms a format. But it takes a runtime for this machine, which `advise` must not need: to
compile one takes minutes. So the rules are here, and tests/native/test_forecast.py holds them
against that dry run: every format, architectures of every kind of rule.
"quant.cpp" is llama.cpp's src/llama-quant.cpp.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Final

from pyllamafile.errors import NotFoundError
from pyllamafile.models.gguf import TENSOR_TYPES, Tensor, Weights

# The formats on offer, best first, each with the type that it is made of where no rule says else.
FORMATS: Final[Mapping[str, str]] = {
    "F16": "F16",
    "BF16": "BF16",
    "Q8_0": "Q8_0",
    "Q6_K": "Q6_K",
    "Q5_K_M": "Q5_K",
    "Q4_K_M": "Q4_K",
    "Q4_0": "Q4_0",
    "Q2_K": "Q2_K",
}

# What is no quantization: it can be quantized without asking twice.
FLOATS: Final = frozenset({"F32", "F16", "BF16", "F64"})

TYPES: Final = {kind.name: kind for kind in TENSOR_TYPES.values()}

# quant.cpp, `tensor_type_fallback`: what a row gets that the blocks of a type don't divide.
_FALLBACKS: Final[Mapping[str, str]] = {
    "Q2_K": "Q4_0",
    "Q3_K": "Q4_0",
    "Q4_K": "Q5_0",
    "Q5_K": "Q5_1",
    "Q6_K": "Q8_0",
}

# quant.cpp, `tensor_allows_quantization`: a tensor with one of these in its name stays as it is.
_KEPT: Final = (
    "_norm.weight",
    "ffn_gate_inp.weight",
    "ffn_gate_tid2eid.weight",
    "altup",
    "laurel",
    "per_layer_model_proj",
    "ssm_conv1d",
    "shortconv.conv.weight",
    "indexer.k_proj.weight",
    "indexer.q_proj.weight",
    *(
        f"time_mix_{part}.weight"
        for part in (
            *("first", "w0", "w1", "w2", "v0", "v1", "v2", "a0", "a1", "a2", "g1", "g2"),
            *("decay_w1", "decay_w2", "lerp_fused"),
        )
    ),
    "attn_rel_b.weight",
    ".position_embd",
    "sam.pos_embd",
    "sam.neck.",
    "sam.net_",
    ".rel_pos",
    ".patch_embd",
    ".patch_merger",
    "a.rvq.codebook",
    "mm.a.code_embd",
)
_KEPT_WHOLE: Final = ("position_embd.weight", "token_types.weight")

# The same, of glm5-next alone; and what of it gets no less than Q8_0.
_KEPT_GLM5: Final = (
    *("hc_", "indexer.attn_q_b", "indexer.attn_k", "indexer.proj"),
    *("indexer_compressor_gate", "indexer_compressor_ape"),
    *("ssm_f_a.weight", "ssm_f_b.weight", "ssm_g_a.weight", "ssm_g_b.weight", "ssm_beta.weight"),
    *("attn_kv_a_mqa.weight", "attn_k_b.weight", "attn_v_b.weight"),
)
_FINE_GLM5: Final = ("attn_q_a", "attn_q_b", "nextn.eh_proj")

# quant.cpp, `tensor_get_category`: the first that fits.
_CATEGORIES: Final = (
    ("output", r"output\.weight"),
    ("embedding", r"(per_layer_)?token_embd\.weight"),
    ("value", r".*(attn_qkv|attn_kv_b|attn_v)\.weight.*"),
    ("key", r".*attn_k\.weight.*"),
    ("attention", r".*attn_output\.weight.*"),
    ("down", r".*ffn_down.*"),
)

# The architectures of which llama.cpp calls a model with so many layers "70B".
_SEVENTY: Final[Mapping[str, int]] = {
    "llama": 80,
    "deci": 80,
    "olmo": 80,
    "qwen2": 80,
    "jais2": 68,
}

_BATCH: Final = 512  # llama.cpp's n_ubatch: the tokens of a prompt that are computed at once
_CELLS: Final = 256  # a context is rounded up to whole multiples of so many tokens


@dataclass(frozen=True)
class Memory:
    """What a model takes when it runs, in bytes.

    Attributes:
        weights: All of its tensors; they are mapped, and stay in memory as long as there is room.
        cache: Keys and values (F16) of a full context.
        compute: What a batch of 512 tokens passes through.
    """

    weights: int
    cache: int
    compute: int

    @property
    def total(self) -> int:
        """All of it, in bytes."""
        return self.weights + self.cache + self.compute


def check(format: str) -> None:
    """Refuse what is no format on offer.

    Raises:
        PyllamafileError: There is no such format.
    """
    if format not in FORMATS:
        raise NotFoundError(
            f"{format!r} is no format to quantize to", hint=f"there are {', '.join(FORMATS)}"
        )


def types(parts: Sequence[Weights], format: str) -> dict[str, str]:
    """The type that each tensor gets.

    Args:
        parts: The header of every file of the model.
        format: One of `FORMATS`.

    Raises:
        PyllamafileError: There is no such format.
    """
    check(format)
    # The order of llama.cpp's loader, in which the rules count.
    tensors = sorted((t for part in parts for t in part.tensors), key=lambda t: _order(t.name))
    model = _Model(parts[0], tensors)
    return {tensor.name: _type(model, tensor, format) for tensor in tensors}


def size(parts: Sequence[Weights], format: str) -> int:
    """The bytes of the GGUF that the quantizer makes, in one file, to within a few hundred."""
    chosen = types(parts, format)
    header = sum(part.data_offset for part in parts)
    align = parts[0].alignment
    return header + sum(
        -(-tensor_bytes(tensor.shape, chosen[tensor.name]) // align) * align
        for part in parts
        for tensor in part.tensors
    )


def tensor_bytes(shape: Sequence[int], type: str) -> int:
    """What a tensor takes, in bytes."""
    kind = TYPES[type]
    return prod(shape) // kind.elements * kind.bytes


def quantized(parts: Sequence[Weights]) -> str | None:
    """The type that most of a quantized model's bytes are of, None for a model in floats."""
    held: dict[str, int] = {}
    for part in parts:
        for tensor in part.tensors:
            if tensor.type not in FLOATS and not tensor.type.startswith("I"):
                held[tensor.type] = held.get(tensor.type, 0) + tensor.size
    return max(held, key=held.__getitem__, default=None)


def loses_twice(parts: Sequence[Weights], format: str) -> bool:
    """Whether something that is quantized would have to be quantized again."""
    chosen = types(parts, format)
    return any(
        tensor.type not in FLOATS and tensor.type != chosen[tensor.name]
        for part in parts
        for tensor in part.tensors
    )


def memory(parts: Sequence[Weights], context: int, format: str | None = None) -> Memory:
    """What the model takes when it runs.

    The weights are the sum of the tensors; the cache is two bytes for every element of a key and
    a value, per layer and token of the context; the compute buffer is what llama.cpp reserves for
    512 tokens: as floats the logits and four rows of the embedding's width, or else three of the
    feed-forward network's and three of the embedding's.

    Args:
        parts: The header of every file of the model.
        context: In tokens.
        format: What it is quantized to; None for what it is.
    """
    tensors = [tensor for part in parts for tensor in part.tensors]
    chosen = types(parts, format) if format else {tensor.name: tensor.type for tensor in tensors}
    model = _Model(parts[0], tensors)
    cells = -(-context // _CELLS) * _CELLS
    width = model.count("embedding_length", 0)
    inner = max((t.shape[0] for t in tensors if "ffn_down.weight" in t.name), default=0)
    rows = max((parts[0].vocabulary or 0) + 4 * width, 3 * inner + 3 * width)
    return Memory(
        weights=sum(tensor_bytes(tensor.shape, chosen[tensor.name]) for tensor in tensors),
        cache=2 * cells * sum(model.key_and_value(tensor) for tensor in tensors),
        compute=4 * _BATCH * rows,
    )


def remembered(parts: Sequence[Weights], types: Sequence[str]) -> dict[str, int]:
    """The bytes that a model remembers of each token, by the type of keys and values.

    Args:
        parts: The header of every file of the model.
        types: Names of types as llama.cpp has them for keys and values, such as ``q8_0``.
    """
    model = _Model(parts[0], [tensor for part in parts for tensor in part.tensors])
    elements = sum(model.key_and_value(tensor) for part in parts for tensor in part.tensors)
    return {type: tensor_bytes((elements,), type.upper()) for type in types}


# The rules


class _Model:
    """What the rules ask about a model."""

    def __init__(self, weights: Weights, tensors: Sequence[Tensor]) -> None:
        self.weights = weights
        self.architecture = weights.architecture or ""
        self.glm5 = self.architecture == "glm5-next"
        self.layers = self.count("block_count", 0)
        self.experts = self.count("expert_count", 0)
        self.tied = all(tensor.name != "output.weight" for tensor in tensors)
        heads = self.count("attention.head_count", 0)
        groups = self.count("attention.head_count_kv", heads)
        self.sharing = heads // groups if groups else 0
        self.seventy = _SEVENTY.get(self.architecture) == self.layers and (
            self.architecture != "llama" or heads != groups
        )
        # The rules count the values that were passed, and down projections by layer or so, too.
        self.value_count = sum(_category(t.name) == "value" for t in tensors)
        passed = [t.name for t in tensors if self.quantizes(t)]
        values = [name for name in passed if _category(name) == "value"]
        downs = [name for name in passed if _category(name) == "down"]
        self.place = {name: place for names in (values, downs) for place, name in enumerate(names)}

    def count(self, key: str, otherwise: int, layer: int = 0) -> int:
        """A number of the model's, or of a layer's where layers differ."""
        key = f"{self.architecture}.{key}"
        value: object = self.weights.metadata.get(key)
        if numbers := self.weights.numbers.get(key):
            value = numbers[layer] if 0 <= layer < len(numbers) else None
        return value if isinstance(value, int) and not isinstance(value, bool) else otherwise

    def quantizes(self, tensor: Tensor) -> bool:
        """Whether a tensor is one that is quantized at all."""
        name = tensor.name
        dimensions = max((i + 1 for i, n in enumerate(tensor.shape) if n > 1), default=0)
        return (
            dimensions >= 2
            and name.endswith("weight")
            and name not in _KEPT_WHOLE
            and not any(part in name for part in _KEPT)
            and not (self.glm5 and any(part in name for part in _KEPT_GLM5))
        )

    def key_and_value(self, tensor: Tensor) -> int:
        """The elements that a token leaves in the cache because of this tensor."""
        if not tensor.name.endswith(".weight") or len(tensor.shape) < 2:
            return 0
        rows = prod(tensor.shape[1:])
        match tensor.name.split(".")[-2]:
            case "attn_k" | "attn_v" | "attn_kv_a_mqa":
                return rows
            case "attn_qkv":
                heads = self.count("attention.head_count", 0, _order(tensor.name)[0])
                width = self.count("embedding_length", 0)
                length = self.count("attention.key_length", width // heads if heads else 0)
                return max(rows - heads * length, 0)
        return 0


def _order(name: str) -> tuple[int, str]:
    layer = re.match(r"blk\.(\d+)\.", name)
    return (int(layer[1]) if layer else -1, name)


def _category(name: str) -> str:
    found = (category for category, form in _CATEGORIES if re.fullmatch(form, name))
    return next(found, "other")


def _type(model: _Model, tensor: Tensor, format: str) -> str:
    if not model.quantizes(tensor):
        return tensor.type
    type = FORMATS[format]
    if type in FLOATS:
        return type
    type = _rule(model, tensor, format, type)
    row = tensor.shape[0]
    if row % TYPES[type].elements:
        type = _FALLBACKS.get(type, type)
    return "F16" if row % TYPES[type].elements else type


def _rule(model: _Model, tensor: Tensor, format: str, type: str) -> str:
    """quant.cpp, `llama_tensor_get_type_impl`."""
    if model.glm5 and any(part in tensor.name for part in _FINE_GLM5):
        return "Q8_0"
    category = _category(tensor.name)
    if category == "embedding" and model.tied:
        category = "output"
    rule = _RULES.get(category)
    return rule(model, tensor, format, type) if rule else type


def _output(model: _Model, tensor: Tensor, format: str, type: str) -> str:
    if model.architecture == "falcon" or tensor.shape[0] % TYPES[type].elements:
        return "Q8_0"
    return type if type == "Q8_0" else "Q6_K"


def _value(model: _Model, tensor: Tensor, format: str, type: str) -> str:
    if model.experts == 8:
        return "Q8_0"
    if format == "Q2_K":
        type = "Q4_K" if model.sharing >= 4 else "Q3_K"
    if format in _MIXED and _matters(model.place[tensor.name], model.value_count):
        type = "Q6_K"
    return "Q5_K" if model.seventy and type in ("Q3_K", "Q4_K") else type


def _key(model: _Model, tensor: Tensor, format: str, type: str) -> str:
    return "Q8_0" if model.experts == 8 else type


def _attention(model: _Model, tensor: Tensor, format: str, type: str) -> str:
    if model.architecture == "falcon":
        return type
    if model.experts == 8:
        return "Q5_K" if format in ("Q2_K", "Q4_K_M") else type
    return "Q3_K" if format == "Q2_K" else type


def _down(model: _Model, tensor: Tensor, format: str, type: str) -> str:
    # With experts the layer stands in the name; without, one is as good as the next.
    layer = _order(tensor.name)[0] if model.experts > 1 else model.place[tensor.name]
    matters = _matters(layer, model.layers)
    if format == "Q2_K":
        return "Q3_K"
    if format == "Q4_K_M" and model.architecture == "falcon":
        return "Q6_K" if layer < model.layers // 16 else "Q5_K" if matters else type
    return "Q6_K" if format in _MIXED and matters else type


def _matters(place: int, count: int) -> bool:
    """quant.cpp, `use_more_bits`: the first and the last eighth, and each third between."""
    eighth = count // 8
    return place < eighth or place >= 7 * count // 8 or (place - eighth) % 3 == 2


_MIXED: Final = ("Q4_K_M", "Q5_K_M")
_RULES: Final[Mapping[str, Callable[[_Model, Tensor, str, str], str]]] = {
    "output": _output,
    "value": _value,
    "key": _key,
    "attention": _attention,
    "down": _down,
}
