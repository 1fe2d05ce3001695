"""Models in Ollama's store.

The store has a manifest per model, at manifests/HOST/OWNER/NAME/TAG, which lists layers by digest:
a GGUF, what goes with it, and how Ollama runs it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from pyllamafile.arguments import SYSTEM
from pyllamafile.errors import AccessError, DamagedError, NotFoundError, RefusedError
from pyllamafile.models import gguf
from pyllamafile.models.source import Source, digest_of, gguf_name
from pyllamafile.progress import Progress

# Where the store is if OLLAMA_MODELS doesn't say it: the user's own, on every system; that of
# the service which Ollama's installer sets up on Linux; distributions'; a snap's.
PLACES: Final = (
    "~/.ollama/models",
    "/usr/share/ollama/.ollama/models",
    "/var/lib/ollama/.ollama/models",
    "/var/lib/ollama/models",
    "/var/lib/ollama",
    "/var/lib/private/ollama/models",
    "/var/snap/ollama/common/models",
)

_HOST: Final = "registry.ollama.ai"
_OWNER: Final = "library"
_KIND: Final = "application/vnd.ollama.image."  # of a layer; its last word follows
_LONGEST: Final = 1 << 20  # a text in a layer, in bytes

# What Ollama calls a parameter, and what llama.cpp does.
PARAMETERS: Final[Mapping[str, str]] = {
    "num_ctx": "--ctx-size",
    "num_predict": "--predict",
    "num_keep": "--keep",
    "seed": "--seed",
    "temperature": "--temp",
    "top_k": "--top-k",
    "top_p": "--top-p",
    "min_p": "--min-p",
    "typical_p": "--typical",
    "repeat_last_n": "--repeat-last-n",
    "repeat_penalty": "--repeat-penalty",
    "presence_penalty": "--presence-penalty",
    "frequency_penalty": "--frequency-penalty",
    "stop": "--reverse-prompt",
}


@dataclass(frozen=True)
class Name:
    """What a model is called; without regard to capitals it is the same one.

    Attributes:
        host: Of the registry that it is from, with a port where it has one.
        owner: Whose it is there.
        model: Which of the owner's.
        tag: Which version of it.
    """

    host: str
    owner: str
    model: str
    tag: str

    def __str__(self) -> str:
        """As short as `ollama list` shows it."""
        front = [self.host, self.owner] if self.host != _HOST else [self.owner]
        return "/".join([*(front if front != [_OWNER] else []), f"{self.model}:{self.tag}"])

    @property
    def key(self) -> tuple[str, ...]:
        """What is equal for names of the same model."""
        return tuple(map(str.casefold, (self.host, self.owner, self.model, self.tag)))


def find(rest: str) -> Source:
    """A model by its name in `ollama list`, out of the store that `ollama pull` fills."""
    name = parse(rest)
    stores = _stores()
    unreadable: list[str] = []
    there: dict[str, None] = {}
    for store in stores:
        try:
            for found in _manifests(store):
                if found.key == name.key:
                    return _source(rest, store, found)
                there[str(found)] = None
        except OSError as error:
            unreadable.append(f"{store} can't be read ({error.strerror})")
    where = " or ".join(str(store) for store in stores)
    message = f"ollama:{rest} is not in {where}, which has {', '.join(there) or 'nothing'}"
    if unreadable:
        raise AccessError(
            f"{message}; {'; '.join(unreadable)}",
            hint="the store of Ollama's service is its own: join the group ollama, or use sudo",
            path=stores[0],
        )
    raise NotFoundError(
        message,
        hint=f"`ollama pull {rest}` fetches it; OLLAMA_MODELS says where its store is",
        path=stores[0],
    )


def parse(text: str) -> Name:
    """Take a name apart: ``[[HOST[:PORT]/]OWNER/]NAME[:TAG]``.

    >>> str(parse("hf.co/someone/Tiny-GGUF:Q8_0"))
    'hf.co/someone/Tiny-GGUF:Q8_0'

    Raises:
        RefusedError: It is no name.
    """
    *front, last = re.sub("^https?://", "", text).split("/")
    model, _, tag = last.partition(":")
    parts = [*[_HOST, _OWNER][: max(2 - len(front), 0)], *front, model, tag or "latest"]
    forms = (r"[\w.-]+(:\d+)?", *[r"[\w.-]+"] * 3)
    if len(parts) != len(forms) or not all(
        re.fullmatch(form, part) and set(part) != {"."}
        for form, part in zip(forms, parts, strict=True)
    ):
        raise RefusedError(
            f"ollama:{text}: not a name", hint="it goes ollama:[[HOST/]OWNER/]NAME[:TAG]"
        )
    return Name(*parts)


def _stores() -> list[Path]:
    """Where to look: the place that the user says, or else the usual ones that there are."""
    if given := os.environ.get("OLLAMA_MODELS"):
        return [Path(given)]
    places = [Path(place).expanduser() for place in PLACES]
    return [places[0], *(place for place in places[1:] if _exists(place / "manifests"))]


def _exists(path: Path) -> bool:
    """Whether something is there, or can't be seen because its folder is closed."""
    try:
        path.stat()
    except PermissionError:
        return True
    except OSError:
        return False
    return True


def _manifests(store: Path) -> Iterator[Name]:
    """The names of everything in a store."""

    def below(folder: Path, depth: int, names: tuple[str, ...]) -> Iterator[Name]:
        with os.scandir(folder) as entries:
            found = sorted(entries, key=lambda entry: entry.name)
        for entry in found:
            if entry.name.startswith("."):  # macOS' .DS_Store
                continue
            path = (*names, entry.name)
            if depth == 3:
                yield Name(*path)
            elif entry.is_dir():
                yield from below(folder / entry.name, depth + 1, path)

    with contextlib.suppress(FileNotFoundError):
        yield from below(store / "manifests", 0, ())


def _source(rest: str, store: Path, name: Name) -> Source:
    """The model of a manifest, with all that goes with it."""
    manifest = store.joinpath("manifests", name.host, name.owner, name.model, name.tag)
    try:
        layers = _layers(json.loads(manifest.read_bytes()))
        (model,) = layers.get("model", [])
    except OSError as error:
        raise AccessError(f"{manifest}: {error.strerror}", path=manifest) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedError(f"{manifest}: no manifest of one model", path=manifest) from error
    called = name.model if name.tag == "latest" else f"{name.model}-{name.tag}"
    blobs = store / "blobs"
    partners = [
        (role, _blob(rest, blobs, digest, f"{called}-{kind}{number or ''}"))
        for kind, role in {"projector": "mmproj", "adapter": "lora"}.items()
        for number, digest in enumerate(layers.get(kind, ()))
    ]
    args, remarks = _arguments(rest, blobs, layers)
    return replace(
        _blob(rest, blobs, model, called),
        partners=tuple(partners),
        args=args,
        remarks=remarks,
    )


def _layers(manifest: Any) -> dict[str, list[str]]:  # noqa: ANN401  (whatever JSON may hold)
    """The SHA-256 of every layer by what it is, in the manifest's order."""
    found: dict[str, list[str]] = {}
    for layer in manifest["layers"]:
        (sha256,) = re.findall(r"^sha256[:-]([0-9a-f]{64})$", layer["digest"])
        found.setdefault(layer["mediaType"].removeprefix(_KIND), []).append(sha256)
    return found


def _blob(rest: str, blobs: Path, sha256: str, called: str) -> Source:
    """A layer that is a GGUF."""
    blob = blobs / f"sha256-{sha256}"

    def fetch(folder: Path, tell: Progress) -> Path:
        if digest_of(blob, tell) != sha256:
            raise _damaged(rest, blob)
        return blob

    return Source(gguf_name(called), fetch, path=blob, headers=lambda: (gguf.read(blob),))


def _damaged(rest: str, blob: Path) -> DamagedError:
    return DamagedError(
        f"{blob}: damaged: its SHA-256 is another",
        hint=f"`ollama pull {rest}` mends it",
        path=blob,
    )


def _text(rest: str, blobs: Path, sha256: str) -> str:
    """A layer that is a text."""
    blob = blobs / f"sha256-{sha256}"
    try:
        with blob.open("rb") as file:
            content = file.read(_LONGEST + 1)
    except OSError as error:
        raise AccessError(f"{blob}: {error.strerror}", path=blob) from error
    if hashlib.sha256(content).hexdigest() != sha256:
        raise _damaged(rest, blob)
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise DamagedError(f"{blob}: not UTF-8 text", path=blob) from error


def _arguments(
    rest: str, blobs: Path, layers: Mapping[str, Sequence[str]]
) -> tuple[tuple[tuple[str, str], ...], tuple[str, ...]]:
    """The options that stand for the texts of a model, and what no option stands for."""
    args: list[tuple[str, str]] = []
    left_out: list[str] = []
    for digest in layers.get("params", ()):
        blob = blobs / f"sha256-{digest}"
        try:
            given = json.loads(_text(rest, blobs, digest)).items()
        except (ValueError, AttributeError) as error:
            raise DamagedError(f"{blob}: no parameters of a model", path=blob) from error
        for key, value in given:
            values = [one for one in (value if isinstance(value, list) else [value]) if one != ""]
            known = key in PARAMETERS and all(
                isinstance(one, str if key == "stop" else (int, float)) for one in values
            )
            if known:
                args += [(PARAMETERS[key], str(one)) for one in values]
            else:
                left_out.append(f"the parameter {key}")
    for digest in layers.get("system", ())[-1:]:
        if text := _text(rest, blobs, digest).strip():
            args.append((SYSTEM, text))
    if "template" in layers or "prompt" in layers:
        left_out.append("the chat template in Go, in place of which the weights' own counts")
    if "messages" in layers:
        left_out.append("the messages in front of every chat")
    return tuple(args), tuple(left_out)
