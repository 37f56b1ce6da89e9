"""GGUF files written with the `gguf` package: logits of every family, values of every quantization, damaged files."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path

import jax
import numpy as np
import pytest

from ryzjax.checkpoint import model_config_from_hf, resolve_source
from ryzjax.checkpoint.gguf.file import GgufFile
from ryzjax.checkpoint.quantized.gguf_blocks import BLOCK_KINDS
from ryzjax.errors import CheckpointError, ConfigError, LayoutError, UnsupportedModelError
from ryzjax.loading import load_weights, stored_model
from ryzjax.loading.weight_plan import plan_weights
from ryzjax.models.abstract import AbstractModel
from ryzjax.models.registry import abstract_model
from ryzjax.qarray import LEAVES, QArray, dequantize
from ryzjax.sharding import Layout, Placement
from tests.checkpoint.gguf_files import SCALES, add_config, finish, permute, random_blocks, write_gguf
from tests.goldens.make_families import PROMPT_TOKENS, VARIANTS, tiny_weights
from tests.models.paged import sequence_logits
from tests.models.test_families import ENTRIES, GOLDENS, TOLERANCE, write_checkpoint

gguf = pytest.importorskip("gguf")

# GGUF files always give head dims. They cannot express dense layers in a mixture of experts or unscaled experts.
FILES = [
    "llama",
    "llama biases, head_dim",
    "llama tied, one kv head",
    "llama linear rope",
    "llama llama3 rope",
    "llama yarn rope",
    "mistral",
    "mixtral",
    "qwen2",
    "qwen3",
    "qwen3 moe",
    "phi3 longrope",
    "phi3 partial rotary",
    "smollm3",
    "olmo2",
    "olmo3",
]


def hf_weights(name: str) -> dict[str, np.ndarray]:
    shapes = {tensor: tuple(shape) for tensor, shape in ENTRIES[name]["shapes"].items()}
    return tiny_weights(shapes, VARIANTS[name][0])


def write(path: Path, name: str, kind: str = "F32") -> Path:
    write_gguf(path, VARIANTS[name][0], ENTRIES[name]["config"], hf_weights(name), kind)
    return path


def load(path: Path, layout: str = "single"):
    source = resolve_source(str(path))
    config = model_config_from_hf(source.config, dtype="float32", source=source.config_name)
    model = abstract_model(config, Placement(Layout.load(layout), jax.devices()[: 1 if layout == "single" else 8]))
    return model, load_weights(source, model)


@pytest.mark.parametrize("name", FILES)
def test_logits_are_those_of_transformers(name: str, tmp_path: Path):
    with np.load(GOLDENS / "families.npz") as goldens:
        tokens, expected = goldens[f"{name}/tokens"][:PROMPT_TOKENS].tolist(), goldens[f"{name}/logits"]
    model, weights = load(write(tmp_path / "model.gguf", name))
    with jax.disable_jit():
        logits = sequence_logits(model, tuple(weights.values()), tokens, prompt_len=PROMPT_TOKENS, chunk=PROMPT_TOKENS)
    assert np.abs(logits - expected[:PROMPT_TOKENS]).max() < TOLERANCE


# llama.cpp hard-codes the query scale of each model size and the clamps of SwiGLU, so files do not have them.
UNSAID = {
    "gemma2": ("query_scale",),
    "gemma3": ("query_scale", "ropes", "windows"),
    "gpt-oss": ("swiglu_alpha", "swiglu_limit"),
}


@pytest.mark.parametrize("name", UNSAID)
def test_weights_and_config_are_those_of_the_safetensors(name: str, tmp_path: Path):
    model, weights = load(write(tmp_path / "model.gguf", name))
    source = resolve_source(str(write_checkpoint(name, tmp_path)), load_format="safetensors")
    config = model_config_from_hf(source.config, dtype="float32")
    for field in dataclasses.fields(config):
        if field.name not in (*UNSAID[name], "rms_norm_eps", "rope", "max_position", "eos_token_ids", "bos_token_id"):
            assert getattr(model.config, field.name) == getattr(config, field.name), field.name
    expected = load_weights(source, abstract_model(config, Placement(Layout.load("single"), jax.devices()[:1])))
    assert list(weights) == list(expected)
    for weight in weights:  # Gemma's norms are stored plus one, so the values are (1 + w) - 1 in float32
        np.testing.assert_allclose(weights[weight], expected[weight], atol=3e-7, err_msg=weight)


WIDE = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
}


def wide_shapes() -> tuple[dict, dict[str, tuple[int, ...]]]:
    """Returns the config and the tensors of a Llama whose matrices have whole blocks of every kind."""
    config = {**ENTRIES["llama"]["config"], **WIDE}
    q, kv, hidden, inner, vocab = 256, 128, 256, 512, config["vocab_size"]
    shapes = {
        "model.embed_tokens.weight": (vocab, hidden),
        "model.norm.weight": (hidden,),
        "lm_head.weight": (vocab, hidden),
    }
    for layer in range(config["num_hidden_layers"]):
        parts = {"q": (q, hidden), "k": (kv, hidden), "v": (kv, hidden), "o": (hidden, q)}
        shapes |= {f"model.layers.{layer}.self_attn.{n}_proj.weight": s for n, s in parts.items()}
        mlp = {"gate": (inner, hidden), "up": (inner, hidden), "down": (hidden, inner)}
        shapes |= {f"model.layers.{layer}.mlp.{n}_proj.weight": s for n, s in mlp.items()}
        shapes |= {f"model.layers.{layer}.{n}_layernorm.weight": (hidden,) for n in ("input", "post_attention")}
    return config, shapes


KINDS = ("F16", "BF16", *BLOCK_KINDS, "TQ2_0")
KEPT_EXACTLY = ("Q4_0", "Q5_0", "Q8_0", "IQ4_NL")


@pytest.mark.parametrize(
    ("kind", "layout"),
    [(kind, "single") for kind in KINDS]
    + [(kind, layout) for kind in ("BF16", "Q8_0", "Q4_K", "Q6_K") for layout in ("tp", "fsdp_tp")],
)
def test_quantized_values_are_those_of_the_reference(
    kind: str, layout: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    config, shapes = wide_shapes()
    path = tmp_path / "model.gguf"
    qtype = gguf.GGMLQuantizationType[kind]
    weights = tiny_weights(shapes, "Llama")
    if kind in SCALES:
        raw = {name: (random_blocks(shape, kind), qtype) for name, shape in shapes.items() if len(shape) == 2}
        write_raw(path, config, weights, raw)
    else:
        write_gguf(path, "Llama", config, weights, kind)
    reader = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}

    def reference(name: str) -> np.ndarray:
        return gguf.quants.dequantize(reader[name].data, reader[name].tensor_type).astype(np.float32)

    model, weights = load(path, layout)
    with caplog.at_level(logging.INFO, "ryzjax"):
        check_kept_blocks(path, kind, model, weights)
    assert (f"dequantized to float32: {kind} blocks" in caplog.text) == (kind == "TQ2_0")
    np.testing.assert_array_equal(weights["layers.1.mlp.down.weight"], reference("blk.1.ffn_down.weight"))
    np.testing.assert_array_equal(weights["embed.weight"], reference("token_embd.weight"))
    np.testing.assert_array_equal(weights["layers.0.attention.v.weight"], reference("blk.0.attn_v.weight"))
    # q and k hold row numbers, permuted like the rows.
    for ours, theirs, heads in (("q", "attn_q", 4), ("k", "attn_k", 2)):
        stored = reference(f"blk.1.{theirs}.weight")
        order = permute(np.arange(len(stored))[:, None], heads)[:, 0]
        expected = np.empty_like(stored)
        expected[order] = stored
        np.testing.assert_array_equal(weights[f"layers.1.attention.{ours}.weight"], expected)


def check_kept_blocks(path: Path, kind: str, plain: AbstractModel, weights: dict[str, jax.Array]) -> None:
    """Asserts that matrices stay quantized, with the values of the dequantized weights.

    `test_gguf_blocks` bounds the rounding of scales and zero points more closely.
    """
    source = resolve_source(str(path))
    try:
        model = stored_model(source, plain.config, plain.placement)
    except LayoutError as error:  # with 8 devices a part would be half a block
        assert "groups of 32" in str(error) and "--weights bf16" in str(error)
        assert plan_weights(source, plain.config, plain.placement, weights="bf16").model.quantization == {}
        return
    if kind not in BLOCK_KINDS:
        assert not model.quantization
        return
    assert set(model.quantization) == {*model.linears, "embed"}
    kept = load_weights(source, model)
    for name, format in model.quantization.items():
        leaves = {leaf: kept.get(f"{name}.weight.{leaf}") for leaf in LEAVES}
        values = dequantize(QArray(format=format, **leaves))  # pyright: ignore
        want = weights[f"{name}.weight"]
        tolerance = 0 if kind in KEPT_EXACTLY else 2**-9 * float(np.abs(want).max())
        np.testing.assert_allclose(values, want, rtol=0, atol=tolerance, err_msg=name)


def write_raw(
    path: Path, config: dict, weights: dict[str, np.ndarray], raw: dict[str, tuple[np.ndarray, object]]
) -> None:
    """Writes a file like `write_gguf`, with some matrices that are already quantized: their bytes and type by name."""
    writer = gguf.GGUFWriter(path, "llama")
    add_config(writer, "Llama", config)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config["num_hidden_layers"])
    for name, value in weights.items():
        mapped = names.get_name(name, try_suffixes=(".weight",))
        assert mapped is not None
        if name in raw:
            data, qtype = raw[name]
            writer.add_tensor(mapped, data, raw_dtype=qtype)
        else:
            writer.add_tensor(mapped, value)
    finish(writer)


@pytest.mark.parametrize("is_tied", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_model_of_mixed_kinds_runs_on_low_bit_weights(dtype: str, is_tied: bool, tmp_path: Path):
    """The kinds that llama.cpp gives a Q4_K_M file, and others. Logits are those of the dequantized model."""
    config, shapes = wide_shapes()
    config["tie_word_embeddings"] = is_tied
    if is_tied:
        del shapes["lm_head.weight"]
    table = "Q4_1" if is_tied else "Q6_K"
    kinds = {"embed": table, "lm_head": "Q6_K", "v_proj": "Q6_K", "down": "Q6_K", "o_proj": "Q5_K", "up": "Q4_1"}
    raw = {}
    for name, shape in shapes.items():
        if len(shape) == 2:
            kind = next((kind for part, kind in kinds.items() if part in name), "Q4_K")
            raw[name] = random_blocks(shape, kind, size=0.02), gguf.GGMLQuantizationType[kind]
    path = tmp_path / "model.gguf"
    write_raw(path, config, tiny_weights(shapes, "Llama"), raw)
    source = resolve_source(str(path))
    model_config = model_config_from_hf(source.config, dtype=dtype, source=source.config_name)
    placement = Placement(Layout.load("single"), jax.devices()[:1])
    logits = []
    kept = stored_model(source, model_config, placement)
    assert len(kept.quantization) == len(raw)
    plain = abstract_model(model_config, placement)
    for model in (plain, kept):
        weights = load_weights(source, model)
        bytes_read = sum(weight.nbytes for weight in weights.values())
        tokens = list(range(1, PROMPT_TOKENS + 1))
        logits.append(
            sequence_logits(model, tuple(weights.values()), tokens, prompt_len=PROMPT_TOKENS, chunk=PROMPT_TOKENS)
        )
        if model is kept:
            assert bytes_read < sum(spec.nbytes for spec in plain.weights.values()) * (
                0.25 if dtype == "float32" else 0.5
            )
    want, got = (np.asarray(values, np.float64) for values in logits)
    assert np.std(want) > 0.01
    assert np.abs(got - want).max() < (0.005 if dtype == "float32" else 0.05) * np.abs(want).max()


def test_a_directory_with_one_file_and_files_in_parts(tmp_path: Path):
    write(tmp_path / "tiny-Q8_0.gguf", "llama")
    assert resolve_source(str(tmp_path)).weight_format == "gguf"
    write(tmp_path / "other.gguf", "llama")
    with pytest.raises(CheckpointError, match=r"2 GGUF models \(other.gguf, tiny-Q8_0.gguf\); name the file"):
        resolve_source(str(tmp_path))
    part = write(tmp_path / "big-00001-of-00002.gguf", "llama")
    with pytest.raises(CheckpointError, match=r"1 are missing: big-00002-of-00002.gguf"):
        resolve_source(str(part))
    with pytest.raises(ConfigError, match="GGUF file, not safetensors"):
        resolve_source(str(part), load_format="safetensors")
    with pytest.raises(CheckpointError, match="no GGUF file"):
        (tmp_path / "empty").mkdir()
        resolve_source(str(tmp_path / "empty"), load_format="gguf")


def test_dummy_weights_need_only_the_metadata(tmp_path: Path):
    source = resolve_source(str(write(tmp_path / "a.gguf", "qwen3")), load_format="dummy")
    assert source.weight_files == () and model_config_from_hf(source.config).num_layers == 2


def test_a_tensor_missing_or_too_many(tmp_path: Path):
    weights = hf_weights("llama")
    lost = weights.pop("model.layers.1.mlp.up_proj.weight")
    write_gguf(tmp_path / "a.gguf", "Llama", ENTRIES["llama"]["config"], weights)
    with pytest.raises(CheckpointError, match=r"a.gguf: tensor 'blk.1.ffn_up.weight' is missing"):
        load(tmp_path / "a.gguf")
    weights |= {
        "model.layers.1.mlp.up_proj.weight": lost,
        "model.layers.1.self_attn.q_proj.bias": np.zeros(32, np.float32),
    }
    write_gguf(tmp_path / "b.gguf", "Llama", ENTRIES["llama"]["config"], weights)
    with pytest.raises(CheckpointError, match=r"b.gguf: tensor 'blk.1.attn_q.bias' is not part of the model"):
        load(tmp_path / "b.gguf")


def test_an_unknown_architecture_or_key(tmp_path: Path):
    writer = gguf.GGUFWriter(tmp_path / "a.gguf", "mamba")
    writer.add_tensor("token_embd.weight", np.zeros((4, 4), np.float32))
    finish(writer)
    with pytest.raises(UnsupportedModelError, match=r"general.architecture is 'mamba'; expected one of gemma2"):
        resolve_source(str(tmp_path / "a.gguf"))
    writer = gguf.GGUFWriter(tmp_path / "b.gguf", "llama")
    writer.add_float32("llama.logit_scale", 0.1)
    add_config(writer, "Llama", ENTRIES["llama"]["config"])
    writer.add_tensor("token_embd.weight", np.zeros((48, 32), np.float32))
    finish(writer)
    with pytest.raises(UnsupportedModelError, match=r"b.gguf: llama: logit_scale is .*may change the maths"):
        resolve_source(str(tmp_path / "b.gguf"))


def test_truncated_at_any_place_and_not_gguf_at_all(tmp_path: Path):
    whole = write(tmp_path / "whole.gguf", "llama").read_bytes()
    path = tmp_path / "cut.gguf"
    for size in (0, 3, 10, 30, 200, 1000, len(whole) // 2, len(whole) - 5000):
        path.write_bytes(whole[:size])
        with pytest.raises(CheckpointError, match=r"cut.gguf"):
            GgufFile(path)
    path.write_bytes(b"PK\x03\x04" + bytes(100))
    with pytest.raises(CheckpointError, match=r"not a GGUF file"):
        GgufFile(path)


def test_flipped_bits_in_the_header_never_escape_as_another_error(tmp_path: Path):
    whole = write(tmp_path / "whole.gguf", "llama").read_bytes()
    header = whole.index(b"token_embd") + 200
    rng = np.random.default_rng(0)
    path = tmp_path / "flipped.gguf"
    refused = 0
    for _ in range(60):
        data = bytearray(whole)
        data[int(rng.integers(0, header))] ^= 1 << int(rng.integers(0, 8))
        path.write_bytes(data)
        try:
            load(path)
        except (CheckpointError, ConfigError):
            refused += 1
    assert refused > 20
