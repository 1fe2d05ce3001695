"""Documents that a file has read: their text, what is refused, where it goes."""

from __future__ import annotations

import re
import shutil
import zipfile
from pathlib import Path

import pytest
from fixtures import pdf

import pyllamafile
from pyllamafile import PyllamafileError, documents


@pytest.fixture
def here(folder: Path, model: Path) -> Path:
    shutil.copy(model, folder / "m.gguf")
    return folder


def test_texts_become_one_entry(run, here):
    Path("a.md").write_bytes("\ufeff# Prices\r\n\r\nTurnip: 7\r\n".encode())
    Path("b.txt").write_bytes("Größe".encode("utf-16"))
    done = run("build", "--gguf", "m.gguf", "-o", "o", "--read", "a.md", "--read", "b.txt")
    assert re.search(r"\n  has read  .+ of text, about 13 tokens\n", done.out)
    with zipfile.ZipFile("o") as archive:
        text = archive.read(".read").decode()
    assert text == "File a.md:\n# Prices\n\nTurnip: 7\n\nFile b.txt:\nGröße\n"
    assert run("verify", "o").code == 0
    assert run("upgrade", "o").code == 0
    with zipfile.ZipFile("o") as archive:
        assert archive.read(".read").decode() == text
    two = pyllamafile.build("m.gguf", "two", read=["a.md", "b.txt"])
    assert two.path.read_bytes() == Path("o").read_bytes()


def test_a_page(tmp_path):
    page = tmp_path / "a.html"
    page.write_text(
        "<html><head><title>x</title><script>no()</script></head><body><h2>Prices &amp; more</h2>"
        "<p>One   turnip\n costs<br>seven.</p><ul><li>red</li><li>blue</li></ul>"
        "<table><tr><td>a</td><td>1</td></tr><tr><td>b</td><td>2</td></tr></table></body></html>"
    )
    assert documents.text_of(page) == (
        "## Prices & more\n\nOne turnip costs\nseven.\n\n- red\n- blue\n\na | 1\nb | 2"
    )


def test_a_document_of_word(tmp_path):
    docx = pytest.importorskip("docx", reason="pip install 'pyllamafile[documents]'")
    document = docx.Document()
    document.add_heading("Prices", 1)
    document.add_paragraph("One turnip costs seven.")
    table = document.add_table(1, 2)
    table.rows[0].cells[0].text, table.rows[0].cells[1].text = "a", "1"
    document.save(tmp_path / "a.docx")
    assert documents.text_of(tmp_path / "a.docx") == (
        "# Prices\n\nOne turnip costs seven.\n\na | 1"
    )


def test_a_pdf(tmp_path):
    pytest.importorskip("pypdf", reason="pip install 'pyllamafile[documents]'")
    (tmp_path / "a.pdf").write_bytes(pdf("One turnip costs seven."))
    assert documents.text_of(tmp_path / "a.pdf") == "One turnip costs seven."
    (tmp_path / "b.pdf").write_bytes(pdf(""))
    with pytest.raises(PyllamafileError, match=r"b\.pdf: has no text in it: its pages may be pic"):
        documents.text_of(tmp_path / "b.pdf")
    (tmp_path / "c.pdf").write_bytes(b"%PDF-1.4\nrubbish")
    with pytest.raises(PyllamafileError, match=r"c\.pdf: can't be read as PDF"):
        documents.text_of(tmp_path / "c.pdf")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"", "a.txt: has no text in it"),
        ("a.md", b" \n", "a.md: has no text in it"),
        ("a.txt", b"\xff\xfe\xff", "a.txt: is no text in UTF-8 or UTF-16"),
        ("a.txt", b"a\0b", "a.txt: is no text"),
        ("a.html", b"<script>x</script>", "a.html: has no text in it"),
    ],
)
def test_what_has_no_text(fails, here, name, content, message):
    Path(name).write_bytes(content)
    fails(message, "build", "--gguf", "m.gguf", "-o", "o", "--read", name)
    assert not Path("o").exists()


@pytest.mark.parametrize("text", [b"", b" ", b"\xff", b"a\0b", b"a" * ((16 << 20) + 1)])
def test_an_entry_of_this_name_is_a_text(fails, run, here, text):
    Path("x").write_bytes(text)
    reason = "has 16,777,217 bytes of text, and may have 16,777,216"
    message = f"x: {reason if len(text) > 9 else 'is no text in UTF-8'}"
    fails(message, "build", "--gguf", "m.gguf", "-o", "o", "--add", "x=.read")
    run("build", "--gguf", "m.gguf", "-o", "o")
    fails(message, "add", "o", "x=.read")


@pytest.mark.parametrize(
    ("text", "found", "shown"),
    [
        (b"", "it is empty", "is no text in UTF-8"),
        (b" \n", "it is empty", "is no text in UTF-8"),
        (b"\xff", "it is no text in UTF-8, and no", "is no text in UTF-8"),
        (b"a\0b", "it has a zero byte, and no", "is no text in UTF-8"),
        (
            b"a" * ((16 << 20) + 1),
            "it has 16777217 bytes, and a runtime reads no more than 16777216",
            ".read has 16,777,217 bytes, and 16,777,216 is the most",
        ),
    ],
    ids=["nothing", "spaces", "no UTF-8", "zero", "too long"],
)
@pytest.mark.parametrize("level", [0, 9], ids=["stored", "deflated"])
def test_one_that_another_tool_added_is_named(run, here, text, found, shown, level):
    """By `zipalign`, which takes any zip and any file."""
    run("build", "--gguf", "m.gguf", "-o", "o")
    Path(".read").write_bytes(text)
    assert run("zipalign", f"-{level}", "o", ".read").code == 0
    done = run("verify", "o")
    assert done.code == 1
    (line,) = [line for line in (done.out + done.err).splitlines() if ".read" in line]
    assert found in line
    assert f"\n  read          {shown}" in run("inspect", "o").out
    report = pyllamafile.inspect("o")
    assert report.read is None
    assert shown in report.read_problem
    Path(".read").write_text("Read.\n")
    assert run("zipalign", f"-{level}", "o", ".read").code == 0
    assert run("verify", "o").code == 0
    assert "\n  read          6 bytes of text\n" in run("inspect", "o").out


def test_a_document_that_is_not_there(fails, here):
    fails("none.md: No such file or directory", "build", "--gguf", "m.gguf", "--read", "none.md")


def test_more_than_a_runtime_reads(fails, here):
    Path("a.txt").write_text("a" * (16 << 20))
    message = "the documents have 16,777,229 bytes of text, and may have 16,777,216"
    fails(message, "build", "--gguf", "m.gguf", "-o", "o", "--read", "a.txt")
