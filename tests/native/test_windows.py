"""The runtimes for Windows: on amd64 run by Wine, on arm64 by Wine for arm64 under qemu.

That for arm64 is tried where it is at hand: it is compiled for nothing else.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import socket
import subprocess
import time
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import lief
import pytest
from fixtures import grey_png
from running import at_hand, childless, children, need, ready, run, unpacked
from test_chat import terminal
from wine_arm64 import Windows, windows_path

import pyllamafile

pytestmark = pytest.mark.native

Program = Callable[..., subprocess.CompletedProcess[bytes]]
CAPITAL = ("-p", "The capital of France is", "-n", "6", "--temp", "0")


@pytest.fixture(scope="module", params=["windows-amd64", "windows-arm64"])
def target(request: pytest.FixtureRequest) -> str:
    return at_hand(request.param)


@pytest.fixture(scope="module")
def program(target: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return unpacked(target, tmp_path_factory.mktemp("windows"))


@pytest.fixture(scope="module")
def machine(target: str, request: pytest.FixtureRequest) -> Windows:
    """What runs the program."""
    made: Windows = request.getfixturevalue(target.replace("-", "_"))
    return made


@pytest.fixture
def windows(program: Path, machine: Windows) -> Program:
    """Runs the program; paths among the arguments are made Windows'."""

    def windows(
        *arguments: str | Path, program: Path = program, **options: object
    ) -> subprocess.CompletedProcess[bytes]:
        return run(*command(machine, program, *arguments), env=machine.env, **options)

    return windows


def command(machine: Windows, program: Path, *arguments: str | Path) -> list[str]:
    words = [windows_path(word) if isinstance(word, Path) else word for word in arguments]
    return [*machine.words, windows_path(program), *words]


@pytest.fixture
def linux(target: str, request: pytest.FixtureRequest) -> Program:
    """Runs the program for Linux on the same processor, and at the same level."""
    if target == "windows-amd64":
        return partial(run, request.getfixturevalue("runtime"))
    qemu = need("qemu-aarch64-static", "qemu-user-static")
    env = {**os.environ, "PYLLAMAFILE_CPU": "v8"}  # Wine tells of no other processor
    return partial(run, qemu, request.getfixturevalue("runtime_arm64"), env=env)


def test_real_weights_give_the_same_text(windows: Program, linux: Program, smollm2: Path) -> None:
    done = windows("-m", smollm2, *CAPITAL)
    here = linux("-m", smollm2, *CAPITAL)
    assert (done.returncode, done.stdout) == (0, here.stdout)
    assert b"Paris" in done.stdout
    assert b"\r" not in done.stdout


def test_version_and_manual(windows: Program, linux: Program) -> None:
    done = windows("--version")
    assert (done.returncode, done.stderr) == (0, b"")
    *here, _ = linux("--version").stdout.splitlines()
    *lines, sandbox = done.stdout.splitlines()
    assert lines == [line.replace(b"linux-", b"windows-") for line in here]
    assert sandbox == b"sandbox: no dynamic code, a job object, no child processes, low integrity"
    assert windows("--help").stdout == linux("--help").stdout


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (("-p", "x"), "no weights"),
        (("-m", "nix.gguf", "-p", "x"), "nix.gguf"),
        (("--nix",), "unknown argument: --nix"),
        (("--llamafile", "nix"), "nix: damaged or cut off"),
    ],
    ids=str,
)
def test_what_is_wrong_is_said_in_one_line(
    arguments: tuple[str, ...], error: str, windows: Program
) -> None:
    done = windows(*arguments)
    assert (done.returncode, done.stdout) == (1, b"")
    (line,) = done.stderr.decode().splitlines()
    assert line.startswith("error: ")
    assert error in line


@pytest.mark.parametrize(
    "text",
    [
        "Gr\u00fc\u00dfe, \u65e5\u672c \U0001f999",
        'a "quoted" word',
        "back\\slash \\",
        'trailing\\" both\\\\',
        "  two  spaces  ",
        "%PATH% ^ & | < >",
        "*.gguf",
    ],
)
def test_arguments_arrive_as_typed(text: str, windows: Program, linux: Program, phi3: Path) -> None:
    done = windows("--tokenize", "-m", phi3, "-p", text)
    assert (done.returncode, done.stdout) == (
        0,
        linux("--tokenize", "-m", phi3, "-p", text).stdout,
    )


def test_seam_as_many_arguments_as_were_typed(windows: Program, linux: Program, phi3: Path) -> None:
    """llama.cpp would take the command line of the process for them, modes and all."""
    arguments = ("--completion", "--no-mmap", "-m", phi3, "-p", "Once", "-n", "4", "-no-cnv")
    done = windows(*arguments, "--temp", "0")
    assert done.returncode == 0
    assert done.stdout == linux(*arguments, "--temp", "0").stdout


def test_paths_of_any_letters(
    windows: Program, program: Path, linux: Program, phi3: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "m\u00f6dels \u65e5\u672c"
    folder.mkdir()
    (folder / "\u00fcn\u00ef.gguf").symlink_to(phi3)
    (folder / "\u043f.txt").write_text("Once upon a time", encoding="utf-8")
    named = folder / "\u041f\u0440\u043e\u0433\u0440\u0430\u043c\u043c\u0430 1"  # no .exe either
    named.write_bytes(program.read_bytes())
    arguments = ("-n", "8", "--temp", "0")
    done = windows(
        *("-m", folder / "\u00fcn\u00ef.gguf", "-f", folder / "\u043f.txt", *arguments),
        program=named,
    )
    expected = linux("-m", phi3, "-p", "Once upon a time", *arguments)
    assert (done.returncode, done.stdout) == (0, expected.stdout)


def test_text_from_standard_input_has_unix_lines(
    windows: Program, linux: Program, phi3: Path
) -> None:
    arguments = ("-m", phi3, "-f", "-", "-n", "4", "--temp", "0")
    done = windows(*arguments, stdin=b"one\r\ntwo\r\n")
    assert (done.returncode, done.stdout) == (
        0,
        linux(*arguments, stdin=b"one\ntwo\n").stdout,
    )


# whose weights these are


def with_zip(path: Path, start: bytes, model: Path) -> Path:
    path.write_bytes(start)
    with zipfile.ZipFile(path, "a") as archive:
        archive.write(model, "m.gguf")
        archive.writestr(".args", "-n 8 --temp 0")
    return path


@pytest.fixture
def expected(linux: Program, phi3: Path) -> bytes:
    return linux("-m", phi3, "-p", "Once", "-n", "8", "--temp", "0").stdout


def test_a_program_with_a_zip_behind_it_is_its_own_llamafile(
    windows: Program, program: Path, phi3: Path, expected: bytes, tmp_path: Path
) -> None:
    file = with_zip(tmp_path / "any name", program.read_bytes(), phi3)
    done = windows("-p", "Once", program=file)
    assert (done.returncode, done.stdout) == (0, expected)


@pytest.mark.parametrize("name", ["m.llamafile", "m"])
def test_a_program_alone_is_for_the_file_beside_it(
    name: str, windows: Program, program: Path, phi3: Path, expected: bytes, tmp_path: Path
) -> None:
    engine = tmp_path / "m.exe"
    engine.write_bytes(program.read_bytes())
    with_zip(tmp_path / name, b"", phi3)
    done = windows("-p", "Once", program=engine)
    assert (done.returncode, done.stdout) == (0, expected)
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-30])
    done = windows("-p", "Once", program=engine)
    assert (done.returncode, done.stdout) == (1, b"")
    assert b"damaged or cut off" in done.stderr


def test_one_file_for_windows_and_linux(
    target: str, windows: Program, smollm2: Path, tmp_path: Path
) -> None:
    file = tmp_path / "both.llamafile"
    pyllamafile.build(smollm2, file, targets=[target, "linux-amd64"], gui=False)
    assert pyllamafile.verify(file) == []
    here = run("sh", file, *CAPITAL)
    there = windows(*CAPITAL, program=file)
    assert (here.returncode, there.returncode) == (0, 0)
    # On another processor other kernels round otherwise, and later words may be others.
    assert here.stdout.splitlines()[0] == there.stdout.splitlines()[0]
    assert b"Paris" in there.stdout
    assert b"mingw" in windows("--licenses", program=file).stdout.lower()


def test_a_file_with_a_persona_starts_and_looks_like_it(
    target: str, windows: Program, program: Path, phi3: Path, expected: bytes, tmp_path: Path
) -> None:
    """What Windows itself says of such a program is in tests/container/test_pe.py."""
    ada = pyllamafile.Persona(name="Ada \u6771\u4eac", icon=grey_png(256))
    args = ["-n", "8", "--temp", "0"]
    file = tmp_path / "ada.exe"
    pyllamafile.build(phi3, file, targets=[target], persona=ada, args=args, gui=False)
    linked, binary = lief.PE.parse(program), lief.PE.parse(file)
    before, after = linked.resources_manager, binary.resources_manager
    assert after.manifest == before.manifest
    assert (len(before.icons), len(after.icons)) == (4, 1)
    assert bytes(after.icons[0].pixels) == ada.icon
    (version,) = after.version
    (table,) = version.string_file_info.children
    says = {entry.key: entry.value for entry in table.entries}
    assert (says["FileDescription"], says["InternalName"]) == (ada.name, target)
    done = windows("-p", "Once", program=file)
    assert (done.returncode, done.stdout) == (0, expected)


# the server


@pytest.fixture
def taken() -> Iterator[int]:
    """The server's first port, which somebody listens on: this test, if nobody else."""
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with contextlib.suppress(OSError):
            other.bind(("127.0.0.1", 8080))
            other.listen()
        yield 8080


def test_a_taken_port_gives_the_next_one(taken: int, server: subprocess.Popen[bytes]) -> None:
    assert not ready(server).endswith(f":{taken}/")


@pytest.fixture
def server(program: Path, machine: Windows, phi3: Path) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        command(machine, program, "-m", phi3, "--nobrowser"),
        env=machine.env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
    )
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_seam_the_server_answers_and_ctrl_c_ends_it(server: subprocess.Popen[bytes]) -> None:
    url = ready(server)
    openai = pytest.importorskip("openai")
    with openai.OpenAI(base_url=f"{url}v1", api_key="none") as client:
        answer = client.chat.completions.create(
            model="any", messages=[{"role": "user", "content": "Hello!"}], max_tokens=4
        )
        assert answer.usage.completion_tokens == 4
    server.send_signal(signal.SIGINT)  # which Wine makes Ctrl-C
    assert server.wait(timeout=30) in (0, 130)


def test_a_server_of_two_models_loads_them_on_demand(
    target: str, machine: Windows, phi3: Path, tmp_path: Path
) -> None:
    """Each in a process of its own, which ends with the server's."""
    (tmp_path / "other.gguf").symlink_to(phi3)
    file = pyllamafile.build(
        [phi3, tmp_path / "other.gguf"],
        tmp_path / "two.exe",
        targets=[target],
        gui=False,
        gpu=False,  # Wine interrupts one process, Windows all of a console
    ).path

    process = subprocess.Popen(
        command(machine, file, "--nobrowser", "-c", "512"),
        env=machine.env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
    )
    try:
        openai = pytest.importorskip("openai")
        with openai.OpenAI(base_url=f"{ready(process)}v1", api_key="none") as client:
            assert sorted(model.id for model in client.models.list()) == ["other", "phi3-tiny"]
            assert children(windows_path(file)) == []
            for count, name in enumerate(("other", "phi3-tiny"), 1):
                answer = client.chat.completions.create(
                    model=name, messages=[{"role": "user", "content": "Hello!"}], max_tokens=4
                )
                assert (answer.model, answer.usage.completion_tokens) == (name, 4)
                assert len(children(windows_path(file))) == count
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) in (0, 130)
        assert childless(windows_path(file))
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_a_window_of_its_own_stays_open_with_the_error(
    program: Path, machine: Windows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("WINEPREFIX", "WINEDEBUG", "WINEDLLOVERRIDES"):
        monkeypatch.setenv(name, machine.env[name])
    shutil.copy(program, tmp_path / "f.exe")  # as a file that lost its weights
    click = tmp_path / "click"
    click.write_text(f'exec {shlex.join(command(machine, tmp_path / "f.exe"))} "$@"\n')
    with terminal(click) as at:
        assert "no weights" in at.see("Press Enter to close this window.")
        while not (ended := os.waitpid(at.child, os.WNOHANG))[0]:
            at.type("\r")  # until Wine has made the terminal its own, this is no Enter to it
            time.sleep(0.5)
        at.child = 0
        assert os.waitstatus_to_exitcode(ended[1]) == 1
    with terminal(click, "-m", "none.gguf") as at:  # who gives arguments has a window already
        assert at.end() == 1
        assert "Press Enter" not in at.seen
