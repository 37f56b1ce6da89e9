"""What a task is: items read from data, requests made of them, a score of the answers."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Generic, TypeVar

from ryzjax.data.tokenizer import Tokenizer
from ryzjax.errors import ConfigError
from ryzjax.evaluation.scoring import Continuation, ContinuationScore
from ryzjax.evaluation.statistics import Metric
from ryzjax.evaluation.tasks.rows import DataSource, Rows

__all__ = ["ContinuationTask", "GenerationTask", "Loaded", "Task", "TaskOptions", "TaskResult", "hashes", "select"]

Item = TypeVar("Item")
Chosen = TypeVar("Chosen")


@dataclass(frozen=True, kw_only=True)
class TaskOptions:
    """How a task is run.

    Attributes:
      limit: items of each data set (of each subject of MMLU); None takes all.
      sample_seed: draws the `limit` items with this seed; None takes the first ones.
      num_fewshot: examples in front; None is the task's own choice.
      chat: put generation prompts through the model's chat template.
      add_special_tokens: what the tokenizer adds to a text (BOS).
      max_tokens: longest prompt and answer; None is the engine's context.
      temperature: that completions are sampled at; 0 takes the likeliest tokens.
      top_p: completions are sampled from the likeliest tokens that have this probability together; 1 is all of them.
      generation_seed: of sampled completions; each item has a random stream of its own.
    """

    limit: int | None = None
    sample_seed: int | None = None
    num_fewshot: int | None = None
    chat: bool = False
    add_special_tokens: bool = True
    max_tokens: int | None = None
    temperature: float = 0.0
    top_p: float = 1.0
    generation_seed: int = 0

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 1:
            raise ConfigError(f"limit={self.limit} is out of range; expected at least 1")
        if self.num_fewshot is not None and self.num_fewshot < 0:
            raise ConfigError(f"num_fewshot={self.num_fewshot} is out of range; expected 0 or more")
        if self.sample_seed is not None and self.limit is None:
            raise ConfigError(f"sample_seed={self.sample_seed} draws nothing without limit; give both")
        if not 0 <= self.temperature <= 100:
            raise ConfigError(f"temperature={self.temperature} is out of range; expected 0 (greedy) to 100")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p={self.top_p} is out of range; expected above 0, and at most 1")
        if self.generation_seed < 0:
            raise ConfigError(f"generation_seed={self.generation_seed} is out of range; expected 0 or more")


@dataclass(frozen=True, kw_only=True)
class Loaded(Generic[Item]):
    """A task's items.

    Attributes:
      items: to be scored, at least one.
      num_fewshot: examples in front of each.
      data_sha256: of each file or split that was read, by its name.
    """

    items: tuple[Item, ...]
    num_fewshot: int
    data_sha256: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class TaskResult:
    """A task's score.

    Attributes:
      task: its name.
      metrics: name -> figure with its 95% interval.
      groups: part of the data -> its accuracy (MMLU's subjects); empty for most.
      n: items.
      num_fewshot: examples in front of each.
      num_cut: requests whose context was cut on the left to fit.
      options: as asked for.
      data_sha256: file or split -> hash.
    """

    task: str
    metrics: Mapping[str, Metric]
    n: int
    num_fewshot: int
    num_cut: int
    options: TaskOptions
    data_sha256: Mapping[str, str]
    groups: Mapping[str, Metric] = field(default_factory=dict)


class Task(ABC, Generic[Item]):
    """A benchmark.

    Attributes:
      name: what `--tasks` calls it.
      needs_data: whether `load` reads data; else it makes the items.
    """

    name: str
    needs_data: ClassVar[bool] = True

    @abstractmethod
    def load(self, data: DataSource, options: TaskOptions) -> Loaded[Item]:
        """Reads the items. Raises DataError where the data is missing or malformed."""


class ContinuationTask(Task[Item]):
    """A task that compares log-likelihoods."""

    @abstractmethod
    def requests(self, item: Item) -> Sequence[Continuation]:
        """What is to be scored for an item; at least one."""

    @abstractmethod
    def metrics(self, items: Sequence[Item], scores: Sequence[Sequence[ContinuationScore]]) -> dict[str, Metric]:
        """The task's figures, from a score a request."""

    def groups(self, items: Sequence[Item], scores: Sequence[Sequence[ContinuationScore]]) -> dict[str, Metric]:
        """Figures of parts of the data, by name; none by default."""
        return {}


class GenerationTask(Task[Item]):
    """A task that reads completions: greedy ones, unless `TaskOptions.temperature` says otherwise."""

    stop: ClassVar[tuple[str, ...]]
    max_new_tokens: ClassVar[int]

    @abstractmethod
    def prompt(self, item: Item, tokenizer: Tokenizer, options: TaskOptions) -> list[int]:
        """Token ids of an item's prompt. Raises RequestError where a chat template is wanted and missing."""

    @abstractmethod
    def metrics(self, items: Sequence[Item], completions: Sequence[str]) -> dict[str, Metric]:
        """The task's figures, from a completion an item."""


def select(values: Sequence[Chosen], options: TaskOptions) -> tuple[Chosen, ...]:
    """The first `limit` values, or as many drawn with `sample_seed`, in their order."""
    if options.limit is None or options.limit >= len(values):
        return tuple(values)
    if options.sample_seed is None:
        return tuple(values[: options.limit])
    drawn = random.Random(options.sample_seed).sample(range(len(values)), options.limit)
    return tuple(values[i] for i in sorted(drawn))


def hashes(*read: Rows) -> dict[str, str]:
    """Name -> hash of what was read."""
    return {rows.name: rows.sha256 for rows in read}
