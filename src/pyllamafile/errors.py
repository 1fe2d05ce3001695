"""The one exception that this package raises on purpose."""

from __future__ import annotations


class PyllamafileError(Exception):
    """Something that the user can understand and act on.

    The library raises it, the command line prints ``error: MESSAGE`` and, where
    there is one, ``hint: HINT``.

    Args:
        message: What happened, in one line, naming the file it happened to.
        hint: What to do about it.
    """

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
