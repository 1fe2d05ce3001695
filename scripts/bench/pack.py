#!/usr/bin/env python3
"""What packing, inspecting and starting cost, each beside what it is to be measured by.

    scripts/bench/pack.py [--size GIB] [--rounds N] [--folder DIR] [--model FILE]
        [--parts start,token,pack,care]

Packing: a GGUF of random bytes by `pyllamafile build`, and by `cp` and `sync`, since build does not
say "done" before the file is on the disk either. They take turns, the model is in the page cache
for both, and memory was touched before each. Starting: `./f --version` beside the unpacked
runtime's. First token: the llamafile beside upstream's llama-completion on the bare GGUF, if
speed.py has compiled that. Care: `build --in-place` and `upgrade` beside reading the file
once with checksums, as `verify` does it, and what they wrote (rusage's blocks); on ext4, or where
else files can be shifted.
"""

from __future__ import annotations

import argparse
import gzip
import math
import mmap
import os
import shutil
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent.parent))

import in_venv

in_venv.ensure("runtimes,test", "pyllamafile", "numpy")

from machine import model_name, this_target  # noqa: E402
from speed import measured  # noqa: E402

import pyllamafile  # noqa: E402
from pyllamafile import native, shift  # noqa: E402
from pyllamafile.targets import host  # noqa: E402

GOALS = {
    "packing": "at most 1.10 times",
    "memory": "at most 64 MiB",
    "inspect": "at most 120 ms",
    "warm": "at most 10 ms more",
    "first": "at most 250 ms more",
    "token": "at most 1.02 times",
    "in place": "reading once, nothing written",
    "upgrade": "nothing read or written but the engine",
}
TOKENS = 150_000
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # an installed package has its bytecode
COMMAND = [sys.executable, "-c", "from pyllamafile.__main__ import main; main()"]


def text(value: str) -> bytes:
    raw = value.encode()
    return struct.pack("<Q", len(raw)) + raw


def entry(key: str, value: int | float | str | bytes) -> bytes:
    """A key with a number, a text, or an array in bytes."""
    if isinstance(value, int):
        return text(key) + struct.pack("<II", 4, value)
    if isinstance(value, float):
        return text(key) + struct.pack("<If", 6, value)
    if isinstance(value, str):
        return text(key) + struct.pack("<I", 8) + text(value)
    return text(key) + struct.pack("<I", 9) + value


def gguf(path: Path, size: int) -> Path:
    """A model of about `size` random bytes that llama.cpp loads, with a large vocabulary."""
    words = [*(f"<0x{i:02X}>" for i in range(256)), *(f"token {i}" for i in range(256, TOKENS))]
    strings = struct.pack("<IQ", 8, TOKENS) + b"".join(map(text, words))
    width = max(size // (4 * TOKENS) // 32 * 32, 32)
    keys: dict[str, int | float | str | bytes] = {
        "general.architecture": "llama",
        "llama.context_length": 4096,
        "llama.embedding_length": width,
        "llama.block_count": 1,
        "llama.feed_forward_length": 32,
        "llama.attention.head_count": 1,
        "llama.attention.key_length": 32,
        "llama.attention.value_length": 32,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.rope.dimension_count": 32,
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": strings,
        "tokenizer.ggml.scores": struct.pack("<IQ", 6, TOKENS) + bytes(4 * TOKENS),
        "tokenizer.ggml.merges": strings,  # which such a tokenizer has no use for
    }
    rows = {"attn_q": 32, "attn_k": 32, "attn_v": 32, "ffn_gate": 32, "ffn_up": 32}
    columns = {"attn_output": 32, "ffn_down": 32}
    shapes = {"token_embd.weight": (width, TOKENS), "output_norm.weight": (width,)}
    shapes |= {f"blk.0.{name}.weight": (width,) for name in ("attn_norm", "ffn_norm")}
    shapes |= {f"blk.0.{name}.weight": (width, n) for name, n in rows.items()}
    shapes |= {f"blk.0.{name}.weight": (n, width) for name, n in columns.items()}
    head = b"GGUF" + struct.pack("<IQQ", 3, len(shapes), len(keys))
    head += b"".join(entry(key, value) for key, value in keys.items())
    total = 0
    for name, shape in shapes.items():
        dimensions = struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
        head += text(name) + dimensions + struct.pack("<IQ", 0, total)
        total += 4 * math.prod(shape)
    with path.open("wb") as file:
        file.write(head.ljust(-(-len(head) // 32) * 32, b"\0"))
        for at in range(0, total, 1 << 20):
            file.write(os.urandom(min(1 << 20, total - at)))
    return path


def taking_turns(rounds: int, *actions: Callable[[], object]) -> list[float]:
    """Median seconds of each; one round before them doesn't count."""
    times: list[list[float]] = [[] for _ in actions]
    for turn in range(rounds + 1):
        for action, taken in zip(actions, times, strict=True):
            start = time.perf_counter()
            action()
            if turn:
                taken.append(time.perf_counter() - start)
    return [statistics.median(taken) for taken in times]


def quiet(*command: str | Path, env: dict[str, str] | None = None) -> None:
    subprocess.run(command, check=True, capture_output=True, env=env)


# A child's peak of memory begins with that of its parent (man 2 getrusage), so this starts it.
RUN = """
import os, sys, time
start = time.perf_counter()
silent = [(os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)]
process = os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ, file_actions=silent)
_, status, usage = os.wait4(process, 0)
print(time.perf_counter() - start, usage.ru_maxrss / 1024, usage.ru_oublock / 2048)
sys.exit(os.waitstatus_to_exitcode(status))
"""


def costs(*command: str) -> tuple[float, ...]:
    """Run a program: the seconds it took, its peak MiB, and the MiB that it wrote to disk."""
    run = [sys.executable, "-I", "-S", "-c", RUN, *command]
    return tuple(map(float, subprocess.run(run, check=True, stdout=subprocess.PIPE).stdout.split()))


def report(goal: str, what: str, line: str) -> None:
    print(f"{what:28} {line:52} (goal: {GOALS[goal]})", flush=True)


MOST_TOUCHED = 32 << 30  # bytes: a machine with more is no small virtual one
TOUCHED = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_POPULATE", 0)


def packing(folder: Path, size: int, rounds: int) -> None:
    model = gguf(folder / "model.gguf", size)
    packed, copied = folder / "packed", folder / "copied"
    found = []

    def pack() -> None:
        command = [*COMMAND, "build", "--gguf", str(model), "-o", str(packed), "--no-gui"]
        found.append(costs(*command, "--no-companion"))

    def copy() -> None:
        quiet("cp", "--reflink=auto", model, copied)
        quiet("sync", copied)

    def clean() -> None:  # as a turn of its own, so that removing costs neither
        packed.unlink(missing_ok=True)
        copied.unlink(missing_ok=True)
        os.sync()
        # A virtual machine gives back to its host what was freed two seconds ago, and who takes it
        # next waits for that. So what is free now goes, and both find memory that was just used.
        time.sleep(3)
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") * 9 // 10
        touch = f"import mmap; mmap.mmap(-1, {min(free, MOST_TOUCHED)}, flags={TOUCHED})"
        quiet(sys.executable, "-I", "-S", "-c", touch)

    _, _, _, theirs = taking_turns(rounds, clean, pack, clean, copy)
    ours, peak, _ = map(statistics.median, zip(*found[1:], strict=True))  # as taking_turns does
    line = f"{ours:.2f} s, cp and sync {theirs:.2f} s = {ours / theirs:.2f}"
    report("packing", f"build, {size / (1 << 30):g} GiB", line)
    report("memory", "its memory at the most", f"{peak:.0f} MiB")
    seconds = taking_turns(rounds, lambda: quiet(*COMMAND, "inspect", model))[0]
    report("inspect", f"inspect, {TOKENS:,} tokens", f"{seconds * 1e3:.0f} ms")
    for path in (model, packed, copied):
        path.unlink(missing_ok=True)


def starting(folder: Path, rounds: int, target: str) -> None:
    built = native.build(host())
    program = folder / "runtime"
    program.write_bytes(gzip.decompress(built.path.read_bytes()))
    program.chmod(0o755)
    file = pyllamafile.build(output=folder / "f", targets=[target], gui=False).path
    cache = folder / "cache"
    env = {**os.environ, "PYLLAMAFILE_CACHE": str(cache)}

    def start() -> None:
        quiet("sh", file, "--version", env=env)

    def direct() -> None:
        quiet(program, "--version", env=env)

    warm, bare, bare_sh = taking_turns(10 * rounds, start, direct, lambda: quiet("sh", "-c", ":"))
    shell = f"of that, a shell {bare_sh * 1e3:.1f} ms"
    more = f"{warm * 1e3:.1f} - {bare * 1e3:.1f} = {(warm - bare) * 1e3:.1f} ms, {shell}"
    report("warm", "start, warm", more)
    clean = lambda: shutil.rmtree(cache, ignore_errors=True)  # noqa: E731
    _, first, bare = taking_turns(2 * rounds, clean, start, direct)
    more = f"{first * 1e3:.0f} - {bare * 1e3:.0f} = {(first - bare) * 1e3:.0f} ms"
    report("first", "start, first", more)


def care(folder: Path, size: int, rounds: int, target: str) -> None:
    """Weights that stay where they are; `verify` reads all of them, with the same checksums."""
    if shift.unit(folder) is None:
        print("care: skipped, for files here can't be shifted")
        return
    model, file = gguf(folder / "model.gguf", size), folder / "model.llamafile"
    found: dict[str, list[tuple[float, ...]]] = {"in place": [], "upgrade": [], "read": []}
    for _ in range(rounds):
        command = [*COMMAND, "build", "--in-place", "--gguf", str(model), "--target", target]
        found["in place"].append(costs(*command, "--no-companion"))
        found["read"].append(costs(*COMMAND, "verify", str(file)))
        found["upgrade"].append(costs(*COMMAND, "upgrade", str(file)))
        whole = pyllamafile.inspect(file).entries[0]
        shift.collapse(file, 0, whole.offset)  # the GGUF again
        os.truncate(file, whole.size)
        file.rename(model)
        os.sync()
    reading = statistics.median(seconds for seconds, _, _ in found["read"])
    for name, what in (("in place", "build --in-place"), ("upgrade", "upgrade")):
        seconds, peak, written = map(statistics.median, zip(*found[name], strict=True))
        line = f"{seconds:.2f} s, reading {reading:.2f} s; wrote {written:.0f} MiB"
        report(name, f"{what}, {size / (1 << 30):g} GiB", line)
        report("memory", "its memory at the most", f"{peak:.0f} MiB")
    model.unlink()


def first_token(folder: Path, rounds: int, model: Path, target: str) -> None:
    found = sorted((native.cache() / "bench").glob("upstream-*/bin/llama-completion"))
    if not found:
        print("first token: skipped, for speed.py has not compiled upstream's program yet")
        return
    file = pyllamafile.build(model, folder / "m.llamafile", targets=[target], gui=False).path
    threads = str(os.cpu_count())
    asked = ["-t", threads, "-p", "Once upon a time", "-n", "1", "--temp", "0"]
    asked.append("--no-display-prompt")
    theirs = [str(found[0]), "-m", str(model), "-no-cnv", "--no-warmup", *asked]
    ours = ["sh", str(file), *asked]
    times: tuple[list[float], list[float]] = ([], [])
    for turn in range(3 * rounds + 1):
        for command, taken in zip((ours, theirs), times, strict=True):
            seconds = measured(command, first_output=True)[1]
            if turn:
                taken.append(seconds)
    one, two = map(statistics.median, times)
    line = f"{one * 1e3:.0f} ms, upstream's {two * 1e3:.0f} ms = {one / two:.2f}"
    report("token", f"first token, {model.stem}", line)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--size", type=float, default=2, help="of the model that is packed, in GiB")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, default=Path("/var/tmp"), help="where to work")
    parser.add_argument("--model", type=Path, help="a real one, for the time to its first token")
    parser.add_argument("--parts", default="start,token,pack,care", help="what to measure")
    options = parser.parse_args()
    parts = options.parts.split(",")
    here = this_target()
    print(f"{model_name()}, {os.cpu_count()} cores; medians of {options.rounds} rounds and more\n")
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        if "start" in parts:
            starting(folder, options.rounds, here.name)
        if "token" in parts and options.model:
            first_token(folder, options.rounds, options.model, here.name)
        if "pack" in parts:
            packing(folder, int(options.size * (1 << 30)), options.rounds)
        if "care" in parts:
            care(folder, int(options.size * (1 << 30)), options.rounds, here.name)


if __name__ == "__main__":
    main()
