"""Stopping a run from outside: what SIGINT and SIGTERM mean to the process that drives it."""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType
from typing import Any


class StopSignals:
    """Notes SIGINT and SIGTERM while its ``with`` block runs, instead of ending the process.

    True from the first one on: time to reach a checkpoint. Final at the second, or ``grace_seconds`` after a SIGTERM:
    whoever sent that (a scheduler, a spot machine) kills next, so what is left of the time is for an orderly end.
    """

    def __init__(self, grace_seconds: float) -> None:
        self._grace = grace_seconds
        self._received = 0
        self._deadline: float | None = None
        self._before: dict[int, Any] = {}

    def __bool__(self) -> bool:
        return self._received > 0

    def is_final(self) -> bool:
        return self._received > 1 or (self._deadline is not None and time.monotonic() > self._deadline)

    def sleep(self, seconds: float) -> None:
        """Sleep, but no longer than until the first signal."""
        until = time.monotonic() + seconds
        while not self and time.monotonic() < until:
            time.sleep(min(0.1, seconds))

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        self._received += 1
        if number == signal.SIGTERM and self._deadline is None:
            self._deadline = time.monotonic() + self._grace

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():  # elsewhere Python cannot handle signals
            self._before = {n: signal.signal(n, self._handle) for n in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
