"""finetune, from files to an adapter or a model; resuming after a stop; errors."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from ryzjax import BaseConfig, DataConfig, LoraConfig, OptimizerConfig, TrainConfig, finetune
from ryzjax.checkpoint.peft.read import read_adapter
from ryzjax.errors import CheckpointError, ConfigError, DataError, TrainingError
from ryzjax.evaluation.forward import Forward
from ryzjax.loading.open_model import open_model
from ryzjax.lora.adapter import BaseQuantization
from ryzjax.lora.model import adapted
from ryzjax.training.finetune import FinetuneResult
from ryzjax.training.run.run_log import read_log

LORA = LoraConfig(rank=4, alpha=8)
SGD = OptimizerConfig(learning_rate=2e-2, warmup_steps=0)


def run(model: Path, rows: Path, out: Path, **options) -> FinetuneResult:
    """A short run; options of its parts by name."""
    train = {"max_steps": 12, "batch_rows": 2, "out": str(out), "save_every": 4} | options.pop("train", {})
    data = {"data": (str(rows),), "sequence_tokens": 64} | options.pop("data", {})
    base = {"model": str(model), "dtype": "float32"} | options.pop("base", {})
    lora = options.pop("lora", LORA)
    return finetune(
        BaseConfig(**base),
        DataConfig(**data),
        lora=lora,
        optimizer=options.pop("optimizer", SGD),
        train=TrainConfig(**train),
        **({"show_progress": False} | options),
    )


def losses(out: Path) -> list[tuple[int, float | None, float | None, float | None]]:
    return [
        (int(row["step"] or 0), row.get("loss"), row.get("grad_norm"), row.get("eval_loss"))
        for row in read_log(out / "metrics.jsonl")
    ]


def logits_of(folder: Path, model: Path, tokens: list[int], *, weights: str = "auto") -> np.ndarray:
    """Of the base with the adapter of a folder beside it."""
    opened = open_model(str(model), dtype="float32", weights=weights)  # pyright: ignore[reportArgumentType]
    adapter = read_adapter(folder, opened.model)
    both, leaves = adapted(opened.model, opened.load(), adapter, name="it")
    hidden = Forward(both, leaves, max_tokens=64).hidden(tokens)
    return np.asarray(both.merge(leaves).logits(jnp.asarray(hidden)))


def test_an_adapter_learns_and_is_saved(tiny_model: Path, rows_file: Path, tmp_path: Path) -> None:
    result = run(tiny_model, rows_file, tmp_path, train={"max_steps": 30}, data={"eval_fraction": 0.2})
    log = losses(tmp_path)
    assert log[0][1] is not None and result.loop.eval_loss is not None
    assert result.loop.eval_loss < log[0][1] - 1.0
    assert {"adapter", "checkpoints", "loss.png", "metrics.jsonl", "run.json"} <= {p.name for p in tmp_path.iterdir()}
    assert result.exported == tmp_path / "adapter" and result.step == result.loop.best_step
    tokens = [5, 9, 30, 31, 40]
    assert np.abs(logits_of(result.exported, tiny_model, tokens)).max() > 0
    summary = json.loads((tmp_path / "run.json").read_text())
    assert summary["step"] == 30 and summary["settings"]["lora.rank"] == 4


@pytest.mark.parametrize(
    "weights", [pytest.param("auto", marks=pytest.mark.slow), pytest.param("int4", marks=pytest.mark.slow), "nf4"]
)
def test_a_resumed_run_has_the_losses_of_one_that_was_not_stopped(
    weights: str, tiny_model: Path, rows_file: Path, tmp_path: Path
) -> None:
    """With dropout, accumulation, 8-bit states and evaluations; stopped between two checkpoints' steps."""
    options = {
        "lora": LoraConfig(rank=4, alpha=8, dropout=0.1),
        "optimizer": OptimizerConfig(optimizer="adamw8bit", learning_rate=1e-2),
        "data": {"eval_fraction": 0.2},
        "base": {"weights": weights, "weights_group": 32},
    }
    once = {"accumulate": 2, "eval_every": 5}
    run(tiny_model, rows_file, tmp_path / "whole", train=once, **options)
    with pytest.MonkeyPatch.context() as patch:
        from ryzjax.training.run.loop import Loop

        read = Loop._read

        def die(self: Loop, step) -> float:
            if step.step == 7:
                raise KeyboardInterrupt
            return read(self, step)

        patch.setattr(Loop, "_read", die)
        with pytest.raises(KeyboardInterrupt):
            run(tiny_model, rows_file, tmp_path / "cut", train=once, **options)
    result = run(tiny_model, rows_file, tmp_path / "cut", train=once | {"resume": True}, **options)
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")
    assert result.loop.step == 12
    rounding = None if weights == "auto" else BaseQuantization(weights=weights, group=32)  # pyright: ignore
    written = read_adapter(tmp_path / "cut/adapter", open_model(str(tiny_model)).model)
    assert written.base_quantization == rounding, "what ryzjax merge goes by"
    for part in ("adapter_model.safetensors", "adapter_config.json"):
        assert (tmp_path / "cut/adapter" / part).read_bytes() == (tmp_path / "whole/adapter" / part).read_bytes()


def test_sigterm_keeps_a_checkpoint(tiny_model: Path, rows_file: Path, tmp_path: Path) -> None:
    script = "import sys; from ryzjax.cli.main import main; sys.exit(main())"
    flags = [
        "finetune",
        str(tiny_model),
        "--data",
        str(rows_file),
        "--out",
        str(tmp_path / "run"),
        "--max-steps",
        "5000",
    ]
    flags += ["--sequence-tokens", "64", "--batch-rows", "2", "--dtype", "float32", "--save-every", "100000"]
    process = subprocess.Popen(
        [sys.executable, "-c", script, *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "XLA_FLAGS": ""},
    )
    log = tmp_path / "run/metrics.jsonl"
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline and process.poll() is None and not (log.exists() and log.stat().st_size > 2000):
        time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=240)
    assert process.returncode == 143, err  # as of a process that SIGTERM ends: a restart loop goes on
    assert "stopped by SIGTERM" in out and "SIGTERM: stopping after this step" in err
    steps = [int(folder.name) for folder in (tmp_path / "run/checkpoints").iterdir()]
    assert steps == [read_log(log)[-1]["step"]] and (tmp_path / "run/adapter/adapter_model.safetensors").is_file()


def test_a_loss_that_is_no_number_stops_the_run(tiny_model: Path, rows_file: Path, tmp_path: Path) -> None:
    """The latest checkpoint is of before; the message names step and rows."""
    explode = OptimizerConfig(learning_rate=1e38, warmup_steps=0, clip_norm=None, schedule="constant", weight_decay=0.5)
    with pytest.raises(TrainingError, match=r"step \d+: the loss is .* The update was not applied .*rows\.jsonl:\d+"):
        run(tiny_model, rows_file, tmp_path, optimizer=explode)
    assert not (tmp_path / "adapter").exists()


def test_its_message_names_the_newest_checkpoint(
    tiny_model: Path, rows_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one that is still being written, too; and none where there is none."""
    from ryzjax.training.run.loop import Loop

    read = Loop._read
    bad_step = 0

    def spoilt(self: Loop, step) -> None:
        if step.step == bad_step:
            step.metrics["finite"] = jnp.zeros_like(step.metrics["finite"])
        read(self, step)

    monkeypatch.setattr(Loop, "_read", spoilt)
    for bad_step, expected in (
        (4, r"The latest checkpoint is of step 3: look"),
        (1, r"There is no checkpoint yet: look"),
    ):
        out = tmp_path / str(bad_step)
        with pytest.raises(TrainingError, match=rf"step {bad_step}: the loss is .* {expected} .*--resume"):
            run(tiny_model, rows_file, out, train={"save_every": 1})
        steps = [int(folder.name) for folder in (out / "checkpoints").iterdir()]
        assert max(steps, default=0) == bad_step - 1


def test_a_bad_row_to_evaluate_on_loses_nothing(tiny_model: Path, rows_file: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"prompt": "a", "completion": 5}\n', encoding="utf-8")
    with pytest.raises(DataError, match=r"bad\.jsonl:1: .* A checkpoint of step 3 is saved: continue with --resume"):
        run(
            tiny_model,
            rows_file,
            tmp_path / "run",
            train={"eval_every": 3, "save_every": 100},
            data={"eval_data": (str(bad),)},
        )
    assert [folder.name for folder in (tmp_path / "run/checkpoints").iterdir()] == ["3"]


def test_a_bad_first_row_is_one_line(tiny_model: Path, tmp_path: Path) -> None:
    """Nothing else is printed, and Orbax and its threads were never started."""
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"prompt": "a", "completion": 5}\n{"prompt": "a", "completion": "b"}\n', encoding="utf-8")
    script = "import sys; from ryzjax.cli.main import main; status = main(); "
    script += "print('orbax.checkpoint' in sys.modules); sys.exit(status)"
    flags = ["finetune", str(tiny_model), "--data", str(bad), "--out", str(tmp_path / "run"), "--max-steps", "2"]
    flags += ["--sequence-tokens", "64", "--batch-rows", "1", "--dtype", "float32"]
    done = subprocess.run(
        [sys.executable, "-c", script, *flags],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "XLA_FLAGS": ""},
    )
    error = f"error: {bad}:1: prompt is a str and completion a int; expected both as text, or both as lists of messages"
    assert done.returncode == 2 and done.stdout.strip() == "False"
    assert done.stderr.splitlines()[-1] == error and "Traceback" not in done.stderr


def test_a_bad_row_loses_nothing_that_was_trained_before_it(tiny_model: Path, tmp_path: Path) -> None:
    """The run is kept up to it, whatever `save_every` is, and goes on as if the row had been left out all along."""
    rows = [{"prompt": f"say {i % 7}", "completion": f" {i % 7}" * (90 if i == 27 else 2)} for i in range(40)]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    data = {"shuffle": False, "packing": False, "window_rows": 5}
    train = {"save_every": 100}
    with pytest.raises(DataError, match=r"rows\.jsonl:28.* A checkpoint of step 1[02] is saved: .* --resume"):
        run(tiny_model, file, tmp_path / "cut", train=train | {"max_steps": 18}, data=data)
    assert not (tmp_path / "cut/adapter").exists()
    data["drop_long"] = True
    for out, resume in (("cut", True), ("whole", False)):
        result = run(tiny_model, file, tmp_path / out, train=train | {"max_steps": 18, "resume": resume}, data=data)
        assert result.step == 18
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")


def test_early_stopping(tiny_model: Path, rows_file: Path, tmp_path: Path) -> None:
    result = run(
        tiny_model,
        rows_file,
        tmp_path,
        train={"max_steps": 60, "eval_every": 2, "patience": 2, "min_delta": 100.0},
        data={"eval_fraction": 0.2},
    )
    assert result.loop.stopped_by == "patience" and result.loop.step == 6


@pytest.mark.parametrize("objective", ["dpo", "orpo"])
def test_preferences(objective: str, tiny_model: Path, pairs_file: Path, tmp_path: Path) -> None:
    result = run(tiny_model, pairs_file, tmp_path, train={"objective": objective, "max_steps": 15, "batch_rows": 4})
    log = read_log(tmp_path / "metrics.jsonl")
    assert result.loop.loss < (log[0]["loss"] or 0.0)
    assert log[-1]["accuracy"] == 1.0


def test_all_weights(tiny_model: Path, rows_file: Path, tmp_path: Path) -> None:
    result = run(tiny_model, rows_file, tmp_path, lora=None, optimizer=OptimizerConfig(learning_rate=5e-3))
    log = losses(tmp_path)
    assert result.loop.loss < (log[0][1] or 0.0) - 0.5
    opened = open_model(str(result.exported), dtype="float32")
    before = open_model(str(tiny_model), dtype="float32")
    assert opened.model.weights.keys() == before.model.weights.keys()
    assert any(np.any(np.asarray(a) != np.asarray(b)) for a, b in zip(opened.load(), before.load(), strict=True))


@pytest.mark.parametrize("init", ["pissa", "loftq"])
def test_adapters_whose_beginning_was_in_the_base(init: str, tiny_model: Path, rows_file: Path, tmp_path: Path) -> None:
    """What is written answers as what was trained: the last evaluation's loss is that of the files."""
    base = {"weights": "int8", "weights_group": 32} if init == "loftq" else {}
    result = run(
        tiny_model,
        rows_file,
        tmp_path,
        lora=LoraConfig(rank=4, alpha=8, init=init),
        base=base,
        train={"max_steps": 3},  # pyright: ignore
    )
    plain = tmp_path / "base" if init == "loftq" else tiny_model
    config = json.loads((result.exported / "adapter_config.json").read_text())
    assert config["r"] == (8 if init == "pissa" else 4)
    assert Path(config["base_model_name_or_path"]) == plain or init == "pissa"
    tokens = [5, 9, 30, 31, 40]
    fresh = run(
        tiny_model, rows_file, tmp_path / "fresh", lora=LoraConfig(rank=4, alpha=8), base=base, train={"max_steps": 3}
    )
    difference = logits_of(result.exported, plain, tokens) - logits_of(fresh.exported, tiny_model, tokens)
    assert 0 < np.abs(difference).max() < 5


def test_an_adapter_is_trained_on(tiny_model: Path, rows_file: Path, tmp_path: Path) -> None:
    first = run(tiny_model, rows_file, tmp_path / "a")
    second = run(tiny_model, rows_file, tmp_path / "b", adapter=str(first.exported), lora=LoraConfig(rank=2))
    a, b = losses(tmp_path / "a"), losses(tmp_path / "b")
    assert (b[0][1] or 9.0) < (a[0][1] or 0.0) - 0.5
    assert second.adapter is not None and second.adapter.config.rank == 4


def test_bad_input(tiny_model: Path, rows_file: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="sequence_tokens=512 is more than the 256 positions"):
        run(tiny_model, rows_file, tmp_path, data={"sequence_tokens": 512})
    with pytest.raises(ConfigError, match="LoRA target 'qproj' is not a linear layer"):
        run(tiny_model, rows_file, tmp_path, lora=LoraConfig(targets=("qproj",)))
    with pytest.raises(DataError):
        run(tiny_model, tmp_path / "none.jsonl", tmp_path)
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"prompt": "a", "completion": "b"}\n{"prompt": "a", "complet', encoding="utf-8")
    with pytest.raises(DataError, match=r"bad\.jsonl:2"):
        run(tiny_model, bad, tmp_path)
    with pytest.raises(ConfigError, match="needs an evaluation"):
        run(tiny_model, rows_file, tmp_path / "e", train={"export": "best", "max_steps": 1})
    run(tiny_model, rows_file, tmp_path / "r", train={"max_steps": 2})
    with pytest.raises(ConfigError, match="has a run of 2 steps in it"):
        run(tiny_model, rows_file, tmp_path / "r", train={"max_steps": 2})
    with pytest.raises(CheckpointError, match="trained over base model"):
        run(tiny_model, rows_file, tmp_path / "r", train={"max_steps": 4, "resume": True}, base={"weights": "int8"})
    with pytest.raises(CheckpointError, match=r"attention\.k/a"):
        run(tiny_model, rows_file, tmp_path / "r", train={"max_steps": 4, "resume": True}, lora=LoraConfig(rank=2))
