"""/v1/embeddings with the stock openai client, and its errors."""

from __future__ import annotations

import base64
import struct
import threading
import time

import httpx
import numpy as np
import openai
import pytest

from tests.serving.http.fake_engine import BOS, HIDDEN, raw_vector
from tests.serving.http.harness import Running, ServerFactory
from tests.serving.http.test_bad_input import error_of
from tests.serving.http.waiting import wait_for

PATH = "/v1/embeddings"


def unit(vector: np.ndarray) -> np.ndarray:
    return vector / np.linalg.norm(vector)


def test_the_openai_client(running: Running) -> None:
    answer = running.openai.embeddings.create(model="fake", input=["abc", "d"], user="somebody")
    assert (answer.object, answer.model) == ("list", "fake")
    assert [(one.index, one.object) for one in answer.data] == [(0, "embedding"), (1, "embedding")]
    for one, text in zip(answer.data, (b"abc", b"d"), strict=True):
        np.testing.assert_allclose(one.embedding, unit(raw_vector([BOS, *text], "last")), rtol=1e-6)
    assert (answer.usage.prompt_tokens, answer.usage.total_tokens) == (6, 6)


@pytest.mark.parametrize(
    ("given", "tokens"),
    [
        ("ab", [[BOS, 97, 98]]),
        (["ab", "c"], [[BOS, 97, 98], [BOS, 99]]),
        ([97, 98], [[97, 98]]),
        ([[97, 98], [99]], [[97, 98], [99]]),
    ],
)
def test_kinds_of_input(running: Running, given: object, tokens: list[list[int]]) -> None:
    answer = running.post(PATH, input=given, pooling="mean").json()
    assert [one["index"] for one in answer["data"]] == list(range(len(tokens)))
    for one, ids in zip(answer["data"], tokens, strict=True):
        np.testing.assert_allclose(one["embedding"], unit(raw_vector(ids, "mean")), rtol=1e-6)
    assert answer["usage"] == {"prompt_tokens": sum(map(len, tokens)), "total_tokens": sum(map(len, tokens))}


def test_floats_and_base64_are_the_same_numbers(running: Running) -> None:
    floats = running.post(PATH, input="abc", encoding_format="float").json()["data"][0]["embedding"]
    assert running.post(PATH, input="abc").json()["data"][0]["embedding"] == floats
    text = running.post(PATH, input="abc", encoding_format="base64").json()["data"][0]["embedding"]
    assert list(struct.unpack(f"<{HIDDEN}f", base64.b64decode(text))) == floats


def test_dimensions_and_extensions(running: Running) -> None:
    raw = raw_vector([BOS, *b"abc"], "last")
    short = running.openai.embeddings.create(model="fake", input="abc", dimensions=2).data[0].embedding
    np.testing.assert_allclose(short, unit(raw[:2]), rtol=1e-6)
    (whole,) = running.post(PATH, input="abc", normalize=False).json()["data"]
    np.testing.assert_allclose(whole["embedding"], raw, rtol=1e-6)
    (bare,) = running.post(PATH, input="abc", add_special_tokens=False, pooling="mean").json()["data"]
    np.testing.assert_allclose(bare["embedding"], unit(raw_vector([*b"abc"], "mean")), rtol=1e-6)


@pytest.mark.parametrize(
    ("body", "param", "words"),
    [
        ({}, "input", "missing"),
        ({"input": []}, "input", "input is an empty list"),
        ({"input": ""}, "input", "input 0 is an empty string"),
        ({"input": ["a", ""]}, "input", "input 1 is an empty string"),
        ({"input": [[5], []]}, "input", "input 1 is an empty list"),
        ({"input": "", "add_special_tokens": False}, "input", "empty"),
        ({"input": ["a", 1]}, "input", "list of strings"),
        ({"input": 5}, "input", "list of strings"),
        ({"input": [[5], [600]]}, "input", "input 1: token id 600"),
        ({"input": [-1]}, "input", "input 0: token id -1"),
        (
            {"input": ["a", "x" * 256]},
            "input",
            "This model's maximum context length is 256 tokens. However, input 1 has 257 tokens; shorten it, or split",
        ),
        ({"input": ["a"] * 2049}, "input", "2049 inputs; at most 2048"),
        ({"input": "a", "encoding_format": "hex"}, "encoding_format", "'hex'"),
        ({"input": "a", "dimensions": 0}, "dimensions", "expected an integer from 1 to 6"),
        ({"input": "a", "dimensions": 7}, "dimensions", "dimensions=7"),
        ({"input": "a", "dimensions": "2"}, "dimensions", "'2'"),
        ({"input": "a", "pooling": "max"}, "pooling", "'max'"),
        ({"input": "a", "normalize": 1}, "normalize", "1"),
        ({"input": "a", "temperature": 1}, "temperature", "unknown"),
        ({"input": "a", "truncate_prompt_tokens": 5}, "truncate_prompt_tokens", "not supported"),
        ({"input": "a", "model": 5}, "model", "5"),
    ],
)
def test_bad_requests(running: Running, body: dict[str, object], param: str, words: str) -> None:
    error = error_of(running.post(PATH, **body))
    assert error["param"] == param
    assert words in error["message"]
    assert error["type"] == "invalid_request_error"


def test_other_errors_are_those_of_generation(running: Running) -> None:
    assert error_of(running.post(PATH, input="x" * 300))["code"] == "context_length_exceeded"
    assert error_of(running.post(PATH, input=["WEDGE", "FULL"]), 429)["code"] == "queue_full"
    assert error_of(running.post(PATH, input=["WEDGE", "FAILMID"]), 503)["code"] == "engine_stopped"
    assert "secret" not in running.post(PATH, input="BUG").text
    with pytest.raises(openai.NotFoundError):
        running.openai.embeddings.create(model="nobody", input="a")
    assert running.http.get(PATH).status_code == 405
    assert running.engine.running == set()


def test_a_long_list_does_not_fill_the_queue(serving: ServerFactory) -> None:
    with serving(max_prompts_per_request=4, max_inputs_per_request=40) as running:
        answer = running.post(PATH, input=[[i + 1] for i in range(40)]).json()
        assert [one["index"] for one in answer["data"]] == list(range(40))
        np.testing.assert_allclose(answer["data"][39]["embedding"], unit(raw_vector([40], "last")), rtol=1e-6)
        assert 1 < running.engine.most_running <= 4
        assert running.post(PATH, input=["a"] * 41).status_code == 400


def test_a_client_that_leaves_aborts_its_inputs(serving: ServerFactory) -> None:
    with serving() as running:
        with pytest.raises(httpx.ReadTimeout):
            running.http.post(PATH, json={"model": "fake", "input": ["WEDGE", "WEDGE"]}, timeout=0.3)
        wait_for(lambda: not running.engine.running)
        assert len(running.engine.aborted) == 2


def test_a_server_that_is_not_ready_refuses(serving: ServerFactory) -> None:
    with serving(api_key="k") as running:
        headers = {"authorization": "Bearer k"}
        assert running.post(PATH, input="a").status_code == 401
        running.engine.is_ready = False
        response = running.http.post(PATH, json={"model": "fake", "input": "a"}, headers=headers)
        assert error_of(response, 503)["code"] == "not_ready"


def test_a_drain_waits_for_embeddings(serving: ServerFactory) -> None:
    with serving() as running:
        statuses: list[int] = []
        thread = threading.Thread(target=lambda: statuses.append(running.post(PATH, input="WEDGE").status_code))
        thread.start()
        wait_for(lambda: bool(running.engine.running))
        running.server.request_drain()
        time.sleep(0.1)
        assert running.engine.running
        running.engine.release()
        thread.join(10)
        assert statuses == [200]
