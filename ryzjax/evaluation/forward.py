"""Runs a model over token sequences without an engine: `Forward` gives hidden states, and `Head` gives their logits.

Sequences run one at a time, in prefill chunks of one shape, over a small paged KV cache. Two programs are therefore
compiled, for sequences of any length: one for the chunk, and one for the head.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ryzjax.batch import KVCache, TokenBatch
from ryzjax.errors import ConfigError, RequestError
from ryzjax.models.abstract import AbstractModel
from ryzjax.models.kv_cache import KVFormat, empty_kv_cache

__all__ = ["Forward", "Head"]

_PAGE_TOKENS = 64


class Forward:
    """Computes hidden states of token sequences, one sequence at a time.

    Args:
      model: The abstract model, with any placement.
      leaves: Its weights, in the order of `model.weights`.
      max_tokens: The length of the longest sequence, in tokens.
      chunk_tokens: The number of tokens of a step. A longer sequence takes several steps.

    Raises:
      ConfigError: `max_tokens` is less than 1, or more than the model was made for.
    """

    def __init__(
        self, model: AbstractModel, leaves: tuple[jax.Array, ...], *, max_tokens: int, chunk_tokens: int = 512
    ):
        if not 1 <= max_tokens <= model.config.max_position:
            raise ConfigError(
                f"max_tokens={max_tokens} is out of range; expected 1 to {model.config.max_position}, the positions "
                "the model was made for"
            )
        multiple = model.placement.axis_size("tokens")
        self._model = model
        self._leaves = leaves
        self._max_tokens = max_tokens
        self._chunk = -(-min(chunk_tokens, max_tokens) // multiple) * multiple
        self._pages = -(-max_tokens // _PAGE_TOKENS)
        self._cache = empty_kv_cache(
            model.config,
            model.placement,
            KVFormat(dtype=model.config.dtype),
            num_pages=self._pages + 1,
            page_size_tokens=_PAGE_TOKENS,
        )
        shardings = jax.tree.map(lambda array: array.sharding, self._cache)

        def step(leaves: tuple[jax.Array, ...], cache: KVCache, batch: TokenBatch) -> tuple[jax.Array, KVCache]:
            return model.merge(leaves).forward(batch, cache, max_query_len=batch.token_ids.shape[0])

        self._step = jax.jit(step, donate_argnums=1, out_shardings=(model.placement.replicated, shardings))

    def chunks(self, tokens: Sequence[int]) -> Iterator[jax.Array]:
        """Yields hidden states [tokens of the chunk, E] before the final norm, with one row for each token.

        Each array is in the model's dtype and replicated over its mesh.

        Args:
          tokens: The token ids of one sequence.

        Raises:
          RequestError: There are no tokens or more than `max_tokens`, or a token id is outside the vocabulary.
        """
        vocab = self._model.config.vocab_size
        if not 1 <= len(tokens) <= self._max_tokens:
            raise RequestError(f"{len(tokens)} tokens; expected 1 to max_tokens={self._max_tokens}", param="tokens")
        bad = next((token for token in tokens if not 0 <= token < vocab), None)
        if bad is not None:
            raise RequestError(f"tokens contain id {bad}; expected 0 to {vocab - 1}", param="tokens")
        ids = np.asarray(tokens, np.int32)
        for start in range(0, len(ids), self._chunk):
            batch = _chunk_batch(ids, start, width=self._chunk, pages=self._pages)
            hidden, self._cache = self._step(self._leaves, self._cache, batch)
            yield hidden[: len(ids) - start]

    def hidden(self, tokens: Sequence[int]) -> Float[Array, "T E"]:
        """Returns the hidden states of all tokens before the final norm. Raises the errors of `chunks`."""
        return jnp.concatenate(list(self.chunks(tokens)))


class Head:
    """The final norm and the head of a model. It keeps the weights that the logits read, and no others.

    Args:
      model: The abstract model.
      leaves: All of its weights, in the order of `model.weights`.

    Attributes:
      weights: Name -> array of the weights in `model.head_names`.
    """

    def __init__(self, model: AbstractModel, leaves: tuple[jax.Array, ...]):
        self.model = model
        by_name = dict(zip(model.weights, leaves, strict=True))
        self.weights: dict[str, jax.Array] = {name: by_name[name] for name in model.head_names}

        def logits(weights: dict[str, jax.Array], hidden: jax.Array) -> jax.Array:
            return model.merge_some(weights).logits(hidden)

        self._logits = jax.jit(logits, out_shardings=model.placement.replicated)

    def logits(self, hidden: Float[Array | np.ndarray, "S E"]) -> Float[Array, "S V"]:
        """Returns the float32 logits of hidden states from `Forward`, replicated over the model's mesh."""
        return self._logits(self.weights, jax.device_put(hidden, self.model.placement.replicated))


def _chunk_batch(ids: np.ndarray, start: int, *, width: int, pages: int) -> TokenBatch:
    """Returns the step for ids[start : start + width] of one sequence on pages 1, 2, ..., padded to `width` tokens."""
    count = min(width, len(ids) - start)
    real = np.arange(width) < count
    positions = np.where(real, start + np.arange(width), 0)
    fields = {
        "token_ids": np.pad(ids[start : start + count], (0, width - count)),
        "positions": positions,
        # As in the engine, the length of the whole prompt determines its rotations.
        "rope_lengths": np.full(width, len(ids)),
        "write_page": np.where(real, 1 + positions // _PAGE_TOKENS, 0),
        "write_offset": positions % _PAGE_TOKENS,
        "page_table": np.arange(1, pages + 1)[None],
        "query_start": np.zeros(1),
        "query_len": np.full(1, count),
        "context_len": np.full(1, start + count),
        "num_decode_rows": 0,
        "num_rows": 1,
    }
    return TokenBatch(**{name: jnp.asarray(value, jnp.int32) for name, value in fields.items()})
