"""Our weight names against HF's."""

from __future__ import annotations

import pytest

from ryzjax.checkpoint.names import hf_weight_name, is_ignorable_weight
from ryzjax.errors import ConfigError


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("embed.weight", "model.embed_tokens.weight"),
        ("final_norm.weight", "model.norm.weight"),
        ("lm_head.weight", "lm_head.weight"),
        ("layers.0.attention_norm.weight", "model.layers.0.input_layernorm.weight"),
        ("layers.31.attention.q.weight", "model.layers.31.self_attn.q_proj.weight"),
        ("layers.3.attention.o.bias", "model.layers.3.self_attn.o_proj.bias"),
        ("layers.3.mlp_norm.weight", "model.layers.3.post_attention_layernorm.weight"),
        ("layers.3.mlp.gate.weight", "model.layers.3.mlp.gate_proj.weight"),
        ("layers.3.mlp.down.bias", "model.layers.3.mlp.down_proj.bias"),
    ],
)
def test_llama(ours: str, theirs: str):
    assert hf_weight_name(ours) == theirs


@pytest.mark.parametrize("name", ["layers.x.attention.q.weight", "layers.0.attention.z.weight", "embed", ""])
def test_unknown_name(name: str):
    with pytest.raises(ConfigError, match="no checkpoint name"):
        hf_weight_name(name)


def test_unknown_family():
    with pytest.raises(ConfigError, match="mamba"):
        hf_weight_name("embed.weight", family="mamba")


def test_ignorable():
    assert is_ignorable_weight("model.layers.0.self_attn.rotary_emb.inv_freq", is_tied=False)
    assert is_ignorable_weight("lm_head.weight", is_tied=True)
    assert not is_ignorable_weight("lm_head.weight", is_tied=False)
    assert not is_ignorable_weight("model.layers.0.self_attn.q_proj.bias", is_tied=True)
