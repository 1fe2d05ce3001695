"""Why a llamafile doesn't start here: what can be in its way, and the remedy.

Nothing is started and nothing is changed. What is looked at is what the launch script and the
runtime go by (launcher/launch.sh, native/cpu.cpp), and what systems do with a file before either
is asked.
"""

from __future__ import annotations

import os
import platform
import shutil
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pyllamafile.ops.inspect import Report, inspect
from pyllamafile.ops.verify import verify
from pyllamafile.targets import TARGETS, TOO_LARGE, Target, host

TOOLS = ("dd", "gzip", "ls", "uname", "mktemp", "chmod", "mv", "mkdir", "rm", "wc")
"""What the launch script calls, where its program is not unpacked yet."""

BEHIND_PATH = ("/usr/bin", "/bin", "/usr/sbin", "/sbin")
"""Where the launch script looks as well."""

LOWEST = {"amd64": ("ssse3", "sse4_1", "sse4_2", "popcnt")}
"""What the lowest level of the kernels takes, as /proc/cpuinfo calls it."""


@dataclass(frozen=True)
class Machine:
    """What a file would be started on.

    Attributes:
        target: The row of the table that it is, or None.
        environment: The variables of whoever starts the file.
        root: Where ``proc`` and ``sys`` are.
    """

    target: Target | None = field(default_factory=host)
    environment: Mapping[str, str] = field(default_factory=lambda: os.environ)
    root: Path = Path("/")


@dataclass(frozen=True)
class Finding:
    """Something that is in the way.

    Attributes:
        what: What it is.
        remedy: What to do about it.
        fatal: Whether the file can't start; otherwise it may, or only sometimes.
    """

    what: str
    remedy: str
    fatal: bool = True


def examine(
    path: str | os.PathLike[str] | None = None, machine: Machine | None = None
) -> list[Finding]:
    """Look for what keeps a file from starting.

    Args:
        path: A llamafile; without one, only the machine is looked at.
        machine: What it would start on; by default this one.

    Raises:
        PyllamafileError: There is no such file, or it is not a zip.
    """
    here = machine or Machine()
    findings = [*_processor(here), *_tools(here)]
    if path is None:
        return [*findings, *_handlers(here), *_cache(here, 0)]
    file = Path(path)
    report = inspect(file)
    with file.open("rb") as stream:
        begins = stream.read(4)
    of_windows = begins[:2] == b"MZ"
    return [
        *_damage(file),
        *_permission(file),
        *_place(file),
        *findings,
        *(_handlers(here) if of_windows else ()),
        *(_shell(file, here) if of_windows else ()),
        *_programs(report, here),
        *(_size(file, report) if of_windows else ()),
        *_memory(report, here),
        *(_cache(here, _unpacked_size(report, here)) if begins != b"\x7fELF" else ()),
    ]


# The file


def _damage(file: Path) -> Iterator[Finding]:
    for problem in verify(file, contents=False):
        yield Finding(
            f"{problem.where}: {problem.what}",
            f"get the file again; `pyllamafile verify {file}` lists all that is wrong",
        )


def _permission(file: Path) -> Iterator[Finding]:
    if not file.stat().st_mode & 0o111 and os.name == "posix":
        yield Finding("the file is not executable", f"chmod +x {file}")


def _place(file: Path) -> Iterator[Finding]:
    if _noexec(file):
        yield Finding(
            f"{file} is on a file system that lets nothing be executed (noexec)",
            f"start it as `sh {file}`, or copy it elsewhere",
        )


def _noexec(path: Path) -> bool:
    flag = getattr(os, "ST_NOEXEC", 0)
    return bool(flag) and bool(os.statvfs(path).f_flag & flag)


def _programs(report: Report, here: Machine) -> Iterator[Finding]:
    names = [str(runtime.get("target")) for runtime in report.runtimes]
    if not names:
        yield Finding(
            "no program of pyllamafile's is in it",
            f"`pyllamafile build` makes a file that has one out of its weights: {report.path}",
        )
    elif here.target is None:
        system = f"{platform.system()} {platform.machine()}"
        yield Finding(f"there is no program for {system}", f"it runs on {', '.join(TARGETS)}")
    elif here.target.name not in names:
        yield Finding(
            f"no program for {here.target.name} is in it, only for {', '.join(names)}",
            f"build it again with --target {here.target.name}",
        )


def _size(file: Path, report: Report) -> Iterator[Finding]:
    names = {
        file.with_name(f"{file.name.removesuffix('.llamafile')}.exe"),
        file.with_suffix(".exe"),
    }
    if report.size >= TOO_LARGE and not any(name.is_file() for name in names - {file}):
        yield Finding(
            "Windows starts no program of 4 GiB or more, and no .exe is beside the file",
            "build it again: `pyllamafile build` writes one beside it",
            fatal=False,
        )


# The machine


def _handlers(here: Machine) -> Iterator[Finding]:
    """Linux can be told to give files that begin in some way to another program."""
    try:
        entries = sorted((here.root / "proc/sys/fs/binfmt_misc").iterdir())
    except OSError:
        return
    for entry in entries:
        try:
            lines = entry.read_text().splitlines()
        except OSError:  # `register` is for writing alone
            continue
        facts = dict(line.split(" ", 1) for line in lines if " " in line)
        first = facts.get("magic", "").startswith("4d5a") and facts.get("offset", "0") == "0"
        if "enabled" in lines and first:
            yield Finding(
                f"{entry.name} takes every file that begins with MZ, and gives it to "
                f"{facts.get('interpreter', 'another program')}",
                f"start it as `sh FILE`, or switch that off: echo 0 | sudo tee {entry}",
            )


def _shell(file: Path, here: Machine) -> Iterator[Finding]:
    shell = Path(here.environment.get("SHELL", "")).name
    if shell in ("mksh", "lksh"):
        yield Finding(f"{shell} starts no file that begins with MZ", f"start it as `sh {file}`")
    elif shell in ("zsh", "fish"):
        yield Finding(
            f"{shell} starts such a file only in newer versions (zsh from 5.9, fish from 3.3)",
            f"start it as `sh {file}` if it says: exec format error",
            fatal=False,
        )


def _processor(here: Machine) -> Iterator[Finding]:
    needed = LOWEST.get(here.target.arch, ()) if here.target else ()
    try:
        text = (here.root / "proc/cpuinfo").read_text()
    except OSError:
        return
    has = {word for line in text.splitlines() if line.startswith("flags") for word in line.split()}
    lacking = [name for name in needed if name not in has]
    if has and lacking:
        yield Finding(
            f"the processor lacks {', '.join(lacking)}",
            "it is older than what the programs are made for (SSE4.2, 2008); there is no remedy",
        )


def _tools(here: Machine) -> Iterator[Finding]:
    if here.target and here.target.os == "windows":
        return
    path = os.pathsep.join([here.environment.get("PATH", ""), *BEHIND_PATH])
    lacking = [tool for tool in TOOLS if not shutil.which(tool, path=path)]
    if lacking:
        yield Finding(
            f"the first start takes {', '.join(lacking)}, which can't be found",
            "install them, or build with --format elf, which unpacks nothing",
        )


def _memory(report: Report, here: Machine) -> Iterator[Finding]:
    weights = sum(entry.stored_size for entry in report.entries if entry.name.endswith(".gguf"))
    limits = {"the machine": _total_memory(here), "the control group": _group_limit(here)}
    for who, limit in limits.items():
        if limit is not None and weights > limit:
            yield Finding(
                f"the weights have {weights / 1e9:.1f} GB, {who} has {limit / 1e9:.1f} of memory",
                "take smaller weights (--quantize Q4_K_M); it runs, but reads them again and again",
                fatal=False,
            )


def _total_memory(here: Machine) -> int | None:
    try:
        lines = (here.root / "proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemTotal:"))
    except (OSError, StopIteration, ValueError, IndexError):
        return None


def _group_limit(here: Machine) -> int | None:
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        try:
            return int((here.root / "sys/fs/cgroup" / name).read_text())
        except (OSError, ValueError):  # no such limit is a word
            continue
    return None


# The cache


def _unpacked_size(report: Report, here: Machine) -> int:
    for runtime in report.runtimes:
        size = runtime.get("size")
        if here.target and runtime.get("target") == here.target.name and isinstance(size, int):
            return size
    return 0


def _cache(here: Machine, size: int) -> Iterator[Finding]:
    """The places that the launch script tries, in its order: is one of them good?"""
    if not here.target or here.target.os == "windows":
        return
    wrong = []
    for base in _places(here.environment):
        problem = _unfit(base / "run", size)
        if problem is None:
            return
        wrong.append(f"{base / 'run'} {problem}")
    yield Finding(
        f"there is no place to unpack the program to: {'; '.join(wrong)}",
        "set PYLLAMAFILE_CACHE to a directory that only you can write to, "
        "and where programs may run",
    )


def _places(environment: Mapping[str, str]) -> Iterator[Path]:
    if given := environment.get("PYLLAMAFILE_CACHE"):
        yield Path(given).absolute()
        return
    for variable, below in (("XDG_CACHE_HOME", "pyllamafile"), ("HOME", ".cache/pyllamafile")):
        if environment.get(variable, "").startswith("/"):
            yield Path(environment[variable]) / below
    for base in (environment.get("TMPDIR", "/var/tmp"), "/var/tmp", "/tmp"):
        yield Path(base) / f"pyllamafile-{os.getuid()}"


def _unfit(folder: Path, size: int) -> str | None:
    """Why a program can't be unpacked to a folder, or None if it can."""
    there = next(path for path in (folder, *folder.parents) if path.exists())
    status = there.stat()
    if not stat.S_ISDIR(status.st_mode):
        return f"can't be made: {there} is no directory"
    if not os.access(there, os.W_OK | os.X_OK):
        return f"can't be written to ({there})"
    if there == folder and status.st_uid != os.getuid():
        return "belongs to somebody else"
    if there == folder and status.st_mode & 0o022:
        return "can be written to by others"
    if _noexec(there):
        return "is where nothing may be executed (noexec)"
    system = os.statvfs(there)
    if system.f_flag & os.ST_RDONLY:
        return "is on a file system that can't be written to"
    if system.f_bavail * system.f_frsize < size:
        return f"has no room for {size / 1e6:.0f} MB"
    return None
