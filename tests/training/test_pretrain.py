"""pretrain: a model and its tokenizer from nothing, which is then served."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ryzjax import DataConfig, NewModelConfig, OptimizerConfig, TrainConfig, pretrain
from ryzjax.data.tokenizer import Tokenizer
from ryzjax.errors import ConfigError
from ryzjax.quant.open_model import open_model
from ryzjax.training.run_log import read_log

SIZES = dict(hidden_size=32, intermediate_size=64, num_layers=2, num_heads=4, num_kv_heads=2, max_position=256)


def test_synthetic_rows_make_a_model(tmp_path: Path) -> None:
    new = NewModelConfig(
        synthetic_rows=200,
        synthetic_eval_rows=10,
        synthetic_mixture={"addition": 1.0},
        vocab_size=300,
        **SIZES,  # pyright: ignore
    )
    data = DataConfig(sequence_tokens=256, shuffle=False, train_on="assistant", drop_long=True)
    result = pretrain(
        new,
        data,
        optimizer=OptimizerConfig(optimizer="muon", learning_rate=2e-2),
        train=TrainConfig(out=str(tmp_path), max_steps=20, batch_rows=2, remat="none"),
        show_progress=False,
    )
    log = read_log(tmp_path / "metrics.jsonl")
    assert (log[-2]["loss"] or 9.0) < (log[0]["loss"] or 0.0) - 1.0
    opened = open_model(str(result.exported))
    assert opened.model.config.dtype == "bfloat16" and opened.model.config.tie_embeddings
    assert opened.model.config.eos_token_ids == (2, 0)
    assert all(np.all(np.isfinite(np.asarray(leaf, np.float32))) for leaf in opened.load())
    again = Tokenizer.load(result.exported)
    assert again.vocab_size == 300 and again.decode(again.encode("17 + 25 = 42")) == "17 + 25 = 42"


def test_text_with_a_given_tokenizer(tiny_model: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("the cat sat on the mat. " * 200, encoding="utf-8")
    new = NewModelConfig(tokenizer=str(tiny_model), model_dtype="float32", **SIZES)  # pyright: ignore
    result = pretrain(
        new,
        DataConfig(data=(str(text),), sequence_tokens=64),
        optimizer=OptimizerConfig(learning_rate=1e-2),
        train=TrainConfig(out=str(tmp_path / "run"), max_steps=15, batch_rows=4),
        show_progress=False,
    )
    assert result.loop.loss < 2.5


def test_bad_input(tiny_model: Path, tmp_path: Path) -> None:
    data = DataConfig(sequence_tokens=64)
    with pytest.raises(ConfigError, match="name data to train on, or synthetic_rows"):
        pretrain(NewModelConfig(**SIZES), data, show_progress=False)  # pyright: ignore
    with pytest.raises(ConfigError, match="no tokenizer named"):
        pretrain(NewModelConfig(**SIZES), DataConfig(data=("x.txt",)), show_progress=False)  # pyright: ignore
    with pytest.raises(ConfigError, match="no multiple of num_heads=5"):
        NewModelConfig(hidden_size=32, num_heads=5)
    with pytest.raises(ConfigError, match="more than max_position=256"):
        pretrain(
            NewModelConfig(tokenizer=str(tiny_model), **SIZES),  # pyright: ignore
            DataConfig(data=("x.txt",), sequence_tokens=512),
            train=TrainConfig(out=str(tmp_path)),
            show_progress=False,
        )
