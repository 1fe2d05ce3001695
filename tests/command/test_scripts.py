"""The scripts in scripts/ that people start themselves."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import time
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"
WATCHED = str(SCRIPTS / "watched")


def at_a_terminal(command: list[str], key: bytes = b"", folder: Path | None = None):
    """Starts a command at a terminal, and presses a key when it has shown something.

    Returns its exit status, and what stood on the screen.
    """
    child, terminal = pty.fork()
    if not child:
        if folder:
            os.environ["TMPDIR"] = str(folder)
        os.execvp(command[0], command)
    seen = b""
    while True:
        try:
            seen += os.read(terminal, 65536)
        except OSError:  # nobody has the terminal open any more
            break
        if key and b"here" in seen:
            os.write(terminal, key)
            key = b""
    os.close(terminal)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), seen.decode()


def test_watched_is_silent_elsewhere(tmp_path):
    env = {**os.environ, "TMPDIR": str(tmp_path)}
    command = [WATCHED, "sh", "-c", "echo much; echo more >&2"]
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert list(tmp_path.iterdir()) == []


def test_watched_shows_why_something_failed(tmp_path):
    env = {**os.environ, "TMPDIR": str(tmp_path)}
    command = [WATCHED, "sh", "-c", "echo much; echo more >&2; exit 7"]
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    assert (done.returncode, done.stdout, done.stderr) == (7, "", "much\nmore\n")
    assert list(tmp_path.iterdir()) == []


def test_watched_shows_the_last_line_and_the_time(tmp_path):
    script = r"echo first; printf 'line \033[31mhere\n'; sleep 2.5"
    code, shown = at_a_terminal([WATCHED, "sh", "-c", script], folder=tmp_path)
    assert code == 0
    assert re.search(r"\r\x1b\[K +1 s  line \[31mhere\r", shown)
    assert shown.endswith("\r\x1b[K")  # and is taken away
    assert list(tmp_path.iterdir()) == []


def test_watched_ends_at_ctrl_c(tmp_path):
    pids = tmp_path / "pids"
    logs = tmp_path / "logs"
    logs.mkdir()
    script = f"echo $$ >{pids}; echo here; exec sleep 600"
    code, shown = at_a_terminal([WATCHED, "sh", "-c", script], b"\x03", folder=logs)
    assert code == 130
    assert "here" in shown
    with pytest.raises(ProcessLookupError):
        os.kill(int(pids.read_text()), 0)
    end = time.monotonic() + 10
    while list(logs.iterdir()) and time.monotonic() < end:
        time.sleep(0.1)
    assert list(logs.iterdir()) == []
