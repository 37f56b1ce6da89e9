"""`--activations`: which weights are multiplied with int8 activations, and what that costs."""

from __future__ import annotations

import pytest

from ryzjax.data.synthetic.rows import held_out
from ryzjax.errors import ConfigError
from ryzjax.evaluation import EvaluationText, open_model, text_divergence
from ryzjax.loading.weight_plan import WeightChoice
from ryzjax.native.library import isa, native_refusal
from ryzjax.ops.linear.crossover import CROSSOVERS
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
    for weights in ("int8", "int4"):
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
        ({"weights": "nf4"}, "nested"),
    ],
)
def test_where_it_is_not_possible(options: dict, message: str):
    if options.get("weights") == "nf4":
        # The embedding table is int8 and can be multiplied so. The layers keep their activations.
        assert activations(**options, activations="int8") == {None, "int8_groups"}
        return
    with pytest.raises(ConfigError, match=message):
        open_model(DEMO_MODEL, **options, activations="int8")


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
