"""The program for GPUs on arm64, with Debian's libraries, where qemu emulates the processor.

qemu runs what compiles the shaders. So the model is that of --prove, whose weights are all of one
type.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from running import on_arm64, unpacked
from witnesses import kept

from pyllamafile import native
from pyllamafile.models import tiny
from pyllamafile.native.building import debian
from pyllamafile.targets import WITH_GPU

pytestmark = pytest.mark.native

TARGET = WITH_GPU["linux-arm64-gnu"]
SUITE = "bookworm"
# The loader, Mesa's drivers, and all that these libraries take.
PACKAGES = (
    "libbsd0", "libc6", "libdrm-amdgpu1", "libdrm2", "libedit2", "libelf1", "libexpat1", "libffi8",
    "libgcc-s1", "libicu72", "libllvm15", "liblzma5", "libmd0", "libstdc++6", "libtinfo6",
    "libvulkan1", "libwayland-client0", "libx11-xcb1", "libxau6", "libxcb-dri3-0",
    "libxcb-present0", "libxcb-randr0", "libxcb-shm0", "libxcb-sync1", "libxcb-xfixes0", "libxcb1",
    "libxdmcp6", "libxml2", "libxshmfence1", "libz3-4", "libzstd1", "mesa-vulkan-drivers", "zlib1g",
)  # fmt: skip
LAVAPIPE = "/usr/share/vulkan/icd.d/lvp_icd.aarch64.json"
# The root of the packages, with what is this machine's and the test's own.
INSIDE = """\
mount --rbind /dev {root}/dev && mount --rbind /proc {root}/proc || exit 1
mount --bind {own} {root}/mnt && exec chroot {root} "$@"
"""
Done = subprocess.CompletedProcess[str]


def fetch(folder: Path) -> None:
    """Make a root of the packages."""
    found = debian.download(folder / "apt", PACKAGES, "arm64", "Debian's Vulkan for arm64", SUITE)
    root = debian.unpack(found, folder / "root")
    shutil.rmtree(folder / "apt")
    shutil.rmtree(root / "usr" / "share" / "doc")
    for name in ("dev", "mnt", "proc", "tmp"):
        (root / name).mkdir()


@pytest.fixture
def runs(gpu_file: Path, tmp_path: Path) -> Callable[..., Done]:
    """Runs the program there, with the model of --prove."""
    if native.find(TARGET) is None:
        pytest.skip(f"no {TARGET.name} is at hand: pyllamafile runtimes build --gpu")
    root, own = kept(f"debian {SUITE} vulkan arm64", fetch) / "root", tmp_path / "own"
    own.mkdir()
    unpacked(TARGET.name, own).rename(own / "runtime")
    shutil.copy(gpu_file, own / "f")
    (own / "w.gguf").write_bytes(tiny.model())
    inside = on_arm64(tmp_path / "emulated", INSIDE.format(root=root, own=own))
    asked = ("-m", "/mnt/w.gguf", "-p", tiny.PROMPT, "-n", "4", "--temp", "0")

    def runs(*words: str, **variables: str) -> Done:
        env = {"HOME": "/tmp", "PATH": os.environ["PATH"], "PYLLAMAFILE_CACHE": "/mnt/cache"}
        command = [*inside, "/mnt/runtime", "--llamafile", "/mnt/f", *asked, *words]
        return subprocess.run(
            command, env={**env, **variables}, capture_output=True, text=True, timeout=3000
        )

    return runs


def test_the_loader_is_asked_for_drivers(runs: Callable[..., Done]) -> None:
    done = runs("--gpu", "off")
    assert (done.returncode, done.stderr) == (0, "")
    assert tiny.ANSWER.startswith(done.stdout.removeprefix(tiny.PROMPT).rstrip("\n"))
    without = "no Vulkan driver has a GPU that computes"
    tried = runs(GGML_VK_VISIBLE_DEVICES="0", VK_ICD_FILENAMES="/none.json")
    assert (tried.returncode, tried.stdout) == (0, done.stdout)
    assert tried.stderr == f"GPU: not used: {without}; --gpu off silences this\n"


def test_a_driver_that_ends_in_the_trial_is_not_used(runs: Callable[..., Done]) -> None:
    """Debian 12's lavapipe is one on arm64: LLVM 15 has no instruction there that makes 32 bits of
    16 ("Cannot select: v4f32 = fp_extend"). Before that, it has begun to compute."""
    processor = runs("--gpu", "off")
    driver = {"GGML_VK_VISIBLE_DEVICES": "0", "VK_ICD_FILENAMES": LAVAPIPE}
    tried = runs(PYLLAMAFILE_GPU_SECONDS="3000", **driver)
    assert (tried.returncode, tried.stdout) == (0, processor.stdout)
    why = "llvmpipe (LLVM 15.0.6, 128 bits): its driver ended with SIGABRT"
    assert tried.stderr == f"GPU: not used: {why}; --gpu off silences this\n"
    needed = runs("--gpu", "vulkan", **driver)
    assert (needed.returncode, needed.stdout) == (1, "")
    assert needed.stderr == f"error: --gpu vulkan: {why}\n"
