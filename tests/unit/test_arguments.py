"""The grammar of `.args`: our reader beside the runtime's, which is the one that counts."""

from __future__ import annotations

import os
import re
import shlex
import struct
import subprocess
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from running import need

import pyllamafile
from pyllamafile import arguments, native
from pyllamafile.arguments import decoded, fault, fault_of_new, missing, parse, quote, renamed
from pyllamafile.ops.verify import _args_faults

RUNTIME = Path(pyllamafile.__file__).parent / "native" / "runtime"
ENVIRONMENT = {"A": "of A", "LONG_1": "'\"\\$A #", "EMPTY": "", "DOTS": "..."}

# Reads texts, each behind its length, and writes the words of each: their number, and each of them
# behind its length.
TWIN = r"""
#include "arguments.h"

#include <cstdint>
#include <cstdio>

int main() {
    uint32_t size;
    while (fread(&size, 4, 1, stdin) == 1) {
        std::string text(size, 0);
        if (fread(text.data(), 1, size, stdin) != size) {
            return 1;
        }
        const arguments words = parse_args_file(text);
        const uint32_t count = (uint32_t)words.size();
        fwrite(&count, 4, 1, stdout);
        for (const std::string & word : words) {
            size = (uint32_t)word.size();
            fwrite(&size, 4, 1, stdout);
            fwrite(word.data(), 1, size, stdout);
        }
        fflush(stdout);
    }
    return 0;
}
"""


class Twin:
    """The runtime's reader of `.args`, running."""

    def __init__(self, program: Path) -> None:
        pipe = subprocess.PIPE
        self.process = subprocess.Popen([program], stdin=pipe, stdout=pipe, env=ENVIRONMENT)

    def number(self) -> int:
        return int(struct.unpack("<I", self.process.stdout.read(4))[0])

    def parse(self, text: bytes) -> list[bytes]:
        self.process.stdin.write(struct.pack("<I", len(text)) + text)
        self.process.stdin.flush()
        return [self.process.stdout.read(self.number()) for _ in range(self.number())]


@pytest.fixture(scope="module")
def twin(tmp_path_factory: pytest.TempPathFactory):
    """arguments.cpp by itself: what needs llama.cpp in there goes when it is linked."""
    clang = need("clang++", "clang")
    folder = tmp_path_factory.mktemp("twin")
    (folder / "main.cpp").write_text(TWIN)
    source = native.llama_source()
    options = ["-std=c++17", "-O1", "-w", "-ffunction-sections", "-Wl,--gc-sections"]
    includes = [f"-I{RUNTIME}", *(f"-I{source / part}" for part in INCLUDES)]
    files = [folder / "main.cpp", RUNTIME / "arguments.cpp"]
    done = subprocess.run([clang, *options, *includes, *files, "-o", "twin"], cwd=folder)
    assert done.returncode == 0
    running = Twin(folder / "twin")
    yield running
    running.process.stdin.close()
    assert running.process.wait(10) == 0
    running.process.stdout.close()


INCLUDES = ("include", "common", "ggml/include", "vendor")

# Whole words are rare in what is random: these are what the grammar is about.
MORSELS = st.sampled_from(
    [
        *(" ", "\t", "\n", "\r", "\f", "\v", "#", "'", '"', "\\", "$", "{", "}", "...", "-m", "@a"),
        *("$A", "${A}", "$LONG_1", "${EMPTY}", "$DOTS", "${A", "$UNSET", "\\n", "\\x4", "\\x41"),
        *(
            "\\x",
            "\\101",
            "\\7",
            "\\777",
            "\\9",
            "\0",
            "\ufeff",
            "\u00e4",
            "\u2028",
            "word",
            "_",
            "1",
        ),
    ]
).map(str.encode)
TEXTS = st.lists(st.one_of(MORSELS, st.binary(max_size=4)), max_size=20).map(b"".join)


@pytest.mark.native  # it takes llama.cpp's headers
@settings(max_examples=3000, deadline=None)
@given(TEXTS)
def test_both_readers_find_the_same_words(twin: Twin, text: bytes) -> None:
    words = parse(text, ENVIRONMENT)
    assert [word.text.encode("utf-8", "surrogateescape") for word in words] == twin.parse(text)


@settings(max_examples=300, deadline=None)
@given(TEXTS)
def test_a_word_stands_where_it_says(text: bytes) -> None:
    """And between words is nothing but white space and comments."""
    words, at = parse(text, ENVIRONMENT), 0
    for word in words:
        assert parse(text[at : word.start], ENVIRONMENT) == []
        alone = parse(text[word.start : word.end], ENVIRONMENT)
        assert alone == [word._replace(start=0, end=word.end - word.start)]
        at = word.end
    assert parse(text[at:], ENVIRONMENT) == []


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet=st.characters(exclude_characters="\0", exclude_categories=["Cs"])))
def test_what_is_quoted_is_one_word(argument: str) -> None:
    (word,) = parse(quote(argument).encode(), ENVIRONMENT)
    assert word.text == argument
    assert word.variables == ()
    assert not word.open


def test_what_a_word_is_made_of() -> None:
    text = b"-m @a # 'comment'\n'x y' \\$A$A\"${B}\" ..."
    words = parse(text)
    assert [word.text for word in words] == ["-m", "@a", "x y", "$A", "..."]
    assert [word.quoted for word in words] == [False, False, True, True, False]
    assert [word.variables for word in words] == [(), (), (), ("A", "B"), ()]
    assert [word.placeholder for word in words] == [False] * 4 + [True]
    assert [text[word.start : word.end] for word in words][-2:] == [b'\\$A$A"${B}"', b"..."]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
def test_what_editors_write(encoding: str, newline: str) -> None:
    text = "-p 'a\nb'\n--alias \u00e4\n"
    assert decoded(text.replace("\n", newline).encode(encoding)) == text
    assert decoded(b"\xfe\xff" + text.replace("\n", newline).encode("utf-16-be")) == text


@pytest.mark.parametrize("raw", [b"-p \xe4", b"\xff\xfea", b"\xef\xbb\xbf\xff"])
def test_what_is_no_text(raw: bytes) -> None:
    with pytest.raises(UnicodeDecodeError):
        decoded(raw)


ENTRIES = ["m.gguf", "sub/a.gguf", "b.gguf", "notes.txt"]


@pytest.mark.parametrize(
    ("text", "gone"),
    [
        ("-m @m -m @m.gguf -m @sub/a -m @a --mmproj @a.gguf -md @b", []),
        ("-m @n -m @M --mmproj @sub -md @notes.txt", ["n", "M", "sub", "notes.txt"]),
        ("-m m.gguf -m n.gguf -p @n --lora n@n", []),  # nothing of them is a name in here
        ("--lora @a,@b,@c --lora-scaled @a:1,@d:0.5,@e --lora_scaled @f:2", ["c", "d", "e", "f"]),
        ("--lora '\"@x,y\",@a'", ["x,y"]),
        ("-m @$NAME -m '@$NAME' # -m @n", ["$NAME"]),
        ("-m", []),
    ],
)
def test_names_that_are_in_no_file(text: str, gone: list[str]) -> None:
    assert [found.name for found in missing(text.encode(), ENTRIES)] == gone


@pytest.mark.parametrize(
    ("text", "what"),
    [
        (b"", None),
        (b"# nothing but a remark, it's fine", None),
        (b"... -c 64", None),
        (b"$OPTIONS more than two words", None),
        (b"-p ... and more than two words", None),
        (b"--quantize in.gguf out.gguf Q4_K_M 8", None),
        (b"-c 64\n-m @gone", "line 2: -m @gone: "),
        (b"\xef\xbb\xbf-c 64", "byte order mark"),
        ("-c 64".encode("utf-16"), "byte order mark"),
        ("-c 64\n".encode("utf-16-le"), "line 1: a NUL"),
        (b"-c 64\n\n-p 'a\0'", "line 3: a NUL"),
        (b'-c 64\n-p "a\\0b"', "line 2: an escape for NUL"),
        (b'-c 64\n-p "\\xg"', "line 2: an escape for NUL"),
        (b"\nDear reader,", "line 2: 'Dear' is no option"),
        (b"-c 64\n-p Once upon a time", "line 2: 'a' is no option"),
        (b"#".ljust(arguments.MOST + 1), "can't have 1,048,577 bytes: 1,048,576 is the most"),
    ],
)
def test_faults(text: bytes, what: str | None) -> None:
    found = fault(text, ENTRIES)
    assert found == fault_of_new(text, ENTRIES)
    assert found is None if what is None else what in (found or "")


@pytest.mark.parametrize("text", [b"-c 1\n-p 'x", b'-c 1\n-p "x\n\n\\"', b"-c 1\n-p '\n\n'\"\n"])
def test_a_quote_that_is_not_closed(text: bytes) -> None:
    """A reader takes it (FORMAT.md, 5), but nobody means it."""
    assert fault(text, ENTRIES) is None
    assert fault_of_new(text, ENTRIES) == "line 2: a quote is opened and not closed"


def test_names_are_changed_where_they_stand() -> None:
    text = (
        b"# old.gguf\n\n-m\told.gguf  # the model\r\n--model='/zip/old.gguf'\n-p old.gguf\n"
        b"--lora /zip/old.gguf,x.gguf,old.gguf:0.5 --lora_scaled old.gguf:2\n"
        b"--alias 'old.gguf' ...\n"
    )
    mapping = {"old.gguf": "@a b", "/zip/old.gguf": "@a"}
    assert renamed(text, mapping) == (
        b"# old.gguf\n\n-m\t'@a b'  # the model\r\n--model @a\n-p old.gguf\n"
        b"--lora '@a,x.gguf,@a b:0.5' --lora_scaled '@a b:2'\n--alias 'old.gguf' ...\n"
    )
    assert renamed(text, {"other.gguf": "@x"}) == text


@settings(max_examples=200, deadline=None)
@given(TEXTS)
def test_nothing_else_is_changed(text: bytes) -> None:
    assert renamed(text, {"nobody": "@x"}) == text


def test_a_shell_agrees_where_it_can() -> None:
    text = "-c 64 --alias 'a b' \"c d\" e\\ f # g\n'' h'i'\n"
    assert [word.text for word in parse(text.encode())] == shlex.split(text, comments=True)


def test_the_environment_of_this_process_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "A", "b")
    assert parse(b"$A")[0].text == ""


WEIGHTS = ["m.gguf", "sub/a.gguf"]
NAMING = st.sampled_from(
    ["-m ", "--lora ", "--lora_scaled ", "-md ", "@m ", "@n", "@sub/a:1,", "--x "]
)


@settings(max_examples=1000, deadline=None)
@example(b'"$A\\x')  # a NUL beside a variable
@given(st.lists(st.one_of(MORSELS, NAMING.map(str.encode)), max_size=12).map(b"".join))
def test_the_second_opinion_is_the_same(text: bytes) -> None:
    """verify shares no code with us, and so reads these texts by itself."""
    named = [name.name for name in missing(text, WEIGHTS)]
    faults = list(_args_faults(text, WEIGHTS))
    assert bool(faults) == (fault(text, WEIGHTS) is not None)
    said = [re.search(r" @(.*): there are no such", what, re.DOTALL) for what in faults]
    if all(said):
        assert [match[1] for match in said if match] == named
