"""A file proves itself: --prove, natively and under every emulator that is here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from running import EXECUTED, EXECUTED_AT_HAND, at_hand, need, run

import pyllamafile
from pyllamafile.models import tiny
from pyllamafile.targets import TARGETS

pytestmark = pytest.mark.native

SCRIPTS = Path(__file__).parent.parent.parent / "scripts"
SERVER = ("ready", "tokens", "chat", "stream", "404", "interrupt")


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """Some of a file's own, which --prove doesn't look at."""
    path = tmp_path / "own.gguf"
    path.write_bytes(tiny.model())
    return path


@pytest.fixture
def file(weights: Path, runtime: Path, tmp_path: Path) -> Path:
    args = ["--temp", "2", "-n", "3", "-c", "64"]
    return pyllamafile.build(weights, tmp_path / "f", args=args, targets=["linux-amd64"]).path


def proven(file: Path, folder: Path, *more: str) -> subprocess.CompletedProcess[bytes]:
    return run(file, "--prove", *more, env={**os.environ, "PYLLAMAFILE_CACHE": str(folder)})


def points(report: dict[str, Any]) -> dict[str, bool]:
    return {check["name"]: check["ok"] for check in report["checks"]}


def test_what_is_recorded_is_what_the_lowest_level_says(file: Path, runtime: Path) -> None:
    level = TARGETS["linux-amd64"].levels[0].name
    options = ["-m", f"{file}@proof.model", "--temp", "0", "-n", "24", "--no-display-prompt"]
    env = {**os.environ, "PYLLAMAFILE_CPU": level}
    done = run(runtime, *options, "-p", tiny.PROMPT, env=env)
    assert (done.stdout.decode(), done.stderr) == (tiny.ANSWER + "\n", b"")


def test_a_file_proves_itself(file: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    done = proven(file, cache, "--json")
    report = json.loads(done.stdout)
    assert (done.returncode, done.stderr, report["ok"]) == (0, b"", True)
    lowest, *_ = levels = report["levels"]
    assert (lowest, levels[-1]) == (TARGETS["linux-amd64"].levels[0].name, report["level"])
    assert points(report) == dict.fromkeys(
        ["cold_start", "warm_start", *(f"tokens_{level}" for level in levels)]
        + [f"products_{level}" for level in levels]
        + ["pipe", "terminal", "exit_codes", "mapping", "prompt_speed", "sandbox"]
        + [f"server_{point}" for point in SERVER],
        True,
    )
    assert [each["name"] for each in report["not_tried"]] == ["gpu"]
    assert all(figure > 0 for figure in report["figures"].values())
    program, *others = [path for path in cache.rglob("*") if path.is_file()]
    assert (program.parent, others) == (cache / "run", [])
    path = tmp_path / "report.json"
    path.write_bytes(done.stdout)
    table = run(sys.executable, SCRIPTS / "targets-table", path).stdout.decode()
    assert f"executed by a report of {report['date']}" in table
    shown = proven(file, cache).stdout.decode().splitlines()
    said = [line.split()[1] for line in shown if line.startswith("holds ")]
    assert sorted(said) == sorted(points(report))


def test_another_answer_is_a_failure(
    weights: Path, runtime: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny.model.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(tiny, "ANSWER", "?" + tiny.ANSWER[1:])
        file = pyllamafile.build(weights, tmp_path / "f", targets=["linux-amd64"]).path
    tiny.model.cache_clear()
    done = proven(file, tmp_path / "cache", "--json")
    report = json.loads(done.stdout)
    assert (done.returncode, report["ok"]) == (1, False)
    failed = {name for name, ok in points(report).items() if not ok}
    tokens = {f"tokens_{level}" for level in report["levels"]}
    assert failed == {*tokens, "pipe", "mapping", "server_tokens"}


def test_what_cannot_prove_itself_says_so(
    file: Path, weights: Path, runtime: Path, tmp_path: Path
) -> None:
    options = {"prove": False, "targets": ["linux-amd64"]}
    bare = pyllamafile.build(weights, tmp_path / "bare", **options).path
    swapped = tmp_path / "swapped"
    raw = bytearray(file.read_bytes())
    at = next(e.offset for e in pyllamafile.inspect(file).entries if e.name == "proof.model")
    raw[at : at + 4] = b"none"
    swapped.write_bytes(raw)
    swapped.chmod(0o755)
    for command, error in (
        ((file, "--prove", "-v"), "--prove takes no other option than --json: -v"),
        ((runtime, "--prove"), "--prove is for a llamafile, and this is none"),
        ((bare, "--prove"), "has no proof.model"),
        ((swapped, "--prove"), "proof.model: not a GGUF"),
    ):
        done = run(*command)
        assert (done.returncode, done.stdout) == (1, b"")
        *log, line = done.stderr.decode().splitlines()
        assert (log, line.startswith("error: "), error in line) == ([], True, True)


@pytest.mark.parametrize("target", [*EXECUTED, *EXECUTED_AT_HAND])
def test_every_emulator_that_is_here(
    target: str, weights: Path, wine: dict[str, str], request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    need("qemu-aarch64-static", "qemu-user-static")
    if at_hand(target) == "windows-arm64":
        request.getfixturevalue("windows_arm64")  # which fetches it
    file = pyllamafile.build(weights, tmp_path / "f", targets=[target]).path
    reports = tmp_path / "reports"
    command = (sys.executable, SCRIPTS / "prove", "--reports", reports, file)
    done = run(*command, env=wine, timeout=900)
    assert done.returncode == 0, done.stdout.decode() + done.stderr.decode()
    found = [json.loads(path.read_text()) for path in reports.iterdir()]
    assert {report["target"] for report in found} == {target}
    assert all(report["seconds"] < 240 for report in found)  # nobody waits for what doesn't end
    levels = {report["level"] for report in found}
    emulated = [level.name for level in TARGETS[target].levels]
    if target == "linux-amd64":
        emulated = emulated[:2]  # qemu has no AVX-512
    if not target.startswith("windows"):  # under Wine it is this machine's own
        assert levels >= set(emulated)


def test_what_is_no_llamafile_of_ours_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "text"
    path.write_text("x")
    done = run(sys.executable, SCRIPTS / "prove", path)
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr.decode() == f"error: {path}: not a zip archive, or cut off\n"
