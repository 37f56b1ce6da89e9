"""Tiny random models against transformers, live: greedy tokens and log-probabilities through the paged path."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ryzjax import LLM, SamplingParams
from ryzjax.data.byte_tokenizer import write_byte_tokenizer
from tests.goldens.make_llama3_tiny import CONFIG, NEW_TOKENS, prompt, reference

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
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
VARIANTS = {
    "gqa": {},
    "mha": {"num_key_value_heads": 4},
    "mqa": {"num_key_value_heads": 1},
    "tied": {"tie_word_embeddings": True},
    "attention bias": {"attention_bias": True},
    "mlp bias": {"mlp_bias": True},
    "head_dim of its own": {"head_dim": 24},
    "linear rope": {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}},
    "llama3 rope": {"rope_parameters": LLAMA3},
}


def transformers_logprobs(folder: Path, changes: dict, dtype: str) -> tuple[list[int], np.ndarray]:
    """(greedy tokens, log-probabilities [NEW_TOKENS, vocab]) of a random model, saved to `folder`."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**(BASE | changes))).to(getattr(torch, dtype)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):  # transformers starts biases at zero, where they could be forgotten
                parameter.normal_(0, 0.5)
    model.save_pretrained(folder)
    write_byte_tokenizer(folder, vocab_size=BASE["vocab_size"])
    tokens, logprobs = prompt(), []
    with torch.inference_mode():
        for _ in range(NEW_TOKENS):
            last = model(torch.tensor([tokens])).logits[0, -1].float()
            logprobs.append(torch.log_softmax(last, -1).numpy())
            tokens.append(int(last.argmax()))
    return tokens[len(prompt()) :], np.stack(logprobs)


def ours(folder: Path, dtype: str, compile_cache: str):
    options = {"max_sequences": 2, "max_batch_tokens": 64, "page_size_tokens": 8, "compile_cache": compile_cache}
    with LLM(str(folder), dtype=dtype, **options) as llm:
        params = SamplingParams(temperature=0, max_tokens=NEW_TOKENS, logprobs=20, ignore_eos=True)
        return llm.generate({"prompt_token_ids": prompt()}, params, use_tqdm=False)[0].outputs[0]


@pytest.mark.parametrize("name", VARIANTS)
def test_float32(name: str, tmp_path: Path, compile_cache: str):
    tokens, logprobs = transformers_logprobs(tmp_path, VARIANTS[name], "float32")
    output = ours(tmp_path, "float32", compile_cache)
    assert output.token_ids == tokens
    assert output.logprobs is not None
    for entry, theirs in zip(output.logprobs, logprobs, strict=True):
        ids, values = zip(*entry.top, strict=True)
        np.testing.assert_allclose(values, theirs[list(ids)], atol=2e-4)


def test_bfloat16_is_no_further_from_float32_than_transformers(tmp_path: Path, compile_cache: str):
    from transformers import LlamaForCausalLM

    transformers_logprobs(tmp_path, {}, "bfloat16")
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
