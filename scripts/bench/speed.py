#!/usr/bin/env python3
"""Speed of a llamafile beside upstream's llama.cpp, on the same weights in one run.

Upstream is compiled from the same sdist the way its README says (CMake, Release, which means
gcc -O3 -march=native here), into the cache. Both programs take turns; the medians of several
rounds are printed with their ratio, which is above 1 where the llamafile is faster.

    scripts/bench/speed.py --model FILE [--rounds N] [--threads N] [--types F16,...] [--level v3]
        [--prompt N] [--generate N] [--peer-flags FLAGS]
    scripts/bench/speed.py --shape phi3 [--layers N] ...

--shape makes a model of random weights with the sizes of a real one, but fewer layers: it says
nothing sensible, at that model's speed by layer. Its rows are multiples of 256, as the K types want
them, which SmolLM2-135M's are not.
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
from typing import TypeVar

sys.path.append(str(Path(__file__).resolve().parent.parent))

import in_venv

in_venv.ensure("runtimes,test", "pyllamafile", "numpy")  # numpy comes with gguf

import gguf  # noqa: E402
import numpy as np  # noqa: E402

import pyllamafile  # noqa: E402
from pyllamafile import native  # noqa: E402
from pyllamafile.models import gguf as weights  # noqa: E402
from pyllamafile.native.building import tools  # noqa: E402
from pyllamafile.targets import host  # noqa: E402

T = TypeVar("T")

TYPES = "F16,BF16,Q8_0,Q5_K_M,Q4_K_M,Q4_0,Q2_K"


@dataclass(frozen=True)
class Shape:
    """The sizes of a model's matrices."""

    arch: str
    width: int
    inner: int
    heads: int
    kv_heads: int
    layers: int  # unless --layers says otherwise


SHAPES = {
    "phi3": Shape("phi3", 3072, 8192, 32, 32, 8),  # Phi-3-mini has 32 layers
    "llama-1b": Shape("llama", 2048, 8192, 32, 8, 16),  # Llama-3.2-1B, but for its vocabulary
}


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


def one(
    bench: list[str], complete: list[str], model: Path, threads: int, tokens: tuple[int, int]
) -> Run:
    """One round of one program, with so many tokens of a prompt, and so many written."""
    common = ["-m", str(model), "-t", str(threads)]
    sizes = ["-p", str(tokens[0]), "-n", str(tokens[1]), "-r", "1", "-o", "json"]
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


def aside(act: Callable[..., T], *arguments: object) -> T:
    """Act in a process of its own: a child's peak of memory begins with that of its parent."""
    with ProcessPoolExecutor(1) as pool:
        return pool.submit(act, *arguments).result()


def read_to_write(tensors: Sequence[weights.Tensor]) -> int:
    """The bytes of weights that a token takes: of embeddings by themselves, it takes a row."""
    alone = any(tensor.name == "output.weight" for tensor in tensors)
    return sum(t.size for t in tensors if not (alone and t.name == "token_embd.weight"))


def matrices(shape: Shape) -> dict[str, tuple[int, ...]]:
    """What a layer consists of, as llama.cpp names it."""
    width, inner = shape.width, shape.inner
    keys = width // shape.heads * shape.kv_heads
    common = {"attn_norm": (width,), "ffn_norm": (width,), "attn_output": (width, width)}
    if shape.arch == "phi3":
        own = {"attn_qkv": (width + 2 * keys, width), "ffn_up": (2 * inner, width)}
    else:
        own = {"attn_q": (width, width), "attn_k": (keys, width), "attn_v": (keys, width)}
        own |= {"ffn_gate": (inner, width), "ffn_up": (inner, width)}
    return common | own | {"ffn_down": (width, inner)}


def shaped(name: str, layers: int | None, folder: Path) -> Path:
    """A model of random weights in F16, with Phi-3's vocabulary."""
    shape = SHAPES[name]
    count = layers or shape.layers
    path = folder / f"{name}-{count}-layers.gguf"
    if path.exists():
        return path
    unfinished = path.with_suffix(".unfinished")
    writer = gguf.GGUFWriter(unfinished, shape.arch, use_temp_file=False)
    vocabulary = native.llama_source() / "models" / "ggml-vocab-phi-3.gguf"
    words = 0
    for key, field in gguf.GGUFReader(vocabulary).fields.items():
        if key.startswith("tokenizer."):
            element = field.types[-1] if len(field.types) > 1 else None
            writer.add_key_value(key, field.contents(), field.types[0], element)
            words = len(field.data) if key == "tokenizer.ggml.tokens" else words
    writer.add_context_length(4096)
    writer.add_embedding_length(shape.width)
    writer.add_feed_forward_length(shape.inner)
    writer.add_block_count(count)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_rope_dimension_count(shape.width // shape.heads)
    writer.add_layer_norm_rms_eps(1e-5)
    sizes = {"token_embd": (words, shape.width), "output_norm": (shape.width,)}
    sizes["output"] = (words, shape.width)
    for layer in range(count):
        sizes |= {f"blk.{layer}.{part}": size for part, size in matrices(shape).items()}
    rng = np.random.default_rng(1)
    for part, size in sizes.items():
        values = rng.standard_normal(size, dtype=np.float32) * np.float32(0.02)
        kind = np.float32 if len(size) == 1 else np.float16
        writer.add_tensor(f"{part}.weight", values.astype(kind))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return unfinished.rename(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--model", type=Path, help="a GGUF to make the types from")
    which.add_argument("--shape", choices=SHAPES, help="the sizes of a model of random weights")
    parser.add_argument("--layers", type=int, help="of that one, instead of some")
    parser.add_argument("--prompt", type=int, default=512, help="tokens")
    parser.add_argument("--generate", type=int, default=128, help="tokens")
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
    limit = aside(bandwidth, options.threads)
    source = options.model or aside(shaped, options.shape, options.layers, folder)
    print(f"{machine()}, {options.threads} threads, {limit / 1e9:.1f} GB/s read from memory")
    print(f"{version.stdout.splitlines()[-1]}; medians of {options.rounds} rounds")
    print("ours / upstream = ratio, in tokens per second; MiB; milliseconds to the first token\n")

    row = "{:8} {:>24} {:>24} {:>14} {:>14} {:>6}"
    tokens = options.prompt, options.generate
    heads = (f"prompt {tokens[0]}", f"generation {tokens[1]}", "memory", "first", "limit")
    print(row.format("", *heads))
    ratios: list[tuple[float, float]] = []
    for name in options.types.split(","):
        model = quantized(program, source, name, folder)
        container = folder / f"{name}.llamafile"
        pyllamafile.build(model, container, gui=False, force=True, targets=[here.name])
        ours, theirs = [], []
        quiet = ["--no-warmup", "-no-cnv"]
        for _ in range(options.rounds):
            bench = [str(program), "--llamafile", str(container), "--bench"]
            ours.append(one(bench, [str(program)], container, options.threads, tokens))
            bench = [str(peer / "llama-bench")]
            complete = [str(peer / "llama-completion"), *quiet]
            theirs.append(one(bench, complete, model, options.threads, tokens))
        cells = []
        for field in ("prompt", "generation"):
            a, b = median(ours, field), median(theirs, field)
            cells.append(f"{a:.1f} / {b:.1f} = {a / b:.2f}")
        ratios.append(tuple(float(cell.split("= ")[1]) for cell in cells))
        cells.append(f"{median(ours, 'memory'):.0f} / {median(theirs, 'memory'):.0f}")
        cells.append(f"{median(ours, 'first') * 1e3:.0f} / {median(theirs, 'first') * 1e3:.0f}")
        used = read_to_write(weights.read(model).tensors)
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
