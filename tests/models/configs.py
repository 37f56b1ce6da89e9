"""A tiny config of every family, as our own dataclasses."""

from __future__ import annotations

from ryzjax.layers.rope import DynamicRope, FactorRope, LinearRope, Llama3Rope, LongRope, Rope, YarnRope
from ryzjax.models.config import ModelConfig
from ryzjax.models.gemma2 import Gemma2Config
from ryzjax.models.gemma3 import Gemma3Config
from ryzjax.models.gpt_oss import GptOssConfig
from ryzjax.models.llama import LlamaConfig
from ryzjax.models.mistral import MistralConfig
from ryzjax.models.mixtral import MixtralConfig
from ryzjax.models.olmo2 import Olmo2Config
from ryzjax.models.olmo3 import Olmo3Config
from ryzjax.models.phi3 import Phi3Config
from ryzjax.models.qwen2 import Qwen2Config
from ryzjax.models.qwen3 import Qwen3Config
from ryzjax.models.qwen3_moe import Qwen3MoeConfig
from ryzjax.models.smollm3 import SmolLM3Config

_SHAPE: dict = {
    "dtype": "float32",
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_layers": 2,
    "num_heads": 4,
    "num_kv_heads": 2,
    "head_dim": 16,
    "rms_norm_eps": 1e-5,
    "max_position": 256,
    "tie_embeddings": False,
}
ROPE = Rope(theta=10000.0, rotary_dim=16)
_NO_BIAS: dict = {"attention_bias": False}
_MOE: dict = {"num_experts": 4, "top_k": 2}

ROPES: dict[str, Rope] = {
    "plain": ROPE,
    "linear": LinearRope(theta=10000.0, rotary_dim=16, factor=4.0),
    "factors": FactorRope(theta=10000.0, rotary_dim=16, factors=(1.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0)),
    "dynamic": DynamicRope(theta=10000.0, rotary_dim=16, factor=4.0, original_max_position=16),
    "yarn": YarnRope(
        theta=10000.0,
        rotary_dim=16,
        factor=4.0,
        original_max_position=16,
        beta_fast=1.0,
        beta_slow=0.3,
        attention_factor=1.1,
        truncate=False,
    ),
    "llama3": Llama3Rope(
        theta=10000.0,
        rotary_dim=16,
        factor=8.0,
        low_freq_factor=1.0,
        high_freq_factor=4.0,
        original_max_position=32,
    ),
    "long": LongRope(
        theta=10000.0,
        rotary_dim=16,
        short_factor=(1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7),
        long_factor=(1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0),
        original_max_position=16,
        attention_factor=1.1,
    ),
}

CONFIGS: dict[str, ModelConfig] = {
    "llama": LlamaConfig(**_SHAPE, rope=ROPES["llama3"], mlp_bias=False, **_NO_BIAS),
    "mistral": MistralConfig(**_SHAPE, rope=ROPE, window=12),
    "mixtral": MixtralConfig(**_SHAPE, rope=ROPE, window=12, **_MOE),
    "qwen2": Qwen2Config(**_SHAPE, rope=ROPE, windows=(None, 12)),
    "qwen3": Qwen3Config(**_SHAPE, rope=ROPE, windows=(None, 12), **_NO_BIAS),
    "qwen3_moe": Qwen3MoeConfig(
        **_SHAPE,
        rope=ROPE,
        window=12,
        is_moe_layer=(False, True),
        expert_size=24,
        normalize_top_k=True,
        **_MOE,
        **_NO_BIAS,
    ),
    "gemma2": Gemma2Config(
        **_SHAPE,
        rope=ROPE,
        windows=(12, None),
        query_scale=0.2,
        attention_softcap=5.0,
        logit_softcap=5.0,
        activation="gelu_tanh",
        **_NO_BIAS,
    ),
    "gemma3": Gemma3Config(
        **_SHAPE,
        ropes=(ROPE, ROPES["linear"]),
        windows=(12, None),
        query_scale=0.2,
        logit_softcap=5.0,
        activation="gelu_tanh",
        **_NO_BIAS,
    ),
    "phi3": Phi3Config(**_SHAPE, rope=ROPES["long"], window=12),
    "smollm3": SmolLM3Config(
        **_SHAPE, rope=ROPE, is_rope_layer=(True, False), windows=(None, 12), mlp_bias=False, **_NO_BIAS
    ),
    "olmo2": Olmo2Config(**_SHAPE, rope=ROPE, **_NO_BIAS),
    "olmo3": Olmo3Config(**_SHAPE, ropes=(ROPE, ROPES["yarn"]), windows=(12, None), **_NO_BIAS),
    "gpt_oss": GptOssConfig(
        **_SHAPE, rope=ROPES["yarn"], windows=(12, None), swiglu_alpha=1.7, swiglu_limit=1.0, **_MOE, **_NO_BIAS
    ),
}
"""By family name."""
