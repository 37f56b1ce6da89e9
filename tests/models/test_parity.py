"""Tiny random models of every family against transformers, live: logits through the paged path and the engine."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ryzjax import LLM, SamplingParams
from ryzjax.data.byte_tokenizer import write_byte_tokenizer
from tests.goldens.make_families import VARIANTS, build
from tests.goldens.make_families import prompt as family_prompt
from tests.goldens.make_families import reference as family_reference
from tests.goldens.make_llama3_tiny import CONFIG, NEW_TOKENS, prompt, reference
from tests.models.test_families import logits_of

pytestmark = pytest.mark.parity
torch = pytest.importorskip("torch")

BASE = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 384,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    "initializer_range": 0.2,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def transformers_logprobs(folder: Path, dtype: str) -> tuple[list[int], np.ndarray]:
    """(greedy tokens, log-probabilities [NEW_TOKENS, vocab]) of a random Llama, saved to `folder`."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**BASE)).to(getattr(torch, dtype)).eval()
    model.save_pretrained(folder)
    write_byte_tokenizer(folder, vocab_size=BASE["vocab_size"])
    return greedy(model, prompt())


def greedy(model, tokens: list[int]) -> tuple[list[int], np.ndarray]:
    """(new tokens, log-probabilities they were chosen from): the whole sequence anew for each, without a cache."""
    tokens, logprobs, start = list(tokens), [], len(tokens)
    with torch.inference_mode():
        for _ in range(NEW_TOKENS):
            last = model(torch.tensor([tokens]), use_cache=False).logits[0, -1].float()
            logprobs.append(torch.log_softmax(last, -1).numpy())
            tokens.append(int(last.argmax()))
    return tokens[start:], np.stack(logprobs)


@pytest.mark.parametrize("name", VARIANTS)
def test_logits_of_other_weights_and_another_prompt(name: str, tmp_path: Path):
    model, _ = build(name, tmp_path, seed=1)
    tokens, expected = family_reference(model, family_prompt(seed=6))
    assert np.abs(logits_of(tmp_path, tokens, chunk=40) - expected).max() < 2e-4


# The whole engine, several requests at once: prompts shorter and longer than windows and LongRoPE's first length.
ENGINE = ["llama", "mixtral", "qwen3 moe", "gemma3", "olmo3", "gpt-oss", "phi3 longrope"]


@pytest.mark.parametrize("name", ENGINE)
def test_the_engine_gives_what_transformers_gives(name: str, tmp_path: Path, compile_cache: str):
    model, _ = build(name, tmp_path, seed=2, vocab_size=384)
    write_byte_tokenizer(tmp_path, vocab_size=384)
    prompts = [family_prompt(seed)[:length] for seed, length in enumerate((96, 50, 7, 33))]
    options = {"max_sequences": 4, "max_batch_tokens": 40, "page_size_tokens": 8, "max_context_tokens": 160}
    with LLM(str(tmp_path), dtype="float32", compile_cache=compile_cache, **options) as llm:
        params = SamplingParams(temperature=0, max_tokens=NEW_TOKENS, logprobs=20, ignore_eos=True)
        outputs = llm.generate([{"prompt_token_ids": p} for p in prompts], params, use_tqdm=False)
    for tokens, output in zip(prompts, outputs, strict=True):
        expected, logprobs = greedy(model, tokens)
        assert output.outputs[0].token_ids == expected
        assert output.outputs[0].logprobs is not None
        for entry, theirs in zip(output.outputs[0].logprobs, logprobs, strict=True):
            ids, values = zip(*entry.top, strict=True)
            np.testing.assert_allclose(values, theirs[list(ids)], atol=2e-4)


def test_bfloat16_is_no_further_from_float32_than_transformers(tmp_path: Path, compile_cache: str):
    from transformers import LlamaForCausalLM

    transformers_logprobs(tmp_path, "bfloat16")
    prompts = [prompt()[:length] for length in range(8, 96, 4)]
    exact, theirs = (
        LlamaForCausalLM.from_pretrained(tmp_path, dtype=dtype).eval() for dtype in (torch.float32, torch.bfloat16)
    )
    options = {"max_sequences": 2, "max_batch_tokens": 64, "page_size_tokens": 8, "compile_cache": compile_cache}
    with LLM(str(tmp_path), dtype="bfloat16", **options) as llm:
        params = SamplingParams(temperature=0, max_tokens=1, logprobs=20, ignore_eos=True)
        outputs = llm.generate([{"prompt_token_ids": p} for p in prompts], params, use_tqdm=False)
    our_errors, their_errors = [], []
    for tokens, output in zip(prompts, outputs, strict=True):
        assert output.outputs[0].logprobs is not None
        ids, values = zip(*output.outputs[0].logprobs[0].top, strict=True)
        with torch.inference_mode():
            true, rounded = (
                torch.log_softmax(model(torch.tensor([tokens])).logits[0, -1].float(), -1).numpy()[list(ids)]
                for model in (exact, theirs)
            )
        our_errors.append(np.asarray(values) - true)
        their_errors.append(rounded - true)
    ours_rms, theirs_rms = (float(np.sqrt(np.mean(np.square(e)))) for e in (our_errors, their_errors))
    assert ours_rms < 1.2 * theirs_rms, (ours_rms, theirs_rms)


def test_the_golden_is_what_transformers_says():
    golden = np.load(Path(__file__).resolve().parents[1] / "goldens" / "llama3_tiny.npz")
    tokens, logits = reference()
    assert golden["tokens"].tolist() == tokens
    np.testing.assert_allclose(golden["logits"], logits, atol=1e-4)
    assert CONFIG["rope_scaling"]["rope_type"] == "llama3"
