"""A data set of any length that is generated while it is read. Row i is a function of the seed and i."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path

from ryzjax.data.synthetic.draw import Draw, Split
from ryzjax.data.synthetic.exchange import ChatRow, HeldOut
from ryzjax.data.synthetic.lengths import count_pieces
from ryzjax.data.synthetic.tasks import HELD_OUT, MIXTURE, TASKS
from ryzjax.errors import ConfigError

__all__ = ["SyntheticRows", "held_out", "row_pieces", "write_jsonl"]

_STAGES = 8
"""The number of stages of a run. All rows of a stage draw their task with the same probabilities."""
_SAMPLE_ROWS = 160
_TURN_PIECES = 5
"""The number of pieces that the chat template adds to a turn."""


class SyntheticRows:
    """Rows of a mixture of tasks; a sequence.

    A row does not depend on the order of reading or on other rows. Rows are in the order of training, with easier rows
    first (`Draw.progress`), so do not shuffle them.

    Args:
      seed: the seed of all randomness.
      count: the number of rows.
      split: "train", or "test" for rows with problems that no training row contains.
      mixture: each task's share of the tokens, on any positive scale. The default is `MIXTURE`.
      begins_at: the progress of row 0, from 0 to 1. Use a value above 0 for a model already trained on easier rows.

    Raises:
      ConfigError: a task does not exist, or the shares, `count` or `begins_at` are out of range.
    """

    def __init__(
        self,
        seed: int,
        count: int,
        *,
        split: Split = "train",
        mixture: Mapping[str, float] | None = None,
        begins_at: float = 0.0,
    ) -> None:
        mixture = MIXTURE if mixture is None else mixture
        unknown = sorted(mixture.keys() - TASKS.keys())
        if unknown:
            raise ConfigError(f"mixture names the task {unknown[0]!r}; expected some of {', '.join(TASKS)}")
        if any(not 0 <= share < float("inf") for share in mixture.values()) or not sum(mixture.values()):
            raise ConfigError(
                f"mixture={dict(mixture)} has no positive share; expected numbers of at least 0, one of them above 0"
            )
        if count < 1:
            raise ConfigError(f"count={count} is out of range; expected at least 1")
        if split not in ("train", "test"):
            raise ConfigError(f"split={split!r} is not known; expected 'train' or 'test'")
        if not 0 <= begins_at <= 1:
            raise ConfigError(f"begins_at={begins_at} is out of range; expected a number from 0 to 1")
        self.seed = seed
        self.split: Split = split
        self.mixture = {name: float(share) for name, share in mixture.items() if share}
        self._count = count
        self._begins_at = begins_at
        self._names = tuple(self.mixture)
        self._chances = [self._cumulative(stage) for stage in range(_STAGES)]

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> ChatRow:
        """Returns row `index`. A negative index counts from the end. Raises IndexError if it is out of range."""
        name, draw = self._drawn(index)
        return TASKS[name].row(draw)

    def task(self, index: int) -> str:
        """Returns the name of the task of row `index`."""
        return self._drawn(index)[0]

    def _drawn(self, index: int) -> tuple[str, Draw]:
        i = index + self._count if index < 0 else index
        if not 0 <= i < self._count:
            raise IndexError(f"row {index} of {self._count}")
        rng = random.Random(f"{self.seed} {self.split} {i}")
        progress = self._begins_at + (1 - self._begins_at) * i / self._count
        stage = min(int(progress * _STAGES), _STAGES - 1)
        name = rng.choices(self._names, cum_weights=self._chances[stage])[0]
        return name, Draw(rng=rng, split=self.split, progress=progress)

    def _cumulative(self, stage: int) -> list[float]:
        """Returns cumulative weights of the tasks. A task with long rows has fewer rows for its share of tokens."""
        return list(itertools.accumulate(share / _mean_pieces(name, stage) for name, share in self.mixture.items()))


def held_out(task: str, count: int, seed: int = 0) -> list[HeldOut]:
    """Returns items of a task of `HELD_OUT` whose problems are in no training row.

    The same arguments give the same items. A task with few problems may give an item twice.

    Raises:
      ConfigError: the task does not exist, or `count` is below 1.
    """
    if count < 1:
        raise ConfigError(f"count={count} is out of range; expected at least 1")
    if task not in HELD_OUT:
        raise ConfigError(f"task {task!r} is not known; expected some of {', '.join(HELD_OUT)}")
    return [HELD_OUT[task](Draw(rng=random.Random(f"{seed} held out {task} {i}"), split="test")) for i in range(count)]


def row_pieces(row: ChatRow) -> int:
    """Estimates the number of tokens of a row, without a tokenizer."""
    texts = [*(json.dumps(tool) for tool in row.get("tools", ())), *(_text(message) for message in row["messages"])]
    return sum(count_pieces(text) + _TURN_PIECES for text in texts)


def write_jsonl(path: Path, rows: Iterable[ChatRow]) -> int:
    """Writes one row per line and returns the number of rows."""
    count = 0
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            count += 1
    return count


def _text(message: Mapping[str, object]) -> str:
    calls = message.get("tool_calls")
    return f"{message['content']}{json.dumps(calls) if calls else ''}"


@cache
def _mean_pieces(task: str, stage: int) -> float:
    """Returns the mean length of a task's rows in a stage, from a fixed sample."""
    progress = (stage + 0.5) / _STAGES
    draws = (
        Draw(rng=random.Random(f"length {task} {stage} {i}"), split="train", progress=progress)
        for i in range(_SAMPLE_ROWS)
    )
    return sum(row_pieces(TASKS[task].row(draw)) for draw in draws) / _SAMPLE_ROWS
