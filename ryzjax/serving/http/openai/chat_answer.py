"""ChatFormat: the answers of /v1/chat/completions, whole or streamed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ryzjax.serving.http.answer import Choice, Usage
from ryzjax.serving.http.openai.envelope import Envelope, dumps, finish_fields, logprob_blocks
from ryzjax.serving.http.openai.logprobs import chat_logprobs
from ryzjax.serving.http.token_texts import TokenTexts
from ryzjax.serving.messages.request import StreamDelta

__all__ = ["ChatFormat"]


class ChatFormat:
    """Writes the answers of /v1/chat/completions."""

    def __init__(self, *, answer_id: str, model: str, texts: TokenTexts, include_usage: bool):
        kind = "chat.completion"
        self._envelope = Envelope(
            answer_id=answer_id, model=model, kind=kind, chunk_kind=f"{kind}.chunk", include_usage=include_usage
        )
        self._texts = texts

    def pieces(self, choices: Sequence[Choice], usage: Usage) -> Iterator[bytes]:
        """Yields a whole answer in pieces."""
        return self._envelope.pieces(map(self._choice, choices), usage)

    def _choice(self, choice: Choice) -> Iterator[str]:
        completion = choice.completion
        message = dumps({"role": "assistant", "content": completion.text})
        yield f'{{"index":{completion.index},"message":{message},"logprobs":'
        if completion.logprobs is None:
            yield "null"
        else:
            yield '{"content":['
            for number, block in enumerate(logprob_blocks((), completion.logprobs)):
                content = dumps(chat_logprobs(block, self._texts)["content"])[1:-1]
                yield f",{content}" if number else content
            yield "]}"
        reasons = f'"finish_reason":{dumps(completion.finish_reason)},"stop_reason":{dumps(completion.stop_reason)}'
        yield f",{reasons}}}"

    @property
    def opening_size(self) -> int:
        """The estimated size of `opening` for each choice, in characters."""
        return 0

    def opening(self, choices: int) -> Iterator[bytes]:
        """Yields a chunk with the role for each choice."""
        delta = '"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null'
        for choice in range(choices):
            yield self._envelope.event(f'{{"index":{choice},{delta}}}')

    def events(self, choice: int, delta: StreamDelta) -> Iterator[bytes]:
        """Yields the events of one delta."""
        if delta.text or delta.finish_reason is not None or delta.logprobs:
            content = f'{{"content":{dumps(delta.text)}}}' if delta.text else "{}"
            logprobs = "null" if not delta.logprobs else dumps(chat_logprobs(delta.logprobs, self._texts))
            end = finish_fields(delta)
            yield self._envelope.event(f'{{"index":{choice},"delta":{content},"logprobs":{logprobs},{end}}}')

    def usage_chunk(self, usage: Usage) -> bytes:
        """Returns the event that holds the token counts and no choice."""
        return self._envelope.usage_event(usage)
