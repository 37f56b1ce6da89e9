"""`ryzjax bench serve`: the report's numbers worked out by hand, and a run against a small server that refuses some."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from ryzjax.bench.client import RequestTimes
from ryzjax.bench.report import serve_report
from ryzjax.bench.serve import BenchServe
from ryzjax.errors import ConfigError


def test_report_by_hand():
    times = [
        RequestTimes(prompt_tokens=10, output_tokens=3, ttft_s=0.1, itl_s=[0.02, 0.04], e2el_s=0.16),
        RequestTimes(prompt_tokens=20, output_tokens=1, ttft_s=0.3, e2el_s=0.3),
        RequestTimes(prompt_tokens=99, error="HTTP 429"),
    ]
    report = serve_report(
        times, duration_s=2.0, model="m", request_rate=float("inf"), max_concurrency=4, goodput_ms={"ttft": 200}
    )
    wanted = {
        "completed": 2,
        "failed": 1,
        "num_prompts": 3,
        "total_input_tokens": 30,
        "total_output_tokens": 4,
        "request_throughput": 1.0,
        "output_throughput": 2.0,
        "total_token_throughput": 17.0,
        "request_goodput": 0.5,
        "mean_ttft_ms": pytest.approx(200.0),
        "median_itl_ms": pytest.approx(30.0),
        "mean_tpot_ms": pytest.approx(30.0),
        "p99_e2el_ms": pytest.approx(298.6),
        "request_rate": "inf",
        "errors": ["HTTP 429"],
    }
    assert {key: report[key] for key in wanted} == wanted
    schema = ["date", "backend", "model_id", "tokenizer_id", "max_concurrency", "duration"]
    schema += [f"{s}_{n}_ms" for s in ("mean", "median", "std", "p99") for n in ("ttft", "tpot", "itl", "e2el")]
    assert set(schema) <= set(report)
    json.dumps(report)


class Handler(BaseHTTPRequestHandler):
    """Streams the requested number of tokens, and refuses prompts of 13 tokens."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.answer(200, b'{"data": [{"id": "tiny"}]}')

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert body["model"] == "tiny" and body["stream"]
        # Like `transformers serve`, this accepts only text and refuses fields that it does not know.
        if isinstance(body["prompt"], str) == ("ignore_eos" in body):
            self.answer(422, b'{"error": {"message": "unexpected"}}')
            return
        if len(body["prompt"]) == 13:
            self.answer(429, b'{"error": {"message": "full"}}')
            return
        events = [{"choices": [{"text": "x"}]} for _ in range(body["max_tokens"])]
        usage = {"completion_tokens": body["max_tokens"]}
        if isinstance(body["prompt"], str):
            usage["prompt_tokens"] = body["prompt"].isalpha() and len(body["prompt"]) + 1
        events.append({"choices": [], "usage": usage})
        lines = "".join(f"data: {json.dumps(event)}\n\n" for event in events) + "data: [DONE]\n\n"
        self.answer(200, lines.encode())

    def answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def url() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_run(url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    output = tmp_path / "out.json"
    status = BenchServe(
        base_url=url, num_prompts=12, input_tokens=8, output_tokens=5, max_concurrency=3, output=str(output)
    ).run()
    report = json.loads(output.read_text())
    assert status == 0
    assert (report["completed"], report["failed"], report["total_output_tokens"]) == (12, 0, 60)
    assert report["hardware"]["cores"] >= 1
    assert "time to first token" in capsys.readouterr().out


def test_prompts_as_text_are_as_long_as_the_server_says(url: str, tmp_path: Path):
    output = tmp_path / "out.json"
    status = BenchServe(
        base_url=url,
        num_prompts=4,
        input_tokens=8,
        output_tokens=5,
        prompts="text",
        ignore_eos=False,
        output=str(output),
    ).run()
    assert status == 0
    assert json.loads(output.read_text())["total_input_tokens"] == 4 * 9


def test_refusals_are_counted_and_shown(url: str, capsys: pytest.CaptureFixture[str]):
    assert BenchServe(base_url=url, num_prompts=3, input_tokens=13, output_tokens=2, warmup=0).run() == 1
    assert "HTTP 429" in capsys.readouterr().out


def test_no_server_is_a_clear_error():
    with pytest.raises(ConfigError, match=r"http://127\.0\.0\.1:9.*lists no model"):
        BenchServe(base_url="http://127.0.0.1:9").run()
