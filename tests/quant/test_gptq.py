"""GPTQ against the paper's algorithm in float64 numpy, and against rounding to nearest."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from ryzjax.quant.awq import output_error, scaled_hessian, search_scales
from ryzjax.quant.encode_matrix import encode_matrix, round_to_nearest
from ryzjax.quant.gptq import factorize, gptq
from ryzjax.quant.grid import Grid, round_to_grid, search_grid
from ryzjax.quant.scheme import Scheme


def problem(n: int, k: int, group: int, *, dead: int = 0, seed: int = 0) -> tuple[np.ndarray, np.ndarray, Grid]:
    """Returns (weights, mean x x^T of correlated inputs, grid)."""
    rng = np.random.default_rng(seed)
    mixing = rng.standard_normal((k, k)) * np.arange(1, k + 1)[:, None] ** -0.5
    x = rng.standard_normal((4 * k, k)) @ mixing
    x[:, :dead] = 0
    w = rng.standard_normal((n, k)).astype(np.float32)
    groups = jnp.asarray(w.reshape(n, -1, group))
    grid = search_grid(groups, jnp.ones(groups.shape[1:]), low=-8, high=7, symmetric=True, scale_dtype="float32")
    return w, (x.T @ x / len(x)).astype(np.float32), grid


def reference(w: np.ndarray, hessian: np.ndarray, grid: Grid, group: int) -> np.ndarray:
    """Quantizes features sequentially, the most important first, and updates the inverse Hessian by elimination."""
    w, hessian = w.astype(np.float64), hessian.astype(np.float64)
    scale = np.asarray(grid.scale, np.float64)
    diagonal = np.diagonal(hessian).copy()
    dead = diagonal <= 0
    hessian[dead, dead] = np.where(dead, diagonal[~dead].sum() / len(diagonal), 0)[dead]
    w[:, dead] = 0
    damping = 0.01 * np.where(dead, 0, diagonal).mean()
    inverse = np.linalg.inv(hessian + damping * np.eye(len(hessian)))
    q = np.zeros_like(w)
    for feature in np.argsort(-diagonal, kind="stable"):
        here = scale[:, feature // group]
        q[:, feature] = np.clip(np.round(w[:, feature] / here), -8, 7)
        error = (w[:, feature] - q[:, feature] * here) / inverse[feature, feature]
        w -= error[:, None] * inverse[feature]
        inverse -= np.outer(inverse[:, feature], inverse[feature]) / inverse[feature, feature]
    return q


@pytest.mark.parametrize(
    ("n", "k", "group", "dead"), [(8, 96, 32, 0), (16, 128, 64, 0), (5, 320, 160, 0), (8, 96, 32, 7)]
)
def test_it_equals_the_paper(n: int, k: int, group: int, dead: int):
    w, hessian, grid = problem(n, k, group, dead=dead)
    factor = factorize(jnp.asarray(hessian))
    assert float(factor.damping) == pytest.approx(0.01) and int(factor.dead.sum()) == dead
    q = np.asarray(gptq(jnp.asarray(w), factor, grid, low=-8, high=7))
    wanted = reference(w, hessian, grid, group)
    # float32 may round a weight that is halfway between two values to the other one. Later features compensate for it.
    assert (q == wanted).mean() > 0.98
    assert np.abs(q - wanted).max() <= 1


@pytest.mark.parametrize("k", [512, 640])
def test_correlated_inputs_have_at_most_half_the_error_of_rounding_to_nearest(k: int):
    w, hessian, grid = problem(256, k, 128)
    plain = search_grid(
        jnp.asarray(w.reshape(256, -1, 128)),
        jnp.ones((k // 128, 128)),
        low=-8,
        high=7,
        symmetric=True,
        scale_dtype="float32",
        search=False,
    )
    q = gptq(jnp.asarray(w), factorize(jnp.asarray(hessian)), grid, low=-8, high=7)
    values = (q.reshape(256, -1, 128) * grid.scale[..., None]).reshape(w.shape)
    nearest = round_to_grid(jnp.asarray(w.reshape(256, -1, 128)), plain, -8, 7).reshape(w.shape)
    ours, theirs = (float(output_error(jnp.asarray(w), v, jnp.asarray(hessian))) for v in (values, nearest))
    assert ours**0.5 <= 0.5 * theirs**0.5


def test_independent_inputs_are_rounded_to_nearest():
    """Without correlation no other feature can compensate for an error."""
    w, _, grid = problem(16, 128, 32)
    q = gptq(jnp.asarray(w), factorize(jnp.eye(128)), grid, low=-8, high=7)
    nearest = np.clip(np.round(w.reshape(16, 4, 32) / np.asarray(grid.scale)[..., None]), -8, 7).reshape(16, 128)
    np.testing.assert_array_equal(q, nearest)


def test_a_hessian_that_is_not_positive_definite_is_damped_or_given_up():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((4, 64)).astype(np.float32)
    singular = factorize(jnp.asarray(x.T @ x / 4))
    assert float(singular.damping) in (pytest.approx(0.01), pytest.approx(0.03))
    negative = np.eye(64, dtype=np.float32)
    negative[0, 1] = negative[1, 0] = 1.1
    assert float(factorize(jnp.asarray(negative)).damping) == pytest.approx(0.3)
    negative[0, 1] = negative[1, 0] = 5.0
    assert np.isnan(float(factorize(jnp.asarray(negative)).damping))


def test_output_error_is_that_of_the_outputs():
    rng = np.random.default_rng(0)
    x, w, rounded_w = (rng.standard_normal(s).astype(np.float32) for s in ((64, 16), (8, 16), (8, 16)))
    outputs = ((x @ (rounded_w - w).T) ** 2).sum() / len(x)
    hessian = jnp.asarray(x.T @ x / len(x))
    assert float(output_error(jnp.asarray(w), jnp.asarray(rounded_w), hessian)) == pytest.approx(outputs, rel=1e-4)


def test_awq_scales_up_important_features():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((512, 128)).astype(np.float32)
    x[:, 5] *= 30
    x[:, 77] *= 20
    w = jnp.asarray(rng.standard_normal((64, 128)), jnp.float32)
    hessian = jnp.asarray(x.T @ x / len(x))
    scheme = Scheme(bits=4, group=32)

    def round_weight(value: jnp.ndarray) -> jnp.ndarray:
        return round_to_nearest(value, scheme, jnp.ones(128), "float32")

    found = search_scales([w], hessian, round_weight)
    assert 0 < found.strength <= 1 and found.error < 0.6 * found.plain_error
    scales = np.asarray(found.scales)
    assert np.argmax(scales) == 5 and np.argsort(scales)[-2] == 77
    again = float(output_error(w, round_weight(w * found.scales) / found.scales, hessian))
    assert again == pytest.approx(found.error)
    np.testing.assert_allclose(
        scaled_hessian(hessian, found.scales), (x / scales).T @ (x / scales) / len(x), rtol=1e-3, atol=1e-3
    )


@pytest.mark.parametrize(
    ("scheme", "method"),
    [
        (Scheme(bits=4, group=32), "rtn"),
        (Scheme(bits=4, group=32, symmetric=False), "rtn"),
        (Scheme(bits=4, group=32, symmetric=False), "hqq"),
        (Scheme(bits=4, group=None), "rtn"),
        (Scheme(bits=4, group=32), "gptq"),
        (Scheme(bits=4, group=32, symmetric=False), "gptq"),
        (Scheme(bits=8, group=32), "rtn"),
        (Scheme(bits=8, group=None, activations="int8"), "rtn"),
        (Scheme(bits=8, group=None), "gptq"),
    ],
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_encoded_matrices_are_near_the_original_in_their_format(scheme: Scheme, method: str, dtype: str):
    w, hessian, _ = problem(48, 96, 32)
    factor = factorize(jnp.asarray(hessian)) if method == "gptq" else None
    encoded = encode_matrix(jnp.asarray(w), scheme, method, model_dtype=dtype, factor=factor)  # type: ignore[arg-type]
    from ryzjax.qarray import dequantize

    values = encoded.dequantized()
    np.testing.assert_array_equal(dequantize(encoded.qarray()), values)
    limit = {4: 0.2, 8: 0.012}[scheme.bits] * (2 if method == "gptq" else 1)
    assert np.sqrt(((values - w) ** 2).mean() / (w**2).mean()) < limit
    assert encoded.format.has_zeros == (not scheme.symmetric)
    assert encoded.scales.dtype.name == ("bfloat16" if dtype == "bfloat16" else "float16")


def test_scales_that_float16_cannot_hold_are_float32():
    w = jnp.asarray(np.random.default_rng(0).standard_normal((8, 64)) * 1e-5, jnp.float32)
    assert encode_matrix(w, Scheme(bits=4, group=32), "rtn", model_dtype="float32").scales.dtype == np.float32
