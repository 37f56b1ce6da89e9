"""Child process of peers.py: RyzJAX through its engine, as a server runs it. One JSON command and answer a line."""

from __future__ import annotations

import json
import sys

from ryzjax import LLM
from ryzjax.bench.offline import DecodeRun, prefill_seconds


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
    engine = llm.engine.engine
    print(json.dumps({"ready": True}), flush=True)
    run: DecodeRun | None = None
    for line in sys.stdin:
        command = json.loads(line)
        if run is not None and command["do"] != "measure":
            run.close()
            run = None
        seconds: list[float] = []
        if command["do"] == "decode":
            run = DecodeRun(engine, batch=command["batch"], context=command["context"])
            run.seconds(1)
        elif command["do"] == "measure" and run is not None:
            seconds = run.seconds(command["steps"])
        elif command["do"] == "prefill":
            seconds = prefill_seconds(engine, tokens=command["context"], repeats=command["steps"])
        print(json.dumps({"seconds": seconds}), flush=True)


if __name__ == "__main__":
    main()
