"""Whether other machines can take part in a model: `doctor --on`, by an ssh that stays here.

tests/native/test_machines.py asks real sshds.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import pyllamafile
from pyllamafile import RefusedError, examine_host, llamafile
from pyllamafile.ops.doctor import TOOLS
from pyllamafile.ops.hosts import judge

SOUND = [
    ("system", "Linux x86_64"),
    ("flags", " fpu ssse3 sse4_1 sse4_2 popcnt avx"),
    ("memory", "16000000"),
    ("lsm", "lockdown,landlock"),
    ("disk", "Available"),
    ("disk", "9000000"),
    ("place", "/home/me/.cache/pyllamafile"),
    ("end", ""),
]


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    """Where `ssh` runs what it is given here, in a home of its own; with what it takes, no more."""
    tools = tmp_path / "tools"
    tools.mkdir()
    for tool in {*TOOLS, "sh", "head", "df", "rmdir", "expr"}:
        if found := shutil.which(tool):
            (tools / tool).symlink_to(found)
    ssh(tmp_path, 'eval "$1"')
    for folder in ("home", "tmp"):
        (tmp_path / folder).mkdir()
    places = {"HOME": str(tmp_path / "home"), "TMPDIR": str(tmp_path / "tmp")}
    return {"PATH": f"{tmp_path}:{tools}", **places}


def ssh(folder: Path, does: str) -> None:
    """Puts an ssh there: $1 is what it is to run."""
    path = folder / "ssh"
    path.write_text(f'#!/bin/sh\nwhile [ "$1" != -- ]; do shift; done; shift 2\n{does}\n')
    path.chmod(0o755)


def whats(said: list[tuple[str, str]], found: llamafile.Llamafile | None = None) -> list[str]:
    return [finding.what for finding in judge("h", said, found).findings]


def test_a_machine_that_lacks_nothing(env: dict[str, str], tmp_path: Path) -> None:
    host = examine_host("somewhere", environment=env)
    assert [finding.what for finding in host.findings if finding.fatal] == []
    assert host.system == " ".join(os.uname()[i] for i in (0, 4))
    assert host.memory is not None
    assert host.memory > 1 << 20
    assert host.disk is not None
    assert abs(host.disk - shutil.disk_usage(tmp_path).free) < 1 << 30
    assert list((tmp_path / "home").iterdir()) == []  # nothing stays
    assert list((tmp_path / "tmp").iterdir()) == []


def test_sound_answers() -> None:
    host = judge("h", SOUND)
    assert (host.findings, host.memory, host.disk) == ((), 16000000 << 10, 9000000 << 10)


@pytest.mark.parametrize(
    ("about", "value", "what"),
    [
        ("system", "Plan9 sparc", "there is no worker for its system, Plan9 sparc"),
        ("system", "MINGW64_NT x86_64", "there is no worker for its system, MINGW64_NT x86_64"),
        ("flags", "fpu ssse3", "its processor lacks sse4_1, sse4_2, popcnt"),
        ("lsm", "yama", "its kernel has no Landlock, so files are not confined in the worker's "
                        "sandbox"),
        ("tmp", "/tmp", "/tmp can't be written to"),
        ("lacks", "dd", "dd can't be found there"),
    ],
)  # fmt: skip
def test_what_is_missing(about: str, value: str, what: str) -> None:
    said = [each for each in SOUND if each[0] != about]
    assert whats([*said, (about, value)]) == [what]


def test_no_place_for_the_program() -> None:
    said = [each for each in SOUND if each[0] != "place"]
    assert whats([*said, ("unfit", "/a can not be written to"), ("unfit", "/b is bad")]) == [
        "there is no place for the program: /a can not be written to; /b is bad"
    ]


def test_the_program_of_a_file(folder: Path, model: Path) -> None:
    path = folder / "x.llamafile"
    pyllamafile.build(model, path, targets=["linux-amd64"])
    found = llamafile.read(path)
    assert whats(SOUND, found) == []
    assert whats([*SOUND, ("disk", "0")], found)[0].startswith("/home/me/.cache/pyllamafile has 0 ")
    (what,) = whats([*SOUND, ("system", "Linux aarch64"), ("flags", "")], found)
    assert what == f"{path} has no program for its system, Linux aarch64"


@pytest.mark.parametrize("tool", ["gzip", "head"])
def test_a_tool_that_is_missing(env: dict[str, str], tmp_path: Path, tool: str) -> None:
    if any(Path(folder, tool).exists() for folder in ("/usr/bin", "/bin")):
        # those are looked through as well, as the launch script does
        ssh(tmp_path, "sed 's|/usr/bin:/bin:/usr/sbin:/sbin|/nowhere|' | sh -s")
        (tmp_path / "tools" / "sed").symlink_to(shutil.which("sed") or "")
    (tmp_path / "tools" / tool).unlink()
    (finding,) = [each for each in examine_host("x", environment=env).findings if each.fatal]
    assert finding.what == f"{tool} can't be found there"


def test_a_home_where_nothing_may_be_made(env: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    host = examine_host("x", environment={**env, "PYLLAMAFILE_CACHE": str(tmp_path / "file/a")})
    assert any(each.what.startswith("there is no place for") for each in host.findings)


@pytest.mark.parametrize(
    ("does", "what"),
    [
        ("echo Permission denied >&2; exit 255", "Permission denied"),
        ("exit 255", "ssh ends without a word"),
        ("echo This account is not available.; exit 1",
         "ssh doesn't run the command that it is told to"),
        ("echo internal-sftp only >&2; exit 1",
         "ssh doesn't run the command that it is told to: internal-sftp only"),
        ("echo pyllamafile system Linux x86_64", "ssh doesn't run the command that it is told to"),
    ],
)  # fmt: skip
def test_an_ssh_that_does_not_get_there(
    env: dict[str, str], tmp_path: Path, does: str, what: str
) -> None:
    ssh(tmp_path, does)
    host = examine_host("x", environment=env)
    assert ([each.what for each in host.findings], host.system) == ([what], None)


def test_no_ssh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    (finding,) = examine_host("x").findings
    assert finding.what == "ssh is not installed here"


@pytest.mark.parametrize("name", ["", "-oProxyCommand=true", "a b", "a\n"])
def test_names_that_are_none(name: str) -> None:
    with pytest.raises(RefusedError, match="not the name of a machine"):
        examine_host(name)


def doctor(env: dict[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pyllamafile", "doctor", *words]
    return subprocess.run(command, env=env, capture_output=True, text=True)


def test_the_command(env: dict[str, str], tmp_path: Path) -> None:
    done = doctor(env, "--on", "a,b", "--on", "c")
    assert done.returncode == 0, done.stderr
    sound = [
        line for line in (done.stdout + done.stderr).splitlines() if "it can take part" in line
    ]
    assert [line.split(":")[0] for line in sound] == ["a", "b", "c"]
    ssh(tmp_path, "echo Permission denied >&2; exit 255")
    done = doctor(env, "--on", "a")
    assert done.returncode == 1
    assert (done.stdout + done.stderr).splitlines() == [
        "a: problem: Permission denied; make `ssh a` work first"
    ]
    done = doctor(env, "--on", "-x")
    assert done.returncode == 1
    assert "not the name of a machine" in done.stderr
