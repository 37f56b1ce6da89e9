"""Checkpoints written by RyzJAX give the same weights and logits in compressed-tensors and transformers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from ryzjax.qarray import LEAVES, QArray, dequantize
from ryzjax.quant.recipe import Recipe
from tests.models.test_families import write_checkpoint
from tests.quantizing.test_quantize import TOKENS, logits, opened, random_calibration, run

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore")]  # transformers' own

RECIPES = {
    "int4": Recipe(method="gptq", group_size=16),
    "int4 with zeros": Recipe(method="gptq", group_size=16, symmetric=False),
    "int8": Recipe(method="rtn", group_size=16, bits=8),
    "w8a8": Recipe(method="rtn", bits=8, int8_activations=True),
    # With several config groups, transformers 5.23 dequantizes all of them by the first, compressed-tensors each by its
    # own.
    "mixed": Recipe(method="rtn", group_size=16, overrides={"mlp": 8, r"layers\.1\.attention": 16}),
    "int4, a scale a row, 8 bits where that does not fit": Recipe(method="rtn", group_size=0),
}


def written(name: str, family: str, folder: Path) -> Path:
    (folder / "plain").mkdir()
    recipe = RECIPES[name]
    calibration = random_calibration() if recipe.needs_data else None
    return run(write_checkpoint(family, folder / "plain"), folder / "out", recipe, calibration).finish()


@pytest.mark.parametrize("name", RECIPES)
def test_compressed_tensors_reads_what_we_write(name: str, tmp_path: Path):
    torch = pytest.importorskip("torch")
    compressors = pytest.importorskip("compressed_tensors.compressors")
    from compressed_tensors.quantization import QuantizationConfig, apply_quantization_config
    from transformers import AutoConfig, AutoModelForCausalLM

    out = written(name, "llama", tmp_path)
    skeleton = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(tmp_path / "plain"))
    config = json.loads((out / "config.json").read_text())["quantization_config"]
    apply_quantization_config(skeleton, QuantizationConfig.model_validate(config))
    tensors: dict[str, np.ndarray] = {}
    for file in out.glob("*.safetensors"):
        tensors |= load_file(file)
    model, weights = opened(out)
    for linear, format in model.quantization.items():
        leaves = {leaf: weights.get(f"{linear}.weight.{leaf}") for leaf in LEAVES}
        ours = np.asarray(dequantize(QArray(format=format, **leaves)))  # type: ignore[arg-type]
        module = linear.replace("attention.", "self_attn.").replace("layers.", "model.layers.") + "_proj"
        scheme = skeleton.get_submodule(module).quantization_scheme
        state = {n[len(module) + 1 :]: torch.from_numpy(t) for n, t in tensors.items() if n.startswith(module + ".")}
        state["weight_scale"] = state["weight_scale"].float()  # in float16 the products would be rounded
        compressor = compressors.BaseCompressor.get_value_from_registry(scheme.format or config["format"])
        theirs = compressor.decompress(state, scheme)["weight"].float().numpy()
        np.testing.assert_array_equal(ours, theirs, err_msg=linear)
    quantized = {name for name, each in skeleton.named_modules() if getattr(each, "quantization_scheme", None)}
    assert len(quantized) == len(model.quantization)


@pytest.mark.parametrize("family", ["llama", "qwen2", "phi3"])
@pytest.mark.parametrize("name", list(RECIPES)[:3])
def test_transformers_gives_the_same_logits(name: str, family: str, tmp_path: Path):
    torch = pytest.importorskip("torch")
    pytest.importorskip("compressed_tensors")
    from transformers import AutoModelForCausalLM, CompressedTensorsConfig

    out = written(name, family, tmp_path)
    quantization = CompressedTensorsConfig(run_compressed=False)
    theirs = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32, quantization_config=quantization)
    with torch.no_grad():
        wanted = theirs(torch.tensor([TOKENS])).logits[0].numpy()
    # compressed-tensors rounds the product with a float16 scale to float16.
    assert np.abs(logits(out) - wanted).max() < 5e-3 * max(1.0, np.abs(wanted).max())
