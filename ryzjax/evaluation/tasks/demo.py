"""The tasks of the demo model: held-out problems from the generator of its training rows. They need no data files."""

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
    """A generated task. Its metric is exact_match, the share of correct answers (`HeldOut.check`).

    Prompts always use the model's chat template, regardless of the option `chat`, and have no few-shot examples. The
    option `limit` is the number of generated items (500 by default), and `sample_seed` is their seed (0 by default).

    Args:
      source: One of `ryzjax.data.synthetic.HELD_OUT`. The name of the task is "demo_" followed by it.
    """

    needs_data = False
    stop = ()
    max_new_tokens = 128

    def __init__(self, source: str) -> None:
        self.name = f"{_PREFIX}{source}"
        self._source = source

    def load(self, data: DataSource, options: TaskOptions) -> Loaded[HeldOut]:
        """Generates the items without reading `data`. Raises ConfigError if few-shot examples are asked for."""
        if options.num_fewshot:
            raise ConfigError(f"{self.name} has no few-shot examples; expected num_fewshot=0, or leave it out")
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
    """Returns one task for each entry of `HELD_OUT`."""
    return tuple(map(DemoTask, HELD_OUT))
