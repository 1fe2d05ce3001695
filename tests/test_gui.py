"""The web GUI as a person meets it: in a browser, without a network."""

from __future__ import annotations

import pytest
from conftest import ARTIFACTS, need

pytestmark = [pytest.mark.native, pytest.mark.browser]


def test_chat(server: str) -> None:
    playwright = pytest.importorskip("playwright.sync_api")
    chromium = need("chromium")
    ARTIFACTS.mkdir(exist_ok=True)
    with playwright.sync_playwright() as p:
        flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        browser = p.chromium.launch(executable_path=chromium, args=flags)
        page = browser.new_page(viewport={"width": 1280, "height": 800})
        elsewhere: list[str] = []
        page.on("request", lambda r: elsewhere.append(r.url) if foreign(r.url, server) else None)
        page.goto(server)
        box = page.get_by_role("textbox").first
        box.wait_for()
        page.screenshot(path=ARTIFACTS / "gui-start.png")
        box.fill("Name three colors.")
        box.press("Enter")
        page.get_by_text("Blue").first.wait_for(timeout=60_000)
        page.wait_for_timeout(2_000)
        page.screenshot(path=ARTIFACTS / "gui-chat.png")
        browser.close()
    assert elsewhere == []


def foreign(url: str, server: str) -> bool:
    return not url.startswith((server, "data:", "blob:"))
