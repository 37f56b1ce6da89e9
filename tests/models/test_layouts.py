"""Models over eight devices give the logits of one, whatever the layout does with heads, experts and tokens."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import jax
import numpy as np
import pytest

from ryzjax.checkpoint.hf.config import SUPPORTED_ARCHITECTURES, model_config_from_hf
from ryzjax.errors import UnsupportedModelError
from ryzjax.layers.experts import Experts
from ryzjax.layers.glu import GLU
from ryzjax.loading.dummy import dummy_weights
from ryzjax.models.config import ModelConfig
from ryzjax.models.registry import abstract_model
from ryzjax.sharding import Layout, Placement
from ryzjax.sharding.layout import ExpertExchange
from tests.models.configs import CONFIGS
from tests.models.paged import sequence_logits

TOKENS = [(7 * i) % 64 for i in range(26)]
LAYOUTS = ("tp", "tp_dp", "fsdp_tp", "ep", "ep_dp")


ONE = Placement(Layout.load("single"), jax.devices()[:1])


def logits(config: ModelConfig, layout: str) -> np.ndarray:
    placement = ONE if layout == "single" else Placement(Layout.load(layout))
    return prompt_logits(config, placement, TOKENS)


def prompt_logits(config: ModelConfig, placement: Placement, tokens: list[int]) -> np.ndarray:
    model = abstract_model(config, placement)
    weights = dummy_weights(model.weights, 0)
    leaves = tuple(weights[name] * (1 if "norm" in name else 12) for name in model.weights)
    return sequence_logits(model, leaves, tokens, prompt_len=24, chunk=24)


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


@pytest.mark.parametrize("exchange", ["all_gather", "all_to_all"])
@pytest.mark.parametrize("experts", [4, 6])
def test_both_exchanges_of_tokens_split_over_the_experts_devices(exchange: ExpertExchange, experts: int):
    # 6 experts on 4 devices: two parts. All tokens alike choose the same experts: several rounds of an all-to-all.
    rules = {"tokens": "x", "experts": "x"}
    layout = Layout(name="own", mesh={"x": 4}, rules=rules, expert_exchange=exchange)
    config = dataclasses.replace(CONFIGS["gpt_oss"], num_experts=experts)
    for tokens in ([(5 * i) % 64 for i in range(24)], [9] * 24):
        on_one, on_four = (prompt_logits(config, placement, tokens) for placement in (ONE, Placement(layout)))
        np.testing.assert_allclose(on_four, on_one, atol=2e-5)


def test_an_all_to_all_moves_less_than_gathering_every_token():
    rules = {"tokens": "x", "experts": "x"}
    kinds = {}
    for exchange in ("all_gather", "all_to_all"):
        placement = Placement(Layout(name="own", mesh={"x": 8}, rules=rules, expert_exchange=exchange))
        experts = Experts(
            hidden_size=32,
            expert_size=16,
            num_experts=64,
            glu=GLU("silu"),
            bias=False,
            dtype=np.float32,
            placement=placement,
        )
        shapes = ((64, 32), np.float32), ((64, 2), np.float32), ((64, 2), np.int32)
        arguments = [jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in shapes]
        text = jax.jit(experts.__call__).lower(*arguments).compile().as_text()
        kinds[exchange] = {kind for kind in ("all-gather", "all-to-all", "reduce-scatter") if f" {kind}(" in text}
    assert "all-to-all" in kinds["all_to_all"] and "all-to-all" not in kinds["all_gather"]
    assert "all-gather" in kinds["all_gather"]


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
    placements = [Placement(Layout.load(layout)) for layout in LAYOUTS]
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
        built[path.name] = abstract_model(model_config_from_hf(raw, source=path.name), ONE).num_parameters
        shallow = model_config_from_hf(with_layers(raw, 6), source=path.name)
        counts = set()
        for placement in placements:
            model = abstract_model(shallow, placement)
            counts.add(model.num_parameters)
            # Every weight can be placed: the shares add up to whole copies.
            for spec in model.weights.values():
                shard = math.prod(spec.sharding.shard_shape(spec.shape))
                assert math.prod(spec.shape) % shard == 0
        assert len(counts) == 1
    assert built == PARAMETERS


def with_layers(raw: dict, count: int) -> dict:
    """Returns a config of the same layers, but fewer of them. Layouts place every period of layers alike."""
    text = raw.get("text_config", raw)
    shallow = text | {"num_hidden_layers": count}
    if text.get("layer_types"):
        shallow["layer_types"] = text["layer_types"][:count]
    return raw | {"text_config": shallow} if "text_config" in raw else shallow


@pytest.mark.parity
def test_the_parameter_counts_are_those_of_transformers(shared: Path):
    pytest.importorskip("torch")
    for path in shared_configs(shared):
        if path.name in PARAMETERS:
            assert parameters_by_transformers(json.loads(path.read_text())) == PARAMETERS[path.name], path.name
