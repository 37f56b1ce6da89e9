"""Sizes are checked before any work, and large work does not run on the event loop."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable

import httpx
import pydantic_core
import pytest

from ryzjax.serving.http.openai.fields import JsonBody
from ryzjax.serving.http.workers import INLINE_SIZE
from tests.serving.http.fake_engine import CONTEXT, FakeTokenizer, reply
from tests.serving.http.harness import Running, ServerFactory
from tests.serving.http.test_bad_input import CHAT, COMPLETIONS, USER, error_of

MANY = 300_000


@pytest.mark.parametrize(
    ("path", "field", "value", "words"),
    [
        (
            COMPLETIONS,
            "prompt",
            " " * 1_000_000,
            "maximum context length is 256 tokens. However, the prompt has 1000000",
        ),
        (COMPLETIONS, "prompt", ["a", "b" * 1000], "prompt 1 has 1000 characters"),
        (COMPLETIONS, "prompt", [1] * 300, "maximum context length is 256 tokens. However, prompt has 300 tokens"),
        (COMPLETIONS, "prompt", [[1], [1] * 300], "prompt 1 has 300 tokens"),
        (COMPLETIONS, "prompt", {str(i): 1 for i in range(300)}, "prompt has 300 fields; at most 256"),
        (COMPLETIONS, "stop", ["a"] * 17, "stop has 17 items; at most 16 are taken in one request (max_stop_strings)"),
        (COMPLETIONS, "stop", "q" * 257, "stop contains a string of 257 characters; at most 256 are taken (max_stop"),
        (
            COMPLETIONS,
            "logit_bias",
            {str(i): 1 for i in range(1025)},
            "1025 fields; at most 1024 are taken in one request (max",
        ),
        (COMPLETIONS, "stream_options", {str(i): 1 for i in range(300)}, "stream_options has 300 fields"),
        (COMPLETIONS, "metadata", [1] * 300, "metadata has 300 items"),
        (CHAT, "messages", USER * 1025, "messages has 1025 items; at most 1024 are taken in one request (max_messages"),
        (CHAT, "messages", [{"role": "user", "content": [{}] * 300}], "messages.0.content has 300 items"),
        (CHAT, "messages", [{"role": "user", "content": "a" * 1000}], "the prompt has 1000 characters"),
        (CHAT, "messages", [{str(i): 1 for i in range(300)}], "messages.0 has 300 fields"),
    ],
)
def test_each_part_is_bounded(running: Running, path: str, field: str, value: object, words: str) -> None:
    needed = {"prompt": "a"} if path == COMPLETIONS else {"messages": USER}
    error = error_of(running.post(path, **{**needed, field: value}))
    assert words in error["message"]
    assert error["param"] is not None and error["param"].startswith(field)


@pytest.mark.parametrize(
    "body",
    [
        {"prompt": [None] * MANY},
        {"prompt": [[1]] * MANY},
        {"prompt": "a", "metadata": [[]] * MANY},
        {"prompt": "a", "logit_bias": {str(i): "x" for i in range(MANY)}},
        {str(i): 1 for i in range(MANY)},
    ],
)
def test_bodies_of_many_values_are_not_parsed(
    running: Running, body: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    parsed: list[int] = []
    from_json = pydantic_core.from_json
    monkeypatch.setattr(pydantic_core, "from_json", lambda *a, **k: parsed.append(1) or from_json(*a, **k))
    content = json.dumps({"model": "fake", **body}).encode()
    error = error_of(running.http.post(COMPLETIONS, content=content))
    assert error["code"] == "body_too_complex" and parsed == []


def test_validation_stops_at_the_first_error(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    counts: list[int] = []
    validate = JsonBody.model_validate.__func__  # type: ignore[attr-defined]

    def counted(cls: type[JsonBody], body: object) -> JsonBody:
        try:
            return validate(cls, body)
        except pydantic_core.ValidationError as error:
            counts.append(error.error_count())
            raise

    monkeypatch.setattr(JsonBody, "model_validate", classmethod(counted))
    bad: list[tuple[str, dict[str, object]]] = [
        (COMPLETIONS, {"prompt": [None] * 250}),
        (COMPLETIONS, {"prompt": [[None] * 250] * 60}),
        (COMPLETIONS, {"prompt": "a", "stop": [None] * 16}),
        (COMPLETIONS, {"prompt": "a", "stop_token_ids": [None] * 250}),
        (COMPLETIONS, {"prompt": "a", "logit_bias": {str(i): None for i in range(1000)}}),
        (CHAT, {"messages": [None] * 1000}),
        (CHAT, {"messages": [{"role": 1, "content": [None] * 250}] * 1000}),
        ("/v1/embeddings", {"input": [None] * 250}),
    ]
    for path, body in bad:
        error_of(running.post(path, **body))
    assert 6 <= len(counts) <= len(bad) and max(counts) <= 8


class SlowTokenizer(FakeTokenizer):
    """A tokenizer that encodes and renders texts with SLOW only once the test allows it."""

    def __init__(self) -> None:
        self.go_on = threading.Event()
        self.threads: list[str] = []

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        self.threads.append(threading.current_thread().name)
        if "SLOW" in text:
            assert self.go_on.wait(10)
            text = "slow"
        return super().encode(text, add_special_tokens=add_special_tokens)

    def max_chars(self, num_tokens: int) -> int:
        return 1_000_000


def _slow_completion(running: Running) -> httpx.Response:
    return running.post(prompt="SLOW" * INLINE_SIZE, max_tokens=3)


def _slow_chat(running: Running) -> httpx.Response:
    messages = [{"role": "user", "content": "SLOW"}] * 100
    return running.post(CHAT, messages=messages, max_tokens=3)


def _slow_embedding(running: Running) -> httpx.Response:
    return running.post("/v1/embeddings", input=["a", "SLOW" * INLINE_SIZE * 8])


@pytest.mark.parametrize("ask", [_slow_completion, _slow_chat, _slow_embedding])
def test_others_are_answered_while_a_prompt_is_tokenized(
    serving: ServerFactory, ask: Callable[[Running], httpx.Response]
) -> None:
    with serving() as running:
        tokenizer = SlowTokenizer()
        running.engine.tokenizer = tokenizer
        answers: list[httpx.Response] = []
        asking = [threading.Thread(target=lambda: answers.append(ask(running))) for _ in range(3)]
        for thread in asking:
            thread.start()
        # Several large requests wait, and prompts of short and medium length still get through.
        for prompt in ("abc", "x" * 200, "b" * (INLINE_SIZE + 10)):
            answer = running.post(prompt=prompt, max_tokens=3)
            if len(prompt) <= CONTEXT:
                assert answer.json()["choices"][0]["text"] == reply(prompt, 3)
            else:
                error_of(answer)
        assert running.http.get("/health").status_code == 200
        assert answers == []
        tokenizer.go_on.set()
        for thread in asking:
            thread.join(10)
        assert [answer.status_code for answer in answers] == [200] * 3
        assert any("ryzjax-http" in name for name in tokenizer.threads)


def test_a_large_answer_is_the_same_as_a_small_one_and_comes_in_pieces(serving: ServerFactory) -> None:
    with serving() as running:
        body = {"prompt": [[7 + i] * 250 for i in range(6)], "max_tokens": 3, "echo": True, "logprobs": 20, "n": 2}
        whole = running.post(**body)
        assert whole.headers.get("transfer-encoding") == "chunked"  # so the whole answer was never in memory
        choices = whole.json()["choices"]
        for index, choice in enumerate(choices):
            alone = running.post(**{**body, "prompt": body["prompt"][index // 2], "n": 1}).json()["choices"][0]
            assert {**choice, "index": 0} == alone
            assert len(choice["logprobs"]["top_logprobs"]) == 253
        small = running.post(prompt="abc", max_tokens=3)
        assert "content-length" in small.headers


def test_log_probabilities_of_one_answer_are_bounded(serving: ServerFactory) -> None:
    with serving(max_logprobs_per_request=100) as running:
        body = {"prompt": "abcd", "max_tokens": 10, "n": 2}
        error = error_of(running.post(**body, logprobs=5))
        assert "the answer may have 120 log-probabilities; at most 100" in error["message"]
        assert error["param"] == "logprobs"
        assert running.post(**body, logprobs=4).status_code == 200
        assert running.post(**body, logprobs=5, stream=True).status_code == 200, "a stream keeps none"
        assert running.post(**body).status_code == 200
        scored = {"prompt": "a" * 50, "max_tokens": 0, "echo": True}
        assert running.post(**scored, logprobs=0).status_code == 200
        assert "102 log-prob" in error_of(running.post(**scored, logprobs=1))["message"]
        assert running.post(CHAT, messages=USER, logprobs=True, top_logprobs=1, max_tokens=50).status_code == 200
        error_of(running.post(CHAT, messages=USER, logprobs=True, top_logprobs=1, max_tokens=51))


def test_integers_may_be_written_as_floats(running: Running) -> None:
    body = {
        "prompt": "abc",
        "max_tokens": 4.0,
        "n": 2.0,
        "seed": 5.0,
        "stop_token_ids": [3.0],
        "top_k": -1.0,
        "logprobs": 2.0,
    }
    answer = running.post(**body)
    assert [choice["text"] for choice in answer.json()["choices"]] == [reply("abc", 4)] * 2
    params = running.engine.params[-1]
    assert (params.max_tokens, params.stop_token_ids, type(params.seed)) == (4, (3,), int)
    assert error_of(running.post(prompt="abc", max_tokens=4.5))["param"] == "max_tokens"
    assert error_of(running.post(prompt="abc", seed=2.0**60))["param"] == "seed"
    assert error_of(running.post(prompt="abc", n=True))["param"] == "n"


@pytest.mark.parametrize(
    ("field", "bad", "good"),
    [
        ("metadata", 5, {"a": "b"}),
        ("metadata", {"a": 5}, {}),
        ("metadata", {str(i): "x" for i in range(17)}, None),
        ("user", ["x"], "x"),
        ("store", "yes", False),
        ("parallel_tool_calls", 1, True),
        ("service_tier", 3, "auto"),
        ("prompt_cache_key", {}, "key"),
        ("prompt_cache_retention", 24, "24h"),
        ("safety_identifier", True, "me"),
    ],
)
def test_ignored_fields_are_checked_all_the_same(running: Running, field: str, bad: object, good: object) -> None:
    error = error_of(running.post(CHAT, messages=USER, max_tokens=1, **{field: bad}))
    assert error["param"] == field and "wrong type" in error["message"]
    assert running.post(CHAT, messages=USER, max_tokens=1, **{field: good}).status_code == 200
