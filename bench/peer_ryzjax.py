"""Child process of peers.py: RyzJAX through its engine, as a server runs it. One JSON command a line, one answer a line."""

from __future__ import annotations

import json
import sys
import time

from ryzjax import LLM, SamplingParams
from ryzjax.serving.request import EngineRequest


def main() -> None:
    """Loads argv[1] and answers commands until end of input."""
    llm = LLM(sys.argv[1], dtype="bfloat16", max_sequences=8, max_batch_tokens=512, max_context_tokens=int(sys.argv[2]))
    llm.engine.stop()  # the engine is stepped here, on this thread
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        print(json.dumps({"seconds": measure(llm, **json.loads(line))}), flush=True)


def measure(llm: LLM, *, kind: str, batch: int, context: int, steps: int) -> list[float]:
    """Seconds of each decode step at `context`, or of each prefill of `context` tokens."""
    engine = llm.engine.engine
    if kind == "prefill":
        times = []
        for i in range(steps):
            started = time.perf_counter()
            engine.add(request(i, context, 1))
            while engine.has_work:
                engine.step()
            times.append(time.perf_counter() - started)
        return times
    for i in range(batch):
        engine.add(request(i, context, steps + 8))
    times = []
    decoding = 0
    last = time.perf_counter()
    while engine.has_work:
        events = engine.step()
        now = time.perf_counter()
        # Steady state: every sequence decodes, in this step and the one before.
        decoding = decoding + 1 if len(events) == batch else 0
        if decoding > 3:
            times.append(now - last)
        last = now
    return times[:steps]


def request(index: int, context: int, new_tokens: int) -> EngineRequest:
    """A greedy request of `context` tokens."""
    return EngineRequest(
        request_id=str(index),
        prompt_token_ids=tuple((index * 7919 + i * 104729) % 50_000 + 3 for i in range(context)),
        params=SamplingParams(temperature=0, max_tokens=new_tokens, ignore_eos=True),
        stop_token_ids=frozenset(),
        max_new_tokens=new_tokens,
        seed=0,
        arrival_s=time.monotonic(),
    )


if __name__ == "__main__":
    main()
