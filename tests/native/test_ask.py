"""--ask: one question in the model's chat format, and the answer alone."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from fixtures import tiny_ear, wav
from running import run

import pyllamafile

pytestmark = pytest.mark.native

GREEDY = ("--temp", "0", "-n", "12")
QUESTION = "Name three colors."


def ask(*command: str | Path, stdin: bytes = b"") -> bytes:
    done = run(*command, *GREEDY, stdin=stdin)
    assert (done.returncode, done.stderr) == (0, b"")
    return done.stdout


@pytest.fixture(scope="module")
def answer(llamafile: Path) -> bytes:
    """What --chat answers, which shares the server and not the way there."""
    return ask(llamafile, "--chat", stdin=QUESTION.encode() + b"\n")


def test_the_answer_alone(llamafile: Path, answer: bytes) -> None:
    assert len(answer) > 3
    assert ask(llamafile, "--ask", QUESTION) == answer
    assert ask(llamafile, "--ask", QUESTION, stdin=b"This is not read.\n") == answer


@pytest.mark.parametrize(
    "piped",
    [
        QUESTION.encode(),
        QUESTION.encode() + b"\n",
        b"\xef\xbb\xbf" + QUESTION.encode() + b"\r\n",
        QUESTION.encode("utf-16"),
    ],
)
def test_a_question_through_a_pipe(llamafile: Path, answer: bytes, piped: bytes) -> None:
    assert ask(llamafile, "--ask", "-", stdin=piped) == answer


@contextmanager
def another_server() -> Iterator[tuple[str, list[Any]]]:
    """A server that says yes: its address, and the messages that it was sent."""
    asked: list[Any] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.reply("application/json", b'{"default_generation_settings": {"n_ctx": 256}}')

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            asked.append(json.loads(body)["messages"])
            chunk = {"choices": [{"delta": {"content": "yes"}}]}
            self.reply("text/event-stream", f"data: {json.dumps(chunk)}\n\n".encode())

        def reply(self, kind: str, content: bytes) -> None:
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", asked
        server.shutdown()


@pytest.mark.parametrize(
    ("words", "piped", "said"),
    [
        ([r"one\ntwo"], b"", "one\ntwo"),
        ([r"C:\new", "--no-escape"], b"", r"C:\new"),
        (["-"], rb"C:\new", r"C:\new"),
        (["/exit"], b"", "/exit"),
        (["--help"], b"", "--help"),
        (["-"], b" /clear \n\n", " /clear \n"),
        (["-", "-e"], rb"one\ntwo", "one\ntwo"),
    ],
)
def test_the_text_is_what_was_given(
    llamafile: Path, words: list[str], piped: bytes, said: str
) -> None:
    """Escapes are read as -p reads them, and nothing is a command. Another server may answer."""
    with another_server() as (url, asked):
        done = run(llamafile, "--ask", *words, "-sys", "Hm.", "--server-base", url, stdin=piped)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"yes\n", b"")
    system, user = asked[0]
    assert system == {"role": "system", "content": "Hm."}
    assert user == {"role": "user", "content": said}


def test_options_of_sampling_hold(llamafile: Path, answer: bytes) -> None:
    done = run(llamafile, "--ask", "Is it?", "--grammar", 'root ::= "yes" | "no"')
    assert done.stdout in (b"yes\n", b"no\n")
    assert ask(llamafile, "--ask", QUESTION, "-sys", "You are a pirate.") != answer
    long = run(llamafile, "--ask", QUESTION, "-n", "4", "--temp", "0", "--ignore-eos")
    assert long.returncode == 0
    assert 0 < len(long.stdout) < len(answer)


def test_args_of_the_file(smollm2: Path, tmp_path: Path, answer: bytes) -> None:
    """A text in `.args` is none that --ask was given; a question there is the file's own."""
    path = tmp_path / "f.llamafile"
    pyllamafile.build(smollm2, path, targets=["linux-amd64"], args=["--server", "-p", "Once"])
    assert ask(path, "--ask", QUESTION) == answer
    pyllamafile.build(
        smollm2, path, targets=["linux-amd64"], args=["--ask", QUESTION, "--port", "1"], force=True
    )
    assert ask(path) == answer
    assert ask(path, "--ask", "Say: blue.") != answer
    assert ask(path, "--chat", stdin=QUESTION.encode() + b"\n") == answer


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["--ask"], "--ask needs a question: a text, or - for standard input"),
        (["--ask", " "], "the question is empty"),
        (["--ask", "-"], "the question is empty"),
        (["--ask", "x", "--image", "nix.png"], "--image nix.png: no such file"),
        (["--ask", "x", "--port", "1"], "--port means nothing in this mode"),
    ],
)
def test_what_goes_wrong(llamafile: Path, words: list[str], problem: str) -> None:
    done = run(llamafile, *words)
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr.decode().startswith(f"error: {problem}")
    assert done.stderr.count(b"\n") == 1


def test_what_the_model_can_not_take(llamafile: Path, tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(b"no picture")
    done = run(llamafile, "--ask", "x", "--image", tmp_path / "x.png")
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr == b"error: this model sees no images\n"
    done = run(llamafile, "--ask", "-", "-c", "256", stdin=b"word " * 600)
    assert (done.returncode, done.stdout) == (1, b"")
    assert b"context" in done.stderr
    assert b"/forget" not in done.stderr
    assert done.stderr.count(b"\n") == 1


def test_standard_output_that_takes_nothing(llamafile: Path) -> None:
    with Path("/dev/full").open("wb") as full:
        words = ["--ask", QUESTION, "--temp", "0", "--ignore-eos", "-n", "8000"]
        began = time.monotonic()
        done = subprocess.run(
            [str(llamafile), *words], stdout=full, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL
        )
    assert done.returncode == 1
    assert done.stderr.startswith(b"error: standard output can't be written")
    assert time.monotonic() - began < 60  # it does not go on for nobody


def test_ctrl_c_ends_it(llamafile: Path) -> None:
    words = ["--ask", "Tell me a story.", "--temp", "0", "--ignore-eos", "-n", "8000"]
    with subprocess.Popen([str(llamafile), *words], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        first = process.stdout.read(1)
        process.send_signal(signal.SIGINT)
        rest = process.stdout.read()
        assert process.wait(30) == 130
    assert (first + rest).endswith(b"\n")


def test_at_a_terminal_it_is_the_same(llamafile: Path, answer: bytes) -> None:
    child, terminal = pty.fork()
    if not child:
        os.environ["TERM"] = "xterm"
        os.execv("/bin/sh", ["/bin/sh", str(llamafile), "--ask", QUESTION, *GREEDY])
    shown = b""
    try:
        while part := os.read(terminal, 65536):
            shown += part
    except OSError:
        pass  # the other end is closed
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    os.close(terminal)
    assert shown.replace(b"\r\n", b"\n") == answer


@pytest.fixture(scope="module")
def hearing(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file that hears, by an ear at random."""
    folder = tmp_path_factory.mktemp("hearing")
    ear = tiny_ear(folder / "ear.gguf", width=576, scale=1)
    built = pyllamafile.build(
        smollm2, folder / "f.llamafile", mmproj=ear, targets=["linux-amd64"], gui=False
    )
    return built.path


def test_sounds(hearing: Path, tmp_path: Path) -> None:
    """What a file is its first bytes say, whatever its name and the option that names it."""
    high, low = tmp_path / "high.wav", tmp_path / "low"
    high.write_bytes(wav(3000))
    low.write_bytes(wav(200))
    heard = {path: ask(hearing, "--ask", "What?", "--audio", path) for path in (high, low)}
    assert len({ask(hearing, "--ask", "What?"), *heard.values()}) == 3
    assert ask(hearing, "--ask", "What?", "--image", high) == heard[high]
    both = ask(hearing, "--ask", "What?", "--audio", low, "--audio", high)
    assert both not in heard.values()
    done = run(hearing, "--chat", *GREEDY, stdin=f"/audio {high}\nWhat?\n/context\n".encode())
    answer, context = done.stdout.rstrip(b"\n").rsplit(b"\n", 1)
    assert (done.returncode, done.stderr, answer + b"\n") == (0, b"", heard[high])
    assert context.endswith(b"tokens, sounds not counted: 1")
    assert run(hearing, "-p", "What?", "--audio", high, *GREEDY).returncode == 0


def test_sounds_that_are_none(hearing: Path, llamafile: Path, tmp_path: Path) -> None:
    sound, broken, text = (tmp_path / name for name in ("a.wav", "b.wav", "c.wav"))
    sound.write_bytes(wav(440))
    broken.write_bytes(wav(440)[:20])
    text.write_bytes(b"no sound at all")
    for file, path, problem in (
        (llamafile, sound, b"this model hears no sounds"),
        (hearing, text, b"this model sees no images"),
        (hearing, broken, b""),
        (hearing, tmp_path / "none.wav", b"--audio"),
    ):
        done = run(file, "--ask", "What?", "--audio", path, *GREEDY)
        assert (done.returncode, done.stdout) == (1, b"")
        assert done.stderr.startswith(b"error: " + problem)
        assert done.stderr.count(b"\n") == 1
