"""Models in Ollama's store."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

from pyllamafile.errors import DamagedError, NotFoundError, RefusedError
from pyllamafile.models import gguf
from pyllamafile.models.source import Source, digest_of, gguf_name
from pyllamafile.progress import Progress


def find(rest: str) -> Source:
    """NAME[:TAG] out of the store that `ollama pull` fills.

    A manifest lists blobs by digest; the one of the model's own kind is a GGUF.
    """
    name, _, tag = rest.partition(":")
    tag = tag or "latest"
    parts = [*([] if "/" in name else ["library"]), *name.split("/")]
    if not all(re.fullmatch(r"[\w.-]+", part) and set(part) != {"."} for part in (*parts, tag)):
        raise RefusedError(f"ollama:{rest}: not a name", hint="it goes ollama:NAME[:TAG]")
    store = Path(os.environ.get("OLLAMA_MODELS") or Path.home() / ".ollama" / "models")
    manifests = store / "manifests" / "registry.ollama.ai"
    manifest = manifests.joinpath(*parts, tag)
    try:
        layers = json.loads(manifest.read_bytes())["layers"]
        (digest,) = (x["digest"] for x in layers if x["mediaType"].endswith(".image.model"))
        (sha256,) = re.findall(r"sha256:([0-9a-f]{64})", digest)
    except OSError as error:
        here = ", ".join(_pulled(manifests)) or "nothing"
        raise NotFoundError(
            f"ollama:{rest} is not in {store}, which has {here}",
            hint=f"`ollama pull {rest}` fetches it; OLLAMA_MODELS says where its store is",
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedError(f"{manifest}: no manifest of one model") from error
    blob = store / "blobs" / f"sha256-{sha256}"

    def fetch(folder: Path, tell: Progress) -> Path:
        if digest_of(blob, tell) != sha256:
            raise DamagedError(
                f"{blob}: damaged: its SHA-256 is another", hint=f"`ollama pull {rest}` mends it"
            )
        return blob

    called = parts[-1] if tag == "latest" else f"{parts[-1]}-{tag}"
    return Source(gguf_name(called), fetch, path=blob, headers=lambda: (gguf.read(blob),))


def _pulled(manifests: Path) -> list[str]:
    """What is in the store, by the names that the user knows."""
    found = []
    for path in sorted(manifests.glob("*/*/*")):
        owner, name, tag = path.relative_to(manifests).parts
        found.append(f"{name}:{tag}" if owner == "library" else f"{owner}/{name}:{tag}")
    return found
