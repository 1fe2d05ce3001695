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

SECRET = "The secret password of the library is kumquat.\n"


@pytest.fixture(scope="module")
def librarian(smollm2: Path, runtime: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("librarian")
    (folder / "secret.md").write_text(SECRET)
    return pyllamafile.build(
        smollm2, folder / "m.llamafile", read=folder / "secret.md", targets=["linux-amd64"]
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


def test_seam_what_the_file_has_read(librarian: Path) -> None:
    with serving(librarian, "--nobrowser") as url:
        alone = prompt(url, ("user", "Hi."))
        assert "system\nFile secret.md:\nThe secret password of the library is kumquat." in alone
        behind = prompt(url, ("system", "Be brief."), ("user", "Hi."))
        assert "system\nBe brief.\n\nFile secret.md:\nThe secret" in behind
        assert behind.count("kumquat") == 1
    with serving(librarian, "--nobrowser", "--no-read") as url:
        assert "kumquat" not in prompt(url, ("user", "Hi."))


def test_it_knows_and_without_it_does_not(librarian: Path) -> None:
    question = ("--ask", "What is the secret password of the library?", "--temp", "0", "-n", "24")
    assert b"kumquat" in run(librarian, *question).stdout
    assert b"kumquat" not in run(librarian, *question, "--no-read").stdout


def test_it_stands_in_no_completion(librarian: Path) -> None:
    plain = ("-p", "The secret", "--temp", "0", "-n", "8")
    done = run(librarian, *plain)
    assert done.stdout == run(librarian, *plain, "--no-read").stdout
    assert b"kumquat" not in done.stdout
