"""Clients that speak OpenAI's API under another name, as they come, talk to the real model."""

from __future__ import annotations

import asyncio
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from running import need, package

pytestmark = [pytest.mark.clients, pytest.mark.filterwarnings("ignore:unclosed")]

COLORS = "Name three colors."
CITY = {
    "title": "Capital",
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
}


def test_langchain_openai(base: str, equipped: str) -> None:
    module = package("langchain_openai")
    options = {"base_url": f"{base}/v1", "api_key": "none", "model": "any", "max_retries": 0}
    chat = module.ChatOpenAI(temperature=0, max_tokens=60, **options)
    assert "blue" in chat.invoke(COLORS).content.lower()
    assert "blue" in "".join(piece.content for piece in chat.stream(COLORS)).lower()
    found = chat.with_structured_output(CITY).invoke("What is the capital of France?")
    assert found == {"city": "Paris"}
    # It sends numbers of OpenAI's tokens instead of words, unless it is told not to.
    embeddings = module.OpenAIEmbeddings(
        **{**options, "base_url": f"{equipped}/v1"}, check_embedding_ctx_length=False
    )
    assert [len(vector) for vector in embeddings.embed_documents(["a cat", "a dog"])] == [576, 576]


def test_pydantic_ai_calls_tools_in_a_loop(equipped: str) -> None:
    pydantic_ai = package("pydantic_ai")
    messages = package("pydantic_ai.messages")
    agent: Any = pydantic_ai.Agent(model_settings={"temperature": 0, "max_tokens": 64})
    asked: list[str] = []

    @agent.tool_plain
    def get_weather(city: str) -> str:
        """The weather in a city."""
        asked.append(city)
        return "Hail."

    # A model as small as this one learns from examples what a call looks like.
    history: list[Any] = []
    for city, weather in (("Rome", "Sunny."), ("Oslo", "Snow."), ("Cairo", "Sand.")):
        call = messages.ToolCallPart("get_weather", {"city": city}, city)
        answer = messages.ToolReturnPart("get_weather", weather, city)
        question = messages.UserPromptPart(f"What is the weather in {city}?")
        history += [
            messages.ModelRequest([question]),
            messages.ModelResponse([call]),
            messages.ModelRequest([answer]),
            messages.ModelResponse([messages.TextPart(f"The weather in {city}: {weather}")]),
        ]

    async def ask() -> Any:
        url = f"{equipped}/v1"
        async with package("openai").AsyncOpenAI(base_url=url, api_key="none") as client:
            provider = package("pydantic_ai.providers.openai").OpenAIProvider(openai_client=client)
            model = package("pydantic_ai.models.openai").OpenAIChatModel("any", provider=provider)
            question = "What is the weather in Paris?"
            return await agent.run(question, message_history=history, model=model)

    done = asyncio.run(ask())
    assert asked == ["Paris"]
    assert "Hail" in done.output


def test_openai_agents_call_tools_in_a_loop(equipped: str) -> None:
    agents = package("agents")
    agents.set_tracing_disabled(True)
    asked: list[str] = []

    @agents.function_tool
    def get_weather(city: str) -> str:
        """The weather in a city."""
        asked.append(city)
        return "Hail."

    said: list[Any] = []
    for city, weather in (("Rome", "Sunny."), ("Oslo", "Snow."), ("Cairo", "Sand.")):
        call = {"call_id": city, "name": "get_weather", "arguments": json.dumps({"city": city})}
        said += [
            {"role": "user", "content": f"What is the weather in {city}?"},
            {"type": "function_call", **call},
            {"type": "function_call_output", "call_id": city, "output": weather},
            {"role": "assistant", "content": f"The weather in {city}: {weather}"},
        ]
    said.append({"role": "user", "content": "What is the weather in Paris?"})

    async def ask() -> Any:
        url = f"{equipped}/v1"
        async with package("openai").AsyncOpenAI(base_url=url, api_key="none") as client:
            agent = agents.Agent(
                name="any",
                tools=[get_weather],
                model=agents.OpenAIChatCompletionsModel(model="any", openai_client=client),
                model_settings=agents.ModelSettings(temperature=0, max_tokens=64),
            )
            return await agents.Runner.run(agent, said, max_turns=3)

    done = asyncio.run(ask())
    assert asked == ["Paris"]
    assert "Hail" in done.final_output


def capital_of_france(url: str, **options: Any) -> str:
    """As an object of a class, by instructor."""
    instructor, pydantic = package("instructor"), package("pydantic")
    model = pydantic.create_model("Capital", city=(str, ...))
    with package("openai").OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        found = instructor.from_openai(client, **options).chat.completions.create(
            model="any",
            messages=[{"role": "user", "content": "What is the capital of France?"}],
            response_model=model,
            temperature=0,
            max_tokens=64,
            max_retries=0,
        )
    city: str = found.city
    return city


def test_instructor_gets_an_object(base: str) -> None:
    mode = package("instructor").Mode.JSON_SCHEMA
    assert capital_of_france(base, mode=mode) == "Paris"


def test_instructor_calls_a_tool(equipped: str) -> None:
    """Its default: the answer is what a function is called with, which the request names."""
    assert capital_of_france(equipped) == "Paris"


@pytest.mark.filterwarnings("default")  # it and what it takes warn of themselves
def test_litellm(base: str, equipped: str) -> None:
    # 200 MB, which no extra installs
    litellm = pytest.importorskip("litellm", reason="litellm is missing: pip install litellm")
    options = {"api_base": f"{base}/v1", "api_key": "none", "temperature": 0, "max_tokens": 60}
    ask = {"model": "openai/any", "messages": [{"role": "user", "content": COLORS}], **options}
    assert "blue" in litellm.completion(**ask).choices[0].message.content.lower()
    parts = [part.choices[0].delta.content or "" for part in litellm.completion(**ask, stream=True)]
    assert "blue" in "".join(parts).lower()
    made = litellm.embedding(
        model="openai/any",
        input=["a cat", "a dog"],
        api_base=f"{equipped}/v1",
        api_key="none",
        encoding_format="float",
    )
    assert [len(vector["embedding"]) for vector in made.data] == [576, 576]


def test_openai_and_the_ai_sdk_of_npm(base: str, tmp_path: Path) -> None:
    node, npm = need("node"), need("npm")
    packages = ("openai@6", "ai@5", "@ai-sdk/openai-compatible@1", "zod@4")
    fetched = subprocess.run(
        [npm, "install", "--silent", "--no-audit", "--no-fund", *packages],
        cwd=tmp_path,
        capture_output=True,
        timeout=120,
    )
    if fetched.returncode:
        pytest.skip(f"npm can't fetch {' '.join(packages)}")
    script = tmp_path / "ask.mjs"
    script.write_text("""
import OpenAI from 'openai';
import { createOpenAICompatible } from '@ai-sdk/openai-compatible';
import { generateText, streamText } from 'ai';
const baseURL = process.argv[2] + '/v1';
const prompt = 'Name three colors.';
const client = new OpenAI({ baseURL, apiKey: 'none', maxRetries: 0 });
const messages = [{ role: 'user', content: prompt }];
const ask = { model: 'any', messages, max_tokens: 60, temperature: 0 };
const whole = (await client.chat.completions.create(ask)).choices[0].message.content;
let stream = '';
for await (const part of await client.chat.completions.create({ ...ask, stream: true })) {
    stream += part.choices[0]?.delta?.content ?? '';
}
const model = createOpenAICompatible({ name: 'llamafile', baseURL })('any');
const options = { model, prompt, maxOutputTokens: 60, temperature: 0, maxRetries: 0 };
const { text } = await generateText(options);
let pieces = '';
for await (const piece of streamText(options).textStream) {
    pieces += piece;
}
console.log(JSON.stringify({ whole, stream, text, pieces }));
""")
    done = subprocess.run([node, script, base], cwd=tmp_path, capture_output=True, timeout=120)
    assert done.returncode == 0, done.stderr.decode()
    for words in json.loads(done.stdout).values():
        assert "blue" in words.lower()


def test_what_open_webui_asks(base: str) -> None:
    """Its backend lists the models, and streams a chat with the fields that it sends."""
    httpx = package("httpx")
    with httpx.Client(base_url=base, headers={"Authorization": "Bearer none"}) as client:
        (model,) = client.get("/v1/models").json()["data"]
        body = {
            "stream": True,
            "model": model["id"],
            "messages": [{"role": "user", "content": COLORS}],
            "stream_options": {"include_usage": True},
            "max_tokens": 60,
            "temperature": 0,
        }
        lines = client.post("/v1/chat/completions", json=body, timeout=60).text.splitlines()
        events = [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]
        assert events.pop() == "[DONE]"
        *parts, last = map(json.loads, events)
        words = "".join(part["choices"][0]["delta"].get("content") or "" for part in parts)
        assert "blue" in words.lower()
        assert last["usage"]["completion_tokens"] > 3
        # Where it takes the server for Ollama:
        names = [model["model"] for model in client.get("/api/tags").json()["models"]]
        assert names == [f"{model['id']}:latest"]
        assert client.get("/api/version").json().keys() == {"version"}
        assert client.get("/api/ps").json()["models"][0]["expires_at"]
