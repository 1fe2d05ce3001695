"""Which web pages may use a server: pages.cpp's rules, asked directly."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from running import need

from pyllamafile.native.building.driver import RUNTIME

LOOPBACK = "127.0.0.1"
EVERYWHERE = "0.0.0.0"
LINK = ("cross-site", "navigate", "document")
IMAGE = ("cross-site", "no-cors", "image")
FRAME = ("cross-site", "navigate", "iframe")


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """Asks the compiled rules for one refusal."""
    clang = need("clang++", "clang")
    program = tmp_path_factory.mktemp("web") / "web"
    sources = [Path(__file__).with_name("web_policy.cpp"), RUNTIME / "web" / "pages.cpp"]
    flags = ["-std=c++17", "-Wall", "-Wextra", "-Werror", f"-I{RUNTIME / 'web'}"]
    subprocess.run([clang, *flags, *sources, "-o", program], check=True)

    def ask(*fields: str) -> str:
        line = "\t".join(fields) + "\n"
        done = subprocess.run([program], input=line, capture_output=True, text=True, check=True)
        return done.stdout.rstrip("\n")

    return ask


@pytest.mark.parametrize(
    ("listens", "hosts", "origins", "host", "origin", "fetch"),
    [
        (LOOPBACK, "", "", "127.0.0.1:8080", "", ()),  # curl
        (LOOPBACK, "", "", "", "", ()),  # HTTP/1.0
        (LOOPBACK, "", "", "localhost:8080", "http://localhost:8080", ()),
        (LOOPBACK, "", "", "LOCALHOST:8080", "http://localhost:8080", ()),
        (LOOPBACK, "", "", "localhost.:8080", "", ()),
        (LOOPBACK, "", "", "127.0.0.1:8080", "http://127.0.0.1:8080", ("same-origin", "cors", "")),
        (LOOPBACK, "", "", "[::1]:8080", "http://[::1]:8080", ()),
        (LOOPBACK, "", "", "localhost:8080", "", LINK),
        (LOOPBACK, "", "", "localhost:8080", "", ("none", "navigate", "document")),
        (LOOPBACK, "box", "", "box:8080", "http://box:8080", ()),
        (LOOPBACK, "chat.example", "", "127.0.0.1:8080", "https://chat.example", ()),  # a proxy
        (LOOPBACK, "", "http://a.example", "localhost:8080", "http://a.example", ()),
        (LOOPBACK, "", "*", "localhost:8080", "null", ()),
        (LOOPBACK, "", "*", "localhost:8080", "", IMAGE),
        (EVERYWHERE, "", "", "192.168.1.5:8080", "http://192.168.1.5:8080", ()),
        ("::", "", "", "[fe80::1]:8080", "", ()),
        ("192.168.1.5", "", "", "192.168.1.5:8080", "", ()),
        ("/tmp/s.sock", "", "", "whatever", "", ()),
    ],
)
def test_allowed(asked, listens, hosts, origins, host, origin, fetch):
    assert asked(listens, hosts, origins, host, origin, *fetch) == ""


@pytest.mark.parametrize(
    ("listens", "hosts", "origins", "host", "origin", "fetch", "flag"),
    [
        (LOOPBACK, "", "", "evil.example:8080", "", (), "--allow-host evil.example allows it"),
        # Rebinding: the page has the same name as the server seems to have.
        (LOOPBACK, "", "", "evil.example", "http://evil.example", (), "--allow-host evil.example"),
        (LOOPBACK, "", "", "192.168.1.5:8080", "", (), "--allow-host 192.168.1.5"),
        (LOOPBACK, "", "", "127.0.0.1.evil.example", "", (), "--allow-host"),
        (LOOPBACK, "", "", "localhost.evil.example", "", (), "--allow-host"),
        (EVERYWHERE, "", "", "evil.example:8080", "", (), "--allow-host"),
        ("192.168.1.5", "", "", "192.168.1.6:8080", "", (), "--allow-host"),
        (LOOPBACK, "", "", "localhost:8080", "http://evil.example", (), "http://evil.example"),
        (LOOPBACK, "", "", "localhost:8080", "http://localhost:5173", (), "http://localhost:5173"),
        (LOOPBACK, "", "", "localhost:8080", "http://127.0.0.1:8080", (), "--allow-origin"),
        (LOOPBACK, "", "", "localhost:8080", "null", (), "--allow-origin"),
        (LOOPBACK, "", "", "localhost:8080", "", IMAGE, "--allow-origin URL"),
        (LOOPBACK, "", "", "localhost:8080", "", FRAME, "--allow-origin URL"),
        (LOOPBACK, "", "", "localhost:8080", "", ("same-site", "no-cors", "script"), "--allow"),
        (LOOPBACK, "", "http://a.example", "localhost", "http://b.example", (), "http://b.example"),
        (LOOPBACK, "", "http://a.example", "localhost", "https://a.example", (), "--allow-origin"),
    ],
)
def test_refused(asked, listens, hosts, origins, host, origin, fetch, flag):
    assert flag in asked(listens, hosts, origins, host, origin, *fetch)


@pytest.mark.parametrize(
    ("given", "key", "same"),
    [("a", "a", 1), ("b", "a", 0), ("", "a", 0), ("aa", "a", 0), ("a", "aa", 0), ("", "", 0)],
)
def test_keys(asked, given, key, same):
    assert asked("key", given, key) == str(same)
