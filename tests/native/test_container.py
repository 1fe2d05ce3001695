"""A llamafile in containers: by podman, and by runc and crun from what umoci unpacks."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

import loadable
import pytest
from oci import images
from running import free_port, need, ready

import pyllamafile

ASKED = ("-p", "The capital of France is", "-n", "8", "--temp", "0")
Runner = Callable[..., list[str]]


@pytest.fixture(scope="module")
def image(llamafile: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pyllamafile.export(llamafile, tmp_path_factory.mktemp("oci") / "image").path


def unpacked(image: Path, folder: Path) -> Path:
    """A bundle of the image, with the machine's own network: these tests are not about that."""
    command = [need("umoci"), "unpack", "--image", f"{image}:latest", str(folder)]
    subprocess.run(command, check=True, capture_output=True)
    config = json.loads((folder / "config.json").read_text())
    config["process"]["terminal"] = False
    config["process"].pop("rlimits", None)
    config["root"]["readonly"] = True
    config["mounts"] = [mount for mount in config["mounts"] if mount["type"] != "cgroup"]
    linux = config["linux"]
    linux.pop("resources", None)
    linux["namespaces"] = [n for n in linux["namespaces"] if n["type"] not in ("network", "cgroup")]
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def low_level(program: str, *options: str) -> Callable[[Path, Path], Runner]:
    def prepare(image: Path, place: Path) -> Runner:
        need(program)
        bundle = unpacked(image, place / "bundle")
        entry = json.loads((bundle / "config.json").read_text())
        own = [*entry["process"]["args"]]

        def run(*arguments: str) -> list[str]:
            entry["process"]["args"] = [*own, *arguments]
            (bundle / "config.json").write_text(json.dumps(entry))
            start = [program, "--root", str(place / "state"), *options, "run"]
            return [*start, "--bundle", str(bundle), place.name]

        return run

    return prepare


def by_podman(image: Path, place: Path) -> Runner:
    need("podman")
    store = ["podman", "--root", str(place / "root"), "--runroot", str(place / "run")]
    store += ["--storage-driver", "vfs", "--cgroup-manager", "cgroupfs", "--log-level", "error"]
    store += ["--runtime", need("runc")]  # crun wants control groups of one kind
    pull = [*store, "pull", "-q", f"oci:{image}"]
    pulled = subprocess.run(pull, check=True, capture_output=True, text=True).stdout.strip()
    options = ["--rm", "--read-only", "--network", "host"]
    options += ["--ulimit", "nofile=1024:1024", "--ulimit", "nproc=4096:4096"]
    return lambda *arguments: [*store, "run", *options, pulled, *arguments]


RUNNERS = {
    "podman": by_podman,
    "runc": low_level("runc"),
    "crun": low_level("crun", "--cgroup-manager", "disabled"),
}


@pytest.fixture(scope="module", params=RUNNERS)
def container(
    request: pytest.FixtureRequest, image: Path, tmp_path_factory: pytest.TempPathFactory
) -> Runner:
    """Gives the command line that starts a container of the image with these arguments."""
    place = tmp_path_factory.mktemp(request.param)
    runner = RUNNERS[request.param](image, place)
    done = subprocess.run(runner("--version"), capture_output=True, text=True, timeout=120)
    if done.returncode and re.search("not supported|not permitted|denied", done.stderr):
        pytest.skip(f"{request.param} can't run containers here: {done.stderr.strip()[-200:]}")
    assert done.returncode == 0, done
    return runner


def test_it_answers(container: Runner) -> None:
    done = subprocess.run(container(*ASKED), capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("The capital of France is Paris.")


def test_the_server(container: Runner) -> None:
    """For whoever reaches the container, with a key; not root; and it ends when it is told to."""
    port = free_port()
    command = container("--port", str(port))
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL)
    try:
        url, _, key = ready(process).partition("#key=")
        assert key
        with urllib.request.urlopen(f"{url}health") as answer:
            assert answer.status == 200
        with urllib.request.urlopen(url) as answer:
            assert b"<html" in answer.read()
        with pytest.raises(urllib.error.HTTPError, match="401"):
            urllib.request.urlopen(f"{url}v1/models")
        asked = urllib.request.Request(
            f"{url}v1/models", headers={"Authorization": f"Bearer {key}"}
        )
        with urllib.request.urlopen(asked) as answer:
            assert "SmolLM2" in answer.read().decode()
        server = min(servers(port))  # the other one keeps states
        status = Path(f"/proc/{server}/status").read_text()
        assert re.search(r"^Uid:\s+65532\s", status, re.M)
        assert re.search(r"^NSpid:.*\s1$", status, re.M)
        os.kill(server, signal.SIGTERM)
        assert process.wait(timeout=30) == 0
    finally:
        for server in servers(port):
            os.kill(server, signal.SIGKILL)
        process.wait(timeout=30)
        assert process.stdout
        process.stdout.close()


def servers(port: int) -> list[int]:
    """The processes inside of a container that were started for a port."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if words[0] == b"/usr/bin/llamafile" and str(port).encode() in words:
            found.append(int(path.parent.name))
    return found


def test_other_readers_find_the_same(image: Path, tmp_path: Path) -> None:
    (found,) = images(image).values()
    shown = subprocess.run(
        [need("skopeo"), "inspect", f"oci:{image}:latest"], capture_output=True, check=True
    )
    assert tuple(json.loads(shown.stdout)["Layers"]) == found.layers
    bundle = unpacked(image, tmp_path / "bundle") / "rootfs"
    there = {str(p.relative_to(bundle)): p for p in bundle.rglob("*") if p.is_file()}
    assert there.keys() == found.files.keys()
    for name, (mode, content) in found.files.items():
        assert there[name].read_bytes() == content
        assert there[name].stat().st_mode & 0o777 == mode
    copy = [
        need("skopeo"),
        "copy",
        "-q",
        "--preserve-digests",
        f"oci:{image}:latest",
        f"oci:{tmp_path}/copy:latest",
    ]
    subprocess.run(copy, check=True)
    blobs = [
        {path.name for path in folder.rglob("blobs/*/*")} for folder in (image, tmp_path / "copy")
    ]
    assert blobs[0] == blobs[1]


def test_a_server_of_several_models(smollm2: Path, tmp_path: Path, runtime: Path) -> None:
    """The program of the image, with its models where they would be. (A container's is alike.)"""
    file = tmp_path / "two.llamafile"
    loadable.llama().write(tmp_path / "second.gguf")
    pyllamafile.build([smollm2, tmp_path / "second.gguf"], file, targets=["linux-amd64"])
    image = pyllamafile.export(file, tmp_path / "image").path
    bundle = unpacked(image, tmp_path / "bundle")
    port = free_port()
    config = json.loads((bundle / "config.json").read_text())
    config["process"]["args"] += ["--port", str(port)]
    config["process"]["env"].append("LLAMA_API_KEY=secret")
    (bundle / "config.json").write_text(json.dumps(config))
    command = [need("runc"), "--root", str(tmp_path / "state"), "run", "--bundle", str(bundle)]
    process = subprocess.Popen([*command, "two"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        try:
            url, key = ready(process), "secret"
        except AssertionError:
            said = process.stderr.read().decode()
            if re.search("not supported|not permitted|denied", said):
                pytest.skip(f"runc can't run containers here: {said}")
            raise AssertionError(said) from None
        asked = urllib.request.Request(
            f"{url}v1/models", headers={"Authorization": f"Bearer {key}"}
        )
        with urllib.request.urlopen(asked) as answer:
            names = {model["id"] for model in json.load(answer)["data"]}
        assert names == {smollm2.stem, "second"}
        body = {"model": smollm2.stem, "prompt": ASKED[1], "max_tokens": 4, "temperature": 0}
        asked = urllib.request.Request(
            f"{url}v1/completions",
            json.dumps(body).encode(),
            {"Authorization": f"Bearer {key}", "Content-Type": "application/json"},
        )
        with urllib.request.urlopen(asked, timeout=120) as answer:
            assert "Paris" in json.load(answer)["choices"][0]["text"]
    finally:
        for server in servers(port):
            os.kill(server, signal.SIGTERM)
        process.wait(timeout=30)
        process.stdout.close()
        process.stderr.close()
