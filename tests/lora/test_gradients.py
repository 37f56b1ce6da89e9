"""AdaptedLinear over every kind of base: values and gradients against finite differences and a dense reference.

The finite differences are computed on a float64 copy of the layer in numpy, so their own error is far below float32's.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ryzjax.layers.linear import Linear
from ryzjax.lora import AdaptedLinear, LoraWeights, row_norms
from ryzjax.lora.model import weight_of
from ryzjax.models.registry import abstract_model
from ryzjax.qarray import LEAVES, QArray, QFormat, dequantize
from ryzjax.sharding import Layout, Placement
from tests.models.configs import CONFIGS
from tests.qarrays import FORMATS, random_qarray

PLACEMENT = Placement(Layout.load("single"))
T, N, K, RANK = 5, 24, 64, 3
BASES: dict[str, QFormat | None] = {
    "float32": None,
    **{
        name: FORMATS[name] for name in ("int8", "int4", "int4_zeros", "int4_order", "nf4", "nf4_nested", "float8_rows")
    },
}
SCALES = {"lora": 16.0 / RANK, "rslora": 16.0 / RANK**0.5, "dora": 0.7}


def base_of(format: QFormat | None, rng: np.random.Generator) -> tuple[Linear, np.ndarray]:
    """Returns a layer with a bias, and its weight in float64."""
    layer = Linear(
        K, N, in_axis="embed", out_axis="ffn", dtype="float32", placement=PLACEMENT, bias=True
    )  # fmt: skip
    assert layer.bias is not None
    layer.bias[...] = jnp.asarray(rng.standard_normal(N), jnp.float32)
    if format is None:
        weight = jnp.asarray(rng.standard_normal((N, K)) * 0.2, jnp.float32)
        layer.weight[...] = weight  # pyright: ignore
        return layer, np.asarray(weight, np.float64)
    array = random_qarray(rng, format, (N, K))
    layer.quantize("layer", format)
    for leaf in LEAVES:
        if (value := getattr(array, leaf)) is not None:
            getattr(layer.weight, leaf)[...] = value
    return layer, np.asarray(dequantize(array), np.float64)


def reference(w: np.ndarray, bias: np.ndarray, scale: float, norms: np.ndarray | None, p: dict[str, np.ndarray]):
    """Returns the layer's output in float64. The `norms` of DoRA are constants, as in its gradient."""
    v = w + scale * p["b"] @ p["a"]
    if norms is not None:
        v = (p["magnitude"] / norms)[:, None] * v
    return p["x"] @ v.T + bias


def finite_differences(f: Callable[[dict[str, np.ndarray]], float], point: dict[str, np.ndarray]):
    """Returns central differences in float64 for each entry of each argument."""
    step = 1e-6
    gradients = {}
    for name, value in point.items():
        gradient = np.zeros_like(value)
        for index in np.ndindex(*value.shape):
            ends = []
            for sign in (1, -1):
                moved = value.copy()
                moved[index] += sign * step
                ends.append(f({**point, name: moved}))
            gradient[index] = (ends[0] - ends[1]) / (2 * step)
        gradients[name] = gradient
    return gradients


@pytest.mark.parametrize("kind", SCALES)
@pytest.mark.parametrize("name", BASES)
def test_gradients(name: str, kind: str):
    rng = np.random.default_rng(0)
    layer, w = base_of(BASES[name], rng)
    scale = SCALES[kind]
    point = {
        "x": rng.standard_normal((T, K)),
        "a": rng.standard_normal((RANK, K)) * 0.1,
        "b": rng.standard_normal((N, RANK)) * 0.1,
    }
    norms = None
    if kind == "dora":
        norms = np.linalg.norm(w + scale * point["b"] @ point["a"], axis=1)
        point["magnitude"] = norms * rng.uniform(0.5, 1.5, N)
    factor = rng.standard_normal((T, N))
    assert layer.bias is not None
    bias = np.asarray(layer.bias[...], np.float64)

    def loss64(p: dict[str, np.ndarray]) -> float:
        y = reference(w, bias, scale, norms, p)
        return float((factor * y + 0.05 * y**2).sum())

    graphdef, state = nnx.split(layer)

    def value_of(p: dict[str, jax.Array]) -> jax.Array:
        base = nnx.merge(graphdef, state)
        update = LoraWeights(a=p["a"], b=p["b"], magnitude=p.get("magnitude"))
        array = base.weight[...] if BASES[name] is None else base.weight.array()  # pyright: ignore
        lengths = row_norms(array) if kind == "dora" else None
        return AdaptedLinear(base, update, scale, row_norms=lengths)(p["x"])

    def loss(p: dict[str, jax.Array]) -> jax.Array:
        y = value_of(p)
        return (jnp.asarray(factor, jnp.float32) * y + 0.05 * y**2).sum()

    single = {part: jnp.asarray(value, jnp.float32) for part, value in point.items()}
    exact = {part: np.asarray(value, np.float64) for part, value in single.items()}
    wanted = reference(w, bias, scale, norms, exact)
    np.testing.assert_allclose(jax.jit(value_of)(single), wanted, atol=2e-5 * np.abs(wanted).max(), rtol=0)
    got = jax.jit(jax.grad(loss))(single)
    dense = dense_gradients(w, bias, scale, norms, factor, exact)
    for part, difference in finite_differences(loss64, exact).items():
        size = np.abs(difference).max()
        assert size > 1e-2
        np.testing.assert_allclose(difference, dense[part], atol=1e-6 * size, rtol=0)
        np.testing.assert_allclose(got[part], difference, atol=3e-5 * size, rtol=0, err_msg=part)


def dense_gradients(
    w: np.ndarray,
    bias: np.ndarray,
    scale: float,
    norms: np.ndarray | None,
    factor: np.ndarray,
    p: dict[str, np.ndarray],
) -> dict[str, np.ndarray]:
    """Returns gradients in float64 by the chain rule, with every matrix dense."""
    y = reference(w, bias, scale, norms, p)
    g = factor + 0.1 * y
    v = w + scale * p["b"] @ p["a"]
    gain = np.ones(N) if norms is None else p["magnitude"] / norms
    g_v = gain[:, None] * (g.T @ p["x"])
    gradients = {"x": (g * gain) @ v, "a": scale * p["b"].T @ g_v, "b": scale * g_v @ p["a"].T}
    if norms is not None:
        gradients["magnitude"] = ((p["x"] @ v.T) * g).sum(axis=0) / norms
    return gradients


def test_a_frozen_quantized_base_gets_no_gradient_and_keeps_its_bits():
    """Of all floating-point arrays, only the update and x have a gradient."""
    layer, _ = base_of(FORMATS["int4"], np.random.default_rng(0))
    graphdef, state = nnx.split(layer)
    x = jnp.ones((T, K))
    gradients = jax.grad(lambda s: nnx.merge(graphdef, s)(x).sum(), allow_int=True)(state)
    for path, leaf in jax.tree.leaves_with_path(gradients):
        is_bias = "bias" in jax.tree_util.keystr(path)
        assert (leaf.dtype == jax.dtypes.float0) or bool(np.any(leaf)) == is_bias, path


@pytest.mark.parametrize("name", ["int4", "nf4_nested", "int4_order", "int8_rows", "float8_blocks"])
@pytest.mark.parametrize("panel", [2**22, 2**11])
def test_row_norms_of_quantized_weights(name: str, panel: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("ryzjax.lora.norms._PANEL_ELEMENTS", panel)
    row_norms.clear_cache()  # pyright: ignore
    array = random_qarray(np.random.default_rng(1), FORMATS[name], (32, 160))
    wanted = np.linalg.norm(np.asarray(dequantize(array), np.float64), axis=1)
    np.testing.assert_allclose(row_norms(array), wanted, rtol=1e-6)
    row_norms.clear_cache()  # pyright: ignore


def test_weight_of_a_layer():
    model = abstract_model(CONFIGS["llama"], PLACEMENT, {"layers.0.mlp.down": FORMATS["int8_rows"]})
    weights = {name: jnp.zeros(spec.shape, spec.stored_dtype) for name, spec in model.weights.items()}
    assert isinstance(weight_of(model, weights, "layers.0.mlp.down"), QArray)
    assert weight_of(model, weights, "lm_head") is weights["lm_head.weight"]
