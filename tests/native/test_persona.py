"""Who a file says it is, as people meet it: in the web GUI, at a terminal, over HTTP."""

from __future__ import annotations

import gzip
import json
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from fixtures import grey_png
from running import ARTIFACTS, browsing, serving
from test_chat import terminal

import pyllamafile
from pyllamafile import Persona

pytestmark = pytest.mark.native

ADA = Persona(
    name="Ada",
    greeting="Ask me about engines.",
    suggestions=("Name three colors.", "Say <b>&amp;?"),
    accent="#3b82f6",
    icon=grey_png(32),
    system="You are Ada.",
)


@pytest.fixture(scope="module")
def ada(smollm2: Path, runtime: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ada") / "ada.llamafile"
    return pyllamafile.build(smollm2, path, persona=ADA, targets=["linux-amd64"]).path


def completion(request: Any) -> list[str]:
    return [request.post_data] if request.url.endswith("/chat/completions") else []


@pytest.mark.browser
def test_seam_a_persona_in_the_web_gui(ada: Path) -> None:
    with (
        serving(ada, "--nobrowser", "--temp", "0", "--api-prefix", "/ada") as url,
        browsing(url) as page,
    ):
        page.get_by_role("heading", name=ADA.greeting).wait_for()
        page.wait_for_function("document.title === 'Ada'")
        icons = page.eval_on_selector_all("link[rel=icon]", "all => all.map(each => each.href)")
        assert len(icons) > 0
        assert all(icon.startswith("data:image/png;base64,iVBOR") for icon in icons)
        buttons = page.locator(".persona-suggestion")
        assert buttons.all_inner_texts() == list(ADA.suggestions)  # and no HTML
        colour = "getComputedStyle(document.documentElement).getPropertyValue('--primary')"
        assert page.evaluate(colour).strip() == "#3b82f6"
        page.screenshot(path=ARTIFACTS / "persona.png")
        asked: list[str] = []
        page.on("request", lambda request: asked.extend(completion(request)))
        buttons.first.click()
        page.get_by_text("Blue").first.wait_for(timeout=60_000)
        page.wait_for_function("document.title.endsWith(' - Ada')")
        page.screenshot(path=ARTIFACTS / "persona-chat.png")
        sent = json.loads(asked[-1])["messages"]
        assert [message["role"] for message in sent] == ["user"]  # so the server has it added
        page.goto(url)  # it greets the next one, too
        page.get_by_role("heading", name=ADA.greeting).wait_for()
        page.locator(".persona-suggestion").first.wait_for()


def test_at_a_terminal(ada: Path) -> None:
    with terminal(ada, "--chat", "--temp", "0", "-n", "4") as at:
        shown = at.see("> ")
        assert "Ada (" in shown
        assert "Ask me about engines.\r\n" in shown
        at.type("\x04")
        assert at.end() == 0


def read(url: str, **headers: str) -> bytes:
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers)) as answer:
        content: bytes = answer.read()
        return gzip.decompress(content) if answer.headers["Content-Encoding"] else content


@pytest.mark.parametrize(
    "content",
    [ADA.text, json.dumps({"greeting": "a" * 200_000}).encode(), b"{}", b"[]", b"", b"\xff"],
    ids=["ada", "long", "nothing", "list", "empty", "bytes"],
)
def test_over_http(
    smollm2: Path, runtime: Path, tmp_path: Path, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "f.llamafile"
    with monkeypatch.context() as patched:
        patched.setattr(Persona, "text", content)
        pyllamafile.build(smollm2, path, targets=["linux-amd64"])
    said = content if content.startswith(b"{") else b"{}"
    with serving(path, "--nobrowser", "--api-key", "k") as url:  # it is for all, as the pages are
        assert read(f"{url}persona.json") == said
        assert read(f"{url}persona.json", **{"Accept-Encoding": "gzip"}) == said
    with terminal(path, "--chat") as at:
        at.see("> ")


def test_a_file_without_one(server: str) -> None:
    assert read(f"{server}persona.json") == b"{}"
