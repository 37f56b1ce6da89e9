"""Many prompts through an engine, in batches: the memory of their scores is bounded, and a bar shows when it ends."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from ryzjax.serving.frontend.llm import LLM, TokenPrompt
from ryzjax.serving.messages.request import RequestOutput
from ryzjax.serving.messages.sampling_params import SamplingParams

__all__ = ["evaluation_progress", "run_batched"]

_BATCHES_IN_FLIGHT = 16
"""Prompts of a batch, as a multiple of the sequences that run at once: its last ones run with few neighbours."""


def evaluation_progress(*, show: bool) -> Progress:
    """A bar on stderr with elapsed and remaining time."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=Console(stderr=True), disable=not show)


def run_batched(
    llm: LLM,
    prompts: Sequence[Sequence[int]],
    params: SamplingParams | Sequence[SamplingParams],
    *,
    title: str,
    adapter: str | None = None,
    show_progress: bool = False,
) -> Iterator[tuple[int, RequestOutput]]:
    """Runs prompts of token ids, the longest first, and gives each one's index and output as its batch ends.

    Args:
      params: of all prompts, or of each.
      title: in front of the bar.
      adapter: name of a loaded adapter to run them with.

    Raises:
      RequestError: a prompt is bad or does not fit the context, or there is no such adapter.
    """
    # The longest first: the remaining time is over-estimated, never under, and what does not fit shows at once.
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    size = _BATCHES_IN_FLIGHT * llm.engine.engine.runner.max_sequences
    with evaluation_progress(show=show_progress) as progress:
        task = progress.add_task(title, total=len(prompts))
        for start in range(0, len(order), size):
            batch = order[start : start + size]
            requests = [TokenPrompt(prompt_token_ids=list(prompts[i])) for i in batch]
            chosen = params if isinstance(params, SamplingParams) else [params[i] for i in batch]
            outputs = llm.generate(requests, chosen, adapter=adapter, use_tqdm=False)
            progress.advance(task, len(batch))
            yield from zip(batch, outputs, strict=True)
