"""What the quantizer would do with models that nobody has here: a dry run on their headers."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import gguf
import numpy as np
import pytest
from running import run

from pyllamafile.models import forecast
from pyllamafile.models import gguf as headers
from pyllamafile.models.forecast import FORMATS

pytestmark = pytest.mark.native

Shapes = Mapping[str, tuple[int, ...]]
F16, F32 = np.float16, np.float32


def sparse(path: Path, arch: str, metadata: Mapping[str, object], shapes: Shapes) -> Path:
    """A GGUF that is as long as the real one and has nothing but its header."""
    writer = gguf.GGUFWriter(path, arch)
    for key, value in metadata.items():
        add = {
            int: writer.add_uint32, float: writer.add_float32, bool: writer.add_bool,
            str: writer.add_string, list: writer.add_array,
        }[type(value)]  # fmt: skip
        add(f"{arch}.{key}", value)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([f"t{i}" for i in range(64)])
    for name, shape in shapes.items():
        kind = F16 if len(shape) > 1 else F32  # as the converter does
        dtype = np.dtype(kind)
        writer.add_tensor_info(name, shape, dtype, int(np.prod(shape)) * dtype.itemsize)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    size = sum(
        -(-int(np.prod(shape)) * (2 if len(shape) > 1 else 4) // 32) * 32
        for shape in shapes.values()
    )
    with path.open("r+b") as file:
        head = file.seek(0, 2)
        file.truncate(-(-head // 32) * 32 + size)
    return path


def transformer(
    layers: int, width: int, inner: int, heads: int, groups: int, *, vocabulary: int = 64,
    tied: bool = False, **more: object,
) -> tuple[dict[str, object], dict[str, tuple[int, ...]]]:  # fmt: skip
    """What most architectures have: the numbers of a header, and the shapes."""
    metadata: dict[str, object] = {
        "context_length": 2048, "embedding_length": width, "block_count": layers,
        "feed_forward_length": inner, "attention.head_count": heads,
        "attention.head_count_kv": groups, "attention.layer_norm_rms_epsilon": 1e-5,
        "attention.layer_norm_epsilon": 1e-5, **more,
    }  # fmt: skip
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (vocabulary, width)}
    shapes["output_norm.weight"] = (width,)
    if not tied:
        shapes["output.weight"] = (vocabulary, width)
    kept = width // heads * groups
    for layer in range(layers):
        for name, shape in {
            "attn_norm": (width,), "attn_q": (width, width), "attn_k": (kept, width),
            "attn_v": (kept, width), "attn_output": (width, width), "ffn_norm": (width,),
            "ffn_gate": (inner, width), "ffn_up": (inner, width), "ffn_down": (width, inner),
        }.items():  # fmt: skip
            shapes[f"blk.{layer}.{name}.weight"] = shape
    return metadata, shapes


Model = tuple[str, dict[str, object], dict[str, tuple[int, ...]]]


def with_experts(count: int, model: tuple[dict[str, object], dict[str, tuple[int, ...]]]):
    metadata, shapes = model
    metadata |= {
        "expert_count": count, "expert_used_count": 2, "expert_feed_forward_length": 256,
        "expert_shared_count": 1, "leading_dense_block_count": 1,
    }  # fmt: skip
    out: dict[str, tuple[int, ...]] = {}
    for name, shape in shapes.items():
        if match := re.match(r"(blk\.\d+)\.ffn_(gate|up|down)\.weight", name):
            out[f"{match[1]}.ffn_{match[2]}_exps.weight"] = (count, *shape)
            out[f"{match[1]}.ffn_{match[2]}_shexp.weight"] = shape
        else:
            out[name] = shape
        if name.endswith("ffn_norm.weight"):
            out[name.replace("ffn_norm", "ffn_gate_inp")] = (count, shape[0])
    return metadata, out


def fused(model: tuple[dict[str, object], dict[str, tuple[int, ...]]]):
    """The same with queries, keys and values in one tensor."""
    metadata, shapes = model
    width = int(str(metadata["embedding_length"]))
    for name in [name for name in shapes if re.search(r"attn_[qkv]\.", name)]:
        rows = shapes.pop(name)[0]
        whole = re.sub(r"attn_[qkv]\.", "attn_qkv.", name)
        shapes[whole] = (shapes.get(whole, (0,))[0] + rows, width)
    return metadata, shapes


def and_more(model: tuple[dict[str, object], dict[str, tuple[int, ...]]], **names: tuple[int, ...]):
    """The same with more tensors in every layer; __ stands for a dot."""
    metadata, shapes = model
    for layer in range(int(str(metadata["block_count"]))):
        for name, shape in names.items():
            shapes[f"blk.{layer}.{name.replace('__', '.')}.weight"] = shape
    return metadata, shapes


def llama() -> Model:
    return "llama", *transformer(32, 4096, 14336, 32, 8)


def llama_70b() -> Model:
    return "llama", *transformer(80, 1024, 3584, 64, 8)


def llama_65b() -> Model:
    return "llama", *transformer(80, 1024, 2816, 64, 64)


def mixtral() -> Model:
    return "llama", *with_experts(8, transformer(32, 1024, 3584, 32, 8))


def qwen2() -> Model:
    """Of 0.5B: a width that no K-quant divides, and the output is the embedding."""
    return "qwen2", *transformer(24, 896, 4864, 14, 2, tied=True)


def qwen2_72b() -> Model:
    return "qwen2", *transformer(80, 1024, 3712, 64, 8)


def qwen3moe() -> Model:
    return "qwen3moe", *with_experts(128, transformer(12, 512, 256, 8, 2))


def gemma3() -> Model:
    return "gemma3", *transformer(26, 1152, 6912, 4, 1, tied=True)


def gemma3n() -> Model:
    """With tensors that are never quantized, and a second embedding."""
    model = transformer(30, 512, 2048, 8, 2, tied=True, **{"attention.sliding_window": 512})
    metadata, shapes = and_more(
        model, altup_correct_coef=(4, 4), altup_router=(4, 512), laurel_l=(64, 512),
        laurel_r=(512, 64), per_layer_inp_gate=(256, 512), proj=(512, 256),
    )  # fmt: skip
    shapes["per_layer_token_embd.weight"] = (64, 30 * 256)
    shapes["per_layer_model_proj.weight"] = (30 * 256, 512)
    return "gemma3n", metadata, shapes


def phi3() -> Model:
    return "phi3", *fused(transformer(32, 3072, 8192, 32, 32))


def falcon() -> Model:
    """Of 7B: one head of keys and values, and a width of 71 times 64."""
    return "falcon", *fused(transformer(32, 4544, 18176, 71, 1))


def falcon_tied() -> Model:
    return "falcon", *fused(transformer(16, 2048, 8192, 32, 1, tied=True))


def gpt2() -> Model:
    metadata, shapes = fused(transformer(12, 768, 3072, 12, 12))
    shapes["position_embd.weight"] = (1024, 768)
    return "gpt2", metadata, shapes


def bert() -> Model:
    metadata, shapes = transformer(12, 384, 1536, 12, 12, tied=True, **{"attention.causal": False})
    shapes |= {"position_embd.weight": (512, 384), "token_types.weight": (2, 384)}
    return "bert", metadata, shapes


def deepseek2() -> Model:
    model = with_experts(64, transformer(
        27, 512, 256, 16, 16, vocab_size=64, **{
            "attention.q_lora_rank": 256, "attention.kv_lora_rank": 512,
            "attention.key_length": 192, "attention.value_length": 128,
            "rope.dimension_count": 64,
        },
    ))  # fmt: skip
    metadata, shapes = and_more(
        model, attn_kv_a_mqa=(576, 512), attn_kv_b=(4096, 512), attn_q_a=(256, 512),
        attn_q_b=(3072, 256),
    )  # fmt: skip
    return "deepseek2", metadata, {n: s for n, s in shapes.items() if not re.search("n_[qkv].w", n)}


def mamba() -> Model:
    """No attention at all, and so no heads."""
    metadata, shapes = transformer(
        24, 768, 0, 1, 1, tied=True, **{
            "ssm.conv_kernel": 4, "ssm.inner_size": 1536, "ssm.state_size": 16,
            "ssm.time_step_rank": 48,
        },
    )  # fmt: skip
    metadata["attention.head_count"] = metadata["attention.head_count_kv"] = 0
    shapes = {n: s for n, s in shapes.items() if not re.search("attn_[qkvo]|ffn", n)}
    return "mamba", *and_more(
        (metadata, shapes), ssm_in=(3072, 768), ssm_conv1d=(1536, 4), ssm_x=(80, 1536),
        ssm_dt=(1536, 48), ssm_out=(768, 1536),
    )  # fmt: skip


def openelm() -> Model:
    """Every layer has another number of heads."""
    metadata, shapes = fused(transformer(16, 1280, 3072, 20, 5, tied=True))
    metadata["attention.head_count"] = [12] * 8 + [20] * 8
    metadata["attention.head_count_kv"] = [3] * 8 + [5] * 8
    return "openelm", metadata, shapes


def deci() -> Model:
    """As Llama with its layers pruned; of 80 layers."""
    metadata, shapes = transformer(80, 1024, 3584, 64, 8)
    metadata["attention.head_count"] = [64] * 80
    metadata["attention.head_count_kv"] = [8] * 80
    metadata["feed_forward_length"] = [3584] * 80
    return "deci", metadata, shapes


def command_r() -> Model:
    return "command-r", *transformer(40, 8192, 22528, 64, 64, tied=True, logit_scale=0.0625)


def glm5() -> Model:
    """With rules of its own: some tensors stay, and some get no less than Q8_0."""
    model = with_experts(16, transformer(
        8, 512, 256, 8, 1, vocab_size=64, **{
            "attention.q_lora_rank": 256, "attention.kv_lora_rank": 256,
            "attention.key_length": 320, "attention.value_length": 256,
            "attention.key_length_mla": 128, "attention.value_length_mla": 128,
            "rope.dimension_count": 64, "ssm.conv_kernel": 4, "kda.head_dim": 64,
            "attention.indexer.head_count": 4, "attention.indexer.key_length": 64,
            "attention.indexer.top_k": 16, "attention.indexer.kpool": 4,
            "hyper_connection.count": 4, "hyper_connection.sinkhorn_iterations": 4,
            "hyper_connection.epsilon": 1e-5,
        },
    ))  # fmt: skip
    return "glm5-next", *and_more(
        model, attn_q_a=(256, 512), attn_q_b=(1024, 256), attn_kv_a_mqa=(320, 512),
        attn_k_b=(128, 256), attn_v_b=(256, 128), hc_attn=(512, 512), indexer__attn_k=(64, 512),
        indexer__proj=(4, 512), ssm_f_a=(64, 512), ssm_beta=(8, 512), nextn__eh_proj=(512, 1024),
    )  # fmt: skip


def odd() -> Model:
    """Rows that not even blocks of 32 divide."""
    return "llama", *transformer(9, 200, 500, 4, 4)


MODELS: tuple[Callable[[], Model], ...] = (
    llama, llama_70b, llama_65b, mixtral, qwen2, qwen2_72b, qwen3moe, gemma3, gemma3n, phi3,
    falcon, falcon_tied, gpt2, bert, deepseek2, mamba, openelm, deci, command_r, glm5,
    odd,
)  # fmt: skip


def said(output: str) -> Iterator[tuple[str, str]]:
    """Every tensor's type out of a dry run's lines; what falls back is said between the two."""
    for line in output.splitlines():
        if match := re.match(r"\[ *\d+/ *\d+\] (\S+) +- \[.*\], type = +(\S+), size = (.*)$", line):
            to = re.search(r"\((\w+)\)$", match[3])
            yield match[1], (to or match)[1 if to else 2].upper()


@pytest.mark.parametrize("make", MODELS, ids=lambda make: make.__name__)
def test_types_are_what_a_dry_run_says(make, runtime, tmp_path):
    path = sparse(tmp_path / "m.gguf", *make())
    found = [headers.read(path)]
    for format in FORMATS:
        done = run(runtime, "--quantize", "--dry-run", path, format)
        output = (done.stdout + done.stderr).decode()
        assert done.returncode == 0, output[-2000:]
        types = dict(said(output))
        assert len(types) == len(found[0].tensors)
        foretold = forecast.types(found, format)
        assert {n: t for n, t in types.items() if foretold[n] != t} == {}, format
