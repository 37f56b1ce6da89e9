"""The activations' real shardings inside the compiled forward, as XLA reports them."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import pytest

from ryzjax.batch import KVCache, TokenBatch
from ryzjax.loading.dummy import dummy_weights
from ryzjax.models.registry import abstract_model
from ryzjax.sharding import Layout, Placement
from tests.serving.test_memory import CONFIG


@pytest.mark.parametrize(("layout", "tokens_axis"), [("tp", None), ("tp_dp", "data"), ("fsdp_tp", "fsdp")])
def test_activations_are_split_as_the_layout_says(
    layout: str, tokens_axis: str | None, monkeypatch: pytest.MonkeyPatch
):
    placement = Placement(Layout.load(layout))
    model = abstract_model(CONFIG, placement)
    seen: dict[tuple[str | None, ...], set[jax.sharding.Sharding]] = {}
    ranks: dict[tuple[str | None, ...], int] = {}
    constrain = Placement.constrain

    def watched(self: Placement, x: jax.Array, *axes: str | None, units: Sequence[int] | None = None) -> jax.Array:
        out = constrain(self, x, *axes, units=units)
        ranks[axes] = x.ndim
        jax.debug.inspect_array_sharding(out, callback=lambda s: seen.setdefault(axes, set()).add(s))
        return out

    monkeypatch.setattr(Placement, "constrain", watched)
    shape = (CONFIG.num_layers, 3, CONFIG.num_kv_heads, 8, CONFIG.head_dim)
    pages = placement.sharding((None, None, "kv_heads", None, None), shape)
    cache = KVCache(*(jax.device_put(jnp.zeros(shape, jnp.uint16), pages) for _ in range(2)))
    positions = jnp.arange(8, dtype=jnp.int32)
    one = jnp.ones(1, jnp.int32)
    batch = TokenBatch(
        token_ids=positions,
        positions=positions,
        rope_lengths=positions + 1,
        write_page=jnp.ones(8, jnp.int32),
        write_offset=positions,
        page_table=one[None],
        query_start=0 * one,
        query_len=8 * one,
        context_len=8 * one,
        num_decode_rows=jnp.int32(0),
        num_rows=jnp.int32(1),
    )
    leaves = tuple(dummy_weights(model.weights, 0).values())

    def forward(leaves: tuple[jax.Array, ...], cache: KVCache, batch: TokenBatch) -> tuple[jax.Array, KVCache]:
        return model.merge(leaves).forward(batch, cache, max_query_len=8)

    jax.jit(forward).lower(leaves, cache, batch).compile()
    wanted = {
        ("tokens", None): placement.spec(("tokens", None), (8, 1)),
        ("tokens", "heads", None): placement.spec(("tokens", "heads", None), (8, CONFIG.num_heads, 1)),
        ("tokens", "ffn"): placement.spec(("tokens", "ffn"), (8, CONFIG.intermediate_size)),
    }
    assert set(wanted) <= set(seen)
    for axes, spec in wanted.items():
        expected = jax.sharding.NamedSharding(placement.mesh, spec)
        for sharding in seen[axes]:
            assert sharding.is_equivalent_to(expected, ranks[axes]), (axes, sharding)
