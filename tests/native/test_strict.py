"""What is asked wrongly, or can't be kept to: schemas, grammars, templates, requests."""

from __future__ import annotations

import json
import re
import struct
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from running import run, serving

from pyllamafile import native

pytestmark = pytest.mark.native

# SmolLM2's own template says nothing of tools.
KNOWS_TOOLS = "models/templates/NousResearch-Hermes-3-Llama-3.1-8B-tool_use.jinja"

Json = object


def post(url: str, path: str, body: Json | bytes, seconds: float = 60) -> tuple[int, str]:
    """The status, and the body of the answer."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(
        url + path, data, {"Content-Type": "application/json"}, method="POST"
    )
    try:
        with urllib.request.urlopen(request, timeout=seconds) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as answer:
        return answer.code, answer.read().decode()


def refused(answer: tuple[int, str], *words: str) -> None:
    """A client's fault: 4xx, and an error in JSON with these words."""
    status, body = answer
    assert 400 <= status < 500, answer
    message = json.loads(body)["error"]["message"]
    for word in words:
        assert word in message


def alive(url: str) -> bool:
    status, body = post(url, "completion", {"prompt": "One, two,", "n_predict": 2})
    return status == 200 and json.loads(body)["tokens_predicted"] == 2


# schemas


def asked(url: str, schema: Json, strict: bool = True) -> tuple[int, str]:
    """What a model writes that keeps to a schema, or the refusal."""
    status, body = post(
        url,
        "v1/chat/completions",
        {
            "messages": [{"role": "user", "content": "Give me an example."}],
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "example", "strict": strict, "schema": schema},
            },
            "max_tokens": 100,
            "temperature": 0.8,
            "seed": 1,
        },
    )
    if status != 200:
        return status, body
    return status, json.loads(body)["choices"][0]["message"]["content"]


@pytest.mark.parametrize(
    "pattern",
    [
        r"^\d{4}-\d{2}$",
        r"^(?=.*[A-Z])(?=.*\d)\w{6,8}$",
        r"^(?!admin)[a-z]{3,6}\b!$",
        r'^"[^"\\]{1,5}"$',
        r"^(red|green|blue)(-(dark|light))?$",
        r"^\S+@\S+\.com$",
        r"^[\u00e0-\u00ff]{2}$",
    ],
)
def test_seam_patterns_are_kept_to(pattern: str, server: str) -> None:
    """Also as a property, under names that differ by a space."""
    text = {"type": "string", "pattern": pattern, "maxLength": 12}
    status, content = asked(server, text)
    assert status == 200, content
    assert re.search(pattern, json.loads(content)), content
    assert len(json.loads(content)) <= 12
    whole = {"type": "object", "properties": {"a b": text, "a-b": text}, "required": ["a b", "a-b"]}
    status, content = asked(server, whole)
    assert status == 200, content
    assert all(re.search(pattern, value) for value in json.loads(content).values()), content


def test_patterns_are_kept_to_in_what_tools_take(llamafile: Path) -> None:
    template = native.llama_source() / KNOWS_TOOLS
    city = {"type": "string", "pattern": r"^[A-Z]{2}\d{3}$"}
    parameters = {"type": "object", "properties": {"city": city}, "required": ["city"]}
    messages: list[Json] = []
    for name in ("Rome", "Oslo", "Cairo"):  # how a model as small as this learns what a call is
        function = {"name": "get_weather", "arguments": json.dumps({"city": name})}
        messages += [
            {"role": "user", "content": f"What is the weather in {name}?"},
            {
                "role": "assistant",
                "tool_calls": [{"id": name, "type": "function", "function": function}],
            },
            {"role": "tool", "tool_call_id": name, "content": "Sunny."},
            {"role": "assistant", "content": f"The weather in {name}: Sunny."},
        ]
    request = {
        "messages": [*messages, {"role": "user", "content": "What is the weather in Paris?"}],
        "tools": [
            {"type": "function", "function": {"name": "get_weather", "parameters": parameters}}
        ],
        "tool_choice": "required",
        "max_tokens": 64,
    }
    words = ("--nobrowser", "--temp", "0", "--port", "0", "--chat-template-file", template)
    with serving(llamafile, *words) as url:
        status, body = post(url, "v1/chat/completions", request)
        assert status == 200, body
        (call,) = json.loads(body)["choices"][0]["message"]["tool_calls"]
        assert re.search(city["pattern"], json.loads(call["function"]["arguments"])["city"])
        city["pattern"] = r"(?<=x)y"
        refused(post(url, "v1/chat/completions", request), "looking behind")


@pytest.mark.parametrize(
    ("pattern", "word"),
    [
        (r"(?<=a)b", "looking behind"),
        (r"^(a)\1$", "what a group matched before"),
        (r"^\p{L}+$", r"\p isn't supported"),
        ("^(a$", "a ( isn't closed"),
        ("^a{0,1000000}$", "too large"),
        ("(" * 5000, "too"),
    ],
)
def test_seam_patterns_that_cannot_be_kept_to_are_refused(
    pattern: str, word: str, server: str, llamafile: Path
) -> None:
    schema = {"type": "string", "pattern": pattern}
    refused(asked(server, schema), word)
    refused(asked(server, schema, strict=False), word)
    refused(post(server, "completion", {"prompt": "x", "json_schema": schema}), word)
    done = run(llamafile, "-p", "x", "-n", "1", "-j", json.dumps(schema))
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr.startswith(b"error: ")
    assert done.stderr.count(b"\n") == 1
    assert word in done.stderr.decode()


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("ipv4", r"(\d{1,3}\.){3}\d{1,3}"),
        ("ipv6", r"[0-9A-Fa-f:]{2,39}"),
        ("hostname", r"[A-Za-z0-9.-]+"),
        ("email", r"[^@\s]+@[A-Za-z0-9.-]+"),
        ("duration", r"P(\d+[A-Z]|T(?=\d))+"),
        ("date", r"\d{4}-\d\d-\d\d"),
        ("uuid", r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}"),
    ],
)
def test_seam_formats_are_kept_to(name: str, shape: str, server: str) -> None:
    schema = {"type": "string", "format": name, "maxLength": 40}
    status, content = asked(server, schema)
    assert status == 200, content
    assert re.fullmatch(shape, json.loads(content)), content


@pytest.mark.parametrize(
    "keyword",
    [
        {"not": {"type": "null"}},
        {"uniqueItems": True},
        {"patternProperties": {"^a": {"type": "string"}}},
        {"if": {"type": "object"}, "then": {"required": ["a"]}},
        {"minProperties": 2},
        {"dependentRequired": {"a": ["b"]}},
    ],
)
def test_seam_strict_schemas_are_kept_to_or_refused(keyword: dict[str, Json], server: str) -> None:
    inner = {"type": "array", "items": {"type": "boolean"}, "maxItems": 2, **keyword}
    schema = {"type": "object", "properties": {"not": inner}, "required": ["not"]}
    refused(asked(server, schema), f"#/properties/not/{next(iter(keyword))} isn't supported")
    assert asked(server, schema, strict=False)[0] == 200


# weights


@pytest.mark.parametrize(
    ("kind", "shape", "reason"),
    [
        (8, (33,), b"the rows of tensor t are no whole blocks"),
        (0, (32, 0, 1 << 62), b"tensor t reaches past its end"),
    ],
)
def test_headers_that_libfuzzer_found(
    kind: int, shape: tuple[int, ...], reason: bytes, llamafile: Path, tmp_path: Path
) -> None:
    """Numbers of a type that has them by 32; sizes that ggml multiplies, though one is zero."""
    name, architecture = b"general.architecture", b"llama"
    value = struct.pack("<Q", len(name)) + name + struct.pack("<IQ", 8, 5) + architecture
    sizes = struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
    tensor = struct.pack("<Q", 1) + b"t" + sizes + struct.pack("<IQ", kind, 0)
    file = tmp_path / "odd.gguf"
    file.write_bytes(struct.pack("<4sIQQ", b"GGUF", 3, 1, 1) + value + tensor + bytes(256))
    done = run(llamafile, "-m", file, "-p", "x")
    assert (done.returncode, done.stdout) == (1, b"")
    assert reason in done.stderr
    assert done.stderr.count(b"\n") == 1


# what has no end


def chain(length: int) -> dict[str, Json]:
    links = {
        f"a{i}": {"type": "array", "items": {"$ref": f"#/$defs/a{i + 1}"}} for i in range(length)
    }
    return {"$ref": "#/$defs/a0", "$defs": {**links, f"a{length}": {"type": "null"}}}


SCHEMAS_WITHOUT_END = {
    "a chain of references": chain(20000),
    "a circle": {"allOf": [{"$ref": "#/$defs/a"}], "$defs": {"a": {"$ref": "#/$defs/a"}}},
    "many properties": {"type": "object", "properties": {f"p{i}": {} for i in range(5000)}},
}

GRAMMARS_WITHOUT_END = {
    "parentheses": "root ::= " + "(" * 100000 + '"a"' + ")" * 100000,
    "a chain of rules": "root ::= a0\n"
    + "".join(f"a{i} ::= a{i + 1}\n" for i in range(50000))
    + 'a50000 ::= "x"',
    "many repetitions": 'root ::= "a"{0,1000000}' + "{0,1000000}",
    "left recursion": 'root ::= root "a"',
}


@pytest.mark.parametrize("name", SCHEMAS_WITHOUT_END)
def test_seam_schemas_without_end(name: str, server: str) -> None:
    refused(asked(server, SCHEMAS_WITHOUT_END[name], strict=False))
    assert alive(server)


@pytest.mark.parametrize("name", GRAMMARS_WITHOUT_END)
def test_seam_grammars_without_end(name: str, server: str, llamafile: Path, tmp_path: Path) -> None:
    grammar = GRAMMARS_WITHOUT_END[name]
    refused(post(server, "completion", {"prompt": "x", "n_predict": 2, "grammar": grammar}))
    assert alive(server)
    (tmp_path / "grammar").write_text(grammar)
    done = run(llamafile, "-p", "x", "-n", "2", "--grammar-file", tmp_path / "grammar")
    assert (done.returncode, done.stdout) == (1, b"")
    line = rb"error: (failed to parse grammar: .+|.*left recursion.*|.*too (many|large|deep).*)\n"
    assert re.search(line + rb"\Z", done.stderr), done.stderr[-300:]


def test_seam_schemas_and_grammars_without_end(server: str) -> None:
    """Rules to which there are 2^60 ways are looked through once."""
    rules = "".join(f"a{i} ::= a{i + 1} | a{i + 1}\n" for i in range(60))
    grammar = "root ::= a0\n" + rules + 'a60 ::= "x"'
    status, body = post(server, "completion", {"prompt": "x", "n_predict": 2, "grammar": grammar})
    assert (status, json.loads(body)["content"]) == (200, "x")
    assert alive(server)


TEMPLATES_WITHOUT_END = {
    "a long range": "{% for i in range(1000000000) %}{% endfor %}",
    "a long range, backwards": "{% for i in range(0, -1000000000000, -1) %}{% endfor %}",
    "loops in loops": "{% for i in range(100000) %}{% for j in range(100000) %}"
    "{% endfor %}{% endfor %}",
    "a text that doubles": "{% set n = namespace(s='xx') %}{% for i in range(100) %}"
    "{% set n.s = n.s ~ n.s %}{% endfor %}",
    "a list that doubles": "{% set n = namespace(s=[1]) %}{% for i in range(100) %}"
    "{% set n.s = n.s + n.s %}{% endfor %}",
    "JSON that doubles": "{% set n = namespace(s=[1]) %}{% for i in range(60) %}"
    "{% set n.s = [n.s, n.s] %}{% endfor %}{{ n.s | tojson }}",
    "repetition": "{{ 'x' * 100000000000 }}",
    "replacement": "{{ ('x' * 1000000) | replace('x', 'y' * 1000000) }}",
    "joining": "{{ range(100000) | join('y' * 1000000) }}",
    "a macro that calls itself": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
}
UNREADABLE_TEMPLATES = {
    "parentheses": "{{ " + "(" * 20000 + "1" + ")" * 20000 + " }}",
    "blocks": "{% if true %}" * 15000 + "{% endif %}" * 15000,
    "negations": "{{ " + "not " * 40000 + "true }}",
    "choices": "{{ " + "1 if false else " * 10000 + "2 }}",
    "a sum": "{{ " + "1 + " * 20000 + "2 }}",
    "a very long sum": "{{ " + "1 + " * 500000 + "2 }}",
}


@pytest.mark.parametrize("name", [*TEMPLATES_WITHOUT_END, *UNREADABLE_TEMPLATES])
def test_seam_templates_without_end(name: str, llamafile: Path, tmp_path: Path) -> None:
    """With one that never works, nothing starts."""
    file = tmp_path / "template.jinja"
    template = {**TEMPLATES_WITHOUT_END, **UNREADABLE_TEMPLATES}[name]
    file.write_text("{{ messages[0].content }}" + template)
    for mode in (("--chat", "-st", "-p", "Hi"), ("--server", "--nobrowser", "--port", "0")):
        done = run(llamafile, *mode, "--chat-template-file", file)
        assert done.returncode == 1
        assert b"chat template" in done.stderr


def test_templates_that_some_conversations_lead_astray(llamafile: Path, tmp_path: Path) -> None:
    """Those are refused, and the others go on."""
    template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    for name, part in TEMPLATES_WITHOUT_END.items():
        template += f"{{% if messages[-1].content == '{name}' %}}{part}{{% endif %}}"
    file = tmp_path / "template.jinja"
    file.write_text(template)
    words = ("--nobrowser", "--port", "0", "--chat-template-file", file)
    with serving(llamafile, *words) as url:
        for content in ["Hi", *TEMPLATES_WITHOUT_END, "Hi" * 100]:
            message = {"messages": [{"role": "user", "content": content}], "max_tokens": 2}
            answer = post(url, "v1/chat/completions", message)
            if content in TEMPLATES_WITHOUT_END:
                refused(answer, "the chat template")
            else:
                assert answer[0] == 200, answer


# requests

TEXT = (7, True, {}, [[]])
NUMBER = ("many", [], {})
FLAG = ("yes", 7, [], {})
LIST = ("x", 7, True, {})
OBJECT = ("x", 7, True, [])

HI = {"role": "user", "content": "Hi"}
NUMBERS = (
    *("n_predict", "temperature", "top_k", "top_p", "min_p", "typical_p", "repeat_penalty"),
    *("repeat_last_n", "seed", "n_probs", "presence_penalty", "frequency_penalty", "mirostat"),
    *("dry_multiplier", "min_keep", "n_keep"),
)
FLAGS = ("stream", "cache_prompt", "ignore_eos", "return_tokens", "timings_per_token")
SAMPLING = {
    **dict.fromkeys(NUMBERS, NUMBER),
    **dict.fromkeys(FLAGS, FLAG),
    "grammar": TEXT,
    "json_schema": ("x", 7),
    "samplers": (7, {}),
    "lora": ("x", 7, {}, [7], ["x"]),
    "id_slot": ("x", [], {}),
    "response_fields": ("x", 7, {}, [7]),
    "dry_sequence_breakers": ("x", 7, [], {}, [7]),
}

# A route, a request that is right, and fields with values that are wrong. The request is sent with
# each of them, and without each of `needed`.
ROUTES: list[tuple[str, dict[str, Json], dict[str, tuple[Json, ...]], tuple[str, ...]]] = [
    (
        "completion",
        {"prompt": "x", "n_predict": 1},
        {
            **SAMPLING,
            "prompt": (7, True, {}, [], [{}], [True], [10**9], [-1], [1.5], {"a": 1}),
        },
        ("prompt",),
    ),
    (
        "v1/completions",
        {"prompt": "x", "max_tokens": 1},
        {"prompt": (7, {}, [10**9]), "max_tokens": NUMBER, "echo": ("x",)},
        ("prompt",),
    ),
    (
        "v1/chat/completions",
        {"messages": [HI], "max_tokens": 1},
        {
            **{key: SAMPLING[key] for key in ("temperature", "top_p", "seed", "stream", "grammar")},
            "max_tokens": NUMBER,
            "messages": (
                *LIST,
                [7],
                ["x"],
                [{}],
                [{"content": "x"}],
                [{"role": "user"}],
                [{"role": 7, "content": "x"}],
                [{"role": "user", "content": 7}],
                [{"role": "user", "content": {}}],
                [{"role": "user", "content": [7]}],
                [{"role": "user", "content": [{"type": "nothing"}]}],
                [{"role": "user", "content": [{"type": "text"}]}],
                [{"role": "user", "content": [{"type": "text", "text": 7}]}],
                [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}],
                [{"role": "user", "content": [{"type": "image_url"}]}],
                [{"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}],
                [{"role": "assistant", "tool_calls": 7}],
                [{"role": "assistant", "tool_calls": [7]}],
                [{"role": "assistant", "tool_calls": [{"type": "function"}]}],
                [{"role": "assistant", "tool_calls": [{"function": {"name": 7}}]}],
            ),
            "tools": (*OBJECT[:3], {}, [7], [{}], [{"type": "function"}], [{"type": "other"}]),
            "tool_choice": ("sometimes", 7, []),
            "response_format": (
                *OBJECT,
                {"type": "other"},
                {"type": 7},
                {"type": "json_schema", "json_schema": 7},
                {"type": "json_schema", "json_schema": {"schema": 7}},
                {"type": "json_schema", "json_schema": {"schema": {"type": "other"}}},
                {"type": "json_schema", "json_schema": {"schema": {"type": []}}},
                {"type": "json_schema", "json_schema": {"schema": {"$ref": "#/a"}}},
                {"type": "json_schema", "json_schema": {"schema": {"$ref": "http://a"}}},
                {"type": "json_schema", "json_schema": {"schema": {"enum": []}}},
                {"type": "json_schema", "json_schema": {"schema": {"anyOf": []}}},
            ),
            "chat_template_kwargs": OBJECT,
            "logprobs": ("x", [], {}),
            "parallel_tool_calls": ("x", [], {}),
            "add_generation_prompt": FLAG,
            "reasoning_format": (7, "other", []),
            "reasoning_effort": (7, []),
            "stop": (7, {}, [7], [{}]),
            "n": (0, -1, 10**6, "x"),
            "logit_bias": ("x", 7),
        },
        ("messages",),
    ),
    ("v1/chat/completions/control", {}, {"id": (7, "x"), "action": (7, "x")}, ()),
    (
        "v1/responses",
        {"input": "Hi", "max_output_tokens": 1},
        {
            "input": (7, {}, [7], [{}], [{"role": "user"}], [{"role": 7, "content": "x"}]),
            "instructions": (7, []),
            "tools": ("x", 7, [7]),
            "previous_response_id": (7, "x"),
            "max_output_tokens": NUMBER,
        },
        ("input",),
    ),
    (
        "v1/messages",
        {"messages": [HI], "max_tokens": 1},
        {
            "messages": (
                *LIST,
                [7],
                [{}],
                [{"role": "user"}],
                [{"role": "user", "content": 7}],
            ),
            "max_tokens": NUMBER,
            "system": (7, [7], {}),
            "tools": ("x", 7, [7]),
            "tool_choice": (7, [], {"type": 7}),
            "thinking": ("x", 7),
            "metadata": ("x", 7),
        },
        ("messages",),
    ),
    ("v1/messages/count_tokens", {"messages": [HI]}, {"messages": (*LIST, [7])}, ("messages",)),
    ("v1/chat/completions/input_tokens", {"messages": [HI]}, {"messages": LIST}, ("messages",)),
    ("v1/responses/input_tokens", {"input": "x"}, {"input": (7, {})}, ("input",)),
    (
        "apply-template",
        {"messages": [HI]},
        {"messages": (*LIST, [7], [{"role": "user"}]), "chat_template_kwargs": OBJECT},
        ("messages",),
    ),
    (
        "tokenize",
        {"content": "x"},
        {
            "content": (7, True, {}, [{}], [[]], [-1], [10**9]),
            "add_special": FLAG,
            "parse_special": FLAG,
            "with_pieces": FLAG,
        },
        (),
    ),
    (
        "detokenize",
        {"tokens": [1]},
        {"tokens": ("x", 7, {}, ["x"], [{}], [-1], [10**9], [2**40], [1.5], [[1]], [True])},
        (),
    ),
    (
        "infill",
        {"input_prefix": "x", "input_suffix": "y", "n_predict": 1},
        {"input_prefix": TEXT, "input_suffix": TEXT, "input_extra": ("x", [7]), "prompt": (7, [])},
        ("input_prefix", "input_suffix"),
    ),
    ("embedding", {"content": "x"}, {"content": (7, [])}, ("content",)),
    ("v1/embeddings", {"input": "x"}, {"input": (7, []), "encoding_format": (7,)}, ("input",)),
    ("v1/rerank", {"query": "x", "documents": ["y"]}, {"query": (7,), "documents": (7, [7])}, ()),
    ("lora-adapters", {}, {"": ()}, ()),
    ("props", {}, {"": ()}, ()),
    ("v1/audio/transcriptions", {}, {"file": (7,)}, ()),
    ("slots/0?action=save", {"filename": "x"}, {"filename": (7, "../x", "/x", "")}, ()),
    ("slots/x?action=erase", {}, {"a": (1,)}, ()),
    ("slots/99999999999999999999?action=erase", {}, {"a": (1,)}, ()),
    ("cors-proxy", {}, {"url": ("http://127.0.0.1/",)}, ()),
    ("tools", {}, {"tool": ("exec_shell_command",)}, ()),
    ("v1/streams/lookup", {}, {"ids": (7, "x")}, ()),
]

# No route takes these.
NO_OBJECTS = [
    b"",
    b"{",
    b"nothing",
    b"\xff\xfe{}",
    b'{"prompt": "\xff\xfe", "content": "\xff", "messages": "\xff"}',
    b"[]",
    b"7",
    b'"x"',
    b"null",
    b"[" * 100000,
    b'{"prompt":' * 100000,
    b'{"messages":' + b"[" * 100000 + b"]" * 100000 + b"}",
]
NEEDS_NO_BODY = ("slots/", "lora-adapters")


def wrong_requests() -> Iterator[tuple[str, Json | bytes]]:
    for path, right, fields, needed in ROUTES:
        for name, values in fields.items():
            for value in values:
                yield path, {**right, name: value}
        for name in needed:
            yield path, {key: value for key, value in right.items() if key != name}
        for body in NO_OBJECTS:
            if not path.startswith(NEEDS_NO_BODY):
                yield path, body
    for body in ("x", {"id": 0}, [7], [{"id": "x"}], [{"scale": "x"}]):
        yield "lora-adapters", body


def tool(name: str, argument: str) -> dict[str, Json]:
    parameters = {
        "type": "object",
        "properties": {argument: {"type": "string", "maxLength": 12}},
        "required": [argument],
    }
    return {"name": name, "description": f"{name} of a {argument}", "parameters": parameters}


def test_seam_the_named_function_is_called(llamafile: Path) -> None:
    """At once, and no other one; nothing in the conversation asks for it."""
    both = tool("get_weather", "city"), tool("find_rhyme", "word")
    openais = [{"type": "function", "function": each} for each in both]
    anthropics = [
        {"name": each["name"], "description": "", "input_schema": each["parameters"]}
        for each in both
    ]
    said = {"messages": [{"role": "user", "content": "Tell me a story."}], "max_tokens": 64}
    named = {"type": "function", "function": {"name": "find_rhyme"}}
    flat = {"type": "function", "name": "find_rhyme"}
    template = native.llama_source() / KNOWS_TOOLS
    flags = ("--nobrowser", "--port", "0", "--temp", "0", "--chat-template-file", template)
    with serving(llamafile, *flags) as url:

        def chat(choice: Json, **more: Json) -> tuple[int, str]:
            body = {**said, "tools": openais, "tool_choice": choice, **more}
            return post(url, "v1/chat/completions", body, 180)

        def calls(choice: Json, **more: Json) -> list[str]:
            status, text = chat(choice, **more)
            assert status == 200, text
            message = json.loads(text)["choices"][0]["message"]
            assert not (message.get("content") and message.get("tool_calls"))
            return [each["function"]["name"] for each in message.get("tool_calls", [])]

        def allowed(mode: str, *names: str) -> dict[str, Json]:
            tools = [{"type": "function", "function": {"name": name}} for name in names]
            return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": tools}}

        assert calls(named) == calls(flat) == ["find_rhyme"]
        assert calls({"type": "function", "function": {"name": "get_weather"}}) == ["get_weather"]
        assert calls("required")
        assert len(calls("required", parallel_tool_calls=False)) == 1
        assert set(calls(allowed("required", "find_rhyme"))) == {"find_rhyme"}
        assert calls(allowed("auto", "find_rhyme")) == calls("auto") == calls("none") == []
        assert calls(allowed("auto")) == []
        refused(chat({"type": "function", "function": {"name": "sing"}}), "tool_choice", "sing")
        refused(chat({"type": "function"}), "tool_choice", "name")
        refused(chat({"type": "custom", "custom": {"name": "x"}}), "tool_choice", "custom")
        refused(chat("perhaps"), "perhaps")

        body = {**said, "tools": anthropics, "tool_choice": {"type": "tool", "name": "find_rhyme"}}
        status, text = post(url, "v1/messages", body)
        assert status == 200, text
        (use,) = json.loads(text)["content"]
        assert (use["type"], use["name"]) == ("tool_use", "find_rhyme")
        body["tool_choice"] = {"type": "none"}
        status, text = post(url, "v1/messages", body)
        assert [each["type"] for each in json.loads(text)["content"]] == ["text"]

        body = {"input": "Tell me a story.", "tool_choice": flat, "max_output_tokens": 64}
        body["tools"] = [{"type": "function", **each} for each in both]
        status, text = post(url, "v1/responses", body)
        assert status == 200, text
        made = [each for each in json.loads(text)["output"] if each["type"] == "function_call"]
        assert [each["name"] for each in made] == ["find_rhyme"]


def test_seam_wrong_requests_are_answered_rightly(llamafile: Path) -> None:
    """Each is the client's fault, said in JSON; and the server goes on as if nothing had been."""
    wrong = list(wrong_requests())
    assert len(wrong) > 400
    faults = []
    with serving(llamafile, "--nobrowser", "--port", "0", "-np", "2") as url:
        for path, body in wrong:
            try:
                status, text = post(url, path, body)
                message = json.loads(text)["error"]["message"]
                if not (400 <= status < 500 and message):
                    faults.append((path, body, status, text))
            except (OSError, ValueError, KeyError, TypeError) as error:
                faults.append((path, body, repr(error)))
        assert alive(url)
    assert not faults, "\n".join(str(fault)[:300] for fault in faults)


def test_what_is_right_is_answered(server: str) -> None:
    """The requests that the wrong ones are made of, and what clients send that is unusual."""
    for path, right, _, needed in ROUTES:
        if needed and path not in ("infill", "embedding", "v1/embeddings"):
            status, text = post(server, path, right)
            assert status == 200, (path, text)
    for more in (
        {
            "tool_choice": {"type": "function", "function": {"name": "f"}},
            "tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}],
        },
        {"stop": None, "tools": None, "seed": None, "response_format": None, "logprobs": None},
        {"temperature": 1, "top_p": 1, "user": "x", "metadata": {}, "store": False, "n": 1},
        {"response_format": {"type": "text"}, "max_completion_tokens": 2},
    ):
        status, text = post(
            server, "v1/chat/completions", {"messages": [HI], "max_tokens": 2, **more}
        )
        assert status == 200, (more, text)
