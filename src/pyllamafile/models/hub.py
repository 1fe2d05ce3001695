"""Models on Hugging Face's hub, or in its cache."""

from __future__ import annotations

import contextlib
import importlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pyllamafile.errors import DamagedError, NotFoundError, RefusedError, UnavailableError
from pyllamafile.models import convert, gguf
from pyllamafile.models.gguf import Weights
from pyllamafile.models.source import Source, digest_of, gguf_name
from pyllamafile.progress import Progress, Step


@dataclass(frozen=True)
class _Listed:
    """A file on the hub: its size in bytes, and its digest with what hashes to it."""

    name: str
    size: int
    digest: str | None
    algorithm: str


def find(rest: str) -> Source:
    """OWNER/REPO[:FILE-or-quant] on Hugging Face's hub, or out of its cache."""
    repo, _, wanted = rest.partition(":")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo):
        raise RefusedError(
            f"hf:{rest}: not a name on the hub", hint="it goes hf:OWNER/REPO[:FILE-or-quant]"
        )
    try:
        importlib.import_module("huggingface_hub")
    except ImportError as error:
        raise UnavailableError(
            f"hf:{rest}: the Python package huggingface-hub is missing",
            hint="pip install 'pyllamafile[hub]'",
        ) from error
    listed, revision = _listing(repo)
    sizes = {name: file.size for name, file in listed.items()}
    if not wanted and "config.json" in sizes and not any(n.endswith(".gguf") for n in sizes):
        return _hub_folder(repo, revision, listed)
    chosen = choose(f"hf:{repo}", sizes, wanted)

    def fetch(folder: Path, tell: Progress) -> Path:
        first, *_ = [_download(repo, revision, listed[name], tell) for name in chosen]
        return first

    def heads() -> tuple[Weights, ...]:
        return tuple(_head(repo, revision, listed[name]) for name in chosen)

    return Source(gguf_name(Path(chosen[0]).name), fetch, headers=heads)


def choose(model: str, sizes: Mapping[str, int], wanted: str) -> list[str]:
    """Choose among the files of a repository: all parts of one model.

    Args:
        model: What to call the repository in a message.
        sizes: The bytes of every file by its name.
        wanted: A file's name, or a quantization's such as ``Q4_K_M``; ``""`` for the only one.

    Raises:
        PyllamafileError: None fits, or several do; the message lists what is there.
    """
    models: dict[str, list[str]] = {}
    for name in sorted(sizes):
        if name.endswith(".gguf"):
            models.setdefault(re.sub(r"-\d{5}-of-\d{5}(?=\.gguf$)", "", name), []).append(name)
    for files in models.values():
        if wanted in files:
            return _whole(model, files)
    main = {name: files for name, files in models.items() if not _beside(name)}
    if not main:
        raise NotFoundError(f"{model} has no GGUF")
    fitting = [files for name, files in main.items() if not wanted or _is_quant(name, wanted)]
    if len(fitting) == 1:
        return _whole(model, fitting[0])
    there = ", ".join(
        f"{name} ({sum(sizes[file] for file in files) / 1e9:.2f} GB)"
        for name, files in main.items()
    )
    first = next(iter(fitting or main.values()))[0]
    what = (
        f"{wanted!r} fits {len(fitting)} models in {model}"
        if wanted and fitting
        else f"{model} has no {wanted!r}"
        if wanted
        else f"{model} has {len(fitting)} models"
    )
    raise NotFoundError(f"{what}; there are {there}", hint=f"choose a file: {model}:{first}")


def _whole(model: str, files: Sequence[str]) -> list[str]:
    """The parts in order, if none is missing."""
    part = gguf.part_of(files[0])
    if part and len(files) != part[2]:
        raise NotFoundError(f"{model} has {len(files)} of {part[2]} parts of {files[0]}")
    return list(files)


def _beside(name: str) -> bool:
    """Whether a GGUF is no model but goes with one."""
    return bool(re.search(r"mmproj|imatrix", Path(name).name, re.IGNORECASE))


def _is_quant(name: str, wanted: str) -> bool:
    """Whether a file's name says that it is of a quantization: Q4_K is not Q4_K_M."""
    called = re.sub(r"^f(?=(16|32)$)", "fp?", re.escape(wanted.lower()))  # Phi-3's has fp16
    return bool(re.search(rf"(?<![a-z0-9]){called}(?![a-z0-9_])", name.lower()))


def _listing(repo: str) -> tuple[dict[str, _Listed], str]:
    """Every file of a repository, and the revision that this is true of."""
    from huggingface_hub import HfApi

    with _hub_errors(f"hf:{repo}"):
        info = HfApi().model_info(repo, files_metadata=True)
    listed = {}
    for file in info.siblings or ():
        large = file.lfs.sha256 if file.lfs else None
        listed[file.rfilename] = _Listed(
            file.rfilename,
            file.size or 0,
            large or file.blob_id,
            "sha256" if large else "sha1",
        )
    return listed, info.sha or "main"


def _hub_folder(repo: str, revision: str, listed: Mapping[str, _Listed]) -> Source:
    """A model that is safetensors there: what the converter reads is fetched, then converted."""
    needed = [
        file
        for file in listed.values()
        if "/" not in file.name
        and file.name.endswith((".json", ".safetensors", ".model", ".txt", ".jinja"))
    ]
    if not any(file.name.endswith(".safetensors") for file in needed):
        raise NotFoundError(f"hf:{repo} has neither a GGUF nor safetensors")
    name = gguf_name(repo.split("/")[1])

    def fetch(folder: Path, tell: Progress) -> Path:
        paths = [_download(repo, revision, file, tell) for file in needed]
        return convert.convert(paths[0].parent, folder / name, tell)

    return Source(name, fetch)


def _download(repo: str, revision: str, file: _Listed, tell: Progress) -> Path:
    """A file of the hub out of its cache, fetched if it isn't there; its digest holds."""
    from huggingface_hub import hf_hub_download

    label = f"hf:{repo}:{file.name}"
    with _hub_errors(label):
        path = Path(
            hf_hub_download(repo, file.name, revision=revision, tqdm_class=_bar(file, tell))
        )
    # The hub's own client looks at the size alone.
    start = f"blob {path.stat().st_size}\0".encode() if file.algorithm == "sha1" else b""
    if file.digest and digest_of(path, tell, start, file.algorithm) != file.digest:
        for wrong in (path.resolve(), path):
            wrong.unlink(missing_ok=True)
        raise DamagedError(
            f"{label}: what came is not what the hub lists: its digest is another",
            hint="it was removed; the same command fetches it again",
            path=path,
        )
    return path


def _bar(file: _Listed, tell: Progress) -> type[Any]:
    """What the hub's client takes for its progress bar; it draws nothing."""
    from tqdm import tqdm  # type: ignore[import-untyped]

    class Bar(tqdm):  # type: ignore[misc]
        def __init__(self, *args: object, initial: int = 0, **options: object) -> None:
            options.pop("name", None)
            options["disable"] = True
            super().__init__(*args, initial=initial, **options)
            self.had = initial

        def update(self, n: float | None = 1) -> None:
            self.had += int(n or 0)
            tell(Step("bytes", f"fetching {Path(file.name).name}", self.had, file.size))

    return Bar


_BLOCK: Final = 1 << 22  # the bytes that are fetched at once: few headers take more


def _head(repo: str, revision: str, file: _Listed) -> Weights:
    """The header of a GGUF on the hub, of whose file no more is fetched than that takes."""
    from huggingface_hub import HfFileSystem, try_to_load_from_cache

    cached = try_to_load_from_cache(repo, file.name, revision=revision)
    if isinstance(cached, str):
        return gguf.read(Path(cached))
    label = f"hf:{repo}:{file.name}"
    with _hub_errors(label):
        path = f"{repo}@{revision}/{file.name}"
        with HfFileSystem().open(path, "rb", block_size=_BLOCK, size=file.size) as there:
            return gguf.parse(there, file.size, label)


@contextlib.contextmanager
def _hub_errors(label: str) -> Iterator[None]:
    """Say in one line what went wrong on the way to the hub."""
    from huggingface_hub import HfApi, errors, logging
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]  # its transport's

    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    token = "`hf auth login` keeps a token, and so does HF_TOKEN"
    try:
        yield
    except errors.GatedRepoError as error:
        raise UnavailableError(
            f"{label} is gated: its owner wants its terms accepted first",
            hint=f"accept them on its page; {token}",
        ) from error
    except errors.HfHubHTTPError as error:
        code = error.response.status_code
        what, hint = _ANSWERS.get(code, (f"the hub answered {code}", None))
        raise UnavailableError(f"{label}: {what}", hint=hint and hint.format(token)) from error
    except (HTTPError, errors.OfflineModeIsEnabled, OSError) as error:
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise UnavailableError(
            f"{label}: the transfer from {HfApi().endpoint} failed ({reason})",
            hint="the same command tries again; files that are complete stay",
        ) from error


_ANSWERS: Final[Mapping[int, tuple[str, str | None]]] = {
    401: ("the hub wants to know who asks (401): no such model, or a private one", "{}"),
    403: ("the hub forbids it with this token (403)", "{}"),
    404: ("the hub has no such thing (404)", "look at the name's spelling"),
}
