"""Sends large answers in pieces, which worker threads build while the client reads."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from ryzjax.serving.http.disconnect import until_disconnect
from ryzjax.serving.http.workers import INLINE_SIZE, Workers

__all__ = ["PiecewiseResponse", "json_response", "send_pieces"]

_PIECE_SIZE = 64 * 1024


async def send_pieces(
    pieces: Iterator[bytes], send: Callable[[bytes], Awaitable[None]], *, size: int, workers: Workers
) -> None:
    """Builds and sends an answer. Only one piece of a large answer is in memory at a time.

    Args:
      pieces: The pieces of the answer. An empty piece sends nothing, and lets other requests have a turn.
      send: Sends one piece.
      size: The estimated size of the answer, in characters.
      workers: The threads that build a large answer.
    """
    if size <= INLINE_SIZE:
        await send(b"".join(pieces))
        return
    while (piece := await workers.next_of(pieces, size=min(size, _PIECE_SIZE))) is not None:
        if piece:
            await send(piece)


class PiecewiseResponse(Response):
    """A JSON response that is sent while it is built. Building stops when the client leaves."""

    def __init__(self, pieces: Iterator[bytes], *, size: int, workers: Workers):
        super().__init__(status_code=200)
        self._pieces = pieces
        self._size = size
        self._workers = workers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends the whole answer. Raises ClientLeftError if the client leaves before its end."""
        await until_disconnect(receive, self._run(send))

    async def _run(self, send: Send) -> None:
        headers = [(b"content-type", b"application/json")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})

        async def send_piece(piece: bytes) -> None:
            await send({"type": "http.response.body", "body": piece, "more_body": True})

        await send_pieces(self._pieces, send_piece, size=self._size, workers=self._workers)
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def json_response(pieces: Iterator[bytes], *, size: int, workers: Workers) -> Response:
    """Returns the response of a JSON answer. A small answer is sent whole, a large one in pieces."""
    if size <= INLINE_SIZE:
        return Response(b"".join(pieces), media_type="application/json")
    return PiecewiseResponse(pieces, size=size, workers=workers)
