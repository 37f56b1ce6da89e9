"""Child process of peers.py: transformers + torch, bf16, static cache. One JSON command a line, one answer a line.

The decode loop is written out over the model's forward with a StaticCache, so that `generate()`'s own overhead is
not counted against the peer.
"""

from __future__ import annotations

import json
import sys
import time

import torch
from transformers import AutoModelForCausalLM, StaticCache


def main() -> None:
    """Loads argv[1] and answers commands until end of input."""
    torch.set_num_threads(int(sys.argv[2]))
    model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.bfloat16, attn_implementation="sdpa").eval()
    caches: dict[tuple[int, int], StaticCache] = {}
    print(json.dumps({"ready": True, "torch": torch.__version__}), flush=True)
    for line in sys.stdin:
        command = json.loads(line)
        with torch.inference_mode():
            print(json.dumps({"seconds": measure(model, caches, **command)}), flush=True)


def measure(model, caches: dict, *, kind: str, batch: int, context: int, steps: int) -> list[float]:
    """Seconds of each decode step at `context`, or of each prefill of `context` tokens."""
    room = context + steps + 1
    key = (batch, room)
    if key not in caches:
        caches[key] = StaticCache(config=model.config, max_cache_len=room)
    cache = caches[key]
    ids = torch.randint(3, model.config.vocab_size, (batch, context))
    times: list[float] = []
    if kind == "prefill":
        for _ in range(steps):
            cache.reset()
            times.append(
                timed(lambda: model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1).logits.argmax(-1))
            )
        return times
    cache.reset()
    token = model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1).logits[:, -1:].argmax(-1)
    for _ in range(steps):
        started = time.perf_counter()
        token = model(token, past_key_values=cache, use_cache=True).logits[:, -1:].argmax(-1)
        token.tolist()
        times.append(time.perf_counter() - started)
    return times


def timed(run) -> float:
    """Seconds of one call, its result on the host."""
    started = time.perf_counter()
    run().tolist()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
