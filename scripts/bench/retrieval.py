#!/usr/bin/env python3
"""How often a file finds the passage that answers a question: by words, by vectors, and by both.

The questions are in retrieval.tsv, beside the words of the passage that answers each. The documents
are the manual pages of the Debian packages below, as this machine has them; mandoc and col render
them.

    scripts/bench/retrieval.py --model FILE --embedder FILE [--json]

The model answers nothing: the server needs one. The embedder is what `build --embedder` takes.
"""

from __future__ import annotations

import argparse
import json
import operator
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

sys.path.append(str(Path(__file__).resolve().parent.parent))

import in_venv

in_venv.ensure("runtimes,test", "pyllamafile")

from serving import serving  # noqa: E402

import pyllamafile  # noqa: E402
from pyllamafile import engine, passages  # noqa: E402
from pyllamafile.llamafile import DOCUMENTS, EMBEDDER  # noqa: E402
from pyllamafile.native import trial  # noqa: E402
from pyllamafile.passages import Passage  # noqa: E402
from pyllamafile.progress import silent  # noqa: E402
from pyllamafile.targets import host  # noqa: E402

QUESTIONS = Path(__file__).with_suffix(".tsv")
PACKAGES = """
    apt bsdextrautils bsdutils bzip2 coreutils curl diffutils dpkg file findutils grep gzip
    hostname less login lsof mawk mount openssh-client passwd patch procps psmisc sed tar unzip
    util-linux wget xz-utils zip
"""
DEPTHS = (1, 3, 10)

Search = Callable[[str], Sequence[int]]  # the numbers of passages, the best first


class Question(NamedTuple):
    text: str
    page: str
    words: str


@dataclass(frozen=True)
class Score:
    """How a way to search did.

    Attributes:
        found: Of the questions, how many have the right passage among the first so many.
        seconds: The median of what a question took.
    """

    found: dict[int, float]
    seconds: float


def questions() -> list[Question]:
    lines = QUESTIONS.read_text().splitlines()
    return [Question(*line.split("\t")) for line in lines if line and not line.startswith("#")]


def write_pages(folder: Path) -> None:
    """The manual pages as text, each as its own document."""
    for package in PACKAGES.split():
        listed = subprocess.run(["dpkg", "-L", package], capture_output=True, text=True)
        for name in re.findall(r"^/usr/share/man/man[1578]/.+\.gz$", listed.stdout, re.MULTILINE):
            page = ["mandoc", "-T", "utf8", "-O", "width=100", name]
            drawn = subprocess.run(page, capture_output=True).stdout
            text = subprocess.run(["col", "-bx"], input=drawn, capture_output=True).stdout
            folder.joinpath(Path(name).stem + ".txt").write_bytes(text)


def plain(text: str) -> str:
    return " ".join(text.split())


def answers(asked: Sequence[Question], found: Sequence[Passage]) -> list[set[int]]:
    """Of each question the passages that answer it: two may, since they overlap."""
    by_page: dict[str, list[tuple[int, str]]] = {}
    for number, passage in enumerate(found):
        by_page.setdefault(passage.source, []).append((number, plain(passage.text)))
    return [
        {n for n, text in by_page.get(f"{each.page}.txt", ()) if plain(each.words) in text}
        for each in asked
    ]


def over_http(url: str) -> Search:
    def search(question: str) -> Sequence[int]:
        body = json.dumps({"query": question, "top_k": max(DEPTHS)}).encode()
        request = urllib.request.Request(f"{url}v1/search", body)
        with urllib.request.urlopen(request) as answer:
            return [each["index"] for each in json.load(answer)["data"]]

    return search


def by_vectors(rows: Sequence[Sequence[float]], embed: Callable[[str], Sequence[float]]) -> Search:
    def search(question: str) -> Sequence[int]:
        vector = embed(question)
        scores = [sum(map(operator.mul, vector, row)) for row in rows]
        return sorted(range(len(rows)), key=lambda n: -scores[n])[: max(DEPTHS)]

    return search


def score(search: Search, asked: Sequence[Question], right: Sequence[set[int]]) -> Score:
    ranks, taken = [], []
    for question, numbers in zip(asked, right, strict=True):
        start = time.perf_counter()
        found = search(question.text)
        taken.append(time.perf_counter() - start)
        ranks.append(next((i for i, n in enumerate(found, 1) if n in numbers), sys.maxsize))
    share = {depth: sum(rank <= depth for rank in ranks) / len(ranks) for depth in DEPTHS}
    return Score(share, statistics.median(taken))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--embedder", type=Path, required=True)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    here = host()
    for program in ("dpkg", "mandoc", "col"):
        if shutil.which(program) is None:
            sys.exit(f"{program} is missing: this runs on Debian; apt install mandoc bsdextrautils")
    assert here is not None
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        pages = folder / "pages"
        pages.mkdir()
        write_pages(pages)
        found = passages.in_folder(pages).passages
        asked = questions()
        right = answers(asked, found)
        for question, numbers in zip(asked, right, strict=True):
            if not numbers:
                print(f"left out: {question.page} does not say: {question.words}", file=sys.stderr)
        asked = [each for each, numbers in zip(asked, right, strict=True) if numbers]
        right = [numbers for numbers in right if numbers]
        task = passages.task_of(options.embedder.name)
        program = engine.host_runtime(silent).program()
        texts = [task.passage + each.embedded for each in found]
        start = time.perf_counter()
        rows = list(trial.embedded(program, options.embedder, texts, silent))
        spent = time.perf_counter() - start
        asked_rows = trial.embedded(
            program, options.embedder, [task.query + each.text for each in asked], silent
        )
        vectors = dict(zip((each.text for each in asked), asked_rows, strict=True))
        scores = {"vectors": score(by_vectors(rows, vectors.__getitem__), asked, right)}
        for way, entry, more in (
            ("words", passages.entry(found), []),
            ("both", passages.entry(found, rows, task.query), [(options.embedder, EMBEDDER)]),
        ):
            (folder / "entry").write_bytes(entry)
            built = pyllamafile.build(
                options.model,
                folder / "f.llamafile",
                add=[(folder / "entry", DOCUMENTS), *more],
                targets=here.name,
                gui=False,
                prove=False,
                force=True,
            )
            with serving(built.path) as url:
                scores[way] = score(over_http(url), asked, right)
    if options.json:
        plain_scores = {way: {**each.found, "s": each.seconds} for way, each in scores.items()}
        print(json.dumps({"passages": len(found), "questions": len(asked), **plain_scores}))
        return
    print(f"{len(asked)} questions, {len(found):,} passages, embedded in {spent:.0f} s")
    for way, each in scores.items():
        shares = "  ".join(f"first {depth}: {part:.1%}" for depth, part in each.found.items())
        print(f"{way:<8} {shares}  {each.seconds * 1000:.1f} ms")


if __name__ == "__main__":
    main()
