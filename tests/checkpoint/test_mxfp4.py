"""MXFP4 experts: hand-worked numbers, transformers' dequantization, and a whole GPT-OSS checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from ryzjax.checkpoint import model_config_from_hf, resolve_source
from ryzjax.checkpoint.mxfp4 import dequantize_mxfp4
from ryzjax.errors import CheckpointError
from ryzjax.loading import load_weights
from ryzjax.models.registry import abstract_model
from ryzjax.sharding import Layout, Placement
from tests.goldens.make_families import VARIANTS, tiny_weights
from tests.models.test_families import ENTRIES, write_checkpoint


def test_by_hand():
    blocks = np.zeros((1, 1, 16), np.uint8)
    blocks[0, 0, :3] = [0x21, 0xF7, 0x8D]  # low nibble first: 0.5, 1; 6, -6; -3, -0
    values = dequantize_mxfp4(blocks, np.array([[129]], np.uint8))  # times 4
    assert values.shape == (1, 32)
    assert values[0, :6].tolist() == [2.0, 4.0, 24.0, -24.0, -12.0, 0.0]
    assert not values[0, 6:].any()
    assert dequantize_mxfp4(blocks, np.array([[126]], np.uint8))[0, 2] == 3.0


def quantized(folder: Path) -> Path:
    """Returns the tiny GPT-OSS with experts of width 64 in MXFP4, in the format that OpenAI publishes."""
    entry = json.loads(json.dumps(ENTRIES["gpt-oss"]))
    config = {**entry["config"], "hidden_size": 64, "intermediate_size": 96}
    config["quantization_config"] = {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}
    rng = np.random.default_rng(0)
    tensors = {}
    sizes = {32: 64, 48: 96, 96: 192}
    for name, shape in entry["shapes"].items():
        # The vocabulary (48) and the projections keep their sizes. Hidden (32) and inner (48, 96) sizes grow.
        if ".experts." in name:
            grown = [4, *(sizes[n] for n in shape[1:])]
            if name.endswith("bias"):
                tensors[name] = rng.standard_normal(grown).astype(np.float32)
                continue
            experts, width, rows = grown
            tensors[f"{name}_blocks"] = rng.integers(0, 256, (experts, rows, width // 32, 16), dtype=np.uint8)
            tensors[f"{name}_scales"] = rng.integers(118, 126, (experts, rows, width // 32), dtype=np.uint8)
        else:
            tensors |= tiny_weights(
                {
                    name: tuple(
                        64
                        if n == 32 and "sinks" not in name and not ("k_proj.bias" in name or "v_proj.bias" in name)
                        else n
                        for n in shape
                    )
                },
                VARIANTS["gpt-oss"][0],
            )
    # q, k, v and o: 4 and 2 heads of 16.
    for layer in range(2):
        for part, rows in (("q", 64), ("k", 32), ("v", 32)):
            tensors[f"model.layers.{layer}.self_attn.{part}_proj.weight"] = rng.standard_normal((rows, 64)).astype(
                np.float32
            )
            tensors[f"model.layers.{layer}.self_attn.{part}_proj.bias"] = rng.standard_normal(rows).astype(np.float32)
        tensors[f"model.layers.{layer}.self_attn.o_proj.weight"] = rng.standard_normal((64, 64)).astype(np.float32)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "model.safetensors")
    return folder


def load(folder: Path, layout: str = "single"):
    source = resolve_source(str(folder))
    config = model_config_from_hf(source.config, dtype="float32")
    model = abstract_model(config, Placement(Layout.load(layout), jax.devices()[: 1 if layout == "single" else 8]))
    return load_weights(source, model)


@pytest.mark.parametrize("layout", ["single", "ep", "tp", "ep_dp"])
def test_gate_and_up_are_the_even_and_odd_rows(layout: str, tmp_path: Path):
    weights, stored = load(quantized(tmp_path), layout), load_file(tmp_path / "model.safetensors")
    for layer in range(2):
        raw = f"model.layers.{layer}.mlp.experts."
        both = dequantize_mxfp4(stored[f"{raw}gate_up_proj_blocks"], stored[f"{raw}gate_up_proj_scales"])
        down = dequantize_mxfp4(stored[f"{raw}down_proj_blocks"], stored[f"{raw}down_proj_scales"])
        ours = f"layers.{layer}.mlp.experts."
        np.testing.assert_array_equal(weights[f"{ours}gate.weight"], both[:, 0::2])
        np.testing.assert_array_equal(weights[f"{ours}up.weight"], both[:, 1::2])
        np.testing.assert_array_equal(weights[f"{ours}down.weight"], down)
        np.testing.assert_array_equal(weights[f"{ours}up.bias"], stored[f"{raw}gate_up_proj_bias"][:, 1::2])


def test_blocks_and_scales_must_fit(tmp_path: Path):
    tensors = load_file(quantized(tmp_path) / "model.safetensors")
    name = "model.layers.1.mlp.experts.down_proj"
    tensors[f"{name}_scales"] = tensors[f"{name}_scales"][:, :, :1].copy()
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=rf"{name}_blocks' has shape .*expected .*to go with"):
        load(tmp_path)
    tensors[f"{name}_blocks"] = tensors[f"{name}_blocks"].astype(np.int32)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError):
        load(tmp_path)
    del tensors[f"{name}_scales"]
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=rf"{name}_scales' is missing"):
        load(tmp_path)


@pytest.mark.parity
def test_as_transformers_dequantizes():
    torch = pytest.importorskip("torch")
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    rng = np.random.default_rng(1)
    blocks = rng.integers(0, 256, (3, 10, 4, 16), dtype=np.uint8)
    scales = rng.integers(100, 150, (3, 10, 4), dtype=np.uint8)
    theirs = convert_moe_packed_tensors(torch.from_numpy(blocks), torch.from_numpy(scales), dtype=torch.float32)
    np.testing.assert_array_equal(dequantize_mxfp4(blocks, scales).swapaxes(1, 2), theirs.numpy())


@pytest.mark.parametrize("layout", ["tp", "fsdp_tp", "ep"])
@pytest.mark.parametrize("name", ["phi3", "mixtral", "gpt-oss"])
def test_fused_stacked_and_transposed_weights_under_layouts(name: str, layout: str, tmp_path: Path):
    folder = write_checkpoint(name, tmp_path)
    alone = load(folder)
    for weight, array in load(folder, layout).items():
        np.testing.assert_array_equal(array, alone[weight], err_msg=weight)
