"""What keeps a file from starting: each fault is made to happen, and found with its remedy."""

from __future__ import annotations

import dataclasses
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from fixtures import put_runtime, put_second, tiny_elf

import pyllamafile
from pyllamafile import PyllamafileError
from pyllamafile.machine import memory
from pyllamafile.ops import doctor
from pyllamafile.ops.doctor import Finding, Machine, examine
from pyllamafile.targets import TARGETS

HERE = TARGETS["linux-amd64"]


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """A machine on which nothing is wrong."""
    root, home = tmp_path / "root", tmp_path / "home"
    home.mkdir()
    write(root / "proc/cpuinfo", "flags\t\t: fpu sse2 ssse3 sse4_1 sse4_2 popcnt avx\n")
    write(root / "proc/meminfo", "MemTotal:       16000000 kB\n")
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(home), "SHELL": "/bin/bash"}
    return Machine(HERE, environment, root, landlock=lambda: 7)


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.fixture
def file(folder: Path, model: Path) -> Path:
    return pyllamafile.build(model, folder / "m.llamafile", targets=["linux-amd64"]).path


@pytest.fixture
def for_windows(windows: Path, folder: Path, model: Path) -> Path:
    return pyllamafile.build(model, folder / "w.llamafile").path


@pytest.fixture
def noexec(tmp_path: Path) -> Iterator[Path]:
    """A small file system on which nothing may be executed."""
    if os.getuid() != 0:
        pytest.skip("mounting takes root")
    place = tmp_path / "noexec"
    place.mkdir(mode=0o700)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "noexec,size=1m", "none", place], check=True)
    yield place
    subprocess.run(["umount", place], check=True)


def with_variables(machine: Machine, **more: str) -> Machine:
    return dataclasses.replace(machine, environment={**machine.environment, **more})


def only(findings: list[Finding]) -> Finding:
    assert len(findings) == 1, findings
    return findings[0]


def test_a_sound_file_on_a_sound_machine(file: Path, machine: Machine) -> None:
    assert examine(file, machine) == []
    assert examine(None, machine) == []
    assert list((Path(machine.environment["HOME"])).iterdir()) == []  # it only looks


def test_this_very_machine_can_be_looked_at(file: Path) -> None:
    assert [finding for finding in examine(file) if "damage" in finding.what] == []


@pytest.mark.parametrize(
    ("abi", "status", "lacks"),
    [
        (0, "Seccomp:\t0\n", "Landlock, so any file that you may read can be read"),
        (3, "Seccomp:\t0\n", "Landlock of ABI 4 (it has 3), so ports are not confined"),
        (4, "NoNewPrivs:\t0\n", "seccomp, so system calls are not confined"),
    ],
)
def test_a_kernel_that_has_less_for_the_sandbox(
    file: Path, machine: Machine, abi: int, status: str, lacks: str
) -> None:
    write(machine.root / "proc/self/status", f"Name:\tpython\n{status}")
    finding = only(examine(file, dataclasses.replace(machine, landlock=lambda: abi)))
    assert (finding.what, finding.fatal) == (f"the sandbox lacks {lacks}", False)


def test_a_system_that_has_nothing_for_a_sandbox(machine: Machine) -> None:
    netbsd = dataclasses.replace(machine, target=TARGETS["netbsd-amd64"])
    assert only(examine(None, netbsd)).what == "NetBSD has nothing for a sandbox"


def test_damage(file: Path, machine: Machine) -> None:
    with file.open("r+b") as stream:
        stream.write(b"##")  # where the shell is named
    findings = examine(file, machine)
    assert findings
    assert f"pyllamafile verify {file}" in findings[0].remedy


def test_a_file_that_is_cut_off(file: Path, machine: Machine) -> None:
    os.truncate(file, file.stat().st_size - 1)
    with pytest.raises(PyllamafileError, match=re.escape(str(file))):
        examine(file, machine)


def test_not_executable(file: Path, machine: Machine) -> None:
    file.chmod(0o644)
    assert only(examine(file, machine)).remedy == f"chmod +x {file}"


def test_a_file_where_nothing_may_be_executed(file: Path, machine: Machine, noexec: Path) -> None:
    there = noexec / "m.llamafile"
    there.write_bytes(file.read_bytes())
    there.chmod(0o755)
    finding = only(examine(there, machine))
    assert "noexec" in finding.what
    assert f"sh {there}" in finding.remedy


def test_a_cache_where_nothing_may_be_executed(file: Path, machine: Machine, noexec: Path) -> None:
    finding = only(examine(file, with_variables(machine, PYLLAMAFILE_CACHE=str(noexec))))
    assert "noexec" in finding.what
    assert "PYLLAMAFILE_CACHE" in finding.remedy


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("enabled\ninterpreter /usr/bin/wine\nflags: \noffset 0\nmagic 4d5a\n", True),
        ("disabled\ninterpreter /usr/bin/wine\nflags: \noffset 0\nmagic 4d5a\n", False),
        ("enabled\ninterpreter /usr/bin/qemu\nflags: \noffset 0\nmagic 7f454c46\n", False),
    ],
)
def test_who_takes_files_that_begin_with_mz(
    for_windows: Path, file: Path, machine: Machine, text: str, found: bool
) -> None:
    write(machine.root / "proc/sys/fs/binfmt_misc/wine", text)
    write(machine.root / "proc/sys/fs/binfmt_misc/status", "enabled\n")
    findings = examine(for_windows, machine)
    assert ["/usr/bin/wine" in finding.what for finding in findings] == [True] * found
    assert examine(file, machine) == []  # begins with #!/bin/sh


def test_a_shell_that_starts_no_such_file(for_windows: Path, file: Path, machine: Machine) -> None:
    at_mksh = with_variables(machine, SHELL="/bin/mksh")
    assert only(examine(for_windows, at_mksh)).remedy == f"start it as `sh {for_windows}`"
    assert examine(file, at_mksh) == []
    assert not only(examine(for_windows, with_variables(machine, SHELL="/bin/zsh"))).fatal


def test_a_file_too_large_for_windows(
    for_windows: Path, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "TOO_LARGE", for_windows.stat().st_size)
    finding = only(examine(for_windows, machine))
    assert "4 GiB" in finding.what
    assert not finding.fatal
    for_windows.with_suffix(".exe").touch()
    assert examine(for_windows, machine) == []


def test_a_processor_that_is_too_old(file: Path, machine: Machine) -> None:
    write(machine.root / "proc/cpuinfo", "flags\t\t: fpu sse2 ssse3\n")
    assert "lacks sse4_1, sse4_2, popcnt" in only(examine(file, machine)).what
    arm = dataclasses.replace(machine, target=TARGETS["linux-arm64"])
    assert ["linux-arm64" in finding.what for finding in examine(file, arm)] == [True]


def test_too_little_memory(file: Path, machine: Machine) -> None:
    write(machine.root / "sys/fs/cgroup/memory.max", "max\n")
    assert examine(file, machine) == []
    write(machine.root / "sys/fs/cgroup/memory.max", "1000\n")
    finding = only(examine(file, machine))
    assert "control group" in finding.what
    assert not finding.fatal
    write(machine.root / "proc/meminfo", "MemTotal:       1 kB\n")
    assert len(examine(file, machine)) == 2


@pytest.mark.parametrize(
    ("groups", "files", "limit"),
    [
        ("0::/\n", {"memory.max": "5000"}, 5000),
        ("0::/a/b\n", {"a/memory.max": "4000", "a/b/memory.max": "max"}, 4000),
        ("0::/a/b\n", {"memory.max": "3000", "a/b/memory.max": "9000"}, 3000),
        ("0::/../other\n", {"memory.max": "2000"}, 2000),
        ("9:memory:/d\n0::/\n", {"memory/d/memory.limit_in_bytes": "1000"}, 1000),
        ("9:cpu,memory:/d\n", {"memory/memory.limit_in_bytes": "800"}, 800),
        ("0::/a\n", {"b/memory.max": "10"}, None),
        ("0::/a\n", {"a/memory.max": "what"}, None),
    ],
)
def test_memory_of_control_groups(
    machine: Machine, groups: str, files: dict[str, str], limit: int | None
) -> None:
    """Both generations, for a process in a group and for one in a container."""
    write(machine.root / "proc/self/cgroup", groups)
    for name, text in files.items():
        write(machine.root / "sys/fs/cgroup" / name, f"{text}\n")
    found = memory(machine.root)
    assert (found.total, found.group) == (16_000_000 * 1024, limit)
    assert found.usable == (limit or found.total)


def test_memory_of_this_machine() -> None:
    found = memory()
    assert found.total == os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert memory(Path("/nonexistent")).usable is None


def test_tools_that_are_missing(
    file: Path, machine: Machine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(doctor, "BEHIND_PATH", ())
    finding = only(examine(file, with_variables(machine, PATH=str(tmp_path))))
    assert "dd, gzip" in finding.what
    assert "--format elf" in finding.remedy


def test_a_system_that_the_file_is_not_for(file: Path, machine: Machine) -> None:
    mac = dataclasses.replace(machine, target=TARGETS["macos-arm64"])
    finding = only(examine(file, mac))
    assert "only for linux-amd64" in finding.what
    assert "--target macos-arm64" in finding.remedy
    assert (
        "there is no program for"
        in only(examine(file, dataclasses.replace(machine, target=None))).what
    )


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda run: run.chmod(0o777), "can be written to by others"),
        (lambda run: os.chown(run, 12345, -1), "belongs to somebody else"),
        (lambda run: (run.rmdir(), run.touch()), "is no directory"),
    ],
)
def test_a_cache_that_is_not_trusted(
    file: Path, machine: Machine, tmp_path: Path, make, problem: str
) -> None:
    if "somebody" in problem and os.getuid() != 0:
        pytest.skip("giving away takes root")
    place = tmp_path / "cache" / "run"
    place.mkdir(parents=True, mode=0o700)
    make(place)
    finding = only(examine(file, with_variables(machine, PYLLAMAFILE_CACHE=str(place.parent))))
    assert problem in finding.what


@pytest.mark.parametrize(
    ("mode", "owner", "trusted"),
    [
        (0o755, 0, True),
        (0o1777, 0, True),
        (0o777, 0, False),
        (0o775, 0, True),
        (0o755, 12345, False),
    ],
)
def test_the_folder_around_it(
    file: Path, machine: Machine, tmp_path: Path, mode: int, owner: int, trusted: bool
) -> None:
    """FORMAT.md, 2.2: who can change BASE can put another `run` there."""
    if os.getuid() != 0:
        pytest.skip("giving away takes root")
    base = tmp_path / "base"
    base.mkdir()
    os.chown(base, owner, 0)
    base.chmod(mode)
    findings = examine(file, with_variables(machine, PYLLAMAFILE_CACHE=str(base)))
    assert ["others can change" in finding.what for finding in findings] == [True] * (not trusted)


def test_an_elf_program_takes_no_tools(
    folder: Path, prebuilt: Path, model: Path, machine: Machine
) -> None:
    """Nor a place to unpack to: the system starts it as it is."""
    put_runtime(prebuilt, tiny_elf())
    path = pyllamafile.build(model, folder / "e", targets=["linux-amd64"], format="elf").path
    assert examine(path, with_variables(machine, PATH="", PYLLAMAFILE_CACHE="/proc/no")) == []


def test_programs_that_are_damaged(file: Path, machine: Machine) -> None:
    """Of this machine alone: another one's keep nothing from starting here."""
    raw = bytearray(file.read_bytes())
    raw[65536 + 100] ^= 1  # in the first runtime, which is the only one
    file.write_bytes(raw)
    finding = only(examine(file, machine))
    assert finding.what == "runtime linux-amd64: damaged, its SHA-256 is not the manifest's"
    mac = dataclasses.replace(machine, target=TARGETS["macos-arm64"])
    assert "only for linux-amd64" in only(examine(file, mac)).what


def test_another_place_will_do(file: Path, machine: Machine, tmp_path: Path) -> None:
    bad = tmp_path / "bad"
    bad.mkdir()
    (bad / "pyllamafile").touch()
    assert examine(file, with_variables(machine, XDG_CACHE_HOME=str(bad))) == []


def test_no_room(file: Path, machine: Machine, noexec: Path) -> None:
    subprocess.run(["mount", "-o", "remount,exec", noexec], check=True)
    (noexec / "full").write_bytes(bytes(1 << 19))
    space = os.statvfs(noexec)
    size = space.f_bavail * space.f_frsize
    assert doctor._unfit(noexec / "run", size) is None
    assert doctor._unfit(noexec / "run", size + 1) == "has no room for 1 MB"


def test_the_command(run, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyllamafile.examine", lambda path: [])
    done = run("doctor", file)
    assert (done.code, done.out) == (0, f"{file}: nothing keeps it from starting\n")
    note = Finding("slow", "wait", fatal=False)
    monkeypatch.setattr("pyllamafile.examine", lambda path: [note])
    assert run("doctor").code == 0
    monkeypatch.setattr("pyllamafile.examine", lambda path: [Finding("x\x1b", "y"), note])
    done = run("doctor")
    assert (done.code, done.err) == (1, "")
    assert done.out == "problem: x\\x1b\nremedy: y\nnote: slow\nremedy: wait\n"


@pytest.mark.parametrize("content", [None, b"hello"])
def test_what_is_no_llamafile(run, folder: Path, content: bytes | None) -> None:
    if content is not None:
        (folder / "f").write_bytes(content)
    done = run("doctor", "f")
    assert done.code == 1
    assert done.err.startswith("error: f: ")


# GPUs


@pytest.fixture
def linker(machine: Machine) -> Path:
    """Glibc's, which the machine has."""
    path = machine.root / "lib64/ld-linux-x86-64.so.2"
    write(path, "")
    return path


@pytest.fixture
def for_gpus(prebuilt: Path, folder: Path, model: Path, linker: Path) -> Path:
    """A file with a program for GPUs, and a machine that could run it."""
    put_second(prebuilt)
    return pyllamafile.build(model, folder / "g.llamafile", targets=["linux-amd64"]).path


def of_gpus(file: Path, machine: Machine) -> list[str]:
    found = [each for each in examine(file, machine) if each.what.startswith("GPU: ")]
    assert not any(each.fatal for each in found)
    assert all(each.remedy for each in found)
    return [each.what.removeprefix("GPU: ") for each in found]


def test_a_machine_without_a_gpu_lacks_nothing(for_gpus: Path, machine: Machine) -> None:
    write(machine.root / "sys/bus/pci/devices/0000:03:00.0/class", "0x030000\n")
    write(machine.root / "sys/bus/pci/devices/0000:03:00.0/vendor", "0x1a03\n")  # of a server
    assert of_gpus(for_gpus, machine) == []


def test_a_gpu_without_a_device(for_gpus: Path, file: Path, machine: Machine) -> None:
    write(machine.root / "sys/bus/pci/devices/0000:01:00.0/class", "0x030200\n")
    write(machine.root / "sys/bus/pci/devices/0000:01:00.0/vendor", "0x10de\n")
    what = "the machine has one of NVIDIA, and there is no device for it in /dev"
    assert of_gpus(for_gpus, machine) == [what]


def test_a_file_without_a_program_for_it_says_nothing_of_a_gpu(
    file: Path, machine: Machine
) -> None:
    write(machine.root / "dev/dri/renderD128", "")
    assert of_gpus(file, machine) == []


def test_where_a_variable_says_what_lies_elsewhere_nothing_is_missed(
    for_gpus: Path, machine: Machine
) -> None:
    write(machine.root / "dev/dri/renderD128", "")
    there = with_variables(machine, LD_LIBRARY_PATH="/opt/lib", VK_DRIVER_FILES="/opt/icd.json")
    assert of_gpus(for_gpus, there) == []


def test_a_desktops_variables_hide_nothing(for_gpus: Path, machine: Machine) -> None:
    """What is in their folders is seen, and what is nowhere is named."""
    write(machine.root / "dev/dri/renderD128", "")
    there = with_variables(machine, XDG_DATA_DIRS="/opt/share:/usr/share")
    assert of_gpus(for_gpus, there) == ["there is no Vulkan loader (libvulkan.so.1)"]
    write(machine.root / "usr/lib64/libvulkan.so.1", "")
    assert of_gpus(for_gpus, there) == ["there is no driver for Vulkan"]
    write(machine.root / "opt/share/vulkan/icd.d/radeon_icd.json", "{}")
    assert of_gpus(for_gpus, there) == []


def test_what_a_gpu_takes_is_named_as_far_as_it_lacks(for_gpus: Path, machine: Machine) -> None:
    write(machine.root / "dev/dri/renderD128", "")
    assert of_gpus(for_gpus, machine) == ["there is no Vulkan loader (libvulkan.so.1)"]
    write(machine.root / "usr/lib/x86_64-linux-gnu/libvulkan.so.1", "")
    assert of_gpus(for_gpus, machine) == ["there is no driver for Vulkan"]
    write(machine.root / "usr/share/vulkan/icd.d/radeon_icd.json", "{}")
    assert of_gpus(for_gpus, machine) == []


def test_a_linux_without_glibc(for_gpus: Path, machine: Machine, linker: Path) -> None:
    write(machine.root / "dev/dri/renderD128", "")
    linker.unlink()
    assert of_gpus(for_gpus, machine) == ["this Linux has no glibc, which drivers are made for"]


def test_a_device_that_its_user_may_not_use(
    for_gpus: Path, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(machine.root / "dev/dri/renderD128", "")
    write(machine.root / "usr/lib64/libvulkan.so.1", "")
    write(machine.root / "etc/vulkan/icd.d/radeon_icd.json", "{}")
    may = os.access
    monkeypatch.setattr(
        os,
        "access",
        lambda path, how, **more: "renderD" not in str(path) and may(path, how, **more),
    )
    assert of_gpus(for_gpus, machine) == ["/dev/dri/renderD128 can't be used by you"]


def test_what_a_trial_of_gpus_found(for_gpus: Path, machine: Machine) -> None:
    write(machine.root / "dev/dri/renderD128", "")
    write(machine.root / "usr/lib64/libvulkan.so.1", "")
    write(machine.root / "etc/vulkan/icd.d/radeon_icd.json", "{}")
    gpus = Path(machine.environment["HOME"]) / ".cache/pyllamafile/gpus"
    write(gpus / "a.gpu", "gpu: problem no driver\n")
    os.utime(gpus / "a.gpu", (0, 0))
    write(gpus / "b.gpu", "gpu: device 0 A\ngpu: device 1 B\ngpu: right 0 0.2\ngpu: wrong 1 slow\n")
    assert of_gpus(for_gpus, machine) == ["B: slow"]
    write(gpus / "b.gpu", "gpu: problem no Vulkan driver has a GPU that computes\n")
    assert of_gpus(for_gpus, machine) == ["no Vulkan driver has a GPU that computes"]
