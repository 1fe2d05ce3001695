"""Models on lavapipe beside the processor: probabilities, the server, embeddings.

lavapipe is a processor that acts as a GPU, hundreds of times as slowly as the real one. So the
models are small, and say little.
"""

from __future__ import annotations

import math
import re
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import loadable
import numpy as np
import pytest
from fixtures import tiny_ear, tiny_lora
from running import OnGpu, post, run, serving

import pyllamafile
from pyllamafile.llamafile import SHADERS
from pyllamafile.models import tiny

pytestmark = pytest.mark.native

# How far a log-probability may be from the processor's, of the twenty likeliest tokens; their
# spread is about ten. The shaders for devices without cooperative matrices round a prompt's
# activations to 16 bits, and multiply and sum in 16 bits, where the processor has 32.
TOLERANCE = 0.2
FORMATS = ("F16", "Q8_0", "Q4_0", "Q4_K_M", "Q5_K_M", "Q2_K")
GPU, PROCESSOR = ("--gpu", "vulkan", "-ngl", "99"), ("--gpu", "off")
PROMPT = list(range(3, 43))  # many tokens at once take other shaders than one


@pytest.fixture
def on_lavapipe(on_lavapipe: OnGpu, broken: dict[str, str]) -> OnGpu:
    """Through a driver that mends it: otherwise it ends with SIGSEGV now and then, where an adapter
    or a projector computes (docs/measurements.md).
    """
    return OnGpu(on_lavapipe.command, {**on_lavapipe.env, **broken, "BROKEN_DRIVER": "is mended"})


@contextmanager
def server(
    on: OnGpu, model: Path, *words: str | Path, stderr: IO[str] | None = None
) -> Iterator[str]:
    options = ("-m", model, "--server", "--nobrowser", "--no-warmup", "-c", "256", *words)
    with serving(*on.command, *options, env=on.env, stderr=stderr) as url:
        yield url


def written(url: str, prompt: str | list[int], count: int, **more: Any) -> list[dict[str, Any]]:
    """The tokens that are written, each with the twenty likeliest of its place."""
    answer = post(
        url, "completion", prompt=prompt, n_predict=count, temperature=0, n_probs=20,
        ignore_eos=True, cache_prompt=False, **more,
    )  # fmt: skip
    return answer["completion_probabilities"]


def difference(ours: list[dict[str, Any]], theirs: list[dict[str, Any]], tolerance: float) -> float:
    """The largest of a log-probability, as far as both have written the same.

    Where they go on otherwise, the two tokens must have been so near to each other that the
    tolerance explains it.
    """
    most = 0.0
    assert len(ours) == len(theirs) > 0
    for here, there in zip(ours, theirs, strict=True):
        known = {choice["id"]: choice["logprob"] for choice in there["top_logprobs"]}
        found = {choice["id"]: choice["logprob"] for choice in here["top_logprobs"]}
        both = found.keys() & known.keys()
        assert len(both) >= 15
        most = max(most, *(abs(found[token] - known[token]) for token in both))
        if here["id"] != there["id"]:
            assert known[there["id"]] - known[here["id"]] < 2 * tolerance
            break
    return most


def test_probabilities_are_the_processors(on_lavapipe: OnGpu, blob: Path, tmp_path: Path) -> None:
    """A file with a model in each format: one trial is for all of them.

    For quants the processor rounds activations to 8 bits, and a GPU doesn't. So there the processor
    has the same weights as F32, which it multiplies as they are.
    """
    program, *_ = on_lavapipe.command
    plain = loadable.sure().write(tmp_path / "sure.gguf")
    file = tmp_path / "several"
    with zipfile.ZipFile(file, "w") as archive:
        archive.write(blob, SHADERS)
        for name in FORMATS:
            quants, exact = (tmp_path / f"{each}.gguf" for each in (name, f"exact-{name}"))
            for words in ((plain, quants, name), ("--allow-requantize", quants, exact, "F32")):
                done = run(program, "--quantize", *words)
                assert done.returncode == 0, done.stderr
            archive.write(quants, quants.name)
            archive.write(exact, exact.name)
    words = (program, "--llamafile", file, "--server", "--nobrowser", "--no-warmup", "-c", "256")
    answers = []
    for where, prefix in ((PROCESSOR, "exact-"), (GPU, "")):
        with serving(*words, "-np", "1", *where, env=on_lavapipe.env) as url:
            answers.append([written(url, PROMPT, 4, model=prefix + name) for name in FORMATS])
    far = []
    for name, expected, found in zip(FORMATS, *answers, strict=True):
        # Nothing is compared with itself, and nothing that is certain.
        assert found != expected, name
        assert max(math.exp(row["logprob"]) for row in expected) < 0.999
        far.append((difference(found, expected, TOLERANCE), name))
    assert max(far)[0] < TOLERANCE, far


def test_seam_layers_leave_room_for_the_projector(on_lavapipe: OnGpu, tmp_path: Path) -> None:
    """Upstream leaves 1024 MiB of a GPU's memory beside what goes there."""
    model = loadable.llama().write(tmp_path / "llama.gguf")
    ear = tiny_ear(tmp_path / "ear.gguf", width=loadable.WIDTH, positions=65536)  # 8 MiB
    log = tmp_path / "log"
    words = ("--mmproj", ear, "-v", "--gpu", "vulkan")
    with log.open("w") as stderr, server(on_lavapipe, model, *words, stderr=stderr):
        pass
    left = re.search(r"will leave \d+ >= (\d+) MiB of free device memory", log.read_text())
    assert left is not None
    assert 1032 <= int(left[1]) < 1100


def test_two_conversations_at_once(on_lavapipe: OnGpu, weights: Path) -> None:
    """The model of --prove, whose answer is known; the other one is another text."""
    prompts = (tiny.PROMPT, "Once upon a time there was a model")
    answers = []
    for where in (PROCESSOR, GPU):
        with server(on_lavapipe, weights, *where, "-np", "2") as url, ThreadPoolExecutor(2) as pool:
            said = pool.map(
                lambda prompt: post(url, "completion", prompt=prompt, n_predict=8, temperature=0),
                prompts,
            )
            answers.append([answer["content"] for answer in said])
    assert answers[0] == answers[1]
    assert tiny.ANSWER.startswith(answers[0][0])
    assert len(answers[0][0]) == 8


def test_embeddings_point_where_the_processors_do(on_lavapipe: OnGpu, tmp_path: Path) -> None:
    model = loadable.bert().write(tmp_path / "bert.gguf")
    texts = ["the cat", "a dog at the door", "abc" * 10]
    vectors = []
    for where in (PROCESSOR, GPU):
        with server(on_lavapipe, model, *where, "--embeddings", "-c", "64") as url:
            rows = post(url, "v1/embeddings", input=texts)["data"]
            vectors.append(np.array([row["embedding"] for row in rows]))
    ours, theirs = (each / np.linalg.norm(each, axis=1, keepdims=True) for each in vectors)
    assert (ours * theirs).sum(axis=1).min() > 0.9999
    assert (ours @ ours.T).min() < 0.999  # they are not all the same


def test_an_adapter_changes_what_it_changes_on_the_processor(
    on_lavapipe: OnGpu, weights: Path, tmp_path: Path
) -> None:
    lora = tiny_lora(tmp_path / "lora.gguf", weights, tensor="blk.0.attn_q.weight")
    answers = []
    for where in (PROCESSOR, GPU):
        with server(on_lavapipe, weights, *where, "--lora", lora, "-np", "1") as url:
            scales = ([{"id": 0, "scale": scale}] for scale in (1, 0))
            answers.append([written(url, PROMPT, 1, lora=each) for each in scales])
    (adapted, plain), (on_gpu, without) = answers
    assert difference(on_gpu, adapted, TOLERANCE) < TOLERANCE
    assert difference(without, plain, TOLERANCE) < TOLERANCE
    with pytest.raises(AssertionError):
        assert difference(on_gpu, without, TOLERANCE) < 2 * TOLERANCE


def test_a_draft_is_computed_there_as_well(on_lavapipe: OnGpu, weights: Path) -> None:
    draft = ("-md", weights, "-ngld", "99", "--spec-draft-n-max", "4", "-np", "1")
    with server(on_lavapipe, weights, *GPU, *draft) as url:
        answer = post(url, "completion", prompt=tiny.PROMPT, n_predict=8, temperature=0)
    assert tiny.ANSWER.startswith(answer["content"])
    assert answer["timings"]["draft_n_accepted"] > 0


def test_questions_are_embedded_by_the_processor(
    on_lavapipe: OnGpu, runtime: Path, tmp_path: Path
) -> None:
    """As the passages were, when the file was built."""
    (tmp_path / "tiny.gguf").write_bytes(tiny.model())
    model = loadable.bert().write(tmp_path / "bert.gguf")
    notes = tmp_path / "notes"
    notes.mkdir()
    (notes / "one.md").write_text("# One\n\nthe cat\n\n# Two\n\na dog at the door\n")
    file = pyllamafile.build(
        tmp_path / "tiny.gguf", tmp_path / "f", documents=notes, embedder=model,
        targets=["linux-amd64"], gui=False, prove=False,
    ).path  # fmt: skip
    if not pyllamafile.inspect(file).gpus:
        pytest.skip("no program for GPUs is at hand: pyllamafile runtimes build --gpu")
    program, *_ = on_lavapipe.command
    words = (program, "--llamafile", file, "--server", "--nobrowser", "--no-warmup", "-c", "256")
    found = []
    for where in (PROCESSOR, GPU):
        with serving(*words, *where, env=on_lavapipe.env) as url:
            rows = post(url, "v1/search", query="a cat at the door")["data"]
            found.append([(row["index"], row["score"]) for row in rows])
    assert found[0] == found[1] != []
