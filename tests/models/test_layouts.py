"""Models over eight devices give the logits of one, whatever the layout does with heads, experts and tokens."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import jax
import numpy as np
import pytest

from ryzjax.checkpoint.dummy import dummy_weights
from ryzjax.checkpoint.hf_config import SUPPORTED_ARCHITECTURES, model_config_from_hf
from ryzjax.errors import UnsupportedModelError
from ryzjax.models.config import ModelConfig
from ryzjax.models.registry import abstract_model
from ryzjax.sharding import Layout, Placement
from tests.models.configs import CONFIGS
from tests.models.paged import sequence_logits

TOKENS = [(7 * i) % 64 for i in range(26)]
LAYOUTS = ("tp", "tp_dp", "fsdp_tp", "ep", "ep_dp")


def logits(config: ModelConfig, layout: str) -> np.ndarray:
    model = abstract_model(config, Placement(Layout.load(layout), jax.devices()[: 1 if layout == "single" else 8]))
    weights = dummy_weights(model.weights, 0)
    leaves = tuple(weights[name] * (1 if "norm" in name else 12) for name in model.weights)
    return sequence_logits(model, leaves, TOKENS, prompt_len=24, chunk=24)


ODD_HEADS = dataclasses.replace(CONFIGS["llama"], num_heads=12, num_kv_heads=6, vocab_size=74)
CASES = [
    *(("mixtral", CONFIGS["mixtral"], layout) for layout in LAYOUTS),
    ("gpt_oss", CONFIGS["gpt_oss"], "ep"),
    ("gpt_oss", CONFIGS["gpt_oss"], "ep_dp"),
    ("olmo3", CONFIGS["olmo3"], "tp"),
    ("odd heads", ODD_HEADS, "tp"),
    ("gemma3", CONFIGS["gemma3"], "fsdp_tp"),
]


@pytest.mark.parametrize(("name", "config", "layout"), CASES, ids=[f"{name}-{layout}" for name, _, layout in CASES])
def test_logits_of_one_device(name: str, config: ModelConfig, layout: str):
    np.testing.assert_allclose(logits(config, layout), logits(config, "single"), atol=2e-5)


def test_experts_are_split_as_the_layout_says():
    shares = {}
    for layout in LAYOUTS:
        model = abstract_model(CONFIGS["mixtral"], Placement(Layout.load(layout)))
        spec = model.weights["layers.0.mlp.experts.gate.weight"]
        shard = spec.sharding.shard_shape(spec.shape)
        shares[layout] = tuple(full // part for full, part in zip(spec.shape, shard, strict=True))
    # 4 experts, 48 inner features and 32 hidden ones over 8 devices.
    assert shares == {"tp": (1, 8, 1), "tp_dp": (1, 4, 1), "fsdp_tp": (1, 4, 2), "ep": (4, 1, 1), "ep_dp": (2, 4, 1)}


def parameters_by_transformers(raw: dict) -> int:
    """Parameters of transformers' own model of this config, built without memory."""
    import torch
    import transformers

    config = transformers.AutoConfig.for_model(**raw)
    config = config.get_text_config()
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    model.tie_weights()
    return sum(parameter.numel() for parameter in {id(p): p for p in model.parameters()}.values())


def shared_configs(shared: Path) -> list[Path]:
    paths = sorted((shared / "configs").glob("*.json"))
    assert len(paths) > 40
    return paths


PARAMETERS = json.loads((Path(__file__).resolve().parents[1] / "goldens" / "parameters.json").read_text())
"""Config file -> parameters, by `parameters_by_transformers`."""


def test_every_shared_config_builds_at_full_size_or_names_its_architecture(shared: Path):
    placements = [Placement(Layout.load(layout)) for layout in ("single", *LAYOUTS)]
    built = {}
    for path in shared_configs(shared):
        raw = json.loads(path.read_text())
        names = raw.get("architectures") or [raw["model_type"]]
        known = {
            *SUPPORTED_ARCHITECTURES,
            *(t for f in SUPPORTED_ARCHITECTURES.values() for t in f.architectures.values()),
        }
        if names[0] not in known:
            with pytest.raises(UnsupportedModelError, match=names[0]):
                model_config_from_hf(raw, source=path.name)
            continue
        config = model_config_from_hf(raw, source=path.name)
        counts = set()
        for placement in placements:
            model = abstract_model(config, placement)
            counts.add(model.num_parameters)
            # Every weight can be placed: the shares add up to whole copies.
            for spec in model.weights.values():
                shard = math.prod(spec.sharding.shard_shape(spec.shape))
                assert math.prod(spec.shape) % shard == 0
        assert len(counts) == 1
        built[path.name] = counts.pop()
    assert built == PARAMETERS


@pytest.mark.parity
def test_the_parameter_counts_are_those_of_transformers(shared: Path):
    pytest.importorskip("torch")
    for path in shared_configs(shared):
        if path.name in PARAMETERS:
            assert parameters_by_transformers(json.loads(path.read_text())) == PARAMETERS[path.name], path.name
