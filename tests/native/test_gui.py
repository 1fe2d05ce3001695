"""The web GUI as a person meets it: in a browser, without a network."""

from __future__ import annotations

import pytest
from running import ARTIFACTS, browsing

pytestmark = [pytest.mark.native, pytest.mark.browser]


def test_chat(server: str) -> None:
    with browsing(server) as page:
        page.screenshot(path=ARTIFACTS / "gui-start.png")
        box = page.get_by_role("textbox").first
        box.fill("Name three colors.")
        box.press("Enter")
        page.get_by_text("Blue").first.wait_for(timeout=60_000)
        page.wait_for_timeout(2_000)
        page.screenshot(path=ARTIFACTS / "gui-chat.png")
