"""The parts that all answers of the OpenAI API share: the JSON around the choices, and the end of a streamed choice.

A stream sends one chunk for each token, more often than anything else the server sends. A chunk is therefore a prefix
that is built once for each request, the new text, and a suffix; no model object is built for it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Sequence

from ryzjax.serving.http.answer import Usage
from ryzjax.serving.messages.request import StreamDelta, TokenLogprobs

__all__ = ["Envelope", "dumps", "finish_fields", "logprob_blocks"]

_BLOCK_TOKENS = 32
"""Tokens whose log-probabilities are serialized in one piece of work."""


def dumps(value: object) -> str:
    """Returns `value` as compact JSON in ASCII."""
    # ASCII, so that no line separator or lone surrogate can break an event.
    return json.dumps(value, separators=(",", ":"), allow_nan=False)


class Envelope:
    """The JSON around the choices of one answer, in whole bodies and in stream chunks.

    Args:
      answer_id: The `id` of the answer.
      model: The model name that the client asked for.
      kind: The `object` field of a whole answer.
      chunk_kind: The `object` field of a stream chunk.
      include_usage: Whether a stream ends with a chunk that holds the token counts.
    """

    def __init__(self, *, answer_id: str, model: str, kind: str, chunk_kind: str, include_usage: bool):
        created = int(time.time())
        head = {"id": answer_id, "object": kind, "created": created, "model": model}
        self._head = head
        chunk_head = dumps({**head, "object": chunk_kind})[:-1]
        self._prefix = f'data: {chunk_head},"choices":['
        # With include_usage, every chunk has a `usage` field, which is null in all but the last.
        self._suffix = '],"usage":null}\n\n' if include_usage else "]}\n\n"

    def pieces(self, choices: Iterable[Iterator[str]], usage: Usage) -> Iterator[bytes]:
        """Yields a whole answer in pieces, from the pieces of each choice."""
        yield f'{dumps(self._head)[:-1]},"choices":['.encode()
        for number, choice in enumerate(choices):
            if number:
                yield b","
            for piece in choice:
                yield piece.encode()
        yield f'],"usage":{dumps(usage)}}}'.encode()

    def event(self, choice: str) -> bytes:
        """Returns the event of one choice, given as JSON."""
        return f"{self._prefix}{choice}{self._suffix}".encode()

    def event_pieces(self, choice: Iterator[str]) -> Iterator[bytes]:
        """Yields the event of one choice whose JSON comes in pieces."""
        yield self._prefix.encode()
        for piece in choice:
            yield piece.encode()
        yield self._suffix.encode()

    def usage_event(self, usage: Usage) -> bytes:
        """Returns the event that holds the token counts and no choice."""
        return f'{self._prefix}],"usage":{dumps(usage)}}}\n\n'.encode()


def logprob_blocks(
    scored: Sequence[TokenLogprobs | None], tokens: Sequence[TokenLogprobs], *, with_first: bool = False
) -> Iterator[list[TokenLogprobs]]:
    """Yields blocks of tokens: first those of a prompt that have log-probabilities, then those of the completion.

    Args:
      scored: The tokens of the prompt; None for a token without a log-probability.
      tokens: The tokens of the completion.
      with_first: Whether to yield at least one block, which may be empty. The caller adds the first token of a prompt
        to the first block.
    """
    is_empty = True
    for sequence in (scored, tokens):
        for start in range(0, len(sequence), _BLOCK_TOKENS):
            is_empty = False
            yield [token for token in sequence[start : start + _BLOCK_TOKENS] if token is not None]
    if is_empty and with_first:
        yield []


def finish_fields(delta: StreamDelta) -> str:
    """Returns the JSON fields that say why a completion ended, or a null `finish_reason` while it runs."""
    if delta.finish_reason is None:
        return '"finish_reason":null'
    return f'"finish_reason":"{delta.finish_reason}","stop_reason":{dumps(delta.stop_reason)}'
