"""`ryzjax finetune` and `ryzjax pretrain`: flags, recipes, and errors that come before any file is read."""

from __future__ import annotations

import pytest

from ryzjax.cli.arguments import parse
from ryzjax.cli.finetune import Finetune
from ryzjax.cli.main import main
from ryzjax.cli.pretrain import Pretrain
from ryzjax.shipped import shipped_path

RECIPES = sorted(path.stem for path in shipped_path("train").glob("*.toml"))


def finetune(*words: str) -> Finetune:
    return parse(Finetune, "finetune", words)


def test_flags_reach_their_sections() -> None:
    command = finetune(
        *(
            "m",
            "--data",
            "a.jsonl",
            "b.jsonl",
            "--rank",
            "4",
            "--optimizer",
            "lion",
            "--remat",
            "none",
            "--weights",
            "int4",
        )
    )
    assert command.base.model == "m" and command.base.weights == "int4"
    assert command.data_config.data == ("a.jsonl", "b.jsonl")
    assert (command.lora.rank, command.optimizer_config.optimizer, command.train.remat) == (4, "lion", "none")


@pytest.mark.parametrize("recipe", [name for name in RECIPES if not name.startswith("demo")])
def test_recipes_of_finetune(recipe: str) -> None:
    command = finetune("m", "--config", recipe, "--rank", "3")
    assert command.lora.rank == 3 and command.optimizer_config.learning_rate > 0


def test_the_demo_recipe() -> None:
    command = parse(Pretrain, "pretrain", ["--config", "demo"])
    assert command.new_model.synthetic_rows is not None and command.optimizer_config.optimizer == "muon"
    second = parse(Pretrain, "pretrain", ["--config", "demo-2", "--begin-from", "demo/model"])
    assert second.new_model.begin_from == "demo/model" and second.new_model.synthetic_mixture["pieces"] > 0
    assert second.train.seed != command.train.seed


def test_what_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["finetune", "m", "--rank", "0"]) == 2
    assert "LoRA rank=0; expected an integer from 1 to 512" in capsys.readouterr().err
    assert main(["finetune", "m", "--method", "full", "--publish", "http://x"]) == 2
    assert "--method full trains none" in capsys.readouterr().err
    assert main(["finetune", "no/such/model", "--data", "x.jsonl"]) == 2
    assert "no/such/model" in capsys.readouterr().err
