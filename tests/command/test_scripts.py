"""The scripts in scripts/ that people start themselves."""

from __future__ import annotations

import importlib
import math
import os
import pty
import re
import shlex
import shutil
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

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


# scripts/wine_arm64.py


def wine_arm64(folder: Path, **programs: str) -> subprocess.CompletedProcess[str]:
    """What it says where no other programs are than these, which are shell scripts."""
    for name, script in programs.items():
        path = folder / name.replace("_", "-")
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
    env = {**os.environ, "PATH": str(folder), "PYLLAMAFILE_CACHE": str(folder / "cache")}
    command = [sys.executable, SCRIPTS / "wine_arm64.py"]
    return subprocess.run(command, capture_output=True, text=True, env=env)


@pytest.mark.parametrize(
    ("programs", "error"),
    [
        ({}, "qemu-aarch64-static is missing: apt install qemu-user-static"),
        (
            {"qemu_aarch64_static": "exit 1", "apt_get": "exit 0"},
            "apt knows no mirror of Debian: apt-get update, on a Debian",
        ),
    ],
    ids=["qemu", "mirror"],
)
def test_wine_for_arm64_says_what_it_lacks(
    programs: dict[str, str], error: str, tmp_path: Path
) -> None:
    done = wine_arm64(tmp_path, **programs)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", f"error: {error}\n")


@pytest.mark.parametrize(
    ("there", "error"),
    [
        (True, "qemu-system-aarch64 is missing: apt install qemu-system-arm"),
        (False, "{}: No such file or directory"),
    ],
    ids=["qemu", "file"],
)
def test_a_linux_of_its_own_says_what_it_lacks(there: bool, error: str, tmp_path: Path) -> None:
    file = tmp_path / "f"
    if there:
        file.touch()
    env = {**os.environ, "PATH": str(tmp_path), "PYLLAMAFILE_CACHE": str(tmp_path / "cache")}
    command = [sys.executable, SCRIPTS / "linux_machine.py", file, "--version"]
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    expected = f"error: {error.format(file)}\n"
    assert (done.returncode, done.stdout, done.stderr) == (1, "", expected)


@pytest.mark.skipif(
    not Path("/usr/share/keyrings/debian-archive-keyring.gpg").is_file(),
    reason="debian-archive-keyring is missing: apt install debian-archive-keyring",
)
def test_wine_for_arm64_that_cannot_be_fetched_leaves_nothing(tmp_path: Path) -> None:
    apt = """[ "$1" = indextargets ] && echo http://nowhere.invalid/debian && exit
echo "E: no" >&2; exit 100"""
    done = wine_arm64(tmp_path, qemu_aarch64_static="exit 1", apt_get=apt)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "error: Debian's Wine for arm64 can't be fetched: E: no\n"
    assert [path.suffix for path in (tmp_path / "cache" / "wine-arm64").iterdir()] == [".lock"]


# scripts/bench/load.py


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    pytest.importorskip("numpy", reason="numpy is missing: pip install '.[test]'")
    monkeypatch.syspath_prepend(SCRIPTS / "bench")
    return importlib.import_module("load")


def test_load_sums_up_what_clients_saw(load):
    clients = [load.Client(30, [1.0, 3.0]), load.Client(60, [2.0]), load.Client(10, [])]
    seen = load.summary(clients, 10, 0.01)
    assert (seen.rate, seen.fairness, sorted(seen.first)) == (10, 1 / 6, [1, 2, 3])
    assert math.isnan(load.summary([load.Client()], 10, 0).fairness)
    waits = [float(number) for number in range(100, 0, -1)]
    assert [load.percentile(waits, percent) for percent in (0, 50, 99, 100)] == [1, 50, 99, 100]
    assert load.percentile([7.0], 99) == 7
    assert math.isnan(load.percentile([], 50))


def test_load_knows_what_took_the_processors(load):
    busy, had = load.processors()
    mine = load.worked(os.getpid())
    while load.worked(os.getpid()) < mine + 0.3:
        pass
    after, have = load.processors()
    assert 0.2 < after - busy <= have - had + 0.1
    assert load.worked(os.getpid()) == pytest.approx(time.process_time(), abs=0.1)


def test_load_asks_nothing_twice(load):
    questions = {load.question(number, 30) for number in range(1000)}
    assert len(questions) == 1000
    assert load.question(7, 30) == load.question(7, 30)


LOAD = [sys.executable, str(SCRIPTS / "bench" / "load.py")]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--model", "nowhere.gguf"], "nowhere.gguf: there is no such file"),
        (["--model", "m", "--clients", "4,0"], "'0' is not a whole number from 1"),
        (["--model", "m", "--rounds", "-1"], "'-1' is not a whole number from 1"),
    ],
)
def test_load_refuses(load, tmp_path, words, said):
    done = subprocess.run([*LOAD, *words], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode != 0
    assert said in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.native
def test_load_measures_two_servers(smollm2, llamafile):
    few = ["--clients", "1,3", "--seconds", "3", "--rounds", "1", "--slots", "2"]
    few += ["--prompt", "10", "--tokens", "8"]
    peer = shlex.join([str(llamafile), "--server", "--nobrowser"])
    command = [*LOAD, "--model", str(smollm2), *few, "--peer", peer]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    number = r"(\d+\.\d+|nan)"
    row = rf"^ +(\d+) +{number} / {number} = {number}" + rf" +{number} / {number}" * 3 + "$"
    rows = re.findall(row, done.stdout, re.M)
    assert [row[0] for row in rows] == ["1", "3"]
    assert all(float(figure) > 0 for row in rows for figure in row[1:6])
    assert all(float(figure) <= 1 for figure in rows[1][-2:])

    command[-2:] = ["--leavers"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "every second client leaves" in done.stdout
    assert re.findall(r"^ +(\d+) +[\d.]+ / ", done.stdout, re.M) == ["1", "3"]

    ended = subprocess.run(
        [*LOAD, "--model", str(smollm2), *few, "--peer", "sh -c 'echo no luck; exit 3'"],
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 1
    assert ended.stderr.endswith("is not ready:\nno luck\n\n")
    assert "Traceback" not in ended.stderr


# scripts/bench/machines.py

MACHINES = [sys.executable, str(SCRIPTS / "bench" / "machines.py")]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--model", "nowhere.gguf"], "nowhere.gguf: there is no such file"),
        (["--model", "m", "--trips", "1,x"], "'x' is not a number from 0 to 1000"),
        (["--model", "m", "--machines", "0"], "'0' is not a whole number from 1"),
    ],
)
def test_machines_refuses(load, tmp_path, words, said):
    done = subprocess.run([*MACHINES, *words], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode != 0
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_the_relay_holds_back_and_counts(tmp_path):
    counts = tmp_path / "counts"
    counts.write_bytes(bytes(24))
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        command = [*MACHINES, "relay", "0.2", str(counts), "127.0.0.1", str(port)]
        streams = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        with subprocess.Popen(command, **streams) as relay, server.accept()[0] as end:
            began = time.monotonic()
            relay.stdin.write(b"x" * 1000)
            relay.stdin.flush()
            assert end.recv(1000, socket.MSG_WAITALL) == b"x" * 1000
            end.sendall(b"y" * 500)
            assert relay.stdout.read(500) == b"y" * 500
            assert 0.4 <= time.monotonic() - began < 5
            relay.stdin.write(b"x")
            relay.stdin.flush()
            assert end.recv(1) == b"x"
        assert relay.returncode == 0
    assert struct.unpack("=QQQ", counts.read_bytes()) == (1001, 500, 2)


@pytest.mark.native
def test_machines_measures(load, smollm2):
    if not shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin"):
        pytest.skip("sshd is missing: apt install openssh-server")
    few = ["--machines", "1,2", "--trips", "0,40", "--tokens", "8", "--rounds", "1"]
    command = [*MACHINES, "--model", str(smollm2), "--prompt", "5", *few]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    number = r" +([\d.,]+)"
    found = re.findall(rf"^ +(\d+) +(\d+){number * 5}$", done.stdout, re.M)
    rows = [[float(cell.replace(",", "")) for cell in row] for row in found]
    assert [row[:2] for row in rows] == [[1, 0], [2, 0], [2, 40]]
    assert rows[0][4:] == [0, 0, 0]
    for row in rows[1:]:
        assert row[4] > 576 * 4  # an embedding goes there
        assert row[5] == pytest.approx(576 * 4, abs=500)  # and one comes back
        assert 0.8 < row[6] < 4
    assert 1000 / rows[2][3] > 40  # at least one trip for each token
