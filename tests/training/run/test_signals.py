"""The first signal asks a run to stop; a second SIGINT interrupts it."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from ryzjax.training.run.signals import StopSignals


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_asks(number: signal.Signals):
    before = [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)]
    told: list[str] = []
    with StopSignals(told.append) as signals:
        assert not signals.stop_requested
        os.kill(os.getpid(), number)
        assert signals.stop_requested and signals.signal_name == number.name
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert told == [number.name]
    assert [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)] == before


def test_handlers_come_back_after_an_error():
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(ValueError, match="no"), StopSignals():
        assert signal.getsignal(signal.SIGINT) != before
        raise ValueError("no")
    assert signal.getsignal(signal.SIGINT) == before


def test_another_thread_has_no_signals():
    requested: list[bool] = []

    def run() -> None:
        with StopSignals() as signals:
            requested.append(signals.stop_requested)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert requested == [False]
