"""The driver of native builds, without a compiler: lookup, keys, logs, missing tools."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import threading
import time
import zipfile
from pathlib import Path
from types import ModuleType

import pytest
from running import needs, package

from pyllamafile import native
from pyllamafile.errors import PyllamafileError, UnavailableError
from pyllamafile.launcher import pack
from pyllamafile.native.building import driver, gui, metal, shaders, source, tools, vulkan
from pyllamafile.progress import Step
from pyllamafile.targets import TARGETS, WITH_GPU, Target, groups, select

TARGET = TARGETS["linux-amd64"]
SECOND = WITH_GPU["linux-amd64-gnu"]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and a package without prebuilt runtimes."""
    monkeypatch.setenv("PYLLAMAFILE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(native, "PREBUILT", tmp_path / "prebuilt")
    return tmp_path


def put_runtime(folder: Path, name: str, program: bytes) -> None:
    folder.mkdir(parents=True)
    packed = pack(program)
    facts = {
        "target": TARGET.name,
        "packed_size": len(packed),
        "packed_sha256": "0" * 64,
        "size": len(program),
        "sha256": "0" * 64,
        "llama_cpp": "1.2.3",
        "levels": ["v3"],
        "licenses": {"llama.cpp": "MIT"},
    }
    (folder / f"{name}.gz").write_bytes(packed)
    (folder / f"{name}.json").write_text(json.dumps(facts))


def test_nothing_is_at_hand_at_first() -> None:
    assert native.find(TARGET) is None
    assert native.find_gui() is None
    assert native.available() == []


def test_the_package_comes_before_the_cache(home: Path) -> None:
    cached = f"{TARGET.name}-{driver.key(TARGET)}"
    put_runtime(home / "cache" / "runtimes", cached, b"from the cache")
    assert native.find(TARGET).origin == "cache"
    put_runtime(home / "prebuilt", TARGET.name, b"from the package")
    found = native.find(TARGET)
    assert (found.origin, found.size) == ("package", len(b"from the package"))
    assert native.available() == [found]


@pytest.mark.parametrize("facts", ["", "[]", "{}", '{"packed_size": 1}'])
def test_a_damaged_cache_is_an_empty_one(home: Path, facts: str) -> None:
    put_runtime(home / "prebuilt", TARGET.name, b"x")
    (home / "prebuilt" / f"{TARGET.name}.json").write_text(facts)
    assert native.find(TARGET) is None


def copied(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the folder `native`, which the driver takes for its own."""
    copy = home / "native"
    shutil.copytree(driver.BUILDING.parent, copy, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(driver, "RUNTIME", copy / "runtime")
    monkeypatch.setattr(driver, "BUILDING", copy / "building")
    return copy


@pytest.mark.parametrize(
    ("changed", "another"),
    [
        ("runtime/main.cpp", True),
        ("runtime/seams/ui.h", True),
        ("runtime/kernels/levels.h.in", True),
        ("runtime/system/windows.manifest", True),
        ("runtime/CMakeLists.txt", True),
        ("runtime/manual.txt", True),
        ("runtime/new.inc", True),
        ("building/icon.py", True),
        ("building/levels.py", True),
        ("building/licenses.py", True),
        ("__init__.py", False),
        ("building/__init__.py", False),
        ("building/driver.py", False),
        ("building/tools.py", False),
        ("building/gui.py", False),
    ],
)
def test_the_key_follows_what_determines_a_runtime(
    home: Path, monkeypatch: pytest.MonkeyPatch, changed: str, another: bool
) -> None:
    """A remark in the driver must not compile twelve targets again."""
    before = driver.key(TARGET)
    copy = copied(home, monkeypatch)
    assert driver.key(TARGET) == before
    with (copy / changed).open("a") as file:
        file.write("\n")
    assert (driver.key(TARGET) != before) == another


@pytest.mark.parametrize(
    ("name", "value"), [("ZIG", "1"), ("OPTIMIZE", "-O1"), ("LINK", "-g"), ("LLAMA_COMMIT", "a")]
)
def test_the_key_follows_the_settings(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    before = driver.key(TARGET)
    monkeypatch.setattr(driver, name, value)
    assert driver.key(TARGET) != before


def test_the_key_follows_the_target_and_not_what_is_installed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = driver.key(TARGET)
    assert driver.key(dataclasses.replace(TARGET, uname=("Linux x64",))) == before
    for changes in ({"triple": "x86_64-linux-gnu"}, {"base": "x86_64_v2"}, {"levels": ()}):
        assert driver.key(dataclasses.replace(TARGET, **changes)) != before
    real = tools.version
    monkeypatch.setattr(
        tools, "version", lambda name: "missing" if name == "ziglang" else real(name)
    )
    assert driver.key(TARGET) == before


@pytest.mark.parametrize(
    ("part", "changed", "name"),
    [
        (metal, "sdk/libobjc.tbd", "macos-arm64-gpu"),
        (metal, "project.cmake", "macos-arm64-gpu"),
        (vulkan, "loader.cpp", "linux-amd64-gnu"),
    ],
)
def test_a_program_with_gpus_follows_its_own_files_and_no_other_does(
    home: Path, monkeypatch: pytest.MonkeyPatch, part: ModuleType, changed: str, name: str
) -> None:
    every = {**TARGETS, **WITH_GPU}
    before = {name: driver.key(target) for name, target in every.items()}
    copy = home / "copy"
    shutil.copytree(part.FOLDER, copy)
    monkeypatch.setattr(part, "FOLDER", copy)
    assert {name: driver.key(target) for name, target in every.items()} == before
    with (copy / changed).open("a") as file:
        file.write("\n")
    after = {name: driver.key(target) for name, target in every.items()}
    gpu = WITH_GPU[name].gpu
    assert {name for name in every if after[name] != before[name]} == {
        target.name for target in WITH_GPU.values() if target.gpu == gpu
    }


@needs("ziglang")
def test_a_second_program_is_compiled_where_the_plain_one_is() -> None:
    """It takes seconds then. But one for another C library, or with other flags, has its own."""
    every = (*TARGETS.values(), *WITH_GPU.values())
    assert len({driver.key(target) for target in every}) == len(every)
    plain = {driver.build_folder(target) for target in TARGETS.values()}
    assert len(plain) == len(TARGETS)
    apart = [name for name, row in WITH_GPU.items() if driver.build_folder(row) not in plain]
    assert apart == ["linux-amd64-gnu", "linux-arm64-gnu"]
    for name, row in WITH_GPU.items():
        shared = driver.build_folder(row) == driver.build_folder(TARGETS[row.plain])
        assert shared == (name not in apart)


@pytest.mark.parametrize("changed", ["gui.py", "vite.config.mjs"])
def test_the_gui_follows_what_builds_it(
    home: Path, monkeypatch: pytest.MonkeyPatch, changed: str
) -> None:
    before = gui.path()
    copy = home / "native"
    shutil.copytree(gui.HERE, copy)
    monkeypatch.setattr(gui, "HERE", copy)
    monkeypatch.setattr(gui, "__file__", str(copy / "gui.py"))
    assert gui.path() == before
    with (copy / changed).open("a") as file:
        file.write("\n")
    assert gui.path() != before


def test_the_compiler_is_the_one_that_pip_installs() -> None:
    """The extra's version is the one that the cache's keys hold."""
    wanted = [line for line in importlib.metadata.requires("pyllamafile") if "ziglang" in line]
    assert [line.split(";")[0].strip() for line in wanted] == [f"ziglang=={driver.ZIG}"]


@needs("ziglang")
def test_another_compiler_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "ZIG", "0.1")
    with pytest.raises(PyllamafileError, match=r"ziglang is .* and compiling takes 0\.1") as caught:
        native.prepare()
    assert caught.value.hint == "pip install 'pyllamafile[runtimes]'"


def test_a_failing_step_shows_its_last_lines_and_the_log() -> None:
    script = "import sys; [print('line', i) for i in range(30)]; sys.exit(3)"
    with pytest.raises(PyllamafileError, match="ended with 3") as caught:
        tools.run([sys.executable, "-c", script], log="test", what="testing")
    assert "line 29" in caught.value.message
    assert "line 5\n" not in caught.value.message
    log = native.cache() / "logs" / "test.log"
    assert str(log) in caught.value.hint
    assert "line 0" in log.read_text()


def test_blank_lines_are_no_last_lines() -> None:
    script = "import sys; print('reason' + ' \\n\\n' * 20 + 'end'); sys.exit(1)"
    with pytest.raises(PyllamafileError) as caught:
        tools.run([sys.executable, "-c", script], log="test", what="testing")
    assert caught.value.message.endswith("):\n  reason \n  end")


@pytest.mark.parametrize("moved", [True, False])
def test_zig_and_npm_follow_the_cache(
    home: Path, monkeypatch: pytest.MonkeyPatch, moved: bool
) -> None:
    """If it was moved; the user's own caches are shared with others otherwise."""
    monkeypatch.setenv("ZIG_GLOBAL_CACHE_DIR", "the user's")
    monkeypatch.setenv("npm_config_cache", "the user's")
    monkeypatch.chdir(home)
    if moved:
        monkeypatch.setenv("PYLLAMAFILE_CACHE", "relative")  # programs start in other folders
    else:
        monkeypatch.delenv("PYLLAMAFILE_CACHE")
        monkeypatch.setenv("XDG_CACHE_HOME", str(home))
    command = ["sh", "-c", 'echo "$ZIG_GLOBAL_CACHE_DIR|$npm_config_cache|$MORE"']
    tools.run(command, log="test", what="testing", variables={"MORE": "more"})
    zig, npm, more = (native.cache() / "logs" / "test.log").read_text().strip().split("|")
    expected = [str(home / "relative" / name) for name in ("zig", "npm")]
    assert [zig, npm] == (expected if moved else ["the user's"] * 2)
    assert more == "more"


def test_who_waits_for_another_says_so() -> None:
    heard: list[Step] = []
    unexpected: list[Step] = []
    order: list[str] = []

    def wait() -> None:
        with tools.lock("test", "tests", heard.append):
            order.append("second")

    with tools.lock("test", "tests", unexpected.append):
        thread = threading.Thread(target=wait)
        thread.start()
        deadline = time.monotonic() + 10
        while not heard and time.monotonic() < deadline:
            time.sleep(0.01)
        order.append("first")
    thread.join()
    assert heard == [Step("waiting", "waiting for another pyllamafile that tests")]
    assert unexpected == []
    assert order == ["first", "second"]


@pytest.fixture
def fake_compiler(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let compiling take no time, and leave behind what CMake does."""

    def compile_(*arguments: object) -> tuple[bytes, dict[str, str]]:
        header = driver.build_folder(TARGET) / "out" / "llama" / "src" / "llama-version.h"
        header.parent.mkdir(parents=True, exist_ok=True)
        header.write_text('#pragma once\n\n#define LLAMA_VERSION "7.8.9-dev"\n')
        return b"program", {"llama.cpp": "MIT"}

    monkeypatch.setattr(native, "prepare", lambda **options: home)
    monkeypatch.setattr(driver, "compile_runtime", compile_)


@needs("ziglang")
@pytest.mark.usefixtures("fake_compiler")
def test_the_version_is_what_the_runtime_says() -> None:
    assert native.build(TARGET).llama_cpp == f"7.8.9-dev ({native.LLAMA_COMMIT})"


@needs("ziglang")
@pytest.mark.usefixtures("fake_compiler")
def test_the_notices_stay_with_the_runtime() -> None:
    native.build(TARGET)
    assert native.find(TARGET).licenses == {"llama.cpp": "MIT"}


@pytest.fixture
def fake_programs(home: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """What compiling gives, by target; it takes no time."""
    programs = {TARGET.name: b"plain" * 999, SECOND.name: b"plain" * 999 + b"GPU"}

    def compile_(target: Target, *arguments: object) -> tuple[bytes, dict[str, str]]:
        header = driver.build_folder(target) / "out" / "llama" / "src" / "llama-version.h"
        header.parent.mkdir(parents=True, exist_ok=True)
        header.write_text('#define LLAMA_VERSION "7.8.9-dev"\n')
        return programs[target.name], {"llama.cpp": "MIT"}

    monkeypatch.setattr(native, "prepare", lambda **options: home)
    monkeypatch.setattr(driver, "compile_runtime", compile_)
    return programs


@needs("ziglang")
def test_a_second_program_is_made_of_the_plain_one(fake_programs: dict[str, bytes]) -> None:
    package("zstandard", "runtimes")
    second = native.build(SECOND)
    plain = native.find(TARGET)
    assert plain.program() == fake_programs[TARGET.name]
    assert second.program() == fake_programs[SECOND.name]
    assert second.path.suffix == ".zst"
    assert second.packed_size < 40
    assert native.build(SECOND) == native.find(SECOND) == second
    assert plain.gpu is None  # without shaders it is of no use
    shaders.path().parent.mkdir(parents=True)
    shaders.path().touch()
    assert native.find(TARGET).gpu == second
    assert native.build(SECOND).plain == plain


@needs("ziglang")
def test_a_second_program_follows_the_plain_one(
    fake_programs: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    package("zstandard", "runtimes")
    before = native.build(SECOND)
    fake_programs[TARGET.name] += b"changed"
    monkeypatch.setattr(driver, "OPTIMIZE", "-O3")
    assert native.find(SECOND) is None
    after = native.build(SECOND)
    assert after.path != before.path
    assert after.program() == before.program()


@needs("ziglang")
@pytest.mark.usefixtures("fake_compiler")
def test_runtimes_that_nobody_asks_for_are_removed(home: Path) -> None:
    folder = home / "cache" / "runtimes"
    folder.mkdir(parents=True)
    month = 30 * 86400
    for name, age in {
        f"{TARGET.name}-old.gz": month + 60,
        f"{TARGET.name}-old.json": month + 60,
        f"{TARGET.name}-new.gz": month - 60,
        "other-amd64-old.gz": month + 60,
        f"{TARGET.name}-gnu-old.gz": month + 60,
    }.items():
        (folder / name).touch()
        os.utime(folder / name, (time.time() - age,) * 2)
    built = native.build(TARGET).path.stem
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        [
            *(f"{built}.gz", f"{built}.json", f"{TARGET.name}-new.gz"),
            *("other-amd64-old.gz", f"{TARGET.name}-gnu-old.gz"),
        ]
    )


def test_an_interrupt_ends_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(line: str) -> None:
        raise KeyboardInterrupt

    started: list[subprocess.Popen[bytes]] = []
    real = subprocess.Popen

    def popen(*args: object, **options: object) -> subprocess.Popen[bytes]:
        started.append(real(*args, **options))
        return started[-1]

    monkeypatch.setattr(subprocess, "Popen", popen)
    script = "import time; print(flush=True); time.sleep(60)"
    with pytest.raises(KeyboardInterrupt):
        tools.run([sys.executable, "-c", script], log="test", what="test", each_line=interrupt)
    assert started[0].returncode is not None


def test_a_missing_tool_is_named(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(PyllamafileError, match="no_such_package is missing") as caught:
        tools.package("no_such_package")
    assert caught.value.hint == "pip install 'pyllamafile[runtimes]'"
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(home))
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(PyllamafileError, match="cmake is missing") as caught:
        tools.program("cmake")
    assert caught.value.hint == "pip install 'pyllamafile[runtimes]'"


def test_pip_is_the_environments_own_or_uvs(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """uv makes environments without pip, and `uv pip` can't download."""
    assert tools.pip() == [sys.executable, "-m", "pip"]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    uv = home / "uv"
    uv.write_text("#!/bin/sh\n")
    uv.chmod(0o755)
    monkeypatch.setenv("PATH", str(home))
    assert tools.pip() == [str(uv), "tool", "run", "pip"]
    uv.unlink()
    with pytest.raises(UnavailableError, match=r"is fetched with pip, and .* has none") as caught:
        tools.pip()
    assert caught.value.hint == "python -m ensurepip, or install uv"


def fake_pip(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Let `pip download` bring a small sdist from disk."""
    sdist = folder / "llama_cpp_python-0.tar.gz"
    vendor = folder / "vendor"
    vendor.mkdir()
    (vendor / "CMakeLists.txt").write_text("set(LLAMA_VERSION_MAJOR 7)\n")
    (vendor / "secret").write_text("not llama.cpp's")
    with tarfile.open(sdist, "w:gz") as archive:
        archive.add(vendor / "CMakeLists.txt", "llama-0/vendor/llama.cpp/CMakeLists.txt")
        archive.add(vendor / "secret", "llama-0/secret")

    def run(command: list[str], **options: object) -> None:
        shutil.copy(sdist, command[command.index("--dest") + 1])

    monkeypatch.setattr(tools, "run", run)


def test_another_sdist_is_refused(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_pip(monkeypatch, home)
    with pytest.raises(PyllamafileError, match="is not the file"):
        native.llama_source()
    assert list((home / "cache" / "source").iterdir()) == []


def test_only_llama_cpp_is_unpacked(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_pip(monkeypatch, home)
    digest = hashlib.sha256((home / "llama_cpp_python-0.tar.gz").read_bytes()).hexdigest()
    monkeypatch.setattr(source, "SDIST_SHA256", digest)
    folder = native.llama_source()
    assert [path.name for path in folder.iterdir()] == ["CMakeLists.txt"]
    assert native.llama_source() == folder


def test_the_gui_zip_has_no_dates(home: Path) -> None:
    folder = home / "cache" / "ui"
    folder.mkdir(parents=True)
    contents = []
    for name in ("a.zip", "b.zip"):
        gui.write_zip(folder / name, {"b": b"2" * 99, "a/c": b"1"})
        contents.append((folder / name).read_bytes())
    assert contents[0] == contents[1]
    with zipfile.ZipFile(folder / "a.zip") as archive:
        assert archive.namelist() == ["a/c", "b"]
        assert archive.testzip() is None


def test_unknown_target_names_the_known_ones() -> None:
    with pytest.raises(PyllamafileError, match="no such target: amiga") as caught:
        select(["amiga"])
    assert "linux-amd64" in caught.value.hint


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        ([], []),
        (["linux"], ["linux-amd64", "linux-arm64"]),
        (["linux-arm64", "linux", "linux-amd64"], ["linux-amd64", "linux-arm64"]),
        (["windows", "macos-arm64"], ["macos-arm64", "windows-amd64", "windows-arm64"]),
        (["arm64"], [name for name in TARGETS if name.endswith("-arm64")]),
        (["amd64", "arm64"], list(TARGETS)),
        (["all"], list(TARGETS)),
    ],
)
def test_targets_are_chosen_by_name_and_by_group(names: list[str], chosen: list[str]) -> None:
    assert [target.name for target in select(names)] == chosen


def test_no_group_is_called_like_a_target() -> None:
    assert not groups().keys() & TARGETS.keys()
    assert groups()["all"] == tuple(TARGETS.values())
