"""Layouts on eight fake devices: the same tokens as on one device, real shardings, and only the needed collectives."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import jax
import pytest
from jax.sharding import PartitionSpec as P

from ryzjax import LLM, SamplingParams
from ryzjax.serving.device.prompt_programs import tile_tokens
from tests.goldens.make_llama3_tiny import CONFIG, prompt

LAYERS = CONFIG["num_hidden_layers"]
GREEDY = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True)
PROMPTS = [{"prompt_token_ids": prompt()[:n]} for n in (96, 5, 40)]
COLLECTIVE = re.compile(r"= \S+ (all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)(?:-start)?\(")


def layout_file(folder: Path, tensor: int) -> str:
    path = folder / f"tp{tensor}.toml"
    rules = "".join(f'{axis} = "tensor"\n' for axis in ("heads", "kv_heads", "ffn", "vocab"))
    path.write_text(f"[mesh]\ntensor = {tensor}\n[rules]\n{rules}")
    return str(path)


def launch(model: Path, layout: str, compile_cache: str) -> LLM:
    return LLM(
        str(model),
        layout=layout,
        max_sequences=4,
        max_batch_tokens=64,
        page_size_tokens=8,
        max_context_tokens=256,
        compile_cache=compile_cache,
    )


def scores(llm: LLM) -> list[float]:
    """Returns the log-probabilities of the prompts' tokens."""
    outputs = llm.generate(PROMPTS, SamplingParams(max_tokens=0, prompt_logprobs=1), use_tqdm=False)
    return [entry.logprob for output in outputs for entry in output.prompt_logprobs or () if entry]


@pytest.fixture(scope="module")
def expected_scores(tiny_llm: LLM) -> list[float]:
    return scores(tiny_llm)


@pytest.fixture(scope="module")
def expected(tiny_llm: LLM) -> list[list[int]]:
    return [output.outputs[0].token_ids for output in tiny_llm.generate(PROMPTS, GREEDY, use_tqdm=False)]


def collectives(llm: LLM, kind: str, size: int) -> Counter[str]:
    text = llm.engine.runner.programs[kind, size].as_text()  # type: ignore[index]
    return Counter(COLLECTIVE.findall(text))


@pytest.mark.parametrize("tensor", [2, pytest.param(4, marks=pytest.mark.slow), 8])
def test_tensor_parallel(tiny_llama3: Path, tmp_path: Path, compile_cache: str, tensor: int, expected: list[list[int]]):
    with launch(tiny_llama3, layout_file(tmp_path, tensor), compile_cache) as llm:
        outputs = llm.generate(PROMPTS, GREEDY, use_tqdm=False)
        assert [output.outputs[0].token_ids for output in outputs] == expected
        runner = llm.engine.runner
        weights = dict(zip(runner.model.weights, runner.leaves, strict=True))
        specs = {name: array.sharding.spec for name, array in weights.items()}
        # An axis of 4 or 8 devices is built from axes of 2.
        parts = {2: "tensor", 4: ("tensor_0", "tensor_1"), 8: ("tensor_0", "tensor_1", "tensor_2")}[tensor]
        # 4 KV heads are split at most 4 ways, so with 8 devices each is on two.
        kv_parts = parts if tensor <= 4 else ("tensor_0", "tensor_1")
        layer = "layers.1."
        assert specs[layer + "attention.q.weight"] == P(parts, None)
        assert specs[layer + "attention.o.weight"] == P(None, parts)
        assert specs[layer + "mlp.gate.weight"] == P(parts, None)
        assert specs[layer + "mlp.down.weight"] == P(None, parts)
        assert specs[layer + "attention_norm.weight"] == P(None)
        assert specs["lm_head.weight"] == specs["embed.weight"] == P(parts, None)
        assert specs[layer + "attention.k.weight"] == P(kv_parts, None)
        assert runner.cache.k.sharding.spec == P(None, None, kv_parts, None, None)
        for array, shares in ((weights[layer + "mlp.gate.weight"], tensor), (runner.cache.k, min(4, tensor))):
            assert len(array.sharding.device_set) == tensor
            assert array.addressable_shards[0].data.nbytes * shares == array.nbytes
        # The collectives are one reduction after attention and one after the MLP of each layer, one for the sharded
        # embedding table, and a gather of the head's sharded logits.
        for kind, size in (("decode", 4), ("mixed", 64)):
            assert collectives(llm, kind, size) == Counter({"all-reduce": 2 * LAYERS + 1})
        assert collectives(llm, "head", 4) == collectives(llm, "score", tile_tokens()) == Counter({"all-gather": 1})


@pytest.mark.parametrize("layout", [pytest.param("tp_dp", marks=pytest.mark.slow), "fsdp_tp"])
def test_two_axes(
    tiny_llama3: Path, compile_cache: str, layout: str, expected: list[list[int]], expected_scores: list[float]
):
    with launch(tiny_llama3, layout, compile_cache) as llm:
        assert scores(llm) == pytest.approx(expected_scores, abs=1e-4)
        outputs = llm.generate(PROMPTS, GREEDY, use_tqdm=False)
        assert [output.outputs[0].token_ids for output in outputs] == expected
        runner = llm.engine.runner
        weights = dict(zip(runner.model.weights, runner.leaves, strict=True))
        gate = weights["layers.0.mlp.gate.weight"]
        assert gate.sharding.spec == P(("tensor_0", "tensor_1"), None if layout == "tp_dp" else "fsdp")
        shares = 4 if layout == "tp_dp" else 8
        assert gate.addressable_shards[0].data.nbytes * shares == gate.nbytes
        assert len(jax.devices()) == len(gate.sharding.device_set) == 8


def test_sizes_that_do_not_divide_are_split_as_far_as_they_do(
    stories: Path, stories_llm: LLM, tmp_path: Path, compile_cache: str
):
    with launch(stories, layout_file(tmp_path, 8), compile_cache) as llm:
        weights = dict(zip(llm.engine.runner.model.weights, llm.engine.runner.leaves, strict=True))
        gate = weights["layers.0.mlp.gate.weight"]
        # 172 rows do not divide over 8 devices, so they are in 4 shards, each on two devices.
        assert gate.addressable_shards[0].data.nbytes * 4 == gate.nbytes
        prompts = [{"prompt_token_ids": [1, 403, 407, 261]}]
        expected = stories_llm.generate(prompts, GREEDY, use_tqdm=False)[0].outputs[0].token_ids
        assert llm.generate(prompts, GREEDY, use_tqdm=False)[0].outputs[0].token_ids == expected
