"""EventStream: a response of server-sent events that aborts its generation when the client leaves."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from ryzjax.serving.http.answer import AnswerFormat, delta_size, usage_of
from ryzjax.serving.http.disconnect import ClientLeftError, until_disconnect
from ryzjax.serving.http.errors import describe, internal_error
from ryzjax.serving.http.generation import Generation
from ryzjax.serving.http.pieces import send_pieces
from ryzjax.serving.http.workers import Workers
from ryzjax.serving.messages.request import StreamDelta

__all__ = ["EventStream"]

logger = logging.getLogger(__name__)

_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # keeps nginx from buffering tokens
]


class EventStream(Response):
    """The streamed answer to one generation request.

    Nothing is sent before the first delta. Until then an error, such as a full queue or an invalid prompt, is raised
    and has its own status. After it, an error is an event, and the missing `[DONE]` marks the answer as incomplete.

    Args:
      generation: The prompts to run.
      answer: The format of the answer.
      include_usage: Whether to end the stream with the token counts.
      request_id: The id of the request, for the log.
      workers: The threads that build large events.
    """

    def __init__(
        self,
        generation: Generation,
        answer: AnswerFormat,
        *,
        include_usage: bool,
        request_id: str,
        workers: Workers,
    ):
        super().__init__(status_code=200)
        self._workers = workers
        self._generation = generation
        self._answer = answer
        self._include_usage = include_usage
        self._request_id = request_id
        self._completion_tokens = 0
        self._started = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends the whole stream. Raises only before it has sent anything."""
        try:
            await until_disconnect(receive, self._run(send))
        except ClientLeftError:
            if not self._started:
                raise
            logger.info("client left a stream", extra={"request_id": self._request_id})

    async def _run(self, send: Send) -> None:
        async with aclosing(self._generation.stream()) as deltas:
            choice, first = await anext(deltas)
            self._started = True
            await send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
            choices = self._generation.choices
            await self._send(send, self._answer.opening(choices), size=choices * self._answer.opening_size)
            try:
                await self._send_delta(send, choice, first)
                await self._rest(deltas, send)
            except Exception as error:  # the status line has been sent, so only an event can tell the client
                await _send_event(send, self._error_event(error))
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _rest(self, deltas: AsyncGenerator[tuple[int, StreamDelta], None], send: Send) -> None:
        async for choice, delta in deltas:
            await self._send_delta(send, choice, delta)
        ending = b"data: [DONE]\n\n"
        if self._include_usage:
            usage = usage_of(self._generation.prompt_tokens, self._completion_tokens)
            ending = self._answer.usage_chunk(usage) + ending
        await _send_event(send, ending)

    async def _send_delta(self, send: Send, choice: int, delta: StreamDelta) -> None:
        self._completion_tokens += len(delta.token_ids)
        copies = 1 if delta.prompt_logprobs is None else self._generation.params.n
        await self._send(send, self._answer.events(choice, delta), size=copies * delta_size(delta))

    async def _send(self, send: Send, events: Iterator[bytes], *, size: int) -> None:
        async def send_piece(piece: bytes) -> None:
            await _send_event(send, piece)

        await send_pieces(events, send_piece, size=size, workers=self._workers)

    def _error_event(self, error: Exception) -> bytes:
        described = describe(error)
        if described is None:
            logger.error("stream failed", exc_info=error, extra={"request_id": self._request_id})
            described = internal_error(self._request_id)
        return b"data: " + described.body() + b"\n\n"


async def _send_event(send: Send, event: bytes) -> None:
    if event:
        await send({"type": "http.response.body", "body": event, "more_body": True})
