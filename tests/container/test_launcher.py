"""The head and the packed programs, judged by running real files under real shells."""

from __future__ import annotations

import gzip
import hashlib
import os
import random
import re
import shutil
import signal
import stat
import struct
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fixtures import tiny_elf, tiny_pe
from launching import COMMON, HOST, KINDS, SCRIPT, SHELLS, llamafile, packed_once, runtime
from running import need

from pyllamafile import launcher
from pyllamafile.errors import PyllamafileError
from pyllamafile.launcher import BLOCK, BUDGET, HEAD, HeadProgram, Program, head, head_size, pack
from pyllamafile.targets import TARGETS

NAME = hashlib.sha256(SCRIPT).hexdigest()
DATE = 331_257_600  # the middle of 1980
PLANTED = b"#!/bin/sh\necho planted\nexit\n".ljust(len(SCRIPT), b"\n")

BINFMT = "/proc/sys/fs/binfmt_misc"


@pytest.fixture(
    params=[
        name if name in COMMON else pytest.param(name, marks=pytest.mark.slow) for name in SHELLS
    ]
)
def shell(request: pytest.FixtureRequest) -> list[str]:
    name, *rest = request.param.split()
    return [need(name, SHELLS[request.param]), *rest]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return llamafile(tmp_path / "tiny.llamafile")


@pytest.fixture(params=KINDS)
def outer(request: pytest.FixtureRequest) -> HeadProgram | None:
    """What the file itself is: a script, or a Windows program with the script in it."""
    return KINDS[request.param]


@pytest.fixture
def either(tmp_path: Path, outer: HeadProgram | None) -> Path:
    return llamafile(tmp_path / "tiny.llamafile", outer=outer)


@pytest.fixture
def no_interpreter() -> None:
    if any("magic 4d5a" in entry.read_text() for entry in Path(BINFMT).glob("[!r]*")):
        pytest.skip("this kernel has an interpreter for Windows programs, perhaps Wine")


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    """No more than a PATH and a HOME; the last resort is kept out of the real /tmp."""
    for name in ("home", "tmp"):
        (tmp_path / name).mkdir()
    return {
        "PATH": os.environ["PATH"],
        "LANG": "C.UTF-8",  # yash refuses non-ASCII arguments without
        "HOME": str(tmp_path / "home"),
        "TMPDIR": str(tmp_path / "tmp"),
    }


@pytest.fixture
def place(env: dict[str, str], tmp_path: Path) -> Path:
    """Where the program belongs."""
    env["PYLLAMAFILE_CACHE"] = str(tmp_path / "cache")
    directory = tmp_path / "cache/run"
    directory.mkdir(parents=True, mode=0o700)
    return directory / NAME


def run(*argv: object, **options: object) -> subprocess.CompletedProcess[bytes]:
    options = {"capture_output": True, "timeout": 60, "stdin": subprocess.DEVNULL} | options
    if "input" in options:
        del options["stdin"]
    return subprocess.run([os.fsdecode(part) for part in argv], **options)  # type: ignore[call-overload,no-any-return]


def arguments(done: subprocess.CompletedProcess[bytes]) -> list[str]:
    """What the program was called with; nothing may have gone wrong on the way."""
    assert (done.returncode, done.stderr) == (0, b"")
    return [os.fsdecode(part) for part in done.stdout.split(b"\0")[:-1]]


def cached(base: Path) -> list[str]:
    return sorted(path.name for path in (base / "run").iterdir())


def plant(path: Path, content: bytes = PLANTED, mode: int = 0o700) -> None:
    """A program as it would lie in the cache, with the date that tells it from a changed one."""
    path.write_bytes(content)
    path.chmod(mode)
    os.utime(path, (DATE, DATE))


def home_cache(env: dict[str, str]) -> Path:
    return Path(env["HOME"], ".cache/pyllamafile")


def temporary_cache(env: dict[str, str]) -> Path:
    return Path(env["TMPDIR"], f"pyllamafile-{os.geteuid()}")


def in_var_tmp_of_its_own(*argv: str | Path, **options: Any) -> subprocess.CompletedProcess[bytes]:
    """Other tests, and other programs, start files out of the real one at the same time."""
    script = 'mount -t tmpfs -o mode=1777 tmpfs /var/tmp || exit 99; exec "$@"'
    done = run(need("unshare"), "-m", "sh", "-c", script, "sh", *argv, **options)
    if done.returncode == 99 or b"unshare" in done.stderr:
        pytest.skip("may not mount a file system")
    return done


def fake(directory: Path, name: str, script: str) -> str:
    """A directory for PATH that holds a program of our own."""
    directory.mkdir(exist_ok=True)
    (directory / name).write_text("#!/bin/sh\n" + script)
    (directory / name).chmod(0o755)
    return f"{directory}:{os.environ['PATH']}"


# What the program gets


def test_arguments_arrive_unchanged(shell, either, env, place):
    given = ["-p", "a  b", "", "it's", 'say "x"', "$HOME `id` \\n", "new\nline\n", "*", "naïve"]
    for start in ("cold", "warm"):
        got = arguments(run(*shell, "./" + either.name, *given, env=env, cwd=either.parent))
        assert got == ["--llamafile", "./" + either.name, *given], start
    assert cached(place.parent.parent) == [NAME]


def test_no_arguments(shell, either, env):
    assert arguments(run(*shell, either, env=env)) == ["--llamafile", str(either)]


def test_standard_input_is_left_alone(shell, either, env):
    data = random.Random(1).randbytes(200_000)
    for _ in ("cold", "warm"):
        assert run(*shell, either, "cat", env=env, input=data).stdout == data


def test_exit_code(shell, either, env):
    for code in (0, 1, 126, 255):
        assert run(*shell, either, "exit", str(code), env=env).returncode == code


def test_environment_is_the_users(shell, either, env):
    env |= {"PATH": f"{env['PATH']}:/nowhere", "base": "mine", "dir": "mine"}
    seen = dict(
        line.split("=", 1)
        for line in run(*shell, either, "env", env=env).stdout.decode().splitlines()
    )
    assert {name: seen[name] for name in env} == env
    assert not [name for name in seen if name.startswith("lf_") or name in ("LC_ALL", "GZIP")]


def test_poor_path_is_enough_and_stays_poor(shell, file, env):
    env["PATH"] = "/nowhere"
    assert run(*shell, file, "path", env=env).stdout == b"/nowhere"


def test_missing_path_is_enough(shell, file, env):
    del env["PATH"]
    assert arguments(run(*shell, file, "a", env=env))[2:] == ["a"]


def test_program_takes_the_shells_place(shell, either, env):
    with subprocess.Popen([*shell, str(either), "pid"], env=env, stdout=subprocess.PIPE) as process:
        assert process.stdout
        assert int(process.stdout.readline()) == process.pid
        process.terminate()
    assert process.returncode == -signal.SIGTERM


def test_interrupt_reaches_the_program(shell, either, env):
    with subprocess.Popen([*shell, str(either), "pid"], env=env, stdout=subprocess.PIPE) as process:
        assert process.stdout
        process.stdout.readline()
        process.send_signal(signal.SIGINT)
    assert process.returncode == -signal.SIGINT


def test_windows_program_without_dd_is_no_success(shell, env, tmp_path):
    file = llamafile(tmp_path / "f", outer=KINDS["windows"])
    env["PATH"] = "/nowhere"
    done = run(*shell, file, env=env)
    assert (done.returncode, done.stdout) == (1, b"")


@pytest.fixture(scope="module")
def static_program(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    source = tmp_path_factory.mktemp("c") / "hello.c"
    source.write_text(
        "#include <stdio.h>\n#include <string.h>\n"
        'int main(int n, char **v) { if (n > 1 && !strcmp(v[1], "--probe")) return 0;'
        " while (*++v) puts(*v); return 7; }\n"
    )
    program = source.with_suffix("")
    run(need("cc", "gcc"), "-static", "-Os", "-o", program, source, check=True)
    return program.read_bytes()


def test_static_program(tmp_path, shell, env, static_program):
    path = llamafile(tmp_path / "f", static_program)
    for _ in ("cold", "warm"):
        done = run(*shell, path, "hi", env=env)
        assert (done.returncode, done.stdout) == (7, f"--llamafile\n{path}\nhi\n".encode())


# How the file is called

NAMES = [
    "a b",
    'it\'s "q" $x `y`',
    "-n",
    "--help",
    "naïve-模型",
    "new\nline",
    "*[a]?\\t~",
    os.fsdecode(b"latin-\xe9"),
]


def test_any_name(tmp_path, shell, env, outer):
    (tmp_path / "d").mkdir()
    for name in NAMES:
        if shell[0].endswith("yash") and not name.isprintable() and "\n" not in name:
            continue  # makes an empty word of what is not UTF-8
        path = llamafile(tmp_path / "d" / name, outer=outer)
        assert arguments(run(*shell, path, env=env))[1] == str(path)
        for called in ([f"./{name}"], ["--", name]):
            assert arguments(run(*shell, *called, env=env, cwd=path.parent))[1] == f"./{name}"


@pytest.mark.usefixtures("no_interpreter")
def test_name_found_in_path(tmp_path, shell, either, outer, env):
    """By the shell itself, and what it says then: of the file, and of a link to it."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/alias.lf").symlink_to(either)
    env["PATH"] += f":{either.parent}:{tmp_path}/bin"
    for name, path in ((either.name, str(either)), ("alias.lf", f"{tmp_path}/bin/alias.lf")):
        done = run(*shell, "-c", f'{name} "$@"', "x", "a b", env=env, cwd="/")
        lost = outer and {"ksh93": b"cannot open", "mksh": b"4D5A"}.get(Path(shell[0]).name)
        if lost:  # ksh93 passes the bare name on, mksh starts no Windows program
            assert (done.returncode != 0, done.stdout) == (True, b"")
            assert lost in done.stderr
        else:
            assert arguments(done) == ["--llamafile", path, "a b"]


def test_file_that_bash_finds_in_path(file, env):
    env["PATH"] += f":{file.parent}"
    done = run(need("bash"), file.name, "x", env=env, cwd="/")
    assert arguments(done) == ["--llamafile", str(file), "x"]


def test_symbolic_link(either, shell, env):
    (either.parent / "link").symlink_to(either.name)
    assert arguments(run(*shell, "./link", env=env, cwd=either.parent))[1] == "./link"


STARTERS = [
    "env",
    "nohup",
    "nice",
    "setsid -w",
    "timeout 60",
    "xargs -0a words",
    "find {} -exec",
    "busybox env",
    "busybox timeout 60",
    "busybox find {} -exec",
    "perl -e exec(@ARGV)",
]


@pytest.mark.usefixtures("no_interpreter")
@pytest.mark.parametrize("starter", STARTERS)
def test_started_by(tmp_path, either, env, starter):
    (tmp_path / "words").write_bytes(b"a b\0\0new\nline\0")
    words = ["a b", "", "new\nline"]
    given = [] if starter.startswith("xargs") else words + [";"] * starter.endswith("-exec")
    argv = starter.format(either).split()
    done = run(need(argv[0]), *argv[1:], either, *given, env=env, cwd=tmp_path)
    assert arguments(done) == ["--llamafile", str(either), *words]


@pytest.mark.usefixtures("no_interpreter")
def test_started_by_cron(either, shell, env, outer):
    """No HOME, next to no PATH, /var/tmp as the place: one of the test's own."""
    if outer and shell[0].endswith("mksh"):
        pytest.skip("mksh starts no Windows program")
    command = f"cd / && {either} x"
    if shell[0].endswith("zsh"):  # sets a HOME of its own
        command = f"unset HOME; {command}"
    script = """for start in cold warm; do env -i PATH=/usr/bin:/bin LANG=C.UTF-8 "$@" || exit; done
        ls "/var/tmp/pyllamafile-$(id -u)/run" """
    done = in_var_tmp_of_its_own("sh", "-c", script, "sh", *shell, "-c", command)
    start = f"--llamafile\0{either}\0x\0"
    assert (done.stdout.decode(), done.stderr) == (2 * start + NAME + "\n", b"")


@pytest.mark.usefixtures("no_interpreter")
def test_started_directly(either, env, outer):
    """By execve, with no shell and no C library in between that would call one."""
    if outer:
        with pytest.raises(OSError, match="Exec format error"):
            run(either, "x", env=env)
    else:
        assert arguments(run(either, "x", env=env)) == ["--llamafile", str(either), "x"]


def test_directory_that_is_gone(shell, either, env, tmp_path):
    if shell[0].endswith("posh"):
        pytest.skip("posh dies there by itself")
    script = 'mkdir "$1/gone" && cd "$1/gone" && rmdir "$1/gone" && shift && exec "$@"'
    done = run("sh", "-c", script, "sh", tmp_path, *shell, either, "x", env=env)
    assert (done.returncode, done.stdout.split(b"\0")[2]) == (0, b"x")


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams(shell, either, env, place, closed):
    if shell[0].endswith("ksh93") and closed.startswith("<&- "):
        pytest.skip("ksh93 by itself takes one stream for another then")
    for _ in ("cold", "warm"):
        done = run("sh", "-c", f'exec "$@" {closed}', "sh", *shell, either, "exit", "3", env=env)
        assert (done.returncode, cached(place.parent.parent)) == (3, [NAME])


# Where it is unpacked to


def test_first_choice_is_the_variable(tmp_path, shell, file, env):
    env |= {"PYLLAMAFILE_CACHE": str(tmp_path / "my cache" / "x"), "XDG_CACHE_HOME": env["HOME"]}
    arguments(run(*shell, file, env=env))
    program = tmp_path / "my cache/x/run" / NAME
    assert program.read_bytes() == SCRIPT
    assert stat.S_IMODE(program.stat().st_mode) == 0o700
    assert stat.S_IMODE(program.parent.stat().st_mode) == 0o700
    assert not list(Path(env["HOME"]).iterdir())


def test_variable_relative_to_here(shell, file, env):
    env["PYLLAMAFILE_CACHE"] = "here"
    arguments(run(*shell, file, env=env, cwd=file.parent))
    assert cached(file.parent / "here") == [NAME]


def test_then_xdg_then_home_then_temporary(tmp_path, file, env, shell):
    env["XDG_CACHE_HOME"] = str(tmp_path / "xdg")
    arguments(run(*shell, file, env=env))
    assert cached(tmp_path / "xdg/pyllamafile") == [NAME]
    env["XDG_CACHE_HOME"] = "relative"  # to be ignored, says the XDG specification
    arguments(run(*shell, file, env=env, cwd=tmp_path))
    assert not (tmp_path / "relative").exists()
    if shell[0].endswith("posh"):  # has no [ -O ]: does not know whose HOME this is
        assert cached(temporary_cache(env)) == [NAME]
        return
    assert cached(home_cache(env)) == [NAME]
    del env["HOME"]
    if shell[0].endswith("zsh"):  # sets a HOME of its own
        env["HOME"] = "/nowhere"
    arguments(run(*shell, file, env=env))
    assert cached(temporary_cache(env)) == [NAME]


def test_umask_does_not_matter(shell, file, env):
    for mask in (0o000, 0o077, 0o777):
        arguments(run("sh", "-c", f'umask {mask:o}; exec "$@"', "sh", *shell, file, env=env))
        base = home_cache(env) if home_cache(env).exists() else temporary_cache(env)
        assert stat.S_IMODE((base / "run").stat().st_mode) == 0o700
        assert cached(base) == [NAME]
        shutil.rmtree(base)


def test_occupied_place_is_passed_over(shell, file, env):
    Path(env["HOME"], ".cache").write_text("a file")
    arguments(run(*shell, file, env=env))
    assert cached(temporary_cache(env)) == [NAME]


def test_unusable_variable_is_an_error(shell, file, env):
    env["PYLLAMAFILE_CACHE"] = str(file)
    done = run(*shell, file, env=env)
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr.count(b"\n") == 1
    assert f"cannot unpack the program to {file}: set PYLLAMAFILE_CACHE".encode() in done.stderr


@pytest.mark.parametrize("mode", [0o770, 0o707])
def test_directory_that_others_can_write_to(shell, file, env, mode):
    """Whatever lies there is neither run nor replaced."""
    env["PYLLAMAFILE_CACHE"] = env["HOME"]
    directory = Path(env["HOME"], "run")
    directory.mkdir()
    planted = directory / NAME
    plant(planted)
    directory.chmod(mode)
    done = run(*shell, file, env=env)
    assert (done.returncode, done.stdout) == (1, b"")
    assert planted.read_bytes().startswith(b"#!/bin/sh\necho planted")
    del env["PYLLAMAFILE_CACHE"]
    Path(env["HOME"]).rename(file.parent / "pyllamafile")
    env["XDG_CACHE_HOME"] = str(file.parent)
    arguments(run(*shell, file, env=env))
    assert cached(temporary_cache(env)) == [NAME]


@pytest.mark.parametrize(("mode", "trusted"), [(0o777, False), (0o1777, True), (0o755, True)])
def test_directory_around_it(shell, file, env, mode, trusted):
    """Where others may rename, only the sticky bit keeps ours in its place."""
    env["PYLLAMAFILE_CACHE"] = env["HOME"]
    Path(env["HOME"]).chmod(mode)
    assert run(*shell, file, env=env).returncode == (0 if trusted else 1)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to make directories of another user")
@pytest.mark.parametrize("part", ["", "run"])
def test_directory_of_another_user(shell, file, env, part):
    base = temporary_cache(env)
    (base / "run").mkdir(parents=True, mode=0o700)
    os.chown(base / part, 12345, 12345)
    env["HOME"] = "/nowhere"
    env["PYLLAMAFILE_CACHE"] = str(base)
    done = run(*shell, file, env=env)
    assert (done.returncode, done.stdout, cached(base)) == (1, b"", [])


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become another user")
def test_read_only_home_of_an_ordinary_user(shell):
    with tempfile.TemporaryDirectory() as name:
        top = Path(name)
        top.chmod(0o755)
        file = llamafile(top / "f")
        for part, mode in (("home", 0o555), ("tmp", 0o1777)):
            (top / part).mkdir()
            (top / part).chmod(mode)
        os.chown(top / "home", 65534, 65534)
        env = {"PATH": "/usr/bin:/bin", "HOME": f"{top}/home", "TMPDIR": f"{top}/tmp"}
        options = {"user": 65534, "group": 65534, "extra_groups": [], "cwd": "/"}
        for _ in ("cold", "warm"):
            assert arguments(run(*shell, file, "x", env=env, **options))[2:] == ["x"]
        assert cached(top / "tmp/pyllamafile-65534") == [NAME]


def test_link_in_the_temporary_directory_is_not_followed(shell, file, env):
    env["HOME"] = "/nowhere"
    elsewhere = Path(env["TMPDIR"], "elsewhere")
    elsewhere.mkdir()
    temporary_cache(env).symlink_to(elsewhere)
    assert arguments(in_var_tmp_of_its_own(*shell, file, env=env)) == ["--llamafile", str(file)]
    assert not list(elsewhere.iterdir())


def test_link_in_a_place_beside_those_of_others_is_not_followed(shell, file, env):
    """Where everybody may write, a folder may be anybody's, and its `run` lead to what is ours."""
    env["HOME"] = "/nowhere"
    mine = Path(env["TMPDIR"], "mine", "run")
    mine.mkdir(parents=True, mode=0o700)
    plant(mine / NAME, PLANTED)
    mine.parent.chmod(0o700)
    place = temporary_cache(env)
    place.mkdir()
    (place / "run").symlink_to(mine)
    assert arguments(in_var_tmp_of_its_own(*shell, file, env=env)) == ["--llamafile", str(file)]
    assert (mine / NAME).read_bytes() == PLANTED
    assert cached(mine.parent) == [NAME]


UNFIT = {"noexec": "noexec", "read-only": "ro", "full": "size=64k", "no inodes": "nr_inodes=2"}


@pytest.fixture
def volume(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mounts a file system of memory with some options."""
    directory = tmp_path / "volume"
    directory.mkdir()

    def mount(options: str) -> Path:
        if run("mount", "-t", "tmpfs", "-o", f"mode=700,{options}", "tmpfs", directory).returncode:
            pytest.skip("may not mount a file system")
        return directory

    yield mount
    run("umount", directory)


@pytest.mark.parametrize("options", UNFIT.values(), ids=UNFIT)
def test_unfit_file_system(shell, file, env, volume, options):
    """It is passed over, and nothing is left there; who asked for it is told."""
    env["XDG_CACHE_HOME"] = str(directory := volume(options))
    for _ in ("cold", "warm"):
        assert arguments(run(*shell, file, "x", env=env))[2:] == ["x"]
    assert not [path for path in directory.rglob("*") if not path.is_dir()]
    env["PYLLAMAFILE_CACHE"] = str(directory)
    done = run(*shell, file, env=env)
    assert (done.returncode, done.stdout, done.stderr.count(b"\n")) == (1, b"", 1)
    assert f"cannot unpack the program to {directory}: set PYLLAMAFILE_CACHE" in str(done.stderr)
    assert not [path for path in directory.rglob("*") if not path.is_dir()]


def test_read_only_file_system_that_has_it(shell, file, env, volume):
    env["PYLLAMAFILE_CACHE"] = str(directory := volume("rw"))
    arguments(run(*shell, file, env=env))
    run("mount", "-o", "remount,ro", directory, check=True)
    assert arguments(run(*shell, file, "x", env=env))[2:] == ["x"]


# What is found there


HOSTILE = {
    "TIME_STYLE": "+%s",
    "BLOCK_SIZE": "1M",
    "QUOTING_STYLE": "c",
    "CDPATH": "/:/tmp",
    "GREP_OPTIONS": "-v",
    "CLICOLOR_FORCE": "1",
    "IFS": "0/",
    "GZIP": "--bogus",
    "POSIXLY_CORRECT": "1",
    "ZSH_VERSION": "9",
}


@pytest.mark.parametrize("extra", [{}, HOSTILE], ids=["plain", "hostile"])
def test_warm_start_unpacks_nothing(shell, file, env, place, extra):
    env |= extra
    assert arguments(run(*shell, file, "x", env=env))[2:] == ["x"]
    before = place.stat()
    assert arguments(run(*shell, file, "x", env=env))[2:] == ["x"]
    assert place.stat().st_ino == before.st_ino
    assert cached(place.parent.parent) == [NAME]


@pytest.mark.parametrize("content", [b"", SCRIPT[:-1]], ids=["empty", "truncated"])
def test_wrong_size_is_replaced(shell, file, env, place, content):
    plant(place, content)
    assert arguments(run(*shell, file, "x", env=env))[2:] == ["x"]
    assert place.read_bytes() == SCRIPT
    assert cached(place.parent.parent) == [NAME]


@pytest.mark.parametrize("shift", ["+0000", "Pacific/Kiritimati", "Etc/GMT+12"])
def test_changed_content_is_replaced(shell, file, env, place, shift):
    """Told by the date, in whatever time zone; who sets it back is the user, who may do that."""
    arguments(run(*shell, file, env=env))
    assert place.stat().st_mtime // 86400 == DATE // 86400
    before = place.stat().st_ino
    env["TZ"] = shift
    arguments(run(*shell, file, env=env))
    assert place.stat().st_ino == before
    with place.open("r+b") as program:
        program.write(PLANTED)
    assert arguments(run(*shell, file, "x", env=env))[2:] == ["x"]
    assert place.read_bytes() == SCRIPT
    assert cached(place.parent.parent) == [NAME]


@pytest.mark.parametrize("mode", [0o600, 0o720])
def test_wrong_mode_is_replaced(shell, file, env, place, mode):
    plant(place, mode=mode)
    assert arguments(run(*shell, file, "x", env=env))[2:] == ["x"]
    assert place.read_bytes() == SCRIPT


@pytest.mark.parametrize("kind", ["file", "directory", "nothing"])
def test_symbolic_link_is_replaced(tmp_path, shell, file, env, place, kind):
    other = tmp_path / "other"
    if kind == "file":
        plant(other)
    elif kind == "directory":
        other.mkdir()
    place.symlink_to(other)
    assert arguments(run(*shell, file, "x", env=env))[2:] == ["x"]
    assert not place.is_symlink()
    assert place.read_bytes() == SCRIPT
    if kind == "file":
        assert other.read_bytes() == PLANTED
    elif kind == "directory":
        assert not list(other.iterdir())
    assert cached(place.parent.parent) == [NAME]


def test_directory_in_its_place(shell, file, env, place):
    place.mkdir()
    done = run(*shell, file, env=env)
    assert (done.returncode, done.stdout, list(place.iterdir())) == (1, b"", [])


# Many at once, and interruptions


@pytest.mark.slow
def test_thirty_first_starts_at_once(shell, file, env, place):
    many = [
        subprocess.Popen(
            [*shell, str(file), str(i)], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        for i in range(30)
    ]
    for i, process in enumerate(many):
        out, err = process.communicate(timeout=60)
        assert (process.returncode, err) == (0, b"")
        assert out.split(b"\0")[2] == str(i).encode()
    assert cached(place.parent.parent) == [NAME]


@pytest.mark.parametrize(
    ("number", "group"), [(signal.SIGTERM, False), (signal.SIGHUP, True), (signal.SIGINT, True)]
)
def test_signal_while_unpacking_leaves_nothing(tmp_path, shell, file, env, place, number, group):
    mark = tmp_path / "mark"
    gzip_ = need("gzip")
    env["PATH"] = fake(tmp_path / "bin", "gzip", f'>"{mark}"; sleep 0.1; exec {gzip_} "$@"\n')
    with subprocess.Popen(
        [*shell, str(file)],
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as process:
        while not mark.exists():
            assert process.poll() is None
            time.sleep(0.005)
        assert len(cached(place.parent.parent)) == 1
        (os.killpg if group else os.kill)(process.pid, number)
        assert process.communicate(timeout=60)[0] == b""
    if number == signal.SIGHUP:  # some shells make an exit of it
        assert process.returncode != 0
    else:
        assert process.returncode == -number
    assert cached(place.parent.parent) == []


def test_kill_while_unpacking_stops_no_later_start(tmp_path, shell, file, env, place):
    """It leaves what nothing reads and `--clean-cache` finds by its name."""
    mark = tmp_path / "mark"
    poor = fake(tmp_path / "bin", "gzip", f'>"{mark}"; exec sleep 60\n')
    with subprocess.Popen(
        [*shell, str(file)],
        env=env | {"PATH": poor},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as process:
        while not mark.exists():
            assert process.poll() is None
            time.sleep(0.005)
        os.killpg(process.pid, signal.SIGKILL)
    (left,) = cached(place.parent.parent)
    assert re.fullmatch(f"{NAME}[.]{process.pid}[.][0-9A-Za-z]{{6}}", left)
    for _ in ("cold", "warm"):
        assert arguments(run(*shell, file, "x", env=env))[2:] == ["x"]
    assert cached(place.parent.parent) == [NAME, left]


# Systems with other or fewer tools


def test_unknown_system(tmp_path, shell, file, env):
    env["PATH"] = fake(tmp_path / "bin", "uname", "echo Plan9 mips\n")
    done = run(*shell, file, env=env)
    assert (done.returncode, done.stdout) == (1, b"")
    message = f"{file}: there is no program for Plan9 mips in this file, only for: {HOST.name}\n"
    assert done.stderr.decode() == message


def test_busybox_and_nothing_else_in_path(tmp_path, file, env):
    busybox = need("busybox")
    (tmp_path / "bin").mkdir()
    for applet in run(busybox, "--list").stdout.decode().split():
        (tmp_path / "bin" / applet).symlink_to(busybox)
    env["PATH"] = str(tmp_path / "bin")
    for _ in ("cold", "warm"):
        assert arguments(run(tmp_path / "bin/sh", file, "x", env=env))[2:] == ["x"]
    assert cached(home_cache(env)) == [NAME]


def test_without_mktemp(tmp_path, shell, file, env, place):
    env["PATH"] = fake(tmp_path / "bin", "mktemp", "exit 127\n")
    assert arguments(run(*shell, file, "x", env=env))[2:] == ["x"]
    assert cached(place.parent.parent) == [NAME]


@pytest.mark.parametrize("name", ["sha256sum", "shasum", "openssl"])
def test_any_checksum_tool_will_do(tmp_path, file, env, place, name):
    order = ["sha256sum", "shasum", "sha256", "openssl"]
    real = need(name, "perl" if name == "shasum" else name)
    env["PATH"] = fake(tmp_path / "bin", name, f'>"{tmp_path}/used"; exec {real} "$@"\n')
    content = file.read_bytes()
    for other in order[: order.index(name)]:  # as if it had another name
        content = content.replace(other.encode(), b"x" * len(other), 1)
    file.write_bytes(content)
    assert arguments(run(file, "x", env=env))[2:] == ["x"]
    assert (tmp_path / "used").exists()
    assert cached(place.parent.parent) == [NAME]


def test_strict_shells(file, env):
    for option in ("-e", "-u", "-f", "-C", "-eufC"):
        shutil.rmtree(home_cache(env), ignore_errors=True)
        for _ in ("cold", "warm"):
            assert arguments(run("sh", option, file, "x", env=env))[2:] == ["x"]


def test_bash_takes_nothing_from_the_environment(file, env):
    env["SHELLOPTS"] = "errexit:nounset:noclobber:noglob"
    for name in ("ls", "uname", "dd", "gzip", "id", "mv", "mkdir", "mktemp", "chmod", "wc"):
        env[f"BASH_FUNC_{name}%%"] = "() { echo function; exit 9; }"
    for _ in ("cold", "warm"):
        assert arguments(run(need("bash"), file, "x", env=env))[2:] == ["x"]


# Files that are not what they should be


def test_damaged_file(tmp_path, shell, file, env, place):
    whole = file.read_bytes()
    damaged = bytearray(whole)
    damaged[3 * BLOCK] ^= 1
    for content in (whole[: 3 * BLOCK], whole[:HEAD], bytes(damaged)):
        file.write_bytes(content)
        done = run(*shell, file, env=env)
        assert (done.returncode, done.stdout) == (1, b"")
        assert b"the file is damaged or incomplete" in done.stderr
        assert done.stderr.count(b"\n") == 1
        assert cached(place.parent.parent) == []


def test_content_that_is_not_what_was_built(tmp_path, shell, env, place):
    file = llamafile(tmp_path / "f", sha256=hashlib.sha256(b"other").hexdigest())
    done = run(*shell, file, env=env)
    assert (done.returncode, done.stdout, cached(place.parent.parent)) == (1, b"", [])
    assert b"damaged" in done.stderr


def test_program_that_does_not_run_here(tmp_path, shell, env, place):
    file = llamafile(tmp_path / "f", b"#!/bin/sh\nexit 9\n")
    done = run(*shell, file, env=env)
    assert (done.returncode, done.stdout, cached(place.parent.parent)) == (1, b"", [])
    assert b"does not run on this machine (it ended with status 9)" in done.stderr


# The bytes


def test_head_is_a_padded_script():
    content = head([Program(runtime(SCRIPT, packed_once(SCRIPT)), BLOCK)])
    script = content.rstrip(b"\n")
    assert len(content) == HEAD
    assert len(script) < BUDGET
    assert content.isascii()
    assert b"\0" not in content
    assert content.startswith(b"#!/bin/sh\n# A llamafile")
    assert b"@" not in script.replace(b'"$@"', b"")
    last = script.splitlines()[-1]
    assert last == b'exec "$lf_dir/$lf_name" --llamafile "$lf_self" "$@"'
    lines = [line.strip() for line in script.splitlines()[2:]]
    assert not [line for line in lines if line.startswith(b"#") or b" # " in line]
    for word in (b"return", b"<<", b"2>&-", b"local ", b"[[", b"bs=1 ", b"tail"):
        assert word not in script


@pytest.mark.parametrize("grafted", [False, True])
def test_head_has_room_for_all_targets(grafted):
    row = runtime(SCRIPT, packed_once(SCRIPT))
    row = replace(row, size=99_999_999, packed_size=999 * BLOCK)
    many = [
        Program(replace(row, target=name), (i + 1) * 1000 * BLOCK)
        for i, name in enumerate(TARGETS)
        if name != "windows-amd64"
    ]
    outer = HeadProgram(runtime(tiny_pe(), b"", "windows-amd64"), tiny_pe()) if grafted else None
    content = head(many, outer)
    assert content.count(NAME.encode()) == len(TARGETS) - 2
    with pytest.raises(PyllamafileError, match=r"launch script is \d+ bytes"):
        head(many * 4, outer)


@pytest.mark.parametrize(
    ("changes", "offset", "message"),
    [
        ({}, 0, "multiple of 65536"),
        ({}, BLOCK + 512, "multiple of 65536"),
        ({"packed_size": 1000}, BLOCK, "multiple of 65536"),
        ({"sha256": "$(id)"}, BLOCK, "not a SHA-256"),
        ({"target": "plan9-mips"}, BLOCK, "no such target: plan9-mips"),
    ],
)
def test_programs_that_cannot_be(changes, offset, message):
    row = replace(runtime(SCRIPT, packed_once(SCRIPT)), **changes)
    with pytest.raises(PyllamafileError, match=message):
        head([Program(row, offset)])


def test_no_programs():
    with pytest.raises(PyllamafileError, match="at least one runtime"):
        head([])


# Twelve systems


def program_for(target: str) -> bytes:
    """A program of its own for each target, which says its name."""
    if target.startswith("windows"):
        return tiny_pe(0x8664 if target.endswith("amd64") else 0xAA64)
    return f"#!/bin/sh\n[ $1 = --probe ] || printf '%s\\n' {target} \"$@\"\nexit\n".encode()


def several(path: Path, targets: Iterable[str]) -> Path:
    """A file for many targets, by itself a program for the first of Windows' among them."""
    targets = list(targets)
    outer = None
    for target in targets:
        if not outer and target.startswith("windows"):
            program = program_for(target)
            outer = HeadProgram(runtime(program, b"", target), program)
            targets.remove(target)
    start = -(-head_size(outer) // BLOCK) * BLOCK
    content = b""
    programs = []
    for target in targets:
        packed = packed_once(program_for(target))
        programs.append(Program(runtime(program_for(target), packed, target), start + len(content)))
        content += packed
    begin = head(programs, outer)
    assert len(begin) == head_size(outer)
    path.write_bytes(begin.ljust(start, b"\0") + content)
    return path


ANSWERS = {  # what `uname` says, by its first argument, and the tool for SHA-256 there
    "linux-amd64": ("Linux x86_64", "", "sha256sum"),
    "linux-arm64": ("Linux aarch64", "", "sha256sum"),
    "macos-amd64": ("Darwin x86_64", "i386", "shasum"),
    "macos-arm64": ("Darwin arm64", "arm", "shasum"),
    "freebsd-amd64": ("FreeBSD amd64", "amd64", "sha256"),
    "freebsd-arm64": ("FreeBSD arm64", "aarch64", "sha256"),
    "netbsd-amd64": ("NetBSD amd64", "x86_64", "openssl"),
    "netbsd-arm64": ("NetBSD evbarm", "aarch64", "openssl"),
    "openbsd-amd64": ("OpenBSD amd64", "amd64", "sha256"),
    "openbsd-arm64": ("OpenBSD arm64", "aarch64", "sha256"),
}


def system(directory: Path, name: str, translated: bool = False) -> str:
    """A PATH with just the tools that a system has, as strict as the BSDs have them."""
    both, processor, checksum = ANSWERS[name]
    shutil.rmtree(directory, ignore_errors=True)
    tools = {
        "uname": f'case $* in -sm) echo {both} ;; -p) echo "{processor}" ;; *) exit 1 ;; esac',
        "sysctl": f'[ "$*" = "-n hw.optional.arm64" ] && echo {int(translated)}',
        # No operands of GNU's, and no `head` or `tail` that could be asked for bytes.
        "dd": "for word; do case $word in if=*|bs=65536|bs=8k|skip=*|count=*) ;; "
        f'*) echo "dd: unknown operand $word" >&2; exit 1 ;; esac; done\nexec {need("dd")} "$@"',
        "mktemp": f'[ $# = 1 ] || exit 1\ncase $1 in *.XXXXXX) exec {need("mktemp")} "$1" ;; esac',
        "wc": f'printf \'%8s\\n\' "$({need("wc")} "$@")"',
        checksum: f"exec {need('sha256sum')}",
    }
    for name_, script in tools.items():
        fake(directory, name_, script + "\n")
    for name_ in ("gzip", "ls", "id", "mkdir", "chmod", "mv", "rm", "sh", "touch"):
        (directory / name_).symlink_to(need(name_))
    return str(directory)


def start_as(name: str, file: Path, shell: list[str], tmp_path: Path, **options: bool) -> str:
    """What the file says on such a system; what was unpacked there must be what went in."""
    base = tmp_path / f"cache-{name}"
    shutil.rmtree(base, ignore_errors=True)
    path = system(tmp_path / "bin", name, **options)
    env = {"PATH": path, "PYLLAMAFILE_CACHE": str(base)}
    done = run(*shell, file, "a b", "", env=env)
    assert (done.returncode, done.stderr) == (0, b"")
    said, *words = done.stdout.decode().splitlines()
    assert words == ["--llamafile", str(file), "a b", ""]
    (unpacked,) = (base / "run").iterdir()
    assert unpacked.read_bytes() == program_for(said)
    return said


def test_all_targets_have_a_system_here():
    assert ANSWERS.keys() | {"windows-amd64", "windows-arm64"} == TARGETS.keys()
    assert [name for name, target in TARGETS.items() if not target.uname] == [
        "windows-amd64",  # where no shell starts it
        "windows-arm64",
    ]


@pytest.mark.parametrize("windows", [True, False])
def test_every_system_gets_its_program(tmp_path, shell, windows):
    names = [name for name in TARGETS if windows or not name.startswith("windows")]
    file = several(tmp_path / "f", names)
    assert file.read_bytes()[:2] == (b"MZ" if windows else b"#!")
    for name in ANSWERS:
        assert start_as(name, file, shell, tmp_path) == name


def test_every_spelling_of_a_system_is_known(tmp_path, env):
    file = several(tmp_path / "f", TARGETS)
    for target in TARGETS.values():
        for pattern in target.uname:
            env["PATH"] = fake(tmp_path / "bin", "uname", f"echo {pattern}\n")
            assert run("sh", file, env=env).stdout.decode().split()[0] == target.name


def test_a_translated_shell_on_apple_silicon(tmp_path, shell):
    both = several(tmp_path / "both", ["macos-amd64", "macos-arm64", "windows-amd64"])
    intel = several(tmp_path / "intel", ["macos-amd64"])
    for file, translated, expected in (
        (both, True, "macos-arm64"),
        (both, False, "macos-amd64"),
        (intel, True, "macos-amd64"),
    ):
        assert start_as("macos-amd64", file, shell, tmp_path, translated=translated) == expected


@pytest.mark.parametrize("said", ["MINGW64_NT-10.0-19045", "MSYS_NT-10.0-26100", "CYGWIN_NT-10.0"])
def test_a_shell_on_windows(tmp_path, shell, env, said):
    """It comes here only if it was called with the file, or could not start it."""
    env["PATH"] = fake(tmp_path / "bin", "uname", f"echo {said} x86_64\n")
    file = several(tmp_path / "f", ["linux-amd64", "windows-amd64"])
    done = run(*shell, file, env=env)
    assert (done.returncode, done.stdout, done.stderr.count(b"\n")) == (1, b"", 1)
    assert b"on Windows, start it as a program" in done.stderr
    done = run(*shell, several(tmp_path / "g", ["linux-amd64"]), env=env)
    assert (done.returncode, done.stdout, done.stderr.count(b"\n")) == (1, b"", 1)
    assert f"no program for {said} x86_64 in this file, only for: linux-amd64" in str(done.stderr)


def test_an_unknown_system_is_told_what_is_there(tmp_path, shell, env):
    env["PATH"] = fake(tmp_path / "bin", "uname", "echo Plan9 mips\n")
    file = several(tmp_path / "f", TARGETS)
    done = run(*shell, file, env=env)
    first = "windows-amd64"  # which is first in the file
    names = " ".join([first, *(name for name in TARGETS if name != first)])
    message = f"{file}: there is no program for Plan9 mips in this file, only for: {names}\n"
    assert (done.returncode, done.stdout, done.stderr.decode()) == (1, b"", message)


@pytest.mark.parametrize("name", [name for name in SHELLS if name != "mksh"])
@pytest.mark.usefixtures("no_interpreter")
def test_a_shell_starts_a_windows_program_by_its_name(tmp_path, env, name):
    """The kernel refuses it, so the shell reads it itself; mksh does not, by its own decision."""
    file = several(tmp_path / "f", [HOST.name, "windows-amd64"])
    file.chmod(0o755)
    first, *rest = name.split()
    done = run(need(first, SHELLS[name]), *rest, "-c", './f "$@"', "x", "1", env=env, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.decode().split() == [HOST.name, "--llamafile", "./f", "1"]


def test_an_elf_program_stands_alone():
    program = tiny_elf()
    outer = HeadProgram(runtime(program, b"", "linux-amd64"), program)
    assert head([], outer) == program
    assert head_size(outer) == len(program)
    with pytest.raises(PyllamafileError, match="among others"):
        head([Program(runtime(SCRIPT, packed_once(SCRIPT)), BLOCK)], outer)


def test_what_cannot_be_a_windows_program_is_named():
    outer = HeadProgram(runtime(SCRIPT, b"", "windows-amd64"), SCRIPT)
    for make in (lambda: head([], outer), lambda: head_size(outer)):
        with pytest.raises(PyllamafileError, match=r"runtime\.gz: not a Windows program"):
            make()


def _noise(size: int) -> bytes:
    return random.Random(size).randbytes(size)


# Incompressible: 65,502 bytes of noise in stored blocks leave no room for padding.
SIZES = [0, 1, 1000, *range(BLOCK - 40, BLOCK + 3, 6), 300_000]


@pytest.mark.parametrize("size", SIZES)
def test_pack_is_one_exact_gzip_member(tmp_path, size):
    program = _noise(size)
    packed = pack(program)
    assert len(packed) % BLOCK == 0
    assert len(packed) - size <= BLOCK + 64
    assert packed == pack(program)
    assert gzip.decompress(packed) == program
    magic, method, flags, mtime, _, system = struct.unpack_from("<2sBBLBB", packed)
    assert (magic, method, flags, mtime, system) == (b"\x1f\x8b", 8, 16, 0, 255)
    (tmp_path / "packed.gz").write_bytes(packed)
    for argv in (["gzip", "-t"], ["gzip", "-dc"], ["busybox", "gunzip", "-c"]):
        done = run(need(argv[0]), *argv[1:], tmp_path / "packed.gz")
        assert (done.returncode, done.stderr) == (0, b"")
        assert done.stdout == (b"" if argv[1] == "-t" else program)


@pytest.mark.parametrize("unpack", ["gzip -dc", "busybox gunzip -c", "bsdcat"])
def test_packed_program_is_cut_out_by_dd(tmp_path, unpack):
    argv = unpack.split()
    need(argv[0], {"bsdcat": "libarchive-tools"}.get(argv[0], argv[0]))
    packed = pack(_noise(200_000))
    (tmp_path / "f").write_bytes(bytes(3 * BLOCK) + packed + b"more")
    count = len(packed) // BLOCK
    script = f"dd if={tmp_path}/f bs=65536 skip=3 count={count} 2>/dev/null | {unpack}"
    done = run("sh", "-c", script)
    assert (done.returncode, done.stdout, done.stderr) == (0, _noise(200_000), b"")


def test_template_passes_shellcheck():
    template = Path(launcher.__file__).with_name("launch.sh")
    done = run(need("shellcheck"), template)
    assert (done.returncode, done.stdout) == (0, b"")
