"""Workloads: lengths, traces and arrival times."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ryzjax.bench.workload import arrival_times, random_workload, trace_workload
from ryzjax.errors import ConfigError


def random(**changes: object):
    options = {"count": 300, "input_tokens": 100, "output_tokens": 20, "range_ratio": 0.5, "vocab_size": 50, "seed": 1}
    return random_workload(**(options | changes))


def test_random_lengths_stay_in_range_and_repeat():
    requests = random()
    lengths = [len(r.prompt_token_ids) for r in requests]
    assert min(lengths) >= 50 and max(lengths) <= 150 and len(set(lengths)) > 50
    assert all(10 <= r.output_tokens <= 30 for r in requests)
    assert all(3 <= token < 50 for r in requests for token in r.prompt_token_ids)
    assert requests == random() != random(seed=2)
    assert {len(r.prompt_token_ids) for r in random(range_ratio=0)} == {100}
    with pytest.raises(ConfigError, match=r"range_ratio=1\.5"):
        random(range_ratio=1.5)


def test_traces_of_both_forms(tmp_path: Path):
    azure = tmp_path / "a.csv"
    azure.write_text(
        "TIMESTAMP,ContextTokens,GeneratedTokens\n"
        "2023-11-16 18:15:46.6805900,374,44\n2023-11-16 18:15:50.9951690,3960,1090\n"
    )
    mooncake = tmp_path / "m.jsonl"
    mooncake.write_text(
        '{"timestamp": 500, "input_length": 374, "output_length": 44}\n'
        '{"timestamp": 4814, "input_length": 3960, "output_length": 1090}\n'
    )
    for path in (azure, mooncake):
        requests = trace_workload(
            path, count=9, scale=0.5, max_input_tokens=1024, max_output_tokens=300, vocab_size=99, seed=0
        )
        assert [(len(r.prompt_token_ids), r.output_tokens) for r in requests] == [(187, 22), (1024, 300)]
        times = [r.trace_s for r in requests]
        assert times == [0.0, pytest.approx(4.314, abs=2e-3)]
        assert arrival_times(requests, request_rate=1, replay_speed=2, seed=0)[1] == pytest.approx(2.157, abs=1e-3)


@pytest.mark.parametrize("text", ["a,b\n1,2\n", "TIMESTAMP,ContextTokens,GeneratedTokens\nyesterday,1,2\n"])
def test_a_bad_trace_says_what_it_lacks(tmp_path: Path, text: str):
    path = tmp_path / "bad.csv"
    path.write_text(text)
    options = {"count": 1, "scale": 1.0, "max_input_tokens": 9, "max_output_tokens": 9, "vocab_size": 9, "seed": 0}
    with pytest.raises(ConfigError, match=r"bad\.csv.*ContextTokens"):
        trace_workload(path, **options)
    with pytest.raises(ConfigError, match="does not exist"):
        trace_workload(tmp_path / "none.csv", **options)


def test_arrivals():
    requests = random()
    assert set(arrival_times(requests, request_rate=float("inf"), replay_speed=0, seed=0)) == {0.0}
    times = np.array(arrival_times(requests, request_rate=10, replay_speed=0, seed=0))
    assert (np.diff(times) > 0).all() and times[-1] == pytest.approx(30, rel=0.2)
    with pytest.raises(ConfigError, match="needs a trace"):
        arrival_times(requests, request_rate=1, replay_speed=1, seed=0)
    with pytest.raises(ConfigError, match="request_rate=0"):
        arrival_times(requests, request_rate=0, replay_speed=0, seed=0)
