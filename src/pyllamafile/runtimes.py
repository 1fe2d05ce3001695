"""A compiled llama.cpp, packed: what it is, and its bytes, checked."""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pyllamafile.errors import AccessError, DamagedError


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

    def packed(self) -> bytes:
        """The gzip member.

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
        return self._checked(gzip.decompress(self.packed()), self.sha256)

    def _checked(self, content: bytes, sha256: str) -> bytes:
        if hashlib.sha256(content).hexdigest() != sha256:
            raise DamagedError(
                f"{self.path}: damaged: its SHA-256 is another",
                hint="delete it, then `pyllamafile runtimes build` makes it again",
                path=self.path,
            )
        return content
