"""Models of transformers with adapters of peft, and the same models in RyzJAX. torch and peft are imported on use."""

from __future__ import annotations

import warnings
from pathlib import Path

import jax

from ryzjax.checkpoint import model_config_from_hf, resolve_source
from ryzjax.loading import load_weights
from ryzjax.models.abstract import AbstractModel
from ryzjax.models.registry import abstract_model
from ryzjax.sharding import Layout, Placement

__all__ = ["adapted_by_peft", "opened"]


def adapted_by_peft(model, options: dict[str, object], folder: Path):
    """Returns a PEFT model whose adapter has random weights, as after training, and saves it to `folder`."""
    import peft
    import torch

    torch.manual_seed(7)
    # PEFT warns when it saves the weight of a head itself.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = peft.get_peft_model(model, peft.LoraConfig(r=4, lora_alpha=6, lora_dropout=0.1, **options))
        for name, parameter in model.named_parameters():
            if "lora_A" in name or "lora_B" in name:
                parameter.data.normal_(0, 0.3)
            elif "lora_magnitude" in name:
                parameter.data.mul_(1 + 0.2 * torch.randn_like(parameter))
        model.save_pretrained(folder)
    return model.eval()


def opened(folder: Path) -> tuple[AbstractModel, tuple[jax.Array, ...]]:
    source = resolve_source(str(folder))
    config = model_config_from_hf(source.config, source.generation, dtype="float32")
    model = abstract_model(config, Placement(Layout.load("single")))
    return model, tuple(load_weights(source, model).values())
