"""What every child process of peers.py does: one JSON command and one answer a line, until end of input.

{"do": "decode", "batch", "context", "room"}   reads prompts in; they can grow by `room` tokens
{"do": "measure", "steps"}                     seconds of the next decode steps of those
{"do": "prefill", "context", "steps"}          seconds of so many prompts
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from typing import Protocol


class Decoding(Protocol):
    """Sequences that decode together."""

    def seconds(self, steps: int) -> list[float]:
        """Of each of the next steps."""
        ...

    def close(self) -> None:
        """Gives back what they hold."""
        ...


def answer_commands(
    about: Mapping[str, object],
    decode: Callable[[int, int, int], Decoding],
    prefill: Callable[[int, int], list[float]],
) -> None:
    """Tells `about` the engine, then answers.

    Args:
      decode: of (batch, context, room).
      prefill: seconds of each, of (context, repeats).
    """
    print(json.dumps({"ready": True} | dict(about)), flush=True)
    decoding: Decoding | None = None
    for line in sys.stdin:
        command = json.loads(line)
        seconds: list[float] = []
        if command["do"] == "measure":
            assert decoding is not None, "decode comes before measure"
            seconds = decoding.seconds(command["steps"])
        else:
            if decoding is not None:
                decoding.close()
                decoding = None
            if command["do"] == "decode":
                decoding = decode(command["batch"], command["context"], command["room"])
            else:
                seconds = prefill(command["context"], command["steps"])
        print(json.dumps({"seconds": seconds}), flush=True)
