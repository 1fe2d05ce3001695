"""Documents that a file looks things up in: over HTTP, in conversations, and in a browser."""

from __future__ import annotations

import json
import math
import random
import struct
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fixtures import pdf
from hostile import NO_DOCUMENTS
from running import ARTIFACTS, browsing, package, run, serving

import pyllamafile
from pyllamafile import engine, passages, zipalign
from pyllamafile.llamafile import DOCUMENTS, EMBEDDER
from pyllamafile.native import trial
from pyllamafile.passages import Passage
from pyllamafile.progress import silent

pytestmark = pytest.mark.native

HANDBOOK = """# Handbook

## Opening hours

The library opens at nine and closes at five. On Sundays it is closed.

## Prices

A reader's card costs seven crowns a year. Children pay nothing.

## Pets

Dogs have to wait outside. The kumquat tree in the yard is theirs.
"""
GARDEN = "GARDEN\n\nThe kumquat needs water every morning, and the fig none in winter.\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("documents")
    (folder / "handbook.md").write_text(HANDBOOK)
    (folder / "more").mkdir()
    (folder / "more" / "garden.txt").write_text(GARDEN)
    return folder


@pytest.fixture(scope="module")
def plain(smollm2: Path, runtime: Path, folder: Path) -> Path:
    path = folder.parent / "plain.llamafile"
    return pyllamafile.build(smollm2, path, documents=folder, targets=["linux-amd64"]).path


@pytest.fixture(scope="module")
def server_of_plain(plain: Path) -> Iterator[str]:
    with serving(plain, "--nobrowser", "--temp", "0") as url:
        yield url


@pytest.fixture(scope="module")
def vectors(smollm2: Path, minilm: Path, runtime: Path, folder: Path) -> Path:
    path = folder.parent / "vectors.llamafile"
    return pyllamafile.build(
        smollm2, path, documents=folder, embedder=minilm, targets=["linux-amd64"]
    ).path


def ask(url: str, path: str, body: Any = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url + path, data, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)["error"]["message"]


def search(url: str, query: str, **more: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = ask(url, "v1/search", {"query": query, **more})["data"]
    return found


def prompt(url: str, *messages: dict[str, Any], **more: Any) -> str:
    text: str = ask(url, "apply-template", {"messages": list(messages), **more})["prompt"]
    return text


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


# Over HTTP


def test_seam_passages_are_found_and_shown(server_of_plain: str) -> None:
    url = server_of_plain
    best, *_ = search(url, "What does a card cost?")
    assert best["label"] == "handbook.md, Prices"
    assert best["heading"] == "Handbook > Prices"
    assert (best["source"], best["page"]) == ("handbook.md", None)
    assert best["text"].startswith("A reader's card costs seven crowns")
    scores = [each["score"] for each in search(url, "kumquat", top_k=10)]
    assert len(scores) == 2
    assert scores == sorted(scores, reverse=True)
    assert len(search(url, "kumquat", top_k=1)) == 1
    assert search(url, "xyzzy") == search(url, "") == search(url, "...") == []
    assert ask(url, f"v1/passages/{best['index']}") == {
        key: value for key, value in best.items() if key != "score"
    }
    listed = [(each["id"], each["passages"]) for each in ask(url, "v1/documents")["data"]]
    assert listed == [("handbook.md", 3), ("more/garden.txt", 1)]


@pytest.mark.parametrize(
    ("label", "headings"),
    [
        ("handbook.md, Prices", ["Handbook > Prices"]),
        ("Handbook.md,prices", ["Handbook > Prices"]),
        ("more/garden.txt, GARDEN", ["GARDEN"]),
        ("handbook.md, p. 9", ["Handbook > Opening hours", "Handbook > Prices", "Handbook > Pets"]),
    ],
)
def test_what_an_answer_names(server_of_plain: str, label: str, headings: list[str]) -> None:
    found = ask(server_of_plain, f"v1/passages?cite={urllib.parse.quote(label)}")["data"]
    assert [each["heading"] for each in found] == headings


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("v1/search", {}, 400),
        ("v1/search", {"query": 1}, 400),
        ("v1/search", [], 400),
        ("v1/search", {"query": "a", "top_k": 0}, 400),
        ("v1/search", {"query": "a", "top_k": -1}, 400),
        ("v1/search", {"query": "a", "top_k": 1.5}, 400),
        ("v1/search", {"query": "a", "top_k": 10**30}, 400),
        ("v1/search", {"query": "a", "top_k": "4"}, 400),
        ("v1/passages?cite=other.md", None, 404),
        ("v1/passages", None, 404),
        ("v1/passages/4", None, 404),
        ("v1/passages/-1", None, 404),
        ("v1/passages/99999999999999999999", None, 404),
    ],
)
def test_wrong_requests(server_of_plain: str, path: str, body: Any, status: int) -> None:
    assert ask(server_of_plain, path, body)[0] == status


def test_words_are_compared_by_what_they_say(smollm2: Path, runtime: Path, tmp_path: Path) -> None:
    texts = {
        "de.txt": "Die Bücherei öffnet früh.",
        "ja.txt": "図書館は朝九時に開きます。",
        "ru.txt": "Библиотека открыта утром.",
        "en.txt": "Two libraries, three cities.",
    }
    (tmp_path / "docs").mkdir()
    for name, text in texts.items():
        (tmp_path / "docs" / name).write_text(text)
    path = tmp_path / "f.llamafile"
    pyllamafile.build(smollm2, path, documents=tmp_path / "docs", targets=["linux-amd64"])
    asked = {
        "de.txt": ["BÜCHEREI", "offnet", "bu\u0308cherei"],
        "ja.txt": ["図書館", "九時"],
        "ru.txt": ["БИБЛИОТЕКА"],
        "en.txt": ["library", "city?", "a LIBRARY"],
    }
    with serving(path, "--nobrowser") as url:
        for name, queries in asked.items():
            for query in queries:
                assert [each["source"] for each in search(url, query)] == [name], query


def test_they_ask_for_the_key(plain: Path) -> None:
    with serving(plain, "--nobrowser", "--api-key", "k") as url:
        for path, body in (
            ("v1/search", {"query": "card"}),
            ("v1/documents", None),
            ("v1/passages/0", None),
            ("v1/passages?cite=handbook.md", None),
        ):
            assert ask(url, path, body)[0] == 401


def test_pages_are_named(smollm2: Path, runtime: Path, tmp_path: Path) -> None:
    package("pypdf", "documents")
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "a.pdf").write_bytes(pdf("One turnip costs seven."))
    path = tmp_path / "f.llamafile"
    pyllamafile.build(smollm2, path, documents=tmp_path / "docs", targets=["linux-amd64"])
    with serving(path, "--nobrowser") as url:
        [found] = search(url, "turnips")
        assert (found["label"], found["page"]) == ("a.pdf, p. 1", 1)
        assert "[a.pdf, p. 1]\nOne turnip costs seven." in prompt(url, user("Any turnips?"))
        [same] = ask(url, "v1/passages?cite=a.pdf,%20p.%201")["data"]
        assert same["text"] == found["text"]


# In conversations


def test_seam_passages_are_put_in_front_of_a_question(server_of_plain: str) -> None:
    url, question = server_of_plain, "What does a card cost?"
    text = prompt(url, user("Hi."), {"role": "assistant", "content": "Hello."}, user(question))
    before, after = text.split("[handbook.md, Prices]\nA reader's card costs seven crowns", 1)
    assert before.count("user\nHi.") == 1
    assert f"above: [handbook.md, Prices].\n\n{question}<" in after
    assert "Passages" not in prompt(url, user("xyzzy"))
    parts = [{"type": "text", "text": question}]
    assert "[handbook.md, Prices]\nA reader's" in prompt(url, user(parts))
    for off in (False, 0):
        assert "Passages" not in prompt(url, user(question), documents=off)
    kumquat = "Any kumquat?"
    assert prompt(url, user(kumquat), documents=1).count("]\n") == 1
    assert prompt(url, user(kumquat), documents=True).count("]\n") == 2
    for wrong in ("yes", -1, 21, 1.5, []):
        body = {"messages": [user("x")], "documents": wrong}
        assert ask(url, "v1/chat/completions", body)[0] == 400
    with_it, without = (
        ask(url, "api/chat", {"model": "x", "stream": False, "messages": [user(text)],
                              "options": {"num_predict": 1}})["prompt_eval_count"]
        for text in (question, "xyzzy")
    )  # fmt: skip
    assert with_it > without + 40


def test_an_answer_out_of_the_documents(plain: Path) -> None:
    question = ("--ask", "How much is a reader's card?", "--temp", "0", "-n", "48")
    assert b"seven" in run(plain, *question).stdout
    assert b"seven" not in run(plain, *question, "--no-documents").stdout
    chat = run(plain, "--chat", "--temp", "0", "-n", "48", stdin=question[1].encode() + b"\n")
    assert b"seven" in chat.stdout
    for words in (["-p", "A card costs"], ["-p", "A card costs", "--no-documents"]):
        assert b"seven" not in run(plain, *words, "--temp", "0", "-n", "8").stdout


def test_without_them(plain: Path, server: str) -> None:
    with serving(plain, "--nobrowser", "--no-documents") as url:
        assert "Passages" not in prompt(url, user("What does a card cost?"))
        assert ask(url, "v1/documents")["data"] == []
    assert ask(server, "v1/documents")["data"] == []
    assert ask(server, "v1/search", {"query": "a"}) == (404, "this file has no documents")


def test_they_leave_half_of_a_small_context(plain: Path) -> None:
    with serving(plain, "--nobrowser", "-c", "600") as url:
        assert prompt(url, user("Any kumquat?")).count("]\n") == 1
    with serving(plain, "--nobrowser", "-c", "512") as url:
        assert "Passages" not in prompt(url, user("Any kumquat?"))


def test_the_servers_of_several_models_have_them(
    smollm2: Path, runtime: Path, folder: Path, tmp_path: Path
) -> None:
    path = tmp_path / "f.llamafile"
    more = [(smollm2, "other.gguf")]
    pyllamafile.build(smollm2, path, add=more, documents=folder, targets=["linux-amd64"])
    with serving(path, "--nobrowser") as url:
        text = prompt(url, user("What does a card cost?"), model="other")
        assert "[handbook.md, Prices]\nA reader's" in text
        assert search(url, "What does a card cost?")[0]["label"] == "handbook.md, Prices"


# With vectors


def test_what_is_worded_otherwise_is_found(vectors: Path, plain: Path) -> None:
    assert [m.file for m in pyllamafile.inspect(vectors).models] == [
        m.file for m in pyllamafile.inspect(plain).models
    ]
    query = "At what time may I come in the morning?"
    with serving(vectors, "--nobrowser") as url:
        assert search(url, query)[0]["label"] == "handbook.md, Opening hours"
        assert search(url, "May my poodle come along?")[0]["label"] == "handbook.md, Pets"
        assert search(url, "") == []
        long = search(url, "word " * 20_000 + "poodle")
        assert len(long) == 4
        assert "[handbook.md, Opening hours]\n" in prompt(url, user(query))
    with serving(plain, "--nobrowser") as url:
        assert "Opening" not in str(search(url, "May my poodle come along?")[:1])


def test_the_best_paragraph_counts_and_repeated_texts_come_last(
    smollm2: Path, minilm: Path, runtime: Path, tmp_path: Path
) -> None:
    question = "xyzzy plugh"
    program = engine.host_runtime(silent).program()
    [near] = trial.embedded(program, minilm, [question], silent)
    far = [-x for x in near]
    half = [x if i % 2 else 0.0 for i, x in enumerate(near)]
    texts = ["first", "far", "half", "first", "half"]
    rows = [far, near, far, half, far, near, half]
    entry = tmp_path / "entry"
    found = [Passage("a.txt", 0, "", text) for text in texts]
    entry.write_bytes(passages.entry(found, rows, "", [2, 1, 1, 2, 1]))
    path = tmp_path / "f.llamafile"
    add = [(entry, DOCUMENTS), (minilm, EMBEDDER)]
    pyllamafile.build(smollm2, path, add=add, targets=["linux-amd64"])
    with serving(path, "--nobrowser") as url:
        assert [each["index"] for each in search(url, question, top_k=9)] == [0, 2, 1, 3, 4]
        assert [each["index"] for each in search(url, question, top_k=2)] == [0, 2]


def test_vectors_are_those_of_the_server(minilm: Path, runtime: Path) -> None:
    """They are what /v1/embeddings, which is upstream's, makes of the same texts."""
    program = engine.host_runtime(silent).program()
    texts = ["The library opens at nine.", "word " * 3000, "\u56fe\u4e66\u9986"]
    ours = list(trial.embedded(program, minilm, texts, silent))
    assert all(math.isclose(math.hypot(*vector), 1, rel_tol=1e-4) for vector in ours)
    with serving(runtime, "--server", "--nobrowser", "-m", minilm, "--embeddings") as url:
        theirs = ask(url, "v1/embeddings", {"input": [texts[0], texts[2]]})["data"]
    for mine, other in zip([ours[0], ours[2]], theirs, strict=True):
        assert sum(a * b for a, b in zip(mine, other["embedding"], strict=True)) > 0.9999


def test_a_file_without_its_embedder_goes_by_words(vectors: Path, tmp_path: Path) -> None:
    path = tmp_path / "f.llamafile"
    path.write_bytes(vectors.read_bytes())
    path.chmod(0o755)
    pyllamafile.remove(path, EMBEDDER)
    with serving(path, "--nobrowser") as url:
        assert search(url, "What does a card cost?")[0]["label"] == "handbook.md, Prices"
        assert search(url, "xyzzy") == []


def test_what_embeds_nothing(smollm2: Path, runtime: Path, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(pyllamafile.RefusedError) as refused:
        pyllamafile.build(
            smollm2, tmp_path / "f", documents=folder, embedder=smollm2, targets=["linux-amd64"]
        )
    assert str(refused.value) == f"{smollm2}: is no model for embeddings"
    assert list(tmp_path.iterdir()) == []


# Many passages, and hostile ones


def test_ten_thousand_passages(
    smollm2: Path,
    minilm: Path,
    runtime: Path,
    tmp_path: Path,
    rng: random.Random,
) -> None:
    words = [f"w{number}" for number in range(20_000)]
    many = [
        Passage("a.txt", number, "", " ".join(rng.choices(words, k=150)))
        for number in range(1, 10_001)
    ]
    rows = ([rng.gauss(0, 0.05) for _ in range(384)] for _ in many)
    content = passages.entry(many, rows)
    path = tmp_path / "f.llamafile"
    entry = tmp_path / "entry"
    entry.write_bytes(content)
    add = [(entry, DOCUMENTS), (minilm, EMBEDDER)]
    pyllamafile.build(smollm2, path, add=add, targets=["linux-amd64"])
    with serving(path, "--nobrowser") as url:
        wanted = many[1234].text.split()
        found = search(url, " ".join(wanted[:12]), top_k=20)  # at random, vectors say others
        assert many[1234].page in [each["page"] for each in found]


def test_entries_of_strangers(smollm2: Path, runtime: Path, tmp_path: Path) -> None:
    said = b"error: .documents of this file holds no passages (--no-documents leaves it out)\n"
    path = pyllamafile.build(smollm2, tmp_path / "f.llamafile", targets=["linux-amd64"]).path
    for content in NO_DOCUMENTS:
        zipalign.add(path, [zipalign.Entry(DOCUMENTS, content)])  # as any zip tool does
        done = run(path, "--ask", "Hi.", "-n", "1")
        assert (done.returncode, done.stderr) == (1, said), content[:80]
    assert run(path, "--server", "--nobrowser").stderr == said
    assert run(path, "-p", "Hi", "-n", "1").returncode == 0
    assert run(path, "--ask", "Hi.", "-n", "1", "--no-documents").returncode == 0


def test_vectors_that_are_no_numbers(
    smollm2: Path, minilm: Path, runtime: Path, tmp_path: Path
) -> None:
    for number in (math.nan, math.inf, -math.inf):
        content = passages.entry([Passage("a", 0, "", "x")] * 3, [[number] * 384] * 3)
        assert struct.unpack("<e", content[-2:])[0] != 0
        entry = tmp_path / "entry"
        entry.write_bytes(content)
        path = tmp_path / "f.llamafile"
        add = [(entry, DOCUMENTS), (minilm, EMBEDDER)]
        pyllamafile.build(smollm2, path, add=add, targets=["linux-amd64"], force=True)
        with serving(path, "--nobrowser") as url:
            assert [each["index"] for each in search(url, "x")] == [0, 1, 2]


# In a browser


@pytest.mark.browser
def test_seam_a_source_opens_its_passage(plain: Path) -> None:
    with (
        serving(plain, "--nobrowser", "--temp", "0", "--api-prefix", "/ada") as url,
        browsing(url) as page,
    ):
        answered = "Seven crowns [handbook.md, Prices], and `[handbook.md]` <b>[no.md, p. 1]</b>."
        page.route(
            "**/v1/chat/completions",
            lambda route: route.fulfill(
                content_type="text/event-stream",
                body="".join(
                    f"data: {json.dumps({'choices': [{'delta': {'content': word + ' '}}]})}\n\n"
                    for word in answered.split()
                )
                + "data: [DONE]\n\n",
            ),
        )
        box = page.get_by_role("textbox").first
        box.fill("What does a card cost?")
        box.press("Enter")
        link = page.get_by_role("link", name="[handbook.md, Prices]")
        link.click()
        dialog = page.get_by_role("dialog", name="[handbook.md, Prices]")
        dialog.get_by_text("A reader's card costs seven crowns a year.").wait_for()
        dialog.get_by_role("heading", name="Handbook > Prices").wait_for()
        page.screenshot(path=ARTIFACTS / "documents-source.png")
        dialog.get_by_role("button", name="Close").click()
        dialog.wait_for(state="detached")
        assert page.locator("a.documents-source").count() == 1
