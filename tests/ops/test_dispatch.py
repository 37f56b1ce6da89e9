"""Dispatch: the order of kernels, refusals, and `describe_ops` against the lowered programs."""

from __future__ import annotations

import logging
import re
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from ryzjax import ops
from ryzjax.attention_settings import AttentionSettings
from ryzjax.batch import KVCache
from ryzjax.native.library import isa, native_refusal
from ryzjax.ops import dispatch
from ryzjax.ops.attention.attend import ATTEND
from ryzjax.ops.attention.segment_attention import segment_attention
from ryzjax.ops.dispatch import Kernel, Op, OpChoice, Platform, describe_ops
from ryzjax.ops.linear.project import PROJECT
from ryzjax.ops.moe.grouped_matmul import grouped_matmul
from ryzjax.ops.norm import RMS_NORM
from ryzjax.ops.sampling.argmax import argmax_logsumexp
from tests.ops.test_paged_attention import make_batch

X = jnp.array([1.0, 2.0])
DTYPES = ("float32", "bfloat16")
SETTINGS = AttentionSettings(scale=0.5, window=None, softcap=None)


@pytest.fixture
def no_listing(monkeypatch: pytest.MonkeyPatch):
    """Keeps the ops that a test defines out of `describe_ops`."""
    monkeypatch.setattr(dispatch, "_OPS", [])


@pytest.fixture(params=["built", "off"])
def kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Runs a test with the native kernels of this machine, and without native kernels."""
    if request.param == "off":
        monkeypatch.setattr("ryzjax.native.library._load", lambda: (None, "turned off by this test"))
    return native_refusal() is None


def adds(name: str, number: float, *, platform: Platform = "cpu", refuses: str | None = None) -> Kernel:
    def supports(x: jax.Array) -> str | None:
        return refuses if x.shape[0] < 3 else None

    return Kernel(name=name, platform=platform, supports=supports, run=lambda x: x + number, note=f"adds {number}")


def one_op(*kernels: Kernel) -> Op:
    return Op("add", reference=lambda x: x, kernels=kernels, reference_note="adds nothing")


@pytest.mark.usefixtures("no_listing")
def test_the_first_kernel_that_takes_the_call_runs():
    op = one_op(adds("large", 100, refuses="fewer than 3 rows"), adds("small", 1), adds("late", 7))
    assert [kernel.name for kernel in op.choose(X)] == ["small"]
    assert op(X).tolist() == [2, 3]
    assert op(jnp.zeros(3)).tolist() == [100] * 3


@pytest.mark.usefixtures("no_listing")
def test_the_reference_takes_what_no_kernel_takes():
    op = one_op(adds("large", 100, refuses="fewer than 3 rows"))
    assert op(X).tolist() == [1, 2]


@pytest.mark.usefixtures("no_listing")
def test_each_platform_has_its_own_kernel():
    op = one_op(adds("gpu", 100, platform="cuda"), adds("cpu", 1))
    assert [kernel.name for kernel in op.choose(X)] == ["gpu", "cpu"]
    assert op(X).tolist() == [2, 3]
    traced = jax.jit(op.__call__).trace(X)
    for platform, added in (("cpu", [1.0]), ("cuda", [100.0]), ("tpu", [])):
        text = traced.lower(lowering_platforms=(platform,)).as_text()
        assert [float(number) for number in re.findall(r"dense<(\d\.\d+e\+\d+)> : tensor<", text)] == added


@pytest.mark.usefixtures("no_listing")
def test_a_refusal_is_logged_once(caplog: pytest.LogCaptureFixture):
    op = one_op(adds("large", 100, refuses="fewer than 3 rows"), adds("other", 9, refuses="fewer than 3 rows"))
    with caplog.at_level(logging.DEBUG, logger="ryzjax.ops.dispatch"):
        for _ in range(3):
            op(X)
            op(X[:1])
    assert [record.getMessage() for record in caplog.records] == [
        "add: the large kernel does not take a call: fewer than 3 rows",
        "add: the other kernel does not take a call: fewer than 3 rows",
    ]


@pytest.mark.usefixtures("no_listing")
def test_a_description_names_the_choice_and_every_refusal_before_it(monkeypatch: pytest.MonkeyPatch):
    op = one_op(adds("large", 100, refuses="fewer than 3 rows"), adds("gpu", 5, platform="cuda"))
    monkeypatch.setattr(op, "probes", lambda dtype: [dispatch.Probe(label="2 rows", arrays=(X,))])
    assert op.describe("float32", "cpu") == [
        OpChoice(
            op="add",
            call="2 rows",
            implementation="xla",
            reason="adds nothing; large: fewer than 3 rows; the gpu kernel is for cuda",
        )
    ]
    assert op.describe("float32", "cuda")[0].implementation == "gpu"


def test_every_op_is_described():
    folder = Path(next(iter(ops.__path__)))
    defining = re.compile(r"^(?:\w+ = Op\(\n\s+\"(\w+)\"|@reference_only\(\"(\w+)\"\))", re.MULTILINE)
    defined = [
        name for path in folder.rglob("*.py") for pair in defining.findall(path.read_text()) for name in pair if name
    ]
    described = [choice.op for choice in describe_ops()]
    assert len(set(defined)) == len(defined) >= 12
    assert set(described) == set(defined)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("op", [PROJECT, RMS_NORM, argmax_logsumexp], ids=lambda op: op.name)
def test_a_described_call_is_lowered_to_what_is_described(op: Op, dtype: str, kernels: bool):
    for probe, choice in zip(op.probes(dtype), op.describe(dtype, "cpu"), strict=True):
        text = jax.jit(partial(op, **probe.settings)).lower(*probe.arrays).as_text()
        calls = set(re.findall(r"@(ryzjax_\w+)", text))
        assert bool(calls) == (choice.implementation == f"native ({isa()})"), (probe.label, choice)
        assert bool(calls) <= kernels


@pytest.mark.parametrize("dtype", DTYPES)
def test_attention_is_lowered_to_what_is_described(dtype: str, kernels: bool):
    native = f"native ({isa()})" if kernels else "xla"
    q, k = (jnp.zeros((6, heads, 16), dtype) for heads in (4, 2))
    pages = jnp.zeros((1, 9, 2, 8, 16))
    batch = make_batch([(0, 5)], tokens=6, max_rows=2, page_size=8, pages=4)
    attend = partial(ATTEND, settings=SETTINGS, max_query_len=5)
    text = jax.jit(attend).lower(q, k, k, KVCache(pages, pages), jnp.int32(0), batch, None).as_text()
    assert ("@ryzjax_attend" in text) == kernels
    assert [choice.implementation for choice in ATTEND.describe(dtype, "cpu")] == [native]

    def total(q: jax.Array, k: jax.Array, ids: jax.Array) -> jax.Array:
        return segment_attention(q[None], k[None], k[None], ids, ids, settings=SETTINGS).astype(jnp.float32).sum()

    text = jax.jit(jax.grad(total)).lower(q, k, jnp.ones((1, 6), jnp.int32)).as_text()
    assert ("@ryzjax_segment_forward" in text) == ("@ryzjax_segment_backward" in text) == kernels
    described = {choice.op: choice.implementation for choice in describe_ops(dtype)}
    assert described["segment_attention"] == described["segment_attention_gradient"] == native


def test_grouped_matmul_is_lowered_to_what_is_described():
    arrays = jnp.ones((5, 8)), jnp.ones((3, 4, 8)), jnp.array([2, 0, 3])
    traced = jax.jit(grouped_matmul.__call__).trace(*arrays)
    for platform, name in (("cpu", "tiles"), ("cuda", "xla")):
        text = traced.lower(lowering_platforms=(platform,)).as_text()
        assert ("ragged_dot" in text) == (name == "xla")
        assert grouped_matmul.describe("float32", platform)[0].implementation == name
