"""Makes an optax transformation from an `OptimizerConfig`: clipping, the algorithm, weight decay, the learning rate."""

from __future__ import annotations

from typing import cast

import jax
import jax.numpy as jnp
import optax
import optax.contrib

from ryzjax.errors import ConfigError
from ryzjax.training.optimizers.adamw8bit import scale_by_adam_8bit
from ryzjax.training.optimizers.config import OptimizerConfig
from ryzjax.training.optimizers.gradients import clip_by_global_norm
from ryzjax.training.optimizers.learning_rate import Schedule, make_schedule
from ryzjax.training.optimizers.parameter_groups import (
    Role,
    Stacked,
    in_stacked_layers,
    parameter_name,
    parameter_roles,
)
from ryzjax.training.optimizers.per_layer import per_layer

__all__ = ["learning_rate_schedule", "make_optimizer"]

_MUON_RMS = 0.2
"""Root mean square of a Muon update divided by the learning rate. AdamW's is typically the same (Liu et al.,
arXiv:2502.16982)."""


def learning_rate_schedule(config: OptimizerConfig, *, total_steps: int) -> Schedule:
    """Returns the learning rate by steps done, for a run of `total_steps` updates."""
    warmup = round(config.warmup_ratio * total_steps) if config.warmup_steps is None else config.warmup_steps
    return make_schedule(
        config.schedule,
        peak=config.learning_rate,
        total_steps=total_steps,
        warmup_steps=warmup,
        min_ratio=config.min_lr_ratio,
        decay_ratio=config.decay_ratio,
    )


def make_optimizer(
    config: OptimizerConfig, params: object, *, total_steps: int, stacked: Stacked = in_stacked_layers
) -> optax.GradientTransformation:
    """Returns the optimizer of a run, for `init(params)` and `update(gradients, state, params)` under jit.

    Args:
      config: Settings of the optimizer.
      params: What is trained: a pytree of float32 arrays or `jax.ShapeDtypeStruct`s, see `parameter_roles`.
      total_steps: Updates of the whole run, over which the schedule spans.
      stacked: Whether the parameter of a name has a leading axis of layers.

    Raises:
      ConfigError: There is nothing to train, a parameter is not float32, or a setting does not fit the parameters.
    """
    roles = parameter_roles(params, stacked=stacked)
    _check(config, params, set(jax.tree.leaves(roles)))
    schedule = learning_rate_schedule(config, total_steps=total_steps)
    parts = [] if config.clip_norm is None else [clip_by_global_norm(config.clip_norm)]
    parts.append(_direction(config, roles, stacked))
    if config.weight_decay:
        parts.append(optax.add_decayed_weights(config.weight_decay, jax.tree.map(lambda role: role != "vector", roles)))
    parts.append(optax.scale_by_learning_rate(schedule))
    rates = jax.tree.map(lambda role: _relative_rate(config, role), roles)
    if any(rate != 1.0 for rate in jax.tree.leaves(rates)):
        parts.append(
            optax.stateless(lambda updates, _: jax.tree.map(lambda u, rate: u * rate, updates, rates)),
        )
    return _with_standard_promotion(optax.chain(*parts))


def _with_standard_promotion(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    """Lets optax mix integer counts with floats where the caller forbids implicit dtype promotion."""

    def update(
        updates: optax.Updates, state: optax.OptState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, optax.OptState]:
        with jax.numpy_dtype_promotion("standard"):
            return optimizer.update(updates, state, params)

    return optax.GradientTransformation(optimizer.init, update)


def _check(config: OptimizerConfig, params: object, roles: set[Role]) -> None:
    leaves = jax.tree_util.tree_leaves_with_path(params)
    if not leaves:
        raise ConfigError("no parameter trains; name layers to adapt, or train the whole model")
    for path, leaf in leaves:
        # An update of 1e-5 of a weight vanishes in the 8 bits of a bfloat16 mantissa.
        if leaf.dtype != jnp.float32:
            raise ConfigError(f"trained parameter {parameter_name(path)!r} is {leaf.dtype}; expected float32 masters")
    if config.lora_plus_ratio is not None and "lora_b" not in roles:
        raise ConfigError(f"lora_plus_ratio={config.lora_plus_ratio}, but no LoRA is trained; leave it out")
    if config.optimizer == "muon" and "matrix" not in roles:
        raise ConfigError("optimizer 'muon' is for the hidden matrices of a whole model; train an adapter with 'adamw'")


def _relative_rate(config: OptimizerConfig, role: Role) -> float:
    """Returns the learning rate of a role, as a multiple of the run's."""
    if role == "lora_b" and config.lora_plus_ratio is not None:
        return config.lora_plus_ratio
    if config.optimizer == "muon" and role != "matrix" and config.adam_learning_rate is not None:
        return config.adam_learning_rate / config.learning_rate
    return 1.0


def _direction(config: OptimizerConfig, roles: object, stacked: Stacked) -> optax.GradientTransformation:
    """Returns the update before learning rate and weight decay."""
    setting = config.setting
    if config.optimizer == "lion":
        return optax.scale_by_lion(setting("beta1"), setting("beta2"))
    if config.optimizer == "adafactor":
        rms = optax.scale_by_factored_rms(epsilon=setting("eps"))
        return per_layer(
            optax.chain(rms, optax.clip_by_block_rms(1.0), optax.scale_by_param_block_rms()), stacked=stacked
        )
    scale_by_adam = scale_by_adam_8bit if config.optimizer == "adamw8bit" else optax.scale_by_adam
    adam = scale_by_adam(setting("beta1"), setting("beta2"), setting("eps"))
    if config.optimizer != "muon":
        return adam
    labels = jax.tree.map(lambda role: "muon" if role == "matrix" else "adam", roles)
    return optax.partition({"muon": _muon(setting("momentum")), "adam": adam}, labels)


def _muon(momentum: float) -> optax.GradientTransformation:
    """Returns Muon for matrices [..., N, K]. Each matrix is orthogonalized separately, whatever the leading axes."""
    matrix = optax.contrib.MuonDimensionNumbers(reduction_axis=-1, output_axis=-2)

    def same(updates: optax.Updates) -> optax.Updates:
        # Leaves of other groups are MaskedNodes, which have no leaves.
        return jax.tree.map(lambda _: matrix, updates)

    def rescale(updates: optax.Updates, _: optax.Params | None) -> optax.Updates:
        return jax.tree.map(lambda u: u * (_MUON_RMS * max(u.shape[-2:]) ** 0.5), updates)

    orthogonal = optax.contrib.scale_by_muon(
        beta=momentum, weight_dimension_numbers=cast("optax.Params", same), mu_dtype=jnp.float32
    )
    return optax.chain(orthogonal, optax.stateless(rescale))
