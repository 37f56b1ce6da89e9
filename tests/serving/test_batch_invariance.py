"""On a CPU with the native kernels a request's log-probabilities are the same to the last bit, whatever runs beside it
and however its prompt was cut."""

from __future__ import annotations

from typing import Literal

import pytest

from ryzjax import LLM, SamplingParams
from ryzjax.native.library import native_refusal
from ryzjax.shipped import DEMO_MODEL

pytestmark = [
    pytest.mark.optimized,
    pytest.mark.essential,
    pytest.mark.skipif(native_refusal() is not None, reason=f"no native kernels: {native_refusal()}"),
]

PROMPT = "Once upon a time there was a little dog who wanted to see the big blue sea behind the hills"
NEIGHBOURS = ["The cat", "One day a girl named Lily found a very old map in a box", "Tom", "It was raining", "Ben ran"]


@pytest.mark.parametrize(
    ("weights", "kv_dtype", "activations"),
    [
        ("auto", "auto", "auto"),
        ("int8", "auto", "bf16"),
        ("int4", "int8", "int8"),
        pytest.param("int8", "auto", "int8", marks=pytest.mark.slow),
        pytest.param("int4", "int8", "bf16", marks=pytest.mark.slow),
        pytest.param("auto", "float32", "auto", marks=pytest.mark.slow),
    ],
)
def test_neighbours_and_chunks_change_no_bit(
    compile_cache: str,
    weights: Literal["auto", "int8", "int4"],
    kv_dtype: Literal["auto", "int8", "float32"],
    activations: Literal["auto", "bf16", "int8"],
):
    def engine(max_batch_tokens: int) -> LLM:
        return LLM(
            DEMO_MODEL,
            dtype="bfloat16",
            weights=weights,
            weights_group=32,
            kv_dtype=kv_dtype,
            activations=activations,
            max_sequences=8,
            max_batch_tokens=max_batch_tokens,
            max_context_tokens=128,
            compile_cache=compile_cache,
        )

    def last(llm: LLM, prompts: list[str]) -> tuple[list[int], list[float]]:
        params = SamplingParams(temperature=0, max_tokens=24, logprobs=1, ignore_eos=True)
        answer = llm.generate(prompts, params, use_tqdm=False)[-1].outputs[0]
        assert answer.logprobs is not None
        return list(answer.token_ids), [entry.logprob for entry in answer.logprobs]

    with engine(128) as llm:
        alone = last(llm, [PROMPT])
        assert last(llm, [*NEIGHBOURS, PROMPT]) == alone
    with engine(8) as llm:
        assert last(llm, [*NEIGHBOURS, PROMPT]) == alone
