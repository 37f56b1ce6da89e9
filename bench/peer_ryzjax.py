"""Child process of peers.py: RyzJAX through its engine, as a server runs it. One JSON command and answer a line."""

from __future__ import annotations

import json
import sys

from ryzjax import LLM
from ryzjax.bench.offline import decode_step_seconds, prefill_seconds


def main() -> None:
    """Loads argv[1] with contexts of argv[2] tokens and weights of argv[3]; answers commands until end of input."""
    llm = LLM(
        sys.argv[1],
        dtype="bfloat16",
        weights=sys.argv[3],  # pyright: ignore[reportArgumentType]
        max_sequences=8,
        max_batch_tokens=512,
        max_context_tokens=int(sys.argv[2]),
    )
    llm.close()  # the engine is stepped here, on this thread
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        print(json.dumps({"seconds": measure(llm, **json.loads(line))}), flush=True)


def measure(llm: LLM, *, kind: str, batch: int, context: int, steps: int) -> list[float]:
    """Seconds of each decode step at `context`, or of each prefill of `context` tokens."""
    engine = llm.engine.engine
    if kind == "prefill":
        return prefill_seconds(engine, tokens=context, repeats=steps)
    return decode_step_seconds(engine, batch=batch, context=context, steps=steps)


if __name__ == "__main__":
    main()
