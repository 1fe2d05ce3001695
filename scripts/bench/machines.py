#!/usr/bin/env python3
"""A model over several machines: how fast it writes, by how far apart they are, and what it sends.

The machines are sshds on this one, which compute by turns as others would. What goes to them
passes a relay that holds it back for a while, so that a round trip takes longer, and counts it.
The relay is ssh's ProxyCommand; the kernel needs nothing for it, and nobody needs to be root.

    scripts/bench/machines.py --model FILE [--machines 1,2,3] [--trips 0,1,5] [--tokens N]
        [--prompt N] [--rounds N]

--machines counts this one; --trips are milliseconds that are added to a round trip.
"""

from __future__ import annotations

import argparse
import functools
import json
import mmap
import os
import shlex
import shutil
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import astuple, dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any

if __name__ == "__main__" and sys.argv[1:2] != ["relay"]:
    sys.path.append(str(Path(__file__).resolve().parent.parent))
    import in_venv

    in_venv.ensure("runtimes,test", "pyllamafile", "numpy")

PART = 1 << 16  # bytes that the relay takes at once
# Bytes that went to a machine, that came from it, and how often the first followed the second.
COUNTS = struct.Struct("=QQQ")
SETTLE = 0.3  # seconds after an answer, until the relays have counted all of it


# The relay


def relay(seconds: float, counts: Path, host: str, port: int) -> None:
    """Between ssh's streams and a port: every byte comes so many seconds later, each way."""
    with counts.open("r+b") as file:
        counted = mmap.mmap(file.fileno(), COUNTS.size)
    there = socket.create_connection((host, port))
    there.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    ways: tuple[tuple[Callable[[], bytes], Callable[[bytes], object], int], ...] = (
        (lambda: os.read(0, PART), there.sendall, 0),
        (lambda: there.recv(PART), write_all, 1),
    )
    fields = memoryview(counted).cast("Q")
    was_back = [True]

    def count(which: int, size: int) -> None:
        fields[which] += size
        fields[2] += which == 0 and was_back[0]
        was_back[0] = which == 1

    for read, write, which in ways:
        held: SimpleQueue[tuple[float, bytes]] = SimpleQueue()
        counting = functools.partial(count, which)
        threading.Thread(target=hold, args=(read, held, seconds, counting), daemon=True).start()
        threading.Thread(target=release, args=(held, write), daemon=which == 0).start()


def write_all(data: bytes) -> None:
    while data:
        data = data[os.write(1, data) :]


def hold(
    read: Callable[[], bytes],
    held: SimpleQueue[tuple[float, bytes]],
    seconds: float,
    count: Callable[[int], None],
) -> None:
    data = b"-"
    while data:
        try:
            data = read()
        except OSError:
            data = b""
        if data:
            count(len(data))
        held.put((time.monotonic() + seconds, data))


def release(held: SimpleQueue[tuple[float, bytes]], write: Callable[[bytes], object]) -> None:
    while True:
        due, data = held.get()
        if (wait := due - time.monotonic()) > 0:
            time.sleep(wait)
        if not data:
            os._exit(0)
        try:
            write(data)
        except OSError:
            os._exit(0)


# The machines


@dataclass(frozen=True)
class Others:
    """The machines that `ssh` reaches by their names, while its folder is first in PATH.

    Attributes:
        names: For ``--on``.
        folder: Where ``ssh`` is.
        counts: What the relays have counted, a file for each.
    """

    names: tuple[str, ...]
    folder: Path
    counts: tuple[Path, ...]

    def counted(self) -> tuple[int, int, int]:
        """Of all of them so far: bytes that went there, that came back, and round trips."""
        read = [COUNTS.unpack(path.read_bytes()) for path in self.counts]
        there, back, trips = (sum(each[field] for each in read) for field in range(3))
        return there, back, trips


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def others(count: int, seconds: float, folder: Path) -> Iterator[Others]:
    """So many sshds, each with a cache of its own, and a relay in front of each.

    Raises:
        SystemExit: There is no sshd, or it doesn't start.
    """
    path = os.pathsep.join([os.environ["PATH"], "/usr/sbin"])
    sshd, ssh = shutil.which("sshd", path=path), shutil.which("ssh")
    if sshd is None or ssh is None:
        raise SystemExit("sshd and ssh are wanted: apt install openssh-server openssh-client")
    if os.getuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)
    key = folder / "key"
    if not key.exists():
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
    config, known = "", ""
    made, counts, started = [], [], []
    for number in range(count):
        name = f"m{number + 1}"
        own = folder / name
        (own / "tmp").mkdir(parents=True, exist_ok=True)
        port = free_port()
        (own / "sshd_config").write_text(
            f"ListenAddress 127.0.0.1:{port}\nHostKey {key}\nPidFile none\nUsePAM no\n"
            f"AuthorizedKeysFile {key}.pub\nStrictModes no\nPermitRootLogin yes\n"
            f"SetEnv PYLLAMAFILE_CACHE={own / 'cache'} TMPDIR={own / 'tmp'}\n"
        )
        counting = own / "counts"
        counting.write_bytes(bytes(COUNTS.size))
        words = [sys.executable, str(Path(__file__).resolve()), "relay", str(seconds)]
        proxy = shlex.join([*words, str(counting), "127.0.0.1", str(port)])
        config += f"Host {name}\n HostName 127.0.0.1\n Port {port}\n ProxyCommand {proxy}\n"
        known += f"[127.0.0.1]:{port} {key.with_suffix('.pub').read_text()}"
        made.append(name)
        counts.append(counting)
        command = [sshd, "-D", "-f", str(own / "sshd_config"), "-E", str(own / "log")]
        started.append(subprocess.Popen(command))
    (folder / "known").write_text(known)
    (folder / "config").write_text(
        f"{config}Match all\n IdentityFile {key}\n IdentitiesOnly yes\n"
        f" UserKnownHostsFile {folder / 'known'}\n StrictHostKeyChecking yes\n"
    )
    (folder / "bin").mkdir(exist_ok=True)
    wrapper = folder / "bin" / "ssh"
    wrapper.write_text(f'#!/bin/sh\nexec {ssh} -F {folder / "config"} "$@"\n')
    wrapper.chmod(0o755)
    try:
        yield Others(tuple(made), wrapper.parent, tuple(counts))
    finally:
        for process in started:
            process.kill()
            process.wait()


@contextmanager
def path_begins_with(folder: Path) -> Iterator[None]:
    before = os.environ["PATH"]
    os.environ["PATH"] = f"{folder}:{before}"
    try:
        yield
    finally:
        os.environ["PATH"] = before


# What is measured


@dataclass(frozen=True)
class Row:
    """What one server says.

    Attributes:
        prompt: Tokens of a prompt that it reads in a second, at best.
        rate: Tokens that it writes in a second, at best.
        there: Bytes that go to all other machines for a token that is written.
        back: Bytes that come from them.
        trips: Round trips that such a token waits for.
    """

    prompt: float
    rate: float
    there: float
    back: float
    trips: float


def ask(port: int, prompt: str, tokens: int) -> dict[str, Any]:
    body = {
        "prompt": prompt,
        "n_predict": tokens,
        "ignore_eos": True,
        "cache_prompt": False,
        "temperature": 0,
    }
    url = f"http://127.0.0.1:{port}/completion"
    with urllib.request.urlopen(url, json.dumps(body).encode(), timeout=600) as answer:
        return json.load(answer)["timings"]  # type: ignore[no-any-return]


def measure(command: Sequence[str | Path], hosts: Others, options: argparse.Namespace) -> Row:
    """Asks a server over these machines. Of times the best counts, for others disturb; of bytes
    and trips the median, each the difference between a long answer and a short one."""
    from load import question, serving

    words = ["--on", ",".join(hosts.names)] if hosts.names else []
    more = []
    with path_begins_with(hosts.folder), serving([*command, *words]) as (port, _):
        read = [ask(port, question(each, options.prompt), 1) for each in range(options.rounds)]
        wrote = []
        for _ in range(options.rounds):
            # before an answer the server fetches what the model remembers of the one before
            ask(port, question(1, 1), 1)
            time.sleep(SETTLE)
            sent = [hosts.counted()]
            for count in (1, options.tokens + 1):
                answer = ask(port, question(1, 1), count)
                time.sleep(SETTLE)
                sent.append(hosts.counted())
            wrote.append(answer)
            more.append([(c - b - (b - a)) / options.tokens for a, b, c in zip(*sent, strict=True)])
    return Row(
        max(each["prompt_per_second"] for each in read),
        max(each["predicted_per_second"] for each in wrote),
        *(statistics.median(values) for values in zip(*more, strict=True)),
    )


def numbers(text: str) -> list[float]:
    """Numbers from 0, with commas between them."""
    values = []
    for word in text.split(","):
        value = -1.0
        with suppress(ValueError):
            value = float(word)
        if not 0 <= value <= 1000:
            raise argparse.ArgumentTypeError(f"{word!r} is not a number from 0 to 1000")
        values.append(value)
    return values


def main() -> None:
    from load import counts, positive
    from machine import model_name, this_target

    import pyllamafile

    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", type=Path, required=True, help="a GGUF")
    parser.add_argument("--machines", type=counts, default=[1, 2, 3], help="1,2,3")
    parser.add_argument("--trips", type=numbers, default=[0, 1, 5], help="milliseconds: 0,1,5")
    parser.add_argument("--tokens", type=positive, default=64, help="of an answer")
    parser.add_argument("--prompt", type=positive, default=200, help="words of a prompt")
    parser.add_argument("--rounds", type=positive, default=5, help="answers")
    options = parser.parse_args()
    here = this_target()
    if not options.model.is_file():
        raise SystemExit(f"{options.model}: there is no such file")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = folder / "machines.llamafile"
        pyllamafile.build(options.model, path, gui=False, targets=[here.name])
        command = [path, "--server", "--nobrowser", "-c", 1024]
        print(f"{model_name()}; {options.model.name}")
        print(
            f"the best of {options.rounds} answers of {options.tokens} tokens; bytes as ssh sends "
            "them, to all other machines together\n"
        )
        row = "{:>8} {:>14} {:>16} {:>17} {:>11} {:>11} {:>11}"
        titles = ("machines", "added trip, ms", "prompt, tokens/s", "writing, tokens/s")
        print(row.format(*titles, "bytes there", "bytes back", "round trips"), flush=True)
        formats = ("{:.0f}", "{:.1f}", "{:,.0f}", "{:,.0f}", "{:.1f}")
        for count in options.machines:
            for trip in options.trips if count > 1 else [0.0]:
                with others(count - 1, trip / 2000, folder) as hosts:
                    measured = astuple(measure(command, hosts, options))
                cells = [form.format(each) for form, each in zip(formats, measured, strict=True)]
                print(row.format(count, f"{trip:g}", *cells), flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["relay"]:
        relay(float(sys.argv[2]), Path(sys.argv[3]), sys.argv[4], int(sys.argv[5]))
    else:
        main()
