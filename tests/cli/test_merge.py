"""`ryzjax merge`: the files that it writes, its output, and its errors."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from ryzjax.checkpoint.hf.config import model_config_from_hf
from ryzjax.checkpoint.peft.write import write_adapter
from ryzjax.checkpoint.source import resolve_source
from ryzjax.cli.main import main
from ryzjax.data.byte_tokenizer import write_byte_tokenizer
from ryzjax.lora.adapter import BaseQuantization
from ryzjax.models.registry import abstract_model
from ryzjax.quant.recipe import Recipe
from ryzjax.quantizing.quantize import QuantizedModel, quantize
from tests.goldens.make_families import tiny_weights
from tests.models.test_families import ENTRIES
from tests.quantizing.test_merge import ONE, LoraConfig, opened, random_adapter

VOCAB = 384


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A tiny Llama with a byte-level tokenizer."""
    from safetensors.numpy import save_file

    folder = tmp_path / "base"
    folder.mkdir()
    entry = ENTRIES["llama"]
    (folder / "config.json").write_text(json.dumps({**entry["config"], "vocab_size": VOCAB}))
    shapes = {name: tuple(VOCAB if size == 48 and "mlp" not in name else size for size in shape)
              for name, shape in entry["shapes"].items()}  # fmt: skip
    save_file(tiny_weights(shapes, "Llama"), folder / "model.safetensors")
    write_byte_tokenizer(folder, vocab_size=VOCAB)
    return folder


@pytest.fixture
def adapter(base: Path, tmp_path: Path) -> Path:
    """An adapter of `base` in PEFT's format."""
    model, weights = opened(resolve_source(str(base)))
    found = random_adapter(model, weights, LoraConfig(rank=3, use_dora=True))
    write_adapter(tmp_path / "adapter", found, model, base_model=str(base))
    return tmp_path / "adapter"


def merge(base: Path, adapter: Path, *flags: str, out: str = "out") -> int:
    words = ["merge", str(base), "--adapter", str(adapter), "--out", str(base.parent / out), "--tokens", "64"]
    return main([*words, *flags])


def left(base: Path) -> set[str]:
    """Returns the names of the files in the folder other than the base and the adapter."""
    return {path.name for path in base.parent.iterdir()} - {"base", "adapter", "w4"}


def test_a_merge(base: Path, adapter: Path, capsys: pytest.CaptureFixture[str]):
    assert merge(base, adapter) == 0
    printed = capsys.readouterr().out
    assert "max |logit difference|" in printed and "top-1 agreement 100.00%" in printed and "mean KL" in printed
    assert left(base) == {"out"}
    files = {path.name for path in (base.parent / "out").iterdir()}
    assert files == {"config.json", "merge.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    assert f"base: {base}, as stored: the weights that the adapter was trained on" in printed
    record = json.loads((base.parent / "out/merge.json").read_text())
    assert (record["base"], record["base_rounding"], record["weights"]) == (str(base), None, "plain")
    assert record["against_the_live_adapter"]["merged"]["top1_agreement"] == 1.0
    assert merge(base, adapter) == 2
    assert "out exists; name another --out" in capsys.readouterr().err


def test_a_refusal(base: Path, adapter: Path, capsys: pytest.CaptureFixture[str]):
    assert merge(base, adapter, "--dtype", "bfloat16", "--tolerance", "1e-3") == 1
    printed = capsys.readouterr().out
    assert "refused: the largest difference of a logit is" in printed and "above 0.001" in printed
    assert left(base) == {"out.refused"}
    assert merge(base, adapter, "--dtype", "bfloat16", "--max-kl", "1e-9", out="again") == 1
    assert "refused: the mean KL is" in capsys.readouterr().out


@pytest.mark.parametrize("weights", ["int8", "int4"])
def test_fewer_bits(weights: str, base: Path, adapter: Path, capsys: pytest.CaptureFixture[str]):
    """The difference is within the default tolerance."""
    assert merge(base, adapter, "--weights", weights, "--group-size", "16") == 0
    printed = capsys.readouterr().out
    assert f"merged ({weights})" in printed and f"merged, and quantized to {weights} while loading" in printed
    assert left(base) == {"out"}
    figures = json.loads((base.parent / "out/merge.json").read_text())["against_the_live_adapter"]
    assert 0 < figures["written"]["mean_kl"] <= 1.5 * figures["rounded as it is loaded"]["mean_kl"] + 1e-3
    model, _ = opened(resolve_source(str(base.parent / "out")))
    assert {format.kind for format in model.quantization.values()} == {weights}


@pytest.mark.parametrize("weights", ["int8", "int4"])
def test_a_merge_that_lost_the_adapter_is_refused_before_it_is_quantized(
    weights: str, base: Path, adapter: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("ryzjax.quantizing.merge.merged", lambda w, update, scale: w)
    assert merge(base, adapter, "--weights", weights, "--group-size", "16") == 1
    assert "refused: the largest difference of a logit is" in capsys.readouterr().out
    assert left(base) == {"out.refused"}


@pytest.mark.parametrize("weights", ["int8", "int4"])
def test_a_damaged_rounding_is_refused(
    weights: str, base: Path, adapter: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    """The scales of one layer of fourteen are twice what they should be."""
    from safetensors.numpy import load_file, save_file

    damaged: list[str] = []

    def damaging(*args: object, **options: object) -> QuantizedModel:
        result = quantize(*args, **options)  # pyright: ignore
        for file in result.folder.glob("*.safetensors"):
            tensors = load_file(file)
            for name in tensors:
                if "layers.1.mlp.down_proj" in name and name.endswith("scale"):
                    tensors[name] = (tensors[name] * 2).astype(tensors[name].dtype)
                    damaged.append(name)
            save_file(tensors, file, metadata={"format": "pt"})
        return result

    monkeypatch.setattr("ryzjax.quantizing.merge.quantize", damaging)
    assert merge(base, adapter, "--weights", weights, "--group-size", "16") == 1
    printed = capsys.readouterr().out
    assert len(damaged) == 1
    assert "refused: the mean KL is" in printed and "quantizing cost more than it does" in printed
    assert left(base) == {"out.refused"}


def test_an_adapter_of_a_base_that_was_quantized_while_loading(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """It is merged into the quantized weights, or with --base into the plain ones. The difference is recorded."""
    model, weights = opened(resolve_source(str(base)))
    found = random_adapter(model, weights, LoraConfig(rank=3))
    found = replace(found, base_quantization=BaseQuantization(weights="int4", group=16))
    write_adapter(tmp_path / "adapter", found, model, base_model=str(base))
    assert merge(base, tmp_path / "adapter") == 0
    printed = capsys.readouterr().out
    assert f"base: {base}, quantized to int4 in groups of 16 and dequantized: the weights that the" in printed
    record = json.loads((base.parent / "out/merge.json").read_text())
    assert record["base_rounding"] == record["trained_on_rounding"] == "int4 in groups of 16"
    assert record["against_the_live_adapter"]["merged"]["mean_kl"] < 1e-6
    assert merge(base, tmp_path / "adapter", "--base", str(base), out="original") == 0
    printed = capsys.readouterr().out
    assert f"its plain weights (--base); the adapter was trained on {base}, quantized to int4" in printed
    assert "It was not trained on the plain weights, so answers differ" in printed
    record = json.loads((base.parent / "original/merge.json").read_text())
    assert (record["base_rounding"], record["trained_on_rounding"]) == (None, "int4 in groups of 16")
    changed = record["against_the_live_adapter"]["merged, against what the adapter was trained on"]
    assert changed["mean_kl"] > 1e-4
    w4 = quantize(
        resolve_source(str(base)),
        model_config_from_hf(resolve_source(str(base)).config),
        ONE,
        Recipe(method="rtn", bits=4, group_size=16),
        base.parent / "w4",
        show_progress=False,
    ).finish()
    assert merge(w4, tmp_path / "adapter", out="again") == 2
    assert "is quantized already; name the plain model" in capsys.readouterr().err


def test_both_bases_of_a_quantized_model(base: Path, adapter: Path, capsys: pytest.CaptureFixture[str]):
    plain = resolve_source(str(base))
    config = model_config_from_hf(plain.config, plain.generation)
    recipe = Recipe(method="rtn", bits=4, group_size=16)
    w4 = quantize(plain, config, ONE, recipe, base.parent / "w4", show_progress=False).finish()
    assert merge(w4, adapter) == 0
    assert capsys.readouterr().out.count("max |logit difference|") == 1
    assert merge(w4, adapter, "--base", str(base), out="original") == 0
    printed = capsys.readouterr().out
    assert (
        printed.count("max |logit difference|") == 2 and "which the adapter was trained on, with the adapter" in printed
    )
    assert merge(w4, adapter, "--weights", "int4", out="rounded") == 0
    model = opened(resolve_source(str(base.parent / "rounded")))[0]
    assert {format.group for format in model.quantization.values()} == {16}, "as the model has it"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--group-size", "32"), "--group-size needs --weights"),
        (("--tokens", "1"), "--tokens 1"),
        (("--text", "missing.txt"), "missing.txt"),
        (("--weights", "int4", "--group-size", "7"), "group=7"),
    ],
)
def test_bad_flags(
    flags: tuple[str, ...], message: str, base: Path, adapter: Path, capsys: pytest.CaptureFixture[str]
):  # fmt: skip
    assert merge(base, adapter, *flags) == 2
    assert message in capsys.readouterr().err
    assert not left(base)


def test_an_adapter_of_another_model(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    source = resolve_source(str(base))
    model, weights = opened(source)
    deeper = abstract_model(
        model_config_from_hf({**source.config, "num_hidden_layers": 3}, dtype="float32"), ONE
    )  # fmt: skip
    found = random_adapter(model, weights, LoraConfig(rank=2, targets=("q",)))
    more = {**found.weights, "layers.2.attention.q": found.weights["layers.0.attention.q"]}
    found = type(found)(config=found.config, weights=more)
    write_adapter(tmp_path / "adapter", found, deeper, base_model="org/deeper")
    assert merge(base, tmp_path / "adapter") == 2
    assert "org/deeper" in capsys.readouterr().err
    assert not left(base)
