"""`resume` in every state in which a supervisor that restarts runs can find the folder."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from ryzjax import DataConfig, LoraConfig, NewModelConfig, TrainConfig, pretrain
from ryzjax.errors import CheckpointError, ConfigError
from ryzjax.training.programs import Programs
from ryzjax.training.run.loop import Loop
from ryzjax.training.run.run_file import read_run, write_run
from tests.training.test_finetune import losses, run
from tests.training.test_pretrain import SIZES

TWO_STEPS = {"max_steps": 2}
RESUME = TWO_STEPS | {"resume": True}


@pytest.fixture
def killed_early(tiny_model: Path, rows_file: Path, tmp_path: Path) -> Path:
    """The folder of a run that was killed before its first checkpoint."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Loop, "run", lambda self, state: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run(tiny_model, rows_file, tmp_path / "run", train=TWO_STEPS)
    earlier = read_run(tmp_path / "run")
    assert earlier is not None and not earlier.is_finished and earlier.settings["lora.rank"] == 4
    assert not list((tmp_path / "run/checkpoints").iterdir())
    return tmp_path / "run"


def test_no_folder(tiny_model: Path, rows_file: Path, tmp_path: Path) -> None:
    result = run(tiny_model, rows_file, tmp_path / "new", train=RESUME)
    assert (result.loop.step, result.loop.resumed_step) == (2, 0)
    run(tiny_model, rows_file, tmp_path / "plain", train=TWO_STEPS)
    assert losses(tmp_path / "new") == losses(tmp_path / "plain")


def test_killed_before_the_first_checkpoint(
    killed_early: Path, tiny_model: Path, rows_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The run starts over and says so."""
    result = run(tiny_model, rows_file, killed_early, train=RESUME, show_progress=True)
    assert (result.loop.step, result.loop.resumed_step) == (2, 0)
    assert f"{killed_early} has no checkpoint yet: the run starts at step 0" in capsys.readouterr().err


def test_another_runs_folder(killed_early: Path, tiny_model: Path, rows_file: Path) -> None:
    with pytest.raises(ConfigError, match=r"has another run in it: lora\.rank was 4, and is 2"):
        run(tiny_model, rows_file, killed_early, train=RESUME, lora=LoraConfig(rank=2))
    with pytest.raises(ConfigError, match=r"has another run in it: base\.weights was 'auto', and is 'int8'"):
        run(tiny_model, rows_file, killed_early, train=RESUME, base={"weights": "int8"})


def test_a_finished_run(tiny_model: Path, rows_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run does not continue. Its adapter is written again, in case it was killed before writing it."""
    first = run(tiny_model, rows_file, tmp_path, train=TWO_STEPS)
    adapter = (tmp_path / "adapter/adapter_model.safetensors").read_bytes()
    shutil.rmtree(tmp_path / "adapter")
    monkeypatch.setattr(Programs, "compile_train", lambda self: pytest.fail("nothing is left to train"))
    again = run(tiny_model, rows_file, tmp_path, train=RESUME)
    assert (again.loop.step, again.loop.resumed_step, again.loop.loss) == (2, 2, first.loop.loss)
    assert again.loop.summary == f"the run was finished already, after 2 steps: loss {first.loop.loss:.4f}"
    assert again.loop.exit_status == 0
    assert (tmp_path / "adapter/adapter_model.safetensors").read_bytes() == adapter
    assert json.loads((tmp_path / "run.json").read_text())["loss"] == first.loop.loss
    shutil.rmtree(tmp_path / "checkpoints")
    with pytest.raises(ConfigError, match="has a finished run in it, whose checkpoints are gone"):
        run(tiny_model, rows_file, tmp_path, train=RESUME)


def test_a_run_at_the_end_of_its_patience(tiny_model: Path, rows_file: Path, tmp_path: Path) -> None:
    """It does not train further, however often it is started again."""
    train = {"max_steps": 20, "eval_every": 1, "patience": 1, "min_delta": 100.0}
    first = run(tiny_model, rows_file, tmp_path, train=train, data={"eval_fraction": 0.2})
    assert first.loop.stopped_by == "patience" and first.loop.step == 2
    again = run(tiny_model, rows_file, tmp_path, train=train | {"resume": True}, data={"eval_fraction": 0.2})
    assert (again.loop.stopped_by, again.loop.step, again.loop.resumed_step) == ("patience", 2, 2)


def test_pretraining(tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = tmp_path / "text.txt"
    text.write_text("the cat sat on the mat. " * 50, encoding="utf-8")
    new = NewModelConfig(tokenizer=str(tiny_model), **SIZES)  # pyright: ignore
    data = DataConfig(data=(str(text),), sequence_tokens=32)
    train = TrainConfig(out=str(tmp_path / "run"), max_steps=2, batch_rows=1, resume=True)
    assert pretrain(new, data, train=train).loop.resumed_step == 0
    assert "has no checkpoint yet: the run starts at step 0" in capsys.readouterr().err
    assert pretrain(new, data, train=train, show_progress=False).loop.resumed_step == 2
    shutil.rmtree(tmp_path / "run/checkpoints")
    write_run(tmp_path / "run", {"model.hidden_size": 32})
    with pytest.raises(ConfigError, match=r"has another run in it: model\.hidden_size was 32, and is 16"):
        pretrain(replace(new, hidden_size=16), data, train=train, show_progress=False)


def test_a_damaged_run_file(tmp_path: Path) -> None:
    assert read_run(tmp_path) is None
    for content in ("{", "[]", '{"finished": null}', '{"settings": 1}'):
        (tmp_path / "run.json").write_text(content)
        with pytest.raises(CheckpointError, match=r"run\.json: not the settings of a run"):
            read_run(tmp_path)
