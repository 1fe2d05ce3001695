"""The report about a GPU that a file prints (--gpu-trial): on lavapipe, and where there is none."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest
from running import OnGpu, check_report

pytestmark = [pytest.mark.native, pytest.mark.slow]


def reported(on_gpu: OnGpu, *words: str | Path, **variables: str) -> tuple[int, str, str]:
    done = subprocess.run(
        [*on_gpu.command, "--gpu-trial", *words],
        env={**on_gpu.env, **variables},
        capture_output=True,
        text=True,
        timeout=1800,
    )
    return done.returncode, done.stdout, done.stderr


def test_a_report_about_lavapipe(on_lavapipe: OnGpu, weights: Path) -> None:
    code, said, errors = reported(on_lavapipe, "-m", weights)
    assert errors == ""
    assert re.search(r"^linux-amd64-gnu, GPUs by vulkan\nLinux \S+ x86_64\n", said, re.MULTILINE)
    last = check_report(said, r"Vulkan0: llvmpipe .+ MiB, \d+ of them free")
    # It is a processor itself, and may be passed over for its speed.
    assert (code, last) == (0, "GPU: used") or (
        code == 1 and re.match(r"GPU: not used: llvmpipe .*: the processor does \S+ times", last)
    )


def test_a_report_where_there_is_no_driver(on_lavapipe: OnGpu, tmp_path: Path) -> None:
    nothing = tmp_path / "nothing.json"
    nothing.write_text("{}")
    code, said, errors = reported(on_lavapipe, VK_ICD_FILENAMES=str(nothing))
    assert (code, errors) == (1, "")
    assert "\nno Vulkan driver has a GPU that computes\n" in said
    assert said.endswith("\n\nGPU: not used, for the reason above\n")


def test_a_program_that_uses_no_gpu_says_so(runtime: Path) -> None:
    def said(**variables: str) -> str:
        env = {**os.environ, **variables}
        done = subprocess.run([runtime, "--gpu-trial"], env=env, capture_output=True, text=True)
        assert (done.returncode, done.stdout) == (1, "")
        return done.stderr

    alone = "error: no GPU is tried: this program computes on the processor alone\n"
    assert said(GGML_VK_VISIBLE_DEVICES="0") == alone
    none = "error: no GPU is tried: this machine has no GPU: there is no /dev/dri/renderD*, "
    assert said().startswith(none) or said() == alone
