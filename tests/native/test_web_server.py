"""What web pages, and other machines, can do with a running server: nothing, unless they may."""

from __future__ import annotations

import functools
import http.client
import http.server
import json
import os
import re
import signal
import subprocess
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any, ClassVar

import pytest
from running import browsing, children, free_port, need, ready, serving

import pyllamafile

pytestmark = pytest.mark.native

EVIL = "http://evil.example"
QUESTION = {"prompt": "Once", "n_predict": 1}


class Answer(tuple):
    """Status, headers, text."""

    status = property(lambda self: self[0])
    headers = property(lambda self: self[1])
    text = property(lambda self: self[2])


def ask(url: str, data: object = None, method: str | None = None, **headers: str) -> Answer:
    """Ask a server; header names have underscores for dashes."""
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    body = None if data is None else json.dumps(data).encode()
    if body:
        given.setdefault("Content-Type", "application/json")
    request = urllib.request.Request(url, body, given, method=method)
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return Answer((response.status, response.headers, response.read().decode()))
    except urllib.error.HTTPError as error:
        with error:
            return Answer((error.code, error.headers, error.read().decode()))


def message(answer: Answer) -> str:
    return json.loads(answer.text)["error"]["message"]


# Origins and names


def test_seam_other_pages_may_not_use_the_server(server: str) -> None:
    for path, data in (("props", None), ("completion", QUESTION), ("v1/models", None)):
        answer = ask(server + path, data, Origin=EVIL)
        assert answer.status == 403
        assert message(answer).endswith(f"--allow-origin {EVIL} allows it")
        assert answer.headers["Access-Control-Allow-Origin"] is None
    preflight = ask(
        server + "completion",
        method="OPTIONS",
        Origin=EVIL,
        Access_Control_Request_Method="POST",
        Access_Control_Request_Headers="content-type",
    )
    assert preflight.status == 403
    assert not [name for name in preflight.headers if name.startswith("Access-Control-")]


def test_a_name_that_a_stranger_made_lead_here(server: str) -> None:
    port = server.split(":")[2].strip("/")
    for host in (f"evil.example:{port}", "evil.example", f"10.1.2.3:{port}"):
        answer = ask(server + "props", Host=host, Origin=f"http://{host}")
        assert answer.status == 403
        assert "--allow-host" in message(answer)


def test_programs_and_its_own_pages_may(server: str) -> None:
    port = server.split(":")[2].strip("/")
    assert ask(server + "completion", QUESTION).status == 200
    for name in ("localhost", "127.0.0.1"):
        own = {"Host": f"{name}:{port}", "Origin": f"http://{name}:{port}"}
        answer = ask(server + "completion", QUESTION, **own)
        assert answer.status == 200
        assert answer.headers["Access-Control-Allow-Origin"] is None
    link = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}
    assert ask(server + "props", **link, Sec_Fetch_Dest="document").status == 200


def test_those_that_are_named_may(llamafile: Path) -> None:
    flags = ("--nobrowser", "--port", str(free_port()))
    named = ("--allow-origin", "http://a.example", "--allow-origin", "https://B.example/")
    with serving(llamafile, *flags, *named, "--allow-host", "box.example") as url:
        for origin in ("http://a.example", "https://b.example", "https://box.example"):
            answer = ask(url + "v1/models", Origin=origin)
            assert (answer.status, answer.headers["Access-Control-Allow-Origin"]) == (200, origin)
            assert answer.headers["Access-Control-Allow-Credentials"] is None
            preflight = ask(url + "v1/models", method="OPTIONS", Origin=origin,
                            Access_Control_Request_Headers="authorization")  # fmt: skip
            assert preflight.headers["Access-Control-Allow-Headers"] == "authorization"
        assert ask(url + "v1/models", Host="box.example").status == 200
        assert ask(url + "v1/models", Origin="http://c.example").status == 403


# Keys


def test_seam_keys_are_asked_for(llamafile: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    flags = ("--nobrowser", "--port", str(free_port()), "-lv", "5", "--log-file", str(log))
    with serving(llamafile, *flags, "--api-key", "open-sesame-9876") as url:
        assert ask(url + "props").status == 401
        assert ask(url + "props", Authorization="Bearer open-sesame-9877").status == 401
        answer = ask(url + "props", Authorization="Bearer open-sesame-9876")
        assert answer.status == 200
        assert "9876" not in answer.text
    assert "9876" not in log.read_text()


def command_lines() -> str:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found.append(path.read_text(errors="replace"))
        except OSError:
            continue
    return "\n".join(found)


@pytest.mark.parametrize("several", [False, True])
def test_other_machines_need_a_key(
    several: bool, llamafile: Path, smollm2: Path, phi3: Path, tmp_path: Path
) -> None:
    file = llamafile
    if several:
        file = tmp_path / "two.llamafile"
        pyllamafile.build([smollm2, phi3], file, targets=["linux-amd64"], gui=False)
    flags = ("--nobrowser", "--port", str(free_port()), "--host", "0.0.0.0")
    with serving(file, *flags) as url:
        address, key = re.fullmatch(r"(http://127\.0\.0\.1:\d+/)#key=([\w-]{24})", url).groups()
        headers = {"Authorization": f"Bearer {key}"}
        assert ask(address + "props").status == 401
        answer = ask(address + "props", **headers)
        assert answer.status == 200
        assert key not in answer.text
        question = {**QUESTION, "model": smollm2.name.removesuffix(".gguf")}
        done = ask(address + "completion", question, **headers)
        assert done.status == 200, done.text
        assert key not in command_lines()
        assert len(children(file)) == several
        if several:  # whatever name of this machine the router was asked by
            host = {"Host": address.split("/")[2].replace("127.0.0.1", "10.9.8.7"), **headers}
            assert ask(address + "completion", question, **host).status == 200


def test_no_key_is_made_where_none_is_wanted(llamafile: Path) -> None:
    for flags in (
        ("--host", "0.0.0.0", "--no-api-key"),
        ("--host", "0.0.0.0", "--api-key", "mine"),
        ("--host", "localhost"),
    ):
        with serving(llamafile, "--nobrowser", "--port", str(free_port()), *flags) as url:
            assert "#" not in url
            assert ask(url + "props").status == (401 if "mine" in flags else 200)


def test_the_addresses_of_this_machine_are_named(llamafile: Path) -> None:
    flags = ("--nobrowser", "--port", str(free_port()), "--host", "0.0.0.0")
    process = subprocess.Popen(
        [llamafile, *flags], stdout=subprocess.PIPE, stdin=subprocess.DEVNULL
    )
    try:
        ready = process.stdout.readline().decode()
        while " is ready: " not in ready:
            ready = process.stdout.readline().decode()
        key = ready.split("#key=")[1].split()[0]
        found = subprocess.run(["hostname", "-I"], capture_output=True, text=True).stdout.split()
        for address in (name for name in found if ":" not in name):
            line = process.stdout.readline().decode()
            assert f"/#key={key}" in line
            assert line.split("//")[1].split(":")[0] in found, address
    finally:
        process.terminate()
        process.wait(timeout=30)
        process.stdout.close()


def test_the_browser_is_not_given_the_key_in_its_command(llamafile: Path, tmp_path: Path) -> None:
    opener = tmp_path / "xdg-open"
    opener.write_text(f'#!/bin/sh\necho "$1" >"{tmp_path}/opened"; cat "$1" >"{tmp_path}/page"\n')
    opener.chmod(0o755)
    env = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "DISPLAY": ":9"}
    with serving(llamafile, "--port", str(free_port()), "--host", "0.0.0.0", env=env) as url:
        for _ in range(200):
            if (tmp_path / "page").is_file() and (tmp_path / "page").read_text().endswith(">"):
                break
            threading.Event().wait(0.05)
        way = Path((tmp_path / "opened").read_text().strip())
        assert url.split("#key=")[1] not in str(way)
        assert url in (tmp_path / "page").read_text()
        assert way.stat().st_mode & 0o777 == 0o600
    assert not way.exists()


# What the server can do to the machine


OPEN = ("tools", "cors-proxy?url=http://127.0.0.1:9/")


def test_the_machine_is_closed_by_default(server: str) -> None:
    for path in OPEN:
        assert ask(server + path)[0] == 403
        assert ask(server + path, {"tool": "exec_shell_command"})[0] == 403


@pytest.mark.parametrize(
    "flags",
    [
        ("--tools", "all"),
        ("--agent",),
        ("--ui-mcp-proxy",),
        ("--mcp-servers-json", '{"mcpServers": {"x": {"command": "touch", "args": ["started"]}}}'),
    ],
)
def test_a_file_does_not_open_the_machine(
    flags: tuple[str, ...], smollm2: Path, runtime: Path, tmp_path: Path
) -> None:
    """.args are of whoever made the file; who starts it can say the same."""
    file = tmp_path / "stranger.llamafile"
    words = ("--server", "--nobrowser", "--port", "0")
    pyllamafile.build(
        smollm2, file, args=(*words, *flags, "..."), targets=["linux-amd64"], gui=False
    )
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen([file], stdout=subprocess.PIPE, stderr=log, cwd=tmp_path)
    url = ready(process)
    assert [ask(url + path)[0] for path in OPEN] == [403, 403]
    process.send_signal(signal.SIGINT)
    process.wait(timeout=30)
    process.stdout.close()
    log = (tmp_path / "log").read_text()
    assert log.count(".args") == log.count(f"note: {flags[0]} in .args has no effect") == 1
    assert not (tmp_path / "started").exists()


def test_whoever_starts_it_opens_the_machine(llamafile: Path) -> None:
    with serving(llamafile, "--nobrowser", "--port", "0", "--tools", "get_info") as url:
        status, _, text = ask(url + "tools")
        assert status == 200
        assert "get_info" in text
        assert "exec_shell_command" not in text
        origin = {"Origin": "http://evil.example"}
        assert ask(url + "tools", {"tool": "get_info"}, **origin)[0] == 403


# A browser


class Proxy(http.server.BaseHTTPRequestHandler):
    """Hands on what comes for /llm/, as a server in front would: by another name and port."""

    protocol_version = "HTTP/1.1"
    behind = ""  # HOST:PORT
    answered: ClassVar[list[tuple[str, int]]] = []

    def hand_on(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        headers = {key: value for key, value in self.headers.items() if key.lower() != "host"}
        with closing(http.client.HTTPConnection(self.behind, timeout=60)) as there:
            there.request(self.command, self.path, body, headers)
            with there.getresponse() as answer:
                content = answer.read()
        self.answered.append((self.path, answer.status))
        self.send_response(answer.status)
        for key, value in answer.getheaders():
            if key.lower() not in ("transfer-encoding", "content-length", "connection"):
                self.send_header(key, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        with suppress(ConnectionError):  # the browser may be gone
            self.wfile.write(content)

    do_GET = do_POST = do_DELETE = hand_on  # noqa: N815

    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.browser
def test_the_gui_through_a_proxy(llamafile: Path) -> None:
    """Under another name, below a path: its page, its requests and their answers."""
    words = ("--nobrowser", "--temp", "0", "--port", "0", "--api-prefix", "/llm")
    with serving(llamafile, *words, "--allow-host", "chat.localhost") as url:
        Proxy.behind = url.split("/")[2]
        Proxy.answered.clear()
        proxy = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Proxy)
        threading.Thread(target=proxy.serve_forever).start()
        try:
            with browsing(f"http://chat.localhost:{proxy.server_port}/llm/") as page:
                box = page.get_by_role("textbox").first
                box.fill("Name three colors.")
                box.press("Enter")
                page.get_by_text("Blue").first.wait_for(timeout=60_000)
        finally:
            proxy.shutdown()
            proxy.server_close()
    paths = {path.split("?")[0] for path, _ in Proxy.answered}
    assert {"/llm/", "/llm/props", "/llm/v1/chat/completions"} <= paths
    assert all(path.startswith("/llm/") for path in paths)
    faults = {(path.split("?")[0], status) for path, status in Proxy.answered if status >= 400}
    # Conversations are for pages that call the server as it is called itself.
    refused = {fault for fault in faults if fault[0].startswith("/llm/chats/") and fault[1] == 403}
    assert faults - refused <= {("/llm/tools", 403)}  # which the page asks for, and are off


@pytest.mark.browser
def test_seam_the_gui_gets_the_key_from_the_address(llamafile: Path) -> None:
    flags = ("--nobrowser", "--port", str(free_port()), "--host", "0.0.0.0", "--temp", "0")
    with serving(llamafile, *flags) as url, browsing(url.split("#")[0], at=url) as page:
        assert "key" not in page.url
        box = page.get_by_role("textbox").first
        box.fill("Name three colors.")
        box.press("Enter")
        page.get_by_text("Blue").first.wait_for(timeout=60_000)


PAGE = """<!doctype html><title>evil</title><body><script>
const at = new URLSearchParams(location.search).get('at');
const told = {};
const body = JSON.stringify({prompt: 'Once', n_predict: 1});
async function attempt(name, promise) {
    try { told[name] = await promise; } catch (error) { told[name] = 'refused'; }
}
const read = (path, options) => fetch(at + path, options).then(r => r.text());
const loaded = (tag, path) => new Promise((done, failed) => {
    const made = document.createElement(tag);
    made.onload = () => done('loaded'); made.onerror = () => failed();
    made.src = at + path; document.body.append(made);
});
(async () => {
    await attempt('fetch', read('props'));
    await attempt('post', read('completion', {method: 'POST', body,
        headers: {'Content-Type': 'application/json'}}));
    await attempt('plain', read('completion', {method: 'POST', body, headers: {}}));
    await attempt('credentials', read('props', {credentials: 'include'}));
    await attempt('blind', fetch(at + 'completion', {method: 'POST', body, mode: 'no-cors'})
        .then(r => r.type));
    await attempt('image', loaded('img', 'favicon.ico'));
    await attempt('script', loaded('script', 'v1/models'));
    await attempt('events', new Promise((done, failed) => {
        const source = new EventSource(at + 'v1/stream');
        source.onopen = () => done('open'); source.onerror = () => failed();
    }));
    const frame = document.createElement('iframe');
    frame.src = at; document.body.append(frame);
    const form = document.createElement('form');
    const field = document.createElement('input');
    field.name = body; form.append(field); form.method = 'POST'; form.enctype = 'text/plain';
    form.action = at + 'completion'; form.target = 'other'; document.body.append(form);
    const other = document.createElement('iframe'); other.name = 'other';
    document.body.append(other); form.submit();
    setTimeout(() => { window.told = told; }, 1500);
})();
</script>"""


@contextmanager
def strangers_site(folder: Path) -> Iterator[int]:
    """A site of somebody else's, on this machine; gives its port."""
    (folder / "index.html").write_text(PAGE)

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            pass

    handler = functools.partial(Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as site:
        threading.Thread(target=site.serve_forever, daemon=True).start()
        yield site.server_port
        site.shutdown()


def evaluated(url: str) -> int:
    """How many tokens of prompts the server has read so far."""
    text = ask(url + "metrics").text
    return int(float(re.search(r"^llamacpp:prompt_tokens_total (\S+)$", text, re.M)[1]))


@pytest.mark.browser
@pytest.mark.parametrize("rebinding", [False, True])
def test_in_a_browser_a_strangers_page_reads_and_starts_nothing(
    rebinding: bool, llamafile: Path, tmp_path: Path
) -> None:
    playwright = pytest.importorskip("playwright.sync_api")
    chromium = need("chromium")
    with (
        serving(llamafile, "--nobrowser", "--port", str(free_port()), "--metrics") as url,
        strangers_site(tmp_path) as port,
        playwright.sync_playwright() as p,
    ):
        # A name that led to the stranger's server first, and then to this one.
        at = url.replace("127.0.0.1", "evil.example") if rebinding else url
        flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        flags += ["--host-resolver-rules=MAP evil.example 127.0.0.1"]
        browser = p.chromium.launch(executable_path=chromium, args=flags)
        page = browser.new_page()
        page.goto(f"http://evil.example:{port}/?at={at}")
        told: dict[str, Any] = page.wait_for_function("window.told", timeout=60_000).json_value()
        assert told.pop("blind") in ("opaque", "refused")  # what is sent blindly tells nothing
        assert set(told.values()) == {"refused"}, told
        for frame in page.frames[1:]:
            assert "textbox" not in frame.content()
            assert "content" not in frame.evaluate("document.body?.innerText ?? ''")
        browser.close()
        assert evaluated(url) == 0
        assert ask(url + "completion", QUESTION).status == 200
        assert evaluated(url) > 0  # which the check above would have seen
