"""SamplerState: the sampling state on the device, and the program that writes the state of one slot."""

from __future__ import annotations

from typing import NamedTuple

import jax
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from ryzjax.dims import Int32Array
from ryzjax.ops.sampling.sampling import PROMPT_BIT, STOP_BIT
from ryzjax.serving.host.sequence import Sequence

__all__ = ["SamplerState", "history_rows", "set_slot"]


class SamplerState(NamedTuple):
    """The sampling state of all slots.

    Attributes:
      history: int32 [slots, V], see `ops.sampling`.
      bias: float32 [slots, V].
      tokens: int32 [slots], the last generated token of each slot.
    """

    history: jax.Array
    bias: jax.Array
    tokens: jax.Array


def set_slot(
    history: Int[Array, "slots V"],
    bias: Float[Array, "slots V"],
    slot: Int[Array, ""],
    history_row: Int[Array, " V"],
    bias_row: Float[Array, " V"],
) -> tuple[Int[Array, "slots V"], Float[Array, "slots V"]]:
    """Returns history and bias with the rows of one slot replaced. It runs when a sequence that needs them starts."""
    return (
        lax.dynamic_update_slice(history, history_row[None], (slot, 0)),
        lax.dynamic_update_slice(bias, bias_row[None], (slot, 0)),
    )


def history_rows(sequence: Sequence, vocab_size: int) -> tuple[Int32Array, np.ndarray]:
    """Returns the history and bias rows [V] of a sequence, also of one that starts again after a preemption."""
    request = sequence.request
    prompt_len = len(request.prompt_token_ids)
    generated = np.asarray(sequence.token_ids[prompt_len:], np.int64)
    history = np.bincount(generated, minlength=vocab_size).astype(np.int32)
    history[np.unique(np.asarray(request.prompt_token_ids))] |= PROMPT_BIT
    history[list(request.stop_token_ids)] |= STOP_BIT
    bias = np.zeros(vocab_size, np.float32)
    for token, value in request.params.logit_bias.items():
        bias[token] = value
    return history, bias
