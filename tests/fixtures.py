"""Models and files that tests are made of, written in code."""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import random
import struct
import wave
import zipfile
import zlib
from pathlib import Path

import gguf
import numpy as np

from pyllamafile.launcher import pack

# What stands for llama.cpp: it prints its arguments.
PROGRAM = b'#!/bin/sh\n[ "$1" != --probe ] || exit 0\nfor word; do printf "<%s>\\n" "$word"; done\n'
# Another version of it, and a larger one.
NEW = PROGRAM + b"# newer" + random.Random(1).randbytes(200_000).hex().encode()


def _written(writer: gguf.GGUFWriter, path: Path) -> Path:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def tiny_gguf(
    path: Path,
    *,
    name: str = "Tiny",
    tokens: int = 64,
    arch: str = "llama",
    template: str | None = "{{ messages[0].content }}",
) -> Path:
    """A structurally complete GGUF with random weights, some KiB small."""
    writer = gguf.GGUFWriter(path, arch)
    writer.add_name(name)
    writer.add_context_length(128)
    writer.add_embedding_length(32)
    writer.add_block_count(1)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_tokenizer_model("llama")
    writer.add_token_list([f"t{i}" for i in range(tokens)])
    writer.add_token_scores([0.0] * tokens)
    if template:
        writer.add_chat_template(template)
    rng = np.random.default_rng(7)
    writer.add_tensor("token_embd.weight", rng.random((tokens, 32), dtype=np.float32))
    writer.add_tensor("output_norm.weight", rng.random(32, dtype=np.float32))
    return _written(writer, path)


def sparse_gguf(path: Path, size: int) -> Path:
    """A GGUF of one tensor that is a hole of some gigabytes, with a few bytes at its end."""
    name, key, value = b"w", b"general.architecture", b"llama"
    header = b"GGUF" + struct.pack("<IQQ", 3, 1, 1)
    header += struct.pack("<Q", len(key)) + key + struct.pack("<IQ", 8, len(value)) + value
    header += struct.pack("<Q", 1) + name + struct.pack("<IQIQ", 1, size // 4, 0, 0)
    header = header.ljust(-(-len(header) // 32) * 32, b"\0")
    with path.open("wb") as file:
        file.write(header)
        file.truncate(len(header) + size)
        file.seek(-4, os.SEEK_END)
        file.write(b"last")
    return path


def split_gguf(folder: Path, name: str = "s") -> list[Path]:
    """A model in two parts."""
    writer = gguf.GGUFWriter(folder / f"{name}.gguf", "llama", split_max_tensors=1)
    writer.add_name("Split")
    for number in range(2):
        writer.add_tensor(f"t{number}", np.full((4, 32), number, np.float32))
    _written(writer, folder)
    return sorted(folder.glob(f"{name}-*-of-*.gguf"))


def tiny_phi3(
    path: Path,
    vocabulary: Path,
    *,
    width: int = 64,
    inner: int = 128,
    heads: int = 2,
    kv_heads: int = 2,
    template: str | None = "",
    pooling: int | None = None,
    window: int | None = None,
) -> Path:
    """A phi3 model with Phi-3's real vocabulary and random weights, one layer deep.

    Args:
        path: The file to write.
        vocabulary: The sdist's models/ggml-vocab-phi-3.gguf.
        width: Of the embedding.
        inner: Width of the feed-forward network.
        heads: Of attention.
        kv_heads: How many of them have keys and values of their own.
        template: For chats; "" for that of the vocabulary, None for none.
        pooling: Makes it a model for embeddings: 1 is the mean of all tokens'.
        window: How many tokens attention sees; None for all.
    """
    queries = (heads + 2 * kv_heads) * width // heads
    hyperparameters = {
        "phi3.context_length": 4096,
        "phi3.embedding_length": width,
        "phi3.feed_forward_length": inner,
        "phi3.block_count": 1,
        "phi3.attention.head_count": heads,
        "phi3.attention.head_count_kv": kv_heads,
        "phi3.rope.dimension_count": width // heads,
    }
    writer = gguf.GGUFWriter(path, "phi3")
    if template:
        writer.add_chat_template(template)
    tokens = 0
    for key, field in gguf.GGUFReader(vocabulary).fields.items():
        if key.startswith("GGUF.") or key == "general.architecture" or key in hyperparameters:
            continue
        if key == "tokenizer.chat_template" and template != "":
            continue
        element = field.types[-1] if len(field.types) > 1 else None
        writer.add_key_value(key, field.contents(), field.types[0], element)
        if key == "tokenizer.ggml.tokens":
            tokens = len(field.data)
    if pooling is not None:
        hyperparameters["phi3.pooling_type"] = pooling
    if window is not None:
        hyperparameters["phi3.attention.sliding_window"] = window
    for key, value in hyperparameters.items():
        writer.add_uint32(key, value)
    rng = np.random.default_rng(3)
    for name, shape in {
        "token_embd.weight": (tokens, width),
        "output_norm.weight": (width,),
        "output.weight": (tokens, width),
        "blk.0.attn_norm.weight": (width,),
        "blk.0.attn_qkv.weight": (queries, width),
        "blk.0.attn_output.weight": (width, width),
        "blk.0.ffn_norm.weight": (width,),
        "blk.0.ffn_up.weight": (2 * inner, width),
        "blk.0.ffn_down.weight": (width, inner),
    }.items():
        writer.add_tensor(name, rng.normal(0, 0.05, shape).astype(np.float32))
    return _written(writer, path)


def tiny_lora(
    path: Path,
    base: Path,
    *,
    tensor: str = "token_embd.weight",
    size: float = 1,
    arch: str = "",
    dtype: type[np.generic] = np.float32,
    layers: int | None = None,
) -> Path:
    """A LoRA adapter of rank 2 for one tensor of a model.

    Args:
        path: The file to write.
        base: The model's GGUF.
        tensor: Which of its tensors it changes; it has to have two dimensions.
        size: How much, in standard deviations of the random change.
        arch: The architecture that it says it is for, by default the model's own.
        dtype: Of its numbers.
        layers: How many of each there are, in a third dimension; None for none such.
    """
    model = gguf.GGUFReader(base)
    inner, outer = map(int, next(t.shape for t in model.tensors if t.name == tensor)[:2])
    shapes = {"a": (2, inner), "b": (outer, 2)}
    if tensor == "token_embd.weight":
        shapes = {"a": (outer, 2), "b": (inner, 2)}  # llama-adapter.cpp: they are flipped
    writer = gguf.GGUFWriter(path, arch or model.fields["general.architecture"].contents())
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", 2)
    rng = np.random.default_rng(5)
    for side, plane in shapes.items():
        shape = plane if layers is None else (layers, *plane)
        values = rng.normal(0, size, shape).astype(dtype)
        writer.add_tensor(f"{tensor}.lora_{side}", values)
    return _written(writer, path)


def tiny_projector(path: Path, *, width: int, scale: float = 0.1, without: str = "") -> Path:
    """A LLaVA projector with random weights, which makes four embeddings of an image.

    Args:
        path: The file to write.
        width: Of the language model's embeddings.
        scale: Their standard deviation, about.
        without: A tensor that it lacks.
    """
    inner, layers, image, patch = 32, 2, 32, 16
    writer = gguf.GGUFWriter(path, "clip")
    writer.add_type(gguf.GGUFType.MMPROJ)
    writer.add_clip_has_vision_encoder(True)
    writer.add_clip_projector_type("mlp")
    writer.add_vision_embedding_length(inner)
    writer.add_vision_feed_forward_length(2 * inner)
    writer.add_vision_block_count(layers)
    writer.add_vision_head_count(2)
    writer.add_vision_projection_dim(width)
    writer.add_vision_attention_layernorm_eps(1e-5)
    writer.add_vision_image_size(image)
    writer.add_vision_patch_size(patch)
    writer.add_vision_image_mean([0.5] * 3)
    writer.add_vision_image_std([0.5] * 3)
    writer.add_vision_use_gelu(True)
    shapes: dict[str, tuple[int, ...]] = {
        "v.patch_embd.weight": (inner, 3, patch, patch),
        "v.position_embd.weight": ((image // patch) ** 2, inner),
        "mm.0.weight": (inner, inner),
        "mm.2.weight": (width, inner),
    }
    for side in ("weight", "bias"):
        for layer in range(layers):
            shapes[f"v.blk.{layer}.ln1.{side}"] = shapes[f"v.blk.{layer}.ln2.{side}"] = (inner,)
    for layer in range(layers):
        for name in ("attn_q", "attn_k", "attn_v", "attn_out"):
            shapes[f"v.blk.{layer}.{name}.weight"] = (inner, inner)
        shapes[f"v.blk.{layer}.ffn_up.weight"] = (2 * inner, inner)
        shapes[f"v.blk.{layer}.ffn_down.weight"] = (inner, 2 * inner)
    rng = np.random.default_rng(11)
    for name, shape in shapes.items():
        values = rng.normal(0, shape[-1] ** -0.5, shape)
        if name == "mm.2.weight":
            values *= scale
        if name != without:
            writer.add_tensor(name, values.astype(np.float32))
    for name, length in {"mm.0.bias": inner, "mm.2.bias": width}.items():
        writer.add_tensor(name, np.zeros(length, np.float32))
    return _written(writer, path)


def tiny_ear(
    path: Path, *, width: int, scale: float = 0.1, positions: int = 1500, without: str = ""
) -> Path:
    """An Ultravox projector with random weights, which makes 375 embeddings of 30 seconds.

    Args:
        path: The file to write.
        width: Of the language model's embeddings.
        scale: Their standard deviation, about.
        positions: How many it tells apart; fewer are good for nothing but to be loaded.
        without: A tensor with random weights that it lacks.
    """
    inner, layers, bins, stack, middle = 32, 2, 80, 4, 64
    writer = gguf.GGUFWriter(path, "clip")
    writer.add_type(gguf.GGUFType.MMPROJ)
    writer.add_clip_has_audio_encoder(True)
    writer.add_clip_projector_type("ultravox")
    writer.add_audio_embedding_length(inner)
    writer.add_audio_feed_forward_length(2 * inner)
    writer.add_audio_block_count(layers)
    writer.add_audio_head_count(2)
    writer.add_audio_projection_dim(width)
    writer.add_audio_attention_layernorm_eps(1e-5)
    writer.add_audio_num_mel_bins(bins)
    writer.add_audio_stack_factor(stack)
    shapes: dict[str, tuple[int, ...]] = {
        "a.conv1d.1.weight": (inner, bins, 3),
        "a.conv1d.2.weight": (inner, inner, 3),
        "a.position_embd.weight": (positions, inner),
        "mm.a.mlp.1.weight": (2 * middle, stack * inner),
        "mm.a.mlp.2.weight": (width, middle),
    }
    ones = {"mm.a.norm_pre.weight": stack * inner, "mm.a.norm_mid.weight": middle}
    ones["a.post_ln.weight"] = inner
    zeros: dict[str, tuple[int, ...]] = {"a.post_ln.bias": (inner,)}
    for name in ("a.conv1d.1.bias", "a.conv1d.2.bias"):
        zeros[name] = (inner, 1)
    for layer in range(layers):
        block = f"a.blk.{layer}"
        for name in ("attn_q", "attn_k", "attn_v", "attn_out"):
            shapes[f"{block}.{name}.weight"] = (inner, inner)
        shapes[f"{block}.ffn_up.weight"] = (2 * inner, inner)
        shapes[f"{block}.ffn_down.weight"] = (inner, 2 * inner)
        for name in ("attn_q", "attn_v", "attn_out", "ln1", "ln2", "ffn_down"):
            zeros[f"{block}.{name}.bias"] = (inner,)
        zeros[f"{block}.ffn_up.bias"] = (2 * inner,)
        ones[f"{block}.ln1.weight"] = ones[f"{block}.ln2.weight"] = inner
    rng = np.random.default_rng(13)
    for name, shape in shapes.items():
        values = rng.normal(0, math.prod(shape[1:]) ** -0.5, shape)
        if name == "mm.a.mlp.2.weight":
            values *= scale
        # The kernels of convolutions are halves, for that is what ggml_conv_1d takes.
        if name != without:
            writer.add_tensor(name, values.astype(np.float16 if "conv1d" in name else np.float32))
    for name, length in ones.items():
        writer.add_tensor(name, np.ones(length, np.float32))
    for name, shape in zeros.items():
        writer.add_tensor(name, np.zeros(shape, np.float32))
    return _written(writer, path)


def wav(hertz: float, seconds: float = 1, rate: int = 16000) -> bytes:
    """A tone."""
    moments = np.arange(int(seconds * rate)) / rate
    samples = (np.sin(2 * np.pi * hertz * moments) * 20000).astype("<i2").tobytes()
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(rate)
        out.writeframes(samples)
    return file.getvalue()


def png(colour: tuple[int, int, int], size: int = 32) -> bytes:
    """A square image of one colour."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    rows = (b"\0" + bytes(colour) * size) * size
    header = struct.pack(">2I5B", size, size, 8, 2, 0, 0, 0)
    parts = {b"IHDR": header, b"IDAT": zlib.compress(rows), b"IEND": b""}
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(kind, data) for kind, data in parts.items())


def tiny_elf(machine: int = 62) -> bytes:
    """An ELF program that says hello on Linux on amd64, and elsewhere has the shape of one."""
    code = (
        b"\xb8\x01\0\0\0\xbf\x01\0\0\0"  # mov eax, 1 (write); mov edi, 1
        b"\x48\x8d\x35\x10\0\0\0\xba\x06\0\0\0"  # lea rsi, [rip+16]; mov edx, 6
        b"\x0f\x05\xb8\x3c\0\0\0\x31\xff\x0f\x05"  # syscall; mov eax, 60 (exit); xor edi, edi
    ).ljust(33, b"\x90") + b"hello\n"
    base, headers = 0x400000, 64 + 56
    size = headers + len(code)
    return (
        struct.pack("<16s2HI3QI6H", b"\x7fELF\2\1\1", 2, machine, 1, base + headers, 64, 0, 0,
                    64, 56, 1, 64, 0, 0)
        + struct.pack("<2I6Q", 1, 5, 0, base, base, size, size, 4096)
        + code
    )  # fmt: skip


def tiny_quantized(path: Path) -> Path:
    """A model whose weights are in Q8_0."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
    rows = gguf.quants.quantize(np.ones((2, 64), np.float32), gguf.GGMLQuantizationType.Q8_0)
    for name in ("token_embd.weight", "blk.0.ffn_up.weight"):
        writer.add_tensor(name, rows, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def tiny_pe(
    machine: int = 0x8664, *, certificate: int = 0, symbols: int = 0, debug_data: bool = True
) -> bytes:
    """A 64-bit PE with all that points into the file: sections, debug data, a checksum.

    .text returns 0, .rdata has a debug directory and what it points to, .bss is nowhere in the
    file, .data is of another size there than in memory.
    """
    note = b"RSDS" + bytes(range(20)) + b"x.pdb\0"
    place = (0x2040, 0x640) if debug_data else (0, 0)
    debug = struct.pack("<2I2H4I", 0, 0, 0, 0, 2, len(note), *place)  # CodeView
    parts = {  # name: where in memory, how large there, what is in the file, characteristics
        b".text": (0x1000, 3, b"\x31\xc0\xc3", 0x60000020),  # xor eax, eax; ret
        b".rdata": (0x2000, 0x100, debug.ljust(0x40, b"\0") + note, 0x40000040),
        b".bss": (0x3000, 0x5000, b"", 0xC0000080),
        b".data": (0x8000, 0x2000, bytes(range(256)) * 4, 0xC0000040),
    }
    headers = struct.pack("<4s2H3I2H", b"PE\0\0", machine, len(parts), 0, symbols, 0, 240, 0x22)
    headers += struct.pack(
        "<H2B5IQ2I6H4I2H4Q2I", 0x20B, 14, 0, 0x200, 0xA00, 0, 0x1000, 0x1000, 0x140000000, 0x1000,
        0x200, 6, 0, 0, 0, 10, 0, 0, 0xA000, 0x400, 0xC0FFEE, 3, 0x8160, 1 << 20, 4096, 1 << 20,
        4096, 0, 16,
    )  # fmt: skip
    directories = {4: (certificate, 8 if certificate else 0), 6: (0x2000, 28)}
    for index in range(16):
        headers += struct.pack("<2I", *directories.get(index, (0, 0)))
    body = b""
    for name, (address, size, content, flags) in parts.items():
        raw = content.ljust(-(-len(content) // 0x200) * 0x200, b"\0")
        at = 0x400 + len(body) if raw else 0
        headers += struct.pack("<8s6I2HI", name, size, address, len(raw), at, 0, 0, 0, 0, flags)
        body += raw
    dos = b"MZ".ljust(60, b"\xee") + struct.pack("<I", 0x78)
    return (dos.ljust(0x78, b"\xdd") + headers).ljust(0x400, b"\0") + body


def unrounded(source: Path, path: Path) -> Path:
    """A model in F16, with noise as wide as a step where its weights had been rounded to Q4_1."""
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(path, str(reader.fields["general.architecture"].contents()))
    for field in reader.fields.values():
        if field.name == "general.file_type":
            writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
        elif not field.name.startswith("GGUF.") and field.name != "general.architecture":
            kind, *items = field.types
            writer.add_key_value(field.name, field.contents(), kind, *items[:1])
    rng = np.random.default_rng(1)
    for tensor in reader.tensors:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        if tensor.tensor_type == gguf.GGMLQuantizationType.Q4_1:
            # ggml-common.h: scale and minimum in 16 bits each, 32 quants of four bits
            blocks = tensor.data.reshape(-1, 20)
            steps = np.ascontiguousarray(blocks[:, :2]).view(np.float16).astype(np.float32)
            noise = rng.uniform(-0.5, 0.5, (len(blocks), 32)).astype(np.float32)
            values = values + (noise * steps).reshape(values.shape)
        writer.add_tensor(tensor.name, values.astype(np.float16 if values.ndim > 1 else np.float32))
    return _written(writer, path)


def with_bool(source: Path, path: Path, key: str, value: bool) -> Path:
    """A copy of a model whose header says one thing more."""
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(path, str(reader.fields["general.architecture"].contents()))
    writer.add_bool(key, value)
    for field in reader.fields.values():
        if not field.name.startswith("GGUF.") and field.name != "general.architecture":
            kind, *items = field.types
            writer.add_key_value(field.name, field.contents(), kind, *items[-1:])
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    return _written(writer, path)


def _put_program(
    folder: Path, target: str, program: bytes, packed: bytes, ending: str, notices: dict[str, str]
) -> None:
    (folder / f"{target}{ending}").write_bytes(packed)
    facts = {
        "target": target,
        "packed_size": len(packed),
        "packed_sha256": hashlib.sha256(packed).hexdigest(),
        "size": len(program),
        "sha256": hashlib.sha256(program).hexdigest(),
        "llama_cpp": "1.2.3 (abc)",
        "levels": ["v3"],
        "licenses": {"llama.cpp": "MIT License, llama.cpp", **notices},
    }
    (folder / f"{target}.json").write_text(json.dumps(facts))


def put_runtime(folder: Path, program: bytes = PROGRAM, target: str = "linux-amd64") -> None:
    """What the package would hold had it been built: a runtime and the web GUI."""
    _put_program(folder, target, program, pack(program), ".gz", {"musl": "MIT License, musl"})
    with zipfile.ZipFile(folder / "ui.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(zipfile.ZipInfo("LICENSES/web-gui.txt"), b"svelte: MIT")
        archive.writestr(zipfile.ZipInfo("ui/index.html"), b"<html>" * 500, zipfile.ZIP_DEFLATED)
        archive.writestr(zipfile.ZipInfo("ui/tiny"), b"x")


def frame(content: bytes) -> bytes:
    """A frame of Zstandard that compresses nothing (RFC 8878, 3.1.1)."""
    start = b"\x28\xb5\x2f\xfd" + struct.pack("<BI", 0b10100000, len(content))
    blocks = []
    for at in range(0, max(len(content), 1), 1 << 17):
        block = content[at : at + (1 << 17)]
        header = len(block) << 3 | (at + len(block) == len(content))
        blocks += [header.to_bytes(3, "little"), block]
    return start + b"".join(blocks)


SECOND = PROGRAM + b"# uses GPUs"
SHADERS = frame(b"spirv\0\0\1" + bytes(8))


def put_second(
    folder: Path,
    program: bytes = SECOND,
    target: str = "linux-amd64-gnu",
    packed: bytes | None = None,
) -> None:
    """What the package would hold besides, for GPUs: a second program, and the shaders."""
    packed = packed or frame(program)
    _put_program(folder, target, program, packed, ".zst", {"glibc": "LGPL, glibc"})
    (folder / "shaders.zst").write_bytes(SHADERS)


def grey_png(side: int = 8) -> bytes:
    """A grey square (PNG specification, sections 5 and 11.2)."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        crc = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + crc

    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    rows = zlib.compress((b"\0" + b"\x80" * side) * side)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def pdf(text: str) -> bytes:
    """A page with one line (ISO 32000-1, sections 7.5 and 9.4)."""
    drawn = f"BT /F1 12 Tf 72 720 Td ({text}) Tj ET".encode()
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents 4 0 R"
        b" /Resources << /Font << /F1 5 0 R >> >> >>",
        b"<< /Length %d >>\nstream\n%b\nendstream" % (len(drawn), drawn),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    out, places = b"%PDF-1.4\n", []
    for number, content in enumerate(objects, 1):
        places.append(len(out))
        out += b"%d 0 obj\n%b\nendobj\n" % (number, content)
    table = b"".join(b"%010d 00000 n \n" % place for place in places)
    end = b"trailer << /Size 6 /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF\n" % len(out)
    return out + b"xref\n0 6\n0000000000 65535 f \n" + table + end
