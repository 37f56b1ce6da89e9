"""Computes the perplexity of a text with sliding windows, on an engine."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ryzjax.errors import ConfigError
from ryzjax.evaluation.batches import run_batched
from ryzjax.evaluation.statistics import mean_and_error, perplexity_metric
from ryzjax.evaluation.text import EvaluationText, sliding_windows
from ryzjax.serving.frontend.llm import LLM
from ryzjax.serving.messages.sampling_params import SamplingParams

__all__ = ["DEFAULT_CONTEXT_TOKENS", "Perplexity", "perplexity"]

DEFAULT_CONTEXT_TOKENS = 2048
"""The default length of the longest window, which most published figures use."""
_SCORE_ONLY = SamplingParams(max_tokens=0, prompt_logprobs=0)


@dataclass(frozen=True, kw_only=True)
class Perplexity:
    """How well a model predicts a text.

    Attributes:
      nll: The mean negative log-likelihood, in nats per token.
      nll_standard_error: The standard error of that mean, if tokens were independent. They are not quite, so it is a
        lower bound.
      perplexity: exp(nll).
      perplexity_low, perplexity_high: The ends of the 95% interval from that error.
      bits_per_byte: The negative log-likelihood of the whole text in bits, divided by the bytes of the text. It can be
        compared between tokenizers.
      tokens: The number of scored tokens: all but the first, which is BOS if the tokenizer adds one.
      windows: The number of windows.
      context_tokens, stride_tokens: The length and the distance of the windows.
      text: The name of the text file.
      text_sha256: The SHA-256 of its bytes.
    """

    nll: float
    nll_standard_error: float
    perplexity: float
    perplexity_low: float
    perplexity_high: float
    bits_per_byte: float
    tokens: int
    windows: int
    context_tokens: int
    stride_tokens: int
    text: str
    text_sha256: str


def perplexity(
    llm: LLM,
    text: EvaluationText,
    *,
    context_tokens: int | None = None,
    stride_tokens: int | None = None,
    adapter: str | None = None,
    show_progress: bool = False,
) -> Perplexity:
    """Scores every token of a text except the first, once, with the windows of `sliding_windows`.

    As in Hugging Face's guide to perplexity, the text is tokenized as a whole, with the special tokens that the
    tokenizer adds. Windows after the first start in the middle of the text, without BOS.

    Args:
      llm: The engine.
      text: The text.
      context_tokens: The length of the longest window, in tokens. The default is 2048, or the engine's context if that
        is less.
      stride_tokens: The distance between the starts of windows, in tokens. The default is half of `context_tokens`.
      adapter: The name of a loaded adapter to measure with; None for the model alone.
      show_progress: Whether to show a progress bar on stderr.

    Raises:
      ConfigError: `context_tokens` is more than the engine's context, or the stride does not fit it.
      DataError: The text has fewer than 2 tokens.
    """
    longest = llm.engine.max_context_tokens
    context = min(DEFAULT_CONTEXT_TOKENS, longest) if context_tokens is None else context_tokens
    stride = max(1, context // 2) if stride_tokens is None else stride_tokens
    if context > longest:
        raise ConfigError(
            f"context_tokens={context} is more than the {longest} tokens of the engine's context; lower it"
        )
    tokens = llm.engine.tokenizer.encode(text.text)
    windows = sliding_windows(len(tokens), context_tokens=context, stride_tokens=stride)
    nll = np.full(len(tokens), np.nan)
    prompts = [tokens[window.begin : window.end] for window in windows]
    for i, output in run_batched(
        llm, prompts, _SCORE_ONLY, title="perplexity", adapter=adapter, show_progress=show_progress
    ):
        window, scores = windows[i], output.prompt_logprobs or []
        targets = scores[window.first_target - window.begin :]
        nll[window.first_target : window.end] = [-entry.logprob for entry in targets if entry is not None]
    scored = nll[1:]
    assert not np.isnan(scored).any(), "the windows cover every token but the first"
    mean, error = mean_and_error(scored)
    metric = perplexity_metric(scored)
    return Perplexity(
        nll=mean,
        nll_standard_error=error,
        perplexity=metric.value,
        perplexity_low=metric.low,
        perplexity_high=metric.high,
        bits_per_byte=float(scored.sum()) / math.log(2) / text.num_bytes,
        tokens=len(scored),
        windows=len(windows),
        context_tokens=context,
        stride_tokens=stride,
        text=text.name,
        text_sha256=text.sha256,
    )
