"""docs/service.md: its unit, its drop-in and its compose file are what they are said to be."""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from running import free_port, need

PAGE = (Path(__file__).parents[2] / "docs" / "service.md").read_text()
FILE = "/opt/llamafile/phi3.llamafile"


def block(kind: str, number: int = 0) -> str:
    return re.findall(rf"^```{kind}\n(.*?)^```$", PAGE, re.M | re.S)[number]


def units(folder: Path, *, reach: bool, file: Path | str, port: int = 8080) -> Path:
    """The unit, with the drop-in or without, for a file that there is."""
    folder.mkdir(parents=True, exist_ok=True)
    unit = folder / "phi3.service"
    changes = {FILE: str(file), "--port 8080": f"--port {port}"}
    changes["/etc/llamafile/phi3.key"] = str(folder / "phi3.key")
    texts = {unit: block("ini")}
    if reach:
        (folder / "phi3.key").write_text("a-key-of-mine\n")
        texts[folder / "phi3.service.d" / "reach.conf"] = block("ini", 1)
    for path, text in texts.items():
        path.parent.mkdir(exist_ok=True)
        for old, new in changes.items():
            text = text.replace(old, new)
        path.write_text(text)
    return unit


@pytest.mark.parametrize("reach", [False, True])
def test_the_unit_is_right(tmp_path: Path, reach: bool) -> None:
    program = tmp_path / "program"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    unit = units(tmp_path / "units", reach=reach, file=program)
    command = [need("systemd-analyze", "systemd"), "verify", "--man=no", str(unit)]
    env = {**os.environ, "SYSTEMD_UNIT_PATH": f"{unit.parent}:"}
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    if "Failed to" in done.stderr and "manager" in done.stderr:
        pytest.skip(f"systemd-analyze can't work here: {done.stderr}")
    assert (done.returncode, done.stderr) == (0, "")


def test_the_unit_is_confined(tmp_path: Path) -> None:
    unit = units(tmp_path / "units", reach=False, file="/bin/true")
    command = [need("systemd-analyze", "systemd"), "security", "--no-pager", "--offline=yes"]
    (said,) = re.findall(r"\((\d\.\d) of 10,", PAGE.replace("\n", " "))
    limit = f"--threshold={round(float(said) * 10) + 2}"  # versions of systemd count differently
    done = subprocess.run([*command, limit, str(unit)], capture_output=True, text=True)
    if "unrecognized option" in done.stderr:
        pytest.skip("this systemd-analyze is older than 250")
    assert done.returncode == 0, done.stdout[-500:] + done.stderr


def test_compose(tmp_path: Path) -> None:
    path = tmp_path / "compose.yaml"
    path.write_text(block("yaml"))
    command = [need("docker-compose"), "-f", str(path), "config"]
    env = {**os.environ, "PHI3_KEY": "mine"}
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search("LLAMA_API_KEY: mine$", done.stdout, re.M)
    del env["PHI3_KEY"]
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    assert done.returncode != 0
    assert "is the key that clients send" in done.stderr


# Under systemd itself, which is the first process of namespaces of its own. What it may write to is
# all in memory, so that nothing of this is left on the machine.
# (Systemd hands credentials on by mounts that are shared.)
BOOT = """
set -e
mount --make-rprivate /
mount --make-rshared /
for place in /run /var/cache /var/lib /opt; do mkdir -p $place; mount -t tmpfs tmpfs $place; done
mkdir -p /run/systemd/system
cp "$1" /opt/f.llamafile
cp -r "$2"/. /run/systemd/system
export container=lxc
exec /lib/systemd/systemd --system --unit=phi3.service --log-target=null --show-status=no
"""


@contextmanager
def booted(llamafile: Path, place: Path, *, reach: bool) -> Iterator[int]:
    """The port of the server that the unit starts."""
    port = free_port()
    unit = units(place / "units", reach=reach, file="/opt/f.llamafile", port=port)
    text = unit.read_text().replace("[Unit]", "[Unit]\nDefaultDependencies=no")
    unit.write_text(text.replace(str(unit.parent), "/run/systemd/system"))
    for drop_in in unit.parent.glob("*.d/*"):
        drop_in.write_text(drop_in.read_text().replace(str(unit.parent), "/run/systemd/system"))
    command = [need("unshare", "util-linux"), "-m", "-p", "-f", "-C", "-u", "--kill-child"]
    command += ["--mount-proc", "sh", "-c", BOOT, "boot", str(llamafile), str(unit.parent)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        deadline = time.monotonic() + 60
        while not answers(port):
            if process.poll() is not None:
                pytest.skip(f"systemd doesn't start here: {process.stderr.read().decode()}")
            assert time.monotonic() < deadline, "the unit's server does not answer"
            time.sleep(0.1)
        yield port
    finally:
        process.kill()  # and --kill-child ends all the others
        process.communicate()


def answers(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as answer:
            return answer.status == 200
    except OSError:
        return False


def asked(port: int, key: str = "") -> str:
    body = {"prompt": "The capital of France is", "n_predict": 5, "temperature": 0}
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}
    url = f"http://127.0.0.1:{port}/completion"
    request = urllib.request.Request(url, json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=120) as answer:
        return json.load(answer)["content"]


def status(port: int) -> str:
    """What the kernel says of the server's process."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
            if b"--llamafile" in words and str(port).encode() in words:
                return path.with_name("status").read_text()
        except OSError:
            continue
    raise AssertionError("there is no such process")


@pytest.mark.native
@pytest.mark.skipif(not Path("/lib/systemd/systemd").exists(), reason="apt install systemd")
@pytest.mark.skipif(os.geteuid() != 0, reason="systemd is started by root")
@pytest.mark.parametrize("reach", [False, True])
def test_the_unit_runs(llamafile: Path, tmp_path: Path, reach: bool) -> None:
    with booted(llamafile, tmp_path, reach=reach) as port:
        if reach:
            with pytest.raises(urllib.error.HTTPError, match="401"):
                asked(port)
        assert asked(port, "a-key-of-mine" if reach else "").startswith(" Paris")
        found = dict(re.findall(r"^(\w+):\s+(\S+)", status(port), re.M))
        assert found["NoNewPrivs"] == "1"
        assert found["Seccomp"] == "2"
        assert int(found["CapBnd"], 16) == int(found["CapEff"], 16) == 0
        assert int(found["Uid"]) > 60000
