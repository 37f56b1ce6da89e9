"""HTTP written by hand, for clients that misbehave."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager

from tests.serving.http.harness import Running


@contextmanager
def connected(running: Running, timeout_s: float = 10.0) -> Iterator[socket.socket]:
    """Opens a connection to the server."""
    with socket.create_connection(("127.0.0.1", running.server.port), timeout=timeout_s) as connection:
        yield connection


def request_bytes(
    body: object, path: str = "/v1/completions", *, declared_bytes: int | None = None, close: bool = False
) -> bytes:
    """Returns a POST request. `declared_bytes` is its Content-Length, which may be wrong."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    length = len(content) if declared_bytes is None else declared_bytes
    head = f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: {length}\r\n" + "connection: close\r\n" * close
    return f"{head}\r\n".encode() + content


def read_to_end(connection: socket.socket) -> bytes:
    """Returns what the server sends until it closes the connection."""
    received = b""
    while True:
        try:
            data = connection.recv(1 << 16)
        except ConnectionResetError:
            return received
        if not data:
            return received
        received += data


def status_of(answer: bytes) -> int:
    """Returns the status of an answer, without interim responses."""
    while answer.startswith(b"HTTP/1.1 1"):
        _, _, answer = answer.partition(b"\r\n\r\n")
    return int(answer[9:12])


def error_code_of(answer: bytes) -> str:
    """Returns the code of the OpenAI-style error in an answer."""
    return json.loads(answer[answer.rindex(b'{"error"') :])["error"]["code"]
