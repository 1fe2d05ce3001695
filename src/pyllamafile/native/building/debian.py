"""Packages of Debian, fetched by apt from the mirror that this machine has its own Debian from.

Nothing is installed: packages are unpacked into a folder, of whatever suite and architecture. apt
checks what it fetches against Debian's signatures.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pyllamafile.errors import DamagedError, UnavailableError

KEYS = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
# The first suite whose vulkan.hpp is new enough for ggml-vulkan, and whose Wine for arm64 has the
# libraries of Windows on arm64 as programs of Windows.
SUITE = "trixie"

_APT = """\
APT::Architecture "{1}";
APT::Architectures {{ "{1}"; }};
APT::Sandbox::User "";
Acquire::Languages "none";
Dir::State "{0}";
Dir::State::status "{0}/status";
Dir::Cache "{0}";
Dir::Etc::sourcelist "{0}/sources.list";
Dir::Etc::sourceparts "{0}/none";
Dir::Etc::preferencesparts "{0}/none";
"""


@dataclass(frozen=True)
class Package:
    """A package of one version, by the digest of its file."""

    name: str
    version: str
    sha256: str


def program(name: str, package: str) -> str:
    """The path of a program.

    Args:
        name: Which one.
        package: The package of Debian's that has it.

    Raises:
        UnavailableError: It is not on the PATH.
    """
    if (found := shutil.which(name)) is None:
        raise UnavailableError(f"{name} is missing: apt install {package}")
    return found


def download(
    folder: Path, words: Sequence[str], architecture: str, what: str, suite: str = SUITE
) -> list[Path]:
    """Fetch packages with apt, which checks them.

    Args:
        folder: Where to.
        words: Names of packages, with ``=VERSION`` where it has to be one. One that consists of
            nothing but what it depends on, as ``linux-image-arm64`` does, stands for that.
        architecture: Debian's name of it.
        what: What they are, for messages.
        suite: The release of Debian.

    Raises:
        UnavailableError: This is no Debian, or apt can't fetch one of them.
    """
    program("apt-get", "apt")
    form = ["--format", "$(REPO_URI)", "Created-By: Packages", "Origin: Debian", "Label: Debian"]
    mirrors = subprocess.run(["apt-get", "indextargets", *form], capture_output=True, text=True)
    if not mirrors.stdout or not KEYS.is_file():
        raise UnavailableError("apt knows no mirror of Debian: apt-get update, on a Debian")
    mirror = mirrors.stdout.splitlines()[0]
    for name in ("lists/partial", "archives/partial", "none"):
        (folder / name).mkdir(parents=True)
    (folder / "status").touch()
    (folder / "sources.list").write_text(f"deb [signed-by={KEYS}] {mirror} {suite} main\n")
    (folder / "apt.conf").write_text(_APT.format(folder, architecture))
    try:
        _apt(folder, "apt-get", "-q", "update", "--error-on=any")
        _apt(folder, "apt-get", "-q", "download", *(_behind(folder, word) for word in words))
    except subprocess.CalledProcessError as error:
        said = error.stderr.strip().splitlines() or [f"apt-get ended with {error.returncode}"]
        raise UnavailableError(f"{what} can't be fetched: {said[-1]}") from None
    return sorted(folder.glob("*.deb"))


def _behind(folder: Path, package: str) -> str:
    """The package that another one stands for: linux-image-arm64 is the newest kernel's name."""
    if not package.startswith("linux-image-"):
        return package
    said = _apt(folder, "apt-cache", "depends", package)
    depends = re.search(r"Depends: (linux-image-\S+)", said)
    return depends[1] if depends else package


def _apt(folder: Path, *words: str) -> str:
    env = {**os.environ, "APT_CONFIG": str(folder / "apt.conf")}
    return subprocess.run(
        words, cwd=folder, env=env, capture_output=True, text=True, check=True
    ).stdout


def unpack(packages: Sequence[Path], root: Path) -> Path:
    """Unpack packages, one over the other; returns the folder."""
    for package in packages:
        subprocess.run([program("dpkg", "dpkg"), "-x", package, root], check=True)
    return root


def pinned(folder: Path, packages: Sequence[Package], what: str, suite: str = SUITE) -> list[Path]:
    """Fetch packages of amd64 that have to be these very ones; the rest is as in `download`.

    Raises:
        DamagedError: One is another file.
        UnavailableError: As in `download`.
    """
    words = [f"{each.name}={each.version}" for each in packages]
    files = download(folder, words, "amd64", what, suite)
    known = {each.sha256 for each in packages}
    for file in files:
        if (digest := hashlib.sha256(file.read_bytes()).hexdigest()) not in known:
            raise DamagedError(
                f"{file.name} is not the file that this version was made for (SHA-256 {digest})"
            )
    return files
