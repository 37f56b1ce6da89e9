"""Paged attention over int8 and fp8 caches, against float64 attention over the values in the cache."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from ryzjax.attention_settings import AttentionSettings
from ryzjax.batch import KVCache, TokenBatch
from ryzjax.ops.attention.kv_write import write_kv
from ryzjax.ops.attention.paged_attention import paged_attention
from ryzjax.sharding import Layout, Placement
from tests.ops.test_paged_attention import FEATURES, ROWS, dense, make_batch

LAYERS, LAYER, HEADS, KV_HEADS, DIM = 3, 1, 6, 2, 16
FORMATS = ("int8", "fp8")
# The reference uses the same values in float64, so only the float32 sums over up to 512 keys differ.
TOLERANCE = 5e-6


def junk_cache(kind: str, pages: int, page_size: int) -> KVCache:
    """Returns a cache of what earlier sequences may have left: numbers of any size, NaN scales, float8 codes of NaN."""
    tokens = (LAYERS, pages, KV_HEADS, page_size)
    rng = np.random.default_rng(1)
    if kind == "int8":
        values = jnp.asarray(rng.integers(-128, 128, (*tokens, DIM)), jnp.int8)
        # Each is a separate array, because an array cannot be donated twice.
        return KVCache(values, values.copy(), *(jnp.full(tokens, 0x7FC0, jnp.uint16) for _ in range(2)))
    bits = (jnp.full((*tokens, DIM), 0x7F, jnp.uint8) for _ in range(2))
    scales = (jnp.asarray(rng.uniform(0.005, 0.02, (LAYERS, KV_HEADS)), jnp.float32) for _ in range(2))
    return KVCache(*bits, *scales)


def values_of(cache: KVCache) -> tuple[np.ndarray, np.ndarray]:
    """Returns the keys and values of one layer in float64, each [pages, H, page_size, D]."""
    out = []
    for stored, scale in ((cache.k, cache.k_scale), (cache.v, cache.v_scale)):
        stored, scale = np.asarray(stored)[LAYER], np.asarray(scale)[LAYER]
        if stored.dtype == np.int8:
            out.append(stored.astype(np.float64) * scale.view(ml_dtypes.bfloat16).astype(np.float64)[..., None])
        else:
            out.append(stored.view(ml_dtypes.float8_e4m3fn).astype(np.float64) * scale[:, None, None])
    return out[0], out[1]


def history_batch(batch: TokenBatch, rows: list[tuple[int, int]], page_size: int) -> TokenBatch:
    """Returns a step that writes the tokens that each row has in the cache before this step."""
    where = [(r, position) for r, (before, _) in enumerate(rows) for position in range(before)]
    table = np.asarray(batch.page_table)
    page = [table[r, position // page_size] for r, position in where]
    offset = [position % page_size for _, position in where]
    return batch._replace(write_page=jnp.asarray(page, jnp.int32), write_offset=jnp.asarray(offset, jnp.int32))


def check(kind: str, rows: list[tuple[int, int]], page_size: int, features: dict, placement: Placement | None = None):
    tokens = sum(n for _, n in rows) + 3
    batch = make_batch(rows, tokens=tokens, max_rows=16, page_size=page_size, pages=512 // page_size)
    rng = np.random.default_rng(0)

    def draw(*shape: int) -> jax.Array:
        # Heads differ much in size, like those of real keys.
        return jnp.asarray(rng.standard_normal(shape) * np.geomspace(0.3, 2, shape[1])[:, None], jnp.float32)

    cache = junk_cache(kind, 16 * (512 // page_size) + 1, page_size)
    before = history_batch(batch, rows, page_size)
    count = before.write_page.shape[0]
    if count:
        cache = write_kv(cache, LAYER, draw(count, KV_HEADS, DIM), draw(count, KV_HEADS, DIM), before)
    q, k, v = draw(tokens, HEADS, DIM), draw(tokens, KV_HEADS, DIM), draw(tokens, KV_HEADS, DIM)
    longest = 1 if all(n == 1 for _, n in rows) else tokens
    sinks = features.get("sinks")

    def step(q, k, v, sinks, cache, batch):
        cache = write_kv(cache, LAYER, k, v, batch)
        settings = AttentionSettings(scale=DIM**-0.5, window=features.get("window"), softcap=features.get("softcap"))
        return paged_attention(q, cache, LAYER, batch, sinks, settings=settings, max_query_len=longest), cache

    if placement is not None:
        specs = placement.attention_specs(HEADS, KV_HEADS, cache)
        inputs = (specs.heads, specs.kv_heads, specs.kv_heads, specs.per_head, specs.cache, specs.replicated)
        step = placement.per_shard(step, in_specs=inputs, out_specs=(specs.heads, specs.cache))
        put = partial(jax.tree.map, lambda a, s: jax.device_put(a, jax.sharding.NamedSharding(placement.mesh, s)))
        cache = put(cache, specs.cache)
    out, cache = jax.jit(step, donate_argnums=4)(q, k, v, sinks, cache, batch)
    if placement is not None:
        assert cache.k.addressable_shards[0].data.shape[2] == 1  # each device has one of the two KV heads
        assert cache.k_scale is not None
        assert 2 * cache.k_scale.addressable_shards[0].data.shape[1 if kind == "fp8" else 2] == KV_HEADS
    assert np.isfinite(out).all()
    all_k, all_v = values_of(cache)
    table, at = np.asarray(batch.page_table), 0
    for r, (done, n) in enumerate(rows):
        slots = table[r, np.arange(done + n) // page_size], slice(None), np.arange(done + n) % page_size
        expected = dense(np.asarray(q[at : at + n], np.float64), all_k[slots], all_v[slots], DIM**-0.5, **features)
        np.testing.assert_allclose(out[at : at + n], expected, atol=TOLERANCE)
        at += n


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("name", ROWS)
def test_matches_float64_over_the_dequantized_values(name: str, kind: str):
    check(kind, ROWS[name], 8, {})


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("feature", FEATURES)
def test_windows_softcaps_and_sinks(feature: str, kind: str):
    check(kind, ROWS["mixed"], 64, FEATURES[feature])


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("layout", ["tp", "tp_dp"])
def test_on_eight_devices(layout: str, kind: str):
    check(kind, ROWS["mixed"], 64, FEATURES["all"], Placement(Layout.load(layout)))


@pytest.mark.parametrize("kind", FORMATS)
def test_temporaries_hold_no_dequantized_cache(kind: str):
    def temporaries(pages: int) -> int:
        batch = make_batch([(5, 1)] * 8, tokens=8, max_rows=8, page_size=16, pages=pages)
        cache = junk_cache(kind, 8 * pages + 1, 16)
        q, k = jnp.zeros((8, HEADS, DIM)), jnp.zeros((8, KV_HEADS, DIM))

        def run(q, k, cache, batch):
            cache = write_kv(cache, LAYER, k, k, batch)
            return paged_attention(
                q,
                cache,
                LAYER,
                batch,
                None,
                settings=AttentionSettings(scale=1.0, window=None, softcap=None),
                max_query_len=1,
            ), cache

        analysis = jax.jit(run, donate_argnums=2).lower(q, k, cache, batch).compile().memory_analysis()
        # The cache is updated in place, scales included.
        assert analysis.alias_size_in_bytes == sum(part.nbytes for part in cache)
        return analysis.temp_size_in_bytes

    table_bytes = 8 * (1024 - 64) * 4  # only the page table is copied
    assert temporaries(1024) <= temporaries(64) + 2 * table_bytes
