"""Child process of peers.py: transformers + torch, bf16, static cache. One JSON command a line, one answer a line.

The decode loop is written out over the model's forward with a StaticCache, so that `generate()`'s own overhead is
not counted against the peer.
"""

from __future__ import annotations

import json
import sys
import time
from functools import partial

import torch
from transformers import AutoModelForCausalLM, StaticCache


def main() -> None:
    """Loads argv[1] and answers commands until end of input."""
    torch.set_num_threads(int(sys.argv[2]))
    model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.bfloat16, attn_implementation="sdpa").eval()
    decoding: _Decoding | None = None
    print(json.dumps({"ready": True, "torch": torch.__version__}), flush=True)
    for line in sys.stdin:
        command = json.loads(line)
        seconds: list[float] = []
        with torch.inference_mode():
            if command["do"] == "decode":
                decoding = _Decoding(model, command["batch"], command["context"], command["room"])
            elif command["do"] == "measure" and decoding is not None:
                seconds = [timed(decoding.step) for _ in range(command["steps"])]
            elif command["do"] == "prefill":
                seconds = prefill_seconds(model, command["context"], command["steps"])
        print(json.dumps({"seconds": seconds}), flush=True)


class _Decoding:
    """Sequences in a static cache."""

    def __init__(self, model, batch: int, context: int, room: int):
        self.model = model
        self.cache = StaticCache(config=model.config, max_cache_len=context + room)
        ids = torch.randint(3, model.config.vocab_size, (batch, context))
        self.token = self._next(ids)

    def step(self) -> None:
        self.token = self._next(self.token)
        self.token.tolist()

    def _next(self, ids):
        logits = self.model(ids, past_key_values=self.cache, use_cache=True, logits_to_keep=1).logits
        return logits[:, -1:].argmax(-1)


def prefill_seconds(model, tokens: int, repeats: int) -> list[float]:
    """Seconds of a prompt's first token."""
    cache = StaticCache(config=model.config, max_cache_len=tokens + 1)
    ids = torch.randint(3, model.config.vocab_size, (1, tokens))
    times: list[float] = []
    for _ in range(repeats):
        cache.reset()
        forward = partial(model, ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        times.append(timed(lambda forward=forward: forward().logits.argmax(-1).tolist()))
    return times


def timed(run) -> float:
    """Seconds of one call."""
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
