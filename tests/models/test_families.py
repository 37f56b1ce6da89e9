"""Every family and RoPE scaling against logits that transformers gave: prompt and decode, through the paged path."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from ryzjax.checkpoint import model_config_from_hf, resolve_source
from ryzjax.loading import load_weights
from ryzjax.models.registry import FAMILIES, abstract_model, family_of
from ryzjax.sharding import Layout, Placement
from tests.goldens.make_families import PROMPT_TOKENS, VARIANTS, tiny_weights
from tests.models.paged import sequence_logits

pytestmark = pytest.mark.essential

GOLDENS = Path(__file__).resolve().parents[1] / "goldens"
ENTRIES = json.loads((GOLDENS / "families.json").read_text())
TOLERANCE = 2e-4


def write_checkpoint(name: str, folder: Path) -> Path:
    entry = ENTRIES[name]
    (folder / "config.json").write_text(json.dumps(entry["config"]))
    shapes = {tensor: tuple(shape) for tensor, shape in entry["shapes"].items()}
    save_file(tiny_weights(shapes, VARIANTS[name][0]), folder / "model.safetensors")
    return folder


def logits_of(folder: Path, tokens: list[int], layout: str = "single", chunk: int = 48) -> np.ndarray:
    source = resolve_source(str(folder))
    config = model_config_from_hf(source.config, source.generation, dtype="float32")
    model = abstract_model(config, Placement(Layout.load(layout), jax.devices() if layout != "single" else None))
    leaves = tuple(load_weights(source, model).values())
    return sequence_logits(model, leaves, tokens, prompt_len=PROMPT_TOKENS, chunk=chunk)


@pytest.mark.parametrize("name", VARIANTS)
def test_logits_are_those_of_transformers(name: str, tmp_path: Path):
    with np.load(GOLDENS / "families.npz") as goldens:
        tokens, expected = goldens[f"{name}/tokens"].tolist(), goldens[f"{name}/logits"]
    logits = logits_of(write_checkpoint(name, tmp_path), tokens)
    assert np.abs(logits - expected).max() < TOLERANCE


def test_every_family_has_a_golden():
    covered = {family_of(model_config_from_hf(entry["config"])) for entry in ENTRIES.values()}
    assert covered == set(FAMILIES)
    assert set(ENTRIES) == set(VARIANTS)
