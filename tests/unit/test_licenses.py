"""Whose software is in a file: nothing is linked or bundled without its notice."""

from __future__ import annotations

import dataclasses
import json
import re
import zipfile
from pathlib import Path

import pytest
from running import needs

from pyllamafile import native
from pyllamafile.errors import PyllamafileError
from pyllamafile.native.building import driver, gui, licenses, tools
from pyllamafile.progress import silent
from pyllamafile.targets import TARGETS, WITH_GPU

TARGET = TARGETS["linux-amd64"]

# What `zig c++ -v` says that it links, by system, and whose that is.
LLVM = {"libc++", "libc++abi", "libunwind"}
LIBRARIES = {
    "linux": ("crt1.o libc++abi.a libc++.a libunwind.a libzigc.a libc.a libcompiler_rt.a", LLVM),
    "windows": (
        "crt2.obj libmingw32.lib zigc.lib c++abi.lib c++.lib unwind.lib compiler_rt.lib "
        "api-ms-win-crt-heap-l1-1-0.lib kernel32.lib",
        LLVM,
    ),
    "macos": ("libc++abi.a libc++.a libcompiler_rt.a", LLVM - {"libunwind"}),
    "freebsd": ("crt1.o libc++abi.a libc++.a libunwind.a libcompiler_rt.a", LLVM),
    "netbsd": ("crt0.o libc++abi.a libc++.a libunwind.a libcompiler_rt.a", LLVM),
    "openbsd": ("crt0.o libc++abi.a libc++.a libunwind.a libcompiler_rt.a", LLVM),
}
SYSTEMS = {
    "linux": ("musl", "Rich Felker"),
    "windows": ("mingw-w64", "mingw-w64 project"),
    "freebsd": ("FreeBSD (crt)", "FreeBSD"),
    "netbsd": ("NetBSD (crt)", "Christos Zoulas"),
    "openbsd": ("OpenBSD (crt)", "Paul Kranenburg"),
}


def notices(files: list[str], source: Path, system: str = "linux") -> dict[str, str]:
    target = dataclasses.replace(TARGET, name=f"{system}-amd64")
    return licenses.notices(target, files, source, tools.package("ziglang"), driver.RUNTIME)


@needs("ziglang")
@pytest.mark.parametrize("system", LIBRARIES)
def test_what_the_compiler_links_in(tmp_path: Path, system: str) -> None:
    names, expected = LIBRARIES[system]
    found = notices([f"/cache/o/{'0' * 32}/{name}" for name in names.split()], tmp_path, system)
    name, words = SYSTEMS.get(system, ("pyllamafile", "Apache License"))
    assert found.keys() == {*expected, name, "pyllamafile", "zig (compiler-rt)"}
    assert words in found[name]
    assert "LLVM Exceptions" in found["libc++"]
    assert (
        "Andrew Kelley" in found["zig (compiler-rt)"] or "Zig contrib" in found["zig (compiler-rt)"]
    )


@needs("ziglang")
def test_what_a_program_with_gpus_takes_in_addition(tmp_path: Path) -> None:
    headers, zstd = tmp_path / "root" / "usr" / "include", tmp_path / "zstd"
    notes = {
        tmp_path / "root/usr/share/doc/libvulkan-dev/copyright": "Khronos",
        tmp_path / "root/usr/share/doc/spirv-headers/copyright": "Khronos, too",
        zstd / "LICENSE": "Meta",
    }
    headers.mkdir(parents=True)
    for path, text in notes.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    others = {"VULKAN_HEADERS": headers, "ZSTD": zstd, "VULKAN": tmp_path / "ours"}
    files = [headers / "vulkan/vulkan.hpp", headers / "spirv/unified1/spirv.hpp", zstd / "zstd.c"]
    files += [tmp_path / "ours" / "loader.cpp"]
    names = [f"/cache/o/{'0' * 32}/{name}" for name in ("Scrt1.o", "libc_nonshared.a")]
    found = licenses.notices(
        WITH_GPU["linux-amd64-gnu"],
        [*map(str, files), *names],
        tmp_path / "llama.cpp",
        tools.package("ziglang"),
        driver.RUNTIME,
        others,
    )
    texts = {"Vulkan-Headers": "Khronos\n", "SPIRV-Headers": "Khronos, too\n", "zstd": "Meta\n"}
    assert found.keys() == {*texts, "glibc (crt)", "pyllamafile"}
    assert {name: found[name] for name in texts} == texts
    assert "GNU C Library" in found["glibc (crt)"]


def test_a_link_that_says_nothing_stops_the_build(tmp_path: Path) -> None:
    """A ninja that knows nothing but a command: the linker's own one must be found."""
    ninja = tmp_path / "ninja"
    script = (
        '#!/bin/sh\n[ "$2" != commands ] || echo "echo {} -o runtime own.o /c.so.7 /x/crt1.o"\n'
    )
    ninja.write_text(script.format("ld.lld"))
    ninja.chmod(0o755)
    assert licenses.linked(ninja, tmp_path) == ["/x/crt1.o"]
    ninja.write_text(script.format("gcc"))
    with pytest.raises(PyllamafileError, match="what is linked in can't be found out"):
        licenses.linked(ninja, tmp_path)


@needs("ziglang")
@pytest.mark.parametrize(
    "file",
    [
        "/cache/o/" + "0" * 32 + "/libcuda.a",
        "{source}/vendor/new/new.h",
        "/usr/include/new.h",
        "/usr/lib/libnew.a",
    ],
)
def test_what_nobody_knows_stops_the_build(tmp_path: Path, file: str) -> None:
    with pytest.raises(PyllamafileError, match="is linked in, and no notice is known for it"):
        notices([file.format(source=tmp_path)], tmp_path)


@needs("ziglang")
def test_a_notice_that_is_gone_stops_the_build(tmp_path: Path) -> None:
    with pytest.raises(PyllamafileError, match="xxHash is linked in, and its notice isn't in"):
        notices([f"{tmp_path}/vendor/hash/xxhash/xxhash.c"], tmp_path)


@needs("ziglang")
@pytest.mark.parametrize("terms", ["Permission is granted", "Redistribution is", "Public domain"])
def test_the_comment_that_speaks_of_terms(tmp_path: Path, terms: str) -> None:
    """For files that carry their notice themselves."""
    header = tmp_path / "vendor" / "sheredom" / "subprocess.h"
    header.parent.mkdir(parents=True)
    header.write_text(f"/* a name */\n/*\n * {terms}\n *\n * to all\n */\n/* more */ int x;\n")
    found = notices([str(header)], tmp_path)
    assert found["subprocess.h"] == f"{terms}\n\nto all\n"


@needs("ziglang")
def test_who_is_named_only_in_a_source_is_named_in_the_notice(tmp_path: Path) -> None:
    (tmp_path / "LICENSE").write_text("MIT, Copyright (c) 2023 The ggml authors\n")
    (tmp_path / "a.cpp").write_text("// Copyright (c) 2023 The ggml authors\n")
    text = "// MIT licensed. Copyright (c) 2022 Jo Doe.\nx['copyright'] = '(c) 2021';\n"
    (tmp_path / "b.cpp").write_text(text)
    found = notices([f"{tmp_path}/{name}" for name in ("a.cpp", "b.cpp", "b.cpp")], tmp_path)
    assert found["llama.cpp"] == (
        "MIT, Copyright (c) 2023 The ggml authors\n\nCopyright (c) 2022 Jo Doe.\n"
    )


# The pages


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """What npm leaves behind: packages, the bundle's list of files, the service worker."""
    for name, facts, text in (
        ("svelte", {"version": "5.0", "license": "MIT"}, "MIT, svelte"),
        ("@a/b", {"version": "1.0"}, "MIT, shared"),
        ("c", {"version": "2.0"}, "MIT, shared"),
        ("c/node_modules/svelte", {"version": "4.0"}, "MIT, old svelte"),
        ("silent", {"version": "1.1", "license": "MIT", "author": {"name": "Jo"}}, ""),
        ("tool", {"version": "9"}, "not in the pages"),
        ("workbox-core", {"version": "7", "dependencies": {"idb": "^7"}}, "MIT, workbox"),
        ("idb", {"version": "7.1"}, "ISC, idb"),
        *((name, {"version": "3"}, f"MIT, {name}") for name in gui.WRITTEN_IN),
    ):
        folder = tmp_path / "node_modules" / name
        folder.mkdir(parents=True)
        (folder / "package.json").write_text(
            json.dumps({"name": name.split("/node_modules/")[-1], **facts})
        )
        if text:
            (folder / "LICENSE").write_text(text)
        (folder / "license-tool.js").write_text("no notice")
    vendored = tmp_path / "src" / "lib" / "vendors" / "copied"
    vendored.mkdir(parents=True)
    (vendored / "LICENCE.md").write_text("BSD, copied")
    files = ["src/app.css", "node_modules/@a/b/x.js?v=1", "node_modules/silent/x.css"]
    files += ["node_modules/c/x.js", "node_modules/c/node_modules/svelte/x.js"]
    (tmp_path / "bundled-files.json").write_text(
        json.dumps([*(f"{tmp_path}/{file}" for file in files), "\0node_modules/svelte/x.js"])
    )
    (tmp_path / "dist").mkdir()
    (tmp_path / "dist" / "workbox-1.js").write_text('self["workbox:core:7.4.0"]&&_()')
    return tmp_path


def test_every_package_of_the_pages_is_named_with_its_licence(work: Path) -> None:
    text = gui.notices(work, gui.packages(work))
    sections = dict(re.findall(r"^(.+)\n-{72}\n\n((?:.|\n)+?)\n\n\n", text + "\n", re.M))
    assert sections.pop("silent 1.1").startswith("MIT license\n\nCopyright (c) Jo\n\nPermission")
    assert sections == {
        "svelte 5.0": "MIT, svelte",
        "svelte 4.0": "MIT, old svelte",
        "@a/b 1.0, c 2.0": "MIT, shared",
        "workbox-core 7": "MIT, workbox",
        "idb 7.1": "ISC, idb",
        "copied": "BSD, copied",
        **{f"{name} 3": f"MIT, {name}" for name in gui.WRITTEN_IN},
    }


def test_a_package_without_a_licence_stops_the_build(work: Path) -> None:
    (work / "node_modules" / "c" / "LICENSE").unlink()
    with pytest.raises(PyllamafileError, match=r"c is in the web GUI and brings no licence"):
        gui.notices(work, gui.packages(work))


# The real ones

HOLDER = re.compile(
    r"copyright\s*(?:\(c\)|©|:)?\s*(?:\d[\d\s,-]*)(?:present)?,?\s+([^\n*]{3,60})", re.I
)


@pytest.mark.native
def test_every_holder_of_a_copyright_in_the_sources_is_named(runtime: Path) -> None:
    """A second opinion, which knows nothing of the tables: the sources' own words."""
    built = native.find(TARGET)
    text = " ".join(" ".join(built.licenses.values()).split())
    ninja = tools.program("ninja")
    source = native.llama_source()
    out = native.build_folder(TARGET) / "out"
    if not (out / "runtime").is_file():  # the runtime came from elsewhere
        driver.compile_runtime(TARGET, source, None, silent)
    files = licenses.linked(ninja, out)
    ours = [Path(file) for file in files if Path(file).is_relative_to(source)]
    assert len(ours) > 300
    holders = {
        match[1].split("<")[0].split(". ")[0].strip(" .")
        for file in ours
        for match in HOLDER.finditer(file.read_text(errors="replace"))
    }
    assert "Mozilla Foundation" in holders
    assert [holder for holder in sorted(holders) if holder not in text] == []


@pytest.mark.native
def test_every_licence_that_the_pages_mention_is_there() -> None:
    """Banners that the bundler keeps, and workbox's own names, are in the pages themselves."""
    with zipfile.ZipFile(native.build_gui()) as archive:
        text = archive.read(gui.NOTICES).decode()
        scripts = [archive.read(n).decode() for n in archive.namelist() if n.endswith(".js")]
    named = set()
    for script in scripts:
        named |= {f"workbox-{name}" for name in re.findall(r'"workbox:([a-z-]+):', script)}
        named |= set(re.findall(r"/\*!? ?@license ([\w.-]+)", script))
    assert len(named) > 4
    assert [name for name in sorted(named) if name.lower() not in text.lower()] == []
    for name in ("svelte", "mermaid", "katex", "highlight.js", "pdfjs-dist", "tailwindcss", "idb"):
        assert re.search(rf"^(.*, )?{re.escape(name)} \d", text, re.M), name
