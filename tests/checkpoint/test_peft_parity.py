"""Adapters against the peft package: each package reads the other's files, and the logits are the same."""

from __future__ import annotations

import warnings
from pathlib import Path

import jax
import numpy as np
import pytest

from ryzjax.checkpoint.peft.read import read_adapter
from ryzjax.checkpoint.peft.write import write_adapter
from ryzjax.errors import UnsupportedModelError
from ryzjax.evaluation.forward import Forward, Head
from ryzjax.lora import Adapter, adapted
from ryzjax.models.abstract import AbstractModel
from tests.goldens.make_families import build
from tests.goldens.make_families import prompt as family_prompt
from tests.peft_models import adapted_by_peft, opened

pytestmark = pytest.mark.parity
torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")

TOKENS = family_prompt(seed=3)[:40]
TOLERANCE = 1e-4
ATTENTION = ["q_proj", "v_proj", "o_proj"]

VARIANTS: dict[str, tuple[str, dict[str, object]]] = {
    "plain": ("llama", {"target_modules": ATTENTION}),
    "all-linear": ("llama biases, head_dim", {"target_modules": "all-linear"}),
    "rslora": ("qwen2", {"target_modules": ["q_proj", "down_proj"], "use_rslora": True}),
    "dora": ("qwen2", {"target_modules": ["k_proj", "up_proj"], "use_dora": True}),
    "dora, rslora": ("gemma2", {"target_modules": "all-linear", "use_dora": True, "use_rslora": True}),
    "patterns": (
        "llama",
        {
            "target_modules": [*ATTENTION, "gate_proj"],
            "rank_pattern": {"q_proj": 2, r"^model.layers.1.self_attn.o_proj": 6},
            "alpha_pattern": {r"layers\.0\.self_attn\.v_proj": 3.0, "gate_proj": 20},
        },
    ),
    "lm_head": ("llama", {"target_modules": ["lm_head", "o_proj"]}),
    "regular expression": ("qwen3", {"target_modules": r".*layers\.1\..*(q|down)_proj"}),
    "some layers": ("llama", {"target_modules": ["q_proj"], "layers_to_transform": [1]}),
    "excluded": ("llama", {"target_modules": "all-linear", "exclude_modules": ["o_proj"]}),
    "fused": ("phi3", {"target_modules": "all-linear", "rank_pattern": {"qkv_proj": 3}}),
    "fused dora": ("phi3", {"target_modules": ["qkv_proj", "gate_up_proj"], "use_dora": True}),
    "experts left out": ("qwen3 moe", {"target_modules": ["q_proj", "k_proj"]}),
}


def torch_logits(model) -> np.ndarray:
    with torch.inference_mode():
        return model(torch.tensor([TOKENS]), use_cache=False).logits[0].float().numpy()


def our_logits(model: AbstractModel, leaves: tuple[jax.Array, ...], adapter: Adapter) -> np.ndarray:
    both = adapted(model, leaves, adapter, name="test")
    hidden = Forward(*both, max_tokens=len(TOKENS)).hidden(TOKENS)
    return np.asarray(Head(*both).logits(hidden))


@pytest.mark.parametrize("name", VARIANTS)
def test_peft_to_us_and_back(name: str, tmp_path: Path):
    family, options = VARIANTS[name]
    base, theirs, ours = tmp_path / "base", tmp_path / "theirs", tmp_path / "ours"
    base.mkdir()
    torch_model, _ = build(family, base, seed=1)
    plain = torch_logits(torch_model)
    wanted = torch_logits(adapted_by_peft(torch_model, options, theirs))
    assert np.abs(wanted - plain).max() > 0.1, "the adapter must matter"

    model, leaves = opened(base)
    adapter = read_adapter(theirs, model)
    assert np.abs(our_logits(model, leaves, adapter) - wanted).max() < TOLERANCE

    write_adapter(ours, adapter, model, base_model=str(base))
    again, _ = build(family, tmp_path, seed=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # transformers warns about peft's calls
        loaded = peft.PeftModel.from_pretrained(again, ours).eval()
    assert np.abs(torch_logits(loaded) - wanted).max() < TOLERANCE
    reread = read_adapter(ours, model)
    assert set(reread.weights) == set(adapter.weights)
    assert {n: reread.config.scale_of(n) for n in reread.weights} == {
        n: adapter.config.scale_of(n) for n in reread.weights
    }


@pytest.mark.parametrize("use_rslora", [False, True])
def test_a_pissa_that_peft_converted(use_rslora: bool, tmp_path: Path):
    """PEFT's conversion subtracts the initial update. An adapter without it belongs to another base and is refused."""
    base, initial, ours = tmp_path / "base", tmp_path / "initial", tmp_path / "converted"
    base.mkdir()
    torch_model, _ = build("llama", base, seed=1)
    config = peft.LoraConfig(
        r=4, lora_alpha=6, target_modules=ATTENTION, init_lora_weights="pissa", use_rslora=use_rslora
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT's warning about the weights that it changes
        model = peft.get_peft_model(torch_model, config)
        model.peft_config["default"].init_lora_weights = True
        model.save_pretrained(initial)
        model.peft_config["default"].init_lora_weights = "pissa"
        torch.manual_seed(3)
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.data.add_(0.1 * torch.randn_like(parameter))
        wanted = torch_logits(model.eval())
        model.save_pretrained(tmp_path / "unconverted")
        model.save_pretrained(ours, path_initial_model_for_weight_conversion=str(initial))
    opened_model, leaves = opened(base)
    adapter = read_adapter(ours, opened_model)
    assert adapter.max_rank == 8
    assert np.abs(our_logits(opened_model, leaves, adapter) - wanted).max() < TOLERANCE
    with pytest.raises(UnsupportedModelError, match="path_initial_model_for_weight_conversion"):
        read_adapter(tmp_path / "unconverted", opened_model)
