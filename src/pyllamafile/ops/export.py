"""A llamafile as an image for containers: `export`.

It is an OCI image layout (the image specification, 1.0), made without any program of containers.
The weights leave the zip, each a layer of its own, so that a registry keeps them once whatever
engine runs them. The engine's program is a layer, and what is left of the zip another one: `.args`,
the web GUI, the notices, and what people have added. All layers are plain tar: weights don't
compress, and what a compressor writes is its version's business.
"""

from __future__ import annotations

import json
import os
import re
import tarfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, Literal

from pyllamafile import arguments, plan, zipalign
from pyllamafile import engine as engines
from pyllamafile.appearing import exists, scratch_folder
from pyllamafile.copying import Count, Hashes, Source, Target, copy_source, crc32, writing
from pyllamafile.errors import AccessError, DamagedError, RefusedError
from pyllamafile.llamafile import ARGS, MANIFEST, SIGNATURE, Llamafile, check_args, read
from pyllamafile.models import gguf
from pyllamafile.ops.verify import verify
from pyllamafile.paths import PathLike, path_of, strings
from pyllamafile.progress import Progress, Step, silent
from pyllamafile.targets import TARGETS, select
from pyllamafile.zipalign import Entry, Member

PROGRAM: Final = "usr/bin/llamafile"
REST: Final = "usr/share/llamafile/model.zip"
MODELS: Final = "models"
PORT: Final = 8080

_USER: Final = "65532:65532"  # nobody that a system has: what images without root call nonroot
_TIME: Final = 315532800  # 1980-01-01, as in the zip: a date that depends on nothing
_BLOCK: Final = 4096  # bytes that weights are aligned to, so that file systems can share them
_TAR_END: Final = bytes(1024)
_OCI: Final = "application/vnd.oci.image."
_LAYOUT: Final = "oci-layout"


@dataclass(frozen=True)
class Layer:
    """A layer of an image.

    Attributes:
        kind: Whether it is ``weights``, an ``engine``, or the ``rest``.
        name: What is in it: the name of the weights' entry, the engine's target, or ``.args``.
        digest: ``sha256:`` and the digest of its bytes.
        size: Their number.
    """

    kind: Literal["weights", "engine", "rest"]
    name: str
    digest: str
    size: int


@dataclass(frozen=True)
class Exported:
    """An image that was written.

    Attributes:
        path: The folder that it is in.
        digest: What a registry knows it by: ``sha256:`` and the digest of its manifest, or of the
            index of several.
        size: The bytes of all that is in it.
        targets: The systems that it is for.
        layers: All layers, those of every target.
    """

    path: Path
    digest: str
    size: int
    targets: tuple[str, ...]
    layers: tuple[Layer, ...]


def export(
    path: PathLike,
    oci: PathLike,
    *,
    targets: str | Sequence[str] = (),
    force: bool = False,
    progress: Progress | None = None,
) -> Exported:
    """Write a llamafile of ours as an image for containers: an OCI image layout.

    The same file gives the same bytes. The folder gets its name when it is complete.

    Args:
        path: The llamafile. It stays as it is.
        oci: The folder, which is made.
        targets: Linux targets that the image is for; by default those that the file has.
        force: Whether it may replace another image layout.
        progress: Told how many bytes are written.

    Raises:
        PyllamafileError: The file has no such target, or can't be read, or the folder can't be
            written.
    """
    tell = progress or silent
    path, oci = path_of(path), path_of(oci)
    found = read(path)
    found.check_ours()
    wanted = _targets(found, strings(targets, "targets"))
    _check_sound(path)
    _check_weights(found)
    _check_place(oci, force)
    with scratch_folder(oci.parent) as scratch:
        runtimes = engines.taken(path, scratch, gui=False).chosen(wanted)
        rest = scratch / "rest"
        _write_rest(found, rest)
        total = sum(m.size for m in found.weights) + sum(r.size for r in runtimes)
        image = _Image(scratch / "image", oci, tell, total + rest.stat().st_size)
        weights = [_weights_layer(image, found, member) for member in found.weights]
        last = image.layer("rest", ARGS, [(REST, 0o644, Source(rest, size=rest.stat().st_size))])
        manifests = []
        for runtime in runtimes:
            program = image.layer("engine", runtime.target, [(PROGRAM, 0o755, runtime.program())])
            layers = [*weights, program, last]
            manifests.append(_manifest(image, found, runtime.target, runtime.llama_cpp, layers))
        top = _finish(image, manifests)
        _put(image.path, oci, scratch)
    if found.signature_entry:
        what = f"{oci}: an image is not signed by what signs {path.name}: sign the image itself"
        tell(Step("notice", what))
    return Exported(oci, top["digest"], image.size, tuple(wanted), tuple(image.layers))


# What is asked


def _targets(found: Llamafile, asked: Sequence[str]) -> list[str]:
    """The names of the targets that the image is for."""
    here = [str(runtime["target"]) for runtime in found.runtimes]
    names = [target.name for target in select(asked)] if asked else here
    linux = [name for name in names if name in TARGETS and TARGETS[name].os == "linux"]
    if not linux:
        what = "none that was asked for" if asked else "none that the file runs on"
        raise RefusedError(
            f"{found.path}: containers take a target for Linux, and {what} is one",
            hint=f"pyllamafile upgrade {found.path} --target linux adds them",
            path=found.path,
        )
    return linux


def _check_sound(path: Path) -> None:
    for problem in verify(path, contents=False):  # the contents are checked as they are copied
        raise DamagedError(
            f"{path}: is not sound: {problem.where}: {problem.what}",
            hint="build the file again",
            path=path,
        )


def _check_weights(found: Llamafile) -> None:
    """Refuse weights that can't be files in an image."""
    for member in found.weights:
        if member.method != zipalign.STORED or member.flags & 1:
            raise RefusedError(
                f"{found.path}: {member.name} is compressed or encrypted, and can't be used where "
                "it is",
                hint="extract it, and build a file of it",
                path=found.path,
            )
        parts = member.name.split("/")
        if not {"", ".", ".."}.isdisjoint(parts) or re.search(r"[\x00-\x1f\\]", member.name):
            raise RefusedError(f"{found.path}: {member.name!r} is no name of a file")
        if any(part.startswith(".wh.") for part in parts):
            raise RefusedError(
                f"{found.path}: {member.name} can't be in an image, where .wh. removes files",
                hint="build the file with other names",
                path=found.path,
            )


def _check_place(oci: Path, force: bool) -> None:
    """Refuse a place where something is that must not be lost."""
    try:
        if not os.path.lexists(oci) or (oci.is_dir() and not any(oci.iterdir())):
            return
        if not (oci / _LAYOUT).is_file():
            raise RefusedError(f"{oci}: is there, and no image", hint="name another", path=oci)
    except OSError as error:
        raise AccessError(f"{oci}: {error.strerror}", path=oci) from error
    if not force:
        raise exists(oci)


# The rest of the zip


def _write_rest(found: Llamafile, path: Path) -> None:
    """The zip without its weights, with `.args` for a container."""
    gone = {MANIFEST, SIGNATURE, ARGS, *(member.name for member in found.weights)}
    # What uses GPUs takes a C library and drivers, and such an image has neither.
    gone |= found.of_gpus
    kept = [m for m in found.members.values() if m.name not in gone]
    kept = [m for m in kept if not (m.name.endswith("/") and not m.size)]
    entries = [Entry(ARGS, _args(found)), *(plan.entry(found.path, member) for member in kept)]
    layout = zipalign.layout(entries, 0)
    with writing(path, layout.size), path.open("w+b") as file:
        zipalign.write(file, layout)


def _args(found: Llamafile) -> bytes:
    """`.args` in which weights are files, and the server is for whoever reaches the container."""
    text = found.content(ARGS) if ARGS in found.members else b""
    spellings: dict[str, str] = {}
    for name in (member.name for member in found.weights):
        for spelled in (name, name[name.rfind("/") + 1 :]):
            for form in (spelled, spelled.removesuffix(".gguf")):
                spellings.setdefault(f"@{form}", f"/{MODELS}/{name}")
    ours = ["--host", "0.0.0.0", "--nobrowser"]
    if not arguments.has(text, ("-m", "--model")):
        ours = [*_model(found, text, spellings), *ours]
    line = " ".join(map(arguments.quote, ours)).encode("utf-8", "surrogateescape")
    made = line + b"\n" + arguments.renamed(text, spellings)
    check_args(found.path, len(made))
    return made


def _model(found: Llamafile, text: bytes, spellings: Mapping[str, str]) -> Sequence[str]:
    """The options that choose what the file chooses without one: its model, or all of them."""
    words = [word.text for word in arguments.parse(text)]
    drafts = {
        spellings.get(value)
        for option, value in pairwise(words)
        if arguments.spelled(option) in arguments.DRAFT_OPTIONS
    }
    models = []
    for member in found.weights:
        place = f"/{MODELS}/{member.name}"
        part = gguf.part_of(member.name)
        if (part and part[1] != 1) or place in drafts:
            continue
        if gguf.read(found.path, member.data_offset, member.size).kind == "model":
            models.append(place)
    if len(models) < 2:
        return ["-m", models[0]] if models else []
    if any(spellings.get(word) for word in words):
        raise RefusedError(
            f"{found.path}: an image can have several models, or one with what goes with it",
            hint="remove the others, or name the model in .args: -m @NAME",
            path=found.path,
        )
    return ["--models-dir", f"/{MODELS}"]


# The image


@dataclass
class _Image:
    """An image on its way.

    Attributes:
        path: The folder that it is made in.
        name: The folder that it is for.
        tell: Told how many bytes are written.
        total: How many that will be.
        layers: Those that are written.
        size: How many bytes are written.
    """

    path: Path
    name: Path
    tell: Progress
    total: int
    layers: list[Layer] = field(default_factory=list)
    size: int = 0

    def layer(
        self,
        kind: Literal["weights", "engine", "rest"],
        name: str,
        files: Sequence[tuple[str, int, bytes | Source]],
        crc: int | None = None,
    ) -> Layer:
        """A layer of some files: where each goes, its mode and its content.

        Args:
            kind: As `Layer` has it.
            name: As `Layer` has it.
            files: The files.
            crc: The CRC-32 that a content from elsewhere has to have, if that is known.
        """
        pieces: list[bytes | Source] = []
        known: set[str] = set()
        at = 0
        for place, mode, content in files:
            size = len(content) if isinstance(content, bytes) else content.size
            head = _heads(place, mode, size, known, at)
            pieces += [head, content, bytes(-size % tarfile.BLOCKSIZE)]
            at += len(head) + size + -size % tarfile.BLOCKSIZE
        digest, size = self.blob([*pieces, _TAR_END], crc)
        self.layers.append(Layer(kind, name, digest, size))
        return self.layers[-1]

    def blob(self, pieces: Sequence[bytes | Source], crc: int | None = None) -> tuple[str, int]:
        """Some bytes under their digest: that, and their number."""
        folder = self.path / "blobs" / "sha256"
        folder.mkdir(parents=True, exist_ok=True)
        draft = folder / "draft"
        size = sum(len(piece) if isinstance(piece, bytes) else piece.size for piece in pieces)
        with writing(self.name, size), draft.open("w+b", buffering=0) as file:
            with ThreadPoolExecutor(1) as thread:
                hashes = _Hashes(thread, str(self.name), size, stored=size)
                target, at = Target(file.fileno(), draft, 0), 0
                for piece in pieces:
                    if isinstance(piece, bytes):
                        target.put(at, piece)
                        hashes.update(piece)
                        at += len(piece)
                    else:
                        hashes.part = 0
                        copy_source(piece, target, at, hashes, self._counted())
                        if crc not in (None, hashes.part):
                            raise DamagedError(
                                f"{piece.path}: damaged: weights have another CRC-32",
                                hint="`pyllamafile verify` says which",
                                path=piece.path,
                            )
                        at += piece.size
                digest = hashes.digest().sha256
            os.ftruncate(file.fileno(), size)  # there may be a hole at its end
            os.fsync(file.fileno())
        draft.replace(folder / digest)
        self.size += size
        return f"sha256:{digest}", size

    def document(self, kind: str, content: Mapping[str, Any]) -> dict[str, Any]:
        """JSON as a blob: what another document calls it by."""
        digest, size = self.blob([_json(content)])
        return {"mediaType": f"{_OCI}{kind}+json", "digest": digest, "size": size}

    def _counted(self) -> Count:
        before = self.size
        return lambda done: self.tell(
            Step("bytes", f"writing {self.name}", min(before + done, self.total), self.total)
        )


class _Hashes(Hashes):
    """The same, with the CRC-32 of a part."""

    part = 0

    def count(self, data: memoryview | bytes) -> None:
        """As before, and of the part."""
        self.part = crc32(data, self.part)
        super().count(data)


def _heads(place: str, mode: int, size: int, known: set[str], at: int) -> bytes:
    """The headers in front of a file in a tar: those of new folders, and its own.

    Weights are brought to where file systems can share blocks, by a comment in a pax header.
    """
    folders = place.split("/")[:-1]
    heads = b""
    for depth in range(1, len(folders) + 1):
        folder = "/".join(folders[:depth])
        if folder not in known:
            known.add(folder)
            heads += _head(folder, 0o755, 0, tarfile.DIRTYPE)
    if not place.endswith(".gguf"):
        return heads + _head(place, mode, size)
    comment = " "
    while gap := -(at + len(heads) + len(_head(place, mode, size, comment=comment))) % _BLOCK:
        comment += " " * gap
    return heads + _head(place, mode, size, comment=comment)


def _head(
    name: str, mode: int, size: int, kind: bytes = tarfile.REGTYPE, comment: str = ""
) -> bytes:
    info = tarfile.TarInfo(name)
    info.mode, info.size, info.type, info.mtime = mode, size, kind, _TIME
    if comment:
        info.pax_headers = {"comment": comment}
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")


def _weights_layer(image: _Image, found: Llamafile, member: Member) -> Layer:
    source = Source(found.path, offset=member.data_offset, size=member.size)
    files = [(f"{MODELS}/{member.name}", 0o644, source)]
    return image.layer("weights", member.name, files, member.crc)


def _manifest(
    image: _Image, found: Llamafile, target: str, llama_cpp: str, layers: Sequence[Layer]
) -> dict[str, Any]:
    """The manifest of the image for a target."""
    platform = {"os": "linux", "architecture": TARGETS[target].arch}
    labels = {
        "org.opencontainers.image.title": found.name,
        "org.opencontainers.image.description": f"{found.name}, run by llama.cpp {llama_cpp}",
    }
    day = "1980-01-01T00:00:00Z"
    config = {
        **platform,
        "created": day,
        "config": {
            "User": _USER,
            "ExposedPorts": {f"{PORT}/tcp": {}},
            "Env": ["PATH=/usr/bin"],
            "Entrypoint": [f"/{PROGRAM}", "--llamafile", f"/{REST}"],
            "WorkingDir": "/",
            "StopSignal": "SIGTERM",
            "Labels": labels,
        },
        "rootfs": {"type": "layers", "diff_ids": [layer.digest for layer in layers]},
        "history": [{"created": day, "created_by": f"{x.kind}: {x.name}"} for x in layers],
    }
    kind = f"{_OCI}layer.v1.tar"
    content = {
        "schemaVersion": 2,
        "mediaType": f"{_OCI}manifest.v1+json",
        "config": image.document("config.v1", config),
        "layers": [{"mediaType": kind, "digest": x.digest, "size": x.size} for x in layers],
        "annotations": labels,
    }
    return {**image.document("manifest.v1", content), "platform": platform}


def _finish(image: _Image, manifests: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What leads to the image. Several are behind one index, for a tag is of one thing."""
    kind = f"{_OCI}index.v1+json"
    top = manifests[0]
    if len(manifests) > 1:
        content = {"schemaVersion": 2, "mediaType": kind, "manifests": manifests}
        top = image.document("index.v1", content)
    named = {**top, "annotations": {"org.opencontainers.image.ref.name": "latest"}}
    index = _json({"schemaVersion": 2, "mediaType": kind, "manifests": [named]})
    (image.path / "index.json").write_bytes(index)
    (image.path / _LAYOUT).write_bytes(_json({"imageLayoutVersion": "1.0.0"}))
    return top


def _json(content: Mapping[str, Any]) -> bytes:
    return json.dumps(content, sort_keys=True, separators=(",", ":")).encode()


def _put(made: Path, oci: Path, scratch: Path) -> None:
    """Give it its name; what had that goes with the scratch folder."""
    try:
        if os.path.lexists(oci):
            oci.replace(scratch / "before")
        made.replace(oci)
    except OSError as error:
        raise AccessError(f"{oci}: {error.strerror}", path=oci) from error
