"""Rows of pieces: together they hold every token of the demo model's vocabulary, each standing alone as one token."""

from __future__ import annotations

import json
import tomllib
from collections import Counter
from pathlib import Path

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from ryzjax.data import tokenizer as tokenizers_of_models
from ryzjax.data.synthetic import MIXTURE, TASKS, SyntheticRows, held_out
from ryzjax.data.synthetic.pieces import pieces_of
from ryzjax.data.synthetic.vocabulary import SPECIAL_TOKENS
from ryzjax.shipped import demo_folder, shipped_path

SAMPLE_ROWS = 7000
IMPOSSIBLE_BYTES = (0xC0, 0xC1, *range(0xF5, 0x100))
"""Bytes that valid UTF-8 never contains."""


@pytest.fixture(scope="module")
def tokenizer() -> tokenizers_of_models.Tokenizer:
    return tokenizers_of_models.Tokenizer.load(demo_folder())


def second_stage() -> dict[str, float]:
    return tomllib.loads(shipped_path("train/demo-2.toml").read_text(encoding="utf-8"))["synthetic_mixture"]


def targets(tokenizer: tokenizers_of_models.Tokenizer, rows: SyntheticRows) -> Counter[int]:
    """Returns how often each token is a training target."""
    counts: Counter[int] = Counter()
    template = tokenizer.chat_template
    assert template is not None
    for row in rows:
        marked = template.render_marked(row["messages"], tools=row.get("tools"))
        for start, end in marked.spans:
            counts.update(tokenizer.encode(marked.text[start:end]))
    return counts


def never_written(tokenizer: tokenizers_of_models.Tokenizer) -> set[int]:
    """Returns the tokens that no answer can hold: two special tokens, and bytes that valid UTF-8 never contains."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    content = json.loads((demo_folder() / "tokenizer.json").read_text(encoding="utf-8"))
    vocabulary: dict[str, int] = content["model"]["vocab"]
    decode = decoders.ByteLevel()
    # Byte-level BPE writes each byte as a letter: printable bytes as themselves, the others as the letters from 256 on.
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    letter = {byte: chr(byte) for byte in printable}
    letter |= {byte: chr(256 + i) for i, byte in enumerate(byte for byte in range(256) if byte not in set(printable))}
    assert sorted(letter.values()) == letters and decode.decode([letter[0x20]]) == " "
    end_of_text, start_of_turn, _ = SPECIAL_TOKENS
    return {vocabulary[letter[byte]] for byte in IMPOSSIBLE_BYTES} | {
        vocabulary[token] for token in (end_of_text, start_of_turn)
    }


def test_the_second_stage_writes_every_token(tokenizer: tokenizers_of_models.Tokenizer) -> None:
    rows = SyntheticRows(0, SAMPLE_ROWS, mixture=second_stage(), begins_at=1.0)
    counts = targets(tokenizer, rows)
    missing = set(range(tokenizer.vocab_size)) - counts.keys()
    assert missing == never_written(tokenizer)
    # The recipe trains on more than ten times as many rows.
    assert min(counts.values()) >= 3 and sorted(counts.values())[len(counts) // 20] >= 9


def test_the_other_tasks_leave_much_of_the_vocabulary_out(tokenizer: tokenizers_of_models.Tokenizer) -> None:
    counts = targets(tokenizer, SyntheticRows(0, 2000, begins_at=0.5))
    assert "pieces" not in MIXTURE and tokenizer.vocab_size - len(counts) > 700


def test_a_piece_between_two_separators_is_one_token(tokenizer: tokenizers_of_models.Tokenizer) -> None:
    found = pieces_of(demo_folder() / "tokenizer.json")
    assert len(found.alone) > 1500 and "urg" in found.letters and found.halves
    for text in found.alone:
        for separator in ("\n", "|"):
            inside = tokenizer.encode(f"a{separator}{text}{separator}a")[2:-2]
            assert len(inside) == 1 and tokenizer.decode(inside) == text, (text, separator)


def test_pieces_of_another_tokenizer(tmp_path: Path) -> None:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: i for i, letter in enumerate(letters)}
    merges = [("a", "b"), ("Ġ", "ab"), ("a", "Ã")]  # the last one ends inside a character
    vocabulary |= {"".join(pair): len(letters) + i for i, pair in enumerate(merges)}
    own = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    own.add_special_tokens([AddedToken("<end>", special=True)])
    own.save(str(tmp_path / "tokenizer.json"))
    found = pieces_of(tmp_path / "tokenizer.json")
    assert {"ab", " ab", "a", "\x00"} <= set(found.alone) and "<end>" not in found.alone
    assert "ab" in found.letters and " ab" not in found.letters
    assert found.halves == (b"a\xc3",)


def test_answers_repeat_what_is_asked() -> None:
    for item in held_out("pieces", 300):
        question = str(item.messages[-1]["content"])
        assert item.check(item.answer) and not item.check(item.answer + "x")
        if item.answer.startswith("["):
            assert all(word in question for word in json.loads(item.answer))
        elif not item.answer.startswith("The "):
            assert item.answer in question
        assert item.answer == item.answer.strip()


def test_no_answer_is_in_both_splits() -> None:
    train = SyntheticRows(0, 1500, mixture={"pieces": 1})
    known = {str(m["content"]) for row in train for m in row["messages"] if m["role"] == "assistant"}
    asked = [item.answer for item in held_out("pieces", 300) if not item.answer.startswith("The ")]
    assert len(asked) > 200 and not known & set(asked)


def test_shares_of_the_second_stage() -> None:
    mixture = second_stage()
    assert mixture.keys() == TASKS.keys() and sum(mixture.values()) == pytest.approx(1)
