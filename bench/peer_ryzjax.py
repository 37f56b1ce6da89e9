"""Child process of peers.py: RyzJAX through its engine, as a server runs it."""

from __future__ import annotations

import sys

from peer_loop import answer_commands

from ryzjax import LLM
from ryzjax.bench.offline import DecodeRun, prefill_seconds
from ryzjax.serving.engine.engine import Engine


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
    engine = llm.engine.core
    answer_commands(
        {"weight_bytes": engine.runner.weight_bytes},
        lambda batch, context, room: _begun(engine, batch, context),
        lambda context, repeats: prefill_seconds(engine, tokens=context, repeats=repeats),
    )


def _begun(engine: Engine, batch: int, context: int) -> DecodeRun:
    run = DecodeRun(engine, batch=batch, context=context)
    run.seconds(1)  # all prompts are read in
    return run


if __name__ == "__main__":
    main()
