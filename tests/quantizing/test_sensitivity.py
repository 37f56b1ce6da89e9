"""Mixed precision: the most sensitive layers get 8 bits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ryzjax.checkpoint.hf.config import model_config_from_hf
from ryzjax.checkpoint.source import resolve_source
from ryzjax.errors import ConfigError
from ryzjax.loading.load import load_weights
from ryzjax.models.registry import abstract_model
from ryzjax.quant.recipe import Recipe
from ryzjax.quantizing.sensitivity import FixedLayers, Sensitivity, choose_bits, mix_of_bits, sensitivities
from tests.models.test_families import write_checkpoint
from tests.quantizing.test_quantize import ONE, divergence, logits, random_calibration, run

NO_REST = FixedLayers(weights=0, nbytes=0)


def group(name: str, kl: float, weights: int = 1000) -> Sensitivity:
    return Sensitivity(layers=(name,), kl=kl, weights=weights, bytes_4=weights // 2, bytes_8=weights)


def test_the_group_with_the_most_divergence_per_byte_goes_first():
    found = [group("a", 0.1), group("b", 0.5, 10000), group("c", 0.3), group("d", 0.01)]
    assert choose_bits(found, NO_REST, target_bits=4.7, max_kl=None) == {"a": 8, "b": 4, "c": 8, "d": 4}
    assert choose_bits(found, NO_REST, target_bits=8.0, max_kl=None) == dict.fromkeys("abcd", 8)
    assert choose_bits(found, NO_REST, target_bits=4.0, max_kl=None) == dict.fromkeys("abcd", 4)


def test_groups_get_8_bits_until_the_divergence_is_low_enough():
    found = [group("a", 0.1), group("c", 0.3), group("d", 0.01)]
    assert choose_bits(found, NO_REST, target_bits=None, max_kl=1.0) == dict.fromkeys("acd", 4)
    assert choose_bits(found, NO_REST, target_bits=None, max_kl=0.2) == {"a": 4, "c": 8, "d": 4}
    assert choose_bits(found, NO_REST, target_bits=None, max_kl=0.001) == dict.fromkeys("acd", 8)


def test_a_budget_below_four_bits_is_refused():
    with pytest.raises(ConfigError, match=r"target_bits=4\.1: 4 bits with their scales take 4\.500"):
        choose_bits(
            [Sensitivity(layers=("a",), kl=0.1, weights=1600, bytes_4=900, bytes_8=1700)],
            NO_REST,
            target_bits=4.1,
            max_kl=None,
        )


def test_fixed_layers_count_in_the_average():
    found = [group("a", 0.1), group("b", 0.5)]
    rest = FixedLayers(weights=1000, nbytes=1000)
    assert choose_bits(found, rest, target_bits=6.7, max_kl=None) == {"a": 4, "b": 8}
    assert choose_bits(found, rest, target_bits=6.6, max_kl=None) == {"a": 4, "b": 4}
    with pytest.raises(ConfigError, match=r"take 5\.333 bits a weight already, including 1,000 weights at 8 bits"):
        choose_bits(found, rest, target_bits=5.0, max_kl=None)


def test_layers_that_groups_do_not_divide_count_in_the_budget(tmp_path: Path):
    """The average of the reports meets the target, although mlp.down (K = 48) always has 8 bits."""
    plain = write_checkpoint("llama", tmp_path)
    source = resolve_source(str(plain))
    model = abstract_model(model_config_from_hf(source.config), ONE)
    recipe, calibration = Recipe(method="rtn", group_size=32, target_bits=6.5), random_calibration()
    bits = mix_of_bits(source, model, recipe, calibration, show_progress=False)
    assert not any(name.endswith("mlp.down") for name in bits)
    assert set(bits.values()) == {4, 8}
    reports = [r for r in run(plain, tmp_path / "mix", recipe, calibration, bits=bits).reports if r.bits < 16]
    average = 8 * sum(r.nbytes for r in reports) / sum(r.shape[0] * r.shape[1] for r in reports)
    assert 6.0 < average <= 6.5


def test_sensitivities_are_divergences_of_the_model(tmp_path: Path):
    """Each sensitivity is the KL of the model with that group alone at 4 bits. A mix lies between 4 and 8 bits."""
    plain = write_checkpoint("llama", tmp_path)
    source = resolve_source(str(plain))
    config = model_config_from_hf(source.config)
    model = abstract_model(config, ONE)
    recipe, calibration = Recipe(method="rtn", group_size=16, target_bits=7.0), random_calibration()
    weights = load_weights(source, model)
    found = sensitivities(model, weights, recipe, calibration, show_progress=False)
    names = [name for each in found for name in each.layers]
    assert sorted(names) == sorted(name for name in model.linears if name != "lm_head")
    assert all(each.kl > 0 for each in found)
    kls = np.array([each.kl for each in found])
    assert kls.max() > 2 * kls.min()
    bits = mix_of_bits(source, model, recipe, calibration, show_progress=False)
    assert set(bits.values()) == {4, 8}
    result = run(plain, tmp_path / "mix", recipe, calibration, bits=bits)
    result.finish()
    assert {report.name: report.bits for report in result.reports if report.name in bits} == bits
    for width in (4, 8):
        run(plain, tmp_path / f"w{width}", Recipe(method="rtn", group_size=16, bits=width)).finish()
    reference = logits(plain)
    kl = {name: divergence(reference, logits(tmp_path / name)) for name in ("w4", "mix", "w8")}
    assert kl["w8"] < kl["mix"] < kl["w4"]
