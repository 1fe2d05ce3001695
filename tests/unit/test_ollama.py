"""Ollama's store, laid out as `ollama pull` and `ollama create` do it."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import zipfile
from pathlib import Path

import pytest
from fixtures import tiny_gguf, tiny_lora, tiny_projector

import pyllamafile
from pyllamafile import PyllamafileError
from pyllamafile.errors import AccessError, DamagedError, NotFoundError
from pyllamafile.models import ollama, sources

KIND = "application/vnd.ollama.image."


class Store:
    """A store, and what puts models into it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "blobs").mkdir(parents=True)

    def blob(self, content: bytes) -> str:
        digest = hashlib.sha256(content).hexdigest()
        (self.folder / "blobs" / f"sha256-{digest}").write_bytes(content)
        return f"sha256:{digest}"

    def add(self, place: str, **layers: bytes | list[bytes]) -> Path:
        """A model at HOST/OWNER/NAME/TAG."""
        listed = [
            {"mediaType": KIND + kind, "digest": self.blob(content), "size": len(content)}
            for kind, contents in layers.items()
            for content in (contents if isinstance(contents, list) else [contents])
        ]
        manifest = self.folder / "manifests" / place
        manifest.parent.mkdir(parents=True, exist_ok=True)
        manifest.write_text(json.dumps({"schemaVersion": 2, "layers": listed}))
        return manifest


@pytest.fixture
def store(tmp_path, monkeypatch) -> Store:
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path / "store"))
    return Store(tmp_path / "store")


@pytest.fixture
def tiny(tmp_path) -> bytes:
    return tiny_gguf(tmp_path / "tiny.gguf", template=None).read_bytes()


@pytest.fixture
def here(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


# Names


LISTED = {
    "registry.ollama.ai/library/phi3/latest": "phi3:latest",
    "registry.ollama.ai/library/phi3/3.8b-Mini_q4": "phi3:3.8b-Mini_q4",
    "registry.ollama.ai/Someone/Phi3/latest": "Someone/Phi3:latest",
    "hf.co/bartowski/Tiny-GGUF/Q8_0": "hf.co/bartowski/Tiny-GGUF:Q8_0",
    "localhost:5000/team/tiny/v1": "localhost:5000/team/tiny:v1",
    "registry.example.com/library/tiny/latest": "registry.example.com/library/tiny:latest",
}


@pytest.mark.parametrize("place", LISTED)
def test_what_ollama_lists_is_found(place, store, tiny):
    for each in LISTED:
        store.add(each, model=tiny)
    name = LISTED[place]
    found = sources.find(f"ollama:{name}")
    assert found.path.read_bytes() == tiny
    assert sources.find(f"ollama:{name.upper()}").path == found.path  # as Ollama has it
    assert sources.find(f"ollama:{place.rpartition('/')[0]}:{place.rpartition('/')[2]}")
    assert sources.find(f"ollama:{name.removesuffix(':latest')}").path == found.path


def test_what_its_file_is_called(store, tiny):
    store.add("hf.co/someone/Tiny-GGUF/Q8_0", model=tiny)
    assert sources.find("ollama:https://HF.co/someone/tiny-gguf:q8_0").name == "Tiny-GGUF-Q8_0.gguf"


@pytest.mark.parametrize(
    "name",
    ["", ":", "a/", "/a", "a//b", "a/b/c/d", "..", "../a", "a/../b", "a:..", "a:b:c", "a b",
     "h:x/a/b", "a:1/b", "a\0b"],
)  # fmt: skip
def test_no_names(name, store):
    with pytest.raises(PyllamafileError, match="not a name"):
        sources.find(f"ollama:{name}")


def test_what_is_not_there(store, tiny):
    for place in LISTED:
        store.add(place, model=tiny)
    (store.folder / "manifests" / ".DS_Store").write_bytes(b"x")
    with pytest.raises(NotFoundError) as raised:
        sources.find("ollama:phi4")
    for name in LISTED.values():
        assert name in raised.value.message
    assert raised.value.message.startswith(f"ollama:phi4 is not in {store.folder}, which has ")
    assert raised.value.hint == (
        "`ollama pull phi4` fetches it; OLLAMA_MODELS says where its store is"
    )


# Places


@pytest.fixture
def places(tmp_path, monkeypatch) -> list[Path]:
    monkeypatch.delenv("OLLAMA_MODELS", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    service = tmp_path / "service"
    monkeypatch.setattr(ollama, "PLACES", ("~/.ollama/models", str(service)))
    return [tmp_path / "home" / ".ollama" / "models", service]


def test_the_usual_places(places, tiny):
    assert ollama.PLACES[0] == "~/.ollama/models"
    Store(places[1]).add("registry.ollama.ai/library/a/latest", model=tiny)
    assert sources.find("ollama:a").path.is_relative_to(places[1])
    Store(places[0]).add("registry.ollama.ai/library/a/latest", model=tiny)
    assert sources.find("ollama:a").path.is_relative_to(places[0])
    with pytest.raises(NotFoundError, match=re.escape(f"{places[0]} or {places[1]}, which has a:")):
        sources.find("ollama:b")


def test_the_place_of_the_linux_service_is_among_them():
    assert "/usr/share/ollama/.ollama/models" in ollama.PLACES


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_place_that_may_not_be_read_for_somebody(places, tiny):
    Store(places[1]).add("registry.ollama.ai/library/a/latest", model=tiny)
    places[1].chmod(0)
    try:
        with pytest.raises(AccessError, match=r"can't be read \(Permission denied\)"):
            sources.find("ollama:a")
    finally:
        places[1].chmod(0o700)


def test_a_place_that_may_not_be_read(places, tiny, monkeypatch):
    """The same for root, to whom the system refuses nothing."""
    Store(places[1]).add("registry.ollama.ai/library/a/latest", model=tiny)
    scandir = os.scandir

    def refusing(path):
        if Path(path).is_relative_to(places[1]):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    with pytest.raises(AccessError) as raised:
        sources.find("ollama:a")
    assert f"; {places[1]} can't be read (Permission denied)" in raised.value.message


# What goes with a model


def test_projector_and_adapters_come_along(store, here, prebuilt, tiny, tmp_path):
    base = tmp_path / "tiny.gguf"
    eye = tiny_projector(tmp_path / "eye.gguf", width=32).read_bytes()
    adapters = [
        tiny_lora(tmp_path / f"{size}.gguf", base, size=size).read_bytes() for size in (1, 2)
    ]
    store.add("registry.ollama.ai/library/m/latest", model=tiny, projector=eye, adapter=adapters)
    built = pyllamafile.build("ollama:m")
    assert built.partners == (
        ("--mmproj", "m-projector.gguf"),
        ("--lora", "m-adapter.gguf"),
        ("--lora", "m-adapter1.gguf"),
    )
    with zipfile.ZipFile(built.path) as archive:
        assert archive.read("m-projector.gguf") == eye
        assert [archive.read(f"m-adapter{n}.gguf") for n in ("", 1)] == adapters
        words = shlex.split(archive.read(".args").decode())
    assert words == [
        *("--mmproj", "@m-projector"), *("--lora", "@m-adapter"), *("--lora", "@m-adapter1"),
    ]  # fmt: skip
    # The user's own projector is instead of it.
    other = tiny_projector(tmp_path / "other.gguf", width=32, scale=0.2)
    built = pyllamafile.build("ollama:m", mmproj=other, force=True)
    assert ("--mmproj", "other.gguf") in built.partners
    assert len(built.partners) == 3


PARAMS = {
    "temperature": 0.25, "top_k": 20, "top_p": 0.9, "min_p": 0.05, "repeat_penalty": 1.1,
    "num_ctx": 64, "num_predict": 9, "seed": 7, "stop": ["<|end|>", "it's \"so\"\n", ""],
    "num_gpu": 1, "penalize_newline": True,
}  # fmt: skip
SYSTEM = "You are 'Mario' from \"Super\" Mario.\nSay $5 \\ no more.\n"


def test_parameters_and_the_system_prompt_become_args(store, here, prebuilt, tiny):
    store.add(
        "registry.ollama.ai/library/m/latest",
        model=tiny,
        params=json.dumps(PARAMS).encode(),
        system=SYSTEM.encode(),
        template=b"{{ .System }} {{ .Prompt }}",
        messages=b"[]",
    )
    built = pyllamafile.build("ollama:m", args=["--temp", "0"])
    args = (
        *("--temp", "0.25"), *("--top-k", "20"), *("--top-p", "0.9"), *("--min-p", "0.05"),
        *("--repeat-penalty", "1.1"), *("--ctx-size", "64"), *("--predict", "9"), *("--seed", "7"),
        *("--reverse-prompt", "<|end|>"), *("--reverse-prompt", 'it\'s "so"\n'),
        *("-sys", SYSTEM.strip()),
    )  # fmt: skip
    assert built.own_args == args
    left_out = [remark.removeprefix("m.gguf: ") for remark in built.remarks]
    assert left_out == [
        "the parameter num_gpu",
        "the parameter penalize_newline",
        "the chat template in Go, in place of which the weights' own counts",
        "the messages in front of every chat",
    ]
    text = pyllamafile.inspect(built.path).args
    # The user's are behind them, and so they count.
    assert text.endswith("\n--temp\n0\n")
    assert text.startswith("--temp 0.25\n--top-k 20\n")


def test_what_holds_for_one_of_several_models_is_left_out(store, here, prebuilt, tiny, tmp_path):
    other = tiny_gguf(tmp_path / "other.gguf")
    store.add(
        "registry.ollama.ai/library/m/latest", model=tiny, params=b'{"temperature": 1}',
        system=b"Be brief.",
    )  # fmt: skip
    built = pyllamafile.build(["ollama:m", other])
    assert built.own_args == ()
    assert built.remarks == (
        "m.gguf: its --temp, which would hold for all models",
        "m.gguf: its -sys, which would hold for all models",
    )
    assert pyllamafile.inspect(built.path).args is None


def test_layers_that_are_damaged(store, here, prebuilt, tiny):
    for params in (b"[1]", b"{", b"3", b"\xff"):
        store.add("registry.ollama.ai/library/m/latest", model=tiny, params=params)
        with pytest.raises(DamagedError, match=r"sha256-[0-9a-f]{64}: no(t UTF-8| parameters)"):
            sources.find("ollama:m")
    store.add("registry.ollama.ai/library/m/latest", model=tiny, system=b"Be brief.")
    blob = store.folder / "blobs" / f"sha256-{hashlib.sha256(b'Be brief.').hexdigest()}"
    blob.write_bytes(b"Be rude.")
    with pytest.raises(DamagedError, match="its SHA-256 is another"):
        sources.find("ollama:m")
    blob.unlink()
    with pytest.raises(AccessError, match="No such file"):
        sources.find("ollama:m")
    assert list(here.iterdir()) == []


def test_a_model_in_pieces_is_none_of_ours(store, tiny):
    """What Ollama makes of safetensors without converting it."""
    store.add("registry.ollama.ai/library/m/latest", tensor=[b"1", b"2"])
    with pytest.raises(DamagedError, match="no manifest of one model"):
        sources.find("ollama:m")
