"""Models the evaluation's tests share, and an independent way to their log-probabilities."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ryzjax import LLM
from ryzjax.data.byte_tokenizer import write_byte_tokenizer
from ryzjax.evaluation import OpenModel, open_model
from tests.goldens.make_llama3_tiny import write_checkpoint


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random Llama 3 with a tokenizer of bytes and no BOS, as an HF directory."""
    folder = write_checkpoint(tmp_path_factory.mktemp("models") / "llama3-tiny")
    write_byte_tokenizer(folder, vocab_size=384)
    return folder


@pytest.fixture(scope="session")
def tiny(tiny_model: Path) -> OpenModel:
    """The tiny model, opened for a forward without an engine."""
    return open_model(str(tiny_model))


@pytest.fixture(scope="session")
def tiny_llm(tiny_model: Path, compile_cache: str) -> Iterator[LLM]:
    """The tiny model on an engine whose steps are smaller than most prompts."""
    with LLM(
        str(tiny_model), max_sequences=8, max_batch_tokens=64, page_size_tokens=8, compile_cache=compile_cache
    ) as llm:
        yield llm


@pytest.fixture(scope="session")
def stories_llm(stories: Path, compile_cache: str) -> Iterator[LLM]:
    """stories260K in float32: a tokenizer with BOS."""
    with LLM(str(stories), dtype="float32", compile_cache=compile_cache) as llm:
        yield llm
