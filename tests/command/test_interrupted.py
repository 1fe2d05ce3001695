"""The builder interrupted, killed, out of room and beside itself: all or nothing, no litter."""

from __future__ import annotations

import errno
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path

import pytest
from fixtures import sparse_gguf, tiny_gguf
from running import need

import pyllamafile
from pyllamafile import PyllamafileError, native
from pyllamafile.native.building import driver
from pyllamafile.targets import TARGETS


def names() -> list[str]:
    return sorted(os.listdir())  # noqa: PTH208


@pytest.fixture
def here(folder):
    tiny_gguf(Path("m.gguf"))
    with Path("m.gguf").open("ab") as file:
        file.write(random.Random(1).randbytes(30 << 20))
    return folder


def check_message(error, pattern):
    """One line; the dot matches no other."""
    assert re.fullmatch(pattern, error.message)


@pytest.fixture
def start(prebuilt):
    """Starts the command as pip installs it, with a runtime at hand; returns it once it is on.

    Python itself, which starts before, answers an interrupt in its own way.
    """
    target = TARGETS["linux-amd64"]
    runtimes = native.cache() / "runtimes"
    runtimes.mkdir()
    for suffix in (".gz", ".json"):
        copy = runtimes / f"{target.name}-{driver.key(target)}{suffix}"
        shutil.copy(prebuilt / f"{target.name}{suffix}", copy)

    def start(*arguments):
        code = "from pyllamafile.__main__ import main; print(flush=True); main()"
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        process = subprocess.Popen([sys.executable, "-c", code, *arguments, "--no-gui"], **pipes)
        assert process.stdout.readline() == "\n"
        return process

    return start


# From before what is imported first to behind what is imported last.
@pytest.mark.parametrize(
    "module", ["pyllamafile.errors", "pyllamafile.zipalign", "click", "concurrent.futures.thread"]
)
def test_interrupted_while_python_loads_it(tmp_path, module):
    sparse_gguf(tmp_path / "big.gguf", 64 << 30)  # so that it isn't through before the signal
    process = subprocess.Popen(
        [
            *(sys.executable, "-X", "importtime", "-c"),
            "from pyllamafile.__main__ import main; import re; main()",
            *("build", "--gguf", "big.gguf", "-o", "o", "--no-gui"),
        ],
        cwd=tmp_path,
        env={**os.environ, "PYLLAMAFILE_CACHE": str(tmp_path / "cache")},
        stderr=subprocess.PIPE,
        text=True,
    )
    for line in process.stderr:
        if re.search(rf"\| +{re.escape(module)}$", line):
            break
    process.send_signal(signal.SIGINT)
    said = [line for line in process.communicate()[1].splitlines() if "import time:" not in line]
    assert ([*filter(None, said)], process.returncode) == (["interrupted"], 130)
    assert not (tmp_path / "o").exists()


def test_an_ignored_interrupt_stays_ignored(tmp_path):
    """As of a command that a shell starts in the background."""
    code = (
        "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "import sys, pyllamafile.__main__, pyllamafile.cli as cli\n"
        "cli.main = lambda: sys.exit(signal.getsignal(signal.SIGINT) is not signal.SIG_IGN)\n"
        "pyllamafile.__main__.main()"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize("called", ["weakref.finalize(it, strike)", "weakref.ref(it, strike)"])
def test_an_interrupt_is_not_lost(called):
    """Python drops what is raised in what it calls when an object goes."""
    code = (
        "import os, signal, time, weakref\n"
        "from pyllamafile import cli\n"
        "from pyllamafile.cli.program import program\n"
        "def strike(*_): os.kill(os.getpid(), signal.SIGINT)\n"
        "@program.command()\n"
        "def wait():\n"
        "    it = type('It', (), {})()\n"
        f"    kept = {called}\n"
        "    del it\n"
        "    time.sleep(60)\n"
        "cli.main(['wait'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=50)
    assert (done.returncode, done.stdout, done.stderr.strip()) == (130, "", "interrupted")


# How the command ends by which signal, unless that comes before it can be seen to.
EXITS = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129, signal.SIGKILL: None}


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_at_random_moments(start, here, rng, how):
    """Old or new, whole, and nothing beside it; only SIGINT has something to say."""
    arguments = ("build", "--gguf", "m.gguf", "-o", "o", "--force")
    process = start(*arguments)
    begin = time.monotonic()
    assert process.communicate()[1] == ""
    took = time.monotonic() - begin
    new = Path("o").read_bytes()
    outcomes = set()
    for _ in range(15):
        Path("o").write_bytes(b"old")
        process = start(*arguments)
        moment = rng.uniform(0.001, 1.0) * took
        time.sleep(moment)
        process.send_signal(how)
        err = process.communicate(timeout=60)[1]
        found = Path("o").read_bytes()
        assert found in (b"old", new), moment
        assert names() == ["m.gguf", "o"], moment
        if process.returncode == EXITS[how]:
            assert err.strip() == ("interrupted" if how == signal.SIGINT else ""), moment
        else:  # through, maybe just about to exit, when Python's handler is gone already
            assert (process.returncode in (0, -how), err) == (True, ""), moment
            assert found == new or how != signal.SIGINT, moment
        outcomes.add(found == new)
    assert False in outcomes


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("ignored", [False, True])
def test_a_signal_that_ends_leaves_by_the_front_door(how, ignored):
    """Unless it is ignored, as SIGHUP is under nohup."""
    code = (
        f"import os, signal; signal.signal({how:d}, signal.SIG_{'IGN' if ignored else 'DFL'})\n"
        "from pyllamafile import cli\n"
        "from pyllamafile.cli.program import program\n"
        "@program.command()\n"
        "def wait():\n"
        f"    try: os.kill(os.getpid(), {how:d})\n"
        # Somebody sends it again.
        f"    finally: os.kill(os.getpid(), {how:d}); print('tidied up', flush=True)\n"
        "cli.main(['wait'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True)
    assert (done.stdout, done.stderr) == (b"tidied up\n", b"")
    assert done.returncode == (0 if ignored else EXITS[how])


@pytest.mark.slow
def test_two_builds_to_one_output_at_once(start, here):
    """Without --force one of them wins and the other says why not; with it the last one does."""
    tiny_gguf(Path("other.gguf"), name="Other")
    for force in ([], ["--force"]):
        for _ in range(4):
            Path("o").unlink(missing_ok=True)
            models = ("m.gguf", "other.gguf", "m.gguf")
            running = [start("build", "--gguf", m, "-o", "o", *force) for m in models]
            said = [process.communicate(timeout=60)[1] for process in running]
            codes = [process.returncode for process in running]
            assert pyllamafile.verify("o") == []
            assert names() == ["m.gguf", "o", "other.gguf"]
            if force:
                assert (codes, said) == ([0, 0, 0], ["", "", ""])
            else:
                assert sorted(codes) == [0, 1, 1]
                winner = models[codes.index(0)]
                with zipfile.ZipFile("o") as archive:
                    assert archive.read(winner) == Path(winner).read_bytes()
                exists = "error: o: exists already\nhint: --force replaces it\n"
                assert sorted(said) == ["", exists, exists]


@pytest.mark.parametrize("old", [False, True])
def test_a_disk_that_is_full_anywhere(prebuilt, here, small_disk, old):
    """Whatever the room, from nothing to nearly enough: the old file, one line, no litter."""
    Path("m.gguf").write_bytes(
        tiny_gguf(Path("small.gguf")).read_bytes() + bytes(range(256)) * 2000
    )
    target = small_disk / "o"
    size = pyllamafile.build("m.gguf").size
    built = 0
    for room in range(0, size + 90_000, size // 12):
        for path in small_disk.iterdir():
            path.unlink()
        if old:
            target.write_bytes(b"old")
        free = os.statvfs(small_disk).f_bavail * 4096
        (small_disk / "ballast").write_bytes(bytes(max(free - room, 0)))
        before = {path.name: path.read_bytes() for path in small_disk.iterdir()}
        try:
            pyllamafile.build("m.gguf", target, force=True)
        except PyllamafileError as error:
            check_message(error, r".*No space left on device")
            assert {path.name: path.read_bytes() for path in small_disk.iterdir()} == before
        else:
            assert pyllamafile.verify(target) == []
            built += 1
            assert sorted(path.name for path in small_disk.iterdir()) == ["ballast", "o"]
    assert 0 < built < 6


def overwrite(path):
    """As a program does that writes another model over one, block by block."""
    with path.open("r+b") as file:
        file.seek(1 << 20)
        for _ in range(29):
            file.write(bytes(1 << 20))
            time.sleep(0.005)


@pytest.mark.slow
@pytest.mark.parametrize("change", ["truncate", "remove", "grow", "overwrite"])
def test_a_model_that_changes_at_random_moments(here, rng, change):
    """Either all of what was there at the beginning, or one line that names it."""
    content = Path("m.gguf").read_bytes()
    changes = {
        "truncate": lambda path: os.truncate(path, 9000),
        "remove": Path.unlink,
        "grow": lambda path: os.truncate(path, len(content) + 1),
        "overwrite": overwrite,
    }
    for _ in range(12):
        Path("m.gguf").write_bytes(content)
        Path("o").unlink(missing_ok=True)
        delay = rng.random() * 0.12

        def disturb(delay=delay):
            time.sleep(delay)
            changes[change](Path("m.gguf"))

        other = threading.Thread(target=disturb)
        other.start()
        try:
            pyllamafile.build("m.gguf", "o")
        except PyllamafileError as error:
            check_message(error, r"(cannot read )?m\.gguf: .+")
            assert "o" not in names()
        else:
            assert pyllamafile.verify("o") == []
            with zipfile.ZipFile("o") as archive:
                found = archive.read("m.gguf")
            assert found in (content, content + b"\0")
        other.join()
        assert set(names()) <= {"m.gguf", "o"}


# Fails the nth call on a file of a folder or name, as a disk does that breaks.
FAILING = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

static int fails(const char *call, int fd) {
    static int count;
    char link[64], path[4096];
    if (!getenv("FAIL_CALL") || strcmp(call, getenv("FAIL_CALL"))) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    if (!strstr(path, getenv("FAIL_PATH")) || ++count < atoi(getenv("FAIL_AT"))) return 0;
    errno = atoi(getenv("FAIL_ERRNO"));
    return 1;
}
#define WRAP(type, name, parameters, arguments) \
    type name parameters { \
        return fails(#name, fd) ? -1 : ((type(*) parameters)dlsym(RTLD_NEXT, #name)) arguments; \
    }
WRAP(ssize_t, read, (int fd, void *buffer, size_t size), (fd, buffer, size))
WRAP(ssize_t, write, (int fd, const void *buffer, size_t size), (fd, buffer, size))
WRAP(ssize_t, preadv64v2,
     (int fd, const struct iovec *buffers, int count, off64_t at, int flags),
     (fd, buffers, count, at, flags))
WRAP(int, fsync, (int fd), (fd))
"""


@pytest.fixture(scope="module")
def failing(tmp_path_factory):
    """A library that, loaded first, makes a program's calls fail."""
    need("cc", "gcc libc6-dev")
    source = tmp_path_factory.mktemp("failing") / "failing.c"
    source.write_text(FAILING)
    library = source.with_suffix(".so")
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    return library


@pytest.mark.native
@pytest.mark.parametrize(
    ("call", "file", "code", "moments"),
    [
        ("read", "m.gguf", errno.EIO, (1,)),  # the header
        ("preadv64v2", "m.gguf", errno.EIO, (1, 2)),  # who copies and who hashes
        ("write", "/out/", errno.EIO, (1, 2, 3)),
        ("write", "/out/", errno.ENOSPC, (1, 2, 3)),
        ("fsync", "/out/", errno.EIO, (1,)),
    ],
)
def test_a_disk_that_breaks(start, here, failing, monkeypatch, call, file, code, moments):
    """One line that says what; the old file, and nothing beside it."""
    Path("out").mkdir()
    for moment in moments:
        Path("out/o").write_bytes(b"old")
        with monkeypatch.context() as patch:
            for name, value in {
                "LD_PRELOAD": failing,
                "FAIL_CALL": call,
                "FAIL_PATH": file,
                "FAIL_AT": moment,
                "FAIL_ERRNO": int(code),
            }.items():
                patch.setenv(name, str(value))
            process = start("build", "--gguf", "m.gguf", "-o", "out/o", "--force")
        said = process.communicate(timeout=60)[1].splitlines()
        where = "m.gguf" if call in ("read", "preadv64v2") else "out/o"
        assert process.returncode == 1, moment
        reason = rf"(cannot (read|write): )?{os.strerror(code)}"
        assert re.fullmatch(rf"error: .*{where}: {reason}", said[0]), (moment, said)
        assert [line for line in said[1:] if not line.startswith("hint: ")] == []
        assert Path("out/o").read_bytes() == b"old"
        assert os.listdir("out") == ["o"]  # noqa: PTH208
