"""pretrain: a model with random weights and a learned tokenizer, which is then served."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ryzjax import DataConfig, NewModelConfig, OptimizerConfig, TrainConfig, pretrain
from ryzjax.data.tokenizer import Tokenizer
from ryzjax.errors import ConfigError
from ryzjax.loading.open_model import open_model
from ryzjax.training.run.run_log import read_log

SIZES = dict(hidden_size=32, intermediate_size=64, num_layers=2, num_heads=4, num_kv_heads=2, max_position=256)


NEW = NewModelConfig(
    synthetic_rows=200,
    synthetic_eval_rows=10,
    synthetic_mixture={"addition": 1.0},
    vocab_size=300,
    **SIZES,  # pyright: ignore
)


def stage(folder: Path, new: NewModelConfig, *, seed: int, steps: int) -> tuple[Path, list[float]]:
    """Pretrains on synthetic rows. Returns the model's folder and the losses of the steps."""
    result = pretrain(
        new,
        DataConfig(sequence_tokens=256, shuffle=False, train_on="assistant", drop_long=True),
        optimizer=OptimizerConfig(optimizer="muon", learning_rate=2e-2),
        train=TrainConfig(out=str(folder), seed=seed, max_steps=steps, batch_rows=2, remat="none"),
        show_progress=False,
    )
    return result.exported, [line["loss"] for line in read_log(folder / "metrics.jsonl") if line.get("loss")]  # type: ignore[misc]


@pytest.fixture(scope="module")
def first_stage(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[float]]:
    return stage(tmp_path_factory.mktemp("first"), NEW, seed=0, steps=20)


def test_synthetic_rows_make_a_model(first_stage: tuple[Path, list[float]]) -> None:
    exported, losses = first_stage
    assert losses[-1] < losses[0] - 1.0
    opened = open_model(str(exported))
    assert opened.model.config.dtype == "bfloat16" and opened.model.config.tie_embeddings
    assert opened.model.config.eos_token_ids == (2, 0)
    assert all(np.all(np.isfinite(np.asarray(leaf, np.float32))) for leaf in opened.load())
    again = Tokenizer.load(exported)
    assert again.vocab_size == 300 and again.decode(again.encode("17 + 25 = 42")) == "17 + 25 = 42"


def test_a_second_stage_begins_with_the_weights_of_the_first(
    first_stage: tuple[Path, list[float]], tmp_path: Path
) -> None:
    first, losses = first_stage
    new = replace(NEW, begin_from=str(first), synthetic_begins_at=1.0, synthetic_eval_rows=0)
    second, further = stage(tmp_path, new, seed=5, steps=2)
    assert further[0] < losses[0] - 1.0, "the second stage began with random weights"
    for name in ("tokenizer.json", "chat_template.jinja", "generation_config.json"):
        assert (second / name).read_bytes() == (first / name).read_bytes()
    assert open_model(str(first)).model.config == open_model(str(second)).model.config


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
    for name in ("tokenizer", "model_config"):
        with pytest.raises(ConfigError, match=f"{name}='x' contradicts begin_from='m', a model that has its own"):
            NewModelConfig(begin_from="m", **{name: "x"})  # pyright: ignore
    with pytest.raises(ConfigError, match="more than max_position=256"):
        pretrain(
            NewModelConfig(tokenizer=str(tiny_model), **SIZES),  # pyright: ignore
            DataConfig(data=("x.txt",), sequence_tokens=512),
            train=TrainConfig(out=str(tmp_path)),
            show_progress=False,
        )
