"""Clients of one server beside each other: none takes another's answer, and who leaves is gone."""

from __future__ import annotations

import http.client
import json
import math
import os
import random
import re
import socket
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path

import loadable
import pytest
from fixtures import tiny_phi3, with_bool
from running import free_port, serving

import pyllamafile
from pyllamafile import native

pytestmark = pytest.mark.native

ENDLESS = {"prompt": "Once upon a time", "n_predict": 7000, "ignore_eos": True}
NOTICED = 2.0  # seconds after which a client that left must hold no slot


def get(url: str, path: str) -> object:
    with urllib.request.urlopen(url + path, timeout=60) as answer:
        return json.load(answer)


def complete(url: str, **body: object) -> dict[str, object]:
    """Ask for a completion; its status is beside what it answers."""
    request = urllib.request.Request(
        url + "completion", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=300) as answer:
            return {"status": answer.status, **json.load(answer)}
    except urllib.error.HTTPError as error:
        with error:
            return {"status": error.code, **json.load(error)}


class Stream:
    """A completion that is read as it comes, and can be left."""

    def __init__(self, url: str, **body: object) -> None:
        place = urllib.parse.urlsplit(url)
        self.connection = http.client.HTTPConnection(place.hostname, place.port, timeout=300)
        text = json.dumps({"stream": True, **body})
        self.connection.request("POST", "/completion", text, {"Content-Type": "application/json"})
        self.socket = self.connection.sock

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *error: object) -> None:
        self.leave()

    def events(self) -> Iterator[dict[str, object]]:
        with self.connection.getresponse() as answer:
            assert answer.status == 200, answer.read()
            for line in answer:
                assert not line.startswith(b"error"), line
                if line.startswith(b"data: {"):
                    yield json.loads(line[6:])

    def leave(self) -> None:
        with suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)
        self.connection.close()
        self.socket.close()


def whole(url: str, **body: object) -> tuple[str, int]:
    """A streamed answer to its end: the text, and how many tokens it has."""
    with Stream(url, **body) as stream:
        events = list(stream.events())
    assert events[-1].get("stop"), events[-1]
    return "".join(str(event["content"]) for event in events), events[-1]["tokens_predicted"]


def busy(url: str) -> int:
    return sum(slot["is_processing"] for slot in get(url, "slots"))


def waits_until(busy_slots: int, url: str, within: float) -> float:
    """How long it takes until so many slots compute; looks often, as dashboards do."""
    start = time.monotonic()
    while busy(url) != busy_slots:
        assert time.monotonic() - start < within, f"{busy(url)} slots compute"
        time.sleep(0.05)
    return time.monotonic() - start


# A context that conversations share

LONG = {"n_predict": 300, "ignore_eos": True, "temperature": 0, "cache_prompt": False}
PROMPTS = ["Once upon a time", "The capital of France is", "Rain falls because", "My name is"]


@pytest.fixture(scope="module")
def small(llamafile: Path) -> Iterator[str]:
    with serving(llamafile, "--server", "--nobrowser", "--port", "0", "-c", "512") as url:
        yield url


@pytest.mark.parametrize("clients", [2, 4])
def test_seam_two_conversations_fill_a_context_one_after_the_other(
    clients: int, small: str
) -> None:
    """All of them are promised 512 tokens, and have 300 and their prompt, though not at once."""
    assert {slot["n_ctx"] for slot in get(small, "slots")} == {512}
    assert get(small, "props")["default_generation_settings"]["n_ctx"] == 512
    with ThreadPoolExecutor(clients) as pool:
        asked = [pool.submit(whole, small, prompt=text, **LONG) for text in PROMPTS[:clients]]
        answers = [answer.result() for answer in asked]
    assert [tokens for _, tokens in answers] == [300] * clients
    assert busy(small) == 0


def test_who_was_set_aside_goes_on_where_it_was(small: str) -> None:
    """The answer is the one that it would have been alone, beyond the place where it waited."""
    alone = whole(small, prompt=PROMPTS[1], **LONG)
    with Stream(small, prompt=PROMPTS[0], **LONG) as first:
        events = first.events()
        next(events)
        beside = whole(small, prompt=PROMPTS[1], **LONG)
        assert list(events)[-1]["tokens_predicted"] == 300
    assert beside == alone


def test_a_prompt_that_fills_the_context_waits_for_its_turn(small: str) -> None:
    prompt = "word " * 400
    with Stream(small, prompt=PROMPTS[0], **LONG) as first:
        events = first.events()
        next(events)
        answer = complete(small, prompt=prompt, n_predict=5)
        assert (answer["status"], answer["tokens_predicted"]) == (200, 5)
        assert list(events)[-1]["tokens_predicted"] == 300


def test_who_leaves_while_set_aside_leaves_nothing_behind(small: str) -> None:
    with Stream(small, prompt=PROMPTS[0], **LONG):
        waits_until(1, small, 5)
        with Stream(small, prompt="word " * 400, **LONG):
            waits_until(2, small, 5)
        waits_until(1, small, NOTICED)
    waits_until(0, small, NOTICED)
    assert whole(small, prompt=PROMPTS[1], **LONG)[1] == 300


def test_who_asks_for_more_than_the_context_is_told(small: str) -> None:
    assert complete(small, prompt="word " * 600)["status"] == 400


# Clients that leave


@pytest.mark.parametrize("streamed", [True, False])
def test_seam_who_leaves_frees_the_slot(streamed: bool, server: str) -> None:
    """However busy the server is with others: one streams, and somebody looks at /slots."""
    read = []
    with Stream(server, **ENDLESS) as other:
        events = other.events()

        def reads() -> None:
            with suppress(OSError):  # the end of the test resets the connection
                read.extend(events)

        reader = threading.Thread(target=reads)
        read.append(next(events))
        reader.start()
        with Stream(server, **{**ENDLESS, "stream": streamed}):
            waits_until(2, server, 20)
        waits_until(1, server, NOTICED)
        beside, deadline = len(read), time.monotonic() + 10
        while len(read) == beside:  # the other one still goes on
            assert time.monotonic() < deadline
            time.sleep(0.05)
        with suppress(OSError):
            other.socket.shutdown(socket.SHUT_RDWR)
        reader.join(10)
    waits_until(0, server, NOTICED)


def test_who_leaves_the_queue_gets_no_slot(server: str) -> None:
    """Requests that wait behind four that compute, and are left, cost nobody anything."""
    with ExitStack() as computing:
        for _ in range(4):
            computing.enter_context(Stream(server, **ENDLESS))
        waits_until(4, server, 20)
        with ExitStack() as waiting:
            for _ in range(6):
                waiting.enter_context(Stream(server, **{**ENDLESS, "stream": False}))
            time.sleep(0.5)
        time.sleep(NOTICED)
    waits_until(0, server, NOTICED)


# In one batch, by one thread: it takes far longer than a client that left may hold its slot.
COUNTS = "one two three four five six seven eight nine ten "
LONG_PROMPT = {
    "prompt": (COUNTS * 250).strip(),
    "n_predict": 4,
    "temperature": 0,
    "cache_prompt": False,
}


def foreseen(url: str, **changes: object) -> dict[str, float]:
    """The logarithms of the likeliest first tokens behind the long prompt."""
    answer = complete(url, **{**LONG_PROMPT, "n_probs": 3, **changes})
    assert answer["status"] == 200, answer
    likeliest = answer["completion_probabilities"][0]["top_logprobs"]
    return {token["token"]: token["logprob"] for token in likeliest}


@pytest.fixture(scope="module")
def slow(llamafile: Path) -> Iterator[tuple[str, dict[str, float]]]:
    """A server with one batch for a whole prompt; and what it foresees behind a long one, alone."""
    batch = ("-c", "8192", "-b", "8192", "-ub", "8192", "-t", "1")
    with serving(llamafile, "--server", "--nobrowser", "--port", "0", *batch) as url:
        start = time.monotonic()
        alone = foreseen(url)
        if time.monotonic() - start <= NOTICED * 2:
            pytest.skip("this processor reads the prompt before anybody can leave")
        yield url, alone


def test_seam_who_leaves_in_the_middle_of_a_batch_frees_the_slot(
    slow: tuple[str, dict[str, float]],
) -> None:
    """It is given up. Who stays has the same answer, and so has who comes back."""
    url, alone = slow
    short = {"prompt": COUNTS * 3, "n_predict": 60, "ignore_eos": True, "temperature": 0}
    expected = whole(url, **short)
    with ThreadPoolExecutor() as pool:
        for streamed in (True, False):
            stays = pool.submit(whole, url, **short)
            waits_until(1, url, 5)
            with Stream(url, **{**LONG_PROMPT, "stream": streamed}):
                waits_until(2, url, 5)
                time.sleep(0.7)
            waits_until(1, url, NOTICED)
            assert stays.result() == expected
            waits_until(0, url, NOTICED)
    assert foreseen(url, cache_prompt=True) == pytest.approx(alone, abs=0.2)


def test_seam_who_stays_gets_on_however_many_leave(slow: tuple[str, dict[str, float]]) -> None:
    """Its prompt is in the batches that are given up, in smaller and smaller ones."""
    url, alone = slow
    with ThreadPoolExecutor() as pool:
        stays = pool.submit(foreseen, url)
        left = 0
        while not stays.done():
            with Stream(url, **LONG_PROMPT):
                time.sleep(0.5)
            left += 1
        assert left > 2
        assert stays.result() == pytest.approx(alone, abs=0.2)


def resident(url: str) -> int:
    """Bytes of memory that the server at a URL has, by the process that listens there."""
    port = urllib.parse.urlsplit(url).port
    for path in Path("/proc").glob("[0-9]*/net/tcp"):
        process = path.parents[1]
        try:
            if f"--port\0{port}\0".encode() in (process / "cmdline").read_bytes():
                status = (process / "status").read_text()
                return int(re.search(r"VmRSS:\s+(\d+)", status)[1]) * 1024
        except OSError:
            continue
    raise AssertionError(f"no process has the port {port} on its command line")


def test_crowd(llamafile: Path, rng: random.Random) -> None:
    """64 clients on 4 slots; half of them leave at random moments; the others have their answers.

    PYLLAMAFILE_TEST_CROWD=300 keeps them there for five minutes. Memory is compared between the
    middle and the end.
    """
    seconds = int(os.environ.get("PYLLAMAFILE_TEST_CROWD", "20"))
    port = free_port()
    command = (llamafile, "--server", "--nobrowser", "--temp", "0", "--port", str(port))
    end = time.monotonic() + seconds
    moments = [rng.uniform(0.01, 3) for _ in range(4096)]
    served: list[int] = []
    left: list[int] = []
    with serving(*command) as url:

        def stays(number: int) -> None:
            while time.monotonic() < end:
                served.append(whole(url, prompt=PROMPTS[number % 4], **{**LONG, "n_predict": 8})[1])

        def leaves(number: int) -> None:
            while time.monotonic() < end:
                with Stream(url, **{**ENDLESS, "stream": number % 4 == 1}):
                    time.sleep(moments[(number + len(left)) % len(moments)])
                left.append(number)

        start = resident(url)
        with ThreadPoolExecutor(64) as pool:
            clients = [pool.submit((stays, leaves)[n % 2], n) for n in range(64)]
            time.sleep(seconds / 2)
            halfway = resident(url)
            for client in clients:
                client.result()
        waits_until(0, url, NOTICED + 0.5)
        after = resident(url)
    print(
        f"{len(served)} answers, {len(left)} left; MiB:",
        *(n >> 20 for n in (start, halfway, after)),
    )
    assert served
    assert set(served) == {8}
    assert after < halfway * 1.1


def test_seam_memory_has_a_bound(llamafile: Path, rng: random.Random) -> None:
    """Conversations that have no slot any more are kept, but not all of them."""
    words = ["the", "cat", "dog", "sees", "runs", "house", "red", "blue", "tree", "car", "moon"]
    port = free_port()
    command = (llamafile, "--server", "--nobrowser", "--port", str(port), "-c", "2048")
    sizes = []
    with serving(*command) as url:
        for _ in range(24):
            prompt = " ".join(rng.choice(words) for _ in range(500))
            assert complete(url, prompt=prompt, n_predict=1)["status"] == 200
            sizes.append(resident(url) >> 20)
    print("MiB:", *sizes)
    assert sizes[23] < sizes[7] + 40  # sixteen conversations have 180


COPIED = re.compile(rb"created context checkpoint (\d+) of")


def conversation(gguf: Path, log: Path, rng: random.Random, *arguments: str) -> list[int]:
    """A conversation that gets longer, and goes back by some words now and then.

    Its answers are those of a conversation that is evaluated as a whole. Returns how many copies
    of what the model remembers there were after each that the server made.
    """
    llamafile = pyllamafile.build(gguf, log.with_suffix(""), targets=["linux-amd64"]).path
    command = (llamafile, "--server", "--nobrowser", "--port", "0", "--verbose", "-c", "4096")
    words = [rng.randrange(1000, 30000) for _ in range(1700)]
    asked = {"n_predict": 4, "temperature": 0, "ignore_eos": True}
    answers, cached = [], []
    with serving(*command, "--log-file", log, *arguments) as url:
        for turn in range(8):
            answer = complete(url, prompt=words, **asked)
            answers.append((list(words), answer["content"]))
            cached.append(answer["timings"]["cache_n"])
            del words[len(words) - 10 * (turn % 2) :]
            words += [rng.randrange(1000, 30000) for _ in range(30)]
        for prompt, content in answers[1:]:
            again = complete(url, prompt=prompt, cache_prompt=False, **asked)
            assert again["content"] == content
    assert min(cached[1:]) > 1600
    return [int(number) for number in COPIED.findall(log.read_bytes())]


def windowed(folder: Path, window: int) -> Path:
    vocabulary = native.llama_source() / "models" / "ggml-vocab-phi-3.gguf"
    return tiny_phi3(folder / "windowed.gguf", vocabulary, window=window)


def test_seam_nothing_is_copied_where_nothing_is_lost(tmp_path: Path, rng: random.Random) -> None:
    """Four slots that share a context of 4,096 tokens, as Phi-3-mini-4k's do, have all of it."""
    gguf = windowed(tmp_path, 2047)
    assert conversation(gguf, tmp_path / "four.log", rng) == []


def test_seam_a_conversation_that_was_set_aside_goes_on(tmp_path: Path, rng: random.Random) -> None:
    """Of one that is longer than the window, what is kept is what the next token sees."""
    llamafile = pyllamafile.build(
        windowed(tmp_path, 2047), tmp_path / "f", targets=["linux-amd64"]
    ).path
    first, other = ([rng.randrange(1000, 30000) for _ in range(size)] for size in (2500, 100))
    asked = {"n_predict": 1, "temperature": 0, "return_tokens": True}
    with serving(llamafile, "--server", "--nobrowser", "--port", "0", "-c", "4096") as url:
        answer = complete(url, prompt=first, **asked)
        complete(url, prompt=other, **asked)
        more = [*first, *answer["tokens"], 5000, 6000]
        again = complete(url, prompt=more, **asked)
        assert again["timings"]["cache_n"] == len(first)
        anew = complete(url, prompt=more, cache_prompt=False, **asked)
        assert again["tokens"] == anew["tokens"]


def test_seam_copies_have_a_bound(tmp_path: Path, rng: random.Random) -> None:
    """One slot has half of it: there are copies, but not more than one has room."""
    gguf = windowed(tmp_path, 1500)
    counts = conversation(gguf, tmp_path / "one.log", rng, "-np", "1", "-ub", "64")
    assert set(counts) == {1}
    assert len(counts) > 4


# Files of slots


def keep(url: str, action: str, name: str, slot: int = 0) -> tuple[int, dict[str, object]]:
    request = urllib.request.Request(
        f"{url}slots/{slot}?action={action}",
        json.dumps({"filename": name}).encode(),
        {"Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


@pytest.fixture(scope="module")
def keeps(llamafile: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """A server that has a folder for slots, with one in it, `good`; and the folder."""
    folder = tmp_path_factory.mktemp("slots")
    arguments = ("--server", "--nobrowser", "--port", "0", "-c", "512", "--slot-save-path", folder)
    with serving(llamafile, *arguments) as url:
        complete(url, prompt="The capital of France is", n_predict=8, id_slot=0, temperature=0)
        assert keep(url, "save", "good")[0] == 200
        yield url, folder


def test_a_slot_that_was_saved_is_restored(keeps: tuple[str, Path]) -> None:
    url, folder = keeps
    status, answer = keep(url, "restore", "good", 1)
    assert (status, answer["n_read"]) == (200, (folder / "good").stat().st_size)
    again = complete(url, prompt="The capital of France is", n_predict=8, id_slot=1, temperature=0)
    assert again["timings"]["cache_n"] > 0
    assert [path.name for path in folder.iterdir() if path.suffix] == []


def damaged(good: bytes) -> dict[str, bytes]:
    """A slot's file, wrong in each of the ways that a file can be."""
    memory = 32 + 4 * int.from_bytes(good[16:24], "little")
    cases = {
        f"cut at {n}": good[:n]
        for n in (0, 1, 8, 31, 32, 60, memory, len(good) // 2, len(good) - 1)
    }
    cases |= {
        f"changed at {n}": good[:n] + bytes([good[n] ^ 0xFF]) + good[n + 1 :]
        for n in (0, 8, 16, 23, 24, 31, 40, memory + 8, memory + 12, len(good) - 1)
    }
    return cases | {"longer": good + b"\0", "zeros": bytes(4096), "GGUF": b"GGUF" + bytes(400)}


def summed(file: bytes) -> bytes:
    """With the sum that belongs to it, as who means harm writes it."""
    value = 0xCBF29CE484222325
    for byte in file[16:]:
        value = (value ^ byte) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    return file[:8] + value.to_bytes(8, "little") + file[16:]


def test_seam_a_slot_file_that_is_none_is_refused(keeps: tuple[str, Path], tmp_path: Path) -> None:
    """Cut short, changed, a link, a pipe, a folder: 400, and the server goes on."""
    url, folder = keeps
    good = (folder / "good").read_bytes()
    for what, content in damaged(good).items():
        (folder / "bad").write_bytes(content)
        assert keep(url, "restore", "bad", 2)[0] == 400, what
    os.mkfifo(folder / "pipe")
    (folder / "folder").mkdir()
    (tmp_path / "elsewhere").write_bytes(good)
    (folder / "link").symlink_to(tmp_path / "elsewhere")
    for name in ("pipe", "folder", "link", "missing", "../good", "/etc/passwd", "..", ""):
        assert keep(url, "restore", name, 2)[0] == 400, name
    assert keep(url, "restore", "good", 2)[0] == 200
    assert complete(url, prompt="Once", n_predict=2, id_slot=2)["status"] == 200


def test_seam_a_slot_file_that_was_made_to_harm_ends_nobody(
    keeps: tuple[str, Path], rng: random.Random
) -> None:
    """Sizes and positions that lie, with a sum that doesn't."""
    url, folder = keeps
    good = (folder / "good").read_bytes()
    memory = 32 + 4 * int.from_bytes(good[16:24], "little")
    places = [memory + 4 * rng.randrange(60) for _ in range(12)]
    for place in [*range(memory, memory + 48, 4), *places]:
        for value in (b"\xff\xff\xff\x7f", b"\xff\xff\xff\xff", bytes(4)):
            (folder / "bad").write_bytes(summed(good[:place] + value + good[place + 4 :]))
            assert keep(url, "restore", "bad", 3)[0] in (200, 400), (place, value)
            answer = complete(url, prompt="The capital of France is", n_predict=2, id_slot=3)
            assert answer["status"] == 200, (place, value, answer)
    fewer = (int.from_bytes(good[16:24], "little") - 1).to_bytes(8, "little")
    (folder / "bad").write_bytes(summed(good[:16] + fewer + good[24 : memory - 4] + good[memory:]))
    assert keep(url, "restore", "bad", 3)[0] == 400
    assert complete(url, prompt="The capital of France is", id_slot=3, n_predict=2)["status"] == 200


def test_nothing_is_written_outside_of_the_folder(keeps: tuple[str, Path], tmp_path: Path) -> None:
    url, folder = keeps
    precious = tmp_path / "precious"
    precious.write_text("precious")
    for name in ("victim", "draft.part"):
        (folder / name).symlink_to(precious)
    for name in ("victim", "draft"):
        assert keep(url, "save", name)[0] == 200
        assert not (folder / name).is_symlink()
    for name in ("../outside", "/tmp/outside", "a/b", "..", "."):
        assert keep(url, "save", name)[0] == 400, name
    assert precious.read_text() == "precious"
    assert [path.name for path in tmp_path.iterdir()] == ["precious"]


def test_slots_are_kept_in_files_only_where_that_was_asked_for(server: str) -> None:
    assert keep(server, "save", "anything")[0] == 400
    assert keep(server, "restore", "anything")[0] == 400


# Sleep


def test_seam_no_request_loses_its_model_to_sleep(llamafile: Path) -> None:
    """Texts whose tokens take longer to find than the server waits before it sleeps."""
    arguments = ("--server", "--nobrowser", "--port", "0", "--sleep-idle-seconds", "1")
    text = "Once upon a time there was a fox. " * 100_000
    with serving(llamafile, *arguments) as url:

        def tokens(text: str) -> float:
            body = json.dumps({"content": text}).encode()
            kind = {"Content-Type": "application/json"}
            request = urllib.request.Request(url + "tokenize", body, kind)
            start = time.monotonic()
            with urllib.request.urlopen(request, timeout=60) as answer:
                assert len(json.load(answer)["tokens"]) > 100_000
            return time.monotonic() - start

        while tokens(text) < 1.2:  # a fast machine
            text += text
        with ThreadPoolExecutor(3) as pool:
            for asked in [pool.submit(tokens, text) for _ in range(3)]:
                asked.result()
        for pause in (1.0, 1.1, 1.5, 2.5):
            time.sleep(pause)
            assert complete(url, prompt="Once", n_predict=2)["status"] == 200
        deadline = time.monotonic() + 10
        while not get(url, "props")["is_sleeping"]:
            assert time.monotonic() < deadline
            time.sleep(0.2)
        assert complete(url, prompt="Once", n_predict=2)["status"] == 200


# Texts to embed


def embed(url: str, path: str = "v1/embeddings", **body: object) -> tuple[int, object]:
    request = urllib.request.Request(
        url + path, json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=300) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


def likeness(a: list[float], b: list[float]) -> float:
    lengths = math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))
    return sum(x * y for x, y in zip(a, b, strict=True)) / lengths


EMBEDS = ("--server", "--nobrowser", "--port", "0", "-c", "2048", "--embeddings")
TEXT = "Rain falls because clouds are cold. My name is Rose, and I live in Paris. " * 60


@pytest.mark.parametrize("pooling", ["mean", "cls", "last", "none"])
def test_seam_a_text_is_embedded_in_parts(pooling: str, llamafile: Path) -> None:
    """As it is in one batch, which has room for it; beside others, and in a context of many."""
    path = "embeddings" if pooling == "none" else "v1/embeddings"

    def vectors(*options: str) -> list[list[float]]:
        with serving(llamafile, *EMBEDS, "--pooling", pooling, *options) as url:
            bodies = [{"input": text} for text in (TEXT, "Rain", TEXT[300:])]
            with ThreadPoolExecutor() as pool:
                answers = list(pool.map(lambda body: embed(url, path, **body), bodies))
        assert [status for status, _ in answers] == [200] * 3
        found = [a["data"] if isinstance(a, dict) else a for _, a in answers]
        if pooling == "none":
            return [vector for of_text in found for vector in of_text[0]["embedding"]]
        return [of_text[0]["embedding"] for of_text in found]

    at_once = vectors("-b", "2048", "-ub", "2048")
    for options in ((), ("-b", "100", "-ub", "100"), ("-np", "3")):
        in_parts = vectors(*options)
        assert len(in_parts) == len(at_once)
        assert len(at_once) > 1000 if pooling == "none" else len(at_once) == 3
        least = 0.99 if pooling == "none" else 0.999  # other batches round otherwise
        assert min(map(likeness, in_parts, at_once)) > least


def test_a_text_may_fill_the_context(llamafile: Path) -> None:
    """And no token more; who sends that is told so."""
    with serving(llamafile, *EMBEDS, "--pooling", "mean") as url:
        status, answer = embed(url, input=[100 + n for n in range(2048)])
        assert (status, answer["usage"]["prompt_tokens"]) == (200, 2048)
        assert embed(url, input=[100] * 2049)[0] == 400
        assert embed(url, input=TEXT)[0] == 200


@pytest.fixture(scope="module")
def looks_ahead(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights whose header says that tokens attend to those behind them, too."""
    path = tmp_path_factory.mktemp("ahead") / "a.gguf"
    return with_bool(smollm2, path, "llama.attention.causal", False)


def test_seam_a_text_that_is_too_long_for_its_batch_is_refused(
    llamafile: Path, looks_ahead: Path
) -> None:
    """Where somebody asked for small batches."""
    small = ("-m", looks_ahead, "--pooling", "mean", "-b", "64", "-ub", "64")
    with serving(llamafile, *EMBEDS, *small) as url:
        status, answer = embed(url, input=TEXT)
        assert (status, "too large to process" in answer["error"]["message"]) == (400, True)
        assert embed(url, input="Rain")[0] == 200


def test_seam_a_text_is_embedded_whole_where_tokens_look_ahead(
    llamafile: Path, looks_ahead: Path
) -> None:
    vectors = []
    for options in (("-m", looks_ahead), ("-m", looks_ahead, "-b", "1900", "-ub", "1900"), ()):
        with serving(llamafile, *EMBEDS, "--pooling", "mean", *options) as url:
            status, answer = embed(url, input=TEXT)
            assert status == 200, answer
            vectors.append(answer["data"][0]["embedding"])
    assert likeness(vectors[0], vectors[1]) > 0.9999
    assert likeness(vectors[0], vectors[2]) < 0.99


# The same numbers


def wide_gemma() -> loadable.Model:
    """Gemma 3's kind, as wide as real ones' heads: cells before the window are used again."""
    small, times = loadable.gemma3(), 16
    tokens = len(small.keys["tokenizer.ggml.tokens"])
    scaled = ("gemma3.embedding_length", "gemma3.feed_forward_length")
    return small.but(
        {
            **{key: small.keys[key] * times for key in scaled},
            "gemma3.context_length": 2048,
            "gemma3.attention.sliding_window": 40,
        },
        {
            name: tuple(size if size == tokens else size * times for size in shape)
            for name, shape in small.tensors.items()
        },
    )


@pytest.mark.parametrize("model", [None, wide_gemma], ids=["smollm2", "a window"])
def test_seam_a_busy_server_gives_the_same_numbers(
    llamafile: Path, tmp_path: Path, rng: random.Random, model: Callable[[], loadable.Model] | None
) -> None:
    """Whatever other slots have left in the cache that all share, and while they write."""
    options: tuple[str | Path, ...] = ("--nobrowser", "-np", "4", "-kvu", "-c", "1024", "-ub", "64")
    if model:
        model().write(tmp_path / "m.gguf")
        options += ("-m", tmp_path / "m.gguf")

    def asked(url: str, tokens: int, **more: object) -> list[object]:
        ids = [3 + i * i % 23 for i in range(tokens)]
        facts = {"n_predict": 3, "temperature": 0, "n_probs": 10, "ignore_eos": True, **more}
        answer = complete(url, prompt=ids, **facts)
        assert answer["status"] == 200, answer
        return answer["completion_probabilities"]

    done = threading.Event()

    def disturb(url: str, numbers: random.Random) -> int:
        count = 0
        while not done.is_set():
            ids = [numbers.randrange(3, 200) for _ in range(numbers.randrange(3, 120))]
            written = numbers.randrange(1, 40)
            answer = complete(url, prompt=ids, n_predict=written, ignore_eos=True)
            assert answer["status"] == 200, answer
            count += 1
        return count

    with serving(llamafile, *options) as url, ThreadPoolExecutor() as pool:
        expected = {tokens: asked(url, tokens) for tokens in (40, 130, 330)}
        for beside in (20, 500, 90, 640, 333):
            complete(url, prompt=[9] * beside, n_predict=5, ignore_eos=True)
            for tokens in (330, 130):  # behind a beginning that is there already, and without
                for cache in (True, False):
                    assert asked(url, tokens, cache_prompt=cache) == expected[tokens], beside
        others = [pool.submit(disturb, url, random.Random(rng.random())) for _ in range(2)]
        try:
            found = [(tokens, asked(url, tokens)) for _ in range(12) for tokens in expected]
        finally:
            done.set()
        assert min(each.result() for each in others) > 3
        assert [tokens for tokens, got in found if got != expected[tokens]] == []
