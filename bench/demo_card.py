"""Writes the demo model's card from the files of its run: no figure in it is typed by hand.

python bench/demo_card.py MODEL --scores eval.json --log log.jsonl --run run.json --output MODEL/README.md

MODEL is the checkpoint's folder; eval.json is of `ryzjax eval MODEL --tasks demo_... --output eval.json`, log.jsonl the
run's log, run.json one object of whatever else is to be told (seeds, wall time, machine, versions).
"""

from __future__ import annotations

import argparse
import json
import math
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Template

from ryzjax.data.synthetic import MIXTURE, TASKS
from ryzjax.training.run_log import read_log

TEMPLATE = Path(__file__).with_name("demo_card_template.md")
TARGETS = {"demo_addition": 0.95, "demo_extraction": 0.90, "demo_retrieval": 0.95}
SHAPE = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "intermediate_size",
    "vocab_size",
    "max_position_embeddings",
    "tie_word_embeddings",
)
LOSS_COLUMNS = ("tokens", "loss", "eval_loss")
LOSS_ROWS = 16


def table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def num_parameters(folder: Path) -> int:
    """Numbers in the checkpoint's safetensors files."""
    total = 0
    for file in sorted(folder.glob("*.safetensors")):
        with file.open("rb") as opened:
            (size,) = struct.unpack("<Q", opened.read(8))
            header = json.loads(opened.read(size))
        total += sum(math.prod(value["shape"]) for name, value in header.items() if name != "__metadata__")
    return total


def model_table(folder: Path) -> str:
    """Shape and size of the checkpoint."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    rows = [("parameters", f"{num_parameters(folder):,}"), ("bytes of weights", f"{size:,}")]
    return table(("", ""), [*rows, *((name, config[name]) for name in SHAPE if name in config)])


def scores_table(report: Mapping[str, Mapping[str, Mapping[str, object]]]) -> str:
    """The results of `ryzjax eval`, those with a target first."""
    rows = []
    for name, result in sorted(report["tasks"].items(), key=lambda item: item[0] not in TARGETS):
        metric = result["metrics"]["exact_match"]  # pyright: ignore[reportIndexIssue]
        target = f"{TARGETS[name]:.0%}" if name in TARGETS else ""
        interval = f"{metric['low']:.1%} to {metric['high']:.1%}"
        rows.append((f"`{name}`", f"{metric['value']:.1%}", interval, metric["n"], target))
    return table(("task", "exact match", "95% interval", "items", "wanted"), rows)


def losses_table(log: Sequence[Mapping[str, float | None]]) -> str:
    """Lines of the log, evenly spaced, the last one among them."""
    told = [line for line in log if line.get("loss") is not None]
    columns = [name for name in LOSS_COLUMNS if any(line.get(name) is not None for line in told)]
    picked = sorted({round(i * (len(told) - 1) / (LOSS_ROWS - 1)) for i in range(LOSS_ROWS)}) if told else []
    rows = [[told[i]["step"], *(_cell(told[i].get(name)) for name in columns)] for i in picked]
    return table(("step", *columns), rows)


def card(folder: Path, *, scores: Path, log: Path, run: Path) -> str:
    """The whole text."""
    facts = json.loads(run.read_text(encoding="utf-8"))
    mixture = [(f"`{name}`", f"{share:.0%}", TASKS[name].description) for name, share in MIXTURE.items()]
    return Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        parameters=f"{num_parameters(folder) / 1e6:.1f} million",
        model=model_table(folder),
        scores=scores_table(json.loads(scores.read_text(encoding="utf-8"))),
        run=table(("", ""), [(name.replace("_", " "), _cell(value)) for name, value in facts.items()]),
        losses=losses_table(read_log(log)),
        mixture=table(("task", "share", "rows"), mixture),
    )


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) and abs(value) >= 10_000 else str(value)


def main() -> None:
    """Writes the card."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("model", type=Path)
    for name in ("scores", "log", "run", "output"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    given = parser.parse_args()
    text = card(given.model, scores=given.scores, log=given.log, run=given.run)
    given.output.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
