"""Talking to a model: over a pipe, and at a real pseudo-terminal."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from running import run

pytestmark = pytest.mark.native

GREEDY = ("--chat", "--temp", "0", "-n", "12")


class Terminal:
    """A pseudo-terminal with a program at it."""

    def __init__(self, command: list[str]) -> None:
        self.child, self.terminal = pty.fork()
        if not self.child:
            os.environ["TERM"] = "xterm"
            os.execv(command[0], command)
        self.seen = ""
        self.modes = termios.tcgetattr(self.terminal)

    def type(self, keys: str) -> None:
        os.write(self.terminal, keys.encode())

    def see(self, what: str, seconds: float = 120) -> str:
        """Waits until the screen shows something new; returns all that it showed until then."""
        end = time.monotonic() + seconds
        while what not in self.seen:
            assert time.monotonic() < end, f"{what!r} is not in {self.seen!r}"
            if select.select([self.terminal], [], [], 1)[0]:
                try:
                    self.seen += os.read(self.terminal, 65536).decode(errors="replace")
                except OSError:
                    raise AssertionError(f"it ended without {what!r}: {self.seen!r}") from None
        at = self.seen.index(what) + len(what)
        shown, self.seen = self.seen[:at], self.seen[at:]
        return shown

    def end(self) -> int:
        """Waits for the program's end; returns its exit code."""
        end = time.monotonic() + 60
        while time.monotonic() < end:
            if select.select([self.terminal], [], [], 0.05)[0]:
                with suppress(OSError):
                    self.seen += os.read(self.terminal, 65536).decode(errors="replace")
            number, status = os.waitpid(self.child, os.WNOHANG)
            if number:
                self.child = 0
                return os.waitstatus_to_exitcode(status)
        raise AssertionError(f"it goes on: {self.seen!r}")


@contextmanager
def terminal(*command: str | Path) -> Iterator[Terminal]:
    at = Terminal(["/bin/sh", *(str(word) for word in command)])
    try:
        yield at
    finally:
        if at.child:
            os.kill(at.child, signal.SIGKILL)
            os.waitpid(at.child, 0)
        os.close(at.terminal)


def lines(*said: str) -> bytes:
    return "".join(f"{line}\n" for line in said).encode()


def test_seam_over_a_pipe(llamafile: Path) -> None:
    """Standard output is answers and what was asked for; no colours, no prompt, no banner."""
    said = lines("Count: one, two,", "/context", "/system", "/stats", "/exit", "never read")
    done = run(llamafile, *GREEDY, "-sys", "You can count.", stdin=said)
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"\x1b" not in done.stdout
    answer, context, system, stats = done.stdout.decode().rstrip("\n").rsplit("\n", 3)
    assert len(answer) > 3
    used, _, size, _ = context.split()
    assert 20 < int(used) < 60
    assert int(size) == 8192
    assert system == "You can count."
    assert re.fullmatch(r"prompt \d+ tokens, 0 of them known, .*; answer \d+ tokens, .*", stats)


def test_commands(llamafile: Path, tmp_path: Path) -> None:
    """What the conversation is made of, after every command that changes it."""
    (tmp_path / "note.txt").write_text("The secret is 42.")
    steps = (
        "/system Be brief.", "/save 1",
        "Hello.", "/save 2",
        "/push", "/read note.txt", "What is it?", "/save 3",
        "/undo", "/save 4",
        "/pop", "/save 5",
        "And\\", "you?", "/forget", "/save 6",
        "/regen", "/save 7",
        "/clear", "/save 8",
        "/load 3", "/save 9", "/dump dump.txt",
    )  # fmt: skip
    done = run(llamafile, *GREEDY, stdin=lines(*steps), cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, b"")
    saved = {
        int(path.name): json.loads(path.read_text())["messages"] for path in tmp_path.glob("[0-9]")
    }
    said = {
        number: [(row["role"], row["content"]) for row in rows if row["role"] != "assistant"]
        for number, rows in saved.items()
    }
    system, hello = ("system", "Be brief."), ("user", "Hello.")
    question = ("user", "File note.txt:\nThe secret is 42.\n\nWhat is it?")
    later = ("user", "And\nyou?")
    assert said == {
        1: [system],
        2: [system, hello],
        3: [system, hello, question],
        4: [system, hello],
        5: [system, hello],
        6: [system, later],
        7: [system, later],
        8: [],
        9: [system, hello, question],
    }
    for number in (2, 3, 6, 7):
        roles = [row["role"] for row in saved[number]]
        assert roles == ["system"] + ["user", "assistant"] * ((len(roles) - 1) // 2)
    dumped = (tmp_path / "dump.txt").read_text()
    assert dumped.startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHello.")
    assert not list(tmp_path.glob("*.draft"))


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("/nope", "/nope: no such command (/help lists them)"),
        ("/save", "/save needs a value: FILE"),
        ("/load missing.json", "missing.json: can't be read"),
        ("/load note.txt", "note.txt: no saved conversation"),
        ("/save note.txt", "note.txt: holds no conversation, and stays as it is"),
        ("/read .", ".: can't be read"),
        ("/save missing/x", "missing/x: can't be written"),
        ("/image note.txt", "this model sees no images"),
        ("/pop", "nothing was pushed"),
        ("/undo", "nothing was said yet"),
        ("/regen", "nothing was said yet"),
        ("/stats", "nothing was said yet"),
    ],
)
def test_what_goes_wrong_over_a_pipe(
    llamafile: Path, tmp_path: Path, line: str, problem: str
) -> None:
    (tmp_path / "note.txt").write_text("{")
    done = run(llamafile, *GREEDY, stdin=lines(line), cwd=tmp_path)
    assert (done.returncode, done.stderr.decode()) == (1, f"error: {problem}\n")


def test_more_than_the_context(llamafile: Path) -> None:
    """The message that was too long goes, and the conversation goes on."""
    said = lines("word " * 600, "/context", "Hi")
    done = run(llamafile, *GREEDY, "-c", "256", stdin=said)
    assert done.returncode == 1
    assert done.stderr.endswith(
        b"; the question was taken back (/forget drops the oldest messages, /clear all)\n"
    )
    context, answer = done.stdout.decode().split("\n", 1)
    assert context == "0 of 256 tokens"
    assert len(answer) > 3


def test_a_file_of_more_than_the_context(llamafile: Path, tmp_path: Path) -> None:
    """It goes with the question, so that the next one is answered."""
    (tmp_path / "long.txt").write_text("word " * 600)
    said = lines("/read long.txt", "What is it?", "/save kept", "Hi", "/save kept")
    done = run(llamafile, *GREEDY, "-c", "256", stdin=said, cwd=tmp_path)
    assert done.returncode == 1
    assert b"; the question was taken back, with all that was added to it (" in done.stderr
    messages = json.loads((tmp_path / "kept").read_text())["messages"]
    assert [(row["role"], row["content"]) for row in messages[:-1]] == [("user", "Hi")]


def test_only_the_named_file_is_written(llamafile: Path, tmp_path: Path) -> None:
    names = ("x.draft", ".x.draft-0", "y.draft", ".y.draft-0")
    for name in names:
        (tmp_path / name).write_text("mine")
    (tmp_path / "y").mkdir()
    (tmp_path / "errors").symlink_to("/dev/stderr")
    said = lines("/save x", "/system Be brief.", "/dump errors", "/save y")
    done = run(llamafile, *GREEDY, stdin=said, cwd=tmp_path)
    assert done.returncode == 1
    assert b"Be brief." in done.stderr
    assert done.stderr.endswith(b"error: y: can't be written\n")
    assert {path.name for path in tmp_path.iterdir()} == {*names, "x", "y", "errors"}
    assert (tmp_path / "errors").is_symlink()
    assert {(tmp_path / name).read_text() for name in names} == {"mine"}
    assert json.loads((tmp_path / "x").read_text()) == {"messages": []}


def test_a_path_is_no_command(llamafile: Path) -> None:
    done = run(llamafile, *GREEDY, stdin=lines("/usr/bin is what?"))
    assert done.returncode == 0
    assert len(done.stdout) > 3


def test_grammar_and_schema(llamafile: Path) -> None:
    done = run(llamafile, *GREEDY, "--grammar", 'root ::= "yes" | "no"', stdin=lines("Is it?"))
    assert done.stdout in (b"yes\n", b"no\n")
    schema = '{"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}'
    done = run(llamafile, *GREEDY, "-n", "40", "--json-schema", schema, stdin=lines("A number?"))
    assert isinstance(json.loads(done.stdout)["n"], int)


def test_seam_at_a_terminal(llamafile: Path) -> None:
    with terminal(llamafile, *GREEDY) as at:
        shown = at.see("> ")
        assert "8192 tokens of context; /help lists the commands, Ctrl-D ends" in shown
        at.type("/system Be brieff\x7f.\r")  # backspace
        at.see("> ")
        at.type("/sys\t\r")  # completed
        assert "Be brief.\r\n" in at.see("> ")
        at.type("/system In /usr/\\\r")  # goes on
        at.see("\r\n")
        at.type("or /etc/\r")
        assert at.see("> ").count("\b/\r\n") == 1  # the slash, again
        at.type("/system\r")
        assert "In /usr/\r\nor /etc/\r\n" in at.see("> ")
        at.type("Hello.\r")
        at.see("> ")
        at.type("\x1b[A\r")  # the line before, again
        assert "Hello." in at.see("> ")
        at.type("/dump\r")
        assert at.see("> ").count("<|im_start|>user\r\nHello.<|im_end|>") == 2
        at.type("/nope\r")
        assert "no such command" in at.see("> ")
        at.type("\x04")
        assert at.end() == 0
        assert termios.tcgetattr(at.terminal)[3] == at.modes[3]


def test_ctrl_c_stops_the_answer_and_not_the_program(llamafile: Path) -> None:
    with terminal(llamafile, "--chat", "--temp", "0", "--ignore-eos", "-n", "8000") as at:
        at.see("> ")
        at.type("Tell me a very long story.\r")
        at.see("\r\n")
        at.see(" ")
        at.type("\x03")
        at.see("> ", 30)
        at.type("/stats\r")
        assert "answer" in at.see("> ")
        at.type("\x03")
        assert "Ctrl-C again ends the program" in at.see("> ")
        at.type("/context\r")
        assert " of 8192 tokens" in at.see("> ")
        at.type("\x03")
        at.see("> ")
        at.type("\x03")
        assert at.end() == 130
        assert termios.tcgetattr(at.terminal)[3] == at.modes[3]


def test_ctrl_c_as_the_prompt_appears(llamafile: Path) -> None:
    """It comes before the program waits for keys, now and then, and is heard all the same."""
    with terminal(llamafile, *GREEDY) as at:
        for _ in range(50):
            at.see("> ")
            at.type("\x03")
            at.see("Ctrl-C again ends the program", 5)
            at.see("> ")
            at.type("/system\r")
            at.see("(none)")


def test_ctrl_c_while_it_loads(llamafile: Path) -> None:
    for pause in (0.05, 0.1, 0.2):
        with terminal(llamafile, "--chat") as at:
            time.sleep(pause)
            at.type("\x03")
            assert at.end() in (130, -signal.SIGINT)


def test_colours_only_if_wanted(llamafile: Path) -> None:
    with terminal(llamafile, *GREEDY, "--color", "off") as at:
        assert "\x1b[3" not in at.see("> ")
        at.type("\x04")
        assert at.end() == 0
