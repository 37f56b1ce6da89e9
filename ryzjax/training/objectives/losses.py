"""Cross-entropy from hidden states, with the logits of only one chunk of tokens in memory at a time.

A head with 128K words makes a gigabyte of logits from 2,048 tokens, and their gradient is as large. Here a scan takes
one chunk of tokens at a time through the head. The forward pass computes the losses and also the gradients with respect
to the hidden states and to the trained part of the head. Nothing is computed twice, and chunks without a trained token
cost nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

__all__ = ["Head", "LossSums", "summed_loss", "token_log_probs"]

PyTree = object
Head = Callable[..., jax.Array]
"""(trained part of the head, frozen part, hidden states [S, E]) -> float32 logits [S, V]."""


class LossSums(NamedTuple):
    """Weighted sums over tokens.

    Attributes:
      loss: Sum of -log p(target).
      correct: Sum over the tokens whose target is the most likely token.
    """

    loss: Float[Array, ""]
    correct: Float[Array, ""]


def summed_loss(
    head: Head,
    trained: PyTree,
    frozen: PyTree,
    hidden: Float[Array, "T E"],
    targets: Int[Array, " T"],
    weights: Float[Array, " T"],
    *,
    chunk_tokens: int,
) -> LossSums:
    """Returns weighted sums of cross-entropy, differentiable with respect to `trained` and `hidden`.

    Args:
      head: A pure function. It is compiled once, for a chunk.
      trained: Trained part of the head.
      frozen: Frozen part of the head.
      hidden: Hidden states.
      targets: The token that follows each token.
      weights: Weight of each token's loss; 0 if the token does not count.
      chunk_tokens: Tokens whose logits are in memory at once.
    """
    # Tokens that count come first, so that whole chunks without any are skipped.
    order = jnp.argsort(weights == 0, stable=True)
    padding = -hidden.shape[0] % chunk_tokens
    hidden, targets, weights = (
        jnp.pad(x[order], ((0, padding), *((0, 0),) * (x.ndim - 1))) for x in (hidden, targets, weights)
    )
    return _summed(head, chunk_tokens, trained, frozen, hidden, targets, weights)


def _chunk_sums(
    head: Head,
    frozen: PyTree,
    targets: Int[Array, " chunk"],
    weights: Float[Array, " chunk"],
    trained: PyTree,
    hidden: Float[Array, "chunk E"],
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Returns (loss, correct) of a chunk."""
    logits = head(trained, frozen, hidden)
    target = jnp.take_along_axis(logits, targets[:, None], axis=1)[:, 0]
    losses = jax.nn.logsumexp(logits, axis=-1) - target
    # Padding may hold NaN; a weight of zero alone would not hide it.
    loss = jnp.sum(jnp.where(weights > 0, losses * weights, 0.0))
    return loss, jnp.sum(jnp.where(target >= jnp.max(logits, axis=-1), weights, 0.0))


def _chunks(chunk: int, *arrays: Array) -> tuple[Array, ...]:
    return tuple(x.reshape(-1, chunk, *x.shape[1:]) for x in arrays)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _summed(
    head: Head, chunk: int, trained: PyTree, frozen: PyTree, hidden: Array, targets: Array, weights: Array
) -> LossSums:
    def turn(sums: LossSums, inputs: tuple[Array, ...]) -> tuple[LossSums, None]:
        hidden, targets, weights = inputs

        def count() -> LossSums:
            loss, correct = _chunk_sums(head, frozen, targets, weights, trained, hidden)
            return LossSums(sums.loss + loss, sums.correct + correct)

        return lax.cond(jnp.any(weights > 0), count, lambda: sums), None

    zero = jnp.zeros((), jnp.float32)
    return lax.scan(turn, LossSums(zero, zero), _chunks(chunk, hidden, targets, weights))[0]


def _forward(
    head: Head, chunk: int, trained: PyTree, frozen: PyTree, hidden: Array, targets: Array, weights: Array
) -> tuple[LossSums, tuple[PyTree, Array]]:
    def turn(carry: tuple[LossSums, PyTree], inputs: tuple[Array, ...]) -> tuple[tuple[LossSums, PyTree], Array]:
        hidden, targets, weights = inputs

        def count() -> tuple[tuple[LossSums, PyTree], Array]:
            sums, grads = carry
            of_chunk = partial(_chunk_sums, head, frozen, targets, weights)
            loss, pull, correct = jax.vjp(of_chunk, trained, hidden, has_aux=True)
            trained_grad, hidden_grad = pull(jnp.ones((), jnp.float32))
            sums = LossSums(sums.loss + loss, sums.correct + correct)
            grads = jax.tree.map(lambda total, part: total + part.astype(total.dtype), grads, trained_grad)
            return (sums, grads), hidden_grad

        return lax.cond(jnp.any(weights > 0), count, lambda: (carry, jnp.zeros_like(hidden)))

    zero = jnp.zeros((), jnp.float32)
    start = LossSums(zero, zero), jax.tree.map(lambda w: jnp.zeros(w.shape, jnp.float32), trained)
    (sums, grads), hidden_grad = lax.scan(turn, start, _chunks(chunk, hidden, targets, weights))
    grads = jax.tree.map(lambda grad, w: grad.astype(w.dtype), grads, trained)
    return sums, (grads, hidden_grad.reshape(hidden.shape))


def _backward(
    head: Head, chunk: int, saved: tuple[PyTree, Array], cotangent: LossSums
) -> tuple[PyTree, None, Array, None, None]:
    scale = cotangent.loss
    grads, hidden_grad = jax.tree.map(lambda grad: (grad.astype(jnp.float32) * scale).astype(grad.dtype), saved)
    return grads, None, hidden_grad, None, None


_summed.defvjp(_forward, _backward)


def token_log_probs(
    head: Head,
    trained: PyTree,
    frozen: PyTree,
    hidden: Float[Array, "T E"],
    targets: Int[Array, " T"],
    *,
    chunk_tokens: int,
) -> Float[Array, " T"]:
    """Returns log p(target) of each token. The backward pass runs the head once more.

    Args:
      head: A pure function. It is compiled once, for a chunk.
      trained: Trained part of the head.
      frozen: Frozen part of the head.
      hidden: Hidden states.
      targets: The token that follows each token.
      chunk_tokens: Tokens whose logits are in memory at once.
    """
    count = hidden.shape[0]
    padding = -count % chunk_tokens
    hidden, targets = jnp.pad(hidden, ((0, padding), (0, 0))), jnp.pad(targets, (0, padding))

    @jax.checkpoint
    def turn(_: None, inputs: tuple[Array, ...]) -> tuple[None, Array]:
        hidden, targets = inputs
        logits = head(trained, frozen, hidden)
        target = jnp.take_along_axis(logits, targets[:, None], axis=1)[:, 0]
        return None, target - jax.nn.logsumexp(logits, axis=-1)

    return lax.scan(turn, None, _chunks(chunk_tokens, hidden, targets))[1].reshape(-1)[:count]
