"""RowChunks: an MLP over some tokens at a time, so that its inner activations are never those of all of them.

An MLP's inner dimension makes its activations, several copies of them in the backward pass, the largest temporaries of
a layer (measured: 170 of 410 MB at Llama-2-7B's shape and 512 tokens). Tokens do not meet in an MLP, so they may pass
one chunk after the other; each chunk is computed again for its gradient.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from ryzjax.layers.mlp import GatedMLP

__all__ = ["RowChunks"]


class RowChunks(nnx.Module):
    """Stands in the place of an MLP.

    Args:
      mlp: does the work.
      rows: tokens at a time; the last chunk is padded.
    """

    def __init__(self, mlp: GatedMLP, rows: int):
        self.mlp = mlp
        self.rows = rows

    def __call__(self, x: jax.Array) -> jax.Array:
        """[T, E] -> float32 [T, E]."""
        count = x.shape[0]
        if count <= self.rows:
            return self.mlp(x)
        graphdef, state = nnx.split(self.mlp)

        @jax.checkpoint
        def chunk(state: nnx.State, x: jax.Array) -> jax.Array:
            return nnx.merge(graphdef, state)(x)

        chunks = jnp.pad(x, ((0, -count % self.rows), (0, 0))).reshape(-1, self.rows, x.shape[1])
        return lax.map(lambda x: chunk(state, x), chunks).reshape(-1, x.shape[1])[:count]
