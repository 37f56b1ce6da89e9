"""Steps lowered for a GPU from a machine without one: the branches a CPU never takes at least trace and lower."""

from __future__ import annotations

import jax
import pytest

from ryzjax.models.registry import abstract_model
from ryzjax.sharding import Layout, Placement
from tests.models.configs import CONFIGS
from tests.models.paged import empty_cache, one_row


@pytest.mark.parametrize("tokens", [1, 24])
@pytest.mark.parametrize("family", ["mixtral", "gpt_oss", "gemma2", "phi3"])
def test_lowers_for_cuda(family: str, tokens: int):
    model = abstract_model(CONFIGS[family], Placement(Layout.load("single"), jax.devices()[:1]))
    leaves = tuple(jax.ShapeDtypeStruct(spec.shape, spec.stored_dtype) for spec in model.weights.values())
    batch = one_row(list(range(tokens)), 0, pages=4, rope_length=tokens)

    def step(leaves, cache, batch):
        built = model.merge(leaves)
        hidden, cache = built.forward(batch, cache, max_query_len=tokens)
        return built.logits(hidden), cache

    lowered = jax.jit(step).trace(leaves, empty_cache(model, 4), batch).lower(lowering_platforms=("cuda",))
    text = lowered.as_text()
    assert "stablehlo.dot_general" in text
    if family in ("mixtral", "gpt_oss"):
        assert "ragged_dot" in text  # and not the loop over tiles
