"""The demo model's own tasks: held-out problems of the generator that made its training rows. They need no data."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

from ryzjax.data.synthetic import HELD_OUT, HeldOut, held_out
from ryzjax.data.tokenizer import Tokenizer
from ryzjax.errors import ConfigError
from ryzjax.evaluation.statistics import Metric, accuracy
from ryzjax.evaluation.tasks.rows import DataSource
from ryzjax.evaluation.tasks.task import GenerationTask, Loaded, TaskOptions

__all__ = ["DemoTask", "demo_tasks"]

_DEFAULT_ITEMS = 500
_PREFIX = "demo_"


class DemoTask(GenerationTask[HeldOut]):
    """exact_match: the share of answers that are right (`HeldOut.check`).

    Items are asked through the model's chat template, whatever `chat` says, with no examples in front. `limit` is how
    many are made (500 by default), `sample_seed` the seed they are made with (0 by default).

    Args:
      source: which of `ryzjax.data.synthetic.HELD_OUT`; `name` is "demo_" and it.
    """

    needs_data = False
    stop = ()
    max_new_tokens = 128

    def __init__(self, source: str) -> None:
        self.name = f"{_PREFIX}{source}"
        self._source = source

    def load(self, data: DataSource, options: TaskOptions) -> Loaded[HeldOut]:
        """Makes the items; `data` is not read. Raises ConfigError where examples in front are asked for."""
        if options.num_fewshot:
            raise ConfigError(f"{self.name} has no examples to put in front; expected num_fewshot=0, or leave it out")
        items = held_out(self._source, options.limit or _DEFAULT_ITEMS, options.sample_seed or 0)
        asked = [{"messages": item.messages, "tools": item.tools, "answer": item.answer} for item in items]
        digest = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()
        return Loaded(items=tuple(items), num_fewshot=0, data_sha256={self.name: digest})

    def prompt(self, item: HeldOut, tokenizer: Tokenizer, options: TaskOptions) -> list[int]:
        return tokenizer.apply_chat_template(item.messages, tools=item.tools)

    def metrics(self, items: Sequence[HeldOut], completions: Sequence[str]) -> dict[str, Metric]:
        pairs = zip(items, completions, strict=True)
        return {"exact_match": accuracy([item.check(text) for item, text in pairs])}


def demo_tasks() -> tuple[DemoTask, ...]:
    """One for everything that can be held out."""
    return tuple(map(DemoTask, HELD_OUT))
