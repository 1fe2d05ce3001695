"""Faults that were found by reading the code (house.md, B1 to B23): each stays mended.

Here are those that concern the reading of a finished file. test_strange.py asks every reader about
every strange file; here each fault is told as it happened.
"""

from __future__ import annotations

import json
import re
import resource
import shlex
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
from fixtures import put_runtime, tiny_gguf, tiny_lora, tiny_pe
from hostile import MAX_64, archive, extra64, member
from judging import contents
from running import Command
from strange import (
    FILE,
    MODEL,
    Bench,
    by_info_zip,
    check_error,
    long_names,
    many,
    off_alignment,
    ours,
    refused,
    runtime_said,
    said,
    texts,
    upgrade_begun,
)

from pyllamafile.targets import host


@pytest.fixture
def put(bench: Bench, workbench: Path) -> Callable[..., Path]:
    """Writes a file made of the bench."""

    def put(make: Callable[[Bench], bytes], name: str = FILE) -> Path:
        path = workbench / name
        path.write_bytes(make(bench))
        path.chmod(0o755)
        return path

    return put


def words(args: bytes) -> list[str]:
    """What a shell would make of `.args`: near enough to FORMAT.md where there are no variables."""
    return shlex.split(args.decode(), comments=True)


# Data loss


def test_b1_a_manifest_that_cannot_be_parsed_is_not_that_of_a_foreign_file(
    put: Callable[..., Path], run: Command
) -> None:
    """`upgrade` took it for one, and dropped all that people had added."""
    put(lambda b: ours(b, {"added.txt": b"mine"}, text=lambda _: b"oops"))
    assert re.search(r"llamafile\.json|manifest", refused(run, "upgrade", FILE).err)
    assert contents(FILE)["added.txt"] == b"mine"


def test_b2_a_large_manifest_is_a_manifest(put: Callable[..., Path], run: Command) -> None:
    """From 1 MiB on `upgrade` deleted what `verify` called sound."""
    put(lambda b: ours(b, long_names(340)))
    assert contents(FILE)["llamafile.json"][1 << 20 :]
    assert run("verify", FILE).code == 0
    before = contents(FILE)
    assert run("upgrade", FILE).code == 0
    after = contents(FILE)
    assert {n: after.get(n) for n in before if n.startswith("long")} == {
        n: data for n, data in before.items() if n.startswith("long")
    }
    assert run("verify", FILE).code == 0


def test_b3_pages_of_ones_own_are_not_the_gui(put: Callable[..., Path], run: Command) -> None:
    """`upgrade` took them out, and put a GUI into a file that was built with --no-gui."""
    put(lambda b: b.plain)
    assert run("upgrade", FILE).code == 0
    after = contents(FILE)
    assert after["ui/page.html"] == b"<html>mine"
    assert [name for name in after if name.startswith("ui/")] == ["ui/page.html"]
    assert "LICENSES/web-gui.txt" not in after
    assert run("verify", FILE).code == 0


@pytest.mark.parametrize(
    "arguments",
    [
        ("upgrade", FILE),
        ("add", FILE, "new.txt"),
        ("remove", FILE, "notes.txt"),
        ("zipalign", FILE, "new.txt"),
    ],
    ids=lambda words: words[0],
)
def test_b4_a_newer_format_is_left_alone(
    put: Callable[..., Path], run: Command, arguments: tuple[str, ...]
) -> None:
    """FORMAT.md, 6: who finds another number must not interpret the rest, let alone rewrite it."""
    put(said(format=2, parts=["of a later version"]))
    Path("new.txt").write_text("new")
    assert "format 2" in refused(run, *arguments).err


def test_b4_inspect_does_not_interpret_it(put: Callable[..., Path], run: Command) -> None:
    put(said(format=2))
    report = json.loads(run("inspect", "--json", FILE).out)
    assert (report["name"], report["built_by"], report["runtimes"]) == (None, None, [])
    assert [entry["name"] for entry in report["entries"]]


KILLED = """
import os, pathlib, signal, sys
set_attribute = os.setxattr
def killed(target, *rest):
    set_attribute(target, *rest)
    name = os.readlink(f"/proc/self/fd/{target}") if isinstance(target, int) else os.fspath(target)
    if name.endswith("m.gguf"):
        os.kill(os.getpid(), signal.SIGKILL)
os.setxattr = killed
from pyllamafile import native
from pyllamafile.cli import main
native.PREBUILT = pathlib.Path(sys.argv[1])
main(sys.argv[2:])
"""


def test_b5_the_mark_of_one_model_is_not_that_of_the_next(
    bench: Bench, workbench: Path, run: Command
) -> None:
    """--in-place, killed behind its first step; then another model under the same name.

    The next --in-place cut it to the old one's length.
    """
    Path(MODEL).write_bytes(bench.gguf)
    arguments = ["build", "--gguf", MODEL, "--in-place"]
    start = [sys.executable, "-c", KILLED, bench.prebuilt]
    done = subprocess.run([*start, *arguments], capture_output=True, text=True)
    if "can't make room" in done.stderr:
        pytest.skip("the file system of the temporary folder can't shift")
    assert done.returncode == -9, done.stderr
    number = Path(MODEL).stat().st_ino
    other = tiny_gguf(workbench.parent / "other.gguf", name="Other", tokens=640).read_bytes()
    assert len(other) > len(bench.gguf)
    with Path(MODEL).open("r+b") as file:  # as cp and curl do
        file.truncate(0)
        file.write(other)
    assert Path(MODEL).stat().st_ino == number
    again = run(*arguments)
    if again.code:
        check_error(again.err)
        assert Path(MODEL).read_bytes() == other
    else:
        assert contents("m.llamafile")[MODEL] == other
        assert run("verify", "m.llamafile").code == 0


def limit_of_windows(patch: pytest.MonkeyPatch, size: int) -> None:
    """As if Windows started no program from so many bytes on."""
    for name, module in list(sys.modules.items()):
        if name.startswith("pyllamafile") and hasattr(module, "TOO_LARGE"):
            patch.setattr(module, "TOO_LARGE", size)


def test_b6_an_exe_that_is_no_companion_is_not_replaced(
    put: Callable[..., Path], run: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`upgrade` wrote NAME.exe beside a file of 4 GiB, whatever had that name."""
    limit_of_windows(monkeypatch, 1000)
    put(lambda b: b.windows, "f.llamafile")
    Path("f.exe").write_bytes(b"a program of somebody else's")
    before = Path(FILE).read_bytes()
    done = run("upgrade", FILE)
    assert Path("f.exe").read_bytes() == b"a program of somebody else's"
    assert done.code == 0 or Path(FILE).read_bytes() == before
    assert "f.exe" in done.out + done.err
    assert run("verify", FILE).code == 0


def test_b6_a_companion_is(
    bench: Bench,
    workbench: Path,
    run: Command,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A companion goes with its file: the old engine's is replaced by the new one's."""
    limit_of_windows(monkeypatch, 1000)
    Path(MODEL).write_bytes(bench.gguf)
    target = ("--target", "windows-amd64")
    assert run("build", "--gguf", MODEL, "-o", FILE, *target).code == 0
    assert Path("f.exe").read_bytes() == tiny_pe()
    newer = bytearray(tiny_pe())
    newer[-1:] = b"!"
    put_runtime(workbench, bytes(newer), "windows-amd64")
    monkeypatch.setattr("pyllamafile.native.PREBUILT", workbench)
    assert run("upgrade", FILE).code == 0
    assert Path("f.exe").read_bytes() == newer


# Security


@pytest.mark.parametrize(
    "target", ["../evil", "sub/evil", "{workbench}/evil", "linux-amd64/../x", ""]
)
def test_b7_a_target_is_no_path(
    put: Callable[..., Path], workbench: Path, run: Command, target: str
) -> None:
    """`upgrade --engine` wrote to wherever a manifest said."""
    put(lambda b: b.built)
    put(runtime_said(target=target.format(workbench=workbench)), "engine")
    refused(run, "upgrade", FILE, "--engine", "engine")
    assert run("verify", "engine").code == 1


# Wrong answers


@pytest.mark.parametrize(
    "make",
    [
        by_info_zip("FILE", "docs/new.txt"),
        by_info_zip("-0", "FILE", "second.gguf"),
        by_info_zip("-d", "FILE", "notes.txt"),
        off_alignment,
    ],
    ids=["added", "weights added", "deleted", "moved"],
)
def test_b8_a_file_that_starts_is_not_broken(
    put: Callable[..., Path], run: Command, make: Callable[[Bench], bytes]
) -> None:
    """FORMAT.md, 7: any zip tool may add, replace and delete entries; 4: weights may be moved."""
    put(make)
    done = run("doctor", FILE)
    assert (done.code, done.err) == (0, "")
    assert "problem:" not in done.out
    assert "note:" in done.out


def test_b9_remove_leaves_no_argument_that_names_what_is_gone(
    bench: Bench, workbench: Path, run: Command
) -> None:
    Path(MODEL).write_bytes(bench.gguf)
    tiny_lora(Path("a.gguf"), Path(MODEL))
    more = ["--add", "a.gguf", "--arg", "--lora", "--arg", "@a", "--arg", "-c", "--arg", "64"]
    assert run("build", "--gguf", MODEL, "-o", FILE, *more).code == 0
    before = Path(FILE).read_bytes()
    done = run("remove", FILE, "a.gguf")
    if done.code:
        check_error(done.err)
        assert ".args" in done.err
        assert Path(FILE).read_bytes() == before
    else:
        assert words(contents(FILE)[".args"]) == ["-c", "64"]
        assert run("verify", FILE).code == 0


@pytest.mark.parametrize("reader", ["verify", "doctor"])
def test_b9_an_argument_that_names_what_is_gone_is_told(
    put: Callable[..., Path], run: Command, reader: str
) -> None:
    """Such a file doesn't start: the runtime refuses `.args`."""
    put(lambda b: ours(b, {".args": b"-c 64 --lora @gone\n"}))
    done = run(reader, FILE)
    assert done.code == 1
    assert re.search(r"\.args.*@?gone|@?gone.*\.args", done.out)


@pytest.mark.native
def test_b9_such_a_file_does_not_start(put: Callable[..., Path], whole_runtime: Path) -> None:
    """What the readers above have to say so for."""
    put(lambda b: ours(b, {".args": b"-c 64 --lora @gone\n"}))
    done = subprocess.run(
        [whole_runtime, "--llamafile", FILE, "-p", "x"], capture_output=True, text=True
    )
    assert done.returncode == 1
    assert re.fullmatch(r"error: \.args of this file: .*gone.*\n", done.stderr)


@pytest.mark.parametrize("what", ["zip", "llamafile", "engine alone"])
def test_b12_what_is_called_gguf_is_one(put: Callable[..., Path], run: Command, what: str) -> None:
    """`add` took any zip for weights."""
    put(lambda b: b.built)
    makes: dict[str, Callable[[Bench], bytes]] = {
        "zip": lambda b: archive(member(b"a.txt")),
        "llamafile": lambda b: b.built,
        "engine alone": lambda b: b.bare,
    }
    put(makes[what], "given")
    assert "given" in refused(run, "add", FILE, "given=x.gguf").err


LIMIT = 1 << 20  # bytes of `.args`


@pytest.mark.parametrize("how", ["build", "add"])
def test_b13_args_have_one_limit(
    bench: Bench, workbench: Path, put: Callable[..., Path], run: Command, how: str
) -> None:
    """What was built with `.args` of 1.1 MB could not be inspected."""
    Path(MODEL).write_bytes(bench.gguf)
    arguments: tuple[str, ...] = ("build", "--gguf", MODEL, "-o", FILE, "--args-file", "args")
    if how == "add":
        put(lambda b: b.built)
        arguments = ("add", FILE, "args=.args")
    # `build` ends the text in a newline, where it has none.
    Path("args").write_bytes(b"#".ljust(LIMIT, b"x") + b"\n")
    assert "args" in refused(run, *arguments).err
    Path("args").write_bytes(b"#".ljust(LIMIT - 1, b"x") + b"\n")
    assert run(*arguments).code == 0
    assert run("inspect", FILE).code == 0
    assert run("verify", FILE).code == 0
    assert run("upgrade", FILE).code == 0


@pytest.mark.slow
def test_b13_a_file_of_45000_entries(bench: Bench, workbench: Path, run: Command) -> None:
    """It ended in "this is a bug in pyllamafile"."""
    Path(MODEL).write_bytes(bench.gguf)
    Path("x").write_text("x")
    more = [word for name in many(45_000) for word in ("--add", f"x={name}")]
    done = run("build", "--gguf", MODEL, "-o", FILE, "--no-gui", *more)
    assert (done.code, done.err) == (0, "")
    assert run("verify", FILE).code == 0


@pytest.mark.parametrize("memory", ["nan", "inf", "-inf", "1e400"])
def test_b17_no_machine_has_so_much_memory(
    bench: Bench, workbench: Path, run: Command, memory: str
) -> None:
    Path(MODEL).write_bytes(bench.gguf)
    done = run("advise", MODEL, "--memory", memory)
    assert done.code == 2  # asked in the wrong way, as for --memory 0
    assert "--memory" in done.err


@pytest.mark.parametrize("key", ["head_count", "head_count_kv", "block_count", "embedding_length"])
def test_b17_a_header_of_zeros(workbench: Path, run: Command, key: str) -> None:
    """Either an answer or an error; a division by the number of heads was neither."""
    values = {"head_count": 2, "head_count_kv": 2, "block_count": 1, "embedding_length": 32}
    values[key] = 0
    writer = gguf.GGUFWriter(MODEL, "llama")
    writer.add_context_length(128)
    writer.add_block_count(values["block_count"])
    writer.add_embedding_length(values["embedding_length"])
    writer.add_head_count(values["head_count"])
    writer.add_head_count_kv(values["head_count_kv"])
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(["a", "b"])
    writer.add_tensor("token_embd.weight", np.ones((2, 32), np.float32))
    writer.add_tensor("blk.0.attn_qkv.weight", np.ones((96, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    done = run("advise", MODEL)
    if done.code:
        check_error(done.err)
        assert done.code == 1


def test_b17_a_notice_that_is_no_text(put: Callable[..., Path], run: Command) -> None:
    put(lambda b: b.built)
    put(lambda b: ours(b, {"LICENSES/odd.txt": b"\xff\xfe"}), "engine")
    assert "LICENSES/odd.txt" in refused(run, "upgrade", FILE, "--engine", "engine").err


@pytest.mark.parametrize(
    "changes",
    [
        {"licenses": []},
        {"licenses": {"x": 5}},
        {"levels": 5},
        {"levels": [5]},
        {"target": 5},
        {"target": "../evil"},
        {"size": "5"},
        {"packed_size": None},
        {"sha256": 5},
        {"llama_cpp": ["1"]},
        {"more": 1},
    ],
    ids=json.dumps,
)
def test_b17_a_wheel_that_says_nonsense(
    bench: Bench, put: Callable[..., Path], run: Command, changes: dict[str, object]
) -> None:
    put(lambda b: b.built)
    here = host()
    assert here is not None
    facts = json.loads((bench.prebuilt / f"{here.name}.json").read_bytes())
    with zipfile.ZipFile("p.whl", "w") as file:
        folder = "pyllamafile/native/prebuilt"
        file.write(bench.prebuilt / f"{here.name}.gz", f"{folder}/{here.name}.gz")
        file.writestr(f"{folder}/{here.name}.json", json.dumps({**facts, **changes}))
    assert "p.whl" in refused(run, "upgrade", FILE, "--engine", "p.whl").err


@pytest.mark.native
def test_b19_args_that_no_memory_has(
    bench: Bench, workbench: Path, whole_runtime: Path, tmp_path: Path
) -> None:
    """`.args` were read where nothing caught what comes of it, and the runtime was aborted."""
    size = 8 << 30
    wide = {"size": MAX_64, "stored": MAX_64, "extra": extra64(size, size), "data": b""}
    whole = archive(member(b".args", b"", **wide))
    (at,) = struct.unpack_from("<L", whole, len(whole) - 6)
    with Path(FILE).open("wb") as file:
        file.write(whole[:at])
        file.truncate(at + size)
        file.seek(at + size)
        directory = whole[at:-22]
        file.write(directory)
        ends = (44, 45, 45, 0, 0, 1, 1, len(directory), at + size)
        file.write(struct.pack("<4sQ2H2L4Q", b"PK\6\6", *ends))
        file.write(struct.pack("<4sLQL", b"PK\6\7", 0, at + size + len(directory), 1))
        file.write(struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, *[65535] * 2, *[2**32 - 1] * 2, 0))
    with zipfile.ZipFile(FILE) as opened:
        assert opened.getinfo(".args").file_size == size

    def little() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))

    done = subprocess.run(
        [whole_runtime, "--llamafile", FILE, "--version"],
        capture_output=True,
        text=True,
        preexec_fn=little,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch(r"error: .*\.args.*\n", done.stderr)


@pytest.mark.parametrize(
    "make",
    [
        upgrade_begun,
        texts(b"oops"),
        said(entries=[]),
        lambda b: ours(b, manifest={"flags": 1}),
    ],
    ids=["interrupted", "no JSON", "no entries", "encrypted"],
)
def test_b21_zipalign_leaves_no_stale_manifest(
    put: Callable[..., Path], run: Command, make: Callable[[Bench], bytes]
) -> None:
    """The command added to what it couldn't update, and said nothing."""
    put(make)
    Path("new.txt").write_text("new")
    refused(run, "zipalign", FILE, "new.txt")


def test_b22_mozillas_arguments_are_read_as_arguments(
    put: Callable[..., Path], run: Command
) -> None:
    """Names in comments and in quotes were rewritten as well; ``--model=NAME`` was not."""
    text = (
        b"# m.gguf is the model, /zip/m.gguf its place\n"
        b"-m m.gguf\n"
        b'--system-prompt "say that m.gguf speaks"\n'
        b"--alias 'also m.gguf here'\n"
        b"-p m.gguf\n"
        b"-md\t/zip/m.gguf\n"
        b"--mmproj '/zip/m.gguf'\n"
        b"...\n"
    )
    put(lambda b: with_args(b, text))
    assert run("upgrade", FILE).code == 0
    after = contents(FILE)[".args"]
    assert after.startswith(b"# m.gguf is the model, /zip/m.gguf its place\n")
    assert words(after) == [
        *("-m", "@m.gguf"),
        *("--system-prompt", "say that m.gguf speaks"),
        *("--alias", "also m.gguf here"),
        *("-p", "m.gguf"),
        *("-md", "@m.gguf"),
        *("--mmproj", "@m.gguf"),
        "...",
    ]


@pytest.mark.parametrize("flag", ["--model", "--mmproj"])
def test_b22_values_behind_equals(put: Callable[..., Path], run: Command, flag: str) -> None:
    put(lambda b: with_args(b, f"{flag}=m.gguf\n...\n".encode()))
    assert run("upgrade", FILE).code == 0
    found = words(contents(FILE)[".args"])
    assert found in ([flag, "@m.gguf", "..."], [f"{flag}=@m.gguf", "..."])


def with_args(bench: Bench, text: bytes) -> bytes:
    """A file of Mozilla's with this `.args`."""
    return archive(
        member(b".args", text),
        member(b"m.gguf", bench.gguf),
        prefix=b"MZqFpD='\n" + bytes(10_000) + b"\n'\nexit 1\n",
    )
