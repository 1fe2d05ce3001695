"""Sources of others, out of sdists: llama.cpp's, and that of the compiler of shaders."""

from __future__ import annotations

import hashlib
import re
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path

from pyllamafile.errors import DamagedError, UnavailableError
from pyllamafile.native.building import tools
from pyllamafile.progress import Progress, Step, silent

SDIST = "llama-cpp-python"
# scripts/update-llama rewrites these three.
SDIST_VERSION = "0.3.36"
SDIST_SHA256 = "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e"
# The commit of llama.cpp that this sdist vendors, from its CHANGELOG.md.
LLAMA_COMMIT = "0c1e57098"


@dataclass(frozen=True)
class Sdist:
    """An sdist that vendors somebody's source.

    Attributes:
        name: What the package index calls it.
        version: Which one.
        sha256: Its digest; another file is refused before a byte of it is unpacked.
        inside: The folder of the source in it.
        what: Whose source it is, for messages.
        dated: Whether its version is the day on which somebody builds it: pip, which builds a
            little of every sdist that it fetches by name, then takes it for another one.
    """

    name: str
    version: str
    sha256: str
    inside: str
    what: str
    dated: bool = False


# The newest that knows all seven features that ggml-vulkan tries its compiler for.
GLSLANG = Sdist(
    "ncnn",
    "1.0.20261020",
    "ad8cdd63e9755cfa8e23b9b6d9ce46156077d80298a89e7c3ba325ffccfca200",
    "glslang",
    "glslang",
    dated=True,
)
# Its decoder unpacks the programs for GPUs, and their shaders.
ZSTD = Sdist(
    "zstandard",
    "0.25.0",
    "7713e1179d162cf5c7906da876ec2ccb9c3a9dcbdffef0cc7f70c3667a205f0b",
    "zstd",
    "zstd",
)


def llama() -> Sdist:
    """The sdist that vendors llama.cpp."""
    return Sdist(SDIST, SDIST_VERSION, SDIST_SHA256, "vendor/llama.cpp", "llama.cpp")


def llama_source(*, progress: Progress | None = None) -> Path:
    """The folder with llama.cpp's source, as `vendored` gets it."""
    return vendored(llama(), progress=progress)


def vendored(sdist: Sdist, *, progress: Progress | None = None) -> Path:
    """The folder with the source in an sdist, fetched with pip when it isn't in the cache yet.

    pip is asked for the sdist by name, so the user's own index settings hold; its SHA-256 is
    checked before a byte of it is unpacked.

    Raises:
        PyllamafileError: It can't be fetched, or is another one.
    """
    tell = progress or silent
    folder = tools.cache() / "source" / f"{sdist.name}-{sdist.version}-{sdist.sha256[:12]}"
    if folder.is_dir():
        return folder  # without waiting for whoever looks at the same time
    with tools.lock("source", f"fetches {sdist.what}", tell):
        if not folder.is_dir():
            tell(Step("waiting", f"fetching {sdist.what}"))
            parent = tools.folder("source")
            with tempfile.TemporaryDirectory(prefix="source-", dir=parent) as scratch:
                file = fetch(Path(scratch), sdist.version, sdist)
                if (digest := digest_of(file)) != sdist.sha256:
                    raise DamagedError(
                        f"{file.name} is not the file that this version was made for "
                        f"(SHA-256 {digest})",
                        hint="ask your package index why it differs",
                    )
                unpack(file, Path(scratch) / "unpacked", sdist).rename(folder)
    return folder


def fetch(folder: Path, version: str | None = None, sdist: Sdist | None = None) -> Path:
    """Let pip bring an sdist.

    Args:
        folder: Where to.
        version: Which one; None for the newest on the index.
        sdist: The one that is wanted, or another version of it; llama.cpp's by default.

    Raises:
        PyllamafileError: There is no pip, or no such sdist.
    """
    sdist = sdist or llama()
    wanted = f"{sdist.name}=={version}" if version else sdist.name
    what = f"fetching the source of {sdist.what}"
    asked = _address(sdist, what) if sdist.dated else wanted
    command = [*tools.pip(), "download", "--no-deps", "--no-binary", sdist.name]
    command += ["--dest", str(folder), asked]
    tools.run(command, log="source", what=what, append=sdist.dated)
    for file in folder.glob("*.tar.gz"):
        return file
    raise UnavailableError(f"pip brought no sdist of {wanted}")


def _address(sdist: Sdist, what: str) -> str:
    """Where the user's index has an sdist, and its digest: what pip takes without its version."""
    command = [*tools.pip(), "index", "versions", "-vv", "--no-binary", sdist.name, sdist.name]
    file = re.escape(f"{sdist.name}-{sdist.version}.tar.gz")
    found: list[str] = []

    def listed(line: str) -> None:
        found.extend(re.findall(rf"Found link (\S+/{file})", line))

    tools.run(command, log="source", what=what, each_line=listed)
    if not found:
        raise UnavailableError(
            f"{what} failed: the package index has no {sdist.name} {sdist.version}",
            hint=tools.log_hint("source"),
        )
    return f"{found[0]}#sha256={sdist.sha256}"


def digest_of(path: Path) -> str:
    """A file's SHA-256."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def unpack(file: Path, folder: Path, sdist: Sdist | None = None) -> Path:
    """Unpack the source inside an sdist, llama.cpp's by default, and nothing else."""
    sdist = sdist or llama()
    with tarfile.open(file) as archive:
        inside = re.compile(rf"[^/]+/{re.escape(sdist.inside)}/")
        members = [member for member in archive.getmembers() if inside.match(member.name)]
        if hasattr(tarfile, "data_filter"):
            archive.extractall(folder, members, filter="data")
        else:  # Python before 3.10.12; the digest of the archive is known
            archive.extractall(folder, members)
    return next(folder.glob(f"*/{sdist.inside}"))


def vendored_commit(sdist: Path, version: str) -> str:
    """The commit of llama.cpp that an sdist says it vendors, in its CHANGELOG.md.

    Raises:
        DamagedError: It doesn't say.
    """
    with tarfile.open(sdist) as archive:
        for member in archive:
            if re.fullmatch(r"[^/]+/CHANGELOG\.md", member.name):
                file = archive.extractfile(member)
                text = file.read().decode() if file else ""
                section = rf"^## \[{re.escape(version)}\]\n(.*?)(?=^## |\Z)"
                changes = re.search(section, text, re.MULTILINE | re.DOTALL)
                commit = re.search(r"llama\.cpp@([0-9a-f]{7,40})", changes[1]) if changes else None
                if commit:
                    return commit[1]
    raise DamagedError(f"{sdist.name}: its CHANGELOG.md names no commit of llama.cpp for {version}")
