"""A compiled llama.cpp, packed: what it is, and its bytes, checked."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pyllamafile import difference
from pyllamafile.errors import AccessError, DamagedError

try:
    from isal.isal_zlib import decompress  # three times as fast as zlib's
except ImportError:  # no wheel for this system
    from zlib import decompress

_GZIP = 31  # zlib's word for a gzip member: windows of 2**15 bytes, and 16


@dataclass(frozen=True)
class Runtime:
    """A compiled llama.cpp, packed and ready to be put into a file.

    Attributes:
        target: The name of its target.
        path: A gzip member whose length is a multiple of 64 KiB.
        packed_size: Length of that member in bytes.
        packed_sha256: SHA-256 of that member, in hex.
        size: Length of the program in bytes.
        sha256: SHA-256 of the program, in hex.
        llama_cpp: The version of llama.cpp inside.
        levels: Names of the instruction sets inside, slowest first.
        origin: Where it was found: ``package``, ``cache`` or ``engine``.
        licenses: The notices of all that is linked into it, by component.
        gpu: The second program of its system, which can use a GPU, if that is at hand with all
            that it takes.
    """

    target: str
    path: Path
    packed_size: int
    packed_sha256: str
    size: int
    sha256: str
    llama_cpp: str
    levels: tuple[str, ...]
    origin: str
    licenses: Mapping[str, str] = field(default_factory=dict)
    gpu: Second | None = None

    def packed(self) -> bytes:
        """Its packed bytes, as they are in a file.

        Raises:
            PyllamafileError: It can't be read, or isn't what it was.
        """
        try:
            return self._checked(self.path.read_bytes(), self.packed_sha256)
        except OSError as error:
            raise AccessError(f"{self.path}: {error.strerror}", path=self.path) from error

    def program(self) -> bytes:
        """The program itself.

        Raises:
            PyllamafileError: As `packed`.
        """
        # as the size is known, it is made once, and not of parts that are there beside it
        return self._checked(decompress(self.packed(), _GZIP, self.size), self.sha256)

    def _checked(self, content: bytes, sha256: str) -> bytes:
        if hashlib.sha256(content).hexdigest() != sha256:
            raise DamagedError(
                f"{self.path}: damaged: its SHA-256 is another",
                hint="delete it, then `pyllamafile runtimes build` makes it again",
                path=self.path,
            )
        return content


@dataclass(frozen=True, kw_only=True)
class Second(Runtime):
    """A program that can use a GPU, too, packed as what it has beside the plain one.

    Its `path` is a frame of Zstandard.

    Attributes:
        plain: The plain program of the same system.
    """

    plain: Runtime

    def program(self) -> bytes:
        """The program itself.

        Raises:
            PyllamafileError: As `packed`, and of the plain one.
        """
        made = difference.program(self.packed(), self.plain.program(), self.size)
        return self._checked(made, self.sha256)
