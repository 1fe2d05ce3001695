"""docs/scaling.md and docs/deploy/: several servers behind a proxy, as they are said to be."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from running import need

DEPLOY = Path(__file__).parents[2] / "docs" / "deploy"
PROXIES = ("nginx", "haproxy")


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a certificate of the test's own, as both proxies want it."""
    folder = tmp_path_factory.mktemp("certificate")
    command = [need("openssl"), "req", "-x509", "-newkey", "ec", "-nodes", "-days", "2"]
    command += ["-pkeyopt", "ec_paramgen_curve:P-256", "-subj", "/CN=localhost"]
    command += ["-addext", "subjectAltName=DNS:localhost"]
    command += ["-keyout", "privkey.pem", "-out", "fullchain.pem"]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    parts = [(folder / name).read_text() for name in ("fullchain.pem", "privkey.pem")]
    (folder / "llamafile.pem").write_text("".join(parts))
    return folder


def replaced(name: str, changes: dict[str, str]) -> str:
    """A file of docs/deploy/, with what its reader has to change."""
    text = (DEPLOY / name).read_text()
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    return text


def configured(
    proxy: str, folder: Path, certificate: Path, port: int, servers: tuple[int, int]
) -> list[str]:
    """The command that starts a proxy with the file of docs/deploy/."""
    ours = {f"127.0.0.1:{8081 + at}": f"127.0.0.1:{port}" for at, port in enumerate(servers)}
    if proxy == "nginx":
        ours |= {"listen 443": f"listen 127.0.0.1:{port}", "/etc/ssl/llamafile": str(certificate)}
        (folder / "llamafile.conf").write_text(replaced("nginx.conf", ours))
        main = f"pid {folder}/pid; error_log {folder}/errors; daemon off; events {{}}\n"
        main += f"http {{ access_log off; include {folder}/llamafile.conf; }}\n"
        (folder / "nginx.conf").write_text(main)
        return [need("nginx", "nginx-light"), "-p", str(folder), "-c", str(folder / "nginx.conf")]
    ours |= {"bind :443": f"bind 127.0.0.1:{port}", "/etc/haproxy": str(certificate)}
    (folder / "haproxy.cfg").write_text(replaced("haproxy.cfg", ours))
    return [need("haproxy"), "-f", str(folder / "haproxy.cfg")]


@pytest.mark.parametrize("proxy", PROXIES)
def test_the_file_is_right(proxy: str, tmp_path: Path, certificate: Path) -> None:
    command = configured(proxy, tmp_path, certificate, 8443, (8081, 8082))
    command.append({"nginx": "-t", "haproxy": "-c"}[proxy])
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "warn" not in (done.stdout + done.stderr).lower()
