"""The demo model that comes with the package: what is in its folder, that it runs unasked, and what it can do."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from ryzjax import LLM, SamplingParams
from ryzjax.checkpoint.source import resolve_source
from ryzjax.data.synthetic.vocabulary import write_tokenizer
from ryzjax.evaluation import NoData, TaskOptions, evaluate
from ryzjax.shipped import DEMO_MODEL, demo_folder

pytestmark = pytest.mark.optimized

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with LLM(max_sequences=8, kv_memory="64MiB") as llm:
        yield llm


@pytest.fixture(scope="module")
def share_right(llm: LLM) -> Callable[..., float]:
    """The share of right answers to so many held-out items of a task. Each is measured once."""

    @cache
    def measured(task: str, items: int, temperature: float = 0.0) -> float:
        name = f"demo_{task}"
        results = evaluate(llm, [name], NoData(), TaskOptions(temperature=temperature, limit=items))
        return results[name].metrics["exact_match"].value

    return measured


def test_it_is_small_and_whole():
    files = {path.name for path in demo_folder().iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja", "README.md"} <= files
    assert not [name for name in files if name.endswith((".py", ".bin", ".pt"))]
    assert sum(path.stat().st_size for path in demo_folder().glob("*.safetensors")) <= 16e6
    card = (demo_folder() / "README.md").read_text(encoding="utf-8")
    assert "seed" in card and "demo_addition" in card and "Apache-2.0" in card


def test_its_name_is_a_model_wherever_one_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    assert resolve_source(DEMO_MODEL).directory == demo_folder()
    # A directory of that name is meant first, as for any id.
    own = tmp_path / DEMO_MODEL
    own.mkdir(parents=True)
    for name in ("config.json", "model.safetensors"):
        (own / name).write_bytes((demo_folder() / name).read_bytes())
    assert resolve_source(DEMO_MODEL).directory.resolve() == own


def test_without_a_model_it_is_taken_and_said(llm: LLM, caplog: pytest.LogCaptureFixture):
    assert llm.engine.model_name == "demo"
    with caplog.at_level(logging.WARNING), LLM(max_sequences=1, max_batch_tokens=32, kv_memory="8MiB"):
        pass
    assert any(DEMO_MODEL in message and "demo model" in message for message in caplog.messages)


def test_it_answers(llm: LLM):
    # As its generation_config.json recommends.
    assert llm.get_default_sampling_params() == SamplingParams(temperature=0.7, top_p=0.9)
    greedy = SamplingParams(temperature=0, max_tokens=32)
    (answer,) = llm.chat([{"role": "user", "content": "What is 12 + 34?"}], greedy, use_tqdm=False)
    assert answer.outputs[0].text == "12 + 34 = 46"
    assert answer.outputs[0].finish_reason == "stop"


TASKS = [
    pytest.param("addition", 150, id="addition"),
    pytest.param("extraction", 150, id="extraction"),
    pytest.param("retrieval", 40, id="retrieval"),  # prompts of a thousand tokens
    # The card's 500 items.
    pytest.param("retrieval", 500, id="retrieval in full", marks=pytest.mark.slow),
]
WANTED = {"addition": 0.95, "extraction": 0.90, "retrieval": 0.95}


@pytest.mark.parametrize(("task", "items"), TASKS)
def test_it_does_what_its_card_says(share_right: Callable[..., float], task: str, items: int):
    assert share_right(task, items) >= WANTED[task]


@pytest.mark.parametrize(("task", "items"), [task for task in TASKS if task.id != "retrieval"])
def test_sampling_is_nearly_as_good_as_greedy(share_right: Callable[..., float], task: str, items: int):
    # Temperature 1 and the whole distribution: what the model gives wrong tokens together is what is lost.
    assert share_right(task, items, 1.0) >= share_right(task, items) - 0.03


def test_its_text_files_are_the_recipes(tmp_path: Path):
    write_tokenizer(tmp_path, Tokenizer.from_file(str(demo_folder() / "tokenizer.json")), max_tokens=4096)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"}
    for name in names:
        assert (tmp_path / name).read_text(encoding="utf-8") == (demo_folder() / name).read_text(encoding="utf-8"), name
    generation = json.loads((demo_folder() / "generation_config.json").read_text(encoding="utf-8"))
    assert generation["do_sample"] and 0 < generation["temperature"] < 1 and 0 < generation["top_p"] < 1


def test_its_config_is_the_recipes():
    config = json.loads((demo_folder() / "config.json").read_text(encoding="utf-8"))
    recipe = (ROOT / "configs" / "train" / "demo.toml").read_text(encoding="utf-8")
    for ours, hf in (
        ("hidden_size", "hidden_size"),
        ("num_layers", "num_hidden_layers"),
        ("num_heads", "num_attention_heads"),
    ):
        assert f"{ours} = {config[hf]}\n" in recipe


@pytest.mark.parametrize(("words", "command"), [([], "ryzjax serve"), (["MODEL=a b"], 'ryzjax serve "a b"')])
def test_make_serve(words: list[str], command: str):
    make = ["make", "--no-print-directory", "-n", "serve", "ARGS=", "MODEL=", *words]
    # The flags and variables of a make that runs these tests are not ours.
    alone = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    shown = subprocess.run(make, cwd=ROOT, capture_output=True, text=True, check=True, env=alone).stdout
    assert shown.rstrip().endswith(command)


def test_python_dash_m():
    shown = subprocess.run([sys.executable, "-m", "ryzjax", "--version"], capture_output=True, text=True, check=True)
    assert shown.stdout.startswith("ryzjax ")
