"""JSON Schema's patterns as grammars: patterns.cpp, judged by Python's re and json."""

from __future__ import annotations

import json
import random
import re
import subprocess
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import pytest
from running import need

from pyllamafile.native.building.driver import RUNTIME

Translate = Callable[..., tuple[int, str]]


@pytest.fixture(scope="module")
def translate(tmp_path_factory: pytest.TempPathFactory) -> Translate:
    """Translates one pattern: the exit code, and the grammar or the reason."""
    clang = need("clang++", "clang")
    program = tmp_path_factory.mktemp("patterns") / "patterns"
    sources = [Path(__file__).with_name("patterns.cpp"), RUNTIME / "patterns.cpp"]
    flags = ["-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", f"-I{RUNTIME}"]
    subprocess.run([clang, *flags, *sources, "-o", program], check=True)

    @lru_cache
    def run(*words: str) -> tuple[int, str]:
        done = subprocess.run([program, *words], capture_output=True, timeout=20)
        return done.returncode, done.stdout.decode()

    return run


class Grammar:
    """A grammar of the form that patterns.cpp writes: a character, and what follows it."""

    def __init__(self, text: str) -> None:
        start, *lines = text.splitlines()
        rules = dict(line.split(" ::= ", 1) for line in lines)
        quote, self.start = rules[start].split(" ")
        assert quote == r'"\""'
        self.states = {}
        self.sets = {}
        for name, rule in rules.items():
            if "-set-" in name:
                self.sets[name] = self.expression(rule)
            elif name != start:
                self.states[name] = [way.split(" ") for way in rule.split(" | ")]

    @staticmethod
    def expression(rule: str) -> re.Pattern[str]:
        """A set of characters as a regular expression of Python's: brackets are the same."""
        parts = re.findall(r'"(?:\\.|[^"])*"|\[[^]]*\]| \| ', rule)
        assert "".join(parts) == rule.replace('" [', '"[')
        return re.compile(
            "".join(
                re.escape(json.loads(part)) if part[0] == '"' else part.strip() for part in parts
            )
        )

    def matches(self, text: str) -> bool:
        """Whether the JSON string of a text is in the grammar."""
        whole = json.dumps(text, ensure_ascii=False)
        reached = {(self.start, 1)}
        while reached:
            further = set()
            for state, at in reached:
                for way in self.states[state]:
                    if way == [r'"\""']:
                        if whole[at:] == '"':
                            return True
                        continue
                    found = self.sets[way[0]].match(whole, at)
                    if found is not None and at < len(whole) - 1:
                        further.add((way[1], found.end()))
            reached = further
        return False


# A pattern, texts that match, and texts that don't.
PATTERNS = [
    (r"^\d{4}-\d{2}$", ["2024-05"], ["jon", "2024-5", "2024-055", " 2024-05", ""]),
    (r"\d", ["7", "a1b"], ["", "a", "²"]),
    (r"^\w+$", ["Az_09"], ["", "a b", "é", "a-b"]),
    (r"^\W\D\S$", ["- a", "é x"], ["a b", "-1x", "---x", "-- "]),
    (r"^\s$", [" ", "\t", "\n", "\u00a0", "\ufeff", "\u2028"], ["", "a", "\u200b"]),
    (r"^.$", ["a", '"', "\\", "\U0001f600", "\x01"], ["\n", "\r", "\u2028", "", "ab"]),
    (r"^[^]$", ["\n", "a"], ["", "ab"]),
    (r"^a[]b$", [], ["a", "ab"]),
    (r"^[a-c\d_-]+$", ["a-1_c"], ["d", ""]),
    (r"^[^a-c\\]+$", ["xyz", '"'], ["a", "\\", ""]),
    (r"^[\w.]+@[\w.]+$", ["a.b@c.d"], ["a b@c", "@", "a@"]),
    (r"^[\b]\cJ\x41\u0042\u{43}\0$", ["\b\nABC\0"], ["bJABC0"]),
    (r"^\ud83d\ude00$", ["\U0001f600"], ["\U0001f601"]),
    (r"^é{2}ß?$", ["éé", "ééß"], ["é", "ééé"]),
    (r"^\"\\\/\.\$\^\-$", ['"\\/.$^-'], ['"\\/a$^-']),
    (r"^(?:a|bc)*$", ["", "abca", "bcbc"], ["b", "acb"]),
    (r"^(a|ab)(c|bcd)$", ["ac", "abc", "abcd", "abbcd"], ["ab", "abbc"]),
    (r"^(?<year>\d+)/(\d+)$", ["20/1"], ["/1", "20/"]),
    (r"^a+?b*?c??$", ["a", "aabbc"], ["", "abcc"]),
    (r"^a{2,}b{0,2}c{3}$", ["aaccc", "aaabbccc"], ["accc", "aabbbccc", "aacc"]),
    (r"^(a{2}){2}$", ["aaaa"], ["aa", "aaa", "aaaaa"]),
    (r"^(a?){3}$", ["", "aaa"], ["aaaa"]),
    (r"foo", ["foo", "a foo b", "fofoo"], ["fo o", ""]),
    (r"^foo", ["foo", "food"], ["a foo"]),
    (r"foo$", ["foo", "a foo"], ["food", "foo\n"]),
    (r"^a|b$", ["a", "axx", "xxb"], ["xa", "bx"]),
    (r"(^|,)x(,|$)", ["x", "a,x", "x,a", "a,x,b"], ["ax", "xa"]),
    (r"a^b|c$d", [], ["ab", "cd", "a^b", "c$d"]),
    (r"", ["", "anything"], []),
    (r"^$", [""], ["a"]),
    (r"\bcat\b", ["cat", "a cat!", "cat-flap"], ["concat", "cats", "cat_"]),
    (r"^\Bcat", [], ["cat", "cats"]),
    (r"cat\B", ["cats", "cat_"], ["cat", "cat!"]),
    (r"^\w*\b!$", ["a!"], ["!", "a"]),
    (r"^\b\w+ \w+\b$", ["a b"], ["a ", " b"]),
    (r"^(?=.*[A-Z])(?=.*\d).{4,}$", ["aB3x", "3xxB"], ["ab3x", "ABCD", "A1"]),
    (r"^(?!admin$)[a-z]+$", ["admi", "admins", "x"], ["admin"]),
    (r"^(?!.*\.\.)[a-z.]+$", ["a.b", "."], ["a..b"]),
    (r"^a(?=b)..$", ["abc"], ["acb", "ab"]),
    (r"^(?:a(?!b).){1,2}$", ["ac", "acad"], ["ab", "acab"]),
    (r"^(?=(?!b)[ab])\w$", ["a"], ["b", "c"]),
    (r"[\d\-x]$", ["1", "-", "x"], ["a"]),
    (r"^[-a]$", ["-", "a"], ["b"]),
    (r"^[a-]$", ["-", "a"], ["b"]),
]


def as_python(pattern: str) -> str | None:
    """The same for Python's re, or nothing where it has no such thing, or another meaning."""
    if re.search(r"\\s|\\S|\\c|\\u|\[\^?\]|\.(?!\\)|\\0|\^\.|\\B", pattern):
        return None
    return re.sub(r"(?<!\\)\$", r"\\Z", pattern.replace("(?<", "(?P<"))


@pytest.mark.parametrize(("pattern", "right", "wrong"), PATTERNS)
def test_patterns_are_kept_to(
    pattern: str, right: list[str], wrong: list[str], translate: Translate
) -> None:
    code, text = translate(pattern)
    if not right:
        assert (code, "no text matches it" in text) == (1, True)
        return
    assert code == 0, text
    grammar = Grammar(text)
    assert {case: grammar.matches(case) for case in [*right, *wrong]} == {
        **dict.fromkeys(right, True),
        **dict.fromkeys(wrong, False),
    }
    same = as_python(pattern)
    if same is None:
        return
    judge = re.compile(same, re.ASCII)
    alphabet = sorted({letter for case in [*right, *wrong] for letter in case} | set('a0 "\\_-'))
    for _ in range(300):
        case = "".join(random.choices(alphabet, k=random.randrange(7)))
        assert grammar.matches(case) == bool(judge.search(case)), case


# Made at random of what both dialects have: the two agree on every text.
def any_pattern(depth: int = 3) -> str:
    if depth == 0 or random.random() < 0.3:
        return random.choice(["a", "b", r"\w", r"\d", "[ab-]", "[^a]", "0", "-", r"\W", r"\."])
    return random.choice(
        [
            lambda: any_pattern(depth - 1) + any_pattern(depth - 1),
            lambda: f"({any_pattern(depth - 1)}|{any_pattern(depth - 1)})",
            lambda: f"(?:{any_pattern(depth - 1)}){random.choice(['*', '+', '?', '{2}', '{1,2}'])}",
            lambda: f"^{any_pattern(depth - 1)}",
            lambda: rf"{any_pattern(depth - 1)}\Z",
            lambda: rf"{any_pattern(depth - 1)}\b{any_pattern(depth - 1)}",
            lambda: f"(?={any_pattern(depth - 1)}){any_pattern(depth - 1)}",
            lambda: f"(?!{any_pattern(depth - 1)}){any_pattern(depth - 1)}",
        ]
    )()


def test_patterns_made_at_random(translate: Translate) -> None:
    translated = 0
    for _ in range(300):
        pattern = any_pattern()
        judge = re.compile(pattern, re.ASCII)
        code, text = translate(pattern.replace(r"\Z", "$"))
        texts = ["".join(random.choices("ab0-. ", k=random.randrange(6))) for _ in range(60)]
        if code != 0:
            assert "repeated without end" in text or not any(map(judge.search, texts)), pattern
            continue
        translated += 1
        grammar = Grammar(text)
        for case in texts:
            assert grammar.matches(case) == bool(judge.search(case)), (pattern, case)
    assert translated > 150


@pytest.mark.parametrize(
    ("least", "most", "right", "wrong"),
    [
        ("2", "3", ["ab", "abc"], ["a", "abcd"]),
        ("0", "1", ["a"], ["ab"]),
        ("3", "-1", ["abc"], ["ab"]),
    ],
)
def test_lengths_hold_beside_a_pattern(
    least: str, most: str, right: list[str], wrong: list[str], translate: Translate
) -> None:
    grammar = Grammar(translate("^[a-z]", least, most)[1])
    assert all(map(grammar.matches, right))
    assert not any(map(grammar.matches, wrong))


@pytest.mark.parametrize(
    ("pattern", "reason"),
    [
        ("(", "a ( isn't closed"),
        (")", "a ) closes nothing"),
        ("^(a$", "a ( isn't closed"),
        ("[a", "it ends within []"),
        ("\\", "it ends within an escape"),
        ("*a", "* follows nothing"),
        ("a**", "a quantifier follows a quantifier"),
        ("^*", "a quantifier follows ^"),
        ("a{2", "a { isn't followed"),
        ("a{,2}", "a { isn't followed"),
        ("a{3,2}", "a { isn't followed"),
        ("a}", "} has no partner"),
        ("[b-a]", "a range in []"),
        (r"[\w-a]", "a range in []"),
        (r"(a)\1", r"\1, what a group matched before"),
        (r"(?<n>a)\k<n>", r"\k, what a group matched before"),
        (r"(?<=a)b", "looking behind"),
        (r"(?<!a)b", "looking behind"),
        (r"(?i)a", "(?i isn't supported"),
        (r"\p{L}", r"\p isn't supported"),
        (r"a\Z", r"\Z isn't supported"),
        (r"\x4", "it ends within an escape"),
        (r"\u{110000}", "no character"),
        (r"^(?:a$)*b", "repeated without end"),
        ("^[a-z]{0,1000000}$", "too large"),
        ("(a|b)*a(a|b){40}", "too large"),
        ("(" * 5000 + ")" * 5000, "too large"),
        ("(" * 500 + ")" * 500, "nested too deeply"),
        ("(?:" * 90 + "a" + "{9})" * 90, "too large"),
        ("(?:" * 90 + "a$" + "){0,9}" * 90, "too large"),
        ("a?" * 4000, "too large"),
        ("a$b", "no text matches it"),
    ],
)
def test_what_cannot_be_kept_to_is_named(pattern: str, reason: str, translate: Translate) -> None:
    code, text = translate(pattern)
    assert code == 1
    assert reason in text
    assert text.startswith("the pattern " + pattern)
