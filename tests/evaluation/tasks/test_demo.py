"""The demo model's tasks: items without data, through the chat template and the engine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ryzjax import LLM
from ryzjax.cli.main import main
from ryzjax.data.synthetic import HELD_OUT, SyntheticRows, held_out
from ryzjax.data.synthetic.vocabulary import train_tokenizer, write_tokenizer
from ryzjax.data.tokenizer import Tokenizer
from ryzjax.errors import ConfigError, DataError, RequestError
from ryzjax.evaluation import TASKS, NoData, TaskOptions, evaluate
from ryzjax.evaluation.tasks.demo import DemoTask
from tests.goldens.make_llama3_tiny import write_checkpoint


@pytest.fixture(scope="module")
def demo_shaped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random model with a tokenizer of the demo model's kind."""
    folder = write_checkpoint(tmp_path_factory.mktemp("models") / "demo")
    write_tokenizer(folder, train_tokenizer(SyntheticRows(0, 50), vocab_size=384), max_tokens=512)
    return folder


def test_every_kind_of_item_has_a_task() -> None:
    assert {f"demo_{name}" for name in HELD_OUT} <= TASKS.keys()
    assert not TASKS["demo_addition"].needs_data and TASKS["gsm8k"].needs_data


def test_items_come_from_limit_and_seed() -> None:
    task = DemoTask("addition")
    loaded = task.load(NoData(), TaskOptions(limit=7, sample_seed=3))
    assert [item.messages for item in loaded.items] == [item.messages for item in held_out("addition", 7, 3)]
    assert len(task.load(NoData(), TaskOptions()).items) == 500
    same, other = (task.load(NoData(), TaskOptions(limit=7, sample_seed=seed)).data_sha256 for seed in (3, 4))
    assert loaded.data_sha256 == same != other
    with pytest.raises(ConfigError, match="demo_addition has no few-shot examples"):
        task.load(NoData(), TaskOptions(num_fewshot=2))


def test_the_share_of_right_answers() -> None:
    task = DemoTask("extraction")
    items = task.load(NoData(), TaskOptions(limit=8)).items
    answers = [item.answer for item in items]
    assert task.metrics(items, answers)["exact_match"].value == 1.0
    metric = task.metrics(items, [*answers[:6], "{}", ""])["exact_match"]
    assert metric.value == 0.75 and metric.n == 8 and metric.low < 0.75 < metric.high


def test_prompts_offer_tools(demo_shaped: Path) -> None:
    task, tokenizer = DemoTask("tools"), Tokenizer.load(demo_shaped)
    item = task.load(NoData(), TaskOptions(limit=1)).items[0]
    text = tokenizer.decode(task.prompt(item, tokenizer, TaskOptions()), skip_special_tokens=False)
    assert text.startswith("<|im_start|>system\nTools:\n{") and text.endswith("<|im_start|>assistant\n")


def test_a_model_without_a_template_is_refused(tiny_llm: LLM) -> None:
    with pytest.raises(RequestError, match="has no chat template"):
        evaluate(tiny_llm, ["demo_addition"], NoData(), TaskOptions(limit=1))


def test_data_that_is_needed() -> None:
    with pytest.raises(DataError, match=r"the task needs gsm8k_test\.jsonl and no data was given"):
        TASKS["gsm8k"].load(NoData(), TaskOptions(num_fewshot=0))
    assert not NoData().subsets("*", "mmlu")


def test_the_command(demo_shaped: Path, tmp_path: Path, compile_cache: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Whatever the Hub is, it is not asked.
    monkeypatch.setattr("ryzjax.evaluation.tasks.rows.import_module", None)
    output = tmp_path / "out.json"
    words = ["eval", str(demo_shaped), "--compile-cache", compile_cache, "--max-sequences", "8"]
    words += ["--max-batch-tokens", "64", "--tasks", "demo_addition,demo_routing", "--limit", "3"]
    words += ["--temperature", "1", "--top-p", "0.5", "--generation-seed", "7"]
    assert main([*words, "--output", str(output)]) == 0
    tasks = json.loads(output.read_text())["tasks"]
    assert tasks.keys() == {"demo_addition", "demo_routing"}
    assert tasks["demo_addition"]["n"] == 3 and tasks["demo_addition"]["metrics"]["exact_match"]["value"] == 0.0
    options = tasks["demo_addition"]["options"]
    assert (options["temperature"], options["top_p"], options["generation_seed"]) == (1.0, 0.5, 7)
