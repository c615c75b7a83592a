"""What a running attempt tells about itself, for whoever watches: totals that only grow, and present values."""

from __future__ import annotations

from dataclasses import dataclass

import psutil
import torch

from trainer.watch.timing import StepTimes


@dataclass(frozen=True)
class Telemetry:
    """The first rank's view, before step ``step`` (steps done so far in the run); seconds and samples are totals of
    the attempt.

    memory_bytes: most device memory in use at a time so far; of a CPU run, the process's resident memory ·
    checkpoint_stall: seconds for which the newest checkpoint held up the steps · checkpoint_seconds: until it was
    committed (None before the first) · corrections: labels that LL-Cp has corrected
    """

    step: int
    epoch: int
    loss: float | None = None
    samples: int = 0
    steps: int = 0
    seconds: float = 0.0
    waited: float = 0.0
    communicated: float = 0.0
    last_step_seconds: float | None = None
    memory_bytes: int = 0
    checkpoint_stall: float | None = None
    checkpoint_seconds: float | None = None
    corrections: int | None = None


class Totals:
    """Adds up steps; the gradient exchange of steps without a sample is taken for the newest sample's."""

    def __init__(self) -> None:
        self.samples = self.steps = 0
        self.seconds = self.waited = self.communicated = 0.0
        self.loss: float | None = None
        self.last: float | None = None
        self._exchange = 0.0

    def add(self, loss: float, samples: int, times: StepTimes) -> None:
        self._exchange = times.exchange if times.exchange is not None else self._exchange
        self.loss, self.last = loss, times.seconds
        self.samples += samples
        self.steps += 1
        self.seconds += times.seconds
        self.waited += times.waited
        self.communicated += min(times.seconds, times.collectives + self._exchange)


def memory_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return int(psutil.Process().memory_info().rss)
