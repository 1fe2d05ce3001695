"""What stands in front of a conversation, however it comes: a system prompt, and what was read."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
from running import post, run, serving

import pyllamafile
from pyllamafile.llamafile import READ

pytestmark = pytest.mark.native

SECRET = "The secret password of the library is kumquat.\n"


@pytest.fixture(scope="module")
def librarian(smollm2: Path, runtime: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("librarian")
    (folder / "secret.md").write_text(SECRET)
    return pyllamafile.build(
        smollm2, folder / "m.llamafile", read=folder / "secret.md", targets=["linux-amd64"]
    ).path


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


def test_seam_a_system_prompt_of_the_server(
    smollm2: Path, librarian: Path, runtime: Path, tmp_path: Path
) -> None:
    """For conversations that come without one; `.args` have it of a persona or of Ollama's."""
    path = tmp_path / "f.llamafile"
    args = ["-sys", "Be brief."]
    pyllamafile.build(smollm2, path, args=args, targets=["linux-amd64"])
    with serving(path, "--server", "--nobrowser") as url:
        assert "system\nBe brief.<" in prompt(url, ("user", "Hi."))
        own = prompt(url, ("system", "Be kind."), ("user", "Hi."))
        assert "system\nBe kind.<" in own
        assert "brief" not in own
        asked = {"model": "x", "stream": False, "messages": [{"role": "user", "content": "Hi."}]}
        with_it = post(url, "api/chat", **asked, options={"num_predict": 1})["prompt_eval_count"]
        said = [{"role": "system", "content": ""}, *asked["messages"]]
        empty = post(url, "api/chat", **{**asked, "messages": said}, options={"num_predict": 1})
        assert with_it > empty["prompt_eval_count"]
    (tmp_path / "prompt").write_bytes("You sail.\r\n".encode("utf-16"))
    with serving(path, "--nobrowser", "--server", "-sysf", tmp_path / "prompt") as url:
        assert "system\nYou sail.<" in prompt(url, ("user", "Hi."))
    with serving(librarian, "--nobrowser", "--server", "-sys", "Be brief.") as url:
        both = prompt(url, ("user", "Hi."))
        assert "system\nBe brief.\n\nFile secret.md:\nThe secret" in both


def test_the_servers_of_several_models_have_both(
    smollm2: Path, runtime: Path, tmp_path: Path
) -> None:
    (tmp_path / "secret.md").write_text(SECRET)
    path = tmp_path / "f.llamafile"
    pyllamafile.build(
        smollm2,
        path,
        add=[(smollm2, "other.gguf")],
        read=tmp_path / "secret.md",
        args=["-sys", "Be brief."],
        targets=["linux-amd64"],
    )
    with serving(path, "--nobrowser") as url:
        said = [{"role": "user", "content": "Hi."}]
        text = post(url, "apply-template", model="other", messages=said)["prompt"]
        assert "system\nBe brief.\n\nFile secret.md:\nThe secret" in text


@pytest.mark.parametrize("content", [b"\xff\xfe", b"a\0b", b"ab\xc3"])
def test_a_text_that_is_none_is_said_at_the_start(
    smollm2: Path, runtime: Path, tmp_path: Path, content: bytes
) -> None:
    path = tmp_path / "f.llamafile"
    pyllamafile.build(smollm2, path, targets=["linux-amd64"])
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(READ, content)
    for words in (["--server", "--nobrowser"], ["--ask", "Hi."], ["--chat"]):
        done = run(path, *words)
        assert done.returncode == 1
        said = b"error: .read of this file is no text in UTF-8 (--no-read leaves it out)\n"
        assert done.stderr == said
    assert run(path, "-p", "Hi", "-n", "1").returncode == 0
    assert run(path, "--ask", "Hi.", "-n", "1", "--no-read").returncode == 0
