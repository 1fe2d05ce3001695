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
# scripts/update-llama rewrites these three.
SDIST_VERSION = "0.3.36"
SDIST_SHA256 = "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e"
# The commit of llama.cpp that this sdist vendors, from its CHANGELOG.md.
LLAMA_COMMIT = "0c1e57098"


def llama_source(*, progress: Progress | None = None) -> Path:
    """The folder with llama.cpp's source, fetched with pip when it isn't in the cache yet.

    pip is asked for the sdist by name, so the user's own index settings hold; its SHA-256 is
    checked before a byte of it is unpacked.

    Raises:
        PyllamafileError: It can't be fetched, or is another one.
    """
    tell = progress or silent
    folder = tools.cache() / "source" / f"{SDIST}-{SDIST_VERSION}-{SDIST_SHA256[:12]}"
    if folder.is_dir():
        return folder  # without waiting for whoever looks at the same time
    with tools.lock("source", "fetches llama.cpp", tell):
        if not folder.is_dir():
            tell(Step("waiting", "fetching llama.cpp"))
            parent = tools.folder("source")
            with tempfile.TemporaryDirectory(prefix="source-", dir=parent) as scratch:
                sdist = fetch(Path(scratch), SDIST_VERSION)
                if (digest := digest_of(sdist)) != SDIST_SHA256:
                    raise DamagedError(
                        f"{sdist.name} is not the file that this version was made for "
                        f"(SHA-256 {digest})",
                        hint="ask your package index why it differs",
                    )
                unpack(sdist, Path(scratch) / "unpacked").rename(folder)
    return folder


def fetch(folder: Path, version: str | None = None) -> Path:
    """Let pip bring an sdist.

    Args:
        folder: Where to.
        version: Which one; None for the newest on the index.

    Raises:
        PyllamafileError: There is no pip, or no such sdist.
    """
    wanted = f"{SDIST}=={version}" if version else SDIST
    command = [*tools.pip(), "download", "--no-deps", "--no-binary", SDIST]
    command += ["--dest", str(folder), wanted]
    tools.run(command, log="source", what="fetching the source of llama.cpp")
    for sdist in folder.glob("*.tar.gz"):
        return sdist
    raise UnavailableError(f"pip brought no sdist of {wanted}")


def digest_of(path: Path) -> str:
    """A file's SHA-256."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def unpack(sdist: Path, folder: Path) -> Path:
    """Unpack the llama.cpp inside an sdist, and nothing else; returns its folder."""
    with tarfile.open(sdist) as archive:
        inside = re.compile(r"[^/]+/vendor/llama\.cpp/")
        members = [member for member in archive.getmembers() if inside.match(member.name)]
        if hasattr(tarfile, "data_filter"):
            archive.extractall(folder, members, filter="data")
        else:  # Python before 3.10.12; the digest of the archive is known
            archive.extractall(folder, members)
    return next(folder.glob("*/vendor/llama.cpp"))


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
