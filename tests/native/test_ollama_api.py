"""Ollama's API, as its documentation shows it: what clients of Ollama's find at a llamafile."""

from __future__ import annotations

import base64
import http.client
import json
import signal
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fixtures import png, tiny_projector
from running import children, ready, serving

import pyllamafile

pytestmark = pytest.mark.native

COLORS = {"role": "user", "content": "Name three colors."}
CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
GREEDY = {"temperature": 0, "num_predict": 64, "num_ctx": 4096}


def ask(
    url: str, path: str, body: object = None, method: str | None = None, **headers: str
) -> tuple[int, list[Any]]:
    """The status, and a value per line of the answer."""
    data = None if body is None else json.dumps(body).encode()
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    request = urllib.request.Request(url.rstrip("/") + path, data, given, method=method)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            status, text = answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            status, text = error.code, error.read().decode()
    return status, [json.loads(line) for line in text.splitlines()]


def one(url: str, path: str, body: object = None) -> Any:
    status, [answer] = ask(url, path, body)
    assert status == 200, answer
    return answer


def test_seam_ollama_lists_the_model_and_says_what_it_is(server: str, smollm2: Path) -> None:
    [listed] = one(server, "/api/tags")["models"]
    assert listed["name"] == listed["model"] == f"{smollm2.stem}:latest"
    assert listed["size"] == smollm2.stat().st_size
    assert (listed["details"]["family"], listed["details"]["parameter_size"]) == (
        "llama",
        "134.52M",
    )
    shown = one(server, "/api/show", {"model": listed["name"]})
    assert shown["model_info"]["llama.context_length"] == 8192
    assert shown["model_info"]["general.parameter_count"] == 134515008
    assert "completion" in shown["capabilities"]
    assert "<|im_start|>" in shown["template"]
    [running] = one(server, "/api/ps")["models"]
    assert running["digest"] == listed["digest"]
    assert one(server, "/api/version")["version"][0].isdigit()


def test_a_chat_streams_a_line_for_each_piece(server: str) -> None:
    asked = {"model": "any", "messages": [COLORS], "options": GREEDY}
    status, lines = ask(server, "/api/chat", asked)
    assert status == 200
    *pieces, last = lines
    assert len(pieces) > 3
    assert {piece["done"] for piece in pieces} == {False}
    assert "blue" in "".join(piece["message"]["content"] for piece in pieces).lower()
    assert (last["done"], last["done_reason"], last["message"]["content"]) == (True, "stop", "")
    assert last["eval_count"] >= len(pieces)
    assert min(last["eval_duration"], last["prompt_eval_count"], last["total_duration"]) > 0
    whole = one(server, "/api/chat", {**asked, "stream": False})
    assert "blue" in whole["message"].pop("content").lower()
    assert whole["message"] == {"role": "assistant"}
    assert (whole["model"], whole["done_reason"]) == ("any", "stop")


def test_seam_a_connection_is_kept_after_a_stream(server: str) -> None:
    connection = http.client.HTTPConnection(server.split("/")[2], timeout=60)
    asked = {"messages": [COLORS], "stream": True, "max_tokens": 2, "options": GREEDY}
    sockets = set()
    for path in ("/v1/chat/completions", "/api/chat", "/v1/models"):
        body = None if path == "/v1/models" else json.dumps(asked)
        connection.request("POST" if body else "GET", path, body)
        sockets.add(connection.sock)
        with connection.getresponse() as answer:
            assert (answer.status, len(answer.read()) > 99) == (200, True)
    connection.close()
    assert len(sockets) == 1


def test_options_are_followed(server: str) -> None:
    asked = {"model": "any", "prompt": "Count.", "stream": False}
    cut = one(server, "/api/generate", {**asked, "options": {**GREEDY, "num_predict": 3}})
    assert (cut["eval_count"], cut["done_reason"]) == (3, "length")
    raw = {**asked, "prompt": "The capital of France is", "raw": True}
    said = one(server, "/api/generate", {**raw, "options": GREEDY})
    assert said["response"].startswith(" Paris")
    stopped = one(server, "/api/generate", {**raw, "options": {**GREEDY, "stop": ["Paris"]}})
    assert (stopped["response"].strip(), stopped["done_reason"]) == ("", "stop")


@pytest.mark.parametrize("raw", [False, True])
@pytest.mark.parametrize("form", ["json", CITY])
def test_the_format_is_kept(server: str, form: object, raw: bool) -> None:
    asked = {"model": "any", "prompt": "What is the capital of France? Answer as JSON.", "raw": raw}
    options = {"temperature": 0, "num_predict": 64}
    said = one(
        server, "/api/generate", {**asked, "format": form, "options": options, "stream": False}
    )
    if form == CITY:
        assert [*json.loads(said["response"])] == ["city"]
    else:
        assert said["response"].lstrip().startswith("{")


def test_a_request_without_words_loads_the_model(server: str) -> None:
    for body, reason in (({}, "load"), ({"keep_alive": 0}, "unload")):
        for path in ("/api/chat", "/api/generate"):
            answer = one(server, path, {"model": "any", **body})
            assert (answer["done"], answer["done_reason"]) == (True, reason)


@pytest.mark.parametrize(
    ("path", "body", "status", "message"),
    [
        ("/api/chat", [], 400, "no request of Ollama's"),
        ("/api/generate", {"prompt": "x", "format": "yaml"}, 400, 'format must be "json"'),
        ("/api/generate", {"prompt": "x", "template": "{{ . }}"}, 400, "--chat-template-file"),
        (
            "/api/generate",
            {"prompt": "x", "images": ["bm8="]},
            None,
            "image input is not supported",
        ),
        ("/api/embed", {"input": "x"}, None, "--embeddings"),
        ("/api/pull", {"model": "llama3"}, 501, "pyllamafile add"),
        ("/api/create", {"model": "x", "from": "y"}, 501, "pyllamafile add"),
    ],
)
def test_what_cannot_be_done_is_said(
    server: str, path: str, body: object, status: int | None, message: str
) -> None:
    told, [answer] = ask(server, path, body)
    assert told == status or (status is None and told >= 400)
    assert message in answer["error"]


def test_nothing_is_deleted(server: str) -> None:
    status, [answer] = ask(server, "/api/delete", {"model": "any"}, method="DELETE")
    assert (status, "pyllamafile remove" in answer["error"]) == (501, True)


def test_the_guards_hold_for_ollama_too(server: str, llamafile: Path) -> None:
    status, _ = ask(server, "/api/tags", Origin="http://evil.example")
    assert status == 403
    status, _ = ask(server, "/api/tags", Host="evil.example")
    assert status == 403
    with serving(llamafile, "--nobrowser", "--port", "0", "--api-key", "secret") as url:
        assert ask(url, "/api/tags")[0] == 401
        assert ask(url, "/api/tags", Authorization="Bearer secret")[0] == 200


@pytest.fixture(scope="module")
def several(smollm2: Path, phi3: Path, runtime: Path, tmp_path_factory: Any) -> Iterator[str]:
    file = tmp_path_factory.mktemp("ollama") / "several.llamafile"
    pyllamafile.build([smollm2, phi3], file, targets=["linux-amd64"])
    flags = ("--nobrowser", "--port", "0", "-c", "512", "--temp", "0", "--metrics")
    with serving(file, *flags) as url:
        assert children(file) == []
        yield url


def test_seam_each_model_of_several_is_had_by_its_name(several: str, smollm2: Path) -> None:
    names = [model["name"] for model in one(several, "/api/tags")["models"]]
    assert len(names) == 2
    assert f"{smollm2.stem}:latest" in names
    assert one(several, "/api/ps")["models"] == []
    families = {one(several, "/api/show", {"model": n})["details"]["family"] for n in names}
    assert families == {"llama", "phi3"}
    asked = {"messages": [COLORS], "options": GREEDY}
    for name in (f"{smollm2.stem}:latest", smollm2.stem.upper()):
        status, lines = ask(several, "/api/chat", {"model": name, **asked})
        assert (status, lines[-1]["done"], lines[-1]["model"]) == (200, True, name)
        assert "blue" in "".join(line["message"]["content"] for line in lines).lower()
    [running] = one(several, "/api/ps")["models"]
    assert running["context_length"] == 512
    whole = one(several, "/api/chat", {"model": smollm2.stem, **asked, "stream": False})
    assert "blue" in whole["message"]["content"].lower()
    status, [answer] = ask(several, "/api/chat", {"model": "llama3", **asked})
    assert (status, answer["error"].startswith("model 'llama3' not found")) == (404, True)


def test_pictures_are_seen(smollm2: Path, runtime: Path, tmp_path: Path) -> None:
    eye = tiny_projector(tmp_path / "eye.gguf", width=576)
    path = tmp_path / "seeing.llamafile"
    file = pyllamafile.build(smollm2, path, mmproj=eye, targets=["linux-amd64"]).path
    with serving(file, "--nobrowser", "--port", "0") as url:
        assert "vision" in one(url, "/api/show", {"model": "any"})["capabilities"]

        def count(*images: bytes) -> int:
            pictures = [base64.b64encode(image).decode() for image in images]
            message = {**COLORS, "images": pictures}
            body = {"messages": [message], "stream": False, "options": {"num_predict": 1}}
            return one(url, "/api/chat", body)["prompt_eval_count"]

        assert count(png((255, 0, 0))) > count()


THINKS = (
    "{% for m in messages %}{{ m.content }}{% endfor %}"
    "{% if enable_thinking %} Think as long as it takes, and then answer.{% endif %}"
)


def test_think_reaches_the_template(llamafile: Path) -> None:
    with serving(llamafile, "--nobrowser", "--port", "0", "--chat-template", THINKS) as url:
        assert "thinking" in one(url, "/api/show", {"model": "any"})["capabilities"]

        def count(think: object) -> int:
            body = {"messages": [COLORS], "stream": False, "options": {"num_predict": 1}}
            return one(url, "/api/chat", {**body, "think": think})["prompt_eval_count"]

        assert count(False) < count(True) == count("high")


def test_health_and_metrics_of_several(several: str, smollm2: Path) -> None:
    assert one(several, "/health") == {"status": "ok"}
    url = f"{several}metrics?model={urllib.parse.quote(smollm2.stem)}"
    with urllib.request.urlopen(url, timeout=60) as answer:
        assert "llamacpp:prompt_tokens_total" in answer.read().decode()
    status, [answer] = ask(several, "/metrics")
    assert (status, "model name is missing" in answer["error"]["message"]) == (400, True)


def test_health_and_metrics_of_one(server: str, llamafile: Path) -> None:
    assert one(server, "/health") == {"status": "ok"}
    status, [answer] = ask(server, "/metrics")
    assert (status, "--metrics" in answer["error"]["message"]) == (400, True)
    with serving(llamafile, "--nobrowser", "--port", "0", "--metrics", "--api-key", "k") as url:
        assert one(url, "/health") == {"status": "ok"}
        assert ask(url, "/metrics")[0] == 401
        request = urllib.request.Request(f"{url}metrics", headers={"Authorization": "Bearer k"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            assert "llamacpp:tokens_predicted_total" in answer.read().decode()


def test_term_lets_answers_of_several_end(smollm2: Path, runtime: Path, tmp_path: Path) -> None:
    twin = tmp_path / "twin.gguf"
    twin.symlink_to(smollm2)
    file = tmp_path / "both.llamafile"
    pyllamafile.build([smollm2, twin], file, targets=["linux-amd64"])
    process = subprocess.Popen(
        [file, "--nobrowser", "--port", "0", "--grace", "30"], stdout=subprocess.PIPE
    )
    url = ready(process)
    body = {"model": "twin", "prompt": "Once", "n_predict": 300, "ignore_eos": True, "stream": True}
    request = urllib.request.Request(url + "completion", json.dumps(body).encode())
    with urllib.request.urlopen(request, timeout=60) as stream:
        assert stream.readline()
        process.send_signal(signal.SIGTERM)
        assert b'"stop":true' in stream.read()
        assert process.wait(timeout=20) == 0
    process.stdout.close()
