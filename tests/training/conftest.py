"""Fixtures: a tiny chat model in a folder, and rows to train it on."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from ryzjax.checkpoint.hf.config import model_config_from_hf
from ryzjax.checkpoint.hf.save import save_hf
from ryzjax.data.synthetic import SyntheticRows
from ryzjax.data.synthetic.vocabulary import train_tokenizer, write_tokenizer
from ryzjax.loading.dummy import dummy_weights
from ryzjax.models.registry import abstract_model
from tests.evaluation.models import ONE


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of two layers with random weights, and a tokenizer of 300 tokens."""
    folder = tmp_path_factory.mktemp("tiny")
    tokenizer = train_tokenizer(SyntheticRows(0, 40), vocab_size=300)
    raw = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": tokenizer.get_vocab_size(),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "hidden_act": "silu",
        "max_position_embeddings": 256,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
    }
    model = abstract_model(model_config_from_hf(raw, {}, dtype="float32"), ONE)
    weights = {
        name: np.asarray(array) * (1 if "norm" in name else 8)
        for name, array in dummy_weights(model.weights, 0).items()
    }
    save_hf(
        folder,
        model,
        weights.__getitem__,
        config=raw,
        copy_texts=lambda out: write_tokenizer(out, tokenizer, max_tokens=256),
    )
    return folder


@pytest.fixture(scope="session")
def rows_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 rows of prompt and completion."""
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    rows = [{"prompt": f"say {i % 7}", "completion": f" {i % 7}{i % 7}"} for i in range(40)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def pairs_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """16 preference pairs."""
    path = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    rows = [{"prompt": f"say {i % 7}", "chosen": f" {i % 7}", "rejected": f" {i % 7} no"} for i in range(16)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path
