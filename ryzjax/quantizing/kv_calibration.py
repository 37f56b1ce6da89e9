"""Calibrates the scales of an fp8 KV cache: the largest key and value of each head, over some text, set its scale."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ryzjax.batch import KVCache, TokenBatch
from ryzjax.bits import from_bits
from ryzjax.dims import Float32Array
from ryzjax.errors import ConfigError
from ryzjax.models.abstract import AbstractModel
from ryzjax.models.kv_cache import KVFormat, KVScales, empty_kv_cache
from ryzjax.ops.attention.kv_pages import E4M3_MAX

__all__ = ["KVMaxima", "calibrate_kv_scales", "observe_kv_maxima"]

_PAGE_TOKENS = 64
_CHUNK_TOKENS = 512
"""Tokens of a sequence that run at a time. The cache holds a whole sequence, activations only a chunk."""


class KVMaxima(NamedTuple):
    """The largest absolute values observed.

    Attributes:
      k: Of keys, after RoPE, float32 [L, H].
      v: Of values, float32 [L, H].
    """

    k: Float32Array
    v: Float32Array


def calibrate_kv_scales(maxima: KVMaxima) -> KVScales:
    """Returns the scale of each head that maps its largest observed value to the largest float8 e4m3.

    Serving clips larger values. A head with only zeros gets the scale 1.0.

    Raises:
      ConfigError: A maximum is not finite.
    """
    for name, peaks in maxima._asdict().items():
        if not np.all(np.isfinite(peaks)):
            layer, head = np.argwhere(~np.isfinite(peaks))[0]
            raise ConfigError(
                f"the largest {name} of layer {layer}, KV head {head} is {peaks[layer, head]}; the model's weights or "
                "dtype give numbers that are not finite; use another copy of the model, or --dtype float32"
            )
    return KVScales(*(np.where(peaks > 0, peaks / E4M3_MAX, 1.0).astype(np.float32) for peaks in maxima))


def observe_kv_maxima(
    model: AbstractModel,
    leaves: Sequence[jax.Array],
    sequences: Sequence[Sequence[int]],
    *,
    on_done: Callable[[], None] = lambda: None,
) -> KVMaxima:
    """Runs a model over token sequences, each alone from position 0, and reads the largest values from its cache.

    Args:
      model: The abstract model. Its cache is kept in the model's dtype.
      leaves: The weights, in the order of `model.weights`.
      sequences: Token ids of each sequence. More text finds larger values; about a hundred sequences of the text that
        will be served are enough.
      on_done: Called after each sequence.

    Raises:
      ConfigError: There is no sequence, one is empty or longer than the model's context, or a token id is out of range.
    """
    config = model.config
    _check(sequences, max_tokens=config.max_position, vocab_size=config.vocab_size)
    longest = max(map(len, sequences))
    pages = -(-longest // _PAGE_TOKENS)
    cache = empty_kv_cache(
        config,
        model.placement,
        KVFormat(dtype=config.dtype),
        num_pages=pages + 1,
        page_size_tokens=_PAGE_TOKENS,
    )
    chunk = min(_CHUNK_TOKENS, longest)
    chunk += -chunk % model.placement.axis_size("tokens")

    @partial(jax.jit, donate_argnums=1)
    def step(leaves: tuple[jax.Array, ...], cache: KVCache, batch: TokenBatch) -> KVCache:
        return model.merge(leaves).forward(batch, cache, max_query_len=chunk)[1]

    totals = [np.zeros((config.num_layers, config.num_kv_heads), np.float32) for _ in range(2)]
    for tokens in sequences:
        for start in range(0, len(tokens), chunk):
            batch = _chunk(tokens[start : start + chunk], start, size=chunk, pages=pages, length=len(tokens))
            cache = step(tuple(leaves), cache, batch)
        # The last pages may hold values of an earlier, longer sequence. Those were observed already.
        totals = [np.maximum(total, peak) for total, peak in zip(totals, _peaks(cache), strict=True)]
        on_done()
    return KVMaxima(*totals)


@jax.jit
def _peaks(cache: KVCache) -> tuple[jax.Array, jax.Array]:
    """Returns the largest keys and values, float32 [L, H] each. Page 0 is left out, since padding is written there."""

    def peak(stored: jax.Array) -> jax.Array:
        return jnp.abs(from_bits(stored[:, 1:]).astype(jnp.float32)).max(axis=(1, 3, 4))

    return peak(cache.k), peak(cache.v)


def _chunk(tokens: Sequence[int], start: int, *, size: int, pages: int, length: int) -> TokenBatch:
    """Returns the batch of a step that prefills `tokens` of one row.

    Args:
      tokens: The token ids of the chunk.
      start: Position of the first token.
      size: Tokens of the step, padding included.
      pages: Number of the row's pages, which are numbered from 1.
      length: Tokens of the whole sequence.
    """
    count = len(tokens)
    real = np.arange(size) < count
    positions = np.where(real, start + np.arange(size), 0).astype(np.int32)
    one = np.ones(1, np.int32)
    arrays = (
        np.pad(np.asarray(tokens, np.int32), (0, size - count)),
        positions,
        np.full(size, length, np.int32),
        np.where(real, 1 + positions // _PAGE_TOKENS, 0),
        positions % _PAGE_TOKENS,
        np.arange(1, pages + 1, dtype=np.int32)[None],
        0 * one,
        count * one,
        (start + count) * one,
        np.int32(0),
        np.int32(1),
    )
    return TokenBatch._make(jnp.asarray(array) for array in arrays)


def _check(sequences: Sequence[Sequence[int]], *, max_tokens: int, vocab_size: int) -> None:
    if len(sequences) == 0:
        raise ConfigError("no sequences to calibrate the KV cache on; give at least one")
    for i, tokens in enumerate(sequences):
        if not 0 < len(tokens) <= max_tokens:
            raise ConfigError(
                f"calibration sequence {i} has {len(tokens)} tokens; expected 1 to {max_tokens}, the model's "
                "longest context"
            )
        if min(tokens) < 0 or max(tokens) >= vocab_size:
            raise ConfigError(
                f"calibration sequence {i} has tokens {min(tokens)} to {max(tokens)}; expected 0 to {vocab_size - 1}"
            )
