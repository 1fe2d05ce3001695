"""Our declarations of Metal, held against other people's, and what is compiled with them.

Nothing here runs on a Mac: the program is linked and checked, not executed. Another test, beside
this one, executes upstream's code with our declarations, on other people's Foundation.
"""

from __future__ import annotations

import plistlib
import re
import shutil
import struct
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import lief
import metal_facts
import pytest
from metal_facts import Facts
from running import need, second_program
from witnesses import kept

import pyllamafile
from pyllamafile import native
from pyllamafile.native.building import debian, driver, metal
from pyllamafile.native.building.debian import Package
from pyllamafile.ops.verify import verify
from pyllamafile.progress import silent
from pyllamafile.targets import TARGETS, WITH_GPU

pytestmark = pytest.mark.native

MACS = ("macos-arm64", "macos-amd64")
# Whom our declarations are held against. Of what is fetched, what is read stays in the cache.
METAL_CPP = "mlx-metal==0.32.4", "macosx_14_0_arm64", r"mlx/include/metal_cpp/.*\.hpp"
PYOBJC = {
    "Metal": ("pyobjc-framework-Metal==12.2.2", "macosx_10_9_universal2", "Metal/_metadata.py"),
    "Foundation": (
        "pyobjc-framework-Cocoa==13.0",
        "macosx_10_9_universal2",
        "Foundation/_metadata.py",
    ),
}
GNUSTEP = Package(
    "libgnustep-base-dev",
    "1.31.1-3",
    "bdb32c537dc975a6308c417d39ae11e654470a667be6f3ba58f5b8525bb042ed",
)
# llama.cpp's Metal library as somebody else made it, with Apple's headers and linker.
NODE_LLAMA = "@node-llama-cpp/mac-arm64-metal@3.21.1", "/libggml-metal.so"

LARGEST_TEXT = 90_000  # bytes of the kernels' text in a program
# What macOS 13 lacks; upstream uses it on arm64 alone.
NEWER = {"_OBJC_CLASS_$_MTLResidencySetDescriptor"}
# Said of a protocol's method, but of which protocol's?
AMBIGUOUS = {("MTLCommandBuffer", "status"): "that of MTLIOCommandBuffer has a sign"}
# Types of which nobody says anything, in a function that is left out of what is compiled.
UNKNOWN = {("NSFileManager", "destinationOfSymbolicLinkAtPath:error:"): "its path and its result"}


# Fetching, once


def of_wheel(requirement: str, platform: str, members: str) -> Path:
    """Files of a wheel for Macs."""

    def fetch(folder: Path) -> None:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", requirement]
        command += ["--only-binary", ":all:", "--python-version", "3.11", "--implementation", "cp"]
        command += ["--abi", "cp311", "--abi", "none", "--platform", platform]
        subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=600)
        (wheel,) = folder.glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder, [n for n in archive.namelist() if re.fullmatch(members, n)])
        wheel.unlink()

    return kept(requirement, fetch)


@pytest.fixture(scope="module")
def metal_cpp() -> Facts:
    return metal_facts.of_metal_cpp(of_wheel(*METAL_CPP))


def pyobjc(framework: str) -> Facts:
    requirement, platform, member = PYOBJC[framework]
    return metal_facts.of_pyobjc((of_wheel(requirement, platform, member) / member).read_text())


@pytest.fixture(scope="module")
def gnustep() -> Facts:
    def fetch(folder: Path) -> None:
        packages = debian.pinned(folder / "apt", [GNUSTEP], "GNUstep's headers")
        (headers,) = debian.unpack(packages, folder / "apt" / "root").rglob("GNUstep/Foundation")
        headers.rename(folder / "Foundation")
        shutil.rmtree(folder / "apt")

    folder = kept(f"{GNUSTEP.name}-{GNUSTEP.version}", fetch)
    return metal_facts.of_gnustep(folder / "Foundation")


@pytest.fixture(scope="module")
def theirs() -> lief.MachO.Binary:
    """llama.cpp's Metal library out of node-llama-cpp."""
    package, member = NODE_LLAMA

    def fetch(folder: Path) -> None:
        command = [need("npm"), "pack", "--silent", "--fetch-retries=0", package]
        subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=600)
        (archive,) = folder.glob("*.tgz")
        with tarfile.open(archive) as files:
            (name,) = [name for name in files.getnames() if name.endswith(member)]
            (folder / "library").write_bytes(files.extractfile(name).read())
        archive.unlink()

    return lief.MachO.parse(kept(package, fetch) / "library").at(0)


# Ours


@pytest.fixture(scope="module")
def zig() -> Path:
    return driver.programs()[0]


@pytest.fixture(scope="module")
def ours(zig: Path, tmp_path_factory: pytest.TempPathFactory) -> Facts:
    target = TARGETS["macos-arm64"].triple
    return metal_facts.declared(zig, metal.SDK, target, tmp_path_factory.mktemp("ours"))


def compiled(zig: Path, target: str, folder: Path) -> list[Path]:
    """Upstream's sources in Objective-C, without a warning; unpatched."""
    ggml = native.llama_source() / "ggml"
    objects = []
    for source in sorted((ggml / "src" / "ggml-metal").glob("*.m")):
        objects.append(folder / f"{source.stem}.o")
        command = [zig, "cc", "-target", TARGETS[target].triple, *driver.OPTIMIZE.split()]
        # Clang says what is not declared, and what is newer than the system that it compiles for.
        command += ["-std=gnu11", "-Werror", "-Wno-unused", "-Wunguarded-availability"]
        command += ["-DGGML_METAL_EMBED_LIBRARY", f"-F{metal.SDK}"]
        command += [f"-I{ggml / 'include'}", f"-I{ggml / 'src'}"]
        done = subprocess.run(
            [*command, "-c", source, "-o", objects[-1]], capture_output=True, text=True
        )
        assert (done.returncode, done.stderr) == (0, "")
    assert len(objects) >= 2
    for source in (metal.packed_texts(silent) / "texts.S", metal.FOLDER / "identity.S"):
        objects.append(folder / f"{source.stem}.o")
        command = [zig, "cc", "-target", TARGETS[target].triple, f"-I{metal.FOLDER}"]
        subprocess.run([*command, "-c", source, "-o", objects[-1]], check=True)
    return objects


@pytest.fixture(scope="module", params=MACS)
def linked(
    request: pytest.FixtureRequest, zig: Path, tmp_path_factory: pytest.TempPathFactory
) -> lief.MachO.Binary:
    """A library of them, in which what ggml has is missing."""
    target = request.param
    folder = tmp_path_factory.mktemp(target)
    command = [zig, "cc", "-target", TARGETS[target].triple, "-shared", "-o", folder / "library"]
    command += [*compiled(zig, target, folder), f"-F{metal.SDK}", f"-L{metal.SDK}", "-lobjc"]
    for path in metal.SDK.glob("*.framework"):
        command += ["-framework", path.stem]
    command += ["-Wl,--gc-sections", "-Wl,-undefined,dynamic_lookup"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    return lief.MachO.parse(folder / "library").at(0)


def libraries(binary: lief.MachO.Binary) -> dict[str, list[int]]:
    """What a program is linked with, and the versions that it wants of that."""
    own = lief.MachO.LoadCommand.TYPE.ID_DYLIB
    return {
        each.name: each.compatibility_version for each in binary.libraries if each.command != own
    }


def imports(binary: lief.MachO.Binary) -> dict[str, dict[str, bool]]:
    """By library, the names that a program takes from it, and whether it does so weakly."""
    found: dict[str, dict[str, bool]] = {library: {} for library in libraries(binary)}
    for binding in binary.bindings:
        if binding.has_symbol and binding.has_library and binding.library.name in found:
            found[binding.library.name][binding.symbol.name] = binding.weak_import
    return found


def stubs() -> dict[str, set[str]]:
    """By library, the names that the linker's stubs have."""
    found = {}
    for path in metal.SDK.rglob("*.tbd"):
        text = path.read_text()
        names = {
            prefix + name
            for key, prefix in (("symbols", ""), ("objc-classes", "_OBJC_CLASS_$_"))
            for listed in re.findall(rf"{key}: \[(.*?)\]", text, re.DOTALL)
            for name in listed.replace(",", " ").split()
        }
        found[re.search(r"install-name: '(.*)'", text)[1]] = names
    return found


def messages(binary: lief.MachO.Binary) -> set[str]:
    """The selectors that a program sends."""
    (names,) = [each for each in binary.sections if each.name == "__objc_methname"]
    return set(bytes(names.content).decode().strip("\0").split("\0"))


# What is declared


def test_every_method_is_as_others_have_it(ours: Facts, metal_cpp: Facts, gnustep: Facts) -> None:
    frameworks = [pyobjc(name) for name in PYOBJC]
    wrong, unknown = {}, set()
    for method, types in ours.methods.items():
        of_protocols = ("NSObject", method[1])
        said = [metal_cpp.methods.get(method), gnustep.methods.get(method)]
        said += [each.methods.get(method) for each in frameworks]
        if method not in AMBIGUOUS:
            said += [each.methods.get(of_protocols) for each in frameworks]
        said = [each for each in said if each]
        columns = [{each[n] for each in said} - {""} for n in range(len(types))]
        if any(column - {own} for column, own in zip(columns, types, strict=True)):
            wrong[method] = types, said
        if not all(columns):
            unknown.add(method)
    assert wrong == {}
    assert unknown == UNKNOWN.keys()
    assert len(ours.methods) > 100


def test_every_number_is_as_others_have_it(ours: Facts, metal_cpp: Facts) -> None:
    frameworks = [pyobjc(name) for name in PYOBJC]
    for constant, value in ours.values.items():
        assert metal_cpp.values[constant] == value
        assert {each.values.get(constant) for each in frameworks} - {None} == {value}
    assert {name: metal_cpp.enums.get(name) for name in ours.enums} == ours.enums
    assert len(ours.values) > 15


def test_every_function_and_constant_is_as_others_have_it(ours: Facts) -> None:
    frameworks = [pyobjc(name) for name in PYOBJC]
    for name, types in ours.functions.items():
        assert [each.functions[name] for each in frameworks if name in each.functions] == [types]
    assert ours.constants <= frozenset().union(*(each.constants for each in frameworks))
    assert {"MTLCreateSystemDefaultDevice", "NSMakeRange"} <= ours.functions.keys()
    assert "NSLocalizedDescriptionKey" in ours.constants


def test_a_wrong_declaration_is_seen(
    zig: Path, metal_cpp: Facts, gnustep: Facts, tmp_path: Path
) -> None:
    """The three tests above, on headers in which one thing of each kind is wrong."""
    sdk = tmp_path / "sdk"
    shutil.copytree(metal.SDK, sdk)
    header = sdk / "Metal.framework" / "Headers" / "Metal.h"
    text = header.read_text()
    for right, wrong in (
        ("value:(uint8_t)value", "value:(NSUInteger)value"),
        ("- (void)popDebugGroup", "- (void)popDebugGroups"),
        ("MTLDataTypeBool = 53", "MTLDataTypeBool = 54"),
        ("MTLSizeMake(NSUInteger width", "MTLSizeMake(int width"),
    ):
        assert text.count(right) == 1
        text = text.replace(right, wrong)
    header.write_text(text)
    facts = metal_facts.declared(zig, sdk, TARGETS["macos-arm64"].triple, tmp_path)
    for test, named in (
        (lambda: test_every_method_is_as_others_have_it(facts, metal_cpp, gnustep), "fillBuffer"),
        (lambda: test_every_number_is_as_others_have_it(facts, metal_cpp), "54"),
        (lambda: test_every_function_and_constant_is_as_others_have_it(facts), "{MTLSize=QQQ}iQQ"),
    ):
        with pytest.raises(AssertionError, match=re.escape(named)):
            test()


# What is compiled with it, unpatched


def test_the_stubs_have_what_is_linked_and_nothing_else(linked: lief.MachO.Binary) -> None:
    needless = set() if is_arm64(linked) else NEWER
    found = {library: set(names) for library, names in imports(linked).items()}
    for library, names in stubs().items():
        assert found[library] == names - needless
    assert found.keys() - stubs().keys() == {"/usr/lib/libSystem.B.dylib"}


def test_what_macos_13_lacks_is_looked_for_weakly(linked: lief.MachO.Binary) -> None:
    weak = {name for names in imports(linked).values() for name, weak in names.items() if weak}
    assert weak == (NEWER if is_arm64(linked) else set())
    assert linked.build_version.minos == [13, 0, 0]


def test_classes_and_selectors_are_where_the_runtime_looks(linked: lief.MachO.Binary) -> None:
    sections = {each.name: each for each in linked.sections}
    selectors = sections["__objc_selrefs"]
    assert selectors.segment_name == "__DATA"
    assert selectors.type == lief.MachO.Section.TYPE.LITERAL_POINTERS
    assert selectors.size == 8 * len(messages(linked))
    # Without it, the runtime takes no notice of the rest. zig's linker keeps one of each object.
    marks = bytes(sections["__objc_imageinfo"].content)
    assert {marks[at : at + 8] for at in range(0, len(marks), 8)} == {struct.pack("<2I", 0, 0x40)}


def test_each_text_has_its_room_and_the_program_its_identity(linked: lief.MachO.Binary) -> None:
    places = {symbol.name: symbol.value for symbol in linked.symbols}
    texts = metal.texts(native.llama_source())
    assert (metal.packed_texts(silent) / "texts.zst").stat().st_size < LARGEST_TEXT
    for name, text in texts.items():
        start, end = (places[f"_ggml_metallib_{name}_{at}"] for at in ("start", "end"))
        assert end - start == len(text)
    zeros = linked.get_section("__DATA", "__bss")
    assert zeros.type == lief.MachO.Section.TYPE.ZEROFILL
    start, end = places["_kernel_texts_start"], places["_kernel_texts_end"]
    assert end - start == sum(map(len, texts.values()))
    assert zeros.virtual_address <= start <= end <= zeros.virtual_address + zeros.size
    assert identity(linked) == "pyllamafile"


def identity(binary: lief.MachO.Binary) -> str:
    """By which macOS keeps compiled kernels."""
    content = binary.get_section("__TEXT", "__info_plist").content
    return str(plistlib.loads(bytes(content))["CFBundleIdentifier"])


def is_arm64(binary: lief.MachO.Binary) -> bool:
    return binary.header.cpu_type == lief.MachO.Header.CPU_TYPE.ARM64


@pytest.mark.parametrize("linked", ["macos-arm64"], indirect=True)
def test_it_is_as_somebody_elses(linked: lief.MachO.Binary, theirs: lief.MachO.Binary) -> None:
    """Of the same upstream, compiled on a Mac, with Apple's headers."""
    # Apple's clang calls a function for that.
    assert messages(linked) ^ messages(theirs) <= {"new", "location"}
    own, other = imports(linked), imports(theirs)
    for library in stubs():
        assert own[library].keys() == other[library].keys() - {"_objc_opt_new"}
        assert all(weak == other[library][name] for name, weak in own[library].items())
    assert libraries(linked).items() <= libraries(theirs).items()
    assert linked.build_version.minos <= theirs.build_version.minos  # 14.0


# The whole program, for who has compiled it


@pytest.fixture
def whole() -> bytes:
    if not (runtime := native.find(WITH_GPU["macos-arm64-gpu"])):
        pytest.skip("no macos-arm64-gpu is at hand: pyllamafile runtimes build --gpu")
    return runtime.program()


def test_the_whole_runtime_loads_on_macos_13(whole: bytes) -> None:
    """Beside what test_structure.py asks of it."""
    binary = lief.MachO.parse(list(whole)).at(0)
    found = imports(binary)
    assert {library: found[library].keys() for library in stubs()} == stubs()
    assert found.keys() - stubs().keys() == {"/usr/lib/libSystem.B.dylib"}
    assert {name for names in found.values() for name, weak in names.items() if weak} == NEWER
    assert identity(binary) == "pyllamafile"
    assert (metal.packed_texts(silent) / "texts.zst").read_bytes() in whole
    (zeros,) = [each for each in binary.sections if each.name == "__bss"]
    assert zeros.size > sum(map(len, metal.texts(native.llama_source()).values()))
    # No text is in it twice; upstream asks a GPU by a kernel of that name whether it has tensors.
    assert set(re.findall(rb"kernel void (\w+)", whole)) == {b"dummy_kernel"}


def test_a_file_has_the_whole_runtime_for_a_mac(whole: bytes, tmp_path: Path) -> None:
    target = "macos-arm64"
    file = pyllamafile.build(output=tmp_path / "f", targets=target, gui=False, gpu=True).path
    assert verify(file) == []
    assert second_program(file) == whole
    assert list(pyllamafile.inspect(file).gpus) == [target]
    with zipfile.ZipFile(file) as archive:
        entries = {name for name in archive.namelist() if name.startswith("gpu/")}
    assert entries == {f"gpu/{target}.zst"}  # no shaders, which Vulkan alone takes
