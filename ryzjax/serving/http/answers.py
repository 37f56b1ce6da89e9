"""How answers look on the wire: whole JSON bodies, and stream chunks built from templates.

A chunk a token is the hottest thing this server sends, so a chunk is a prefix made once a request, the new text and
a suffix; no model object is built for it. What may be large (a body, an echoed prompt) is an iterator of pieces, each
of which takes about a millisecond to build: see `pieces`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, Protocol, TypedDict

from ryzjax.serving.http.echo import Echo
from ryzjax.serving.http.logprobs import CompletionLogprobs, TokenTexts, chat_logprobs, completion_logprobs
from ryzjax.serving.messages.request import CompletionOutput, StreamDelta, TokenLogprobs

__all__ = ["AnswerFormat", "ChatFormat", "Choice", "CompletionFormat", "Usage", "answer_size", "delta_size", "usage_of"]

_BLOCK_TOKENS = 32
"""Tokens whose log-probabilities are written at a time."""
_CHARS_PER_LOGPROB = 32


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


def answer_size(choices: Sequence[Choice]) -> int:
    """About how many characters an answer has."""
    size = 0
    for completion, prompt_logprobs in choices:
        size += len(completion.text) + _logprobs_size(completion.logprobs) + _logprobs_size(prompt_logprobs)
    return size


def delta_size(delta: StreamDelta) -> int:
    """About how many characters the event of a delta has."""
    return len(delta.text) + _logprobs_size(delta.logprobs) + _logprobs_size(delta.prompt_logprobs)


def _logprobs_size(tokens: Sequence[TokenLogprobs | None] | None) -> int:
    if not tokens:
        return 0
    last = tokens[-1]
    return _CHARS_PER_LOGPROB * len(tokens) * (1 + (len(last.top) if last is not None else 0))


class AnswerFormat(Protocol):
    """One route's way to write an answer; one object a request."""

    def pieces(self, choices: Sequence[Choice], usage: Usage) -> Iterator[bytes]:
        """The whole answer."""
        ...

    @property
    def opening_size(self) -> int:
        """About how many characters `opening` has for each choice."""
        ...

    def opening(self, choices: int) -> Iterator[bytes]:
        """Events sent before the first delta, if any."""
        ...

    def events(self, choice: int, delta: StreamDelta) -> Iterator[bytes]:
        """The events of one delta: none where it has nothing to tell, several for the prompt of several choices."""
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

    def pieces(self, choices: Iterable[Iterator[str]], usage: Usage) -> Iterator[bytes]:
        yield f'{_dumps(self._head)[:-1]},"choices":['.encode()
        for number, choice in enumerate(choices):
            if number:
                yield b","
            for piece in choice:
                yield piece.encode()
        yield f'],"usage":{_dumps(usage)}}}'.encode()

    def event(self, choice: str) -> bytes:
        return f"{self._prefix}{choice}{self._suffix}".encode()

    def event_pieces(self, choice: Iterator[str]) -> Iterator[bytes]:
        yield self._prefix.encode()
        for piece in choice:
            yield piece.encode()
        yield self._suffix.encode()

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

    def pieces(self, choices: Sequence[Choice], usage: Usage) -> Iterator[bytes]:
        """The whole answer."""
        return self._envelope.pieces(map(self._choice, choices), usage)

    def _choice(self, choice: Choice) -> Iterator[str]:
        completion, prompt_logprobs = choice
        text = _dumps(self._prompt(completion.index) + completion.text)
        yield f'{{"index":{completion.index},"text":{text},"logprobs":'
        yield from self._logprobs(completion.index, completion.logprobs, prompt_logprobs)
        reasons = f'"finish_reason":{_dumps(completion.finish_reason)},"stop_reason":{_dumps(completion.stop_reason)}'
        yield f",{reasons}}}"

    def _prompt(self, choice: int) -> str:
        return "" if self._echo is None else self._echo.text(choice)

    def _logprobs(
        self,
        choice: int,
        tokens: Sequence[TokenLogprobs] | None,
        prompt_logprobs: Sequence[TokenLogprobs | None] | None = None,
    ) -> Iterator[str]:
        """The `logprobs` object of one choice or chunk, or null."""
        first, scored = None, ()
        if self._echo is not None and self._echo.with_logprobs and prompt_logprobs is not None:
            first = self._echo.first_token_id(choice)
            scored = prompt_logprobs
        elif tokens is None:
            yield "null"
            return
        with_top = any(sequence[-1] is not None and sequence[-1].top for sequence in (scored, tokens or ()) if sequence)
        columns: dict[str, list[str]] = {name: [] for name in CompletionLogprobs.__annotations__}
        for block in _blocks(scored, tokens or (), with_first=first is not None):
            found, self._offsets[choice] = completion_logprobs(
                block,
                self._texts,
                self._offsets.get(choice, 0),
                first_token_id=first,
                is_echo=self._echo is not None,
                with_top=with_top,
                skip_special_tokens=self._skip_special_tokens,
            )
            first = None
            for name, values in columns.items():
                column = found[name]
                if column:
                    values.append(_dumps(column)[1:-1])
            yield ""
        for number, (name, values) in enumerate(columns.items()):
            yield f'{"," if number else "{"}"{name}":'
            if name == "top_logprobs" and not with_top:
                yield "null"
                continue
            yield "["
            for position, value in enumerate(values):
                yield f",{value}" if position else value
            yield "]"
        yield "}"

    @property
    def opening_size(self) -> int:
        """About how many characters `opening` has for each choice."""
        if self._echo is None or self._echo.with_logprobs:
            return 0
        return max(map(len, self._echo.texts))

    def opening(self, choices: int) -> Iterator[bytes]:
        """The prompts where they are wanted without log-probabilities: with them they come in the first chunk."""
        if self._echo is not None and not self._echo.with_logprobs:
            for choice in range(choices):
                yield from self._prompt_event(choice, None)

    def _prompt_event(self, choice: int, prompt_logprobs: Sequence[TokenLogprobs | None] | None) -> Iterator[bytes]:
        def pieces() -> Iterator[str]:
            yield f'{{"index":{choice},"text":{_dumps(self._prompt(choice))},"logprobs":'
            yield from self._logprobs(choice, None, prompt_logprobs)
            yield ',"finish_reason":null}'

        return self._envelope.event_pieces(pieces())

    def events(self, choice: int, delta: StreamDelta) -> Iterator[bytes]:
        """The events of one delta."""
        if delta.prompt_logprobs is not None:
            if self._echo is not None and self._echo.with_logprobs:
                # It comes once for the completions of its prompt.
                for one in range(choice, choice + self._echo.n):
                    yield from self._prompt_event(one, delta.prompt_logprobs)
        elif delta.text or delta.finish_reason is not None or delta.logprobs:
            logprobs = "null" if not delta.logprobs else "".join(self._logprobs(choice, delta.logprobs))
            end = _ending(delta)
            text = _dumps(delta.text)
            yield self._envelope.event(f'{{"index":{choice},"text":{text},"logprobs":{logprobs},{end}}}')

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

    def pieces(self, choices: Sequence[Choice], usage: Usage) -> Iterator[bytes]:
        """The whole answer."""
        return self._envelope.pieces(map(self._choice, choices), usage)

    def _choice(self, choice: Choice) -> Iterator[str]:
        completion = choice.completion
        message = _dumps({"role": "assistant", "content": completion.text})
        yield f'{{"index":{completion.index},"message":{message},"logprobs":'
        if completion.logprobs is None:
            yield "null"
        else:
            yield '{"content":['
            for number, block in enumerate(_blocks((), completion.logprobs)):
                content = _dumps(chat_logprobs(block, self._texts)["content"])[1:-1]
                yield f",{content}" if number else content
            yield "]}"
        reasons = f'"finish_reason":{_dumps(completion.finish_reason)},"stop_reason":{_dumps(completion.stop_reason)}'
        yield f",{reasons}}}"

    @property
    def opening_size(self) -> int:
        """About how many characters `opening` has for each choice."""
        return 0

    def opening(self, choices: int) -> Iterator[bytes]:
        """The role, a chunk for each choice."""
        delta = '"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null'
        for choice in range(choices):
            yield self._envelope.event(f'{{"index":{choice},{delta}}}')

    def events(self, choice: int, delta: StreamDelta) -> Iterator[bytes]:
        """The events of one delta."""
        if delta.text or delta.finish_reason is not None or delta.logprobs:
            content = f'{{"content":{_dumps(delta.text)}}}' if delta.text else "{}"
            logprobs = "null" if not delta.logprobs else _dumps(chat_logprobs(delta.logprobs, self._texts))
            end = _ending(delta)
            yield self._envelope.event(f'{{"index":{choice},"delta":{content},"logprobs":{logprobs},{end}}}')

    def usage_chunk(self, usage: Usage) -> bytes:
        """The event with the usage and no choice."""
        return self._envelope.usage_event(usage)


def _blocks(
    scored: Sequence[TokenLogprobs | None], tokens: Sequence[TokenLogprobs], *, with_first: bool = False
) -> Iterator[list[TokenLogprobs]]:
    """The tokens of a prompt that have log-probabilities, then others, some at a time.

    `with_first` asks for one block at least, which may be empty: it stands for the first token of a prompt.
    """
    is_empty = True
    for sequence in (scored, tokens):
        for start in range(0, len(sequence), _BLOCK_TOKENS):
            is_empty = False
            yield [token for token in sequence[start : start + _BLOCK_TOKENS] if token is not None]
    if is_empty and with_first:
        yield []


def _ending(delta: StreamDelta) -> str:
    if delta.finish_reason is None:
        return '"finish_reason":null'
    return f'"finish_reason":"{delta.finish_reason}","stop_reason":{_dumps(delta.stop_reason)}'
