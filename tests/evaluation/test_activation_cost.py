"""The cost of int8 activations: from Python, and in the table and the result file of `ryzjax eval`."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest
from rich.console import Console

from ryzjax.cli.main import main
from ryzjax.data.synthetic.rows import held_out
from ryzjax.errors import ConfigError
from ryzjax.evaluation import EvaluationText, OpenModel, open_model, text_activation_cost, text_divergence
from ryzjax.evaluation.report import evaluation_table, result_json
from ryzjax.native.library import native_refusal
from ryzjax.shipped import DEMO_MODEL

pytestmark = pytest.mark.skipif(native_refusal() is not None, reason=f"needs the kernels: {native_refusal()}")

TEXT = "\n".join(f"{item.messages[-1]['content']}\n{item.answer}" for item in held_out("addition", 8))


def opened(activations: str) -> OpenModel:
    return open_model(DEMO_MODEL, weights="int4", activations=activations)  # pyright: ignore[reportArgumentType]


@pytest.fixture(scope="module")
def reference() -> OpenModel:
    return open_model(DEMO_MODEL, dtype="float32")


def test_it_is_the_difference_of_two_measurements(reference: OpenModel):
    text = EvaluationText.of(TEXT)
    cost = text_activation_cost(reference, opened("bf16"), text, context_tokens=128)
    assert cost.bf16 == text_divergence(reference, opened("bf16"), text, context_tokens=128)
    assert cost.int8 == text_divergence(reference, opened("int8"), text, context_tokens=128)
    assert cost.bf16.mean_kl != cost.int8.mean_kl
    assert cost.added_kl == pytest.approx(cost.int8.mean_kl - cost.bf16.mean_kl, abs=1e-9)
    assert cost.share_of_kl == pytest.approx(cost.added_kl / cost.bf16.mean_kl)
    # The difference is paired by token, and far more certain than either mean.
    assert 0 < cost.added_kl_standard_error < cost.bf16.kl_standard_error
    assert json.loads(json.dumps(result_json(cost))) == asdict(cost)
    console = Console(width=80)
    with console.capture() as capture:
        console.print(evaluation_table("m", divergence=cost.int8, activation_cost=cost))
    shown = capture.get()
    assert "with bf16" in shown and "int8 adds" in shown and f"{cost.share_of_kl:.1%}" in shown
    assert "\N{HORIZONTAL ELLIPSIS}" not in shown, "nothing is cut in a terminal of 80 columns"


def test_a_plain_model_has_no_cost(reference: OpenModel):
    with pytest.raises(ConfigError, match="no low-bit weights"):
        text_activation_cost(reference, open_model(DEMO_MODEL), EvaluationText.of(TEXT), context_tokens=128)


@pytest.mark.parametrize("activations", ["bf16", "int8"])
def test_eval_says_it(activations: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "text.txt").write_text(TEXT)
    output = tmp_path / "out.json"
    words = ["eval", DEMO_MODEL, "--weights", "int4", "--activations", activations, "--output", str(output)]
    words += ["--kl", str(tmp_path / "text.txt"), "--reference", DEMO_MODEL, "--context-tokens", "128"]
    assert main(words) == 0
    shown, report = capsys.readouterr().out, json.loads(output.read_text())
    if activations == "int8":
        assert "activations: int8 for 36 of 36 low-bit weights" in shown
        assert report["activations"] == "int8 for 36 of 36 low-bit weights"
        assert "with bf16" in shown and "int8 adds" in shown and "share of weights' KL" in shown
        cost = report["activation_cost"]
        assert cost["int8"]["mean_kl"] == report["kl"]["mean_kl"] != cost["bf16"]["mean_kl"]
        assert cost["added_kl"] == pytest.approx(cost["int8"]["mean_kl"] - cost["bf16"]["mean_kl"], abs=1e-9)
    else:
        assert "activations: bfloat16" in shown and report["activations"] == "bfloat16"
        assert "with bf16" not in shown and report["activation_cost"] is None
