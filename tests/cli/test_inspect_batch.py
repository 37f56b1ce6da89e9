"""`ryzjax inspect-batch`: trained tokens are in brackets or in color, and the counts are those of the data."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest
from rich.console import Console

from ryzjax.cli.batch_view import legend, show_row
from ryzjax.cli.main import main
from ryzjax.data.training import DataConfig, open_data
from tests.data.training.toy import CHATML, TALK, toy_tokenizer, write_lines


@pytest.fixture
def model(tmp_path: Path) -> Path:
    toy_tokenizer(tmp_path / "model", CHATML)
    return tmp_path / "model"


def test_brackets_without_colour(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_lines(tmp_path / "a.jsonl", [{"messages": TALK}, {"messages": TALK[1:3]}])
    words = ["inspect-batch", str(model), path, "--train-on", "assistant", "--sequence-tokens", "256", "--no-shuffle"]
    assert main([*words, "--batch-rows", "2"]) == 0
    shown = capsys.readouterr().out
    assert "\x1b" not in shown
    assert "form: messages; trained: assistant" in shown
    assert re.search(r"row 0: 2 segments, \d+ of 256 tokens, 27 trained", shown)
    assert f"segment 1, {path}:1: " in shown and f"segment 2, {path}:2: " in shown
    assert "<|im_start|>assistant↵\n⟦Hello<|im_end|>⟧↵\n<|im_start|>user↵\nHow are you?<|im_end|>↵\n" in shown
    assert "⟦Well, and you?<|im_end|>⟧\nsegment 2" in shown
    assert shown.count("⟦") == 4 == shown.count("⟧")
    assert "tokens of padding" in shown
    for name, value in (("rows", "2"), ("examples", "2"), ("batches an epoch", "1"), ("truncated", "0")):
        assert re.search(rf"│ {name} +│ +{value} │", shown), name


def test_colour(model: Path, tmp_path: Path) -> None:
    tokenizer = toy_tokenizer(model, CHATML)
    train = open_data(DataConfig(sequence_tokens=64), tokenizer, batch_rows=1, rows=[{"messages": TALK[1:3]}]).train
    console = Console(file=io.StringIO(), force_terminal=True, color_system="standard", no_color=False, width=80)
    batch = next(train)
    show_row(console, batch, 0, train.segment_places()[0], tokenizer)
    console.print(legend(console))
    assert isinstance(console.file, io.StringIO)
    shown = console.file.getvalue()
    assert "\x1b[1;32mHello\x1b[0m\x1b[1;30;42m<|im_end|>\x1b[0m" in shown
    assert "\x1b[2;7m<|im_start|>\x1b[0m\x1b[2muser↵" in shown
    assert "⟦" not in shown


def test_text_goes_on_in_another_row(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.txt").write_text("abcdefgh")
    words = ["inspect-batch", str(model), "--data", str(tmp_path / "a.txt"), "--sequence-tokens", "5", "--no-shuffle"]
    assert main([*words, "--batch-rows", "2", "--rows", "1", "--no-summary"]) == 0
    shown = capsys.readouterr().out
    assert "form: text; trained: all" in shown
    assert "<s>⟦abcde⟧ (the last token is only a target; the text continues in another row)" in shown
    assert "1 more rows; --rows shows more" in shown and "│" not in shown


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "data names nothing to train on"),
        (["nowhere.jsonl"], "data 'nowhere.jsonl': no such file"),
        (["a.jsonl", "--data", "b.jsonl"], "data is named twice"),
        (["a.jsonl", "--rows", "0"], "rows=0; expected at least 1"),
        (["a.jsonl"], "a.jsonl:2: columns 'x' match no known form"),
    ],
)
def test_bad_input(
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.jsonl").write_text('\n{"x": 1}\n')
    assert main(["inspect-batch", str(model), *words]) == 2
    shown = capsys.readouterr()
    assert message in shown.err and shown.err.count("\n") == 1
