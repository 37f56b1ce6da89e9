"""The model families by name, and `abstract_model`, which builds a model without allocating its weights."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import numpy as np
from flax import nnx

from ryzjax.errors import ConfigError, UnsupportedModelError
from ryzjax.layers.experts import ExpertLinear
from ryzjax.layers.linear import Linear
from ryzjax.models.abstract import AbstractModel
from ryzjax.models.config import ModelConfig
from ryzjax.models.decoder import Decoder, Embedding
from ryzjax.models.gemma2 import Gemma2, Gemma2Config
from ryzjax.models.gemma3 import Gemma3, Gemma3Config
from ryzjax.models.gpt_oss import GptOss, GptOssConfig
from ryzjax.models.llama import Llama, LlamaConfig
from ryzjax.models.mistral import Mistral, MistralConfig
from ryzjax.models.mixtral import Mixtral, MixtralConfig
from ryzjax.models.olmo2 import Olmo2, Olmo2Config
from ryzjax.models.olmo3 import Olmo3, Olmo3Config
from ryzjax.models.phi3 import Phi3, Phi3Config
from ryzjax.models.qwen2 import Qwen2, Qwen2Config
from ryzjax.models.qwen3 import Qwen3, Qwen3Config
from ryzjax.models.qwen3_moe import Qwen3Moe, Qwen3MoeConfig
from ryzjax.models.smollm3 import SmolLM3, SmolLM3Config
from ryzjax.models.weight_spec import WeightSpec
from ryzjax.qarray import QFormat
from ryzjax.sharding import Placement

__all__ = ["FAMILIES", "abstract_model", "family_of"]

FAMILIES: Mapping[str, tuple[type[ModelConfig], type[Decoder]]] = {
    "llama": (LlamaConfig, Llama),
    "mistral": (MistralConfig, Mistral),
    "mixtral": (MixtralConfig, Mixtral),
    "qwen2": (Qwen2Config, Qwen2),
    "qwen3": (Qwen3Config, Qwen3),
    "qwen3_moe": (Qwen3MoeConfig, Qwen3Moe),
    "gemma2": (Gemma2Config, Gemma2),
    "gemma3": (Gemma3Config, Gemma3),
    "phi3": (Phi3Config, Phi3),
    "smollm3": (SmolLM3Config, SmolLM3),
    "olmo2": (Olmo2Config, Olmo2),
    "olmo3": (Olmo3Config, Olmo3),
    "gpt_oss": (GptOssConfig, GptOss),
}
"""Family name -> the classes of its config and of its model."""


def family_of(config: ModelConfig) -> str:
    """Returns the name of a config's family, a key of `FAMILIES`.

    Raises:
      UnsupportedModelError: No family has a config of this class.
    """
    for name, (config_class, _) in FAMILIES.items():
        if type(config) is config_class:
            return name
    known = ", ".join(config_class.__name__ for config_class, _ in FAMILIES.values())
    raise UnsupportedModelError(f"no model family has a {type(config).__name__}; expected one of {known}")


def abstract_model(
    config: ModelConfig, placement: Placement, quantization: Mapping[str, QFormat] | None = None
) -> AbstractModel:
    """Builds the model of a config without allocating its weights.

    Args:
      config: The config, of a family's own class.
      placement: The devices of the weights and activations.
      quantization: Name of a linear layer ("layers.0.attention.q"), or "embed" -> the format of its quantized weight.
        All other weights have the config's dtype. The leaves of a quantized weight are named as in `qarray.LEAVES`.

    Raises:
      UnsupportedModelError: No family has a config of this class.
      LayoutError: The layout puts two dimensions of a weight on one mesh axis, or splits a quantized group.
      ConfigError: The model lacks a quantized layer, or a format does not fit the shape of its layer.
    """
    _, build = FAMILIES[family_of(config)]

    linears: dict[str, tuple[int, ...]] = {}

    def make() -> Decoder:
        model = build(config, placement)
        for path, module in nnx.iter_modules(model):
            if isinstance(module, (Linear, ExpertLinear)):
                linears[".".join(map(str, path))] = module.weight.shape  # pyright: ignore
        for name, format in (quantization or {}).items():
            _quantize(model, name, format)
        return model

    model = nnx.eval_shape(make)
    graphdef, state = nnx.split(model)
    leaves = jax.tree.leaves(state)
    weights = {}
    for (path, variable), leaf in zip(nnx.to_flat_state(state), leaves, strict=True):
        metadata = variable.get_metadata()
        weights[".".join(map(str, path))] = WeightSpec(
            shape=leaf.shape,
            dtype=np.dtype(metadata["values"]),
            stored_dtype=leaf.dtype,
            sharding=placement.sharding(metadata["axes"], leaf.shape, metadata["units"]),
        )
    return AbstractModel(
        config=config,
        placement=placement,
        graphdef=graphdef,
        weights=weights,
        state=state,
        ropes=model.ropes,
        linears=linears,
        quantization=dict(quantization or {}),
    )


def _quantize(model: Decoder, name: str, format: QFormat) -> None:
    """Replaces the weight of one linear layer, or of the embedding, by an empty quantized weight."""
    module: object = model
    for part in name.split("."):
        if isinstance(module, nnx.List):
            module = module[int(part)] if part.isdecimal() and int(part) < len(module) else None
        else:
            module = getattr(module, part, None)
    if not isinstance(module, (Linear, Embedding)):
        raise ConfigError(f"cannot quantize {name!r}: the model has no such linear layer")
    module.quantize(name, format)
