"""The result of a step: one int32 row a token on the device, and its values on the host."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Int

from ryzjax.dims import Int32Array
from ryzjax.ops.sampling.sampling import MAX_TOP, Sampled
from ryzjax.serving.messages.request import PromptScores

__all__ = ["RESULT_FIELDS", "StepResult", "pack_result"]

RESULT_FIELDS = 3 + 2 * MAX_TOP
"""The words of a result: token, log-probability, rank, and the ids and log-probabilities of the alternatives."""


def pack_result(sampled: Sampled) -> Int[Array, "S fields"]:
    """Returns the results of S tokens as one int32 array [S, RESULT_FIELDS], with floats as their bits."""
    return jnp.concatenate(
        [
            sampled.token[:, None],
            _bits(sampled.logprob)[:, None],
            sampled.rank[:, None],
            sampled.top_tokens,
            _bits(sampled.top_logprobs),
        ],
        axis=1,
    )


class StepResult:
    """The result of a step on the host.

    Args:
      raw: int32 [rows, RESULT_FIELDS], as `pack_result` returns it.
      scores: the same for each scored prompt position, in the order of the plan.
      vectors: sums over the pooled positions, float32 [E], one for each sequence that ends with them.
    """

    def __init__(self, raw: Int32Array, scores: Int32Array | None = None, vectors: Sequence[np.ndarray] = ()):
        self.tokens: list[int] = raw[:, 0].tolist()
        self.vectors = vectors
        self._raw = raw
        self._scores = scores

    def logprobs(self, row: int, count: int) -> tuple[float, int, tuple[tuple[int, float], ...]]:
        """Returns the log-probability, the rank, and the `count` most likely alternatives of one row."""
        raw = self._raw[row]
        tokens = raw[3 : 3 + count].tolist()
        values = raw[3 + MAX_TOP : 3 + MAX_TOP + count].view("float32").tolist()
        return float(raw[1:2].view("float32")[0]), int(raw[2]), tuple(zip(tokens, values, strict=True))

    def prompt_scores(self, start: int, stop: int, count: int) -> PromptScores:
        """Returns the scored positions [`start`, `stop`) of the step, with `count` alternatives each."""
        assert self._scores is not None, "the step scores nothing"
        raw = self._scores[start:stop]
        return PromptScores(
            token_ids=raw[:, 0],
            logprobs=raw[:, 1].view("float32"),
            ranks=raw[:, 2],
            top_tokens=raw[:, 3 : 3 + count],
            top_logprobs=raw[:, 3 + MAX_TOP : 3 + MAX_TOP + count].view("float32"),
        )


def _bits(x: jax.Array) -> jax.Array:
    return lax.bitcast_convert_type(x.astype(jnp.float32), jnp.int32)
