"""LLM: the offline API, with the method names of vLLM. It works in scripts and in notebooks."""

from __future__ import annotations

import os
import uuid
from collections.abc import AsyncGenerator, Generator, Sequence
from contextlib import aclosing
from pathlib import Path
from types import TracebackType
from typing import TypeVar, Unpack

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from ryzjax.errors import RequestError
from ryzjax.lora import Adapter
from ryzjax.serving.frontend.async_engine import AsyncEngine
from ryzjax.serving.frontend.launch import launch_engine
from ryzjax.serving.frontend.offline import CompletionJob, EmbeddingJob, Job, run_jobs, stream_deltas
from ryzjax.serving.frontend.prompt_input import (
    Message,
    PromptLike,
    TokenPrompt,
    as_conversations,
    naming_prompt,
    text_or_token_ids,
    tokenize_prompts,
)
from ryzjax.serving.messages.config import EngineConfig, EngineOptions
from ryzjax.serving.messages.request import EmbeddingOutput, Pooling, RequestOutput, StreamDelta
from ryzjax.serving.messages.sampling_params import SamplingParams
from ryzjax.shipped import DEMO_MODEL

__all__ = ["LLM", "TokenPrompt"]


Output = TypeVar("Output")
AdapterNames = str | None | Sequence[str | None]


class LLM:
    """A model in this process.

    `close`, the end of a `with` block and `del` stop the engine's thread. The weights and the KV cache are freed when
    the last reference to the object goes.

    Ctrl-C in `generate`, `chat`, `embed` and `stream` aborts their requests and raises KeyboardInterrupt. The model can
    be used again afterwards.

    Args:
      model: A local directory or a Hugging Face id; by default the demo model that comes with RyzJAX.
      options: Fields of `EngineConfig`, such as dtype, layout and max_context_tokens.

    Raises:
      ConfigError: An option is unknown or has an invalid value.
      RyzJAXError: The model cannot be loaded, or does not fit the memory.

    Example:
      >>> llm = LLM("path/to/model", dtype="float32")
      >>> llm.generate(["Once upon a time"], SamplingParams(temperature=0))[0].outputs[0].text
    """

    def __init__(self, model: str | os.PathLike[str] = DEMO_MODEL, **options: Unpack[EngineOptions]):
        self.engine: AsyncEngine = launch_engine(EngineConfig.from_options({"model": model, **options}))

    def __enter__(self) -> LLM:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stops the engine's thread. Open requests end with an error."""
        self.engine.stop()

    def get_default_sampling_params(self) -> SamplingParams:
        """Returns the default settings of `generate`, `chat` and `stream`, from the model's generation_config.json."""
        return SamplingParams(**self.engine.default_sampling)

    def generate(
        self,
        prompts: PromptLike | Sequence[PromptLike],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        adapter: AdapterNames = None,
        use_tqdm: bool = True,
    ) -> list[RequestOutput]:
        """Completes prompts in a batch and returns the outputs in the order of the prompts.

        Args:
          prompts: A string, {"prompt_token_ids": [...]}, or a list of these.
          sampling_params: The settings of all prompts, or one for each; by default `get_default_sampling_params()`.
          adapter: The name of a loaded adapter for all prompts, or one for each; None runs the model alone.
          use_tqdm: Whether to show a progress bar on stderr.

        Raises:
          RequestError: A prompt or its settings are invalid. The message names the prompt, and nothing is generated.
          KeyboardInterrupt: The user pressed Ctrl-C. All requests of the call have been aborted.
        """
        return self._complete(
            "prompts", tokenize_prompts(self.engine.tokenizer, prompts), sampling_params, adapter, use_tqdm
        )

    def chat(
        self,
        messages: Sequence[Message] | Sequence[Sequence[Message]],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        adapter: AdapterNames = None,
        use_tqdm: bool = True,
    ) -> list[RequestOutput]:
        """Answers one conversation, or several, through the model's chat template.

        `sampling_params`, `adapter` and `use_tqdm` have the same meaning as for `generate`.

        Raises:
          RequestError: The model has no chat template, the template refuses the messages, or `generate` would raise.
        """
        tokenizer = self.engine.tokenizer
        conversations = as_conversations(messages)
        texts: list[str] = []
        for i, conversation in enumerate(conversations):
            with naming_prompt("messages", i, len(conversations)):
                texts.append(tokenizer.render_prompt([dict(message) for message in conversation]))
        # The template writes BOS itself, so the tokenizer must not add it again.
        prompts = [(None, tuple(ids)) for ids in tokenizer.encode_batch(texts, add_special_tokens=False)]
        return self._complete("messages", prompts, sampling_params, adapter, use_tqdm)

    def load_adapter(self, name: str, source: Adapter | str | Path, *, replace: bool = False) -> None:
        """Loads an adapter from a PEFT directory or from memory.

        `AsyncEngine.load_adapter` describes the arguments and the errors.
        """
        self.engine.load_adapter(name, source, replace=replace)

    def unload_adapter(self, name: str) -> None:
        """Removes an adapter. Requests that run with it still finish with it."""
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
        """Returns the vectors of prompts, in order, from the hidden states after the final norm.

        Args:
          prompts: A string, {"prompt_token_ids": [...]}, or a list of these.
          pooling: "last" (the last token) or "mean" (over all tokens); by default the engine's setting.
          dimensions: The number of leading elements to keep, for models that were trained for it; by default all.
          normalize: Whether to scale the kept elements to length 1.
          adapter: The name of a loaded adapter; None runs the model alone.
          use_tqdm: Whether to show a progress bar on stderr.

        Raises:
          RequestError: A prompt is empty or too long, or a setting is invalid. The message names the prompt, and
            nothing is embedded.
        """
        served = self.engine.adapter(adapter)
        jobs: list[EmbeddingJob] = []
        found = tokenize_prompts(self.engine.tokenizer, prompts)
        for i, (text, token_ids) in enumerate(found):
            with naming_prompt("prompts", i, len(found)):
                jobs.append(
                    EmbeddingJob(
                        self.engine,
                        text,
                        token_ids,
                        pooling=pooling,
                        dimensions=dimensions,
                        normalize=normalize,
                        adapter=served,
                    )
                )
        return self._run(jobs, "Embedding", use_tqdm)

    def stream(
        self, prompt: PromptLike, sampling_params: SamplingParams | None = None, *, adapter: str | None = None
    ) -> Generator[StreamDelta, None, None]:
        """Returns an iterator over the deltas of one prompt's completions.

        The request starts when the first delta is asked for. Leaving a `for` loop over the iterator, or closing it,
        aborts the request.

        Raises:
          RequestError: The prompt or its settings are invalid. Raised before an iterator is returned.
          KeyboardInterrupt: The user pressed Ctrl-C while the iterator waited. The request has been aborted.

        Example:
          >>> for delta in llm.stream("Once upon a time"):
          ...     print(delta.text, end="", flush=True)
        """
        [(_, token_ids)] = tokenize_prompts(self.engine.tokenizer, [prompt])
        requests = self.engine.builder.completions(
            token_ids,
            sampling_params or self.get_default_sampling_params(),
            uuid.uuid4().hex,
            self.engine.adapter(adapter),
        )
        return stream_deltas(self.engine, requests)

    async def astream(
        self, prompt: PromptLike, sampling_params: SamplingParams | None = None, *, adapter: str | None = None
    ) -> AsyncGenerator[StreamDelta, None]:
        """Yields the deltas of one prompt's completions on the caller's event loop.

        Closing the iterator aborts the request.
        """
        deltas = self.engine.stream(
            text_or_token_ids(prompt), sampling_params or self.get_default_sampling_params(), adapter=adapter
        )
        async with aclosing(deltas):
            async for delta in deltas:
                yield delta

    def _complete(
        self,
        what: str,
        prompts: Sequence[tuple[str | None, tuple[int, ...]]],
        params: SamplingParams | Sequence[SamplingParams] | None,
        adapter: AdapterNames,
        show_progress: bool,
    ) -> list[RequestOutput]:
        if params is None or isinstance(params, SamplingParams):
            params = [params or self.get_default_sampling_params()] * len(prompts)
        if len(params) != len(prompts):
            raise RequestError(
                f"{len(params)} sampling_params for {len(prompts)} prompts; give one, or one for each prompt",
                param="sampling_params",
            )
        names = [adapter] * len(prompts) if adapter is None or isinstance(adapter, str) else list(adapter)
        if len(names) != len(prompts):
            raise RequestError(
                f"{len(names)} adapters for {len(prompts)} prompts; give one, or one for each prompt", param="adapter"
            )
        jobs: list[CompletionJob] = []
        for i, ((text, token_ids), settings, name) in enumerate(zip(prompts, params, names, strict=True)):
            with naming_prompt(what, i, len(prompts)):
                if not isinstance(settings, SamplingParams):
                    raise RequestError(
                        f"its sampling_params are a {type(settings).__name__}; expected SamplingParams",
                        param="sampling_params",
                    )
                jobs.append(CompletionJob(self.engine, text, token_ids, settings, self.engine.adapter(name)))
        return self._run(jobs, "Generating", show_progress)

    def _run(self, jobs: Sequence[Job[Output]], title: str, show_progress: bool) -> list[Output]:
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

            def on_done(count: int) -> None:
                nonlocal tokens
                tokens += count
                progress.update(task, advance=1, tokens=tokens)

            return run_jobs(self.engine, jobs, on_done)
