"""Odd and hostile headers: each is run, or refused in one line, by `build` and at the start."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import loadable
import numpy as np
import pytest
from fixtures import tiny_ear, tiny_lora, tiny_projector
from loadable import Model, Type, Typed
from running import free_port, run

import pyllamafile
from pyllamafile import engine
from pyllamafile.errors import PyllamafileError
from pyllamafile.models import gguf
from pyllamafile.models.fit import unsound

LLAMA: Final = loadable.llama()
TOKENS: Final = LLAMA.keys["tokenizer.ggml.tokens"]
HUGE: Final = 2**32 - 1
RUNS: Final = ""


class Case(NamedTuple):
    """A model, and how it ends.

    Attributes:
        model: It.
        reason: What the line says by which it is refused; `RUNS` if it isn't.
        build: The same of `build`, if that is another.
        alone: Whether our reader sees it, too, where no runtime is.
    """

    model: Model
    reason: str
    build: str | None = None
    alone: bool = False


def keys(reason: str, base: Model = LLAMA, **changes: Any) -> Case:
    """Keys of a llama that are others; two underscores stand for a dot."""
    changed = {key.replace("__", "."): value for key, value in changes.items()}
    return Case(base.but(changed), reason)


def alone(case: Case) -> Case:
    return case._replace(alone=True)


def shaped(reason: str, **tensors: Any) -> Case:
    changed = {name.replace("__", "."): tensor for name, tensor in tensors.items()}
    return Case(LLAMA.but(tensors=changed), reason)


def numbers(kind: Type, value: list[Any]) -> Typed:
    return Typed(Type.ARRAY, value, kind)


OF_LLAMA: Final[Mapping[str, Case]] = {
    "nothing odd": keys(RUNS),
    # counts
    "no heads": keys("head_count is 0", llama__attention__head_count=0),
    "heads that don't divide the width": alone(keys("n_rot", llama__attention__head_count=3)),
    "more heads than width": alone(keys("n_rot", llama__attention__head_count=1000)),
    "4 billion heads": alone(keys("n_rot", llama__attention__head_count=HUGE)),
    "heads as text": alone(
        keys("wrong type", llama__attention__head_count=Typed(Type.STRING, "2"))
    ),
    "heads for fewer layers": keys(
        "length", llama__attention__head_count=numbers(Type.UINT32, [2])
    ),
    "heads for each layer": keys(RUNS, llama__attention__head_count=numbers(Type.UINT32, [2, 2])),
    "heads as texts": keys("wrong array", llama__attention__head_count=["2", "2"]),
    "no head count": keys("head_count is 0", llama__attention__head_count=None),
    "a type of file that there isn't": keys(RUNS, general__file_type=4000),
    "no heads for keys": keys("wrong shape", llama__attention__head_count_kv=0),
    "heads for keys that don't divide": keys("wrong shape", llama__attention__head_count_kv=3),
    "no layers": alone(keys("n_layer_all > 0", llama__block_count=0)),
    "fewer layers": keys("wrong number of tensors", llama__block_count=1),
    "more layers": keys("not found", llama__block_count=3),
    "4 billion layers": alone(keys("n_layer_all", llama__block_count=HUGE)),
    "layers as int32": keys("wrong type", llama__block_count=Typed(Type.INT32, 2)),
    "layers below zero": alone(keys("wrong type", llama__block_count=Typed(Type.INT32, -1))),
    "no width": alone(keys("n_rot", llama__embedding_length=0)),
    "another width": keys("n_rot", llama__embedding_length=32),
    "a huge width": keys("n_rot", llama__embedding_length=2**31 - 16),
    "width as text": alone(keys("wrong type", llama__embedding_length=Typed(Type.STRING, "16"))),
    "width as float": alone(keys("wrong type", llama__embedding_length=16.0)),
    "width as uint64": keys("wrong type", llama__embedding_length=Typed(Type.UINT64, 16)),
    "no width at all": keys("not found in model", llama__embedding_length=None),
    "no inner width": keys("wrong shape", llama__feed_forward_length=0),
    "another inner width": keys("wrong shape", llama__feed_forward_length=HUGE),
    "no context": alone(keys("context_length is 0", llama__context_length=0)),
    "a context of 4 billion": alone(
        keys("context_length is 4294967295", llama__context_length=HUGE)
    ),
    "a context below zero": alone(keys("wrong type", llama__context_length=Typed(Type.INT32, -1))),
    "no context's key": keys("not found in model", llama__context_length=None),
    "another rotation": keys("n_rot", llama__rope__dimension_count=3),
    "a huge rotation": keys("n_rot", llama__rope__dimension_count=HUGE),
    "no rotation": keys(RUNS, llama__rope__dimension_count=None),
    "an unknown scaling": keys("rope_scaling_type", llama__rope__scaling__type="nonsense"),
    "keys of length zero": keys("n_rot", llama__attention__key_length=0),
    "values of a huge length": keys("wrong shape", llama__attention__value_length=2**31),
    "an epsilon below zero": keys("epsilon is -1", llama__attention__layer_norm_rms_epsilon=-1.0),
    "an epsilon that is no number": keys(
        "epsilon is nan", llama__attention__layer_norm_rms_epsilon=float("nan")
    ),
    "an epsilon as text": keys("wrong type", llama__attention__layer_norm_rms_epsilon="small"),
    "no epsilon": keys("not found in model", llama__attention__layer_norm_rms_epsilon=None),
    # general
    **{
        f"an alignment of {bytes}": keys(
            "alignment is no power of two", general__alignment=bytes
        )._replace(build="not a power of two")
        for bytes in (0, 31, 48, HUGE)
    },
    **{
        f"an alignment of {bytes}": keys(RUNS, general__alignment=bytes)._replace(
            build=f"aligned to {bytes} bytes"
        )
        for bytes in (1, 8, 16)
    },
    "an alignment past the end": keys("are missing", general__alignment=2**31)._replace(
        build="is not aligned"
    ),
    "an alignment as text": keys("alignment", general__alignment="32"),
    "an alignment as uint64": keys("alignment", general__alignment=Typed(Type.UINT64, 32)),
    "an unknown architecture": keys("unknown model architecture", general__architecture="none"),
    "another architecture": keys("not found in model", general__architecture="gemma3"),
    "an architecture with line feeds": keys(
        "unknown model architecture: 'a b", general__architecture="a\nb\x1b[31m"
    ),
    "a number for a name": alone(keys("wrong type", general__name=7)),
    "a part of a split one": keys("split", split__count=Typed(Type.UINT16, 2)),
    # templates stop chats, not completions
    "a number for a template": keys(RUNS, tokenizer__chat_template=7),
    "an array for a template": keys(RUNS, tokenizer__chat_template=["{{ a }}"]),
    "an empty template": keys(RUNS, tokenizer__chat_template=""),
    "a broken template": keys(RUNS, tokenizer__chat_template="{% for"),
    "a template that loops": keys(
        RUNS, tokenizer__chat_template="{% for i in range(1000000000) %}x{% endfor %}"
    ),
    # vocabularies
    "no tokens": keys("cannot find tokenizer vocab", tokenizer__ggml__tokens=None),
    "a text for tokens": alone(
        keys("wrong type", tokenizer__ggml__tokens=Typed(Type.STRING, "abc"))
    ),
    "numbers for tokens": alone(
        keys("invalid gguf type", tokenizer__ggml__tokens=list(range(len(TOKENS))))
    ),
    "a token less": keys("wrong shape", tokenizer__ggml__tokens=TOKENS[:-1]),
    "a token more": alone(keys("scores", tokenizer__ggml__tokens=[*TOKENS, "more"])),
    "one token many times": keys("token_to_id", tokenizer__ggml__tokens=["a"] * len(TOKENS)),
    "tokens without letters": keys(
        "no token for the byte", tokenizer__ggml__tokens=[""] * len(TOKENS)
    ),
    "no bytes among the tokens": keys(
        "can't be", tokenizer__ggml__tokens=[f"t{i}" for i in range(len(TOKENS))]
    ),
    "fewer scores than tokens": alone(keys("scores", tokenizer__ggml__scores=[0.0] * 3)),
    "more scores than tokens": keys(RUNS, tokenizer__ggml__scores=[0.0] * (len(TOKENS) + 9)),
    "texts for scores": alone(keys("scores", tokenizer__ggml__scores=["a"] * len(TOKENS))),
    "fewer types than tokens": alone(
        keys("toktypes", tokenizer__ggml__token_type=numbers(Type.INT32, [1] * 3))
    ),
    "types below zero": keys(
        RUNS, tokenizer__ggml__token_type=numbers(Type.INT32, [-5] * len(TOKENS))
    ),
    "types of another type": alone(
        keys("token_type", tokenizer__ggml__token_type=numbers(Type.UINT8, [1] * len(TOKENS)))
    ),
    "no tokenizer": keys("tokenizer.ggml.model", tokenizer__ggml__model=None),
    "an unknown tokenizer": keys("unknown tokenizer", tokenizer__ggml__model="nonsense"),
    "a number for a tokenizer": alone(keys("wrong type", tokenizer__ggml__model=3)),
    "a tokenizer that lacks its merges": keys("merges", tokenizer__ggml__model="gpt2"),
    "a first token that there is not": keys(RUNS, tokenizer__ggml__bos_token_id=2**31),
    "a text for the first token": keys("wrong type", tokenizer__ggml__bos_token_id="1"),
    "a number for a flag": alone(keys("wrong type", tokenizer__ggml__add_bos_token=1)),
    # tensors
    "no tensors": Case(Model(LLAMA.keys, {}), "not found"),
    "no embeddings": shaped("not found", token_embd__weight=None),
    "no query": shaped("not found", blk__0__attn_q__weight=None),
    "a wider query": shaped("wrong shape", blk__0__attn_q__weight=(48, 48)),
    "a query in three dimensions": shaped("wrong shape", blk__0__attn_q__weight=(2, 16, 16)),
    "a tensor too many": shaped("wrong number of tensors", more=(3,)),
    **{
        f"{name} in {dtype.__name__}": shaped(
            "can't be", **{name.replace(".", "__"): np.zeros(LLAMA.tensors[name], dtype)}
        )
        for name in ("token_embd.weight", "output_norm.weight", "blk.1.ffn_down.weight")
        for dtype in (np.int8, np.int32, np.float64)
    },
    "a norm in float16": shaped("can't be", output_norm__weight=np.ones(16, np.float16)),
    "a query in float16": shaped(RUNS, blk__0__attn_q__weight=np.ones((16, 16), np.float16)),
    "tensors that are no numbers": shaped(
        RUNS, blk__0__attn_q__weight=np.full((16, 16), np.nan, np.float32)
    ),
}

OTHERS: Final[Mapping[str, Case]] = {
    **{f"{make.__name__}, nothing odd": Case(make(), RUNS) for make in loadable.MODELS
       if make not in (loadable.bert, loadable.reranker)},
    "experts that are not there": keys("n_expert", loadable.qwen3moe(), qwen3moe__expert_count=0),
    "2 billion experts": keys("n_expert", loadable.qwen3moe(), qwen3moe__expert_count=2**31),
    "more experts used than there are": keys(
        "n_expert", loadable.qwen3moe(), qwen3moe__expert_used_count=4
    ),
    "more groups than experts": keys(
        "n_expert", loadable.qwen3moe(), qwen3moe__expert_group_count=7
    ),
    "merges of nothing": keys(
        RUNS, loadable.qwen2(), tokenizer__ggml__merges=["", "a", "  ", "no pair at all"]
    ),
    "numbers for merges": alone(
        keys("merges", loadable.qwen2(), tokenizer__ggml__merges=[1, 2, 3])
    ),
    "an unknown pre-tokenizer": keys(
        "unknown pre-tokenizer", loadable.qwen2(), tokenizer__ggml__pre="nonsense"
    ),
    "a number for a pre-tokenizer": alone(
        keys("wrong type", loadable.qwen2(), tokenizer__ggml__pre=3)
    ),
    "a huge window": keys(RUNS, loadable.gemma3(), gemma3__attention__sliding_window=HUGE),
    "no heads to divide by": keys(
        "head_count is 0", loadable.gemma3(),
        gemma3__attention__head_count=0, gemma3__block_count=62,
    ),
    "a window as float": keys(
        "wrong type", loadable.gemma3(), gemma3__attention__sliding_window=8.0
    ),
    "a state of length zero": keys("wrong shape", loadable.mamba(), mamba__ssm__state_size=0),
    "a huge state": keys("wrong shape", loadable.mamba(), mamba__ssm__state_size=2**31),
    "a way of pooling that there isn't": keys(
        "no way of pooling", loadable.bert(), bert__pooling_type=8
    ),
    "pooling that isn't said": keys(RUNS, llama__pooling_type=HUGE),
    "no types of tokens": keys(
        "token type count", loadable.bert(), tokenizer__ggml__token_type_count=0
    ),
    "a character map cut short": keys(
        "precompiled_charsmap", loadable.t5(),
        tokenizer__ggml__precompiled_charsmap=numbers(Type.UINT8, [1, 2]),
    ),
    "a character map that points past its end": keys(
        "precompiled", loadable.t5(),
        tokenizer__ggml__precompiled_charsmap=numbers(Type.UINT8, [255] * 64),
    ),
    "a decoder of 900 layers": keys("can't be", loadable.t5(), t5__decoder_block_count=900),
}  # fmt: skip

CASES: Final = {**OF_LLAMA, **OTHERS}


def check_line(said: str, reason: str) -> None:
    lines = said.splitlines()
    assert len(lines) == 1, said
    assert reason in lines[0]
    assert lines[0].isprintable()


@pytest.mark.native
@pytest.mark.parametrize("name", CASES)
def test_seam_odd_headers_are_run_or_refused_in_one_line(
    name: str, runtime: Path, tmp_path: Path
) -> None:
    case = CASES[name]
    file = case.model.write(tmp_path / "odd.gguf")
    embeds = case.model.keys.get("general.architecture") == "bert"  # which writes no text
    serve = ("--server", "--nobrowser", "--embeddings", "--port", str(free_port()))
    words = serve if embeds else ("-p", "a text", "-n", "3")
    done = run(runtime, "-m", file, *words)
    if case.reason == RUNS:
        assert done.returncode == 0, done.stderr
    else:
        assert (done.returncode, done.stdout) == (1, b"")
        check_line(done.stderr.decode(), case.reason)
        assert done.stderr.startswith(b"error: ")
    refusal = case.reason if case.build is None else case.build
    output = tmp_path / "odd.llamafile"
    if refusal == RUNS:
        pyllamafile.build(file, output, targets=["linux-amd64"], gui=False)
    else:
        with pytest.raises(PyllamafileError) as caught:
            pyllamafile.build(file, output, targets=["linux-amd64"], gui=False)
        check_line(caught.value.message, refusal)
        assert str(file) in caught.value.message
        assert sorted(tmp_path.iterdir()) == [file]


@pytest.mark.native
def test_seam_word_pieces_without_a_beginning_are_refused(runtime: Path, tmp_path: Path) -> None:
    """The server finds out with the first text, and `build`, which tries one, before that."""
    file = loadable.bert().but({"tokenizer.ggml.bos_token_id": None}).write(tmp_path / "odd.gguf")
    with pytest.raises(PyllamafileError) as caught:
        pyllamafile.build(file, tmp_path / "f", targets=["linux-amd64"], gui=False)
    check_line(caught.value.message, "special_bos_id")
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("name", CASES)
def test_what_our_reader_sees_where_no_runtime_is(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    file = case.model.write(tmp_path / "odd.gguf")
    if case.alone:
        said = unsound(gguf.read(file))
        assert said is not None
        check_line(said, " ")
    elif case.reason == RUNS:
        assert unsound(gguf.read(file)) is None


def test_build_asks_our_reader_where_no_runtime_is(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "host", lambda: None)
    odd = CASES["heads as text"].model.write(folder / "odd.gguf")
    sound = LLAMA.write(folder / "sound.gguf")
    file = pyllamafile.build(sound, folder / "x.llamafile").path
    for change in (
        lambda: pyllamafile.build(odd, folder / "y.llamafile"),
        lambda: pyllamafile.add(file, odd),
    ):
        with pytest.raises(PyllamafileError, match="head_count is no integer: '2'"):
            change()


@pytest.mark.native
@pytest.mark.parametrize("mode", ["--tokenize", "--server"])
def test_other_modes_say_it_in_one_line(mode: str, runtime: Path, tmp_path: Path) -> None:
    file = CASES["fewer scores than tokens"].model.write(tmp_path / "odd.gguf")
    (text := tmp_path / "text").write_text("Once upon a time. " * 50)
    options = ["--port", "0", "--nobrowser"] if mode == "--server" else ["-f", text]
    done = run(runtime, "-m", file, mode, *options)
    assert done.returncode == 1
    said = [line for line in done.stderr.decode().splitlines() if not line.startswith("loading ")]
    check_line("\n".join(said), "scores")


WIDTH: Final = loadable.WIDTH
ODD_ADAPTERS: Final[Mapping[str, Mapping[str, Any]]] = {
    "an adapter of whole numbers": {"dtype": np.int32},
    "an adapter of nothing": {"layers": 0},
    "an adapter of three dimensions": {"layers": 2},
}
ODD_PROJECTORS: Final[Mapping[str, tuple[Callable[..., Path], Mapping[str, Any]]]] = {
    "a projector of another width": (tiny_projector, {"width": WIDTH + 1}),
    "half a projector": (tiny_projector, {"width": WIDTH, "without": "mm.2.weight"}),
    "no positions in an image": (
        tiny_projector, {"width": WIDTH, "without": "v.position_embd.weight"},
    ),
    "no positions in a sound": (tiny_ear, {"width": WIDTH, "without": "a.position_embd.weight"}),
}  # fmt: skip


@pytest.mark.native
@pytest.mark.parametrize("kind", [*ODD_ADAPTERS, *ODD_PROJECTORS])
def test_seam_odd_partners_are_refused_in_one_line(
    kind: str, runtime: Path, tmp_path: Path
) -> None:
    model = LLAMA.write(tmp_path / "model.gguf")
    partner = tmp_path / "odd.gguf"
    if kind in ODD_ADAPTERS:
        tiny_lora(partner, model, tensor="blk.0.attn_q.weight", **ODD_ADAPTERS[kind])
        options: tuple[str | Path, ...] = ("--lora", partner, "-p", "a", "-n", "2")
    else:
        make, changes = ODD_PROJECTORS[kind]
        make(partner, **changes)
        options = ("--mmproj", partner, "--server", "--nobrowser", "--port", "0")
    done = run(runtime, "-m", model, *options)
    assert done.returncode == 1
    check_line(done.stderr.decode(), "")
