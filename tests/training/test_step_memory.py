"""The bytes of a train step as XLA plans them for a CPU. The step is compiled from shapes; no weights are made."""

from __future__ import annotations

import dataclasses
from typing import Protocol

import jax
import pytest

from ryzjax.layers.rope import Rope
from ryzjax.lora.config import LoraConfig
from ryzjax.models.registry import abstract_model
from ryzjax.models.stacked import StackedModel
from ryzjax.quant.scheme import Scheme
from ryzjax.training.model import LoraModel
from ryzjax.training.objectives.make_objective import make_objective
from ryzjax.training.optimizers.config import OptimizerConfig
from ryzjax.training.optimizers.optimizer import make_optimizer
from ryzjax.training.programs import Programs
from ryzjax.training.start.shapes import adapter_shapes
from tests.evaluation.models import ONE
from tests.models.configs import CONFIGS

TOKENS = 512

pytestmark = [
    pytest.mark.optimized,
    pytest.mark.skipif(jax.default_backend() != "cpu", reason="another backend plans otherwise"),
]


class MemoryStats(Protocol):
    """The part of XLA's memory analysis of a program that the tests read."""

    argument_size_in_bytes: int
    temp_size_in_bytes: int
    output_size_in_bytes: int
    alias_size_in_bytes: int


def qlora_step(*, hidden: int, ffn: int, heads: int, layers: int, rows: int) -> MemoryStats:
    """Int4 base in groups of 128 with int8 embedding and head, rank 8 on all linear layers, 8-bit Adam, 1 x 512."""
    config = dataclasses.replace(
        CONFIGS["llama"],
        vocab_size=32_000,
        hidden_size=hidden,
        intermediate_size=ffn,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=hidden // heads,
        rope=Rope(rotary_dim=hidden // heads, theta=10_000.0),
        tie_embeddings=False,
        dtype="bfloat16",
    )
    linears = abstract_model(config, ONE).linears
    formats = {
        name: Scheme(bits=8 if name == "lm_head" else 4, group=128).fitted(k).format(k, "bfloat16")
        for name, (_, k) in linears.items()
    }
    formats["embed"] = Scheme(bits=8, group=128).fitted(hidden).format(hidden, "bfloat16")
    lora = LoraConfig(rank=8, alpha=16)
    model = LoraModel(
        stacked=StackedModel(abstract_model(config, ONE, formats)),
        lora=lora,
        layers=lora.choose(linears),
        remat="full",
        remat_layers=4,
        mlp_rows=rows,
    )
    programs = Programs(
        model=model,
        objective=make_objective("sft", chunk_tokens=64),
        optimizer=make_optimizer(OptimizerConfig(optimizer="adamw8bit"), adapter_shapes(model), total_steps=100),
        rows=1,
        sequence_tokens=TOKENS,
        accumulate=1,
    )
    memory = programs.compile_train().memory_analysis()
    assert memory is not None
    return memory


@pytest.mark.slow
def test_seven_billion_parameters_are_tuned_in_less_than_four_gigabytes():
    memory = qlora_step(hidden=4096, ffn=11_008, heads=32, layers=32, rows=64)
    arguments, temporaries = memory.argument_size_in_bytes, memory.temp_size_in_bytes
    total = arguments + temporaries + memory.output_size_in_bytes - memory.alias_size_in_bytes
    assert arguments > 3.7e9, "the base is not all there"
    assert total < 4.0e9, f"{arguments:,} bytes of arguments and {temporaries:,} of temporaries"


@pytest.mark.slow
def test_temporaries_grow_by_the_gradients_of_a_layer_and_a_quarter_of_its_input():
    hidden, ffn = 2048, 5632
    few, many = (qlora_step(hidden=hidden, ffn=ffn, heads=16, layers=n, rows=128).temp_size_in_bytes for n in (8, 32))
    gradients = 2 * 8 * (8 * hidden + 3 * (hidden + ffn))  # bfloat16, rank 8
    inputs = 2 * TOKENS * hidden // 4  # of every 4th layer
    assert (many - few) / 24 < min(1.5e6, 1.05 * (gradients + inputs))


@pytest.mark.slow
def test_temporaries_of_a_small_model_grow_likewise():
    hidden, ffn = 256, 512
    few, many = (qlora_step(hidden=hidden, ffn=ffn, heads=4, layers=n, rows=128).temp_size_in_bytes for n in (4, 16))
    gradients = 2 * 8 * (8 * hidden + 3 * (hidden + ffn))
    inputs = 2 * TOKENS * hidden // 4
    assert (many - few) / 12 < 1.25 * (gradients + inputs)
