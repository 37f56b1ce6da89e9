"""Layers in a scan, over packed segments, against the served model over pages."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ryzjax.batch import SegmentBatch
from ryzjax.evaluation.forward import Forward
from ryzjax.models.config import ModelConfig
from ryzjax.models.stacked import StackedModel, segment_lengths
from tests.evaluation.models import built
from tests.models.configs import CONFIGS

FIRST = [(7 * i) % 64 for i in range(19)]
SECOND = [(5 * i + 3) % 64 for i in range(9)]


def packed_batch() -> SegmentBatch:
    """Both sequences in a row, and padding behind them."""
    length = 32
    tokens, positions, segments = (np.zeros((1, length), np.int32) for _ in range(3))
    for number, (start, ids) in enumerate([(0, FIRST), (len(FIRST), SECOND)], 1):
        where = slice(start, start + len(ids))
        tokens[0, where], positions[0, where], segments[0, where] = ids, np.arange(len(ids)), number
    return SegmentBatch(jnp.asarray(tokens), jnp.asarray(positions), jnp.asarray(segments))


def stacked_hidden(config: ModelConfig) -> tuple[StackedModel, jax.Array]:
    model, leaves = built(config)
    stacked = StackedModel(model)
    weights = stacked.stack(dict(zip(model.weights, leaves, strict=True)))
    batch = packed_batch()

    @jax.jit
    def run(weights: dict[str, jax.Array]) -> jax.Array:
        x = stacked.decoder(weights).embed_tokens(batch.token_ids.reshape(-1))
        return stacked.blocks(
            x,
            batch,
            trained={stack.name: stack.select(weights) for stack in stacked.stacks},
            frozen={},
            build=lambda stack, own, _: stack.block(own),
            remat="full",
        )

    return stacked, run(weights)


FAMILIES = ("llama", "mistral", "mixtral", "qwen3", "gemma2", "gemma3", "phi3", "smollm3", "olmo2", "gpt_oss")


@pytest.mark.parametrize("family", FAMILIES)
def test_hidden_states_of_the_served_model(family: str) -> None:
    config = dataclasses.replace(CONFIGS[family])
    model, leaves = built(config)
    forward = Forward(model, leaves, max_tokens=32)
    _, hidden = stacked_hidden(config)
    expected = np.concatenate([forward.hidden(FIRST), forward.hidden(SECOND)])
    np.testing.assert_allclose(hidden[: len(expected)], expected, rtol=1e-4, atol=1e-4)


def test_stacks_follow_the_kinds_of_layers() -> None:
    """Qwen 2 with windows (None, 12, None, 12, None): two kinds in turn, and one layer behind whole periods."""
    base = CONFIGS["qwen2"]
    config = dataclasses.replace(base, num_layers=5, windows=(None, 12, None, 12, None))  # pyright: ignore
    stacked = StackedModel(built(config)[0])
    assert [stack.name for stack in stacked.scanned] == ["layers[0::2]", "layers[1::2]"]
    assert [list(stack.layers) for stack in stacked.stacks] == [[0, 2], [1, 3], [4]]


def test_unstack_is_the_reverse_of_stack() -> None:
    model, leaves = built(dataclasses.replace(CONFIGS["llama"], dtype="bfloat16", num_layers=3))
    weights = dict(zip(model.weights, leaves, strict=True))
    stacked = StackedModel(model)
    back = dict(stacked.unstack(stacked.stack(dict(weights))))
    assert back.keys() == weights.keys()
    for name, array in weights.items():
        assert back[name].dtype == array.dtype
        np.testing.assert_array_equal(np.asarray(back[name]).view(np.uint16), np.asarray(array).view(np.uint16))


def test_segment_lengths() -> None:
    lengths = segment_lengths(packed_batch())[0]
    assert set(np.asarray(lengths[: len(FIRST)])) == {len(FIRST)}
    assert set(np.asarray(lengths[len(FIRST) : len(FIRST) + len(SECOND)])) == {len(SECOND)}
