"""`--activations`: which weights are multiplied with int8 activations, and what that costs."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace

import jax
import numpy as np
import pytest

from ryzjax.checkpoint.source import resolve_source
from ryzjax.data.synthetic.rows import held_out
from ryzjax.errors import ConfigError
from ryzjax.evaluation import EvaluationText, open_model, reference_states, text_divergence
from ryzjax.loading.model_config import read_model_config
from ryzjax.loading.weight_plan import WeightChoice, WeightPlan, auto_activations, plan_weights
from ryzjax.models.registry import abstract_model
from ryzjax.native.library import isa, native_refusal
from ryzjax.ops.linear.crossover import CROSSOVERS
from ryzjax.qarray import QFormat
from ryzjax.sharding import Layout, Placement
from ryzjax.shipped import DEMO_MODEL

pytestmark = pytest.mark.skipif(native_refusal() is not None, reason=f"needs the kernels: {native_refusal()}")

TEXT = EvaluationText.of(
    "\n".join(
        f"{item.messages[-1]['content']}\n{item.answer}"
        for task in ("addition", "extraction", "retrieval")
        for item in held_out(task, 12)
    )
)


def activations(**options: object) -> set[str | None]:
    model = open_model(DEMO_MODEL, **options).model  # pyright: ignore[reportArgumentType]
    return {format.activations for format in model.quantization.values()}


def test_the_choice():
    for weights in ("int8", "int4", "nf4"):
        assert activations(weights=weights, activations="int8") == {"int8_groups"}
        assert activations(weights=weights, activations="bf16") == {None}
    # The embedding table is int8 and keeps its activations.
    is_faster = CROSSOVERS[str(isa())].int8_activations
    assert activations(weights="int4", activations="auto") == ({None, "int8_groups"} if is_faster else {None})
    assert activations(weights="int8", activations="auto") == {None}
    assert activations(activations="auto") == set()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "no low-bit weights; choose --weights int8"),
        ({"weights": "int8", "dtype": "float32"}, "activations are float32, not bfloat16"),
    ],
)
def test_where_it_is_not_possible(options: dict, message: str):
    with pytest.raises(ConfigError, match=message):
        open_model(DEMO_MODEL, **options, activations="int8")


REMEDY = "leave the option out, or set it to 'bf16', which runs with all weights and on all devices"


def plan_of(placement: Placement | None = None, **options: object) -> WeightPlan:
    source = resolve_source(DEMO_MODEL)
    config = read_model_config(source, dtype="auto")
    placement = placement or Placement(Layout.load("single"))
    return plan_weights(source, config, placement, **options)  # pyright: ignore[reportArgumentType]


def refused(plan: WeightPlan) -> str:
    with pytest.raises(ConfigError) as error:
        plan.with_activations("int8")
    text = str(error.value)
    assert text.startswith("activations='int8' is not possible here (") and text.endswith(REMEDY)
    assert str(plan.int8_refusal()) in text
    assert plan.with_activations("bf16") is plan, "the remedy runs"
    return text


def test_plain_weights_are_refused():
    assert "the model has no low-bit weights; choose --weights int8, int4 or nf4" in refused(plan_of())


def test_float8_weights_are_refused():
    plan = plan_of(weights="int8")
    formats = dict.fromkeys(plan.model.quantization.keys() - {"embed"}, QFormat(kind="float8"))
    model = abstract_model(plan.model.config, plan.model.placement, formats)
    assert "float8 weights are not integers" in refused(replace(plan, model=model, stored=model))


def test_groups_that_are_no_multiple_of_32_are_refused():
    plan = plan_of(weights="int8")
    formats = dict.fromkeys(plan.model.quantization.keys() - {"embed"}, QFormat(kind="int4", group=16, pack=16))
    model = abstract_model(plan.model.config, plan.model.placement, formats)
    assert "group=16 is not a multiple of 32" in refused(replace(plan, model=model, stored=model))


def test_a_layout_over_gpus_is_refused(monkeypatch: pytest.MonkeyPatch):
    plan = plan_of(weights="int4")
    monkeypatch.setattr(Placement, "platform", "gpu")
    assert "the integer kernels are for a CPU, and the devices are gpu" in refused(plan)


def test_a_layout_over_several_cpu_devices():
    """Int8 activations run there too. Partial sums over the devices are rounded in another order."""
    hidden = []
    for placement in (Placement(Layout.load("single")), Placement(Layout.load("tp"), jax.devices()[:2])):
        plan = plan_of(placement, weights="int4", group=32).with_activations("int8")
        assert {format.activations for format in plan.model.quantization.values()} == {"int8_groups"}
        weights = plan.load()
        leaves = tuple(weights[name] for name in plan.model.weights)
        states = reference_states(plan.model, leaves, list(range(100, 140)), context_tokens=40, stride_tokens=39)
        hidden.append(states.hidden.astype(np.float32))
    single, split = hidden
    assert np.linalg.norm(split - single) < 0.05 * np.linalg.norm(single)


@pytest.mark.parametrize(
    ("environment", "reason"),
    [
        ({"RYZJAX_NATIVE": "0"}, "turned off by RYZJAX_NATIVE=0"),
        ({"RYZJAX_NATIVE_ISA": "avx1024"}, "RYZJAX_NATIVE_ISA=avx1024 is not on this machine; expected one of avx512"),
    ],
)
def test_without_the_kernels(environment: dict[str, str], reason: str):
    """The real environment variables are read once a process, so a new one reads them."""
    code = f"""
from ryzjax.errors import ConfigError
from ryzjax.loading.open_model import open_model
from ryzjax.loading.weight_plan import auto_activations
print(*auto_activations())
print(open_model("{DEMO_MODEL}", weights="int4", activations="auto").plan.activations)
try:
    open_model("{DEMO_MODEL}", weights="int4", activations="int8")
except ConfigError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **environment}, capture_output=True, text=True, check=True
    )
    auto, runs, error = done.stdout.splitlines()
    assert auto.startswith("bf16 the integer kernels do not run: ") and reason in auto
    assert runs == "bfloat16"
    assert reason in error and error.startswith("activations='int8' is not possible here (") and error.endswith(REMEDY)


def test_the_choice_can_be_taken_back():
    plan = plan_of(weights="int4")
    integer = plan.with_activations("int8")
    count, total = integer.num_int8_products or (0, 0)
    assert count == total == len(plan.model.quantization)
    assert integer.activations == f"int8 for {count} of {count} low-bit weights"
    back = integer.with_activations("bf16")
    assert back.model.quantization == plan.model.quantization and back.activations == "bfloat16"
    assert integer.with_activations("int8") is integer


def test_auto_has_a_reason():
    choice, reason = auto_activations()
    assert choice == ("int8" if CROSSOVERS[str(isa())].int8_activations else "bf16")
    assert str(isa()) in reason


@pytest.mark.parametrize(("weights", "times"), [pytest.param("int8", 2.0, marks=pytest.mark.slow), ("int4", 1.1)])
def test_what_it_costs(weights: WeightChoice, times: float):
    """The KL of int4 weights grows by less than a tenth, and that of int8 weights to less than twice."""
    reference = open_model(DEMO_MODEL, dtype="float32")
    plain, integer = (
        text_divergence(
            reference,
            open_model(DEMO_MODEL, weights=weights, weights_group=32, activations=choice),
            TEXT,
            context_tokens=256,
            stride_tokens=255,
        )
        for choice in ("bf16", "int8")
    )
    assert integer.mean_kl != plain.mean_kl
    assert integer.mean_kl < times * plain.mean_kl
