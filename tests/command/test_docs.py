"""The documentation: what checks it finds what is wrong, and its examples run."""

from __future__ import annotations

import contextlib
import importlib.machinery
import importlib.util
import io
import re
import shlex
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from fixtures import put_runtime, tiny_gguf

import pyllamafile
from pyllamafile import inspect

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def loaded():
    """scripts/check_docs as a module."""
    sys.path.insert(0, str(ROOT / "scripts"))
    try:
        loader = importlib.machinery.SourceFileLoader(
            "check_docs", str(ROOT / "scripts" / "check_docs")
        )
        module = importlib.util.module_from_spec(
            importlib.util.spec_from_loader("check_docs", loader)
        )
        sys.modules["check_docs"] = module  # dataclasses look there
        loader.exec_module(module)
    finally:
        sys.path.pop(0)
    return module


check_docs = loaded()


# What the checker finds


def test_the_documentation_is_right():
    assert list(check_docs.problems()) == []


@pytest.fixture
def page(tmp_path):
    """Puts a text into a file beside another one; gives what is wrong with it."""
    (tmp_path / "other.md").write_text("# A heading, with `code`\n\n## Twice\n\n## Twice\n")

    def check(text: str) -> list[tuple[int, str]]:
        path = tmp_path / "page.md"
        path.write_text(text)
        page = check_docs.parsed(text)
        return [
            *check_docs.broken_links(page, path, lambda p: check_docs.parsed(p.read_text())),
            *check_docs.wrong_options(page),
            *check_docs.missing_names(page),
        ]

    return check


@pytest.mark.parametrize(
    "text",
    [
        "[a](other.md) [b](other.md#a-heading-with-code) [c](other.md#twice-1)",
        "# Here\n\n[a](#here) and [b](https://example.org/#nowhere)",
        "`[a](nowhere.md)` is code\n\n    [a](nowhere.md)\n\n```text\n[a](nowhere.md)\n```",
        "`pyllamafile build --gguf x.gguf`, `pyllamafile upgrade --engine FILE`, `pyllamafile`",
        "`--gguf`, `--chat`, `MODE --help`, `--lora SOURCE[=SCALE]`, `-c`, `--spec-draft-n-max 8`",
        "```sh\n./f -p 'a --nonsense in quotes' --temp 0 | cat\n```",
        "```sh\npyllamafile build --gguf x.gguf \\\n    --arg --not-ours\n```",
        "```console\n$ ./f --version\n--anything in an output\n```",
        "```sh\npytest -m '' -k name\n```",
        "`scripts/check_docs --write`, `tests/command/test_docs.py`, `test_what_is_right`",
        "```sh\nPYLLAMAFILE_CACHE=/x sh ./f.llamafile --clean-cache # --nonsense\n```",
    ],
)
def test_what_is_right(page, text):
    assert page(text) == []


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        ("[a](nowhere.md)", 1, "nowhere.md: there is no such file"),
        ("\n\n[a](other.md#thrice)", 3, "other.md has no heading of that name"),
        ("[a](other.md#twice-2)", 1, "other.md has no heading of that name"),
        ("# Here\n\n[a](#there)", 3, "#there: page.md has no heading of that name"),
        ("`--gguv`", 1, "--gguv"),
        ("see --gguv for it", 1, "there is no option --gguv"),
        ("`./f --nobrowsers`", 1, "./f has no option --nobrowsers"),
        ("`pyllamafile build --gguff x`", 1, "No such option"),
        ("`pyllamafile verify --gguf x`", 1, "No such option"),
        ("`pyllamafile bild`", 1, "there is no command bild"),
        ("```sh\n\npyllamafile verify\n```", 3, "Missing argument"),
        ("```sh\npyllamafile build --quantize Q9\n```", 2, "'Q9' is not one of"),
        ("```sh\na && ./phi3.llamafile \\\n  --tempp 0\n```", 2, "no option --tempp"),
        ("```console\n$ (cat x) | ./f --chatt\n```", 2, "./f has no option --chatt"),
        ("```sh\ncurl --nonsense x\n```", 2, "curl has no option --nonsense"),
        ("```sh\nunheard-of --option\n```", 2, "add its options to OTHERS"),
        ("a\n`word with no end", 2, "goes on in the next line"),
        ("`scripts/nothing`", 1, "scripts/nothing: there is no such file"),
        ("`test_of_nothing_at_all`", 1, "there is no such test"),
    ],
)
def test_what_is_wrong(page, text, line, said):
    [(found, what)] = page(text)
    assert (found, said in what) == (line, True), what


def test_an_option_that_llama_cpp_drops_is_found(tmp_path):
    manual = next(check_docs.NATIVE.rglob("manual.txt")).read_text()
    named = {*re.findall(r"--?[a-z][\w-]*", manual), *check_docs.LLAMA_CPP}
    for name in check_docs.SOURCES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("".join(f'"{flag}"' for flag in named - {"--poll", "--top-k"}))
    assert set(check_docs.unknown_to_llama_cpp(tmp_path)) == {"--top-k"}
    assert check_docs.unknown_to_llama_cpp(None) == []


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("        gguf.py  ", "        ggml.py  ", ["lacks models/gguf.py", "has models/ggml.py"]),
        ("          icon.py  ", "          levels.h  ", ["lacks native/building/icon.py"]),
        ("    chat/\n", "    chatter/\n", ["has native/runtime/chatter/"]),
        ("| `tests/unit/test_plan.py` |", "| |", ["lacks tests/unit/test_plan.py"]),
    ],
)
def test_a_map_that_is_not_the_house_is_found(old, new, said):
    text = (ROOT / "CONTRIBUTING.md").read_text()
    assert list(check_docs.wrong_map(text)) == []
    assert text.count(old) == 1
    found = list(check_docs.wrong_map(text.replace(old, new)))
    assert all(any(line.endswith(what) for line in found) for what in said), found


def test_a_stale_page_and_a_long_readme_are_found(tmp_path, monkeypatch):
    pages = [path.name for path in ROOT.glob("*.md")]
    for name in (*pages, "docs", "src", "scripts", "tests"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.setattr(check_docs, "ROOT", tmp_path)
    assert list(check_docs.problems()) == []
    (tmp_path / "README.md").unlink()
    (tmp_path / "README.md").write_text(README + "\n" * 150)
    monkeypatch.setattr(check_docs, "MAN_ENDS", (("NEWS", "Something."),))
    found = list(check_docs.problems())
    assert [line.split(" ")[0] for line in found] == ["README.md:151:", "docs/commands.md:1:"]


def test_a_stale_table_of_seams_is_made_new():
    page = (ROOT / "docs" / "porting.md").read_text()
    rows = re.findall(r"^\| [\w-]+ \| `[^`]+` \|.*\n", page, re.M)
    assert len(rows) > 20
    assert check_docs.porting_page(page.replace(rows[3], "")) == page


# The examples


def blocks(text: str) -> list[tuple[int, str, str]]:
    """Line, language and content of each code block that has a language."""
    return [
        (text[: found.start()].count("\n") + 1, found[1], found[2])
        for found in re.finditer(r"^```(\w+)\n(.*?)^```$", text, re.S | re.M)
    ]


def test_the_examples_of_the_api_run(folder):
    tiny_gguf(folder / "phi3.gguf")
    names: dict[str, object] = {}
    said = None  # what the last example printed
    for line, language, content in blocks((ROOT / "docs" / "python.md").read_text()):
        if language == "python":
            assert not said, f"python.md, before line {line}: printed {said!r}"
            output = io.StringIO()
            with contextlib.redirect_stdout(output):
                exec(compile(content, f"docs/python.md, at line {line}", "exec"), names)
            said = output.getvalue()
        elif language == "text":
            assert said == content, f"python.md, line {line}"
            said = None
    assert not said


def test_the_examples_of_the_api_have_every_public_name():
    page = (ROOT / "docs" / "python.md").read_text()
    code = "\n".join(content for _, language, content in blocks(page) if language == "python")
    named = set(re.findall(r"pyllamafile\.(\w+)", code))
    assert set(pyllamafile.__all__) - named == set()


def test_the_builds_of_the_readme_run(run, folder, prebuilt):
    """All but those that need the hub, or a compiled quantizer; these are parsed, as all are."""
    for target in ("linux-arm64", "macos-amd64", "macos-arm64"):
        put_runtime(prebuilt, target=target)
    for name in ("phi3", "embed"):
        tiny_gguf(folder / f"{name}.gguf", name=name)
    (folder / "LICENSE.txt").write_text("MIT")
    builds = README.split("## Five builds")[1].split("```")[1].replace("\\\n", "")
    commands = [shlex.split(line)[1:] for line in builds.splitlines() if not line.startswith("#")]
    commands = [command for command in commands if command]
    elsewhere = [c for c in commands if "--quantize" in c or any(w.startswith("hf:") for w in c)]
    assert (len(commands), len(elsewhere)) == (5, 2)
    for command in commands:
        if command not in elsewhere:
            done = run(*command)
            assert (done.code, done.err) == (0, ""), command
    assert "LICENSES/phi3.txt" in {e.name for e in inspect("phi3-unix.llamafile").entries}


def test_the_readme_leads_to_every_page():
    linked = {link for _, link in check_docs.parsed(README).links}
    pages = {f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")}
    assert pages - linked == set()


def test_scripts_check_runs_it():
    assert "check_docs" in (ROOT / "scripts" / "check").read_text()


def test_ways_to_run_are_six_and_limits_five():
    ways = README.split("## Six ways to run")[1].split("\n## ")[0]
    assert len(re.findall(r"^\| `\./f", ways, re.M)) == 6
    limits = README.split("## Five limits")[1].split("\n## ")[0]
    assert len(re.findall(r"^- \*\*", limits, re.M)) == 5


# With the real model


def conversations(name: str) -> list[tuple[str, list[str], str]]:
    """The command of each example in a page, the lines typed into it, and what is shown.

    Left out: servers, which don't end, and how the chat greets on a terminal.
    """
    examples = []
    for _, language, content in blocks((ROOT / name).read_text()):
        if language != "console" or "./smollm2.llamafile" not in content:
            continue
        first, *rest = content.splitlines()
        if rest and " is ready: " not in content:
            typed = [line[2:] for line in rest if line.startswith("> ")]
            shown = [line for line in rest if not line.startswith("> ") and "/help" not in line]
            examples.append((first.removeprefix("$ "), typed, "\n".join(shown)))
    return examples


EXAMPLES = [*conversations("README.md"), *conversations("docs/running.md")]
# What another machine, or another kernel, says otherwise.
OF_THE_MACHINE = re.compile("(?<=CPU level )[a-z0-9]+|(?<=sandbox: ).+")


def words(shown: str) -> list[str]:
    """What was shown, whatever the machine and however the lines are broken."""
    return OF_THE_MACHINE.sub("...", shown).split()


@pytest.mark.native
@pytest.mark.parametrize(("command", "typed", "shown"), EXAMPLES)
def test_the_examples_say_what_the_model_says(llamafile, tmp_path, command, typed, shown):
    (tmp_path / "smollm2.llamafile").symlink_to(llamafile)
    done = subprocess.run(
        ["sh", "-c", command],
        cwd=tmp_path,
        input="".join(f"{line}\n" for line in typed),
        capture_output=True,
        text=True,
    )
    assert (done.returncode, words(done.stdout)) == (0, words(shown))


def test_there_are_such_examples():
    assert len(EXAMPLES) >= 4
    assert sum(bool(typed) for _, typed, _ in EXAMPLES) == 2


@pytest.mark.native
def test_the_quick_start_says_what_the_model_says(llamafile):
    question = re.search(r"^Q: (.*)$", README, re.M)[1]
    answer = re.search(r"^A: (.*)$", README, re.M)[1]
    text = f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
    flags = ["--temp", "0", "-n", "100", "--no-display-prompt", "--no-escape", "-p", text]
    done = subprocess.run([llamafile, *flags], capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, answer)


@pytest.mark.native
def test_the_endpoints_of_the_page_are_there(server):
    page = (ROOT / "docs" / "api.md").read_text().split("## Endpoints")[1].split("\n## ")[0]
    paths = set(re.findall(r"`(/[\w/-]+)`", page))
    assert len(paths) > 15

    def code(path: str, body: bytes | None) -> int:
        try:
            with urllib.request.urlopen(f"{server.rstrip('/')}{path}", body, timeout=60) as answer:
                return answer.status
        except urllib.error.HTTPError as error:
            return error.code

    assert code("/nowhere", None) == code("/nowhere", b"{}") == 404
    missing = {path for path in paths if {code(path, None), code(path, b"{}")} == {404}}
    assert missing == set()
