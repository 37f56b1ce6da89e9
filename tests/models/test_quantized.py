"""Quantized linear layers in a model: the logits of the dequantized weights, under every layout."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ryzjax.errors import ConfigError, LayoutError
from ryzjax.loading.dummy import dummy_weights
from ryzjax.models.abstract import AbstractModel
from ryzjax.models.registry import abstract_model
from ryzjax.ops.embedding import embed_quantized
from ryzjax.qarray import LEAVES, QArray, QFormat, dequantize
from ryzjax.sharding import Layout, Placement
from tests.models.configs import CONFIGS
from tests.models.paged import sequence_logits
from tests.qarrays import FORMATS, random_qarray

CONFIG = dataclasses.replace(
    CONFIGS["llama"], hidden_size=64, intermediate_size=256, num_heads=8, num_kv_heads=2, vocab_size=128
)
TOKENS = [(7 * i) % 128 for i in range(20)]
ONE = Placement(Layout.load("single"), jax.devices()[:1])
LINEARS = ("attention.q", "attention.k", "attention.v", "attention.o", "mlp.gate", "mlp.up", "mlp.down")
ALL = [f"layers.{i}.{linear}" for i in range(CONFIG.num_layers) for linear in LINEARS] + ["lm_head"]


def quantized(format: QFormat, placement: Placement, names: list[str] = ALL) -> AbstractModel:
    return abstract_model(CONFIG, placement, dict.fromkeys(names, format))


def logits(model: AbstractModel, weights: dict[str, jax.Array]) -> np.ndarray:
    leaves = tuple(weights[name] for name in model.weights)
    return sequence_logits(model, leaves, TOKENS, prompt_len=16, chunk=8)


def dense_weights(model: AbstractModel, weights: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """The same weights, dequantized, of the plain model."""
    plain = {name: value for name, value in weights.items() if ".weight." not in name}
    for name, format in model.quantization.items():
        leaves = {leaf: weights.get(f"{name}.weight.{leaf}") for leaf in LEAVES}
        plain[f"{name}.weight"] = dequantize(QArray(format=format, **leaves))  # pyright: ignore
    return plain


@pytest.mark.parametrize("name", [name for name, format in FORMATS.items() if format.activations is None])
def test_logits_are_those_of_the_dequantized_weights(name: str):
    model = quantized(FORMATS[name], ONE)
    weights = dummy_weights(model.weights, 1)
    plain = logits(abstract_model(CONFIG, ONE), dense_weights(model, weights))
    np.testing.assert_allclose(logits(model, weights), plain, atol=2e-5)


@pytest.mark.parametrize(
    "layout", ["tp", pytest.param("tp_dp", marks=pytest.mark.slow), pytest.param("fsdp_tp", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("name", ["int4_zeros", "int4_order_16", "int8_rows", "w8a8", "nf4_nested_16", "float8_16"])
def test_layouts_agree_with_one_device(name: str, layout: str):
    sixteen = {
        "int4_order_16": QFormat(kind="int4", group=16, pack=16, has_order=True),
        "nf4_nested_16": QFormat(kind="float4", group=16, pack=16, scale_dtype="nested"),
        "float8_16": QFormat(kind="float8", group=16, rows=16),
    }
    format = FORMATS.get(name) or sixteen[name]
    names = [each for each in ALL if not (name == "float8_16" and each.endswith(("q", "k", "v")))]
    placement = Placement(Layout.load(layout))
    model = quantized(format, placement, names)
    alone = quantized(format, ONE, names)
    np.testing.assert_allclose(
        logits(model, dummy_weights(model.weights, 1)), logits(alone, dummy_weights(alone.weights, 1)), atol=2e-5
    )
    values = model.weights["layers.0.mlp.down.weight.values"]
    assert values.sharding.shard_shape(values.shape) != values.shape


def test_layers_of_one_format_are_traced_once(monkeypatch: pytest.MonkeyPatch):
    from ryzjax.ops.linear import project

    traced = []
    original = project.project_quantized

    def counting(*args, **kwargs):
        traced.append(args[1].format)
        return original(*args, **kwargs)

    monkeypatch.setattr(project, "project_quantized", counting)
    config = dataclasses.replace(CONFIG, num_layers=6)
    names = [f"layers.{i}.mlp.up" for i in range(6)]
    model = abstract_model(config, ONE, dict.fromkeys(names, FORMATS["int4"]))
    jax.clear_caches()
    sequence_logits(model, tuple(dummy_weights(model.weights, 0).values()), TOKENS[:8], prompt_len=8, chunk=8)
    assert len(traced) == 1


def test_parameters_are_counted_as_of_the_matrices():
    plain = abstract_model(CONFIG, ONE).num_parameters
    for name in ("int4_zeros", "int8", "nf4_nested"):
        assert quantized(FORMATS[name], ONE).num_parameters == plain


def test_a_group_must_not_be_split():
    with pytest.raises(LayoutError, match=r"layers\.0\.mlp\.down.*256.*ffn.*8 devices.*32 each.*groups of 64"):
        quantized(QFormat(kind="int4", group=64, pack=64), Placement(Layout.load("tp")), ["layers.0.mlp.down"])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("layers.0.mlp.side", "no such linear"),
        ("layers.9.mlp.up", "no such linear"),
        ("final_norm", "no such linear"),
    ],
)
def test_a_layer_that_cannot_be_quantized(name: str, message: str):
    with pytest.raises(ConfigError, match=message):
        quantized(FORMATS["int4"], ONE, [name])


@pytest.mark.parametrize("format", ["float8_blocks", "nf4_nested", "int4_order"])
def test_a_format_that_rows_of_the_embedding_table_cannot_be_looked_up_in(format: str):
    with pytest.raises(ConfigError, match=r"'embed' cannot be QFormat.*expected a scale for each row and group"):
        quantized(FORMATS[format], ONE, ["embed"])


@pytest.mark.parametrize("name", ["int4", "int4_float_zeros", "int8_halves", "nf4"])
def test_rows_of_a_low_bit_embedding_table(name: str):
    table = random_qarray(np.random.default_rng(0), FORMATS[name], (40, 64))
    ids = jnp.asarray([3, 39, 0, 3, 99])  # An id outside the table is clamped.
    np.testing.assert_array_equal(embed_quantized(ids, table, jnp.float32), dequantize(table)[jnp.minimum(ids, 39)])


def test_a_format_that_does_not_fit():
    with pytest.raises(ConfigError, match=r"layers\.0\.attention\.q: K=64 in features.*128.*group size"):
        quantized(QFormat(kind="int4", pack=128), ONE, ["layers.0.attention.q"])


def test_leaves_have_the_dtypes_of_the_format():
    weights = quantized(FORMATS["int4"], ONE).weights
    assert weights["layers.0.mlp.up.weight.values"].stored_dtype == jnp.uint8
    scales = weights["layers.0.mlp.up.weight.scales"]
    assert (scales.dtype, scales.stored_dtype) == (jnp.bfloat16, jnp.uint16)
