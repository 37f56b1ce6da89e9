"""The default dtype of a run depends on the CPU. The dtype of the files that it writes does not."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import pytest

from ryzjax import DataConfig, NewModelConfig, TrainConfig, finetune, pretrain
from ryzjax.cli.arguments import parse
from ryzjax.cli.finetune import Finetune
from ryzjax.lora.config import LoraConfig
from ryzjax.native import bfloat16
from ryzjax.native.bfloat16 import has_bfloat16_products
from ryzjax.training.config import BaseConfig
from ryzjax.training.optimizers.config import OptimizerConfig
from ryzjax.training.plan import plan_training
from ryzjax.training.start import dtype as dtype_module
from ryzjax.training.start.dtype import choose_dtype
from tests.training.test_plan import CONFIG
from tests.training.test_pretrain import SIZES


@pytest.mark.parametrize(
    ("kernels", "flags", "expected"),
    [
        ("avx512", "", True),
        ("avx2", "avx2 avx512_bf16", False),
        ("portable", "", False),
        (None, "fpu avx2 avx512f avx512_bf16", True),
        (None, "fpu amx_bf16", True),
        (None, "fpu avx2 avx512f", False),
        (None, None, False),
    ],
)
def test_what_a_cpu_can_multiply(
    kernels: str | None, flags: str | None, expected: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The native kernels' instruction set decides. Without native kernels the flags of the CPU do, if there are any."""
    if flags is not None:
        (tmp_path / "cpuinfo").write_text(f"model name\t: a CPU\nflags\t\t: {flags}\nbogomips\t: 1\n")
    monkeypatch.setattr(bfloat16, "_CPU_INFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(bfloat16, "isa", lambda: kernels)
    assert has_bfloat16_products() is expected


@pytest.fixture
def no_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """Simulates a CPU without bfloat16 products."""
    monkeypatch.setattr(dtype_module, "has_bfloat16_products", lambda: False)


def test_the_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    for has in (True, False):
        monkeypatch.setattr(dtype_module, "has_bfloat16_products", lambda has=has: has)
        assert choose_dtype("bfloat16").dtype == "bfloat16" and choose_dtype("float32").dtype == "float32"
        assert choose_dtype("auto", earlier="bfloat16").dtype == "bfloat16", "a run keeps its dtype on another machine"
        found = choose_dtype("auto")
        assert (found.dtype, found.is_for_speed) == (("auto", False) if has else ("float32", True))
    assert "this CPU has no bfloat16 products" in found.message("float32")
    assert found.message("float32").startswith("computing in float32: ") and "--dtype bfloat16" in found.reason
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert choose_dtype("auto").dtype == "auto", "a GPU multiplies bfloat16"


@pytest.mark.parametrize("weights", ["auto", "int4"])
def test_the_plan_is_of_the_same_choice(weights: str, no_products: None, tmp_path: Path) -> None:
    """The plan chooses the dtype as a run does, for a plain and a quantized base. A given dtype is kept."""
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**CONFIG, "dtype": "bfloat16"}), encoding="utf-8")
    found = {
        dtype: plan_training(
            BaseConfig(model=str(path), load_format="dummy", dtype=dtype, weights=weights, weights_group=32),  # pyright: ignore
            lora=LoraConfig(rank=4),
            optimizer=OptimizerConfig(),
            train=TrainConfig(batch_rows=2, loss_chunk_tokens=32),
            sequence_tokens=64,
        )
        for dtype in ("auto", "bfloat16")
    }
    assert found["auto"].dtype_message.startswith("computing in float32: this CPU")
    assert found["bfloat16"].dtype_message == "computing in bfloat16: as asked for"
    assert found["auto"].total_bytes > found["bfloat16"].total_bytes
    assert "--dtype bfloat16" in found["auto"].remedies[0] and "--dtype" not in str(found["bfloat16"].remedies)


def test_the_recipe_that_promises_bytes_names_its_dtype() -> None:
    assert parse(Finetune, "finetune", ["m", "--config", "qlora-7b-4gb"]).base.dtype == "bfloat16"
    assert parse(Finetune, "finetune", ["m", "--config", "sft"]).base.dtype == "auto"


def test_what_is_computed_in_float32_is_written_as_it_was_stored(
    no_products: None, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Covers pretraining a new model, training all of its weights, and continuing an adapter of it."""
    text = tmp_path / "text.txt"
    text.write_text("the cat sat on the mat. " * 50, encoding="utf-8")
    data = DataConfig(data=(str(text),), sequence_tokens=32)

    def train(out: str, **more: object) -> TrainConfig:
        return TrainConfig(**({"out": str(tmp_path / out), "max_steps": 1, "batch_rows": 1} | more))  # pyright: ignore

    def written(out: str, setting: str) -> tuple[str, str]:
        config = json.loads((tmp_path / out / "model/config.json").read_text())
        return json.loads((tmp_path / out / "run.json").read_text())["settings"][setting], config["dtype"]

    new = NewModelConfig(tokenizer=str(tiny_model), **SIZES)  # pyright: ignore
    made = pretrain(new, data, train=train("new"), show_progress=False)
    assert written("new", "model.dtype") == ("float32", "bfloat16")
    finetune(str(made.exported), data, lora=None, train=train("full"))
    assert "computing in float32: this CPU has no bfloat16 products" in capsys.readouterr().err
    assert written("full", "base.dtype") == ("float32", "bfloat16")
