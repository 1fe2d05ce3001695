"""Where weights come from: a file, a folder to convert, and the table of schemes.

Finding is cheap: it asks what there is and decides. Only `Source.fetch` moves gigabytes, so that
whatever else is wrong can be said before.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from pyllamafile.errors import RefusedError
from pyllamafile.models import convert, gguf, hub, ollama
from pyllamafile.models.gguf import Weights
from pyllamafile.models.source import PathLike, Source, gguf_name

SCHEMES: Final[Mapping[str, Callable[[str], Source]]] = {"hf": hub.find, "ollama": ollama.find}
"""What stands in front of a colon, and what finds what stands behind it."""


def find(given: PathLike) -> Source:
    """Find weights by what a user calls them.

    Args:
        given: A path of a GGUF, or of a folder of safetensors or of a LoRA adapter;
            ``hf:OWNER/REPO``, maybe with ``:FILE`` or ``:QUANT`` behind it; ``ollama:NAME``,
            maybe with ``:TAG``.

    Raises:
        PyllamafileError: There is no such thing, or it is not clear which one is meant.
    """
    text = os.fspath(given)
    scheme, colon, rest = text.partition(":")
    if colon and scheme in SCHEMES and not os.path.lexists(text):
        return SCHEMES[scheme](rest)
    if rest.startswith("//") and not os.path.lexists(text):
        raise RefusedError(
            f"{text}: addresses are not fetched",
            hint="download the file and pass its path, or pass hf:OWNER/REPO",
        )
    path = Path(text)
    try:
        is_folder = path.is_dir()
    except (OSError, ValueError):
        is_folder = False  # out of reach: the reader says why
    return _folder(path) if is_folder else _file(path)


def headers(source: Source) -> tuple[Weights, ...]:
    """The header of every file of a model, read with as little of the rest as can be.

    Raises:
        PyllamafileError: It can't be had, a part of it is missing, or it has to be converted
            first.
    """
    if source.headers is None:
        raise RefusedError(
            f"{source.name.removesuffix('.gguf')} is no GGUF yet",
            hint="`pyllamafile build --gguf` converts it",
        )
    parts = source.headers()
    split = parts[0].split
    if split and len(parts) != split[1]:
        raise RefusedError(
            f"{source.path or source.name}: part {split[0] + 1} of {split[1]} of a split model,"
            " under a name that doesn't say so",
            hint="give it back its name, such as NAME-00001-of-00003.gguf",
            path=source.path,
        )
    return parts


# Files and folders


def _file(path: Path, name: str | None = None) -> Source:
    return Source(
        name or gguf_name(path.name),
        lambda folder, tell: path,
        path=path,
        headers=lambda: tuple(map(gguf.read, gguf.shards(path))),
    )


def _folder(path: Path, name: str | None = None) -> Source:
    kind = convert.kind(path)
    if kind is None:
        lacks = {
            (True, False): ", and has safetensors but no config.json",
            (False, True): ", and has a config.json but no safetensors",
        }.get((any(path.glob("*.safetensors")), (path / "config.json").is_file()), "")
        raise RefusedError(
            f"{path} is a directory{lacks}",
            "pass the .gguf file itself, or a folder with config.json and safetensors",
            path=path,
        )
    name = name or gguf_name(path.resolve().name)
    return Source(name, lambda folder, tell: convert.convert(path, folder / name, tell))
