"""A model that is handed over: made of a manual, and used by somebody else without a network."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from running import ARTIFACTS, browsing, free_port, need, serving

import pyllamafile
from pyllamafile.persona import Persona

pytestmark = [pytest.mark.native, pytest.mark.browser]

ROOT = Path(__file__).parents[2]
NOBODY = 65534
QUESTION = "What does --chats FOLDER do?"
GREETING = "Ask me about llamafiles."
# A model as small as this one names a source only if it can't do otherwise; it chooses which of
# those that there are. (Left to itself it makes up some, as soon as a word of the manual changes.)
CITES = """root ::= [A-Za-z0-9 ,'-]{10,100} " [" (%s) ", " [A-Za-z' ]{3,40} "]" """


@pytest.fixture
def elsewhere() -> Iterator[Path]:
    """A folder of somebody else's."""
    folder = Path(tempfile.mkdtemp(prefix="expert-", dir="/var/tmp"))
    try:
        folder.chmod(0o755)
        os.chown(folder, NOBODY, NOBODY)
        yield folder
    finally:
        shutil.rmtree(folder)


def test_an_expert_is_handed_over(
    smollm2: Path, minilm: Path, runtime: Path, elsewhere: Path, tmp_path: Path
) -> None:
    pytest.importorskip("playwright.sync_api")
    for program, package in (("unshare", "util-linux"), ("ip", "iproute2"), ("chromium", None)):
        need(program, package)
    alone = [need("unshare"), "--net", "--"]
    if os.geteuid() != 0 or subprocess.run([*alone, "true"]).returncode != 0:
        pytest.skip("a network of one's own takes root")
    manual = tmp_path / "manual"
    manual.mkdir()
    for page in (ROOT / "docs").glob("*.md"):
        shutil.copy(page, manual)
    names = " | ".join(f'"{page.name}"' for page in sorted(manual.iterdir()))
    built = pyllamafile.build(
        smollm2,
        tmp_path / "expert.llamafile",
        read=ROOT / "README.md",
        documents=manual,
        embedder=minilm,
        persona=Persona(name="Expert", greeting=GREETING, suggestions=(QUESTION,)),
        args=["--grammar", CITES % names, "--temp", "0"],
        targets=["linux-amd64"],
    )
    assert built.state
    shutil.rmtree(manual)
    file = Path(shutil.move(built.path, elsewhere))
    os.chown(file, NOBODY, NOBODY)
    child = [*alone, sys.executable, __file__, str(file)]
    path = os.pathsep.join(sys.path)
    done = subprocess.run(child, env={**os.environ, "PYTHONPATH": path}, timeout=600)
    assert done.returncode == 0


def use(file: Path) -> None:
    """In a network of our own, which has the loopback interface and nothing else."""
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    interfaces = Path("/proc/net/dev").read_text().splitlines()[2:]
    assert [line.split(":")[0].strip() for line in interfaces] == ["lo"]
    with opened(file) as page:
        page.get_by_text(GREETING).first.wait_for()
        assert "Expert" in page.title()
        page.screenshot(path=ARTIFACTS / "handover-greeting.png")
        page.get_by_role("button", name=QUESTION).click()
        box = page.get_by_role("textbox").first
        if QUESTION in (box.input_value() if box.count() else ""):
            box.press("Enter")
        link = page.locator("a.documents-source").first
        link.wait_for(timeout=120_000)
        label = link.inner_text()
        page.screenshot(path=ARTIFACTS / "handover-answer.png")
        link.click()
        passage = page.get_by_role("dialog").last
        passage.wait_for()
        page.screenshot(path=ARTIFACTS / "handover-source.png")
        assert label.strip("[]").split(",")[0] in passage.inner_text()
        conversation = kept(file)
    with opened(file) as page:  # on another port, in a browser that knows nothing
        page.goto(f"{page.url.split('#')[0]}#/chat/{conversation}")
        page.get_by_role("link", name=label).first.wait_for()
        page.get_by_text(QUESTION).first.wait_for()
        page.screenshot(path=ARTIFACTS / "handover-again.png")


@contextmanager
def opened(file: Path) -> Iterator[Any]:
    """The GUI of the file, which somebody else has started."""
    somebody = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
    env = {"PATH": os.defpath, "HOME": str(file.parent)}
    command = [*somebody, file, "--nobrowser", "--port", str(free_port())]
    with serving(*command, env=env) as url, browsing(url) as page:
        yield page


def kept(file: Path) -> str:
    """Waits until the conversation is in the folder of the file's own; gives its number."""
    end = time.monotonic() + 60
    while True:
        for path in file.parent.glob(".local/share/pyllamafile/*/*.json"):
            chat = json.loads(path.read_text())
            if any("timings" in each and each["content"] for each in chat["messages"]):
                number: str = chat["conv"]["id"]
                return number
        assert time.monotonic() < end
        time.sleep(0.2)


if __name__ == "__main__":
    use(Path(sys.argv[1]))
