"""The plan: everything decided before a byte is written."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from pyllamafile.arguments import quote
from pyllamafile.copying import Digest
from pyllamafile.errors import PyllamafileError
from pyllamafile.launcher import BLOCK, HEAD
from pyllamafile.models.fit import TEMPLATES, chat_template
from pyllamafile.models.gguf import Weights
from pyllamafile.plan import File, whole
from pyllamafile.runtimes import Runtime
from pyllamafile.zipalign import Entry, Late

NOWHERE = Path("/nonexistent")  # a plan looks at no file


def runtime(packed_size: int = 3 * BLOCK) -> Runtime:
    return Runtime(
        target="linux-amd64",
        path=NOWHERE,
        packed_size=packed_size,
        packed_sha256="a" * 64,
        size=12345,
        sha256="b" * 64,
        llama_cpp="1.2.3",
        levels=("v3",),
        origin="cache",
    )


def planned(**changes):
    settings = {
        "name": "m",
        "version": "1",
        "models": [File(NOWHERE, "m.gguf", 1000)],
        "runtimes": [runtime()],
    }
    return whole(**{**settings, **changes})


def test_the_parts_stand_in_order_and_do_not_overlap():
    made = planned(
        models=[File(NOWHERE, "a.gguf", 100_000), File(NOWHERE, "b.gguf", 5 << 30)],
        extras=[File(NOWHERE, "LICENSE.txt", 11)],
        args="-c 1\n",
        gui=[Entry("ui/index.html", b"<html>")],
    )
    names = [item.entry.name for item in made.zip.placed]
    assert names == ["a.gguf", "b.gguf", "LICENSE.txt", ".args", "ui/index.html", "llamafile.json"]
    assert len(made.engine.head) == HEAD
    assert made.engine.programs[0].offset == BLOCK
    end = made.engine.programs[0].offset + made.engine.programs[0].runtime.packed_size
    for item in made.zip.placed:
        assert item.header_offset >= end
        assert item.data_offset > item.header_offset
        end = item.data_offset + item.stored_size
    assert made.zip.directory_end >= end
    assert made.size == made.zip.size > end > 5 << 30


@pytest.mark.parametrize("size", [1, BLOCK - 1, BLOCK, BLOCK + 1, (1 << 32) + 1])
def test_weights_are_aligned_and_close_to_what_is_before(size):
    made = planned(models=[File(NOWHERE, f"{n}.gguf", size) for n in range(3)])
    end = made.engine.programs[0].offset + made.engine.programs[0].runtime.packed_size
    for item in made.zip.placed[:3]:
        assert item.data_offset % BLOCK == 0
        assert item.data_offset - end < BLOCK + 100
        end = item.data_offset + size


def test_weights_among_the_extra_files_are_aligned_too():
    made = planned(extras=[File(NOWHERE, "x.txt", 7), File(NOWHERE, "mmproj.gguf", 7)])
    assert [item.data_offset % BLOCK == 0 for item in made.zip.placed[:3]] == [True, False, True]


def test_an_engine_alone_has_no_gap():
    made = planned(models=[])
    assert made.zip.placed[0].header_offset == 4 * BLOCK
    assert made.size < 4 * BLOCK + 2000


def test_the_manifest_has_the_size_that_was_planned():
    made = planned(args="-c 1\n", extras=[File(NOWHERE, "ä.txt", 7)])
    late = made.zip.placed[-1].entry.data
    assert isinstance(late, Late)
    sizes = {"m.gguf": 1000, "ä.txt": 7, ".args": 5}
    text = late.make({name: Digest(size, 1, "c" * 64) for name, size in sizes.items()})
    assert len(text) == late.size == made.zip.placed[-1].stored_size
    assert json.loads(text) == {
        "format": 1,
        "name": "m",
        "pyllamafile": "1",
        "proof": False,
        "head": {"size": HEAD, "sha256": hashlib.sha256(made.engine.head).hexdigest()},
        "runtimes": [
            {
                "target": "linux-amd64",
                "offset": BLOCK,
                "packed_size": 3 * BLOCK,
                "packed_sha256": "a" * 64,
                "size": 12345,
                "sha256": "b" * 64,
                "llama_cpp": "1.2.3",
                "levels": ["v3"],
            }
        ],
        "entries": {name: {"size": size, "sha256": "c" * 64} for name, size in sizes.items()},
    }
    assert text == json.dumps(json.loads(text), sort_keys=True, indent=1).encode() + b"\n"


def test_the_same_plan_comes_out_twice():
    one, other = planned(), planned()
    assert one.engine.head == other.engine.head
    assert [item.data_offset for item in one.zip.placed] == [
        item.data_offset for item in other.zip.placed
    ]


def test_without_a_runtime_there_is_no_plan():
    with pytest.raises(PyllamafileError, match="at least one runtime"):
        planned(runtimes=[])


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("m.gguf", "twice"),
        (".args", "twice"),
        ("llamafile.json", "twice"),
        ("../x", r"\.\."),
        ("a/../../x", r"\.\."),
        ("/x", "absolute"),
        ("C:/x", "absolute"),
        ("a\\b", "backslash"),
        ("a\nb", "control"),
        ("\udcff", "UTF-8"),
        ("", "empty"),
    ],
)
def test_names_that_are_refused(name, reason):
    with pytest.raises(PyllamafileError, match=reason):
        planned(extras=[File(NOWHERE, name, 1)], args="-c 1\n")


# The manifest of a file that is changed


# .args

ESCAPES = {"a": "\a", "b": "\b", "e": "\033", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v"}


def parse(text: str) -> list[str]:
    """What native/arguments.cpp makes of `.args`, without variables: those must not be found."""
    words, word, at = [], None, 0
    while at < len(text):
        c = text[at]
        if c in " \t\n\r\f\v":
            words += [] if word is None else [word]
            word = None
        elif c == "#" and word is None:
            at = (text + "\n").index("\n", at)
        elif c == "'":
            end = text.index("'", at + 1)
            word, at = (word or "") + text[at + 1 : end], end
        elif c == '"':
            word, at = word or "", at + 1
            while text[at] != '"':
                assert text[at] != "$", "a variable"
                if text[at] == "\\":
                    at += 1
                    assert text[at] not in "x01234567", "a number"
                    word += ESCAPES.get(text[at], text[at])
                else:
                    word += text[at]
                at += 1
        elif c == "\\":
            at += 1
            word = (word or "") + text[at]
        else:
            assert c != "$", "a variable"
            word = (word or "") + c
        at += 1
    return words if word is None else [*words, word]


@pytest.mark.parametrize(
    "argument",
    [
        "-c",
        "2048",
        "",
        " ",
        "two words",
        "#",
        "a#b",
        "it's",
        'say "hi"',
        """both ' and \" """,
        "back\\slash",
        "'\\n",
        "$HOME",
        "'$HOME",
        "${HOME}",
        "a\nb\tc",
        "<|user|>\\n",
        "äöü 東京",
        "~",
        "*",
        "`id`",
        "\u00a0",
    ],
)
def test_a_quoted_argument_is_read_as_itself(argument):
    assert parse(quote(argument)) == [argument]


def test_any_arguments_are_read_as_themselves(rng):
    for _ in range(3000):
        given = [
            "".join(rng.choices("ab x0'\"\\$#\n\t{}nä.", k=rng.randrange(8))) for _ in range(4)
        ]
        assert parse("\n".join(map(quote, given)) + "\n") == given


def test_the_place_of_the_users_arguments():
    assert quote("...") == "..."


def weights(architecture: str, tokenizer: str | None = "llama", **more: str | int) -> Weights:
    metadata = {"general.architecture": architecture, "tokenizer.ggml.model": tokenizer, **more}
    return Weights(3, {key: v for key, v in metadata.items() if v is not None}, (), 32, 0, 0)


SAYS = {"tokenizer.chat_template": "{{ messages }}"}
PHI3 = TEMPLATES["phi3", "llama"]


@pytest.mark.parametrize(
    ("models", "args", "expected"),
    [
        ([], None, ()),
        ([weights("llama", **SAYS), weights("phi3", **SAYS)], None, ()),
        ([weights("phi3")], None, PHI3),
        ([weights("phi3")], "-c 100\n", PHI3),
        ([weights("phi3")], "--chat-template '{{ 1 }}'\n", ()),
        ([weights("phi3")], "--chat-template-file t.jinja\n", ()),
        ([weights("phi3", "gpt2")], None, ("0",)),  # Phi-4
        ([weights("llama")], None, ("0",)),
        ([weights("phi3"), weights("clip", None), weights("phi3", None)], None, PHI3),
        ([weights("phi3"), weights("llama", **SAYS)], None, ("0",)),
        ([weights("phi3", **SAYS), weights("phi3"), weights("llama")], None, ("1", "2")),
        ([weights("bert", "bert", **{"bert.pooling_type": 1})], None, ()),
    ],
)
def test_who_gets_a_chat_template(models, args, expected):
    assert chat_template({str(n): facts for n, facts in enumerate(models)}, args) == expected
