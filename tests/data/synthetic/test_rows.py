"""Synthetic rows: they depend only on seed and index, follow the mixture's shares, and stay within their split."""

from __future__ import annotations

import json
import re
import tomllib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from ryzjax.data.synthetic import HELD_OUT, MIXTURE, TASKS, ChatRow, SyntheticRows, held_out, write_jsonl
from ryzjax.data.synthetic.draw import TEST_ONE_IN, split_of
from ryzjax.data.synthetic.retrieval import max_context_pieces
from ryzjax.data.synthetic.routing import routing_rows
from ryzjax.data.synthetic.rows import row_pieces
from ryzjax.errors import ConfigError
from ryzjax.shipped import shipped_path
from tests.data.synthetic.lists import listed

COUNT = 3000


@pytest.fixture(scope="module")
def train() -> list[ChatRow]:
    return list(SyntheticRows(0, COUNT))


def contents(row: ChatRow, role: str) -> Iterator[str]:
    return (str(message["content"]) for message in row["messages"] if message["role"] == role)


def test_a_row_is_a_function_of_seed_and_index(train: list[ChatRow]) -> None:
    again = SyntheticRows(0, COUNT)
    assert len(again) == COUNT
    for i in (COUNT - 1, 7, 1500, 7):
        assert again[i] == train[i]
    assert again[-1] == train[-1]
    other = SyntheticRows(1, COUNT)
    assert [other[i] for i in range(20)] != train[:20]
    assert len({json.dumps(row) for row in train}) > 0.95 * COUNT


def test_indices_outside() -> None:
    rows = SyntheticRows(0, 5)
    for index in (5, -6):
        with pytest.raises(IndexError, match=f"row {index} of 5"):
            rows[index]


def test_every_row_is_a_conversation(train: list[ChatRow]) -> None:
    for row in train:
        roles = [message["role"] for message in row["messages"]]
        assert set(roles) <= {"system", "user", "assistant", "tool"}
        assert "system" not in roles[1:]
        assert roles[-1] == "assistant"
        turns = [role for role in roles if role != "system"]
        before = {"user": ("assistant", None), "assistant": ("user", "tool"), "tool": ("assistant",)}
        assert all(a in before[str(b)] for a, b in zip([None, *turns], turns, strict=False))
        for message in row["messages"]:
            content = message["content"]
            assert isinstance(content, str) and content == content.strip()
            assert content or message.get("tool_calls")
        assert json.loads(json.dumps(row)) == row


def test_shares_are_of_tokens() -> None:
    rows = SyntheticRows(3, 8000)
    pieces: Counter[str] = Counter()
    for i in range(len(rows)):
        pieces[rows.task(i)] += row_pieces(rows[i])
    total = sum(pieces.values())
    assert pieces.keys() == MIXTURE.keys() == TASKS.keys() - {"pieces"}
    for name, share in MIXTURE.items():
        assert pieces[name] / total == pytest.approx(share, rel=0.15), name


def test_a_mixture_of_ones_own() -> None:
    rows = SyntheticRows(0, 200, mixture={"sorting": 3, "addition": 1, "tools": 0})
    assert {rows.task(i) for i in range(200)} == {"sorting", "addition"}
    assert not any("tools" in row for row in rows)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"count": 0}, "count=0 is out of range"),
        ({"mixture": {"adition": 1}}, "mixture names the task 'adition'; expected some of addition, "),
        ({"mixture": {"addition": 0}}, "has no positive share"),
        ({"mixture": {"addition": -1, "sorting": 2}}, "has no positive share"),
        ({"mixture": {"addition": float("nan")}}, "has no positive share"),
        ({"mixture": {}}, "has no positive share"),
        ({"split": "validation"}, "split='validation' is not known"),
        ({"begins_at": 1.5}, "begins_at=1.5 is out of range"),
    ],
)
def test_bad_settings(settings: dict[str, object], message: str) -> None:
    arguments = {"seed": 0, "count": 10, **settings}
    with pytest.raises(ConfigError, match=message):
        SyntheticRows(**arguments)  # pyright: ignore[reportArgumentType]


def test_bad_items() -> None:
    with pytest.raises(ConfigError, match="task 'chess' is not known; expected some of addition, "):
        held_out("chess", 1)
    with pytest.raises(ConfigError, match="count=0 is out of range"):
        held_out("addition", 0)


def test_lists_grow_with_the_run() -> None:
    assert max_context_pieces(0.0) == max_context_pieces(0.2) == 64
    assert 64 < max_context_pieces(0.3) < max_context_pieces(0.5) < 1700
    assert max_context_pieces(0.6) == max_context_pieces(1.0) == 1700
    rows = SyntheticRows(0, 800, mixture={"retrieval": 1})
    early, late = (max(row_pieces(rows[i]) for i in part) for part in (range(20), range(600, 800)))
    assert early < 1000 < 1200 < late < 2048
    grown = SyntheticRows(0, 40, mixture={"retrieval": 1}, begins_at=1.0)
    assert max(map(row_pieces, grown)) > 1200


def test_one_problem_in_ten_is_for_testing() -> None:
    share = sum(split_of("addition", (a, b)) == "test" for a in range(100) for b in range(a, 100)) / 5050
    assert share == pytest.approx(1 / TEST_ONE_IN, abs=0.015)
    assert split_of("addition", (1, 2)) == split_of("addition", (1, 2))
    assert {split_of(space, 0) for space in map(str, range(100))} == {"train", "test"}


def sums(text: str) -> set[tuple[int, ...]]:
    return {tuple(sorted(map(int, found))) for found in re.findall(r"(?<!\+ )\b(\d+) \+ (\d+) = ", text)}


def test_no_sum_is_in_both_splits(train: list[ChatRow]) -> None:
    known = {pair for row in train for text in contents(row, "assistant") for pair in sums(text)}
    asked = {pair for item in held_out("addition", 400) for pair in sums(item.answer)}
    assert len(known) > 1000 and len(asked) > 150
    assert not known & asked
    assert all(10 <= number <= 99 for pair in asked for number in pair)
    assert not known & {
        pair
        for row in SyntheticRows(5, 300, split="test", mixture={"addition": 1, "arithmetic": 1})
        for text in contents(row, "assistant")
        for pair in sums(text)
    }


def test_no_pair_of_a_list_is_in_both_splits() -> None:
    rows = SyntheticRows(2, 150, mixture={"retrieval": 1})
    known = {pair for row in rows for pair in listed(next(contents(row, "user"))).items()}
    asked = {pair for item in held_out("retrieval", 40) for pair in listed(str(item.messages[0]["content"])).items()}
    assert len(known) > 2000 and len(asked) > 2000
    assert not known & asked


@pytest.mark.parametrize("task", [name for name in HELD_OUT if name != "routing"])
def test_no_question_is_in_both_splits(task: str, train: list[ChatRow]) -> None:
    def asked(messages: list[dict[str, object]]) -> str:
        # Questions about names have the same text in all conversations and depend on the turns before them.
        return json.dumps([message["content"] for message in messages][-3:] if task == "persona" else messages[-1])

    known = {asked(row["messages"][: i + 1]) for row in train for i in range(len(row["messages"]))}
    items = held_out(task, 100)
    # Small talk has fixed sentences, and the items of a conversation may be small talk.
    fresh = [item for item in items if asked(list(item.messages)) not in known]
    assert len(fresh) == len(items) or (task == "conversation" and len(fresh) > 0.85 * len(items))


def test_items_are_the_same_for_the_same_seed() -> None:
    first, again, other = (held_out("extraction", 5, seed) for seed in (1, 1, 2))
    assert [item.messages for item in first] == [item.messages for item in again]
    assert [item.messages for item in first] != [item.messages for item in other]
    # Asking for more items gives the same ones first.
    assert [item.messages for item in held_out("extraction", 8, 1)[:5]] == [item.messages for item in first]


def test_routing_rows_are_apart() -> None:
    train, test = (routing_rows(seed=0, count=400, split=split) for split in ("train", "test"))
    questions = [{next(contents(row, "user")) for row in rows} for rows in (train, test)]
    assert not questions[0] & questions[1]
    answers = Counter(next(contents(row, "assistant")) for row in train)
    assert len(answers) == 10 and min(answers.values()) > 10
    assert train == routing_rows(seed=0, count=400)
    # The demo model must not have been trained on the task.
    assert not any("Route" in text for row in SyntheticRows(0, 2000) for text in contents(row, "user"))


def test_a_file_of_rows(tmp_path: Path) -> None:
    rows = SyntheticRows(0, 30, mixture={"tools": 1, "persona": 1})
    assert write_jsonl(tmp_path / "rows.jsonl", rows) == 30
    lines = (tmp_path / "rows.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == list(rows)


def test_the_shares_in_the_documentation() -> None:
    text = (Path(__file__).parents[3] / "docs" / "demo-data.md").read_text(encoding="utf-8")
    told = re.findall(r"^\| `(\w+)` \| (\d+)% \| (\d+)% \|", text, re.MULTILINE)
    assert {name: int(first) / 100 for name, first, _ in told if int(first)} == MIXTURE
    recipe = tomllib.loads(shipped_path("train/demo-2.toml").read_text(encoding="utf-8"))
    assert {name: int(second) / 100 for name, _, second in told} == recipe["synthetic_mixture"]
