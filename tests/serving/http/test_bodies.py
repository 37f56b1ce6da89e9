"""Bodies that do not arrive time out, hold a bounded amount of memory, and delay neither other requests nor a drain."""

from __future__ import annotations

import json
import signal
import threading
from contextlib import ExitStack

import httpx
import pytest

from ryzjax.serving.http.guard.bodies import BodyReaders
from tests.serving.http.fake_engine import reply
from tests.serving.http.harness import Running, ServerFactory
from tests.serving.http.raw import connected, error_code_of, read_to_end, request_bytes, status_of
from tests.serving.http.waiting import wait_for

PART = b'{"model":"fake","prompt":"'
KB = 1024


def bodies_of(running: Running) -> BodyReaders:
    return running.server._server._context.bodies


def test_a_body_that_stops_is_refused(serving: ServerFactory) -> None:
    with serving(body_timeout_s=0.2) as running, connected(running) as connection:
        connection.sendall(request_bytes(PART, declared_bytes=1000))
        answer = read_to_end(connection)
        assert (status_of(answer), error_code_of(answer)) == (408, "request_timeout")
        assert b"body_timeout_s" in answer
        assert running.post(prompt="abc", max_tokens=3).json()["choices"][0]["text"] == "cba"


def test_a_body_that_keeps_arriving_gets_more_time(serving: ServerFactory) -> None:
    # At 1 KiB/s, every 200 bytes that arrive give the body 0.2 s more.
    with serving(body_timeout_s=0.3, min_body_bytes_per_s=KB) as running, connected(running) as connection:
        body = json.dumps({"model": "fake", "prompt": "abc", "max_tokens": 3}).encode() + b" " * 1200
        connection.sendall(request_bytes(b"", declared_bytes=len(body), close=True))
        for start in range(0, len(body), 200):
            connection.sendall(body[start : start + 200])
            threading.Event().wait(0.1)
        assert status_of(read_to_end(connection)) == 200


def test_large_bodies_share_their_memory(serving: ServerFactory) -> None:
    size = 200 * KB
    with serving(max_body_bytes=size, max_buffered_bytes=2 * size) as running, ExitStack() as stack:
        stuck = [stack.enter_context(connected(running)) for _ in range(6)]
        for connection in stuck:
            connection.sendall(request_bytes(PART + b"a" * 100 * KB, declared_bytes=size))
        wait_for(lambda: bodies_of(running).reserved_bytes == 2 * size)
        # A small body needs no share of this memory.
        assert running.post(prompt="abc", max_tokens=3).status_code == 200
        # A large body takes the place of one that has stopped arriving.
        large = json.dumps({"model": "fake", "prompt": "abc", "max_tokens": 3}).encode().ljust(size)
        assert running.http.post("/v1/completions", content=large).status_code == 200
        assert bodies_of(running).reserved_bytes <= 2 * size
        refused = [read_to_end(connection) for connection in stuck[:2]]
        assert [status_of(answer) for answer in refused] == [408, 408]
    assert bodies_of(running).reserved_bytes == 0


def test_a_large_body_that_finds_no_room_is_told_so(serving: ServerFactory) -> None:
    size = 200 * KB
    # What the first body has sent gives it 100 s more. The second body waits for 0.4 s.
    settings = {"max_body_bytes": size, "max_buffered_bytes": size, "body_timeout_s": 0.4, "min_body_bytes_per_s": KB}
    with serving(**settings) as running, connected(running) as holding, connected(running) as waiting:
        holding.sendall(request_bytes(PART + b"a" * 100 * KB, declared_bytes=size))
        wait_for(lambda: bodies_of(running).reserved_bytes == size)
        waiting.sendall(request_bytes(PART, declared_bytes=size))
        answer = read_to_end(waiting)
        assert (status_of(answer), error_code_of(answer)) == (503, "bodies_full")


def test_a_chunked_body_counts_too(serving: ServerFactory) -> None:
    size = 200 * KB
    with serving(max_body_bytes=size, max_buffered_bytes=size) as running:
        with connected(running) as connection:
            head = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
            connection.sendall(head + b"18000\r\n" + b" " * 0x18000 + b"\r\n")
            wait_for(lambda: bodies_of(running).reserved_bytes == size)
        wait_for(lambda: bodies_of(running).reserved_bytes == 0)
        chunks = (b" " * 1000 for _ in range(150))
        assert running.http.post("/v1/completions", content=chunks).status_code == 400
        assert bodies_of(running).reserved_bytes == 0


@pytest.mark.parametrize("value", ["-1", "1e3", "9" * 30])
def test_odd_lengths(running: Running, value: str) -> None:
    with connected(running) as connection:
        connection.sendall(f"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {value}\r\n\r\n".encode())
        assert status_of(read_to_end(connection)) in (400, 413)


def test_memory_is_given_back_after_every_kind_of_end(serving: ServerFactory) -> None:
    size = 100 * KB
    with serving(max_body_bytes=size, max_buffered_bytes=size) as running:
        for body in (b"{" * size, b" " * size, json.dumps({"model": "nope", "prompt": "a"}).encode().ljust(size)):
            assert running.http.post("/v1/completions", content=body).status_code in (400, 404)
            assert bodies_of(running).reserved_bytes == 0
        streamed = json.dumps({"model": "fake", "prompt": "HOLD", "stream": True}).encode().ljust(size)
        with running.http.stream("POST", "/v1/completions", content=streamed) as response:
            next(response.iter_text())
            # The body has been parsed, so its memory is free during a long answer.
            assert bodies_of(running).reserved_bytes == 0


def test_unfinished_bodies_do_not_hold_up_a_drain(serving: ServerFactory) -> None:
    with serving(drain_timeout_s=60.0, body_timeout_s=60.0) as running, ExitStack() as stack:
        stuck = [stack.enter_context(connected(running)) for _ in range(100)]
        for connection in stuck:
            connection.sendall(request_bytes(PART, declared_bytes=1000))
        answers: list[httpx.Response] = []
        asking = threading.Thread(target=lambda: answers.append(running.post(prompt="HOLD", max_tokens=3)))
        asking.start()
        wait_for(lambda: len(running.engine.running) == 1)
        running.server.request_drain()
        for connection in stuck:
            answer = read_to_end(connection)
            assert (status_of(answer), error_code_of(answer)) == (503, "draining")
        assert running.thread.is_alive() and not answers
        running.engine.release()
        asking.join(10)
        assert answers[0].json()["choices"][0]["text"] == reply("HOLD", 3)
        running.thread.join(10)
        assert running.exit_status == [0]


def test_a_second_signal_answers_what_waits(serving: ServerFactory) -> None:
    with serving() as running:
        answers: list[httpx.Response] = []
        asking = threading.Thread(target=lambda: answers.append(running.post(prompt="WEDGE", max_tokens=3)))
        asking.start()
        wait_for(lambda: len(running.engine.running) == 1)
        running.engine.ends_on_drain = True
        uvicorn_server = running.server._server
        uvicorn_server.handle_exit(signal.SIGTERM, None)
        wait_for(lambda: running.http.get("/ready").status_code == 503)
        uvicorn_server.handle_exit(signal.SIGTERM, None)
        asking.join(10)
        assert answers[0].status_code == 503
        assert answers[0].json()["error"]["type"] == "service_unavailable"
        running.thread.join(10)
        assert running.exit_status == [128 + signal.SIGTERM]
        running.exit_status[:] = [0]
