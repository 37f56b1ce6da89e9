"""Samples tokens inside the compiled step. One executable serves all sampling settings.

The order is that of vLLM: report raw log-probabilities, apply bias, penalties and bans, divide by the temperature,
truncate by top-k, top-p and min-p, and draw. `lax.cond` skips work that no row of the step asks for. The result of a
row is the same with and without that work, so it does not depend on the other rows of the step.

Truncation needs no sort. The k-th largest logit and the top-p boundary are found by bisecting the 32 bits of an
integer key that keeps the order of the logits, with one pass over the row for each bit. A sort of 152K logits takes 10
times as long on CPU.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, UInt

from ryzjax.ops.dispatch import reference_only
from ryzjax.ops.sampling.argmax import argmax_logsumexp

__all__ = ["MAX_TOP", "PROMPT_BIT", "STOP_BIT", "Sampled", "SamplingInputs", "sample", "score"]

MAX_TOP = 20
"""The number of alternative tokens reported for each sampled token."""
PROMPT_BIT = 1 << 30
"""The bit of a history entry that is set if the token occurs in the prompt."""
STOP_BIT = 1 << 29
"""The bit of a history entry that is set if the token ends the sequence. Such a token is banned before min_tokens."""
_COUNT_MASK = STOP_BIT - 1
_NEVER = -1e30


class SamplingInputs(NamedTuple):
    """The sampling settings of S rows.

    Attributes:
      temperature: 0 selects the most likely token.
      top_k: the number of most likely tokens that are kept; 0 keeps all tokens.
      top_p, min_p: the bounds of nucleus sampling and of min-p; 1 and 0 keep all tokens.
      repetition, presence, frequency: the penalties; 1, 0 and 0 have no effect.
      seed: the two halves of the 64-bit seed of a row.
      output_index: the number of tokens generated before this one. With the seed, it is the key of the draw.
      use_history: whether the row reads its history (penalties and bans) and its bias.
      ban_stops: whether tokens with STOP_BIT are banned.
      wants_top: whether the row reports alternatives.
    """

    temperature: Float[Array, " S"]
    top_k: Int[Array, " S"]
    top_p: Float[Array, " S"]
    min_p: Float[Array, " S"]
    repetition: Float[Array, " S"]
    presence: Float[Array, " S"]
    frequency: Float[Array, " S"]
    seed: UInt[Array, "S 2"]
    output_index: Int[Array, " S"]
    use_history: Bool[Array, " S"]
    ban_stops: Bool[Array, " S"]
    wants_top: Bool[Array, " S"]


class Sampled(NamedTuple):
    """The chosen tokens with their raw log-probabilities.

    Attributes:
      token: the chosen token id.
      logprob: its raw log-probability.
      rank: the number of tokens that are at least as likely, 1 for the most likely token; 0 if no row of the step asked
        for alternatives.
      top_tokens, top_logprobs: the MAX_TOP most likely tokens and their log-probabilities, the most likely first; zeros
        if no row of the step asked for alternatives.
    """

    token: Int[Array, " S"]
    logprob: Float[Array, " S"]
    rank: Int[Array, " S"]
    top_tokens: Int[Array, "S top"]
    top_logprobs: Float[Array, "S top"]


@reference_only("sample")
def sample(
    logits: Float[Array, "S V"],
    inputs: SamplingInputs,
    history: Int[Array, "slots V"],
    bias: Float[Array, "slots V"],
    slots: Int[Array, " S"],
) -> Sampled:
    """Chooses a token for each row.

    Args:
      logits: float32 logits.
      inputs: the settings.
      history: for each slot and token, how often the token was generated, with PROMPT_BIT and STOP_BIT.
      bias: for each slot, what is added to the logits.
      slots: the slot of each row. Rows without `use_history` do not read history and bias.
    """
    likeliest, normalizer = argmax_logsumexp(logits)

    def shaped() -> tuple[Array, Array]:
        by_history = _shape_by_history(logits, inputs, history[slots], bias[slots])
        return by_history, argmax_logsumexp(by_history)[0]

    shifted, greedy = lax.cond(jnp.any(inputs.use_history), shaped, lambda: (logits, likeliest))
    draws = inputs.temperature > 0
    token = lax.cond(jnp.any(draws), lambda: jnp.where(draws, _draw(shifted, inputs), greedy), lambda: greedy)
    chosen = _logprobs_of(logits, normalizer, token)
    rank, top_tokens, top_logprobs = lax.cond(
        jnp.any(inputs.wants_top), lambda: _top(logits - normalizer[:, None], chosen), lambda: _no_top(logits)
    )
    return Sampled(token, chosen[:, 0], rank, top_tokens, top_logprobs)


def score(logits: Float[Array, "S V"], tokens: Int[Array, " S"]) -> Sampled:
    """Returns what `sample` reports, for given tokens. Every row has its rank and alternatives.

    Args:
      logits: float32 logits.
      tokens: the token of each row.
    """
    normalizer = argmax_logsumexp(logits)[1]
    chosen = _logprobs_of(logits, normalizer, tokens)
    return Sampled(tokens, chosen[:, 0], *_top(logits - normalizer[:, None], chosen))


def _logprobs_of(logits: Array, normalizer: Array, tokens: Array) -> Array:
    """Returns the log-probability of one token a row, [S, 1]."""
    return jnp.take_along_axis(logits, tokens[:, None], axis=-1) - normalizer[:, None]


def _shape_by_history(logits: Array, inputs: SamplingInputs, history: Array, bias: Array) -> Array:
    count = history & _COUNT_MASK
    seen = (history & (PROMPT_BIT | _COUNT_MASK)) != 0
    shaped = logits + bias
    repeat = inputs.repetition[:, None]
    shaped = jnp.where(seen, jnp.where(shaped > 0, shaped / repeat, shaped * repeat), shaped)
    penalty = inputs.frequency[:, None] * count.astype(jnp.float32)
    shaped = shaped - penalty - jnp.where(count > 0, inputs.presence[:, None], 0)
    banned = ((history & STOP_BIT) != 0) & inputs.ban_stops[:, None]
    return jnp.where(inputs.use_history[:, None], jnp.where(banned, _NEVER, shaped), logits)


def _draw(logits: Array, inputs: SamplingInputs) -> Int[Array, " S"]:
    """Draws a token from the truncated softmax(logits / temperature), by the Gumbel-max trick."""
    scaled = logits / jnp.maximum(inputs.temperature, 1e-5)[:, None]
    truncates = (inputs.top_k > 0) | (inputs.top_p < 1) | (inputs.min_p > 0)
    kept = lax.cond(jnp.any(truncates), lambda: _truncate(scaled, inputs), lambda: scaled)

    def noise(seed: Array, index: Array) -> Array:
        key = jax.random.fold_in(jax.random.wrap_key_data(seed, impl="threefry2x32"), index)
        return jax.random.gumbel(key, (logits.shape[-1],), jnp.float32)

    return jnp.argmax(kept + jax.vmap(noise)(inputs.seed, inputs.output_index), axis=-1).astype(jnp.int32)


def _truncate(scaled: Array, inputs: SamplingInputs) -> Array:
    """Returns `scaled` with _NEVER for tokens that top-k, then top-p of the remaining tokens, or min-p removes."""
    vocab = scaled.shape[-1]
    keys = _order_key(scaled)
    k = jnp.where(inputs.top_k > 0, jnp.minimum(inputs.top_k, vocab), vocab)
    in_top_k = keys >= _bisect(keys, lambda above: above.sum(axis=-1) >= k)[:, None]
    weights = jnp.where(in_top_k, jnp.exp(scaled - scaled.max(axis=-1, keepdims=True)), 0.0)
    wanted = inputs.top_p * weights.sum(axis=-1)
    boundary = _bisect(keys, lambda above: jnp.where(above, weights, 0.0).sum(axis=-1) >= wanted)
    # top_p = 1 keeps all tokens. The rounding error of the sum must not drop the tail.
    in_top_p = (keys >= boundary[:, None]) | (inputs.top_p >= 1)[:, None]
    return jnp.where(in_top_k & in_top_p & (weights >= inputs.min_p[:, None]), scaled, _NEVER)


def _order_key(x: Float[Array, "S V"]) -> UInt[Array, "S V"]:
    """Returns unsigned integers that sort like the floats."""
    bits = lax.bitcast_convert_type(x, jnp.uint32)
    return jnp.where(bits >> 31 == 1, ~bits, bits | jnp.uint32(1 << 31))


def _bisect(keys: UInt[Array, "S V"], enough) -> UInt[Array, " S"]:
    """Returns the largest threshold of each row for which `enough(keys >= threshold)` holds."""

    def bit(i: Array, low: Array) -> Array:
        candidate = low | (jnp.uint32(1) << (31 - i).astype(jnp.uint32))
        return jnp.where(enough(keys >= candidate[:, None]), candidate, low)

    return lax.fori_loop(0, 32, bit, jnp.zeros(keys.shape[0], jnp.uint32))


def _top(logprobs: Array, chosen: Array) -> tuple[Array, Array, Array]:
    width = min(MAX_TOP, logprobs.shape[-1])
    values, tokens = lax.top_k(logprobs, width)
    pad = ((0, 0), (0, MAX_TOP - width))
    rank = jnp.sum(logprobs >= chosen, axis=-1).astype(jnp.int32)
    return rank, jnp.pad(tokens.astype(jnp.int32), pad), jnp.pad(values, pad, constant_values=_NEVER)


def _no_top(logits: Array) -> tuple[Array, Array, Array]:
    rows = logits.shape[0]
    return jnp.zeros(rows, jnp.int32), jnp.zeros((rows, MAX_TOP), jnp.int32), jnp.zeros((rows, MAX_TOP))
