"""The native kernels through XLA: every instruction set, several devices, refusals."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from ryzjax.attention_settings import AttentionSettings
from ryzjax.batch import KVCache
from ryzjax.native.attention import native_attend
from ryzjax.native.library import ISAS, isa, native_refusal
from ryzjax.native.linear import native_project
from ryzjax.native.norm import native_rms_norm
from ryzjax.ops.attention.attend import ATTEND
from ryzjax.ops.dispatch import describe_ops
from ryzjax.ops.linear.crossover import CROSSOVERS, Crossover
from ryzjax.ops.linear.project import native_refusal_of, project_on_device
from ryzjax.ops.linear.reference import project_plain
from ryzjax.qarray import QFormat, dequantize
from ryzjax.sharding import Layout, Placement
from tests.native.check_kernels import ONLY_INTEGERS
from tests.ops.test_paged_attention import make_batch
from tests.qarrays import FORMATS, random_qarray

pytestmark = pytest.mark.optimized

HERE = Path(__file__).parent
needs_kernels = pytest.mark.skipif(native_refusal() is not None, reason=f"no native kernels: {native_refusal()}")
SETTINGS = AttentionSettings(scale=0.35, window=None, softcap=None)


def child(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )


def test_the_kernels_were_built():
    """CI builds them; elsewhere the reason is told, and every test below is skipped."""
    assert native_refusal() is None or not os.environ.get("CI")


@needs_kernels
@pytest.mark.parametrize("name", ISAS)
def test_every_instruction_set_against_the_references(name: str):
    # The references need not be fast: XLA compiles them without its expensive passes.
    settings = {"RYZJAX_NATIVE_ISA": name, "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    done = child(str(HERE / "check_kernels.py"), name, **settings)
    if done.returncode and f"RYZJAX_NATIVE_ISA={name} is not on this machine" in done.stderr + done.stdout:
        pytest.skip(f"no {name} on this machine")
    if done.returncode and "have None" in done.stderr:
        pytest.skip(f"no {name} on this machine")
    assert done.returncode == 0, done.stderr[-2000:]
    counts = [int(count) for count in done.stdout.split()]
    assert len(counts) == (1 if name in ONLY_INTEGERS else 5) and min(counts) > 5


def test_they_can_be_turned_off():
    code = "from ryzjax.native.library import isa, native_refusal; print(isa(), native_refusal())"
    assert child("-c", code, RYZJAX_NATIVE="0").stdout.strip() == "None turned off by RYZJAX_NATIVE=0"
    asked = child("-c", code, RYZJAX_NATIVE_ISA="sse9").stdout
    assert asked.startswith("None ") and ("sse9" in asked or "not built" in asked)


def test_what_runs_is_told():
    expected = "xla" if native_refusal() else f"native ({isa()})"
    choices = {(choice.op, choice.call): choice for choice in describe_ops("bfloat16")}
    for op, call in (
        ("project", "bfloat16 weights"),
        ("project", "int8 weights"),
        ("project", "int4 weights, groups of 32"),
        ("attend", "bfloat16 queries, any KV dtype"),
        ("segment_attention", "bfloat16"),
        ("segment_attention_gradient", "bfloat16"),
        ("rms_norm", "bfloat16, one device"),
        ("argmax_logsumexp", "float32 logits"),
    ):
        assert choices[op, call].implementation == expected
    assert choices["project", "fp8 weights"].implementation == "xla"
    in_float32 = {(choice.op, choice.call): choice for choice in describe_ops("float32")}
    refused = in_float32["project", "float32 weights"]
    assert refused.implementation == "xla" and "not bfloat16" in refused.reason
    assert in_float32["rms_norm", "float32, one device"].implementation == expected
    if refusal := native_refusal():
        assert refusal in choices["project", "bfloat16 weights"].reason


@needs_kernels
def test_a_product_runs_on_each_device_of_a_mesh():
    placement = Placement(Layout.load("tp"))
    rng = np.random.default_rng(0)
    x, w = (jnp.asarray(rng.standard_normal(shape), jnp.bfloat16) for shape in ((5, 256), (64, 256)))
    q = random_qarray(rng, FORMATS["int8"], (64, 256))
    axis = tuple(placement.mesh.axis_names)
    split = PartitionSpec(None, axis)

    def local(x: jax.Array, w: jax.Array, values: jax.Array, scales: jax.Array) -> tuple[jax.Array, ...]:
        return project_on_device(x, (w, replace(q, values=values, scales=scales)), summed_over=axis)

    across = placement.per_shard(local, [split, split, split, split], (PartitionSpec(), PartitionSpec()))
    lowered = jax.jit(across).lower(x, w, q.values, q.scales)
    assert "ryzjax_linear" in lowered.as_text()
    got = lowered.compile()(x, w, q.values, q.scales)
    np.testing.assert_allclose(got[0], project_plain(x, w), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(got[1], project_on_device(x, (q,))[0], rtol=1e-4, atol=1e-4)


def attention_inputs(dtype: jnp.dtype) -> tuple[jax.Array, jax.Array, jax.Array, KVCache]:
    rng = np.random.default_rng(3)
    q, k, v = (jnp.asarray(rng.standard_normal((6, heads, 16)), dtype) for heads in (4, 2, 2))
    return q, k, v, KVCache(jnp.zeros((1, 9, 2, 8, 16)), jnp.zeros((1, 9, 2, 8, 16)))


@needs_kernels
def test_a_donated_cache_is_written_in_place():
    q, k, v, cache = attention_inputs(jnp.float32)
    batch = make_batch([(0, 5)], tokens=6, max_rows=2, page_size=8, pages=4)

    def step(cache: KVCache) -> tuple[jax.Array, KVCache]:
        return ATTEND(q, k, v, cache, 0, batch, None, settings=SETTINGS, max_query_len=5)

    compiled = jax.jit(step, donate_argnums=0).lower(cache).compile()
    memory = compiled.memory_analysis()
    assert memory is not None and memory.alias_size_in_bytes == cache.k.nbytes + cache.v.nbytes
    assert memory.temp_size_in_bytes < cache.k.nbytes
    want, _ = ATTEND.reference(q, k, v, cache, 0, batch, None, settings=SETTINGS, max_query_len=5)
    got, _ = compiled(cache)
    np.testing.assert_allclose(got[:5], want[:5], atol=2e-6)


@needs_kernels
@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("page_table", jnp.full((2, 4), 9, jnp.int32), "page outside the cache"),
        ("write_page", jnp.full(6, 9, jnp.int32), "written outside the cache"),
        ("write_offset", jnp.full(6, -1, jnp.int32), "written outside the cache"),
        ("context_len", jnp.array([40, 0], jnp.int32), "does not fit its pages"),
        ("query_len", jnp.array([9, 0], jnp.int32), "do not follow"),
        ("num_rows", jnp.int32(3), "more rows"),
    ],
)
def test_indices_that_leave_an_array_are_refused(field: str, value: jax.Array, message: str):
    q, k, v, cache = attention_inputs(jnp.float32)
    batch = make_batch([(0, 5)], tokens=6, max_rows=2, page_size=8, pages=4)._replace(**{field: value})
    with pytest.raises(Exception, match=message):
        jax.block_until_ready(native_attend(q, k, v, cache, 0, batch, None, settings=SETTINGS))


@needs_kernels
def test_what_they_cannot_read_is_refused_in_python():
    rng = np.random.default_rng(0)
    x = jnp.ones((2, 64), jnp.bfloat16)
    w = jnp.ones((8, 64), jnp.bfloat16)
    for weight, message in (
        (w.astype(jnp.float32), "float32, not bfloat16"),
        (w[:, :32], r"expected \[M, K\] and \[N, K\]"),
        (random_qarray(rng, FORMATS["float8_rows"], (8, 64)), "float8"),
        (random_qarray(rng, FORMATS["w8a8"], (8, 64)), "int8 activations"),
        (random_qarray(rng, FORMATS["int4_order"], (8, 64)), "permuted"),
        (random_qarray(rng, QFormat(kind="int8", group=8), (8, 64)), "group size 8"),
        (random_qarray(rng, FORMATS["int4_zeros"], (8, 64)), "group size 16"),
    ):
        with pytest.raises(ValueError, match=message):
            native_project(x, [weight])
    q, k, v, cache = attention_inputs(jnp.float32)
    batch = make_batch([(0, 5)], tokens=6, max_rows=2, page_size=8, pages=4)
    for arguments, message in (
        ((q.astype(jnp.float16), k, v, cache), "float16"),
        ((q, k.astype(jnp.bfloat16), v, cache), "one dtype"),
        ((q[:, :3], k, v, cache), "multiple of H"),
        ((q[..., :8], k[..., :8], v[..., :8], cache), "the cache is"),
    ):
        with pytest.raises(ValueError, match=message):
            native_attend(*arguments, 0, batch, None, settings=SETTINGS)
    with pytest.raises(ValueError, match="expected"):
        native_rms_norm(x, jnp.ones(3), eps=1e-6, offset=0.0)


@needs_kernels
def test_xla_multiplies_where_it_was_measured_to_be_faster(monkeypatch: pytest.MonkeyPatch):
    name = str(isa())
    assert set(CROSSOVERS) == set(ISAS)
    monkeypatch.setitem(CROSSOVERS, name, Crossover(int8_activations=False, plain_rows=16, measured="for this test"))
    rng = np.random.default_rng(0)
    w = jnp.asarray(rng.standard_normal((24, 64)), jnp.bfloat16)
    q = random_qarray(rng, FORMATS["int8"], (24, 64))
    for rows, calls in ((15, 2), (16, 1)):  # matrices in the one native call
        x = jnp.asarray(rng.standard_normal((rows, 64)), jnp.bfloat16)
        lowered = jax.jit(lambda x: project_on_device(x, (w, q))).lower(x)
        (call,) = [line for line in lowered.as_text().splitlines() if "@ryzjax_linear" in line]
        assert call.count(f"tensor<{rows}x24xf32>") == calls
        for got, weight in zip(lowered.compile()(x), (w, dequantize(q, jnp.bfloat16)), strict=True):
            np.testing.assert_allclose(got, project_plain(x, weight), rtol=1e-4, atol=1e-4)
    assert CROSSOVERS[name].plain_rows == 16
    refusal = native_refusal_of(x, w)
    assert refusal is not None and "from 16 rows on" in refusal and native_refusal_of(x[:15], w) is None
