"""What people have reported of programs of this kind: a small input of each kind, and its like."""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from conftest import Run, serving

import pyllamafile

pytestmark = pytest.mark.native

PROMPT = "The capital of France is"
GREEDY = ("--temp", "0", "-n", "6")
SERVER = ("--server", "--nobrowser", "--port", "0")


def with_args(model: Path, path: Path, *args: str) -> Path:
    return pyllamafile.build(model, path, args=args, targets=["linux-amd64"], gui=False).path


def refused(done: subprocess.CompletedProcess[bytes], *words: str) -> None:
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr.startswith(b"error: ")
    assert done.stderr.count(b"\n") == 1
    for word in words:
        assert word in done.stderr.decode()


# keys


@pytest.mark.parametrize("key", ["", ",", " ", "a,", "two\nlines", " padded"])
def test_a_key_that_nobody_can_send_ends_the_start(key: str, llamafile: Path, run: Run) -> None:
    refused(run(llamafile, *SERVER, "--api-key", key), "--api-key", "key")
    refused(run(llamafile, *SERVER, env={**os.environ, "LLAMA_API_KEY": key}), "LLAMA_API_KEY")


@pytest.mark.parametrize("content", [b"", b"\n\r\n", b"# only a comment\n", b"\xef\xbb\xbf\r\n"])
def test_a_file_without_a_key_ends_the_start(
    content: bytes, llamafile: Path, run: Run, tmp_path: Path
) -> None:
    file = tmp_path / "keys"
    file.write_bytes(content)
    refused(run(llamafile, *SERVER, "--api-key-file", file), "--api-key-file")


def test_a_variable_in_args_that_is_not_set_is_no_key(
    model: Path, runtime: Path, run: Run, tmp_path: Path
) -> None:
    args = tmp_path / "args"
    args.write_text("--api-key $NOBODY_SETS_THIS\n...\n")
    file = tmp_path / "a.llamafile"
    pyllamafile.build(model, file, args_file=args, targets=["linux-amd64"], gui=False)
    refused(run(file, *SERVER), ".args of this file: --api-key")


def status(url: str, **headers: str) -> int:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=30) as ok:
            return ok.status
    except urllib.error.HTTPError as error:
        return error.code


def test_keys_are_what_an_editor_shows(llamafile: Path, tmp_path: Path) -> None:
    file = tmp_path / "keys.txt"
    file.write_bytes('# ours\r\nfirst\r\nse,co"nd \r\n'.encode("utf-16"))
    with serving(llamafile, *SERVER, "--api-key-file", file) as url:
        assert status(url + "v1/models") == 401 or status(url + "props") == 401
        for key in ("first", 'se,co"nd'):
            assert status(url + "props", Authorization=f"Bearer {key}") == 200
        assert status(url + "props", Authorization="Bearer # ours") == 401


# the answer and the log


@pytest.fixture(scope="module")
def answer(llamafile: Path, run: Run) -> bytes:
    done = run(llamafile, "-p", PROMPT, *GREEDY)
    assert done.returncode == 0
    assert done.stdout.startswith(PROMPT.encode())
    return done.stdout


@pytest.mark.parametrize(
    "flags",
    [
        ("--log-disable",),
        ("--log-file", "log"),
        ("--log-jsonl",),
        ("--log-colors", "on"),
        ("--log-prefix", "--log-timestamps"),
        ("-lv", "5"),
        ("-lv", "-1"),
        ("-v", "--log-disable"),
        ("--color", "on"),
        ("--verbose-prompt",),
        ("--perf",),
    ],
    ids=" ".join,
)
def test_no_flag_of_the_log_touches_the_answer(
    flags: tuple[str, ...], llamafile: Path, run: Run, answer: bytes, tmp_path: Path
) -> None:
    done = run(llamafile, "-p", PROMPT, *GREEDY, *flags, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, answer)


@pytest.mark.parametrize("name", ["LLAMA_ARG_LOG_JSONL", "LLAMA_ARG_LOG_PREFIX"])
def test_nor_does_a_variable(name: str, llamafile: Path, run: Run, answer: bytes) -> None:
    done = run(llamafile, "-p", PROMPT, *GREEDY, env={**os.environ, name: "1"})
    assert (done.returncode, done.stdout) == (0, answer)


def test_an_error_is_said_without_a_log_as_well(llamafile: Path, run: Run) -> None:
    done = run(llamafile, "-p", "word " * 400, "-c", "64", "--log-disable")
    assert done.returncode == 1
    assert done.stderr.startswith(b"error: ")


# text files

TEXT = 'if x == "a\\n\\tb": open("C:\\temp\\new\\x41") \\'


def test_a_file_is_taken_byte_for_byte(llamafile: Path, run: Run, tmp_path: Path) -> None:
    file = tmp_path / "prompt.txt"
    file.write_text(TEXT + "\n")
    for flags in ((), ("--no-escape",)):
        done = run(llamafile, "-f", file, "-n", "1", *flags)
        assert done.stdout.decode().startswith(TEXT)
        piped = run(llamafile, "-f", "-", "-n", "1", *flags, stdin=file.read_bytes())
        assert piped.stdout.decode().startswith(TEXT)
    escaped = run(llamafile, "-f", file, "-n", "1", "-e").stdout.decode()
    assert escaped.startswith('if x == "a\n\tb": open("C:\temp\newA")')


def tokens(llamafile: Path, run: Run, *args: str | Path) -> list[int]:
    done = run(llamafile, "--tokenize", "--ids", *args)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert isinstance(found, list)
    return found


def test_tokens_of_a_file_are_those_of_its_bytes(llamafile: Path, run: Run, tmp_path: Path) -> None:
    file = tmp_path / "text"
    file.write_bytes(b"a\\n\\x41\n")
    assert tokens(llamafile, run, "-f", file) == tokens(
        llamafile, run, "--no-escape", "-p", "a\\n\\x41\n"
    )
    file.write_bytes(b"a\0b")
    assert len(tokens(llamafile, run, "-bf", file)) > len(tokens(llamafile, run, "-p", "a"))


ENCODINGS = ("utf-8-sig", "utf-16", "utf-16-be")


def written(path: Path, text: str, encoding: str) -> Path:
    mark = "\ufeff" if encoding == "utf-16-be" else ""
    path.write_bytes((mark + text.replace("\n", "\r\n")).encode(encoding))
    return path


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_what_windows_editors_write_is_read(
    encoding: str, llamafile: Path, model: Path, run: Run, answer: bytes, tmp_path: Path
) -> None:
    prompt = written(tmp_path / "prompt.txt", PROMPT + "\n", encoding)
    assert run(llamafile, "-f", prompt, *GREEDY).stdout == answer
    assert run(llamafile, "-f", "-", *GREEDY, stdin=prompt.read_bytes()).stdout == answer

    grammar = written(tmp_path / "grammar", 'root ::= " " name\nname ::= "Zürich 🦙"\n', encoding)
    done = run(llamafile, "-p", PROMPT, *GREEDY, "-n", "30", "--grammar-file", grammar)
    assert done.stdout.decode() == f"{PROMPT} Zürich 🦙\n"

    schema = written(tmp_path / "schema", '{"const":\n"yes"}', encoding)
    done = run(llamafile, "-p", PROMPT, *GREEDY, "-jf", schema, "--no-display-prompt")
    assert json.loads(done.stdout) == "yes"

    talk = written(tmp_path / "talk", "/system Be brief. é\n/system\n", encoding)
    done = run(llamafile, "--chat", stdin=talk.read_bytes())
    assert (done.returncode, done.stdout.decode()) == (0, "Be brief. é\n")

    notes = written(tmp_path / "notes", "first line\nsecond line é", encoding)
    script = f"/read {notes}\nSay yes.\n/dump\n"
    done = run(llamafile, "--chat", *GREEDY, stdin=script.encode())
    assert "first line\nsecond line é" in done.stdout.decode()

    template = written(
        tmp_path / "template", "{% for m in messages %}é:{{ m.content }}\n{% endfor %}", encoding
    )
    done = run(llamafile, "--chat", *GREEDY, "--chat-template-file", template, stdin=b"Hi\n/dump\n")
    assert "é:Hi" in done.stdout.decode()


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_args_that_windows_editors_wrote(
    encoding: str, llamafile: Path, run: Run, answer: bytes, tmp_path: Path
) -> None:
    file = tmp_path / "a.llamafile"
    file.write_bytes(llamafile.read_bytes())
    file.chmod(0o755)
    args = written(tmp_path / ".args", f"# note\n-p '{PROMPT}'\n{' '.join(GREEDY)}\n", encoding)
    import zipfile

    with zipfile.ZipFile(file, "a") as archive:
        archive.write(args, ".args")
    assert run(file).stdout == answer


# numbers

HALF = {
    ("-n", "1.5"): "-n 1.5",
    ("-n", "12abc"): "-n 12abc",
    ("-n", "0x10"): "-n 0x10",
    ("--temp", "0,5"): "--temp 0,5",
    ("--temp", "nan"): "--temp nan",
    ("--temp", "1e"): "--temp 1e",
    ("--top-p", ".9.5"): "--top-p .9.5",
    ("-s", "1.5"): "-s 1.5",
    ("-t", "2 threads"): "-t 2 threads",
    ("-c", "4m"): "-c 4m",
}


@pytest.mark.parametrize("arguments", HALF, ids=" ".join)
def test_half_a_number_is_refused(arguments: tuple[str, ...], llamafile: Path, run: Run) -> None:
    refused(run(llamafile, "-p", PROMPT, *arguments), HALF[arguments], "number")


def test_half_a_number_in_a_variable_is_refused(llamafile: Path, run: Run) -> None:
    done = run(llamafile, "-p", PROMPT, env={**os.environ, "LLAMA_ARG_CTX_SIZE": "4q"})
    refused(done, "LLAMA_ARG_CTX_SIZE=4q", "number")


def test_four_k_are_4096(llamafile: Path, run: Run) -> None:
    done = run(llamafile, "--chat", "-c", "4k", stdin=b"/context\n")
    assert done.stdout == b"0 of 4096 tokens\n"
    for number in ("-1", "+5", "1e-1", " 0"):
        assert run(llamafile, "-p", PROMPT, "-n", "1", "--temp", number).returncode == 0


# flags of Mozilla's llamafile

IGNORED = (
    ("--fast",), ("--precise",), ("--iq",), ("--trap",), ("--recompile",), ("--nocompile",),
    ("--strace",), ("--ftrace",), ("--tfs", "1.0"), ("--cfg-scale", "1"), ("--logits-all",),
    ("--lora-base", "x.gguf"), ("-nommq",), ("--logdir", "logs"), ("--db", "x.sqlite3"),
    ("--trust", "10.0.0.0/8"),
)  # fmt: skip
SILENT = (
    ("--nologo",), ("--ascii",), ("--unsecure",), ("--v2",), ("--no-penalize-nl",),
    ("--no-mmap",), ("--gpu", "DISABLE"), ("--url-prefix", "x"), ("--workers", "4"),
    ("--memory-f32",), ("--spf", "x")[:0], ("--slots-endpoint-disable",),
)  # fmt: skip


def test_flags_of_mozillas_llamafile_are_left_out_with_a_line(
    model: Path, runtime: Path, run: Run, answer: bytes, tmp_path: Path
) -> None:
    flags = [word for option in IGNORED for word in option]
    file = with_args(model, tmp_path / "a.llamafile", *flags, "...")
    done = run(file, "-p", PROMPT, *GREEDY)
    assert (done.returncode, done.stdout) == (0, answer)
    notes = done.stderr.decode().splitlines()
    assert [re.findall(r"^note: (\S+), of Mozilla's llamafile", note) for note in notes] == [
        [option[0]] for option in IGNORED
    ]


def test_flags_of_mozillas_llamafile_that_have_another_name(
    model: Path, runtime: Path, run: Run, answer: bytes, tmp_path: Path
) -> None:
    flags = [word for option in SILENT for word in option]
    file = with_args(model, tmp_path / "a.llamafile", *flags, "--color", "...")
    done = run(file, "-p", PROMPT, *GREEDY)
    assert (done.returncode, done.stdout, done.stderr) == (0, answer, b"")
    silent = run(file, "-p", PROMPT, *GREEDY, "--silent_prompt")
    assert PROMPT.encode() + silent.stdout == answer
    assert run(file, "-p", "--color", "-n", "1").stdout.startswith(b"--color")
    with serving(file, *SERVER) as url:
        assert url.endswith("/x/")
        assert status(url + "slots") == 501


# what the machine has


def test_a_context_beyond_the_memory_is_refused_at_once(llamafile: Path, run: Run) -> None:
    for mode in (("-p", PROMPT), ("--chat",), SERVER):
        begun = time.monotonic()
        done = run(llamafile, *mode, "-c", "100000000")
        refused(done, "-c 100000000", "GiB", "8192")
        assert time.monotonic() - begun < 10
    done = run(llamafile, "-p", PROMPT, env={**os.environ, "LLAMA_ARG_CTX_SIZE": "100000000"})
    refused(done, "LLAMA_ARG_CTX_SIZE=100000000", "GiB")


def test_a_context_that_fits_is_taken(llamafile: Path, run: Run) -> None:
    done = run(llamafile, "--chat", "-c", "20k", stdin=b"/context\n")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"0 of 8192 tokens\n", b"")


def test_threads_are_as_many_as_there_are_processors(
    llamafile: Path, run: Run, answer: bytes
) -> None:
    most = os.cpu_count()
    for flags, env in (
        (("-t", "9999"), {}),
        (("--threads_batch", "9999"), {}),
        ((), {"LLAMA_ARG_THREADS": "9999"}),
    ):
        done = run(llamafile, "-p", PROMPT, *GREEDY, *flags, env={**os.environ, **env})
        assert (done.returncode, done.stdout) == (0, answer)
        note = done.stderr.decode().splitlines()[0]
        assert note.startswith("note: ")
        assert note.endswith(f"this machine has {most} processors, so {most} threads compute")
