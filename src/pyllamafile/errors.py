"""The exceptions that this package raises on purpose: one root, and one class per kind of cause."""

from __future__ import annotations

from pathlib import Path


class PyllamafileError(Exception):
    """Something that the user can understand and act on.

    The library raises it, the command line prints ``error: MESSAGE`` and, where
    there is one, ``hint: HINT``.

    Args:
        message: What happened, in one line, naming the file it happened to.
        hint: What to do about it. Options are spelled as the command line has them; parameters
            have the same names, and docs/python.md lists the few that don't.
        path: The file that it is about, where there is one.
    """

    def __init__(
        self, message: str, hint: str | None = None, *, path: Path | str | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.path = None if path is None else Path(path)


class RefusedError(PyllamafileError):
    """The input is sound, but what was asked of it can't be done."""


class DamagedError(PyllamafileError):
    """A file is not what it says it is: cut off, changed, or contradicting itself."""


class NotFoundError(PyllamafileError):
    """There is no such file, entry, source or target."""


class ExistsError(RefusedError):
    """The output exists already."""


class AccessError(PyllamafileError):
    """The operating system refuses to read or write: permissions, no room, a failing disk."""


class UnavailableError(PyllamafileError):
    """Something outside of this package can't be had: a program, a package, a hub."""
