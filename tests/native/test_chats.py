"""Conversations of the web GUI: a folder has them, whatever happens to servers and browsers."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import stat
import subprocess
import threading
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from running import browsing, free_port, need, ready, run, serving
from test_sandbox import is_confined
from test_web_server import Answer, ask, message

import pyllamafile
from pyllamafile import Persona

pytestmark = pytest.mark.native

ID = "0a1b2c3d-0000-4000-8000-00000000beef"


def conversation(text: str = "Hello", chat: str = ID) -> dict[str, Any]:
    """One as upstream's GUI has it: a root, a question and its answer."""
    rows = [
        ("root", None, "system", "", "root"),
        ("question", "root", "user", text, "text"),
        ("answer", "question", "assistant", "Hi!", "text"),
    ]
    messages = [
        {"id": f"{chat}-{name}", "convId": chat, "parent": parent and f"{chat}-{parent}",
         "role": role, "content": said, "type": kind, "timestamp": number, "children": []}
        for number, (name, parent, role, said, kind) in enumerate(rows)
    ]  # fmt: skip
    conv = {"id": chat, "name": text, "lastModified": 7, "currNode": f"{chat}-answer"}
    return {"conv": conv, "messages": messages}


def keep(url: str, chat: dict[str, Any], version: str | None = None, **headers: str) -> Answer:
    """Writes a conversation: a new one, or another version of one."""
    expected = {"If_Match": f'"{version}"'} if version else {"If_None_Match": "*"}
    return ask(f"{url}chats/{chat['conv']['id']}", chat, **{**expected, **headers})


def listed(url: str) -> dict[str, str]:
    answer = ask(f"{url}chats")
    assert answer.status == 200, answer.text
    return {row["id"]: row["version"] for row in json.loads(answer.text)["chats"]}


@contextmanager
def keeping(path: Path, *words: str | Path, port: int | None = None) -> Iterator[str]:
    with serving(path, "--nobrowser", "--port", str(port or free_port()), *words) as url:
        yield url


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "some where" / "chats"


# Over HTTP


def test_seam_conversations_are_kept(llamafile: Path, folder: Path) -> None:
    with keeping(llamafile, "--chats", folder, "--api-prefix", "/x") as url:
        assert json.loads(ask(f"{url}chats").text) | {"folder": ""} == {
            "folder": "", "exists": False, "chats": []
        }  # fmt: skip
        assert not folder.exists()  # nobody has said anything yet
        first = keep(url, conversation())
        assert first.status == 200
        version = json.loads(first.text)["version"]
        assert first.headers["ETag"] == f'"{version}"'
        assert listed(url) == {ID: version}
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        (file,) = folder.iterdir()
        assert file.name == f"{ID}.json"
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert json.loads(file.read_text()) == {"version": version, **conversation()}
        read = ask(f"{url}chats/{ID}")
        assert json.loads(read.text) == json.loads(file.read_text())
        assert read.headers["ETag"] == f'"{version}"'
    with keeping(llamafile, "--chats", folder) as url:
        assert listed(url) == {ID: version}
        assert ask(f"{url}chats/{ID}", method="DELETE").status == 200
        assert listed(url) == {}
        assert ask(f"{url}chats/{ID}").status == 404
        assert ask(f"{url}chats/{ID}", method="DELETE").status == 404
    assert list(folder.iterdir()) == []


def test_who_comes_second_hears_of_it(llamafile: Path, folder: Path) -> None:
    with keeping(llamafile, "--chats", folder) as url:
        version = json.loads(keep(url, conversation()).text)["version"]
        assert keep(url, conversation("Again")).status == 412  # it is there already
        changed = keep(url, conversation("Changed"), version)
        assert changed.status == 200
        late = keep(url, conversation("Late"), version)
        assert (late.status, late.headers["ETag"]) == (412, changed.headers["ETag"])
        assert keep(url, conversation(chat="another-one"), version).status == 412
        assert ask(f"{url}chats/{ID}", conversation()).status == 428
        assert json.loads(ask(f"{url}chats/{ID}").text)["conv"]["name"] == "Changed"


def test_two_servers_of_one_folder(llamafile: Path, folder: Path) -> None:
    """Of all who write the same version of a conversation at once, one does."""
    with (
        keeping(llamafile, "--chats", folder) as one,
        keeping(llamafile, "--chats", folder) as two,
    ):
        version = json.loads(keep(one, conversation()).text)["version"]
        for turn in range(10):
            answers: list[Answer] = []

            def write(url: str, name: str, to: list[Answer] = answers, of: str = version) -> None:
                to.append(keep(url, conversation(name), of))

            threads = [
                threading.Thread(target=write, args=(url, f"{turn} {number}"))
                for number, url in enumerate((one, two) * 3)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert sorted(answer.status for answer in answers) == [200, *[412] * 5]
            version = listed(one)[ID]
            assert listed(two) == {ID: version}


@pytest.mark.parametrize(
    "name", ["..", "../../x", "%2e%2e%2fetc", "..%2f..%2fx", "a/b", "UPPER-case", "four", "x" * 65,
             ".hidden", "-dash-first", "con.json", "%00abcdef", "a%20b%20c", "%C3%BCnicode"],
)  # fmt: skip
def test_what_is_no_id(chats: tuple[str, Path], name: str) -> None:
    url, folder = chats
    for method, data in (("GET", None), ("POST", conversation()), ("DELETE", None)):
        answer = ask(f"{url}chats/{name}", data, method, If_None_Match="*")
        assert answer.status in (400, 404), answer
    assert not folder.exists()


@pytest.fixture(scope="module")
def chats(llamafile: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """A server, and its folder, in which nothing ever comes to be."""
    folder = tmp_path_factory.mktemp("chats") / "none"
    with keeping(llamafile, "--chats", folder) as url:
        yield url, folder


@pytest.mark.parametrize(
    ("data", "wrong"),
    [
        ([], "a conversation is"),
        ({"conv": {"id": ID}}, "a conversation is"),
        ({**conversation(), "version": "0"}, "a conversation is"),
        (conversation(chat="another-one"), "the conversation has another ID"),
        ({**conversation(), "messages": [{"id": "x"}]}, "a message of the conversation"),
        (
            {**conversation(), "messages": conversation(chat="another-one")["messages"]},
            "a message of the conversation",
        ),
    ],
)
def test_what_is_no_conversation(chats: tuple[str, Path], data: Any, wrong: str) -> None:
    url, folder = chats
    answer = ask(f"{url}chats/{ID}", data, If_None_Match="*")
    assert (answer.status, wrong in message(answer)) == (400, True), answer
    assert not folder.exists()


def test_what_is_too_much(chats: tuple[str, Path]) -> None:
    url, folder = chats
    large = keep(url, conversation("x" * (33 << 20)))  # which has it twice
    assert large.status == 413
    assert message(large) == "the conversation has more than 64 MiB"
    deep: Any = {}
    for _ in range(500):
        deep = [deep]
    assert message(keep(url, {**conversation(), "messages": deep})).endswith("nested too deeply")
    for text in ("", "{", '{"conv":'):
        words = ["curl", "-s", "-H", "If-None-Match: *", "-d", text, f"{url}chats/{ID}"]
        assert json.loads(run(need("curl"), *words[1:]).stdout)["error"]["code"] == 400
    assert not folder.exists()


def test_a_page_of_another_file_that_is_still_open(chats: tuple[str, Path]) -> None:
    url, _ = chats
    own = json.loads(ask(f"{url}chats").text)["folder"]
    assert ask(f"{url}chats/{ID}?folder={own}").status == 404
    assert ask(f"{url}chats/{ID}?folder=0123456789abcdef").status == 409


# Who may


def test_keys_and_pages(llamafile: Path, folder: Path) -> None:
    page = "http://a.example"
    with keeping(
        llamafile, "--chats", folder, "--api-key", "sesame", "--allow-origin", page
    ) as url:
        key = {"Authorization": "Bearer sesame"}
        assert ask(f"{url}chats").status == 401
        assert keep(url, conversation()).status == 401
        assert not folder.exists()
        assert keep(url, conversation(), **key).status == 200
        for path in ("chats", f"chats/{ID}"):
            assert ask(url + path, **key).status == 200
            assert ask(url + path, **key, Origin="http://evil.example").status == 403
            assert ask(url + path, **key, Origin=page).status == 403  # which may all else
        assert ask(f"{url}v1/models", **key, Origin=page).status == 200


def as_nobody(url: str) -> int:
    """What another user of the machine is answered."""
    words = [need("curl"), "-s", "-o", "/dev/null", "-w", "%{http_code}", url]
    return int(subprocess.run(words, user=65534, capture_output=True, check=True, cwd="/").stdout)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root starts programs of other users")
@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_other_users_of_the_machine(llamafile: Path, folder: Path, host: str) -> None:
    with keeping(llamafile, "--host", host) as url:
        assert ask(f"{url}chats").status == 200
        assert as_nobody(f"{url}chats") == 403
        assert as_nobody(f"{url}chats/{ID}") == 403
        assert as_nobody(f"{url}v1/models") == 200
    with keeping(llamafile, "--host", host, "--chats", folder) as url:
        assert as_nobody(f"{url}chats") == 200  # whoever starts it has said so


def test_where_other_machines_may_listen(llamafile: Path, folder: Path) -> None:
    with keeping(llamafile, "--host", "0.0.0.0", "--no-api-key") as url:
        assert ask(f"{url}chats").status == 404
    with keeping(llamafile, "--host", "0.0.0.0", "--no-api-key", "--chats", folder) as url:
        assert ask(f"{url}chats").status == 200


# Where


def stored(home: Path) -> list[str]:
    return sorted(path.relative_to(home).as_posix() for path in home.rglob("*.json"))


@pytest.mark.parametrize(
    ("name", "place"),
    [(None, "smollm2"), ("Ada", "Ada"), ("../a/b:c", "_.._a_b_c"), ("con", "_con"), ("Zoë", "Zoë")],
)  # fmt: skip
def test_a_folder_of_the_models_own(
    smollm2: Path, runtime: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    name: str | None, place: str,
) -> None:  # fmt: skip
    path = tmp_path / "smollm2.llamafile"
    persona = Persona(name=name) if name else None
    pyllamafile.build(smollm2, path, persona=persona, targets=["linux-amd64"])
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.delenv("XDG_DATA_HOME")
    with keeping(path) as url:
        assert keep(url, conversation()).status == 200
    assert stored(home) == [f".local/share/pyllamafile/{place}/{ID}.json"]
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    with keeping(path) as url:
        assert listed(url) == {}
        assert keep(url, conversation()).status == 200
    assert stored(tmp_path / "data") == [f"pyllamafile/{place}/{ID}.json"]
    with keeping(path, "--no-chats") as url:
        assert ask(f"{url}chats").status == 404


def first_lines(path: Path, *words: str | Path, env: dict[str, str]) -> tuple[str, int]:
    """What a server says on standard error until it is ready, and what /chats then answers."""
    process = subprocess.Popen(
        [path, "--nobrowser", "--port", "0", *words], env=env, text=False,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        status = ask(f"{ready(process)}chats").status
    finally:
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
    return errors.decode(), status


def test_where_nothing_can_be_kept_the_server_goes_on(llamafile: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    env = {**os.environ, "XDG_DATA_HOME": str(tmp_path / "file")}
    said, status = first_lines(llamafile, env=env)
    assert said == (
        f"note: the browser keeps the conversations: {tmp_path}/file/pyllamafile/smollm2: "
        "Not a directory\n"
    )
    assert status == 404
    del env["XDG_DATA_HOME"], env["HOME"]
    env["PYLLAMAFILE_CACHE"] = str(tmp_path)
    said, status = first_lines(llamafile, env=env)
    assert "--chats FOLDER does" in said
    assert status == 404
    # whoever names one wants it
    done = run(llamafile, "--nobrowser", "--chats", tmp_path / "file" / "x")
    assert (done.returncode, done.stderr.decode()) == (
        1, f"error: --chats {tmp_path}/file/x: Not a directory\n"
    )  # fmt: skip


def test_who_made_the_file_has_no_say_in_the_place(
    smollm2: Path, runtime: Path, tmp_path: Path
) -> None:
    path = tmp_path / "f.llamafile"
    args = ["--chats", str(tmp_path / "theirs")]
    pyllamafile.build(smollm2, path, args=args, targets=["linux-amd64"])
    with zipfile.ZipFile(path) as archive:
        assert "--chats" in archive.read(".args").decode()
    said, status = first_lines(path, env=dict(os.environ))
    assert said.startswith("note: .args of this file may not say where conversations are kept")
    assert status == 200
    assert not (tmp_path / "theirs").exists()
    done = run(path, "-p", "Once", "-n", "1", "--temp", "0")  # means nothing there
    assert done.returncode == 0


# Whatever happens


def keeper_of(server: subprocess.Popen[bytes]) -> int:
    """The process beside a server that keeps the conversations."""
    children = Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text().split()
    assert len(children) == 1
    return int(children[0])


@contextmanager
def started(path: Path, *words: str | Path) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    process = subprocess.Popen(
        [path, "--nobrowser", "--no-state", "--port", "0", *words],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
    )
    try:
        yield ready(process), process
    finally:
        process.kill()
        process.wait(timeout=30)
        process.stdout.close()


def test_killed_in_the_middle_the_old_or_the_new_one_is_there(
    llamafile: Path, folder: Path, rng: random.Random
) -> None:
    texts = {name: name * (4 << 20) for name in "ab"}
    for turn in range(6):
        with started(llamafile, "--chats", folder) as (url, server):
            version = listed(url).get(ID)
            first = keep(url, conversation(texts["a"]), version)
            assert first.status == 200
            keeper = keeper_of(server)
            version = json.loads(first.text)["version"]

            def change(at: str = url, of: str = version) -> None:
                with suppress(OSError):  # whoever answers may be gone
                    keep(at, conversation(texts["b"]), of)

            write = threading.Thread(target=change)
            write.start()
            time.sleep(rng.uniform(0, 0.2))
            os.kill(keeper if turn % 2 else server.pid, signal.SIGKILL)
            if turn % 2:
                write.join()
                assert ask(f"{url}chats").status == 500
            else:
                server.wait()
        files = [path for path in folder.iterdir() if path.suffix == ".json"]
        assert [path.name for path in files] == [f"{ID}.json"]
        kept = json.loads(files[0].read_text())
        assert kept["messages"][1]["content"] in texts.values()
    old = folder / f".{ID}.0123456789abcdef.draft"
    old.touch()
    os.utime(old, (0, 0))
    with keeping(llamafile, "--chats", folder) as url:
        assert list(listed(url)) == [ID]
        assert not old.exists()


def test_on_a_full_disk(llamafile: Path, small_disk: Path) -> None:
    folder = small_disk / "chats"
    with keeping(llamafile, "--chats", folder) as url:
        version = json.loads(keep(url, conversation()).text)["version"]
        free = shutil.disk_usage(small_disk).free
        full = keep(url, conversation("x" * (free + 4096)), version)
        assert full.status == 507
        assert message(full) == "the conversation can't be written: No space left on device"
        assert listed(url) == {ID: version}
        assert [path.name for path in folder.iterdir()] == [f"{ID}.json"]
        assert json.loads(ask(f"{url}chats/{ID}").text)["conv"]["name"] == "Hello"


def test_a_file_that_somebody_put_there(llamafile: Path, folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / f"{ID}.json").write_text(json.dumps(conversation("From elsewhere")))
    (folder / "notes.txt").write_text("x")
    (folder / "linked.json").symlink_to("/etc/passwd")
    os.mkfifo(folder / "a-pipe.json")
    (folder / "folder.json").mkdir()
    with (folder / "large.json").open("wb") as large:
        large.truncate((64 << 20) + 65)
    with keeping(llamafile, "--chats", folder) as url:
        assert set(listed(url)) == {ID, "large"}
        version = listed(url)[ID]
        assert json.loads(ask(f"{url}chats/{ID}").text) == conversation("From elsewhere")
        for name in ("linked", "a-pipe", "folder"):
            assert ask(f"{url}chats/{name}").status == 404
        assert ask(f"{url}chats/large").status == 413
        assert keep(url, conversation("Mine"), version).status == 200
        assert listed(url)[ID] != version


def test_the_keeper_is_in_a_sandbox_and_ends_with_the_server(llamafile: Path, folder: Path) -> None:
    with started(llamafile, "--chats", folder) as (url, server):
        keeper = keeper_of(server)
        assert keep(url, conversation()).status == 200
        assert is_confined(keeper, 1)
        assert is_confined(server.pid, 2)
        os.kill(keeper, signal.SIGINT)  # Ctrl-C goes to it as well
        assert len(listed(url)) == 1
        server.kill()
        server.wait()
        end = time.monotonic() + 10
        while Path(f"/proc/{keeper}").exists() and time.monotonic() < end:
            time.sleep(0.05)
        assert not Path(f"/proc/{keeper}").exists()


def test_several_models_keep_them_in_the_router(
    smollm2: Path, runtime: Path, tmp_path: Path, folder: Path
) -> None:
    path = tmp_path / "two.llamafile"
    other = tmp_path / "other.gguf"
    other.symlink_to(smollm2)
    pyllamafile.build([smollm2, other], path, targets=["linux-amd64"])
    with keeping(path, "--chats", folder) as url:
        assert keep(url, conversation()).status == 200
        assert list(listed(url)) == [ID]


def test_load_reads_them(llamafile: Path, tmp_path: Path) -> None:
    chat = conversation("Name three colors.")
    first = chat["messages"][2]
    chat["messages"] += [  # another answer, which was not the one that was shown last
        {**first, "id": "other", "content": "No."},
        {**first, "id": "empty", "parent": first["id"], "content": "", "children": []},
    ]
    chat["messages"][1]["extra"] = [{"type": "TEXT", "name": "a.txt", "content": "red"}]
    chat["conv"]["currNode"] = "empty"
    (tmp_path / "kept.json").write_text(json.dumps({"version": "0", **chat}))
    (tmp_path / "ring.json").write_text(
        json.dumps({**chat, "messages": [{**first, "id": "empty", "parent": "empty"}]})
    )
    lines = ["/load kept.json", "/save saved.json", "/load ring.json", "/save ring-saved.json"]
    done = run(llamafile, "--chat", stdin="\n".join(lines).encode(), cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, b"")
    assert json.loads((tmp_path / "saved.json").read_text())["messages"] == [
        {"role": "user", "content": "Name three colors.\n\n--- File: a.txt ---\nred"},
        {"role": "assistant", "content": "Hi!"},
    ]
    assert len(json.loads((tmp_path / "ring-saved.json").read_text())["messages"]) == 1


# In a browser


def say(page: Any, text: str) -> None:
    box = page.get_by_role("textbox").first
    box.fill(text)
    box.press("Enter")


def answered(page: Any, folder: Path, count: int = 1) -> list[dict[str, Any]]:
    """Waits until the folder has so many answers; returns its conversations."""
    end = time.monotonic() + 90
    while True:
        kept = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
        answers = [
            each for chat in kept for each in chat["messages"]
            if each["role"] == "assistant" and each.get("timings")
        ]  # fmt: skip
        if len(answers) >= count:
            return kept
        assert time.monotonic() < end, kept
        page.wait_for_timeout(100)


def texts(chat: dict[str, Any]) -> set[str]:
    return {each["content"] for each in chat["messages"]}


NAMES = """async () => {
    const done = (request) => new Promise((yes, no) => {
        request.onsuccess = () => yes(request.result);
        request.onerror = no;
    });
    const answer = await fetch('chats', { headers: {
        Authorization: 'Bearer ' + JSON.parse(localStorage['LlamaUi.config'] ?? '{}').apiKey,
    } });
    const own = answer.ok ? 'LlamaUi.' + (await answer.json()).folder : 'LlamaUi';
    const db = await done(indexedDB.open(own));
    const chats = await done(db.transaction('conversations').objectStore('conversations').getAll());
    db.close();
    return chats.map((each) => each.name).sort();
}"""


def has(page: Any, *names: str) -> None:
    """Waits until the browser has these conversations, and no others."""
    end = time.monotonic() + 30
    while (found := page.evaluate(NAMES)) != sorted(names):
        assert time.monotonic() < end, found
        page.wait_for_timeout(100)


ASK = ("--temp", "0", "-n", "8")


@pytest.mark.browser
def test_seam_conversations_are_kept_in_another_browser(llamafile: Path, folder: Path) -> None:
    with keeping(llamafile, "--chats", folder, *ASK) as url, browsing(url) as page:
        say(page, "Name three colors.")
        (chat,) = answered(page, folder)
        name = page.evaluate("location.hash")
    assert "Name three colors." in texts(chat)
    with keeping(llamafile, "--chats", folder, *ASK) as url, browsing(url, url + name) as page:
        page.get_by_text("Name three colors.").first.wait_for()
        page.get_by_text("Red").first.wait_for()  # which was the answer
        has(page, "Name three colors.")
        say(page, "And three more?")
        (more,) = answered(page, folder, 2)
    assert texts(chat) < texts(more)


@pytest.mark.browser
def test_killed_in_the_middle_of_an_answer(llamafile: Path, folder: Path, tmp_path: Path) -> None:
    port, profile = free_port(), tmp_path / "profile"
    long = ("--temp", "0", "-n", "2000", "--ignore-eos")
    with (
        started(llamafile, "--chats", folder, "--port", str(port), *long) as (url, server),
        browsing(url, profile=profile) as page,
    ):
        say(page, "Tell me a long story.")
        page.wait_for_function("document.body.innerText.length > 800", timeout=60_000)
        server.kill()
        server.wait()
        page.wait_for_timeout(1000)
        with keeping(llamafile, "--chats", folder, port=port):  # the page is still open
            (chat,) = partial(page, folder)
    seen = max(texts(chat), key=len)
    assert len(seen) > 100
    with keeping(llamafile, "--chats", folder) as url, browsing(url) as page:
        page.goto(f"{url}#/chat/{chat['conv']['id']}")
        page.get_by_text("Tell me a long story.").first.wait_for()
        page.get_by_text(seen.strip().split("\n")[0][:60]).first.wait_for()


def partial(page: Any, folder: Path) -> list[dict[str, Any]]:
    end = time.monotonic() + 60
    while True:
        kept = [json.loads(path.read_text()) for path in folder.glob("*.json")]
        if any(
            each["role"] == "assistant" and each["content"]
            for chat in kept
            for each in chat["messages"]
        ):
            return kept
        assert time.monotonic() < end, kept
        page.wait_for_timeout(100)


@pytest.mark.browser
def test_two_tabs(llamafile: Path, folder: Path, tmp_path: Path) -> None:
    with (
        keeping(llamafile, "--chats", folder, *ASK) as url,
        browsing(url, profile=tmp_path / "profile") as page,
    ):
        other = page.context.new_page()
        other.goto(url)
        other.get_by_role("textbox").first.wait_for()
        say(page, "First tab")
        say(other, "Second tab")
        kept = answered(page, folder, 2)
        assert sorted(chat["conv"]["name"] for chat in kept) == ["First tab", "Second tab"]
        for each in (page, other):
            has(each, "First tab", "Second tab")
            each.goto(f"{url}#/chat/{kept[0]['conv']['id']}")
            each.get_by_text(kept[0]["conv"]["name"]).first.wait_for()


@pytest.mark.browser
def test_two_browsers_in_one_conversation(llamafile: Path, folder: Path) -> None:
    with keeping(llamafile, "--chats", folder, *ASK) as url, browsing(url) as page:
        say(page, "Name three colors.")
        (chat,) = answered(page, folder)
        name = page.evaluate("location.hash")
        other = page.context.browser.new_context().new_page()  # which shares nothing with it
        other.goto(url + name)
        other.get_by_text("Name three colors.").first.wait_for()
        say(page, "From the first.")
        answered(page, folder, 2)
        say(other, "From the second.")
        (both,) = answered(page, folder, 3)
        assert texts(both) > texts(chat) | {"From the first.", "From the second."}
        third = page.context.browser.new_context().new_page()
        third.goto(url + name)
        third.get_by_text("From the second.").first.wait_for()


@pytest.mark.browser
def test_a_whole_answer_is_not_taken_up_again(llamafile: Path, folder: Path) -> None:
    """The answer is kept a moment before the server calls it done, or another one is under way."""
    with keeping(llamafile, "--chats", folder, *ASK) as url, browsing(url) as page:
        say(page, "Name three colors.")
        (chat,) = answered(page, folder)
        id = chat["conv"]["id"]
        other = page.context.browser.new_context().new_page()
        running = {"conversation_id": id, "is_done": False, "total_bytes": 1, "started_at": 1}
        other.route("**/v1/streams/lookup", lambda route: route.fulfill(json=[running]))
        other.goto(f"{url}#/chat/{id}")
        other.get_by_text("Name three colors.").first.wait_for()
        other.wait_for_timeout(1000)
        say(other, "From the other.")
        (both,) = answered(page, folder, 2)
        assert texts(both) > texts(chat) | {"From the other."}


@pytest.mark.browser
def test_two_files_on_one_port_one_after_the_other(
    llamafile: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / "data"
    monkeypatch.setenv("XDG_DATA_HOME", str(data))
    other = tmp_path / "other.llamafile"
    shutil.copy(llamafile, other)
    port, profile = free_port(), tmp_path / "profile"
    with keeping(llamafile, *ASK, port=port) as url, browsing(url, profile=profile) as page:
        say(page, "For the first")
        answered(page, data / "pyllamafile" / "smollm2")
    with keeping(other, *ASK, port=port) as url, browsing(url, profile=profile) as page:
        page.wait_for_timeout(500)
        has(page)
        say(page, "For the second")
        answered(page, data / "pyllamafile" / "other")
    with keeping(llamafile, *ASK, port=port) as url, browsing(url, profile=profile) as page:
        has(page, "For the first")
    for name in ("smollm2", "other"):
        assert len(list((data / "pyllamafile" / name).glob("*.json"))) == 1


@pytest.mark.browser
def test_what_the_browser_has_from_before_comes_once(
    llamafile: Path, folder: Path, tmp_path: Path
) -> None:
    port, profile = free_port(), tmp_path / "profile"
    with (
        keeping(llamafile, "--no-chats", *ASK, port=port) as url,
        browsing(url, profile=profile) as page,
    ):
        say(page, "From before")
        page.wait_for_timeout(5000)
        has(page, "From before")
        assert page.evaluate("indexedDB.databases().then(all => all.map(each => each.name))") == [
            "LlamaUi"
        ]
    with keeping(llamafile, "--chats", folder, *ASK, port=port) as url:
        with browsing(url, profile=profile) as page:
            has(page, "From before")
            (chat,) = answered(page, folder)
        assert ask(f"{url}chats/{chat['conv']['id']}", method="DELETE").status == 200
        with browsing(url, profile=profile) as page:  # removed elsewhere, and not brought again
            has(page)
            assert listed(url) == {}


CHANGE = """async ([what, id]) => {
    const all = await indexedDB.databases();
    const name = all.map((each) => each.name).find((each) => each.startsWith('LlamaUi.'));
    const done = (request) => new Promise((yes, no) => {
        request.onsuccess = () => yes(request.result);
        request.onerror = no;
    });
    const db = await done(indexedDB.open(name));
    const stores = db.transaction(['conversations', 'messages'], 'readwrite');
    const messages = stores.objectStore('messages');
    const keys = await done(messages.index('convId').getAllKeys(id));
    if (what === 'delete') {
        stores.objectStore('conversations').delete(id);
        keys.forEach((key) => messages.delete(key));
    } else if (what === 'cursor') {
        const cursor = await done(messages.openCursor(keys[0]));
        cursor.update({ ...cursor.value, content: 'changed by a cursor' });
    } else {
        messages.delete(IDBKeyRange.only(keys[0]));
    }
    await new Promise((yes) => (stores.oncomplete = yes));
    db.close();
}"""


@pytest.mark.browser
def test_what_is_changed_and_deleted_in_the_browser(llamafile: Path, folder: Path) -> None:
    folder.mkdir(parents=True)
    file = folder / f"{ID}.json"
    file.write_text(json.dumps(conversation("Kept")))

    def wait(page: Any, what: Any) -> None:
        end = time.monotonic() + 20
        while not what():
            assert time.monotonic() < end
            page.wait_for_timeout(50)

    with keeping(llamafile, "--chats", folder, *ASK) as url, browsing(url) as page:
        has(page, "Kept")
        page.evaluate(CHANGE, ["cursor", ID])
        wait(page, lambda: "changed by a cursor" in file.read_text())
        page.evaluate(CHANGE, ["range", ID])
        wait(page, lambda: len(json.loads(file.read_text())["messages"]) == 2)
        page.evaluate(CHANGE, ["delete", ID])
        wait(page, lambda: not file.exists())
        page.reload()
        page.get_by_role("textbox").first.wait_for()
        has(page)


@pytest.mark.browser
def test_the_browser_is_a_copy_where_the_folder_is_lost(
    llamafile: Path, folder: Path, tmp_path: Path
) -> None:
    port, profile = free_port(), tmp_path / "profile"
    with (
        keeping(llamafile, "--chats", folder, *ASK, port=port) as url,
        browsing(url, profile=profile) as page,
    ):
        say(page, "Keep me")
        answered(page, folder)
    shutil.rmtree(folder)
    with (
        keeping(llamafile, "--chats", folder, *ASK, port=port) as url,
        browsing(url, profile=profile) as page,
    ):
        has(page, "Keep me")
        answered(page, folder)


@pytest.mark.browser
def test_behind_a_key(llamafile: Path, folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / f"{ID}.json").write_text(json.dumps(conversation("Behind the key")))
    with (
        keeping(llamafile, "--chats", folder, "--api-key", "sesame") as url,
        browsing(url, f"{url}#key=sesame") as page,
    ):
        has(page, "Behind the key")
        page.evaluate("localStorage.removeItem('LlamaUi.config')")
        page.reload()
        page.get_by_text("API Key").first.wait_for()
        with page.expect_event("load"):  # it begins anew when somebody has typed the key
            page.evaluate("localStorage['LlamaUi.config'] = JSON.stringify({apiKey: 'sesame'})")
        page.get_by_role("textbox").first.wait_for()
        has(page, "Behind the key")
