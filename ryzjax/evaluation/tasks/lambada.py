"""LAMBADA (Paperno et al., 2016): predict the last word of a passage, which needs more than its last sentence."""

from __future__ import annotations

from collections.abc import Sequence

from ryzjax.evaluation.scoring import Continuation, ContinuationScore
from ryzjax.evaluation.statistics import Metric, accuracy, perplexity_metric
from ryzjax.evaluation.tasks.rows import DataSource, Row, Split
from ryzjax.evaluation.tasks.task import ContinuationTask, Loaded, TaskOptions, hashes, select

__all__ = ["Lambada"]

_SPLIT = Split(file="lambada_test.jsonl", dataset="EleutherAI/lambada_openai", config="default", split="test")


class Lambada(ContinuationTask[Continuation]):
    """LAMBADA with two metrics: acc and perplexity.

    acc is the share of passages in which every token of the last word is the most likely one. perplexity is that of
    the last word, as one event.
    """

    name = "lambada"

    def load(self, data: DataSource, options: TaskOptions) -> Loaded[Continuation]:
        read = data.read(_SPLIT)
        items = tuple(map(_item, select(read.rows, options)))
        return Loaded(items=items, num_fewshot=0, data_sha256=hashes(read))

    def requests(self, item: Continuation) -> list[Continuation]:
        return [item]

    def metrics(
        self, items: Sequence[Continuation], scores: Sequence[Sequence[ContinuationScore]]
    ) -> dict[str, Metric]:
        last = [score for (score,) in scores]
        return {
            "acc": accuracy([score.is_greedy for score in last]),
            "perplexity": perplexity_metric([-score.logprob for score in last]),
        }


def _item(row: Row) -> Continuation:
    context, space, word = row.text("text").rpartition(" ")
    if not space or not word:
        raise row.error("text has no last word after a space; expected a passage")
    return Continuation(context=context, continuation=space + word)
