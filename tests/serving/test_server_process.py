"""The real server in a process of its own, through the stock openai client."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import httpx
import openai
import pytest

from ryzjax.data.tokenizer import Tokenizer
from ryzjax.shipped import demo_folder

pytestmark = pytest.mark.essential

MODEL = "demo"
FLAGS = ("--dtype", "float32", "--max-context-tokens", "512")
GOLDEN = json.loads((Path(__file__).parents[1] / "goldens" / "demo.json").read_text(encoding="utf-8"))["cases"]
TEXTS = [case for case in GOLDEN if case["chat"] is None]


@dataclass
class Server:
    """A running `ryzjax serve`."""

    process: subprocess.Popen[str]
    url: str
    log_reader: threading.Thread

    def finish(self) -> int:
        """Waits for the exit status."""
        status = self.process.wait(timeout=30)
        self.log_reader.join()
        assert self.process.stderr is not None
        self.process.stderr.close()
        return status

    def metric(self, name: str) -> float:
        text = httpx.get(f"{self.url}/metrics").text
        match = re.search(rf"^ryzjax:{name}{{[^}}]*}} (\S+)$", text, re.M)
        assert match, f"no metric {name} in\n{text}"
        return float(match[1])

    def until(self, name: str, value: float) -> None:
        deadline = time.monotonic() + 20
        while self.metric(name) != value:
            assert time.monotonic() < deadline, f"{name} did not become {value}"
            time.sleep(0.02)


def start(model: Path, compile_cache: str, *flags: str) -> Server:
    command = [sys.executable, "-m", "ryzjax.cli.main", "serve", str(model), "--port", "0"]
    process = subprocess.Popen(
        [*command, "--compile-cache", compile_cache, *flags], stderr=subprocess.PIPE, text=True, bufsize=1
    )
    assert process.stderr is not None
    seen: list[str] = []
    for line in process.stderr:
        seen.append(line)
        match = re.search(r"serving \S+ on (http://\S+)", line)
        if match:
            # Keeps the pipe from filling up while the server runs.
            reader = threading.Thread(target=process.stderr.read, daemon=True)
            reader.start()
            return Server(process, match[1], reader)
    raise AssertionError(f"the server did not start:\n{''.join(seen)}")


@pytest.fixture(scope="module")
def server(compile_cache: str) -> Iterator[Server]:
    server = start(demo_folder(), compile_cache, *FLAGS)
    yield server
    server.process.send_signal(signal.SIGTERM)
    assert server.finish() == 0


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_health_models_version(server: Server, client: openai.OpenAI):
    assert httpx.get(f"{server.url}/health").status_code == httpx.get(f"{server.url}/ready").status_code == 200
    assert [model.id for model in client.models.list()] == [MODEL]
    assert "version" in httpx.get(f"{server.url}/version").json()


def test_greedy_completions_equal_the_goldens(client: openai.OpenAI):
    tokenizer = Tokenizer.load(demo_folder())
    assert len(TEXTS) == 5
    for case in TEXTS:
        prompt_len = len(case["prompt_ids"])
        expected = case["ids"][prompt_len:]
        answer = client.completions.create(
            model=MODEL,
            prompt=case["prompt"],
            max_tokens=len(expected),
            temperature=0,
            logprobs=1,
            extra_body={"ignore_eos": True},
        )
        assert answer.usage is not None and answer.usage.completion_tokens == len(expected)
        assert answer.choices[0].text == tokenizer.decode(expected)
        logprobs = answer.choices[0].logprobs
        assert logprobs is not None and logprobs.token_logprobs is not None
        assert logprobs.token_logprobs == pytest.approx(case["token_logprobs"][prompt_len - 1 :], abs=1e-3)


def test_echo_equals_the_goldens(client: openai.OpenAI):
    tokenizer = Tokenizer.load(demo_folder())
    ids = [case["ids"] for case in TEXTS]
    scored = client.completions.create(model=MODEL, prompt=ids, max_tokens=0, echo=True, logprobs=2)
    for case, choice in zip(TEXTS, scored.choices, strict=True):
        logprobs = choice.logprobs
        assert choice.text == tokenizer.decode(case["ids"]) and choice.finish_reason == "length"
        assert logprobs is not None and logprobs.token_logprobs is not None and logprobs.tokens is not None
        assert logprobs.token_logprobs[0] is None
        assert logprobs.token_logprobs[1:] == pytest.approx(case["token_logprobs"], abs=1e-3)
        # Every token of the text is at the offset that is reported; a special token has no text.
        for token, offset in zip(logprobs.tokens, logprobs.text_offset or [], strict=True):
            assert token.startswith("<|") or choice.text.startswith(token, offset)


def test_scores_as_lm_evaluation_harness_asks_for_them(client: openai.OpenAI):
    """Its `loglikelihood`: context and continuation as token ids, one token more; is the continuation greedy?"""
    case = TEXTS[0]
    context, greedy = len(case["prompt_ids"]), case["ids"][:40]
    other = [*greedy[:-1], greedy[-1] + 1]
    answer = client.completions.create(
        model=MODEL, prompt=[greedy, other], max_tokens=1, temperature=0, logprobs=1, echo=True, seed=1234
    )
    sums, is_greedy = [], []
    for choice in answer.choices:
        assert choice.logprobs is not None and choice.logprobs.top_logprobs is not None
        values = (choice.logprobs.token_logprobs or [])[context:-1]
        tops = choice.logprobs.top_logprobs[context:-1]
        sums.append(sum(values))
        is_greedy.append(all(value == max(top.values()) for value, top in zip(values, tops, strict=True)))
    assert sums[0] == pytest.approx(sum(case["token_logprobs"][context - 1 : 39]), abs=1e-2)
    assert sums[1] < sums[0] - 1
    assert is_greedy == [True, False]


def test_embeddings(server: Server, client: openai.OpenAI):
    texts = ["Once upon a time", "Once upon a time there", "The dog ran. " * 30]
    answer = client.embeddings.create(model=MODEL, input=texts)
    assert answer.usage.prompt_tokens == sum(
        client.completions.create(model=MODEL, prompt=text, max_tokens=1).usage.prompt_tokens  # type: ignore[union-attr]
        for text in texts
    )
    for one in answer.data:
        assert len(one.embedding) == 256 and sum(x * x for x in one.embedding) == pytest.approx(1, abs=1e-5)
    means = client.embeddings.create(model=MODEL, input=texts, extra_body={"pooling": "mean"})
    assert means.data[2].embedding != pytest.approx(answer.data[2].embedding, abs=1e-2)
    with pytest.raises(
        openai.BadRequestError, match="dimensions=257 is out of range; expected an integer from 1 to 256"
    ):
        client.embeddings.create(model=MODEL, input="a", dimensions=257)
    with pytest.raises(openai.BadRequestError, match="input 1 has") as error:
        client.embeddings.create(model=MODEL, input=["a", "time " * 600])
    assert error.value.code == "context_length_exceeded"
    server.until("kv_cache_usage_perc", 0)


def test_streaming_equals_not_streaming(client: openai.OpenAI):
    settings = {"model": MODEL, "prompt": "One day, a", "max_tokens": 60, "temperature": 0.9, "seed": 3, "n": 2}
    whole = client.completions.create(**settings)
    texts, usage = {0: "", 1: ""}, None
    for chunk in client.completions.create(**settings, stream=True, stream_options={"include_usage": True}):
        for choice in chunk.choices:
            texts[choice.index] += choice.text
        usage = chunk.usage or usage
    assert texts == {choice.index: choice.text for choice in whole.choices}
    assert texts[0] != texts[1]
    assert usage == whole.usage


def test_chat(client: openai.OpenAI):
    settings = {
        "model": MODEL,
        "messages": [{"role": "user", "content": "Once upon a time"}],
        "max_completion_tokens": 20,
        "temperature": 0,
        "logprobs": True,
        "top_logprobs": 2,
    }
    whole = client.chat.completions.create(**settings).choices[0]
    assert whole.message.role == "assistant" and whole.logprobs is not None
    assert whole.logprobs.content is not None and len(whole.logprobs.content[0].top_logprobs) == 2
    deltas = [c.choices[0].delta for c in client.chat.completions.create(**settings, stream=True) if c.choices]
    assert deltas[0].role == "assistant"
    assert "".join(delta.content or "" for delta in deltas) == whole.message.content


def test_bad_requests(server: Server, client: openai.OpenAI):
    with pytest.raises(openai.BadRequestError) as error:
        client.completions.create(model=MODEL, prompt="time " * 600)
    assert error.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError, match="temperature"):
        client.completions.create(model=MODEL, prompt="a", temperature=-1)
    with pytest.raises(openai.NotFoundError, match="nobody"):
        client.completions.create(model="nobody", prompt="a")
    url = f"{server.url}/v1/completions"
    headers = {"content-type": "application/json"}
    assert httpx.post(url, content=b"{not json", headers=headers).status_code == 400
    assert httpx.post(url, content=b'"' + b"a" * 9_000_000 + b'"', headers=headers).status_code == 413


def test_a_client_that_leaves_frees_its_pages(server: Server):
    body = {"model": MODEL, "prompt": "Once", "max_tokens": 500, "ignore_eos": True, "stream": True, "n": 8}
    with httpx.stream("POST", f"{server.url}/v1/completions", json=body) as response:
        lines = response.iter_lines()
        for _ in range(4):
            next(lines)
        response.close()
    server.until("num_requests_running", 0)
    server.until("kv_cache_usage_perc", 0)


def test_a_mixed_load_of_200_requests_compiles_nothing(server: Server, client: openai.OpenAI):
    def greedy(i: int) -> str:
        prompt = " ".join(["The little dog"] * (1 + i % 20))
        return (
            client.completions.create(model=MODEL, prompt=prompt, max_tokens=5 + i % 30, temperature=0).choices[0].text
        )

    def noise(i: int) -> None:
        client.completions.create(
            model=MODEL,
            prompt="Lily " * (1 + i % 90),
            max_tokens=1 + i % 50,
            temperature=1.0,
            top_p=0.9,
            frequency_penalty=(i % 3) * 0.5,
            logit_bias={"5": 1},
            n=1 + i % 3,
        )

    def reading(i: int) -> None:
        client.completions.create(model=MODEL, prompt="Tom " * (1 + i * 4), max_tokens=i % 3, echo=True, logprobs=3)
        client.embeddings.create(model=MODEL, input=["Tom " * (1 + i * 4), "a"], extra_body={"pooling": "mean"})

    alone = [greedy(i) for i in range(20)]
    with ThreadPoolExecutor(32) as pool:
        others = [pool.submit(noise, i) for i in range(100)] + [pool.submit(reading, i) for i in range(40)]
        answers = [pool.submit(greedy, i % 20) for i in range(100)]
        for i, answer in enumerate(answers):
            assert answer.result() == alone[i % 20]
        for other in others:
            other.result()
    assert server.metric("recompiles_total") == 0
    server.until("kv_cache_usage_perc", 0)


def test_sigterm_lets_running_streams_finish(compile_cache: str):
    server = start(demo_folder(), compile_cache, *FLAGS)
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        stream = client.completions.create(
            model=MODEL, prompt="Once", max_tokens=400, temperature=0, stream=True, extra_body={"ignore_eos": True}
        )
        chunks = [next(iter(stream))]
        server.process.send_signal(signal.SIGTERM)
        chunks += list(stream)
    assert chunks[-1].choices[0].finish_reason == "length"
    assert server.finish() == 0
