"""Each task on small data of our own: its requests word for word, and its figures from scores made up for it."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from pathlib import Path

import pytest

from ryzjax.errors import ConfigError, DataError
from ryzjax.evaluation.scoring import ContinuationScore
from ryzjax.evaluation.tasks import TASKS, LocalData, TaskOptions
from ryzjax.evaluation.tasks.gsm8k import GSM8K, last_number, marked_number
from ryzjax.evaluation.tasks.hellaswag import HellaSwag
from ryzjax.evaluation.tasks.lambada import Lambada
from ryzjax.evaluation.tasks.mmlu import MMLU
from ryzjax.evaluation.tasks.task import select

ALL = TaskOptions()
MMLU_COLUMNS = "question,A,B,C,D,answer\n"


def written(folder: Path, name: str, rows: Sequence[dict[str, object]]) -> LocalData:
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return LocalData(folder)


def scores(*logprobs: float) -> list[ContinuationScore]:
    return [ContinuationScore(logprob=value, is_greedy=value > -1, num_tokens=1, is_cut=False) for value in logprobs]


def test_hellaswag(tmp_path: Path) -> None:
    rows = [
        {
            "ctx": " Roof [substeps] repair [title] A man  sits. he",
            "endings": ["[x]falls", "a  b [title] c"],
            "label": 1,
        },
        {
            "activity_label": "Roof",
            "ctx_a": "A man sits.",
            "ctx_b": "hE GOES",
            "ctx": "not read",
            "endings": ["ü", "longer ending", "x"],
            "label": "0",
        },
    ]
    data, task = written(tmp_path, "hellaswag_val.jsonl", rows), HellaSwag()
    loaded = task.load(data, ALL)
    first, second = loaded.items
    assert (first.context, first.endings, first.label) == ("Roof repair. A man sits. he", ("falls", "a b. c"), 1)
    assert (second.context, second.label) == ("Roof: A man sits. He goes", 0)
    assert [(r.context, r.continuation) for r in task.requests(second)] == [
        (second.context, " ü"),
        (second.context, " longer ending"),
        (second.context, " x"),
    ]
    raw = (tmp_path / "hellaswag_val.jsonl").read_bytes()
    assert loaded.data_sha256 == {"hellaswag_val.jsonl": hashlib.sha256(raw).hexdigest()}
    # The sum says the first, a share a character the second: -6 / 5 < -7 / 6 (both are ASCII).
    # Of the second item: a character has "ü" behind, a byte in front of the 13 of "longer ending".
    found = task.metrics(loaded.items, [scores(-6, -7), scores(-2, -15, -9)])
    assert {name: (m.value, m.n) for name, m in found.items()} == {
        "acc": (0.5, 2),
        "acc_norm": (0.5, 2),
        "acc_bytes": (1.0, 2),
    }


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"ctx": "a", "endings": ["b", "c"]}, "hellaswag_val.jsonl:2: no 'label'"),
        ({"ctx": "a", "endings": ["b", "c"], "label": 2}, ":2: label=2 is not an index of 2 choices"),
        ({"ctx": "a", "endings": ["b", "[c]"], "label": 0}, ":2: an ending is empty"),
        ({"ctx": "a", "endings": ["b"], "label": 0}, ":2: endings has 1 texts; expected at least 2"),
        ({"activity_label": "a", "endings": ["b", "c"], "label": 0}, ":2: no 'ctx_a'"),
    ],
)
def test_bad_hellaswag(tmp_path: Path, row: dict[str, object], message: str) -> None:
    good = {"ctx": "a", "endings": ["b", "c"], "label": 0}
    with pytest.raises(DataError, match=message):
        HellaSwag().load(written(tmp_path, "hellaswag_val.jsonl", [good, row]), ALL)


def mmlu_folder(folder: Path, *, dev_rows: int) -> LocalData:
    (folder / "mmlu").mkdir()
    for subject in ("us_history", "anatomy"):
        # The first release has no header, and letters.
        rows = "".join(f"Q {i} of {subject}? ,a{i},b,c,d,{'ABCD'[i]}\n" for i in range(3))
        (folder / "mmlu" / f"{subject}_test.csv").write_text(rows)
        if dev_rows:
            rows = "".join(f"D{i}?,1,2,3,4,{i % 4}\n" for i in range(dev_rows))
            (folder / "mmlu" / f"{subject}_dev.csv").write_text(MMLU_COLUMNS + rows)
    return LocalData(folder)


def test_mmlu_without_examples(tmp_path: Path) -> None:
    task, data = MMLU(), mmlu_folder(tmp_path, dev_rows=0)
    loaded = task.load(data, TaskOptions(limit=2))
    assert (len(loaded.items), loaded.num_fewshot) == (4, 0)
    assert [item.subject for item in loaded.items] == ["anatomy", "anatomy", "us_history", "us_history"]
    assert [(r.context, r.continuation) for r in task.requests(loaded.items[3])] == [
        (
            "The following are multiple choice questions (with answers) about us history.\n\n"
            "Q 1 of us_history?\nA. a1\nB. b\nC. c\nD. d\nAnswer:",
            f" {letter}",
        )
        for letter in "ABCD"
    ]
    made_up = [scores(-1, -2, -3, -4)] * 4
    found = task.metrics(loaded.items, made_up)
    assert (found["acc"].value, found["acc"].n) == (0.5, 4)
    groups = task.groups(loaded.items, [*made_up[:3], scores(-3, -1, -3, -3)])
    assert {name: metric.value for name, metric in groups.items()} == {"anatomy": 0.5, "us_history": 1.0}


def test_mmlu_with_examples(tmp_path: Path) -> None:
    task, data = MMLU(), mmlu_folder(tmp_path, dev_rows=6)
    loaded = task.load(data, ALL)
    assert loaded.num_fewshot == 5 and len(loaded.data_sha256) == 4
    examples = "".join(f"D{i}?\nA. 1\nB. 2\nC. 3\nD. 4\nAnswer: {'ABCDA'[i]}\n\n" for i in range(5))
    assert loaded.items[0].context == (
        "The following are multiple choice questions (with answers) about anatomy.\n\n"
        f"{examples}Q 0 of anatomy?\nA. a0\nB. b\nC. c\nD. d\nAnswer:"
    )
    assert task.load(data, TaskOptions(num_fewshot=0)).items[0].context.count("Answer:") == 1
    with pytest.raises(DataError, match=r"mmlu/anatomy_dev\.csv: 6 rows; expected num_fewshot=7 or more"):
        task.load(data, TaskOptions(num_fewshot=7))
    (tmp_path / "mmlu" / "us_history_dev.csv").unlink()
    assert task.load(data, ALL).num_fewshot == 0


def test_mmlu_with_a_wrong_answer(tmp_path: Path) -> None:
    (tmp_path / "mmlu").mkdir()
    (tmp_path / "mmlu" / "x_test.csv").write_text(MMLU_COLUMNS + "q,a,b,c,d,1\nq,a,b,c,d,E\n")
    with pytest.raises(DataError, match=r"x_test\.csv:3: answer='E' is not an index of 4 choices"):
        MMLU().load(LocalData(tmp_path), ALL)


def test_lambada(tmp_path: Path) -> None:
    data, task = written(tmp_path, "lambada_test.jsonl", [{"text": "a b\nc d"}, {"text": "He said,  yes"}]), Lambada()
    loaded = task.load(data, ALL)
    pairs = [(r.context, r.continuation) for item in loaded.items for r in task.requests(item)]
    assert pairs == [("a b\nc", " d"), ("He said, ", " yes")]
    found = task.metrics(loaded.items, [scores(-0.5), scores(-2.5)])
    assert (found["acc"].value, found["acc"].n) == (0.5, 2)
    assert found["perplexity"].value == pytest.approx(math.exp(1.5))
    for text in ("word", "trailing "):
        with pytest.raises(DataError, match="text has no last word"):
            task.load(written(tmp_path, "lambada_test.jsonl", [{"text": text}]), ALL)


@pytest.mark.parametrize(
    ("text", "marked", "last"),
    [
        ("It is 3 + 4 = 7.\n#### 1,234.", "1234", "1234"),
        ("#### 5 and then 6", "5", "6"),
        ("#### -12\nQ 99", "-12", "99"),
        ("She pays $1,250.50 then.", None, "1250.50"),
        ("seven", None, None),
        ("####7", None, "7"),
    ],
)
def test_numbers_of_completions(text: str, marked: str | None, last: str | None) -> None:
    assert (marked_number(text), last_number(text)) == (marked, last)


class ChatTokenizer:
    """Spells what it is given."""

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        return [256] * add_special_tokens + list(text.encode())

    def apply_chat_template(self, messages: list[dict[str, str]]) -> list[int]:
        return list("|".join(f"{m['role']}:{m['content']}" for m in messages).encode())


def test_gsm8k(tmp_path: Path) -> None:
    written(tmp_path, "gsm8k_train.jsonl", [{"question": f"T{i}?", "answer": f"so\n#### {i}"} for i in range(6)])
    rows = [{"question": "How many?", "answer": "x 5\n#### 1,018"}, {"question": "And?", "answer": "#### 3"}]
    data, task, tokenizer = written(tmp_path, "gsm8k_test.jsonl", rows), GSM8K(), ChatTokenizer()
    loaded = task.load(data, ALL)
    assert [item.answer for item in loaded.items] == ["1018", "3"]
    assert loaded.num_fewshot == 5 and set(loaded.data_sha256) == {"gsm8k_test.jsonl", "gsm8k_train.jsonl"}
    first = loaded.items[0]
    prompt = task.prompt(first, tokenizer, ALL)  # type: ignore[arg-type]
    examples = "".join(f"Question: T{i}?\nAnswer: so\n#### {i}\n\n" for i in range(5))
    assert prompt == [256, *f"{examples}Question: How many?\nAnswer:".encode()]
    one = task.load(data, TaskOptions(num_fewshot=1)).items[0]
    chat = task.prompt(one, tokenizer, TaskOptions(chat=True))  # type: ignore[arg-type]
    assert bytes(chat).decode() == (
        "user:Question: T0?\nAnswer:|assistant:so\n#### 0|user:Question: How many?\nAnswer:"
    )
    found = task.metrics(loaded.items, ["it is\n#### 1018", "3 or 4, #### 3, 4"])
    assert {name: metric.value for name, metric in found.items()} == {
        "exact_match_strict": 1.0,
        "exact_match_flexible": 0.5,
    }
    with pytest.raises(DataError, match=r"gsm8k_train\.jsonl: 6 rows; expected num_fewshot=7"):
        task.load(data, TaskOptions(num_fewshot=7))
    with pytest.raises(DataError, match=r"gsm8k_test\.jsonl:1: answer has no number after '#### '"):
        task.load(written(tmp_path, "gsm8k_test.jsonl", [{"question": "q", "answer": "5"}]), ALL)


def test_items_are_limited_or_drawn() -> None:
    values = list(range(50))
    assert select(values, ALL) == tuple(values)
    assert select(values, TaskOptions(limit=60)) == tuple(values)
    assert select(values, TaskOptions(limit=3)) == (0, 1, 2)
    drawn = select(values, TaskOptions(limit=10, sample_seed=1))
    assert drawn == select(values, TaskOptions(limit=10, sample_seed=1)) == tuple(sorted(set(drawn)))
    assert drawn != tuple(range(10)) and drawn != select(values, TaskOptions(limit=10, sample_seed=2))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"limit": 0}, "limit=0 is out of range"),
        ({"num_fewshot": -1}, "num_fewshot=-1 is out of range"),
        ({"sample_seed": 1}, "sample_seed=1 draws nothing without limit"),
        ({"temperature": -0.5}, "temperature=-0.5 is out of range"),
        ({"temperature": float("nan")}, "temperature=nan is out of range"),
        ({"top_p": 0.0}, "top_p=0.0 is out of range"),
        ({"generation_seed": -1}, "generation_seed=-1 is out of range"),
    ],
)
def test_bad_options(settings: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TaskOptions(**settings)


def test_the_shared_data_is_read(shared: Path) -> None:
    data = LocalData(shared / "data" / "eval")
    counts = {name: len(TASKS[name].load(data, ALL).items) for name in ("hellaswag", "lambada", "gsm8k", "mmlu")}
    lines = {
        name: (shared / "data" / "eval" / f"{name}_{split}.jsonl").read_bytes().count(b"\n")
        for name, split in (("hellaswag", "val"), ("lambada", "test"), ("gsm8k", "test"))
    }
    # A row of these ends with the digit of its answer.
    ends = sum(
        line[-3:-1] == '",' and line[-1:] in "0123"
        for path in (shared / "data" / "eval" / "mmlu").glob("*.csv")
        for line in path.read_text().splitlines()
    )
    assert counts == {**lines, "mmlu": ends}
    assert ends > 9000
