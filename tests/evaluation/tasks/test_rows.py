"""Rows of files and of Hugging Face data sets, and what is said about bad ones."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from ryzjax.errors import DataError, MissingExtraError
from ryzjax.evaluation.tasks.rows import HubData, LocalData, Row, Split, open_data

JSON = Split(file="a.jsonl", dataset="org/a", split="test")
CSV = Split(file="b/one_test.csv", dataset="org/b", config="one", split="test", columns=("question", "A", "answer"))


def local(folder: Path, split: Split, raw: bytes) -> LocalData:
    path = folder / split.file
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(raw)
    return LocalData(folder)


def test_json_lines(tmp_path: Path) -> None:
    raw = '{"text": "a\\u2028b", "label": "2"}\n\n{"text": "ü"}\n'.encode()
    read = local(tmp_path, JSON, raw).read(JSON)
    assert [row.values for row in read.rows] == [{"text": "a\u2028b", "label": "2"}, {"text": "ü"}]
    assert [row.where for row in read.rows] == [f"{tmp_path}/a.jsonl:1", f"{tmp_path}/a.jsonl:3"]
    assert (read.name, read.sha256) == ("a.jsonl", hashlib.sha256(raw).hexdigest())


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b'{"a": 1}\n{"a": 2}\n{"a": \n', r"a\.jsonl:3: not valid JSON"),
        (b'{"a": 1}\n[2]\n', r"a\.jsonl:2: holds a list; expected a JSON object"),
        (b"\n\n", r"a\.jsonl: has no rows"),
        (b'{"a": "\xff"}', r"a\.jsonl: not UTF-8 \(byte 7\)"),
    ],
)
def test_bad_json_lines(tmp_path: Path, raw: bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        local(tmp_path, JSON, raw).read(JSON)


@pytest.mark.parametrize("header", ["", "question,A,answer\n"])
@pytest.mark.parametrize(
    ("text", "cells"),
    [
        ('"a","b ""c"", d",1\nx,y,B\n', [["a", 'b "c", d', "1"], ["x", "y", "B"]]),
        ('"two\nlines","b",0\n', [["two\nlines", "b", "0"]]),
        # Bare quotes, as copies of MMLU have them, beside a cell of two lines.
        (
            '"say "hi", now","b "c"",2\n"two\nlines","d",0\n',
            [['say "hi", now', 'b "c"', "2"], ["two\nlines", "d", "0"]],
        ),
        ('"say "hi"","b",2\r\n"x","y",0\r\n', [['say "hi"', "b", "2"], ["x", "y", "0"]]),
    ],
)
def test_csv(tmp_path: Path, header: str, text: str, cells: list[list[str]]) -> None:
    read = local(tmp_path, CSV, (header + text).encode()).read(CSV)
    assert [list(row.values.values()) for row in read.rows] == cells
    assert all(list(row.values) == ["question", "A", "answer"] for row in read.rows)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("q,a,1\nq,a\n", r"one_test\.csv:2: 2 columns; expected 3: question, A, answer"),
        ('"q","a",1\n"q "x"","a","b",1\n', r"one_test\.csv:2: 4 columns"),
        ('"q "x"","a",1\n"never ends\n', r"one_test\.csv:2: not valid CSV"),
        ("question,A,answer\n", r"one_test\.csv: has no rows"),
    ],
)
def test_bad_csv(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        local(tmp_path, CSV, text.encode()).read(CSV)


def test_missing_files_and_folders(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist; expected one with files"):
        open_data(str(tmp_path / "none"))
    data = open_data(str(tmp_path))
    assert not data.has(JSON)
    with pytest.raises(DataError, match=r"a\.jsonl: cannot be read .* expected the data set org/a:test"):
        data.read(JSON)
    with pytest.raises(DataError, match=r"no b/\*_test\.csv; expected the data set org/b"):
        data.subsets("b/*_test.csv", "org/b")


def test_subsets_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    for name in ("two_test.csv", "one_test.csv", "one_dev.csv", "x.txt"):
        (tmp_path / "b" / name).write_text("")
    assert LocalData(tmp_path).subsets("b/*_test.csv", "org/b") == ("one", "two")
    assert LocalData(tmp_path).has(CSV)


def test_values_of_a_row() -> None:
    row = Row("f:7", {"text": "a", "list": ["x", "y"], "label": "1", "number": 3, "flag": True, "mixed": ["x", 1]})
    assert (row.text("text"), row.texts("list"), row.index("label", 2), row.index("number", 4)) == (
        "a",
        ("x", "y"),
        1,
        3,
    )
    for call, message in (
        (lambda: row.text("none"), "f:7: no 'none'; the row has 'text', "),
        (lambda: row.text("list"), r"f:7: list=\['x', 'y'\] is not text"),
        (lambda: row.texts("text"), "text='a' is not a list of texts"),
        (lambda: row.texts("mixed"), "is not a list of texts"),
        (lambda: row.texts("list", least=3), "list has 2 texts; expected at least 3"),
        (lambda: row.index("label", 1), "label='1' is not an index of 1 choices|label=1 is not an index of 1 choices"),
        (lambda: row.index("flag", 2), "flag=True is not an index of 2 choices; expected 0 to 1"),
    ):
        with pytest.raises(DataError, match=message):
            call()


def test_data_sets_without_their_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'ryzjax\[eval\]', or name a folder of files with --data"):
        open_data("hub")


class FakeDatasets(SimpleNamespace):
    """What we use of the package."""

    @staticmethod
    def load_dataset(name: str, config: str | None, *, split: str) -> list[dict[str, object]]:
        if name != "org/b":
            raise FileNotFoundError(f"no {name}")
        return [{"question": f"{config} {split}", "choices": ["ä", "b"], "answer": 1}] if split == "test" else []

    @staticmethod
    def get_dataset_config_names(name: str) -> list[str]:
        if name != "org/b":
            raise ConnectionError("offline")
        return ["two", "all", "auxiliary_train", "one"]


def test_data_sets_of_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", FakeDatasets())  # type: ignore[arg-type]
    data = open_data("hub")
    assert isinstance(data, HubData) and data.has(CSV)
    read = data.read(CSV)
    (row,) = read.rows
    assert (row.text("question"), row.texts("choices"), row.index("answer", 2)) == ("one test", ("ä", "b"), 1)
    assert (read.name, row.where) == ("org/b:one:test", "org/b:one:test:0")
    line = json.dumps({"answer": 1, "choices": ["ä", "b"], "question": "one test"}, ensure_ascii=False) + "\n"
    assert read.sha256 == hashlib.sha256(line.encode()).hexdigest()
    assert data.subsets("b/*_test.csv", "org/b") == ("one", "two")
    with pytest.raises(DataError, match="data set org/a:test: cannot be loaded"):
        data.read(JSON)
    with pytest.raises(DataError, match="data set org/a: cannot be found"):
        data.subsets("*", "org/a")
    with pytest.raises(DataError, match="org/b:dev: has no rows"):
        data.read(Split(file="", dataset="org/b", split="dev"))
