"""A signature of OpenSSH's, and the keys of people: what they say.

Nothing here knows whether a signature holds. Where a fact about the format comes from: OpenSSH's
PROTOCOL.sshsig; sshd(8) has the format of public keys, ssh-keygen(1) that of allowed signers.
"""

from __future__ import annotations

import base64
import binascii
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pyllamafile.arguments import decoded
from pyllamafile.errors import AccessError, DamagedError, NotFoundError, RefusedError

NAMESPACE: Final = "llamafile"
"""What signatures of llamafiles are for, so that one of anything else is none of them."""

MOST: Final = 1 << 16
"""Bytes that a signature may have; one of RSA has some two thousand."""

_MOST_KEYS: Final = 1 << 20  # bytes of a file of keys
_ARMOR: Final = re.compile(
    rb"-----BEGIN SSH SIGNATURE-----\r?\n([A-Za-z0-9+/=\r\n]+)-----END SSH SIGNATURE-----\s*"
)
_KEY: Final = re.compile(r"(?<!\S)((?:ssh|ecdsa|sk)-[\w.@-]+)[ \t]+([A-Za-z0-9+/]+=*)(?!\S)")


@dataclass(frozen=True)
class Signature:
    """What a signature says of itself.

    Attributes:
        key: The public key that it claims to be of, as SSH writes one in bytes.
        namespace: What it is for.
    """

    key: bytes
    namespace: str

    @property
    def key_type(self) -> str:
        """For example ``ssh-ed25519``."""
        return _strings(self.key)[0].decode("ascii")

    @property
    def fingerprint(self) -> str:
        """``SHA256:`` and the digest of the key, as `ssh-keygen -l` prints it."""
        import hashlib

        digest = base64.b64encode(hashlib.sha256(self.key).digest())
        return f"SHA256:{digest.rstrip(b'=').decode()}"

    def __str__(self) -> str:
        return f"{self.key_type} {self.fingerprint}"


def parsed(text: bytes, path: Path) -> Signature:
    """Read a signature.

    Args:
        text: Its text, in the armor.
        path: The file that it is in.

    Raises:
        DamagedError: It is none.
    """
    match = _ARMOR.fullmatch(text)
    try:
        raw = base64.b64decode(b"".join(match[1].split()), validate=True) if match else b""
        if raw[:10] != b"SSHSIG\0\0\0\1":
            raise ValueError(raw[:10])
        key, namespace, _, _, _ = _strings(raw[10:], 5)
        made = Signature(key, namespace.decode())
        if not re.fullmatch(r"[a-z][a-z0-9.@-]{2,99}", made.key_type):
            raise ValueError(made.key_type)
    except (ValueError, struct.error, binascii.Error) as error:
        raise DamagedError(
            f"{path}: its signature is damaged: no signature of OpenSSH's", path=path
        ) from error
    return made


def _strings(raw: bytes, exactly: int = 0) -> list[bytes]:
    """SSH's strings, each behind its length; the first one, or all of so many."""
    found: list[bytes] = []
    while len(found) < (exactly or 1):
        (size,) = struct.unpack_from(">I", raw)
        if size > len(raw) - 4:
            raise ValueError(size)
        found.append(raw[4 : 4 + size])
        raw = raw[4 + size :]
    if exactly and raw:
        raise ValueError(len(raw))
    return found


@dataclass(frozen=True)
class Signer:
    """Somebody whose signature counts.

    Attributes:
        line: The line of an allowed-signers file that says so.
        key: The public key, or that of an authority that certifies keys.
        authority: Whether it is that of an authority.
        named: Whether the file gives somebody a name, and not keys alone.
    """

    line: str
    key: bytes
    authority: bool
    named: bool


def signers(path: Path) -> list[Signer]:
    """The people in a file of allowed signers, or whoever has the public keys in another one.

    Raises:
        PyllamafileError: It can't be read, has no keys, or a line of it is neither.
    """
    found = []
    for number, line in enumerate(_text(path).splitlines(), 1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        match = _KEY.search(line)
        key = _key(match) if match else None
        if match is None or key is None:
            private = "PRIVATE KEY" in line
            what = "a private key" if private else "neither a public key nor an allowed signer"
            raise RefusedError(
                f"{path}: line {number} is {what}",
                hint="a public key is a line as in id_ed25519.pub; ssh-keygen(1) has ALLOWED "
                "SIGNERS",
                path=path,
            )
        named = match.start() > 0
        authority = named and "cert-authority" in line[: match.start()].split()[1:]
        found.append(Signer(line if named else f"key {match[0]}", key, authority, named))
    if not found:
        raise RefusedError(f"{path}: has no public keys", path=path)
    return found


def _key(match: re.Match[str]) -> bytes | None:
    """A public key, if its bytes are of the type that stands in front of them."""
    try:
        key = base64.b64decode(match[2], validate=True)
        return key if _strings(key)[0] == match[1].encode() else None
    except (ValueError, struct.error, binascii.Error):
        return None


def _text(path: Path) -> str:
    """A text file as an editor shows it."""
    try:
        if not path.is_file():
            kind = RefusedError if path.exists() else NotFoundError
            what = "is no file of keys" if path.exists() else "no such file"
            raise kind(f"{path}: {what}", path=path)
        with path.open("rb") as file:
            raw = file.read(_MOST_KEYS + 1)
    except OSError as error:
        raise AccessError(f"{path}: {error.strerror}", path=path) from error
    if len(raw) > _MOST_KEYS:
        raise RefusedError(f"{path}: is too long for a file of keys", path=path)
    try:
        return decoded(raw).lstrip("\ufeff")
    except UnicodeDecodeError:
        return raw.decode(errors="replace")  # a comment of somebody's may be in any encoding


def lines_of(found: list[Signer], signature: Signature) -> Iterator[Signer]:
    """Those that may be who signed."""
    return (signer for signer in found if signer.authority or signer.key == signature.key)
