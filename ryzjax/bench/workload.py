"""Workloads: the requests that a benchmark sends, and the times at which it sends them."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np

from ryzjax.errors import ConfigError

__all__ = ["PlannedRequest", "arrival_times", "random_workload", "trace_workload"]


@dataclass(frozen=True, kw_only=True)
class PlannedRequest:
    """One request to send.

    Attributes:
      prompt_token_ids: Random token ids, as many as the prompt is long.
      output_tokens: The number of tokens to generate.
      trace_s: The request's time in the trace, in seconds from its start; None for random workloads.
    """

    prompt_token_ids: list[int]
    output_tokens: int
    trace_s: float | None = None


def random_workload(
    *, count: int, input_tokens: int, output_tokens: int, range_ratio: float, vocab_size: int, seed: int
) -> list[PlannedRequest]:
    """Returns requests with random tokens and random lengths.

    Args:
      count: The number of requests.
      input_tokens: The mean prompt length, in tokens.
      output_tokens: The mean output length, in tokens.
      range_ratio: The spread of the lengths: 0 fixes them, 0.5 makes them uniform from half to one and a half times the
        mean.
      vocab_size: Token ids are drawn from 3 up to, but not including, this number.
      seed: The seed of the random numbers.

    Raises:
      ConfigError: `range_ratio` is out of range.
    """
    if not 0 <= range_ratio < 1:
        raise ConfigError(f"range_ratio={range_ratio} is out of range; expected 0 to less than 1")
    rng = np.random.default_rng(seed)

    def length(mean: int) -> int:
        return int(rng.integers(max(1, round(mean * (1 - range_ratio))), round(mean * (1 + range_ratio)) + 1))

    return [
        PlannedRequest(
            prompt_token_ids=_tokens(rng, length(input_tokens), vocab_size), output_tokens=length(output_tokens)
        )
        for _ in range(count)
    ]


def trace_workload(
    path: Path, *, count: int, scale: float, max_input_tokens: int, max_output_tokens: int, vocab_size: int, seed: int
) -> list[PlannedRequest]:
    """Returns the first `count` requests of a trace.

    Args:
      path: A CSV file with the columns TIMESTAMP, ContextTokens and GeneratedTokens (Azure), or JSON lines with the
        keys timestamp (in milliseconds), input_length and output_length (Mooncake).
      count: The number of requests.
      scale: The factor for both lengths.
      max_input_tokens: The longest prompt; longer ones are cut to it.
      max_output_tokens: The longest output; longer ones are cut to it.
      vocab_size: Token ids are drawn from 3 up to, but not including, this number.
      seed: The seed of the random token ids.

    Raises:
      ConfigError: The file is missing or has neither format.
    """
    if not path.is_file():
        raise ConfigError(f"trace {path} does not exist; give a .csv or .jsonl file")
    try:
        rows = _read_csv(path) if path.suffix == ".csv" else _read_jsonl(path)
    except (KeyError, ValueError) as error:
        raise ConfigError(
            f"trace {path} has neither the columns TIMESTAMP, ContextTokens, GeneratedTokens nor the keys "
            f"timestamp, input_length, output_length: {error!r}"
        ) from error
    rng = np.random.default_rng(seed)
    start = rows[0][0] if rows else 0.0
    return [
        PlannedRequest(
            prompt_token_ids=_tokens(rng, min(max(1, round(given * scale)), max_input_tokens), vocab_size),
            output_tokens=min(max(1, round(generated * scale)), max_output_tokens),
            trace_s=when - start,
        )
        for when, given, generated in rows[:count]
    ]


def arrival_times(
    requests: Sequence[PlannedRequest], *, request_rate: float, replay_speed: float, seed: int
) -> list[float]:
    """Returns the time at which each request is sent, in seconds from the start.

    Args:
      requests: The requests to send.
      request_rate: The mean number of requests per second, with Poisson arrivals; infinite sends all at once.
      replay_speed: If above 0, the times of the trace divided by this factor are used instead.
      seed: The seed of the arrival times.

    Raises:
      ConfigError: The rate is not positive, or `replay_speed` is given without a trace.
    """
    if replay_speed > 0:
        if any(request.trace_s is None for request in requests):
            raise ConfigError(f"replay_speed={replay_speed} needs a trace; give --trace FILE")
        return [(request.trace_s or 0.0) / replay_speed for request in requests]
    if request_rate <= 0:
        raise ConfigError(f"request_rate={request_rate} is out of range; expected more than 0, or inf")
    if request_rate == float("inf"):
        return [0.0] * len(requests)
    gaps = np.random.default_rng(seed).exponential(1 / request_rate, len(requests))
    return np.cumsum(gaps).tolist()


def _tokens(rng: np.random.Generator, length: int, vocab_size: int) -> list[int]:
    return rng.integers(min(3, vocab_size - 1), vocab_size, length).tolist()


def _read_csv(path: Path) -> list[tuple[float, int, int]]:
    with path.open(encoding="utf-8") as file:
        return [
            (
                datetime.fromisoformat(row["TIMESTAMP"][:26]).timestamp(),
                int(row["ContextTokens"]),
                int(row["GeneratedTokens"]),
            )
            for row in csv.DictReader(file)
        ]


def _read_jsonl(path: Path) -> list[tuple[float, int, int]]:
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    return [(row["timestamp"] / 1e3, int(row["input_length"]), int(row["output_length"])) for row in rows]
