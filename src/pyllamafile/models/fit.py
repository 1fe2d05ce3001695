"""What goes with a model by its header: a template, adapters, a projector, a draft. Pure."""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from pyllamafile import arguments
from pyllamafile.models.gguf import KINDS, Array, Kind, Weights

# How families talk whose weights may not say it, by architecture and tokenizer, in Jinja.
TEMPLATES = {
    ("phi3", "llama"): (  # Phi-3 and Phi-3.5; Phi-4 has another tokenizer
        "{% for message in messages %}"
        '{{ "<|" + message.role + "|>\\n" + message.content + "<|end|>\\n" }}'
        "{% endfor %}"
        '{% if add_generation_prompt %}{{ "<|assistant|>\\n" }}{% endif %}'
    ),
}


@dataclass(frozen=True)
class ChatFormat:
    """How weights show that they were trained on one of llama.cpp's chat formats.

    Attributes:
        name: What ``--chat-template`` calls it (llama-chat.cpp, LLM_CHAT_TEMPLATES).
        marks: The tokens that all of its vocabularies have.
        tokenizer: What the tokenizer's name begins with, where the marks don't tell.
        architecture: The only one that has it, where the marks don't tell.
    """

    name: str
    marks: tuple[str, ...] = ()
    tokenizer: str = ""
    architecture: str | None = None

    def is_of(self, facts: Weights) -> bool:
        """Whether weights show it."""
        return (
            facts.marks.issuperset(self.marks)
            and (facts.tokenizer or "").startswith(self.tokenizer)
            and self.architecture in (None, facts.architecture)
        )


# The first that fits. Where a vocabulary has the marks of two, the second is what its base was
# trained on, as in Hermes' ChatML on a Llama 3. Formats in plain words (Vicuna's "USER:") leave
# no marks. Neither does a vocabulary tell which of two it is where one format continues another:
# of Granite's and Bailing's the first stands for all.
CHAT_FORMATS = (
    ChatFormat("phi4", ("<|im_start|>", "<|im_sep|>", "<|im_end|>")),
    ChatFormat("smolvlm", ("<|im_start|>", "<end_of_utterance>")),
    ChatFormat("kimi-k2", ("<|im_user|>", "<|im_assistant|>", "<|im_middle|>")),
    ChatFormat("chatml", ("<|im_start|>", "<|im_end|>")),
    ChatFormat("mistral-v7", ("[INST]", "[/INST]", "[SYSTEM_PROMPT]"), tokenizer="llama"),
    ChatFormat("mistral-v7-tekken", ("[INST]", "[/INST]", "[SYSTEM_PROMPT]"), tokenizer="gpt2"),
    ChatFormat("mistral-v3", ("[INST]", "[/INST]"), tokenizer="llama"),
    ChatFormat("mistral-v3-tekken", ("[INST]", "[/INST]"), tokenizer="gpt2"),
    ChatFormat("solar-open", ("<|begin|>", "<|content|>", "<|end|>")),
    ChatFormat("gpt-oss", ("<|start|>", "<|channel|>", "<|message|>")),
    ChatFormat("phi3", ("<|user|>", "<|assistant|>", "<|end|>")),
    ChatFormat("chatglm4", ("[gMASK]", "<sop>", "<|user|>", "<|assistant|>")),
    ChatFormat("chatglm3", ("[gMASK]", "<|user|>", "<|assistant|>"), tokenizer="llama"),
    ChatFormat("exaone-moe", ("<|user|>", "<|assistant|>", "<|endofturn|>")),
    ChatFormat("falcon3", ("<|user|>", "<|assistant|>"), tokenizer="gpt2 (falcon3)"),
    ChatFormat("gemma", ("<start_of_turn>", "<end_of_turn>")),
    ChatFormat("command-r", ("<|START_OF_TURN_TOKEN|>", "<|USER_TOKEN|>", "<|CHATBOT_TOKEN|>")),
    ChatFormat("deepseek2", ("<｜User｜>", "<｜Assistant｜>"), tokenizer="gpt2 (deepseek-llm)"),
    ChatFormat("deepseek-ocr", architecture="deepseek2-ocr"),
    ChatFormat("deepseek3", ("<｜User｜>", "<｜Assistant｜>")),
    ChatFormat("deepseek", ("<|EOT|>",), tokenizer="gpt2 (deepseek-coder)"),
    ChatFormat("llama3", ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")),
    ChatFormat("llama4", ("<|header_start|>", "<|header_end|>", "<|eot|>")),
    ChatFormat("minicpm", ("<用户>", "<AI>")),
    ChatFormat("exaone4", ("[|assistant|]", "[|endofturn|]", "[|tool|]")),
    ChatFormat("exaone3", ("[|assistant|]", "[|endofturn|]")),
    ChatFormat("granite", ("<|start_of_role|>", "<|end_of_role|>")),
    ChatFormat("gigachat", ("<|role_sep|>", "<|message_sep|>")),
    ChatFormat("megrez", ("<|role_start|>", "<|role_end|>", "<|turn_end|>")),
    ChatFormat("bailing2", ("<role>", "</role>", "<|role_end|>")),
    ChatFormat("bailing", ("<role>", "</role>")),
    ChatFormat("hunyuan-vl", ("<｜hy_User｜>", "<｜hy_Assistant｜>"), architecture="hunyuan_vl"),
    ChatFormat("hunyuan-dense", ("<｜hy_User｜>", "<｜hy_Assistant｜>")),
    ChatFormat("hunyuan-moe", ("<|startoftext|>", "<|extra_0|>", "<|extra_4|>")),
    ChatFormat("seed_oss", ("<seed:bos>", "<seed:eos>")),
    ChatFormat("grok-2", ("<|separator|>",), architecture="grok"),
    ChatFormat("pangu-embedded", ("[unused9]", "[unused10]"), architecture="pangu-embedded"),
    ChatFormat("openchat", ("<|end_of_turn|>",), tokenizer="llama"),
    ChatFormat("rwkv-world", tokenizer="rwkv"),
)


@dataclass(frozen=True)
class Role:
    """A way in which weights go with the first model of a file.

    Attributes:
        kind: What they have to be.
        flag: The runtime's option for them.
    """

    kind: Kind
    flag: str


ROLES = {
    "lora": Role("adapter", "--lora"),
    "mmproj": Role("projector", "--mmproj"),
    "draft": Role("model", "--model-draft"),
}

_TEMPLATE_OPTIONS = {"--chat-template", "--chat-template-file"}

_TENSOR_ALIGNMENT = 32
# speculative.cpp, SPEC_VOCAB_MAX_SIZE_DIFFERENCE
_SAME_VOCABULARY = 128


def chat_template(models: Mapping[str, Weights], args: str | None) -> str | tuple[str, ...]:
    """How conversations with these weights are written down, where they don't say it themselves.

    Args:
        models: The weights by their names.
        args: The text of `.args`, which may already settle it.

    Returns:
        The template that `.args` has to bring, or else the names of the weights that need one:
        it would hold for all weights, so among several there is none to bring.
    """
    talking = {
        name: facts
        for name, facts in models.items()
        if "tokenizer.ggml.model" in facts.metadata  # not in a split model's later parts
        and f"{facts.architecture}.pooling_type" not in facts.metadata  # it makes embeddings
    }
    silent = tuple(name for name, facts in talking.items() if not facts.chat_template)
    if not silent or arguments.has(
        (args or "").encode("utf-8", "surrogateescape"), _TEMPLATE_OPTIONS
    ):
        return ()
    template = family_template(talking[silent[0]]) if len(talking) == 1 else None
    return template or silent


def family_template(facts: Weights) -> str | None:
    """A template in Jinja, or the name of one of llama.cpp's formats, that the weights show."""
    family = (facts.architecture, facts.metadata["tokenizer.ggml.model"])
    if family in TEMPLATES:
        return TEMPLATES[family]
    return next((format.name for format in CHAT_FORMATS if format.is_of(facts)), None)


def broken_template(template: str) -> str | None:
    """Why a chat template can't be used; None if that isn't known.

    Known it is where the package jinja2 is at hand, which reads the same language.
    """
    try:
        jinja2 = importlib.import_module("jinja2")
    except ImportError:
        return None
    # Training alone needs this tag, which transformers adds to the language.
    text = re.sub(r"{%-?\s*(end)?generation\s*-?%}", "", template)
    try:
        jinja2.Environment(extensions=["jinja2.ext.loopcontrols"]).parse(text)
    except jinja2.TemplateSyntaxError as error:
        return f"line {error.lineno}: {error.message}"
    except RecursionError:
        return "nested too deep"
    return None


def unmappable(facts: Weights) -> str | None:
    """Why llama.cpp can't map the weights of a model; None if it can.

    It maps tensors at multiples of 32 bytes (ggml-impl.h, TENSOR_ALIGNMENT), and ends at others.
    """
    if facts.kind == "model" and facts.tensors and facts.alignment % _TENSOR_ALIGNMENT:
        return (
            f"its tensors are aligned to {facts.alignment} bytes (general.alignment), and"
            f" llama.cpp takes them at multiples of {_TENSOR_ALIGNMENT} only"
        )
    return None


# llama-model.cpp and llama-vocab.cpp: the keys that most architectures have, by the part behind
# the architecture's name, and what their values may be. Arrays have a value for each layer.
_COUNTS: Final[Mapping[str, range]] = {
    "context_length": range(1, (1 << 30) + 1),
    "embedding_length": range(1, 1 << 31),
    "block_count": range(1, 513),  # LLAMA_MAX_LAYERS
    "feed_forward_length": range(1 << 31),
    "attention.head_count": range(1 << 31),
    "attention.head_count_kv": range(1 << 31),
    "rope.dimension_count": range(1 << 31),
}
_TEXTS: Final = ("general.architecture", "general.name", "tokenizer.ggml.model",
                 "tokenizer.ggml.pre")  # fmt: skip
_FLAGS: Final = ("tokenizer.ggml.add_bos_token", "tokenizer.ggml.add_eos_token")
_TOKENS: Final = "tokenizer.ggml.tokens"
_ARRAYS: Final[Mapping[str, tuple[str, bool]]] = {  # of what, and whether one for each token
    _TOKENS: ("string", True),
    "tokenizer.ggml.scores": ("float32", True),
    "tokenizer.ggml.token_type": ("int32", True),
    "tokenizer.ggml.merges": ("string", False),
}


_SHARED: Final = ("embedding_length", "attention.head_count")


def unsound(facts: Weights) -> str | None:
    """Why llama.cpp would refuse a model, as far as the usual keys of its header show.

    The runtime knows all of them; this is for where there is none to be asked.
    """
    found, arch = facts.metadata, facts.architecture
    tokens = found.get(_TOKENS)
    for keys, kind in ((_TEXTS, str), (_FLAGS, bool)):
        for key in keys:
            if not isinstance(found.get(key, kind()), kind):
                return f"{key} is no {'string' if kind is str else 'bool'}: {found[key]}"
    for part, possible in _COUNTS.items():
        value = found.get(key := f"{arch}.{part}")
        if value is None or isinstance(value, Array):
            continue
        if isinstance(value, bool) or not isinstance(value, int):
            return f"{key} is no integer: {value!r}"
        if value not in possible:
            return f"{key} is {value}, and can be from {possible[0]} to {possible[-1]}"
    for key, (element, each) in _ARRAYS.items():
        value = found.get(key)
        if value is None:
            continue
        if not isinstance(value, Array) or value.type != element:
            return f"{key} is no array of {element}"
        if each and isinstance(tokens, Array) and value.length < tokens.length:
            return f"{key} has {value.length} values, and there are {tokens.length} tokens"
    width, heads = (found.get(f"{arch}.{part}") for part in _SHARED)
    if isinstance(width, int) and isinstance(heads, int) and heads and width % heads \
            and f"{arch}.attention.key_length" not in found:  # fmt: skip
        return f"{arch}.embedding_length is {width}, no multiple of its {heads} heads"
    return None


def misfit(role: str, given: Weights, model: Sequence[Weights]) -> str | None:
    """Why weights can't go with a model; None if nothing in the headers is against it.

    Args:
        role: One of `ROLES`.
        given: The weights.
        model: The model, every part of it.
    """
    wanted = ROLES[role].kind
    if given.kind != wanted:
        return f"is {KINDS[given.kind]}, not {KINDS[wanted]}"
    first = model[0]
    if role == "lora":
        if given.architecture != first.architecture:
            return f"is for {given.architecture}, and the model is {first.architecture}"
        return _misshapen(given, model)
    if role == "draft" and (problem := unmappable(given)):
        return problem
    if role == "draft" and first.tokenizer and given.tokenizer:
        difference = abs((first.vocabulary or 0) - (given.vocabulary or 0))
        if given.tokenizer != first.tokenizer or difference > _SAME_VOCABULARY:
            return "has another vocabulary than the model, so it can't draft for it"
    return None


def _misshapen(adapter: Weights, model: Sequence[Weights]) -> str | None:
    """What of an adapter its model has no place for, as llama-adapter.cpp sees it."""
    shapes = {tensor.name: tensor.shape for part in model for tensor in part.tensors}
    for tensor in adapter.tensors:
        base, side = tensor.name.rpartition(".lora_")[::2]
        # Which dimension of it has to be which of the model's; embeddings have the two swapped.
        swapped = base == "token_embd.weight"
        mine, its = {"a": (1, 1) if swapped else (0, 0), "b": (1, int(not swapped))}.get(
            side, (0, 0)
        )
        shape = shapes.get(base, ())
        if len(shape) <= its or len(tensor.shape) <= mine or tensor.shape[mine] != shape[its]:
            return f"is for another model: this one has no {base} of such a shape"
    return None


def partner_args(role: str, name: str, scale: float = 1) -> list[str]:
    """The arguments by which a runtime uses weights beside a model in the same file.

    >>> partner_args("lora", "pirate.gguf", 0.5)
    ['--lora-scaled', '@pirate:0.5']
    """
    flag, value = ROLES[role].flag, f"@{name.removesuffix('.gguf')}"
    return [flag, value] if scale == 1 else [f"{flag}-scaled", f"{value}:{scale:g}"]
