"""Every reader, on every strange file: one verdict (strange.py has both tables)."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import strange
from hostile import sources
from judging import snapshot
from running import Command, need
from strange import (
    FILE,
    MANIFEST,
    READERS,
    ROWS,
    RULES,
    SAYS,
    SIGNATURE,
    Bench,
    check_error,
    numberless,
    raw_entries,
    refused,
)

from pyllamafile import llamafile
from pyllamafile import zipalign as zipaligner
from pyllamafile.errors import PyllamafileError

MEMORY = Path("/dev/shm")


@dataclass(frozen=True)
class Case:
    """A strange file in a folder of its own, and what talks to it.

    Attributes:
        name: Of its row.
        bench: What it was made of.
        folder: The current directory, which has the file and `new.txt`.
        command: Runs a command of ours in this process.
    """

    name: str
    bench: Bench
    folder: Path
    command: Command

    @property
    def path(self) -> Path:
        return self.folder / FILE

    @property
    def verdict(self) -> str:
        return ROWS[self.name].verdict


@pytest.fixture(scope="session")
def made(bench: Bench) -> Callable[[str], bytes]:
    """The bytes of a file, made once."""
    cache: dict[str, bytes] = {}

    def make(name: str) -> bytes:
        if name not in cache:
            cache[name] = ROWS[name].make(bench)
        return cache[name]

    return make


@pytest.fixture
def tmp_path(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """In memory, where there are files of many entries: some disks take minutes to forget those."""
    name = request.getfixturevalue("name") if "name" in request.fixturenames else None
    if MEMORY.is_dir() and name in ROWS and ROWS[name].slow:
        with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
            yield Path(folder)
    else:
        yield tmp_path


@pytest.fixture
def case(
    name: str, bench: Bench, made: Callable[[str], bytes], workbench: Path, run: Command
) -> Case:
    (workbench / FILE).write_bytes(made(name))
    (workbench / FILE).chmod(0o755)
    (workbench / "new.txt").write_text("new")
    if put := ROWS[name].put:
        put(workbench / FILE)
    return Case(name, bench, workbench, run)


# --------------------------------------------------- what each reader is asked


def reading(case: Case, expected: str) -> None:
    if expected == "error":
        with pytest.raises(PyllamafileError) as caught:
            llamafile.read(case.path)
        assert "\n" not in caught.value.message
        return
    found = llamafile.read(case.path)
    assert ("interrupted" if found.interrupted else found.maker) == expected
    assert bool(found.problem) == (expected in ("newer", "damaged"))


def inspect(case: Case, expected: str) -> None:
    if expected == "error":
        refused(case.command, "inspect", FILE)
        return
    done = case.command("inspect", "--json", FILE)
    assert (done.code, done.err) == (0, "")
    report: dict[str, Any] = json.loads(done.out)
    ours = RULES[case.verdict]["reading"] in ("ours", "interrupted")
    assert bool(report["built_by"]) == bool(report["runtimes"]) == ours
    if case.verdict != "gguf":
        names = sorted(name for name, _, _ in raw_entries(case.path))
        assert sorted(entry["name"] for entry in report["entries"]) == names
    text = case.command("inspect", "--all", FILE)
    assert text.code == 0
    partly = bool(report["problem"] or report["interrupted"])
    assert partly == (expected == "partly")
    if partly:
        assert (report["problem"] or "interrupted") in text.out + text.err


def verify(case: Case, expected: str) -> None:
    done = case.command("verify", FILE)
    if expected == "sound":
        assert done == (0, f"{FILE}: sound\n", "")
        return
    assert done.code == 1
    check_error(done.err)
    assert re.search(SAYS.get(case.verdict, "."), done.out + done.err)


def extract(case: Case, expected: str) -> None:
    before = snapshot(case.folder)
    done = case.command("extract", FILE, "-C", "out")
    after = snapshot(case.folder)
    inside = {name for name in after if name.split("/")[0] == "out"}
    assert {name: data for name, data in after.items() if name not in inside} == before
    assert done.code == (1 if expected == "error" else 0), done.err
    assert not [name for name in inside if ".pyllamafile-" in name]
    if expected == "all":
        with zipfile.ZipFile(case.path) as file:
            contents = {n: file.read(n) for n in file.namelist() if not n.endswith("/")}
        found = {name[4:]: data for name, data in after.items() if name in inside}
        assert {name: data for name, data in found.items() if data is not None} == contents
    else:
        check_error(done.err)


def changes(case: Case, expected: str, *words: str, gone: str = "", new: str = "") -> None:
    """A command that changes the file: it does so without a loss, or refuses."""
    if expected == "error":
        done = refused(case.command, *words)
        assert re.search(SAYS.get(case.verdict, "."), done.err)
        return
    kept = people(case) if words[0] == "upgrade" else raw_entries(case.path)
    signed = SIGNATURE in [name for name, *_ in raw_entries(case.path)]
    kept = [entry for entry in kept if entry[0] not in (MANIFEST, SIGNATURE, gone, new)]
    if expected == "asks":
        done = refused(case.command, *words)
        assert "--drop-unknown" in done.err
        dropped = [entry for entry in kept if not entry[0].endswith((".gguf", ".args"))]
        unnamed = [name for name, *_ in dropped if name.split("/")[0] not in done.err]
        assert not [name for name in unnamed if not mozillas_own(name)]
        words = (*words, "--drop-unknown")
    problems = case.command("verify", FILE)
    names = {str(path) for path in case.folder.iterdir()}
    done = case.command(*words)
    lost = "is no longer signed.*: `pyllamafile sign` signs it again\n" if signed else ""
    assert done.code == 0, done
    assert re.fullmatch(f"{FILE}: {lost}" if lost else "", done.err), done
    assert {str(path) for path in case.folder.iterdir()} == names
    if RULES[case.verdict]["reading"] == "foreign" and words[0] == "upgrade":
        kept = [entry for entry in kept if entry[0].endswith(".gguf")]
        assert {".args"} & {n for n, *_ in people(case)} <= {n for n, *_ in raw_entries(case.path)}
    after = raw_entries(case.path)
    there = {name for name, *_ in after}
    assert Counter(kept) - Counter(after) == Counter()
    assert {new} - {""} <= there
    assert not {gone, SIGNATURE} & there
    now = case.command("verify", FILE)
    if words[0] == "upgrade":
        assert now == (0, f"{FILE}: sound\n", "")
        assert strange.NEWER.split(b"\n")[-2] in program(case)
    else:
        assert numberless(now.out) <= numberless(problems.out) | {f"{FILE}: sound"}


def people(case: Case) -> list[tuple[str, int, bytes]]:
    """The entries that people put in, which no other engine brings, nor folders."""
    engines = case.bench.engines
    if case.name == "no GUI, and a page of one's own":
        engines = frozenset(name for name in engines if not name.startswith("ui/"))
    return [
        entry
        for entry in raw_entries(case.path)
        if entry[0] not in engines and not entry[0].endswith("/")
    ]


def mozillas_own(name: str) -> bool:
    return name.startswith(("usr/", "llamafile/", ".symtab", ".cosmo"))


def program(case: Case) -> bytes:
    """The program that the file unpacks here."""
    cache = case.folder.parent / "cache"
    shutil.rmtree(cache, ignore_errors=True)
    assert starts(case)
    (unpacked,) = (cache / "run").iterdir()
    return unpacked.read_bytes()


def upgrade(case: Case, expected: str) -> None:
    changes(case, expected, "upgrade", FILE)


def add(case: Case, expected: str) -> None:
    changes(case, expected, "add", FILE, "new.txt=put/new.txt", new="put/new.txt")


def remove(case: Case, expected: str) -> None:
    gone = "notes.txt"
    if expected == "works":
        names = [name for name, *_ in raw_entries(case.path)]
        names = [name for name in names if name not in (MANIFEST, SIGNATURE)]
        gone = gone if gone in names else names[0]
    changes(case, expected, "remove", FILE, gone, gone=gone)


def zipalign(case: Case, expected: str) -> None:
    changes(case, expected, "zipalign", FILE, "new.txt", new="new.txt")


def doctor(case: Case, expected: str) -> None:
    before = snapshot(case.folder)
    done = case.command("doctor", FILE)
    assert done.code == (0 if expected == "well" else 1), done
    assert snapshot(case.folder) == before
    if done.err:
        check_error(done.err)


def starts(case: Case) -> bool:
    env = {**os.environ, "PYLLAMAFILE_CACHE": str(case.folder.parent / "cache")}
    command = ["sh", f"./{FILE}", "a word"]
    done = subprocess.run(command, env=env, cwd=case.folder, capture_output=True, timeout=60)
    told = f"<--llamafile>\n<./{FILE}>\n<a word>\n".encode()
    return (done.returncode, done.stdout) == (0, told)


def start(case: Case, expected: str) -> None:
    assert starts(case) == (expected == "yes")


ASKED: dict[str, Callable[[Case, str], None]] = {
    "reading": reading,
    "inspect": inspect,
    "verify": verify,
    "extract": extract,
    "upgrade": upgrade,
    "add": add,
    "remove": remove,
    "zipalign": zipalign,
    "doctor": doctor,
    "start": start,
}


def table(*readers: str) -> pytest.MarkDecorator:
    """Each of these readers with each file that it is asked about.

    Quickly all files go to the reading that the others share, and to the second opinion, which has
    its own; to the others two of each verdict.
    """
    alike = Counter[str]()
    cases = []
    for name, row in ROWS.items():
        alike[row.verdict] += not row.slow
        for reader in readers:
            quick = reader in ("reading", "verify") or alike[row.verdict] <= 2
            marks = [] if quick and not row.slow else [pytest.mark.slow]
            if RULES[row.verdict][reader] != "-":
                cases.append(pytest.param(name, reader, marks=marks))
    return pytest.mark.parametrize(("name", "reader"), cases)


@table(*ASKED)
def test_one_verdict(case: Case, reader: str) -> None:
    ASKED[reader](case, RULES[case.verdict][reader])


def test_the_tables_are_of_the_same_verdicts() -> None:
    assert {row.verdict for row in ROWS.values()} == RULES.keys()
    assert set(READERS) == {*ASKED, "container", "runtime"}
    assert len(ROWS) >= 60


def test_a_verdict_does_not_contradict_itself() -> None:
    """A file that is well starts, for all that is asked, and one that is ill doesn't."""
    for verdict, rule in RULES.items():
        goes = {rule[reader] for reader in ("start", "container", "runtime")} - {"-"}
        assert rule["doctor"] == "ill" or goes == {"yes"}, verdict


# ----------------------------------------------------------- the runtime's readers

# container.cpp by itself, without llama.cpp: can it read the directory, and what the runtime
# looks for in there? (test_hostile.py has it run under sanitizers.)
READER = r"""
#include "container.h"
#define STBI_ONLY_PNG
#define STBI_NO_STDIO
#define STB_IMAGE_IMPLEMENTATION
#include "stb_image.h"

extern "C" FILE * ggml_fopen_upstream(const char * name, const char * mode) {
    return fopen(name, mode);
}

int main(int argc, char ** argv) {
    container zip;
    if (argc != 2 || !read_container(argv[1], zip)) {
        return 1;
    }
    printf("%zu %zu\n", zip.entries.size(), zip.weights().size());
    return 0;
}
"""


@pytest.fixture(scope="session")
def container(tmp_path_factory: pytest.TempPathFactory) -> Path:
    clang = need("clang++", "clang")
    folder = tmp_path_factory.mktemp("container")
    (folder / "main.cpp").write_text(READER)
    *words, _ = sources()  # the last is the fuzzer's main
    command = [clang, "-O1", *map(str, words), str(folder / "main.cpp"), "-o", "reader"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    return folder / "reader"


@pytest.mark.native
@table("container")
def test_the_runtimes_reader_by_itself(container: Path, case: Case, reader: str) -> None:
    done = subprocess.run([container, FILE], capture_output=True, text=True, timeout=60)
    assert done.stderr == ""
    expected = RULES[case.verdict][reader]
    assert done.returncode == (0 if expected == "yes" else 1)
    if expected == "yes":
        with zipfile.ZipFile(case.path) as file:
            infos = [i for i in file.infolist() if i.compress_type in (0, 8)]
        infos = [info for info in infos if not info.flag_bits & 1]
        weights = [i for i in infos if i.filename.endswith(".gguf") and not i.compress_type]
        assert done.stdout.split() == [str(len(infos)), str(len(weights))]


@pytest.mark.native
@table("runtime")
def test_the_runtime(whole_runtime: Path, case: Case, reader: str) -> None:
    """It reads the directory and `.args` before it says its version."""
    command = [whole_runtime, "--llamafile", FILE, "--version"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    if RULES[case.verdict][reader] == "yes":
        assert (done.returncode, done.stderr) == (0, "")
    else:
        assert (done.returncode, done.stdout) == (1, "")
        assert re.fullmatch(r"error: .+\n", done.stderr)


@pytest.mark.parametrize("shifts", [False, True])
@pytest.mark.parametrize("name", ["as built", "a manifest of 1.2 MB", "Mozilla's"])
def test_upgrade_reads_the_directory_at_most_twice(
    case: Case, monkeypatch: pytest.MonkeyPatch, shifts: bool
) -> None:
    """So that no two readings can disagree. (`verify` has its own.)"""
    for module in [module for name, module in sys.modules.items() if "pyllamafile." in name]:
        if shifts and hasattr(module, "SMALL"):
            monkeypatch.setattr(module, "SMALL", 0)
    read, count = zipaligner._read, Counter[Path]()

    def counting(fd: int, path: Path) -> zipaligner.Archive:
        count[path.absolute()] += 1
        return read(fd, path)

    monkeypatch.setattr(zipaligner, "_read", counting)
    assert case.command("upgrade", FILE).code == 0
    assert 0 < count[case.path] <= 2
