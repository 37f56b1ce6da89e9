"""A child process of peers.py: runs transformers + torch in bf16 with a static cache.

The decode loop calls the model's forward directly, so that the overhead of `generate()` does not count against torch.
"""

from __future__ import annotations

import sys
import time
from functools import partial

import torch
from peer_loop import answer_commands
from transformers import AutoModelForCausalLM, StaticCache


def main() -> None:
    """Loads the model argv[1] with argv[2] threads and answers commands until the end of input."""
    torch.set_num_threads(int(sys.argv[2]))
    model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.bfloat16, attn_implementation="sdpa").eval()
    with torch.inference_mode():
        answer_commands(
            {"torch": torch.__version__},
            lambda batch, context, room: _Decoding(model, batch, context, room),
            lambda context, repeats: prefill_seconds(model, context, repeats),
        )


class _Decoding:
    """Sequences that decode together in a static cache.

    The cache starts with random keys and values. The time of a step does not depend on them, and prefilling them would
    take minutes on a CPU without bfloat16 products.
    """

    def __init__(self, model, batch: int, context: int, room: int):
        self.model = model
        self.cache = StaticCache(config=model.config, max_cache_len=context + room)
        config = model.config
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        shape = (batch, config.num_key_value_heads, context, head_dim)
        for layer in range(config.num_hidden_layers):
            self.cache.update(*(torch.randn(shape, dtype=torch.bfloat16) for _ in range(2)), layer)
        assert self.cache.get_seq_length() == context
        self.token = torch.randint(3, config.vocab_size, (batch, 1))

    def seconds(self, steps: int) -> list[float]:
        return [timed(self.step) for _ in range(steps)]

    def close(self) -> None:
        del self.cache

    def step(self) -> None:
        self.token = self._next(self.token)
        self.token.tolist()

    def _next(self, ids):
        logits = self.model(ids, past_key_values=self.cache, use_cache=True, logits_to_keep=1).logits
        return logits[:, -1:].argmax(-1)


def prefill_seconds(model, tokens: int, repeats: int) -> list[float]:
    """Returns the seconds of each prefill, up to the first token."""
    cache = StaticCache(config=model.config, max_cache_len=tokens + 1)
    ids = torch.randint(3, model.config.vocab_size, (1, tokens))
    times: list[float] = []
    for _ in range(repeats):
        cache.reset()
        forward = partial(model, ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        times.append(timed(lambda forward=forward: forward().logits.argmax(-1).tolist()))
    return times


def timed(run) -> float:
    """Returns the seconds of one call."""
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
