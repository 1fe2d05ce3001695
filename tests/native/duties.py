"""What each duty of the sandbox may do, and the program that tries it (sandbox.cpp)."""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

from pyllamafile.native.building import tools
from pyllamafile.native.building.driver import RUNTIME
from pyllamafile.targets import TARGETS

ATTEMPTS = Path(__file__).with_name("sandbox.cpp")
SANDBOX = RUNTIME / "system" / "sandbox"
# As system/sandbox.h counts them.
PRINTS, COMPUTES, SERVES, ROUTES, CONVERSES, ASKS, QUESTIONS, KEEPS, WORKS = range(9)
REFUSED = {"EPERM", "EACCES", "ENOSYS"}

# What each duty may do, out of all that tests/native/sandbox.cpp tries; all else is refused.
EVERYBODY = {"read named", "thread"}
FILES = {
    "read secret", "list", "write secret", "make", "unlink", "rename", "chmod", "truncate", "link",
}  # fmt: skip
MAY = {
    PRINTS: EVERYBODY,
    COMPUTES: EVERYBODY,
    SERVES: EVERYBODY | {"socket", "bind own"},
    ROUTES: EVERYBODY | {"socket", "bind own", "connect own", "fork", "exec itself"},
    CONVERSES: EVERYBODY | FILES | {"socket", "connect own"},
    ASKS: EVERYBODY | FILES | {"socket", "socket UDP", "socket MPTCP", "connect own",
                               "connect other", "fast open"},
    QUESTIONS: EVERYBODY | {"socket", "connect own"},
    KEEPS: EVERYBODY,
    WORKS: EVERYBODY,
}  # fmt: skip
WHEN_READY = {**MAY, SERVES: EVERYBODY}


def source_for(target: str) -> Path:
    system = {"macos": "darwin"}.get(TARGETS[target].os, TARGETS[target].os)
    return SANDBOX / f"{system}.cpp"


def build(target: str, language: str, *words: str | Path) -> None:
    zig = tools.package("ziglang") / "zig"
    command = [zig, language, "-target", TARGETS[target].triple, "-Os", "-w", *words]
    done = subprocess.run(command, capture_output=True, text=True, env=tools.environment())
    assert (done.returncode, done.stderr) == (0, "")


def compiled(target: str, folder: Path) -> Path:
    output = folder / f"sandbox-{target}"
    sources = (ATTEMPTS, RUNTIME / "system" / "sandbox.cpp", source_for(target))
    build(target, "c++", "-std=c++17", f"-I{RUNTIME}", *sources, "-o", output)
    return output


@dataclass(frozen=True)
class Tried:
    """What came of the attempts, before the sandbox was tightened and behind it."""

    line: str
    first: dict[str, str]
    then: dict[str, str]

    @staticmethod
    def read(output: str, errors: str) -> Tried:
        """What tests/native/sandbox.cpp wrote."""
        first, then = (dict(re.findall("(.+): (.+)", part)) for part in output.split("tightened\n"))
        assert len(first) > 30
        return Tried(errors.splitlines()[0], first, then)

    def done(self, behind: bool = False) -> set[str]:
        return {
            what for what, came in (self.then if behind else self.first).items() if came == "done"
        }


def assert_held(tried: Tried, duty: int) -> None:
    """That a duty could do what the table says, and no more, on a kernel that has everything.

    Whoever tried listened on the port of the duty's own, but on that of a server.
    """
    # where nobody listens, a connection that is allowed is refused by nobody else
    expected = MAY[duty] - ({"connect own"} if duty == ROUTES else set())
    assert tried.done() == expected
    over = {"unlink", "rename", "link"} if duty in (CONVERSES, ASKS) else set()  # done before
    assert tried.done(behind=True) == WHEN_READY[duty] - over - {"connect own"} | (
        expected & {"connect own"}
    )
    allowed = MAY[duty] | {"write named"}
    assert {came for what, came in tried.first.items() if what not in allowed} <= REFUSED
    if duty == ROUTES:
        assert tried.first["connect own"] == "Connection refused"
