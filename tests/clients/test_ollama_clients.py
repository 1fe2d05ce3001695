"""Clients that were made for Ollama, as they come, talk to the real model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from running import need, package

pytestmark = [pytest.mark.clients, pytest.mark.filterwarnings("ignore:unclosed")]

COLORS = "Name three colors."
GREEDY = {"temperature": 0, "num_predict": 60}
CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}


@pytest.fixture
def name(smollm2: Path) -> str:
    return f"{smollm2.stem}:latest"


# ollama


@pytest.fixture(scope="module")
def ollama(base: str) -> Iterator[Any]:
    with package("ollama").Client(host=base) as client:
        yield client


@pytest.fixture(scope="module")
def ollama_equipped(equipped: str) -> Iterator[Any]:
    with package("ollama").Client(host=equipped) as client:
        yield client


def said(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def test_ollama_chats_and_streams(ollama: Any, name: str) -> None:
    whole = ollama.chat(name, [said(COLORS)], options=GREEDY)
    assert "blue" in whole.message.content.lower()
    assert (whole.done_reason, whole.model) == ("stop", name)
    pieces = list(ollama.chat(name, [said(COLORS)], stream=True, options=GREEDY, keep_alive="5m"))
    assert len(pieces) > 3
    assert "blue" in "".join(piece.message.content for piece in pieces).lower()
    assert pieces[-1].eval_count >= len(pieces) - 1


def test_ollama_generates(ollama: Any, name: str) -> None:
    done = ollama.generate(name, "The capital of France is", raw=True, options=GREEDY)
    assert done.response.startswith(" Paris")
    pieces = list(ollama.generate(name, COLORS, stream=True, think=False, options=GREEDY))
    assert "blue" in "".join(piece.response for piece in pieces).lower()


def test_ollama_keeps_a_schema(ollama: Any, name: str) -> None:
    question = [said("What is the capital of France?")]
    done = ollama.chat(name, question, format=CITY, options=GREEDY)
    assert json.loads(done.message.content) == {"city": "Paris"}


def test_ollama_calls_tools(ollama_equipped: Any, name: str) -> None:
    def get_weather(city: str) -> str:
        """The weather in a city.

        Args:
            city: Its name.
        """
        return city

    # A model as small as this one learns from examples what a call looks like.
    messages: list[dict[str, Any]] = []
    for city, weather in (("Rome", "Sunny."), ("Oslo", "Snow."), ("Cairo", "Sand.")):
        call = {"function": {"name": "get_weather", "arguments": {"city": city}}}
        messages += [
            said(f"What is the weather in {city}?"),
            {"role": "assistant", "tool_calls": [call]},
            {"role": "tool", "content": weather, "tool_name": "get_weather"},
            {"role": "assistant", "content": f"The weather in {city}: {weather}"},
        ]
    messages.append(said("What is the weather in Paris?"))
    done = ollama_equipped.chat(name, messages, tools=[get_weather], options=GREEDY)
    (call,) = done.message.tool_calls
    assert (call.function.name, call.function.arguments) == ("get_weather", {"city": "Paris"})
    messages += [done.message, {"role": "tool", "content": "Hail.", "tool_name": "get_weather"}]
    done = ollama_equipped.chat(name, messages, options=GREEDY)
    assert "Hail" in done.message.content


def test_ollama_knows_the_models(ollama: Any, name: str) -> None:
    (model,) = ollama.list().models
    assert model.model == name
    assert ollama.show(name).capabilities == ["completion"]
    assert ollama.ps().models[0].model == name
    with pytest.raises(package("ollama").ResponseError, match="pyllamafile add"):
        ollama.pull("llama3")


def test_ollama_makes_embeddings(ollama_equipped: Any, name: str) -> None:
    assert {"embedding", "tools"} < set(ollama_equipped.show(name).capabilities)
    done = ollama_equipped.embed(name, ["a cat", "a kitten", "the stock market"])
    cat, kitten, market = done.embeddings
    assert len(cat) == 576

    def likeness(a: Any, b: Any) -> float:
        return sum(x * y for x, y in zip(a, b, strict=True))

    assert likeness(cat, kitten) > likeness(cat, market)
    assert ollama_equipped.embeddings(name, "a cat").embedding == pytest.approx(cat, abs=1e-5)
    [short] = ollama_equipped.embed(name, "a cat", dimensions=64).embeddings
    assert (len(short), likeness(short, short)) == (64, pytest.approx(1))


# LangChain, LlamaIndex, llm


def test_langchain_ollama(base: str, equipped: str, name: str) -> None:
    module = package("langchain_ollama")
    chat = module.ChatOllama(
        model=name, base_url=base, temperature=0, num_predict=40, validate_model_on_init=True
    )
    assert "blue" in chat.invoke(COLORS).content.lower()
    pieces = list(chat.stream(COLORS))
    assert "blue" in "".join(piece.content for piece in pieces).lower()
    found = chat.with_structured_output(CITY, method="json_schema").invoke("Capital of France?")
    assert [*found] == ["city"]
    vectors = module.OllamaEmbeddings(model=name, base_url=equipped).embed_documents(
        ["a cat", "a dog"]
    )
    assert [len(vector) for vector in vectors] == [576, 576]


def test_llamaindex_ollama(base: str, name: str) -> None:
    module = package("llama_index.llms.ollama")
    client = module.Ollama(model=name, base_url=base, temperature=0, additional_kwargs=GREEDY)
    message = package("llama_index.core.llms").ChatMessage(role="user", content=COLORS)
    assert "blue" in client.chat([message]).message.content.lower()
    assert "blue" in list(client.stream_chat([message]))[-1].message.content.lower()
    assert "blue" in client.complete(COLORS).text.lower()


def test_llm_ollama(base: str, name: str, tmp_path: Path) -> None:
    package("llm_ollama")
    package("llm")
    command = [sys.executable, "-m", "llm", "-m", f"ollama/{name}", COLORS]
    options = ["-o", "temperature", "0", "-o", "num_predict", "40"]
    env = {**os.environ, "LLM_USER_PATH": str(tmp_path), "OLLAMA_HOST": base}
    done = subprocess.run([*command, *options], env=env, capture_output=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"blue" in done.stdout.lower()


# npm


def test_ollama_of_npm(base: str, name: str, tmp_path: Path) -> None:
    node, npm = need("node"), need("npm")
    fetched = subprocess.run(
        [npm, "install", "--silent", "--no-audit", "--no-fund", "ollama@0.6"],
        cwd=tmp_path,
        capture_output=True,
        timeout=120,
    )
    if fetched.returncode:
        pytest.skip("npm can't fetch its package ollama")
    program = """
import { Ollama } from 'ollama';
const [host, model] = process.argv.slice(2);
const messages = [{ role: 'user', content: 'Name three colors.' }];
const options = { temperature: 0, num_predict: 40 };
const client = new Ollama({ host });
const whole = await client.chat({ model, messages, options });
let words = '';
for await (const part of await client.chat({ model, messages, options, stream: true })) {
    words += part.message.content;
}
const names = (await client.list()).models.map((model) => model.name);
console.log(JSON.stringify({ whole: whole.message.content, words, names }));
"""
    script = tmp_path / "ask.mjs"
    script.write_text(program)
    done = subprocess.run(
        [node, script, base, name], cwd=tmp_path, capture_output=True, check=True, timeout=120
    )
    told = json.loads(done.stdout)
    assert "blue" in told["whole"].lower()
    assert "blue" in told["words"].lower()
    assert told["names"] == [name]
