"""Measures how much one client can slow down another: hostile requests beside a client's stream.

    python bench/hostile.py [--rounds 3] [--only NAME]

A server of the demo model runs in its own process. A victim streams tokens from it, first alone and then during each
attack. The figure is the longest gap between two events of the victim's stream, divided by the longest gap alone.
`/health` is requested every 20 ms at the same time.

Each attack is printed on one line: the HTTP status, the two gaps in milliseconds, their ratio, the slowest answer of
`/health` and the server's memory. The last lines give the server's memory relative to that before the attacks, and the
seconds it takes to exit on SIGTERM with 100 unfinished bodies open. The figures go to bench/results/hostile.json.
"""

from __future__ import annotations

import argparse
import itertools
import json
import re
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench.record import write_result

__all__ = ["ATTACKS", "Attacked", "Victim", "attacked_server", "beside", "exit_under_unfinished_bodies"]

_MODEL = {"model": "demo"}
_LIMIT_BYTES = 8 * 1024 * 1024
_WARM_UP_EVENTS = 20


@dataclass
class Attacked:
    """A server of the demo model in its own process."""

    process: subprocess.Popen[str]
    port: int

    def rss_bytes(self) -> int:
        """Returns the resident memory of the server in bytes."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+) kB", status)[1]) * 1024  # type: ignore[index]


@contextmanager
def attacked_server(*flags: str) -> Iterator[Attacked]:
    """Serves the demo model on a free port. If the server is still running at the end, it is killed."""
    command = [sys.executable, "-m", "ryzjax", "serve", "--port", "0", "--log-level", "info", *flags]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    seen = []
    reader = threading.Thread(target=_discard, args=[process.stderr], daemon=True)
    try:
        for line in process.stderr:
            seen.append(line)
            found = re.search(r"serving \S+ on http://\S+:(\d+)", line)
            if found:
                reader.start()  # if nobody read the pipe, it would fill up and block the server
                yield Attacked(process, int(found[1]))
                return
        raise RuntimeError("the server did not start:\n" + "".join(seen))
    finally:
        process.kill()
        process.wait()
        if reader.ident is not None:
            reader.join()
        process.stderr.close()


def _discard(lines: Iterator[str]) -> None:
    for _ in lines:
        pass


def request_bytes(path: str, body: dict[str, object] | bytes, *, declared_bytes: int | None = None) -> bytes:
    """Returns an HTTP POST request. `declared_bytes` overrides its Content-Length."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    length = len(content) if declared_bytes is None else declared_bytes
    head = f"POST {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n"
    return head.encode() + content


def ask(port: int, request: bytes, timeout_s: float = 60.0) -> tuple[int, int]:
    """Sends one request and returns the status and the bytes of the answer. The server must close the connection."""
    with socket.create_connection(("127.0.0.1", port), timeout=timeout_s) as connection:
        with suppress(OSError):  # the server refused it before reading all of it, and has answered
            connection.sendall(request)
        size, head = 0, b""
        with suppress(ConnectionResetError):
            while data := connection.recv(1 << 16):
                size += len(data)
                head = (head + data)[:16]
        return int(head[9:12]), size


@dataclass
class Victim:
    """A client that streams tokens and records when each event arrives."""

    port: int
    arrivals_s: list[float] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        """Sends streaming requests sequentially until `stop` is called, each on its own connection."""
        body = {"prompt": "Count:", "max_tokens": 4000, "stream": True, "ignore_eos": True, "temperature": 0}
        request = request_bytes("/v1/completions", _MODEL | body)
        while not self._stop.is_set():
            with socket.create_connection(("127.0.0.1", self.port), timeout=60) as connection:
                connection.sendall(request)
                tail = b""
                while not self._stop.is_set():
                    data = connection.recv(1 << 16)
                    now_s = time.perf_counter()
                    if b"data: {" in data:
                        self.arrivals_s.append(now_s)
                    tail = (tail + data)[-64:]
                    if not data or b"[DONE]" in tail:
                        break

    def stop(self) -> None:
        """Ends `run`."""
        self._stop.set()

    def longest_gap_s(self) -> float:
        """Returns the longest time between two events, leaving out the first few."""
        times_s = self.arrivals_s[_WARM_UP_EVENTS:]
        return max(after - before for before, after in itertools.pairwise(times_s))


def beside(port: int, attack: Callable[[int], object] | None, *, seconds: float) -> tuple[float, float, object]:
    """Runs a victim, alone or during an attack, for at least `seconds`.

    Returns:
      The longest gap of the victim's stream in seconds, the slowest answer of /health in seconds, and the result of the
      attack.
    """
    victim = Victim(port)
    streaming = threading.Thread(target=victim.run)
    streaming.start()
    while len(victim.arrivals_s) < _WARM_UP_EVENTS + 20:
        time.sleep(0.01)
    end_s = time.perf_counter() + seconds
    stop = threading.Event()
    health: list[float] = []
    asking = threading.Thread(target=_ask_health, args=[port, stop, health])
    asking.start()
    result = None if attack is None else attack(port)
    time.sleep(max(end_s - time.perf_counter(), 0.3))
    stop.set()
    asking.join()
    victim.stop()
    streaming.join()
    return victim.longest_gap_s(), max(health), result


def _ask_health(port: int, stop: threading.Event, seconds: list[float]) -> None:
    request = b"GET /health HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
    while not stop.is_set():
        started_s = time.perf_counter()
        status, _ = ask(port, request)
        assert status == 200, status
        seconds.append(time.perf_counter() - started_s)
        time.sleep(0.02)


@contextmanager
def unfinished_bodies(port: int, count: int, *, declared_bytes: int, sent_bytes: int) -> Iterator[None]:
    """Opens connections that have sent only a part of their body, and closes them at the end."""
    part = request_bytes(
        "/v1/completions", b'{"model":"demo","prompt":"' + b"a" * sent_bytes, declared_bytes=declared_bytes
    )
    with ExitStack() as stack:
        for _ in range(count):
            connection = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=30))
            connection.setblocking(False)
            sent = 0
            deadline_s = time.perf_counter() + 0.2
            while sent < len(part) and time.perf_counter() < deadline_s:
                try:
                    sent += connection.send(part[sent : sent + (1 << 18)])
                except BlockingIOError:
                    time.sleep(0.001)
                except OSError:
                    break
        yield


def _post(path: str, body: dict[str, object] | bytes, *, times: int = 1) -> Callable[[int], tuple[int, int]]:
    request = request_bytes(path, body)

    def run(port: int) -> tuple[int, int]:
        answer = (0, 0)
        for _ in range(times):
            answer = ask(port, request)
        return answer

    return run


def _idle_connections(port: int) -> tuple[int, int]:
    with ExitStack() as stack:
        for _ in range(1200):
            stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=30))
        return ask(port, b"GET /health HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")


def _slow_bodies(port: int) -> tuple[int, int]:
    with unfinished_bodies(port, 30, declared_bytes=_LIMIT_BYTES, sent_bytes=7_000_000):
        return ask(port, request_bytes("/v1/completions", _MODEL | {"prompt": "x" * 100_000, "max_tokens": 1}))


def _attacks() -> dict[str, Callable[[int], tuple[int, int]]]:
    completions, chat = "/v1/completions", "/v1/chat/completions"
    values = 400_000
    bias = {str(token): "x" for token in range(values)}
    return {
        "8 MB of spaces": _post(completions, _MODEL | {"prompt": " " * 8_000_000}),
        "400,000 nulls as a prompt": _post(completions, _MODEL | {"prompt": [None] * values}),
        "400,000 prompts": _post(completions, _MODEL | {"prompt": [[1]] * values}),
        "2,600,000 empty lists": _post(completions, b'{"model":"demo","prompt":[' + b"[]," * 2_600_000 + b"1]}"),
        "nested lists": _post(completions, b'{"model":"demo","prompt":' + b"[" * 8_000_000),
        "a stop string of 100 KB": _post(
            completions, _MODEL | {"prompt": "a", "n": 128, "max_tokens": 2, "stop": "q" * 100_000}
        ),
        "16 stop strings at the limit": _post(
            completions,
            _MODEL | {"prompt": "a", "n": 16, "max_tokens": 2, "stop": ["q" * 255 + chr(65 + i) for i in range(16)]},
        ),
        "400,000 biases": _post(completions, _MODEL | {"prompt": "a", "logit_bias": bias}),
        "400,000 stream options": _post(completions, _MODEL | {"prompt": "a", "stream_options": bias}),
        "400,000 unknown fields": _post(completions, bias),
        "200,000 messages": _post(chat, _MODEL | {"messages": [{"role": "user", "content": "a"}] * 200_000}),
        "1,000 messages": _post(chat, _MODEL | {"messages": [{"role": "user", "content": "a"}] * 1000}),
        "a message of 8 MB": _post(chat, _MODEL | {"messages": [{"role": "user", "content": "a b " * 2_000_000}]}),
        "64 prompts of 60,000 spaces": _post(completions, _MODEL | {"prompt": [" " * 60_000] * 64}),
        "8 prompts echoed with log-probabilities": _post(
            completions,
            _MODEL | {"prompt": [[5] * 4095] * 8, "max_tokens": 0, "echo": True, "logprobs": 20},
        ),
        "1,200 idle connections": _idle_connections,
        "30 unfinished bodies of 7 MB": _slow_bodies,
    }


ATTACKS = _attacks()
"""The attacks by name. Each takes the server's port and returns the status and the bytes of its last answer."""


def exit_under_unfinished_bodies(server: Attacked) -> float:
    """Returns the seconds from SIGTERM to the server's exit, with 100 unfinished bodies open."""
    with unfinished_bodies(server.port, 100, declared_bytes=100_000, sent_bytes=50_000):
        started_s = time.perf_counter()
        server.process.send_signal(signal.SIGTERM)
        server.process.wait(60)
        return time.perf_counter() - started_s


def main() -> None:
    """Runs the attacks, prints a table and writes the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="rounds of each attack (default %(default)s)")
    parser.add_argument("--only", default="", help="run only the attacks whose names contain this text")
    options = parser.parse_args()
    figures: dict[str, dict[str, float]] = {}
    with attacked_server() as server:
        for _ in range(2):  # warm up every code path and cache
            beside(server.port, None, seconds=1)
        before_bytes = server.rss_bytes()
        names = [name for name in ATTACKS if options.only in name]
        print(f"{'attack':44} {'status':>6} {'gap ms':>8} {'alone ms':>8} {'ratio':>6} {'health ms':>9} {'RSS MB':>7}")
        for name in names:
            ratios, gaps, alones, healths, statuses = [], [], [], [], set()
            for _ in range(options.rounds):
                alone_s, _, _ = beside(server.port, None, seconds=2)
                gap_s, health_s, (status, _) = beside(server.port, ATTACKS[name], seconds=2)  # type: ignore[misc]
                ratios.append(gap_s / alone_s)
                gaps.append(gap_s)
                alones.append(alone_s)
                healths.append(health_s)
                statuses.add(status)
            figures[name] = {
                "gap_ms": 1e3 * statistics.median(gaps),
                "alone_ms": 1e3 * statistics.median(alones),
                "ratio": statistics.median(ratios),
                "health_ms": 1e3 * max(healths),
                "rss_mb": server.rss_bytes() / 1e6,
            }
            row = figures[name]
            times = f"{row['gap_ms']:8.1f} {row['alone_ms']:8.1f} {row['ratio']:6.2f} {row['health_ms']:9.1f}"
            print(f"{name:44} {'/'.join(map(str, statuses)):>6} {times} {row['rss_mb']:7.0f}", flush=True)
        after_bytes = server.rss_bytes()
        exit_s = exit_under_unfinished_bodies(server)
    summary: dict[str, object] = {
        "rss_ratio": after_bytes / before_bytes,
        "exit_s": exit_s,
        "exit_status": server.process.returncode,
    }
    print(json.dumps(summary))
    print(write_result("hostile", {"attacks": figures, "rounds": options.rounds, **summary}))


if __name__ == "__main__":
    main()
