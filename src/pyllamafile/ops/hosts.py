"""Whether another machine can take part in a model (``--on``), asked over the user's own ssh.

Nothing is installed there. One script is run, of which nothing stays: native/runtime/machines
does what it tries.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from pyllamafile import llamafile
from pyllamafile.errors import RefusedError
from pyllamafile.llamafile import Llamafile
from pyllamafile.ops.doctor import LOWEST, TOOLS, Finding
from pyllamafile.paths import path_of
from pyllamafile.targets import TARGETS, Target

PATIENCE = 120
"""Seconds, for whoever types a password as well."""

# As machines.cpp starts it.
_SSH = (
    *("ssh", "-T", "-a", "-x", "-o", "BatchMode=no", "-o", "ConnectTimeout=10"),
    *("-o", "ServerAliveInterval=3", "-o", "ServerAliveCountMax=2"),
    *("-o", "ClearAllForwardings=yes", "--"),
)

# NetBSD's `uname -m` names the board there.
_ABLE = [t for t in TARGETS.values() if t.os != "windows" and t.name != "netbsd-arm64"]

_MARK = "pyllamafile "

# What runs there says all in lines that begin with the mark, for a shell may print others.
# The places are those of the launch script (FORMAT.md, 2.2).
_SCRIPT = f"""
say() {{ echo "{_MARK}$*"; }}
say system "$(uname -sm)"
PATH=${{PATH:+$PATH:}}/usr/bin:/bin:/usr/sbin:/sbin
for tool in head {" ".join(TOOLS)}; do command -v $tool >/dev/null 2>&1 || say lacks $tool; done
[ -r /proc/cpuinfo ] && while read -r line; do
    case $line in flags*) say flags "${{line#*:}}"; break ;; esac
done </proc/cpuinfo
[ -r /proc/meminfo ] && while read -r name value rest; do
    case $name in MemAvailable:) say memory "$value" ;; esac
done </proc/meminfo
[ -r /sys/kernel/security/lsm ] && read -r line </sys/kernel/security/lsm && say lsm "$line"
try() {{
    place=$1
    while [ ! -e "$place" ]; do place=${{place%/*}}; [ -n "$place" ] || place=/; done
    own=$place/pyllamafile-doctor.$$
    (umask 077; mkdir "$own") 2>/dev/null || {{ say unfit "$1 can not be written to"; return 1; }}
    printf "#!/bin/sh\\nexit 0\\n" >"$own/x" 2>/dev/null && chmod 700 "$own/x"
    "$own/x" >/dev/null 2>&1
    result=$?
    rm -rf "$own"
    [ "$result" = 0 ] || {{ say unfit "$1 is where nothing may be executed"; return 1; }}
    df -Pk "$place" 2>/dev/null | while read -r a b c free rest; do say disk "$free"; done
    say place "$1"
}}
user=$(id -u)
set --
if [ -n "$PYLLAMAFILE_CACHE" ]; then set -- "$PYLLAMAFILE_CACHE"; else
    case $XDG_CACHE_HOME in /*) set -- "$@" "$XDG_CACHE_HOME/pyllamafile" ;; esac
    case $HOME in /*) set -- "$@" "$HOME/.cache/pyllamafile" ;; esac
    for base in "${{TMPDIR:-/var/tmp}}" /var/tmp /tmp; do
        set -- "$@" "$base/pyllamafile-$user"
    done
fi
for each in "$@"; do try "$each" && break; done
own=${{TMPDIR:-/tmp}}/pyllamafile-doctor.$$
if mkdir "$own" 2>/dev/null; then rmdir "$own"; else say tmp "${{TMPDIR:-/tmp}}"; fi
say end
"""


@dataclass(frozen=True)
class Host:
    """A machine that was asked.

    Attributes:
        name: As ssh knows it.
        system: What ``uname -sm`` says there; None if it couldn't be asked.
        memory: Bytes that are free; None where it doesn't say.
        disk: Bytes that are free where programs are unpacked to; None where it doesn't say.
        findings: What keeps it from taking part, or is worth knowing.
    """

    name: str
    system: str | None = None
    memory: int | None = None
    disk: int | None = None
    findings: tuple[Finding, ...] = field(default=())


def examine_host(
    name: str,
    path: str | os.PathLike[str] | None = None,
    environment: Mapping[str, str] | None = None,
) -> Host:
    """Ask a machine whether a model can be computed there, by ``--on``.

    Args:
        name: As ``ssh`` takes it: HOST, USER@HOST or ssh://HOST:PORT.
        path: The llamafile whose program would run there; without one, any program of ours.
        environment: The variables that ssh is started with; by default those of this process.

    Raises:
        RefusedError: ssh would take the name for something else.
        PyllamafileError: There is no such file, or it is not a zip.
    """
    if not name or name.startswith("-") or any(c <= " " or c == "\x7f" for c in name):
        raise RefusedError(f"--on {name}: not the name of a machine, as ssh takes it")
    found = llamafile.read(path_of(path)) if path is not None else None
    first = f"make `ssh {name}` work first"
    try:
        done = subprocess.run(
            [*_SSH, name, "exec /bin/sh -s"],
            input=_SCRIPT,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=PATIENCE,
            env=None if environment is None else dict(environment),
        )
    except FileNotFoundError:
        lacking = Finding("ssh is not installed here", "it is in the package openssh-client")
        return Host(name, findings=(lacking,))
    except subprocess.TimeoutExpired:
        return Host(name, findings=(Finding(f"no answer for {PATIENCE} seconds", first),))
    said = [
        line.removeprefix(_MARK).partition(" ")[::2]
        for line in done.stdout.splitlines()
        if line.startswith(_MARK)
    ]
    if ("end", "") not in said:
        return Host(name, findings=(_unasked(done, first),))
    return judge(name, said, found)


def _unasked(done: subprocess.CompletedProcess[str], first: str) -> Finding:
    """Why there is no answer."""
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    last = lines[-1].strip() if lines else ""
    if done.returncode == 255:  # ssh's own
        return Finding(last or "ssh ends without a word", first)
    return Finding(
        f"ssh doesn't run the command that it is told to{': ' if last else ''}{last}",
        "its sshd has to let this user start `/bin/sh`: no ForceCommand, no command= in front of "
        "the key, no shell that refuses; Windows can't be a worker",
    )


def judge(name: str, said: Sequence[tuple[str, str]], found: Llamafile | None = None) -> Host:
    """What the answers of a machine mean for a file; for any of ours without one.

    Args:
        name: Of the machine.
        said: What the script says: what it is about, and what it is.
        found: The file whose program would run there.
    """
    facts = dict(said)
    system = facts.get("system", "")
    likely = (t for t in _ABLE if any(fnmatchcase(system, each) for each in t.uname))
    target = next(likely, None)
    findings = (
        *_program(system, target, found),
        *_processor(target, facts.get("flags", "")),
        *_tools([tool for about, tool in said if about == "lacks"]),
        *_place(said, facts, _size(target, found)),
        *_sandbox(target, facts.get("lsm")),
    )
    return Host(name, system, _bytes(facts, "memory"), _bytes(facts, "disk"), findings)


def _bytes(facts: Mapping[str, str], about: str) -> int | None:
    kib = facts.get(about, "")
    return int(kib) * 1024 if kib.isdecimal() else None


def _size(target: Target | None, found: Llamafile | None) -> int:
    """Bytes of the program, unpacked."""
    runtimes = found.runtimes if found else []
    return sum(int(r["size"]) for r in runtimes if target and r["target"] == target.name)


def _program(system: str, target: Target | None, found: Llamafile | None) -> Iterator[Finding]:
    if target is None:
        able = ", ".join(sorted(each.name for each in _ABLE))
        yield Finding(f"there is no worker for its system, {system}", f"they are for {able}")
    elif found is not None and target.name not in [r["target"] for r in found.runtimes]:
        yield Finding(
            f"{found.path} has no program for its system, {system}",
            f"build it again with --target {target.name} as well",
        )


def _processor(target: Target | None, flags: str) -> Iterator[Finding]:
    needed = LOWEST.get(target.arch, ()) if target else ()
    lacking = [flag for flag in needed if flag not in flags.split()]
    if flags and lacking:
        yield Finding(
            f"its processor lacks {', '.join(lacking)}",
            "it is older than what the programs are made for (SSE4.2, 2008); there is no remedy",
        )


def _tools(lacking: Sequence[str]) -> Iterator[Finding]:
    if lacking:
        yield Finding(
            f"{', '.join(lacking)} can't be found there", "install what has them on that machine"
        )


def _place(
    said: Sequence[tuple[str, str]], facts: Mapping[str, str], size: int
) -> Iterator[Finding]:
    disk = _bytes(facts, "disk")
    if "place" not in facts:
        unfit = "; ".join(what for about, what in said if about == "unfit")
        yield Finding(
            f"there is no place for the program: {unfit}",
            "set PYLLAMAFILE_CACHE there (SetEnv in sshd_config) to a directory of that user's, "
            "where programs may run",
        )
    elif disk is not None and disk < 2 * size:  # the packed one stands beside it for a moment
        yield Finding(
            f"{facts['place']} has {disk / 1e6:.0f} MB free, and the program takes "
            f"{2 * size / 1e6:.0f} while it is unpacked",
            "make room there",
        )
    if "tmp" in facts:
        yield Finding(
            f"{facts['tmp']} can't be written to", "set TMPDIR there to a directory that can be"
        )


def _sandbox(target: Target | None, lsm: str | None) -> Iterator[Finding]:
    if target and target.os == "linux" and lsm is not None and "landlock" not in lsm.split(","):
        yield Finding(
            "its kernel has no Landlock, so files are not confined in the worker's sandbox",
            "a kernel from 6.7 on has it, unless it was built or started without",
            fatal=False,
        )
