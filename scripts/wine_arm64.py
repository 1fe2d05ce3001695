#!/usr/bin/env python3
"""Runs a program of Windows on arm64: by Debian's Wine for arm64, which qemu runs.

    scripts/wine_arm64.py [PROGRAM [ARGUMENT...]]

Wine is fetched the first time, from the mirror that apt has. Nothing is installed: the packages are
unpacked into the cache, and two scripts in the unpacked root have qemu run what Wine starts. That
takes neither root nor a binfmt_misc entry. The program gets a Windows of its own, which is removed
afterwards. Without a program, Wine is only fetched.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import in_venv

if __name__ == "__main__":
    in_venv.ensure("runtimes", "pyllamafile")

from filelock import FileLock

from pyllamafile import UnavailableError, native
from pyllamafile.native.building import debian

# The first Debian whose Wine has the libraries of Windows on arm64 as programs of Windows. Those
# that are ELF take variadic calls (printf) as Linux passes them.
SUITE = "trixie"
# Wine, and the libraries that it loads to show no window and play no sound.
PACKAGES = (
    *("wine64", "libwine", "libc6", "libgcc-s1", "libunwind8", "liblzma5"),
    *("libfreetype6", "libpng16-16t64", "zlib1g", "libbz2-1.0", "libbrotli1"),
    *("libfontconfig1", "libexpat1", "fontconfig-config", "fonts-dejavu-core"),
)
QEMU = "qemu-aarch64-static"
# Without BTI: Debian's ntdll.so claims to have its marks, and Wine's own assembly has none.
PROCESSOR = "neoverse-n1"
BIN = "usr/lib/wine"
# Wine starts its server, and every program by way of a preloader, which Debian has not for arm64.
# It writes a long TMPDIR over the end of its memory.
SCRIPT = '#!/bin/sh\nunset TMPDIR\nexec {qemu} -cpu {processor} -L "${{0%/{bin}/{name}}}" {words}\n'
WORDS = {"wineserver": '"${0}64" "$@"', "wine64-preloader": '"$@"'}
BOOT = 180  # seconds that a new Windows may take, on a busy machine
STAY = 60  # seconds that its services stay without a program, even if this process is killed
LEAVE = 10  # seconds that its processes have to leave when it is over


class WineError(Exception):
    """Why no Windows on arm64 can be had here, in one line."""


@dataclass(frozen=True)
class Windows:
    """A Windows on arm64: the words that stand before a program's name, and the environment.

    Under another name than Windows' own (`windows_path`) a program starts, and doesn't find itself.
    """

    words: tuple[str, ...]
    env: dict[str, str]


def windows_path(path: Path) -> str:
    """What Wine calls a path of this machine."""
    return "Z:" + str(path).replace("/", "\\")


@contextlib.contextmanager
def windows() -> Iterator[Windows]:
    """A Windows of its own, which is over with the block, and all that runs in it.

    Raises:
        UnavailableError: There is no Wine for arm64 here, and none can be fetched.
        WineError: It doesn't start.
    """
    root = fetched()
    with tempfile.TemporaryDirectory(prefix="wine-", ignore_cleanup_errors=True) as prefix:
        env = {
            **os.environ,
            "WINEPREFIX": prefix,
            "WINEDEBUG": "-all",
            "WINEDLLOVERRIDES": "winemenubuilder.exe,mscoree,mshtml=",  # nothing to be installed
            "LC_ALL": "C.UTF-8",
        }
        made = Windows((str(root / BIN / "wine64-preloader"), str(root / BIN / "wine64")), env)
        server = root / BIN / "wineserver"
        try:
            # Its services stay from program to program, which then start in a tenth of the time.
            try:
                quiet([server, f"-p{STAY}"], env)
                quiet([*made.words, "wineboot", "--init"], env)
            except subprocess.SubprocessError as error:
                raise WineError(f"Wine for arm64 doesn't start: {error}") from None
            yield made
        finally:
            with contextlib.suppress(subprocess.SubprocessError):
                quiet([server, "-k"], env)
            end(prefix)


def quiet(command: list[str | Path], env: dict[str, str]) -> None:
    """Run a part of Wine, into no pipe: what it leaves running would keep that open."""
    nowhere = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL)
    subprocess.run(command, env=env, cwd=env["WINEPREFIX"], check=True, timeout=BOOT, **nowhere)


def end(prefix: str) -> None:
    """End what runs in a Windows: its server told it to, and not everything obeys."""
    entry = f"WINEPREFIX={prefix}".encode()
    deadline = time.monotonic() + LEAVE
    while running := [pid for pid in processes() if entry in environment(pid)]:
        if time.monotonic() > deadline:
            for pid in running:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        time.sleep(0.1)


def processes() -> list[int]:
    """All processes but this one."""
    found = (int(path.name) for path in Path("/proc").glob("[0-9]*"))
    return [pid for pid in found if pid != os.getpid()]


def environment(pid: int) -> list[bytes]:
    """The environment that a process was started with; empty if that can't be known."""
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return []


def place() -> Path:
    """Where Wine is, if it was fetched as this script does it."""
    recipe = repr((SUITE, PACKAGES, scripts()))
    return native.cache() / "wine-arm64" / hashlib.sha256(recipe.encode()).hexdigest()[:16]


def at_hand() -> bool:
    """Whether programs can be run without fetching anything."""
    return place().is_dir() and shutil.which(QEMU) is not None


def fetched() -> Path:
    """The root with Wine in it, fetched if need be.

    Raises:
        UnavailableError: Something lacks that this takes.
    """
    debian.program(QEMU, "qemu-user-static")
    root = place()
    root.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(root.with_suffix(".lock")):
        if not root.is_dir():
            with tempfile.TemporaryDirectory(dir=root.parent) as draft:
                what, folder = "Debian's Wine for arm64", Path(draft) / "packages"
                packages = debian.download(folder, PACKAGES, "arm64", what, SUITE)
                with_scripts(debian.unpack(packages, Path(draft) / "root")).rename(root)
    return root


def with_scripts(root: Path) -> Path:
    """A root with Wine's packages in it becomes one in which qemu runs what Wine starts."""
    shutil.rmtree(root / "usr/share/doc")
    (root / "lib").symlink_to("usr/lib")  # as Debian's base-files has it
    for name, text in scripts().items():
        (root / BIN / name).write_text(text)
        (root / BIN / name).chmod(0o755)
    return root


def scripts() -> dict[str, str]:
    """What stands in place of two of Wine's programs."""
    common = {"qemu": QEMU, "processor": PROCESSOR, "bin": BIN}
    return {name: SCRIPT.format(**common, name=name, words=words) for name, words in WORDS.items()}


def main() -> None:
    """Run a program, or only fetch what that takes."""
    try:
        if len(sys.argv) == 1:
            fetched()
            return
        with windows() as made:
            program, *arguments = sys.argv[1:]
            words = [*made.words, windows_path(Path(program).resolve()), *arguments]
            code = subprocess.run(words, env=made.env).returncode
    except (UnavailableError, WineError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:  # which the program had, too
        code = 128 + signal.SIGINT
    sys.exit(code)


if __name__ == "__main__":
    main()
