"""LLM: the offline API, with the names people know from vLLM. Works in scripts and in notebooks."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TypedDict, TypeVar, Unpack

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from ryzjax.errors import RequestError
from ryzjax.lora import Adapter
from ryzjax.serving.config import EngineConfig, EngineOptions
from ryzjax.serving.frontend import AsyncEngine
from ryzjax.serving.launch import launch_engine
from ryzjax.serving.request import EmbeddingOutput, Pooling, RequestOutput, StreamDelta
from ryzjax.serving.sampling_params import SamplingParams
from ryzjax.shipped import DEMO_MODEL

__all__ = ["LLM", "TokenPrompt"]


class TokenPrompt(TypedDict):
    """A prompt given as token ids."""

    prompt_token_ids: list[int]


Output = TypeVar("Output")
PromptLike = str | TokenPrompt
AdapterNames = str | None | Sequence[str | None]
Message = Mapping[str, object]


class LLM:
    """A model in this process.

    Args:
      model: local directory or Hugging Face id; by default the demo model that comes with RyzJAX.
      options: fields of `EngineConfig` (dtype, layout, max_context_tokens, ...).

    Raises:
      RyzJAXError: the model cannot be loaded or does not fit.

    Example:
      >>> llm = LLM("path/to/model", dtype="float32")
      >>> llm.generate(["Once upon a time"], SamplingParams(temperature=0))[0].outputs[0].text
    """

    def __init__(self, model: str = DEMO_MODEL, **options: Unpack[EngineOptions]):
        self.engine: AsyncEngine = launch_engine(EngineConfig(model=model, **options))

    def __enter__(self) -> LLM:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stops the engine's thread; what is open ends with an error."""
        self.engine.stop()

    def get_default_sampling_params(self) -> SamplingParams:
        """What `generate`, `chat` and `stream` use where they are given none: the model's generation_config.json."""
        return SamplingParams(**self.engine.default_sampling)

    def generate(
        self,
        prompts: PromptLike | Sequence[PromptLike],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        adapter: AdapterNames = None,
        use_tqdm: bool = True,
    ) -> list[RequestOutput]:
        """Completes prompts, batched; outputs are in the order of the prompts.

        Args:
          prompts: a string, {"prompt_token_ids": [...]}, or a list of them.
          sampling_params: for all, or one a prompt; by default `get_default_sampling_params`.
          adapter: name of a loaded adapter, for all or one a prompt; None runs the model alone.
          use_tqdm: a progress bar on stderr.

        Raises:
          RequestError: a prompt or its settings are bad; nothing is generated then.
        """
        many = [prompts] if isinstance(prompts, (str, dict)) else list(prompts)
        return self._run([_prompt(prompt) for prompt in many], sampling_params, adapter, use_tqdm)

    def chat(
        self,
        messages: Sequence[Message] | Sequence[Sequence[Message]],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        adapter: AdapterNames = None,
        use_tqdm: bool = True,
    ) -> list[RequestOutput]:
        """Answers one conversation, or several, through the model's chat template; `adapter` as in `generate`.

        Raises:
          RequestError: the model has no chat template, or it refuses the messages.
        """
        template = self.engine.tokenizer.apply_chat_template
        prompts = [template([dict(message) for message in conversation]) for conversation in _conversations(messages)]
        return self._run(prompts, sampling_params, adapter, use_tqdm)

    def load_adapter(self, name: str, source: Adapter | str | Path, *, replace: bool = False) -> None:
        """Takes in an adapter, from a folder of PEFT's or in memory; see `AsyncEngine.load_adapter`."""
        self.engine.load_adapter(name, source, replace=replace)

    def unload_adapter(self, name: str) -> None:
        """Forgets an adapter; what runs with it goes on to its end."""
        self.engine.unload_adapter(name)

    def embed(
        self,
        prompts: PromptLike | Sequence[PromptLike],
        *,
        pooling: Pooling | None = None,
        dimensions: int | None = None,
        normalize: bool = True,
        adapter: str | None = None,
        use_tqdm: bool = True,
    ) -> list[EmbeddingOutput]:
        """Vectors of prompts, batched, from the hidden states after the final norm; in the order of the prompts.

        Args:
          prompts: a string, {"prompt_token_ids": [...]}, or a list of them.
          pooling: "last" (token) or "mean"; by default the engine's.
          dimensions: leading numbers to keep, for models trained so; all by default.
          normalize: scale what is kept to length 1.
          adapter: name of a loaded adapter.
          use_tqdm: a progress bar on stderr.

        Raises:
          RequestError: a prompt is empty or too long, or a setting is bad.
        """

        async def one(prompt: str | list[int]) -> tuple[EmbeddingOutput, int]:
            output = await self.engine.embed(
                prompt, pooling=pooling, dimensions=dimensions, normalize=normalize, adapter=adapter
            )
            return output, len(output.prompt_token_ids)

        many = [prompts] if isinstance(prompts, (str, dict)) else list(prompts)
        return self._run_all([partial(one, _prompt(prompt)) for prompt in many], "Embedding", use_tqdm)

    async def stream(
        self, prompt: PromptLike, sampling_params: SamplingParams | None = None, *, adapter: str | None = None
    ) -> AsyncGenerator[StreamDelta, None]:
        """Deltas of one prompt's completions as they grow; closing the iterator aborts the request."""
        async for delta in self.engine.stream(
            _prompt(prompt), sampling_params or self.get_default_sampling_params(), adapter=adapter
        ):
            yield delta

    def _run(
        self,
        prompts: Sequence[str | list[int]],
        params: SamplingParams | Sequence[SamplingParams] | None,
        adapter: AdapterNames,
        show_progress: bool,
    ) -> list[RequestOutput]:
        if params is None or isinstance(params, SamplingParams):
            params = [params or self.get_default_sampling_params()] * len(prompts)
        if len(params) != len(prompts):
            raise RequestError(
                f"{len(params)} sampling_params for {len(prompts)} prompts; give one, or one a prompt",
                param="sampling_params",
            )

        names = [adapter] * len(prompts) if adapter is None or isinstance(adapter, str) else list(adapter)
        if len(names) != len(prompts):
            raise RequestError(
                f"{len(names)} adapters for {len(prompts)} prompts; give one, or one a prompt", param="adapter"
            )

        async def one(prompt: str | list[int], params: SamplingParams, name: str | None) -> tuple[RequestOutput, int]:
            output = await self.engine.generate(prompt, params, adapter=name)
            return output, sum(len(completion.token_ids) for completion in output.outputs)

        jobs = [partial(one, *job) for job in zip(prompts, params, names, strict=True)]
        return self._run_all(jobs, "Generating", show_progress)

    def _run_all(
        self, jobs: Sequence[Callable[[], Awaitable[tuple[Output, int]]]], title: str, show_progress: bool
    ) -> list[Output]:
        """Runs jobs that return (output, its tokens), as many at once as the engine has use for."""
        columns = (
            TextColumn(title),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[tokens]} tokens"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=Console(stderr=True), disable=not show_progress) as progress:
            task = progress.add_task(title, total=len(jobs), tokens=0)
            tokens = 0

            async def one(job: Callable[[], Awaitable[tuple[Output, int]]], slots: asyncio.Semaphore) -> Output:
                nonlocal tokens
                async with slots:
                    output, count = await job()
                tokens += count
                progress.update(task, advance=1, tokens=tokens)
                return output

            async def every() -> list[Output]:
                # Twice what runs at once keeps the engine busy without filling its queue.
                slots = asyncio.Semaphore(2 * self.engine.engine.runner.max_sequences)
                async with asyncio.TaskGroup() as group:
                    tasks = [group.create_task(one(job, slots)) for job in jobs]
                return [task.result() for task in tasks]

            return _run_anywhere(every)


def _prompt(prompt: PromptLike) -> str | list[int]:
    if isinstance(prompt, str):
        return prompt
    if isinstance(prompt, Mapping) and isinstance(prompt.get("prompt_token_ids"), (list, tuple)):
        return list(prompt["prompt_token_ids"])
    raise RequestError(f"prompt={prompt!r}; expected a string or {{'prompt_token_ids': [...]}}", param="prompt")


def _conversations(messages: Sequence[Message] | Sequence[Sequence[Message]]) -> list[list[Message]]:
    """One conversation, or several, as a list of them."""
    single: list[Message] = []
    several: list[list[Message]] = []
    for item in messages:
        if isinstance(item, Mapping):
            single.append(item)
        else:
            several.append(list(item))
    if bool(single) == bool(several):
        raise RequestError("messages is empty or mixed; expected messages, or lists of messages", param="messages")
    return several or [single]


def _run_anywhere(make: Callable[[], Coroutine[None, None, list[Output]]]) -> list[Output]:
    """Runs a coroutine to its end on a thread of its own: a notebook's own thread runs an event loop already."""
    outcome: list[list[Output]] = []
    failure: list[BaseException] = []

    def run() -> None:
        try:
            outcome.append(asyncio.run(make()))
        except BaseExceptionGroup as group:
            failure.append(group.exceptions[0])
        except BaseException as error:  # handed to the caller's thread, whatever it is
            failure.append(error)

    thread = threading.Thread(target=run, name="generate")
    thread.start()
    thread.join()
    if failure:
        raise failure[0]
    return outcome[0]
