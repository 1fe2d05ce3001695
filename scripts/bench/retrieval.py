#!/usr/bin/env python3
"""How often a file finds the passage that answers a question: by words, by vectors, and by both.

The questions are in retrieval.tsv, beside the words of the passage that answers each. The documents
are the manual pages of the Debian packages below, as this machine has them; mandoc and col render
them. Several names of one page are one document. Right is a passage of the page with these words,
and one of another page that has the whole paragraph around them, which related programs share.

    scripts/bench/retrieval.py --model FILE --embedder FILE [--vectors FILE] [--json]

The model answers nothing: the server needs one. The embedder is what `build --embedder` takes. The
file of vectors has those of its texts for the next time.

Constants of the search are chosen by every second question, the first one included. The others say
what they are worth.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

sys.path.append(str(Path(__file__).resolve().parent.parent))

import in_venv

in_venv.ensure("runtimes,test", "pyllamafile")

import numpy as np  # noqa: E402
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
HALVES = {"": slice(None), "tuned": slice(0, None, 2), "held out": slice(1, None, 2)}

Row = Sequence[float]
Search = Callable[[str], Sequence[int]]  # the numbers of passages, the best first


class Question(NamedTuple):
    text: str
    page: str
    words: str


@dataclass(frozen=True)
class Score:
    """How a way to search did.

    Attributes:
        found: Of the questions of each half and of both, what share has a right passage among the
            first so many.
        seconds: The median of what a question took.
    """

    found: dict[str, dict[int, float]]
    seconds: float


def questions() -> list[Question]:
    lines = QUESTIONS.read_text().splitlines()
    return [Question(*line.split("\t")) for line in lines if line and not line.startswith("#")]


def write_pages(folder: Path) -> dict[str, str]:
    """The manual pages as text, each as its own document.

    Returns:
        The names of the pages, each with the one that its text was written under.
    """
    written: dict[bytes, str] = {}
    names: dict[str, str] = {}
    for package in PACKAGES.split():
        listed = subprocess.run(["dpkg", "-L", package], capture_output=True, text=True)
        pages = re.findall(r"^/usr/share/man/man[1578]/.+\.gz$", listed.stdout, re.MULTILINE)
        for name in sorted(pages):
            page = ["mandoc", "-T", "utf8", "-O", "width=100", name]
            drawn = subprocess.run(page, capture_output=True).stdout
            text = subprocess.run(["col", "-bx"], input=drawn, capture_output=True).stdout
            own = Path(name).stem
            names[own] = written.setdefault(text, own)
            folder.joinpath(names[own] + ".txt").write_bytes(text)
    return names


def plain(text: str) -> str:
    return " ".join(text.split())


def answers(
    asked: Sequence[Question], found: Sequence[Passage], pages: Path, names: Mapping[str, str]
) -> list[set[int]]:
    """Of each question the passages that answer it."""
    texts = [plain(passage.text) for passage in found]
    out = []
    for each in asked:
        page, words = names.get(each.page, each.page) + ".txt", plain(each.words)
        paragraphs = map(plain, re.split(r"\n\s*\n", (pages / page).read_text()))
        around = [text for text in paragraphs if words in text]
        out.append(
            {
                n
                for n, text in enumerate(texts)
                if (found[n].source == page and words in text) or any(p in text for p in around)
            }
        )
    return out


def over_http(url: str) -> Search:
    def search(question: str) -> Sequence[int]:
        body = json.dumps({"query": question, "top_k": max(DEPTHS)}).encode()
        request = urllib.request.Request(f"{url}v1/search", body)
        with urllib.request.urlopen(request) as answer:
            return [each["index"] for each in json.load(answer)["data"]]

    return search


def by_vectors(
    rows: Sequence[Row], owners: Sequence[int], embed: Callable[[str], Row], found: list[Passage]
) -> Search:
    matrix = np.array(rows, np.float32)

    def search(question: str) -> Sequence[int]:
        best = np.full(len(found), -2, np.float32)
        np.maximum.at(best, owners, matrix @ np.array(embed(question), np.float32))
        order = np.argsort(-best, kind="stable").tolist()
        fresh = {found[n].text: n for n in reversed(order)}  # of those that say the same the best
        return [n for n in order if fresh[found[n].text] == n][: max(DEPTHS)]

    return search


def kept(
    file: Path | None, texts: Sequence[str], make: Callable[[list[str]], Iterable[Row]]
) -> list[Row]:
    """The vectors of texts: out of a file, as far as it has them, and then kept in it."""
    known: dict[str, Row] = json.loads(file.read_text()) if file and file.exists() else {}
    new = [text for text in dict.fromkeys(texts) if text not in known]
    known.update(zip(new, make(new), strict=True) if new else ())
    if file and new:
        file.write_text(json.dumps(known))
    return [known[text] for text in texts]


def score(search: Search, asked: Sequence[Question], right: Sequence[set[int]]) -> Score:
    ranks, taken = [], []
    for question, numbers in zip(asked, right, strict=True):
        start = time.perf_counter()
        found = search(question.text)
        taken.append(time.perf_counter() - start)
        ranks.append(next((i for i, n in enumerate(found, 1) if n in numbers), sys.maxsize))
    share = {
        half: {depth: statistics.mean(rank <= depth for rank in ranks[part]) for depth in DEPTHS}
        for half, part in HALVES.items()
    }
    return Score(share, statistics.median(taken))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--embedder", type=Path, required=True)
    parser.add_argument("--vectors", type=Path)
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
        names = write_pages(pages)
        found = list(passages.in_folder(pages).passages)
        asked = questions()
        right = answers(asked, found, pages, names)
        for question, numbers in zip(asked, right, strict=True):
            if not numbers:
                print(f"left out: {question.page} does not say: {question.words}", file=sys.stderr)
        asked = [each for each, numbers in zip(asked, right, strict=True) if numbers]
        right = [numbers for numbers in right if numbers]
        task = passages.task_of(options.embedder.name)
        program = engine.host_runtime(silent).program()
        parts = [each.embedded for each in found]
        counts = [len(texts) for texts in parts]
        texts = [task.passage + text for part in parts for text in part]

        def embed(texts: list[str]) -> Iterable[Row]:
            return trial.embedded(program, options.embedder, texts, silent)

        rows = kept(options.vectors, texts, embed)
        owners = [number for number, count in enumerate(counts) for _ in range(count)]
        asked_rows = embed([task.query + each.text for each in asked])
        vectors = dict(zip((each.text for each in asked), asked_rows, strict=True))
        search = by_vectors(rows, owners, vectors.__getitem__, found)
        scores = {"vectors": score(search, asked, right)}
        for way, entry, more in (
            ("words", passages.entry(found), []),
            (
                "both",
                passages.entry(found, rows, task.query, counts),
                [(options.embedder, EMBEDDER)],
            ),
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
    print(f"{len(asked)} questions, {len(found):,} passages, {len(rows):,} vectors")
    for way, each in scores.items():
        print(f"{way:<8} {each.seconds * 1000:.1f} ms")
        for half, shares in each.found.items():
            line = "  ".join(f"first {depth}: {part:.1%}" for depth, part in shares.items())
            print(f"  {half or 'all':<8} {line}")


if __name__ == "__main__":
    main()
