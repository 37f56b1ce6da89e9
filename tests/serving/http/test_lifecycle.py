"""Health, readiness, metrics and the drain."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import httpx
import pytest

from ryzjax.errors import ConfigError
from ryzjax.obs.metrics import EngineMetrics
from ryzjax.serving.http import HttpConfig, HttpServer
from tests.serving.http.fake_engine import FakeEngine, reply
from tests.serving.http.harness import Running, ServerFactory
from tests.serving.http.waiting import wait_for

ROOT = Path(__file__).parents[3]


def test_health_ready_and_version(serving: ServerFactory) -> None:
    with serving() as running:
        assert running.http.get("/health").json() == {"status": "ok"}
        assert running.http.get("/ready").json() == {"status": "ready"}
        assert set(running.http.get("/version").json()) == {"version"}
        running.engine.is_ready = False
        response = running.http.get("/ready")
        assert (response.status_code, response.json()) == (503, {"status": "starting"})
        assert running.http.get("/health").status_code == 200
        refused = running.post(prompt="abc")
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "not_ready")
        assert refused.headers["retry-after"] == "5"
        running.engine.is_healthy = False
        assert running.http.get("/health").status_code == 503
        assert running.http.get("/ready").json() == {"status": "failed"}
        assert "ryzjax:engine_healthy" in running.http.get("/metrics").text


def test_metrics(running: Running) -> None:
    running.metrics.step_done(3, 4, 2, 1, 0.5)
    response = running.http.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain")
    assert 'ryzjax:num_requests_running{model_name="fake"} 2.0' in response.text
    assert 'ryzjax:engine_healthy{model_name="fake"} 1.0' in response.text


def test_served_model_name(serving: ServerFactory) -> None:
    with serving(served_model_name="org/name") as running:
        assert running.openai.models.list().data[0].id == "org/name"
        assert running.openai.models.retrieve("org/name").id == "org/name"
        assert running.openai.completions.create(model="org/name", prompt="a", max_tokens=1).model == "org/name"
        assert running.post(prompt="a").status_code == 404


def test_drain_finishes_what_runs_and_refuses_the_rest(serving: ServerFactory) -> None:
    with serving() as running:
        answers: list[httpx.Response] = []

        def ask() -> None:
            answers.append(running.post(prompt="HOLD", max_tokens=30, stream=True))

        asking = threading.Thread(target=ask)
        asking.start()
        wait_for(lambda: len(running.engine.running) == 1)
        running.server.request_drain()
        wait_for(lambda: running.http.get("/ready").status_code == 503)
        assert running.http.get("/ready").json() == {"status": "draining"}
        assert running.http.get("/health").status_code == 200
        refused = running.post(prompt="abc")
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "draining")
        assert "retry-after" in refused.headers
        assert running.engine.drained_with_s is None and running.thread.is_alive()
        running.engine.release()
        asking.join(10)
        assert answers[0].text.endswith("data: [DONE]\n\n")
        assert running.engine.aborted == []
        running.thread.join(10)
        assert running.exit_status == [0]
        assert running.engine.drained_with_s is not None


def test_drain_is_bounded(serving: ServerFactory) -> None:
    with serving(drain_timeout_s=0.1) as running:
        asking = threading.Thread(target=lambda: running.post(prompt="HOLD", stream=True))
        asking.start()
        wait_for(lambda: len(running.engine.running) == 1)
        running.server.request_drain()
        running.thread.join(10)
        assert running.exit_status == [0]
        assert running.engine.drained_with_s == 0.0
        assert (
            "(drain_timeout_s=0.1)" in running.engine.drain_reasons[-1]
        )  # the timeout from the config, not what was left of it
        asking.join(10)


SERVER = """
import sys
from ryzjax.obs.metrics import EngineMetrics
from ryzjax.serving.http import HttpConfig, HttpServer
from tests.serving.http.fake_engine import FakeEngine
server = HttpServer(FakeEngine(), HttpConfig(port=0), metrics=EngineMetrics())
print(server.port, flush=True)
sys.exit(server.run())
"""


@pytest.mark.parametrize("signals", [[signal.SIGTERM], [signal.SIGINT], [signal.SIGTERM, signal.SIGTERM]])
def test_signals(signals: list[signal.Signals]) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", SERVER], cwd=ROOT, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(ROOT)}
    ) as process:
        try:
            assert process.stdout is not None
            url = f"http://127.0.0.1:{int(process.stdout.readline())}"
            transport = httpx.HTTPTransport(retries=20)
            with httpx.Client(base_url=url, transport=transport, timeout=20) as client:
                wait_for(lambda: client.get("/ready").status_code == 200)
                if len(signals) == 1:
                    answer = client.post("/v1/completions", json={"model": "fake", "prompt": "abc", "max_tokens": 3})
                    assert answer.json()["choices"][0]["text"] == reply("abc", 3)
                    process.send_signal(signals[0])
                    assert process.wait(10) == 0
                    return
                # This request never ends by itself. The first signal waits for it, the second does not.
                body = {"model": "fake", "prompt": "HOLD", "stream": True}
                with client.stream("POST", "/v1/completions", json=body) as response:
                    chunks = response.iter_text()  # httpx closes the connection if the iterator is dropped
                    next(chunks)
                    process.send_signal(signals[0])
                    wait_for(lambda: httpx.get(f"{url}/ready").status_code == 503)
                    assert process.poll() is None
                    process.send_signal(signals[1])
                    assert process.wait(10) == 128 + signals[1]
        finally:
            if process.poll() is None:
                process.kill()


def test_a_taken_port_is_named(running: Running) -> None:
    with pytest.raises(ConfigError, match=f"port={running.server.port}: .*in use"):
        HttpServer(FakeEngine(), HttpConfig(port=running.server.port), metrics=EngineMetrics())


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"port": 70_000}, "port=70000"),
        ({"max_body_bytes": 0}, "max_body_bytes=0"),
        ({"drain_timeout_s": -1.0}, "drain_timeout_s=-1.0"),
        ({"api_key": ""}, "api_key is empty"),
        ({"served_model_name": ""}, "served_model_name is empty"),
    ],
)
def test_bad_settings(settings: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        HttpConfig(**settings)  # type: ignore[arg-type]


def test_the_key_is_not_shown() -> None:
    assert "sesame" not in repr(HttpConfig(api_key="sesame"))


def test_the_card_of_a_quantized_model_does_not_tell_where_its_base_is(serving: ServerFactory) -> None:
    with serving() as running:
        running.engine.certificate = {"base_model": "/srv/private/llama", "bits": 4}
        (card,) = running.http.get("/v1/models").json()["data"]
        assert card["quantization"] == {"base_model": "llama", "bits": 4}
