"""Bad requests get a 4xx that names the problem, and affect no other request."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator

import httpx
import pytest

from tests.serving.http.fake_engine import reply
from tests.serving.http.harness import Running, ServerFactory

pytestmark = pytest.mark.essential

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
USER = [{"role": "user", "content": "hi"}]


def error_of(response: httpx.Response, status: int = 400) -> dict[str, str]:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


@pytest.mark.parametrize(
    ("body", "param", "words"),
    [
        ({}, "prompt", "missing"),
        ({"prompt": []}, "prompt", "empty"),
        ({"prompt": [[]]}, "prompt", "no tokens"),
        ({"prompt": ["a", 1]}, "prompt", "list of strings"),
        ({"prompt": [True]}, "prompt", "list of strings"),
        ({"prompt": {"a": 1}}, "prompt", "list of strings"),
        ({"prompt": [600]}, "prompt", "600"),
        ({"prompt": [-1]}, "prompt", "-1"),
        ({"prompt": [10**30]}, "prompt", "vocabulary"),
        ({"prompt": ["a"] * 65}, "prompt", "65 prompts; at most 64"),
        ({"prompt": ["a"] * 5, "n": 60}, "n", "300 sequences"),
        ({"prompt": "a", "n": 16384}, "n", "16384"),
        ({"prompt": "a", "n": 0}, "n", "n=0"),
        ({"prompt": "a", "n": "1"}, "n", "'1'"),
        ({"prompt": "a", "model": 5}, "model", "5"),
        ({"prompt": "a", "temperature": "hot"}, "temperature", "'hot'"),
        ({"prompt": "a", "top_p": 0}, "top_p", "out of range"),
        ({"prompt": "a", "max_tokens": 0}, "max_tokens", "out of range"),
        ({"prompt": "a", "max_tokens": 1.5}, "max_tokens", "1.5"),
        ({"prompt": "a", "max_tokens": 10**12}, "max_tokens", "out of range"),
        ({"prompt": "a", "min_tokens": 99}, "min_tokens", "larger than max_tokens"),
        ({"prompt": "a", "stop": ""}, "stop", "non-empty"),
        ({"prompt": "a", "stop": 3}, "stop", "a string or a list"),
        ({"prompt": "a", "stop": ["x"] * 17}, "stop", "at most 16"),
        ({"prompt": "a", "logprobs": 21}, "logprobs", "21"),
        ({"prompt": "a", "logprobs": -1}, "logprobs", "logprobs=-1 is out of range"),
        ({"prompt": "a", "logprobs": True}, "logprobs", "True"),
        ({"prompt": "a", "logit_bias": {"x": 1}}, "logit_bias", "'x'"),
        ({"prompt": "a", "logit_bias": {"9" * 5000: 1}}, "logit_bias", "token ids"),
        ({"prompt": "a", "logit_bias": {"1": 101}}, "logit_bias", "101"),
        ({"prompt": "a", "logit_bias": {"1": None}}, "logit_bias.1", "None"),
        ({"prompt": "a", "stream_options": {"x": 1}}, "stream_options.x", "unknown"),
        ({"prompt": "a", "temprature": 1, "topp": 1}, "temprature", "'temprature', 'topp'"),
        ({"prompt": "a", "best_of": 4}, "best_of", "not supported"),
        ({"prompt": "a", "best_of": True}, "best_of", "not supported"),
        ({"prompt": "a", "echo": 1}, "echo", "1"),
        ({"prompt": "a", "echo": True, "logprobs": 21}, "logprobs", "21"),
        ({"prompt": "a", "echo": True, "max_tokens": 0, "n": 2}, "n", "n=2 with max_tokens=0"),
        ({"prompt": [-1], "echo": True}, "prompt", "-1"),
        (
            {"prompt": [5] * 256, "echo": True, "max_tokens": 1},
            "prompt",
            "However, the prompt has 256 tokens and at least 1 must be generated",
        ),
        ({"prompt": ["a", "b" * 256]}, "prompt", "However, prompt 1 has 257 tokens"),
        ({"prompt": "a", "suffix": "b"}, "suffix", "not supported"),
        ({"prompt": "a", "tools": [{"type": "function"}]}, "tools", "not supported"),
        ({"prompt": "a", "response_format": {"type": "json_object"}}, "response_format", "not supported"),
    ],
)
def test_bad_completions(running: Running, body: dict[str, object], param: str, words: str) -> None:
    error = error_of(running.post(COMPLETIONS, **body))
    assert error["param"] == param
    assert words in error["message"]
    assert error["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("body", "param", "words"),
    [
        ({}, "messages", "missing"),
        ({"messages": []}, "messages", "empty"),
        ({"messages": "hi"}, "messages", "'hi'"),
        ({"messages": ["hi"]}, "messages.0", "hi"),
        ({"messages": [{"role": "king", "content": "x"}]}, "messages.0.role", "'king'"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.role", "'tool'"),
        ({"messages": [{"role": "user"}]}, "messages.0.content", "missing"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages.0.content.str", "5"),
        ({"messages": [{"role": "user", "content": "x", "colour": 1}]}, "messages.0.colour", "unknown"),
        (
            {"messages": [{"role": "assistant", "content": "x", "tool_calls": [{}]}]},
            "messages.0.tool_calls",
            "not supported",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x"}}]}]},
            "messages.0.content",
            "'image_url'",
        ),
        ({"messages": USER, "top_logprobs": 3}, "top_logprobs", "logprobs=true"),
        ({"messages": USER, "logprobs": True, "top_logprobs": 50}, "top_logprobs", "top_logprobs=50 is out of range"),
        ({"messages": USER, "logprobs": True, "top_logprobs": -1}, "top_logprobs", "top_logprobs=-1"),
        ({"messages": USER, "max_completion_tokens": -1}, "max_completion_tokens", "max_completion_tokens=-1 is out"),
        ({"messages": USER, "max_completion_tokens": 0}, "max_completion_tokens", "expected 1 to"),
        ({"messages": USER, "max_tokens": -1}, "max_tokens", "max_tokens=-1 is out of range"),
        ({"messages": USER, "max_completion_tokens": 3, "min_tokens": 4}, "min_tokens", "max_completion_tokens=3"),
        ({"messages": USER, "logprobs": 5}, "logprobs", "5"),
        ({"messages": USER, "max_tokens": 3, "max_completion_tokens": 4}, "max_completion_tokens", "differ"),
        ({"messages": USER, "functions": [{}]}, "functions", "not supported"),
        ({"messages": USER, "audio": {}}, "audio", "not supported"),
        ({"messages": USER, "chat_template": "{{ x }}"}, "chat_template", "not supported"),
        ({"messages": USER, "prompt": "x"}, "prompt", "unknown"),
        (
            {"messages": [{"role": "user", "content": "x" * 300}]},
            "messages",
            "This model's maximum context length is 256 tokens. However, the prompt",
        ),
    ],
)
def test_bad_chats(running: Running, body: dict[str, object], param: str, words: str) -> None:
    error = error_of(running.post(CHAT, **body))
    assert error["param"] == param
    assert words in error["message"]


def test_fields_that_ask_for_nothing_are_taken(running: Running) -> None:
    body = {"tools": [], "tool_choice": "auto", "response_format": {"type": "text"}, "audio": None, "n": None}
    assert running.post(CHAT, messages=USER, max_tokens=1, **body).status_code == 200
    assert running.post(COMPLETIONS, prompt="a", echo=False, best_of=1, suffix=None).status_code == 200


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"null",
        b"[]",
        b'"text"',
        b"[" * 20_000,
        b'{"model":"fake","prompt":"\\ud800"}',
        b'{"model":"fake","prompt":"\xff"}',
        b'{"model":"fake","prompt":"a","temperature":NaN}',
        b'{"model":"fake","prompt":"a","temperature":1e999}',
        b'{"model":"fake","prompt":"a","seed":' + b"9" * 5000 + b"}",
    ],
)
def test_bodies_that_are_not_requests(running: Running, content: bytes) -> None:
    error_of(running.http.post(COMPLETIONS, content=content))


def test_unknown_routes_and_methods(running: Running) -> None:
    assert error_of(running.http.get("/nope"), 404)["code"] == "not_found"
    response = running.http.get(COMPLETIONS)
    assert error_of(response, 405)["code"] == "method_not_allowed"
    assert response.headers["allow"] == "POST"
    assert error_of(running.http.get("/docs"), 404)["code"] == "not_found"


@pytest.mark.parametrize(
    "path", ["/health/", "/ready/", "/v1/completions/", "/metrics/", "//health", "//evil.example/"]
)
def test_no_path_is_redirected(running: Running, path: str) -> None:
    url = f"http://127.0.0.1:{running.server.port}{path}"
    response = httpx.get(url, headers={"host": "evil.example"}, follow_redirects=False)
    assert error_of(response, 404)["code"] == "not_found"
    assert "location" not in response.headers


@pytest.mark.parametrize("path", ["/health", "/ready", "/metrics", "/version", "/v1/models", "/v1/models/fake"])
def test_head_is_a_get_without_a_body(running: Running, path: str) -> None:
    head, get = running.http.head(path), running.http.get(path)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-type"] == get.headers["content-type"]


def test_the_cause_of_a_failed_engine_is_not_told(running: Running) -> None:
    error = error_of(running.post(prompt="FAILED"), 503)
    assert (error["code"], error["message"]) == (
        "engine_stopped",
        "the engine has failed; the server must be restarted",
    )
    assert "secret" not in running.post(prompt="FAILED", stream=True).text


def test_a_bug_is_hidden(running: Running) -> None:
    for stream in (False, True):
        response = running.http.post(
            COMPLETIONS, json={"model": "fake", "prompt": "BUG", "stream": stream}, headers={"x-request-id": "find-me"}
        )
        error = error_of(response, 500)
        assert "find-me" in error["message"] and "secret" not in response.text
        assert response.headers["x-request-id"] == "find-me"


def test_an_engine_error_is_a_500(running: Running) -> None:
    assert error_of(running.post(prompt="FAILMID"), 500)["code"] == "generation_failed"
    # If one of several prompts fails, the others end.
    assert error_of(running.post(prompt=["a", "FAILMID", "HOLD"]), 500)["code"] == "generation_failed"
    assert error_of(running.post(prompt=["HOLD", "FULL"]), 429)["code"] == "queue_full"
    assert running.engine.running == set()


def test_request_ids(running: Running) -> None:
    given = running.http.get("/version", headers={"x-request-id": "abc-1.2:3_"}).headers["x-request-id"]
    assert given == "abc-1.2:3_"
    cleaned = running.http.get("/version", headers={"x-request-id": "a b<script>" + "x" * 500}).headers["x-request-id"]
    assert cleaned.startswith("abscriptxxx") and len(cleaned) <= 128
    made = {running.http.get("/nope").headers["x-request-id"] for _ in range(3)}
    assert len(made) == 3 and all(len(request_id) == 32 for request_id in made)


def test_body_limit(serving: ServerFactory) -> None:
    with serving(max_body_bytes=2000) as running:
        fits = json.dumps({"model": "fake", "prompt": "a", "max_tokens": 2}).encode()
        assert running.http.post(COMPLETIONS, content=fits).status_code == 200
        too_large = fits + b" " * 2000
        assert error_of(running.http.post(COMPLETIONS, content=too_large), 413)["code"] == "body_too_large"

        def chunks() -> Iterator[bytes]:
            for _ in range(50):
                yield b" " * 100

        response = running.http.post(COMPLETIONS, content=chunks())
        assert "content-length" not in response.request.headers
        assert error_of(response, 413)["code"] == "body_too_large"
        assert running.http.post(COMPLETIONS, content=fits).status_code == 200


def test_api_key_guards_everything_but_health(serving: ServerFactory) -> None:
    with serving(api_key="sesame") as running:
        for path in ("/health", "/ready"):
            assert running.http.get(path).status_code == running.http.head(path).status_code == 200
        for path in ("/v1/models", "/metrics", "/version", "/nope", "/health/", "//health"):
            response = running.http.get(path)
            assert error_of(response, 401)["code"] == "invalid_api_key"
            assert response.headers["www-authenticate"] == "Bearer"
        for given in ("Bearer", "Bearer sesam", "Bearer sesamee", "Basic sesame", "sesame", "Bearer \xff"):
            assert running.http.get("/version", headers={b"authorization": given.encode("latin-1")}).status_code == 401
        assert running.http.get("/version", headers={"authorization": "bearer sesame"}).status_code == 200
        answer = running.openai.completions.create(model="fake", prompt="abc", max_tokens=2)
        assert answer.choices[0].text == "cb"


def _mutants(generator: random.Random) -> Iterator[tuple[str, bytes]]:
    """Yields malformed bodies endlessly: bad values in known fields, unknown fields, broken bytes."""
    values: list[object] = [
        None, -1, 0, 1.5, 1e308, 10**40, "", "x", "\x00", [], {}, [[]], [None], {"a": {}}, True, "🦊" * 50,
        ["a", 1], [[1], "a"], [-5], [10**20], {"type": "json_schema"}, [{"role": "user"}],
    ]  # fmt: skip
    fields = [
        "model",
        "prompt",
        "messages",
        "stream",
        "stream_options",
        "n",
        "temperature",
        "top_k",
        "top_p",
        "min_p",
        "repetition_penalty",
        "presence_penalty",
        "frequency_penalty",
        "logit_bias",
        "seed",
        "max_tokens",
        "min_tokens",
        "stop",
        "stop_token_ids",
        "ignore_eos",
        "logprobs",
        "top_logprobs",
        "max_completion_tokens",
        "tools",
        "response_format",
        "best_of",
        "echo",
        "suffix",
        "user",
        "zzz",
        "add_special_tokens",
    ]
    while True:
        path = generator.choice([COMPLETIONS, CHAT])
        body: dict[str, object] = {"model": "fake", "max_tokens": 2}
        body |= {"prompt": "a"} if path == COMPLETIONS else {"messages": USER}
        for field in generator.sample(fields, generator.randint(1, 3)):
            body[field] = generator.choice(values)
        content = bytearray(json.dumps(body).encode())
        if generator.random() < 0.3:
            for _ in range(generator.randint(1, 4)):
                content[generator.randrange(len(content))] = generator.randrange(256)
        if generator.random() < 0.1:
            del content[generator.randrange(len(content)) :]
        yield path, bytes(content)


def test_fuzz_never_fails_and_good_requests_are_answered_as_if_alone(running: Running) -> None:
    refused = 0
    for number, (path, content) in zip(range(400), _mutants(random.Random(7)), strict=False):
        response = running.http.post(path, content=content)
        assert response.status_code in (200, 400, 404), (content, response.text)
        if response.status_code != 200:
            refused += 1
            error_of(response, response.status_code)
        if number % 10 == 0:
            prompt = f"good {number}"
            good = running.post(prompt=prompt, max_tokens=20).json()
            assert good["choices"][0]["text"] == reply(prompt, 20)
    assert refused > 200
    assert running.engine.running == set()
