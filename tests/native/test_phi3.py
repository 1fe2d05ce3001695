"""Phi-3 as its makers have it: the same answers, tokens and prompts, and every quantization."""

from __future__ import annotations

import json
import os
import re
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from fixtures import tiny_phi3, unrounded
from running import run, serving

import pyllamafile
from pyllamafile import native

pytestmark = pytest.mark.native

LINUX = ["linux-amd64"]
BOS, ENDOFTEXT, ASSISTANT, SYSTEM, END, USER = 1, 32000, 32001, 32006, 32007, 32010
UNUSED = (2, 5)  # to the file of the vocabulary, and to the converter
PROSE = Path(__file__).with_name("prose.txt")  # our own
CARDS_TEMPLATE = Path("models/templates/microsoft-Phi-3.5-mini-instruct.jinja")


def post(url: str, path: str, **body: object) -> dict[str, Any]:
    request = urllib.request.Request(
        url + path, json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=120) as answer:
        return json.loads(answer.read())


# The same answer as the reference implementation


@pytest.fixture(scope="module")
def reference() -> ModuleType:
    for needed in ("torch", "transformers", "sentencepiece"):
        pytest.importorskip(needed, reason=f"{needed} is missing: pip install '.[reference]'")
    import reference

    reference.torch.set_num_threads(2)
    return reference


@pytest.fixture(scope="module")
def original(reference: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny Phi-3 that transformers saved."""
    source = native.llama_source()
    folder = tmp_path_factory.mktemp("original")
    words = reference.vocabulary(source / "models" / "ggml-vocab-phi-3.gguf")
    reference.make(words, (source / CARDS_TEMPLATE).read_text(), folder)
    return folder


@pytest.fixture(scope="module")
def converted(reference: ModuleType, original: Path) -> dict[str, Path]:
    """Its llamafiles, by type."""
    files = {}
    for type in ("f32", "f16"):
        gguf = original / f"reference-{type}.gguf"
        reference.convert(native.llama_source(), original, type, gguf)
        path = gguf.with_suffix(".llamafile")
        files[type] = pyllamafile.build(gguf, path, targets=LINUX, gui=False).path
    return files


def test_the_converter_finds_phi3s_vocabulary(
    reference: ModuleType, converted: dict[str, Path], original: Path
) -> None:
    """What is made of the sdist's vocabulary for the converter has lost nothing on the way."""
    given = reference.vocabulary(native.llama_source() / "models" / "ggml-vocab-phi-3.gguf")
    found = reference.vocabulary(original / "reference-f32.gguf")
    assert (found.tokens, found.scores) == (given.tokens, given.scores)
    assert all(a == b or (a, b) == UNUSED for a, b in zip(given.types, found.types, strict=True))
    facts = pyllamafile.inspect(converted["f32"]).models[0]
    assert (facts.architecture, facts.context_length, facts.vocabulary) == ("phi3", 4096, 32064)


# The tolerances of a log-probability, whose spread is about ten: where F32 is kept all the way
# (seen: 0.0001), where attention is computed as it is by default, with keys and values in F16
# (seen: 0.025).
EXACT = ("-fa", "off", "-ctk", "f32", "-ctv", "f32")


@pytest.mark.parametrize(
    ("type", "flags", "tolerance"),
    [("f32", EXACT, 1e-3), ("f32", (), 0.1), ("f16", (), 0.1)],
    ids=["f32-exact", "f32", "f16"],
)
def test_greedy_tokens_and_probabilities_are_transformers(
    type: str,
    flags: tuple[str, ...],
    tolerance: float,
    reference: ModuleType,
    original: Path,
    converted: dict[str, Path],
) -> None:
    model = reference.load(original, type)
    prompts = reference.prompts(20, last=ASSISTANT)
    with serving(converted[type], "--server", "--nobrowser", "-np", "1", *flags) as url:
        answers = [complete(url, prompt) for prompt in prompts]
    for prompt, answer in zip(prompts, answers, strict=True):
        assert len(answer["tokens"]) == 64
        compare(reference, model, prompt, answer, tolerance)
    # The prompts end alike: what comes next hangs on all that was before.
    assert len({answer["tokens"][0] for answer in answers}) > 8
    assert len({token for answer in answers for token in answer["tokens"]}) > 400


def complete(url: str, prompt: list[int], count: int = 64) -> dict[str, Any]:
    return post(url, "completion", prompt=prompt, n_predict=count, temperature=0, n_probs=20,
                return_tokens=True, cache_prompt=False)  # fmt: skip


def compare(
    reference: ModuleType,
    model: object,
    prompt: list[int],
    answer: dict[str, Any],
    tolerance: float,
) -> None:
    """Hold an answer against what transformers says of the same text, token by token.

    If each token is transformers' best after those before it, then transformers, decoding
    greedily, writes the same tokens.
    """
    tokens = answer["tokens"]
    rows = reference.logits(model, [*prompt, *tokens], len(prompt))
    assert tokens == rows.argmax(-1).tolist()
    expected = rows.log_softmax(-1)
    at = compared = 0
    for row in answer["completion_probabilities"]:
        # The server leaves out bytes that are no character yet.
        while tokens[at] != row["id"]:
            at += 1
        for choice in row["top_logprobs"]:
            assert abs(choice["logprob"] - expected[at, choice["id"]].item()) < tolerance
        at += 1
        compared += 1
    assert compared >= len(tokens) * 3 // 4


def long_prompt(reference: ModuleType) -> list[int]:
    chance = reference.torch.Generator().manual_seed(reference.SEED)
    return [BOS, *reference.random_tokens(4000, chance)]


def test_a_prompt_longer_than_the_sliding_window(
    reference: ModuleType, original: Path, converted: dict[str, Path]
) -> None:
    prompt = long_prompt(reference)
    assert len(prompt) > reference.WINDOW
    with serving(converted["f32"], "--server", "--nobrowser", "-np", "1", *EXACT) as url:
        answer = complete(url, prompt)
    compare(reference, reference.load(original, "f32"), prompt, answer, 1e-2)
    # Nothing else would have done.
    everything = reference.load(original, "f32", window=None)
    rows = reference.logits(everything, [*prompt, *answer["tokens"]], len(prompt))
    assert answer["tokens"] != rows.argmax(-1).tolist()


def test_seam_the_sliding_window_is_on(tmp_path: Path, runtime: Path) -> None:
    """Without the reference: a text gets other probabilities as soon as it is longer than that."""
    vocabulary = native.llama_source() / "models" / "ggml-vocab-phi-3.gguf"
    found: dict[int | None, list[dict[str, Any]]] = {}
    for window in (None, 16):
        gguf = tiny_phi3(tmp_path / f"{window}.gguf", vocabulary, window=window)
        with serving(runtime, "--server", "--nobrowser", "-m", gguf, "-np", "1", *EXACT) as url:
            found[window] = [complete(url, list(range(100, 100 + n)), 1) for n in (15, 40)]
    (short, long), (short_too, long_too) = (
        [
            {
                choice["id"]: choice["logprob"]
                for choice in answer["completion_probabilities"][0]["top_logprobs"]
            }
            for answer in answers
        ]
        for answers in found.values()
    )
    assert short == pytest.approx(short_too, abs=1e-4)  # sums of floats, in whatever order
    assert long != pytest.approx(long_too, abs=1e-3)


# Tokens


@pytest.fixture(scope="module")
def tiny(phi3: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A llamafile of the GGUF with Phi-3's vocabulary and its older template."""
    path = tmp_path_factory.mktemp("tiny") / "phi3.llamafile"
    return pyllamafile.build(phi3, path, targets=LINUX, gui=False).path


@pytest.fixture(scope="module")
def phi3_server(tiny: Path) -> Iterator[str]:
    with serving(tiny, "--server", "--nobrowser") as url:
        yield url


MARK = "\n__ggml_vocab_test__\n"  # behind each text


def tokenizer_cases() -> list[tuple[str, list[int]]]:
    """Upstream's texts for this vocabulary, and the tokens that transformers made of them."""
    stem = native.llama_source() / "models" / "ggml-vocab-phi-3.gguf"
    given = Path(f"{stem}.inp").read_bytes().decode()
    texts = given.removesuffix(MARK).split(MARK)
    lines = Path(f"{stem}.out").read_text().splitlines()
    return [(t, [int(n) for n in line.split()]) for t, line in zip(texts, lines, strict=True)]


def test_tokens_are_upstreams(tiny: Path, phi3_server: str, tmp_path: Path) -> None:
    cases = tokenizer_cases()
    assert len(cases) == 46
    text = tmp_path / "text.txt"
    for prompt, tokens in cases:
        answer = post(phi3_server, "tokenize", content=prompt, add_special=False)
        assert answer["tokens"] == tokens, prompt
        text.write_bytes(prompt.encode())
        done = run(tiny, "--tokenize", "-f", text, "--ids", "--no-bos")
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout) == tokens, prompt


def test_tokens_turn_back_into_the_text(phi3_server: str) -> None:
    for prompt, tokens in tokenizer_cases():
        back = post(phi3_server, "detokenize", tokens=tokens)["content"]
        assert back == (prompt and " " + prompt)  # the space that is put in front of a text


CHAT = [{"role": "user", "content": "Why?"}]


def test_bos_stands_once_in_front(tiny: Path, phi3_server: str) -> None:
    text = "<|user|>\nWhy?<|end|>\n<|assistant|>\n"
    done = run(tiny, "--tokenize", "-p", text, "--ids")
    tokens = json.loads(done.stdout)
    assert tokens[:2] == [BOS, USER]
    assert tokens.count(BOS) == 1
    assert {END, ASSISTANT} < set(tokens)
    # The terminal, from the list that it logs.
    done = run(tiny, "-p", text, "-n", "1", "-v")
    logged = re.search(rb"\btokens: \[(.*)\]", done.stderr)[1].decode()
    assert [int(number) for number in re.findall(r":(\d+)", logged)] == tokens
    assert post(phi3_server, "tokenize", content=text, add_special=True)["tokens"] == tokens
    # Text and messages: as many tokens as there are with one BOS. This file's template writes
    # one itself.
    assert post(phi3_server, "completion", prompt=text, n_predict=1)["tokens_evaluated"] == len(
        tokens
    )
    chat = post(phi3_server, "v1/chat/completions", messages=CHAT, max_tokens=1)
    assert chat["usage"]["prompt_tokens"] == len(tokens)


# The chat format

# "system" and "few shots" are as in a copy of the card that somebody had published (release of
# June 2024), but that what the assistant says is shorter, and without the stray quotation mark
# behind it. "single turn" is as the card of a model made from Phi-3 quotes the first release's.
KNIGHT = "How to explain Internet for a medieval knight?"
CONVERSATIONS = {
    "single turn": (
        [{"role": "user", "content": KNIGHT}],
        f"<|user|>\n{KNIGHT}<|end|>\n<|assistant|>\n",
    ),
    "system": (
        [
            {"role": "system", "content": "You are a helpful assistant."},
            {"role": "user", "content": KNIGHT},
        ],
        "<|system|>\nYou are a helpful assistant.<|end|>\n"
        f"<|user|>\n{KNIGHT}<|end|>\n<|assistant|>\n",
    ),
    "few shots": (
        [
            {"role": "system", "content": "You are a helpful travel assistant."},
            {"role": "user", "content": "I am going to Paris, what should I see?"},
            {"role": "assistant", "content": "1. The Eiffel Tower.\n2. The Louvre Museum."},
            {"role": "user", "content": "What is so great about #1?"},
        ],
        "<|system|>\nYou are a helpful travel assistant.<|end|>\n"
        "<|user|>\nI am going to Paris, what should I see?<|end|>\n"
        "<|assistant|>\n1. The Eiffel Tower.\n2. The Louvre Museum.<|end|>\n"
        "<|user|>\nWhat is so great about #1?<|end|>\n<|assistant|>\n",
    ),
}


@pytest.fixture(scope="module")
def templates(phi3: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Servers by where their template is from: the weights themselves, or `build`."""
    folder = tmp_path_factory.mktemp("templates")
    source = native.llama_source()
    vocabulary = source / "models" / "ggml-vocab-phi-3.gguf"
    urls = {}
    own = tiny_phi3(folder / "own.gguf", vocabulary, template=(source / CARDS_TEMPLATE).read_text())
    none = tiny_phi3(folder / "none.gguf", vocabulary, template=None)
    files = [
        pyllamafile.build(gguf, gguf.with_suffix(".llamafile"), targets=LINUX, gui=False).path
        for gguf in (own, none)
    ]
    flags = ("--server", "--nobrowser")
    with serving(files[0], *flags) as urls["own"], serving(files[1], *flags) as urls["build's"]:
        yield urls


@pytest.mark.parametrize("origin", ["own", "build's"])
@pytest.mark.parametrize("kind", CONVERSATIONS)
def test_messages_become_the_cards_strings(
    kind: str, origin: str, templates: dict[str, str]
) -> None:
    url = templates[origin]
    messages, expected = CONVERSATIONS[kind]
    assert post(url, "apply-template", messages=messages)["prompt"] == expected
    tokens = post(url, "tokenize", content=expected, add_special=True)["tokens"]
    assert tokens.count(BOS) == 1
    chat = post(url, "v1/chat/completions", messages=messages, max_tokens=1)
    assert chat["usage"]["prompt_tokens"] == len(tokens)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (("--chat-template", "{{ messages[0].content }}!"), "Why?!"),
        (("--no-jinja", "--chat-template", "phi3"), "<|user|>\nWhy?<|end|>\n<|assistant|>\n"),
        (("--chat-template", "phi3"), "<|user|>\nWhy?<|end|>\n<|assistant|>\n"),
    ],
    ids=["text", "name without jinja", "name"],
)
def test_another_template(flags: tuple[str, ...], expected: str, tiny: Path) -> None:
    with serving(tiny, "--server", "--nobrowser", *flags) as url:
        assert post(url, "apply-template", messages=CHAT)["prompt"] == expected


def test_no_template_of_that_name(tiny: Path) -> None:
    done = run(tiny, "--server", "--nobrowser", "--chat-template", "phi-3")
    assert (done.returncode, done.stdout) == (1, b"")
    start = b"error: --chat-template phi-3: neither a template in Jinja nor one of llama.cpp's "
    assert done.stderr.startswith(start)
    assert b", phi3, " in done.stderr


def test_the_users_template_is_stronger_than_builds(phi3: Path, tmp_path: Path) -> None:
    vocabulary = native.llama_source() / "models" / "ggml-vocab-phi-3.gguf"
    gguf = tiny_phi3(tmp_path / "none.gguf", vocabulary, template=None)
    file = pyllamafile.build(gguf, tmp_path / "none.llamafile", targets=LINUX, gui=False).path
    flags = ("--server", "--nobrowser", "--chat-template", "{{ messages[0].content }}!")
    with serving(file, *flags) as url:
        assert post(url, "apply-template", messages=CHAT)["prompt"] == "Why?!"
    # What build put into `.args` is for the file's own weights.
    other = tiny_phi3(tmp_path / "other.gguf", vocabulary, template="{{ messages[0].content }}?")
    with serving(file, "--server", "--nobrowser", "-m", other) as url:
        assert post(url, "apply-template", messages=CHAT)["prompt"] == "Why??"


def test_generation_stops_at_end(phi3_server: str, tiny: Path) -> None:
    for token in (END, ENDOFTEXT):
        answer = post(phi3_server, "completion", prompt="Why?", n_predict=20,
                      logit_bias=[[token, 1000]], return_tokens=True)  # fmt: skip
        assert (answer["stop_type"], answer["content"]) == ("eos", "")
        assert answer["tokens_predicted"] == 1
    chat = post(phi3_server, "v1/chat/completions", messages=CHAT, max_tokens=20,
                logit_bias=[[END, 1000]])  # fmt: skip
    assert chat["choices"][0]["finish_reason"] == "stop"
    assert chat["choices"][0]["message"]["content"] == ""
    done = run(tiny, "-p", "Why?", "-n", "20", "--logit-bias", f"{END}+1000")
    assert (done.returncode, done.stdout) == (0, b" Why?\n")


# Context


def test_the_models_own_context_is_the_default(phi3_server: str) -> None:
    with urllib.request.urlopen(phi3_server + "props", timeout=30) as answer:
        props = json.loads(answer.read())
    assert props["default_generation_settings"]["n_ctx"] == 4096


def test_memory_bounds_the_context(llamafile: Path) -> None:
    """SmolLM2's 8,192 tokens take 180 MiB; here there are to be some 150 for them."""
    total = int(re.search(r"MemTotal: *(\d+) kB", Path("/proc/meminfo").read_text())[1]) // 1024
    flags = ("--server", "--nobrowser", "--fit-target", str(total - 92 - 150))
    with (
        serving(llamafile, *flags) as url,
        urllib.request.urlopen(url + "props", timeout=30) as answer,
    ):
        assert 4096 < json.loads(answer.read())["default_generation_settings"]["n_ctx"] < 8192


def test_a_prompt_beyond_the_context_is_refused(
    tiny: Path, phi3_server: str, tmp_path: Path
) -> None:
    words = "word " * 4200
    for path, body in {
        "completion": {"prompt": words},
        "v1/completions": {"prompt": words},
        "v1/chat/completions": {"messages": [{"role": "user", "content": words}]},
    }.items():
        with pytest.raises(urllib.error.HTTPError) as caught:
            post(phi3_server, path, **body)
        error = json.loads(caught.value.read())["error"]
        assert (caught.value.code, error["type"]) == (400, "exceed_context_size_error")
        assert "exceeds the available context size (4096 tokens)" in error["message"]
    # The server goes on.
    assert post(phi3_server, "completion", prompt="word", n_predict=1)["tokens_predicted"] == 1

    text = tmp_path / "words.txt"
    text.write_text(words)
    done = run(tiny, "-f", text, "-n", "1")
    assert (done.returncode, done.stdout) == (1, b"")
    assert re.fullmatch(rb"error: prompt is too long \(\d+ tokens, max 4092\)\n", done.stderr)


def test_what_is_written_ends_with_the_context(phi3_server: str, tiny: Path) -> None:
    answer = post(phi3_server, "completion", prompt="word " * 4080, n_predict=500,
                  logit_bias=[[END, False], [ENDOFTEXT, False]])  # fmt: skip
    assert (answer["stop_type"], answer["truncated"]) == ("limit", True)
    assert answer["tokens_evaluated"] + answer["tokens_predicted"] == 4096
    assert run(tiny, "-p", "word", "-c", "64", "--ignore-eos").returncode == 0


# Quantizations

TYPES = ("F16", "BF16", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q4_0", "Q2_K")


@pytest.mark.parametrize("type", TYPES)
def test_every_quantization_of_a_phi3(type: str, runtime: Path, tmp_path: Path) -> None:
    """Of one whose rows all fit the K types' blocks of 256."""
    vocabulary = native.llama_source() / "models" / "ggml-vocab-phi-3.gguf"
    whole = tiny_phi3(tmp_path / "whole.gguf", vocabulary, width=256, inner=512)
    small = tmp_path / "small.gguf"
    done = run(runtime, "--quantize", whole, small, type, "2")
    assert done.returncode == 0, done.stderr
    assert pyllamafile.inspect(small).models[0].quantization == type
    file = pyllamafile.build(small, tmp_path / "f.llamafile", targets=LINUX, gui=False).path
    done = run(file, "-p", "Why?", "-n", "8", "--temp", "0", "--ignore-eos")
    assert (done.returncode, done.stderr) == (0, b"")
    assert len(done.stdout) > len("Why?\n")


def test_perplexity_of_every_quantization(runtime: Path, llamafile: Path, tmp_path: Path) -> None:
    """SmolLM2 in each type, by the same kernels on every machine."""
    env = {**os.environ, "PYLLAMAFILE_CPU": "v3"}
    whole = tmp_path / "F16.gguf"
    found = {}
    for type in TYPES:
        file = tmp_path / f"{type}.gguf"
        given = llamafile if file == whole else whole
        done = run(runtime, "--quantize", "--allow-requantize", given, file, type, "2")
        assert done.returncode == 0, done.stderr
        done = run(
            llamafile, "-m", file, "-p", "The capital of France is", "-n", "8", "--temp", "0"
        )
        assert done.returncode == 0
        if type not in ("Q4_0", "Q2_K"):  # what these forget is what the perplexity shows
            assert b"Paris" in done.stdout
        done = run(llamafile, "--perplexity", "-m", file, "-f", PROSE, "-c", "256", env=env)
        found[type] = float(re.search(rb"PPL = ([0-9.]+)", done.stdout + done.stderr)[1])
        if file != whole:
            file.unlink()
    close = [found[type] for type in ("BF16", "Q8_0", "Q6_K")]
    assert close == pytest.approx([found["F16"]] * 3, rel=0.03), found
    assert found["F16"] < found["Q4_K_M"] < found["Q4_0"] < found["Q2_K"], found
    # Not in its place below Q4_K_M: see the next test. The bounds are from figures seen.
    assert found["F16"] < found["Q5_K_M"] < found["Q4_0"], found


def test_answers_differ_more_with_fewer_bits(
    smollm2: Path, runtime: Path, llamafile: Path, tmp_path: Path
) -> None:
    """How far from F16's every type's predictions are, in a SmolLM2 that never was in Q4_1.

    Of weights that lie on the grid of Q4_1, Q5_1's grid, which Q5_K_M is made of where rows are no
    multiple of 256, is further away than Q4_K_M's. So they get back at random what was rounded off.
    """
    env = {**os.environ, "PYLLAMAFILE_CPU": "v3"}
    whole, logits = tmp_path / "F16.gguf", tmp_path / "logits"
    unrounded(smollm2, whole)
    sizes = ["--perplexity", "-c", "256"]
    done = run(runtime, *sizes, "-m", whole, "-f", PROSE, "--save-all-logits", logits, env=env)
    assert done.returncode == 0, done.stderr
    found = {}
    for type in TYPES[1:]:
        file = tmp_path / f"{type}.gguf"
        done = run(runtime, "--quantize", whole, file, type, "2")
        assert done.returncode == 0, done.stderr
        options = ["-m", file, "--kl-divergence", "--kl-divergence-base", logits]
        done = run(llamafile, *sizes, *options, env=env)
        assert done.returncode == 0, done.stderr
        found[type] = float(re.search(rb"Mean +KLD: +([0-9.]+)", done.stdout + done.stderr)[1])
        file.unlink()
    assert list(found.values()) == sorted(found.values()), found
