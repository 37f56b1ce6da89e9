"""LLM: the offline API, with the names people know from vLLM. Works in scripts and in notebooks."""

from __future__ import annotations

import os
import uuid
from collections.abc import AsyncGenerator, Generator, Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager
from pathlib import Path
from types import TracebackType
from typing import TypedDict, TypeVar, Unpack

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from ryzjax.errors import RequestError
from ryzjax.lora import Adapter
from ryzjax.serving.frontend.async_engine import AsyncEngine
from ryzjax.serving.frontend.launch import launch_engine
from ryzjax.serving.frontend.offline import CompletionJob, EmbeddingJob, Job, run_jobs, stream_deltas
from ryzjax.serving.frontend.request_builder import as_token_ids
from ryzjax.serving.messages.config import EngineConfig, EngineOptions
from ryzjax.serving.messages.request import EmbeddingOutput, Pooling, RequestOutput, StreamDelta
from ryzjax.serving.messages.sampling_params import SamplingParams
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

    `close`, a `with` block and `del` stop its thread. With the last reference its weights and its KV cache are freed.

    Ctrl-C in `generate`, `chat`, `embed` and `stream` aborts what they have open and raises KeyboardInterrupt; the
    model can be used again.

    Args:
      model: local directory or Hugging Face id; by default the demo model that comes with RyzJAX.
      options: fields of `EngineConfig` (dtype, layout, max_context_tokens, ...).

    Raises:
      ConfigError: an option is unknown, or its value is not one of those it takes.
      RyzJAXError: the model cannot be loaded or does not fit.

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
          RequestError: a prompt or its settings are bad; the message names the prompt. Nothing is generated then.
          KeyboardInterrupt: Ctrl-C; nothing is running then.
        """
        return self._complete("prompts", self._read(prompts), sampling_params, adapter, use_tqdm)

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
          RequestError: the model has no chat template, or it refuses the messages; and as for `generate`.
        """
        tokenizer = self.engine.tokenizer
        conversations = _conversations(messages)
        texts: list[str] = []
        for i, conversation in enumerate(conversations):
            with _naming("messages", i, len(conversations)):
                texts.append(tokenizer.render_prompt([dict(message) for message in conversation]))
        # The template writes BOS itself; adding it again would double it.
        prompts = [(None, tuple(ids)) for ids in tokenizer.encode_batch(texts, add_special_tokens=False)]
        return self._complete("messages", prompts, sampling_params, adapter, use_tqdm)

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
          RequestError: a prompt is empty or too long, or a setting is bad; the message names the prompt. Nothing is
            embedded then.
        """

        served = self.engine.adapter(adapter)
        jobs: list[EmbeddingJob] = []
        found = self._read(prompts)
        for i, (text, token_ids) in enumerate(found):
            with _naming("prompts", i, len(found)):
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
        """Deltas of one prompt's completions as they grow.

        The request begins with the first delta that is asked for. Leaving a `for` loop over it, or closing the
        iterator, aborts the request.

        Raises:
          RequestError: the prompt or its settings are bad; before an iterator is returned.
          KeyboardInterrupt: Ctrl-C while the iterator waits; the request is aborted.

        Example:
          >>> for delta in llm.stream("Once upon a time"):
          ...     print(delta.text, end="", flush=True)
        """
        [(_, token_ids)] = self._read([prompt])
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
        """`stream` on the caller's event loop. Closing the iterator aborts the request."""
        deltas = self.engine.stream(
            _prompt(prompt), sampling_params or self.get_default_sampling_params(), adapter=adapter
        )
        async with aclosing(deltas):
            async for delta in deltas:
                yield delta

    def _read(self, prompts: PromptLike | Sequence[PromptLike]) -> list[tuple[str | None, tuple[int, ...]]]:
        """(text, or None where token ids were given; token ids) of each prompt."""
        many = [prompts] if isinstance(prompts, (str, Mapping)) else list(prompts)
        given: list[str | list[int]] = []
        for i, prompt in enumerate(many):
            with _naming("prompts", i, len(many)):
                given.append(_prompt(prompt))
        texts = [prompt for prompt in given if isinstance(prompt, str)]
        try:
            encoded = iter(self.engine.tokenizer.encode_batch(texts))
        except RequestError:
            for i, prompt in enumerate(given):
                with _naming("prompts", i, len(many)):
                    if isinstance(prompt, str):
                        self.engine.encode(prompt)  # raises for the one that is to blame
            raise
        return [
            (prompt, tuple(next(encoded))) if isinstance(prompt, str) else (None, as_token_ids(prompt))
            for prompt in given
        ]

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
                f"{len(params)} sampling_params for {len(prompts)} prompts; give one, or one a prompt",
                param="sampling_params",
            )
        names = [adapter] * len(prompts) if adapter is None or isinstance(adapter, str) else list(adapter)
        if len(names) != len(prompts):
            raise RequestError(
                f"{len(names)} adapters for {len(prompts)} prompts; give one, or one a prompt", param="adapter"
            )
        jobs: list[CompletionJob] = []
        for i, ((text, token_ids), settings, name) in enumerate(zip(prompts, params, names, strict=True)):
            with _naming(what, i, len(prompts)):
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


def _prompt(prompt: PromptLike) -> str | list[int]:
    if isinstance(prompt, str):
        return prompt
    if isinstance(prompt, Mapping) and isinstance(prompt.get("prompt_token_ids"), (list, tuple)):
        return list(prompt["prompt_token_ids"])
    raise RequestError(f"prompt={prompt!r}; expected a string or {{'prompt_token_ids': [...]}}", param="prompt")


@contextmanager
def _naming(what: str, index: int, count: int) -> Iterator[None]:
    """Puts the place of a prompt among several in front of the message of its error."""
    try:
        yield
    except RequestError as error:
        if count > 1:
            error.args = (f"{what}[{index}]: {error}",)
        raise


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
