"""The native quantizer against XLA's: equal bytes, or int4 scales of equal error; the same refusals."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from ryzjax.errors import ConfigError
from ryzjax.native.library import native_refusal
from ryzjax.native.quantize import native_quantize, native_quantize_refusal
from ryzjax.qarray import QArray, QFormat, dequantize
from ryzjax.quant.quantize_matrix import quantize_matrix
from ryzjax.quant.quantized_rows import QuantizedRows
from ryzjax.quant.scheme import Scheme
from tests.quantize_cases import FORMATS, SIZES, leaves_of, random_matrix

pytestmark = pytest.mark.skipif(native_refusal() is not None, reason=f"no native kernels: {native_refusal()}")


def by_xla(monkeypatch: pytest.MonkeyPatch, w: np.ndarray, format: QFormat) -> QArray:
    with monkeypatch.context() as patch:
        patch.setattr(QuantizedRows, "refusal", staticmethod(lambda dtype, format: "a comparison"))
        return quantize_matrix("w", jnp.asarray(w), format)


def element_errors(array: QArray, w: np.ndarray) -> np.ndarray:
    """The distance of each weight from its quantized value, float64 [N, G, g]."""
    error = np.abs(np.asarray(dequantize(array), np.float64) - w.astype(np.float64))
    return error.reshape(w.shape[0], -1, array.format.group or w.shape[1])


def group_errors(array: QArray, w: np.ndarray) -> np.ndarray:
    """The squared error of each group, float64 [N, G]."""
    return (element_errors(array, w) ** 2).sum(axis=-1)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("name", FORMATS)
def test_the_kernel_gives_what_xla_gives(monkeypatch: pytest.MonkeyPatch, name: str, dtype: str):
    shape, format = FORMATS[name]
    w = random_matrix(shape, dtype)
    ours, reference = quantize_matrix("w", jnp.asarray(w), format), by_xla(monkeypatch, w, format)
    assert ours.format == reference.format == format
    found, expected = leaves_of(ours), leaves_of(reference)
    assert found.keys() == expected.keys()
    for leaf, array in found.items():
        assert array.dtype == expected[leaf].dtype and array.shape == expected[leaf].shape
    same = found["scales"] == expected["scales"]
    if format.kind != "int4":
        assert same.all()
    if format.kind == "float4":
        np.testing.assert_array_equal(found["values"], expected["values"])
    # Sums in another order may choose between int4 scales of nearly the same error.
    assert (~same).sum() <= max(2, 0.002 * same.size)
    assert (group_errors(ours, w) <= group_errors(reference, w) * (1 + 1e-5)).all()
    # XLA multiplies by the reciprocal of a scale, and may miss the even one of two equally near levels.
    equal = (found["values"] == expected["values"]).reshape(*same.shape, -1)
    assert equal[same].mean() > 0.998
    nearest, other = (element_errors(array, w)[same] for array in (ours, reference))
    np.testing.assert_allclose(nearest, other, rtol=0, atol=1e-6 * np.abs(w.astype(np.float64)).max())


@pytest.mark.parametrize("size", ["tiny", "huge"])
@pytest.mark.parametrize("name", FORMATS)
def test_weights_at_the_ends_of_the_range(monkeypatch: pytest.MonkeyPatch, name: str, size: str):
    """Squares of these weights are no float32. XLA then keeps the whole range; the kernel still searches."""
    shape, format = FORMATS[name]
    w = random_matrix(shape, "bfloat16", SIZES[size])
    ours, reference = quantize_matrix("w", jnp.asarray(w), format), by_xla(monkeypatch, w, format)
    if format.kind == "int4":
        assert np.isfinite(np.asarray(dequantize(ours))).all()
        assert (group_errors(ours, w) <= group_errors(reference, w) * (1 + 1e-5)).all()
    else:
        for leaf, array in leaves_of(ours).items():
            np.testing.assert_array_equal(array, leaves_of(reference)[leaf])


def test_the_search_finds_the_best_of_all_candidates():
    """Compares with a loop over the candidates in float64, for groups that need every part of the search."""
    rng = np.random.default_rng(5)
    w = np.concatenate([rng.standard_t(3, (60, 128)), rng.uniform(-1, 1, (30, 128)), rng.laplace(size=(30, 128)) ** 3])
    w = w.astype(np.float32)
    format = Scheme(bits=4, group=64).format(128, "bfloat16")
    found = group_errors(quantize_matrix("w", jnp.asarray(w), format), w)
    groups = w.reshape(len(w), 2, 64)
    peak = np.abs(groups).max(axis=-1)
    best = np.full(peak.shape, np.inf)
    for shrink in np.append(1, np.linspace(1.1, 0.5, 40)).astype(np.float32):
        scale = (peak * shrink * np.float32(2 / 15)).astype(jnp.bfloat16).astype(np.float64)[..., None]
        for signed in (scale, -scale):
            rounded = np.clip(np.round(groups / signed), -8, 7) * signed
            best = np.minimum(best, ((rounded - groups) ** 2).sum(axis=-1))
    np.testing.assert_allclose(found, best, rtol=1e-5)


@pytest.mark.parametrize("name", ["int4, groups of 64", "int8, one scale a row", "nf4, blocks of 64"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_weights_that_are_not_finite_are_counted(monkeypatch: pytest.MonkeyPatch, name: str, dtype: str):
    shape, format = FORMATS[name]
    w = random_matrix(shape, dtype)
    w[0, 0], w[5, 70], w[5, -1], w[-1, 3] = np.nan, np.inf, -np.inf, np.nan
    with pytest.raises(ConfigError, match=r"^w: 4 weights are NaN or infinite; the checkpoint is damaged"):
        quantize_matrix("w", jnp.asarray(w), format)
    with pytest.raises(ConfigError, match=r"^w: 4 weights are NaN or infinite; the checkpoint is damaged"):
        by_xla(monkeypatch, w, format)


def test_panels_cover_the_rows():
    for shape in ((1, 7), (5000, 1000), (3, 2**21)):
        panels = QuantizedRows.panels(shape)
        assert [row for panel in panels for row in range(shape[0])[panel]] == list(range(shape[0]))


def test_refusals_name_the_reason():
    int4 = FORMATS["int4, groups of 32"][1]
    assert native_quantize_refusal(jnp.dtype(jnp.bfloat16), int4) is None
    assert "float64" in str(native_quantize_refusal(np.dtype(np.float64), int4))
    asymmetric = QFormat(kind="int4", group=32, pack=32, scale_dtype="bfloat16", has_zeros=True)
    assert "zero points" in str(native_quantize_refusal(jnp.dtype(jnp.float32), asymmetric))
    assert "float16 scales" in str(
        native_quantize_refusal(jnp.dtype(jnp.float32), QFormat(kind="int8", scale_dtype="float16"))
    )


def test_arrays_that_do_not_fit_are_refused():
    format = Scheme(bits=4, group=32).format(64, "bfloat16")
    w, table = np.zeros((4, 64), np.float32), np.ones(1, np.float32)
    values, scales = np.zeros((4, 32), np.uint8), np.zeros((4, 2), np.uint16)
    assert native_quantize(w, format, table=table, values=values, scales=scales) == 0
    for wrong in (
        {"w": w[:, :48]},
        {"w": w[:3]},
        {"w": np.zeros((4, 128), np.float32)[:, ::2]},
        {"table": np.ones(65, np.float32)},
        {"table": np.ones(1)},
        {"values": values.view(np.int8)},
        {"scales": scales[:, :1]},
    ):
        arrays = {"w": w, "table": table, "values": values, "scales": scales} | wrong
        with pytest.raises(ValueError, match="native_quantize"):
            native_quantize(arrays.pop("w"), format, **arrays)
