"""The table of systems that a llamafile can run on.

A new target is a row in `TARGETS`; a new instruction set is a row in `LEVELS`.
"""

from __future__ import annotations

import platform
from collections.abc import Iterable
from dataclasses import dataclass, replace

from pyllamafile.errors import NotFoundError

TOO_LARGE = 4 << 30
"""Windows starts no program of so many bytes or more."""


@dataclass(frozen=True)
class Level:
    """An instruction set that the matrix kernels are compiled for.

    Attributes:
        name: What `--version` calls it, for example ``v3``. native/cpu.cpp knows by it how to
            recognise such a processor.
        flags: The compiler's flags that enable it.
        sources: Those of the kernels that come out otherwise than for the level below, which has
            the others; none for all.
    """

    name: str
    flags: tuple[str, ...]
    sources: tuple[str, ...] = ()


@dataclass(frozen=True)
class Target:
    """An operating system on a processor architecture.

    Attributes:
        name: ``OS-ARCH``, as the command line spells it.
        triple: What ``zig cc -target`` calls it, minimum version included.
        uname: What the launch script gets as the answer of ``uname -sm`` there, as shell
            patterns; none where no script is asked.
        system: CMake's CMAKE_SYSTEM_NAME.
        base: The processor that everything outside the kernels may assume
            (``zig cc -mcpu``).
        levels: The instruction sets of the kernels, slowest first.
        gpu: By what its program uses GPUs, a row of native/building/gpus.py; none for a plain one.
        flags: More flags of the compiler's.
    """

    name: str
    triple: str
    uname: tuple[str, ...]
    system: str
    base: str
    levels: tuple[Level, ...]
    gpu: str = ""
    flags: tuple[str, ...] = ()

    @property
    def os(self) -> str:
        """The operating system, for example ``linux``."""
        return self.name.split("-")[0]

    @property
    def arch(self) -> str:
        """The architecture: ``amd64`` or ``arm64``."""
        return self.name.split("-")[1]

    @property
    def plain(self) -> str:
        """The name of the target of the same system and architecture that uses no GPU."""
        return f"{self.os}-{self.arch}"


def _level(name: str, flags: str, below: Level | None = None, sources: str = "") -> Level:
    return Level(name, (*(below.flags if below else ()), *flags.split()), tuple(sources.split()))


# x86-64 psABI, microarchitecture levels; ggml has no use for what else v2 and v3 comprise.
AMD64_V2 = _level("v2", "-mssse3 -msse4.1 -msse4.2 -mpopcnt")
AMD64_V3 = _level("v3", "-mavx -mavx2 -mfma -mf16c -mbmi2", AMD64_V2)
# Intel's laptops and desktops since Alder Lake, which have no AVX-512.
AMD64_VNNI = _level("avxvnni", "-mavxvnni", AMD64_V3)
# Intel's servers since Cascade Lake, its laptops from Ice Lake to Tiger Lake; AMD since Zen 4.
AMD64_AVX512 = _level(
    "avx512", "-mavx512f -mavx512cd -mavx512bw -mavx512dq -mavx512vl -mavx512vnni", AMD64_V3
)
# Intel since Sapphire Rapids, AMD since Zen 4; it doubles the prompt speed of BF16 weights.
AMD64_BF16 = _level("avx512bf16", "-mavx512bf16", AMD64_AVX512, "gemm.cpp vec.cpp")

# zig takes the last -mcpu, with LLVM's names of features. What has dotprod is Armv8.2, and so has
# lse, whose atomics a barrier of many threads takes. SVE is left out: nobody could measure here
# whether it pays.
ARM64_V8 = _level("v8", "")
ARM64_DOTPROD = _level("dotprod", "-mcpu=generic+dotprod+fullfp16+lse")
ARM64_I8MM = _level("i8mm", "-mcpu=generic+dotprod+fullfp16+lse+i8mm")

# Every Apple Silicon has what `dotprod` is, since the M2 also what `i8mm` is.
APPLE_M1 = _level("dotprod", "-mcpu=apple_m1")
APPLE_M2 = _level("i8mm", "-mcpu=apple_m1+i8mm")

_AMD64 = (AMD64_V2, AMD64_V3, AMD64_VNNI, AMD64_AVX512, AMD64_BF16)
_ARM64 = (ARM64_V8, ARM64_DOTPROD, ARM64_I8MM)
# No Mac has what `avxvnni` is. Few have what `avx512` is, and macOS hides it until it is used.
_INTEL_MAC = (AMD64_V2, AMD64_V3)

TARGETS: dict[str, Target] = {
    target.name: target
    for target in (
        # Static, so that only the kernel's version matters.
        Target(
            "linux-amd64",
            "x86_64-linux.5.10-musl",
            ("Linux x86_64", "Linux amd64"),
            "Linux",
            "x86_64",
            _AMD64,
        ),
        Target(
            "linux-arm64",
            "aarch64-linux.5.10-musl",
            ("Linux aarch64", "Linux arm64"),
            "Linux",
            "generic",
            _ARM64,
        ),
        Target(
            "macos-amd64",
            "x86_64-macos.13.0",
            ("Darwin x86_64",),
            "Darwin",
            "x86_64",
            _INTEL_MAC,
        ),
        Target(
            "macos-arm64",
            "aarch64-macos.13.0",
            ("Darwin arm64",),
            "Darwin",
            "apple_m1",
            (APPLE_M1, APPLE_M2),
        ),
        # Windows starts programs itself, without a script.
        Target("windows-amd64", "x86_64-windows.win10-gnu", (), "Windows", "x86_64", _AMD64),
        Target("windows-arm64", "aarch64-windows.win10-gnu", (), "Windows", "generic", _ARM64),
        Target(
            "freebsd-amd64",
            "x86_64-freebsd.14.0",
            ("FreeBSD amd64",),
            "FreeBSD",
            "x86_64",
            _AMD64,
        ),
        Target(
            "freebsd-arm64",
            "aarch64-freebsd.14.0",
            ("FreeBSD arm64",),
            "FreeBSD",
            "generic",
            _ARM64,
        ),
        # zig knows no older libc than that of 10.1.
        Target(
            "netbsd-amd64",
            "x86_64-netbsd.10.1",
            ("NetBSD amd64",),
            "NetBSD",
            "x86_64",
            _AMD64,
        ),
        # `uname -p` there; `uname -m` names the board.
        Target(
            "netbsd-arm64",
            "aarch64-netbsd.10.1",
            ("NetBSD aarch64",),
            "NetBSD",
            "generic",
            _ARM64,
        ),
        Target(
            "openbsd-amd64",
            "x86_64-openbsd.7.8",
            ("OpenBSD amd64",),
            "OpenBSD",
            "x86_64",
            _AMD64,
        ),
        Target(
            "openbsd-arm64",
            "aarch64-openbsd.7.8",
            ("OpenBSD arm64",),
            "OpenBSD",
            "generic",
            _ARM64,
        ),
    )
}


# For glibc zig compiles everything as for libraries, which may lie anywhere in memory. A file has
# what two programs have in common once, so the second one gets the instructions of the first. Such
# a program has copies of glibc's variables: native/vulkan/environment.c says what that takes.
_FIXED_ADDRESSES = (
    *("-Xclang", "-mrelocation-model", "-Xclang", "static"),
    *("-Xclang", "-pic-level", "-Xclang", "0"),
)


def _second(name: str, gpu: str, triple: str = "", flags: tuple[str, ...] = ()) -> Target:
    plain = TARGETS[name.rpartition("-")[0]]
    return replace(plain, name=name, triple=triple or plain.triple, uname=(), gpu=gpu, flags=flags)


# Second programs of targets, which have all that the plain ones have, and use GPUs. Each is linked
# and checked; docs/targets.md says which were executed, and on what. They are no targets of their
# own: a file has them beside the plain ones.
WITH_GPU: dict[str, Target] = {
    target.name: target
    for target in (
        # A static program can't load drivers, and most drivers are made for glibc. zig has all
        # versions of that.
        _second("linux-amd64-gnu", "vulkan", "x86_64-linux-gnu.2.28", _FIXED_ADDRESSES),
        _second("linux-arm64-gnu", "vulkan", "aarch64-linux-gnu.2.28", _FIXED_ADDRESSES),
        # None for Macs with Intel's processor: upstream multiplies matrices on Apple's GPUs alone.
        _second("macos-arm64-gpu", "metal"),
        _second("windows-amd64-gpu", "vulkan"),
        _second("windows-arm64-gpu", "vulkan"),
        _second("freebsd-amd64-gpu", "vulkan"),
        _second("freebsd-arm64-gpu", "vulkan"),
        _second("netbsd-amd64-gpu", "vulkan"),
        _second("netbsd-arm64-gpu", "vulkan"),
        _second("openbsd-amd64-gpu", "vulkan"),
        _second("openbsd-arm64-gpu", "vulkan"),
    )
}


def with_gpu(target: Target) -> Target | None:
    """The second program of a target, if there is one."""
    return next((row for row in WITH_GPU.values() if row.plain == target.name), None)


# What systems call the two architectures, in lower case.
_ARCHITECTURES = {"x86_64": "amd64", "amd64": "amd64", "aarch64": "arm64", "arm64": "arm64"}


def host() -> Target | None:
    """The target that this Python runs on, or None if it is not in the table."""
    arch = _ARCHITECTURES.get(platform.machine().lower())
    if arch is None:  # NetBSD says evbarm, which is a kind of machine, and aarch64 here
        arch = _ARCHITECTURES.get(platform.processor().lower())
    system = {"Darwin": "macos"}.get(platform.system(), platform.system().lower())
    return TARGETS.get(f"{system}-{arch}")


def groups() -> dict[str, tuple[Target, ...]]:
    """Names that stand for several targets: ``all``, each system, each architecture."""
    every = TARGETS.values()
    names = ("all", *(target.os for target in every), *(target.arch for target in every))
    return {
        name: tuple(target for target in every if name in ("all", target.os, target.arch))
        for name in names
    }


def select(names: Iterable[str]) -> tuple[Target, ...]:
    """Look up targets by name or group, in the table's order and without repeats.

    Raises:
        PyllamafileError: A name is neither.
    """
    known = {**groups(), **{name: (target,) for name, target in TARGETS.items()}}
    wanted = set()
    for name in names:
        if name not in known:
            raise NotFoundError(
                f"no such target: {name}",
                hint=f"the targets are {', '.join(TARGETS)}; groups of them {', '.join(groups())}",
            )
        wanted |= {target.name for target in known[name]}
    return tuple(target for target in TARGETS.values() if target.name in wanted)
