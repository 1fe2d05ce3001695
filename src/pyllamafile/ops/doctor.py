"""Why a llamafile doesn't start here: what can be in its way, and the remedy.

Nothing is started and nothing is changed. What is looked at is what the launch script and the
runtime go by (launcher/launch.sh, native/runtime), and what systems do with a file before either
is asked. What they don't go by, such as the manifest, keeps no file from starting.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import platform
import re
import shutil
import stat
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from pyllamafile import arguments, engine, llamafile
from pyllamafile import machine as machines
from pyllamafile.errors import AccessError, PyllamafileError, RefusedError
from pyllamafile.llamafile import ARGS, Llamafile
from pyllamafile.ops.verify import verify
from pyllamafile.paths import path_of
from pyllamafile.targets import TARGETS, TOO_LARGE, Target, host

TOOLS = ("dd", "gzip", "ls", "uname", "id", "chmod", "touch", "mv", "mkdir", "rm", "wc")
"""What the launch script needs, where its program is not unpacked yet."""

BEHIND_PATH = ("/usr/bin", "/bin", "/usr/sbin", "/sbin")
"""Where the launch script looks as well."""

LOWEST = {"amd64": ("ssse3", "sse4_1", "sse4_2", "popcnt")}
"""What the lowest level of the kernels takes, as /proc/cpuinfo calls it."""


def _landlock() -> int:
    """The ABI of this kernel's Landlock; 0 where there is none."""
    create_ruleset, version = 444, 1  # landlock_create_ruleset(2), the same on all processors
    call = ctypes.CDLL(None).syscall
    call.restype = ctypes.c_long
    arguments = (ctypes.c_long(create_ruleset), None, ctypes.c_size_t(0), ctypes.c_uint(version))
    return max(0, int(call(*arguments)))


@dataclass(frozen=True)
class Machine:
    """What a file would be started on.

    Attributes:
        target: The row of the table that it is, or None.
        environment: The variables of whoever starts the file.
        root: Where ``proc`` and ``sys`` are.
        landlock: Says which ABI of Landlock Linux has, 0 for none.
    """

    target: Target | None = field(default_factory=host)
    environment: Mapping[str, str] = field(default_factory=lambda: os.environ)
    root: Path = Path("/")
    landlock: Callable[[], int] = _landlock


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
    if path is None:
        return [
            *_processor(here),
            *_sandbox(here),
            *_tools(here),
            *_handlers(here),
            *_cache(here, 0),
        ]
    file = path_of(path)
    found = llamafile.read(file)
    begins = _range(file, 0, 4)
    of_windows, elf = begins[:2] == b"MZ", begins == b"\x7fELF"
    return [
        *_engine(found, here, begins),
        *_zip(found),
        *_manifest(found),
        *_arguments(found),
        *_permission(file),
        *_place(file),
        *_processor(here),
        *_sandbox(here),
        *(_tools(here) if not elf else ()),
        *(_handlers(here) if of_windows else ()),
        *(_shell(file, here) if of_windows else ()),
        *_programs(found, here),
        *(_size(found) if of_windows else ()),
        *_memory(found, here),
        *_gpus(found, here),
        *(_cache(here, _unpacked_size(found, here)) if not elf else ()),
    ]


# The file


def _is_ours(found: Llamafile) -> bool:
    """Whether there should be an engine of ours in it, whatever became of the manifest."""
    return found.maker not in ("foreign", "none")


def _broken(found: Llamafile, what: str) -> Finding:
    remedy = f"get the file again; `pyllamafile verify {found.path}` lists all that is wrong"
    return Finding(what, remedy)


def _engine(found: Llamafile, here: Machine, begins: bytes) -> Iterator[Finding]:
    """The head, and the program for this machine: as they were built?"""
    if not _is_ours(found):
        return
    if not begins.startswith((b"#!/b", b"MZ", b"\x7fELF")):
        yield _broken(found, "head: neither a script nor a program is at the front of the file")
        return
    if not found.ours or found.interrupted:
        return  # the script knows by itself where its programs are
    parts = [("head", 0, found.manifest["head"]["size"], found.manifest["head"]["sha256"])]
    for runtime in found.runtimes:
        if here.target and runtime["target"] == here.target.name and runtime["offset"]:
            size, digest = runtime["packed_size"], runtime["packed_sha256"]
            parts.append((f"runtime {here.target.name}", runtime["offset"], size, digest))
    for where, offset, size, digest in parts:
        whole = size <= _MOST_PART and offset + size <= found.archive.size
        data = _range(found.path, offset, size) if whole else b""
        if hashlib.sha256(data).hexdigest() != digest:
            yield _broken(found, f"{where}: damaged, its SHA-256 is not the manifest's")


_MOST_PART = 1 << 28  # bytes of a head or a packed program; they have some MiB


def _zip(found: Llamafile) -> Iterator[Finding]:
    try:
        with found.path.open("rb") as file:
            there = _has_directory(file)
    except OSError as error:
        raise AccessError(f"{found.path}: {error.strerror}", path=found.path) from error
    if _is_ours(found) and not there:
        yield _broken(
            found, "its zip is not where its end says: something before it was added or cut off"
        )


def _has_directory(file: BinaryIO) -> bool:
    """Whether the runtime finds the zip: container.cpp goes by absolute offsets alone."""

    def get(at: int, size: int) -> bytes:
        file.seek(min(max(at, 0), length))
        return file.read(size)

    length = file.seek(0, os.SEEK_END)
    base = max(length - _END.size - 0xFFFF, 0)
    tail = get(base, length - base)
    at = tail.rfind(b"PK\5\6", 0, max(len(tail) - _END.size + 4, 0))
    while at >= 0 and at + _END.size + _END.unpack_from(tail, at)[1] > len(tail):
        at = tail.rfind(b"PK\5\6", 0, at + 3)
    if at < 0:
        return False
    offset, _ = _END.unpack_from(tail, at)
    locator = get(base + at - 20, 20) if base + at >= 20 else b""
    if locator[:4] == b"PK\6\7":
        (at,) = struct.unpack_from("<8xQ", locator)
        record = get(at, 56)
        if record[:4] != b"PK\6\6" or len(record) < 56:
            return False
        (offset,) = struct.unpack_from("<48xQ", record)
    return get(offset, 4) == b"PK\1\2"


_END = struct.Struct("<16xIH")  # where the directory begins, and the length of the comment


def _manifest(found: Llamafile) -> Iterator[Finding]:
    """What is not as it was built, and keeps the file from nothing."""
    file = found.path
    if found.interrupted:
        yield Finding(
            "an upgrade of it was interrupted", f"`pyllamafile upgrade {file}` ends it", fatal=False
        )
        return
    if found.maker == "newer":
        remedy = "nothing, to start it; pip install --upgrade pyllamafile brings what can change it"
        yield Finding(str(found.problem), remedy, fatal=False)
        return
    if found.maker == "damaged":
        remedy = "nothing, to start it; get the file again to change it"
        yield Finding(f"its manifest can't be understood: {found.problem}", remedy, fatal=False)
        return
    if not found.ours:
        return
    problems = [p for p in verify(file, contents=False) if p.where not in (ARGS, "head")]
    if problems:
        first, rest = problems[0], len(problems) - 1
        more = f", and {rest} more" if rest else ""
        yield Finding(
            f"not all is as it was built: {first.where}: {first.what}{more}",
            f"nothing, if that was meant; `pyllamafile verify {file}` lists all of it",
            fatal=False,
        )


def _arguments(found: Llamafile) -> Iterator[Finding]:
    """Can the file start with its default arguments?"""
    if ARGS not in found.members or not _is_ours(found):
        return
    remedy = f"give it others: pyllamafile add {found.path} FILE=.args"
    weights = [m.name for m in found.weights if m.size == m.stored_size]
    try:
        text = found.content(ARGS, arguments.MOST)
    except PyllamafileError as error:
        too_large = found.members[ARGS].size > arguments.MOST
        what = error.message.removeprefix(f"{found.path}: ")
        yield Finding(f".args: {what}", remedy, fatal=too_large)
        return
    if fault := arguments.fault(text, weights):
        yield Finding(f".args: {fault}", remedy)
        return
    try:
        engine.check_arguments(text, ".args")
    except RefusedError as error:
        yield Finding(error.message, remedy)


def _range(file: Path, at: int, size: int) -> bytes:
    try:
        with file.open("rb") as stream:
            stream.seek(at)
            return stream.read(size)
    except OSError as error:
        raise AccessError(f"{file}: {error.strerror}", path=file) from error


def _permission(file: Path) -> Iterator[Finding]:
    if not file.stat().st_mode & 0o111:
        yield Finding("the file is not executable", f"chmod +x {file}")


def _place(file: Path) -> Iterator[Finding]:
    if _noexec(file):
        yield Finding(
            f"{file} is on a file system that lets nothing be executed (noexec)",
            f"start it as `sh {file}`, or copy it elsewhere",
        )


def _noexec(path: Path) -> bool:
    flag = getattr(os, "ST_NOEXEC", 0)  # not everywhere
    return bool(os.statvfs(path).f_flag & flag)


def _programs(found: Llamafile, here: Machine) -> Iterator[Finding]:
    names = [str(runtime["target"]) for runtime in found.runtimes]
    if not _is_ours(found) or (found.ours and not names):
        yield Finding(
            "no program of pyllamafile's is in it",
            f"`pyllamafile upgrade {found.path}` puts one under its weights"
            if found.weights
            else "`pyllamafile build` makes a file that has one",
        )
    elif here.target is None:
        system = f"{platform.system()} {platform.machine()}"
        yield Finding(f"there is no program for {system}", f"it runs on {', '.join(TARGETS)}")
    elif names and here.target.name not in names:
        yield Finding(
            f"no program for {here.target.name} is in it, only for {', '.join(names)}",
            f"build it again with --target {here.target.name}",
        )


def _size(found: Llamafile) -> Iterator[Finding]:
    file = found.path
    names = {
        file.with_name(f"{file.name.removesuffix('.llamafile')}.exe"),
        file.with_suffix(".exe"),
    }
    if found.archive.size >= TOO_LARGE and not any(name.is_file() for name in names - {file}):
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
            lines = entry.read_text(errors="replace").splitlines()
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


def _sandbox(here: Machine) -> Iterator[Finding]:
    """What the runtime would confine itself with, and this system lacks."""
    system = here.target.os if here.target else None
    if system == "netbsd":
        remedy = "nothing, to start it; as a user of its own it can do less harm"
        yield Finding("NetBSD has nothing for a sandbox", remedy, fatal=False)
    if system != "linux":
        return
    abi = here.landlock()
    try:
        seccomp = "\nSeccomp:" in (here.root / "proc/self/status").read_text()
    except OSError:
        seccomp = True  # nobody knows
    lacking = [
        *(["Landlock, so any file that you may read can be read"] if abi < 1 else []),
        *([f"Landlock of ABI 4 (it has {abi}), so ports are not confined"] if 0 < abi < 4 else []),
        *([] if seccomp else ["seccomp, so system calls are not confined"]),
    ]
    if lacking:
        newer = "a kernel from 6.7 on has all of it, unless it was built or started without"
        yield Finding(f"the sandbox lacks {'; and '.join(lacking)}", newer, fatal=False)


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


def _memory(found: Llamafile, here: Machine) -> Iterator[Finding]:
    weights = sum(member.stored_size for member in found.weights)
    has = machines.memory(here.root)
    for owner, size in {"the machine": has.total, "the control group": has.group}.items():
        if size is not None and weights > size:
            yield Finding(
                f"the weights have {weights:,} bytes, and {owner} has {size:,} of memory",
                "take smaller weights (--quantize Q4_K_M); it runs, but reads them again and again",
                fatal=False,
            )


# GPUs

GPU_MAKERS = {"0x1002": "AMD", "0x10de": "NVIDIA", "0x8086": "Intel"}
"""Whose GPUs compute, by the number that a PCI device has of its maker."""

_LIBRARIES = (
    *("usr/lib/*", "usr/lib64", "usr/lib", "lib/*", "lib64", "usr/local/lib"),
    *("run/opengl-driver/lib", "usr/lib/wsl/lib"),
)
# What starts a program that takes glibc (handover/posix.cpp).
_LINKERS = {"amd64": "lib64/ld-linux-x86-64.so.2", "arm64": "lib/ld-linux-aarch64.so.1"}
_MANIFESTS = (
    *("usr/share", "usr/local/share", "etc", "usr/local/etc", "etc/xdg"),
    *("run/opengl-driver/share", "usr/lib/wsl"),
)
# Variables that say where else libraries, or the manifests of drivers, may be. What isn't seen may
# be there. Desktops set those of XDG, whose folders are looked into.
_LIBRARIES_ELSEWHERE = ("LD_LIBRARY_PATH",)
_DRIVERS_ELSEWHERE = ("VK_DRIVER_FILES", "VK_ICD_FILENAMES", "VK_ADD_DRIVER_FILES")
_XDG = ("XDG_DATA_HOME", "XDG_DATA_DIRS", "XDG_CONFIG_HOME", "XDG_CONFIG_DIRS")


def _gpus(found: Llamafile, here: Machine) -> Iterator[Finding]:
    """Why a GPU would not be used; gpu/devices.cpp and vulkan/drivers.cpp look for the same."""
    if not here.target or here.target.os != "linux" or here.target.name not in found.gpus:
        return
    devices = here.root / "dev"
    nodes = [*devices.glob("dri/renderD*"), *devices.glob("nvidiactl"), *devices.glob("dxg")]
    if not nodes:
        if cards := _cards(here):
            yield Finding(
                f"GPU: the machine has one of {cards}, and there is no device for it in /dev",
                "in a container, pass it on: --device /dev/dri, or --gpus all for NVIDIA's; "
                "elsewhere install its driver",
                fatal=False,
            )
        return
    closed = [f"/{node.relative_to(here.root)}" for node in nodes if not os.access(node, _BOTH)]
    if len(closed) == len(nodes):
        yield Finding(
            f"GPU: {closed[0]} can't be used by you",
            "sudo usermod -aG render,video $USER, and log in again",
            fatal=False,
        )
    if not (here.root / _LINKERS[here.target.arch]).exists():
        yield Finding(
            "GPU: this Linux has no glibc, which drivers are made for",
            "a distribution with glibc 2.28 or newer, such as Debian, Fedora or Ubuntu",
            fatal=False,
        )
        return
    told = {variable for variable, value in here.environment.items() if value}
    if told.isdisjoint(_LIBRARIES_ELSEWHERE) and not _any(here, _LIBRARIES, "libvulkan.so.1"):
        yield Finding(
            "GPU: there is no Vulkan loader (libvulkan.so.1)",
            "apt install libvulkan1, or what your system calls it",
            fatal=False,
        )
    elif told.isdisjoint(_DRIVERS_ELSEWHERE) and not _any(
        here, (*_MANIFESTS, *_own_folders(here)), "vulkan/icd.d/*.json"
    ):
        yield Finding(
            "GPU: there is no driver for Vulkan",
            "apt install mesa-vulkan-drivers for AMD's and Intel's; NVIDIA's driver brings its own",
            fatal=False,
        )
    yield from _tried(here)


def _own_folders(here: Machine) -> Iterator[str]:
    """Where a user's own manifests are, as paths below the root."""
    home = here.environment.get("HOME", "")
    own = [f"{home}/.local/share", f"{home}/.config"]
    for path in (*own, *(":".join(here.environment.get(name, "") for name in _XDG)).split(":")):
        if path.startswith("/"):
            yield path.lstrip("/")


_BOTH = os.R_OK | os.W_OK


def _cards(here: Machine) -> str:
    """The makers of the GPUs on PCI."""
    makers = set()
    for device in (here.root / "sys/bus/pci/devices").glob("*"):
        with contextlib.suppress(OSError):
            if (device / "class").read_text().startswith("0x03"):
                makers.add(GPU_MAKERS.get((device / "vendor").read_text().strip(), ""))
    return " and ".join(sorted(makers - {""}))


def _any(here: Machine, folders: Iterable[str], pattern: str) -> bool:
    return any(any(here.root.glob(f"{folder}/{pattern}")) for folder in folders)


def _tried(here: Machine) -> Iterator[Finding]:
    """What the last trial found wrong: gpu/findings.cpp keeps it."""
    records: list[tuple[float, Path]] = []
    for base in _places(here.environment):
        with contextlib.suppress(OSError):
            records += [(path.stat().st_mtime, path) for path in base.glob("gpus/*.gpu")]
    if not records:
        return
    try:
        text = max(records)[1].read_text(errors="replace")
    except OSError:
        return
    names = dict(re.findall(r"^gpu: device (\d+) (.*)$", text, re.M))
    wrong = [
        (names.get(n, n), why) for n, why in re.findall(r"^gpu: wrong (\d+) (.*)$", text, re.M)
    ]
    wrong += [("", why) for why in re.findall(r"^gpu: problem (.*)$", text, re.M)]
    for name, why in wrong:
        yield Finding(
            f"GPU: {name}: {why}" if name else f"GPU: {why}",
            "a newer driver may do better; it is tried again after a day, or after --clean-cache",
            fatal=False,
        )


# The cache


def _unpacked_size(found: Llamafile, here: Machine) -> int:
    name = here.target.name if here.target else None
    sizes = [runtime["size"] for runtime in found.runtimes if runtime["target"] == name]
    return int(sizes[0]) if sizes else 0


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
        f"there is no place to unpack the program to: {'; '.join(wrong) or 'none is named'}",
        "set PYLLAMAFILE_CACHE to a directory that only you can write to, "
        "and where programs may run",
    )


def _places(environment: Mapping[str, str]) -> Iterator[Path]:
    """FORMAT.md, 2.2: each BASE in turn."""
    if given := environment.get("PYLLAMAFILE_CACHE"):
        yield Path(given).absolute()
        return
    cache, home = environment.get("XDG_CACHE_HOME", ""), environment.get("HOME", "")
    if cache.startswith("/"):
        yield Path(cache) / "pyllamafile"
    if home.startswith("/") and _owner(Path(home)) == os.geteuid():
        yield Path(home) / ".cache/pyllamafile"
    for base in (environment.get("TMPDIR") or "/var/tmp", "/var/tmp", "/tmp"):
        place = Path(base) / f"pyllamafile-{os.geteuid()}"
        linked = _is_link(place) or _is_link(place / "run")
        if base.startswith("/") and _owner(Path(base)) is not None and not linked:
            yield place


def _owner(path: Path) -> int | None:
    with contextlib.suppress(OSError):
        return path.stat().st_uid
    return None


def _is_link(path: Path) -> bool:
    with contextlib.suppress(OSError):
        return stat.S_ISLNK(path.lstat().st_mode)
    return False


def _unfit(folder: Path, size: int) -> str | None:
    """Why a program can't be unpacked to a folder, or None if it can."""
    try:
        there = next(path for path in (folder, *folder.parents) if _exists(path))
        status, base = there.stat(), folder.parent.stat() if _exists(folder.parent) else None
        system = os.statvfs(there)
        effective = os.access in os.supports_effective_ids
        writable = os.access(there, os.W_OK | os.X_OK, effective_ids=effective)
    except OSError as error:
        return f"can't be reached ({error.strerror})"
    if not stat.S_ISDIR(status.st_mode):
        return f"can't be made: {there} is no directory"
    if not writable:
        return f"can't be written to ({there})"
    if there == folder and status.st_uid != os.geteuid():
        return "belongs to somebody else"
    if there == folder and status.st_mode & 0o022:
        return "can be written to by others"
    if base and not _trusted(base):
        return f"is in a folder that others can change ({folder.parent})"
    if _noexec(there):
        return "is where nothing may be executed (noexec)"
    if system.f_flag & os.ST_RDONLY:
        return "is on a file system that can't be written to"
    if system.f_bavail * system.f_frsize < size:
        return f"has no room for {size / 1e6:.0f} MB"
    return None


def _exists(path: Path) -> bool:
    """Raises OSError where that can't be said."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def _trusted(base: os.stat_result) -> bool:
    """Whether nobody else can put another folder in the place of one in here."""
    alone = not base.st_mode & 0o022 or base.st_mode & stat.S_ISVTX
    if base.st_mode & 0o022 == 0o020 and base.st_uid == base.st_gid == os.geteuid():
        return True  # a group of one's own, which is what umask 002 leads to
    return bool(alone) and base.st_uid in (os.geteuid(), 0)
