"""Gates and the layers around them: a gated MLP and a mixture of experts, against plain loops."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ryzjax.layers.glu import GLU, Activation, ClampedSwiGLU
from ryzjax.layers.mlp import GatedMLP
from ryzjax.layers.moe import MoE
from ryzjax.layers.weight import Weight
from ryzjax.sharding import Placement
from tests.layers.filled import ONE, TWO, filled, normal

E, F = 16, 24


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def gelu(x: np.ndarray) -> np.ndarray:
    return x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))) / 2


def numbers(weight: object) -> np.ndarray:
    assert isinstance(weight, Weight)
    return np.asarray(weight[...], np.float64)


@pytest.mark.parametrize("activation", ["silu", "gelu", "gelu_tanh"])
def test_glu(activation: Activation):
    gate, up = normal((3, 5), seed=1), normal((3, 5), seed=2)
    x = np.asarray(gate, np.float64)
    activated = x * sigmoid(x) if activation == "silu" else gelu(x)
    # The tanh approximation of GELU is off by up to 5e-4, far more than float32's error.
    np.testing.assert_allclose(GLU(activation)(gate, up), activated * up, atol=2e-3 if "tanh" in activation else 1e-6)
    if activation != "silu":
        assert (np.abs(GLU("gelu")(gate, up) - GLU("gelu_tanh")(gate, up)) > 1e-6).any()


def test_clamped_swiglu_by_hand():
    gate, up = jnp.array([[9.0, -9.0, 1.0]]), jnp.array([[9.0, -9.0, 0.5]])
    # The gate is clamped from above only. `up` is clamped on both sides, then increased by 1.
    want = [7 * sigmoid(np.array(14.0)) * 8, -9 * sigmoid(np.array(-18.0)) * -6, sigmoid(np.array(2.0)) * 1.5]
    np.testing.assert_allclose(ClampedSwiGLU(alpha=2.0, limit=7.0)(gate, up), [want], rtol=1e-5)


@pytest.mark.parametrize("placement", [ONE, TWO], ids=["one", "two"])
def test_a_gated_mlp(placement: Placement):
    mlp = filled(
        GatedMLP(hidden_size=E, intermediate_size=F, activation="silu", bias=True, dtype="float32", placement=placement)
    )
    x = normal((5, E))

    def linear(x: np.ndarray, name: str) -> np.ndarray:
        layer = getattr(mlp, name)
        return x @ numbers(layer.weight).T + numbers(layer.bias)

    gate, up = (linear(np.asarray(x, np.float64), name) for name in ("gate", "up"))
    want = linear(gate * sigmoid(gate) * up, "down")
    got = jax.jit(lambda x: mlp(x))(x)
    np.testing.assert_allclose(got, want, atol=1e-5 * np.abs(want).max())


@pytest.mark.parametrize("placement", [ONE, TWO], ids=["one", "two"])
def test_a_mixture_of_experts_against_a_loop_over_tokens(placement: Placement):
    moe = filled(
        MoE(
            hidden_size=E,
            expert_size=F,
            num_experts=4,
            top_k=2,
            routing="softmax_normalized",
            glu=GLU("silu"),
            router_bias=True,
            expert_bias=True,
            dtype="float32",
            placement=placement,
        )
    )
    x = normal((7, E))
    scores = np.asarray(x, np.float64) @ numbers(moe.router.weight).T + numbers(moe.router.bias)
    want = np.zeros((7, E))
    for t, token in enumerate(np.asarray(x, np.float64)):
        top = np.argsort(-scores[t])[:2]
        weights = np.exp(scores[t, top]) / np.exp(scores[t, top]).sum()
        for weight, expert in zip(weights, top, strict=True):
            gate, up = (
                numbers(layer.weight)[expert] @ token + numbers(layer.bias)[expert]
                for layer in (moe.experts.gate, moe.experts.up)
            )
            down = numbers(moe.experts.down.weight)[expert], numbers(moe.experts.down.bias)[expert]
            want[t] += weight * (down[0] @ (gate * sigmoid(gate) * up) + down[1])
    got = jax.jit(lambda x: moe(x))(x)
    np.testing.assert_allclose(got, want, atol=1e-5 * np.abs(want).max())
