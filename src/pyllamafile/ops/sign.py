"""Whose file it is: `sign`, and `verify --signed-by`.

A signature is of the manifest, which has the digests of everything (launcher/FORMAT.md, section 8).
OpenSSH's own program makes and checks it: it knows agents, passphrases, keys on devices and
certificates, and people know what it does.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Literal

from pyllamafile import signature as signatures
from pyllamafile import zipalign
from pyllamafile.errors import (
    AccessError,
    DamagedError,
    NotFoundError,
    PyllamafileError,
    RefusedError,
    UnavailableError,
)
from pyllamafile.llamafile import MANIFEST, MOST_MANIFEST, SIGNATURE, Llamafile, read
from pyllamafile.ops.verify import Problem, verify
from pyllamafile.paths import PathLike, path_of
from pyllamafile.progress import Progress, Step, silent
from pyllamafile.signature import NAMESPACE, Signature, Signer
from pyllamafile.zipalign import Entry

Verdict = Literal["signed", "unsigned", "unknown", "changed"]

_KEYS: Final = tuple(f"id_{kind}" for kind in ("ed25519", "ed25519_sk", "ecdsa", "ecdsa_sk", "rsa"))


@dataclass(frozen=True)
class Signed:
    """A file that was signed.

    Attributes:
        path: Where it is.
        key: The file with the key that was used, or what git calls it.
        key_type: For example ``ssh-ed25519``.
        fingerprint: ``SHA256:`` and the digest of the public key.
        replaced: The key of the signature that was there before, as type and fingerprint; None if
            there was none.
    """

    path: Path
    key: str
    key_type: str
    fingerprint: str
    replaced: str | None


@dataclass(frozen=True)
class SignatureCheck:
    """Whether somebody has signed a file.

    Attributes:
        verdict: ``signed`` by one of them, and whole; ``unsigned``; signed by an ``unknown`` key;
            or signed, but ``changed``.
        key_type: Of the key that it was signed with.
        fingerprint: Of that key.
        by: Who signed it, as the file of allowed signers calls them; None for a bare key.
        reason: What shows that it was changed.
        problems: All that is wrong with the file, as `verify` says it.
    """

    verdict: Verdict
    key_type: str | None = None
    fingerprint: str | None = None
    by: str | None = None
    reason: str | None = None
    problems: tuple[Problem, ...] = ()


def sign(
    path: PathLike, *, key: PathLike | None = None, progress: Progress | None = None
) -> Signed:
    """Sign a llamafile of ours, in place. The weights stay where they are.

    All of it is read before, for a signature says that the file is what its maker meant. Killed at
    any moment, it leaves the file as it was, or signed.

    Args:
        path: The file.
        key: A private key of SSH's, or a public one whose other half an agent has. By default it
            is the one that git signs with, or else the first in ``~/.ssh``.
        progress: Told about every step.

    Raises:
        PyllamafileError: It is not a whole file of ours, there is no such key, ssh-keygen is
            missing or refuses, or the file can't be written.
    """
    tell = progress or silent
    path = path_of(path)
    found = read(path)
    found.check_ours()
    _check_sound(path, verify(path, contents=False))
    before = _before(found)
    with tempfile.TemporaryDirectory(prefix="pyllamafile-") as scratch:
        file, name = _chosen(key, Path(scratch))
        waits = ": touch the device that has it" if _on_device(file) else ""
        tell(Step("notice", f"signing with {name}{waits}"))
        text = _signed(found.content(MANIFEST, MOST_MANIFEST), file, name)
    made = signatures.parsed(text, path)
    _check_sound(path, verify(path, progress=tell))
    zipalign.add(path, [Entry(SIGNATURE, text)])
    return Signed(path, name, made.key_type, made.fingerprint, before)


def _check_sound(path: Path, problems: Sequence[Problem]) -> None:
    for problem in problems:
        if problem.where.split(" (")[0] != SIGNATURE:  # it is replaced
            raise DamagedError(
                f"{path}: is not sound: {problem.where}: {problem.what}",
                hint="what is signed has to be whole: build the file again",
                path=path,
            )


def _before(found: Llamafile) -> str | None:
    """The key of a signature that is there already."""
    try:
        return str(made) if (made := found.signature()) else None
    except DamagedError:
        return "a damaged one"


def _chosen(key: PathLike | None, scratch: Path) -> tuple[Path, str]:
    """The file of the key to sign with, and what to call it."""
    if key is not None:
        path = path_of(key)
        if not path.is_file():
            raise NotFoundError(f"{path}: no such key", path=path)
        return path, str(path)
    if told := _of_git():
        literal = told.removeprefix("key::")
        if literal != told or literal.startswith("ssh-"):
            public = scratch / "key.pub"
            public.write_text(literal + "\n")
            return public, "git's user.signingkey"
        return Path(told).expanduser(), f"{told}, git's user.signingkey"
    home = Path("~/.ssh").expanduser()
    for name in _KEYS:
        if (home / name).is_file() or (home / f"{name}.pub").is_file():
            return home / name, str(home / name)
    raise NotFoundError(
        f"{home}: has no key to sign with",
        hint="--key FILE names one; ssh-keygen -t ed25519 makes one",
        path=home,
    )


def _of_git() -> str | None:
    """What git signs commits with, if that is a key of SSH's."""
    if not (git := shutil.which("git")):
        return None
    values = []
    for name in ("gpg.format", "user.signingkey"):
        done = subprocess.run(
            [git, "config", "--global", "--get", name], capture_output=True, text=True, check=False
        )
        values.append(done.stdout.strip())
    return values[1] if values[0] == "ssh" and values[1] else None


def _on_device(key: Path) -> bool:
    """Whether a key is on a device that waits to be touched."""
    public = key if key.suffix == ".pub" else key.with_name(f"{key.name}.pub")
    with contextlib.suppress(OSError, UnicodeDecodeError):
        return public.read_text().startswith("sk-")
    return False


def _signed(manifest: bytes, key: Path, name: str) -> bytes:
    """The signature of a manifest."""
    done = _ssh_keygen("sign", "-f", key, "-n", NAMESPACE, stdin=manifest)
    if done.returncode:
        raise RefusedError(f"{name}: ssh-keygen can't sign with it: {_why(done)}")
    return done.stdout


def signed_by(path: PathLike, who: PathLike, *, progress: Progress | None = None) -> SignatureCheck:
    """Check everything that is in a llamafile, and who signed it.

    Args:
        path: The file.
        who: A file with the people whose signature counts: allowed signers, as ssh-keygen and git
            have them, or public keys, one in a line.
        progress: Told how many bytes are read.

    Raises:
        PyllamafileError: A file can't be read, `who` has no keys, or ssh-keygen is missing.
    """
    path = path_of(path)
    people = signatures.signers(path_of(who))
    problems = tuple(verify(path, progress=progress))
    found = read(path)
    if SIGNATURE not in found.members or found.maker in ("foreign", "none"):
        return SignatureCheck("unsigned", problems=problems)
    try:
        made = found.signature()
        assert made
        found.check_known()
        manifest = found.content(MANIFEST, MOST_MANIFEST)
    except PyllamafileError as error:
        reason = error.message.removeprefix(f"{path}: ")
        return SignatureCheck("changed", reason=reason, problems=problems)
    text = found.content(SIGNATURE)
    check = replace(_judged(text, made, manifest, people), problems=problems)
    if check.verdict == "signed" and problems:
        check = replace(check, verdict="changed", reason="not all in it is what was signed")
    return replace(check, key_type=made.key_type, fingerprint=made.fingerprint)


def _judged(text: bytes, made: Signature, manifest: bytes, people: list[Signer]) -> SignatureCheck:
    """Whether a signature is of a manifest, and by one of these people."""
    if made.namespace != NAMESPACE:
        reason = f"its signature is for {made.namespace!r}, not for {NAMESPACE!r}"
        return SignatureCheck("changed", reason=reason)
    with tempfile.TemporaryDirectory(prefix="pyllamafile-") as scratch:
        file, allowed = Path(scratch, "signature"), Path(scratch, "allowed")
        file.write_bytes(text)
        whole = _ssh_keygen("check-novalidate", "-n", NAMESPACE, "-s", file, stdin=manifest)
        if whole.returncode:
            return SignatureCheck("changed", reason="its signature is not of this manifest")
        for signer in signatures.lines_of(people, made):
            allowed.write_text(signer.line + "\n", encoding="utf-8")
            for name in _principals(allowed, file):
                words = ("-f", allowed, "-I", name, "-n", NAMESPACE, "-s", file)
                if not _ssh_keygen("verify", *words, stdin=manifest).returncode:
                    return SignatureCheck("signed", by=name if signer.named else None)
    return SignatureCheck("unknown")


def _principals(allowed: Path, file: Path) -> Iterator[str]:
    """What the signer may be called."""
    done = _ssh_keygen("find-principals", "-f", allowed, "-s", file)
    if b"nsupported operation" in done.stderr:
        raise UnavailableError(
            "this ssh-keygen is older than OpenSSH 8.2, which can say who signed",
            hint="get a newer one",
        )
    yield from done.stdout.decode(errors="replace").splitlines()


def _ssh_keygen(
    what: str, *words: str | Path, stdin: bytes = b""
) -> subprocess.CompletedProcess[bytes]:
    program = shutil.which("ssh-keygen")
    if program is None:
        raise UnavailableError(
            "ssh-keygen is missing, which makes and checks signatures",
            hint="install OpenSSH's client, for example: apt install openssh-client",
        )
    command = [program, "-Y", what, *map(str, words)]
    environment = {**os.environ, "LC_ALL": "C"}
    try:
        return subprocess.run(
            command, input=stdin, capture_output=True, env=environment, check=False
        )
    except OSError as error:
        raise AccessError(f"{program}: {error.strerror}", path=program) from error


def _why(done: subprocess.CompletedProcess[bytes]) -> str:
    """The last line in which ssh-keygen complains."""
    lines = done.stderr.decode(errors="replace").split("\n")
    told = [line.strip() for line in lines if line.strip() and not line.startswith("@")]
    return told[-1] if told else f"it ended with {done.returncode}"
