#!/usr/bin/env python3
"""Runs a file on a Linux of its own: a kernel of Debian's, in a machine that qemu emulates.

    scripts/linux_machine.py [--kernel bullseye|bookworm|trixie] [--on amd64|arm64]
        FILE [ARGUMENT...]

qemu-aarch64-static runs arm64 programs on this machine's kernel, and knows neither seccomp nor
Landlock. Here the kernel is one for that processor. The machine has nothing but that kernel,
busybox and the file, in its memory; it has no network but its own loopback. What the file writes
comes out when it has ended, and so does its exit code. Kernel and busybox are fetched the first
time, from the mirror that apt has, and kept in the cache. This takes no root.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import in_venv

if __name__ == "__main__":
    in_venv.ensure("runtimes", "pyllamafile")

from filelock import FileLock

from pyllamafile import UnavailableError, native
from pyllamafile.native.building import debian


class MachineError(Exception):
    """A machine that didn't come as far as to run anything, in one line."""


@dataclass(frozen=True)
class Emulator:
    """How a processor's machine is emulated."""

    program: str
    package: str
    words: tuple[str, ...]
    console: str  # what its kernel calls the line that this program reads


EMULATORS = {
    "amd64": Emulator(
        "qemu-system-x86_64",
        "qemu-system-x86",
        ("-M", "pc", "-cpu", "max"),
        "ttyS0",
    ),
    "arm64": Emulator(
        "qemu-system-aarch64", "qemu-system-arm", ("-M", "virt", "-cpu", "neoverse-n1"), "ttyAMA0"
    ),
}
# Debian's releases, by their kernels: the oldest that we run on has no Landlock, the others have
# its ABI 2 and 6.
KERNELS = {"bullseye": "5.10", "bookworm": "6.1", "trixie": "6.12"}
SPARE = 512  # MiB of memory, beside the files
PATIENCE = 900  # seconds that it may all take, on a busy machine
OUT, ERRORS, CODE = "== what it wrote", "== and its errors", "== and how it ended:"

INIT = f"""\
#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin HOME=/root TERM=dumb
mount -t proc none /proc
mount -t sysfs none /sys
mount -t devtmpfs none /dev
mkdir /dev/pts /dev/shm
mount -t devpts none /dev/pts
mount -t tmpfs none /tmp
ip link set lo up
cd /root
sh /command </dev/null >/tmp/.out 2>/tmp/.err
code=$?
echo '{OUT}'
od -An -v -tx1 /tmp/.out
echo '{ERRORS}'
od -An -v -tx1 /tmp/.err
echo '{CODE}' $code
poweroff -f
"""


def run(
    files: Mapping[str, Path], command: str, *, on: str = "arm64", kernel: str = "trixie"
) -> subprocess.CompletedProcess[bytes]:
    """Start a machine, run a command in it, and end it.

    Args:
        files: What is in the folder in which the command runs, by its names there.
        command: For busybox's sh, as root.
        on: The processor; a key of EMULATORS.
        kernel: A key of KERNELS.

    Returns:
        What the command wrote, and its exit code.

    Raises:
        MachineError: It started no Linux.
        UnavailableError: Something lacks that this takes.
        TimeoutExpired: It took longer than PATIENCE.
    """
    emulator = EMULATORS[on]
    contents = {name: path.read_bytes() for name, path in files.items()}
    program = debian.program(emulator.program, emulator.package)
    root = fetched(on, kernel)
    with tempfile.TemporaryDirectory() as folder:
        image = Path(folder) / "files"
        with image.open("wb") as out:
            for name in ("bin", "dev", "proc", "root", "sys", "tmp"):
                out.write(entry(name, 0o040755))
            out.write(entry("bin/busybox", 0o100755, (root / "busybox").read_bytes()))
            out.write(entry("init", 0o100755, INIT.encode()))
            out.write(entry("command", 0o100644, command.encode()))
            for name, content in contents.items():
                out.write(entry(f"root/{name}", 0o100755, content))
            out.write(entry("TRAILER!!!", 0))
            memory = SPARE + 3 * (out.tell() >> 20)
        words = [program, *emulator.words, "-m", str(memory), "-smp", str(os.cpu_count() or 1)]
        words += ["-display", "none", "-monitor", "none", "-nic", "none", "-no-reboot"]
        words += ["-serial", "stdio", "-kernel", str(root / "vmlinuz"), "-initrd", str(image)]
        words += ["-append", f"console={emulator.console} quiet loglevel=1 panic=-1"]
        options = {"stdin": subprocess.DEVNULL, "capture_output": True, "timeout": PATIENCE}
        done = subprocess.run(words, **options)
    said = done.stdout.decode(errors="replace").replace("\r", "")
    if found := re.search(f"{OUT}\n(.*){ERRORS}\n(.*){CODE} ([0-9]+)\n", said, re.DOTALL):
        parts = [bytes.fromhex(part) for part in found.groups()[:2]]
        return subprocess.CompletedProcess(command, int(found[3]), *parts)
    last = (said + done.stderr.decode(errors="replace")).strip().splitlines()[-1:]
    raise MachineError(f"{emulator.program} starts no Linux here: {' '.join(last)}")


def entry(name: str, mode: int, content: bytes = b"") -> bytes:
    """A file of the kernel's first file system (Documentation/driver-api/early-userspace)."""
    number = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big")
    fields = (number, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name) + 1, 0)
    head = b"070701" + b"".join(b"%08X" % field for field in fields) + name.encode() + b"\0"
    return padded(head) + padded(content)


def padded(data: bytes) -> bytes:
    return data + b"\0" * (-len(data) % 4)


def place(on: str, kernel: str) -> Path:
    """Where the kernel and busybox are, once they were fetched."""
    return native.cache() / "linux-machines" / f"{on}-{kernel}"


def at_hand(on: str) -> list[str]:
    """The kernels that machines can be started with, without fetching anything."""
    if shutil.which(EMULATORS[on].program) is None:
        return []
    return [kernel for kernel in KERNELS if place(on, kernel).is_dir()]


def fetched(on: str, kernel: str) -> Path:
    """The folder with the kernel and busybox in it, fetched if need be.

    Raises:
        UnavailableError: They can't be.
    """
    root = place(on, kernel)
    root.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(root.with_suffix(".lock")):
        if not root.is_dir():
            with tempfile.TemporaryDirectory(dir=root.parent) as draft:
                names = (f"linux-image-cloud-{on}", "busybox-static")
                what, folder = f"Debian's Linux {KERNELS[kernel]}", Path(draft) / "packages"
                packages = debian.download(folder, names, on, what, kernel)
                unpacked = debian.unpack(packages, Path(draft) / "all")
                (kept := Path(draft) / "kept").mkdir()
                for name, pattern in (("vmlinuz", "boot/vmlinuz-*"), ("busybox", "**/bin/busybox")):
                    next(unpacked.glob(pattern)).rename(kept / name)
                kept.rename(root)
    return root


def main() -> None:
    """Run a file with its arguments."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kernel", choices=KERNELS, default="trixie", help="of which Debian")
    parser.add_argument("--on", choices=EMULATORS, default="arm64", help="which processor")
    parser.add_argument("file", type=Path, metavar="FILE")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, metavar="ARGUMENT")
    options = parser.parse_args()
    command = shlex.join(["./file", *options.arguments])
    try:
        done = run({"file": options.file}, command, on=options.on, kernel=options.kernel)
    except OSError as error:
        sys.exit(f"error: {error.filename}: {error.strerror}")
    except subprocess.TimeoutExpired:
        sys.exit(f"error: {options.file} had not ended after {PATIENCE} seconds")
    except (MachineError, UnavailableError) as error:
        sys.exit(f"error: {error}")
    sys.stdout.buffer.write(done.stdout)
    sys.stderr.buffer.write(done.stderr)
    sys.exit(done.returncode)


if __name__ == "__main__":
    main()
