"""What a file has read stands behind the system prompt, whichever way a conversation comes."""

from __future__ import annotations

import json
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from running import run, serving

import pyllamafile

pytestmark = pytest.mark.native

PRICES = "The price of a turnip is 712 crowns.\n"


@pytest.fixture(scope="module")
def merchant(smollm2: Path, runtime: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("merchant")
    (folder / "prices.md").write_text(PRICES)
    return pyllamafile.build(
        smollm2, folder / "m.llamafile", read=folder / "prices.md", targets=["linux-amd64"]
    ).path


def post(url: str, path: str, **body: Any) -> Any:
    request = urllib.request.Request(
        url + path, json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request) as answer:
        return json.load(answer)


def prompt(url: str, *messages: tuple[str, str]) -> str:
    said = [{"role": role, "content": content} for role, content in messages]
    text: str = post(url, "apply-template", messages=said)["prompt"]
    return text


def test_seam_what_the_file_has_read(merchant: Path) -> None:
    with serving(merchant, "--nobrowser") as url:
        alone = prompt(url, ("user", "Hi."))
        assert "system\nFile prices.md:\nThe price of a turnip is 712 crowns." in alone
        behind = prompt(url, ("system", "Be brief."), ("user", "Hi."))
        assert "system\nBe brief.\n\nFile prices.md:\nThe price" in behind
        assert behind.count("turnip") == 1
    with serving(merchant, "--nobrowser", "--no-read") as url:
        assert "turnip" not in prompt(url, ("user", "Hi."))


def test_it_knows_and_without_it_does_not(merchant: Path) -> None:
    question = ("--ask", "What is the price of a turnip?", "--temp", "0", "-n", "24")
    assert b"712" in run(merchant, *question).stdout
    assert b"712" not in run(merchant, *question, "--no-read").stdout


def test_it_stands_in_no_completion(merchant: Path) -> None:
    plain = ("-p", "The price of", "--temp", "0", "-n", "8")
    done = run(merchant, *plain)
    assert done.stdout == run(merchant, *plain, "--no-read").stdout
    assert b"712" not in done.stdout
