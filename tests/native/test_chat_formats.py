"""Chat formats by name, as the runtime has them, and what Ollama's models bring with them."""

from __future__ import annotations

import hashlib
import json
import re
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import gguf
import pytest
from fixtures import tiny_phi3
from running import run, serving

import pyllamafile
from pyllamafile import native
from pyllamafile.models import fit
from pyllamafile.models import gguf as headers

pytestmark = pytest.mark.native

LINUX = ["linux-amd64"]
CHAT = [{"role": "user", "content": "Why?"}]

# The formats that no vocabulary shows: in plain words, or with tokens that are another's, too.
IN_WORDS = {
    *("llama2", "llama2-sys", "llama2-sys-bos", "llama2-sys-strip", "mistral-v1"),
    *("vicuna", "vicuna-orca", "monarch", "orion", "zephyr", "yandex"),
    "glmedge",  # the vocabulary of GLM-4
    *("granite-4.0", "granite-4.1"),  # but for tools, as granite
    "bailing-think",  # the vocabulary of bailing
}


def post(url: str, path: str, **body: object) -> dict[str, object]:
    request = urllib.request.Request(
        url + path, json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=120) as answer:
        return json.loads(answer.read())


def test_every_format_of_llama_cpps_is_in_the_table():
    text = (native.llama_source() / "src" / "llama-chat.cpp").read_text()
    table = re.search(r"LLM_CHAT_TEMPLATES = \{(.*?)\n\};", text, re.DOTALL)[1]
    names = set(re.findall(r'\{ "([^"]+)"', table))
    known = {format.name for format in fit.CHAT_FORMATS}
    assert known - names == set()
    assert known | IN_WORDS == names
    assert known & IN_WORDS == set()


@pytest.mark.parametrize(
    ("vocabulary", "template"),
    [
        ("command-r", "command-r"),
        ("llama-bpe", "llama3"),
        ("qwen2", "chatml"),
        ("deepseek-coder", "deepseek"),
        ("gpt-2", None),
        ("llama-spm", None),
        ("bert-bge", None),
        ("gemma-4", None),  # <|turn>, of which llama.cpp has no format by name
    ],
)
def test_real_vocabularies(vocabulary, template):
    path = native.llama_source() / "models" / f"ggml-vocab-{vocabulary}.gguf"
    assert fit.family_template(headers.read(path)) == template


def test_templates_that_models_come_with_parse():
    pytest.importorskip("jinja2", reason="jinja2 is missing: pip install jinja2")
    folder = native.llama_source() / "models" / "templates"
    texts = {path.name: path.read_text() for path in folder.glob("*.jinja")}
    assert len(texts) > 50
    problems = {name: fit.broken_template(text) for name, text in texts.items()}
    assert {name: problem for name, problem in problems.items() if problem} == {}


@pytest.fixture
def gemma(tmp_path: Path) -> Path:
    """A model whose vocabulary has Gemma's marks, and nothing else that says how it chats."""
    reader = gguf.GGUFReader(native.llama_source() / "models" / "ggml-vocab-phi-3.gguf")
    writer = gguf.GGUFWriter(tmp_path / "vocabulary.gguf", "phi3")
    marks = {"<|assistant|>": "<start_of_turn>", "<|end|>": "<end_of_turn>"}
    for key, field in reader.fields.items():
        if not key.startswith("GGUF.") and key != "general.architecture":
            value = field.contents()
            if key == "tokenizer.ggml.tokens":
                value = [marks.get(token, token) for token in value]
            element = field.types[-1] if len(field.types) > 1 else None
            writer.add_key_value(key, value, field.types[0], element)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return tiny_phi3(tmp_path / "g.gguf", tmp_path / "vocabulary.gguf", template=None)


def test_a_familys_format_is_how_the_server_writes(gemma, tmp_path, monkeypatch):
    monkeypatch.setattr(fit, "TEMPLATES", {})  # here the architecture is Phi-3's
    built = pyllamafile.build(gemma, tmp_path / "g.llamafile", targets=LINUX, gui=False)
    assert built.template == "gemma"
    with serving(built.path, "--server", "--nobrowser") as url:
        prompt = post(url, "apply-template", messages=CHAT)["prompt"]
    assert prompt == "<start_of_turn>user\nWhy?<end_of_turn>\n<start_of_turn>model\n"


# Ollama

SYSTEM = "You say 'Paris'\n$HOME \\n # and no more."


@pytest.fixture
def store(smollm2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A store that has SmolLM2 with all that a Modelfile may say."""
    layers = {
        "model": smollm2.read_bytes(),
        "template": b"{{ .Prompt }}",
        "system": SYSTEM.encode(),
        "params": json.dumps(
            {
                "temperature": 0, "top_k": 20, "top_p": 0.5, "min_p": 0.05, "typical_p": 1.0,
                "repeat_penalty": 1.0, "repeat_last_n": 64, "presence_penalty": 0.0,
                "frequency_penalty": 0.0, "num_ctx": 256, "num_predict": 24, "num_keep": 4,
                "seed": 3, "stop": [" Paris", "<|im_end|>"],
            }
        ).encode(),
    }  # fmt: skip
    store = tmp_path / "store"
    (store / "blobs").mkdir(parents=True)
    listed = []
    for kind, content in layers.items():
        digest = hashlib.sha256(content).hexdigest()
        (store / "blobs" / f"sha256-{digest}").write_bytes(content)
        listed.append(
            {"mediaType": f"application/vnd.ollama.image.{kind}", "digest": f"sha256:{digest}"}
        )
    manifest = store / "manifests" / "hf.co" / "someone" / "SmolLM2" / "Q4_1"
    manifest.parent.mkdir(parents=True)
    manifest.write_text(json.dumps({"layers": listed}))
    monkeypatch.setenv("OLLAMA_MODELS", str(store))
    return store


def test_a_model_of_ollamas_runs_as_ollama_runs_it(store, tmp_path):
    built = pyllamafile.build(
        "ollama:hf.co/someone/smollm2:q4_1", tmp_path / "f", targets=LINUX, gui=False
    )
    assert built.template is None  # it has one of its own
    # It stops where it has to, and starts in every mode.
    done = run(built.path, "-p", "The capital of France is", "--no-display-prompt")
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.strip() in (b"", b"Paris")
    assert run(built.path, "--tokenize", "-p", "a").returncode == 0
    with serving(built.path, "--server", "--nobrowser") as url:
        with urllib.request.urlopen(url + "props") as answer:
            props = json.loads(answer.read())
        settings = props["default_generation_settings"]
        params = settings["params"]
        assert settings["n_ctx"] == 256
        assert (params["temperature"], params["top_k"], params["seed"]) == (0.0, 20, 3)
        story = post(url, "completion", prompt="Once upon a time")
        assert (story["tokens_predicted"], story["stop_type"]) == (24, "limit")
        answer = post(url, "completion", prompt="The capital of France is")
    assert (answer["stop_type"], answer["stopping_word"]) == ("word", " Paris")
    # The server's clients bring a system prompt of their own; a chat in the terminal has this.
    done = run(built.path, "--chat", stdin=b"/system\n")
    assert SYSTEM.encode() in done.stdout + done.stderr
