"""Results as tables and as JSON."""

from __future__ import annotations

import json
import math

from rich.console import Console

from ryzjax.evaluation import Perplexity, TaskOptions, TaskResult
from ryzjax.evaluation.report import evaluation_table, provenance, result_json
from ryzjax.evaluation.statistics import Metric

METRIC = Metric(value=0.25, low=0.1234567, high=math.inf, n=1234)
RESULT = TaskResult(
    task="mmlu",
    metrics={"acc": METRIC},
    n=1234,
    num_fewshot=5,
    num_cut=2,
    options=TaskOptions(limit=3),
    data_sha256={"f": "00"},
    groups={"anatomy": METRIC},
)
TEXT = Perplexity(
    nll=1.0,
    nll_standard_error=0.1,
    perplexity=2_624_496_956.0,
    perplexity_low=2.0,
    perplexity_high=0.00012,
    bits_per_byte=1.5,
    tokens=10,
    windows=1,
    context_tokens=8,
    stride_tokens=4,
    text="folder/a.txt",
    text_sha256="ff",
)


def test_a_table() -> None:
    console = Console(width=80)
    with console.capture() as capture:
        console.print(evaluation_table("m", tasks={"mmlu": RESULT}, perplexity=TEXT))
    shown = capture.get()
    assert "mmlu, 5-shot" in shown and "0.2500" in shown and "0.1235 to inf" in shown and "1,234" in shown
    assert "2.62e+09" in shown and "2.0000 to 1.20e-04" in shown and "folder" not in shown
    assert "2 prompts of mmlu were cut on the left to fit the context" in shown


def test_json_has_every_field_and_no_infinity() -> None:
    fields = json.loads(json.dumps(result_json(RESULT), allow_nan=False))
    assert fields["metrics"]["acc"] == {"value": 0.25, "low": 0.1234567, "high": None, "n": 1234}
    assert fields["options"]["limit"] == 3 and fields["groups"]["anatomy"]["n"] == 1234
    assert set(fields) == set(RESULT.__dataclass_fields__)
    json.dumps(provenance(), allow_nan=False)
