"""--plan: the bytes of the real step, without weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rich.console import Console

from ryzjax.lora.config import LoraConfig
from ryzjax.training.config import BaseConfig, TrainConfig
from ryzjax.training.optimizers.config import OptimizerConfig
from ryzjax.training.plan import MemoryPlan, plan_table, plan_training

pytestmark = pytest.mark.optimized

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 256,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "hidden_act": "silu",
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
}


@pytest.fixture
def config(tmp_path: Path) -> str:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(CONFIG), encoding="utf-8")
    return str(path)


def plan(config: str, *, weights: str = "bf16", full: bool = False, **train: object) -> MemoryPlan:
    options = {"batch_rows": 2, "loss_chunk_tokens": 32} | train
    return plan_training(
        BaseConfig(model=config, load_format="dummy", dtype="bfloat16", weights=weights, weights_group=32),  # pyright: ignore
        lora=None if full else LoraConfig(rank=4),
        optimizer=OptimizerConfig(optimizer="adamw"),
        train=TrainConfig(**options),  # pyright: ignore
        sequence_tokens=64,
    )


def test_bytes_by_hand(config: str) -> None:
    found = plan(config)
    linears = 4 * (64 * (64 + 32 + 32 + 64) + 3 * 64 * 128)
    assert found.frozen_bytes == {"layers": 2 * (linears + 4 * 2 * 64), "embedding and head": 2 * (2 * 256 * 64 + 64)}
    adapter = 4 * 4 * (3 * 64 + 2 * 64 + 32 + 32 + 64 + 3 * (64 + 128))
    assert found.trained_bytes == 4 * adapter
    assert found.optimizer_bytes == pytest.approx(8 * adapter, abs=64)
    parts = sum(found.frozen_bytes.values()) + found.trained_bytes + found.optimizer_bytes + found.batch_bytes
    assert found.total_bytes == pytest.approx(parts + found.temporary_bytes, rel=0.02)


@pytest.mark.slow
def test_what_is_advised_helps(config: str) -> None:
    plain = plan(config, remat="none")
    assert any("--weights int4" in remedy for remedy in plain.remedies)
    assert any("--remat full" in remedy for remedy in plain.remedies)
    assert plan(config, weights="int4", remat="none").frozen_bytes["layers"] < 0.32 * plain.frozen_bytes["layers"]
    assert plan(config, remat="full").temporary_bytes < plain.temporary_bytes
    full = plan(config, full=True)
    assert full.frozen_bytes["layers"] == 0 and full.trained_bytes > plain.trained_bytes


def test_the_table(config: str) -> None:
    console = Console(width=100, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(plan_table(plan(config)))
    text = console.export_text()
    assert "frozen layers" in text and "total" in text and "To save memory" in text
    console.file.close()
