"""Layouts on eight fake devices: the tokens of one device, real shardings, and no collective too many."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import jax
import pytest
from jax.sharding import PartitionSpec as P

from ryzjax import LLM, SamplingParams
from ryzjax.errors import LayoutError
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
    """Log-probabilities of the prompts' tokens."""
    outputs = llm.generate(PROMPTS, SamplingParams(max_tokens=0, prompt_logprobs=1), use_tqdm=False)
    return [entry.logprob for output in outputs for entry in output.prompt_logprobs or () if entry]


@pytest.fixture(scope="module")
def expected_scores(tiny_llm: LLM) -> list[float]:
    return scores(tiny_llm)


@pytest.fixture(scope="module")
def expected(tiny_llm: LLM) -> list[list[int]]:
    return [output.outputs[0].token_ids for output in tiny_llm.generate(PROMPTS, GREEDY, use_tqdm=False)]


def collectives(llm: LLM, kind: str, size: int) -> Counter[str]:
    text = llm.engine.engine.runner.programs[kind, size].as_text()  # type: ignore[index]
    return Counter(COLLECTIVE.findall(text))


@pytest.mark.parametrize("tensor", [2, 4, 8])
def test_tensor_parallel(tiny_llama3: Path, tmp_path: Path, compile_cache: str, tensor: int, expected: list[list[int]]):
    with launch(tiny_llama3, layout_file(tmp_path, tensor), compile_cache) as llm:
        outputs = llm.generate(PROMPTS, GREEDY, use_tqdm=False)
        assert [output.outputs[0].token_ids for output in outputs] == expected
        runner = llm.engine.engine.runner
        weights = dict(zip(runner.model.weights, runner._leaves, strict=True))
        specs = {name: array.sharding.spec for name, array in weights.items()}
        layer = "layers.1."
        assert specs[layer + "attention.q.weight"] == P("tensor", None)
        assert specs[layer + "attention.o.weight"] == P(None, "tensor")
        assert specs[layer + "mlp.gate.weight"] == P("tensor", None)
        assert specs[layer + "mlp.down.weight"] == P(None, "tensor")
        assert specs[layer + "attention_norm.weight"] == P(None)
        assert specs["lm_head.weight"] == specs["embed.weight"] == P("tensor", None)
        # 4 KV heads: split up to 4 devices, whole on each of 8, where the cache holds every head twice.
        assert specs[layer + "attention.k.weight"] == (P("tensor", None) if tensor <= 4 else P(None, None))
        assert runner.cache.k.sharding.spec == P(None, None, "tensor", None, None)
        assert runner.cache.k.shape[2] == max(4, tensor)
        for array in (weights[layer + "mlp.gate.weight"], runner.cache.k):
            assert len(array.sharding.device_set) == tensor
            assert array.addressable_shards[0].data.nbytes * tensor == array.nbytes
        # Activations, by what they cost: one reduction after attention and one after the MLP in each layer, one
        # for the split embedding table; the head gathers its split logits.
        for kind, size in (("decode", 4), ("mixed", 64)):
            assert collectives(llm, kind, size) == Counter({"all-reduce": 2 * LAYERS + 1})
        assert collectives(llm, "head", 4) == collectives(llm, "score", 64) == Counter({"all-gather": 1})


@pytest.mark.parametrize("layout", ["tp_dp", "fsdp_tp"])
def test_two_axes(
    tiny_llama3: Path, compile_cache: str, layout: str, expected: list[list[int]], expected_scores: list[float]
):
    with launch(tiny_llama3, layout, compile_cache) as llm:
        assert scores(llm) == pytest.approx(expected_scores, abs=1e-4)
        outputs = llm.generate(PROMPTS, GREEDY, use_tqdm=False)
        assert [output.outputs[0].token_ids for output in outputs] == expected
        runner = llm.engine.engine.runner
        weights = dict(zip(runner.model.weights, runner._leaves, strict=True))
        gate = weights["layers.0.mlp.gate.weight"]
        assert gate.sharding.spec == (P("tensor", None) if layout == "tp_dp" else P("tensor", "fsdp"))
        shares = 4 if layout == "tp_dp" else 8
        assert gate.addressable_shards[0].data.nbytes * shares == gate.nbytes
        assert len(jax.devices()) == len(gate.sharding.device_set) == 8


def test_sizes_that_do_not_divide_are_refused(stories: Path, tmp_path: Path):
    with pytest.raises(LayoutError, match=r"ffn=172 does not divide over the 8 devices"):
        LLM(str(stories), layout=layout_file(tmp_path, 8))
    three = tmp_path / "three.toml"
    three.write_text('[mesh]\ntensor = 3\n[rules]\nheads = "tensor"\n')
    with pytest.raises(LayoutError, match=r"heads=8 does not divide over the 3 devices"):
        LLM(str(stories), layout=str(three))
