"""Rows of files: random access, and malformed rows reported with file and line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ryzjax.data.row import Row
from ryzjax.data.training.forms import detect_form, read_sample
from ryzjax.data.training.row_files import open_rows
from ryzjax.data.training.rows import SelectedRows, read_row, row_place
from ryzjax.errors import DataError, MissingExtraError


def opened(path: Path, piece_chars: int = 100):
    return open_rows(str(path), text_piece_chars=piece_chars)


@pytest.mark.parametrize("end", ["\n", "\r\n", ""])
def test_json_lines(tmp_path: Path, end: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"text": "one"}\n\n{"text": "\xc3\xa9"}\r\n\r\n{"text": "three"}' + end.encode())
    rows = opened(path)
    assert [dict(rows[i]) for i in (2, 0, 1)] == [{"text": "three"}, {"text": "one"}, {"text": "é"}]
    assert len(rows) == 3
    assert [row_place(rows, i) for i in range(3)] == [f"{path}:1", f"{path}:3", f"{path}:5"]
    assert row_place(SelectedRows(rows, [2, 0]), 0) == f"{path}:5"


def test_json_list_knows_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps([{"text": "one\ntwo"}, {"text": "x"}, {"text": "y"}], indent=2))
    rows = opened(path)
    assert [rows[i]["text"] for i in range(3)] == ["one\ntwo", "x", "y"]
    assert [row_place(rows, i) for i in range(3)] == [f"{path}:{line}" for line in (2, 5, 8)]


def test_parquet(tmp_path: Path) -> None:
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    rows_in = [{"messages": [{"role": "user", "content": "a", "name": None}]}, {"messages": None, "text": "b"}]
    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.Table.from_pylist(rows_in, schema=None), path)
    rows = opened(path)
    assert len(rows) == 2
    # Columns that only other rows have are left out, within messages too.
    assert dict(rows[0]) == {"messages": [{"role": "user", "content": "a"}]}
    assert row_place(rows, 1) == f"{path}, row 1"


def test_text_in_pieces(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    text = "".join(f"line {i}\n" for i in range(40)) + "x" * 250
    path.write_text(text)
    rows = opened(path)
    found = [rows[i] for i in range(len(rows))]
    assert "".join(str(row["text"]) for row in found) == text
    assert all(len(str(row["text"])) <= 100 for row in found) and len(found) > 4
    assert [row["begins"] for row in found] == [True] + [False] * (len(found) - 1)
    assert [row["ends"] for row in found] == [False] * (len(found) - 1) + [True]
    assert str(found[0]["text"]).endswith("\n")
    assert row_place(rows, 1) == f"{path}:{1 + str(found[0]['text']).count(chr(10))}"


def test_hub_data_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    asked: list[tuple[object, ...]] = []

    def load(name: str, config: str | None, *, split: str) -> list[dict[str, object]]:
        asked.append((name, config, split))
        if name == "org/gone":
            raise ConnectionError("offline")
        return [{"text": "a", "more": None}]

    monkeypatch.setattr(datasets, "load_dataset", load)
    for source in ("org/name", "org/name:test", "org/name:en:test"):
        rows = open_rows(source, text_piece_chars=9)
        assert dict(rows[0]) == {"text": "a"} and row_place(rows, 0) == f"{source}, row 0"
    assert asked == [("org/name", None, "train"), ("org/name", None, "test"), ("org/name", "en", "test")]
    with pytest.raises(DataError, match=r"'org/gone' is no file, and cannot be loaded .*offline.*check the name"):
        open_rows("org/gone", text_piece_chars=9)
    with pytest.raises(DataError, match="expected org/name, org/name:split or org/name:config:split"):
        open_rows("org/name:a:b:c", text_piece_chars=9)


@pytest.mark.parametrize(("source", "package"), [("org/name", "datasets"), ("a.parquet", "pyarrow")])
def test_missing_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, package: str) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(__import__("sys").modules, package, None)
    with pytest.raises(MissingExtraError, match=r"pip install 'ryzjax\[train\]'"):
        open_rows(source, text_piece_chars=9)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b"", "is empty; expected one JSON object per line"),
        ("a.jsonl", b"\n\n", "has no rows"),
        ("a.jsonl", b'{"text": "a"}\n\n{"text": }\n', "a.jsonl:3: not valid JSON"),
        ("a.jsonl", b'{"text": "a"}\n[1]\n', "a.jsonl:2: holds a list; expected a JSON object"),
        ("a.jsonl", b'{"text": "a"}\n{"text": "\xff"}\n', "a.jsonl:2: not UTF-8"),
        ("a.json", b'{"text": "a"}', "does not start with '['"),
        ("a.json", b'[{"text": "a"},\n{"text" "b"}]', "a.json:2: not valid JSON"),
        ("a.json", b'[{"text": "a"}\n{"text": "b"}]', "a.json:1: not valid JSON (expected ',' or ']' after it)"),
        ("a.json", b'[{"text": "a"},\n', "a.json:2: not valid JSON"),
        ("a.json", b'[\n"a"]', "a.json:2: holds a str; expected a JSON object"),
        ("a.json", b"[]", "has no rows"),
        ("a.json", b"\xff", "not UTF-8"),
        ("a.txt", b" \n", "is empty; expected text"),
        ("a.txt", b"\xff", "not UTF-8"),
        ("a.parquet", b"PAR1", "not a Parquet file that can be read"),
        ("a.csv", b"a,b", "ends in '.csv'; expected one of .jsonl, .json, .parquet, .txt"),
    ],
)
def test_bad_files(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError) as caught:
        rows = opened(tmp_path / name)
        for i in range(len(rows)):
            read_row(rows, i)
    assert message in str(caught.value) and name in str(caught.value)


@pytest.mark.parametrize(
    ("source", "message"),
    [("nowhere.jsonl", "no such file"), ("./nowhere", "no such file"), ("a/b/c", "no such file"), (".", "is a folder")],
)
def test_no_such_data(source: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        open_rows(source, text_piece_chars=9)


USER = {"role": "user", "content": "a"}
ANSWER = {"role": "assistant", "content": "b"}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"question": "a"}, "columns 'question' match no known form. Expected preference: chosen+rejected"),
        ({"messages": "a"}, "messages is a str; expected a list of messages"),
        ({"messages": []}, "messages is empty"),
        ({"messages": ["a"]}, "messages[0] is a str; expected an object with role and content"),
        ({"messages": [{"content": "a"}]}, "messages[0].role=None is not a role"),
        ({"messages": [USER, {"role": "assistant"}]}, "messages[1] (role 'assistant') has no content"),
        ({"messages": [{"role": "user", "content": 3}]}, "messages[0].content=3 is a int; expected text"),
        ({"messages": [USER]}, "messages has no assistant message to train on; its roles are user"),
        ({"conversations": [{"from": "bard", "value": "a"}]}, "conversations[0].from='bard' is unknown"),
        ({"conversations": [{"from": "gpt", "value": None}]}, "conversations[0].value=None is not text"),
        ({"conversations": [{"from": "function_call", "value": "f()"}]}, "conversations[0].value is not valid JSON"),
        ({"messages": [{"role": "assistant", "tool_calls": ["f"]}]}, "messages[0].tool_calls[0]='f' is not a call"),
        ({"messages": [USER, ANSWER], "tools": "x"}, "tools is not valid JSON"),
        ({"messages": [USER, ANSWER], "tools": {"a": 1}}, "tools={'a': 1} is not a list of JSON schemas"),
        ({"prompt": "a", "completion": ""}, "completion is empty"),
        ({"prompt": "a", "completion": 4}, "prompt is a str and completion a int; expected both as text"),
        ({"prompt": "a", "completion": [ANSWER]}, "prompt is a str and completion a list; expected both as text"),
        ({"prompt": [USER], "completion": [USER]}, "completion has no assistant message to train on"),
        ({"instruction": 1, "output": "a"}, "instruction=1 is not text"),
        ({"instruction": "a", "output": ""}, "output is empty"),
        ({"text": ""}, "text is empty"),
        ({"text": 5}, "text=5 is not text"),
        ({"chosen": "abc", "rejected": "xyz"}, "chosen and rejected must start alike"),
        ({"chosen": "a b", "rejected": "a b"}, "chosen and rejected must start alike and end differently"),
        ({"chosen": [ANSWER], "rejected": [USER]}, "chosen and rejected have no first message in common"),
        ({"chosen": [USER, ANSWER], "rejected": [USER]}, "rejected has no assistant message to train on"),
    ],
)  # fmt: skip
def test_bad_rows(values: dict[str, object], message: str) -> None:
    row = Row("a.jsonl:3", values)
    with pytest.raises(DataError) as caught:
        read_sample(row, detect_form(row), has_template=True)
    assert str(caught.value).startswith("a.jsonl:3: ") and message in str(caught.value)


def test_a_row_of_another_form(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="a:1: no 'completion'; the row has 'prompt'"):
        read_sample(Row("a:1", {"prompt": "x"}), "prompt_completion", has_template=False)
