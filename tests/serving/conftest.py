"""Engines that the serving tests share, started once per session."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ryzjax import LLM
from ryzjax.data.byte_tokenizer import write_byte_tokenizer
from tests.goldens.make_llama3_tiny import write_checkpoint


@pytest.fixture(scope="session")
def tiny_llama3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random Llama 3 with RoPE scaling in an HF directory, with a byte-level tokenizer."""
    folder = write_checkpoint(tmp_path_factory.mktemp("models") / "llama3-tiny")
    write_byte_tokenizer(folder, vocab_size=384)
    return folder


@pytest.fixture(scope="session")
def tiny_llm(tiny_llama3: Path, compile_cache: str) -> Iterator[LLM]:
    """The tiny Llama 3, served with small steps so that prompts are chunked."""
    with LLM(
        str(tiny_llama3),
        max_sequences=32,
        max_batch_tokens=64,
        page_size_tokens=8,
        compile_cache=compile_cache,
    ) as llm:
        yield llm


@pytest.fixture(scope="session")
def stories_llm(stories: Path, compile_cache: str) -> Iterator[LLM]:
    """stories260K in float32."""
    with LLM(str(stories), dtype="float32", layout="single", compile_cache=compile_cache) as llm:
        yield llm
