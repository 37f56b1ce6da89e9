"""Writes the demo model's card from the files of its run: no figure in it is typed by hand.

python bench/demo_card.py RUN --scores eval.json [--note TEXT] --output RUN/model/README.md

RUN is the folder of `ryzjax pretrain --config demo --out RUN`, on this machine: its model, its log and its settings are
told. eval.json is of `ryzjax eval RUN/model --tasks demo_... --output eval.json`. The note stands under the settings:
what happened to the run that they do not say.
"""

from __future__ import annotations

import argparse
import json
import math
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Template
from typing import Any

from record import provenance

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
    """What the log has of each step that was evaluated, a step a row."""
    steps: dict[float | None, dict[str, float | None]] = {}
    for line in log:
        steps.setdefault(line["step"], {}).update(line)
    told = [line for line in steps.values() if line.get("eval_loss") is not None]
    return table(
        ("step", *LOSS_COLUMNS), [[line["step"], *(_cell(line.get(n)) for n in LOSS_COLUMNS)] for line in told]
    )


def run_table(run: Mapping[str, Any], log: Sequence[Mapping[str, float | None]]) -> str:
    """Seeds, sizes and settings of the run, how it ended, and what it ran on."""
    settings = run["settings"]
    machine: dict[str, Any] = provenance()
    batch = settings["train.batch_rows"] * settings["train.accumulate"] * settings["data.sequence_tokens"]
    hardware = machine["hardware"]
    # Of all processes that took part: `wall_s` is the last one's.
    speeds = [line["tokens_per_s"] for line in log if line.get("tokens_per_s")]
    minutes = sum(settings["train.log_every"] * batch / speed for speed in speeds if speed) / 60
    rows = [
        ("command", "`ryzjax pretrain --config demo --out demo`"),
        ("seed of weights and rows", settings["train.seed"]),
        ("seed of the held-out scores", 0),
        ("synthetic rows", f"{settings['model.synthetic_rows']:,}"),
        ("updates", f"{run['step']:,}"),
        ("tokens an update", f"{batch:,}"),
        ("tokens trained on (of the assistant)", f"{run['tokens']:,}"),
        *(
            (name.replace("_", " "), settings[f"optimizer.{name}"])
            for name in ("optimizer", "learning_rate", "adam_learning_rate", "schedule", "warmup_steps", "decay_ratio")
        ),
        ("last loss", f"{run['loss']:.4f}"),
        ("evaluation loss", f"{run['eval_loss']:.4f}"),
        ("minutes, by the log", f"{minutes:.0f}"),
        ("machine", f"{hardware['cpu']}, {hardware['cores']} cores"),
        ("versions", ", ".join(f"{name} {number}" for name, number in machine["versions"].items())),
    ]
    return table(("", ""), rows)


def card(run: Path, scores: Path, note: str) -> str:
    """The whole text."""
    folder, log = run / "model", read_log(run / "metrics.jsonl")
    mixture = [(f"`{name}`", f"{share:.0%}", TASKS[name].description) for name, share in MIXTURE.items()]
    return Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        parameters=f"{num_parameters(folder) / 1e6:.1f} million",
        model=model_table(folder),
        scores=scores_table(json.loads(scores.read_text(encoding="utf-8"))),
        run=run_table(json.loads((run / "run.json").read_text(encoding="utf-8")), log),
        note=note,
        losses=losses_table(log),
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
    parser.add_argument("run", type=Path)
    for name in ("scores", "output"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--note", default="The run went from its start to its end without a stop.")
    given = parser.parse_args()
    given.output.write_text(card(given.run, given.scores, given.note), encoding="utf-8")


if __name__ == "__main__":
    main()
