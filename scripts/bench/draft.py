#!/usr/bin/env python3
"""What a draft model gains: the same file answers with it and without, by turns.

The answers are compared, too: at temperature 0 they must be the same.

    scripts/bench/draft.py --model FILE --draft FILE [--layers N] [--rounds N] [--tokens N]

A draft is for a model many times its size. Who has no such pair of one family says --layers: the
model then gets as many more as make N, which cost what layers cost and change nothing, since what
they add is multiplied by zero.
"""

from __future__ import annotations

import argparse
import json
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parent.parent))

import in_venv

in_venv.ensure("runtimes,test", "pyllamafile", "gguf", "numpy")

import gguf  # noqa: E402
import numpy as np  # noqa: E402
from machine import this_target  # noqa: E402

import pyllamafile  # noqa: E402

QUESTIONS = (
    "Write down the numbers from one to thirty, in words, separated by commas.",
    "Explain how a bicycle stays upright, in simple words.",
    "Write a Python function that returns the n-th Fibonacci number.",
    "Tell me a story about a dragon who was afraid of mice.",
)


def deepened(source: Path, path: Path, layers: int) -> Path:
    """The same model with further copies of its last layer, which add nothing."""
    reader = gguf.GGUFReader(source)
    arch = str(reader.fields["general.architecture"].contents())
    count = f"{arch}.block_count"
    last = int(reader.fields[count].contents()) - 1
    writer = gguf.GGUFWriter(path, arch)
    for field in reader.fields.values():
        if field.name == count:
            writer.add_block_count(layers)
        elif not field.name.startswith("GGUF.") and field.name != "general.architecture":
            kind, *items = field.types
            writer.add_key_value(field.name, field.contents(), kind, *items[:1])
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
        if match := re.fullmatch(rf"blk\.{last}\.(.+)", tensor.name):
            adds = match[1] in ("attn_output.weight", "ffn_down.weight")
            data = np.zeros_like(tensor.data) if adds else tensor.data
            for layer in range(last + 1, layers):
                writer.add_tensor(f"blk.{layer}.{match[1]}", data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


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
    parser.add_argument("--layers", type=int, help="make the model this deep")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=128)
    options = parser.parse_args()
    here = this_target()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        path = folder / "drafted.llamafile"
        model = options.model
        if options.layers:
            model = deepened(
                model, folder / f"{options.layers}-layers-{model.name}", options.layers
            )
        pyllamafile.build(model, path, draft=options.draft, gui=False, targets=[here.name])
        urls = {
            "with": stack.enter_context(serving(path)),
            "without": stack.enter_context(serving(path, "--spec-type", "none")),
        }
        print(f"{model.name} with {options.draft.name}; tokens per second")
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
