"""What people have reported of programs of this kind: a small input of each kind, and its like."""

from __future__ import annotations

import gzip
import http.client
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from running import need, run, serving

import pyllamafile

pytestmark = pytest.mark.native

PROMPT = "The capital of France is"
GREEDY = ("--temp", "0", "-n", "6")
SERVER = ("--server", "--nobrowser", "--port", "0")


def with_args(smollm2: Path, path: Path, *args: str) -> Path:
    return pyllamafile.build(smollm2, path, args=args, targets=["linux-amd64"], gui=False).path


def refused(done: subprocess.CompletedProcess[bytes], *words: str) -> None:
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr.startswith(b"error: ")
    assert done.stderr.count(b"\n") == 1
    for word in words:
        assert word in done.stderr.decode()


# keys


@pytest.mark.parametrize("key", ["", ",", " ", "a,", "two\nlines", " padded"])
def test_a_key_that_nobody_can_send_ends_the_start(key: str, llamafile: Path) -> None:
    refused(run(llamafile, *SERVER, "--api-key", key), "--api-key", "key")
    refused(run(llamafile, *SERVER, env={**os.environ, "LLAMA_API_KEY": key}), "LLAMA_API_KEY")


@pytest.mark.parametrize("content", [b"", b"\n\r\n", b"# only a comment\n", b"\xef\xbb\xbf\r\n"])
def test_a_file_without_a_key_ends_the_start(
    content: bytes, llamafile: Path, tmp_path: Path
) -> None:
    file = tmp_path / "keys"
    file.write_bytes(content)
    refused(run(llamafile, *SERVER, "--api-key-file", file), "--api-key-file")


def test_a_variable_in_args_that_is_not_set_is_no_key(
    smollm2: Path, runtime: Path, tmp_path: Path
) -> None:
    args = tmp_path / "args"
    args.write_text("--api-key $NOBODY_SETS_THIS\n...\n")
    file = tmp_path / "a.llamafile"
    pyllamafile.build(smollm2, file, args_file=args, targets=["linux-amd64"], gui=False)
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
def answer(llamafile: Path) -> bytes:
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
    flags: tuple[str, ...], llamafile: Path, answer: bytes, tmp_path: Path
) -> None:
    done = run(llamafile, "-p", PROMPT, *GREEDY, *flags, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, answer)


@pytest.mark.parametrize("name", ["LLAMA_ARG_LOG_JSONL", "LLAMA_ARG_LOG_PREFIX"])
def test_nor_does_a_variable(name: str, llamafile: Path, answer: bytes) -> None:
    done = run(llamafile, "-p", PROMPT, *GREEDY, env={**os.environ, name: "1"})
    assert (done.returncode, done.stdout) == (0, answer)


def test_an_error_is_said_without_a_log_as_well(llamafile: Path) -> None:
    done = run(llamafile, "-p", "word " * 400, "-c", "64", "--log-disable")
    assert done.returncode == 1
    assert done.stderr.startswith(b"error: ")


# text files

TEXT = 'if x == "a\\n\\tb": open("C:\\temp\\new\\x41") \\'


def test_a_file_is_taken_byte_for_byte(llamafile: Path, tmp_path: Path) -> None:
    file = tmp_path / "prompt.txt"
    file.write_text(TEXT + "\n")
    for flags in ((), ("--no-escape",)):
        done = run(llamafile, "-f", file, "-n", "1", *flags)
        assert done.stdout.decode().startswith(TEXT)
        piped = run(llamafile, "-f", "-", "-n", "1", *flags, stdin=file.read_bytes())
        assert piped.stdout.decode().startswith(TEXT)
    escaped = run(llamafile, "-f", file, "-n", "1", "-e").stdout.decode()
    assert escaped.startswith('if x == "a\n\tb": open("C:\temp\newA")')


def tokens(llamafile: Path, *args: str | Path) -> list[int]:
    done = run(llamafile, "--tokenize", "--ids", *args)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert isinstance(found, list)
    return found


def test_tokens_of_a_file_are_those_of_its_bytes(llamafile: Path, tmp_path: Path) -> None:
    file = tmp_path / "text"
    file.write_bytes(b"a\\n\\x41\n")
    assert tokens(llamafile, "-f", file) == tokens(llamafile, "--no-escape", "-p", "a\\n\\x41\n")
    file.write_bytes(b"a\0b")
    assert len(tokens(llamafile, "-bf", file)) > len(tokens(llamafile, "-p", "a"))


ENCODINGS = ("utf-8-sig", "utf-16", "utf-16-be")


def written(path: Path, text: str, encoding: str) -> Path:
    mark = "\ufeff" if encoding == "utf-16-be" else ""
    path.write_bytes((mark + text.replace("\n", "\r\n")).encode(encoding))
    return path


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_what_windows_editors_write_is_read(
    encoding: str, llamafile: Path, smollm2: Path, answer: bytes, tmp_path: Path
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
    encoding: str, llamafile: Path, answer: bytes, tmp_path: Path
) -> None:
    file = tmp_path / "a.llamafile"
    file.write_bytes(llamafile.read_bytes())
    file.chmod(0o755)
    args = written(tmp_path / ".args", f"# note\n-p '{PROMPT}'\n{' '.join(GREEDY)}\n", encoding)

    with zipfile.ZipFile(file, "a") as archive:
        archive.write(args, ".args")
    assert run(file).stdout == answer


WRONG = {
    ("--nonsense",): "unknown argument: --nonsense",
    ("-c", "4.5"): "-c 4.5: not a number",
    ("--port",): "--port needs a value",
    ("-ctk", "q3"): "-ctk q3: Unsupported cache type: q3",
    ("--chat-template", "nobodys"): "--chat-template nobodys: neither a template",
    ("--temp", "0", "-p", "a", "--top-k", "many"): "--top-k many: not a number",
    ("--api-key", ""): "--api-key: the key is empty",
    ("--gpu", ""): "--gpu needs auto, off, vulkan or a part of a GPU's name",
    ("--grace", "soon"): "--grace soon: not a whole number of seconds",
}


@pytest.mark.parametrize("words", WRONG, ids=" ".join)
def test_no_file_gets_arguments_that_it_would_not_start_with(
    words: tuple[str, ...], smollm2: Path, runtime: Path, llamafile: Path, tmp_path: Path
) -> None:
    file = tmp_path / "a.llamafile"
    with pytest.raises(pyllamafile.RefusedError, match=re.escape(f"--arg: {WRONG[words]}")):
        with_args(smollm2, file, *words)
    assert not file.exists()
    shutil.copy(llamafile, file)
    args = tmp_path / "args"
    args.write_text("# mine\n" + " ".join(f"'{word}'" for word in words))
    with pytest.raises(pyllamafile.RefusedError, match=re.escape(f"args: {WRONG[words]}")):
        pyllamafile.add(file, [(args, ".args")])
    assert file.read_bytes() == llamafile.read_bytes()
    with zipfile.ZipFile(file, "a") as archive:
        archive.write(args, ".args")
    findings = pyllamafile.examine(file)
    assert any(WRONG[words] in finding.what for finding in findings)


@pytest.mark.parametrize(
    "words",
    [
        ("-c", "4k", "--chat-template", "phi3", "--port", "8081", "-n", "5"),
        ("--image", "nobody-has-this.png"),
        ("--fast", "--silent-prompt", "--lora_scaled", "a.gguf:0.5"),
        ("--bench", "-p", "512,1024", "-r", "2"),
        ("-p", "--nonsense"),
        ("--grace", "30"),
    ],
    ids=" ".join,
)
def test_but_others(words: tuple[str, ...], smollm2: Path, runtime: Path, tmp_path: Path) -> None:
    with_args(smollm2, tmp_path / "a.llamafile", *words)


def test_what_the_server_alone_takes_stops_nobody_else(
    smollm2: Path, runtime: Path, answer: bytes, tmp_path: Path
) -> None:
    file = with_args(smollm2, tmp_path / "a.llamafile", "--grace", "30", "--no-api-key", "...")
    done = run(file, "-p", PROMPT, *GREEDY)
    assert (done.returncode, done.stdout, done.stderr) == (0, answer, b"")
    done = run(file, "--chat", *GREEDY, stdin=b"Hi\n")
    assert (done.returncode, done.stderr) == (0, b"")


def test_nor_what_a_variable_stands_for(
    smollm2: Path, runtime: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is known when the file starts; a variable of the builder is none of the file's."""
    monkeypatch.setenv("LLAMA_ARG_CTX_SIZE", "many")
    args = tmp_path / "args"
    args.write_text("--port $THEIR_PORT")
    pyllamafile.build(
        smollm2, tmp_path / "a", args_file=args, args=["-c", "64"], targets=["linux-amd64"]
    )
    with_args(smollm2, tmp_path / "b", "-c", "64")


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
def test_half_a_number_is_refused(arguments: tuple[str, ...], llamafile: Path) -> None:
    refused(run(llamafile, "-p", PROMPT, *arguments), HALF[arguments], "number")


def test_half_a_number_in_a_variable_is_refused(llamafile: Path) -> None:
    done = run(llamafile, "-p", PROMPT, env={**os.environ, "LLAMA_ARG_CTX_SIZE": "4q"})
    refused(done, "LLAMA_ARG_CTX_SIZE=4q", "number")


def test_four_k_are_4096(llamafile: Path) -> None:
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
    smollm2: Path, runtime: Path, answer: bytes, tmp_path: Path
) -> None:
    flags = [word for option in IGNORED for word in option]
    file = with_args(smollm2, tmp_path / "a.llamafile", *flags, "...")
    done = run(file, "-p", PROMPT, *GREEDY)
    assert (done.returncode, done.stdout) == (0, answer)
    notes = done.stderr.decode().splitlines()
    assert [re.findall(r"^note: (\S+), of Mozilla's llamafile", note) for note in notes] == [
        [option[0]] for option in IGNORED
    ]


def test_flags_of_mozillas_llamafile_that_have_another_name(
    smollm2: Path, runtime: Path, answer: bytes, tmp_path: Path
) -> None:
    flags = [word for option in SILENT for word in option]
    file = with_args(smollm2, tmp_path / "a.llamafile", *flags, "--color", "...")
    done = run(file, "-p", PROMPT, *GREEDY)
    assert (done.returncode, done.stdout, done.stderr) == (0, answer, b"")
    silent = run(file, "-p", PROMPT, *GREEDY, "--silent_prompt")
    assert PROMPT.encode() + silent.stdout == answer
    assert run(file, "-p", "--color", "-n", "1").stdout.startswith(b"--color")
    with serving(file, *SERVER) as url:
        assert url.endswith("/x/")
        assert status(url + "slots") == 400


def test_a_file_to_write_whose_folder_is_not_there_is_refused(llamafile: Path) -> None:
    for flag in ("--log-file", "--prompt-cache"):
        done = run(llamafile, "-p", PROMPT, "-n", "1", flag, "nowhere/file")
        refused(done, f"{flag} nowhere/file: there is no such folder")


# what the machine has


def test_a_context_beyond_the_memory_is_refused_at_once(llamafile: Path) -> None:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for mode in (("-p", PROMPT), ("--chat",), SERVER):
        for tokens in ("100000000", str(memory // 24000)):
            begun = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
            refused(run(llamafile, *mode, "-c", tokens), f"-c {tokens}", "GiB", "8192")
            assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - begun < 10  # seconds
    done = run(llamafile, "-p", PROMPT, env={**os.environ, "LLAMA_ARG_CTX_SIZE": "100000000"})
    refused(done, "LLAMA_ARG_CTX_SIZE=100000000", "GiB")


def test_a_context_that_fits_is_taken(llamafile: Path) -> None:
    done = run(llamafile, "--chat", "-c", "20k", stdin=b"/context\n")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"0 of 8192 tokens\n", b"")


def test_threads_are_as_many_as_there_are_processors(llamafile: Path, answer: bytes) -> None:
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


# the page


def asked(url: str, method: str, path: str, **headers: str) -> tuple[int, bytes, dict[str, str]]:
    """An answer as it comes: neither redirected nor unpacked."""
    address = urllib.parse.urlsplit(url)
    connection = http.client.HTTPConnection(str(address.hostname), address.port, timeout=30)
    try:
        connection.putrequest(method, path, skip_accept_encoding=True)
        for name, value in headers.items():
            connection.putheader(name.replace("_", "-"), value)
        connection.endheaders()
        answer = connection.getresponse()
        return answer.status, answer.read(), dict(answer.getheaders())
    finally:
        connection.close()


def test_seam_the_page_is_for_clients_without_gzip(llamafile: Path) -> None:
    with zipfile.ZipFile(llamafile) as archive:
        page, worker = archive.read("ui/index.html"), archive.read("ui/sw.js")
    with serving(llamafile, *SERVER) as url:
        for path, expected in (("/", page), ("/index.html", page), ("/sw.js", worker)):
            status, body, headers = asked(url, "GET", path)
            assert (status, body) == (200, expected)
            assert "Content-Encoding" not in headers
            status, body, headers = asked(url, "HEAD", path)
            assert (status, body, headers["Content-Length"]) == (200, b"", str(len(expected)))
        status, body, headers = asked(url, "GET", "/", Accept_Encoding="gzip, br")
        assert (status, headers["Content-Encoding"]) == (200, "gzip")
        assert gzip.decompress(body) == page
        tag = asked(url, "GET", "/")[2]["ETag"]
        assert tag != headers["ETag"]
        assert asked(url, "GET", "/", If_None_Match=tag)[0] == 304


def test_seam_the_prefix_leads_to_the_page(llamafile: Path) -> None:
    with serving(llamafile, *SERVER, "--api-prefix", "/llm", "--api-key", "k") as url:
        status, _, headers = asked(url, "GET", "/llm")
        assert (status, headers["Location"]) == (302, "/llm/")
        assert asked(url, "GET", "/llm/")[0] == 200
        assert asked(url, "GET", "/llm/props")[0] == 401


# the first process of a container


@pytest.mark.parametrize("phase", ["-p", "loading", "ready", "--chat"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_end_the_first_process(phase: str, number: signal.Signals, llamafile: Path) -> None:
    unshare = need("unshare", "util-linux")
    inside = [unshare, "--pid", "--fork", "--kill-child", "--mount-proc"]
    if subprocess.run([*inside, "true"], capture_output=True).returncode != 0:
        pytest.skip("no PID namespaces to be had here")
    mode = {
        "-p": ("-p", "Once", "-n", "100000", "-c", "8192", "--ignore-eos"),
        "--chat": ("--chat",),
    }.get(phase, SERVER)
    process = subprocess.Popen(
        [*inside, llamafile, *mode], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        if phase == "-p":
            assert process.stdout.read(4) == b"Once"
        elif phase == "ready":
            assert b"is ready" in process.stdout.readline()
        else:
            time.sleep(0.4)
        (child,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        os.kill(int(child), number)
        code = process.wait(timeout=15)
    finally:
        process.kill()
        process.communicate()
    ends = {"ready": {0}, "loading": {0, 128 + number}}  # it may have loaded meanwhile
    assert code in ends.get(phase, {128 + number})


# reasons, and texts to stop at


def test_the_reason_reaches_the_user(llamafile: Path) -> None:
    schema = '{"type": "string", "pattern": "^(a$"}'
    refused(run(llamafile, "-p", PROMPT, "-j", schema), "JSON schema", "a ( isn't closed")
    refused(run(llamafile, "-p", PROMPT, "-j", "{"), "-j {", "parse error")


@pytest.mark.parametrize("stop", ["", [""], ["", "Paris"]])
def test_seam_an_empty_stop_stops_nothing(stop: str | list[str], server: str) -> None:
    body = {"prompt": PROMPT, "max_tokens": 6, "temperature": 0, "stop": stop}
    request = urllib.request.Request(
        server + "v1/completions",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        text = json.loads(answer.read())["choices"][0]["text"]
    assert text == " " if "Paris" in stop else "Paris" in text


# what a GGUF may say


def rewritten(smollm2: Path, path: Path, alignment: int = 32, template: str | None = None) -> Path:
    """The same weights, with another alignment or another template for chats."""
    import gguf

    reader = gguf.GGUFReader(smollm2)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_custom_alignment(alignment)
    left_out = {"general.architecture", "general.alignment"}
    if template == "":
        left_out.add("tokenizer.chat_template")
    elif template is not None:
        writer.add_chat_template(template)
        left_out.add("tokenizer.chat_template")
    for key, field in reader.fields.items():
        if not key.startswith("GGUF.") and key not in left_out:
            element = field.types[-1] if len(field.types) > 1 else None
            writer.add_key_value(key, field.contents(), field.types[0], element)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("alignment", [1, 8, 16, 64])
def test_any_alignment_runs(
    alignment: int, llamafile: Path, smollm2: Path, answer: bytes, tmp_path: Path
) -> None:
    file = rewritten(smollm2, tmp_path / "a.gguf", alignment)
    done = run(llamafile, "-m", file, "-p", PROMPT, *GREEDY)
    assert (done.returncode, done.stdout) == (0, answer)
    assert done.stderr.count(b"not aligned") == (1 if alignment < 32 else 0)


@pytest.mark.parametrize("template", ["{% for %}", "{{ raise_exception('no') }}", "{{"])
def test_a_broken_template_stops_no_completion(
    template: str, llamafile: Path, smollm2: Path, answer: bytes, tmp_path: Path
) -> None:
    file = rewritten(smollm2, tmp_path / "a.gguf", template=template)
    done = run(llamafile, "-m", file, "-p", PROMPT, *GREEDY)
    assert (done.returncode, done.stdout, done.stderr) == (0, answer, b"")


@pytest.mark.parametrize("template", ["{% for %}", "{{ raise_exception('no') }}", "{{"])
def test_seam_a_broken_template_stops_conversations_alone(
    template: str, llamafile: Path, smollm2: Path, tmp_path: Path
) -> None:
    file = rewritten(smollm2, tmp_path / "a.gguf", template=template)

    def asked(url: str, path: str, body: object) -> tuple[int, str]:
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(url + path, json.dumps(body).encode(), headers)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    with serving(llamafile, *SERVER, "-m", file) as url:
        assert asked(url, "completion", {"prompt": PROMPT, "n_predict": 1})[0] == 200
        hi = {"messages": [{"role": "user", "content": "Hi"}]}
        status, said = asked(url, "v1/chat/completions", hi)
        assert (status, "chat template of these weights" in said) == (400, True), said
        assert asked(url, "completion", {"prompt": PROMPT, "n_predict": 1})[0] == 200
    done = run(llamafile, "-m", file, "--chat", *GREEDY, stdin=b"Hi\n")
    assert (done.returncode, done.stdout) == (1, b"")
    assert b"chat template of these weights" in done.stderr


def test_a_base_model_is_said_to_be_none_for_chats(
    llamafile: Path, smollm2: Path, tmp_path: Path
) -> None:
    file = rewritten(smollm2, tmp_path / "a.gguf", template="")
    done = run(llamafile, "-m", file, "--chat", *GREEDY, stdin=b"Hi\n")
    assert done.returncode == 0
    assert done.stderr.startswith(b"note: these weights have no chat template")
    assert done.stderr.count(b"\n") == 1
    for quiet in (["--chat", "--chat-template", "chatml"], ["-p", PROMPT]):
        assert run(llamafile, "-m", file, *GREEDY, *quiet, stdin=b"").stderr == b""


def test_a_long_text_is_embedded_by_default(llamafile: Path) -> None:
    with serving(llamafile, *SERVER, "--embeddings", "--pooling", "mean") as url:
        body = json.dumps({"input": "word " * 3000, "model": "any"}).encode()
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(url + "v1/embeddings", body, headers)
        with urllib.request.urlopen(request, timeout=240) as answer:
            found = json.loads(answer.read())
    assert found["usage"]["prompt_tokens"] > 3000
    assert len(found["data"][0]["embedding"]) == 576


# several clients at once


def post(url: str, path: str, body: dict[str, object], timeout: float = 240) -> tuple[int, bytes]:
    """The status and the body of an answer to JSON."""
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(url + path, json.dumps(body).encode(), headers)
    try:
        with urllib.request.urlopen(request, timeout=timeout) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def long_answer(tokens: int) -> dict[str, object]:
    return {"prompt": PROMPT, "n_predict": tokens, "ignore_eos": True, "temperature": 0}


def test_one_client_ends_no_other_ones_answer(llamafile: Path) -> None:
    with serving(llamafile, *SERVER, "-c", "512") as url:
        with urllib.request.urlopen(url + "slots", timeout=60) as answer:
            assert [slot["n_ctx"] for slot in json.loads(answer.read())] == [512] * 4
        with ThreadPoolExecutor() as clients:
            answers = list(
                clients.map(lambda n: post(url, "completion", long_answer(n)), [450, 400, 420])
            )
    assert [status for status, _ in answers] == [200] * 3
    assert [json.loads(text)["tokens_predicted"] for _, text in answers] == [450, 400, 420]


def test_seam_other_dimensions_are_refused(llamafile: Path) -> None:
    with serving(llamafile, *SERVER, "--embeddings", "--pooling", "mean") as url:
        for dimensions, expected in ((576, 200), (64, 400), ("64", 400)):
            body = {"input": "word", "model": "any", "dimensions": dimensions}
            status, text = post(url, "v1/embeddings", body)
            assert status == expected
            assert status == 200 or b"576 dimensions" in text
