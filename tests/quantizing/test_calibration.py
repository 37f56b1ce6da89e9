"""Calibration text: sequences from files, and errors."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from ryzjax.data.byte_tokenizer import write_byte_tokenizer
from ryzjax.data.tokenizer import Tokenizer
from ryzjax.errors import ConfigError
from ryzjax.quantizing.calibration import Calibration, calibration_from_text

TEXT = " ".join(f"word{i}" for i in range(2000))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    write_byte_tokenizer(folder, vocab_size=512)
    return Tokenizer.load(folder)


def take(path: Path, tokenizer: Tokenizer, *, sequences: int = 16, seed: int = 0) -> Calibration:
    return calibration_from_text(str(path), tokenizer, sequences=sequences, sequence_tokens=32, seed=seed)


def test_sequences_are_of_the_text_and_none_is_in_both_parts(tmp_path: Path, tokenizer: Tokenizer):
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    found = take(path, tokenizer)
    assert found.tokens.shape == (16, 32) and found.held_out.shape == (2, 32)
    assert found.tokens.dtype == np.int32
    ids = tokenizer.encode(TEXT)
    windows = {tuple(ids[i : i + 32]) for i in range(0, len(ids) - 31, 32)}
    chosen = [tuple(row) for row in np.concatenate([found.tokens, found.held_out]).tolist()]
    assert set(chosen) <= windows and len(set(chosen)) == 18
    again, other = take(path, tokenizer), take(path, tokenizer, seed=1)
    np.testing.assert_array_equal(found.tokens, again.tokens)
    assert found.sha256 == again.sha256 != other.sha256


@pytest.mark.parametrize(
    "rows",
    [
        [{"text": TEXT}] * 2,
        [{"instruction": TEXT, "output": "yes"}] * 2,
        [{"messages": [{"role": "user", "content": TEXT}]}] * 2,
        [TEXT] * 2,
    ],
)
def test_rows_of_every_kind(rows: list, tmp_path: Path, tokenizer: Tokenizer):
    for name, text in (("a.jsonl", "\n".join(map(json.dumps, rows))), ("a.json", json.dumps(rows))):
        (tmp_path / name).write_text(text)
        assert take(tmp_path / name, tokenizer).tokens.shape == (16, 32)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("empty.txt", " \n", "is empty"),
        ("short.txt", "a few words", "has 11 tokens|has 12 tokens"),
        ("empty.jsonl", "", "has no rows"),
        ("bad.jsonl", '{"text": "a"}\n{', "line 2: not valid JSON"),
        ("bad.json", "{}", "holds a dict"),
        ("keys.jsonl", '{"question_id": 3}', r"row 1: has \['question_id'\]"),
        ("kinds.jsonl", "3", "row 1: is a int"),
    ],
)
def test_what_is_refused(name: str, text: str, message: str, tmp_path: Path, tokenizer: Tokenizer):
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match=message):
        take(tmp_path / name, tokenizer)


def test_a_missing_file(tmp_path: Path, tokenizer: Tokenizer):
    with pytest.raises(ConfigError, match="no such file"):
        take(tmp_path / "none.txt", tokenizer)
