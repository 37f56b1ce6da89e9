"""Every native kernel against its reference, for the instruction set of this process (RYZJAX_NATIVE_ISA).

    python tests/native/check_kernels.py ISA

A process of its own, because a process loads one instruction set. Prints how many cases it ran.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import jax
import jax.numpy as jnp
import numpy as np

from ryzjax.attention_settings import AttentionSettings
from ryzjax.batch import KVCache
from ryzjax.native.library import isa
from ryzjax.native.linear import native_project, native_quantized_refusal
from ryzjax.native.norm import native_rms_norm
from ryzjax.ops.attention.attend import ATTEND
from ryzjax.ops.attention.segment_attention import segment_attention, segment_attention_reference
from ryzjax.ops.linear.integer import project_integer
from ryzjax.ops.norm import RMS_NORM
from ryzjax.qarray import QFormat, dequantize
from tests.ops.test_paged_attention import make_batch
from tests.qarrays import FORMATS, random_qarray

# (N, K) and every M: all sizes of the register tiles and past them, sizes that no tile divides.
SHAPES = (((37, 128), range(1, 19)), ((1, 64), (1,)), ((301, 2112), (5,)), ((64, 96), (33,)), ((20, 64), (130,)))
HALF = {"scale_dtype": "float16", "has_zeros": True, "zero_dtype": "float16"}
KERNEL_FORMATS = [
    *FORMATS.values(),
    # Float16 zero points with every way to read nibbles and int8, and groups of 16 with and without zero points.
    QFormat(kind="int4", group=64, pack=64, **HALF),
    QFormat(kind="int4", group=128, pack=128, **HALF),
    QFormat(kind="int4", pack=32, rows=None, **HALF),
    QFormat(kind="int8", group=32, **HALF),
    QFormat(kind="int8", group=16, scale_dtype="float16"),
    QFormat(kind="int8", group=16, scale_dtype="bfloat16", has_zeros=True),
]


ONLY_INTEGERS = ("avx512-vnni", "avx2-vnni", "avx512-bw", "dotprod")
"""The instruction sets that differ from another one in the products of int8 activations only."""


def linears() -> int:
    """Plain and quantized matrices in one call; and that a row's result is its own."""
    cases = 0
    multiply = jax.jit(native_project)
    for (n, k), rows in SHAPES:
        rng = np.random.default_rng(n + k)
        weights = [jnp.asarray(rng.standard_normal((n, k)), jnp.bfloat16)]
        for format in KERNEL_FORMATS:
            if not format.has_order and native_quantized_refusal(jnp.dtype(jnp.bfloat16), format, k) is None:
                weights.append(random_qarray(rng, format, (n, k)))
        assert len(weights) > 4
        # AVX2 multiplies float32 and does not round weights.
        dtype = jnp.float32 if isa() == "avx2" else jnp.bfloat16
        dense = [
            np.asarray(weight if isinstance(weight, jax.Array) else dequantize(weight, dtype), np.float64)
            for weight in weights
        ]
        for m in rows:
            x = rng.standard_normal((m, k)).astype(jnp.bfloat16)
            got = [np.asarray(y) for y in multiply(x, weights)]
            for matrix, y in zip(dense, got, strict=True):
                exact = x.astype(np.float64) @ matrix.T
                size = np.abs(x.astype(np.float64)) @ np.abs(matrix).T
                np.testing.assert_array_less(np.abs(y - exact), 1e-6 * size + 1e-30)
                cases += 1
            alone = multiply(x[-1:], weights)
            for one, all_rows in zip(alone, got, strict=True):
                np.testing.assert_array_equal(one[0], all_rows[-1])
    return cases


def integers() -> int:
    """Low-bit matrices with int8 activations, against the reference; that a row's result is its own; and NaN."""
    cases = 0
    multiply = jax.jit(native_project)
    for (n, k), rows in SHAPES:
        rng = np.random.default_rng(n + k + 1)
        weights = []
        for format in KERNEL_FORMATS:
            if format.has_order or format.int8_groups_refusal():
                continue
            format = replace(format, activations="int8_groups")
            if native_quantized_refusal(jnp.dtype(jnp.bfloat16), format, k) is None:
                weights.append(random_qarray(rng, format, (n, k)))
        assert len(weights) > 3
        all_x = rng.standard_normal((max(rows), k)).astype(jnp.bfloat16)
        all_want = [np.asarray(project_integer(all_x, weight)) for weight in weights]
        dense = [np.abs(np.asarray(dequantize(weight), np.float64)) for weight in weights]
        for m in rows:
            x = all_x[:m].copy()
            got = [np.asarray(y) for y in multiply(x, weights)]
            for matrix, want, y in zip(dense, all_want, got, strict=True):
                size = np.abs(x.astype(np.float64)) @ matrix.T
                np.testing.assert_array_less(np.abs(y - want[:m]), 2e-6 * size + 1e-30)
                cases += 1
            alone = multiply(x[-1:], weights)
            for one, all_rows in zip(alone, got, strict=True):
                np.testing.assert_array_equal(one[0], all_rows[-1])
            x[0, k // 2] = np.nan if m % 2 else np.inf
            for y, before in zip(multiply(x, weights), got, strict=True):
                assert np.isnan(y[0]).all()
                np.testing.assert_array_equal(y[1:], before[1:])
    return cases


def norms() -> int:
    """RMSNorm over sizes with and without tails."""
    cases = 0
    for rows, size in ((1, 896), (3, 7), (40, 64), (2, 1)):
        rng = np.random.default_rng(size)
        for dtype, weight_dtype in (
            (jnp.bfloat16, jnp.bfloat16),
            (jnp.float32, jnp.float32),
            (jnp.bfloat16, jnp.float32),
        ):
            x = jnp.asarray(rng.standard_normal((rows, 2, size)) * 3, dtype)
            weight = jnp.asarray(rng.standard_normal(size), weight_dtype)
            got = jax.jit(partial(native_rms_norm, eps=1e-6, offset=1.0))(x, weight)
            want = RMS_NORM.reference(x.astype(jnp.float32), weight, eps=1e-6, offset=1.0)
            tolerance = 1e-5 if dtype == jnp.float32 else 1 / 250
            np.testing.assert_allclose(got.astype(jnp.float32), want, rtol=tolerance, atol=1e-6)
            cases += 1
    return cases


def attention() -> int:
    """A prefill step, then a ragged one over what it left; every storage format.

    Each pair of a storage format and a shape is run with one of both dtypes, in turns.
    """
    cases = 0
    for storage in ("float32", "bfloat16", "int8", "float8"):
        for heads, kv_heads, dim, extra in (
            (14, 2, 64, {}),
            (4, 4, 8, {"window": 7, "sinks": True}),
            (6, 2, 40, {"window": 100, "softcap": 30.0}),
        ):
            dtype = (jnp.bfloat16, jnp.float32)[cases % 2]
            _attention_case(storage, dtype, heads, kv_heads, dim, **extra)
            cases += 1
    return cases


def _attention_case(
    storage: str,
    dtype: jnp.dtype,
    heads: int,
    kv_heads: int,
    dim: int,
    *,
    window: int | None = None,
    softcap: float | None = None,
    sinks: bool = False,
) -> None:
    page, row_pages, rng = 16, 12, np.random.default_rng(heads * dim)
    table = rng.permutation(np.arange(1, 4 * row_pages + 1)).reshape(4, row_pages).astype(np.int32)
    ours = theirs = empty_cache(storage, 4 * row_pages + 1, kv_heads, page, dim)
    sink = jnp.asarray(rng.standard_normal(heads), jnp.float32) if sinks else None
    # Both steps have the tokens of the longer one, so that each implementation is compiled once.
    tokens = 150 + 70 + 3 + 5
    settings = AttentionSettings(scale=dim**-0.5, window=window, softcap=softcap)
    options = {"settings": settings, "max_query_len": tokens}
    native, xla = jax.jit(partial(ATTEND, **options)), jax.jit(partial(ATTEND.reference, **options))
    for rows in ([(0, 150), (0, 70), (0, 3)], [(150, 1), (70, 1), (3, 33), (0, 9)]):
        batch = make_batch(rows, tokens=tokens, max_rows=4, page_size=page, pages=row_pages)
        at, write = 0, np.zeros(tokens, np.int32)
        for row, (before, query) in enumerate(rows):
            write[at : at + query] = table[row, (before + np.arange(query)) // page]
            at += query
        batch = batch._replace(page_table=jnp.asarray(table), write_page=jnp.asarray(write))
        q, k, v = (jnp.asarray(rng.standard_normal((tokens, n, dim)), dtype) for n in (heads, kv_heads, kv_heads))
        got, ours = native(q, k, v, ours, 1, batch, sink)
        want, theirs = xla(q, k, v, theirs, 1, batch, sink)
        # int8: XLA multiplies by 1 / scale, which rounds a tie now and then to the other side.
        tolerance = 2e-2 if storage == "int8" else 1e-2 if dtype == jnp.bfloat16 else 2e-5
        np.testing.assert_allclose(
            got[:at].astype(jnp.float32), want[:at].astype(jnp.float32), atol=tolerance, rtol=1e-2
        )
        for mine, other in zip(ours[:2], theirs[:2], strict=True):
            difference = np.asarray(mine[:, 1:], np.float32) != np.asarray(other[:, 1:], np.float32)
            assert difference.mean() < (1e-4 if storage == "int8" else 1e-9)


def segments() -> int:
    """Attention within segments and its gradient."""
    cases, rng = 0, np.random.default_rng(1)
    ids = np.repeat([[1, 2, 3, 0], [1, 1, 1, 2]], [50, 7, 80, 13], axis=1).astype(np.int32)
    positions = np.concatenate([np.arange(n) for n in (50, 7, 80, 13, 137, 13)]).reshape(2, 150).astype(np.int32)
    for dtype in (jnp.float32, jnp.bfloat16):
        for heads, kv_heads, dim, window, softcap in (
            (4, 4, 16, None, None),
            (14, 2, 64, None, 5.0),
            (6, 2, 40, 33, None),
        ):
            q, k, v, towards = (
                jnp.asarray(rng.standard_normal((2, 150, n, dim)), dtype) for n in (heads, kv_heads, kv_heads, heads)
            )
            sinks = jnp.asarray(rng.standard_normal(heads), jnp.float32)
            options = {"settings": AttentionSettings(scale=dim**-0.5, window=window, softcap=softcap)}

            def gradients(attention, q, k, v, sinks, towards, options=options) -> tuple[jax.Array, ...]:
                def of(q: jax.Array, k: jax.Array, v: jax.Array, sinks: jax.Array) -> jax.Array:
                    return attention(q, k, v, ids, positions, sinks, **options)

                out, pull = jax.vjp(of, q, k, v, sinks)
                return out, *pull(towards.astype(out.dtype))

            got = jax.jit(partial(gradients, segment_attention))(q, k, v, sinks, towards)
            exact = (x.astype(jnp.float32) for x in (q, k, v, sinks, towards))
            want = jax.jit(partial(gradients, segment_attention_reference))(*exact)
            for mine, other in zip(got, want, strict=True):
                part = np.abs(np.asarray(mine, np.float32) - other).max() / np.abs(other).max()
                assert part < (1e-2 if dtype == jnp.bfloat16 else 1e-5), (dtype, heads, dim, part)
            cases += 1
    return cases


def empty_cache(storage: str, pages: int, kv_heads: int, page: int, dim: int) -> KVCache:
    """A cache of two layers."""
    shape = (2, pages, kv_heads, page, dim)
    dtype = {"float32": jnp.float32, "bfloat16": jnp.uint16, "int8": jnp.int8, "float8": jnp.uint8}[storage]
    pages_of = jnp.zeros(shape, dtype)
    if storage == "int8":
        return KVCache(pages_of, pages_of, jnp.zeros(shape[:4], jnp.uint16), jnp.zeros(shape[:4], jnp.uint16))
    if storage == "float8":
        scales = jnp.asarray(np.random.default_rng(0).uniform(0.005, 0.02, (2, 2, kv_heads)), jnp.float32)
        return KVCache(pages_of, pages_of, scales[0], scales[1])
    return KVCache(pages_of, pages_of)


if __name__ == "__main__":
    assert isa() == sys.argv[1], f"expected {sys.argv[1]}, have {isa()}"
    if sys.argv[1] in ONLY_INTEGERS:
        print(integers())
    else:
        print(linears(), integers(), norms(), attention(), segments())
