"""HellaSwag (Zellers et al., 2019): which of four endings continues a context?"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from ryzjax.evaluation.scoring import Continuation, ContinuationScore
from ryzjax.evaluation.statistics import Metric, accuracy
from ryzjax.evaluation.tasks.rows import DataSource, Row, Split
from ryzjax.evaluation.tasks.task import ContinuationTask, Loaded, TaskOptions, hashes, select

__all__ = ["HellaSwag", "HellaSwagItem"]

_SPLIT = Split(file="hellaswag_val.jsonl", dataset="Rowan/hellaswag", split="validation")
_BRACKETS = re.compile(r"\[.*?\]")


@dataclass(frozen=True, kw_only=True)
class HellaSwagItem:
    """One question.

    Attributes:
      context: The context.
      endings: The endings, without the space before them.
      label: The index of the correct ending.
    """

    context: str
    endings: tuple[str, ...]
    label: int


class HellaSwag(ContinuationTask[HellaSwagItem]):
    """HellaSwag with three metrics, named as in lm-evaluation-harness: acc, acc_norm and acc_bytes.

    acc chooses the most likely ending. acc_norm and acc_bytes divide the log-likelihood by the number of characters or
    bytes of the ending first. Texts are cleaned as in lm-evaluation-harness.
    """

    name = "hellaswag"

    def load(self, data: DataSource, options: TaskOptions) -> Loaded[HellaSwagItem]:
        read = data.read(_SPLIT)
        items = tuple(map(_item, select(read.rows, options)))
        return Loaded(items=items, num_fewshot=0, data_sha256=hashes(read))

    def requests(self, item: HellaSwagItem) -> list[Continuation]:
        return [Continuation(context=item.context, continuation=f" {ending}") for ending in item.endings]

    def metrics(
        self, items: Sequence[HellaSwagItem], scores: Sequence[Sequence[ContinuationScore]]
    ) -> dict[str, Metric]:
        right: dict[str, list[bool]] = {"acc": [], "acc_norm": [], "acc_bytes": []}
        for item, found in zip(items, scores, strict=True):
            lengths = {
                "acc": [1] * len(item.endings),
                "acc_norm": [len(ending) for ending in item.endings],
                "acc_bytes": [len(ending.encode()) for ending in item.endings],
            }
            for name, sizes in lengths.items():
                shares = [score.logprob / size for score, size in zip(found, sizes, strict=True)]
                right[name].append(shares.index(max(shares)) == item.label)
        return {name: accuracy(values) for name, values in right.items()}


def clean(text: str) -> str:
    """Removes the markup of the WikiHow pages that half of the data comes from."""
    text = text.strip().replace(" [title]", ". ")
    return _BRACKETS.sub("", text).replace("  ", " ")


def _item(row: Row) -> HellaSwagItem:
    endings = tuple(clean(ending) for ending in row.texts("endings", least=2))
    if not all(endings):
        raise row.error("an ending is empty; nothing can be scored")
    if "activity_label" in row:
        context = f"{row.text('activity_label')}: {row.text('ctx_a')} {row.text('ctx_b').capitalize()}"
    else:
        # The row already has the activity at the start of its context.
        context = row.text("ctx")
    return HellaSwagItem(context=clean(context), endings=endings, label=row.index("label", len(endings)))
