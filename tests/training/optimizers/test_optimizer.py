"""Optimizers: which parameters decay, their learning rates, stacked layers as if separate, and errors."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ryzjax.errors import ConfigError
from ryzjax.lora.adapter import LoraWeights
from ryzjax.sharding import Layout, Placement
from ryzjax.training.optimizers.config import OptimizerConfig, OptimizerName
from ryzjax.training.optimizers.gradients import clip_by_global_norm, global_norm
from ryzjax.training.optimizers.optimizer import make_optimizer
from ryzjax.training.optimizers.parameter_groups import parameter_roles
from ryzjax.training.optimizers.sharding import optimizer_shardings

NAMES: tuple[OptimizerName, ...] = ("adamw", "adamw8bit", "lion", "adafactor", "muon")
plain = partial(OptimizerConfig, schedule="constant", warmup_steps=0, clip_norm=None)


def model(seed: int = 0) -> dict[str, jax.Array]:
    shapes = {
        "embed.weight": (50, 16),
        "layers[0::1]/attention.q.weight": (2, 24, 16),
        "layers[0::1]/attention.q.bias": (2, 24),
        "layers[0::1]/attention.sinks": (2, 4),
        "layers[0::1]/attention_norm.weight": (2, 16),
        "layers[0::1]/mlp.router.weight": (2, 4, 16),
        "layers[0::1]/mlp.experts.up.weight": (2, 4, 32, 16),
        "layers[0::1]/mlp.experts.up.bias": (2, 4, 32),
        "final_norm.weight": (16,),
        "lm_head.weight": (50, 16),
    }
    keys = jax.random.split(jax.random.key(seed), len(shapes))
    return {name: jax.random.normal(key, shape) for (name, shape), key in zip(shapes.items(), keys, strict=True)}


def adapter() -> dict[str, LoraWeights]:
    ones = jnp.ones
    return {
        "attention.q": LoraWeights(a=ones((2, 4, 16)), b=ones((2, 24, 4)), magnitude=ones((2, 24))),
        "mlp.down": LoraWeights(a=ones((2, 4, 32)), b=ones((2, 16, 4))),
    }


def first_update(config: OptimizerConfig, params, gradient):
    optimizer = make_optimizer(config, params, total_steps=10)
    return jax.jit(optimizer.update)(gradient, optimizer.init(params), params)[0]


def test_roles():
    roles = parameter_roles(model())
    assert roles["layers[0::1]/attention.q.weight"] == roles["layers[0::1]/mlp.experts.up.weight"] == "matrix"
    assert roles["embed.weight"] == roles["lm_head.weight"] == "embedding"
    assert roles["layers[0::1]/mlp.router.weight"] == "router"
    assert {name for name, role in roles.items() if role == "vector"} == {
        "layers[0::1]/attention.q.bias",
        "layers[0::1]/attention.sinks",
        "layers[0::1]/attention_norm.weight",
        "layers[0::1]/mlp.experts.up.bias",
        "final_norm.weight",
    }
    of_lora = parameter_roles(adapter())["attention.q"]
    assert (of_lora.a, of_lora.b, of_lora.magnitude) == ("lora_a", "lora_b", "vector")


@pytest.mark.parametrize("name", NAMES)
def test_only_matrices_decay(name: OptimizerName):
    """With a gradient of zero, the update is only the decay."""
    params = model()
    update = first_update(
        plain(optimizer=name, learning_rate=0.1, weight_decay=0.5), params, jax.tree.map(jnp.zeros_like, params)
    )
    for key, role in parameter_roles(params).items():
        expected = 0 * params[key] if role == "vector" else -0.1 * 0.5 * params[key]
        np.testing.assert_allclose(update[key], expected, atol=1e-6, err_msg=key)


@pytest.mark.parametrize("name", ["adamw", "adamw8bit", "lion"])
def test_lora_plus(name: OptimizerName):
    params = adapter()
    gradient = jax.tree.map(lambda p: 0.3 * p, params)
    update = first_update(plain(optimizer=name, learning_rate=1e-3, lora_plus_ratio=16.0), params, gradient)
    for weights in update.values():
        np.testing.assert_allclose(weights.a, -1e-3, rtol=1e-3)
        np.testing.assert_allclose(weights.b, -16e-3, rtol=1e-3)
    np.testing.assert_allclose(update["attention.q"].magnitude, -1e-3, rtol=1e-3)


def test_muon_orthogonalizes_each_matrix_of_a_stack():
    params, gradient = model(), model(1)
    update = first_update(plain(optimizer="muon", learning_rate=1e-2, adam_learning_rate=1e-3), params, gradient)
    stacks = update["layers[0::1]/attention.q.weight"], update["layers[0::1]/mlp.experts.up.weight"].reshape(8, 32, 16)
    for matrix in (matrix for stack in stacks for matrix in stack):
        singular = np.linalg.svd(matrix / (1e-2 * 0.2 * max(matrix.shape) ** 0.5), compute_uv=False)
        assert (singular > 0.4).all() and (singular < 1.3).all()
    for name in ("embed.weight", "lm_head.weight", "final_norm.weight", "layers[0::1]/mlp.router.weight"):
        np.testing.assert_allclose(np.abs(update[name]), 1e-3, rtol=1e-2)


@pytest.mark.parametrize("name", ["adafactor", "muon"])
def test_a_stack_trains_as_its_layers_apart(name: OptimizerName):
    """The matrices are 128 x 128, the size from which Adafactor factors them."""
    params = {
        "layers/up.weight": jax.random.normal(jax.random.key(0), (3, 130, 140)) * jnp.array([1, 5, 9.0])[:, None, None]
    }
    apart = {f"up.{i}.weight": params["layers/up.weight"][i] for i in range(3)}
    optimizers = [make_optimizer(plain(optimizer=name), p, total_steps=9) for p in (params, apart)]
    states = [o.init(p) for o, p in zip(optimizers, (params, apart), strict=True)]
    for seed in range(3):
        gradient = jax.random.normal(jax.random.key(seed), (3, 130, 140)) * jnp.array([0.1, 1, 20.0])[:, None, None]
        stacked, states[0] = optimizers[0].update({"layers/up.weight": gradient}, states[0], params)
        single, states[1] = optimizers[1].update({f"up.{i}.weight": gradient[i] for i in range(3)}, states[1], apart)
        for i in range(3):
            np.testing.assert_allclose(stacked["layers/up.weight"][i], single[f"up.{i}.weight"], rtol=2e-3, atol=1e-7)
    if name == "adafactor":
        assert sum(leaf.size for leaf in jax.tree.leaves(states[0])) < 0.1 * params["layers/up.weight"].size


@pytest.mark.parametrize("name", NAMES)
def test_every_optimizer_minimises(name: OptimizerName):
    target, params = model(1), model()
    config = OptimizerConfig(optimizer=name, learning_rate=0.05 if name.startswith("adam") else 0.2, schedule="linear")
    optimizer = make_optimizer(config, params, total_steps=150)

    def loss(params):
        return sum(jnp.mean(jnp.square(params[key] - target[key])) for key in params)

    @jax.jit
    def run(params, state):
        def step(carry, _):
            value, gradient = jax.value_and_grad(loss)(carry[0])
            updates, state = optimizer.update(gradient, carry[1], carry[0])
            return (optax.apply_updates(carry[0], updates), state), value

        return jax.lax.scan(step, (params, state), length=150)

    (params, _), losses = run(params, optimizer.init(params))
    assert losses[-1] < 0.05 * losses[0]


def test_gradients_are_clipped_by_their_global_norm():
    gradient = {"x": jnp.array([3.0, 0.0]), "y": jnp.array([[4.0]])}
    clip = clip_by_global_norm(1.0)
    assert global_norm(gradient) == 5.0
    clipped, _ = clip.update(gradient, clip.init(gradient))
    np.testing.assert_allclose(clipped["x"], [0.6, 0])
    unclipped, _ = clip_by_global_norm(6.0).update(gradient, clip.init(gradient))
    np.testing.assert_array_equal(unclipped["y"], gradient["y"])
    for bad in (jnp.nan, jnp.inf):
        assert not jnp.isfinite(global_norm(gradient | {"z": jnp.array([bad])}))
    params = adapter()
    huge = jax.tree.map(lambda p: 1e6 * p, params)
    adam = make_optimizer(plain(clip_norm=2.0), params, total_steps=9)
    _, state = adam.update(huge, adam.init(params), params)
    assert float(global_norm(state[1].mu)) == pytest.approx(2.0 * 0.1, rel=1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_states_live_beside_their_parameters(name: OptimizerName):
    placement = Placement(Layout.load("fsdp_tp"), jax.devices()[:8])
    axes = {
        "layers/up.weight": (None, "ffn", "embed"),
        "embed.weight": ("vocab", "embed"),
        "norm.weight": (None,),
    }
    shapes = {"layers/up.weight": (2, 64, 1024), "embed.weight": (64, 1024), "norm.weight": (1024,)}
    params = {
        key: jax.device_put(jnp.ones(shape), placement.sharding(axes[key], shape)) for key, shape in shapes.items()
    }
    optimizer = make_optimizer(plain(optimizer=name), params, total_steps=10)
    shardings = optimizer_shardings(optimizer, params, replicated=placement.replicated)
    state = jax.jit(optimizer.init, out_shardings=shardings)(params)
    update = jax.jit(optimizer.update, out_shardings=(jax.tree.map(lambda p: p.sharding, params), shardings))
    _, state = update(params, state, params)
    split = [leaf for leaf in jax.tree.leaves(state) if not leaf.sharding.is_fully_replicated]
    own = [leaf for leaf in jax.tree.leaves(state) if leaf.shape == (2, 64, 1024)]
    assert (own or name == "adafactor") and split
    for leaf in own:
        assert leaf.sharding == params["layers/up.weight"].sharding
    if name == "adamw8bit":
        scales = state[0].mu["layers/up.weight"].scales
        assert scales.shape == (2, 64, 4) and scales.addressable_shards[0].data.shape == (2, 16, 2)
        # Blocks lie within shards, so no data of the states crosses devices.
        text = update.lower(params, state, params).compile().as_text()
        assert "all-gather" not in text and "all-to-all" not in text and "collective-permute" not in text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optimizer": "sgd"}, "optimizer 'sgd'; expected one of adamw"),
        ({"optimizer": "adafactor", "beta1": 0.9}, "adafactor has no beta1"),
        ({"momentum": 0.9}, "adamw has no momentum"),
        ({"optimizer": "lion", "eps": 1e-8}, "lion has no eps"),
        ({"learning_rate": 0.0}, "learning_rate=0.0; expected a number above 0"),
        ({"learning_rate": float("nan")}, "learning_rate=nan"),
        ({"beta2": 1.0}, "beta2=1.0; expected a number from 0 to below 1"),
        ({"warmup_steps": -1}, "warmup_steps=-1"),
        ({"min_lr_ratio": 1.5}, "min_lr_ratio=1.5"),
        ({"weight_decay": -0.1}, "weight_decay=-0.1"),
    ],
)
def test_settings_that_are_refused(options: dict, message: str):
    with pytest.raises(ConfigError, match=message):
        OptimizerConfig(**options)


@pytest.mark.parametrize(
    ("options", "params", "message"),
    [
        ({}, {}, "no parameter trains"),
        (
            {},
            {"layers/up.weight": jnp.ones((2, 4, 4), jnp.bfloat16)},
            "'layers/up.weight' is bfloat16; expected float32",
        ),
        ({"lora_plus_ratio": 16.0}, {"w": jnp.ones((4, 4))}, "no LoRA is trained"),
        (
            {"optimizer": "muon"},
            {"q": LoraWeights(a=jnp.ones((2, 4)), b=jnp.ones((4, 2)))},
            "hidden matrices of a whole model",
        ),
        ({"warmup_steps": 10}, {"w": jnp.ones((4, 4))}, "warmup_steps=10 of 10 steps"),
    ],
)
def test_parameters_that_do_not_fit(options: dict, params: dict, message: str):
    with pytest.raises(ConfigError, match=message):
        make_optimizer(OptimizerConfig(**options), params, total_steps=10)
