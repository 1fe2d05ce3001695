"""The runtime with real weights: what it prints, what it serves, how it fails."""

from __future__ import annotations

import functools
import gzip
import json
import os
import re
import resource
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
import zipfile
from pathlib import Path
from typing import Any

import lief
import loadable
import pytest
from running import free_port, limited, need, ready, run, serving

import pyllamafile
from pyllamafile import native

pytestmark = pytest.mark.native

PROMPT = "The capital of France is"
GREEDY = ("--temp", "0", "-n", "12")


@pytest.fixture(scope="module")
def answer(runtime: Path, smollm2: Path) -> bytes:
    """What the bare runtime makes of the bare GGUF."""
    done = run(runtime, "-m", smollm2, "-p", PROMPT, *GREEDY)
    assert done.returncode == 0
    return done.stdout


# -p and -f


def test_seam_llamafile_says_what_the_bare_weights_say(llamafile: Path, answer: bytes) -> None:
    done = run(llamafile, "-p", PROMPT, *GREEDY)
    assert (done.returncode, done.stdout, done.stderr) == (0, answer, b"")
    assert b"Paris" in answer


def test_seam_output_is_the_text_and_one_newline(llamafile: Path, answer: bytes) -> None:
    assert answer.startswith(PROMPT.encode())
    assert answer.endswith(b"\n")
    done = run(llamafile, "-p", PROMPT, *GREEDY, "--no-display-prompt")
    assert PROMPT.encode() + done.stdout == answer


def test_end_of_text_leaves_no_remark(llamafile: Path) -> None:
    prompt = r"<|im_start|>user\nSay yes.<|im_end|>\n<|im_start|>assistant\n"
    done = run(llamafile, "-p", prompt, "--temp", "0", "-n", "200")
    assert done.returncode == 0
    assert b"end of text" not in done.stdout
    assert done.stdout.count(b"assistant") == 1


def test_prompt_from_file_and_pipe(llamafile: Path, answer: bytes, tmp_path: Path) -> None:
    file = tmp_path / "prompt.txt"
    file.write_text(PROMPT + "\n")
    assert run(llamafile, "-f", file, *GREEDY).stdout == answer
    assert run(llamafile, "-f", "-", *GREEDY, stdin=file.read_bytes()).stdout == answer


def test_cli_takes_a_prompt_too(llamafile: Path, answer: bytes) -> None:
    assert run(llamafile, "--cli", "-p", PROMPT, *GREEDY).stdout == answer


def test_a_prompt_that_looks_like_a_flag(llamafile: Path) -> None:
    done = run(llamafile, "-p", "--help", *GREEDY)
    assert done.returncode == 0
    assert done.stdout.startswith(b"--help")


def test_seam_log_only_on_request_and_on_stderr(llamafile: Path, answer: bytes) -> None:
    done = run(llamafile, "-p", PROMPT, *GREEDY, "-v")
    assert done.stdout == answer
    assert b"llama_model_loader" in done.stderr
    assert b"CPU level " in done.stderr


def test_interrupt_ends_with_130(llamafile: Path) -> None:
    process = subprocess.Popen(
        [llamafile, "-p", "Once", "-n", "100000", "-c", "8192", "--ignore-eos"],
        stdout=subprocess.PIPE,
    )
    assert process.stdout.read(4) == b"Once"
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=20) == 130
    assert process.stdout.read().endswith(b"\n")
    process.stdout.close()


@pytest.mark.parametrize(
    "arguments",
    [
        ("-p", "Once", "-n", "100000", "-c", "8192", "--ignore-eos"),
        ("--help",),
        ("--server", "--help"),
        ("--version",),
    ],
)
def test_a_full_disk_is_noticed(arguments: tuple[str, ...], llamafile: Path) -> None:
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [llamafile, *arguments], stdout=full, stderr=subprocess.PIPE, timeout=60
        )
    assert done.returncode == 1
    assert done.stderr.startswith(b"error: standard output can't be written")
    assert done.stderr.count(b"\n") == 1


WRONG = {
    ("-p",): "-p needs a value",
    ("-m",): "-m needs a value",
    ("-n", "abc"): "-n abc: not a number",
    ("-p", "x", "--temp", "hot"): "--temp hot: not a number",
    ("-f", "no such file"): "-f no such file: no such file",
    ("-f", "/"): "-f /: is a directory",
    ("model.gguf",): "-m model.gguf",
    ("-p", "x", "--tmep", "0"): "unknown argument: --tmep",
    ("-p", "x", "--port", "80"): "--port means nothing in this mode",
    ("--perplexity",): "--perplexity needs a text",
    ("--perplexity", "--kl-divergence"): "--perplexity needs a text",
    ("--tokenize",): "--tokenize needs a text",
    ("-hf", "somebody/something"): "-hf: there is no HTTPS",
    ("--nobrowser", "--host", "192.0.2.1"): "can't listen on 192.0.2.1:8080",
    ("--nobrowser", "--host", "no.such.invalid"): "can't listen on no.such.invalid:8080",
    ("--nobrowser", "--port", "99999"): "can't listen on port 99999: there is no such port",
    ("--nobrowser", "--host", "no/such/a.sock"): "can't listen on no/such/a.sock: No such file",
}


@pytest.mark.parametrize("arguments", WRONG, ids=" ".join)
def test_wrong_arguments_get_one_line(
    arguments: tuple[str, ...], llamafile: Path, tmp_path: Path
) -> None:
    done = run(llamafile, *arguments, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr.startswith(b"error: ")
    assert done.stderr.count(b"\n") == 1
    assert WRONG[arguments] in done.stderr.decode()


def test_seam_busy_threads_let_others_go_first(runtime: Path, smollm2: Path) -> None:
    """Of two threads on one processor, the one that waits sleeps: it isn't sent away at the end of
    its time, nor does it yield, which the system counts as the same.
    """
    one = str(min(os.sched_getaffinity(0)))
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = run("taskset", "-c", one, runtime, "-m", smollm2, "-p", PROMPT, *GREEDY, "-t", "2")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0
    slept = after.ru_nvcsw - before.ru_nvcsw
    sent_away = after.ru_nivcsw - before.ru_nivcsw
    assert slept > max(1000, sent_away), f"slept {slept} times, was sent away {sent_away} times"


def test_seam_more_threads_than_processors_say_the_same(
    runtime: Path, smollm2: Path, answer: bytes
) -> None:
    """Eight threads sleep and wake each other thousands of times, and none is forgotten."""
    done = run(runtime, "-m", smollm2, "-p", PROMPT, *GREEDY, "-t", "8")
    assert (done.returncode, done.stdout) == (0, answer)


# modes


def threads(done: subprocess.CompletedProcess[bytes]) -> int:
    assert done.returncode == 0, done.stderr.decode()
    (count,) = re.findall(r"system_info: n_threads = (\d+)", done.stderr.decode())
    return int(count)


def test_seam_no_more_threads_than_the_affinity_allows(llamafile: Path) -> None:
    asked = (llamafile, "-p", "A", "-n", "1", "-v")
    (cpu, *_) = sorted(os.sched_getaffinity(0))
    assert threads(run("taskset", "-c", str(cpu), *asked)) == 1
    assert threads(run("taskset", "-c", str(cpu), *asked, "-t", "2")) == 2


def test_no_more_threads_than_the_control_group_allows(llamafile: Path) -> None:
    """As in a container with a limit."""
    with limited("cpu", ("cpu.max", "100000 100000"), ("cpu.cfs_quota_us", "100000")) as inside:
        assert threads(run(*inside, llamafile, "-p", "A", "-n", "1", "-v")) == 1


def test_seam_no_longer_context_than_the_control_group_has_memory_for(llamafile: Path) -> None:
    def context(*inside: str | Path, options: tuple[str, ...] = ()) -> int:
        done = run(*inside, llamafile, "--chat", *options, stdin=b"/context\n")
        assert (done.returncode, done.stderr) == (0, b"")
        return int(done.stdout.split()[2])

    limit = str(1280 << 20)  # upstream leaves a GiB to others
    assert context() == 8192
    with limited("memory", ("memory.max", limit), ("memory.limit_in_bytes", limit)) as inside:
        assert 4096 <= context(*inside) < 8192
        assert context(*inside, options=("-c", "8192")) == 8192


def test_help_is_a_manual(llamafile: Path) -> None:
    for flag in ("--help", "-h"):
        done = run(llamafile, flag)
        assert done.returncode == 0
        text = done.stdout.decode()
        for part in ("NAME", "MODES", ".args", "<|user|>", "GOTCHAS", "--help-all"):
            assert part in text
        assert max(map(len, text.splitlines())) <= 120
    assert b"--api-key" in run(llamafile, "--server", "--help").stdout
    assert b"--api-key" in run(llamafile, "--help-all").stdout
    assert b"n-prompt" in run(llamafile, "--bench", "--help").stdout
    assert run(llamafile, "--quantize", "--help").returncode == 0


def test_every_option_in_the_manual_exists(llamafile: Path) -> None:
    manual = run(llamafile, "--help").stdout.decode()
    options = manual.split("\nMODEL\n")[1].split("DEFAULT ARGUMENTS")[0]
    named = set(re.findall(r"(?<!\S)(--?[a-z][a-z0-9-]*)", options))
    known = set()
    for mode in (["--server"], ["--completion"], ["-p", "x", "--image", "x"]):
        text = run(llamafile, *mode, "--help-all").stdout.decode()
        known |= set(re.findall(r"(?<!\S)(--?[a-z][a-z0-9-]*)", text))
    ours = {"--nobrowser", "--url-prefix", "--help-all", "--chat", "--ask"}
    ours |= {"--allow-origin", "--allow-host", "--no-api-key", "--unsafe-no-sandbox", "--grace"}
    ours |= {"--chats", "--no-chats", "--no-read", "--no-documents", "--no-state"}
    ours |= {"--on", "--split", "--gpu"}
    assert named - known == ours & named


def test_seam_version_and_licenses(llamafile: Path) -> None:
    text = run(llamafile, "--version").stdout.decode()
    assert text.splitlines()[0] == f"pyllamafile {pyllamafile.__version__}"
    assert "linux-amd64, CPU level " in text
    done = run(llamafile, "--licenses")
    assert (done.returncode, done.stderr) == (0, b"")
    with zipfile.ZipFile(llamafile) as archive:
        notices = {
            name: archive.read(name).decode()
            for name in archive.namelist()
            if name.startswith("LICENSES/")
        }
    sections = [f"{name}\n{'=' * len(name)}\n\n{text}\n" for name, text in notices.items()]
    assert done.stdout.decode() == "".join(sections)
    for name in ("llama.cpp", "musl", "libc++", "libunwind", "cpp-httplib", "web-gui"):
        assert len(notices[f"LICENSES/{name}.txt"]) > 500


def test_a_runtime_alone_says_where_the_licences_are(runtime: Path) -> None:
    done = run(runtime, "--licenses")
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr.startswith(b"error: the licences are in the folder LICENSES/ of a llamafile")


@pytest.mark.parametrize(
    ("mode", "own"),
    [
        ("--server", "--models-dir"),
        ("--completion", "-no-cnv"),
        ("--perplexity", "--kl-divergence"),
        ("--tokenize", "--ids"),
        ("--bench", "--n-depth"),
        ("--quantize", "--allow-requantize"),
    ],
)
def test_seam_every_mode_starts_its_tool(mode: str, own: str, runtime: Path) -> None:
    """Each lists an option of its own, which most of the others don't have."""
    done = run(runtime, mode, "--help")
    assert done.returncode == 0
    assert own in (done.stdout + done.stderr).decode()


def test_tokenize(llamafile: Path) -> None:
    done = run(llamafile, "--tokenize", "-p", "<|im_start|>hello", "--ids")
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, b"[1, 28120]", b"")


def test_bench(llamafile: Path) -> None:
    done = run(llamafile, "--bench", "-p", "8", "-n", "4", "-r", "1", "-o", "json")
    assert [row["n_prompt"] for row in json.loads(done.stdout)] == [8, 0]


def test_quantize_from_the_llamafile(llamafile: Path, tmp_path: Path) -> None:
    small = tmp_path / "small.gguf"
    done = run(llamafile, "--quantize", "--allow-requantize", llamafile, small, "Q2_K")
    assert done.returncode == 0, done.stderr
    assert pyllamafile.inspect(small).models[0].quantization == "Q2_K"


def test_seam_a_quantizer_that_fails_leaves_nothing(
    llamafile: Path, smollm2: Path, tmp_path: Path
) -> None:
    old = tmp_path / "old.gguf"
    old.write_bytes(b"old")
    again = ("--quantize", "--allow-requantize", smollm2)
    done = run(llamafile, "--quantize", smollm2, old, "Q4_K_M")
    assert (done.returncode, b"requantizing from type q4_1 is disabled" in done.stderr) == (1, True)
    too_large = functools.partial(resource.setrlimit, resource.RLIMIT_FSIZE, (20 << 20, 20 << 20))
    done = subprocess.run([llamafile, *again, old, "Q2_K"], preexec_fn=too_large)
    assert done.returncode == -signal.SIGXFSZ
    for how in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        with subprocess.Popen(
            [llamafile, *again, old, "Q4_K_M"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        ) as process:
            while len(list(tmp_path.iterdir())) < 2:  # the draft is there
                assert process.poll() is None
                time.sleep(0.01)
            process.send_signal(how)
        assert process.returncode == -how
    assert [(path, path.read_bytes()) for path in tmp_path.iterdir()] == [(old, b"old")]


def test_what_is_quantized_takes_the_place_of_a_file_but_not_of_a_link_or_a_device(
    llamafile: Path, smollm2: Path, tmp_path: Path
) -> None:
    old, link = tmp_path / "old.gguf", tmp_path / "link.gguf"
    old.write_bytes(b"old")
    link.symlink_to(old)
    for output in (link, Path(os.devnull)):
        done = run(llamafile, "--quantize", "--allow-requantize", smollm2, output, "Q2_K")
        assert done.returncode == 0, done.stderr
    assert pyllamafile.inspect(old).models[0].quantization == "Q2_K"
    assert sorted(tmp_path.iterdir()) == [link, old]
    assert link.is_symlink()
    assert Path(os.devnull).is_char_device()


def test_seam_a_broken_grammar_is_one_line(llamafile: Path, tmp_path: Path) -> None:
    whys = {
        "root ::= (": b"expecting ')' at the end",
        "nonsense\n\n": b"expecting ::= at the end of a line",
        "root ::= x": b"Undefined rule identifier 'x'",
        'x ::= "a"': b"it has no rule called root",
        'root ::= root "a"': b"a rule begins with itself, which is left recursion",
    }
    for grammar, why in whys.items():
        done = run(llamafile, "-p", "x", "-n", "2", "--grammar", grammar)
        said = b"error: failed to parse grammar: " + why + b"\n"
        assert (done.returncode, done.stdout, done.stderr) == (1, b"", said)
        done = run(llamafile, "--ask", "x", "-n", "2", "--grammar", grammar)
        assert (done.returncode, done.stdout) == (1, b"")
        said = b"error: [^\n]*failed to parse grammar: " + re.escape(why) + b"\n"
        assert re.fullmatch(said, done.stderr), done.stderr
    (tmp_path / "g").write_text("root ::= (")
    done = run(llamafile, "--server", "--nobrowser", "--grammar-file", tmp_path / "g")
    assert (done.returncode, done.stderr.count(b"\n")) == (1, 1)
    assert done.stderr.endswith(b"failed to parse grammar: expecting ')' at the end\n")


@pytest.mark.parametrize("option", ["--slot-save-path", "--media-path"])
def test_a_folder_that_is_none_is_refused_in_one_line(
    option: str, llamafile: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    for name, why in (("none", "there is no such folder"), ("file", "is no folder")):
        done = run(llamafile, "--server", "--nobrowser", option, tmp_path / name)
        said = f"error: {option} {tmp_path / name}: {why}\n"
        assert (done.returncode, done.stderr.decode()) == (1, said)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("mode", [("-p", "x"), ("--ask", "x"), ("--chat",)])
def test_a_model_for_embeddings_writes_no_text(
    mode: tuple[str, ...], llamafile: Path, tmp_path: Path
) -> None:
    model = loadable.bert().write(tmp_path / "bert.gguf")
    done = run(llamafile, "-m", model, *mode)
    why = "makes embeddings, and writes no text; its server has them: --server --embeddings"
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr.decode() == f"error: {model}: {why}\n"
    assert run(llamafile, "-m", model, "--tokenize", "-p", "x").returncode == 0


def test_seam_a_text_too_short_for_perplexity(llamafile: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("It was the best of times.")
    for more in ((), ("--ppl-stride", "4")):
        done = run(llamafile, "--perplexity", "-f", text, "-c", "64", *more)
        assert done.returncode == 1
        *_, said = done.stderr.splitlines()
        assert re.fullmatch(
            rb"error: the text has 7 tokens, and perplexity takes at least \d+ with a context of "
            rb"\d+; give a longer text, or a smaller context \(-c\)",
            said,
        )
        assert done.stderr.count(b"error") == 1


def test_perplexity(llamafile: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("It was the best of times, it was the worst of times. " * 40)
    done = run(llamafile, "--perplexity", "-f", text, "-c", "64", "--chunks", "2")
    assert done.returncode == 0
    found = re.search(rb"PPL = ([0-9.]+)", done.stdout + done.stderr)
    assert 1 < float(found[1]) < 100


def test_chat_over_a_pipe(llamafile: Path) -> None:
    done = run(
        llamafile,
        "--chat",
        "--temp",
        "0",
        "-n",
        "40",
        stdin=b"Name three colors.\n/exit\n",
    )
    assert done.returncode == 0
    assert b"blue" in done.stdout.lower()  # in which words depends on the processor's level


def test_interrupt_while_chat_loads(llamafile: Path) -> None:
    process = subprocess.Popen([llamafile, "--chat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    time.sleep(0.15)  # the model takes longer; if it didn't, the chat ends all the same
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=20)


# .args


def with_args(model: Path, path: Path, text: str) -> Path:
    args = path.with_suffix(".args")
    args.write_text(text)
    return pyllamafile.build(model, path, args_file=args, targets=["linux-amd64"]).path


def test_args_are_read_before_the_mode_is_chosen(
    smollm2: Path, runtime: Path, answer: bytes, tmp_path: Path
) -> None:
    text = f"# a comment\n-p 'The capital'\" of \\x46rance is\"\n{' '.join(GREEDY)} # another\n"
    file = with_args(smollm2, tmp_path / "a.llamafile", text)
    assert run(file).stdout == answer
    assert run(file, "-n", "3").stdout != answer  # what is given last counts


def test_args_for_one_mode_do_not_stop_another(
    smollm2: Path, runtime: Path, answer: bytes, tmp_path: Path
) -> None:
    port = str(free_port())
    text = f"--server --port {port} --url-prefix ai --api-key k --nobrowser --temp 0 -n 12 ..."
    file = with_args(smollm2, tmp_path / "a.llamafile", text)
    assert run(file, "--completion", "-no-cnv", "-p", PROMPT, "-lv", "0").stdout.startswith(
        answer.rstrip()
    )
    done = run(file, "--tokenize", "-p", "hello", "--ids")
    assert (done.returncode, done.stdout) == (0, b"[28120]\n")
    assert run(file, "--bench", "-p", "8", "-n", "0", "-r", "1").returncode == 0
    with serving(file) as url:
        assert url.endswith(f":{port}/ai/")


def test_args_and_tools_with_flags_of_their_own(
    smollm2: Path, runtime: Path, tmp_path: Path
) -> None:
    bench = ("--bench", "-p", "8", "-n", "0", "-r", "1")
    linux = {"gui": False, "targets": ["linux-amd64"]}
    one = pyllamafile.build(smollm2, tmp_path / "one.llamafile", args=bench, **linux).path
    assert b" pp8 " in run(one).stdout
    other = tmp_path / "other.gguf"
    other.symlink_to(smollm2)
    args = ("-c", "512", "-m", "@other")
    two = pyllamafile.build([smollm2, other], tmp_path / "two.llamafile", args=args, **linux).path
    assert b" pp8 " in run(two, *bench).stdout


def test_a_gpu_that_is_not_there(llamafile: Path, answer: bytes) -> None:
    done = run(llamafile, "-p", PROMPT, *GREEDY, "-ngl", "99")
    assert (done.returncode, done.stdout) == (0, answer)
    assert done.stderr.startswith(b"note: ")
    assert done.stderr.count(b"\n") == 1
    assert run(llamafile, "-p", PROMPT, *GREEDY, "-ngl", "0").stderr == b""


def test_a_prompt_is_stronger_than_a_server_in_args(
    smollm2: Path, runtime: Path, answer: bytes, tmp_path: Path
) -> None:
    file = with_args(smollm2, tmp_path / "a.llamafile", f"--server --nobrowser {' '.join(GREEDY)}")
    assert run(file, "-p", PROMPT).stdout == answer


def test_what_is_wrong_in_args_is_said_to_be_there(
    smollm2: Path, runtime: Path, tmp_path: Path
) -> None:
    file = with_args(smollm2, tmp_path / "a.llamafile", "--temp $HOT")
    env = {**os.environ, "HOT": "hot"}  # without a variable no such file is built
    done = run(file, "-p", PROMPT, env=env)
    assert done.returncode == 1
    assert done.stderr.startswith(b"error: .args of this file: --temp hot: ")
    for more in (["-n", "x"], ["--temp", "warm"]):
        assert run(file, *more, "-p", PROMPT, env=env).stderr.startswith(b"error: .args")


def test_args_place_what_the_user_gives(
    smollm2: Path, runtime: Path, answer: bytes, tmp_path: Path
) -> None:
    file = with_args(smollm2, tmp_path / "a.llamafile", f"--temp 0 ... -n 12 -p '{PROMPT}'\n")
    assert run(file, "-n", "3", "-p", "Something else").stdout == answer


def test_args_know_variables(smollm2: Path, runtime: Path, answer: bytes, tmp_path: Path) -> None:
    file = with_args(
        smollm2, tmp_path / "a.llamafile", '-p "The capital of ${LAND} is" --temp $T -n 12'
    )
    assert run(file, env={**os.environ, "LAND": "France", "T": "0"}).stdout == answer


def test_arguments_given_to_build_arrive_as_they_are(
    smollm2: Path, runtime: Path, tmp_path: Path
) -> None:
    prompt = """ a 'b' "c" \\d $HOME # é\n..."""
    path = tmp_path / "a.llamafile"
    args = ["-p", prompt, "-n", "1", "--no-escape"]
    pyllamafile.build(smollm2, path, args=args, targets=["linux-amd64"])
    assert run(path, "--temp", "0").stdout.startswith(prompt.encode())


def test_args_that_info_zip_compressed(llamafile: Path, answer: bytes, tmp_path: Path) -> None:
    file = tmp_path / "a.llamafile"
    file.write_bytes(llamafile.read_bytes())
    file.chmod(0o755)
    (tmp_path / ".args").write_text(f"-p '{PROMPT}' {' '.join(GREEDY)}" + "\n# fill" * 100)
    subprocess.run([need("zip"), "-q", file, ".args"], cwd=tmp_path, check=True)
    done = run(file)
    assert (done.stdout, done.stderr) == (answer, b"")


# where the weights are


def test_weights_of_another_llamafile(
    llamafile: Path, runtime: Path, smollm2: Path, answer: bytes, tmp_path: Path
) -> None:
    engine = pyllamafile.build((), tmp_path / "engine.llamafile", targets=["linux-amd64"]).path
    zipped = tmp_path / "plain.zip"
    with zipfile.ZipFile(zipped, "w") as archive:
        archive.write(smollm2, "inside/model.gguf")
    for name in (smollm2, llamafile, f"{llamafile}@{smollm2.name}", f"{llamafile}@{smollm2.stem}"):
        assert run(engine, "-m", name, "-p", PROMPT, *GREEDY).stdout == answer
    done = run(engine, "-m", f"{zipped}@model", "-p", PROMPT, *GREEDY)
    assert done.stdout == answer
    assert done.stderr.count(b"\n") <= 1  # not aligned: one line says so
    none = run(engine, "-p", PROMPT)
    assert (none.returncode, none.stdout) == (1, b"")
    assert none.stderr.count(b"\n") == 1
    assert b"-m" in none.stderr


def test_several_models(
    smollm2: Path, phi3: Path, runtime: Path, answer: bytes, tmp_path: Path
) -> None:
    file = tmp_path / "two.llamafile"
    pyllamafile.build([smollm2, phi3], file, targets=["linux-amd64"])
    done = run(file, "-p", PROMPT)
    assert done.returncode == 1
    assert done.stderr.count(b"\n") == 1
    for word in (smollm2.name, phi3.name, "-m"):
        assert word.encode() in done.stderr
    assert run(file, "-m", f"@{smollm2.stem}", "-p", PROMPT, *GREEDY).stdout == answer


def test_seam_weights_that_info_zip_moved(
    llamafile: Path, runtime: Path, answer: bytes, tmp_path: Path
) -> None:
    file = tmp_path / "moved.llamafile"
    with zipfile.ZipFile(llamafile) as old, zipfile.ZipFile(file, "w") as new:
        file_name = next(name for name in old.namelist() if name.endswith(".gguf"))
        new.writestr("first", "x")
        new.writestr(file_name, old.read(file_name))
    for start in ([llamafile, "-m", file], [runtime, "--llamafile", file]):
        done = run(*start, "-p", PROMPT, *GREEDY)
        assert done.stdout == answer
        assert done.stderr.count(b"\n") == 1
        assert b"not aligned" in done.stderr


def test_split_weights(smollm2: Path, runtime: Path, answer: bytes, tmp_path: Path) -> None:
    import gguf

    reader = gguf.GGUFReader(smollm2)
    half = len(reader.tensors) // 2
    for number, tensors in enumerate((reader.tensors[:half], reader.tensors[half:])):
        path = tmp_path / f"smol-{number + 1:05}-of-00002.gguf"
        writer = gguf.GGUFWriter(path, "llama")
        for key, field in reader.fields.items():
            if key.startswith("GGUF.") or key == "general.architecture" or number > 0:
                continue
            element = field.types[-1] if len(field.types) > 1 else None
            writer.add_key_value(key, field.contents(), field.types[0], element)
        writer.add_uint16("split.no", number)
        writer.add_uint16("split.count", 2)
        writer.add_int32("split.tensors.count", len(reader.tensors))
        for tensor in tensors:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    file = tmp_path / "split.llamafile"
    pyllamafile.build(tmp_path / "smol-00001-of-00002.gguf", file, targets=["linux-amd64"])
    done = run(file, "-p", PROMPT, *GREEDY)
    assert (done.stdout, done.stderr) == (answer, b"")


def test_compressed_weights_are_refused(llamafile: Path, phi3: Path, tmp_path: Path) -> None:
    file = tmp_path / "squeezed.zip"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(phi3, "phi3.gguf")
    done = run(llamafile, "-m", file, "-p", PROMPT)
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr.count(b"\n") == 1
    assert b"compressed" in done.stderr


@pytest.mark.parametrize("size", [0, 3, 20, 1000, 1_000_000, 50_000_000])
def test_weights_cut_off(size: int, llamafile: Path, smollm2: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.gguf"
    with smollm2.open("rb") as file:
        cut.write_bytes(file.read(size))
    done = run(llamafile, "-m", cut, "-p", PROMPT)
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr.startswith(b"error: ")
    assert done.stderr.count(b"\n") == 1
    assert b"cut.gguf" in done.stderr


@pytest.mark.parametrize(
    ("offset", "value"),
    [
        (0, b"GGML"),
        (4, b"\1\0\0\0"),
        (4, b"\0\0\0\3"),
        (8, b"\xff" * 8),
        (16, b"\xff" * 8),
        (24, b"\xff" * 8),
        (200, b"\xff" * 40),
    ],
)
def test_weights_damaged(
    offset: int, value: bytes, llamafile: Path, smollm2: Path, tmp_path: Path
) -> None:
    bad = bytearray(smollm2.read_bytes())
    bad[offset : offset + len(value)] = value
    file = tmp_path / "bad.gguf"
    file.write_bytes(bad)
    done = run(llamafile, "-m", file, "-p", PROMPT)
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr.startswith(b"error: ")
    assert done.stderr.count(b"\n") == 1


def test_missing_weights_and_wrong_flags(llamafile: Path, tmp_path: Path) -> None:
    for arguments in (("-m", tmp_path / "none.gguf"), ("-m", tmp_path), ("--frobnicate",)):
        done = run(llamafile, "-p", PROMPT, *arguments)
        assert (done.returncode, done.stdout) == (1, b"")
        assert done.stderr.startswith(b"error: ")
        assert done.stderr.count(b"\n") == 1


def test_llamafile_cut_off(llamafile: Path, tmp_path: Path) -> None:
    file = tmp_path / "cut.llamafile"
    file.write_bytes(llamafile.read_bytes()[:-100_000])
    file.chmod(0o755)
    done = run(file, "-p", PROMPT)
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr.count(b"\n") == 1


def test_unzip_brings_out_the_weights(llamafile: Path, smollm2: Path, tmp_path: Path) -> None:
    done = run(need("unzip"), "-q", llamafile, smollm2.name, "-d", tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / smollm2.name).read_bytes() == smollm2.read_bytes()


def test_built_file_is_sound(llamafile: Path) -> None:
    assert pyllamafile.verify(llamafile) == []


# the server


@pytest.fixture(scope="module")
def client(server: str):
    openai = pytest.importorskip("openai")
    with openai.OpenAI(base_url=server + "v1", api_key="none", max_retries=0) as client:
        yield client


QUESTION = [{"role": "user", "content": "Name three colors."}]


def get(url: str, **headers: str) -> tuple[bytes, dict[str, str]]:
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=30) as answer:
        return answer.read(), dict(answer.headers)


def test_health_and_models(server: str, client, smollm2: Path) -> None:
    assert json.loads(get(server + "health")[0]) == {"status": "ok"}
    assert [found.id for found in client.models.list()] == [smollm2.stem]


def test_chat_completion(client) -> None:
    done = client.chat.completions.create(
        model="any", messages=QUESTION, temperature=0, max_tokens=60
    )
    assert "blue" in done.choices[0].message.content.lower()
    assert done.choices[0].finish_reason == "stop"


def test_chat_completion_streams(client) -> None:
    stream = client.chat.completions.create(
        model="any", messages=QUESTION, temperature=0, max_tokens=60, stream=True
    )
    pieces = [
        c.choices[0].delta.content for c in stream if c.choices and c.choices[0].delta.content
    ]
    assert len(pieces) > 3
    assert "blue" in "".join(pieces).lower()


def test_completion_is_what_the_command_line_says(client, answer: bytes) -> None:
    done = client.completions.create(model="any", prompt=PROMPT, temperature=0, max_tokens=12)
    assert PROMPT + done.choices[0].text == answer.decode().removesuffix("\n")


def test_embeddings(llamafile: Path) -> None:
    openai = pytest.importorskip("openai")
    flags = ("--nobrowser", "--embeddings", "--pooling", "mean", "--port", str(free_port()))
    with (
        serving(llamafile, *flags) as url,
        openai.OpenAI(base_url=url + "v1", api_key="none") as client,
    ):
        done = client.embeddings.create(
            model="any", input=["a cat", "a kitten", "the stock market"]
        )
    cat, kitten, market = (row.embedding for row in done.data)
    assert len(cat) == 576

    def likeness(a, b) -> float:
        return sum(x * y for x, y in zip(a, b, strict=True))

    assert likeness(cat, kitten) > likeness(cat, market)


def test_seam_embeddings_for_older_clients(llamafile: Path) -> None:
    def made(path: str, content: object) -> Any:
        body = json.dumps({"content": content}).encode()
        request = urllib.request.Request(url + path, body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.loads(answer.read())

    flags = ("--nobrowser", "--embeddings", "--pooling", "mean", "--port", "0")
    with serving(llamafile, *flags) as url:
        (row,) = made("embedding", "a cat")
        (vector,) = row["embedding"]
        assert len(vector) == 576
        one = {"embedding": pytest.approx(vector, abs=1e-5)}
        assert made("llamafile/embedding", "a cat") == one
        assert made("llamafile/embedding", ["a cat", "a cat"]) == {"results": [one, one]}


def test_seam_gui_comes_out_of_the_file(server: str, llamafile: Path) -> None:
    with zipfile.ZipFile(llamafile) as archive:
        for name in ("index.html", "favicon.svg", "manifest.webmanifest", "sw.js"):
            body, headers = get(server + name, **{"Accept-Encoding": "gzip"})
            assert headers["Content-Encoding"] == "gzip"
            assert gzip.decompress(body) == archive.read(f"ui/{name}")
    assert get(server, **{"Accept-Encoding": "gzip"})[1]["Content-Type"].startswith("text/html")


def test_a_taken_port_gives_the_next_one(llamafile: Path) -> None:
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            taken.bind(("127.0.0.1", 8080))
        except OSError:
            pass  # then somebody has it already, which will do
        else:
            taken.listen()
        process = subprocess.Popen(
            [llamafile, "--nobrowser"], stdout=subprocess.PIPE, stdin=subprocess.DEVNULL
        )
        assert process.stdout.readline().startswith(b"port 8080 is taken, using 80")
        url = ready(process)
        assert not url.endswith(":8080/")
        assert json.loads(get(url + "health")[0]) == {"status": "ok"}
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=10) in (0, 130)
        process.stdout.close()


def test_seam_a_port_that_was_asked_for_is_taken(server: str, llamafile: Path) -> None:
    port = server.rsplit(":", 1)[1].strip("/")
    done = run(llamafile, "--nobrowser", "--port", port)
    assert done.returncode == 1
    assert done.stderr.count(b"\n") == 1
    assert f":{port}: ".encode() in done.stderr


@pytest.mark.parametrize(
    ("desktop", "flags", "opened"),
    [({"DISPLAY": ":9"}, (), True), ({"DISPLAY": ":9"}, ("--nobrowser",), False), ({}, (), False)],
)
def test_browser_opens_on_a_desktop(
    desktop: dict[str, str], flags: tuple[str, ...], opened: bool, llamafile: Path, tmp_path: Path
) -> None:
    browser = tmp_path / "xdg-open"
    browser.write_text(f'#!/bin/sh\necho "$1" >"{tmp_path}/opened"\n')
    browser.chmod(0o755)
    names = ("DISPLAY", "WAYLAND_DISPLAY")
    environment = {name: value for name, value in os.environ.items() if name not in names}
    environment |= {"PATH": f"{tmp_path}:{environment['PATH']}", **desktop}
    with serving(llamafile, *flags, "--port", str(free_port()), env=environment) as url:
        wait_until = time.monotonic() + (10 if opened else 0.5)
        while not (tmp_path / "opened").exists() and time.monotonic() < wait_until:
            time.sleep(0.02)
    assert (tmp_path / "opened").exists() == opened
    if opened:
        assert (tmp_path / "opened").read_text().strip() == url


def test_llamafiles_names_for_flags(llamafile: Path) -> None:
    flags = ("--nobrowser", "--nologo", "--unsecure", "--gpu", "disable", "--url-prefix", "/ai")
    with serving(llamafile, "--server", *flags, "--port", str(free_port())) as url:
        assert url.endswith("/ai/")
        assert json.loads(get(url + "health")[0]) == {"status": "ok"}


@pytest.mark.parametrize("prefix", ["/llm", "llm", "llm/"])
def test_seam_prefix_and_key_together(prefix: str, llamafile: Path) -> None:
    flags = ("--nobrowser", "--url-prefix", prefix, "--api-key", "k", "--port", str(free_port()))
    with serving(llamafile, *flags) as url:
        assert url.endswith("/llm/")
        assert get(url, **{"Accept-Encoding": "gzip"})[1]["Content-Type"].startswith("text/html")
        assert get(url + "v1/models", Authorization="Bearer k")
        with pytest.raises(urllib.error.HTTPError, match="401"):
            get(url + "v1/models")


def test_a_server_completes_no_prompt(llamafile: Path) -> None:
    flags = ("--server", "--nobrowser", "-p", "hello", "--port", str(free_port()))
    with serving(llamafile, *flags) as url:
        assert json.loads(get(url + "health")[0]) == {"status": "ok"}


def test_without_gui_none_is_announced(llamafile: Path, tmp_path: Path) -> None:
    opened = tmp_path / "xdg-open"
    opened.write_text(f'#!/bin/sh\n: >"{tmp_path}/opened"\n')
    opened.chmod(0o755)
    environment = {**os.environ, "DISPLAY": ":9", "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    command = [llamafile, "--no-ui", "--port", str(free_port())]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as process:
        # Where it loads for long, another line says so before.
        ready_line = next(line for line in process.stdout if b" is ready: " in line)
        process.send_signal(signal.SIGINT)
    assert process.returncode in (0, 130)
    assert b"(API alone) is ready: " in ready_line
    assert not (tmp_path / "opened").exists()


def test_unix_socket(llamafile: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.sock"
    with serving(llamafile, "--nobrowser", "--host", str(path)) as url:
        assert url == f"unix:{path}"
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
            client.sendall(b"GET /health HTTP/1.0\r\n\r\n")
            assert b" 200 " in client.recv(100)
    assert not path.exists()


def test_unix_socket_in_the_way(llamafile: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.sock"
    path.write_text("precious")
    done = run(llamafile, "--nobrowser", "--host", str(path))
    assert (done.returncode, done.stderr.count(b"\n")) == (1, 1)
    assert path.read_text() == "precious"
    path.unlink()
    with socket.socket(socket.AF_UNIX) as killed:
        killed.bind(str(path))
    with serving(llamafile, "--nobrowser", "--host", str(path)):  # nobody listens there any more
        done = run(llamafile, "--nobrowser", "--host", str(path))
        assert (done.returncode, done.stderr.count(b"\n")) == (1, 1)
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))


@pytest.mark.parametrize("flags", [("--port", "0"), ("--port", "0", "--host", "localhost")])
def test_any_free_port(flags: tuple[str, ...], llamafile: Path) -> None:
    with serving(llamafile, "--nobrowser", *flags) as url:
        assert not url.endswith(":0/")
        assert json.loads(get(url + "health")[0]) == {"status": "ok"}


def test_seam_interrupt_ends_the_server_while_it_answers(llamafile: Path) -> None:
    process = subprocess.Popen(
        [llamafile, "--nobrowser", "--port", str(free_port())], stdout=subprocess.PIPE
    )
    url = ready(process)
    body = json.dumps({"prompt": "Once", "n_predict": 100000, "ignore_eos": True, "stream": True})
    request = urllib.request.Request(url + "completion", data=body.encode())
    with urllib.request.urlopen(request, timeout=30) as stream:
        assert stream.readline()
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=10) in (0, 130)
    process.stdout.close()


@pytest.mark.parametrize(("grace", "whole"), [(30, True), (1, False)])
def test_term_lets_answers_end(llamafile: Path, grace: int, whole: bool) -> None:
    process = subprocess.Popen(
        [llamafile, "--nobrowser", "--port", str(free_port()), "--grace", str(grace)],
        stdout=subprocess.PIPE,
    )
    url = ready(process)
    words = 300 if whole else 100000
    body = json.dumps({"prompt": "Once", "n_predict": words, "ignore_eos": True, "stream": True})
    request = urllib.request.Request(url + "completion", data=body.encode())
    with urllib.request.urlopen(request, timeout=60) as stream:
        assert stream.readline()
        process.send_signal(signal.SIGTERM)
        if whole:
            time.sleep(0.2)  # until it has heard
            with pytest.raises(urllib.error.HTTPError) as refused:
                urllib.request.urlopen(url + "health", timeout=30)
            refused.value.close()
            assert refused.value.code == 503
            assert b'"stop":true' in stream.read()
        assert process.wait(timeout=10) == 0
    process.stdout.close()


def test_a_grace_that_is_no_time_is_refused(llamafile: Path) -> None:
    done = run(llamafile, "--nobrowser", "--grace", "soon")
    assert done.returncode == 1
    assert b"--grace soon: not a whole number" in done.stderr


# Phi-3


def test_phi3(phi3: Path, runtime: Path, tmp_path: Path) -> None:
    file = pyllamafile.build(phi3, tmp_path / "phi3.llamafile", targets=["linux-amd64"]).path
    (facts,) = pyllamafile.inspect(file).models
    assert (facts.architecture, facts.context_length, facts.vocabulary) == ("phi3", 4096, 32064)
    prompt = r"<|user|>\nHow to explain Internet?<|end|>\n<|assistant|>\n"
    done = run(file, "--tokenize", "-e", "-p", prompt, "--ids")
    tokens = json.loads(done.stdout)
    bos, user, end, assistant = 1, 32010, 32007, 32001
    assert tokens[:2] == [bos, user]
    assert tokens.count(bos) == 1
    assert end in tokens
    assert assistant in tokens
    done = run(file, "-e", "-p", prompt, "-n", "4", "--temp", "0")
    assert done.returncode == 0, done.stderr


# the program itself


def test_program_is_static_and_knows_no_paths(runtime: Path) -> None:
    binary = lief.parse(str(runtime))
    assert not binary.has_interpreter
    assert not list(binary.libraries)
    raw = runtime.read_bytes()
    for place in (Path.home(), Path(pyllamafile.__file__).parent, native.cache()):
        assert f"{place}/".encode() not in raw


# --clean-cache


def test_other_programs_are_removed_and_nothing_else(
    llamafile: Path, runtime: Path, tmp_path: Path
) -> None:
    env = {**os.environ, "PYLLAMAFILE_CACHE": str(tmp_path)}
    assert run(llamafile, "--version", env=env).returncode == 0
    folder = tmp_path / "run"
    (own,) = folder.iterdir()
    gone = subprocess.Popen(["true"])
    gone.wait()
    old, busy, stale, fresh = (
        folder / ("0" * 64),
        folder / ("1" * 64),
        folder / ("2" * 64 + f".{gone.pid}.abcdef"),
        folder / ("3" * 64 + f".{os.getpid()}.abcdef"),
    )
    foreign = [folder / "notes.txt", folder / ("4" * 63), folder / ("G" * 64), tmp_path / "5"]
    for path in (old, stale, fresh, *foreign):
        path.write_bytes(b"x" * 1000)
    os.utime(fresh, (0, 0))  # as the script does just before a draft gets its name
    (folder / ("6" * 64)).mkdir()
    busy.write_bytes(runtime.read_bytes())
    busy.chmod(0o755)
    process = subprocess.Popen([busy, "-f", "-"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        time.sleep(0.2)
        done = run(llamafile, "--clean-cache", env=env)
    finally:
        process.kill()
        process.communicate()
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.decode() == f"{folder}: 2 removed, 0.0 MB; 1 still running\n"
    assert not old.exists()
    assert not stale.exists()
    kept = {own, busy, fresh, folder / ("6" * 64), *foreign[:3]}
    assert set(folder.iterdir()) == kept
    assert foreign[3].exists()


def test_where_nothing_is_unpacked_there_is_nothing_to_remove(
    runtime: Path, tmp_path: Path
) -> None:
    others = sorted(runtime.parent.iterdir())
    env = {**os.environ, "PYLLAMAFILE_CACHE": str(tmp_path)}
    done = run(runtime, "--clean-cache", env=env)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout == b"nothing to remove: this file unpacks no program\n"
    assert sorted(runtime.parent.iterdir()) == others
