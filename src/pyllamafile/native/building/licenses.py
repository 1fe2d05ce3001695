"""The notices of what is linked into a runtime, found by the files that the link was made of.

A file that no row of the tables knows stops the build: so nothing gets in without its notice.
"""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
import textwrap
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from pyllamafile.errors import PyllamafileError
from pyllamafile.native.building import tools
from pyllamafile.targets import Target

# What of a source file is its notice: the first comment that speaks of terms, the last one of all,
# the first lines.
COMMENT = r".*?/\*((?:(?!\*/).)*?(?:public domain|permission|redistribution).*?)\*/"
LAST_COMMENT = r".*/\*(.+?)\*/"
LINES = r"((?://[^\n]*\n)+)"
WHOLE = "(.*)"
COPYRIGHT = re.compile(
    r"(?:SPDX-FileCopyrightText:|copyright\s*(?:\(c\)|©|(?=\d))).*\b(?:19|20)\d\d\b.*",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Component:
    """A piece of software with a notice of its own.

    Attributes:
        name: What the notice is called.
        files: A pattern of the files that belong to it.
        notices: Where its notice is; a pattern of several files will do.
        part: What of these files it is: a pattern with a group.
    """

    name: str
    files: str
    notices: str
    part: str = WHOLE


# Paths below llama.cpp's folder; the first row that fits counts.
UPSTREAM: tuple[Component, ...] = (
    Component("cpp-httplib", "vendor/cpp-httplib/", "vendor/cpp-httplib/LICENSE"),
    Component("rotate-bits", "vendor/hash/rotate-bits/", "vendor/hash/rotate-bits/LICENSE.md"),
    Component("sha1", "vendor/hash/sha1/", "vendor/hash/sha1/sha1.c", COMMENT),
    Component("sha256", "vendor/hash/sha256/", "vendor/hash/sha256/LICENSE"),
    Component("xxHash", "vendor/hash/xxhash/", "vendor/hash/xxhash/LICENSE"),
    Component("miniaudio", "vendor/miniaudio/", "vendor/miniaudio/miniaudio.h", LAST_COMMENT),
    Component("JSON for Modern C++", "vendor/nlohmann/", "licenses/LICENSE-jsonhpp"),
    Component("subprocess.h", "vendor/sheredom/", "vendor/sheredom/subprocess.h", COMMENT),
    Component("stb_image", "vendor/stb/", "vendor/stb/stb_image.h", LAST_COMMENT),
    Component("base64.hpp", "common/base64.hpp", "common/base64.hpp", COMMENT),
    Component(
        "llamafile (sgemm)",
        "ggml/src/ggml-cpu/llamafile/",
        "ggml/src/ggml-cpu/llamafile/sgemm.cpp",
        LINES,
    ),
    Component("llama.cpp", r"vendor/hash/hash\.|(?!vendor/)", "LICENSE"),
)

# Names of what zig hands to the linker, behind the system's; notices below zig's lib folder. Its
# headers need none: the code that they leave in a program is excepted by LLVM's licence.
TOOLCHAIN: tuple[Component, ...] = (
    Component("libc++", r".*/(lib)?c\+\+\.", "libcxx/LICENSE.TXT"),
    Component("libc++abi", r".*/(lib)?c\+\+abi\.", "libcxxabi/LICENSE.TXT"),
    Component("libunwind", r".*/(lib)?unwind\.", "libunwind/LICENSE.TXT"),
    Component("zig (compiler-rt)", r".*/(lib)?(compiler_rt|zigc|ubsan_rt)\.", "../LICENSE"),
    Component("glibc (crt)", r"linux-gnu/(libc_nonshared\.a|\w*crt\w*\.o)", "libc/glibc/LICENSES"),
    Component("musl", r"linux/(libc\.a|\w*crt\w*\.o)", "libc/musl/COPYRIGHT"),
    Component("mingw-w64", "windows/", "libc/mingw/COPYING"),
    Component("FreeBSD (crt)", r"freebsd/\w+\.o", "libc/freebsd/lib/csu/**/*.[cS]", COMMENT),
    Component("NetBSD (crt)", r"netbsd/\w+\.o", "libc/netbsd/lib/csu/**/*.[cS]", COMMENT),
    Component("OpenBSD (crt)", r"openbsd/\w+\.o", "libc/openbsd/lib/csu/**/*.c", COMMENT),
)

# Below the folders that a program takes in addition, by CMake's variables for them.
ADDED: Mapping[str, tuple[Component, ...]] = {
    "ZSTD": (Component("zstd", "", "LICENSE"),),
    "VULKAN_HEADERS": (
        Component("Vulkan-Headers", "(vulkan|vk_video)/", "../share/doc/libvulkan-dev/copyright"),
        Component("SPIRV-Headers", "spirv/", "../share/doc/spirv-headers/copyright"),
    ),
    "SHADER_TABLES": (),  # made of upstream's, and of ours
    "VULKAN": (),  # ours
    "METAL_TEXTS": (),  # upstream's
}


def linked(ninja: Path, out: Path) -> list[str]:
    """Every file that a built runtime is made of: sources, headers, and what the linker was given.

    What is made in CMake's folder is left out, for it is made of the others.

    Args:
        ninja: The program that built it.
        out: CMake's folder.
    """
    inputs = set(_output([str(ninja), "-t", "inputs", "runtime"], out).splitlines())
    files: set[str] = set()
    for block in _output([str(ninja), "-t", "deps"], out).split("\n\n"):
        head, *rest = block.splitlines() or [""]
        if head.split(": #deps")[0] in inputs:
            files.update(line.strip() for line in rest)
    link = _output([str(ninja), "-t", "commands", "runtime"], out).splitlines()[-1]
    # Once more, for the linker's own command line; zig's libraries may be linked before.
    text = _output(["sh", "-c", re.sub(r" -o (runtime\S*) ", r" -v -o ../linked-\1 ", link)], out)
    given = re.search(r"^(?:ld\.lld|lld-link|zig ld) .*\.\./linked-.*$", text, re.MULTILINE)
    if not given:
        raise PyllamafileError(f"what is linked in can't be found out:\n{text[-2000:]}")
    files.update(re.findall(r"(?<=\s)/\S+\.(?:o|obj|a|lib)(?=\s|$)", given[0]))
    return sorted(file for file in files if file.startswith("/") and not _within(file, out))


def _output(command: list[str], folder: Path) -> str:
    done = subprocess.run(
        command,
        cwd=folder,
        env=tools.environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if done.returncode != 0:
        raise PyllamafileError(f"{command[0]} ended with {done.returncode}:\n{done.stdout[-2000:]}")
    return done.stdout


def notices(
    target: Target,
    files: Iterable[str],
    source: Path,
    zig: Path,
    ours: Path,
    others: Mapping[str, Path] | None = None,
) -> dict[str, str]:
    """The notices that belong to a program, by the names of its components.

    Args:
        target: What the program was made for.
        files: What it is made of, as `linked` says.
        source: llama.cpp's folder.
        zig: zig's folder.
        ours: The folder of the runtime's own sources.
        others: The folders of `ADDED`, for a program that has them.

    Raises:
        PyllamafileError: A component has none.
    """
    found = {"pyllamafile": _own()}
    system = f"{target.os}-gnu" if "-linux-gnu" in target.triple else target.os
    for file in files:
        if other := next((item for item in (others or {}).items() if _within(file, item[1])), None):
            if ADDED[other[0]]:
                name = Path(file).relative_to(other[1]).as_posix()
                component = _component(ADDED[other[0]], name)
                found.setdefault(component.name, _notice(component, other[1]))
        elif _within(file, source):
            component = _component(UPSTREAM, Path(file).relative_to(source).as_posix())
            found.setdefault(component.name, _notice(component, source))
            found[component.name] += _further_holders(Path(file), found[component.name])
        elif not _within(file, zig) and not _within(file, ours):
            made = re.search(r"/o/[0-9a-f]{32}/([^/]+)$", file)  # in zig's cache
            component = _component(TOOLCHAIN, f"{system}/{made[1]}" if made else file)
            found.setdefault(component.name, _notice(component, zig / "lib"))
    return dict(sorted(found.items(), key=lambda item: item[0].lower()))


def _within(file: str, folder: Path) -> bool:
    return Path(file).is_relative_to(folder)


def _further_holders(file: Path, notice: str) -> str:
    """Lines of a source that name somebody whom the notice doesn't."""
    lines = COPYRIGHT.findall(file.read_text(errors="replace"))
    return "".join(f"\n{line}\n" for line in dict.fromkeys(lines) if line not in notice)


def _component(table: Iterable[Component], name: str) -> Component:
    for component in table:
        if re.match(component.files, name):
            return component
    raise PyllamafileError(
        f"{name} is linked in, and no notice is known for it",
        hint=f"a row in {Path(__file__).name} has to say whose it is",
    )


def _notice(component: Component, root: Path) -> str:
    texts: dict[str, None] = {}  # several files may have the same
    for path in sorted(root.glob(component.notices)):
        text = path.read_text(errors="replace").replace("\r\n", "\n")
        if match := re.match(component.part, text, re.DOTALL | re.IGNORECASE):
            texts[match[1] if component.part == WHOLE else _bare(match[1])] = None
    if not any(map(str.strip, texts)):
        raise PyllamafileError(f"{component.name} is linked in, and its notice isn't in {root}")
    return "\n\n".join(text.strip("\n") for text in texts) + "\n"


def _bare(comment: str) -> str:
    """The text of a comment, without what marks it as one."""
    return re.sub(r"(?m)^(//| ?\*) ?", "", textwrap.dedent(comment))


def _own() -> str:
    text = importlib.metadata.distribution("pyllamafile").read_text("licenses/LICENSE")
    assert text, "pyproject.toml names LICENSE"
    return text
