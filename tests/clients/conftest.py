"""The servers that all clients talk to."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from running import serving

from pyllamafile import native

# What a ChatML model such as SmolLM2 needs to know of tools: its own template says nothing of them.
KNOWS_TOOLS = "models/templates/NousResearch-Hermes-3-Llama-3.1-8B-tool_use.jinja"


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    """Connections that a client leaves to the garbage collector end with its test."""
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


@pytest.fixture(scope="session")
def base(server: str) -> str:
    """The address as most people write it; a slash more is another address to some clients."""
    return server.rstrip("/")


@pytest.fixture(scope="session")
def equipped(llamafile: Path) -> Iterator[str]:
    """A server that was started for embeddings and tools."""
    template = native.llama_source() / KNOWS_TOOLS
    flags = ("--nobrowser", "--temp", "0", "--port", "0", "--embeddings", "--pooling", "mean")
    with serving(llamafile, *flags, "--chat-template-file", template) as url:
        yield url.rstrip("/")
