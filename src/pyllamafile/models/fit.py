"""What goes with a model by its header: a template, adapters, a projector, a draft. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pyllamafile import arguments
from pyllamafile.models.gguf import Kind, Weights

# How families talk whose weights may not say it, by architecture and tokenizer, in Jinja.
TEMPLATES = {
    ("phi3", "llama"): (  # Phi-3 and Phi-3.5; Phi-4 has another tokenizer
        "{% for message in messages %}"
        '{{ "<|" + message.role + "|>\\n" + message.content + "<|end|>\\n" }}'
        "{% endfor %}"
        '{% if add_generation_prompt %}{{ "<|assistant|>\\n" }}{% endif %}'
    ),
}

# What weights are, for people.
KINDS: Mapping[Kind, str] = {
    "model": "a model",
    "adapter": "a LoRA adapter",
    "projector": "a projector",
}


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
    facts = talking[silent[0]]
    family = (facts.architecture, facts.metadata["tokenizer.ggml.model"])
    template = TEMPLATES.get(family) if len(talking) == 1 else None  # type: ignore[arg-type]
    return template or silent


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
