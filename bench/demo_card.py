"""Writes the demo model's card (README.md) from the files of its two training stages.

No figure of the card is typed by hand.

python bench/demo_card.py stage RUN --command COMMAND [--note TEXT] --output bench/results/demo-stage-2.json
python bench/demo_card.py card ryzjax/demo --stages bench/results/demo-stage-1.json bench/results/demo-stage-2.json \
  --scores eval.json ... --sampled eval-t1.json ... --defaults eval-defaults.json ... --output ryzjax/demo/README.md

RUN is the output folder of a training stage: the --out of `ryzjax pretrain`, run on this machine. `stage` extracts the
settings and the part of the log that the card shows. `card` joins the stages and the score files that `ryzjax eval`
wrote: greedy, at temperature 1, and with the sampling defaults of the model's generation_config.json. Several files of
one kind hold different tasks. The note is printed under the settings, for what the settings do not show about a run.
"""

from __future__ import annotations

import argparse
import ast
import json
import math
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Template
from typing import Any

from record import provenance

from ryzjax.data.synthetic import MIXTURE, TASKS
from ryzjax.training.run.run_log import read_log

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
SETTINGS = {
    "train.seed": "seed of weights and rows",
    "model.synthetic_rows": "synthetic rows",
    "optimizer.optimizer": "optimizer",
    "optimizer.learning_rate": "learning rate",
    "optimizer.adam_learning_rate": "adam learning rate",
    "optimizer.schedule": "schedule",
    "optimizer.warmup_steps": "warmup steps",
    "optimizer.decay_ratio": "decay ratio",
}


def table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Returns a Markdown table."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def num_parameters(folder: Path) -> int:
    """Returns the number of parameters in the checkpoint's safetensors files."""
    total = 0
    for file in sorted(folder.glob("*.safetensors")):
        with file.open("rb") as opened:
            (size,) = struct.unpack("<Q", opened.read(8))
            header = json.loads(opened.read(size))
        total += sum(math.prod(value["shape"]) for name, value in header.items() if name != "__metadata__")
    return total


def model_table(folder: Path) -> str:
    """Returns a Markdown table with the shape and size of the checkpoint."""
    config = read_json(folder / "config.json")
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    rows = [("parameters", f"{num_parameters(folder):,}"), ("bytes of weights", f"{size:,}")]
    return table(("", ""), [*rows, *((name, config[name]) for name in SHAPE if name in config)])


def scores_table(greedy: Mapping[str, Any], sampled: Mapping[str, Any], defaults: Mapping[str, Any]) -> str:
    """Returns a Markdown table of the scores. Tasks with a target come first, and missing scores are empty cells."""
    rows = []
    for name in sorted(greedy, key=lambda name: name not in TARGETS):
        metric = greedy[name]["metrics"]["exact_match"]
        target = f"{TARGETS[name]:.0%}" if name in TARGETS else ""
        rows.append(
            (f"`{name}`", *(_score(report.get(name)) for report in (greedy, sampled, defaults)), metric["n"], target)
        )
    return table(("task", "greedy", "temperature 1", "with its defaults", "items", "target"), rows)


def sampling_of(report: Mapping[str, Any]) -> str:
    """Returns how a score file was sampled, such as "temperature 0.7, top-p 0.9"."""
    settings = report["settings"]
    top_p = "" if settings["top_p"] == 1 else f", top-p {settings['top_p']:g}"
    return f"temperature {settings['temperature']:g}{top_p}"


def losses_table(losses: Sequence[Mapping[str, float | None]]) -> str:
    """Returns a Markdown table with one row for each evaluated step."""
    return table(
        ("step", *LOSS_COLUMNS), [[line["step"], *(_cell(line.get(name)) for name in LOSS_COLUMNS)] for line in losses]
    )


def stage_of(run: Path, command: str, note: str) -> dict[str, Any]:
    """Returns the part of a run that the card shows, from run.json and metrics.jsonl in its folder."""
    summary, log = read_json(run / "run.json"), read_log(run / "metrics.jsonl")
    settings = summary["settings"]
    tokens = settings["train.batch_rows"] * settings["train.accumulate"] * settings["data.sequence_tokens"]
    steps: dict[float | None, dict[str, float | None]] = {}
    for line in log:
        steps.setdefault(line["step"], {}).update(line)
    return {
        "run_command": command,
        "settings": {
            name: settings[name]
            for name in SETTINGS
            if name != "optimizer.decay_ratio" or settings["optimizer.schedule"] == "wsd"
        },
        "mixture": ast.literal_eval(settings["model.synthetic_mixture"]) or dict(MIXTURE),
        "updates": summary["step"],
        "exported_step": summary["exported_step"],
        "tokens_an_update": tokens,
        "tokens_trained_on": summary["tokens"],
        "last_loss": summary["loss"],
        "evaluation_loss": summary["eval_loss"],
        # If a run was stopped and resumed, wall_s covers only its last process. The log covers all of them, but not
        # compilation and evaluation.
        "minutes": max(summary["wall_s"] / 60, minutes_of(log, settings["train.log_every"] * tokens)),
        "losses": [
            {name: line.get(name) for name in ("step", *LOSS_COLUMNS)}
            for line in steps.values()
            if line.get("eval_loss") is not None
        ],
        "note": note,
        **provenance(),
    }


def stages_table(stages: Sequence[Mapping[str, Any]]) -> str:
    """Returns a Markdown table of each stage: seed, sizes, settings, final losses, machine and versions."""

    def row(name: str, cells: Sequence[object]) -> tuple[object, ...]:
        return (name, *cells)

    rows = [
        row("command", [f"`{stage['run_command']}`" for stage in stages]),
        *(row(told, [_cell(stage["settings"].get(name)) for stage in stages]) for name, told in SETTINGS.items()),
        row("updates", [f"{stage['updates']:,}" for stage in stages]),
        row("tokens an update", [f"{stage['tokens_an_update']:,}" for stage in stages]),
        row("tokens trained on (of the assistant)", [f"{stage['tokens_trained_on']:,}" for stage in stages]),
        row("last loss", [f"{stage['last_loss']:.4f}" for stage in stages]),
        row("evaluation loss", [f"{stage['evaluation_loss']:.4f}" for stage in stages]),
        row("minutes", [f"{stage['minutes']:.0f}" for stage in stages]),
        row("machine", [f"{stage['hardware']['cpu']}, {stage['hardware']['cores']} cores" for stage in stages]),
        row("versions", [", ".join(f"{n} {number}" for n, number in stage["versions"].items()) for stage in stages]),
    ]
    return table(("", "first stage", "second stage"), rows)


def card(
    folder: Path, stages: Sequence[Path], *, scores: Sequence[Path], sampled: Sequence[Path], defaults: Sequence[Path]
) -> str:
    """Returns the whole card."""
    told = [read_json(stage) for stage in stages]
    reports = [merged(files) for files in (scores, sampled, defaults)]
    mixture = [
        (f"`{name}`", *(f"{stage['mixture'].get(name, 0):.0%}" for stage in told), task.description)
        for name, task in TASKS.items()
    ]
    return Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        parameters=f"{num_parameters(folder) / 1e6:.1f} million",
        model=model_table(folder),
        scores=scores_table(*(report["tasks"] for report in reports)),
        defaults=sampling_of(reports[2]),
        run=stages_table(told),
        notes="\n\n".join(stage["note"] for stage in told if stage["note"]),
        losses="\n\n".join(
            f"{name} stage:\n\n{losses_table(stage['losses'])}"
            for name, stage in zip(("First", "Second"), told, strict=True)
        ),
        mixture=table(("task", "first stage", "second stage", "rows"), mixture),
    )


def merged(files: Sequence[Path]) -> dict[str, Any]:
    """Joins score files that were sampled in the same way: the settings of the first with the tasks of all."""
    reports = [read_json(file) for file in files]
    for file, report in zip(files, reports, strict=True):
        if sampling_of(report) != sampling_of(reports[0]):
            raise SystemExit(f"{file}: {sampling_of(report)}; expected {sampling_of(reports[0])}, as in {files[0]}")
    return {**reports[0], "tasks": {name: result for report in reports for name, result in report["tasks"].items()}}


def read_json(file: Path) -> dict[str, Any]:
    """Reads a JSON object."""
    return json.loads(file.read_text(encoding="utf-8"))


def minutes_of(log: Sequence[Mapping[str, float | None]], tokens: int) -> float:
    """Returns the minutes that the updates in a log took. The log has a line for every `tokens` tokens."""
    return sum(tokens / speed for line in log if (speed := line.get("tokens_per_s"))) / 60


def _score(result: Mapping[str, Any] | None) -> str:
    if result is None:
        return ""
    metric = result["metrics"]["exact_match"]
    return f"{metric['value']:.1%} ({metric['low']:.1%} to {metric['high']:.1%})"


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) and abs(value) >= 10_000 else str(value)


def main() -> None:
    """Writes the file of a stage, or the card."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    commands = parser.add_subparsers(dest="what", required=True)
    stage = commands.add_parser("stage")
    stage.add_argument("run", type=Path)
    stage.add_argument("--command", required=True)
    stage.add_argument("--note", default="")
    whole = commands.add_parser("card")
    whole.add_argument("model", type=Path)
    whole.add_argument("--stages", type=Path, nargs="+", required=True)
    for name in ("scores", "sampled", "defaults"):
        whole.add_argument(f"--{name}", type=Path, nargs="+", required=True)
    for command in (stage, whole):
        command.add_argument("--output", type=Path, required=True)
    given = parser.parse_args()
    if given.what == "stage":
        text = json.dumps(stage_of(given.run, given.command, given.note), indent=1) + "\n"
    else:
        text = card(given.model, given.stages, scores=given.scores, sampled=given.sampled, defaults=given.defaults)
    given.output.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
