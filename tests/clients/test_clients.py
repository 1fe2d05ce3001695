"""Programs of others, as they come from PyPI, talk to a llamafile."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from running import package

pytestmark = [pytest.mark.clients, pytest.mark.filterwarnings("ignore:unclosed")]

COLORS = "Name three colors."
PROMPT = "The capital of France is"
ALIKE = ["a cat", "a kitten", "the stock market"]  # the second is more like the first
httpx, pydantic = package("httpx"), package("pydantic")


def likeness(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


def check_vectors(vectors: list[list[float]]) -> None:
    cat, kitten, market = vectors
    assert len(cat) == 576
    assert likeness(cat, cat) == pytest.approx(1, abs=1e-3)
    assert likeness(cat, kitten) > likeness(cat, market)


class Capital(pydantic.BaseModel):
    city: str
    country: str


# openai


@pytest.fixture(scope="module")
def openai(base: str) -> Iterator[Any]:
    with package("openai").OpenAI(base_url=f"{base}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def openai_equipped(equipped: str) -> Iterator[Any]:
    url = f"{equipped}/v1"
    with package("openai").OpenAI(base_url=url, api_key="none", max_retries=0) as client:
        yield client


def said(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def test_openai_chat(openai: Any) -> None:
    done = openai.chat.completions.create(model="any", messages=[said(COLORS)], max_tokens=90)
    assert done.choices[0].finish_reason == "stop"
    assert "blue" in done.choices[0].message.content.lower()
    assert done.usage.total_tokens == done.usage.prompt_tokens + done.usage.completion_tokens


def test_openai_streams(openai: Any) -> None:
    with openai.chat.completions.stream(
        model="any",
        messages=[said(COLORS)],
        max_tokens=60,
        stream_options={"include_usage": True},
    ) as stream:
        pieces = [event.delta for event in stream if event.type == "content.delta"]
        done = stream.get_final_completion()
    assert len(pieces) > 3
    assert "".join(pieces) == done.choices[0].message.content
    assert "blue" in "".join(pieces).lower()
    # Of the tokens the last ends the answer, and is no text.
    assert len(pieces) <= done.usage.completion_tokens


def test_openai_responses(openai: Any) -> None:
    done = openai.responses.create(model="any", input=COLORS, max_output_tokens=60)
    assert "blue" in done.output_text.lower()


def test_openai_json_schema(openai: Any) -> None:
    done = openai.chat.completions.parse(
        model="any",
        messages=[said("What is the capital of France?")],
        response_format=Capital,
        max_tokens=64,
    )
    assert done.choices[0].message.parsed.city == "Paris"


def test_openai_embeddings(openai_equipped: Any) -> None:
    done = openai_equipped.embeddings.create(model="any", input=ALIKE)
    check_vectors([row.embedding for row in done.data])


PARAMETERS = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
}
TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city",
        "parameters": PARAMETERS,
    },
}
# A model as small as this one learns from examples what a call looks like.
CALLS = (("Rome", "Sunny."), ("Oslo", "Snow."), ("Cairo", "Sand."))


def weather(city: str) -> dict[str, str]:
    return said(f"What is the weather in {city}?")


def openais_conversation() -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = []
    for city, answer in CALLS:
        function = {"name": "get_weather", "arguments": json.dumps({"city": city})}
        call = {"id": city, "type": "function", "function": function}
        messages += [
            weather(city),
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": city, "content": answer},
            {"role": "assistant", "content": f"The weather in {city}: {answer}"},
        ]
    return [*messages, weather("Paris")]


def test_openai_tools(openai_equipped: Any) -> None:
    messages = openais_conversation()
    options = {"model": "any", "tools": [TOOL], "max_tokens": 64}
    done = openai_equipped.chat.completions.create(
        messages=messages, tool_choice="required", **options
    )
    (choice,) = done.choices
    (call,) = choice.message.tool_calls
    assert (choice.finish_reason, call.function.name) == ("tool_calls", "get_weather")
    assert json.loads(call.function.arguments) == {"city": "Paris"}
    # What the tool said is a part of the conversation.
    messages += [
        choice.message.model_dump(exclude_none=True),
        {"role": "tool", "tool_call_id": call.id, "content": "Hail."},
    ]
    done = openai_equipped.chat.completions.create(messages=messages, tool_choice="none", **options)
    assert "Hail" in done.choices[0].message.content


def test_openai_tools_stream(openai_equipped: Any) -> None:
    with openai_equipped.chat.completions.stream(
        model="any",
        messages=openais_conversation(),
        tools=[TOOL],
        tool_choice="auto",
        max_tokens=64,
    ) as stream:
        types = [event.type for event in stream]
        (call,) = stream.get_final_completion().choices[0].message.tool_calls
    assert types.count("tool_calls.function.arguments.delta") > 1
    assert (call.function.name, json.loads(call.function.arguments)) == (
        "get_weather",
        {"city": "Paris"},
    )


# anthropic


@pytest.fixture(scope="module")
def anthropic(base: str) -> Iterator[Any]:
    with package("anthropic").Anthropic(base_url=base, api_key="none", max_retries=0) as client:
        yield client


def test_anthropic_messages(anthropic: Any) -> None:
    done = anthropic.messages.create(model="any", messages=[said(COLORS)], max_tokens=90)
    assert (done.role, done.stop_reason) == ("assistant", "end_turn")
    assert "blue" in done.content[0].text.lower()


def test_anthropic_streams(anthropic: Any) -> None:
    with anthropic.messages.stream(
        model="any", messages=[said(COLORS)], max_tokens=60, system="You are a painter."
    ) as stream:
        pieces = list(stream.text_stream)
        done = stream.get_final_message()
    assert len(pieces) > 3
    assert "".join(pieces) == done.content[0].text


def test_anthropic_counts_tokens(anthropic: Any, openai: Any) -> None:
    counted = anthropic.messages.count_tokens(model="any", messages=[said(COLORS)]).input_tokens
    done = anthropic.messages.create(model="any", messages=[said(COLORS)], max_tokens=1)
    assert done.usage.input_tokens + done.usage.cache_read_input_tokens == counted
    done = openai.chat.completions.create(model="any", messages=[said(COLORS)], max_tokens=1)
    assert done.usage.prompt_tokens == counted


def test_anthropic_tools(equipped: str) -> None:
    messages: list[dict[str, Any]] = []
    for city, answer in CALLS:
        call = {"type": "tool_use", "id": city, "name": "get_weather", "input": {"city": city}}
        result = {"type": "tool_result", "tool_use_id": city, "content": answer}
        messages += [
            weather(city),
            {"role": "assistant", "content": [call]},
            {"role": "user", "content": [result]},
            {"role": "assistant", "content": f"The weather in {city}: {answer}"},
        ]
    tool = {"name": "get_weather", "description": "Of a city", "input_schema": PARAMETERS}
    with package("anthropic").Anthropic(base_url=equipped, api_key="none") as client:
        done = client.messages.create(
            model="any",
            messages=[*messages, weather("Paris")],
            tools=[tool],
            tool_choice={"type": "any"},
            max_tokens=64,
        )
    (call,) = done.content
    assert (done.stop_reason, call.name, call.input) == (
        "tool_use",
        "get_weather",
        {"city": "Paris"},
    )


# llm, with llm-llamafile


def test_llm(base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package("llm_llamafile")
    llm = package("llm")
    monkeypatch.setenv("LLM_USER_PATH", str(tmp_path))
    model = llm.get_model("llamafile")
    # The plugin knows one address, and it is a llamafile's own.
    assert model.api_base == "http://localhost:8080/v1"
    model.api_base = f"{base}/v1"
    assert "blue" in model.prompt(COLORS, max_tokens=60, stream=False, key="none").text().lower()
    pieces = list(model.prompt(COLORS, max_tokens=60, key="none"))
    assert len(pieces) > 3
    assert "blue" in "".join(pieces).lower()


# LlamaIndex


@pytest.fixture(scope="module")
def llamaindex(base: str) -> Any:
    return package("llama_index.llms.llamafile").Llamafile(base_url=base, temperature=0, seed=1)


def test_llamaindex_completes(llamaindex: Any) -> None:
    whole = llamaindex.complete(PROMPT, n_predict=8).text
    assert whole.startswith(" Paris")
    pieces = [part.delta for part in llamaindex.stream_complete(PROMPT, n_predict=8)]
    assert len(pieces) > 3
    assert "".join(pieces).startswith(" Paris")


def test_llamaindex_chats(llamaindex: Any) -> None:
    message = package("llama_index.core.llms").ChatMessage(role="user", content=COLORS)
    assert "blue" in llamaindex.chat([message], max_tokens=60).message.content.lower()
    # A stream of OpenAI's ends with [DONE], which this client takes for JSON. All is said by then.
    parts = []
    with pytest.raises(json.JSONDecodeError):
        parts.extend(llamaindex.stream_chat([message], max_tokens=60))
    assert len(parts) > 3
    assert "blue" in parts[-1].message.content.lower()


# What LlamaIndex and LangChain have for a llamafile's embeddings wants an object from /embedding;
# this llama.cpp answers with a list. Below /llamafile there is what they want.


def test_llamaindex_makes_embeddings(equipped: str) -> None:
    module = package("llama_index.embeddings.llamafile")
    client = module.LlamafileEmbedding(base_url=f"{equipped}/llamafile")
    check_vectors([client.get_text_embedding(text) for text in ALIKE])
    check_vectors(client.get_text_embedding_batch(ALIKE))


# LangChain


@pytest.fixture(scope="module")
def langchain(base: str) -> Any:
    return package("langchain_community.llms.llamafile").Llamafile(
        base_url=base, temperature=0, n_predict=8
    )


def test_langchain_completes(langchain: Any) -> None:
    assert langchain.invoke(PROMPT).startswith(" Paris")
    pieces = list(langchain.stream(PROMPT))
    assert len(pieces) > 3
    assert "".join(pieces).startswith(" Paris")


def test_langchain_makes_embeddings(equipped: str) -> None:
    module = package("langchain_community.embeddings.llamafile")
    client = module.LlamafileEmbeddings(base_url=f"{equipped}/llamafile")
    check_vectors(client.embed_documents(ALIKE))
    check_vectors([client.embed_query(text) for text in ALIKE])


def test_embeddings_of_older_llamafiles_are_those_of_today(
    equipped: str, openai_equipped: Any
) -> None:
    def made(content: object) -> Any:
        answer = httpx.post(f"{equipped}/llamafile/embedding", json={"content": content})
        return answer.json()

    [row] = openai_equipped.embeddings.create(model="any", input=ALIKE[:1]).data
    assert made(ALIKE[0]) == {"embedding": pytest.approx(row.embedding, abs=1e-5)}
    [one] = made(ALIKE[:1])["results"]
    assert one == made(ALIKE[0])
    assert [*made(ALIKE)] == ["results"]
    assert "must be a string" in made(None)["error"]["message"]
