"""Streams: event framing, errors in the middle of a stream, and clients that disconnect."""

from __future__ import annotations

import json

import httpx
import pytest

from tests.serving.http.fake_engine import reply
from tests.serving.http.harness import Running, ServerFactory
from tests.serving.http.waiting import wait_for


def events(text: str) -> list[str]:
    assert text.endswith("\n\n")
    blocks = text[:-2].split("\n\n")
    assert all(block.startswith("data: ") and "\n" not in block for block in blocks)
    return [block.removeprefix("data: ") for block in blocks]


def test_framing(running: Running) -> None:
    prompt = 'new\nline "quoted" \u2028'
    response = running.post(prompt=prompt, max_tokens=40, stream=True)
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert response.headers["cache-control"] == "no-cache"
    *chunks, done = events(response.text)
    assert done == "[DONE]"
    tokens = [json.loads(chunk) for chunk in chunks]
    whole = running.post(prompt=prompt, max_tokens=40).json()
    assert "".join(token["choices"][0]["text"] for token in tokens) == whole["choices"][0]["text"]
    assert all("usage" not in token for token in tokens)


@pytest.mark.parametrize(
    ("prompt", "code"),
    [("FAILMID", "generation_failed"), ("ABORTMID", "generation_failed"), ("BUGMID", "internal_error")],
)
@pytest.mark.parametrize("several", [False, True])
def test_an_error_in_the_middle_is_an_event_and_the_end(
    running: Running, prompt: str, code: str, several: bool
) -> None:
    response = running.post(prompt=[prompt, "HOLD"] if several else prompt, stream=True)
    assert response.status_code == 200
    *chunks, error = map(json.loads, events(response.text))
    assert chunks and all("choices" in chunk for chunk in chunks)
    assert error["error"]["code"] == code
    assert "secret" not in response.text and "[DONE]" not in response.text
    assert running.engine.running == set()


@pytest.mark.parametrize("prompt", ["HOLD", ["HOLD", "HOLD 2", "HOLD 3"]])
def test_leaving_a_stream_aborts(serving: ServerFactory, prompt: str | list[str]) -> None:
    count = 1 if isinstance(prompt, str) else len(prompt)
    with serving() as running:
        body = {"model": "fake", "prompt": prompt, "stream": True}
        with running.http.stream("POST", "/v1/completions", json=body) as response:
            chunks = response.iter_text()  # httpx closes the connection if the iterator is dropped
            assert next(chunks).startswith("data: ")
            wait_for(lambda: len(running.engine.running) == count)
        wait_for(lambda: len(running.engine.aborted) == count)
        assert running.engine.running == set()


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("prompt", ["WEDGE", ["WEDGE", "WEDGE 2"]])
def test_leaving_before_the_first_token_aborts(serving: ServerFactory, prompt: str | list[str], stream: bool) -> None:
    count = 1 if isinstance(prompt, str) else len(prompt)
    with serving() as running:
        body = {"model": "fake", "prompt": prompt, "stream": stream}
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"http://127.0.0.1:{running.server.port}/v1/completions", json=body, timeout=0.3)
        wait_for(lambda: len(running.engine.aborted) == count)
        assert len(running.engine.started) == count
        assert running.post(prompt="abc", max_tokens=3).json()["choices"][0]["text"] == reply("abc", 3)


def test_closing_the_openai_stream_aborts(serving: ServerFactory) -> None:
    with serving() as running:
        stream = running.openai.chat.completions.create(
            model="fake", messages=[{"role": "user", "content": "HOLD"}], stream=True
        )
        next(iter(stream))
        stream.close()
        wait_for(lambda: len(running.engine.aborted) == 1)
