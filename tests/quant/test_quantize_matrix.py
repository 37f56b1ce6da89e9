"""quantize_matrix: one matrix quantized to nearest, panel by panel."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ryzjax.errors import ConfigError
from ryzjax.ops.embedding import embed_quantized
from ryzjax.qarray import QFormat, dequantize
from ryzjax.quant.quantize_matrix import quantize_matrix


@pytest.mark.parametrize(
    "format", [QFormat(kind="int4", group=64, pack=64, scale_dtype="bfloat16"), QFormat(kind="int8")]
)
def test_a_matrix_of_several_panels(format: QFormat):
    rng = np.random.default_rng(0)
    w = jnp.asarray(rng.standard_normal((2100, 1024)), jnp.bfloat16)  # 2.1 panels
    found = np.asarray(dequantize(quantize_matrix("w", w, format)))
    groups = np.asarray(w, np.float32).reshape(2100, -1, format.group or 1024)
    step = np.abs(groups).max(-1, keepdims=True) / (7 if format.pack else 127)
    error = np.abs(found.reshape(groups.shape) - groups)
    # int8 is within half a step of the whole range. int4 may clip for a smaller squared error.
    if not format.pack:
        assert (error <= 0.51 * step).all()
    plain = np.clip(np.round(groups / step), -8, 7) * step - groups
    assert (error**2).sum() <= (plain**2).sum() * 1.001


def test_weights_that_are_not_finite_are_refused():
    with pytest.raises(ConfigError, match=r"layer\.weight: 1 weights are NaN"):
        quantize_matrix("layer.weight", jnp.ones((4, 64)).at[0, 0].set(jnp.nan), QFormat(kind="int8"))


def test_rows_of_a_quantized_table():
    table = quantize_matrix("embed", jax.random.normal(jax.random.key(0), (50, 64)), QFormat(kind="int8", group=32))
    ids = jnp.array([3, 49, 0, 99])
    whole = dequantize(table)
    np.testing.assert_array_equal(embed_quantized(ids, table, jnp.float32), whole[jnp.array([3, 49, 0, 49])])
