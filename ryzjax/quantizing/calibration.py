"""Calibration text: turns texts and conversations into sequences of one length, and holds some of them out."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ryzjax.data.tokenizer import Tokenizer
from ryzjax.errors import ConfigError, MissingExtraError

__all__ = ["Calibration", "calibration_from_text", "read_texts"]

_HELD_OUT = 8
"""One sequence is held out for this many calibration sequences. Held-out text decides between methods."""
_TEXT_KEYS = ("text", "content", "prompt", "instruction", "question")


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Token sequences to calibrate on.

    Attributes:
      tokens: Token ids to calibrate on, int32 [sequences, tokens].
      held_out: Held-out token ids, which only judge the result, int32 [held-out sequences, tokens].
      source: The file or dataset that they come from.
      sha256: A hash of all token ids.
    """

    tokens: np.ndarray
    held_out: np.ndarray
    source: str
    sha256: str

    def describe(self) -> dict[str, object]:
        """Returns the entry for a certificate."""
        return {
            "source": self.source,
            "sha256": self.sha256,
            "sequences": self.tokens.shape[0],
            "held_out_sequences": self.held_out.shape[0],
            "sequence_tokens": self.tokens.shape[1],
        }


def calibration_from_text(
    source: str, tokenizer: Tokenizer, *, sequences: int, sequence_tokens: int, seed: int = 0
) -> Calibration:
    """Takes sequences from a text, JSON or JSONL file, or a Hugging Face dataset.

    Conversations are rendered with the model's chat template. Texts are shuffled and concatenated, so that no token is
    padding. Each text starts with the tokens that the tokenizer puts at the start of a prompt.

    Args:
      source: Path of a file, or id of a dataset ("org/name" or "org/name:split").
      tokenizer: The model's tokenizer.
      sequences: Number of sequences to calibrate on. An eighth as many are held out in addition.
      sequence_tokens: Tokens of each sequence.
      seed: Seed of the shuffle.

    Raises:
      ConfigError: The source is missing or empty, or has fewer tokens than needed.
      MissingExtraError: The source is a dataset, and the package that reads datasets is not installed.
    """
    if sequences < 1 or sequence_tokens < 2:
        raise ConfigError(
            f"{sequences} sequences of {sequence_tokens} tokens; expected at least 1 sequence of at least 2 tokens"
        )
    held_out = max(1, sequences // _HELD_OUT)
    needed = (sequences + held_out) * sequence_tokens
    texts = list(read_texts(source, tokenizer))
    if len(texts) > 1:
        np.random.default_rng(seed).shuffle(texts)
    ids: list[int] = []
    for text, is_rendered in texts:
        ids.extend(tokenizer.encode(text, add_special_tokens=not is_rendered))
        if len(ids) >= needed and len(texts) > 1:
            break
    if len(ids) < needed:
        raise ConfigError(
            f"calibration={source!r} has {len(ids):,} tokens; {sequences} sequences of {sequence_tokens} tokens and "
            f"{held_out} held out need {needed:,}. Give more text, or ask for fewer or shorter sequences"
        )
    # One long text gives sequences from all over it, chosen by the seed.
    windows = np.asarray(ids[: len(ids) // sequence_tokens * sequence_tokens], np.int32).reshape(-1, sequence_tokens)
    chosen = windows[np.sort(np.random.default_rng(seed).permutation(len(windows))[: sequences + held_out])]
    last = np.arange(len(chosen)) % ((sequences + held_out) // held_out) == 0
    last &= np.cumsum(last) <= held_out
    return Calibration(
        tokens=np.ascontiguousarray(chosen[~last][:sequences]),
        held_out=np.ascontiguousarray(chosen[last]),
        source=source,
        sha256=hashlib.sha256(chosen.tobytes()).hexdigest(),
    )


def read_texts(source: str, tokenizer: Tokenizer) -> Iterator[tuple[str, bool]]:
    """Yields (text, whether it is a rendered conversation) for each text of a file or dataset.

    Raises:
      ConfigError: The source is missing or empty, or a row has neither text nor messages.
      MissingExtraError: The source is a dataset, and the package that reads datasets is not installed.
    """
    path = Path(source).expanduser()
    if not path.exists():
        if path.suffix or source.count("/") > 1:
            raise ConfigError(f"calibration={source!r}: no such file; name a text, JSON or JSONL file")
        rows = enumerate(_dataset(source))
    elif path.suffix == ".jsonl" or path.suffix == ".json":
        rows = _json_rows(path)
    else:
        text = path.read_text(encoding="utf-8", errors="replace")
        if not text.strip():
            raise ConfigError(f"calibration={source!r} is empty; give a file with text")
        yield text, False
        return
    found = False
    for line, row in rows:
        found = True
        yield _text_of(row, f"{source}, row {line + 1}", tokenizer)
    if not found:
        raise ConfigError(f"calibration={source!r} has no rows; give a file with text")


def _json_rows(path: Path) -> Iterator[tuple[int, object]]:
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".json":
        try:
            rows = json.loads(text)
        except ValueError as error:
            raise ConfigError(f"{path}: not valid JSON ({error}); fix the file") from error
        if not isinstance(rows, list):
            raise ConfigError(f"{path}: holds a {type(rows).__name__}; expected a list of rows")
        yield from enumerate(rows)
        return
    for number, line in enumerate(text.splitlines()):
        if not line.strip():
            continue
        try:
            yield number, json.loads(line)
        except ValueError as error:
            raise ConfigError(f"{path}, line {number + 1}: not valid JSON ({error}); fix the line") from error


def _text_of(row: object, where: str, tokenizer: Tokenizer) -> tuple[str, bool]:
    if isinstance(row, str):
        return row, False
    if not isinstance(row, dict):
        raise ConfigError(f"{where}: is a {type(row).__name__}; expected an object or a string")
    messages = row.get("messages", row.get("conversations"))
    if isinstance(messages, list) and tokenizer.chat_template is not None:
        return tokenizer.render_prompt(messages, add_generation_prompt=False), True
    if isinstance(messages, list):
        return "\n".join(str(m.get("content", "")) for m in messages if isinstance(m, dict)), False
    for key in _TEXT_KEYS:
        if isinstance(row.get(key), str):
            answer = next((row[k] for k in ("output", "answer", "completion") if isinstance(row.get(k), str)), "")
            return (row[key] + ("\n" + answer if answer and key != "text" else "")), False
    raise ConfigError(f"{where}: has {sorted(row)[:8]}; expected messages, or one of {', '.join(_TEXT_KEYS)}")


def _dataset(source: str) -> Iterator[object]:
    name, _, split = source.partition(":")
    try:
        import datasets  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise MissingExtraError(
            f"calibration={source!r} is no file, and reading a dataset needs the datasets package; pip install datasets"
        ) from error
    yield from datasets.load_dataset(name, split=split or "train", streaming=True)
