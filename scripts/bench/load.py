#!/usr/bin/env python3
"""Many clients at once: a llamafile's server beside upstream's, by turns, on the same weights.

Each client asks again as soon as it has its answer, for some seconds. No two questions are the
same. Upstream's llama-server is compiled from the same sdist, as speed.py says.

    scripts/bench/load.py --model FILE [--clients 1,4,16,64] [--seconds N] [--rounds N]
        [--slots N] [--prompt N] [--tokens N] [--threads N]
        [--peer COMMAND | --peer-flags FLAGS | --leavers]

--peer takes another server: a command, which is given --port, -m, -c, -np and -t as well.
--leavers compares the llamafile with itself: every second client leaves at random moments, long
before the end of an answer that has none, and in the other turns it stays. The figures are those
of the other clients.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import random
import shlex
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent.parent))

import in_venv

in_venv.ensure("runtimes,test", "pyllamafile", "numpy")

import speed  # noqa: E402
from machine import model_name, processors, this_target  # noqa: E402

import pyllamafile  # noqa: E402

TOO_BUSY = 0.05  # of all processors: more than that by other programs, and figures say little
LEAVING = (0.01, 3.0)  # seconds after which a client that leaves does so
ENDLESS = 1000  # times the tokens of an answer that its client doesn't wait for
PATIENCE = 600  # seconds that a server may take to load its model
WORDS = ("river", "stone", "lamp", "garden", "winter", "paper", "window", "music", "market")


@dataclass
class Client:
    """What one of them saw.

    Attributes:
        tokens: That came while it was measured.
        first: Seconds from each request to its first token.
    """

    tokens: int = 0
    first: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Load:
    """What all clients of one turn saw.

    Attributes:
        rate: Tokens per second, of all together.
        first: Seconds from each request to its first token.
        fairness: Tokens of the client that had fewest, over those of the one that had most.
        others: The share of all processors that other programs took.
    """

    rate: float
    first: tuple[float, ...]
    fairness: float
    others: float


def summary(clients: Sequence[Client], seconds: float, others: float) -> Load:
    """What the clients saw, as one."""
    tokens = [client.tokens for client in clients]
    first = [wait for client in clients for wait in client.first]
    fairness = min(tokens) / max(tokens) if any(tokens) else math.nan
    return Load(sum(tokens) / seconds, tuple(first), fairness, others)


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest of the values that so many per cent of them don't exceed."""
    if not values:
        return math.nan
    return sorted(values)[max(0, math.ceil(len(values) * percent / 100) - 1)]


def question(number: int, words: int) -> str:
    """A text that no other number has; a word is about a token."""
    chosen = random.Random(number)
    return f"{number}: " + " ".join(chosen.choice(WORDS) for _ in range(words))


def worked(process: int) -> float:
    """Seconds of processors that a process took, with all of its threads."""
    words = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def serving(command: Sequence[str | Path]) -> Iterator[tuple[int, int]]:
    """A server that is ready; gives its port and its process.

    Raises:
        SystemExit: It ended, or took too long.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = [str(word) for word in (*command, "--port", port)]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            deadline = time.monotonic() + PATIENCE
            while not answers(port):
                if process.poll() is not None or time.monotonic() > deadline:
                    log.seek(0)
                    tail = log.read()[-2000:].decode(errors="replace")
                    raise SystemExit(f"{shlex.join(words)} is not ready:\n{tail}")
                time.sleep(0.1)
            yield port, process.pid
        finally:
            process.kill()
            process.wait()


def answers(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as answer:
            return answer.status == 200
    except OSError:
        return False


async def ask(port: int, body: dict[str, object], client: Client) -> None:
    """A question; the client counts the tokens as they come."""
    text = json.dumps(body).encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        start = time.perf_counter()
        head = (
            f"POST /completion HTTP/1.0\r\nHost: localhost\r\nContent-Length: {len(text)}\r\n\r\n"
        )
        writer.write(head.encode() + text)
        status = await reader.readline()
        if b" 200 " not in status:
            rest = await reader.read()
            raise SystemExit(f"the server refuses: {(status + rest)[-500:].decode()}")
        came = 0
        async for line in reader:
            # a token each, but for the last, which says how it was
            if line.startswith(b"data: ") and b'"stop":true' not in line:
                if not came:
                    client.first.append(time.perf_counter() - start)
                came += 1
                client.tokens += 1
    finally:
        writer.close()


async def clients_of(
    port: int, count: int, seconds: float, words: int, tokens: int, leaving: bool
) -> list[Client]:
    """So many clients for so many seconds; whether every second one leaves again and again."""
    clients = [Client() for _ in range(count)]
    numbers = iter(range(1 << 30))
    moments = random.Random(count)

    async def keep_asking(client: Client, leaves: bool) -> None:
        while True:
            body = {
                "prompt": question(next(numbers), words),
                "n_predict": tokens * (ENDLESS if leaves else 1),
                "ignore_eos": True,
                "cache_prompt": False,
                "temperature": 0,
                "stream": True,
            }
            asked = ask(port, body, client)
            with suppress(asyncio.TimeoutError):
                await (asyncio.wait_for(asked, moments.uniform(*LEAVING)) if leaves else asked)

    asking = [
        asyncio.create_task(keep_asking(client, leaving and number % 2 == 1))
        for number, client in enumerate(clients)
    ]
    done, _ = await asyncio.wait(asking, timeout=seconds, return_when=asyncio.FIRST_EXCEPTION)
    for task in asking:
        task.cancel()
    await asyncio.gather(*asking, return_exceptions=True)
    for task in done:
        task.result()  # raises what went wrong
    return clients


def turn(
    command: Sequence[str | Path], count: int, options: argparse.Namespace, leaving: bool = False
) -> Load:
    """One server, and so many clients."""
    words, tokens = options.prompt, options.tokens
    with serving(command) as (port, process):
        asyncio.run(
            ask(port, {"prompt": question(-1, words), "n_predict": 1, "stream": True}, Client())
        )
        busy, had = processors()
        ours = worked(process) + time.process_time()
        start = time.perf_counter()
        clients = asyncio.run(clients_of(port, count, options.seconds, words, tokens, leaving))
        seconds = time.perf_counter() - start
        ours = worked(process) + time.process_time() - ours
        after, have = processors()
    others = max(0.0, (after - busy - ours) / (have - had))
    return summary(clients[:: 2 if options.leavers else 1], seconds, others)


def cells(ours: Sequence[Load], theirs: Sequence[Load]) -> list[str]:
    """A row of the table: each figure of ours, of theirs, and what the first is of the second."""
    figures = []
    for loads in (ours, theirs):
        first = [wait for load in loads for wait in load.first]
        figures.append(
            (
                statistics.median(load.rate for load in loads),
                percentile(first, 50),
                percentile(first, 99),
                statistics.median(load.fairness for load in loads),
            )
        )
    (rate, half, most, fair), (rate2, half2, most2, fair2) = figures
    return [
        f"{rate:.1f} / {rate2:.1f} = {rate / rate2:.2f}" if rate2 else f"{rate:.1f} / 0",
        f"{half:.2f} / {half2:.2f}",
        f"{most:.2f} / {most2:.2f}",
        f"{fair:.2f} / {fair2:.2f}",
    ]


def counts(text: str) -> list[int]:
    """Numbers of clients, with commas between them."""
    return [positive(word) for word in text.split(",")]


def positive(text: str) -> int:
    """A whole number from 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1")
    return int(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", type=Path, required=True, help="a GGUF")
    parser.add_argument("--clients", type=counts, default=[1, 4, 16, 64], help="1,4,16,64")
    parser.add_argument("--seconds", type=positive, default=30, help="of each turn")
    parser.add_argument("--rounds", type=positive, default=3)
    parser.add_argument("--slots", type=positive, default=16, help="conversations at once")
    parser.add_argument("--prompt", type=positive, default=100, help="words of a question")
    parser.add_argument("--tokens", type=positive, default=64, help="of an answer")
    parser.add_argument("--threads", type=positive, default=os.cpu_count())
    parser.add_argument("--peer", type=shlex.split, help="a server in upstream's place")
    parser.add_argument("--peer-flags", default="", help="more compiler flags for upstream")
    parser.add_argument("--leavers", action="store_true", help="every second client leaves")
    options = parser.parse_args()
    here = this_target()
    if not options.model.is_file():
        raise SystemExit(f"{options.model}: there is no such file")
    if options.leavers:
        compared = "every second client leaves / nobody does; figures of the others"
    else:
        compared = f"ours / {shlex.join(options.peer) if options.peer else 'upstream'}"
        programs = ("llama-server",)
        peer = options.peer or [speed.upstream(options.peer_flags, programs) / programs[0]]

    context = options.slots * (2 * options.prompt + options.tokens + 64)
    common = ["-np", options.slots, "-c", context, "-t", options.threads]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "load.llamafile"
        pyllamafile.build(options.model, path, gui=False, targets=[here.name])
        ours = [path, "--server", "--nobrowser", *common]
        theirs = ours if options.leavers else [*peer, "-m", options.model, *common]
        print(f"{model_name()}, {options.threads} threads; {options.model.name}")
        print(
            f"{options.slots} slots; questions of {options.prompt} words, answers of "
            f"{options.tokens} tokens; {options.rounds} rounds of {options.seconds} seconds"
        )
        print(f"{compared}; fairness: the client with fewest tokens / the one with most\n")
        row = "{:>7} {:>24} {:>20} {:>20} {:>13}"
        titles = ("tokens per second", "first token, s, p50", "p99", "fairness")
        print(row.format("clients", *titles), flush=True)
        busiest = 0.0
        for count in options.clients:
            seen: tuple[list[Load], list[Load]] = ([], [])
            for number in range(options.rounds):
                order = (0, 1) if number % 2 == 0 else (1, 0)  # who is first has no advantage
                for which in order:
                    leaving = options.leavers and which == 0
                    seen[which].append(turn((ours, theirs)[which], count, options, leaving))
            busiest = max([busiest, *(load.others for loads in seen for load in loads)])
            print(row.format(count, *cells(*seen)), flush=True)
    if busiest > TOO_BUSY:
        print(
            f"\nwarning: other programs took up to {busiest:.0%} of the processors; "
            "measure again when they have ended",
            file=sys.stderr,
        )


if __name__ == "__main__":
    main()
