"""The command line, as scenarios: what a user types, sees, and finds in the directory then."""

from __future__ import annotations

import importlib
import inspect as inspection
import io
import json
import os
import pty
import re
import select
import shutil
import signal
import struct
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import click
import pytest
from fixtures import PROGRAM, put_runtime, sparse_gguf, split_gguf, tiny_elf, tiny_gguf, tiny_pe
from judging import names, snapshot
from rich import filesize
from rich.console import Console
from running import COMMAND, needs

import pyllamafile
from pyllamafile import native
from pyllamafile.arguments import quote
from pyllamafile.cli import bar, runtimes, screen
from pyllamafile.cli.program import Lazy, program
from pyllamafile.errors import PyllamafileError
from pyllamafile.models.fit import TEMPLATES
from pyllamafile.native.building import driver, shaders, tools
from pyllamafile.native.building.aside import Aside, StoppedError
from pyllamafile.progress import Shares, Step
from pyllamafile.targets import TARGETS, WITH_GPU


@pytest.fixture
def here(folder, model):
    """A working directory with a model in it."""
    shutil.copy(model, folder / "m.gguf")
    return folder


@pytest.fixture
def built(here):
    return pyllamafile.build("m.gguf", args=["-c", "2048"]).path


# build


def test_build_says_what_it_made_and_what_to_try(run, here):
    done = run("build", "--gguf", "m.gguf", "--arg", "-c", "--arg", "2048")
    assert (done.code, done.err) == (0, "")
    assert re.fullmatch(
        r"m\.llamafile  [0-9.]+ kB\n"
        r"  weights   m\.gguf\n"
        r"  runs on   linux-amd64\n"
        r"(  lacking   .*\n)?"
        r"try:\n"
        r"  \./m\.llamafile -p \"Once upon a time\" -n 64\n"
        r"  \./m\.llamafile   # web GUI and API on http://127\.0\.0\.1:8080\n",
        done.out,
    )
    assert names() == ["m.gguf", "m.llamafile"]
    assert run("verify", "m.llamafile") == (0, "m.llamafile: sound\n", "")


def test_what_is_to_be_tried_can_be_pasted_into_a_shell(run, here):
    for name in ("sp ace's", "-dash", "$x", "a;b"):
        out = run("build", "--gguf", "m.gguf", "-o", name).out
        command = next(line for line in out.splitlines() if "Once" in line)
        done = subprocess.run(["sh", "-c", command], capture_output=True, text=True)
        assert done.stdout.splitlines()[2:] == ["<-p>", "<Once upon a time>", "<-n>", "<64>"]


def test_weights_that_do_not_say_how_they_talk(run, here):
    tiny_gguf(here / "phi.gguf", arch="phi3", template=None)
    done = run("build", "--gguf", "phi.gguf", "--arg", "-c", "--arg", "100")
    assert (done.code, done.err) == (0, "")
    assert "  chat      in its family's format, because the weights don't name theirs\n" in done.out
    with zipfile.ZipFile("phi.llamafile") as archive:
        args = archive.read(".args").decode()
    assert args == f"--chat-template {quote(TEMPLATES['phi3', 'llama'])}\n-c\n100\n"

    tiny_gguf(here / "other.gguf", template=None)
    done = run("build", "--gguf", "other.gguf")
    assert done.code == 0
    assert done.err == (
        "warning: other.gguf has no chat template: conversations with it are written in ChatML\n"
        "hint: --arg --chat-template --arg TEMPLATE brings one, in Jinja, for all weights inside\n"
    )
    with zipfile.ZipFile("other.llamafile") as archive:
        assert ".args" not in archive.namelist()
    # As the hint says.
    text = "{{ messages[0].content }}"
    given = ("--arg", "--chat-template", "--arg", text, "-o", "told.llamafile")
    assert run("build", "--gguf", "other.gguf", *given).err == ""


def test_build_without_weights_is_an_engine(run, here):
    done = run("build", "-o", "engine")
    assert "weights   none: give some with -m FILE" in done.out
    assert "./engine -m MODEL.gguf -p" in done.out


def test_name_is_what_the_file_is_called_by_default(run, here):
    run("build", "--gguf", "m.gguf", "--name", "phi3")
    assert json.loads(run("inspect", "--json", "phi3.llamafile").out)["name"] == "phi3"
    assert "  called phi3, built by pyllamafile " in run("inspect", "phi3.llamafile").out


@pytest.mark.parametrize(
    ("arguments", "choice"),
    [
        (["--gguf", "m.gguf", "--gguf", "two words.gguf"], ["<-m>", "<@m>"]),
        (["--gguf", "two words.gguf", "--gguf", "m.gguf"], ["<-m>", "<@two words>"]),
        (["--gguf", "m.gguf", "--add", "two words.gguf"], ["<-m>", "<@m>"]),
        (["--gguf", "m.gguf", "--add", "two words.gguf=x"], []),  # no weights to a runtime
    ],
    ids=str,
)
def test_among_several_models_the_first_is_to_be_tried(run, here, arguments, choice):
    shutil.copy("m.gguf", "two words.gguf")
    out = run("build", "-o", "o", *arguments).out
    command = next(line for line in out.splitlines() if "Once" in line)
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True)
    assert done.stdout.splitlines()[2:] == [*choice, "<-p>", "<Once upon a time>", "<-n>", "<64>"]


def test_the_parts_of_one_model_are_no_choice(run, here):
    first, _ = split_gguf(here)
    assert "\n  ./s.llamafile -p " in run("build", "--gguf", first).out
    out = run("build", "--gguf", "m.gguf", "--gguf", first, "-o", "o").out
    assert "\n  ./o -m @m -p " in out
    out = run("build", "--gguf", first, "--gguf", "m.gguf", "-o", "o", "--force").out
    assert "\n  ./o -m @s-00001-of-00002 -p " in out


def test_add_takes_a_name_after_an_equals_sign(run, here):
    Path("a=b").write_text("1")
    Path("c").write_text("2")
    done = run("build", "-o", "o", "--add", "a=b", "--add", "a=b=x=y", "--add", "c=docs/c.txt")
    assert done.code == 1  # there is no file a=b=x
    assert run("build", "-o", "o", "--add", "a=b", "--add", "c=docs/c.txt", "--no-gui").code == 0
    with zipfile.ZipFile("o") as archive:
        assert archive.namelist()[:2] == ["a=b", "docs/c.txt"]


def test_existing_output_is_replaced_only_with_force(run, fails, here):
    Path("o").write_text("precious")
    fails("o: exists already", "build", "--gguf", "m.gguf", "-o", "o", hint="--force replaces it")
    assert run("build", "--gguf", "m.gguf", "-o", "o", "--force").code == 0
    assert run("verify", "o").code == 0
    assert os.access("o", os.X_OK)


@pytest.mark.parametrize("force", [(), ("--force",)], ids=["", "force"])
def test_output_equals_input(fails, here, force):
    Path("symbolic").symlink_to("m.gguf")
    Path("hard").hardlink_to("m.gguf")
    Path("sub").mkdir()
    for output in ("m.gguf", "./sub/../m.gguf", "symbolic", "hard", here / "m.gguf"):
        fails(
            rf"{Path(output)}: is input and output at once",
            *("build", "--gguf", "m.gguf", "-o", output, *force),
            hint="name another -o",
        )
    fails(
        "m.gguf: is input and output at once",
        *("build", "--add", "hard", "-o", "m.gguf", *force),
        hint="name another -o",
    )


def test_a_dangling_link_is_an_existing_output(fails, run, here):
    Path("o").symlink_to("nowhere")
    done = run("build", "-o", "o")
    assert (done.code, done.err) == (1, "error: o: exists already\nhint: --force replaces it\n")
    assert names() == ["m.gguf", "o"]


def test_bad_outputs(fails, here):
    Path("d").mkdir()
    os.mkfifo("fifo")
    for output, error, hint in (
        ("d", "d: is a directory", "name a file with -o"),
        (".", r"\.: is a directory", "name a file with -o"),
        ("nix/o", "nix: no such directory", None),
        ("m.gguf/o", "m.gguf: no such directory", None),
        ("x" * 300, "x{300}: File name too long", None),
        ("fifo", "fifo: not a regular file, so it can't be replaced", None),
        ("/dev/null", "/dev/null: not a regular file, so it can't be replaced", None),
    ):
        fails(error, "build", "--gguf", "m.gguf", "-o", output, "--force", hint=hint)


AGAIN = "the download may have been interrupted: get the file again"


@pytest.mark.parametrize(
    ("change", "error", "hint"),
    [
        (lambda raw: b"not a model", "not a GGUF file", None),
        (lambda raw: b"", "is empty", AGAIN),
        (lambda raw: raw[:3], "not a GGUF file", None),
        (lambda raw: raw[:6], "the header is cut short at byte 6", AGAIN),
        (
            lambda raw: raw[:100],
            "a metadata key claims to be .* bytes long|.*cut short.*|.*claim.*",
            AGAIN,
        ),
        (lambda raw: raw[:-1], "incomplete: 1 of [0-9]+ bytes are missing, from tensor .*", AGAIN),
        (
            lambda raw: raw[:4] + struct.pack("<I", 1) + raw[8:],
            "GGUF version 1, only 2 and 3 can be read",
            "get a newer GGUF of this model, or convert it again with llama.cpp",
        ),
        (
            lambda raw: raw[:4] + struct.pack("<I", 99) + raw[8:],
            "GGUF version 99, only 2 and 3 can be read",
            "a newer pyllamafile may know it",
        ),
        (
            lambda raw: raw[:4] + struct.pack(">I", 3) + raw[8:],
            "a big-endian GGUF, which only big-endian machines can use",
            "convert it with `gguf-convert-endian FILE little` of the package gguf",
        ),
        (
            lambda raw: raw[:8] + struct.pack("<Q", 1 << 60) + raw[16:],
            "the header claims 1152921504606846976 tensors, which cannot be",
            AGAIN,
        ),
        (
            lambda raw: raw[:16] + struct.pack("<Q", 1 << 60) + raw[24:],
            "the header claims 1152921504606846976 metadata entries, which cannot be",
            AGAIN,
        ),
    ],
    ids=[
        *("text", "empty", "3 bytes", "6 bytes", "100 bytes", "a byte less"),
        *("version 1", "version 99", "big endian", "2^60 tensors", "2^60 entries"),
    ],
)
def test_bad_weights(fails, here, change, error, hint):
    Path("bad.gguf").write_bytes(change(Path("m.gguf").read_bytes()))
    fails(rf"bad\.gguf:? ({error})", "build", "--gguf", "bad.gguf", hint=hint)


def test_inputs_that_are_no_files(fails, here):
    os.mkfifo("fifo")
    Path("loop").symlink_to("loop")
    own = "pass the .gguf file itself"
    for name, error, hint in (
        ("nix.gguf", r"cannot read nix\.gguf: No such file or directory", None),
        ("m.gguf/x", r"cannot read m\.gguf/x: Not a directory", None),
        (".", r"\. is a directory", f"{own}, or a folder with config.json and safetensors"),
        ("fifo", "fifo is not a regular file", own),
        ("/dev/zero", "/dev/zero is not a regular file", own),
        ("loop", "cannot read loop: Too many levels of symbolic links", None),
        ("x" * 300, "cannot read x{300}: File name too long", None),
    ):
        fails(error, "build", "--gguf", name, hint=hint)
    for name, error in (
        ("nix", "nix: No such file or directory"),
        (".", r"\.: is a directory"),
        ("fifo", "fifo: not a regular file"),
        ("x" * 300, "x{300}: File name too long"),
    ):
        fails(error, "build", "-o", "o", "--add", name)
        fails(error, "build", "-o", "o", "--args-file", name)


@pytest.mark.parametrize(
    "arguments",
    [("inspect", "pipe"), ("extract", "pipe"), ("verify", "pipe"), ("zipalign", "pipe", "m.gguf")],
    ids=lambda arguments: arguments[0],
)
def test_nobody_waits_for_a_pipe(fails, here, arguments):
    os.mkfifo("pipe")
    fails("pipe:? (is )?not a regular file", *arguments)


def test_what_is_added_as_weights_must_be_weights(fails, here):
    Path("notes").write_text("hello\n")
    fails("notes: not a GGUF file", "build", "-o", "o", "--add", "notes=other.gguf")


def test_a_model_that_may_not_be_read(run, here):
    here.chmod(0o755)
    Path("m.gguf").chmod(0)
    user = os.geteuid()
    try:
        if user == 0:  # who may read everything
            os.seteuid(65534)
        done = run("build", "--gguf", "m.gguf")
    finally:
        os.seteuid(user)
    assert done == (1, "", "error: cannot read m.gguf: Permission denied\n")
    assert names() == ["m.gguf"]


def test_a_missing_part(fails, here):
    first, second = split_gguf(here)
    first.unlink()
    fails(
        rf"{first.name} is missing: the model is split into 2 files",
        *("build", "--gguf", second.name),
        hint="put all of them into the same directory",
    )


def test_names_that_cannot_be_packed(fails, here):
    Path("sub").mkdir()
    shutil.copy("m.gguf", "sub")
    for arguments, error in (
        (["--gguf", "m.gguf", "--gguf", "m.gguf"], "'m.gguf': the name is in the archive twice"),
        (["--gguf", "m.gguf", "--gguf", "sub/m.gguf"], "'m.gguf': .* twice"),
        (["--add", "m.gguf", "--add", "sub/m.gguf"], "'m.gguf': .* twice"),
        (["--add", "m.gguf=../x"], r"'\.\./x': the name has an empty part, \. or \.\. in it"),
        (["--add", "m.gguf=a/../x"], r"'a/\.\./x': .*"),
        (["--add", "m.gguf=/x"], "'/x': the name is absolute"),
        (["--add", "m.gguf=C:/x"], "'C:/x': the name is absolute"),
        (["--add", "m.gguf=a\\b"], r"'a.*b': the name has a backslash in it"),
        (["--add", "m.gguf="], "'': the name is empty"),
    ):
        fails(f"cannot pack {error}", "build", "-o", "o", *arguments)


def test_what_pyllamafile_writes_itself_cannot_be_added(fails, run, here):
    Path("x").write_text("x")
    for name, hint in (
        (".args", "--args-file FILE gives the text of .args"),
        ("llamafile.json", None),
        ("ui/index.html", None),
        ("ui/x", None),
    ):
        error = f"cannot add '{name}': pyllamafile itself writes what has such a name"
        fails(error, "build", "-o", "o", "--add", f"x={name}", hint=hint)
    assert run("build", "-o", "o", "--add", "x=ui/index.html", "--no-gui").code == 0


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--add", "m.gguf"],
        ["--name", "m"],
        ["--nix"],
        ["stray"],
        ["--gguf"],
        ["--force=1"],
    ],
    ids=str,
)
def test_asked_in_the_wrong_way(run, here, arguments):
    done = run("build", *arguments)
    assert done.code == 2
    assert done.out == ""
    assert re.search("^Error: ", done.err, re.M)
    assert names() == ["m.gguf"]


def test_more_wrong_ways(run, here):
    for arguments in (
        ["nix"],
        ["verify"],
        ["inspect", "a", "b"],
        ["zipalign", "x.zip"],
        ["zipalign", "-a", "many", "x.zip", "m.gguf"],
        ["runtimes", "build", "-j", "0"],
    ):
        assert run(*arguments).code == 2
    assert names() == ["m.gguf"]


def test_a_target_that_does_not_exist(fails, here):
    fails(
        "no such target: linux-vax",
        *("build", "--gguf", "m.gguf", "--target", "linux-vax"),
        hint=f"the targets are {', '.join(TARGETS)}; groups of them all, linux, macos, "
        "windows, freebsd, netbsd, openbsd, amd64, arm64",
    )


def test_nobody_is_promised_a_gui(run, here):
    assert "# web GUI and API on" in run("build", "--gguf", "m.gguf").out
    done = run("build", "--gguf", "m.gguf", "--no-gui", "--force")
    assert "# API on" in done.out
    assert "GUI" not in done.out


def test_without_any_runtime_it_says_what_takes_so_long(run, here, monkeypatch, tmp_path):
    def refuse(target, jobs, progress):
        progress(Step("waiting", "building the runtime"))
        progress(Step("steps", "building the runtime", 1, 9))
        raise pyllamafile.PyllamafileError("no compiler", "get one")

    monkeypatch.setattr(native, "PREBUILT", tmp_path / "nothing")
    monkeypatch.setattr(native, "check_tools", lambda: None)
    monkeypatch.setattr(native, "prepare", lambda **options: None)
    monkeypatch.setattr(native, "build", refuse)
    monkeypatch.setattr(native, "build_gui", lambda **options: tmp_path / "ui.zip")
    done = run("build", "--gguf", "m.gguf")
    assert done.code == 1
    assert done.err.splitlines()[0].startswith("No runtime is at hand yet: compiling llama.cpp")
    assert done.err.splitlines()[1:] == ["error: no compiler", "hint: get one"]
    assert names() == ["m.gguf"]


@pytest.mark.parametrize(
    ("there", "arguments", "pages", "said"),
    [
        (
            (),
            (),
            False,
            "No runtime is at hand yet: compiling llama.cpp and its web GUI, once. "
            "That takes about ten minutes on two cores.",
        ),
        (
            (),
            ("--no-gui",),
            False,
            "No runtime is at hand yet: compiling llama.cpp, once. "
            "That takes about ten minutes on two cores.",
        ),
        (
            ("linux-amd64",),
            ("--target", "linux"),
            True,
            "No runtime for linux-arm64 is at hand yet: compiling llama.cpp, once. "
            "That takes about ten minutes on two cores.\n"
            "Without --target a file gets what is at hand, and nothing is compiled: linux-amd64.",
        ),
        (
            ("linux-amd64",),
            ("--target", "macos", "--target", "linux-amd64"),
            True,
            "No runtime for macos-amd64, macos-arm64 is at hand yet: compiling llama.cpp, once. "
            "That takes about ten minutes for each on two cores.\n"
            "Without --target a file gets what is at hand, and nothing is compiled: linux-amd64.",
        ),
        (
            ("linux-amd64",),
            (),
            False,
            "The web GUI is not at hand yet: building it, once. That takes about a minute.",
        ),
        (("linux-amd64",), ("--no-gui",), False, None),
        (("linux-amd64",), (), True, None),
    ],
)
def test_it_says_what_is_not_at_hand(
    run, here, prebuilt, monkeypatch, tmp_path, there, arguments, pages, said
):
    """And names nothing that is at hand, or that nobody asked for."""
    pages_zip = tmp_path / "pages.zip"
    (prebuilt / "ui.zip").rename(pages_zip)
    for path in prebuilt.glob("linux-*"):
        path.unlink()
    for target in there:
        put_runtime(prebuilt, target=target)
    if not pages:  # which came with them
        (prebuilt / "ui.zip").unlink(missing_ok=True)

    def build(target, jobs, progress):
        put_runtime(prebuilt, target=target.name)
        return native.find(target)

    monkeypatch.setattr(native, "check_tools", lambda: None)
    monkeypatch.setattr(native, "prepare", lambda **options: None)
    monkeypatch.setattr(native, "build", build)
    monkeypatch.setattr(
        native, "build_gui", lambda **options: shutil.copy(pages_zip, prebuilt / "ui.zip")
    )
    done = run("build", "--gguf", "m.gguf", *arguments)
    assert (done.code, done.err) == (0, f"{said}\n" if said else "")


def test_weights_without_their_option_are_told_it(run, here):
    done = run("build", "m.gguf", "-o", "o")
    said = "Got unexpected extra argument (m.gguf); weights are given as --gguf m.gguf"
    assert (done.code, done.err.splitlines()[-1]) == (2, f"Error: {said}")
    done = run("build", "--gguf", "m.gguf", "n.gguf", "k.gguf")
    assert done.err.endswith("(n.gguf k.gguf); weights are given as --gguf n.gguf\n")
    assert "weights are given" not in run("build", "--gguff", "m.gguf").err
    assert names() == ["m.gguf"]


def test_targets_that_nobody_wanted_are_not_lacking(run, here):
    assert "  lacking   11 of 12 targets" in run("build", "--gguf", "m.gguf").out
    chosen = ("--target", "linux-amd64", "--force")
    assert "lacking" not in run("build", "--gguf", "m.gguf", *chosen).out


@pytest.mark.parametrize(
    ("count", "said"),
    [
        (0, "0 bytes"),
        (999, "999 bytes"),
        (1000, "1.0 kB"),
        (65_536, "65.5 kB"),
        (999_949, "999.9 kB"),
        (999_951, "1.0 MB"),
        (999_999, "1.0 MB"),
        (999_999_999, "1.0 GB"),
        (4 << 30, "4.3 GB"),
    ],
)
def test_an_amount_has_at_most_three_figures_in_front_of_the_point(count, said):
    assert screen.amount(count) == said


# In a process of its own


@pytest.fixture
def start(here, prebuilt) -> Iterator:
    """Starts a command; ends it with the test."""
    started = []

    def start(*arguments: str | Path, **options) -> subprocess.Popen[str]:
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        process = subprocess.Popen([*COMMAND, prebuilt, *arguments], **{**pipes, **options})
        started.append(process)
        return process

    yield start
    for process in started:
        with process:
            process.kill()


def wait_until_it_copies(process: subprocess.Popen[str]) -> None:
    """Until the process has a file open for writing in this directory that holds its runtime."""
    folder = Path.cwd()
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()
        for link in Path(f"/proc/{process.pid}/fd").iterdir():
            try:
                target, size = link.readlink(), link.stat().st_size
            except OSError:  # closed meanwhile
                continue
            if target.parent == folder and ".gguf" not in target.name and size > 1 << 16:
                time.sleep(0.2)  # well into it
                return
        time.sleep(0.01)
    raise AssertionError("nothing was written")


@pytest.mark.parametrize("old", [None, b"old"])
@pytest.mark.parametrize(
    "how",
    [
        signal.SIGINT,
        pytest.param(signal.SIGTERM, marks=pytest.mark.slow),
        pytest.param(signal.SIGKILL, marks=pytest.mark.slow),
    ],
)
def test_interrupted_half_way(start, here, how, old):
    sparse_gguf(here / "big.gguf", 8 << 30)
    if old is not None:
        (here / "o").write_bytes(old)
    before = names()
    process = start("build", "--gguf", "big.gguf", "-o", "o", "--force")
    wait_until_it_copies(process)
    process.send_signal(how)
    out, err = process.communicate(timeout=20)
    assert process.returncode == (-how if how == signal.SIGKILL else 128 + how)
    assert out == ""
    assert err.strip() == ("interrupted" if how == signal.SIGINT else "")
    assert names() == before
    assert old is None or (here / "o").read_bytes() == old


@pytest.mark.parametrize("room", ["for the runtime", "for less than that"])
def test_a_full_disk(fails, run, here, small_disk, room):
    Path("big.txt").write_bytes(os.urandom(2 << 20))
    output = small_disk / "o"
    output.write_text("precious")
    if room == "for less than that":
        (small_disk / "ballast").write_bytes(bytes((1 << 20) - 4096 * 20))
    before = snapshot(small_disk)
    done = run("build", "--gguf", "m.gguf", "--add", "big.txt", "-o", output, "--force")
    assert done.code == 1
    error, hint = done.err.splitlines()
    assert re.fullmatch(f"error: {output}: (cannot write: )?No space left on device", error)
    assert re.match("hint: .*[0-9]{7}|hint: .*[0-9],[0-9]{3},[0-9]{3} bytes", hint)
    assert snapshot(small_disk) == before
    output.unlink()
    assert run("build", "--gguf", "m.gguf", "--add", "big.txt", "-o", output).code == 1
    assert "o" not in names(small_disk)
    run("extract", "big.txt", "-C", small_disk)


def test_extracting_to_a_full_disk(run, here, small_disk):
    Path("big.txt").write_bytes(os.urandom(2 << 20))
    run("build", "-o", "o", "--add", "big.txt")
    done = run("extract", "o", "-C", small_disk, "big.txt")
    assert done == (1, "", f"error: {small_disk / 'big.txt'}: No space left on device\n")
    assert names(small_disk) == []


def test_a_closed_pipe_is_no_error_to_speak_of(start, built):
    for arguments in (["inspect", built], ["inspect", "--json", built], ["build", "--help"]):
        reading, writing = os.pipe()
        os.close(reading)
        process = start(*arguments, stdout=writing)
        os.close(writing)
        assert process.communicate()[1] == ""
        assert process.returncode == 1


@pytest.mark.parametrize(
    "buffered", ["", pytest.param("1", marks=pytest.mark.slow)], ids=["", "unbuffered"]
)
def test_output_that_cannot_be_written_is_an_error(start, built, buffered):
    for arguments in (
        ["inspect", built],
        ["inspect", "--json", built],
        ["verify", built],
        ["extract", built, "-C", "new"],
        ["build", "--gguf", "m.gguf", "-o", "o"],
        ["runtimes", "list"],
        ["--help"],
        ["--version"],
    ):
        with Path("/dev/full").open("w") as full:
            process = start(
                *arguments, stdout=full, env={**os.environ, "PYTHONUNBUFFERED": buffered}
            )
        error = "error: standard output: No space left on device\n"
        assert (process.communicate()[1], process.returncode) == (error, 1), arguments


def terminal(start, *arguments: str | Path) -> tuple[int, str]:
    """What a command shows on a terminal of 100 columns."""
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100", "LINES": "40"}
    process = start(*arguments, stdin=theirs, stdout=theirs, stderr=theirs, env=environment)
    os.close(theirs)
    shown = b""
    while select.select([ours], [], [], 60)[0]:
        try:
            shown += os.read(ours, 65536)
        except OSError:  # the other side is closed
            break
    os.close(ours)
    return process.wait(), shown.decode()


def test_progress_is_shown_on_a_terminal(start, here):
    sparse_gguf(here / "big.gguf", 2 << 30)
    code, shown = terminal(start, "build", "--gguf", "big.gguf")
    assert code == 0
    assert "writing big.llamafile" in shown
    assert re.search("[1-9][0-9]?%", shown)


def test_progress_is_shown_nowhere_else(run, here, monkeypatch):
    monkeypatch.setattr(screen.time, "monotonic", iter(range(0, 1 << 20, 10)).__next__)  # slow
    assert run("build", "--gguf", "m.gguf").err == ""
    assert run("verify", "m.llamafile").err == ""


def test_what_is_quick_shows_no_progress(start, here):
    code, shown = terminal(start, "build", "--gguf", "m.gguf")
    assert code == 0
    assert "%" not in shown
    assert "runs on" in shown


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        ([("waiting", "waiting")], r"waiting .* 0:00:0[0-9]"),
        (
            [("waiting", "compiling"), ("steps", "compiling", 2, 7)],
            r"compiling .* 2/7 steps 0:00:0[0-9]",
        ),
        (
            [("steps", "compiling", 6, 7), ("bytes", "writing", 1 << 29, 1 << 30)],
            r"writing .* 50% -:--:--",
        ),
    ],
    ids=["no end", "steps", "bytes"],
)
def test_only_what_is_counted_in_bytes_says_when_it_ends(monkeypatch, steps, expected):
    text = io.StringIO()
    terminal = Console(file=text, force_terminal=True, color_system=None, width=100)
    monkeypatch.setattr(screen, "on_terminal", lambda: True)
    monkeypatch.setattr(screen, "new_bar", lambda: bar.Bar(terminal))
    with screen.progress() as tell:
        tell(Step("waiting", "waiting"))  # shown from the first moment, for it may be told but once
        for step in steps:
            tell(Step(*step))
    assert re.search(expected, text.getvalue())


def test_it_is_a_module_and_a_command():
    for command in ([sys.executable, "-m", "pyllamafile"], ["pyllamafile"]):
        if shutil.which(command[0]) is None:
            continue  # not installed, only on the path
        done = subprocess.run([*command, "--version"], capture_output=True, text=True)
        assert done.stdout == f"pyllamafile {pyllamafile.__version__}\n"


@pytest.mark.parametrize(
    "command",
    ["", "build", "inspect", "verify", "extract", "zipalign", "runtimes", "runtimes build"],
)
def test_help(run, command):
    done = run(*command.split(), "--help")
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith(f"Usage: pyllamafile {command}".strip())
    assert run(*command.split(), "-h").out == done.out
    assert max(map(len, done.out.splitlines())) <= 80
    assert "\b" not in done.out
    assert "..." not in re.sub(r"\[NAMES\]\.\.\.|FILE\.\.\.|ARGS\]\.\.\.| \.\.\. ", "", done.out)


def test_the_help_of_build_has_examples_that_work(run, here, prebuilt):
    for target in TARGETS:
        if not target.startswith("windows"):
            put_runtime(prebuilt, PROGRAM, target)
    shutil.copy("m.gguf", "phi3.gguf")
    Path("LICENSE.txt").write_text("free")
    Path("ada.toml").write_text('name = "Ada"')
    Path("manuals").mkdir()
    Path("manuals/ls.txt").write_text("ls lists files")
    lines = run("build", "--help").out.splitlines()
    examples = [line.split() for line in lines if line.startswith("    pyllamafile build ")]
    # Quantizing takes a real runtime, the hub a server: test_sources.py.
    examples = [words for words in examples if not re.search("--quantize|hf:|ollama:", str(words))]
    assert len(examples) >= 2
    for _, *arguments in examples:
        assert run(*arguments).code == 0
        for made in Path().glob("*.llamafile"):
            made.unlink()


# What help takes


HEAVY = {"rich", "huggingface_hub", "asyncio", "subprocess", "json", "filelock"}
# Of a command what is not imported for it: what takes time, or has nothing to say there.
UNWANTED = {
    "--help": HEAVY
    | {f"pyllamafile.{name}" for name in ("zipalign", "native", "targets", "progress")}
    | {f"pyllamafile.cli.{name}" for name in ("screen", "options", "build", "look", "bar")},
    "build --help": {"rich", "huggingface_hub", "asyncio", "pyllamafile.native"},
    "verify --help": {"rich", "huggingface_hub", "asyncio", "pyllamafile.native"},
    "runtimes --help": HEAVY | {"pyllamafile.native", "pyllamafile.zipalign"},
    "--version": HEAVY | {"pyllamafile.native", "pyllamafile.zipalign"},
}


@pytest.mark.parametrize("command", UNWANTED)
def test_help_loads_little(command):
    code = (
        "import sys\nfrom pyllamafile.cli import main\n"
        f"try: main({command.split()})\nfinally: print(*sys.modules, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0
    assert UNWANTED[command] & {*done.stderr.split()} == set()


def test_inspecting_weights_loads_little(run, here):
    """What takes more time than the command itself."""
    code = (
        "import sys\nfrom pyllamafile.cli import main\n"
        "try: main(['inspect', 'm.gguf'])\nfinally: print(*sys.modules, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, run("inspect", "m.gguf").out)
    loaded = {*done.stderr.split()}
    assert not loaded & (HEAVY | {"hashlib", "tempfile", "concurrent.futures", "html.parser"})
    assert not loaded & {f"pyllamafile.{name}" for name in ("llamafile", "zipalign", "passages")}


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, "error: x\n"),
        ({"FORCE_COLOR": "1"}, "\033[31m\033[1merror:\033[0m x\n"),
        ({"FORCE_COLOR": "1", "NO_COLOR": "1"}, "\033[1merror:\033[0m x\n"),
        ({"FORCE_COLOR": "1", "TERM": "dumb"}, "error: x\n"),
    ],
)
def test_styles_are_as_the_environment_says(monkeypatch, capsys, environment, expected):
    for name in ("FORCE_COLOR", "NO_COLOR", "TERM"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    screen.complain("x")
    assert capsys.readouterr().err == expected


def test_amounts_are_those_of_rich(rng):
    counts = [*range(1200), *(10**n + d for n in range(3, 19) for d in (-51, -50, -1, 0, 1, 49))]
    for count in (*counts, *(rng.randrange(1 << 62) for _ in range(1000))):
        places = (len(str(count)) - 1) // 3 * 3 - 1
        rounded = round(count, -places) if places > 0 else count
        assert screen.amount(count) == filesize.decimal(rounded)


def commands(group: Lazy = program) -> Iterator[tuple[Lazy, str, click.Command]]:
    for name in group.list_commands(click.Context(group)):
        command = group.get_command(click.Context(group), name)
        yield group, name, command
        if isinstance(command, Lazy):
            yield from commands(command)


def test_the_table_of_commands_says_what_they_say():
    found = list(commands())
    assert len(found) == 16
    for group, name, command in found:
        summary = group.table[name][1]
        assert inspection.cleandoc(command.help).split("\n")[0] == summary
        assert command.name == name
        assert len(summary) <= 64  # or it is cut where the terminal is narrow


def test_a_command_that_does_not_exist(run):
    for words in (["biuld"], ["runtimes", "lst"]):
        done = run(*words)
        assert (done.code, done.out) == (2, "")
        assert f"No such command '{words[-1]}'" in done.err


# Plain English: who does what. These words gave way to it (CONTRIBUTING.md, "How we write").
HARD = (
    r"\bwhat is no\b",
    r"\bwhat else\b",
    r"\bwho (starts|calls|asks|has|is)\b",
    r"\bwhere there is\b",
    r"Killed\b",
    r"Interrupted\b",
    r", for (it|they|the|a)\b[^.;:]*\b(is|are|has|have|must|may|can)\b",
)


@pytest.mark.parametrize("words", HARD)
def test_help_is_in_plain_english(words):
    for _, name, command in commands():
        texts = [command.help, *(getattr(p, "help", None) or "" for p in command.params)]
        for text in texts:
            assert not re.search(words, " ".join(text.split())), (name, text)


# Targets and formats


@pytest.fixture
def windows(here, prebuilt):
    put_runtime(prebuilt, tiny_pe(), "windows-amd64")
    return here


def test_targets_by_name_and_by_group(run, windows):
    for targets, runs_on in {
        (): "linux-amd64, windows-amd64",
        ("linux-amd64",): "linux-amd64",
        ("windows-amd64", "linux-amd64"): "linux-amd64, windows-amd64",
    }.items():
        options = [word for target in targets for word in ("--target", target)]
        out = run("build", "--gguf", "m.gguf", "--force", *options).out
        assert f"\n  runs on   {runs_on}\n" in out


def test_windows_wants_a_name_that_ends_in_exe(run, windows):
    note = "\n  Windows   starts it when its name ends in .exe\n"
    assert note in run("build", "--gguf", "m.gguf").out
    assert "  Windows  " not in run("build", "--gguf", "m.gguf", "-o", "m.EXE").out
    assert (
        "  Windows  "
        not in run("build", "--gguf", "m.gguf", "-o", "l", "--target", "linux-amd64").out
    )


def test_a_file_of_4_gib_says_what_starts_it_on_windows(run, windows, monkeypatch):
    monkeypatch.setattr(importlib.import_module("pyllamafile.ops.build"), "TOO_LARGE", 1000)
    why = "starts it there, because a program must be below 4 GiB"
    assert f"\n  Windows   m.exe {why}\n" in run("build", "--gguf", "m.gguf").out
    assert names() == ["m.exe", "m.gguf", "m.llamafile"]
    Path("m.exe").unlink()
    done = run("build", "--gguf", "m.gguf", "--no-companion", "--force")
    assert f"\n  Windows   nothing {why}\n" in done.out
    assert names() == ["m.gguf", "m.llamafile"]
    assert (
        "Windows  "
        not in run("build", "--gguf", "m.gguf", "--target", "linux-amd64", "--force").out
    )


def test_the_format_elf(run, fails, here, prebuilt):
    put_runtime(prebuilt, tiny_elf())
    done = run("build", "--gguf", "m.gguf", "--format", "elf", "--target", "linux-amd64")
    assert (done.code, done.err) == (0, "")
    assert Path("m.llamafile").read_bytes().startswith(tiny_elf())
    assert run("verify", "m.llamafile").out == "m.llamafile: sound\n"
    assert re.search(
        r"^linux-amd64 .* v3 +0 +159 +159  [0-9a-f]{16}$", run("inspect", "m.llamafile").out, re.M
    )
    fails(
        "a file of the format elf is for one Linux target",
        *("build", "--gguf", "m.gguf", "-o", "x", "--format", "elf", "--target", "arm64"),
        hint="choose it with --target linux-amd64 or --target linux-arm64",
    )


def test_build_help_tells_what_starts_without_a_shell(run):
    text = " ".join(run("build", "--help").out.split())
    for part in ("--format [portable|elf]", "#!/bin/sh", "systemd", "--no-companion", "or all"):
        assert part in text


# inspect, verify, extract


def test_inspect(run, built):
    done = run("inspect", built)
    assert (done.code, done.err) == (0, "")
    size = (Path(built)).stat().st_size
    sha256 = json.loads(zipfile.ZipFile(built).read("llamafile.json"))["runtimes"][0]["sha256"]
    with zipfile.ZipFile(built) as archive:
        gui = [info for info in archive.infolist() if info.filename.startswith("ui/")]
    stored = sum(info.compress_size for info in gui)
    other = f"{(size - 65536 - 9856 - stored) / 1000:.1f} kB"
    expected = f"""
m.llamafile  {size / 1000:.1f} kB  called m, built by pyllamafile {pyllamafile.__version__}
  runtimes 65.5 kB, weights 9.9 kB, web GUI {stored} bytes, other {other}
m.gguf
  name          Tiny
  architecture  llama
  parameters    2,080
  quantization  F32
  context       128 tokens
  tokenizer     llama
  vocabulary    64 tokens
  tensors       2
  template      25 characters
runtime      llama.cpp    levels  offset  size  packed  sha256
linux-amd64  1.2.3 (abc)  v3       65536  {len(PROGRAM):>4}   65536  {sha256[:16]}
.args
  -c
  2048
""".lstrip()
    assert done.out.startswith(expected)
    header, *rows = done.out.removeprefix(expected).splitlines()
    assert header.split() == ["offset", "align", "size", "stored", "method", "entry"]
    assert rows[0].split() == ["196608", "65536", "9856", "9856", "stored", "m.gguf"]
    assert [row.split()[-1] for row in rows] == [
        "m.gguf",
        ".args",
        "them)",
        "them)",
        "proof.model",
        "llamafile.json",
    ]
    with zipfile.ZipFile(built) as archive:
        infos = archive.infolist()
    for row, start, methods in (
        (rows[2], "LICENSES/", "stored"),
        (rows[3], "ui/", "deflated, stored"),
    ):
        files = [info for info in infos if info.filename.startswith(start)]
        size, stored = sum(i.file_size for i in files), sum(i.compress_size for i in files)
        label = rf"{start} \({len(files)} files, --all lists them\)"
        assert re.search(rf" {size} +{stored}  {methods} +{label}$", row)


@pytest.mark.parametrize("flag", ["-a", "--all"])
def test_inspect_all_lists_every_entry(run, built, flag):
    rows = run("inspect", flag, built).out.splitlines()
    entries = zipfile.ZipFile(built).namelist()
    assert [row.split()[5] for row in rows[-len(entries) :]] == entries


def test_a_single_file_of_a_gui_is_shown_as_it_is(run, here):
    with zipfile.ZipFile("x.zip", "w") as archive:
        archive.writestr("ui/only.html", "")
    assert run("inspect", "x.zip").out.splitlines()[-1].endswith("  stored  ui/only.html")


def test_inspect_json(run, built):
    done = run("inspect", "--json", built)
    assert (done.code, done.err) == (0, "")
    assert json.loads(done.out) == json.loads(json.dumps(pyllamafile.inspect(built).as_dict()))


def test_inspect_a_bare_model(run, here):
    out = run("inspect", "m.gguf").out
    assert "architecture  llama" in out
    assert "offset" not in out


def test_text_from_a_file_cannot_command_the_terminal(run, here):
    tiny_gguf(Path("m.gguf"), name="\x1b[31mTiny :smile: [/]\u202e")
    with zipfile.ZipFile("o", "w") as archive:
        archive.write("m.gguf", "\x1b]0;m\x07[red].gguf")
        archive.writestr(".args", "\x1b[2J\\\n")
    out = run("inspect", "o").out
    assert "\n\\x1b]0;m\\x07[red].gguf\n" in out
    assert "  name          \\x1b[31mTiny :smile: [/]\\u202e\n" in out
    assert "  \\x1b[2J\\\n" in out
    done = run("verify", "\x1b[31m\nx")
    assert "\x1b" not in done.err


def test_names_in_no_encoding(run, here):
    name = os.fsdecode(b"\xff.gguf")
    shutil.copy("m.gguf", name)
    done = run("build", "--gguf", name)
    assert done == (
        1,
        "",
        "error: cannot pack '\\udcff.gguf': the name cannot be written as UTF-8\n",
    )
    assert run("build", "--gguf", "m.gguf", "-o", os.fsdecode(b"\xff")).code == 0
    assert run("verify", os.fsdecode(b"\xff")).out == "\\udcff: sound\n"


def test_verify_says_what_is_wrong_and_where(run, built):
    raw = bytearray(built.read_bytes())
    raw[196608 + 9000] ^= 1
    raw[65536 + 65000] ^= 1
    built.write_bytes(raw)
    done = run("verify", built)
    assert done.code == 1
    assert re.search(r"^m\.gguf \(entry at offset [0-9]+\): damaged: its CRC-32 ", done.out, re.M)
    assert re.search(r"^runtime linux-amd64 \(offset 65536\): damaged", done.out, re.M)
    count = len(done.out.splitlines())
    assert done.err == f"error: m.llamafile: {count} problems\n"


def test_files_that_are_no_archives(fails, run, here):
    bare = "m.gguf is a bare GGUF, which has no checksums to verify"
    fails(bare, "verify", "m.gguf", hint="inspect reads it, build makes a llamafile of it")
    Path("x").write_text("x")
    fails("x is no ZIP archive, .*", "verify", "x", hint=AGAIN)
    again = "if it was downloaded, get it again"
    fails("x: not a zip archive, or cut off", "inspect", "x", hint=again)
    fails("x: not a zip archive, or cut off", "extract", "x", hint=again)
    fails("x: not a zip archive, or cut off", "doctor", "x", hint=again)
    bare = "it is a bare GGUF: `pyllamafile build` makes a llamafile of it"
    fails("m.gguf: not a zip archive, or cut off", "extract", "m.gguf", hint=bare)


def test_an_address_is_not_fetched(fails, folder):
    address = "https://example.com/m.gguf"
    hint = "download the file and pass its path, or pass hf:OWNER/REPO"
    fails(f"{address}: addresses are not fetched", "build", "--gguf", address, hint=hint)


def test_more_than_the_model_can_read_is_said(run, here):
    Path("long.txt").write_text("word " * 500)
    done = run("build", "--gguf", "m.gguf", "--read", "long.txt", "--no-state", "-o", "f")
    about = "has read too much: about 628 tokens, and the model was trained on 128"
    assert (done.code, about in done.err) == (0, True)
    Path("d").mkdir()
    for command in ("inspect", "verify", "extract"):
        for name in ("nix", "d"):
            done = run(command, name)
            assert (done.code, done.out) == (1, "")
            assert len(done.err.splitlines()) == 1
            assert name in done.err


def test_extract(run, built):
    done = run("extract", built, "-C", "new/d", "m.gguf", ".args")
    assert done == (0, "new/d/m.gguf\nnew/d/.args\n", "")
    assert Path("new/d/m.gguf").read_bytes() == Path("m.gguf").read_bytes()
    done = run("extract", built, "-C", "all")
    assert done.code == 0
    with zipfile.ZipFile(built) as archive:
        found = {path for path in Path("all").rglob("*") if path.is_file()}
        assert found == {Path("all", name) for name in archive.namelist()}
        for path in found:
            assert path.read_bytes() == archive.read(path.relative_to("all").as_posix())


def test_extract_replaces_nothing_by_itself(run, fails, built):
    fails("m.gguf: exists already", "extract", built, hint="--force replaces it")
    assert run("extract", built, "--force", "m.gguf").code == 0


def test_arguments_in_no_encoding_are_shown(run, here):
    Path("args").write_bytes("-p '\xe4'\n".encode("latin-1"))
    pyllamafile.build("m.gguf", "o")
    with zipfile.ZipFile("o", "a") as archive:
        archive.write("args", ".args")
    done = run("inspect", "o")
    assert (done.code, done.err) == (0, "")
    assert "  -p '\N{REPLACEMENT CHARACTER}'\n" in done.out


def test_extract_refuses_hostile_names(fails, here):
    with zipfile.ZipFile("evil.zip", "w") as archive:
        archive.writestr("../evil", b"evil")
    fails(
        r"evil\.zip: the entry '\.\./evil' would be written outside of d, or is a link",
        *("extract", "evil.zip", "-C", "d"),
        hint="name the entries that you want",
    )
    assert not Path("../evil").exists()


# zipalign


def test_zipalign_on_a_file_of_ours(run, built):
    Path("notes").mkdir()
    Path("notes/a.txt").write_text("a" * 1000)
    Path(".args").write_text("-c 4096\n")
    assert run("zipalign", built, "notes/a.txt", ".args") == (0, "", "")
    assert run("verify", built) == (0, "m.llamafile: sound\n", "")
    report = pyllamafile.inspect(built)
    assert report.args == "-c 4096\n"
    assert {entry.name: entry.alignment for entry in report.entries}["notes/a.txt"] == 65536
    assert subprocess.run(["sh", built, "x"], capture_output=True).stdout.endswith(b"<x>\n")
    tiny_gguf(Path("m.gguf"), tokens=128)  # the weights themselves
    assert run("zipalign", built, "m.gguf").code == 0
    assert run("verify", built).code == 0
    assert zipfile.ZipFile(built).read("m.gguf") == Path("m.gguf").read_bytes()


def test_zipalign_makes_the_same_archive_twice(run, here):
    assert run("zipalign", "a.zip", "m.gguf").code == 0
    os.utime("m.gguf", (0, 0))
    assert run("zipalign", "b.zip", "m.gguf").code == 0
    assert Path("a.zip").read_bytes() == Path("b.zip").read_bytes()
    once = Path("a.zip").read_bytes()
    assert run("zipalign", "a.zip", "m.gguf").code == 0
    assert Path("a.zip").read_bytes() == once


def test_zipalign_on_a_plain_zip(run, here):
    with zipfile.ZipFile("x.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("old.txt", "old" * 100)
    done = run("zipalign", "-v", "-a", "4096", "x.zip", "m.gguf")
    assert (done.code, done.out) == (0, "")
    assert re.search(r"^m\.gguf: 9856 bytes at ([0-9]+)$", done.err, re.M)
    with zipfile.ZipFile("x.zip") as archive:
        assert archive.testzip() is None
        assert archive.namelist() == ["old.txt", "m.gguf"]
    entry = pyllamafile.inspect("x.zip").entries[1]
    assert entry.offset % 4096 == 0


def test_zipalign_options(run, here):
    Path("sub").mkdir()
    Path("sub/x").write_text("x" * 5000)
    os.utime("sub/x", (1_000_000_000, 1_000_000_000))
    sizes = []
    for level in ("-0", "-1", "-5", "-9"):
        assert run("zipalign", level, f"{level[1]}.zip", "sub/x").code == 0
        info = zipfile.ZipFile(f"{level[1]}.zip").getinfo("sub/x")
        assert info.compress_type == (0 if level == "-0" else 8)
        assert info.date_time == (1980, 1, 1, 0, 0, 0)
        sizes.append(info.compress_size)
    assert sizes[0] == 5000 > sizes[1] >= sizes[2] >= sizes[3]
    assert run("zipalign", "-j", "-N", "j.zip", "sub/x").code == 0
    (info,) = zipfile.ZipFile("j.zip").infolist()
    assert info.filename == "x"
    assert info.date_time == time.localtime(1_000_000_000)[:6]
    assert info.compress_type == 0
    assert run("zipalign", "abs.zip", here / "sub" / "x").code == 0
    assert zipfile.ZipFile("abs.zip").namelist() == [f"{here}/sub/x"[1:]]


def test_zipalign_that_fails_changes_nothing(fails, built):
    Path("a").write_text("a")
    fails("nix: cannot read: No such file or directory", "zipalign", built, "a", "nix")
    fails("a: not a regular file|.*a.*", "zipalign", "-a", "3", built, "a")
    fails(r"m\.llamafile: cannot be added to itself", "zipalign", built, built)
    for name in ("../here/a", "sub/../a"):
        error = rf"cannot pack '{re.escape(name)}': the name has \.\. in it"
        hint = "-j leaves out the directories of the names"
        fails(error, "zipalign", built, name, hint=hint)
    fails("cannot pack 'a': the name is in the archive twice", "zipalign", built, "a", "a")
    hint = "it is a bare GGUF: `pyllamafile build` makes a llamafile of it"
    fails("m.gguf: .*", "zipalign", "m.gguf", "a", hint=hint)


# runtimes


def test_runtimes_list(run, here, prebuilt):
    done = run("runtimes", "list")
    assert (done.code, done.err) == (0, "")
    header, *rows = done.out.splitlines()
    assert header.split() == ["target", "where", "llama.cpp", "levels", "size", "packed", "sha256"]
    assert [row.split()[0] for row in rows] == [*TARGETS, *WITH_GPU]
    facts = json.loads((prebuilt / "linux-amd64.json").read_text())
    assert rows[0].split() == [
        *(
            "linux-amd64",
            "package",
            "1.2.3",
            "(abc)",
            "v3",
            str(len(PROGRAM)),
            "bytes",
            "65.5",
            "kB",
        ),
        facts["sha256"][:16],
    ]
    for path in prebuilt.iterdir():
        path.unlink()
    assert run("runtimes", "list").out.splitlines()[1].split() == ["linux-amd64", "not", "built"]


class Compiler:
    """Stands in for the minutes that a target takes; fails for those that it is told."""

    def __init__(self, fails: set[str] = frozenset(), error: BaseException | None = None) -> None:
        self.fails = fails
        self.error = error or PyllamafileError("zig ended with 1:\n  no such symbol", hint="a log")
        self.compiled: list[str] = []

    def __call__(self, target, source, jobs, tell):
        if target.name in self.fails:
            raise self.error
        tell(Step("steps", f"building the runtime for {target.name}", 3, 4))
        self.compiled.append(target.name)
        return target.name.encode(), {"llama.cpp": "MIT"}


SYSTEMS = ("linux-amd64", "linux-arm64", "macos-arm64", "windows-amd64", "netbsd-amd64")


@pytest.fixture
def compiler(prebuilt, monkeypatch):
    """Five targets of which the package has the first, and the web GUI."""
    made = replace(TARGETS["linux-amd64"])
    monkeypatch.setattr(runtimes, "TARGETS", {name: replace(made, name=name) for name in SYSTEMS})
    monkeypatch.setattr(native, "prepare", lambda **options: None)
    monkeypatch.setattr(driver, "llama_version", lambda target: "1.2.3")

    def use(compiler: Compiler) -> Compiler:
        monkeypatch.setattr(driver, "compile_runtime", compiler)
        return compiler

    return use


def complaints(done) -> str:
    """Standard error without what a log is told of the steps."""
    lines = done.err.splitlines(keepends=True)
    steps = ("building the runtime", "packing the runtime")
    return "".join(line for line in lines if not line.startswith(steps))


def finished() -> set[str]:
    return {path.name.rpartition("-")[0] for path in (native.cache() / "runtimes").glob("*.gz")}


@needs("deflate")
def test_runtimes_build_all_builds_what_is_missing(run, here, compiler):
    first = compiler(Compiler())
    done = run("runtimes", "build", "--all")
    log = [
        f"{verb} the runtime for {name} ({number} of 4)"
        for number, name in enumerate(SYSTEMS[1:], 1)
        for verb in ("building", "packing")
    ]
    assert (done.code, done.err.splitlines()) == (0, log)
    assert {line.split()[0] for line in done.out.splitlines()} == {*SYSTEMS, "web"}
    assert first.compiled == list(SYSTEMS[1:])
    assert finished() == set(SYSTEMS[1:])
    again = compiler(Compiler())
    assert sorted(run("runtimes", "build", "--all").out) == sorted(done.out)
    assert again.compiled == []


@needs("deflate")
def test_runtimes_build_gpu_builds_the_second_program_and_the_shaders(
    run, here, compiler, monkeypatch, tmp_path
):
    """Of the targets that were asked for; without the option nothing of it is built."""
    made, asked = tmp_path / "shaders.zst", []

    def build(programs, jobs, tell) -> Path:
        asked.append(jobs)
        made.touch()
        return made

    monkeypatch.setattr(shaders, "build", build)
    monkeypatch.setattr(shaders, "path", lambda: made)
    monkeypatch.setattr(driver, "programs", lambda: (Path("zig"), Path("cmake"), Path("ninja")))
    first = compiler(Compiler())
    assert run("runtimes", "build", "--all").code == 0
    assert (asked, "linux-amd64-gnu" in first.compiled) == ([], False)
    second = compiler(Compiler())
    done = run("runtimes", "build", "--target", "linux-amd64", "--gpu", "-j", "3")
    assert done.code == 0, done.err
    assert (second.compiled, asked) == (["linux-amd64-gnu"], [3])
    assert f"shaders  {made}\n" in done.out
    again = compiler(Compiler())
    done = run("runtimes", "build", "--target", "linux-amd64", "--gpu")
    assert (done.code, again.compiled, asked) == (0, [], [3])
    assert f"shaders  {made}\n" in done.out
    done = run("runtimes", "build", "--target", "macos-arm64", "--gpu")
    assert again.compiled == ["macos-arm64", "macos-arm64-gpu"]  # macOS compiles the shaders
    assert "shaders" not in done.out


@needs("deflate")
def test_what_fails_does_not_stop_the_others(run, here, compiler):
    compiler(Compiler({"linux-arm64", "windows-amd64"}))
    done = run("runtimes", "build", "--all")
    assert done.code == 1
    assert finished() == {"macos-arm64", "netbsd-amd64"}
    failure = "error: zig ended with 1:\n  no such symbol\nhint: a log\n"
    assert complaints(done) == failure * 2 + (
        "error: 2 of 4 failed: linux-arm64, windows-amd64\n"
        "hint: what was built stays; the same command tries the rest again\n"
    )
    second = compiler(Compiler())
    assert run("runtimes", "build", "--all").code == 0
    assert second.compiled == ["linux-arm64", "windows-amd64"]


@needs("deflate")
def test_an_interruption_leaves_what_is_finished(run, here, compiler):
    compiler(Compiler({"windows-amd64"}, KeyboardInterrupt()))
    done = run("runtimes", "build", "--all")
    assert (done.code, complaints(done).strip()) == (130, "interrupted")
    assert finished() == {"linux-arm64", "macos-arm64"}
    second = compiler(Compiler())
    assert run("runtimes", "build", "--all").code == 0
    assert second.compiled == ["windows-amd64", "netbsd-amd64"]


def test_what_all_of_them_take_is_missed_once(run, here, compiler, monkeypatch):
    def prepare(**options):
        raise PyllamafileError("ziglang is missing", hint="pip install it")

    compiler(Compiler())
    monkeypatch.setattr(native, "prepare", prepare)
    done = run("runtimes", "build", "--all")
    assert (done.code, done.err) == (1, "error: ziglang is missing\nhint: pip install it\n")
    assert finished() == set()


def test_a_single_failure_is_told_once(run, here, compiler, monkeypatch):
    compiler(Compiler(set(SYSTEMS)))
    monkeypatch.setattr(runtimes, "select", lambda names: (runtimes.TARGETS["linux-arm64"],))
    done = run("runtimes", "build", "--target", "linux-arm64")
    assert (done.code, done.err.count("error: ")) == (1, 1)


@needs("deflate")
def test_the_gui_is_built_beside_the_runtimes(run, here, compiler, prebuilt, monkeypatch):
    """Both have begun before either is done; what each of them says is that of a whole."""
    (prebuilt / "ui.zip").rename("pages.zip")
    meet = threading.Barrier(2, timeout=60)
    real = Compiler()

    def compile_runtime(target, source, jobs, tell):
        if not real.compiled:
            meet.wait()
        return real(target, source, jobs, tell)

    def build_gui(progress):
        progress(Step("steps", "building the web GUI", 0, 2))
        meet.wait()
        return Path("pages.zip")

    compiler(compile_runtime)
    monkeypatch.setattr(native, "build_gui", build_gui)
    done = run("runtimes", "build", "--all")
    assert done.code == 0
    assert "building the web GUI (5 of 5)" in done.err.splitlines()
    assert "building the runtime for linux-arm64 (1 of 5)" in done.err.splitlines()
    assert done.out.splitlines()[-1] == "web GUI  pages.zip"
    assert finished() == set(SYSTEMS[1:])


@needs("deflate")
def test_a_gui_that_fails_stops_no_runtime(run, here, compiler, prebuilt, monkeypatch):
    (prebuilt / "ui.zip").unlink()
    compiler(Compiler())

    def build_gui(progress):
        raise PyllamafileError("npm ended with 1", hint="a log")

    monkeypatch.setattr(native, "build_gui", build_gui)
    done = run("runtimes", "build", "--all")
    assert (done.code, complaints(done)) == (
        1,
        "error: npm ended with 1\nhint: a log\nerror: 1 of 5 failed: web GUI\n"
        "hint: what was built stays; the same command tries the rest again\n",
    )
    assert finished() == set(SYSTEMS[1:])


def test_a_build_ends_when_its_gui_fails(compiler, prebuilt, monkeypatch):
    """Nobody compiles for minutes what will be of no use."""
    failing = threading.Event()

    def build_gui(progress):
        failing.set()
        raise PyllamafileError("npm ended with 1")

    def compile_runtime(target, source, jobs, tell):
        failing.wait(60)
        for _ in range(1000):
            tell(Step("steps", "building", 1, 9))
            time.sleep(0.01)
        raise AssertionError("it compiled on")

    compiler(compile_runtime)
    monkeypatch.setattr(native, "build_gui", build_gui)
    with pytest.raises(PyllamafileError, match="npm ended"):
        native.build_all([TARGETS["linux-arm64"]], gui=True)


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_an_interruption_ends_what_is_done_aside(here, how):
    """The programs of the other thread, too, and at once."""
    code = f"""
import os, signal, time
from pyllamafile.native.building import tools
from pyllamafile.native.building.aside import Aside, StoppedError
signal.signal(signal.SIGTERM, lambda *_: exit(143))

def work():
    for _ in range(2):
        tools.run(["sh", "-c", "echo $$; exec sleep 600"], log="aside", what="sleeping",
                  each_line=lambda line: (print(line, flush=True), os.kill(os.getpid(), {how:d})))

with Aside(work):
    time.sleep(600)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode in (143, 1, -signal.SIGINT)
    with pytest.raises(ProcessLookupError):
        os.kill(int(done.stdout), 0)


def test_nobody_waits_for_what_waits_aside(here):
    """For a lock, say, that another process has: Ctrl-C ends that, too."""
    waiting = threading.Event()

    def work():
        with tools.lock("gui", "builds the web GUI", lambda step: waiting.set()):
            raise AssertionError("the lock is held")

    with tools.lock("gui", "builds the web GUI", lambda step: None):
        begin = time.monotonic()
        with Aside(work) as aside:
            assert waiting.wait(60)
        assert time.monotonic() - begin < 30
    assert isinstance(aside.error, StoppedError)


def test_what_is_done_aside_leaves_the_others_first_choice(here):
    said = []

    def work():
        tools.run(["nice"], log="aside", what="asking", each_line=said.append)
        return "result"

    with Aside(work) as aside:
        assert aside.result() == "result"
    assert int(said[0]) == os.nice(0) + 10


def test_what_fails_aside_is_raised_when_it_is_asked_for(here):
    with Aside(lambda: 1 / 0) as aside, pytest.raises(ZeroDivisionError):
        aside.result()


def test_a_notice_is_shown_above_the_bar(monkeypatch):
    text = io.StringIO()
    terminal = Console(file=text, force_terminal=True, color_system=None, width=100)
    monkeypatch.setattr(screen, "on_terminal", lambda: True)
    monkeypatch.setattr(screen, "new_bar", lambda: bar.Bar(terminal))
    with screen.progress() as tell:
        tell(Step("waiting", "waiting"))
        tell(Step("notice", "This takes a while."))
        tell(Step("share", "building", 3, 4))
    assert re.search(
        r"This takes a while\.\n(?s:.*)building .* 75% 0:00:00 so far, 0:00:00 left",
        text.getvalue(),
    )


def test_the_time_left_is_the_mean_of_all_and_counted_down(monkeypatch):
    """However uneven what is done: a quarter in ten seconds makes thirty more."""
    text = io.StringIO()
    terminal = Console(file=text, force_terminal=True, color_system=None, width=100)
    now = 0.0
    shown = bar.Bar(terminal)
    monkeypatch.setattr(shown._bar, "get_time", lambda: now)
    lines = []
    for now, done in ((0.0, 0), (10.0, 25), (14.0, 25), (50.0, 25), (60.0, 50)):  # noqa: B007
        shown.show(Step("share", "building", done, 100))
        shown._bar.refresh()
        lines.append(re.findall(r"([-0-9:]+) so far, ([-0-9:]+) left", text.getvalue())[-1])
    shown.stop()
    assert lines == [
        ("0:00:00", "-:--:--"),
        ("0:00:10", "0:00:30"),
        ("0:00:14", "0:00:26"),
        ("0:00:50", "0:00:00"),
        ("0:01:00", "0:01:00"),
    ]


def test_shares_of_a_whole():
    """However they are told, and whoever is quicker: the whole never goes back."""
    told = []
    shares = Shares(told.append, {"a": 3, "b": 1})
    inner = Shares(shares.of("a"), {"compile": 2, "pack": 1}, numbered=False)
    inner.of("compile")(Step("steps", "compiling", 1, 2))
    shares.of("b")(Step("bytes", "fetching", 1, 2))
    inner.of("compile")(Step("steps", "compiling", 2, 2))
    inner.of("pack")(Step("waiting", "packing"))
    inner.of("pack")(Step("notice", "Something to read."))
    shares.of("b")(Step("bytes", "fetching", 0, 2))
    shares.finished("b")
    shares.of("a")(Step("waiting", "waiting"))
    whole = [(step.what, step.done / step.total) for step in told if step.kind == "share"]
    assert whole == [
        ("compiling (1 of 2)", pytest.approx(2 / 8, abs=1e-4)),
        ("fetching (2 of 2)", pytest.approx(3 / 8, abs=1e-4)),
        ("compiling (1 of 2)", pytest.approx(5 / 8, abs=1e-4)),
        ("packing (1 of 2)", pytest.approx(5 / 8, abs=1e-4)),
        ("fetching (2 of 2)", pytest.approx(5 / 8, abs=1e-4)),
        ("waiting (1 of 2)", pytest.approx(6 / 8, abs=1e-4)),
    ]
    assert [step for step in told if step.kind != "share"] == [Step("notice", "Something to read.")]


def test_several_targets_have_one_bar(monkeypatch):
    told = []
    shares = Shares(told.append, {"a": 1, "b": 1, "c": 1})
    for name in ("a", "b", "c"):
        share = shares.of(name)
        for done in (0, 1, 2):
            share(Step("steps", f"building {name}", done, 2))
        share(Step("waiting", "waiting"))
    assert {(step.kind, step.total) for step in told} == {("share", Shares.TOTAL)}
    assert [step.what for step in told][:1] == ["building a (1 of 3)"]
    steps = [step.done for step in told if step.what.startswith("building")]
    assert steps == sorted(steps)
    assert steps[-1] == Shares.TOTAL


def test_a_bar_keeps_its_time_under_another_name(monkeypatch):
    text = io.StringIO()
    terminal = Console(file=text, force_terminal=True, color_system=None, width=100)
    monkeypatch.setattr(screen, "on_terminal", lambda: True)
    monkeypatch.setattr(screen, "new_bar", lambda: bar.Bar(terminal))
    added = []
    real = bar.RichBar.add_task
    monkeypatch.setattr(
        bar.RichBar, "add_task", lambda *args, **kw: added.append(1) or real(*args, **kw)
    )
    with screen.progress() as tell:
        tell(Step("waiting", "waiting"))
        for step in ("building a", 2 << 16), ("building b", 1 << 16), ("building c", 2 << 16):
            tell(Step("bytes", *step, 3 << 16))
    assert re.search("building c .* 67%", text.getvalue())
    assert len(added) == 3  # the end unknown; one bar over all; what went back
