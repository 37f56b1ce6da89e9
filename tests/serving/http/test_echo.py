"""`echo`: the completion starts with the prompt and its log-probabilities, as lm-evaluation-harness expects."""

from __future__ import annotations

import pytest

from ryzjax.serving.http.openai.echo import Echo
from tests.serving.http.fake_engine import reply
from tests.serving.http.harness import Running


def test_echo_alone_puts_the_prompt_in_front(running: Running) -> None:
    answer = running.openai.completions.create(model="fake", prompt=["abc", "de"], max_tokens=4, n=2, echo=True)
    texts = [choice.text for choice in answer.choices]
    assert texts == ["abc" + reply("abc", 4)] * 2 + ["de" + reply("de", 4)] * 2
    assert all(choice.logprobs is None for choice in answer.choices)
    assert running.engine.params[-1].prompt_logprobs is None
    empty = running.openai.completions.create(model="fake", prompt="abc", max_tokens=0, echo=True)
    assert (empty.choices[0].text, empty.choices[0].logprobs, empty.choices[0].finish_reason) == ("abc", None, "length")


@pytest.mark.parametrize("max_tokens", [0, 1, 3])
@pytest.mark.parametrize("top", [0, 2])
def test_echo_with_logprobs(running: Running, max_tokens: int, top: int) -> None:
    answer = running.openai.completions.create(
        model="fake", prompt="abc", max_tokens=max_tokens, echo=True, logprobs=top
    )
    (choice,) = answer.choices
    completion = reply("abc", max_tokens)
    assert choice.text == "abc" + completion
    logprobs = choice.logprobs
    assert logprobs is not None and logprobs.text_offset is not None
    assert logprobs.tokens == ["<s>", "a", "b", "c", *completion]
    assert logprobs.token_logprobs == [None, *[-0.5] * (3 + max_tokens)]
    # <s> is not part of the text.
    assert logprobs.text_offset == [0, 0, 1, 2, *range(3, 3 + max_tokens)]
    if top:
        assert logprobs.top_logprobs is not None and logprobs.top_logprobs[0] is None
        assert logprobs.top_logprobs[1:3] == [{"a": -0.5, "b": -1.5}, {"b": -0.5, "c": -1.5}]
        assert len(logprobs.top_logprobs) == len(logprobs.tokens)
    else:
        assert logprobs.top_logprobs is None
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (4, max_tokens)
    assert running.engine.params[-1].prompt_logprobs == top


def test_a_prompt_of_token_ids_is_decoded(running: Running) -> None:
    answer = running.openai.completions.create(
        model="fake", prompt=[[256, 97, 98], [99]], max_tokens=1, echo=True, logprobs=1
    )
    assert [choice.text for choice in answer.choices] == ["abb", "cc"]
    assert [choice.logprobs.tokens for choice in answer.choices if choice.logprobs] == [
        ["<s>", "a", "b", "b"],
        ["c"] * 2,
    ]
    body = {"prompt": [256, 97], "max_tokens": 1, "echo": True, "logprobs": 0, "skip_special_tokens": False}
    (choice,) = running.post(**body).json()["choices"]
    assert choice["text"].startswith("<s>a") and choice["logprobs"]["text_offset"] == [0, 3, 4]


@pytest.mark.parametrize("logprobs", [None, 1])
def test_a_stream_adds_up_to_the_whole_answer(running: Running, logprobs: int | None) -> None:
    asked = {"model": "fake", "prompt": ["abc", "de"], "max_tokens": 3, "n": 2, "echo": True, "logprobs": logprobs}
    whole = running.openai.completions.create(**asked)  # type: ignore[call-overload]
    texts = dict.fromkeys(range(4), "")
    columns: dict[int, list[list[object]]] = {index: [[], [], [], []] for index in range(4)}
    for chunk in running.openai.completions.create(**asked, stream=True):  # type: ignore[call-overload]
        for choice in chunk.choices:
            texts[choice.index] += choice.text
            if choice.logprobs is not None:
                for column, values in zip(columns[choice.index], vars_of(choice.logprobs), strict=True):
                    column += values
    assert texts == {choice.index: choice.text for choice in whole.choices}
    if logprobs is not None:
        assert columns == {choice.index: vars_of(choice.logprobs) for choice in whole.choices}
    else:
        assert all(column == [] for four in columns.values() for column in four)


def vars_of(logprobs: object) -> list[list[object]]:
    return [list(getattr(logprobs, name)) for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset")]


def test_a_prompt_that_fills_the_context_can_be_scored(running: Running) -> None:
    body = {"prompt": [5] * 256, "echo": True, "logprobs": 0}
    (choice,) = running.post(**body, max_tokens=0).json()["choices"]
    assert len(choice["logprobs"]["tokens"]) == 256
    assert running.post(**body, max_tokens=1).status_code == 400


def test_choices_are_numbered_prompt_by_prompt() -> None:
    echo = Echo(texts=["x", "a"], first_token_ids=[256, 7], n=2, with_logprobs=True)
    assert [echo.text(choice) for choice in range(4)] == ["x", "x", "a", "a"]
    assert [echo.first_token_id(choice) for choice in range(4)] == [256, 256, 7, 7]
