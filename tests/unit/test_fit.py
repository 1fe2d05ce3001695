"""What weights show of the format that they chat in, and what llama.cpp can't run."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Sequence
from pathlib import Path

import gguf
import numpy as np
import pytest
from fixtures import tiny_gguf

import pyllamafile
from pyllamafile import PyllamafileError
from pyllamafile.errors import DamagedError, RefusedError
from pyllamafile.models import fit
from pyllamafile.models import gguf as headers
from pyllamafile.models.gguf import Weights


def speaking(
    path: Path, marks: Sequence[str], *, arch: str = "llama", tokenizer: str = "gpt2 (some)",
    template: str | None = None, alignment: int | None = None, pooling: bool = False,
) -> Path:  # fmt: skip
    """A GGUF with a vocabulary that has these tokens among others."""
    writer = gguf.GGUFWriter(path, arch)
    if alignment:
        writer.add_custom_alignment(alignment)
    model, _, pre = tokenizer.partition(" (")
    writer.add_tokenizer_model(model)
    if pre:
        writer.add_tokenizer_pre(pre.removesuffix(")"))
    writer.add_token_list([*(f"t{i}" for i in range(40)), *marks, "<", "[", "end"])
    writer.add_token_merges(["< [INST]", "[INST] >"])
    if template:
        writer.add_chat_template(template)
    if pooling:
        writer.add_uint32(f"{arch}.pooling_type", 1)
    for name in ("token_embd.weight", "output_norm.weight"):
        writer.add_tensor(name, np.zeros((3, 5), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def told(path: Path) -> str | tuple[str, ...]:
    return fit.chat_template({path.name: headers.read(path)}, None)


# Of real vocabularies, more than the marks that the table asks for.
FAMILIES = {
    "Gemma 3": (["<pad>", "<bos>", "<start_of_turn>", "<end_of_turn>"], "llama (default)", "gemma"),
    "Qwen 2": (["<|endoftext|>", "<|im_start|>", "<|im_end|>"], "gpt2 (qwen2)", "chatml"),
    "Phi-4": (["<|im_start|>", "<|im_end|>", "<|im_sep|>"], "gpt2 (dbrx)", "phi4"),
    "Phi-4-mini": (["<|user|>", "<|assistant|>", "<|end|>"], "gpt2 (gpt-4o)", "phi3"),
    "SmolVLM": (["<|im_start|>", "<|im_end|>", "<end_of_utterance>"], "gpt2 (smollm)", "smolvlm"),
    "Llama 3": (
        ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
        "gpt2 (llama-bpe)", "llama3",
    ),
    "Hermes on Llama 3": (
        ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|im_start|>", "<|im_end|>"],
        "gpt2 (llama-bpe)", "chatml",
    ),
    "R1 on Llama 3": (
        ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<｜User｜>", "<｜Assistant｜>"],
        "gpt2 (llama-bpe)", "deepseek3",
    ),
    "DeepSeek V3": (["<｜User｜>", "<｜Assistant｜>"], "gpt2 (deepseek-v3)", "deepseek3"),
    "DeepSeek V2": (["<｜User｜>", "<｜Assistant｜>"], "gpt2 (deepseek-llm)", "deepseek2"),
    "DeepSeek Coder": (["<|EOT|>"], "gpt2 (deepseek-coder)", "deepseek"),
    "Mistral v3": (["[INST]", "[/INST]", "[TOOL_CALLS]"], "llama (default)", "mistral-v3"),
    "Nemo": (["[INST]", "[/INST]"], "gpt2 (tekken)", "mistral-v3-tekken"),
    "Mistral Small": (
        ["[INST]", "[/INST]", "[SYSTEM_PROMPT]"], "gpt2 (tekken)", "mistral-v7-tekken",
    ),
    "Command R": (
        ["<|START_OF_TURN_TOKEN|>", "<|USER_TOKEN|>", "<|CHATBOT_TOKEN|>"],
        "gpt2 (command-r)", "command-r",
    ),
    "Granite": (["<|start_of_role|>", "<|end_of_role|>"], "gpt2 (refact)", "granite"),
    "GLM-4": (["[gMASK]", "<sop>", "<|user|>", "<|assistant|>"], "gpt2 (glm4)", "chatglm4"),
    "Falcon 3": (["<|user|>", "<|assistant|>"], "gpt2 (falcon3)", "falcon3"),
    "gpt-oss": (["<|start|>", "<|channel|>", "<|message|>", "<|end|>"], "gpt2 (gpt-4o)", "gpt-oss"),
}  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_a_familys_format_is_known_by_its_tokens(family, tmp_path):
    marks, tokenizer, name = FAMILIES[family]
    assert told(speaking(tmp_path / "m.gguf", marks, tokenizer=tokenizer)) == name


@pytest.mark.parametrize("format", fit.CHAT_FORMATS, ids=lambda format: format.name)
def test_every_format_is_reached(format, tmp_path):
    """No row of the table is hidden by one in front of it."""
    path = speaking(
        tmp_path / "m.gguf", format.marks, tokenizer=format.tokenizer or "gpt2",
        arch=format.architecture or "llama",
    )  # fmt: skip
    assert told(path) == format.name


def test_a_base_model_has_no_format(tmp_path):
    path = speaking(tmp_path / "m.gguf", ["<s>", "</s>", "<|endoftext|>", "[MASK]"])
    assert told(path) == ("m.gguf",)
    # Near is not enough: one of two marks, and a mark that is a part of a token.
    path = speaking(tmp_path / "m.gguf", ["<start_of_turn>", "<end_of_turn>s", "x<end_of_turn>"])
    assert told(path) == ("m.gguf",)


def test_weights_with_a_template_or_for_embeddings_need_none(tmp_path):
    marks = ["<start_of_turn>", "<end_of_turn>"]
    assert told(speaking(tmp_path / "a.gguf", marks, template="{{ messages }}")) == ()
    assert told(speaking(tmp_path / "b.gguf", marks, pooling=True)) == ()


def test_marks_wherever_they_lie(tmp_path):
    """Around the ends of the windows that a header is read in, and at the end of the file."""
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    marks = [f"<|{i}{'-' * (i % 55)}|>" for i in range(12_000)]
    writer.add_token_list([part for mark in marks for part in (mark, "x" * (len(mark) * 7 % 300))])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    found = headers.read(tmp_path / "m.gguf")
    assert found.vocabulary == 24_000
    assert (tmp_path / "m.gguf").stat().st_size > 8 << 18
    assert found.marks == {mark for mark in marks if len(mark) <= 64}
    assert len(found.marks) > 11_000


def test_arrays_of_numbers(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_array("llama.attention.head_count", [3, 4, 5])
    writer.add_array("a.float", [0.5, 2.0])
    writer.add_token_scores([0.5] * 2000)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    found = headers.read(tmp_path / "m.gguf")
    assert found.numbers == {"llama.attention.head_count": (3, 4, 5), "a.float": (0.5, 2.0)}


def test_build_brings_the_format_and_says_what_is_none_for_chats(tmp_path, prebuilt):
    gemma = speaking(tmp_path / "g.gguf", ["<start_of_turn>", "<end_of_turn>"])
    built = pyllamafile.build(gemma, tmp_path / "g.llamafile")
    assert (built.template, built.untemplated, built.base) == ("gemma", (), ())
    with zipfile.ZipFile(built.path) as archive:
        assert archive.read(".args") == b"--chat-template gemma\n"
    base = speaking(tmp_path / "b.gguf", ["<s>"])
    built = pyllamafile.build(base, tmp_path / "b.llamafile")
    assert (built.template, built.untemplated, built.base) == (None, ("b.gguf",), ("b.gguf",))
    # A template would hold for both of them: the first has none, but is for chats.
    built = pyllamafile.build([gemma, base], tmp_path / "two.llamafile")
    assert (built.untemplated, built.base) == (("g.gguf", "b.gguf"), ("b.gguf",))


# What does not run


@pytest.mark.parametrize("alignment", [1, 8, 16])
def test_weights_that_llama_cpp_cannot_map_are_refused(alignment, tmp_path, prebuilt):
    path = speaking(tmp_path / "m.gguf", [], template="{{ a }}", alignment=alignment)
    error = f"m.gguf: its tensors are aligned to {alignment} bytes (general.alignment), and"
    with pytest.raises(RefusedError, match=re.escape(error)) as raised:
        pyllamafile.build(path, tmp_path / "o")
    assert raised.value.path == path
    fine = tiny_gguf(tmp_path / "fine.gguf")
    with pytest.raises(PyllamafileError, match=re.escape(error)):
        pyllamafile.build(fine, tmp_path / "o", draft=path)
    with pytest.raises(PyllamafileError, match=re.escape(error)):
        pyllamafile.build(fine, tmp_path / "o", add=[(path, "more.gguf")])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["fine.gguf", "m.gguf"]
    built = pyllamafile.build(fine, tmp_path / "o")
    before = built.path.read_bytes()
    with pytest.raises(RefusedError, match=re.escape(error)):
        pyllamafile.add(built.path, [(path, "more.gguf")])
    assert built.path.read_bytes() == before


def test_alignments_that_it_can_map(tmp_path, prebuilt):
    for alignment in (32, 64, 4096):
        path = speaking(tmp_path / "m.gguf", [], template="{{ a }}", alignment=alignment)
        pyllamafile.build(path, tmp_path / "o", force=True)


@pytest.mark.parametrize(
    ("template", "problem"),
    [
        ("{% for m in messages %}{{ m }}", "line 1: .*endfor.*"),
        ("a\n{{ b", "line 2: .*end of print statement.*"),
        ("{% endif %}", "line 1: .*endif.*"),
        (
            "{% for m in a %}{% break %}{% generation %}{{ m }}{%- endgeneration %}{% endfor %}",
            None,
        ),
        ("{{ raise_exception('no') if a is not none else [1, 2][::-1] | tojson(indent=1) }}", None),
    ],
)
def test_a_template_that_does_not_parse(template, problem, tmp_path, prebuilt):
    pytest.importorskip("jinja2", reason="jinja2 is missing: pip install jinja2")
    path = speaking(tmp_path / "m.gguf", [], template=template)
    built = pyllamafile.build(path, tmp_path / "o")
    assert [name for name, _ in built.broken] == (["m.gguf"] if problem else [])
    assert all(re.fullmatch(problem or "", said) for _, said in built.broken)


def test_no_heads_of_attention(tmp_path):
    def model(heads: int | list[int], tensor: str) -> Path:
        path = tmp_path / "m.gguf"
        writer = gguf.GGUFWriter(path, "phi3")
        writer.add_embedding_length(64)
        writer.add_block_count(1)
        writer.add_context_length(128)
        writer.add_token_list(["a", "b"])
        writer.add_head_count(heads)
        writer.add_tensor(tensor, np.zeros((192, 64), dtype=np.float16))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path

    with pytest.raises(DamagedError, match=r"m\.gguf: phi3\.attention\.head_count is 0") as raised:
        pyllamafile.advise(model(0, "blk.0.attn_qkv.weight"))
    assert raised.value.path == tmp_path / "m.gguf"
    pyllamafile.advise(model(0, "blk.0.ssm_in.weight"))  # Mamba has none
    pyllamafile.advise(model([0], "blk.0.attn_qkv.weight"))


def test_weights_of_which_nothing_is_known_are_described_without_a_file():
    facts = Weights(3, {"tokenizer.ggml.model": "gpt2"}, (), 32, 0, 0)
    assert fit.family_template(facts) is None
