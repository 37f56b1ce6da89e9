"""How answers look on the wire: whole JSON bodies, and stream chunks built from templates.

A chunk a token is the hottest thing this server sends, so a chunk is a prefix made once a request, the new text and
a suffix; no model object is built for it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import NamedTuple, Protocol, TypedDict

from ryzjax.serving.http.echo import Echo
from ryzjax.serving.http.logprobs import TokenTexts, chat_logprobs, completion_logprobs
from ryzjax.serving.request import CompletionOutput, StreamDelta, TokenLogprobs

__all__ = ["AnswerFormat", "ChatFormat", "Choice", "CompletionFormat", "Usage", "usage_of"]


class Choice(NamedTuple):
    """A finished completion, and its prompt's log-probabilities where they were asked for."""

    completion: CompletionOutput
    prompt_logprobs: Sequence[TokenLogprobs | None] | None = None


class Usage(TypedDict):
    """Tokens a request cost."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


def usage_of(prompt_tokens: int, completion_tokens: int) -> Usage:
    """The usage object of so many tokens."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }


class AnswerFormat(Protocol):
    """One route's way to write an answer; one object a request."""

    def body(self, choices: Sequence[Choice], usage: Usage) -> bytes:
        """The whole answer."""
        ...

    def opening(self, choices: int) -> bytes:
        """Events sent before the first delta; may be empty."""
        ...

    def chunk(self, choice: int, delta: StreamDelta) -> bytes:
        """The event of one delta; empty where it has nothing to tell."""
        ...

    def usage_chunk(self, usage: Usage) -> bytes:
        """The event that ends a stream with `include_usage`."""
        ...


def _dumps(value: object) -> str:
    # ASCII only: no line separator or lone surrogate can break an event.
    return json.dumps(value, separators=(",", ":"), allow_nan=False)


class _Envelope:
    """What every body and chunk of one answer has in common."""

    def __init__(self, *, answer_id: str, model: str, kind: str, chunk_kind: str, include_usage: bool):
        created = int(time.time())
        head = {"id": answer_id, "object": kind, "created": created, "model": model}
        self._head = head
        chunk_head = _dumps({**head, "object": chunk_kind})[:-1]
        self._prefix = f'data: {chunk_head},"choices":['
        # With include_usage every chunk says `usage`, null until the last.
        self._suffix = '],"usage":null}\n\n' if include_usage else "]}\n\n"

    def body(self, choices: list[dict[str, object]], usage: Usage) -> bytes:
        return _dumps({**self._head, "choices": choices, "usage": usage}).encode()

    def event(self, choice: str) -> bytes:
        return f"{self._prefix}{choice}{self._suffix}".encode()

    def usage_event(self, usage: Usage) -> bytes:
        return f'{self._prefix}],"usage":{_dumps(usage)}}}\n\n'.encode()


class CompletionFormat:
    """Answers of /v1/completions; with `echo`, the prompt comes in front of each choice."""

    def __init__(
        self,
        *,
        answer_id: str,
        model: str,
        texts: TokenTexts,
        include_usage: bool,
        skip_special_tokens: bool = True,
        echo: Echo | None = None,
    ):
        kind = "text_completion"
        self._envelope = _Envelope(
            answer_id=answer_id, model=model, kind=kind, chunk_kind=kind, include_usage=include_usage
        )
        self._texts = texts
        self._skip_special_tokens = skip_special_tokens
        self._echo = echo
        self._offsets: dict[int, int] = {}

    def body(self, choices: Sequence[Choice], usage: Usage) -> bytes:
        """The whole answer."""
        bodies: list[dict[str, object]] = [
            {
                "index": completion.index,
                "text": self._prompt(completion.index) + completion.text,
                "logprobs": self._logprobs(completion.index, completion.logprobs, prompt_logprobs),
                "finish_reason": completion.finish_reason,
                "stop_reason": completion.stop_reason,
            }
            for completion, prompt_logprobs in choices
        ]
        return self._envelope.body(bodies, usage)

    def _prompt(self, choice: int) -> str:
        return "" if self._echo is None else self._echo.text(choice)

    def _logprobs(
        self,
        choice: int,
        tokens: Sequence[TokenLogprobs] | None,
        prompt_logprobs: Sequence[TokenLogprobs | None] | None = None,
    ) -> object:
        first = None
        if self._echo is not None and self._echo.with_logprobs and prompt_logprobs is not None:
            first = self._echo.first_token_id(choice)
            tokens = [token for token in (*prompt_logprobs, *(tokens or ())) if token is not None]
        if tokens is None:
            return None
        found, self._offsets[choice] = completion_logprobs(
            tokens,
            self._texts,
            self._offsets.get(choice, 0),
            first_token_id=first,
            skip_special_tokens=self._skip_special_tokens,
        )
        return found

    def opening(self, choices: int) -> bytes:
        """The prompts where they are wanted without log-probabilities: with them they come in the first chunk."""
        if self._echo is None or self._echo.with_logprobs:
            return b""
        return b"".join(self._prompt_event(choice, None) for choice in range(choices))

    def _prompt_event(self, choice: int, prompt_logprobs: Sequence[TokenLogprobs | None] | None) -> bytes:
        logprobs = _dumps(self._logprobs(choice, None, prompt_logprobs))
        text = _dumps(self._prompt(choice))
        return self._envelope.event(f'{{"index":{choice},"text":{text},"logprobs":{logprobs},"finish_reason":null}}')

    def chunk(self, choice: int, delta: StreamDelta) -> bytes:
        """The event of one delta."""
        if delta.prompt_logprobs is not None:
            if self._echo is None or not self._echo.with_logprobs:
                return b""
            # It comes once for the completions of its prompt.
            choices = range(choice, choice + self._echo.n)
            return b"".join(self._prompt_event(one, delta.prompt_logprobs) for one in choices)
        if not delta.text and delta.finish_reason is None and not delta.logprobs:
            return b""
        logprobs = "null" if not delta.logprobs else _dumps(self._logprobs(choice, delta.logprobs))
        end = _ending(delta)
        return self._envelope.event(f'{{"index":{choice},"text":{_dumps(delta.text)},"logprobs":{logprobs},{end}}}')

    def usage_chunk(self, usage: Usage) -> bytes:
        """The event with the usage and no choice."""
        return self._envelope.usage_event(usage)


class ChatFormat:
    """Answers of /v1/chat/completions."""

    def __init__(self, *, answer_id: str, model: str, texts: TokenTexts, include_usage: bool):
        kind = "chat.completion"
        self._envelope = _Envelope(
            answer_id=answer_id, model=model, kind=kind, chunk_kind=f"{kind}.chunk", include_usage=include_usage
        )
        self._texts = texts

    def body(self, choices: Sequence[Choice], usage: Usage) -> bytes:
        """The whole answer."""
        bodies: list[dict[str, object]] = [
            {
                "index": completion.index,
                "message": {"role": "assistant", "content": completion.text},
                "logprobs": None if completion.logprobs is None else chat_logprobs(completion.logprobs, self._texts),
                "finish_reason": completion.finish_reason,
                "stop_reason": completion.stop_reason,
            }
            for completion, _ in choices
        ]
        return self._envelope.body(bodies, usage)

    def opening(self, choices: int) -> bytes:
        """The role, a chunk for each choice."""
        delta = '"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null'
        return b"".join(self._envelope.event(f'{{"index":{choice},{delta}}}') for choice in range(choices))

    def chunk(self, choice: int, delta: StreamDelta) -> bytes:
        """The event of one delta."""
        if not delta.text and delta.finish_reason is None and not delta.logprobs:
            return b""
        content = f'{{"content":{_dumps(delta.text)}}}' if delta.text else "{}"
        logprobs = "null" if not delta.logprobs else _dumps(chat_logprobs(delta.logprobs, self._texts))
        end = _ending(delta)
        return self._envelope.event(f'{{"index":{choice},"delta":{content},"logprobs":{logprobs},{end}}}')

    def usage_chunk(self, usage: Usage) -> bytes:
        """The event with the usage and no choice."""
        return self._envelope.usage_event(usage)


def _ending(delta: StreamDelta) -> str:
    if delta.finish_reason is None:
        return '"finish_reason":null'
    return f'"finish_reason":"{delta.finish_reason}","stop_reason":{_dumps(delta.stop_reason)}'
