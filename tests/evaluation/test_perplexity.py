"""Perplexity through the engine against logits of a forward outside of it."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from ryzjax import LLM
from ryzjax.errors import ConfigError, DataError
from ryzjax.evaluation import EvaluationText, OpenModel, open_model, perplexity
from tests.evaluation.logprobs import Oracle

TEXT = EvaluationText.of("".join(chr(97 + (i * i) % 26) for i in range(700)) + "äöü")


def expected_nll(model: OpenModel, tokens: list[int], context: int, stride: int) -> np.ndarray:
    """Of every token but the first: token i is in the first window that reaches it."""
    oracle = Oracle(model.model, model.load(), max_tokens=context)
    by_window: dict[int, np.ndarray] = {}
    nll = []
    for token in range(1, len(tokens)):
        begin = max(0, math.ceil((token + 1 - context) / stride)) * stride
        if begin not in by_window:
            by_window[begin] = oracle.logprobs(tokens[begin : begin + context])
        nll.append(-by_window[begin][token - 1 - begin, tokens[token]])
    return np.array(nll)


@pytest.mark.parametrize(("context", "stride"), [(128, 64), (200, 199), (512, 256)])
def test_against_a_forward(tiny_llm: LLM, tiny: OpenModel, context: int, stride: int) -> None:
    tokens = tiny.tokenizer.encode(TEXT.text)
    assert len(tokens) == TEXT.num_bytes == 706
    nll = expected_nll(tiny, tokens, context, stride)
    found = perplexity(tiny_llm, TEXT, context_tokens=context, stride_tokens=stride)
    assert (found.tokens, found.context_tokens, found.stride_tokens) == (705, context, stride)
    assert found.nll == pytest.approx(nll.mean(), rel=1e-5)
    assert found.perplexity == pytest.approx(math.exp(nll.mean()), rel=1e-4)
    assert found.nll_standard_error == pytest.approx(nll.std(ddof=1) / math.sqrt(705), rel=1e-4)
    assert found.bits_per_byte == pytest.approx(nll.sum() / math.log(2) / 706, rel=1e-5)
    assert found.perplexity_low < found.perplexity < found.perplexity_high
    assert found.text_sha256 == TEXT.sha256


def test_defaults_and_bos(stories_llm: LLM, stories: Path, shared: Path) -> None:
    raw = (shared / "data" / "sft" / "tinyshakespeare.txt").read_bytes()[:4000]
    text = EvaluationText.of(raw.decode())
    found = perplexity(stories_llm, text)
    model = open_model(str(stories), dtype="float32")
    tokens = model.tokenizer.encode(text.text)
    assert tokens[0] == model.tokenizer.bos_token_id
    assert (found.context_tokens, found.stride_tokens, found.tokens) == (512, 256, len(tokens) - 1)
    nll = expected_nll(model, tokens, 512, 256)
    assert found.nll == pytest.approx(nll.mean(), rel=1e-5)
    assert found.bits_per_byte == pytest.approx(nll.sum() / math.log(2) / 4000, rel=1e-5)


def test_bad_input(tiny_llm: LLM) -> None:
    with pytest.raises(DataError, match="the text has 1 token"):
        perplexity(tiny_llm, EvaluationText.of("a"))
    with pytest.raises(ConfigError, match="context_tokens=513 is more than the 512"):
        perplexity(tiny_llm, TEXT, context_tokens=513)
    with pytest.raises(ConfigError, match="stride_tokens=8 is out of range"):
        perplexity(tiny_llm, TEXT, context_tokens=8, stride_tokens=8)
