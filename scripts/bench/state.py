#!/usr/bin/env python3
"""What a state saves: the time to the first token of a question about a text, with it and without.

    scripts/bench/state.py --model FILE [--tokens N] [--rounds N] [--folder DIR]

The text is this repository's documentation, cut so that the model has so many tokens of it. A file
is built that has read it. In every round the server is started twice, with and without
--no-state, with an empty cache, and asked one question; what counts is the time from the question
to the first piece of the answer. The answers of both, at temperature 0, are compared.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent.parent))

import in_venv

in_venv.ensure("runtimes,test", "pyllamafile", "numpy")

from machine import model_name, this_target  # noqa: E402
from serving import serving  # noqa: E402

import pyllamafile  # noqa: E402

GOAL = 0.05
QUESTION = "Which file says how the project is tested?"


def documentation(model: Path, tokens: int, file: Path) -> None:
    """Write about so many tokens of text."""
    root = Path(__file__).resolve().parent.parent.parent
    pages = [root / "CONTRIBUTING.md", *sorted((root / "docs").glob("*.md"))]
    text = "\n".join(page.read_text() for page in pages)
    file.write_text(text[: 4 * tokens])
    reading = pyllamafile.advise(model, read=file).reading
    assert reading is not None
    file.write_text(text[: 4 * tokens * tokens // reading.tokens])


def asked(llamafile: Path, *words: str, cache: Path) -> tuple[float, int, str]:
    """Start the server and ask: the seconds to the first token, those evaluated, the answer."""
    with serving(llamafile, *words, PYLLAMAFILE_CACHE=str(cache)) as url:
        body = {"messages": [{"role": "user", "content": QUESTION}], "stream": True}
        body |= {"temperature": 0, "max_tokens": 24, "timings_per_token": True}
        request = urllib.request.Request(
            url + "v1/chat/completions",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        start = time.perf_counter()
        first, evaluated, answer = 0.0, 0, ""
        with urllib.request.urlopen(request) as stream:
            for line in stream:
                chunk = line.removeprefix(b"data: ").strip()
                if not line.startswith(b"data: ") or chunk == b"[DONE]":
                    continue  # what isn't data keeps the connection busy
                facts = json.loads(chunk)
                said = [choice["delta"].get("content") for choice in facts["choices"]]
                piece = "".join(each or "" for each in said)
                if piece and not answer:
                    first = time.perf_counter() - start
                answer += piece
                evaluated = facts.get("timings", {}).get("prompt_n", evaluated)
        return first, evaluated, answer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True, help="a GGUF with a chat template")
    parser.add_argument("--tokens", type=int, default=3000, help="of the text")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where to work; some 200 MB are written")
    options = parser.parse_args()
    here = this_target()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        documentation(options.model, options.tokens, folder / "text.md")
        began = time.perf_counter()
        built = pyllamafile.build(
            options.model, folder / "f.llamafile", read=folder / "text.md", targets=here.name
        )
        if built.state is None:
            raise SystemExit("the file has no state")
        took = time.perf_counter() - began
        print(f"{options.model.name} on {model_name()}, {os.cpu_count()} processors")
        size = built.state.size
        print(f"{built.state.tokens:,} tokens, state of {size / 1e6:.1f} MB, built in {took:.1f} s")
        found: dict[str, list[float]] = {"with": [], "without": []}
        same = 0
        for _ in range(options.rounds):
            answers = []
            for which, words in (("with", ()), ("without", ("--no-state",))):
                cache = folder / "cache"
                seconds, evaluated, answer = asked(built.path, *words, cache=cache)
                found[which].append(seconds)
                answers.append(answer)
                print(f"  {which:8} {seconds * 1000:8.0f} ms, {evaluated:5} tokens evaluated")
            same += answers[0] == answers[1]
        ours, theirs = (statistics.median(times) for times in found.values())
        print(
            f"first token {ours * 1000:.0f} / {theirs * 1000:.0f} ms, {ours / theirs:.3f}"
            f" (goal: at most {GOAL}); the same answer in {same} of {options.rounds} rounds"
        )


if __name__ == "__main__":
    main()
