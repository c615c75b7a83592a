"""Ending a process that no longer makes progress, with its stacks on record."""

from __future__ import annotations

import faulthandler
import os
import statistics
import time
from collections import deque
from typing import TextIO

from sharding import storage

#: Steps whose median duration tells how long a step takes.
WINDOW = 50
STDERR = 2


class HangWatch:
    """Ends the process when the next step does not come within ``factor`` × the median step, at least ``seconds``.

    The stacks of all threads go to ``RUN/stacks/ATTEMPT-RANK.txt`` (for a run on an object store: to standard error,
    which Ray keeps). The interpreter's own watchdog does it, so it works while Python code cannot run. A process that
    ends fails its attempt, and the run goes on with the next one.
    """

    def __init__(self, run_url: str, attempt: int, rank: int, seconds: float, factor: float) -> None:
        self._seconds, self._factor = seconds, factor
        self._durations: deque[float] = deque(maxlen=WINDOW)
        self._last: float | None = None
        self._file: TextIO | None = None
        if storage.is_local(run_url):
            path = storage.local_path(storage.join(run_url, "stacks", f"{attempt:04d}-{rank:04d}.txt"))
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(path, "w")  # noqa: SIM115 — closed by __exit__

    def beat(self) -> None:
        """Say that a step is done."""
        now = time.monotonic()
        if self._last is not None:
            self._durations.append(now - self._last)
        self._last = now
        self._wind_up()

    def excuse(self) -> None:
        """Say that the process waits for something that has a time limit of its own; the wait counts for nothing."""
        self._last = time.monotonic()
        self._wind_up()

    def _wind_up(self) -> None:
        faulthandler.dump_traceback_later(self.patience(), exit=True, file=self._file or STDERR)

    def patience(self) -> float:
        """Return how long the next step may take, in seconds; without a median yet, ten times ``seconds``."""
        if len(self._durations) < 3:
            return 10 * self._seconds
        return max(self._seconds, self._factor * statistics.median(self._durations))

    def __enter__(self) -> HangWatch:
        return self

    def __exit__(self, *_: object) -> None:
        faulthandler.cancel_dump_traceback_later()
        if self._file is not None:
            self._file.close()
            path = self._file.name
            self._file = None
            _remove_if_empty(path)


def _remove_if_empty(path: str) -> None:
    if os.path.getsize(path) == 0:
        os.remove(path)
