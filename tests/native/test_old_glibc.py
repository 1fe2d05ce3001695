"""Linux programs on systems with little: the one for GPUs on an old glibc, a file on busybox alone.

The systems are folders that become a program's root. The older one has what two packages of Debian
11 have in them, glibc and the loader of Vulkan's drivers, and nothing else. apt reaches no older.
"""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from running import need
from witnesses import kept

import pyllamafile
from pyllamafile.models import tiny
from pyllamafile.native.building import debian

pytestmark = pytest.mark.native

SUITE = "bullseye"  # glibc 2.31; the program asks for 2.28 at the most
DEVICES = {"null": 3, "urandom": 9}  # mem(4), random(4)
ASKED = ("-p", tiny.PROMPT, "-n", "24", "--temp", "0")
Done = subprocess.CompletedProcess[str]
System = Callable[..., Done]


def fetch(folder: Path) -> None:
    """Unpack what Debian's packages have, each into a folder of its own."""
    packages = ("busybox-static", "libc6", "libvulkan1")
    found = debian.download(folder / "apt", packages, "amd64", f"Debian's {SUITE}", SUITE)
    for name in packages:
        (package,) = (path for path in found if path.name.startswith(f"{name}_"))
        debian.unpack([package], folder / name)
    shutil.rmtree(folder / "apt")


def system(root: Path, *packages: str) -> System:
    """A system of what some packages have; it runs programs with this folder as their root."""
    debians = kept(f"debian {SUITE}", fetch)
    for name in packages:
        shutil.copytree(debians / name, root, symlinks=True, dirs_exist_ok=True)
    for name in ("dev", "proc", "tmp"):
        (root / name).mkdir()
    try:
        for name, number in DEVICES.items():
            os.mknod(root / "dev" / name, stat.S_IFCHR | 0o666, os.makedev(1, number))
    except PermissionError:
        pytest.skip("only root can make a device")
    apart = [need("unshare", "util-linux"), "--pid", "--fork", "--kill-child", "--mount-proc"]

    def runs(*words: str, **variables: str) -> Done:
        env = {"HOME": "/tmp", "PATH": "/bin", **variables}
        command = [*apart, f"--root={root}", "--", *words]
        return subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)

    if (said := runs("/no-such-program").stderr) and "no-such-program" not in said:
        pytest.skip(f"unshare is not allowed here: {said.strip()}")
    return runs


def test_the_program_for_gpus_runs_on_glibc_2_31(
    gpu_program: Path, gpu_file: Path, weights: Path, tmp_path: Path
) -> None:
    runs = system(tmp_path / "root", "libc6", "libvulkan1")
    for path, name in ((gpu_program, "runtime"), (gpu_file, "f"), (weights, "w.gguf")):
        shutil.copy(path, tmp_path / "root" / name)
    assert "stable release version 2.31" in runs("/lib/x86_64-linux-gnu/libc.so.6").stdout
    words = ("/runtime", "--llamafile", "/f", "-m", "/w.gguf", *ASKED)
    done = runs(*words)
    assert (done.returncode, done.stderr) == (0, "")
    assert tiny.ANSWER in done.stdout
    # The trial takes place, in a process of its own; what there is of Vulkan has no driver.
    without = "no Vulkan driver has a GPU that computes"
    tried = runs(*words, GGML_VK_VISIBLE_DEVICES="0")
    assert (tried.returncode, tried.stdout) == (0, done.stdout)
    assert tried.stderr == f"GPU: not used: {without}; --gpu off silences this\n"
    needed = runs(*words, "--gpu", "vulkan", GGML_VK_VISIBLE_DEVICES="0")
    assert (needed.returncode, needed.stdout) == (1, "")
    assert needed.stderr == f"error: --gpu vulkan: {without}\n"


def test_a_file_runs_where_busybox_is_all_there_is(
    runtime: Path, weights: Path, tmp_path: Path
) -> None:
    """No libc, no loader, and what unpacks the program is busybox's."""
    runs = system(tmp_path / "root", "busybox-static")
    installed = runs("/bin/busybox", "--install", "/bin")
    assert installed.returncode == 0, installed.stderr
    pyllamafile.build(weights, tmp_path / "root" / "f", targets=["linux-amd64"], gui=False)
    assert list((tmp_path / "root").rglob("*.so*")) == []
    done = runs("/bin/sh", "/f", *ASKED)
    assert (done.returncode, done.stderr) == (0, "")
    assert tiny.ANSWER in done.stdout
