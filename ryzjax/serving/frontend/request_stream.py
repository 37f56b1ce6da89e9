"""RequestStream: turns the engine's events for the `n` sequences of one prompt into deltas for the caller."""

from __future__ import annotations

from collections.abc import Sequence

from ryzjax.data.stop_strings import StopStrings
from ryzjax.data.tokenizer import Tokenizer
from ryzjax.errors import EngineStoppedError
from ryzjax.serving.frontend.completion import CompletionStream
from ryzjax.serving.messages.request import EngineRequest, PromptLogprobs, PromptScores, StreamDelta, TokenEvent

__all__ = ["RequestStream"]


class RequestStream:
    """Turns the events of one request's sequences into deltas.

    Args:
      requests: The requests of one prompt, made by `RequestBuilder.completions`.
      tokenizer: The tokenizer of the model.
    """

    def __init__(self, requests: Sequence[EngineRequest], tokenizer: Tokenizer):
        first = requests[0]
        stops = StopStrings(tuple(first.params.stop), first.params.include_stop_str_in_output)
        self._streams = {
            request.request_id: CompletionStream(i, tokenizer, request.params, stops, request.prompt_token_ids)
            for i, request in enumerate(requests)
        }
        self._prompt_len = len(first.prompt_token_ids)
        self._scored: list[PromptScores] | None = None if first.prompt_logprobs is None else []

    @property
    def open_ids(self) -> tuple[str, ...]:
        """The ids of the sequences whose completions are not finished."""
        return tuple(self._streams)

    @property
    def is_finished(self) -> bool:
        """Whether every completion is finished."""
        return not self._streams

    def is_open(self, request_id: str) -> bool:
        """Returns whether the completion of a sequence is not finished."""
        return request_id in self._streams

    def push(self, event: TokenEvent) -> list[StreamDelta]:
        """Returns the deltas of one event. A stop string may end a completion before its sequence's last event.

        With `prompt_logprobs`, the first delta holds the log-probabilities of the prompt and nothing else.

        Raises:
          Exception: The event reports an error.
        """
        stream = self._streams.get(event.request_id)
        if stream is None:
            return []  # ended by a stop string while this event was on its way
        if event.finish_reason == "error":
            raise event.error or EngineStoppedError("the engine failed")
        deltas: list[StreamDelta] = []
        if self._scored is not None:
            if event.prompt_scores is not None:
                self._scored.append(event.prompt_scores)
                return []
            # The engine runs sequences in order of arrival, so the prompt of the first one is scored before all else.
            prompt_logprobs = PromptLogprobs(self._scored)
            assert len(prompt_logprobs) == self._prompt_len, "an event of a sequence ahead of the prompt's scores"
            deltas.append(StreamDelta(index=0, text="", token_ids=(), prompt_logprobs=prompt_logprobs))
            self._scored = None
        deltas.append(stream.push(event))
        if stream.is_finished:
            del self._streams[event.request_id]
        return deltas
