"""The native quantizer: every instruction set gives the same bytes, and XLA's optimizer changes no reference."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from ryzjax.native.library import ISAS, native_refusal
from ryzjax.quant.quantize_matrix import quantize_matrix
from ryzjax.quant.quantized_rows import QuantizedRows
from ryzjax.quant.scheme import Scheme
from tests.native.quantize_digest import digest

pytestmark = pytest.mark.optimized


@pytest.mark.skipif(native_refusal() is not None, reason=f"no native kernels: {native_refusal()}")
@pytest.mark.parametrize("name", ISAS)
def test_every_instruction_set_gives_the_same_bytes(name: str):
    script = str(Path(__file__).parent / "quantize_digest.py")
    environment = {**os.environ, "RYZJAX_NATIVE_ISA": name}
    done = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True, check=True)
    if f"RYZJAX_NATIVE_ISA={name} is not on this machine" in done.stdout:
        pytest.skip(f"no {name} on this machine")
    assert done.stdout.split() == [name, digest()]


@pytest.mark.parametrize("bits", [4, 8])
def test_xla_chooses_q_for_the_scales_that_are_stored(monkeypatch: pytest.MonkeyPatch, bits: int):
    """XLA's optimizer removes a cast to bfloat16 and back, and would then choose q for scales that are not stored."""
    monkeypatch.setattr(QuantizedRows, "refusal", staticmethod(lambda dtype, format: "a comparison"))
    w = np.random.default_rng(0).standard_normal((64, 512)).astype(np.float32)
    scheme = Scheme(bits=bits, group=64)
    found = quantize_matrix("w", jnp.asarray(w), scheme.format(512, "bfloat16"))
    scales = np.repeat(np.asarray(found.scales).view(jnp.bfloat16).astype(np.float32), 64, axis=1)
    q = np.clip(np.round(w / scales), scheme.low, scheme.high).astype(np.int32)
    if bits == 4:
        pairs = (q + 8).reshape(64, -1, 2, 32)
        q = (pairs[:, :, 0] | pairs[:, :, 1] << 4).reshape(64, -1)
    np.testing.assert_array_equal(np.asarray(found.values), q)
