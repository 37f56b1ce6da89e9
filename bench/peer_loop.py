"""The command loop that the child processes of peers.py share.

A child reads one JSON command per line and answers each with one line of JSON, until the end of input.

{"do": "decode", "batch", "context", "room"}   prefills `batch` prompts of `context` tokens, with room to grow
{"do": "measure", "steps"}                     returns the seconds of each of the next decode steps of those sequences
{"do": "prefill", "context", "steps"}          returns the seconds of each of `steps` prefills
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from typing import Protocol


class Decoding(Protocol):
    """Sequences that decode together."""

    def seconds(self, steps: int) -> list[float]:
        """Runs decode steps and returns the seconds of each."""
        ...

    def close(self) -> None:
        """Frees the memory of the sequences."""
        ...


def answer_commands(
    about: Mapping[str, object],
    decode: Callable[[int, int, int], Decoding],
    prefill: Callable[[int, int], list[float]],
) -> None:
    """Prints `about` as the first line, then answers commands until the end of input.

    Args:
      about: What the child reports about its engine.
      decode: Takes (batch, context, room) and returns sequences that have been prefilled.
      prefill: Takes (context, repeats) and returns the seconds of each prefill.
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
