"""Every field of a model's config acts: another value gives other logits, another shape, or an error."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ryzjax.batch import KVCache, TokenBatch
from ryzjax.checkpoint.dummy import dummy_weights
from ryzjax.errors import UnsupportedModelError
from ryzjax.models.config import ModelConfig, RopeConfig
from ryzjax.models.registry import abstract_model
from ryzjax.sharding import Layout, Placement

ROPE = RopeConfig(
    theta=10000.0,
    scaling="llama3",
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position=32,
)
BASE = ModelConfig(
    family="llama",
    dtype="float32",
    vocab_size=64,
    hidden_size=32,
    intermediate_size=48,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    rms_norm_eps=1e-5,
    rope=ROPE,
    max_position=256,
    tie_embeddings=False,
)
TOKENS = 40
# They say when to stop, not what to compute: tests/checkpoint and tests/serving hold what they do.
SERVING_ONLY = {"max_position", "bos_token_id", "eos_token_ids"}


def outcome(config: ModelConfig) -> tuple[dict[str, tuple[int, ...]], np.ndarray]:
    """(weight shapes and dtypes, logits of a 40-token prompt) with weights that depend on name and shape alone."""
    model = abstract_model(config, Placement(Layout.load("single"), jax.devices()[:1]))
    weights = dummy_weights(model.weights, 0)
    # Dummy biases are random too; larger weights make attention matter.
    leaves = tuple(weights[name] * (1 if "norm" in name else 12) for name in model.weights)
    pages = TOKENS // 8
    shape = (config.num_layers, pages + 1, config.num_kv_heads, 8, config.head_dim)
    positions = jnp.arange(TOKENS, dtype=jnp.int32)
    batch = TokenBatch(
        token_ids=positions % config.vocab_size,
        positions=positions,
        write_page=1 + positions // 8,
        write_offset=positions % 8,
        page_table=jnp.arange(1, pages + 1, dtype=jnp.int32)[None],
        query_start=jnp.zeros(1, jnp.int32),
        query_len=jnp.full(1, TOKENS, jnp.int32),
        context_len=jnp.full(1, TOKENS, jnp.int32),
        num_decode_rows=jnp.int32(0),
        num_rows=jnp.int32(1),
    )
    storage = jnp.uint16 if config.dtype == "bfloat16" else jnp.float32

    @jax.jit
    def logits(leaves, batch):
        built = model.merge(leaves)
        cache = KVCache(jnp.zeros(shape, storage), jnp.zeros(shape, storage))
        hidden, _ = built.forward(batch, cache, max_query_len=TOKENS)
        return built.logits(hidden)

    shapes = {name: (*spec.shape, str(jnp.dtype(spec.dtype))) for name, spec in model.weights.items()}
    return shapes, np.asarray(logits(leaves, batch))


CHANGES: dict[str, object] = {
    "dtype": "bfloat16",
    "vocab_size": 80,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_layers": 3,
    "num_heads": 8,
    "num_kv_heads": 4,
    "head_dim": 8,
    "rms_norm_eps": 1e-2,
    "tie_embeddings": True,
    "attention_bias": True,
    "mlp_bias": True,
}
ROPE_CHANGES: dict[str, object] = {
    "theta": 500.0,
    "scaling": "none",
    "factor": 2.0,
    "low_freq_factor": 2.0,
    "high_freq_factor": 8.0,
    "original_max_position": 64,
}


@pytest.fixture(scope="module")
def base() -> tuple[dict[str, tuple[int, ...]], np.ndarray]:
    return outcome(BASE)


def test_every_field_is_covered():
    fields = {field.name for field in dataclasses.fields(ModelConfig)}
    assert fields == {*CHANGES, *SERVING_ONLY, "family", "rope"}
    assert {field.name for field in dataclasses.fields(RopeConfig)} == set(ROPE_CHANGES)


@pytest.mark.parametrize("field", CHANGES)
def test_a_field_of_the_model(field: str, base):
    shapes, logits = outcome(dataclasses.replace(BASE, **{field: CHANGES[field]}))
    assert np.isfinite(logits).all()
    assert shapes != base[0] or np.abs(logits - base[1]).max() > 1e-3


@pytest.mark.parametrize("field", ROPE_CHANGES)
def test_a_field_of_rope(field: str, base):
    rope = dataclasses.replace(ROPE, **{field: ROPE_CHANGES[field]})
    _, logits = outcome(dataclasses.replace(BASE, rope=rope))
    assert np.isfinite(logits).all() and np.abs(logits - base[1]).max() > 1e-3


def test_linear_rope_divides_positions(base):
    linear = [
        outcome(dataclasses.replace(BASE, rope=RopeConfig(theta=1e4, scaling="linear", factor=f)))[1] for f in (1, 4)
    ]
    plain = outcome(dataclasses.replace(BASE, rope=RopeConfig(theta=1e4)))[1]
    np.testing.assert_allclose(linear[0], plain, atol=1e-6)
    assert np.abs(linear[1] - plain).max() > 1e-3


def test_unknown_family():
    with pytest.raises(UnsupportedModelError, match=r"'mamba'.*llama"):
        outcome(dataclasses.replace(BASE, family="mamba"))
