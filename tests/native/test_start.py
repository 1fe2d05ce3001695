"""Starting the real thing: from every shell, at a terminal, thirty at once, and what is left."""

from __future__ import annotations

import errno
import os
import pty
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from launching import KINDS, SHELLS
from launching import llamafile as small
from running import need, run

import pyllamafile

pytestmark = pytest.mark.native


@pytest.fixture(scope="module")
def files(
    smollm2: Path, llamafile: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """The same model as a script and as a Windows program."""
    windows = tmp_path_factory.mktemp("windows") / "smollm2.exe"
    pyllamafile.build(smollm2, windows, targets=["linux-amd64", "windows-amd64"])
    return {"script": llamafile, "windows": windows}


def left(leader: int) -> list[str]:
    """What is still there of a session that was told to end: it may take some seconds."""
    end = time.monotonic() + 10
    while (found := session(leader)) and time.monotonic() < end:
        time.sleep(0.05)
    return found


def session(leader: int) -> list[str]:
    """The processes of a session, by their number and name."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            number, _, rest = path.read_text().partition(" ")
        except OSError:  # it has ended meanwhile
            continue
        name, _, fields = rest.rpartition(") ")
        if int(fields.split()[3]) == leader:
            found.append(f"{number} {name}")
    return found


def at_a_terminal(command: list[str], until: bytes, key: bytes) -> tuple[int, int, bytes]:
    """Starts a command at a terminal, and presses a key when it has said something.

    Returns the process, its status as `waitpid` has it, and what stood on the screen.
    """
    child, terminal = pty.fork()
    if not child:
        os.execvp(command[0], command)
    seen = b""
    status = None
    end = time.monotonic() + 60
    try:
        while time.monotonic() < end:
            if not select.select([terminal], [], [], 1)[0]:
                continue
            try:
                seen += os.read(terminal, 65536)
            except OSError:  # nobody has the terminal open any more
                break
            if until in seen and key:
                os.write(terminal, key)
                key = b""
        while status is None and time.monotonic() < end:
            number, code = os.waitpid(child, os.WNOHANG)
            status = code if number else None
            time.sleep(0.01)
        assert status is not None, seen
        return child, status, seen
    finally:
        if status is None:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        os.close(terminal)


@pytest.mark.parametrize("shell", SHELLS)
def test_ctrl_c_ends_a_server_and_leaves_nothing(files, shell: str) -> None:
    """In the shell's own place, and as a child of a shell that waits for it."""
    argv = [need(shell.split()[0], SHELLS[shell]), *shell.split()[1:]]
    for start in (
        [*argv, str(files["windows"])],
        [*argv, "-c", '"$@"; exit $?', "x", str(files["script"])],
    ):
        command = [*start, "--nobrowser", "--port", "0"]
        child, status, seen = at_a_terminal(command, b" is ready: ", b"\x03")
        assert b" is ready: " in seen
        assert os.waitstatus_to_exitcode(status) in (0, 130, -signal.SIGINT), seen
        assert left(child) == []


def test_ctrl_c_ends_a_prompt(files) -> None:
    command = [str(files["script"]), "-p", "Once", "-n", "100000", "-c", "8192", "--ignore-eos"]
    for _ in range(10):
        child, status, _ = at_a_terminal(command, b"Once", b"\x03")
        assert (os.waitstatus_to_exitcode(status), left(child)) == (130, [])


@pytest.mark.parametrize("kind", KINDS)
def test_thirty_first_starts_at_once(files, kind: str, tmp_path: Path) -> None:
    env = {**os.environ, "PYLLAMAFILE_CACHE": str(tmp_path)}
    many = [
        subprocess.Popen(
            ["sh", files[kind], "--version"],
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for _ in range(30)
    ]
    said = {(*process.communicate(timeout=300), process.returncode) for process in many}
    ((out, err, code),) = said
    assert (code, err) == (0, b"")
    assert out.startswith(b"pyllamafile")
    (program,) = (tmp_path / "run").iterdir()
    assert run(program, "--probe").returncode == 0


@pytest.fixture(scope="module")
def execvp(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A program that starts another as musl's execvp does, and ends with errno if it can't."""
    source = tmp_path_factory.mktemp("c") / "execvp.c"
    source.write_text(
        "#include <errno.h>\n#include <unistd.h>\n"
        "int main(int n, char **v) { execvp(v[1], v + 1); return errno; }\n"
    )
    program = source.with_suffix("")
    zig = [sys.executable, "-m", "ziglang", "cc", "-target", "x86_64-linux-musl", "-static"]
    subprocess.run([*zig, "-o", program, source], check=True)
    return program


@pytest.mark.parametrize("kind", KINDS)
def test_what_musl_does(execvp: Path, kind: str, tmp_path: Path) -> None:
    """Unlike glibc's, its execvp calls no shell for what the kernel refuses."""
    file = small(tmp_path / "f", outer=KINDS[kind])
    env = {**os.environ, "PYLLAMAFILE_CACHE": str(tmp_path)}
    done = run(execvp, file, "exit", "77", env=env)
    assert done.returncode == {"script": 77, "windows": errno.ENOEXEC}[kind]
    assert run(execvp, "sh", file, "exit", "77", env=env).returncode == 77
