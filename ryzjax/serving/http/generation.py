"""Generation: runs all prompts of one HTTP request on the engine, and merges their deltas."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager

from ryzjax.errors import ContextLengthError, RequestError
from ryzjax.serving.frontend.protocol import EngineFrontend
from ryzjax.serving.http.answer import Choice
from ryzjax.serving.http.errors import GenerationFailedError
from ryzjax.serving.messages.request import StreamDelta
from ryzjax.serving.messages.sampling_params import SamplingParams

__all__ = ["Generation", "closing", "first_error"]

# Number of deltas of one request that may wait for a slow client. A full queue makes the readers of its prompts wait.
_MERGE_QUEUE_DELTAS = 256


@asynccontextmanager
async def closing(stream: AsyncIterator[StreamDelta]) -> AsyncIterator[AsyncIterator[StreamDelta]]:
    """Closes `stream` at the end, so that the engine aborts unfinished requests now, not at a garbage collection."""
    try:
        yield stream
    finally:
        if isinstance(stream, AsyncGenerator):
            await stream.aclose()


class Generation:
    """The prompts of one HTTP request and their sampling settings. Choices are numbered prompt by prompt, `n` for each.

    Args:
      engine: The engine that runs the prompts.
      prompts: A list of token ids for each prompt.
      params: The sampling settings of all prompts.
      kind: The prefix of the answer's id, such as "cmpl".
      prompt_field: The request field that errors about a prompt name.
      adapter: The name of the adapter to run with; None runs the model alone.

    Raises:
      RequestError: A prompt is empty.
      ContextLengthError: A prompt leaves no room for a token. All prompts are checked before any of them starts, so
        that an invalid one gives a 400 instead of an error in the middle of a stream.
    """

    def __init__(
        self,
        engine: EngineFrontend,
        prompts: Sequence[list[int]],
        params: SamplingParams,
        *,
        kind: str,
        prompt_field: str,
        adapter: str | None = None,
    ):
        for number, prompt in enumerate(prompts):
            if not prompt:
                raise RequestError(f"{prompt_field} {number} has no tokens; give at least one", param=prompt_field)
            new_tokens = 0 if params.max_tokens == 0 else 1
            if len(prompt) + new_tokens > engine.max_context_tokens:
                what = f"{prompt_field} {number}" if len(prompts) > 1 else "the prompt"
                raise ContextLengthError.of_prompt(
                    len(prompt), engine.max_context_tokens, new_tokens=new_tokens, what=what, param=prompt_field
                )
        self._engine = engine
        self._prompts = prompts
        self._adapter = adapter
        self.params = params
        # The client's X-Request-Id is not used, because the engine needs ids that are unique among open requests.
        self.id = f"{kind}-{uuid.uuid4().hex}"

    @property
    def prompt_tokens(self) -> int:
        """The number of tokens of all prompts."""
        return sum(map(len, self._prompts))

    @property
    def choices(self) -> int:
        """The number of completions of all prompts."""
        return len(self._prompts) * self.params.n

    def num_logprobs(self, *, is_streamed: bool) -> int:
        """Returns the largest number of log-probabilities that the answer holds in memory at once.

        A stream does not keep those of its completions.
        """
        count = 0
        if self.params.prompt_logprobs is not None:
            count += self.prompt_tokens * (1 + self.params.prompt_logprobs)
        if self.params.logprobs is not None and not is_streamed:
            rooms = (self._engine.max_context_tokens - len(prompt) for prompt in self._prompts)
            most = self.params.max_tokens
            new_tokens = sum(room if most is None else min(room, most) for room in rooms)
            count += new_tokens * self.params.n * (1 + self.params.logprobs)
        return count

    def _engine_id(self, number: int) -> str:
        return self.id if len(self._prompts) == 1 else f"{self.id}-{number}"

    async def collect(self) -> list[Choice]:
        """Runs all prompts and returns the completions in order, with indices that count over all prompts."""
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._collect_one(number)) for number in range(len(self._prompts))]
        except* Exception as errors:
            # The group has cancelled the other prompts. The client gets the first error.
            raise first_error(errors) from None
        return [choice for task in tasks for choice in task.result()]

    async def _collect_one(self, number: int) -> list[Choice]:
        answer = await self._engine.generate(
            self._prompts[number], self.params, request_id=self._engine_id(number), adapter=self._adapter
        )
        for completion in answer.outputs:
            _check_finish(completion.finish_reason)
            completion.index += number * self.params.n
        return [Choice(completion, answer.prompt_logprobs) for completion in answer.outputs]

    async def stream(self) -> AsyncGenerator[tuple[int, StreamDelta], None]:
        """Yields (choice, delta) pairs as they come. Closing the iterator aborts the unfinished completions."""
        if len(self._prompts) == 1:
            async with closing(self._start(0)) as deltas:
                async for delta in deltas:
                    _check_finish(delta.finish_reason)
                    yield delta.index, delta
            return
        async with aclosing(self._merged()) as merged:
            async for choice, delta in merged:
                yield choice, delta

    def _start(self, number: int) -> AsyncIterator[StreamDelta]:
        return self._engine.stream(
            self._prompts[number], self.params, request_id=self._engine_id(number), adapter=self._adapter
        )

    async def _merged(self) -> AsyncGenerator[tuple[int, StreamDelta], None]:
        queue: asyncio.Queue[tuple[int, StreamDelta] | Exception | None] = asyncio.Queue(_MERGE_QUEUE_DELTAS)

        async def read(number: int) -> None:
            try:
                async with closing(self._start(number)) as deltas:
                    async for delta in deltas:
                        _check_finish(delta.finish_reason)
                        await queue.put((number * self.params.n + delta.index, delta))
            except Exception as error:  # passed through the queue, and raised by the reader of the stream
                await queue.put(error)
            else:
                await queue.put(None)

        # A TaskGroup must not be entered in a generator, because another task may consume the generator.
        readers = [asyncio.create_task(read(number)) for number in range(len(self._prompts))]
        try:
            unfinished = len(readers)
            while unfinished:
                item = await queue.get()
                if isinstance(item, Exception):
                    raise item
                if item is None:
                    unfinished -= 1
                else:
                    yield item
        finally:
            for reader in readers:
                reader.cancel()
            await asyncio.gather(*readers, return_exceptions=True)


def first_error(errors: BaseExceptionGroup[Exception]) -> Exception:
    """Returns the first error of a task group, however deeply it is nested. It is the one that the client gets."""
    error: BaseException = errors
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if not isinstance(error, Exception):
        raise error
    return error


def _check_finish(finish_reason: str | None) -> None:
    if finish_reason == "error":
        raise GenerationFailedError("the engine could not finish the request; try again")
    if finish_reason == "abort":
        raise GenerationFailedError("the server aborted the request before it was finished; try again")
