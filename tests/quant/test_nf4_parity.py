"""NF4 equals the quantizer of bitsandbytes on a CPU."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from ryzjax.qarray import dequantize, unpack_nibbles
from ryzjax.quant.nf4 import NF4_VALUES, dynamic_code, nf4_format
from ryzjax.quant.quantize_matrix import quantize_matrix

pytestmark = pytest.mark.parity


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("block", [32, 64, 128])
def test_codes_and_nested_scales(block: int, dtype: str):
    torch = pytest.importorskip("torch")
    functional = pytest.importorskip("bitsandbytes.functional")
    w = np.random.default_rng(block).standard_normal((300, 1024)).astype(np.float32) * 0.02
    w[7, :256] = 0
    weight = torch.from_numpy(w).to(getattr(torch, dtype))
    packed, state = functional.quantize_4bit(weight, blocksize=block, compress_statistics=True, quant_type="nf4")

    ours = quantize_matrix("w", jnp.asarray(w, dtype), nf4_format(block))
    assert ours.scale_offset is not None and ours.scale_blocks is not None
    bytes_ = packed.numpy()[:, 0]
    codes = np.stack([bytes_ >> 4, bytes_ & 15], axis=1).reshape(w.shape)
    np.testing.assert_array_equal(unpack_nibbles(np.asarray(ours.values), block), codes)
    np.testing.assert_array_equal(NF4_VALUES, state.code.numpy())

    # Scales may differ by one code: bitsandbytes computes its code in float32 and searches it with a coarser table.
    np.testing.assert_allclose(dynamic_code(), state.state2.code.numpy(), rtol=0, atol=1e-7)
    np.testing.assert_allclose(ours.scale_offset, state.offset.numpy(), rtol=1e-6)
    np.testing.assert_allclose(ours.scale_blocks, state.state2.absmax.numpy(), rtol=1e-6)
    theirs, nested = state.absmax.numpy().astype(int), np.asarray(ours.scales).reshape(-1).astype(int)
    differs = theirs != nested
    assert np.abs(theirs - nested).max() <= 1 and differs.mean() < 0.01
    values = functional.dequantize_4bit(packed, state).float().numpy()
    same = ~np.repeat(differs.reshape(300, -1), block, axis=1)
    close = 1e-5 if dtype == "float32" else 2**-8
    np.testing.assert_allclose(np.asarray(dequantize(ours))[same], values[same], rtol=close, atol=1e-7)
