"""The web GUI as a person meets it: in a browser, without a network."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from fixtures import pdf
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


def test_a_pdf_is_read(server: str, tmp_path: Path) -> None:
    """Its text goes to the model; the GUI takes it out of the file."""
    with browsing(server) as page:
        asked: list[str] = []

        def note(request: Any) -> None:
            if request.url.endswith("/v1/chat/completions"):
                asked.append(request.post_data or "")

        page.on("request", note)
        path = tmp_path / "note.pdf"
        path.write_bytes(pdf("The password is Rumpelstilzchen."))
        page.locator("input[type=file]").set_input_files(path)
        page.get_by_text("note.pdf").first.wait_for()
        box = page.get_by_role("textbox").first
        box.fill("What is the password?")
        box.press("Enter")
        page.get_by_text(re.compile(r"\d tokens$")).last.wait_for(timeout=60_000)
        [question] = asked
        assert "Rumpelstilzchen" in json.dumps(json.loads(question)["messages"][-1])
        assert page.get_by_text("error").count() == 0
