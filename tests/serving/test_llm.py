"""LLM: streams without an event loop, options, and prompts that are checked before anything runs."""

from __future__ import annotations

import asyncio
import gc
import logging
import threading
import time
from contextlib import aclosing
from pathlib import Path

import jax
import pytest

from ryzjax import LLM, SamplingParams
from ryzjax.errors import ConfigError, ContextLengthError, EngineStoppedError, QueueFullError, RequestError
from ryzjax.serving.messages.config import EngineOptions
from tests.serving.test_batching import PROMPTS, settings, until_idle

SMALL = EngineOptions(max_sequences=2, max_batch_tokens=16, page_size_tokens=8)
LONG = SamplingParams(max_tokens=400, ignore_eos=True)


def wait_until_idle(llm: LLM) -> None:
    asyncio.run(until_idle(llm))
    assert llm.engine.num_open == 0 and llm.engine.scheduler.pool.num_used == 0
    llm.engine.scheduler.check_integrity()


def test_stream_gives_what_generate_gives(tiny_llm: LLM):
    prompt = {"prompt_token_ids": PROMPTS[4]}
    params = SamplingParams(
        temperature=0, max_tokens=40, n=2, ignore_eos=True, logprobs=2, prompt_logprobs=1, stop=["zz"]
    )
    [whole] = tiny_llm.generate(prompt, params, use_tqdm=False)
    first, *deltas = tiny_llm.stream(prompt, params)
    assert first.prompt_logprobs == tuple(whole.prompt_logprobs or ())
    for output in whole.outputs:
        mine = [delta for delta in deltas if delta.index == output.index]
        assert "".join(delta.text for delta in mine) == output.text
        assert [token for delta in mine for token in delta.token_ids] == output.token_ids
        assert [entry for delta in mine for entry in delta.logprobs or ()] == output.logprobs
        assert (mine[-1].finish_reason, mine[-1].stop_reason) == (output.finish_reason, output.stop_reason)


def test_a_stop_string_ends_a_stream_and_its_sequence(tiny_llm: LLM):
    prompt, free = {"prompt_token_ids": PROMPTS[3]}, SamplingParams(temperature=0, max_tokens=400, ignore_eos=True)
    [whole] = tiny_llm.generate(prompt, SamplingParams(temperature=0, max_tokens=40, ignore_eos=True), use_tqdm=False)
    stop = whole.outputs[0].text[8:11]
    by_text = SamplingParams(temperature=0, max_tokens=400, ignore_eos=True, stop=stop)
    text = "".join(delta.text for delta in tiny_llm.stream(prompt, by_text))
    assert text == whole.outputs[0].text[: whole.outputs[0].text.index(stop)]
    wait_until_idle(tiny_llm)
    outputs = tiny_llm.generate([prompt, prompt], [by_text, free], use_tqdm=False)
    assert outputs[0].outputs[0].stop_reason == stop and len(outputs[1].outputs[0].token_ids) == 400
    wait_until_idle(tiny_llm)


async def test_stream_inside_a_running_event_loop(tiny_llm: LLM):
    # As in the cell of a notebook.
    params = SamplingParams(max_tokens=5, ignore_eos=True)
    assert sum(len(delta.token_ids) for delta in tiny_llm.stream("abc", params)) == 5
    assert len(tiny_llm.generate("abc", params, use_tqdm=False)[0].outputs[0].token_ids) == 5


def test_leaving_or_closing_a_stream_aborts_the_request(tiny_llm: LLM):
    for delta in tiny_llm.stream({"prompt_token_ids": [5, 6]}, LONG):
        assert delta.token_ids
        break
    wait_until_idle(tiny_llm)
    stream = tiny_llm.stream({"prompt_token_ids": [5, 6]}, LONG)
    next(stream)
    stream.close()
    wait_until_idle(tiny_llm)
    with pytest.raises(ZeroDivisionError):
        for _ in tiny_llm.stream({"prompt_token_ids": [5, 6]}, LONG):
            _ = 1 / 0
    wait_until_idle(tiny_llm)
    # A stream that was never started has nothing to abort.
    tiny_llm.stream({"prompt_token_ids": [5, 6]}, LONG).close()
    assert tiny_llm.engine.num_open == 0


def test_a_bad_stream_is_refused_before_the_first_delta(tiny_llm: LLM):
    with pytest.raises(ContextLengthError, match="512 tokens"):
        tiny_llm.stream({"prompt_token_ids": [5] * 512})


async def test_astream(tiny_llm: LLM):
    params = SamplingParams(temperature=0, max_tokens=20, ignore_eos=True)
    prompt = {"prompt_token_ids": PROMPTS[2]}
    deltas = [delta async for delta in tiny_llm.astream(prompt, params)]
    assert deltas == list(tiny_llm.stream(prompt, params))
    async with aclosing(tiny_llm.astream(prompt, LONG)) as stream:
        await anext(stream)
    await until_idle(tiny_llm)
    assert tiny_llm.engine.num_open == 0


BAD = [
    ({"prompt_token_ids": [5] * 512}, ContextLengthError, "512 tokens"),
    ({"prompt_token_ids": []}, RequestError, "empty"),
    ({"prompt_token_ids": [5, 384]}, RequestError, "token id 384"),
    ({"prompt_token_ids": [5, 1.5]}, RequestError, r"prompt contains 1\.5, which is no token id"),
    ({"prompt_token_ids": [5, True]}, RequestError, "prompt contains True"),
    ({"prompt_token_ids": ["a"]}, RequestError, "prompt contains 'a'"),
    ({"prompt": "x"}, RequestError, "expected a string or"),
    (7, RequestError, "prompt=7"),
    ("a\ud800b", RequestError, "lone surrogate"),
]


@pytest.mark.parametrize("method", ["generate", "embed"])
@pytest.mark.parametrize(("bad", "kind", "words"), BAD)
def test_nothing_starts_where_one_prompt_is_bad(tiny_llm: LLM, monkeypatch, method: str, bad, kind, words: str):
    def submit(*arguments: object) -> None:
        raise AssertionError("a request was opened")

    if method == "embed" and kind is ContextLengthError:
        bad = {"prompt_token_ids": [5] * 513}
        words = "513 tokens"
    with monkeypatch.context() as patched:
        patched.setattr(tiny_llm.engine, "submit", submit)
        with pytest.raises(kind, match=rf"^prompts\[100\]: .*{words}") as error:
            getattr(tiny_llm, method)(["fine"] * 100 + [bad] + ["fine"] * 3, use_tqdm=False)
        assert error.value.param is not None
        # A single prompt needs no number in the message.
        with pytest.raises(kind, match=rf"^(?!prompts\[).*{words}"):
            getattr(tiny_llm, method)([bad], use_tqdm=False)


def test_nothing_starts_where_settings_or_adapters_are_bad(tiny_llm: LLM, monkeypatch):
    monkeypatch.setattr(tiny_llm.engine, "submit", lambda *arguments: pytest.fail("a request was opened"))
    good, prompts = SamplingParams(), ["a", "b", "c"]
    with pytest.raises(RequestError, match=r"prompts\[1\]: logit_bias contains token id 400"):
        tiny_llm.generate(prompts, [good, SamplingParams(logit_bias={400: 1.0}), good], use_tqdm=False)
    with pytest.raises(RequestError, match=r"prompts\[2\]: its sampling_params are a dict; expected SamplingParams"):
        tiny_llm.generate(prompts, [good, good, {}], use_tqdm=False)  # type: ignore[list-item]
    with pytest.raises(RequestError, match="2 sampling_params for 3 prompts"):
        tiny_llm.generate(prompts, [good, good], use_tqdm=False)
    with pytest.raises(ConfigError, match="no adapters are served"):
        tiny_llm.generate(prompts, good, adapter=[None, None, "sql"], use_tqdm=False)
    with pytest.raises(RequestError, match="dimensions=0"):
        tiny_llm.embed(prompts, dimensions=0, use_tqdm=False)


def test_conversations_are_checked_before_anything_starts(
    tiny_llm: LLM, tiny_llama3: Path, compile_cache: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    conversations = [[{"role": "user", "content": text}] for text in ("a", "bc", "d")]
    with pytest.raises(RequestError, match=r"^messages\[0\]: .*no chat template"):
        tiny_llm.chat(conversations, use_tqdm=False)
    template = tmp_path / "template.jinja"
    template.write_text(
        "{% for m in messages %}{% if m.role != 'user' %}{{ raise_exception('no ' + m.role) }}{% endif %}"
        "{{ m.content }}{% endfor %}"
    )
    params = SamplingParams(temperature=0, max_tokens=4, ignore_eos=True)
    with LLM(str(tiny_llama3), chat_template=str(template), compile_cache=compile_cache, **SMALL) as llm:
        outputs = llm.chat(conversations, params, use_tqdm=False)
        prompts = [llm.engine.tokenizer.apply_chat_template(conversation) for conversation in conversations]
        assert [output.prompt_token_ids for output in outputs] == prompts
        plain = llm.generate([{"prompt_token_ids": prompt} for prompt in prompts], params, use_tqdm=False)
        assert [o.outputs[0].token_ids for o in outputs] == [o.outputs[0].token_ids for o in plain]
        monkeypatch.setattr(llm.engine, "submit", lambda *arguments: pytest.fail("a request was opened"))
        with pytest.raises(RequestError, match=r"^messages\[1\]: .*no tool"):
            llm.chat([conversations[0], [{"role": "tool", "content": "x"}]], use_tqdm=False)
        with pytest.raises(
            ContextLengthError,
            match=r"^messages\[1\]: This model's maximum context length is 512 tokens",
        ):
            llm.chat([conversations[0], [{"role": "user", "content": "x" * 600}]], use_tqdm=False)


def test_numpy_token_ids_are_token_ids(tiny_llm: LLM):
    import numpy as np

    params = SamplingParams(temperature=0, max_tokens=6, repetition_penalty=1.2, ignore_eos=True)
    ids = np.asarray(PROMPTS[5])
    [ours] = tiny_llm.generate({"prompt_token_ids": list(ids)}, params, use_tqdm=False)
    [plain] = tiny_llm.generate({"prompt_token_ids": ids.tolist()}, params, use_tqdm=False)
    assert ours.outputs[0].token_ids == plain.outputs[0].token_ids
    assert all(type(token) is int for token in ours.prompt_token_ids)


def test_more_completions_than_fit_the_queue_take_turns(tiny_llama3: Path, compile_cache: str):
    with LLM(str(tiny_llama3), max_queue=4, compile_cache=compile_cache, **SMALL) as llm:
        params = SamplingParams(n=5, max_tokens=3, ignore_eos=True)
        outputs = llm.generate(["a"] * 6, params, use_tqdm=False)
        assert [len(output.outputs) for output in outputs] == [5] * 6
        with pytest.raises(RequestError, match="n=7 is more than the 6 sequences that may be open"):
            llm.generate("a", SamplingParams(n=7), use_tqdm=False)
        # While another caller occupies part of the queue, the job waits for the room that is left.
        held = [llm.stream("a", SamplingParams(max_tokens=400, ignore_eos=True)) for _ in range(4)]
        for stream in held:
            next(stream)
        assert len(llm.generate(["a"] * 6, SamplingParams(max_tokens=3), use_tqdm=False)) == 6
        with pytest.raises(QueueFullError):
            llm.generate("a", params, use_tqdm=False)
        for stream in held:
            stream.close()
        wait_until_idle(llm)


def test_closing_the_engine_ends_a_running_generate(tiny_llama3: Path, compile_cache: str):
    llm = LLM(str(tiny_llama3), compile_cache=compile_cache, **SMALL)
    failures: list[Exception] = []

    def run() -> None:
        try:
            llm.generate(["a"] * 50, LONG, use_tqdm=False)
        except EngineStoppedError as error:
            failures.append(error)

    caller = threading.Thread(target=run)
    caller.start()
    while not llm.engine.scheduler.num_running:
        time.sleep(0.001)
    llm.close()
    caller.join(30)
    assert not caller.is_alive() and "stopped" in str(failures[0])


def engine_threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name == "engine"}


@pytest.mark.parametrize("closed", [False, True])
def test_the_last_reference_takes_thread_weights_and_cache_along(tiny_llama3: Path, compile_cache: str, closed: bool):
    gc.collect()
    threads, arrays = engine_threads(), {id(array) for array in jax.live_arrays()}
    llm = LLM(str(tiny_llama3), compile_cache=compile_cache, **SMALL)
    llm.generate(["a", "b"], SamplingParams(max_tokens=4, repetition_penalty=1.1, ignore_eos=True), use_tqdm=False)
    for delta in llm.stream("c", LONG):
        assert delta.token_ids
        break
    [thread] = engine_threads() - threads
    assert sum(array.nbytes for array in jax.live_arrays() if id(array) not in arrays) > 50_000
    if closed:
        llm.close()
    # Reference counts must suffice, because a notebook does not wait for the garbage collector.
    gc.disable()
    try:
        del llm, delta
        thread.join(30)
        assert not thread.is_alive()
        left = [array.shape for array in jax.live_arrays() if id(array) not in arrays]
    finally:
        gc.enable()
    assert not left


def test_a_failed_engine_can_be_freed_too(tiny_llama3: Path, compile_cache: str, monkeypatch: pytest.MonkeyPatch):
    # pytest keeps log records, and with them the frames of their tracebacks.
    monkeypatch.setattr(logging.getLogger("ryzjax.serving.engine.engine_thread"), "disabled", True)
    gc.collect()
    threads, arrays = engine_threads(), {id(array) for array in jax.live_arrays()}
    llm = LLM(str(tiny_llama3), compile_cache=compile_cache, **SMALL)
    [thread] = engine_threads() - threads

    def explode(plan: object) -> None:
        raise RuntimeError("device lost")

    llm.engine.runner.dispatch = explode
    with pytest.raises(EngineStoppedError, match="device lost"):
        llm.generate("a", settings(0), use_tqdm=False)
    assert not llm.engine.is_healthy
    thread.join(30)
    del llm
    gc.collect()
    assert not [array.shape for array in jax.live_arrays() if id(array) not in arrays]


def test_unknown_options_and_wrong_types_are_config_errors(tiny_llama3: Path):
    with pytest.raises(ConfigError, match="option 'max_seqences' is unknown; did you mean 'max_sequences'") as error:
        LLM(str(tiny_llama3), max_seqences=2)  # type: ignore[call-arg]
    assert "ryzjax serve --help" in str(error.value) and "EngineConfig" in str(error.value)
    with pytest.raises(ConfigError, match="option 'foo' is unknown; The options are"):
        LLM(str(tiny_llama3), foo=1)  # type: ignore[call-arg]
    with pytest.raises(ConfigError, match="max_sequences='2' is a str; expected int"):
        LLM(str(tiny_llama3), max_sequences="2")  # type: ignore[arg-type]


def test_a_path_is_a_model(tiny_llama3: Path, compile_cache: str):
    with LLM(tiny_llama3, compile_cache=Path(compile_cache), **SMALL) as llm:  # type: ignore[arg-type]
        assert llm.engine.model_name == tiny_llama3.name
