"""Connections that make a server wait are closed in time, and none takes the place of others."""

from __future__ import annotations

import json
import socket
import threading
from contextlib import ExitStack

import pytest

from tests.serving.http.fake_engine import reply
from tests.serving.http.harness import Running, ServerFactory
from tests.serving.http.raw import connected, error_code_of, read_to_end, request_bytes, status_of
from tests.serving.http.waiting import wait_for

ABC = {"model": "fake", "prompt": "abc", "max_tokens": 3}


def test_a_silent_connection_is_closed(serving: ServerFactory) -> None:
    with serving(header_timeout_s=0.2) as running, connected(running) as connection:
        assert read_to_end(connection) == b""


def test_headers_that_do_not_end_are_refused(serving: ServerFactory) -> None:
    with serving(header_timeout_s=0.2) as running, connected(running) as connection:
        connection.sendall(b"POST /v1/completions HTTP/1.1\r\nhost: x\r\n")
        answer = read_to_end(connection)
        assert (status_of(answer), error_code_of(answer)) == (408, "request_timeout")
        assert b"header_timeout_s" in answer


def test_headers_of_a_later_request_are_timed_too(serving: ServerFactory) -> None:
    with serving(header_timeout_s=0.2, keep_alive_timeout_s=0.2) as running, connected(running) as connection:
        connection.sendall(request_bytes(ABC))
        assert b'"text":"cba"' in connection.recv(1 << 16)
        connection.sendall(b"GET /health HTTP/1.1\r\n")
        assert status_of(read_to_end(connection)) == 408


def test_an_idle_connection_stays_for_the_next_request(serving: ServerFactory) -> None:
    with serving(header_timeout_s=0.05, keep_alive_timeout_s=60.0) as running, connected(running) as connection:
        connection.sendall(request_bytes(ABC))
        connection.recv(1 << 16)
        threading.Event().wait(1.2)  # the guard checks twice in this time
        connection.sendall(request_bytes(ABC))
        assert b'"text":"cba"' in connection.recv(1 << 16)


def test_a_request_that_runs_is_never_timed_out(serving: ServerFactory) -> None:
    with serving(header_timeout_s=0.05, body_timeout_s=0.05, keep_alive_timeout_s=0.05) as running:
        answers: list[str] = []
        asking = threading.Thread(target=lambda: answers.append(running.post(prompt="HOLD", max_tokens=3).text))
        asking.start()
        wait_for(lambda: len(running.engine.running) == 1)
        threading.Event().wait(1.2)
        running.engine.release()
        asking.join(10)
        assert json.loads(answers[0])["choices"][0]["text"] == reply("HOLD", 3)


def test_idle_connections_give_way_to_new_ones(serving: ServerFactory) -> None:
    with serving(max_connections=4, header_timeout_s=60.0) as running, ExitStack() as stack:
        idle = [stack.enter_context(connected(running)) for _ in range(4)]
        idle[0].sendall(b"GET /health HTTP/1.1\r\n")
        for _ in range(12):
            with connected(running) as connection:
                connection.sendall(request_bytes(ABC, close=True))
                assert status_of(read_to_end(connection)) == 200
        assert read_to_end(idle[0]) == b""


def test_working_connections_do_not_give_way(serving: ServerFactory) -> None:
    with serving(max_connections=2) as running, ExitStack() as stack:
        working = [stack.enter_context(connected(running)) for _ in range(2)]
        for number, connection in enumerate(working):
            connection.sendall(request_bytes({"model": "fake", "prompt": "HOLD", "stream": True, "max_tokens": 3}))
            wait_for(lambda number=number: len(running.engine.running) == number + 1)
        with connected(running) as refused:
            answer = read_to_end(refused)
            assert (status_of(answer), error_code_of(answer)) == (503, "too_many_connections")
            assert b"max_connections=2" in answer
        running.engine.release()
        for connection in working:
            received = b""
            while b"[DONE]" not in received:
                received += connection.recv(1 << 16)
        for connection in working:
            connection.close()
        wait_for(lambda: running.post(**ABC).status_code == 200)


def test_a_client_that_does_not_read_is_cut_off(serving: ServerFactory) -> None:
    with serving(send_timeout_s=0.2) as running, connected(running) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        body = {"prompt": ["a"] * 64, "max_tokens": 254, "stream": True, "logprobs": 20}
        connection.sendall(request_bytes({"model": "fake", **body}))
        wait_for(lambda: len(running.engine.aborted) > 0 and not running.engine.running)


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_closes_its_sending_side_gets_its_answer(running: Running, stream: bool) -> None:
    with connected(running) as connection:
        connection.sendall(request_bytes({**ABC, "stream": stream}))
        connection.shutdown(socket.SHUT_WR)
        answer = read_to_end(connection)
        assert status_of(answer) == 200
        assert b"[DONE]" in answer if stream else b'"text":"cba"' in answer


def test_it_waits_for_an_answer_that_takes_long(serving: ServerFactory) -> None:
    with serving() as running, connected(running) as connection:
        connection.sendall(request_bytes({**ABC, "prompt": "WEDGE"}))
        connection.shutdown(socket.SHUT_WR)
        wait_for(lambda: len(running.engine.running) == 1)
        threading.Event().wait(0.5)
        assert len(running.engine.running) == 1
        running.engine.release()
        answer = read_to_end(connection)
        assert status_of(answer) == 200 and b"EGD" in answer


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_has_left_is_noticed_before_its_answer(running: Running, stream: bool) -> None:
    aborted = len(running.engine.aborted)
    with connected(running) as connection:
        connection.sendall(request_bytes({**ABC, "prompt": "WEDGE", "stream": stream}))
        wait_for(lambda: len(running.engine.running) == 1)
    wait_for(lambda: len(running.engine.aborted) == aborted + 1)
    assert running.engine.running == set()


def test_half_a_request_gets_no_answer(running: Running) -> None:
    with connected(running) as connection:
        connection.sendall(request_bytes(b'{"model":', declared_bytes=1000))
        connection.shutdown(socket.SHUT_WR)
        assert read_to_end(connection) == b""
