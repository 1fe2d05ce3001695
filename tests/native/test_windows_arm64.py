"""Windows on arm64, by Debian's Wine for arm64 under qemu: what the runtime is made of."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from running import run
from wine_arm64 import Windows, environment, processes, windows, windows_path

from pyllamafile.native.building import driver, tools
from pyllamafile.targets import TARGETS

pytestmark = pytest.mark.native

TARGET = TARGETS["windows-arm64"]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A program that is compiled and linked as the runtime is."""
    folder = tmp_path_factory.mktemp("small")
    zig = tools.package("ziglang") / "zig"
    compiler = driver._toolchain(folder / "tools", TARGET, zig, folder)["CMAKE_CXX_COMPILER"]
    source = Path(__file__).with_name("windows_arm64.cpp")
    flags = ["-std=c++17", *driver.OPTIMIZE.split(), *driver.LINK.split()]
    command = [compiler, *flags, source, "-o", folder / "small.exe"]
    done = subprocess.run(command, capture_output=True, text=True, env=tools.environment())
    assert (done.returncode, done.stderr) == (0, "")
    return folder / "small.exe"


def test_numbers_threads_exceptions_and_streams(small: Path, windows_arm64: Windows) -> None:
    words = (*windows_arm64.words, windows_path(small), "two words")
    done = run(*words, stdin=b"typed\n", env=windows_arm64.env)
    assert done.stdout.splitlines() == [b"2 two words 0.479 1099511627776 x", b"7 8 9 10, 7"]
    # Wine's own processes write there, too, and qemu says when one of them crashes.
    said = [line for line in done.stderr.splitlines() if not line.startswith(b"qemu: uncaught ")]
    assert said == [b"caught: in a thread"]
    assert done.returncode == len("typed\n")


def test_nothing_is_left_of_a_windows_that_is_over(small: Path, windows_arm64: Windows) -> None:
    """Not even what never ends by itself."""
    with windows() as made:
        variable = f"WINEPREFIX={made.env['WINEPREFIX']}".encode()
        words = [*made.words, windows_path(small), "waits"]
        waiting = subprocess.Popen(
            words,
            env=made.env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        assert waiting.stdout.readline()
        assert len([pid for pid in processes() if variable in environment(pid)]) > 1
    with waiting:
        waiting.wait(timeout=1)
    assert [pid for pid in processes() if variable in environment(pid)] == []
    assert not Path(made.env["WINEPREFIX"]).exists()
