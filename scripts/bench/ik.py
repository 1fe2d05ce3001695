"""ik_llama.cpp's speed, measured as llama-bench does it: run by a Python that has the wheel.

ik.py MODEL THREADS PROMPT,... GENERATE DEPTH,...    rows as llama-bench's -o json
ik.py MODEL THREADS                                  the first token of a short prompt
"""

from __future__ import annotations

import ctypes
import json
import sys
import time

from ik_llama_cpp import _ctypes_api as api
from ik_llama_cpp import llama
from ik_llama_cpp._internals import IkContext, IkModel


def evaluate(context: IkContext, tokens: list[int], at: int) -> None:
    """Tokens at a place of the context; logits for the last one."""
    batch = api.llama_batch_init(len(tokens), 0, 1)
    batch.n_tokens = len(tokens)
    for i, token in enumerate(tokens):
        batch.token[i] = token
        batch.pos[i] = at + i
        batch.n_seq_id[i] = 1
        batch.seq_id[i][0] = 0
        batch.logits[i] = i + 1 == len(tokens)
    code = context.decode(batch)
    api.llama_batch_free(batch)
    if code != 0:
        raise SystemExit(f"llama_decode: {code}")


def likeliest(context: IkContext, model: IkModel) -> int:
    logits = ctypes.cast(context.get_logits(-1), ctypes.POINTER(ctypes.c_float))
    return max(range(model.n_vocab), key=logits.__getitem__)


def main() -> None:
    path, threads, *sizes = sys.argv[1:]
    model = IkModel(path)
    flash = llama._cpu_has_avx_vnni()  # what its own class does, for its kernel aborts elsewhere
    context = IkContext(model, n_ctx=4096, n_threads=int(threads), flash_attn=flash)
    if not sizes:
        evaluate(context, model.tokenize("Once upon a time"), 0)
        print(model.detokenize([likeliest(context, model)]) or " ", flush=True)
        return
    prompts, generate, depths = ([int(size) for size in part.split(",")] for part in sizes)
    word = model.n_vocab // 2
    evaluate(context, [word] * 32, 0)  # warm, as llama-bench is
    rows = []
    for n in prompts:
        context.kv_cache_clear()
        begun = time.perf_counter()
        evaluate(context, [(word + i) % model.n_vocab for i in range(n)], 0)
        seconds = time.perf_counter() - begun
        rows.append({"n_prompt": n, "n_gen": 0, "n_depth": 0, "avg_ts": n / seconds})
    for depth in depths:
        context.kv_cache_clear()
        if depth:
            evaluate(context, [word] * depth, 0)
        begun = time.perf_counter()
        for i in range(generate[0]):
            evaluate(context, [(word + i) % model.n_vocab], depth + i)
        seconds = time.perf_counter() - begun
        rows.append({"n_prompt": 0, "n_gen": 1, "n_depth": depth, "avg_ts": generate[0] / seconds})
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
