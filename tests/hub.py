"""A server that speaks the part of Hugging Face's API that a download takes.

Files are listed with their digests, sent whole or from an offset, and it can be told to misbehave.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

REVISION = "5f3a" * 10


class Hub(ThreadingHTTPServer):
    """The server and what it has.

    Attributes:
        files: The repositories' files, by OWNER/REPO and name.
        token: What a client has to show, or None.
        breaks: After how many bytes a transfer breaks off, once.
        forges: Whether the digests that it lists are others than those of the files.
        gated: Whether terms have to be accepted first.
        asked: The first byte of each range that was asked for, in order; 0 for a whole file.
        sent: How many bytes of files it sent.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, dict[str, bytes]] = {}
        self.token: str | None = None
        self.breaks: list[int] = []
        self.forges = False
        self.gated = False
        self.asked: list[int] = []
        self.sent = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        if self.server.token and self.headers["Authorization"] != f"Bearer {self.server.token}":
            self.refuse(401, "Invalid username or password.")
        elif match := re.match(r"/api/models/([^/]+/[^/?]+)(/revision/[^?]+)?(\?.*)?$", self.path):
            self.list(match[1])
        elif match := re.match(r"/([^/]+/[^/]+)/resolve/([^/]+)/([^?]+)", self.path):
            self.send(match[1], match[3])
        else:
            self.refuse(404, "Not Found")

    def refuse(self, code: int, message: str, kind: str = "RepoNotFound") -> None:
        self.answer(
            json.dumps({"error": message}).encode(),
            code=code,
            **{"X-Error-Code": kind, "X-Error-Message": message},
        )

    def answer(self, body: bytes, code: int = 200, **headers: str) -> None:
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def digest(self, content: bytes) -> str:
        return hashlib.sha256(content + b"!" * self.server.forges).hexdigest()

    def list(self, repo: str) -> None:
        if repo not in self.server.files:
            return self.refuse(404, "Repository not found")
        siblings = [
            {
                "rfilename": name,
                "size": len(content),
                "blobId": hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest(),
                "lfs": {
                    "sha256": self.digest(content),
                    "size": len(content),
                    "pointerSize": 134,
                },
            }
            for name, content in self.server.files[repo].items()
        ]
        facts = {"id": repo, "sha": REVISION, "siblings": siblings}
        return self.answer(json.dumps(facts).encode())

    def send(self, repo: str, name: str) -> None:
        if self.server.gated:
            return self.refuse(403, "Access is restricted", "GatedRepo")
        content = self.server.files.get(repo, {}).get(name)
        if content is None:
            return self.refuse(404, "Entry not found", "EntryNotFound")
        first, last = 0, len(content) - 1
        if match := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers["Range"] or ""):
            first, last = int(match[1]), min(int(match[2] or last), last)
        self.send_response(206 if match else 200)
        self.send_header("Content-Length", str(last - first + 1))
        self.send_header("Content-Range", f"bytes {first}-{last}/{len(content)}")
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("ETag", f'"{self.digest(content)}"')
        self.send_header("X-Repo-Commit", REVISION)
        self.end_headers()
        if self.command == "HEAD":
            return None
        self.server.asked.append(first)
        part = content[first : last + 1]
        if self.server.breaks and (short := self.server.breaks.pop(0)) < len(part):
            part, self.close_connection = part[:short], True
        self.wfile.write(part)
        self.server.sent += len(part)
        return None


@contextmanager
def serving() -> Iterator[Hub]:
    """A hub that runs as long as the block does."""
    with Hub() as hub:
        thread = threading.Thread(target=hub.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield hub
        finally:
            hub.shutdown()
            thread.join()
