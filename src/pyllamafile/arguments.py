"""The grammar of `.args` (launcher/FORMAT.md, section 5). Pure."""

from __future__ import annotations

import re


def quote(argument: str) -> str:
    """Spell an argument so that a runtime that reads `.args` finds just this one.

    ``...`` is where the user's own arguments go, however it is spelled.
    """
    if re.fullmatch(r"[\w@%+=:,./-]+", argument, re.ASCII):
        return argument
    if "'" not in argument:
        return f"'{argument}'"
    return '"' + re.sub(r'(["\\$])', r"\\\1", argument) + '"'
