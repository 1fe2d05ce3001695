"""What makes a GGUF of something else: llama.cpp's converters, and its quantizer."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pyllamafile import native
from pyllamafile.errors import (
    AccessError,
    DamagedError,
    NotFoundError,
    PyllamafileError,
    RefusedError,
    UnavailableError,
)
from pyllamafile.models import forecast
from pyllamafile.models.gguf import read, shards
from pyllamafile.native import trial
from pyllamafile.native.building import tools
from pyllamafile.progress import Progress, Step

# By what is in a folder, the script in llama.cpp's source that converts it.
_SCRIPTS = {"model": "convert_hf_to_gguf.py", "lora": "convert_lora_to_gguf.py"}
# What it says when it gives up, but for advice on options that are its own.
_REASON = r"(?:ERROR:[^:]*:|Error: |Exception: )(?!Please )(.+)"
_BASE_HINT = "put the base model's folder beside the adapter's, or where adapter_config.json says"
_LONGEST_HEADER = 100_000_000  # safetensors' own limit, in bytes
_PACKAGES = ("torch", "transformers", "sentencepiece")  # of the extra `convert`


def kind(folder: Path) -> Literal["model", "lora"] | None:
    """What a converter could make of a folder: a model, a LoRA adapter, or nothing."""
    if (folder / "adapter_config.json").is_file():
        return "lora"
    if (folder / "config.json").is_file() and any(folder.glob("*.safetensors")):
        return "model"
    return None


def convert(folder: Path, output: Path, tell: Progress) -> Path:
    """Make a GGUF of a folder of safetensors, in floats.

    Args:
        folder: A model's, or a LoRA adapter's.
        output: The file to write.
        tell: Told about every step.

    Returns:
        `output`.

    Raises:
        PyllamafileError: The packages for it are missing, or the converter refused.
    """
    what = kind(folder)
    assert what is not None
    for package in _PACKAGES:
        if importlib.util.find_spec(package) is None:
            raise UnavailableError(
                f"the Python package {package} is missing, which converting {folder} takes",
                hint="pip install 'pyllamafile[convert]'",
            )
    files = sorted(folder.glob("*.safetensors"))
    tensors = [tensor for path in files for tensor in _tensors(path)]
    if what == "lora":
        # An adapter is small; in F32 it always comes out.
        more = ["--outtype", "f32", *_base(folder)]
    else:
        # Else a model is called after its folder, which in the hub's cache is a number.
        more = ["--outtype", _floats(tensors), "--model-name", output.stem]
    script = native.llama_source(progress=tell) / _SCRIPTS[what]
    command = [sys.executable, str(script), str(folder), "--outfile", str(output), *more]
    label = f"converting {folder}"
    size = sum(path.stat().st_size for path in files)

    def step(line: str) -> None:
        if match := re.match(r"Writing: +(\d+)%", line):  # the converter's own bar
            tell(Step("bytes", label, size * int(match[1]) // 100, size))

    tell(Step("waiting", label))
    try:
        _run(command, "convert", label, step, _REASON)
    except PyllamafileError as error:
        if "Failed to load base model config" not in error.message:
            raise
        raise NotFoundError(error.message, hint=_BASE_HINT, path=folder) from error
    if not output.is_file():
        raise RefusedError(f"{label} brought no file", hint=tools.log_hint("convert"), path=folder)
    return output


def _base(folder: Path) -> list[str]:
    """Where an adapter's base model is, if that is on this machine; else the hub is asked."""
    path = folder / "adapter_config.json"
    try:
        base = json.loads(path.read_bytes())["base_model_name_or_path"]
        candidates = [Path(base), folder.parent / Path(base).name]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DamagedError(f"{path}: doesn't say what model it is for", path=path) from error
    for candidate in candidates:
        if (candidate / "config.json").is_file():
            return ["--base", str(candidate)]
    if not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", base):  # no name on the hub
        raise NotFoundError(
            f"{folder}: its base model is not here: {' or '.join(map(str, candidates))}",
            hint=_BASE_HINT,
            path=folder,
        )
    return []


def _tensors(path: Path) -> list[dict[str, Any]]:
    """What a file of safetensors says of each tensor in it."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(min(length, _LONGEST_HEADER)))
        tensors = [tensor for name, tensor in header.items() if name != "__metadata__"]
        end = 8 + length + max((tensor["data_offsets"][1] for tensor in tensors), default=0)
    except OSError as error:
        raise AccessError(f"{path}: {error.strerror}", path=path) from error
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise DamagedError(
            f"{path}: its header is none of safetensors", hint="download it again", path=path
        ) from error
    if end > size:
        raise DamagedError(
            f"{path}: incomplete: {end - size} of {end} bytes are missing",
            hint="download it again",
            path=path,
        )
    return tensors


def _floats(tensors: Sequence[Mapping[str, Any]]) -> str:
    """The floats that a model is in; asked to guess, the converter makes F16 of F32."""
    matrices = {t.get("dtype") for t in tensors if len(t.get("shape", ())) > 1}
    return "f32" if matrices == {"F32"} else "auto"


def quantized_name(name: str, format: str) -> str:
    """What the GGUF `name` is called in another format.

    >>> quantized_name("phi-3-mini-fp16.gguf", "Q5_K_M")
    'phi-3-mini-Q5_K_M.gguf'
    """
    stem = re.sub(r"-\d{5}-of-\d{5}$", "", name.removesuffix(".gguf"))
    known = r"f16|fp16|f32|fp32|bf16|i?q\d(_[01]|_k(_[sml])?)?"
    stem = re.sub(rf"(^|[-._])({known})$", "", stem, flags=re.IGNORECASE)
    return f"{stem}-{format}.gguf" if stem else f"{format}.gguf"


def check_format(path: Path, output: Path, format: str, *, again: bool) -> None:
    """Refuse what `to_format` would refuse, before it has a program to run.

    Args:
        path: The GGUF; of a split one, any part.
        output: The file to write.
        format: One of `forecast.FORMATS`.
        again: Whether what is quantized may be quantized again.

    Raises:
        PyllamafileError: It is quantized already, or there is no room.
    """
    files = shards(path)
    parts = [read(file) for file in files]
    if not again and forecast.loses_twice(parts, format):
        raise RefusedError(
            f"{path}: is quantized already ({forecast.quantized(parts)}), and would lose twice",
            hint="take a GGUF in F16, BF16 or F32, or accept the loss: --allow-requantize",
            path=path,
        )
    need, free = forecast.size(parts, format), shutil.disk_usage(output.parent).free
    if need > free:
        raise AccessError(
            f"{output.parent}: {format} takes {need:,} bytes for a while, and {free:,} are free",
            path=output.parent,
        )


def to_format(
    path: Path, output: Path, format: str, program: bytes, *, again: bool, tell: Progress
) -> Path:
    """Quantize a model, with llama.cpp's own quantizer.

    Args:
        path: The GGUF; of a split one, any part.
        output: The file to write.
        format: One of `forecast.FORMATS`.
        program: A runtime that runs here.
        again: Whether what is quantized may be quantized again.
        tell: Told about every tensor, in bytes.

    Returns:
        `output`.

    Raises:
        PyllamafileError: As `check_format`, or the quantizer refused.
    """
    check_format(path, output, format, again=again)
    files = shards(path)
    parts = [read(file) for file in files]
    sizes = {tensor.name: tensor.size for part in parts for tensor in part.tensors}
    total, done = sum(sizes.values()), 0
    label = f"quantizing to {format}"

    def step(line: str) -> None:
        nonlocal done
        if match := re.match(r"\[ *\d+/ *\d+\] +(\S+)", line):
            done += sizes.get(match[1], 0)
            tell(Step("bytes", label, done, total))

    tell(Step("bytes", label, 0, total))
    with trial.unpacked(program) as runtime:
        model = files[0].absolute()
        if not model.name.endswith(".gguf"):  # Ollama's blobs
            model = runtime.with_name("model.gguf")
            model.symlink_to(files[0].absolute())
        command = [str(runtime), "--quantize", *(["--allow-requantize"] if again else [])]
        command += [str(model), str(output), format]
        _run(command, "quantize", label, step, r"failed to quantize: (.+)")
    return output


def _run(command: list[str], log: str, what: str, step: Callable[[str], None], reason: str) -> None:
    """Run a program; of what it says when it fails, the one line that has the reason."""
    found: list[str] = []

    def each(line: str) -> None:
        step(line)
        if match := re.search(reason, line):
            found.append(match[1].strip())

    try:
        tools.run(command, log=log, what=what, each_line=each)
    except PyllamafileError as error:
        if not found:
            raise
        raise RefusedError(f"{what} failed: {found[-1]}", tools.log_hint(log)) from error
