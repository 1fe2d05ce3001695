"""What upstream's server can do that few people find: ranking texts, writing down what is said."""

from __future__ import annotations

from pathlib import Path

import loadable
import pytest
from fixtures import tiny_ear, wav
from running import package, serving

SERVER = ("--nobrowser", "--port", "0", "-n", "5")


@pytest.mark.native
def test_texts_are_ranked(runtime: Path, tmp_path: Path) -> None:
    httpx = package("httpx")
    model = loadable.reranker().write(tmp_path / "ranks.gguf")
    texts = ["a dot", "the cab", "b"]
    with serving(runtime, "-m", model, "--reranking", *SERVER) as url:
        body = {"query": "a cat", "documents": texts, "top_n": 2}
        ranked = httpx.post(f"{url}v1/rerank", json=body).raise_for_status().json()["results"]
        every = httpx.post(f"{url}v1/rerank", json={**body, "top_n": 3}).json()["results"]
    scores = [each["relevance_score"] for each in ranked]
    assert scores == sorted(scores, reverse=True)
    assert len({each["index"] for each in ranked}) == 2
    assert sorted(each["index"] for each in every) == [0, 1, 2]


@pytest.mark.native
def test_a_sound_is_written_down(runtime: Path, tmp_path: Path) -> None:
    """By a projector and a model at random, so in words at random."""
    httpx = package("httpx")
    model = loadable.llama().but({"llama.context_length": 1024}).write(tmp_path / "m.gguf")
    ear = tiny_ear(tmp_path / "ear.gguf", width=loadable.WIDTH)
    with serving(runtime, "-m", model, "--mmproj", ear, *SERVER) as url:
        sound = {"file": ("a.wav", wav(440), "audio/wav")}
        at = f"{url}v1/audio/transcriptions"
        done = httpx.post(at, data={"model": "any"}, files=sound, timeout=60)
        silent = httpx.post(at, data={"model": "any"})
    made = done.raise_for_status().json()
    assert made["text"]
    assert made["usage"]["input_tokens"] > 375  # what the projector makes of up to 30 seconds
    assert silent.status_code == 400
