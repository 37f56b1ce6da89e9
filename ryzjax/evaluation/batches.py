"""Runs many prompts through an engine in batches, which bounds the memory of their scores, with a progress bar."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from ryzjax.serving.frontend.llm import LLM, TokenPrompt
from ryzjax.serving.messages.request import RequestOutput
from ryzjax.serving.messages.sampling_params import SamplingParams

__all__ = ["evaluation_progress", "run_batched"]

_BATCHES_IN_FLIGHT = 16
"""The size of a batch, as a multiple of the sequences that run at once. The last ones of a batch have few neighbours,
so small batches are slow."""


def evaluation_progress(*, show: bool) -> Progress:
    """Returns a progress bar on stderr with elapsed and remaining time."""
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
    """Runs prompts, the longest first, and yields the index and the output of each when its batch has finished.

    Args:
      llm: The engine.
      prompts: The token ids of each prompt.
      params: The sampling parameters of all prompts, or of each prompt.
      title: The label of the progress bar.
      adapter: The name of a loaded adapter to run the prompts with; None for the model alone.
      show_progress: Whether to show the progress bar.

    Raises:
      RequestError: A prompt is invalid or does not fit the context, or the adapter does not exist.
    """
    # With the longest first, the remaining time is never underestimated, and a prompt that does not fit fails at once.
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    size = _BATCHES_IN_FLIGHT * llm.engine.runner.max_sequences
    with evaluation_progress(show=show_progress) as progress:
        task = progress.add_task(title, total=len(prompts))
        for start in range(0, len(order), size):
            batch = order[start : start + size]
            requests = [TokenPrompt(prompt_token_ids=list(prompts[i])) for i in batch]
            chosen = params if isinstance(params, SamplingParams) else [params[i] for i in batch]
            outputs = llm.generate(requests, chosen, adapter=adapter, use_tqdm=False)
            progress.advance(task, len(batch))
            yield from zip(batch, outputs, strict=True)
