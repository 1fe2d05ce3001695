"""A model over several machines: real sshds on this one, each with a cache of its own."""

from __future__ import annotations

import http.client
import json
import os
import pty
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from fixtures import put_runtime, tiny_pe
from messages import (
    ADD,
    ALLOCATE,
    BASE,
    COPY,
    CUSTOM,
    GET_TENSOR,
    GRAPH,
    HELLO,
    SET_TENSOR,
    TENSOR,
    graph,
    tensor,
)
from running import free_port, need, on_arm64, ready, run

import pyllamafile
from pyllamafile import native
from pyllamafile.native.building.driver import RUNTIME
from pyllamafile.targets import TARGETS

pytestmark = pytest.mark.native

PROMPT = "The three laws of robotics are"
SHORT = ("-p", PROMPT, "-n", "24", "--temp", "0", "--no-display-prompt")
LONG = ("-p", PROMPT, "-n", "1000", "--temp", "0", "--ignore-eos")
NAMES = ("one", "two", "three")
CACHE = Path(".cache") / "pyllamafile"
HERE, NEAR, FAR = "127.0.0.1", "203.0.113.1", "203.0.113.2"  # RFC 5737: of nobody


@dataclass
class Machines:
    """Those that `ssh` of this environment reaches by their names."""

    folder: Path
    env: dict[str, str]
    sshds: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def cached(self, name: str) -> list[Path]:
        """The programs in the cache of one."""
        return [path for path in (self.folder / name / "cache" / "run").glob("*") if path.is_file()]

    def workers(self) -> list[int]:
        """The processes of the workers, on all of them."""
        return self._processes(lambda words: words[-1] == b"--worker" and b"sh" not in words[0])

    def sessions(self) -> list[int]:
        """The processes of ssh that were started for these machines."""
        config = str(self.folder / "config").encode()
        return self._processes(lambda words: config in words)

    def _processes(self, wanted: object) -> list[int]:
        found = []
        for path in Path("/proc").glob("[0-9]*"):
            try:
                words = (path / "cmdline").read_bytes().rstrip(b"\0").split(b"\0")
                ours = str(self.folder).encode() in (path / "environ").read_bytes()
            except OSError:
                continue
            if ours and words != [b""] and wanted(words):  # type: ignore[operator]
                found.append(int(path.name))
        return found

    def left(self, seconds: float = 12) -> tuple[list[int], list[int], list[str]]:
        """What is left of processes and temporary files, after so many seconds at most."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and (self.workers() or self.sessions()):
            time.sleep(0.1)
        files = [str(path) for name in NAMES for path in (self.folder / name / "tmp").glob("*")]
        return self.workers(), self.sessions(), files


@pytest.fixture(scope="module")
def far() -> Iterator[str | None]:
    """A network of its own, behind a link that can be cut; None where there can be none."""
    name = f"plf{os.getpid()}"
    link = f"type veth peer name {name}f netns {name}"
    commands = [
        f"ip netns add {name}",
        f"ip link add {name}n {link}",
        f"ip address add {NEAR}/30 dev {name}n",
        f"ip link set {name}n up",
        f"ip -n {name} address add {FAR}/30 dev {name}f",
        f"ip -n {name} link set {name}f up",
    ]
    if shutil.which("ip") is None:
        yield None
        return
    try:
        made = all(run(*command.split()).returncode == 0 for command in commands)
        yield name if made else None
    finally:
        run("ip", "netns", "del", name)


@pytest.fixture(scope="module")
def machines(tmp_path_factory: pytest.TempPathFactory, far: str | None) -> Iterator[Machines]:
    sshd = need("sshd", "openssh-server")
    ssh = need("ssh", "openssh-client")
    if os.getuid() != 0:
        pytest.skip("these sshds are root's, and so is a network of their own")
    Path("/run/sshd").mkdir(exist_ok=True)
    folder = tmp_path_factory.mktemp("machines")
    key = folder / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
    public = key.with_suffix(".pub").read_text()
    config, known = "", ""
    there = Machines(folder, {})
    for name in (*NAMES, *(["far"] if far else [])):
        own = folder / name
        (own / "tmp").mkdir(parents=True)
        host_key = own / "host_key"
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", host_key], check=True)
        (own / "authorized").write_text(public)
        address, before = (FAR, f"ip netns exec {far}".split()) if name == "far" else (HERE, [])
        port = free_port()
        (own / "sshd_config").write_text(
            f"ListenAddress {address}:{port}\nHostKey {host_key}\nPidFile none\nUsePAM no\n"
            f"AuthorizedKeysFile {own / 'authorized'}\nStrictModes no\nPermitRootLogin yes\n"
            "PasswordAuthentication no\nKbdInteractiveAuthentication no\n"
            "DisableForwarding yes\n"
            f"SetEnv PYLLAMAFILE_CACHE={own / 'cache'} TMPDIR={own / 'tmp'} HOME={own}\n"
        )
        command = [*before, sshd, "-D", "-f", own / "sshd_config", "-E", own / "log"]
        there.sshds.append(subprocess.Popen([str(word) for word in command]))
        known += f"[{address}]:{port} {host_key.with_suffix('.pub').read_text()}"
        config += f"Host {name}\n HostName {address}\n Port {port}\n"
    (folder / "known").write_text(known)
    (folder / "config").write_text(
        f"{config}Host stranger\n HostName 127.0.0.1\n Port {free_port()}\n"
        f"Match all\n User root\n IdentityFile {key}\n IdentitiesOnly yes\n"
        f" UserKnownHostsFile {folder / 'known'}\n StrictHostKeyChecking yes\n"
    )
    (folder / "bin").mkdir()
    wrapper = folder / "bin" / "ssh"
    wrapper.write_text(f'#!/bin/sh\nexec {ssh} -F {folder / "config"} "$@"\n')
    wrapper.chmod(0o755)
    there.env = {
        **os.environ,
        "PATH": f"{wrapper.parent}:{os.environ['PATH']}",
        # All files here are at home, so that the others, whose homes are elsewhere, have none.
        "HOME": "/",
        "PYLLAMAFILE_CACHE": os.environ.get("PYLLAMAFILE_CACHE", str(Path.home() / CACHE)),
    }
    try:
        yield there
    finally:
        for process in there.sshds:
            process.kill()
            process.wait()


@pytest.fixture(autouse=True)
def nothing_left(machines: Machines) -> Iterator[None]:
    """Whatever a test did, no process and no temporary file of it stays."""
    yield
    assert machines.left() == ([], [], [])


@pytest.fixture(scope="module")
def alone(llamafile: Path) -> bytes:
    """What one machine says."""
    done = run(llamafile, *SHORT)
    assert done.returncode == 0
    return done.stdout


@pytest.mark.parametrize("names", ["one", "one,two", "one,two,three"])
def test_seam_a_model_over_several_machines(
    llamafile: Path, machines: Machines, alone: bytes, names: str
) -> None:
    done = run(llamafile, *SHORT, "--on", names, env=machines.env)
    assert (done.returncode, done.stdout) == (0, alone), done.stderr
    lines = done.stderr.decode().splitlines()
    shares = [line for line in lines if " layers, " in line]
    assert [line.split()[0] for line in shares] == ["this", *names.split(",")]
    counts = [int(count) for line in shares for count in re.findall(r": (\d+) of 31 layers", line)]
    assert sum(counts) == 31
    assert min(counts) > 0
    for name in names.split(","):
        (program,) = machines.cached(name)
        assert program.stat().st_mode & 0o777 == 0o700


def test_the_program_is_sent_once(llamafile: Path, machines: Machines) -> None:
    for path in machines.cached("two"):
        path.unlink()
    first = run(llamafile, *SHORT, "--on", "two", env=machines.env)
    second = run(llamafile, *SHORT, "--on", "two", env=machines.env)
    assert b"two: sending the program, " in first.stderr
    assert b"sending" not in second.stderr
    assert first.stdout == second.stdout


def test_shares(llamafile: Path, machines: Machines, alone: bytes) -> None:
    split = ("--on", "one", "--on", "two", "--split", "0,1,3")
    done = run(llamafile, *SHORT, *split, env=machines.env)
    assert (done.returncode, done.stdout) == (0, alone), done.stderr
    counts = re.findall(r": (\d+) of 31 layers", done.stderr.decode())
    assert counts == ["0", "8", "23"]
    words = ("--on", "one,two", "-ngl", "20", "-ts", "1,1", "-v")
    done = run(llamafile, *SHORT, *words, env=machines.env)
    assert (done.returncode, done.stdout) == (0, alone), done.stderr
    assert b"offloaded 20/31 layers" in done.stderr


def test_the_output_stays_where_it_is_read(
    llamafile: Path, machines: Machines, alone: bytes, tmp_path: Path
) -> None:
    env, count = counting(tmp_path, machines, back=True)
    back = {}
    for split in ("1,30", "0,1"):
        done = run(llamafile, *SHORT, "--on", "one", "--split", split, env=env)
        assert (done.returncode, done.stdout) == (0, alone), done.stderr
        back[split] = counted(count)
    vocabulary = 4 * 49152  # bytes, for each of 24 tokens
    assert back["0,1"] > 24 * vocabulary
    assert back["1,30"] < 2 * vocabulary


def test_server_ask_chat_and_bench(llamafile: Path, machines: Machines) -> None:
    question = ("--temp", "0", "-n", "12")
    expected = run(llamafile, "--ask", "What is the capital of France?", *question)
    done = run(
        llamafile, "--ask", "What is the capital of France?", *question, "--on", "one,two",
        env=machines.env,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, expected.stdout), done.stderr
    sent = b"sending the program"  # to whom no test has sent it before
    assert len([line for line in done.stderr.splitlines() if sent not in line]) == 3
    talk = [llamafile, "--chat", *question, "--on", "one"]
    done = run(*talk, stdin=b"What is the capital of France?\n", env=machines.env)
    assert (done.returncode, done.stdout) == (0, expected.stdout), done.stderr
    words = ("--bench", "-p", "8", "-n", "4", "-r", "1", "-o", "json", "--on", "one")
    done = run(llamafile, *words, env=machines.env)
    assert done.returncode == 0, done.stderr
    assert {row["n_prompt"] for row in json.loads(done.stdout)} == {0, 8}
    command = [llamafile, "--server", "--nobrowser", "--port", "0", "--on", "one,two"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, env=machines.env)
    try:
        url = ready(process)
        body = json.dumps({"prompt": PROMPT, "n_predict": 8, "temperature": 0}).encode()
        answer = json.load(urllib.request.urlopen(f"{url}completion", body))
        assert answer["tokens_predicted"] == 8
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) in (0, 130)
        process.stdout.close()


# Deaths


def begin(llamafile: Path, machines: Machines, *words: str) -> subprocess.Popen[bytes]:
    """A long text over one machine and another; returns when the first words of it are there."""
    process = subprocess.Popen(
        [llamafile, *LONG, "--on", "one,two", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=machines.env,
    )
    if not process.stdout.read(len(PROMPT) + 20):
        raise AssertionError(process.stderr.read())
    return process


def ended(process: subprocess.Popen[bytes]) -> tuple[int, list[str], float]:
    """How it ends, the errors that it says, and after how many seconds."""
    began = time.monotonic()
    _, err = process.communicate(timeout=30)
    lines = [line for line in err.decode().splitlines() if line.startswith("error: ")]
    return process.returncode, lines, time.monotonic() - began


def below(pids: list[int], machine: int, machines: Machines) -> list[int]:
    """Those of the processes that belong to the sshd of one machine."""
    name = str(machines.folder / NAMES[machine] / "tmp").encode()
    return [pid for pid in pids if name in Path(f"/proc/{pid}/environ").read_bytes()]


def test_a_worker_that_dies(llamafile: Path, machines: Machines) -> None:
    process = begin(llamafile, machines)
    (worker,) = below(machines.workers(), 1, machines)
    os.kill(worker, signal.SIGKILL)
    code, lines, seconds = ended(process)
    assert (code, len(lines), seconds < 10) == (1, 1, True)
    assert lines[0].startswith("error: two is gone: ")


@pytest.mark.parametrize("chat", [False, True])
def test_a_worker_that_dies_while_it_answers(
    llamafile: Path, machines: Machines, chat: bool
) -> None:
    question = "Tell me a long story."
    words = ["--chat"] if chat else ["--ask", question]
    process = subprocess.Popen(
        [llamafile, *words, "--ignore-eos", "-n", "1000", "--on", "one,two"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=machines.env,
    )
    if chat:
        process.stdin.write(f"{question}\nAnother one.\n".encode())
        process.stdin.flush()
    assert process.stdout.read(30)
    os.kill(below(machines.workers(), 0, machines)[0], signal.SIGKILL)
    code, lines, seconds = ended(process)
    assert (code, len(lines), seconds < 10) == (1, 1, True), lines
    assert lines[0].startswith("error: one is gone: ")


def test_an_ssh_that_dies(llamafile: Path, machines: Machines) -> None:
    process = begin(llamafile, machines)
    os.kill(machines.sessions()[0], signal.SIGKILL)
    code, lines, seconds = ended(process)
    assert (code, len(lines), seconds < 10) == (1, 1, True)
    assert re.match("error: (one|two) is gone: ", lines[0])


def test_a_worker_that_hangs(llamafile: Path, machines: Machines) -> None:
    process = begin(llamafile, machines)
    (worker,) = below(machines.workers(), 0, machines)
    os.kill(worker, signal.SIGSTOP)
    try:
        code, lines, seconds = ended(process)
        assert (code, seconds < 10) == (1, True)
        assert lines == ["error: one is gone: no sign of life for 8 seconds"]
    finally:
        os.kill(worker, signal.SIGCONT)


def test_a_link_that_is_cut(llamafile: Path, machines: Machines, far: str | None) -> None:
    need("ip", "iproute2")
    if far is None:
        pytest.skip("no network namespaces can be made here")
    process = begin(llamafile, machines, "--on", "far")
    assert len(machines.workers()) == 3
    run("ip", "link", "set", f"{far}n", "down")
    try:
        code, lines, seconds = ended(process)
        assert (code, len(lines), seconds < 10) == (1, 1, True)
        assert lines[0].startswith("error: far is gone: ")
        # nobody tells the worker there
        assert machines.left(75) == ([], [], [])
    finally:
        run("ip", "link", "set", f"{far}n", "up")


def test_the_program_here_dies(llamafile: Path, machines: Machines) -> None:
    process = begin(llamafile, machines)
    assert len(machines.workers()) == 2
    process.kill()
    process.communicate()


def test_ctrl_c(llamafile: Path, machines: Machines) -> None:
    process = begin(llamafile, machines)
    for pid in machines.sessions():  # a terminal sends it to all of them
        os.kill(pid, signal.SIGINT)
    time.sleep(0.5)
    assert process.poll() is None  # in a chat it stops the answer, and nothing else
    process.send_signal(signal.SIGINT)
    assert ended(process)[:2] == (130, [])


# A server goes on


@dataclass
class Server:
    """A server over several machines."""

    process: subprocess.Popen[bytes]
    errors: Path
    url: str

    def ask(self) -> str:
        body = json.dumps({"prompt": PROMPT, "n_predict": 12, "temperature": 0}).encode()
        with urllib.request.urlopen(f"{self.url}completion", body, timeout=60) as answer:
            return str(json.load(answer)["content"])

    def is_again_ready(self) -> str:
        """What it has said meanwhile, once it has loaded the model again."""
        assert ready(self.process) == self.url
        return self.errors.read_text()


@contextmanager
def serving(
    llamafile: Path, machines: Machines, tmp_path: Path, *words: str | Path
) -> Iterator[Server]:
    errors = tmp_path / "errors"
    command = [llamafile, "--server", "--nobrowser", "--port", "0", *words]
    with errors.open("wb") as stderr:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, env=machines.env)
    with process:
        try:
            yield Server(process, errors, ready(process))
        finally:
            process.kill()


def test_a_server_goes_on_with_the_machines_that_are_left(
    llamafile: Path, machines: Machines, tmp_path: Path
) -> None:
    with serving(llamafile, machines, tmp_path, "--on", "one,two", "--split", "1,1,2") as server:
        before = server.ask()
        body = {"prompt": PROMPT, "n_predict": 5000, "ignore_eos": True, "stream": True}
        data = json.dumps(body).encode()
        with urllib.request.urlopen(f"{server.url}completion", data, timeout=60) as answer:
            assert answer.read(30)
            began = time.monotonic()
            os.kill(below(machines.workers(), 1, machines)[0], signal.SIGKILL)
            with pytest.raises((http.client.IncompleteRead, ConnectionError)):
                answer.read()
            assert time.monotonic() - began < 10
        lines = server.is_again_ready().splitlines()
        assert sum(line.startswith("error: two is gone: ") for line in lines) == 1
        assert "note: the model is loaded again, by this machine and one" in lines
        assert [line for line in lines if line.startswith("error: ")] == lines[3:4]
        assert re.fullmatch(r"one \(.*\): 1[56] of 31 layers, .*", lines[5])  # of its shares
        assert server.ask() == before
        os.kill(machines.workers()[0], signal.SIGKILL)
        assert "note: the model is loaded again, by this machine alone\n" in server.is_again_ready()
        assert server.ask() == before
        assert machines.left() == ([], [], [])
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(timeout=10) in (0, 130)


def test_a_server_that_idles_goes_on(llamafile: Path, machines: Machines, tmp_path: Path) -> None:
    with serving(llamafile, machines, tmp_path, "--on", "one") as server:
        os.kill(machines.workers()[0], signal.SIGKILL)
        began = time.monotonic()
        assert "error: one is gone: " in server.is_again_ready()
        assert time.monotonic() - began < 30
        assert server.ask()
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(timeout=10) == 0


def test_a_server_whose_log_was_at_work_before_it_was_split_off_ends(
    llamafile: Path, machines: Machines, tmp_path: Path
) -> None:
    """A context beyond the trained one is checked first, by what starts the log."""
    with serving(llamafile, machines, tmp_path, "--on", "one", "-c", "20k") as server:
        assert server.ask()
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(timeout=10) == 0


def test_a_server_whose_other_machine_does_not_answer_any_more(
    llamafile: Path, machines: Machines, tmp_path: Path
) -> None:
    with serving(llamafile, machines, tmp_path, "--on", "one,two") as server:
        known = (machines.folder / "known").read_text()
        (machines.folder / "known").write_text("")  # so that ssh ends when it is started again
        try:
            os.kill(below(machines.workers(), 0, machines)[0], signal.SIGKILL)
            said = server.is_again_ready()
        finally:
            (machines.folder / "known").write_text(known)
        assert "\nerror: two: Host key verification failed.\n" in said
        assert "note: the model is loaded again, by this machine alone\n" in said
        assert server.ask()


def test_a_socket_of_a_server_that_goes_on_stays(
    llamafile: Path, machines: Machines, tmp_path: Path
) -> None:
    """What the old server has split off removes it, and must have done so before the next."""
    path = tmp_path / "s.sock"
    with serving(llamafile, machines, tmp_path, "--host", path, "--on", "one") as server:
        os.kill(machines.workers()[0], signal.SIGKILL)
        server.is_again_ready()
        for _ in range(10):
            with socket.socket(socket.AF_UNIX) as connection:
                connection.connect(str(path))
                connection.sendall(b"GET /health HTTP/1.0\r\n\r\n")
                assert connection.recv(100).startswith(b"HTTP/1.1 200 ")
            time.sleep(0.1)


def test_a_server_without_room_for_the_weights_ends(
    llamafile: Path, smollm2: Path, machines: Machines, tmp_path: Path
) -> None:
    large = tmp_path / "large.gguf"
    shutil.copyfile(smollm2, large)
    os.truncate(large, 1 << 42)  # as far as sizes go, more than any machine has
    words = ("-m", large, "--load-mode", "none", "--on", "one,two")
    with serving(llamafile, machines, tmp_path, *words) as server:
        os.kill(below(machines.workers(), 0, machines)[0], signal.SIGKILL)
        assert server.process.wait(timeout=20) == 1
        last = server.errors.read_text().splitlines()[-1]
        assert re.fullmatch(
            r"error: the weights have 4398\.0 GB, and the machines that are left have "
            r"\d+\.\d GB of memory free",
            last,
        )


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_server_ends_with_the_process_that_would_start_it_again(
    llamafile: Path, machines: Machines, tmp_path: Path, number: signal.Signals
) -> None:
    path = tmp_path / "s.sock"
    command = [llamafile, "--server", "--nobrowser", "--host", path, "--on", "one"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, env=machines.env)
    with process:
        assert ready(process) == f"unix:{path}"
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        process.send_signal(number)
        codes = {signal.SIGKILL: (-9,), signal.SIGTERM: (0,), signal.SIGHUP: (129,)}
        assert process.wait(timeout=10) in codes.get(number, (0, 130))
    deadline = time.monotonic() + 10
    while any(Path(f"/proc/{child}").exists() for child in children) or path.exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)


# What can't be started


def refused(llamafile: Path, machines: Machines, *words: str) -> str:
    """The one error that it ends with."""
    done = run(llamafile, *SHORT, *words, env=machines.env)
    assert (done.returncode, done.stdout) == (1, b"")
    (line,) = done.stderr.decode().splitlines()
    return line


def test_machines_that_are_not_there(llamafile: Path, machines: Machines) -> None:
    assert re.match(
        "error: stranger: ssh: connect to host .* Connection refused",
        refused(llamafile, machines, "--on", "stranger"),
    )
    line = refused(llamafile, machines, "--on", "nobody.invalid")
    assert line.startswith("error: nobody.invalid: ssh: Could not resolve hostname")
    authorized = machines.folder / "three" / "authorized"
    keys = authorized.read_text()
    authorized.write_text("")
    try:
        line = refused(llamafile, machines, "--on", "one,three")
        assert line.startswith("error: three: ")
        assert "Permission denied" in line
    finally:
        authorized.write_text(keys)


def test_another_key_than_the_known_one(llamafile: Path, machines: Machines) -> None:
    known = machines.folder / "known"
    before = known.read_text()
    lines = before.splitlines()
    known.write_text("\n".join([lines[0].replace(lines[0].split()[2], lines[1].split()[2])]) + "\n")
    try:
        line = refused(llamafile, machines, "--on", "one")
        assert line == "error: one: Host key verification failed."
    finally:
        known.write_text(before)


def ssh_through(folder: Path, machines: Machines, command: str) -> dict[str, str]:
    """An environment in which ssh is a command of the shell: $1 is the machine, $2 what runs there.

    In it, `ssh` is the one of the machines.
    """
    folder.mkdir(exist_ok=True)
    path = folder / "ssh"
    path.write_text(
        f"#!/bin/sh\nPATH={machines.folder}/bin:$PATH\n"
        f'while [ "$1" != -- ]; do shift; done; shift\n{command}\n'
    )
    path.chmod(0o755)
    return {**machines.env, "PATH": f"{folder}:{machines.env['PATH']}"}


def test_a_model_that_is_too_large_for_any(
    llamafile: Path, machines: Machines, alone: bytes, tmp_path: Path
) -> None:
    env = ssh_through(tmp_path, machines, 'exec ssh -- "$1" "ulimit -v 170000; $2"')
    words = (*SHORT, "-c", "256", "--fit", "off")
    one = run(llamafile, *words, "--on", "one", "--split", "0,1", env=env)
    assert (one.returncode, one.stdout) == (1, b""), one.stderr
    assert len(re.findall(b"^error: ", one.stderr, re.M)) == 1
    two = run(llamafile, *words, "--on", "one,two", "--split", "0,1,1", env=env)
    assert (two.returncode, two.stdout) == (0, alone), two.stderr


def test_machines_without_memory(llamafile: Path, machines: Machines, tmp_path: Path) -> None:
    env = ssh_through(tmp_path, machines, 'exec ssh -- "$1" "ulimit -v 60000; $2"')
    done = run(llamafile, *SHORT, "--on", "one", "--split", "0,1", env=env)
    assert (done.returncode, done.stdout) == (1, b"")
    errors = [line for line in done.stderr.decode().splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert errors[0].startswith("error: failed to allocate RPC0[one:0] buffer of size ")


def slow(folder: Path, machines: Machines, rate: float) -> dict[str, str]:
    """An environment whose ssh is sent so many bytes in a second."""
    script = folder / "slowly.py"
    script.write_text(
        "import os, select, time\n"
        "while select.select([0], [], []) and (data := os.read(0, 1 << 16)):\n"
        "    os.write(1, data)\n"
        f"    time.sleep(len(data) / {rate})\n"
    )
    return ssh_through(folder, machines, f'{sys.executable} {script} | ssh -- "$@"')


def test_weights_that_take_their_time(
    llamafile: Path, machines: Machines, alone: bytes, tmp_path: Path
) -> None:
    shutil.rmtree(machines.folder / "one" / "cache" / "tensors", ignore_errors=True)
    env = slow(tmp_path, machines, 7e6)
    done = run(llamafile, *SHORT, "--on", "one", "--split", "0,1", env=env)
    assert (done.returncode, done.stdout) == (0, alone), done.stderr
    assert re.search(rb"\none: 0\.[01] GB sent\n", done.stderr), done.stderr


def counted(count: Path) -> int:
    """What is in such a file, which is made when the connection has ended; it is removed."""
    deadline = time.monotonic() + 12
    while not (count.exists() and count.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    number = int(count.read_text())
    count.unlink()
    return number


def counting(
    folder: Path, machines: Machines, *, back: bool = False
) -> tuple[dict[str, str], Path]:
    """An environment whose ssh counts the bytes that are sent, and the file that has the number.

    Args:
        folder: Where that is.
        machines: The others.
        back: Whether those are counted that come back.
    """
    count = folder / "count"
    script = folder / "counting.py"
    script.write_text(
        "import os, select\n"
        "passed = 0\n"
        "try:\n"
        "    while select.select([0], [], []) and (data := os.read(0, 1 << 16)):\n"
        "        passed += len(data)\n"
        "        os.write(1, data)\n"
        "finally:\n"  # whoever reads may have gone before the last bytes
        f"    open({str(count)!r}, 'w').write(str(passed))\n"
    )
    ssh, counter = 'ssh -- "$@"', f"{sys.executable} {script}"
    command = f"{ssh} | {counter}" if back else f"{counter} | {ssh}"
    return ssh_through(folder, machines, command), count


def test_seam_weights_travel_once(
    llamafile: Path, machines: Machines, alone: bytes, tmp_path: Path
) -> None:
    env, count = counting(tmp_path, machines)
    kept = machines.folder / "one" / "cache" / "tensors"
    words = (*SHORT, "--on", "one", "--split", "0,1")
    shutil.rmtree(kept, ignore_errors=True)
    sent = []
    for damage in (False, False, True, False):
        files = sorted(kept.glob("*"))
        if damage:
            with files[0].open("r+b") as file:
                byte = file.read(1)
                file.seek(0)
                file.write(bytes([byte[0] ^ 1]))
        done = run(llamafile, *words, env=env)
        assert (done.returncode, done.stdout) == (0, alone), done.stderr
        sent.append(counted(count))
    weights = sum(path.stat().st_size for path in kept.iterdir())
    assert weights > 70_000_000
    assert min(path.stat().st_size for path in kept.iterdir()) < 1 << 17
    assert sent[0] > weights
    assert sent[1] < sent[0] / 4
    assert sent[2] > sent[1] + 50_000  # what was damaged, and nothing else
    assert sent[2] < sent[0] / 2
    assert sent[3] == pytest.approx(sent[1], abs=20_000)
    assert {path.name for path in files} == {path.name for path in kept.iterdir()}
    assert all(re.fullmatch("[0-9a-f]{64}", path.name) for path in files)
    assert {path.stat().st_mode & 0o777 for path in files} == {0o600}
    assert kept.stat().st_mode & 0o777 == 0o700
    here = {**os.environ, "PYLLAMAFILE_CACHE": str(kept.parent)}
    done = run(llamafile, "--clean-cache", env=here)
    assert f"{kept}: {len(files)} removed, ".encode() in done.stdout
    assert list(kept.iterdir()) == []


def test_a_machine_that_has_the_same_file_takes_its_own_weights(
    llamafile: Path, machines: Machines, alone: bytes, tmp_path: Path
) -> None:
    env, count = counting(tmp_path, machines)
    kept = machines.folder / "one" / "cache" / "tensors"
    own = machines.folder / "one" / llamafile.relative_to("/")
    words = (*SHORT, "--on", "one", "--split", "0,1")

    def sent(path: Path = llamafile, env: dict[str, str] = env) -> int:
        """With nothing kept there before."""
        shutil.rmtree(kept, ignore_errors=True)
        done = run(path, *words, env=env)
        assert (done.returncode, done.stdout) == (0, alone), done.stderr
        return counted(count)

    few = 1_500_000  # bytes, of graphs and of small tensors
    assert sent() > 70_000_000
    assert sent(env={**env, "HOME": "/nowhere"}) < few  # by its full name it is there
    try:
        own.parent.mkdir(parents=True)
        shutil.copyfile(llamafile, own)
        assert sent() < few
        assert list(kept.iterdir()) == []
        with own.open("r+b") as file:  # one of the bytes of one tensor
            place = llamafile.stat().st_size // 2
            file.seek(place)
            byte = file.read(1)
            file.seek(place)
            file.write(bytes([byte[0] ^ 1]))
        assert few / 2 < sent() < 3 * few
        assert len(list(kept.iterdir())) == 1
        for content in (b"", llamafile.read_bytes()[:place], b"GGUF" + bytes(1000)):
            own.write_bytes(content)
            assert sent() > 70_000_000
        own.unlink()
        os.mkfifo(own)
        assert sent() > 70_000_000
    finally:
        shutil.rmtree(machines.folder / "one" / own.relative_to(machines.folder / "one").parts[0])
        (machines.folder / "one" / "tmp").mkdir(exist_ok=True)


def speeds(folder: Path) -> dict[str, str]:
    """What was measured there."""
    return {path.name: path.read_text() for path in (folder / "speeds").glob("*")}


def layers(done: subprocess.CompletedProcess[bytes]) -> list[int]:
    return [int(count) for count in re.findall(r": (\d+) of 31 layers", done.stderr.decode())]


def test_shares_by_speed_which_is_measured_once(
    llamafile: Path, machines: Machines, alone: bytes, tmp_path: Path
) -> None:
    env = {**machines.env, "PYLLAMAFILE_CACHE": str(tmp_path)}
    there = machines.folder / "one" / "cache"
    shutil.rmtree(there / "speeds", ignore_errors=True)
    words = (*SHORT, "--on", "one")
    done = run(llamafile, *words, env=env)
    assert (done.returncode, done.stdout) == (0, alone), done.stderr
    for folder in (tmp_path, there):
        ((name, text),) = speeds(folder).items()
        assert re.fullmatch(r"q4_1-\d+\.speed", name)
        assert re.fullmatch(r"\d+(\.\d+)?\n", text)
        mantissa = float(text).hex().split("p")[0]
        assert mantissa in ("0x1.0000000000000", "0x1.8000000000000")  # 1 or 1.5 of a power of 2
        assert f", computes {text.rstrip()} GB/s\n".encode() in done.stderr
        assert (folder / "speeds" / name).stat().st_mode & 0o777 == 0o600
    ((name, measured),) = speeds(there).items()
    for folder, speed in ((tmp_path, "4\n"), (there, "12\n")):
        (path,) = (folder / "speeds").iterdir()
        path.write_text(speed)
    for _ in range(2):
        done = run(llamafile, *words, env=env)
        assert (done.returncode, done.stdout) == (0, alone), done.stderr
        assert layers(done) == [8, 23]
        assert b", computes 12 GB/s\n" in done.stderr
        assert speeds(there) == {name: "12\n"}
    assert layers(run(llamafile, *words, "--split", "1,1", env=env)) == [16, 15]
    for nonsense in ("", "12", "-1\n", "nan\n", "x" * 1000):
        (there / "speeds" / name).write_text(nonsense)
        run(llamafile, *words, env=env)
        assert 0.2 < float(speeds(there)[name]) / float(measured) < 5
    run(llamafile, "--clean-cache", env={**env, "PYLLAMAFILE_CACHE": str(there)})
    assert speeds(there) == {}


def test_no_machine_gets_more_layers_than_it_has_memory_for(
    llamafile: Path, smollm2: Path, machines: Machines, alone: bytes, tmp_path: Path
) -> None:
    env = {**machines.env, "PYLLAMAFILE_CACHE": str(tmp_path)}
    words = (*SHORT, "--on", "one")
    done = run(llamafile, *words, env=env)
    for folder, speed in ((tmp_path, "1\n"), (machines.folder / "one" / "cache", "64\n")):
        (path,) = (folder / "speeds").iterdir()
        path.write_text(speed)
    try:
        assert layers(run(llamafile, *words, env=env)) == [1, 30]
        free = re.findall(r", (\d+\.\d) GB of memory free", done.stderr.decode())
        large = tmp_path / "large.gguf"
        shutil.copyfile(smollm2, large)
        size = 1.2 * min(float(each) for each in free) * 1e9
        os.truncate(large, int(size))  # as far as sizes go
        done = run(llamafile, "-m", large, "--load-mode", "none", *words, env=env)
        assert (done.returncode, done.stdout) == (0, alone), done.stderr
        here, there = layers(done)
        assert here + there == 31
        assert there == pytest.approx(31 * 0.8 / 1.2, abs=3)
    finally:
        shutil.rmtree(machines.folder / "one" / "cache" / "speeds")


@pytest.mark.parametrize(
    ("type", "weights", "speed"),
    [("q4_1", "", r" \d+(\.\d+)?"), ("q8_0", "7a7", r" \d+(\.\d+)?"), ("f16", "zz00", r" [\d.]+"),
     ("q3", "2f", " 0")],
)  # fmt: skip
def test_what_a_worker_is_started_with(
    runtime: Path, tmp_path: Path, type: str, weights: str, speed: str
) -> None:
    env = {**os.environ, "PYLLAMAFILE_CACHE": str(tmp_path)}
    done = run(runtime, type, weights, "--worker", stdin=b"", env=env)
    assert re.fullmatch(rf"pyllamafile worker \d+{speed}\n", done.stdout.decode())
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize("how", ["file", "open to others", "no room"])
def test_a_machine_that_can_keep_no_weights(
    llamafile: Path, machines: Machines, alone: bytes, tmp_path: Path, how: str
) -> None:
    kept = machines.folder / "one" / "cache" / "tensors"
    shutil.rmtree(kept, ignore_errors=True)
    env = machines.env
    if how == "file":
        kept.write_text("")
    elif how == "open to others":
        kept.mkdir()
        kept.chmod(0o777)
    else:  # for the program, but not for the largest tensor
        env = ssh_through(
            tmp_path, machines, """exec ssh -- "$1" "trap '' XFSZ; ulimit -f 50000; $2\""""
        )
    try:
        done = run(llamafile, *SHORT, "--on", "one", "--split", "0,1", env=env)
        assert (done.returncode, done.stdout) == (0, alone), done.stderr
        names = [] if kept.is_file() else [path.name for path in kept.iterdir()]
        assert names == [] or (how == "no room" and {len(name) for name in names} == {64})
    finally:
        kept.unlink() if kept.is_file() else shutil.rmtree(kept)


def test_seam_a_bar_while_weights_are_sent(
    llamafile: Path, machines: Machines, alone: bytes, tmp_path: Path
) -> None:
    shutil.rmtree(machines.folder / "one" / "cache" / "tensors", ignore_errors=True)
    env = slow(tmp_path, machines, 20e6)
    child, terminal = pty.fork()
    if not child:
        with (tmp_path / "text").open("wb") as file:
            os.dup2(file.fileno(), 1)
        words = [str(llamafile), *SHORT, "--on", "one", "--split", "0,1"]
        os.execve(llamafile, words, env)
    seen = b""
    with suppress(OSError):  # nobody has the terminal open any more
        while part := os.read(terminal, 65536):
            seen += part
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0, seen
    assert re.sub(rb"\x1b\[\d*m", b"", (tmp_path / "text").read_bytes()) == alone
    bars = re.findall(rb"\rsending weights \[(#*) *\] (\d+) %, (\d+):(\d\d) left ", seen)
    assert len(bars) > 3, seen
    parts = [int(part) for _, part, _, _ in bars]
    assert parts == sorted(parts)
    assert all(len(full) == int(part) * 30 // 100 for full, part, _, _ in bars)
    minutes, seconds = (int(number) for number in bars[len(bars) // 2][2:])
    assert 0 < 60 * minutes + seconds < 60
    assert b"\r\033[K" in seen.split(b"left")[-1]  # it is gone at the end
    assert b"GB sent" not in seen


def test_a_machine_whose_shell_says_more(
    llamafile: Path, machines: Machines, alone: bytes, tmp_path: Path
) -> None:
    env = ssh_through(tmp_path, machines, 'exec ssh -- "$1" "echo Welcome; echo; $2"')
    done = run(llamafile, *SHORT, "--on", "one", env=env)
    assert (done.returncode, done.stdout) == (0, alone), done.stderr


@pytest.mark.parametrize("shell", ["bash", "dash", "zsh", "fish", "mksh", "ksh93", "tcsh"])
def test_whatever_the_shell_there(
    llamafile: Path, machines: Machines, alone: bytes, tmp_path: Path, shell: str
) -> None:
    program = need(shell, {"ksh93": "ksh93u+m"}.get(shell, shell))
    (tmp_path / "tmp").mkdir()
    places = f"PYLLAMAFILE_CACHE={tmp_path}/cache TMPDIR={tmp_path}/tmp"
    env = ssh_through(tmp_path, machines, f'{places} exec {program} -c "$2"')
    done = run(llamafile, *SHORT, "--on", "one", env=env)
    assert (done.returncode, done.stdout) == (0, alone), done.stderr
    assert list((tmp_path / "tmp").iterdir()) == []


def test_no_ssh(llamafile: Path, machines: Machines) -> None:
    done = run(llamafile, *SHORT, "--on", "one", env={**machines.env, "PATH": "/nowhere"})
    assert done.returncode == 1
    assert done.stderr.decode() == (
        "error: one: ssh can't be started: No such file or directory; "
        "it is in the package openssh-client\n"
    )


@pytest.mark.parametrize(
    ("system", "error"),
    [
        ("Plan9 sparc", "there is no worker for its system, Plan9 sparc"),
        ("Darwin arm64", "this file has no program for its system, Darwin arm64; "
                         "one that has it is built with --target macos-arm64 as well"),
    ],
)  # fmt: skip
def test_a_system_without_a_program(
    llamafile: Path, machines: Machines, tmp_path: Path, system: str, error: str
) -> None:
    uname = tmp_path / "there" / "uname"
    uname.parent.mkdir()
    uname.write_text(f"#!/bin/sh\necho {system}\n")
    uname.chmod(0o755)
    command = f'exec ssh -- "$1" "PATH={uname.parent}:\\$PATH; $2"'
    env = ssh_through(tmp_path / "here", machines, command)
    done = run(llamafile, *SHORT, "--on", "three", env=env)
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr.decode() == f"error: three: {error}\n"


def test_a_worker_on_arm64(smollm2: Path, machines: Machines, tmp_path: Path) -> None:
    """By qemu, which the kernel starts."""
    if native.find(TARGETS["linux-arm64"]) is None:
        pytest.skip("no runtime is at hand: pyllamafile runtimes build --target linux-arm64")
    path = tmp_path / "x.llamafile"
    pyllamafile.build(smollm2, path, targets=["linux-amd64", "linux-arm64"])
    (tmp_path / "there").mkdir()
    uname = tmp_path / "there" / "uname"
    uname.write_text("#!/bin/sh\necho Linux aarch64\n")
    uname.chmod(0o755)
    line = f"PATH={tmp_path}/there:$PATH exec /bin/sh {tmp_path}/command"
    emulating = " ".join(on_arm64(tmp_path / "emulated", line))
    command = f"""printf '%s\\n' "$2" >{tmp_path}/command
exec ssh -- "$1" "exec {emulating}\""""
    env = ssh_through(tmp_path / "here", machines, command)
    # Its sums are rounded otherwise than those here, so the text is one that nothing else is near.
    words = ("-p", "The capital of Italy is", "-n", "3", *SHORT[4:])
    done = run(path, *words, "--on", "three", "--split", "29,2", env=env)
    assert (done.returncode, done.stdout) == (0, run(path, *words).stdout), done.stderr
    assert b"\nthree (Linux aarch64): 2 of 31 layers, " in done.stderr


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (("--on", "-oProxyCommand=true"), "--on -oProxyCommand=true: not the name of a machine"),
        (("--on", "one,,two"), "--on : not the name of a machine"),
        (("--on", "one:4"), "--on one:4: a port is given as ssh://HOST:PORT"),
        (("--split", "1,1"), "--split is for several machines"),
        (("--on", "one", "--split", "1"), "--split 1: 2 shares are wanted"),
        (("--on", "one", "--split", "1,x"), "--split 1,x: x is no share"),
        (("--on", "one", "--split", "1,0"), "--split 1,0: 2 shares are wanted"),
        (("--tokenize", "--on", "one"), "--on means nothing with --tokenize"),
    ],
)
def test_what_makes_no_sense(
    llamafile: Path, machines: Machines, words: tuple[str, ...], error: str
) -> None:
    assert refused(llamafile, machines, *words).startswith(f"error: {error}")


def test_a_file_may_not_reach_for_machines(
    smollm2: Path, machines: Machines, tmp_path: Path
) -> None:
    path = tmp_path / "x.llamafile"
    pyllamafile.build(smollm2, path, args=["--on", "one"], targets=["linux-amd64"])
    done = run(path, "-p", PROMPT, "-n", "1", env=machines.env)
    assert done.returncode == 0
    assert b"note: --on and --split in .args have no effect" in done.stderr
    assert b"layers" not in done.stderr


def test_several_models(smollm2: Path, phi3: Path, machines: Machines, tmp_path: Path) -> None:
    path = tmp_path / "x.llamafile"
    pyllamafile.build([smollm2, phi3], path, targets=["linux-amd64"])
    done = run(path, "--server", "--nobrowser", "--on", "one", env=machines.env)
    assert done.returncode == 1
    assert done.stderr == b"error: --on needs one model: choose it with -m\n"


def test_a_file_that_begins_as_a_windows_program(
    smollm2: Path,
    runtime: Path,
    machines: Machines,
    alone: bytes,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    put_runtime(tmp_path, runtime.read_bytes())
    put_runtime(tmp_path, tiny_pe(), "windows-amd64")
    monkeypatch.setattr(native, "PREBUILT", tmp_path)
    path = tmp_path / "x.llamafile"
    pyllamafile.build(smollm2, path, targets=["windows-amd64", "linux-amd64"])
    assert path.read_bytes()[:2] == b"MZ"
    for program in machines.cached("one"):
        program.unlink()
    done = run("sh", path, *SHORT, "--on", "one", env=machines.env)
    assert (done.returncode, done.stdout) == (0, alone), done.stderr
    assert b"one: sending the program, " in done.stderr


def test_a_bare_runtime_has_no_programs(runtime: Path, smollm2: Path, machines: Machines) -> None:
    done = run(runtime, "-m", smollm2, *SHORT, "--on", "one", env=machines.env)
    assert done.returncode == 1
    assert done.stderr.startswith(b"error: --on needs a llamafile")


def test_systems_are_those_of_the_table() -> None:
    source = (RUNTIME / "machines" / "machines.cpp").read_text()
    rows = re.findall(r'\{ "([A-Z]\w+ \w+)", "([a-z0-9-]+)" \}', source)
    expected = {
        (pattern, target.name)
        for target in TARGETS.values()
        for pattern in target.uname
        if pattern != "NetBSD aarch64"  # `uname -m` names the board there
    }
    assert set(rows) == expected


def test_doctor_asks_them(llamafile: Path, machines: Machines) -> None:
    doctor = [sys.executable, "-m", "pyllamafile", "doctor", llamafile]
    done = run(*doctor, "--on", "one,two", env=machines.env)
    assert done.returncode == 0, done.stderr
    said = (done.stdout + done.stderr).decode()
    assert re.findall("(?m)^(.*): it can take part \\(Linux", said) == ["one", "two"]
    done = run(*doctor, "--on", "one,stranger", env=machines.env)
    said = (done.stdout + done.stderr).decode()
    assert done.returncode == 1
    assert re.search("(?m)^stranger: problem: .*refused; make `ssh stranger` work first", said)
    forced = machines.folder / "three" / "authorized"
    keys = forced.read_text()
    forced.write_text(f'command="/bin/false" {keys}')
    try:
        done = run(*doctor, "--on", "three", env=machines.env)
    finally:
        forced.write_text(keys)
    assert done.returncode == 1
    assert b"three: problem: ssh doesn't run the command" in done.stdout + done.stderr


# What a worker is told


class Worker:
    """A worker, and the other end of its connection."""

    def __init__(self, runtime: Path, errors: Path) -> None:
        self.errors = errors
        with errors.open("wb") as stderr:
            self.process = subprocess.Popen(
                [runtime, "--worker"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr
            )
        assert re.fullmatch(rb"pyllamafile worker \d+\n", self.process.stdout.readline())
        self.say(HELLO, bytes(24))
        assert self.hear()[:1] == b"\7"
        self.say(ALLOCATE, struct.pack("<IQ", 0, 4096))
        self.buffer, size = struct.unpack("<QQ", self.hear())
        assert size >= 4096
        self.say(BASE, struct.pack("<Q", self.buffer))
        (self.base,) = struct.unpack("<Q", self.hear())

    def say(self, command: int, data: bytes, length: int | None = None) -> None:
        message = struct.pack("<BQ", command, len(data) if length is None else length) + data
        self.process.stdin.write(struct.pack("<I", len(message)) + message)
        self.process.stdin.flush()

    def hear(self) -> bytes:
        size = 0
        while size == 0:  # a sign of life
            (size,) = struct.unpack("<I", self.process.stdout.read(4))
        message = self.process.stdout.read(size)
        assert struct.unpack("<Q", message[:8]) == (size - 8,)
        return message[8:]

    def end(self) -> tuple[int, str]:
        self.process.stdin.close()
        return self.process.wait(timeout=10), self.errors.read_text()


@pytest.fixture
def worker(runtime: Path, tmp_path: Path) -> Iterator[Worker]:
    worker = Worker(runtime, tmp_path / "errors")
    yield worker
    worker.process.kill()
    with worker.process:
        pass


def test_a_worker_computes_and_ends_with_its_input(worker: Worker) -> None:
    assert TENSOR.size == 296  # as upstream packs it
    for place, numbers in ((0, (1, 2, 3, 4)), (64, (10, 20, 30, 40))):
        data = struct.pack("<4f", *numbers)
        where = tensor(1, worker.buffer, worker.base + place)
        worker.say(SET_TENSOR, where + struct.pack("<BQ", 0, 0) + data)
    parts = [
        tensor(1, worker.buffer, worker.base),
        tensor(2, worker.buffer, worker.base + 64),
        tensor(3, worker.buffer, worker.base + 128, op=ADD, src=(1, 2)),
    ]
    worker.say(GRAPH, graph([3], parts))
    worker.say(GET_TENSOR, parts[2] + struct.pack("<QQ", 0, 16))
    assert struct.unpack("<4f", worker.hear()) == (11, 22, 33, 44)
    assert worker.end() == (0, "")


def test_a_worker_copies_nothing_from_nowhere(worker: Worker) -> None:
    """A buffer without bytes has no address."""
    worker.say(ALLOCATE, struct.pack("<IQ", 0, 0))
    none, size = struct.unpack("<QQ", worker.hear())
    assert size == 0
    worker.say(COPY, tensor(1, none, 0, ne=(0, 1, 1, 1)) + tensor(2, worker.buffer, worker.base))
    assert worker.hear() == b"\1"
    assert worker.end() == (0, "")


@pytest.mark.parametrize(
    "case",
    ["length", "wrap", "outside", "before", "in front", "overlap", "op", "address", "node", "twice",
     "bytes", "depth", "command", "count"],
)  # fmt: skip
def test_seam_messages_that_make_no_sense_end_the_worker(worker: Worker, case: str) -> None:
    buffer, base = worker.buffer, worker.base
    none = struct.pack("<QQ", 0, 16)
    if case == "length":
        worker.say(SET_TENSOR, b"", length=1 << 40)
    elif case == "wrap":  # the size passes 2^64, and is 4 then
        huge = tensor(1, buffer, base, ne=(2**31 + 1,) * 4, nb=(2**31,) * 4)
        worker.say(GET_TENSOR, huge + none)
    elif case == "outside":
        worker.say(GET_TENSOR, tensor(1, buffer, base + 4090) + none)
    elif case == "before":
        worker.say(GET_TENSOR, tensor(1, buffer, base + 64) + struct.pack("<QQ", 2**64 - 8, 16))
    elif case == "in front":
        where = tensor(1, buffer, base + 64) + struct.pack("<BQ", 0, 2**64 - 8)
        worker.say(SET_TENSOR, where + bytes(16))
    elif case == "overlap":
        worker.say(COPY, tensor(1, buffer, base) + tensor(2, buffer, base + 4))
    elif case == "op":
        worker.say(GRAPH, graph([1], [tensor(1, buffer, base, op=500)]))
    elif case == "address":  # of a function, in the parameters
        worker.say(
            GRAPH,
            graph([2], [tensor(1, buffer, base), tensor(2, buffer, base, op=CUSTOM, src=(1,))]),
        )
    elif case == "node":
        worker.say(GRAPH, graph([0], []))
    elif case == "twice":
        parts = [tensor(1, buffer, base), tensor(2, buffer, base, op=ADD, src=(1, 1))]
        worker.say(GRAPH, graph([2, 2], parts))
    elif case == "bytes":
        parts = [tensor(1, 0, 0), tensor(2, buffer, base, op=ADD, src=(1, 1))]
        worker.say(GRAPH, graph([2], parts))
    elif case == "depth":
        many = 200_000
        chain = [tensor(n, buffer, base, op=ADD, src=(n + 1, n + 1)) for n in range(1, many)]
        worker.say(GRAPH, graph([1], [*chain, tensor(many, buffer, base)]))
    elif case == "command":
        worker.say(77, b"")
    elif case == "count":
        worker.say(GRAPH, struct.pack("<II", 0, 2**32 - 1))
    code = worker.process.wait(timeout=20)
    assert code == 1
    lines = worker.errors.read_text().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
