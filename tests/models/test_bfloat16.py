"""Every kind of layer in bfloat16 stays near itself in float32 with the same rounded weights; experts as bits too."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ryzjax.bits import to_bits
from ryzjax.loading.dummy import dummy_weights
from ryzjax.models.registry import abstract_model
from ryzjax.sharding import Layout, Placement
from tests.models.configs import CONFIGS
from tests.models.paged import sequence_logits

TOKENS = [(7 * i) % 64 for i in range(32)]
# Rounding to 8 bits at each of a few dozen places: a percent or two of the logits' size. A wrong bit pattern, or an
# operation left out in bfloat16, is off by its whole size.
TOLERANCE = 0.06


@pytest.mark.parametrize("family", ["llama", "gemma2", "phi3", "olmo3", "mixtral", "gpt_oss"])
def test_bfloat16_is_near_float32(family: str):
    exact = CONFIGS[family]
    rounded = dataclasses.replace(exact, dtype="bfloat16")
    one = Placement(Layout.load("single"), jax.devices()[:1])
    models = {config.dtype: abstract_model(config, one) for config in (exact, rounded)}
    drawn = dummy_weights(models["float32"].weights, 0)
    values = {name: (a * (1 if "norm" in name else 8)).astype(jnp.bfloat16) for name, a in drawn.items()}
    logits = {}
    for dtype, model in models.items():
        leaves = tuple(
            to_bits(values[name].astype(spec.dtype), spec.stored_dtype) for name, spec in model.weights.items()
        )
        assert [leaf.dtype for leaf in leaves] == [spec.stored_dtype for spec in model.weights.values()]
        logits[dtype] = sequence_logits(model, leaves, TOKENS, prompt_len=32, chunk=32)
    # The median over tokens: where two experts are all but tied, rounding may choose the other one.
    errors = np.sqrt(np.mean((logits["bfloat16"] - logits["float32"]) ** 2, axis=1))
    assert 0 < np.median(errors) < TOLERANCE * logits["float32"].std()
