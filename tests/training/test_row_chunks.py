"""RowChunks gives the same numbers and gradients as the layer itself, except with dropout."""

from __future__ import annotations

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ryzjax.layers.linear import Linear
from ryzjax.layers.mlp import GatedMLP
from ryzjax.lora.adapter import LoraWeights
from ryzjax.lora.linear import AdaptedLinear, Dropout
from ryzjax.training.row_chunks import RowChunks
from tests.evaluation.models import ONE

TOKENS, K, N, RANK = 11, 8, 12, 2


def filled(module: nnx.Module, seed: int) -> nnx.Module:
    rng = np.random.default_rng(seed)
    graphdef, state = nnx.split(module)
    return nnx.merge(graphdef, jax.tree.map(lambda a: jnp.asarray(rng.normal(size=a.shape) * 0.4, a.dtype), state))


def adapted(dropout: Dropout | None = None, dtype: str = "float32") -> AdaptedLinear:
    base = filled(Linear(K, N, in_axis="embed", out_axis="ffn", dtype=dtype, placement=ONE), 0)
    rng = np.random.default_rng(1)
    a, b = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((RANK, K), (N, RANK)))
    return AdaptedLinear(base, LoraWeights(a=a, b=b), 0.5, dropout=dropout)  # pyright: ignore[reportArgumentType]


def mlp(dtype: str = "float32") -> GatedMLP:
    return filled(GatedMLP(hidden_size=K, intermediate_size=N, activation="silu", dtype=dtype, placement=ONE), 2)  # pyright: ignore[reportReturnType]


def value_and_gradients(layer: nnx.Module, x: jax.Array, rows: int | None):
    graphdef, state = nnx.split(layer)

    def loss(state: nnx.State, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        whole = nnx.merge(graphdef, state)
        y = (whole if rows is None else RowChunks(whole, rows))(x)  # pyright: ignore
        return jnp.sum(jnp.sin(y.astype(jnp.float32))), y

    (_, y), grads = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))(state, x)
    return y, grads


def tokens(dtype: str = "float32") -> jax.Array:
    return jnp.asarray(np.random.default_rng(3).normal(size=(TOKENS, K)), dtype)


@pytest.mark.parametrize("rows", [4, TOKENS, 64])
@pytest.mark.parametrize("make", [adapted, mlp])
def test_values_and_gradients_are_the_layers_own(make, rows: int):
    layer = make()
    ours, theirs = value_and_gradients(layer, tokens(), rows), value_and_gradients(layer, tokens(), None)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), ours, theirs)


def test_bfloat16_passes_as_bits_unchanged():
    layer = adapted(dtype="bfloat16")
    y, _ = value_and_gradients(layer, tokens("bfloat16"), 4)
    assert y.dtype == jnp.bfloat16
    np.testing.assert_array_equal(y, layer(tokens("bfloat16")).astype(jnp.bfloat16))


def scanned_shapes(jaxpr: jax.extend.core.Jaxpr) -> set[tuple[int, ...]]:
    """Returns the shapes of the outputs of a program's loops."""
    shapes = set()
    for equation in jaxpr.eqns:
        if equation.primitive.name == "scan":
            shapes |= {out.aval.shape for out in equation.outvars}  # pyright: ignore[reportAttributeAccessIssue]
        for inner in jax.tree.leaves(list(equation.params.values())):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                shapes |= scanned_shapes(inner)
    return shapes


def test_only_what_wants_a_gradient_is_differentiated():
    layer = adapted()

    def loss(a: jax.Array, x: jax.Array) -> jax.Array:
        own = AdaptedLinear(layer.base, LoraWeights(a=a, b=layer.b[...]), 0.5)
        return jnp.sum(RowChunks(own, 4)(x))

    shapes = scanned_shapes(jax.make_jaxpr(jax.grad(loss))(layer.a[...], tokens()).jaxpr)
    assert (RANK, K) in shapes and (N, RANK) not in shapes
    assert (N, K) not in shapes, "a sum of gradients of the frozen base"


def test_each_chunk_drops_other_inputs():
    layer = adapted(Dropout(rate=0.5, key=jax.random.PRNGKey(0)))
    x = jnp.tile(tokens()[:4], (3, 1))
    first, second, third = RowChunks(layer, 4)(x).reshape(3, 4, N)
    assert not np.allclose(first, second) and not np.allclose(second, third)


def test_dropout_is_the_same_in_the_backward_pass():
    layer = adapted(Dropout(rate=0.5, key=jax.random.PRNGKey(0)))
    x = tokens()

    def scaled(factor: jax.Array) -> jax.Array:
        own = AdaptedLinear(
            layer.base,
            LoraWeights(a=layer.a[...], b=layer.b[...] * factor),
            0.5,
            dropout=Dropout(rate=0.5, key=jax.random.PRNGKey(0)),
        )
        return jnp.sum(RowChunks(own, 4)(x))

    # The layer is linear in B.
    np.testing.assert_allclose(jax.grad(scaled)(1.0), scaled(jnp.float32(2.0)) - scaled(jnp.float32(1.0)), rtol=1e-3)
