"""The hidden states of calibration text at the entry of a block, in the plain model and in the quantized one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from ryzjax.models.abstract import AbstractModel
from ryzjax.quantizing.block_runner import BlockRunner, InputSums

__all__ = ["HiddenStates", "HiddenStatesPair", "embed_sequences"]

_BATCH_TOKENS = 2048
"""Tokens that run through a block at a time: enough for full matmuls, few enough to bound temporaries."""


@dataclass(kw_only=True)
class HiddenStates:
    """Hidden states of some sequences at the entry of a block, on the host.

    Attributes:
      hidden: [sequences, tokens, E], in the model's dtype.
    """

    hidden: np.ndarray

    def advance(self, runner: BlockRunner, layer: int, weights: Mapping[str, jax.Array]) -> None:
        """Runs the states through block `layer`, in place.

        Args:
          runner: Runs the block.
          layer: Index of the block.
          weights: Weight name -> array, at least for the block.
        """
        for part in batches(self.hidden):
            self.hidden[part] = runner.advance(layer, weights, jnp.asarray(self.hidden[part]))


@dataclass(kw_only=True)
class HiddenStatesPair:
    """Hidden states of the same sequences in two models.

    Attributes:
      quantized: In the model whose blocks so far are quantized.
      plain: In the plain model.
    """

    quantized: HiddenStates
    plain: HiddenStates

    def observe(
        self,
        runner: BlockRunner,
        layer: int,
        linear: str,
        weights: Mapping[str, jax.Array],
        plain_weights: Mapping[str, jax.Array],
        *,
        with_drift: bool,
    ) -> InputSums:
        """Returns the means, over all tokens, of the moments of a linear layer's inputs.

        Args:
          runner: Runs the block.
          layer: Index of the block.
          linear: Name of the linear layer in the block, such as "attention.q".
          weights: The block's weights, quantized so far.
          plain_weights: The block's plain weights.
          with_drift: Whether to compute `InputSums.drift`.
        """
        total: InputSums | None = None
        for part in batches(self.plain.hidden):
            sums = runner.observe(
                layer,
                linear,
                weights=weights,
                hidden=jnp.asarray(self.quantized.hidden[part]),
                plain_weights=plain_weights,
                plain_hidden=jnp.asarray(self.plain.hidden[part]),
                with_drift=with_drift,
            )
            total = sums if total is None else jax.tree.map(jnp.add, total, sums)
        assert total is not None
        count = self.plain.hidden.shape[0] * self.plain.hidden.shape[1]
        return jax.tree.map(lambda sum_: sum_ / count, total)


def batches(hidden: np.ndarray) -> Iterator[slice]:
    """Yields the slices of sequences that run through a block together."""
    sequences, tokens, _ = hidden.shape
    rows = max(1, min(sequences, _BATCH_TOKENS // tokens))
    for first in range(0, sequences, rows):
        yield slice(first, min(first + rows, sequences))


def embed_sequences(model: AbstractModel, weights: Mapping[str, jax.Array], tokens: np.ndarray) -> HiddenStates:
    """Embeds token sequences: the hidden states at the entry of block 0.

    Args:
      model: The abstract model.
      weights: Weight name -> array, at least for the embedding.
      tokens: Token ids, int32 [sequences, tokens].
    """

    @jax.jit
    def embed(table: dict[str, jax.Array], ids: jax.Array) -> jax.Array:
        return model.merge_some(table).embed_tokens(ids)

    table = {name: weights[name] for name in weights if name.startswith("embed.")}
    states = [np.asarray(embed(table, jnp.asarray(row))) for row in tokens]
    return HiddenStates(hidden=np.stack(states))
