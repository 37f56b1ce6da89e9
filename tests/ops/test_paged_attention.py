"""Paged attention and KV write against hand-worked numbers and a dense numpy reference."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ryzjax.attention_settings import AttentionSettings
from ryzjax.batch import KVCache, TokenBatch
from ryzjax.bits import storage_dtype
from ryzjax.ops.attention.kv_write import write_kv
from ryzjax.ops.attention.paged_attention import paged_attention

# Absolute tolerances. bf16 inputs are exact in f32, and only the output is rounded to 8 bits.
TOLERANCE = {jnp.float32: 2e-6, jnp.bfloat16: 1e-2}


def make_batch(rows: list[tuple[int, int]], *, tokens: int, max_rows: int, page_size: int, pages: int) -> TokenBatch:
    """Returns a batch on scattered pages. Each row is (context before, query length). Decode rows must come first."""
    rng = np.random.default_rng(7)
    free = list(rng.permutation(np.arange(1, max_rows * pages + 1)))
    table = np.zeros((max_rows, pages), np.int32)
    start, length, context = (np.zeros(max_rows, np.int32) for _ in range(3))
    positions, page, offset = (np.zeros(tokens, np.int32) for _ in range(3))
    at = 0
    for r, (before, query) in enumerate(rows):
        total = before + query
        for i in range(-(-total // page_size)):
            table[r, i] = free.pop()
        start[r], length[r], context[r] = at, query, total
        where = np.arange(before, total)
        positions[at : at + query] = where
        page[at : at + query] = table[r, where // page_size]
        offset[at : at + query] = where % page_size
        at += query
    decode = sum(query == 1 for _, query in rows)
    arrays = np.zeros(tokens, np.int32), positions, positions + 1, page, offset, table, start, length, context
    return TokenBatch(*(jnp.asarray(a) for a in arrays), jnp.int32(decode), jnp.int32(len(rows)))


def dense(
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    sinks: np.ndarray | None = None,
) -> np.ndarray:
    """Returns softmax attention of the last len(q) positions of one sequence, for q [Q, N, D] and keys [C, H, D]."""
    group = q.shape[1] // k.shape[1]
    k, v = np.repeat(k, group, 1), np.repeat(v, group, 1)
    scores = np.einsum("qnd,cnd->nqc", q, k) * scale
    if softcap is not None:
        scores = softcap * np.tanh(scores / softcap)
    at = len(k) - len(q) + np.arange(len(q))[:, None]
    mask = (np.arange(len(k)) <= at) & (np.arange(len(k)) > at - (window or len(k)))
    scores = np.where(mask, scores, -np.inf)
    if sinks is not None:  # one additional key, whose value is zero
        scores = np.concatenate([scores, np.broadcast_to(sinks[:, None, None], (*scores.shape[:2], 1))], axis=-1)
        v = np.concatenate([v, np.zeros_like(v[:1])])
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return np.einsum("nqc,cnd->qnd", weights / weights.sum(-1, keepdims=True), v)


def test_two_keys_by_hand():
    # One query with two keys of scores 0 and ln 3 gives weights of 1/4 and 3/4.
    cache = KVCache(jnp.zeros((1, 2, 1, 4, 2)), jnp.zeros((1, 2, 1, 4, 2)))
    cache = KVCache(
        cache.k.at[0, 1, 0, 0].set(jnp.array([5.0, 0.0])), cache.v.at[0, 1, 0, 0].set(jnp.array([4.0, 8.0]))
    )
    batch = make_batch([(1, 1)], tokens=2, max_rows=2, page_size=4, pages=1)
    batch = batch._replace(
        page_table=jnp.array([[1], [0]]), write_page=jnp.array([1, 0]), write_offset=jnp.array([1, 0])
    )
    q = jnp.array([[[0.0, np.log(3.0)]], [[0.0, 0.0]]])
    k = jnp.array([[[0.0, 1.0]], [[9.0, 9.0]]])
    v = jnp.array([[[0.0, 4.0]], [[9.0, 9.0]]])
    cache = write_kv(cache, 0, k, v, batch)
    out = paged_attention(
        q, cache, 0, batch, None, settings=AttentionSettings(scale=1.0, window=None, softcap=None), max_query_len=1
    )
    np.testing.assert_allclose(out[0, 0], [1.0, 5.0], atol=1e-6)


ROWS = {
    "one decode": [(5, 1)],
    "first token": [(0, 1)],
    "decode rows of all lengths": [(n, 1) for n in (0, 1, 7, 8, 9, 63, 300, 511, 2, 3, 100)],
    "one chunk": [(0, 37)],
    "chunk past a tile": [(0, 200)],
    "second chunk": [(130, 150)],
    "mixed": [(40, 1), (0, 1), (299, 1), (10, 60), (0, 131), (256, 5)],
}


SINKS = jnp.linspace(-2, 3, 6, dtype=jnp.float32)
FEATURES = {
    "a window inside a block": {"window": 7},
    "a window of several blocks": {"window": 300},
    "a window longer than everything": {"window": 10_000},
    "a window of one": {"window": 1},
    "softcap": {"softcap": 2.0},
    "sinks": {"sinks": SINKS},
    "all": {"window": 20, "softcap": 3.0, "sinks": SINKS},
}


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["f32", "bf16"])
@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("page_size", [8, 64])
def test_matches_dense(name: str, page_size: int, dtype: jnp.dtype):
    check_against_dense(ROWS[name], page_size, dtype, {})


@pytest.mark.parametrize("feature", FEATURES)
@pytest.mark.parametrize("name", ["decode rows of all lengths", "second chunk", "mixed"])
def test_windows_softcaps_and_sinks_match_dense(name: str, feature: str):
    check_against_dense(ROWS[name], 8, jnp.float32, FEATURES[feature])


def test_a_window_reads_no_page_before_it():
    # Pages outside the window hold NaN. If a key of them were used, the output would be NaN.
    check_against_dense([(500, 1), (450, 40)], 8, jnp.float32, {"window": 16}, lost_before=480 - 40 - 256)


def check_against_dense(
    rows: list[tuple[int, int]], page_size: int, dtype: jnp.dtype, features: dict, lost_before: int = 0
) -> None:
    heads, kv_heads, dim, layers, layer = 6, 2, 16, 3, 1
    queries = sum(q for _, q in rows)
    decodes = all(q == 1 for _, q in rows)
    tokens = queries + 3
    batch = make_batch(rows, tokens=tokens, max_rows=16, page_size=page_size, pages=512 // page_size)
    rng = np.random.default_rng(0)

    def draw(*shape: int) -> np.ndarray:
        return np.array(jnp.asarray(rng.standard_normal(shape), dtype), np.float32)

    sequences = [(draw(b + n, kv_heads, dim), draw(b + n, kv_heads, dim)) for b, n in rows]
    storage = storage_dtype(dtype)
    # All slots that the rows have not written hold NaN, also in their own pages. If one were used, the output would be
    # NaN.
    junk = np.full((layers, 16 * (512 // page_size) + 1, kv_heads, page_size, dim), np.nan, np.float32)
    k_pages, v_pages = junk.copy(), junk.copy()
    table = np.asarray(batch.page_table)
    for r, (before, _) in enumerate(rows):
        for position in range(lost_before, before):
            at = layer, table[r, position // page_size], slice(None), position % page_size
            k_pages[at], v_pages[at] = sequences[r][0][position], sequences[r][1][position]

    def store(pages: np.ndarray) -> jax.Array:
        array = jnp.asarray(pages, dtype)
        return jax.lax.bitcast_convert_type(array, jnp.uint16) if storage == jnp.uint16 else array

    q = draw(tokens, heads, dim)
    k_new, v_new = draw(tokens, kv_heads, dim), draw(tokens, kv_heads, dim)
    at = 0
    for (before, n), (k, v) in zip(rows, sequences, strict=True):
        k_new[at : at + n], v_new[at : at + n] = k[before:], v[before:]
        at += n

    @jax.jit
    def run(q, k, v, cache, batch):
        cache = write_kv(cache, layer, k, v, batch)
        settings = AttentionSettings(scale=dim**-0.5, window=features.get("window"), softcap=features.get("softcap"))
        longest = 1 if decodes else tokens
        return paged_attention(q, cache, layer, batch, features.get("sinks"), settings=settings, max_query_len=longest)

    arrays = (jnp.asarray(a, dtype) for a in (q, k_new, v_new))
    out = np.asarray(run(*arrays, KVCache(store(k_pages), store(v_pages)), batch), np.float32)
    at = 0
    for (_, n), (k, v) in zip(rows, sequences, strict=True):
        np.testing.assert_allclose(
            out[at : at + n], dense(q[at : at + n], k, v, dim**-0.5, **features), atol=TOLERANCE[dtype]
        )
        at += n
    assert np.isfinite(out).all()


def test_temporaries_do_not_grow_with_the_pool_or_the_context():
    def temporaries(pages: int) -> int:
        batch = make_batch([(5, 1)] * 8, tokens=8, max_rows=8, page_size=16, pages=pages)
        cache = KVCache(*(jnp.zeros((2, 8 * pages + 1, 2, 16, 16)) for _ in range(2)))
        q, k = jnp.zeros((8, 4, 16)), jnp.zeros((8, 2, 16))

        def run(q, k, cache, batch):
            cache = write_kv(cache, 1, k, k, batch)
            return paged_attention(
                q,
                cache,
                1,
                batch,
                None,
                settings=AttentionSettings(scale=1.0, window=None, softcap=None),
                max_query_len=1,
            ), cache

        compiled = jax.jit(run, donate_argnums=2).lower(q, k, cache, batch).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    table_bytes = 8 * (1024 - 64) * 4  # only the page table is copied
    assert temporaries(1024) <= temporaries(64) + 2 * table_bytes
