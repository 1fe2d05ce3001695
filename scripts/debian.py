"""Packages of a Debian that is not installed here: of another release, for another processor.

They come from the mirror that apt has on this machine, and apt checks them. Nothing is installed.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

KEYS = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
APT = """\
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


class MissingError(Exception):
    """What lacks here, in one line, and which package has it."""


def need(program: str, package: str) -> str:
    """The path of a program."""
    if (found := shutil.which(program)) is None:
        raise MissingError(f"{program} is missing: apt install {package}")
    return found


def download(
    folder: Path, what: str, suite: str, architecture: str, packages: Sequence[str]
) -> list[Path]:
    """Fetch packages into a folder.

    Args:
        folder: A new one.
        what: What they are together, for a message.
        suite: The release, for example ``trixie``.
        architecture: Debian's name of the processor, for example ``arm64``.
        packages: Their names. One that consists of nothing but what it depends on, as
            ``linux-image-arm64`` does, is replaced by the first of that.

    Raises:
        MissingError: They can't be fetched.
    """
    need("apt-get", "apt")
    form = ["--format", "$(REPO_URI)", "Created-By: Packages", "Origin: Debian", "Label: Debian"]
    mirrors = subprocess.run(["apt-get", "indextargets", *form], capture_output=True, text=True)
    if not mirrors.stdout or not KEYS.is_file():
        raise MissingError("apt knows no mirror of Debian: apt-get update, on a Debian")
    mirror = mirrors.stdout.splitlines()[0]
    for name in ("lists/partial", "archives/partial", "none"):
        (folder / name).mkdir(parents=True)
    (folder / "status").touch()
    (folder / "sources.list").write_text(f"deb [signed-by={KEYS}] {mirror} {suite} main\n")
    (folder / "apt.conf").write_text(APT.format(folder, architecture))
    try:
        _apt(folder, "apt-get", "-q", "update", "--error-on=any")
        names = [_behind(folder, name) for name in packages]
        _apt(folder, "apt-get", "-q", "download", *names)
    except subprocess.CalledProcessError as error:
        said = error.stderr.strip().splitlines() or [f"apt ended with {error.returncode}"]
        raise MissingError(f"{what} can't be fetched: {said[-1]}") from None
    return sorted(folder.glob("*.deb"))


def unpack(packages: Sequence[Path], root: Path) -> Path:
    """Unpack packages into a folder; gives it."""
    for package in packages:
        subprocess.run([need("dpkg", "dpkg"), "-x", package, root], check=True)
    shutil.rmtree(root / "usr/share/doc", ignore_errors=True)
    return root


def _behind(folder: Path, package: str) -> str:
    """The package that another one stands for: linux-image-arm64 is the newest kernel's name."""
    if not package.startswith("linux-image-"):
        return package
    depends = re.search(
        r"Depends: (linux-image-\S+)", _apt(folder, "apt-cache", "depends", package)
    )
    return depends[1] if depends else package


def _apt(folder: Path, *words: str) -> str:
    env = {**os.environ, "APT_CONFIG": str(folder / "apt.conf")}
    options = {"capture_output": True, "text": True, "check": True}
    return subprocess.run(words, cwd=folder, env=env, **options).stdout
