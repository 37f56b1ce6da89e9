"""The learning rate of every step: warm-up, then constant, linear, cosine or warm-up-stable-decay.

The first step of a warm-up of W steps has 1/W of the rate, and the last step of a run comes one step before the end of
the decay. No step is spent at a rate of zero.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp

from ryzjax.errors import ConfigError

__all__ = ["Schedule", "ScheduleName", "make_schedule"]

ScheduleName = Literal["constant", "linear", "cosine", "wsd"]
Schedule = Callable[[jax.typing.ArrayLike], jax.Array]
"""Steps done -> learning rate of the next step, a float32 scalar. Works under jit."""


def make_schedule(
    name: ScheduleName,
    *,
    peak: float,
    total_steps: int,
    warmup_steps: int,
    min_ratio: float = 0.0,
    decay_ratio: float = 0.1,
) -> Schedule:
    """Returns a schedule over the updates of a run.

    Args:
      name: Shape after the warm-up: "constant"; "linear" or "cosine" down to `min_ratio` over the rest of the run
        (Loshchilov and Hutter, arXiv:1608.03983); "wsd", which is constant and then decays as 1 - sqrt (Hägele et al.,
        arXiv:2405.18392).
      peak: Learning rate after the warm-up.
      total_steps: Updates of the whole run.
      warmup_steps: Updates of the linear warm-up.
      min_ratio: Learning rate at the end of a decay, as a share of `peak`.
      decay_ratio: Length of the decay of "wsd", as a share of `total_steps`.

    Raises:
      ConfigError: The run has no steps, or no step is left after the warm-up.
    """
    if total_steps < 1:
        raise ConfigError(f"total_steps={total_steps}; a run has at least one step")
    if not 0 <= warmup_steps < total_steps:
        raise ConfigError(
            f"warmup_steps={warmup_steps} of {total_steps} steps; expected 0 to {total_steps - 1}: make the run longer "
            "or the warm-up shorter"
        )
    rest = total_steps - warmup_steps
    decay_steps = min(max(round(decay_ratio * total_steps), 1), rest)

    def shape(done: jax.Array) -> jax.Array:
        """Returns how far the decay is, from 1 to 0, after `done` steps."""
        if name == "constant":
            return jnp.ones_like(done)
        if name == "linear":
            return 1.0 - done / rest
        if name == "cosine":
            return 0.5 * (1.0 + jnp.cos(jnp.pi * done / rest))
        return 1.0 - jnp.sqrt(jnp.maximum(done - (rest - decay_steps), 0.0) / decay_steps)

    def schedule(steps_done: jax.typing.ArrayLike) -> jax.Array:
        step = jnp.asarray(steps_done, jnp.float32)
        after = jnp.clip(step - warmup_steps, 0.0, rest)
        rate = peak * (min_ratio + (1.0 - min_ratio) * shape(after))
        return jnp.where(step < warmup_steps, peak * (step + 1.0) / max(warmup_steps, 1), rate)

    return schedule
