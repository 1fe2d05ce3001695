#!/usr/bin/env python3
"""Speed of a llamafile beside upstream's llama.cpp, on the same weights in one run.

Upstream is compiled from the same sdist the way its README says (CMake, Release, which means
gcc -O3 -march=native here), into the cache. Both programs take turns; the medians of several
rounds are printed with their ratio, which is above 1 where the llamafile is faster.

    scripts/bench/speed.py --model FILE [--rounds N] [--threads N] [--types F16,...] [--level v3]
        [--peer-flags FLAGS]
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent.parent))

import in_venv

in_venv.ensure("runtimes,test", "pyllamafile", "numpy")  # numpy comes with gguf

import numpy as np  # noqa: E402

import pyllamafile  # noqa: E402
from pyllamafile import native  # noqa: E402
from pyllamafile.models import gguf as weights  # noqa: E402
from pyllamafile.native.building import tools  # noqa: E402
from pyllamafile.targets import host  # noqa: E402

TYPES = "F16,BF16,Q8_0,Q5_K_M,Q4_K_M,Q4_0,Q2_K"
PROMPT, GENERATED = 512, 128  # tokens


@dataclass(frozen=True)
class Run:
    """What one round of one program measured."""

    prompt: float  # tokens per second
    generation: float  # tokens per second
    memory: float  # MiB at the most
    first: float  # seconds from the start of the program to its first token


def upstream(flags: str, programs: Sequence[str] = ("llama-bench", "llama-completion")) -> Path:
    """The folder of upstream's own programs, compiled for this machine."""
    name = "-".join(["upstream", native.SDIST_SHA256[:12], *flags.replace("-", "").split()])
    folder = native.cache() / "bench" / name
    if not all((folder / "bin" / name).exists() for name in programs):
        print("compiling upstream's llama.cpp (gcc -O3 -march=native), some minutes ...")
        source = native.llama_source()
        cmake = str(tools.program("cmake"))
        off = ("LLAMA_BUILD_TESTS", "LLAMA_BUILD_UI", "LLAMA_USE_PREBUILT_UI", "LLAMA_OPENSSL")
        options = ["-DCMAKE_BUILD_TYPE=Release", *(f"-D{name}=OFF" for name in off)]
        options += [f"-DCMAKE_C_FLAGS={flags}", f"-DCMAKE_CXX_FLAGS={flags}"]
        quiet = {"check": True, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        subprocess.run([cmake, "-S", source, "-B", folder, *options], **quiet)
        jobs = str(os.cpu_count() or 1)
        subprocess.run([cmake, "--build", folder, "-j", jobs, "--target", *programs], **quiet)
    return folder / "bin"


def measured(command: list[str], first_output: bool = False) -> tuple[str, float, float]:
    """Run a program: its output, the seconds until it ended (or first wrote), its peak MiB."""
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    head = process.stdout.read(1) if first_output else b""
    seconds = time.perf_counter() - start
    text = head + process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    process.stdout.close()
    if process.returncode != 0:
        hint = ""
        if process.returncode == -signal.SIGILL:
            hint = "; AMX listed but not usable? --peer-flags='-mno-amx-tile -mno-amx-int8'"
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}{hint}")
    if not first_output:
        seconds = time.perf_counter() - start
    return text.decode(), seconds, usage.ru_maxrss / 1024


def one(bench: list[str], complete: list[str], model: Path, threads: int) -> Run:
    """One round of one program."""
    common = ["-m", str(model), "-t", str(threads)]
    sizes = ["-p", str(PROMPT), "-n", str(GENERATED), "-r", "1", "-o", "json"]
    text, _, memory = measured([*bench, *common, *sizes])
    speeds = {row["n_prompt"] > 0: row["avg_ts"] for row in json.loads(text)}
    asked = ["-p", "Once upon a time", "-n", "1", "--temp", "0", "--no-display-prompt"]
    _, first, _ = measured([*complete, *common, *asked], first_output=True)
    return Run(speeds[True], speeds[False], memory, first)


def bandwidth(threads: int) -> float:
    """Bytes per second that this machine reads from memory, with all threads."""
    data = np.ones(1 << 27, dtype=np.uint64)  # 1 GiB
    parts = np.array_split(data, threads)
    with ThreadPoolExecutor(threads) as pool:
        best = math.inf
        for _ in range(5):
            start = time.perf_counter()
            list(pool.map(np.max, parts))
            best = min(best, time.perf_counter() - start)
    return data.nbytes / best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", type=Path, required=True, help="a GGUF to make the types from")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--types", default=TYPES)
    parser.add_argument("--level", help="a level of the kernels instead of the best")
    parser.add_argument("--peer-flags", default="", help="more compiler flags for upstream")
    options = parser.parse_args()
    if options.level:
        os.environ["PYLLAMAFILE_CPU"] = options.level

    here = host()
    if here is None:
        raise SystemExit("no target is like this machine")
    folder = native.cache() / "bench"
    folder.mkdir(parents=True, exist_ok=True)
    program = folder / "runtime"
    program.write_bytes(gzip.decompress(native.build(here).path.read_bytes()))
    program.chmod(0o755)
    peer = upstream(options.peer_flags)
    version = subprocess.run([program, "--version"], capture_output=True, text=True, check=True)
    # in a process of its own: a child's peak of memory begins with that of its parent
    with ProcessPoolExecutor(1) as pool:
        limit = pool.submit(bandwidth, options.threads).result()
    print(f"{machine()}, {options.threads} threads, {limit / 1e9:.1f} GB/s read from memory")
    print(f"{version.stdout.splitlines()[-1]}; medians of {options.rounds} rounds")
    print("ours / upstream = ratio, in tokens per second; MiB; milliseconds to the first token\n")

    row = "{:8} {:>24} {:>24} {:>14} {:>14} {:>6}"
    print(row.format("", f"prompt {PROMPT}", f"generation {GENERATED}", "memory", "first", "limit"))
    ratios: list[tuple[float, float]] = []
    for name in options.types.split(","):
        model = quantized(program, options.model, name, folder)
        container = folder / f"{name}.llamafile"
        pyllamafile.build(model, container, gui=False, force=True, targets=[here.name])
        ours, theirs = [], []
        quiet = ["--no-warmup", "-no-cnv"]
        for _ in range(options.rounds):
            bench = [str(program), "--llamafile", str(container), "--bench"]
            ours.append(one(bench, [str(program)], container, options.threads))
            bench = [str(peer / "llama-bench")]
            complete = [str(peer / "llama-completion"), *quiet]
            theirs.append(one(bench, complete, model, options.threads))
        cells = []
        for field in ("prompt", "generation"):
            a, b = median(ours, field), median(theirs, field)
            cells.append(f"{a:.1f} / {b:.1f} = {a / b:.2f}")
        ratios.append(tuple(float(cell.split("= ")[1]) for cell in cells))
        cells.append(f"{median(ours, 'memory'):.0f} / {median(theirs, 'memory'):.0f}")
        cells.append(f"{median(ours, 'first') * 1e3:.0f} / {median(theirs, 'first') * 1e3:.0f}")
        used = sum(tensor.size for tensor in weights.read(model).tensors)
        cells.append(f"{median(ours, 'generation') * used / limit:.0%}")
        print(row.format(name, *cells), flush=True)
        container.unlink()
    means = [statistics.geometric_mean(column) for column in zip(*ratios, strict=True)]
    print(f"\ngeometric mean of the ratios: prompt {means[0]:.3f}, generation {means[1]:.3f}")
    print("limit: bytes of weights read per second of generation, over what the memory gives")


def median(runs: list[Run], field: str) -> float:
    take: Callable[[Run], float] = lambda run: getattr(run, field)  # noqa: E731
    return statistics.median(map(take, runs))


def quantized(program: Path, model: Path, name: str, folder: Path) -> Path:
    """The model in another type, made by our own --quantize."""
    path = folder / f"{model.stem}-{name}.gguf"
    if not path.exists():
        command = [program, "--quantize", "--allow-requantize", model, path, name]
        subprocess.run(command, check=True, capture_output=True)
    return path


def machine() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":")[1].strip()
    return "some processor"


if __name__ == "__main__":
    main()
