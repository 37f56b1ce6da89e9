"""Early stopping against hand-worked cases."""

from __future__ import annotations

import json

import pytest

from ryzjax.errors import ConfigError
from ryzjax.training.run.early_stopping import EarlyStopping


def stops_after(losses: list[float], **settings: float) -> int | None:
    stopping = EarlyStopping(**settings)
    for number, loss in enumerate(losses, 1):
        stopping = stopping.after(loss)
        if stopping.should_stop:
            return number
    return None


def test_patience():
    assert stops_after([3, 2, 1, 0.5], patience=1) is None
    assert stops_after([3, 2, 2.1, 2.2, 1], patience=2) == 4
    assert stops_after([3, 2, 2.1, 1.9, 2.2, 2.3], patience=2) == 6
    assert stops_after([3, 2.95, 2.91, 2.6], patience=2, min_delta=0.1) == 3
    assert stops_after([float("nan")] * 3, patience=3) == 3


def test_a_resumed_run_counts_on():
    before = EarlyStopping(patience=2).after(1.0).after(1.5)
    state = json.loads(json.dumps(before.state(), allow_nan=False))
    assert EarlyStopping(patience=2).restored(state) == before
    assert EarlyStopping(patience=2).restored(state).after(1.2).should_stop
    assert EarlyStopping(patience=9).restored(EarlyStopping(patience=9).state()) == EarlyStopping(patience=9)


def test_refused():
    with pytest.raises(ConfigError, match="patience=0"):
        EarlyStopping(patience=0)
    with pytest.raises(ConfigError, match="min_delta=-1"):
        EarlyStopping(patience=1, min_delta=-1)
