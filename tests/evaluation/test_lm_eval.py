"""lm-evaluation-harness on our server gives the scores of `ryzjax eval`: replayed here, and run for real."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
import tokenizers

from ryzjax import LLM
from ryzjax.evaluation import TASKS, LocalData, TaskOptions, evaluate
from ryzjax.evaluation.scoring import complete
from ryzjax.evaluation.tasks.gsm8k import GSM8K
from ryzjax.evaluation.tasks.rows import Split
from ryzjax.serving.http import HttpConfig, HttpServer
from tests.evaluation.lm_eval_tasks import write_lines, write_tasks
from tests.serving.test_server_process import start

ITEMS = 24
CONTEXT = 512
SUBJECTS = ("anatomy", "us_foreign_policy")
SHOTS = 2
# The harness takes a token off the context for the one it has generated; prompts are as long for both.
OPTIONS = TaskOptions(max_tokens=CONTEXT - 1)
MMLU_OPTIONS = TaskOptions(max_tokens=CONTEXT - 1, num_fewshot=SHOTS)


@pytest.fixture(scope="module")
def data(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> LocalData:
    """The first items of each data set, and what is too long for the context: its left is cut."""
    folder = tmp_path_factory.mktemp("data")
    source = shared / "data" / "eval"
    for name in ("hellaswag_val", "lambada_test", "gsm8k_test"):
        with (source / f"{name}.jsonl").open() as file:
            rows = [json.loads(next(file)) for _ in range(ITEMS)]
        if name == "hellaswag_val":
            rows[0]["ctx"] = "Far too long. " * 300 + rows[0]["ctx"]
        write_lines(folder / f"{name}.jsonl", rows)
    (folder / "mmlu").mkdir()
    for subject in SUBJECTS:
        columns = ("question", "A", "B", "C", "D", "answer")
        split = Split(file=f"mmlu/{subject}_test.csv", dataset="", split="", columns=columns)
        rows = [dict(row.values) for row in LocalData(source).read(split).rows]
        for name, part in (("dev", rows[:SHOTS]), ("test", rows[SHOTS : SHOTS + 8])):
            cells = [[row[column] for column in columns] for row in part]
            quoted = [",".join('"' + str(cell).replace('"', '""') + '"' for cell in line) for line in cells]
            (folder / "mmlu" / f"{subject}_{name}.csv").write_text("\n".join(quoted) + "\n")
            choices = [{"question": line[0], "choices": line[1:5], "answer": int(str(line[5]))} for line in cells]
            write_lines(folder / f"{subject}_{name}.jsonl", choices)
    return LocalData(folder)


class Harness:
    """What `local-completions` of the harness sends and makes of the answers, written down from its behaviour."""

    def __init__(self, url: str, model: Path):
        self.client = httpx.Client(base_url=url, timeout=60)
        self._tokenizer = tokenizers.Tokenizer.from_file(str(model / "tokenizer.json"))

    def encode(self, text: str) -> list[int]:
        return [1, *self._tokenizer.encode(text, add_special_tokens=False).ids]

    def post(self, **body: object) -> list[dict]:
        answer = self.client.post("/v1/completions", json={"model": "stories260K", "seed": 1234, **body})
        assert answer.status_code == 200, answer.text
        return sorted(answer.json()["choices"], key=lambda choice: choice["index"])

    def loglikelihoods(self, pairs: list[tuple[str, str]], *, batch: int) -> list[tuple[float, bool]]:
        """Sum and greediness of each pair."""
        sent = []
        for number, (context, continuation) in enumerate(pairs):
            head, whole = len(self.encode(context)), self.encode(context + continuation)
            cut = max(0, len(whole) - (CONTEXT - 1))
            sent.append((number, whole[cut:], head - cut))
        sent.sort(key=lambda one: -len(one[1]))
        found: dict[int, tuple[float, bool]] = {}
        for at in range(0, len(sent), batch):
            part = sent[at : at + batch]
            prompts = [tokens for _, tokens, _ in part]
            choices = self.post(prompt=prompts, temperature=0, max_tokens=1, logprobs=1, echo=True)
            for (number, _, head), choice in zip(part, choices, strict=True):
                values = choice["logprobs"]["token_logprobs"][head:-1]
                tops = choice["logprobs"]["top_logprobs"][head:-1]
                greedy = all(value == max(top.values()) for value, top in zip(values, tops, strict=True))
                found[number] = sum(values), greedy
        return [found[number] for number in range(len(pairs))]

    def complete(self, text: str) -> str:
        """Greedy, until what the GSM8K task names, and the end of sequence."""
        stop = ["Question:", "</s>", "<|im_end|>", "</s>"]
        prompt = self.encode(text)[-(CONTEXT - 1 - 256) :]
        return self.post(prompt=[prompt], max_tokens=256, temperature=0.0, stop=stop)[0]["text"]


@pytest.fixture(scope="module")
def replayed(stories: Path, compile_cache: str) -> Iterator[tuple[LLM, Harness]]:
    """An engine, and the harness on a server over it."""
    with LLM(str(stories), dtype="float32", max_sequences=16, max_batch_tokens=128, compile_cache=compile_cache) as llm:
        server = HttpServer(llm.engine, HttpConfig(port=0), metrics=llm.engine.metrics)
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        assert server.wait_until_up(20)
        harness = Harness(f"http://127.0.0.1:{server.port}", stories)
        with harness.client:
            yield llm, harness
        server.request_drain()
        thread.join(20)
        assert not thread.is_alive()


@pytest.mark.parametrize("batch", [pytest.param(1, marks=pytest.mark.slow), 16])
def test_replayed_multiple_choice(replayed: tuple[LLM, Harness], data: LocalData, batch: int) -> None:
    llm, harness = replayed
    for name, options in (("hellaswag", OPTIONS), ("mmlu", MMLU_OPTIONS)):
        task = TASKS[name]
        ours = evaluate(llm, [name], data, options)[name]
        assert ours.num_cut >= 4
        items = task.load(data, options).items
        right = []
        for item in items:
            requests = task.requests(item)
            found = harness.loglikelihoods([(r.context, r.continuation) for r in requests], batch=batch)
            label = item.label if name == "hellaswag" else item.answer
            right.append(int(np.argmax([value for value, _ in found])) == label)
        assert ours.metrics["acc"].value == pytest.approx(np.mean(right), abs=1e-12)


def test_replayed_lambada(replayed: tuple[LLM, Harness], data: LocalData) -> None:
    llm, harness = replayed
    ours = evaluate(llm, ["lambada"], data, OPTIONS)["lambada"]
    rows = [json.loads(line)["text"] for line in (data.folder / "lambada_test.jsonl").read_text().splitlines()]
    pairs = [(" ".join(text.split(" ")[:-1]), " " + text.split(" ")[-1]) for text in rows]
    # One that the model finds likeliest, so that both kinds are seen.
    pairs.append(("Once upon a", " time"))
    found = harness.loglikelihoods(pairs, batch=8)
    assert found[-1][1] and not all(greedy for _, greedy in found)
    assert ours.metrics["acc"].value == pytest.approx(np.mean([greedy for _, greedy in found[:-1]]), abs=1e-12)
    perplexity = np.exp(-np.mean([value for value, _ in found[:-1]]))
    assert ours.metrics["perplexity"].value == pytest.approx(perplexity, rel=1e-4)


def test_replayed_generation(replayed: tuple[LLM, Harness], data: LocalData) -> None:
    llm, harness = replayed
    task = GSM8K()
    items = task.load(data, OPTIONS).items[:8]
    prompts = [task.prompt(item, llm.engine.tokenizer, OPTIONS) for item in items]
    ours = complete(llm, prompts, stop=task.stop, max_new_tokens=256, title="t", max_tokens=CONTEXT - 1)
    theirs = [harness.complete(f"Question: {item.question}\nAnswer:") for item in items]
    assert [one.text for one in ours] == theirs
    assert any(theirs)


@pytest.mark.parity
def test_the_harness_itself(stories: Path, data: LocalData, compile_cache: str, tmp_path: Path) -> None:
    python = os.environ.get("LM_EVAL_PYTHON", sys.executable)
    can_run = subprocess.run([python, "-c", "import lm_eval, transformers, tenacity"], capture_output=True).returncode
    if can_run != 0:
        pytest.skip(f"{python} cannot import lm_eval; install lm-eval[api], or name a Python in LM_EVAL_PYTHON")
    tasks = write_tasks(tmp_path / "tasks", data.folder, subjects=SUBJECTS, shots=SHOTS)
    server = start(stories, compile_cache, "--dtype", "float32")
    try:
        arguments = {
            "model": "stories260K",
            "base_url": f"{server.url}/v1/completions",
            "tokenizer": str(stories),
            "max_length": CONTEXT,
            "num_concurrent": 4,
            "add_bos_token": True,
        }
        command = [python, "-m", "lm_eval", "--model", "local-completions", "--batch_size", "4", "--log_samples"]
        command += ["--model_args", ",".join(f"{name}={value}" for name, value in arguments.items())]
        command += ["--include_path", str(tmp_path / "tasks"), "--tasks", ",".join(tasks)]
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf")}
        done = subprocess.run(
            [*command, "--output_path", str(tmp_path / "out")], env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr[-4000:]
    finally:
        server.process.send_signal(signal.SIGTERM)
        server.finish()
    (path,) = (tmp_path / "out").rglob("results_*.json")
    theirs = json.loads(path.read_text())["results"]
    with LLM(str(stories), dtype="float32", compile_cache=compile_cache) as llm:
        ours = evaluate(llm, ["hellaswag", "lambada", "gsm8k"], data, OPTIONS)
        ours |= evaluate(llm, ["mmlu"], data, MMLU_OPTIONS)
    for name in ("acc", "acc_norm", "acc_bytes"):
        assert theirs["local_hellaswag"][f"{name},none"] == pytest.approx(ours["hellaswag"].metrics[name].value)
    for subject in SUBJECTS:
        assert theirs[f"local_mmlu_{subject}"]["acc,none"] == pytest.approx(ours["mmlu"].groups[subject].value)
    lambada = ours["lambada"].metrics
    assert theirs["local_lambada"]["acc,none"] == pytest.approx(lambada["acc"].value)
    assert theirs["local_lambada"]["perplexity,none"] == pytest.approx(lambada["perplexity"].value, rel=1e-4)
    for theirs_name, name in (("strict-match", "strict"), ("flexible-extract", "flexible")):
        expected = ours["gsm8k"].metrics[f"exact_match_{name}"].value
        assert theirs["local_gsm8k"][f"exact_match,{theirs_name}"] == pytest.approx(expected)
