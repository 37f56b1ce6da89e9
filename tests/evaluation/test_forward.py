"""A forward outside the engine gives the logits of the whole prompt at once, in chunks and over several devices."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

from ryzjax.errors import ConfigError, RequestError
from ryzjax.evaluation import Forward, Head, OpenModel, open_model
from ryzjax.models.abstract import AbstractModel
from ryzjax.sharding import Layout, Placement
from tests.evaluation.models import built
from tests.models.configs import CONFIGS
from tests.models.paged import sequence_logits

TOKENS = [(7 * i) % 64 for i in range(150)]


def logits(model: AbstractModel, leaves: tuple[jax.Array, ...], **settings: int) -> np.ndarray:
    forward = Forward(model, leaves, max_tokens=len(TOKENS), **settings)
    return np.asarray(Head(model, leaves).logits(forward.hidden(TOKENS)))


@pytest.mark.parametrize("name", ["qwen3", "gemma2", "phi3", "smollm3", "gpt_oss"])
def test_the_logits_of_one_chunk(name: str) -> None:
    model, leaves = built(CONFIGS[name])
    whole = sequence_logits(model, leaves, TOKENS, prompt_len=len(TOKENS), chunk=len(TOKENS))
    np.testing.assert_allclose(logits(model, leaves, chunk_tokens=64), whole, atol=5e-5)


@pytest.mark.parametrize("chunk", [7, 149, 150, 512])
def test_any_chunk(chunk: int) -> None:
    model, leaves = built(CONFIGS["qwen3"])
    np.testing.assert_allclose(logits(model, leaves, chunk_tokens=chunk), logits(model, leaves), atol=2e-5)


@pytest.mark.parametrize("layout", ["fsdp_tp", "ep_dp"])
def test_other_placements(layout: str) -> None:
    config = CONFIGS["mixtral"]
    placement = Placement(Layout.load(layout))
    model, leaves = built(config, placement)
    assert placement.num_devices == 8 and any(not leaf.sharding.is_fully_replicated for leaf in leaves)
    np.testing.assert_allclose(logits(model, leaves, chunk_tokens=60), logits(*built(config)), atol=5e-5)


def test_a_sequence_leaves_nothing_to_the_next() -> None:
    model, leaves = built(CONFIGS["llama"])
    forward = Forward(model, leaves, max_tokens=100)
    first = np.asarray(forward.hidden(TOKENS[:30]))
    forward.hidden(TOKENS[50:150])
    np.testing.assert_array_equal(np.asarray(forward.hidden(TOKENS[:30])), first)
    assert first.shape == (30, model.config.hidden_size)


@pytest.mark.parametrize("ties", [False, True])
def test_the_head_keeps_only_what_it_reads(ties: bool) -> None:
    model, leaves = built(dataclasses.replace(CONFIGS["gemma2"], tie_embeddings=ties))
    head = Head(model, leaves)
    assert set(head.weights) == {"final_norm.weight", "embed.weight" if ties else "lm_head.weight"}
    hidden = np.random.default_rng(0).normal(size=(5, 32)).astype(np.float32)
    np.testing.assert_allclose(head.logits(hidden), model.merge(leaves).logits(jax.numpy.asarray(hidden)), atol=1e-5)


def test_bad_input(tiny: OpenModel) -> None:
    model, leaves = built(CONFIGS["llama"])
    with pytest.raises(ConfigError, match="max_tokens=257 is out of range; expected 1 to 256"):
        Forward(model, leaves, max_tokens=257)
    forward = Forward(model, leaves, max_tokens=8)
    with pytest.raises(RequestError, match="9 tokens; expected 1 to max_tokens=8"):
        forward.hidden(TOKENS[:9])
    with pytest.raises(RequestError, match="0 tokens"):
        list(forward.chunks([]))
    with pytest.raises(RequestError, match="id 64; expected 0 to 63"):
        forward.hidden([1, 64])
    with pytest.raises(ConfigError, match="load_format='dummy'"):
        open_model(str(tiny.source.path), load_format="dummy")
