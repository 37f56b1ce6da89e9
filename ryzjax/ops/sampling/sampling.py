"""Sampling inside the compiled step: one executable for all settings of all rows.

Order, as in vLLM: raw log-probabilities are reported; then bias and bans, penalties, temperature, top-k,
top-p, min-p, and a draw. Work that no row of the step asks for is skipped by `lax.cond`; a row's own result
is the same either way, so neighbours never change it.

Truncation needs no sort: the k-th largest logit and the top-p boundary are found by bisecting the 32 bits of
an order-preserving integer key, one pass over the row per bit (a sort of 152K logits costs 10x on CPU).
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
"""Alternatives reported beside each token."""
PROMPT_BIT = 1 << 30
"""In a history entry: the token occurs in the prompt."""
STOP_BIT = 1 << 29
"""In a history entry: the token ends the sequence, and is banned before min_tokens."""
_COUNT_MASK = STOP_BIT - 1
_NEVER = -1e30


class SamplingInputs(NamedTuple):
    """Settings of S rows.

    Attributes:
      temperature: 0 is greedy.
      top_k: 0 keeps all.
      top_p, min_p: 1 and 0 keep all.
      repetition, presence, frequency: penalties; 1, 0, 0 do nothing.
      seed: [S, 2] halves of the row's 64-bit seed.
      output_index: tokens generated before this one: with the seed, the draw's key.
      use_history: the row reads its history (penalties, bans) and bias.
      ban_stops: tokens with STOP_BIT are not to be chosen yet.
      wants_top: the row reports alternatives.
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
    """The chosen tokens, with raw log-probabilities.

    Attributes:
      token: chosen id.
      logprob: its raw log-probability.
      rank: tokens at least as likely, 1 for the likeliest; 0 where no row asked for alternatives.
      top_tokens, top_logprobs: [S, MAX_TOP], likeliest first; zeros where no row asked.
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
    """Chooses a token per row.

    Args:
      logits: float32.
      inputs: settings.
      history: per slot and token, how often it was generated, with PROMPT_BIT and STOP_BIT.
      bias: per slot, added to the logits.
      slots: the rows' slots; history and bias are read where `use_history` says so.
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
    """What `sample` reports, of tokens that are given: every row with its rank and alternatives.

    Args:
      logits: float32.
      tokens: the token of each row.
    """
    normalizer = argmax_logsumexp(logits)[1]
    chosen = _logprobs_of(logits, normalizer, tokens)
    return Sampled(tokens, chosen[:, 0], *_top(logits - normalizer[:, None], chosen))


def _logprobs_of(logits: Array, normalizer: Array, tokens: Array) -> Array:
    """Log-probability of one token a row, [S, 1]."""
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
    """A token from softmax(logits / temperature), truncated; by the Gumbel maximum."""
    scaled = logits / jnp.maximum(inputs.temperature, 1e-5)[:, None]
    truncates = (inputs.top_k > 0) | (inputs.top_p < 1) | (inputs.min_p > 0)
    kept = lax.cond(jnp.any(truncates), lambda: _truncate(scaled, inputs), lambda: scaled)

    def noise(seed: Array, index: Array) -> Array:
        key = jax.random.fold_in(jax.random.wrap_key_data(seed, impl="threefry2x32"), index)
        return jax.random.gumbel(key, (logits.shape[-1],), jnp.float32)

    return jnp.argmax(kept + jax.vmap(noise)(inputs.seed, inputs.output_index), axis=-1).astype(jnp.int32)


def _truncate(scaled: Array, inputs: SamplingInputs) -> Array:
    """`scaled` with everything outside top-k, then top-p of what is left, then min-p, at minus infinity."""
    vocab = scaled.shape[-1]
    keys = _order_key(scaled)
    k = jnp.where(inputs.top_k > 0, jnp.minimum(inputs.top_k, vocab), vocab)
    in_top_k = keys >= _bisect(keys, lambda above: above.sum(axis=-1) >= k)[:, None]
    weights = jnp.where(in_top_k, jnp.exp(scaled - scaled.max(axis=-1, keepdims=True)), 0.0)
    wanted = inputs.top_p * weights.sum(axis=-1)
    boundary = _bisect(keys, lambda above: jnp.where(above, weights, 0.0).sum(axis=-1) >= wanted)
    # top_p = 1 keeps all: rounding in the sum must not drop the tail.
    in_top_p = (keys >= boundary[:, None]) | (inputs.top_p >= 1)[:, None]
    return jnp.where(in_top_k & in_top_p & (weights >= inputs.min_p[:, None]), scaled, _NEVER)


def _order_key(x: Float[Array, "S V"]) -> UInt[Array, "S V"]:
    """Unsigned integers in the order of the floats."""
    bits = lax.bitcast_convert_type(x, jnp.uint32)
    return jnp.where(bits >> 31 == 1, ~bits, bits | jnp.uint32(1 << 31))


def _bisect(keys: UInt[Array, "S V"], enough) -> UInt[Array, " S"]:
    """The largest threshold per row for which `enough(keys >= threshold)` still holds."""

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
