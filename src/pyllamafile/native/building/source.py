"""llama.cpp's source, out of the sdist of llama-cpp-python."""

from __future__ import annotations

import hashlib
import re
import tarfile
import tempfile
from pathlib import Path

from pyllamafile.errors import DamagedError, UnavailableError
from pyllamafile.native.building import tools
from pyllamafile.progress import Progress, Step, silent

SDIST = "llama-cpp-python"
SDIST_VERSION = "0.3.36"
SDIST_SHA256 = "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e"
# The commit of llama.cpp that this sdist vendors, from its CHANGELOG.md.
LLAMA_COMMIT = "0c1e57098"


def llama_source(*, progress: Progress | None = None) -> Path:
    """The folder with llama.cpp's source, fetched with pip when it isn't in the cache yet.

    pip is asked for the sdist by name, so the user's own index settings hold; its SHA-256 is
    checked before a byte of it is unpacked.
    """
    tell = progress or silent
    folder = tools.cache() / "source" / f"{SDIST}-{SDIST_VERSION}-{SDIST_SHA256[:12]}"
    with tools.lock("source", "fetches llama.cpp", tell):
        if not folder.is_dir():
            tell(Step("waiting", "fetching llama.cpp"))
            parent = tools.folder("source")
            with tempfile.TemporaryDirectory(prefix="source-", dir=parent) as scratch:
                sdist = _fetch(Path(scratch))
                unpacked = _unpack(sdist, Path(scratch) / "unpacked")
                unpacked.rename(folder)
    return folder


def _fetch(folder: Path) -> Path:
    command = [*tools.pip(), "download", "--no-deps", "--no-binary", SDIST]
    command += ["--dest", str(folder), f"{SDIST}=={SDIST_VERSION}"]
    tools.run(command, log="source", what="fetching the source of llama.cpp")
    for sdist in folder.glob("*.tar.gz"):
        digest = hashlib.sha256(sdist.read_bytes()).hexdigest()
        if digest == SDIST_SHA256:
            return sdist
        raise DamagedError(
            f"{sdist.name} is not the file that this version was made for (SHA-256 {digest})",
            hint="ask your package index why it differs",
        )
    raise UnavailableError(f"pip brought no sdist of {SDIST} {SDIST_VERSION}")


def _unpack(sdist: Path, folder: Path) -> Path:
    """Unpack the llama.cpp inside the sdist, and nothing else."""
    with tarfile.open(sdist) as archive:
        inside = re.compile(r"[^/]+/vendor/llama\.cpp/")
        members = [member for member in archive.getmembers() if inside.match(member.name)]
        if hasattr(tarfile, "data_filter"):
            archive.extractall(folder, members, filter="data")
        else:  # Python before 3.10.12; the digest of the archive is known
            archive.extractall(folder, members)
    return next(folder.glob("*/vendor/llama.cpp"))
