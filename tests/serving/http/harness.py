"""A server on a thread over the fake engine, with clients."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

import httpx
import openai

from ryzjax.obs.metrics import EngineMetrics
from ryzjax.serving.http import HttpConfig, HttpServer
from tests.serving.http.fake_engine import FakeEngine


@dataclass
class Running:
    """A server on a thread, its engine and clients."""

    engine: FakeEngine
    server: HttpServer
    http: httpx.Client
    openai: openai.OpenAI
    metrics: EngineMetrics
    thread: threading.Thread
    exit_status: list[int]

    def post(self, path: str = "/v1/completions", **body: object) -> httpx.Response:
        return self.http.post(path, json={"model": "fake", **body})


ServerFactory = Callable[..., AbstractContextManager[Running]]


@contextmanager
def serve(**settings: object) -> Iterator[Running]:
    engine, metrics = FakeEngine(), EngineMetrics(model_name="fake")
    config = HttpConfig(**{"port": 0, "drain_timeout_s": 5.0, **settings})  # type: ignore[arg-type]
    server = HttpServer(engine, config, metrics=metrics)
    exit_status: list[int] = []
    thread = threading.Thread(target=lambda: exit_status.append(server.run()), daemon=True)
    thread.start()
    assert server.wait_until_up(20)
    url = f"http://127.0.0.1:{server.port}"
    key = config.api_key or "none"
    with (
        httpx.Client(base_url=url, timeout=20) as http,
        openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0, timeout=20) as client,
    ):
        yield Running(engine, server, http, client, metrics, thread, exit_status)
        engine.release()
        server.request_drain()
        thread.join(20)
        assert not thread.is_alive()
        assert exit_status == [0]
        assert engine.running == set()
