"""Memory of a step: temporaries that no pool or context makes larger, and budgets that are refused with a table."""

from __future__ import annotations

from dataclasses import replace

import jax
import numpy as np
import pytest

from ryzjax import LLM
from ryzjax.errors import CapacityError, ConfigError
from ryzjax.layers.rope import Rope
from ryzjax.loading.dummy import dummy_weights
from ryzjax.models.kv_cache import KVDtype, KVFormat, KVScales, kv_page_bytes
from ryzjax.models.llama import LlamaConfig
from ryzjax.models.registry import abstract_model
from ryzjax.qarray import QFormat
from ryzjax.serving.device.buckets import Buckets
from ryzjax.serving.device.capacity import most_pages, plan_capacity
from ryzjax.serving.device.prompt_programs import tile_tokens
from ryzjax.serving.device.runner import ModelRunner
from ryzjax.sharding import Layout, Placement
from ryzjax.shipped import DEMO_MODEL

pytestmark = pytest.mark.optimized

CONFIG = LlamaConfig(
    dtype="bfloat16",
    vocab_size=512,
    hidden_size=64,
    intermediate_size=128,
    num_layers=4,
    num_heads=8,
    num_kv_heads=2,
    head_dim=16,
    rms_norm_eps=1e-5,
    rope=Rope(theta=10000.0, rotary_dim=16),
    attention_bias=False,
    mlp_bias=False,
    max_position=32768,
    tie_embeddings=True,
)


ONES = np.ones((CONFIG.num_layers, CONFIG.num_kv_heads), np.float32)


def temporaries(max_context_tokens: int, kv_dtype: KVDtype) -> dict[str, int]:
    """Returns the temporaries of a decode and a mixed step in bytes, with a pool for 4 sequences of that context."""
    placement = Placement(Layout.load("single"), jax.devices()[:1])
    model = abstract_model(CONFIG, placement)
    runner = ModelRunner(
        model,
        dummy_weights(model.weights, 0),
        buckets=Buckets(decode=(4,), mixed=(64,), sample=(4,)),
        max_sequences=4,
        max_context_tokens=max_context_tokens,
        page_size_tokens=64,
        kv_format=KVFormat(dtype=kv_dtype, scales=KVScales(ONES, ONES) if kv_dtype == "fp8_e4m3" else None),
    )
    runner.allocate(most_pages(4, max_context_tokens, 64))
    runner.compile()
    steps = [("mixed", 64), ("decode", 4), ("head", 4)]
    assert runner.program_keys == [
        *steps,
        ("gather", 64),
        ("score", tile_tokens()),
        ("pool", tile_tokens()),
        ("set_slot", 0),
    ]
    for key in steps[:2]:  # the cache is updated in place, scales included
        cache_bytes = sum(array.nbytes for array in jax.tree.leaves(runner.cache))
        assert runner.programs[key].memory_analysis().alias_size_in_bytes == cache_bytes
    return {key[0]: p.memory_analysis().temp_size_in_bytes for key, p in runner.programs.items()}


def step_temporaries(config: LlamaConfig, format: QFormat | None) -> dict[str, int]:
    """Returns the temporaries of a decode and a mixed step in bytes, with linear layers in `format`. Nothing runs."""
    placement = Placement(Layout.load("single"), jax.devices()[:1])
    model = abstract_model(config, placement)
    if format is not None:
        model = abstract_model(config, placement, dict.fromkeys(model.linears, format))
    runner = ModelRunner(
        model,
        dummy_weights(model.weights, 0),
        buckets=Buckets(decode=(4,), mixed=(64,), sample=(4,)),
        max_sequences=4,
        max_context_tokens=256,
        page_size_tokens=64,
    )
    runner.allocate(most_pages(4, 256, 64))
    runner.compile()
    return {key[0]: runner.programs[key].memory_analysis().temp_size_in_bytes for key in (("decode", 4), ("mixed", 64))}


def test_a_quantized_step_holds_no_dequantized_weights():
    """A quantized step needs less than one 16-bit matrix more than a plain one, for any number of layers.

    In a decode step this is a panel. In a mixed step, the outputs of the panels for its 64 tokens come on top.
    """
    config = replace(CONFIG, hidden_size=1024, intermediate_size=4096, num_layers=2, num_heads=16, head_dim=64)
    config = replace(config, rope=Rope(theta=10000.0, rotary_dim=64))
    matrix_bytes = 2 * 1024 * 4096
    plain = step_temporaries(config, None)
    for format in (
        QFormat(kind="int4", group=128, pack=128, scale_dtype="bfloat16"),
        QFormat(kind="int8", group=128, scale_dtype="bfloat16"),
        QFormat(kind="int8", activations="int8"),
    ):
        quantized = step_temporaries(config, format)
        for step, temporary_bytes in quantized.items():
            most = {"decode": 0.3, "mixed": 0.9}[step] * matrix_bytes
            assert temporary_bytes - plain[step] < most, (format, step, quantized, plain)
    deeper = step_temporaries(replace(config, num_layers=4), format)
    assert all(deeper[step] < 1.05 * quantized[step] for step in quantized), (deeper, quantized)


def score_temporaries(max_batch_tokens: int) -> int:
    """Returns the temporaries in bytes of the program that scores prompts, for steps of that size. Nothing runs."""
    model = abstract_model(CONFIG, Placement(Layout.load("single"), jax.devices()[:1]))
    runner = ModelRunner(
        model,
        dummy_weights(model.weights, 0),
        buckets=Buckets.make(max_sequences=4, max_batch_tokens=max_batch_tokens),
        max_sequences=4,
        max_context_tokens=8192,
        page_size_tokens=64,
    )
    runner.temporary_bytes(10)
    ((_, program),) = [item for item in runner.programs.items() if item[0][0] == "score"]
    return program.memory_analysis().temp_size_in_bytes


def test_scoring_a_long_chunk_holds_the_logits_of_a_tile_only():
    logits_of_a_tile = 4 * tile_tokens() * CONFIG.vocab_size
    small, large = score_temporaries(64), score_temporaries(2048)
    assert small == large <= 5 * logits_of_a_tile
    assert score_temporaries(8) < small


@pytest.mark.parametrize("kv_dtype", ["bfloat16", "int8", "fp8_e4m3"])
def test_temporaries_do_not_grow_from_1k_to_16k(kv_dtype: KVDtype):
    small, large = temporaries(1024, kv_dtype), temporaries(16384, kv_dtype)
    cache_growth = 2 * 4 * 2 * 16 * 4 * (16384 - 1024)  # with one byte per number, the smallest dtype
    for step in ("decode", "mixed"):
        # Only the page table is longer, by 240 pages in each of 4 rows.
        assert large[step] - small[step] <= 4 * 4 * 240 * 4 < cache_growth / 100, (step, small, large)


def plan(**changes: object):
    options = {
        "kv_dtype": "bfloat16",
        "page_size_tokens": 64,
        "max_sequences": 4,
        "max_context_tokens": None,
        "kv_memory_bytes": None,
        "memory_fraction": 0.5,
        "weight_bytes": 1000,
        "temporary_bytes": 1000,
    } | changes
    return plan_capacity(CONFIG, Placement(Layout.load("single"), jax.devices()[:1]), **options)


def test_page_bytes_by_hand():
    single = Placement(Layout.load("single"), jax.devices()[:1])
    # keys and values, 4 layers, 2 KV heads, 64 tokens, 16 numbers of 2 bytes
    assert kv_page_bytes(CONFIG, single, "bfloat16", 64) == 2 * 4 * 2 * 64 * 16 * 2
    assert kv_page_bytes(CONFIG, single, "float32", 64) == 2 * 4 * 2 * 64 * 16 * 4
    # one byte per number, and 2 bytes per token and head for the scale of int8
    assert kv_page_bytes(CONFIG, single, "int8", 64) == 2 * 4 * 2 * 64 * (16 + 2)
    assert kv_page_bytes(CONFIG, single, "fp8_e4m3", 64) == 2 * 4 * 2 * 64 * 16
    # With 8 devices, each KV head is held four times, one copy per device.
    eight = Placement(Layout.load("tp"))
    assert kv_page_bytes(CONFIG, eight, "bfloat16", 64) == 2 * 4 * 1 * 64 * 16 * 2
    assert kv_page_bytes(CONFIG, eight, "int8", 64) == 2 * 4 * 1 * 64 * (16 + 2)


def test_a_budget_gives_its_pages_and_no_more_than_can_be_used():
    page = 2 * 4 * 2 * 64 * 16 * 2
    capacity = plan(kv_memory_bytes=100 * page + 5)
    assert (capacity.num_pages, capacity.pool_tokens, capacity.max_context_tokens) == (100, 99 * 64, 99 * 64)
    assert capacity.budget_bytes == 100 * page + 5 + 2000
    roomy = plan(kv_memory_bytes=10**12, max_context_tokens=640)
    assert (roomy.num_pages, roomy.max_context_tokens) == (4 * 10 + 1, 640)


def test_a_quantized_pool_has_as_many_more_pages():
    budget = 100 * 2 * 4 * 2 * 64 * 16 * 2
    plans = {dtype: plan(kv_memory_bytes=budget, kv_dtype=dtype) for dtype in ("bfloat16", "int8", "fp8_e4m3")}
    assert {dtype: p.num_pages for dtype, p in plans.items()} == {"bfloat16": 100, "int8": 177, "fp8_e4m3": 200}
    assert "= 177 pages of 0.02 MiB, int8" in plans["int8"].table()


def test_what_does_not_fit_is_refused_with_the_table():
    page = 2 * 4 * 2 * 64 * 16 * 2
    with pytest.raises(CapacityError, match=r"(?s)no KV page fits.*--kv-memory.*step temporaries.*longest context"):
        plan(kv_memory_bytes=page)
    with pytest.raises(CapacityError, match=r"(?s)max_context_tokens=1,024 does not fit.*640 tokens"):
        plan(kv_memory_bytes=11 * page, max_context_tokens=1024)
    with pytest.raises(CapacityError, match="no KV page fits"):
        plan(memory_fraction=1e-9)


def test_more_context_than_the_model_was_made_for_is_refused():
    with pytest.raises(ConfigError, match="max_context_tokens=4097 is more than the 4096 positions"):
        LLM(DEMO_MODEL, max_context_tokens=4097)


def test_start_up_refuses_before_anything_is_served(compile_cache: str):
    with pytest.raises(CapacityError, match="max_context_tokens=512 does not fit"):
        LLM(DEMO_MODEL, kv_memory="1MiB", max_context_tokens=512, compile_cache=compile_cache)
