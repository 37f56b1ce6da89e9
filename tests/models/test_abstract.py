"""AbstractModel names its weights: those of each layer, those outside the layers, and those that the head reads."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ryzjax.lora.adapter import Adapter, LoraWeights
from ryzjax.lora.config import LoraConfig
from ryzjax.lora.model import adapted
from ryzjax.models.weight_names import layer_name, split_layer
from tests.evaluation.models import built
from tests.models.configs import CONFIGS


def test_names_are_split_and_joined() -> None:
    assert layer_name(12, "mlp.up.weight") == "layers.12.mlp.up.weight"
    assert split_layer("layers.12.mlp.up.weight") == (12, "mlp.up.weight")
    assert split_layer("lm_head.weight") == (None, "lm_head.weight")


@pytest.mark.parametrize("name", CONFIGS)
def test_every_weight_is_in_one_layer_or_outer(name: str) -> None:
    model, _ = built(CONFIGS[name])
    layers = [model.layer_names(layer) for layer in range(model.config.num_layers)]
    assert sorted([*model.outer_names, *(weight for names in layers for weight in names)]) == sorted(model.weights)
    assert all(names for names in layers)
    head = set() if model.config.tie_embeddings else {"lm_head.weight"}
    assert set(model.outer_names) == {"embed.weight", "final_norm.weight", *head}
    linears = [linear for layer in range(len(layers)) for linear in model.layer_linears(layer)]
    assert sorted([*linears, *model.layer_linears(None)]) == sorted(model.linears)
    assert all(f"{linear}.weight" in model.weights for linear in linears)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("ties", [False, True])
def test_the_head_reads_the_weights_it_names_and_no_others(name: str, ties: bool) -> None:
    model, leaves = built(dataclasses.replace(CONFIGS[name], tie_embeddings=ties))
    weights = dict(zip(model.weights, leaves, strict=True))
    hidden = jnp.asarray(np.random.default_rng(0).normal(size=(3, model.config.hidden_size)), model.config.dtype)
    own = {name: weights[name] for name in model.head_names}
    assert len(own) == 2
    np.testing.assert_array_equal(model.merge_some(own).logits(hidden), model.merge(leaves).logits(hidden))
    for missing in own:
        some = {name: weight for name, weight in own.items() if name != missing}
        with pytest.raises(TypeError):
            model.merge_some(some).logits(hidden)


def test_the_head_of_an_adapted_model_includes_its_adapter() -> None:
    base, leaves = built(CONFIGS["llama"])
    assert not base.config.tie_embeddings
    (n, k), rank = base.linears["lm_head"], 2
    keys = jax.random.split(jax.random.key(0))
    update = LoraWeights(a=jax.random.normal(keys[0], (rank, k)), b=jax.random.normal(keys[1], (n, rank)))
    adapter = Adapter(config=LoraConfig(rank=rank, targets=("lm_head",)), weights={"lm_head": update})
    model, leaves = adapted(base, leaves, adapter, name="test")
    assert {"lm_head.weight", "lm_head.lora.a", "lm_head.lora.b"} < set(model.head_names)
    weights = dict(zip(model.weights, leaves, strict=True))
    hidden = jax.random.normal(jax.random.key(1), (3, base.config.hidden_size))
    found = model.merge_some({name: weights[name] for name in model.head_names}).logits(hidden)
    np.testing.assert_array_equal(found, model.merge(leaves).logits(hidden))
    assert np.abs(found - base.merge(tuple(leaves[: len(base.weights)])).logits(hidden)).max() > 0.1
