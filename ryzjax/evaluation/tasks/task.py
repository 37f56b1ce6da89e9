"""The base classes of tasks. A task reads items from data, turns them into requests, and scores the answers."""

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
    """The options of a task.

    Attributes:
      limit: The number of items of each data set, and of each subject of MMLU; None for all.
      sample_seed: The seed with which `limit` items are drawn; None for the first items.
      num_fewshot: The number of few-shot examples; None for the task's default.
      chat: Whether generation prompts use the model's chat template.
      add_special_tokens: Whether the tokenizer adds its special tokens, such as BOS.
      max_tokens: The largest number of tokens of a prompt and its answer; None for the engine's context.
      temperature: The temperature of sampled completions; 0 is greedy.
      top_p: Completions are sampled from the most likely tokens that together have this probability; 1 for all tokens.
      generation_seed: The seed of sampled completions. Each item has its own random stream.
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
    """The items of a task.

    Attributes:
      items: The items to score, at least one.
      num_fewshot: The number of few-shot examples of each item.
      data_sha256: Name of each file or split that was read -> its SHA-256.
    """

    items: tuple[Item, ...]
    num_fewshot: int
    data_sha256: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class TaskResult:
    """The result of a task.

    Attributes:
      task: The name of the task.
      metrics: Metric name -> figure with its 95% interval.
      n: The number of items.
      num_fewshot: The number of few-shot examples of each item.
      num_cut: The number of requests whose context was cut on the left to fit.
      options: The options of the task.
      data_sha256: Name of each file or split -> its SHA-256.
      groups: Part of the data -> its accuracy, for the subjects of MMLU. Empty for other tasks.
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
      name: The name of the task, for `--tasks`.
      needs_data: Whether `load` reads data. If not, it generates the items.
    """

    name: str
    needs_data: ClassVar[bool] = True

    @abstractmethod
    def load(self, data: DataSource, options: TaskOptions) -> Loaded[Item]:
        """Reads or generates the items. Raises DataError if the data is missing or malformed."""


class ContinuationTask(Task[Item]):
    """A task that compares the log-likelihoods of continuations."""

    @abstractmethod
    def requests(self, item: Item) -> Sequence[Continuation]:
        """Returns the continuations to score for an item, at least one."""

    @abstractmethod
    def metrics(self, items: Sequence[Item], scores: Sequence[Sequence[ContinuationScore]]) -> dict[str, Metric]:
        """Returns metric name -> figure, given the scores of the requests of each item."""

    def groups(self, items: Sequence[Item], scores: Sequence[Sequence[ContinuationScore]]) -> dict[str, Metric]:
        """Returns the figures of parts of the data, by name. There are none by default."""
        return {}


class GenerationTask(Task[Item]):
    """A task that scores completions. They are greedy, unless `TaskOptions.temperature` is positive.

    Attributes:
      stop: The strings that end a completion.
      max_new_tokens: The largest number of tokens of a completion.
    """

    stop: ClassVar[tuple[str, ...]]
    max_new_tokens: ClassVar[int]

    @abstractmethod
    def prompt(self, item: Item, tokenizer: Tokenizer, options: TaskOptions) -> list[int]:
        """Returns the token ids of an item's prompt. Raises RequestError if a needed chat template is missing."""

    @abstractmethod
    def metrics(self, items: Sequence[Item], completions: Sequence[str]) -> dict[str, Metric]:
        """Returns metric name -> figure, given the completion of each item."""


def select(values: Sequence[Chosen], options: TaskOptions) -> tuple[Chosen, ...]:
    """Returns the first `limit` values, or that many drawn with `sample_seed`, in their original order."""
    if options.limit is None or options.limit >= len(values):
        return tuple(values)
    if options.sample_seed is None:
        return tuple(values[: options.limit])
    drawn = random.Random(options.sample_seed).sample(range(len(values)), options.limit)
    return tuple(values[i] for i in sorted(drawn))


def hashes(*read: Rows) -> dict[str, str]:
    """Returns name -> SHA-256 of each split that was read."""
    return {rows.name: rows.sha256 for rows in read}
