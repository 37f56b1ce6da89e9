"""Answers parsed by the stock openai client."""

from __future__ import annotations

import openai
import pytest

from ryzjax.serving.messages.sampling_params import SamplingParams
from tests.serving.http.fake_engine import CONTEXT, reply
from tests.serving.http.harness import Running, ServerFactory

pytestmark = pytest.mark.essential

CHAT = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hi"}]
CHAT_TEXT = "system:be brief\nuser:hi\nassistant:"


def test_models(running: Running) -> None:
    (model,) = running.openai.models.list().data
    assert (model.id, model.object, model.owned_by) == ("fake", "model", "ryzjax")
    assert running.openai.models.retrieve("fake").id == "fake"
    with pytest.raises(openai.NotFoundError) as caught:
        running.openai.models.retrieve("other/name")
    assert caught.value.code == "model_not_found"


def test_completion(running: Running) -> None:
    answer = running.openai.completions.create(model="fake", prompt="abc", max_tokens=5)
    (choice,) = answer.choices
    assert (choice.text, choice.finish_reason, choice.index) == ("cbacb", "length", 0)
    assert answer.object == "text_completion" and answer.id.startswith("cmpl-")
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (4, 5, 9)


def test_completion_defaults_to_16_tokens_and_chat_to_the_context(running: Running) -> None:
    answer = running.openai.completions.create(model="fake", prompt="abc")
    assert answer.usage is not None and answer.usage.completion_tokens == 16
    chat = running.openai.chat.completions.create(model="fake", messages=CHAT)  # type: ignore[arg-type]
    assert chat.usage is not None and chat.usage.total_tokens == CONTEXT


@pytest.mark.parametrize(
    ("prompt", "texts", "prompt_tokens"),
    [
        (["ab", "cd"], ["bab", "dcd"], 6),
        ([97, 98], ["bab"], 2),
        ([[97, 98], [99]], ["bab", "ccc"], 3),
    ],
)
def test_kinds_of_prompt(running: Running, prompt: list[str], texts: list[str], prompt_tokens: int) -> None:
    answer = running.openai.completions.create(model="fake", prompt=prompt, max_tokens=3)
    assert [choice.text for choice in answer.choices] == texts
    assert [choice.index for choice in answer.choices] == list(range(len(texts)))
    assert answer.usage is not None and answer.usage.prompt_tokens == prompt_tokens


@pytest.mark.parametrize("stream", [False, True])
def test_choices_are_numbered_over_prompts_and_n(running: Running, stream: bool) -> None:
    prompts = ["ab", "cd", "ef"]
    texts = dict.fromkeys(range(6), "")
    answer = running.openai.completions.create(model="fake", prompt=prompts, max_tokens=4, n=2, stream=stream)
    for chunk in answer if stream else [answer]:
        for choice in chunk.choices:  # type: ignore[union-attr]
            texts[choice.index] += choice.text
    assert texts == {index: reply(prompts[index // 2], 4) for index in range(6)}


def test_completion_stream_with_usage(running: Running) -> None:
    chunks = list(
        running.openai.completions.create(
            model="fake", prompt="abc", max_tokens=5, stream=True, stream_options={"include_usage": True}
        )
    )
    *tokens, last = chunks
    assert "".join(chunk.choices[0].text for chunk in tokens) == "cbacb"
    assert [chunk.choices[0].finish_reason for chunk in tokens] == [None] * 4 + ["length"]
    assert all(chunk.usage is None for chunk in tokens)
    assert len({chunk.id for chunk in chunks}) == 1
    assert last.choices == [] and last.usage is not None
    assert (last.usage.prompt_tokens, last.usage.completion_tokens) == (4, 5)


def test_chat(running: Running) -> None:
    answer = running.openai.chat.completions.create(model="fake", messages=CHAT, max_completion_tokens=7)  # type: ignore[arg-type]
    (choice,) = answer.choices
    assert choice.message.role == "assistant"
    assert choice.message.content == reply(CHAT_TEXT, 7)
    assert choice.finish_reason == "length"
    assert answer.usage is not None and answer.usage.prompt_tokens == len(CHAT_TEXT) + 1


def test_chat_content_parts_and_an_assistant_message_sent_back(running: Running) -> None:
    first = running.openai.chat.completions.create(model="fake", messages=CHAT, max_tokens=3)  # type: ignore[arg-type]
    parts = [{"type": "text", "text": "x"}, {"type": "text", "text": "y"}]
    messages = [{"role": "user", "content": parts}, first.choices[0].message]
    answer = running.openai.chat.completions.create(model="fake", messages=messages, max_tokens=3)  # type: ignore[arg-type]
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == len("user:x\ny\nassistant::tn\nassistant:") + 1


def test_chat_stream_starts_with_the_role_of_each_choice(running: Running) -> None:
    chunks = list(
        running.openai.chat.completions.create(model="fake", messages=CHAT, max_tokens=3, n=2, stream=True)  # type: ignore[arg-type]
    )
    roles = [(chunk.choices[0].index, chunk.choices[0].delta.role) for chunk in chunks[:2]]
    assert roles == [(0, "assistant"), (1, "assistant")]
    for index in range(2):
        mine = [chunk.choices[0] for chunk in chunks[2:] if chunk.choices[0].index == index]
        assert "".join(choice.delta.content or "" for choice in mine) == reply(CHAT_TEXT, 3)
        assert mine[-1].finish_reason == "length"
        assert all(choice.delta.role is None for choice in mine)
    assert all(chunk.object == "chat.completion.chunk" for chunk in chunks)


def test_chat_logprobs_whole_and_streamed(running: Running) -> None:
    settings = {"model": "fake", "messages": CHAT, "max_tokens": 2, "logprobs": True, "top_logprobs": 3}
    whole = running.openai.chat.completions.create(**settings).choices[0].logprobs  # type: ignore[call-overload]
    streamed = []
    for chunk in running.openai.chat.completions.create(**settings, stream=True):  # type: ignore[call-overload]
        logprobs = chunk.choices[0].logprobs
        streamed.extend(logprobs.content if logprobs and logprobs.content else [])
    assert whole.content == streamed
    first = whole.content[0]
    assert (first.token, first.logprob, first.bytes) == (":", -0.5, [ord(":")])
    assert [(top.token, top.logprob) for top in first.top_logprobs] == [(":", -0.5), (";", -1.5), ("<", -9999.0)]


def test_completion_logprobs_and_their_offsets(running: Running) -> None:
    settings = {"model": "fake", "prompt": "abc", "max_tokens": 3, "logprobs": 2}
    whole = running.openai.completions.create(**settings).choices[0].logprobs  # type: ignore[call-overload]
    assert whole.tokens == ["c", "b", "a"]
    assert whole.token_logprobs == [-0.5] * 3
    assert whole.text_offset == [0, 1, 2]
    assert whole.top_logprobs[0] == {"c": -0.5, "d": -1.5}
    chunks = running.openai.completions.create(**settings, stream=True)  # type: ignore[call-overload]
    offsets = []
    for chunk in chunks:
        offsets.append(chunk.choices[0].logprobs.text_offset)  # type: ignore[union-attr]
    assert offsets == [[0], [1], [2]]


def test_sampling_settings_reach_the_engine(running: Running) -> None:
    running.openai.completions.create(
        model="fake",
        prompt="abc",
        max_tokens=3,
        temperature=0,
        top_p=0.5,
        presence_penalty=1,
        frequency_penalty=-1,
        logit_bias={"5": 10},
        seed=3,
        stop=["\n\n"],
        user="someone",
        extra_body={
            "top_k": 4,
            "min_p": 0.1,
            "repetition_penalty": 1.5,
            "min_tokens": 1,
            "ignore_eos": True,
            "stop_token_ids": [9],
            "skip_special_tokens": False,
            "include_stop_str_in_output": True,
            "store": False,
            "metadata": {"a": "b"},
        },
    )
    params = running.engine.params[-1]
    assert (params.temperature, params.top_p, params.top_k, params.min_p) == (0, 0.5, 4, 0.1)
    assert (params.presence_penalty, params.frequency_penalty, params.repetition_penalty) == (1, -1, 1.5)
    assert (params.logit_bias, params.seed, params.stop, params.stop_token_ids) == ({5: 10}, 3, ("\n\n",), (9,))
    assert (params.min_tokens, params.ignore_eos, params.skip_special_tokens) == (1, True, False)
    assert params.include_stop_str_in_output and params.logprobs is None


@pytest.mark.parametrize("chat", [False, True])
def test_the_models_sampling_settings_are_the_defaults(serving: ServerFactory, chat: bool) -> None:
    with serving() as running:
        running.engine.default_sampling = {"temperature": 0.6, "top_k": 20, "top_p": 0.9, "repetition_penalty": 1.1}

        def params(**named: object) -> SamplingParams:
            asked = {"messages": CHAT} if chat else {"prompt": "a"}
            path = "/v1/chat/completions" if chat else "/v1/completions"
            assert running.post(path, max_tokens=1, **asked, **named).status_code == 200
            return running.engine.params[-1]

        model = params()
        assert (model.temperature, model.top_k, model.top_p, model.min_p) == (0.6, 20, 0.9, 0.0)
        assert model.repetition_penalty == 1.1
        mine = params(temperature=0, top_p=None, repetition_penalty=1, min_p=0.2)
        assert (mine.temperature, mine.top_k, mine.top_p, mine.min_p) == (0, 20, 0.9, 0.2)
        assert mine.repetition_penalty == 1


def test_add_special_tokens(running: Running) -> None:
    answer = running.openai.completions.create(
        model="fake", prompt="abc", max_tokens=1, extra_body={"add_special_tokens": False}
    )
    assert answer.usage is not None and answer.usage.prompt_tokens == 3


def test_errors_have_the_clients_classes(running: Running) -> None:
    create = running.openai.completions.create
    with pytest.raises(openai.NotFoundError, match="model 'other' is not served here; use 'fake'"):
        create(model="other", prompt="a")
    with pytest.raises(openai.BadRequestError) as too_long:
        create(model="fake", prompt="a" * CONTEXT)
    assert (too_long.value.code, too_long.value.param) == ("context_length_exceeded", "prompt")
    with pytest.raises(openai.BadRequestError) as negative:
        create(model="fake", prompt="a", temperature=-1)
    assert negative.value.param == "temperature" and "-1" in negative.value.message
    with pytest.raises(openai.RateLimitError) as full:
        create(model="fake", prompt="FULL", stream=True)
    assert full.value.response.headers["retry-after"] == "7"
    with pytest.raises(openai.InternalServerError) as stopped:
        create(model="fake", prompt="STOPPED")
    assert stopped.value.status_code == 503
    with pytest.raises(openai.APIError, match="could not finish"):
        list(create(model="fake", prompt="FAILMID", stream=True))


def test_one_request_takes_a_quarter_of_the_places_at_most(serving: ServerFactory) -> None:
    with serving() as running:
        create = running.openai.completions.create
        assert len(create(model="fake", prompt=["a"] * 36, n=2, max_tokens=1).choices) == 72
        with pytest.raises(
            openai.BadRequestError, match=r"74 sequences; this server takes at most 72 in one"
        ) as caught:
            create(model="fake", prompt=["a"] * 37, n=2, max_tokens=1)
        assert caught.value.param == "n"
        running.engine.max_open_sequences = 3
        assert len(create(model="fake", prompt="a", max_tokens=1).choices) == 1
        with pytest.raises(openai.BadRequestError, match=r"2 prompts with n=1 are 2 sequences.*at most 1 in") as caught:
            create(model="fake", prompt=["a", "b"], max_tokens=1)
        assert caught.value.param == "prompt"
        with pytest.raises(openai.BadRequestError, match="max_sequences_per_request"):
            running.openai.chat.completions.create(model="fake", messages=CHAT, n=2)  # type: ignore[arg-type]
    with serving(max_sequences_per_request=128) as running:
        assert len(running.openai.completions.create(model="fake", prompt="a", n=128, max_tokens=1).choices) == 128


def test_the_inputs_of_an_embedding_request_share_that_limit(serving: ServerFactory) -> None:
    with serving() as running:
        running.engine.max_open_sequences = 12
        answer = running.openai.embeddings.create(model="fake", input=[[i + 1] for i in range(20)])
        assert len(answer.data) == 20 and 1 < running.engine.most_running <= 3
