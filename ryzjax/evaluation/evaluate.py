"""Runs tasks on an engine, and compares two models over a text. `ryzjax eval` and certificates use both."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from ryzjax.errors import ConfigError
from ryzjax.evaluation.activation_cost import ActivationCost, activation_cost
from ryzjax.evaluation.divergence import (
    Divergence,
    ReferenceStates,
    check_vocabularies,
    divergence,
    reference_states,
)
from ryzjax.evaluation.perplexity import DEFAULT_CONTEXT_TOKENS
from ryzjax.evaluation.scoring import ContinuationScore, complete, score
from ryzjax.evaluation.statistics import Metric
from ryzjax.evaluation.tasks import TASKS, ContinuationTask, DataSource, GenerationTask, TaskOptions, TaskResult
from ryzjax.evaluation.text import EvaluationText
from ryzjax.loading.open_model import OpenModel
from ryzjax.serving.frontend.llm import LLM

__all__ = ["check_tasks", "evaluate", "evaluate_task", "text_activation_cost", "text_divergence"]

Item = TypeVar("Item")


def evaluate(
    llm: LLM,
    tasks: Sequence[str],
    data: DataSource,
    options: TaskOptions,
    *,
    adapter: str | None = None,
    show_progress: bool = False,
) -> dict[str, TaskResult]:
    """Runs tasks sequentially, and returns task name -> result in the order of `tasks`.

    Args:
      llm: The engine.
      tasks: The names of the tasks, which are keys of `TASKS`. Each runs once.
      data: The source of the tasks' data.
      options: The options of all tasks.
      adapter: The name of a loaded adapter to run the tasks with; None for the model alone.
      show_progress: Whether to show a progress bar for each task on stderr.

    Raises:
      ConfigError: A task does not exist, or the engine's context is too short for the options.
      DataError: Data is missing or malformed.
      RequestError: `chat` is set and the model has no chat template, or an item does not fit the context.
    """
    check_tasks(tasks)
    return {
        name: evaluate_task(llm, TASKS[name], data, options, adapter=adapter, show_progress=show_progress)
        for name in dict.fromkeys(tasks)
    }


def check_tasks(tasks: Sequence[str]) -> None:
    """Raises ConfigError if `tasks` is empty or has a name that is not in `TASKS`."""
    unknown = [name for name in tasks if name not in TASKS]
    if unknown or not tasks:
        found = f"task {unknown[0]!r} is not known" if unknown else "no task is named"
        raise ConfigError(f"{found}; expected some of {', '.join(TASKS)}")


def evaluate_task(
    llm: LLM,
    task: ContinuationTask[Item] | GenerationTask[Item],
    data: DataSource,
    options: TaskOptions,
    *,
    adapter: str | None = None,
    show_progress: bool = False,
) -> TaskResult:
    """Runs one task, which need not be in `TASKS`. Arguments and errors are those of `evaluate`."""
    loaded = task.load(data, options)
    groups: dict[str, Metric] = {}
    if isinstance(task, ContinuationTask):
        requests = [task.requests(item) for item in loaded.items]
        flat = score(
            llm,
            [request for several in requests for request in several],
            title=task.name,
            max_tokens=options.max_tokens,
            add_special_tokens=options.add_special_tokens,
            adapter=adapter,
            show_progress=show_progress,
        )
        scores = _regroup(flat, [len(several) for several in requests])
        metrics, groups = task.metrics(loaded.items, scores), task.groups(loaded.items, scores)
        num_cut = sum(one.is_cut for one in flat)
    else:
        prompts = [task.prompt(item, llm.engine.tokenizer, options) for item in loaded.items]
        completions = complete(
            llm,
            prompts,
            stop=task.stop,
            max_new_tokens=task.max_new_tokens,
            title=task.name,
            max_tokens=options.max_tokens,
            temperature=options.temperature,
            top_p=options.top_p,
            seed=options.generation_seed,
            adapter=adapter,
            show_progress=show_progress,
        )
        metrics = task.metrics(loaded.items, [completion.text for completion in completions])
        num_cut = sum(completion.is_cut for completion in completions)
    return TaskResult(
        task=task.name,
        metrics=metrics,
        n=len(loaded.items),
        num_fewshot=loaded.num_fewshot,
        num_cut=num_cut,
        options=options,
        data_sha256=loaded.data_sha256,
        groups=groups,
    )


def _regroup(flat: list[ContinuationScore], counts: list[int]) -> list[list[ContinuationScore]]:
    left = iter(flat)
    return [[next(left) for _ in range(count)] for count in counts]


def text_divergence(
    reference: OpenModel,
    model: OpenModel,
    text: EvaluationText,
    *,
    context_tokens: int | None = None,
    stride_tokens: int | None = None,
    show_progress: bool = False,
) -> Divergence:
    """Compares a model with a reference over a text.

    The reference is loaded, run and freed before the model is loaded. The arguments are checked before either is
    loaded. To compare models that are already in memory, call `reference_states` and `divergence`.

    Args:
      reference: The reference model.
      model: The model.
      text: The text.
      context_tokens: The length of the longest window, in tokens. The default is 2048, or the shorter of the two
        models' contexts if that is less.
      stride_tokens: The distance between the starts of windows, in tokens. The default is half of `context_tokens`.
      show_progress: Whether to show progress bars on stderr.

    Raises:
      ConfigError: The models tokenize the text differently, or the windows do not fit them.
      CheckpointError: Weights cannot be read.
      DataError: The text has fewer than 2 tokens.
    """
    states = _states_over_text(reference, model, text, context_tokens, stride_tokens, show_progress)
    return divergence(states, model.model, model.load(show_progress=show_progress), show_progress=show_progress)


def text_activation_cost(
    reference: OpenModel,
    model: OpenModel,
    text: EvaluationText,
    *,
    context_tokens: int | None = None,
    stride_tokens: int | None = None,
    show_progress: bool = False,
) -> ActivationCost:
    """Compares a model with a reference over a text, with int8 and with bfloat16 activations.

    The reference runs once, and the weights are loaded once. Arguments and errors are those of `text_divergence`.

    Args:
      model: The model, opened with any activations. If it has int8 activations, the same layers have them here. If it
        has none, all layers that support them do.

    Raises:
      ConfigError: Also if no layer supports int8 activations.
    """
    integer = model if model.plan.num_int8_products else model.with_activations("int8")
    plain = model.with_activations("bf16")
    states = _states_over_text(reference, model, text, context_tokens, stride_tokens, show_progress)
    leaves = model.load(show_progress=show_progress)
    return activation_cost(states, plain.model, integer.model, leaves, show_progress=show_progress)


def _states_over_text(
    reference: OpenModel,
    model: OpenModel,
    text: EvaluationText,
    context_tokens: int | None,
    stride_tokens: int | None,
    show_progress: bool,
) -> ReferenceStates:
    """Checks that the models can be compared, then runs the reference over the text and frees its weights."""
    tokens = reference.tokenizer.encode(text.text)
    if model.tokenizer.encode(text.text) != tokens:
        raise ConfigError(
            f"{model.source.name} and {reference.source.name} tokenize {text.name} differently; use a reference with "
            "the same tokenizer"
        )
    check_vocabularies(reference.model, model.model)
    longest = min(reference.model.config.max_position, model.model.config.max_position)
    context = min(DEFAULT_CONTEXT_TOKENS, longest) if context_tokens is None else context_tokens
    if context > longest:
        raise ConfigError(
            f"context_tokens={context} is more than the {longest} tokens both models have room for; lower it"
        )
    # Nothing else refers to the leaves, so they are freed when the call returns.
    return reference_states(
        reference.model,
        reference.load(show_progress=show_progress),
        tokens,
        context_tokens=context,
        stride_tokens=max(1, context // 2) if stride_tokens is None else stride_tokens,
        show_progress=show_progress,
    )
