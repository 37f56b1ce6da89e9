"""Adapters in slots: each row of a mixed batch says what its adapter says alone, attached and merged."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ryzjax import LLM, SamplingParams
from ryzjax.checkpoint.peft.write import write_adapter
from ryzjax.errors import AdapterConflictError, AdapterNotFoundError, CheckpointError, ConfigError, RequestError
from ryzjax.lora import Adapter, LoraConfig, LoraWeights, attach
from ryzjax.native.library import native_refusal
from ryzjax.serving.messages.config import EngineOptions
from tests.adapters import random_adapter
from tests.goldens.make_llama3_tiny import prompt
from tests.serving.full_forward import full_forward
from tests.serving.test_sharded import layout_file

PROMPTS = [{"prompt_token_ids": prompt()[:n]} for n in (70, 5, 33, 40)]
GREEDY = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True, logprobs=1)
NAMES = [None, "a0", "a1", "a2"]
OPTIONS: EngineOptions = {"max_sequences": 4, "max_batch_tokens": 32, "page_size_tokens": 8, "max_context_tokens": 256}


def make_adapters(llm: LLM) -> dict[str, Adapter]:
    """Three adapters of different ranks and layers."""
    linears = llm.engine.runner.model.linears
    return {
        "a0": random_adapter(linears, 0, rank=4),
        "a1": random_adapter(linears, 1, rank=8, targets=("attention.q", "attention.v", "down")),
        "a2": random_adapter(linears, 2, rank=2, alpha=3.0, rank_pattern={"up": 7}),
    }


def answers(llm: LLM, prompts: list, names: list[str | None]) -> list[tuple[list[int], list[float]]]:
    """(tokens, log-probabilities) of each prompt with its adapter, in one call."""
    outputs = llm.generate(prompts, GREEDY, adapter=names, use_tqdm=False)
    return [(o.outputs[0].token_ids, [t.logprob for t in o.outputs[0].logprobs or ()]) for o in outputs]


def recompiles(llm: LLM) -> float:
    text = llm.engine.metrics.render()[0].decode()
    return float(next(line for line in text.splitlines() if line.startswith("ryzjax:recompiles_total")).split()[-1])


def slots(llm: LLM):
    found = llm.engine.scheduler.adapters
    assert found is not None
    return found


@pytest.fixture(scope="module")
def llm(tiny_llama3: Path, compile_cache: str) -> Iterator[LLM]:
    """The tiny model with three slots of rank 8, filled."""
    with LLM(str(tiny_llama3), compile_cache=compile_cache, max_loras=3, max_lora_rank=8, **OPTIONS) as llm:
        for name, adapter in make_adapters(llm).items():
            llm.load_adapter(name, adapter)
        yield llm
        llm.engine.scheduler.check_integrity()


def test_a_mixed_batch_is_each_row_alone(llm: LLM) -> None:
    mixed = answers(llm, PROMPTS, NAMES)
    alone = [answers(llm, [one], [name])[0] for one, name in zip(PROMPTS, NAMES, strict=True)]
    assert [tokens for tokens, _ in mixed] == [tokens for tokens, _ in alone]
    for (_, ours), (_, theirs) in zip(mixed, alone, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-5)
    # And the adapters matter: one prompt, four answers.
    different = answers(llm, [PROMPTS[0]] * 4, NAMES)
    assert len({tuple(tokens) for tokens, _ in different}) == 4
    assert recompiles(llm) == 0


def test_a_row_without_adapter_is_the_model_alone(llm: LLM, tiny_llm: LLM) -> None:
    tokens, logprobs = answers(llm, PROMPTS, NAMES)[0]
    (base,) = answers(tiny_llm, PROMPTS[:1], [None])
    assert tokens == base[0]
    np.testing.assert_allclose(logprobs, base[1], atol=2e-5)


def test_scores_are_those_of_attach_and_of_merged_weights(llm: LLM) -> None:
    """Prompt log-probabilities against one forward of the same weights, adapted as the trainer does it, and merged."""
    runner = llm.engine.runner
    params = SamplingParams(max_tokens=0, prompt_logprobs=0)
    for name, adapter in make_adapters(llm).items():
        output = llm.generate(PROMPTS[:1], params, adapter=name, use_tqdm=False)[0]
        ids = output.prompt_token_ids
        served = np.array([entry.logprob for entry in output.prompt_logprobs or () if entry is not None])
        scales = {layer: adapter.config.scale_of(layer) for layer in adapter.weights}
        attached = full_forward(llm, [ids], lambda model: attach(model, adapter.weights, scales))[0].logprobs  # noqa: B023
        merged_leaves = []
        for weight, leaf in zip(runner.model.weights, runner.leaves, strict=True):
            update = adapter.weights.get(weight.removesuffix(".weight"))
            if update is not None:
                leaf = leaf + scales[weight.removesuffix(".weight")] * (update.b @ update.a)
            merged_leaves.append(leaf)
        merged = full_forward(llm, [ids], leaves=tuple(merged_leaves))[0].logprobs
        at = np.arange(len(ids) - 1), np.array(ids[1:])
        np.testing.assert_allclose(served, attached[at], atol=1e-5)
        np.testing.assert_allclose(served, merged[at], atol=2e-4)


def test_adapters_of_embeddings(llm: LLM) -> None:
    plain, adapted = (llm.embed(PROMPTS[1], adapter=name, use_tqdm=False)[0].embedding for name in (None, "a0"))
    assert np.abs(plain - adapted).max() > 1e-2


@pytest.mark.skipif(native_refusal() is not None, reason=f"no native kernels: {native_refusal()}")
@pytest.mark.parametrize("weights", ["auto", "int4"])
def test_neighbours_change_no_bit_in_bfloat16(
    tiny_llama3: Path, compile_cache: str, weights: Literal["auto", "int4"]
) -> None:
    """With the native kernels the log-probabilities are the same to the last bit, whatever runs beside the row."""
    with LLM(
        str(tiny_llama3),
        dtype="bfloat16",
        weights=weights,
        weights_group=32,
        max_loras=3,
        max_lora_rank=8,
        compile_cache=compile_cache,
        **OPTIONS,
    ) as llm:
        base = answers(llm, PROMPTS, [None] * 4)  # before any slot is written
        for name, adapter in make_adapters(llm).items():
            llm.load_adapter(name, adapter)
        mixed = answers(llm, PROMPTS, NAMES)
        assert mixed[0] == base[0]
        assert [answers(llm, [one], [name])[0] for one, name in zip(PROMPTS, NAMES, strict=True)] == mixed
        assert len({tuple(tokens) for tokens, _ in answers(llm, [PROMPTS[0]] * 4, NAMES)}) == 4


@pytest.mark.parametrize("weights", ["int4"])
def test_quantized_base_scores_as_the_trainer_would(
    tiny_llama3: Path, compile_cache: str, weights: Literal["int4"]
) -> None:
    with LLM(
        str(tiny_llama3), weights=weights, weights_group=32, max_loras=1, compile_cache=compile_cache, **OPTIONS
    ) as llm:
        adapter = make_adapters(llm)["a2"]
        llm.load_adapter("a2", adapter)
        params = SamplingParams(max_tokens=0, prompt_logprobs=0)
        output = llm.generate(PROMPTS[2], params, adapter="a2", use_tqdm=False)[0]
        ids = output.prompt_token_ids
        served = np.array([entry.logprob for entry in output.prompt_logprobs or () if entry is not None])
        scales = {layer: adapter.config.scale_of(layer) for layer in adapter.weights}
        attached = full_forward(llm, [ids], lambda model: attach(model, adapter.weights, scales))[0].logprobs
        np.testing.assert_allclose(served, attached[np.arange(len(ids) - 1), np.array(ids[1:])], atol=1e-5)


@pytest.mark.parametrize("layout", ["tensor", pytest.param("fsdp_tp", marks=pytest.mark.slow)])
def test_over_eight_devices(llm: LLM, tiny_llama3: Path, tmp_path: Path, compile_cache: str, layout: str) -> None:
    expected = answers(llm, PROMPTS, NAMES)
    name = layout_file(tmp_path, 8) if layout == "tensor" else layout
    with LLM(str(tiny_llama3), layout=name, max_loras=3, max_lora_rank=8, compile_cache=compile_cache, **OPTIONS) as tp:
        for adapter_name, adapter in make_adapters(tp).items():
            tp.load_adapter(adapter_name, adapter)
        found = answers(tp, PROMPTS, NAMES)
        assert [tokens for tokens, _ in found] == [tokens for tokens, _ in expected]
        for (_, ours), (_, theirs) in zip(found, expected, strict=True):
            np.testing.assert_allclose(ours, theirs, atol=1e-4)
        if layout == "tensor":
            memory = tp.engine.runner.adapters
            assert memory is not None
            paths = [layer.path for layer in memory.plan.blocks[0]]
            up, down = paths.index("mlp.up"), paths.index("mlp.down")
            block = memory.blocks[0]
            # B is split as the layer's outputs are, A as its inputs.
            assert block.b[up].addressable_shards[0].data.shape[0] * 8 == block.b[up].shape[0]
            assert block.a[down].addressable_shards[0].data.shape[1] * 8 == block.a[down].shape[1]
            assert block.a[up].sharding.is_fully_replicated and block.b[down].sharding.is_fully_replicated
            shards = sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(memory.blocks))
            assert memory.plan.device_bytes == shards


def test_more_adapters_than_slots(tiny_llama3: Path, compile_cache: str, llm: LLM) -> None:
    """One slot for three adapters: they take turns, the order of the queue keeps anyone from waiting for ever."""
    expected = answers(llm, PROMPTS, NAMES)
    with LLM(str(tiny_llama3), max_loras=1, max_lora_rank=8, compile_cache=compile_cache, **OPTIONS) as small:
        for name, adapter in make_adapters(small).items():
            small.load_adapter(name, adapter)
        found = answers(small, PROMPTS * 3, NAMES * 3)
        assert [tokens for tokens, _ in found] == [tokens for tokens, _ in expected] * 3
        assert recompiles(small) == 0
        small.engine.scheduler.check_integrity()
        assert slots(small).num_loaded == 1 and slots(small).num_in_use == 0


def test_replaced_under_load(llm: LLM) -> None:
    """Eight streams run while their adapter is loaded, replaced and unloaded over and over."""
    linears = llm.engine.runner.model.linears
    versions = [random_adapter(linears, seed, rank=4) for seed in (10, 11)]
    expected = []
    for adapter in versions:
        llm.load_adapter("x", adapter, replace=True)
        expected.append(answers(llm, PROMPTS[1:2], ["x"])[0][0])
    assert expected[0] != expected[1]
    stop, failures, done = threading.Event(), [], []

    def stream(number: int) -> None:
        try:
            while not stop.is_set():
                name = None if number % 4 == 3 else "x"
                done.append((name, answers(llm, PROMPTS[1:2], [name])[0][0]))
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=stream, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + 60
    for i in itertools.count():
        if (i >= 12 and len(done) >= 24 and i % 2 == 0) or time.monotonic() > deadline:
            break
        llm.load_adapter("x", versions[i % 2], replace=True)
        llm.load_adapter("y", versions[i % 2])
        time.sleep(0.02)
        llm.unload_adapter("y")
    stop.set()
    for thread in threads:
        thread.join()
    assert not failures
    assert len(done) >= 24
    base = answers(llm, PROMPTS[1:2], [None])[0][0]
    # Each ran from its first token to its last with one version.
    assert all(tokens in expected if name else tokens == base for name, tokens in done)
    assert answers(llm, PROMPTS[1:2], ["x"])[0][0] == expected[1]
    assert recompiles(llm) == 0
    llm.unload_adapter("x")
    llm.engine.scheduler.check_integrity()


def test_a_request_keeps_an_adapter_that_is_unloaded(llm: LLM) -> None:
    async def run() -> tuple[list[int], list[int]]:
        params = SamplingParams(temperature=0, max_tokens=40, ignore_eos=True)
        whole = await llm.engine.generate(PROMPTS[1]["prompt_token_ids"], params, adapter="gone")
        tokens: list[int] = []
        async for delta in llm.engine.stream(PROMPTS[1]["prompt_token_ids"], params, adapter="gone"):
            if not tokens:
                llm.unload_adapter("gone")
            tokens += delta.token_ids
        return whole.outputs[0].token_ids, tokens

    llm.load_adapter("gone", random_adapter(llm.engine.runner.model.linears, 7))
    whole, streamed = asyncio.run(run())
    assert whole == streamed
    with pytest.raises(AdapterNotFoundError, match="gone"):
        llm.generate(PROMPTS[1], GREEDY, adapter="gone", use_tqdm=False)


def test_an_unknown_adapter_is_found_before_anything_runs(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llm.engine, "submit", lambda *arguments: pytest.fail("a request was opened"))
    with pytest.raises(AdapterNotFoundError, match=r"^prompts\[2\]: the lora adapter 'sql' cannot be found") as error:
        llm.generate(["a", "b", "c"], GREEDY, adapter=["a0", None, "sql"], use_tqdm=False)
    assert error.value.code == "model_not_found"
    with pytest.raises(AdapterNotFoundError):
        llm.embed("a", adapter="sql", use_tqdm=False)
    with pytest.raises(AdapterNotFoundError):
        llm.stream("a", GREEDY, adapter="sql")


def test_preempted_sequences_keep_their_adapters(tiny_llama3: Path, compile_cache: str, llm: LLM) -> None:
    params = SamplingParams(temperature=0, max_tokens=60, ignore_eos=True)
    names = NAMES * 2
    expected = llm.generate(PROMPTS * 2, params, adapter=names, use_tqdm=False)
    options = OPTIONS | {"max_context_tokens": 136}
    with LLM(
        str(tiny_llama3), kv_memory="270kB", max_loras=3, max_lora_rank=8, compile_cache=compile_cache, **options
    ) as small:
        for name, adapter in make_adapters(small).items():
            small.load_adapter(name, adapter)
        found = small.generate(PROMPTS * 2, params, adapter=names, use_tqdm=False)
        assert small.engine.scheduler.num_preemptions > 0
        assert [o.outputs[0].token_ids for o in found] == [o.outputs[0].token_ids for o in expected]
        small.engine.scheduler.check_integrity()


def broken(adapter: Adapter, layer: str, **changes: object) -> Adapter:
    weights = dict(adapter.weights)
    weights[layer] = LoraWeights(**({"a": weights[layer].a, "b": weights[layer].b} | changes))  # type: ignore[arg-type]
    return Adapter(config=adapter.config, weights=weights, base_model=adapter.base_model)


def test_adapters_that_do_not_fit(llm: LLM) -> None:
    linears = llm.engine.runner.model.linears
    good = random_adapter(linears, 3)
    q = "layers.0.attention.q"
    bad = {
        "rank 9.*max_lora_rank is 8.*--max-lora-rank 9": random_adapter(linears, 3, rank=9),
        "lora_A of layers.0.attention.q is": broken(good, q, a=jnp.zeros((4, 3))),
        "not a plain linear layer": random_adapter({"layers.9.attention.q": (64, 64)}, 3),
        "layers.1.mlp.down hold NaN or infinity": broken(
            good, "layers.1.mlp.down", b=good.weights["layers.1.mlp.down"].b.at[0, 0].set(jnp.nan)
        ),
        "'lm_head'.*ryzjax merge": random_adapter({"lm_head": linears["lm_head"]}, 3, targets=("lm_head",)),
        "is a DoRA.*ryzjax merge": Adapter(
            config=LoraConfig(rank=4, use_dora=True),
            weights={q: LoraWeights(a=good.weights[q].a, b=good.weights[q].b, magnitude=jnp.ones(linears[q][0]))},
        ),
    }
    before = llm.engine.adapters
    for message, adapter in bad.items():
        with pytest.raises(ConfigError, match=message):
            llm.load_adapter("bad", adapter)
    for name in ("", "a b", "../up", "x" * 129, llm.engine.model_name):
        with pytest.raises(ConfigError, match="lora_name"):
            llm.load_adapter(name, good)
    with pytest.raises(AdapterConflictError, match="already been loaded"):
        llm.load_adapter("a0", good)
    with pytest.raises(AdapterNotFoundError, match="'nobody'"):
        llm.unload_adapter("nobody")
    with pytest.raises(RequestError, match="2 adapters for 1 prompts"):
        llm.generate(PROMPTS[:1], GREEDY, adapter=["a0", "a1"], use_tqdm=False)
    assert llm.engine.adapters == before


def test_the_hosts_memory_is_bounded(tiny_llama3: Path, compile_cache: str) -> None:
    with LLM(
        str(tiny_llama3), max_loras=1, max_cpu_loras=2, max_lora_rank=8, compile_cache=compile_cache, **OPTIONS
    ) as llm:
        adapters = make_adapters(llm)
        llm.load_adapter("a0", adapters["a0"])
        llm.load_adapter("a1", adapters["a1"])
        with pytest.raises(AdapterConflictError, match="max_cpu_loras=2"):
            llm.load_adapter("a2", adapters["a2"])
        llm.unload_adapter("a0")
        llm.load_adapter("a2", adapters["a2"])
        assert [adapter.name for adapter in llm.engine.adapters] == ["a1", "a2"]


def test_from_folders(tiny_llama3: Path, compile_cache: str, tmp_path: Path, llm: LLM) -> None:
    """--lora NAME=DIRECTORY: as many slots as names, as large as the largest rank; and a load by path."""
    model = llm.engine.runner.model
    adapters = make_adapters(llm)
    for name, adapter in adapters.items():
        write_adapter(tmp_path / name, adapter, model, base_model="tiny")
    folders = tuple(f"{name}={tmp_path / name}" for name in ("a0", "a1"))
    with LLM(str(tiny_llama3), lora=folders, compile_cache=compile_cache, **OPTIONS) as served:
        memory = served.engine.runner.adapters
        assert memory is not None and (memory.plan.slots, memory.plan.rank) == (2, 8)
        assert [(a.name, a.rank, a.root) for a in served.engine.adapters] == [
            ("a0", 4, str(tmp_path / "a0")),
            ("a1", 8, str(tmp_path / "a1")),
        ]
        served.load_adapter("a2", tmp_path / "a2")
        found = answers(served, PROMPTS, NAMES)
        with pytest.raises(CheckpointError, match="nothing"):
            served.load_adapter("x", tmp_path / "nothing")
    assert [tokens for tokens, _ in found] == [tokens for tokens, _ in answers(llm, PROMPTS, NAMES)]
    with pytest.raises(CheckpointError, match="nothing"):
        LLM(str(tiny_llama3), lora=(f"x={tmp_path / 'nothing'}",), compile_cache=compile_cache, **OPTIONS)


def test_off_by_default(tiny_llm: LLM, llm: LLM) -> None:
    runner = tiny_llm.engine.runner
    assert runner.adapter_bytes == 0
    assert not [key for key in runner.program_keys if key[0] == "set_adapter"]
    assert [key for key in llm.engine.runner.program_keys if key[0] == "set_adapter"] == [("set_adapter", 0)]
    with pytest.raises(ConfigError, match="max_loras is 0"):
        tiny_llm.load_adapter("x", random_adapter(runner.model.linears, 0))
    with pytest.raises(ConfigError, match="max_loras is 0"):
        tiny_llm.generate(PROMPTS[:1], GREEDY, adapter="x", use_tqdm=False)


def test_names_and_folders_of_the_command_line() -> None:
    from ryzjax.serving.messages.config import EngineConfig

    config = EngineConfig(model="m", lora=("sql=/a/b", "chat=c=d"))
    assert config.lora_folders == (("sql", "/a/b"), ("chat", "c=d"))
    for wrong in (("sql",), ("=x",), ("a=",), ("a=b", "a=c")):
        with pytest.raises(ConfigError, match="--lora"):
            EngineConfig(model="m", lora=wrong)
    with pytest.raises(ConfigError, match="max_loras is 0"):
        EngineConfig(model="m", lora=("a=b",), max_loras=0)
