"""Where weights come from; the hub is a server of our own that speaks its API."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import hub as hubs
import pytest
from fixtures import split_gguf, tiny_gguf

from pyllamafile import PyllamafileError, advise, build
from pyllamafile.errors import NotFoundError, RefusedError
from pyllamafile.models import sources
from pyllamafile.models.hub import choose

REPO = "makers/tiny-GGUF"
PROGRAM = "import sys, pathlib; from pyllamafile import native; from pyllamafile.cli import main; "
PROGRAM += "native.PREBUILT = pathlib.Path(sys.argv[1]); main(sys.argv[2:])"


@pytest.fixture
def tiny(tmp_path) -> bytes:
    return tiny_gguf(tmp_path / "source.gguf", tokens=1 << 14).read_bytes()


@pytest.fixture(scope="session")
def large(tmp_path_factory) -> bytes:
    path = tmp_path_factory.mktemp("large") / "large.gguf"
    return tiny_gguf(path, tokens=1 << 18).read_bytes()


@pytest.fixture
def hub(tiny):
    with hubs.serving() as hub:
        hub.files[REPO] = {"README.md": b"# tiny", "tiny-Q4_K_M.gguf": tiny}
        yield hub


@pytest.fixture
def here(tmp_path, monkeypatch):
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def run(hub, here, prebuilt, tmp_path):
    """Runs a command as a program of its own, with that hub and an empty cache for it."""

    def run(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        env = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
        env |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf"), **variables}
        command = [sys.executable, "-c", PROGRAM, str(prebuilt), *arguments]
        return subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)

    return run


@pytest.fixture
def fails(run, here, tmp_path):
    """Runs a command that must fail with one line, maybe a hint, and leave nothing anywhere."""

    def fails(error: str, *arguments: str, **variables: str) -> None:
        done = run(*arguments, **variables)
        assert done.returncode == 1
        assert done.stdout == ""
        first, *rest = done.stderr.splitlines()
        assert re.fullmatch(f"error: {error}", first), first
        assert [line[:6] for line in rest] in ([], ["hint: "])
        assert list(here.iterdir()) == []
        assert [path for path in tmp_path.rglob("hf/**/*") if "gguf" in path.name] == []
        assert list(tmp_path.glob("hf/hub/*/blobs/*")) == []

    return fails


def entry(path: Path, name: str) -> bytes:
    with zipfile.ZipFile(path) as archive:
        return archive.read(name)


# The hub


def test_a_model_from_the_hub_is_fetched_once(run, hub, here, tiny):
    for _ in range(2):
        done = run("build", "--gguf", f"hf:{REPO}", "--force")
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""
    assert entry(here / "tiny-Q4_K_M.llamafile", "tiny-Q4_K_M.gguf") == tiny
    assert hub.sent == len(tiny)


def test_a_transfer_that_breaks_off_goes_on(run, hub, here, large):
    hub.files[REPO] = {"large.gguf": large}
    hub.breaks = [25_000_000]
    done = run("build", "--gguf", f"hf:{REPO}:large.gguf", "-o", "f")
    assert done.returncode == 0, done.stderr
    assert entry(here / "f", "large.gguf") == large
    first, second = hub.asked
    assert first == 0
    assert 10_000_000 < second <= 25_000_000  # its client writes in steps of 10 MiB


@pytest.mark.slow
def test_a_transfer_that_breaks_off_again_and_again(fails, hub):
    hub.breaks = [0] * 9
    error = rf"hf:{REPO}:tiny-Q4_K_M.gguf: the transfer from .* failed \(.*\)"
    fails(error, "build", "--gguf", f"hf:{REPO}")


@pytest.mark.slow
def test_a_wrong_digest(fails, run, hub):
    hub.forges = True
    error = rf"hf:{REPO}:tiny-Q4_K_M\.gguf: what came is not what the hub lists: .*"
    fails(error, "build", "--gguf", f"hf:{REPO}")
    hub.forges = False
    assert run("build", "--gguf", f"hf:{REPO}").returncode == 0


@pytest.mark.slow
def test_a_token(fails, run, hub, tmp_path):
    hub.token = "hf_secret"
    fails(rf"hf:{REPO}: .*\(401\).*", "build", "--gguf", f"hf:{REPO}")
    fails(rf"hf:{REPO}: .*\(401\).*", "build", "--gguf", f"hf:{REPO}", HF_TOKEN="hf_other")
    kept = tmp_path / "token"
    kept.write_text("hf_secret")
    done = run("build", "--gguf", f"hf:{REPO}", HF_TOKEN_PATH=str(kept))
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_what_is_not_there_or_not_for_everybody(fails, hub):
    fails(r"hf:makers/none: .*\(404\)", "build", "--gguf", "hf:makers/none")
    fails(r"hf:none: not a name on the hub", "build", "--gguf", "hf:none")
    hub.gated = True
    fails(rf"hf:{REPO}:tiny-Q4_K_M\.gguf is gated: .*", "build", "--gguf", f"hf:{REPO}")
    hub.server_close()
    hub.shutdown()
    fails(rf"hf:{REPO}: the transfer from .* failed \(.*\)", "build", "--gguf", f"hf:{REPO}")


def test_nothing_is_fetched_for_an_output_that_is_there(run, hub, here):
    Path("f").write_text("mine")
    done = run("build", "--gguf", f"hf:{REPO}", "-o", "f")
    assert done.stderr.startswith("error: f: exists already")
    assert hub.sent == 0
    assert Path("f").read_text() == "mine"


def test_all_parts_of_a_split_model(run, hub, here, tmp_path):
    parts = split_gguf(tmp_path, "big")
    hub.files[REPO] = {f"Q8_0/{part.name}": part.read_bytes() for part in parts}
    done = run("build", "--gguf", f"hf:{REPO}:q8_0", "-o", "f")
    assert done.returncode == 0, done.stderr
    for part in parts:
        assert entry(here / "f", part.name) == part.read_bytes()


def test_advice_on_the_hubs_models_takes_their_headers_alone(run, hub, large):
    hub.files[REPO] = {"large.gguf": large}
    done = run("advise", f"hf:{REPO}", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["parameters"] == (1 << 18) * 32 + 32
    assert hub.sent < len(large) / 2


@pytest.mark.slow
def test_a_damaged_header_on_the_hub(fails, hub, tiny):
    hub.files[REPO] = {"m.gguf": tiny[:100], "empty.gguf": b""}
    fails(
        rf"hf:{REPO}:m\.gguf: the header claims 10 metadata entries, .*",
        "advise",
        f"hf:{REPO}:m.gguf",
    )
    fails(rf"hf:{REPO}:empty\.gguf is empty", "advise", f"hf:{REPO}:empty.gguf")


def test_the_hub_is_an_extra(here, prebuilt, tiny, tmp_path):
    """Who has a local file needs no package for the hub."""
    absent = tmp_path / "absent" / "huggingface_hub.py"
    absent.parent.mkdir()
    absent.write_text("raise ImportError")
    Path("m.gguf").write_bytes(tiny)
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(absent.parent), *sys.path])}

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", PROGRAM, str(prebuilt), *words]
        return subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)

    for command in ("build", "--gguf"), ("advise",):
        done = run(*command, f"hf:{REPO}")
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr == (
            f"error: hf:{REPO}: the Python package huggingface-hub is missing\n"
            "hint: pip install 'pyllamafile[hub]'\n"
        )
    assert run("build", "--gguf", "m.gguf").returncode == 0


# Parts of a split model


def test_headers_of_all_parts(tmp_path):
    parts = split_gguf(tmp_path, "big")
    found = sources.headers(sources.find(parts[1]))
    assert [facts.split for facts in found] == [(n, len(parts)) for n in range(len(parts))]


def test_a_part_that_is_missing_or_renamed(tmp_path):
    parts = split_gguf(tmp_path, "big")
    renamed = parts[0].rename(tmp_path / "renamed.gguf")
    with pytest.raises(
        NotFoundError, match=re.escape(f"{parts[0]} is missing: the model is split")
    ):
        sources.headers(sources.find(parts[1]))
    error = f"{renamed}: part 1 of {len(parts)} of a split model, under a name that doesn't say so"
    with pytest.raises(RefusedError, match=re.escape(error)) as raised:
        advise(renamed)
    assert raised.value.path == renamed


def test_a_renamed_part_on_the_hub(fails, hub, tmp_path):
    first, *_ = split_gguf(tmp_path, "big")
    hub.files[REPO] = {"big.gguf": first.read_bytes()}
    fails(r"big\.gguf: part 1 of \d of a split model, .*", "advise", f"hf:{REPO}")


SIZES = {
    "README.md": 10,
    "imatrix.gguf": 1,
    "m-Q4_K.gguf": 3_000_000_000,
    "m-Q4_K_M.gguf": 4_000_000_000,
    "m-fp16-00001-of-00002.gguf": 5_000_000_000,
    "m-fp16-00002-of-00002.gguf": 6_000_000_000,
    "m-bf16.gguf": 11_000_000_000,
    "mmproj-m-f32.gguf": 1_000_000_000,
}


@pytest.mark.parametrize(
    ("wanted", "chosen"),
    [
        ("Q4_K", ["m-Q4_K.gguf"]),
        ("q4_k_m", ["m-Q4_K_M.gguf"]),
        ("F16", ["m-fp16-00001-of-00002.gguf", "m-fp16-00002-of-00002.gguf"]),
        ("fp16", ["m-fp16-00001-of-00002.gguf", "m-fp16-00002-of-00002.gguf"]),
        ("BF16", ["m-bf16.gguf"]),
        ("m-bf16.gguf", ["m-bf16.gguf"]),
        (
            "m-fp16-00002-of-00002.gguf",
            ["m-fp16-00001-of-00002.gguf", "m-fp16-00002-of-00002.gguf"],
        ),
        ("mmproj-m-f32.gguf", ["mmproj-m-f32.gguf"]),
    ],
)
def test_choosing(wanted, chosen):
    assert choose("hf:a/b", SIZES, wanted) == chosen


THERE = (
    r"there are m-Q4_K\.gguf \(3\.00 GB\), m-Q4_K_M\.gguf \(4\.00 GB\), m-bf16\.gguf"
    r" \(11\.00 GB\), m-fp16\.gguf \(11\.00 GB\)"
)


@pytest.mark.parametrize(
    ("wanted", "error"),
    [
        ("", rf"hf:a/b has 4 models; {THERE}"),
        ("Q5_0", rf"hf:a/b has no 'Q5_0'; {THERE}"),
        ("m", rf"'m' fits 4 models in hf:a/b; {THERE}"),
        ("F32", rf"hf:a/b has no 'F32'; {THERE}"),
    ],
)
def test_not_knowing_which(wanted, error):
    with pytest.raises(PyllamafileError) as raised:
        choose("hf:a/b", SIZES, wanted)
    assert re.fullmatch(error, raised.value.message)


def test_a_repository_that_lacks_something():
    with pytest.raises(PyllamafileError, match="has no GGUF"):
        choose("hf:a/b", {"README.md": 1, "mmproj.gguf": 2}, "")
    with pytest.raises(PyllamafileError, match="has 1 of 2 parts"):
        choose("hf:a/b", {"m-00002-of-00002.gguf": 2}, "")


# Ollama's store


@pytest.fixture
def ollama(tmp_path, monkeypatch, tiny):
    """Its store with one model, laid out as `ollama pull` does."""
    store = tmp_path / "ollama"
    monkeypatch.setenv("OLLAMA_MODELS", str(store))
    digest = hashlib.sha256(tiny).hexdigest()
    layers = [
        {"mediaType": "application/vnd.ollama.image.model", "digest": f"sha256:{digest}"},
        {"mediaType": "application/vnd.ollama.image.license", "digest": "sha256:" + "0" * 64},
    ]
    for name in ("library/phi3/latest", "library/phi3/mini", "someone/phi3/latest"):
        manifest = store / "manifests" / "registry.ollama.ai" / name
        manifest.parent.mkdir(parents=True, exist_ok=True)
        manifest.write_text(json.dumps({"schemaVersion": 2, "layers": layers}))
    (store / "blobs").mkdir()
    (store / "blobs" / f"sha256-{digest}").write_bytes(tiny)
    return store


@pytest.mark.parametrize(
    ("given", "name"),
    [("phi3", "phi3"), ("phi3:mini", "phi3-mini"), ("someone/phi3", "phi3")],
)
def test_a_model_of_ollamas(ollama, here, prebuilt, tiny, given, name):
    built = build(f"ollama:{given}")
    assert built.path == Path(f"{name}.llamafile")
    assert entry(built.path, f"{name}.gguf") == tiny


def test_ollamas_store_at_home(ollama, monkeypatch, tmp_path):
    monkeypatch.delenv("OLLAMA_MODELS")
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".ollama").mkdir()
    ollama.rename(tmp_path / ".ollama" / "models")
    assert sources.find("ollama:phi3").name == "phi3.gguf"


@pytest.mark.parametrize(
    ("given", "error"),
    [
        ("phi4", r"is not in .*, which has phi3:latest, phi3:mini, someone/phi3:latest"),
        ("../../phi3", "not a name"),
        ("phi3:..", "not a name"),
        ("", "not a name"),
    ],
)
def test_a_model_that_ollama_does_not_have(ollama, here, given, error):
    with pytest.raises(PyllamafileError, match=error):
        build(f"ollama:{given}")


def test_a_damaged_blob_and_a_damaged_manifest_of_ollamas(ollama, here, prebuilt):
    (blob,) = (ollama / "blobs").iterdir()
    damaged = bytearray(blob.read_bytes())
    damaged[-1] ^= 1
    blob.write_bytes(damaged)
    with pytest.raises(PyllamafileError, match="damaged: its SHA-256 is another"):
        build("ollama:phi3")
    blob.unlink()
    with pytest.raises(PyllamafileError, match="No such file"):
        build("ollama:phi3")
    manifest = ollama / "manifests" / "registry.ollama.ai" / "library" / "phi3" / "mini"
    for text in ("", "[]", "{}", '{"layers": []}', '{"layers": [1]}'):
        manifest.write_text(text)
        with pytest.raises(PyllamafileError, match="no manifest of one model"):
            build("ollama:phi3:mini")
    assert list(here.iterdir()) == []


def test_a_file_whose_name_looks_like_a_source(here, prebuilt, tiny):
    Path("hf:a").write_bytes(tiny)
    assert entry(build("hf:a", "f").path, "hf:a.gguf") == tiny
