"""A child process of peers.py: runs RyzJAX through its engine, as a server does."""

from __future__ import annotations

import sys

from peer_loop import answer_commands

from ryzjax import LLM
from ryzjax.bench.offline import DecodeRun, prefill_seconds
from ryzjax.native.library import isa
from ryzjax.serving.engine.engine import Engine


def main() -> None:
    """Loads the model argv[1] for contexts of argv[2] tokens, and answers commands.

    argv[3] is the type of the weights, and argv[4] the one of the activations (`--activations`).
    """
    llm = LLM(
        sys.argv[1],
        dtype="bfloat16",
        weights=sys.argv[3],  # pyright: ignore[reportArgumentType]
        activations=sys.argv[4],  # pyright: ignore[reportArgumentType]
        max_sequences=8,
        max_batch_tokens=512,
        max_mixed_tokens=512,  # the prompts of a batch prefill while the first of them decode already
        max_context_tokens=int(sys.argv[2]),
    )
    llm.close()  # stops the engine's thread: the steps run on this one
    engine = llm.engine.core
    answer_commands(
        {
            "weight_bytes": engine.runner.weight_bytes,
            "isa": isa(),
            "activations": sorted({f.activations or "bf16" for f in engine.runner.model.quantization.values()}),
        },
        lambda batch, context, room: _begun(engine, batch, context),
        lambda context, repeats: prefill_seconds(engine, tokens=context, repeats=repeats),
    )


def _begun(engine: Engine, batch: int, context: int) -> DecodeRun:
    run = DecodeRun(engine, batch=batch, context=context)
    run.seconds(1)  # prefills all prompts
    return run


if __name__ == "__main__":
    main()
