#!/usr/bin/env python3
"""What a draft model gains: the same file answers with it and without, by turns.

The answers are compared, too: at temperature 0 they must be the same.

    scripts/bench_draft.py --model FILE --draft FILE [--rounds N] [--tokens N]
"""

from __future__ import annotations

import argparse
import json
import signal
import statistics
import subprocess
import tempfile
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pyllamafile
from pyllamafile.targets import host

QUESTIONS = (
    "Write down the numbers from one to thirty, in words, separated by commas.",
    "Explain how a bicycle stays upright, in simple words.",
    "Write a Python function that returns the n-th Fibonacci number.",
    "Tell me a story about a dragon who was afraid of mice.",
)


@contextmanager
def serving(*command: str | Path) -> Iterator[str]:
    """A server; gives its URL."""
    words = [*map(str, command), "--server", "--nobrowser", "-np", "1"]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True)
    try:
        for line in process.stdout or ():
            if " is ready: " in line:
                yield line.split(" is ready: ")[1].split()[0]
                return
        raise SystemExit(f"the server ended with {process.wait()}")
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate()


def ask(url: str, question: str, tokens: int) -> tuple[str, dict[str, Any]]:
    """An answer, and what the server measured."""
    body = {
        "messages": [{"role": "user", "content": question}],
        "max_tokens": tokens,
        "temperature": 0,
        "ignore_eos": True,
        "cache_prompt": False,
    }
    request = urllib.request.Request(f"{url}v1/chat/completions", json.dumps(body).encode())
    with urllib.request.urlopen(request) as reply:
        answer = json.load(reply)
    return answer["choices"][0]["message"]["content"], answer["timings"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--draft", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=128)
    options = parser.parse_args()
    here = host()
    if here is None:
        raise SystemExit("no target is like this machine")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        path = folder / "drafted.llamafile"
        pyllamafile.build(options.model, path, draft=options.draft, gui=False, targets=[here.name])
        urls = {
            "with": stack.enter_context(serving(path)),
            "without": stack.enter_context(serving(path, "--spec-type", "none")),
        }
        print(f"{options.model.name} with {options.draft.name}; tokens per second")
        row = "{:>8} {:>8} {:>6} {:>10} {:>6}  {}"
        print(row.format("with", "without", "ratio", "accepted", "same", "question"))
        for question in QUESTIONS:
            speeds: dict[str, list[float]] = {name: [] for name in urls}
            answers: dict[str, str] = {}
            accepted = 0.0
            for _ in range(options.rounds):
                for name, url in urls.items():
                    answers[name], timings = ask(url, question, options.tokens)
                    speeds[name].append(timings["predicted_per_second"])
                    if timings.get("draft_n"):
                        accepted = timings["draft_n_accepted"] / timings["draft_n"]
            ours, plain = (statistics.median(speeds[name]) for name in urls)
            same = "yes" if answers["with"] == answers["without"] else "NO"
            figures = (f"{ours:.0f}", f"{plain:.0f}", f"{ours / plain:.2f}", f"{accepted:.0%}")
            print(row.format(*figures, same, question), flush=True)


if __name__ == "__main__":
    main()
