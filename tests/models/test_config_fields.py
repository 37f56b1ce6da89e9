"""Every field of every family's config, and of every rope, acts: another value gives other logits or other shapes."""

from __future__ import annotations

import dataclasses
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ryzjax.errors import UnsupportedModelError
from ryzjax.layers.rope import Rope
from ryzjax.loading.dummy import dummy_weights
from ryzjax.models.abstract import AbstractModel
from ryzjax.models.config import ModelConfig
from ryzjax.models.registry import FAMILIES, abstract_model, family_of
from ryzjax.sharding import Layout, Placement
from tests.models.configs import CONFIGS, ROPE, ROPES
from tests.models.paged import sequence_logits

TOKENS = [(7 * i) % 64 for i in range(40)]
# They say when to stop, not what to compute: tests/checkpoint and tests/serving hold what they do.
SERVING_ONLY = {"max_position", "bos_token_id", "eos_token_ids"}
CHANGES: dict[str, object] = {
    "dtype": "bfloat16",
    "vocab_size": 80,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_layers": 1,
    "num_heads": 8,
    "num_kv_heads": 4,
    "head_dim": 24,
    "rms_norm_eps": 1e-2,
    "tie_embeddings": True,
    "attention_bias": True,
    "mlp_bias": True,
    "rope": Rope(theta=500.0, rotary_dim=16),
    "ropes": (Rope(theta=500.0, rotary_dim=16), ROPE),
    "window": 5,
    "windows": (5, 30),
    "is_rope_layer": (False, True),
    "is_moe_layer": (True, False),
    "num_experts": 6,
    "top_k": 3,
    "expert_size": 40,
    "normalize_top_k": False,
    "query_scale": 0.5,
    "attention_softcap": None,
    "logit_softcap": None,
    "activation": "gelu",
    "swiglu_alpha": 0.5,
    "swiglu_limit": 3.0,
}
ROPE_CHANGES: dict[str, object] = {
    "theta": 500.0,
    "rotary_dim": 8,
    "factor": 2.0,
    "factors": (3.0,) * 8,
    "low_freq_factor": 2.0,
    "high_freq_factor": 8.0,
    "original_max_position": 24,
    "beta_fast": 2.0,
    "beta_slow": 0.1,
    "attention_factor": 1.5,
    "truncate": True,
    "short_factor": (3.0,) * 8,
    "long_factor": (3.0,) * 8,
}


def build(config: ModelConfig) -> AbstractModel:
    return abstract_model(config, Placement(Layout.load("single"), jax.devices()[:1]))


def shapes(config: ModelConfig) -> list[tuple[object, ...]]:
    return [(name, spec.shape, spec.dtype) for name, spec in build(config).weights.items()]


@cache
def logits(config: ModelConfig) -> np.ndarray:
    """Logits of 40 tokens with weights that depend on name and shape alone."""
    model = build(config)
    weights = dummy_weights(model.weights, 0)
    # Dummy biases are random too; larger weights make attention matter.
    leaves = tuple(weights[name] * (1 if "norm" in name else 12) for name in model.weights)
    with jax.disable_jit():  # every config is a program of its own: compiling them would take minutes
        return sequence_logits(model, leaves, TOKENS, prompt_len=40, chunk=40)


def acts(changed: ModelConfig, base: ModelConfig) -> bool:
    if shapes(changed) != shapes(base):
        return True
    assert np.isfinite(logits(changed)).all()
    return bool(np.abs(logits(changed) - logits(base)).max() > 1e-3)


FIELDS = [
    (family, field.name)
    for family, config in CONFIGS.items()
    for field in dataclasses.fields(config)
    if field.name not in SERVING_ONLY
]


@pytest.mark.parametrize(("family", "field"), FIELDS)
def test_a_field_of_a_family(family: str, field: str):
    config = CONFIGS[family]
    assert acts(dataclasses.replace(config, **{field: CHANGES[field]}), config)


def test_every_family_is_here():
    assert {family_of(config) for config in CONFIGS.values()} == set(FAMILIES)
    assert all(type(config) is FAMILIES[family][0] for family, config in CONFIGS.items())


ROPE_FIELDS = [(kind, field.name) for kind, rope in ROPES.items() for field in dataclasses.fields(rope)]


def rotated(rope: Rope) -> np.ndarray:
    """cos and sin of a short and of a long sequence."""
    positions = jnp.arange(32)
    tables = [rope.cos_sin(positions, jnp.full(32, length)) for length in (8, 20)]
    return np.asarray(tables)


@pytest.mark.parametrize(("kind", "field"), ROPE_FIELDS)
def test_a_field_of_a_rope(kind: str, field: str):
    rope = ROPES[kind]
    changes: dict[str, object] = {field: ROPE_CHANGES[field]}
    if field == "rotary_dim" and kind == "factors":
        changes |= {"factors": (1.0,) * 4}
    if field == "rotary_dim" and kind == "long":
        changes |= {"short_factor": (1.0,) * 4, "long_factor": (1.0,) * 4}
    base, changed = rotated(rope), rotated(dataclasses.replace(rope, **changes))
    assert base.shape != changed.shape or np.abs(base - changed).max() > 1e-3


def test_ropes_differ():
    tables = {kind: rotated(rope) for kind, rope in ROPES.items()}
    for a in tables:
        for b in tables:
            assert a == b or np.abs(tables[a] - tables[b]).max() > 1e-2, (a, b)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MambaConfig(ModelConfig):
    """Of no family."""


def test_unknown_family():
    shape = {field.name: getattr(CONFIGS["llama"], field.name) for field in dataclasses.fields(ModelConfig)}
    with pytest.raises(UnsupportedModelError, match=r"MambaConfig.*LlamaConfig"):
        family_of(MambaConfig(**shape))
