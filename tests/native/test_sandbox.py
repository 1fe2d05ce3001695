"""The sandbox: what a program that was taken over could still do, per duty, and from inside."""

from __future__ import annotations

import ctypes
import os
import re
import signal
import socket
import struct
import subprocess
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import lief
import pytest
from duties import (
    COMPUTES,
    EVERYBODY,
    MAY,
    ROUTES,
    SERVES,
    Tried,
    assert_held,
    build,
    compiled,
    source_for,
)
from running import need, ready, run, unpacked

from pyllamafile import native
from pyllamafile.native.building.driver import RUNTIME
from pyllamafile.targets import TARGETS

pytestmark = pytest.mark.native


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compiled("linux-amd64", tmp_path_factory.mktemp("program"))


@pytest.fixture
def tries(program: Path, tmp_path: Path) -> Callable[..., Tried]:
    def tries(
        duty: int, *, writable: str = "", before: Callable[[], None] | None = None,
        command: tuple[str | Path, ...] = (program,),
    ) -> Tried:  # fmt: skip
        secret, folder = tmp_path / "secret", tmp_path / "folder"
        folder.mkdir(exist_ok=True)
        for path in (secret, *(folder / name for name in ("named", "old", "other"))):
            path.write_text("text")
        (folder / "link").unlink(missing_ok=True)
        with socket.socket() as listening, socket.socket() as own:
            for each in (listening, own):
                each.bind(("127.0.0.1", 0))
                each.listen()
            ports = [str(each.getsockname()[1]) for each in (listening, own)]
            if duty in (SERVES, ROUTES):
                own.close()
            words = [*command, str(duty), secret, writable, folder, *ports]
            done = run(*words, preexec_fn=before)
        assert done.returncode == 0, done.stderr
        return Tried.read(done.stdout.decode(), done.stderr.decode())

    return tries


@pytest.mark.parametrize("duty", MAY)
def test_a_duty_may_do_what_the_table_says_and_no_more(tries, duty: int) -> None:
    tried = tries(duty)
    assert tried.line.startswith("sandbox: Landlock ABI ")
    assert_held(tried, duty)


DRIVER = {"executable memory", "memory made executable", "memfd"}


@pytest.mark.parametrize("duty", MAY)
def test_who_computes_or_starts_who_does_may_have_a_gpus_driver_in_it(
    tries, duty: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A driver is code that is loaded, and that compiles. Files and network stay what they were.

    The router's processes have no more than the router.
    """
    monkeypatch.setenv("SANDBOX_GPU", "1")
    tried = tries(duty)
    may = DRIVER if duty in (COMPUTES, SERVES, ROUTES) else set()
    assert tried.done() == MAY[duty] - ({"connect own"} if duty == ROUTES else set()) | may
    assert tried.line.endswith("(with the driver of a GPU)") == bool(may)


def test_with_a_gpu_files_are_not_made_where_there_is_no_landlock(
    tries, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its driver writes to a device, and no system call's number tells that from a file."""
    monkeypatch.setenv("SANDBOX_GPU", "1")
    tried = tries(COMPUTES, before=without(LANDLOCK))
    assert "write secret" in tried.done()
    assert not tried.done() & {"make", "unlink", "rename", "truncate", "link"}
    assert tried.line == (
        "sandbox: seccomp (with the driver of a GPU) (no Landlock: reading is not confined, nor "
        "writing to files that are there)"
    )


def test_what_was_named_is_written_and_nothing_beside_it(tries, tmp_path: Path) -> None:
    tried = tries(COMPUTES, writable=str(tmp_path / "log"))  # which is not there yet
    assert tried.done() == EVERYBODY | {"write named"}
    folder = tmp_path / "slots"
    folder.mkdir()
    assert tries(COMPUTES, writable=str(folder)).done() == EVERYBODY


PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 38, 22, 2
LANDLOCK, SECCOMP, ENOSYS = 444, 317, 38


def without(call: int) -> Callable[[], None]:
    """Makes the kernel of a child of ours one that has no such system call (seccomp(2))."""

    def lack() -> None:
        code = [(0x20, 0, 0, 0), (0x15, 0, 1, call), (0x06, 0, 0, 0x50000 | ENOSYS),
                (0x06, 0, 0, 0x7FFF0000)]  # fmt: skip
        filters = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *row) for row in code))
        program = struct.pack("HP", len(code), ctypes.addressof(filters))
        libc = ctypes.CDLL(None, use_errno=True)
        assert libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
        assert libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, program) == 0

    return lack


def test_an_older_kernel_without_landlock(tries) -> None:
    tried = tries(COMPUTES, before=without(LANDLOCK))
    assert tried.line == "sandbox: seccomp (no Landlock: reading is not confined)"
    others = {"another's environment"}  # which the system gives to some users
    assert tried.done() - others == EVERYBODY | {"read secret", "list"}
    # ports are Landlock's; that nobody but the router connects is seccomp's
    assert "connect other" not in tries(SERVES, before=without(LANDLOCK)).done()


def test_a_kernel_without_seccomp(tries) -> None:
    tried = tries(COMPUTES, before=without(SECCOMP))
    assert re.fullmatch(
        r"sandbox: Landlock ABI \d+ \(no seccomp: system calls are not confined\)", tried.line
    )
    assert "read secret" not in tried.done()
    assert "exec other" not in tried.done()


def test_where_there_is_neither_it_goes_on_and_says_so(tries, tmp_path: Path) -> None:
    """qemu has neither for the programs that it runs."""
    qemu = need("qemu-aarch64-static", "qemu-user-static")
    tried = tries(COMPUTES, command=(qemu, compiled("linux-arm64", tmp_path)))
    assert tried.line == "sandbox: none (this kernel has neither Landlock nor seccomp)"
    assert "read secret" in tried.done()


# What the systems are asked that are not here

CALLS = {
    "freebsd": {"cap_enter", "procctl"},
    "linux": set(),  # it is asked without the C library
    "macos": {"_sandbox_init"},
    "netbsd": set(),
    "openbsd": {"pledge", "unveil"},
    "windows": {
        "SetProcessMitigationPolicy", "CreateJobObjectW", "SetInformationJobObject",
        "AssignProcessToJobObject", "SetTokenInformation",
    },
}  # fmt: skip


def imported(path: Path) -> set[str]:
    binary = lief.parse(path)
    if isinstance(binary, lief.PE.Binary):
        return {entry.name for library in binary.imports for entry in library.entries}
    return {symbol.name for symbol in binary.imported_symbols}


@pytest.mark.parametrize("target", TARGETS)
def test_a_system_is_asked_what_it_has(target: str, tmp_path: Path) -> None:
    """Ours calls what it has to, and the system's own lists have that; most was never executed."""
    calls = CALLS[TARGETS[target].os]
    names = {name.removeprefix("_") for name in calls}
    ours = tmp_path / "ours.o"
    build(target, "c++", "-std=c++17", f"-I{RUNTIME}", "-c", source_for(target), "-o", ours)
    assert [name for name in names if name.encode() not in ours.read_bytes()] == []
    source = tmp_path / "theirs.c"
    declared = "".join(f"void {name}(void);\n" for name in names)
    source.write_text(f"{declared}int main(void) {{ {''.join(f'{n}();' for n in names)} }}\n")
    program = tmp_path / "theirs"
    build(target, "cc", "-fno-builtin", source, "-o", program)
    assert imported(program) >= calls


def test_a_runtime_that_is_at_hand_imports_them(tmp_path: Path) -> None:
    for runtime in native.available():
        program = unpacked(runtime.target, tmp_path)
        assert imported(program) >= CALLS[TARGETS[runtime.target].os], runtime.target


# The real program


def threads(process: int) -> list[dict[str, str]]:
    """What the kernel says of every thread of a process."""
    found = []
    for path in Path(f"/proc/{process}/task").glob("*/status"):
        rows = (line.partition(":") for line in path.read_text().splitlines())
        found.append({name: value.strip() for name, _, value in rows})
    return found


def is_confined(process: int, filters: int) -> bool:
    """Whether all of its threads are, by so many filters."""
    facts = {
        (each["NoNewPrivs"], each["Seccomp"], each["Seccomp_filters"]) for each in threads(process)
    }
    return facts == {("1", "2", str(filters))}


@contextmanager
def started(*command: str | Path, **options: object) -> Iterator[subprocess.Popen[bytes]]:
    """A server that is ready; standard output is read until then."""
    words = [str(word) for word in command]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, **options)
    try:
        ready(process)
        yield process
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(timeout=30)
        process.stdout.close()


SERVER = ("--nobrowser", "--port", "0")
# Numbers of system calls on amd64, and what they are called with; strings lie on the stack.
INJECTED = {
    "open": 'inject(2, text("/etc/passwd"), 0, 0)',
    "open to write": 'inject(2, text("/tmp/pyllamafile-sandbox-test"), 0o101, 0o600)',
    "unlink": 'inject(87, text("/etc/passwd-"), 0, 0)',
    "execve": 'inject(59, text("/bin/true"), 0, 0)',
    "fork": "inject(57, 0, 0, 0)",
    "socket": "inject(41, 2, 1, 0)",
    "connect": "inject(42, 0, 0, 0)",
    "bind": "inject(49, 0, 0, 0)",
    "ptrace": "inject(101, 0, 0, 0)",
    "mmap": "inject(9, 0, 4096, 7, 0x22, -1 & 0xFFFFFFFFFFFFFFFF, 0)",
    "getpid": "inject(39, 0, 0, 0)",
}
GDB = """
import gdb
def get(name):
    return int(gdb.parse_and_eval(f"(unsigned long)${name}"))
def put(name, value):
    gdb.execute(f"set ${name} = {value}")
NAMES = ("rdi", "rsi", "rdx", "r10", "r8", "r9")
KEPT = {name: get(name) for name in ("rip", "rsp", "rax", *NAMES)}
at = KEPT["rsp"] - 4096  # below what the thread uses
def text(value):
    gdb.selected_inferior().write_memory(at, value.encode() + b"\\0")
    return at
def inject(call, *arguments):
    # it waits in a system call, and the instruction for that is two bytes before
    put("orig_rax", -1)
    put("rip", KEPT["rip"] - 2)
    put("rax", call)
    for name, value in zip(NAMES, arguments):
        put(name, value)
    gdb.execute("stepi", to_string=True)
    return get("rax") - (1 << 64) if get("rax") >> 63 else get("rax")
"""


def injected(process: int, folder: Path) -> dict[str, int]:
    """What system calls answer that a debugger makes inside a process."""
    script = folder / "inject.py"
    rows = "".join(f"print('came', {name!r}, {call}, sep='|')\n" for name, call in INJECTED.items())
    script.write_text(f"{GDB}{rows}gdb.execute('detach')\n")
    gdb = need("gdb")
    command = [gdb, "-q", "-batch", "-nx", "-p", str(process), "-x", str(script)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    found = dict(re.findall(r"^came\|(.+)\|(-?\d+)$", done.stdout, re.MULTILINE))
    return {name: int(value) for name, value in found.items()}


EPERM, EACCES = 1, 13


def test_calls_that_a_debugger_makes_inside_a_server(llamafile: Path, tmp_path: Path) -> None:
    with started(llamafile, *SERVER) as server:
        assert is_confined(server.pid, 2)
        came = injected(server.pid, tmp_path)
        assert came.pop("getpid") == server.pid  # or nothing was injected
        assert came.keys() == INJECTED.keys() - {"getpid"}
        assert set(came.values()) <= {-EPERM, -EACCES}, came
        assert server.poll() is None  # nobody was killed


def test_every_mode_is_confined_but_where_it_was_asked_not_to_be(llamafile: Path) -> None:
    line = rb"\nsandbox: Landlock ABI \d+, seccomp\n"
    assert re.search(line, run(llamafile, "--version").stdout)
    text = ("-p", "Hello", "-n", "2", "--temp", "0")
    for mode in (text, ("--tokenize", "-p", "Hello"), ("--completion", "-no-cnv", *text)):
        assert re.search(line, b"\n" + run(llamafile, *mode, "-v").stderr), mode
        assert b"sandbox: off (--unsecure)" in run(llamafile, *mode, "-v", "--unsecure").stderr
    plain = run(llamafile, *text)
    assert (plain.returncode, plain.stdout) == (0, run(llamafile, *text, "--unsecure").stdout)
    with started(llamafile, *SERVER, "--unsafe-no-sandbox") as server:
        assert {each["Seccomp"] for each in threads(server.pid)} == {"0"}
        assert {each["NoNewPrivs"] for each in threads(server.pid)} == {"0"}


def test_the_two_processes_of_a_chat(llamafile: Path) -> None:
    """The one at the terminal, and the one with the model, which ends with it, come what may."""
    chat = subprocess.Popen(
        ["sh", str(llamafile), "--chat", "--temp", "0"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        chat.stdin.write(b"Say yes.\n")
        chat.stdin.flush()
        assert chat.stdout.readline()
        children = Path(f"/proc/{chat.pid}/task/{chat.pid}/children").read_text().split()
        (model,) = map(int, children)
        assert is_confined(chat.pid, 1)
        assert is_confined(model, 2)
    finally:
        chat.kill()
        chat.communicate()
    deadline = time.monotonic() + 10
    while Path(f"/proc/{model}/exe").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not Path(f"/proc/{model}/exe").exists()


def test_what_the_file_itself_says_opens_nothing(llamafile: Path, tmp_path: Path) -> None:
    """Whoever made it is the one against whom it is."""
    file = tmp_path / "file.llamafile"
    file.write_bytes(llamafile.read_bytes())
    file.chmod(0o755)
    log = tmp_path / "log"
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr(".args", f"--unsafe-no-sandbox --log-file {log} -n 2 ...")
    done = run(file, "-p", "Hello", "-v")
    assert b"sandbox: Landlock" in done.stderr
    assert b"note: .args of this file ask for no sandbox; only whoever runs it may" in done.stderr
    assert b"note: .args of this file may not write to " in done.stderr
    assert not log.exists()
    run(file, "-p", "Hello", "-v", "--log-file", log)
    assert log.stat().st_size > 0


def test_seam_the_router_may_start_only_itself(
    llamafile: Path, smollm2: Path, tmp_path: Path
) -> None:
    """Its models are confined as it is, and once more."""
    models = tmp_path / "models"
    models.mkdir()
    (models / "one.gguf").symlink_to(smollm2)
    flags = ("--models-dir", models, "--nobrowser", "--port", "0")
    words = [str(word) for word in (llamafile, *flags)]
    router = subprocess.Popen(["sh", *words], stdout=subprocess.PIPE, stdin=subprocess.DEVNULL)
    try:
        url = ready(router)
        body = '{"model": "one", "prompt": "Hello", "n_predict": 2}'
        answer = run("curl", "-sf", f"{url}completion", "-d", body)
        assert b'"content"' in answer.stdout
        children = Path(f"/proc/{router.pid}/task")
        found = {int(n) for path in children.glob("*/children") for n in path.read_text().split()}
        own = Path(f"/proc/{router.pid}/cmdline").read_bytes()  # and its keeper's of conversations
        said = {each: Path(f"/proc/{each}/cmdline").read_bytes() for each in found}
        (model,) = [each for each in found if b"--port" in said[each] and said[each] != own]
        assert is_confined(router.pid, 1)
        assert is_confined(model, 3)
    finally:
        router.send_signal(signal.SIGINT)
        router.wait(timeout=30)
        router.stdout.close()


def test_the_browser_is_opened_outside_and_is_not_confined(llamafile: Path, tmp_path: Path) -> None:
    browser, log = tmp_path / "xdg-open", tmp_path / "log"
    facts = "grep -E 'Seccomp:|NoNewPrivs|SigIgn' /proc/self/status"
    browser.write_text(
        f"#!/bin/sh\necho $1 >{log}.draft\n{facts} >>{log}.draft\nmv {log}.draft {log}\n"
    )
    browser.chmod(0o755)
    env = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "DISPLAY": ":99"}
    with started("sh", llamafile, "--port", "0", env=env) as server:
        assert is_confined(server.pid, 2)
        deadline = time.monotonic() + 10
        while not log.exists() and time.monotonic() < deadline:
            time.sleep(0.05)
    url, *rows = log.read_text().splitlines()
    assert url.startswith("http://127.0.0.1:")
    values = dict(row.split(":\t") for row in rows)
    signals = sum(1 << number - 1 for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP))
    assert (values["NoNewPrivs"], values["Seccomp"]) == ("0", "0")
    assert int(values["SigIgn"], 16) & signals == 0


def test_a_local_socket_goes_with_the_server(llamafile: Path, tmp_path: Path) -> None:
    path = tmp_path / "here.sock"
    with started(llamafile, "--nobrowser", "--host", path) as server:
        assert is_confined(server.pid, 2)
        health = run("curl", "-s", "--unix-socket", path, "http://localhost/health")
        assert b"ok" in health.stdout
        assert path.is_socket()
    deadline = time.monotonic() + 10
    while path.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not path.exists()
