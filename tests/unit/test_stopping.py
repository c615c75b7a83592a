"""What signals mean to a driver."""

from __future__ import annotations

import os
import signal
import time

import pytest

from cluster.runs import stopping
from cluster.runs.stopping import StopSignals


def send(number: signal.Signals) -> None:
    os.kill(os.getpid(), number)


def test_the_second_signal_is_final() -> None:
    with StopSignals(grace_seconds=60) as signals:
        assert not signals
        send(signal.SIGINT)
        assert signals
        assert not signals.is_final()
        send(signal.SIGTERM)
        assert signals.is_final()


def test_sigterm_is_final_after_its_grace_period_and_sigint_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr(stopping.time, "monotonic", lambda: clock[0])
    for number, final in ((signal.SIGTERM, True), (signal.SIGINT, False)):
        with StopSignals(grace_seconds=30) as signals:
            send(number)
            clock[0] += 29
            assert not signals.is_final()
            clock[0] += 2
            assert signals.is_final() is final


def test_a_signal_ends_a_wait() -> None:
    with StopSignals(grace_seconds=60) as signals:
        send(signal.SIGTERM)
        began = time.monotonic()
        signals.sleep(300)
        assert time.monotonic() - began < 200


def test_handlers_are_put_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with StopSignals(1):
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before
