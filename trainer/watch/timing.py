"""Where a step's time goes: computing, or communicating with the other ranks. See :class:`StepMeter`."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

#: DDP takes times in the first ten steps and then in every so many.
EXCHANGE_EVERY = 10
#: Share of the time spent waiting for batches from which on the loader is worth a word.
NOTABLE_WAIT = 0.15


@dataclass(frozen=True)
class StepTimes:
    """Seconds of one step on this rank.

    seconds: from the arrival of the batch to the updated weights · waited: for the batch, before · collectives: of
    ``seconds``, in collective operations outside the backward pass (sample counts, large-loss selection, votes) ·
    exchange: of ``seconds``, from the end of the backward pass's computing to the end of the gradient all-reduce,
    what it did not hide; None in the steps in which DDP takes no times, and without DDP
    """

    seconds: float
    waited: float
    collectives: float = 0.0
    exchange: float | None = None


class StepMeter:
    """Measures the communication of training steps.

    All of it includes waiting for slower ranks: a collective ends when the last rank has joined. On a GPU it is
    measured on the device, so a queue of kernels that is still to be worked off does not count.
    """

    def __init__(self, network: nn.Module, device: torch.device) -> None:
        self._ddp = network if isinstance(network, DistributedDataParallel) else None
        self._device = device
        self._iteration = 0
        self.collectives = 0.0
        self.exchange: float | None = None
        if self._ddp is not None:
            self._ddp._set_ddp_runtime_logging_sample_rate(EXCHANGE_EVERY)

    @contextmanager
    def step(self) -> Iterator[None]:
        """Measure the step in the block, which must end with the device's collectives done."""
        spans: list[Any] = []
        token = _spans.set(spans)
        try:
            yield
        finally:
            _spans.reset(token)
        self.collectives = sum(
            span if isinstance(span, float) else span[0].elapsed_time(span[1]) / 1000 for span in spans
        )
        self.exchange = self._sampled()

    def times(self, seconds: float, waited: float) -> StepTimes:
        """Return the times of the step just measured, which took ``seconds`` after ``waited`` seconds of waiting."""
        return StepTimes(seconds, waited, self.collectives, self.exchange)

    def _sampled(self) -> float | None:
        if self._ddp is None:
            return None
        taken = self._ddp._get_ddp_logging_data()
        iteration = taken.get("iteration", 0)
        if iteration == self._iteration or "backward_comm_time" not in taken:
            return None
        self._iteration = iteration
        return max(0, taken["backward_comm_time"] - taken["backward_compute_comm_overlap_time"]) / 1e9


_spans: ContextVar[list[Any] | None] = ContextVar("spans", default=None)


@contextmanager
def collective(device: torch.device) -> Iterator[None]:
    """Count the collective operation in the block as communication of the step that is being measured, if any."""
    spans = _spans.get()
    if spans is None:
        yield
        return
    if device.type == "cuda":
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        yield
        end.record()
        spans.append((begin, end))
        return
    started = time.perf_counter()
    yield
    spans.append(time.perf_counter() - started)


@dataclass(frozen=True)
class TimeSplit:
    """Seconds of many steps: waiting for batches, communicating, and the rest of the steps, computing.

    communication is None where nothing was measured: one process, or a run of an older version.
    """

    waiting: float
    communication: float | None
    computing: float

    @classmethod
    def of(cls, steps: Iterable[dict[str, Any]]) -> TimeSplit:
        """Add up ``step`` events. The gradient exchange of steps without a sample is taken for the samples' mean."""
        seconds = waiting = collectives = exchange = 0.0
        count = samples = 0
        for event in steps:
            seconds, waiting, count = seconds + event["seconds"], waiting + event["waited"], count + 1
            collectives += event.get("collectives") or 0.0
            if event.get("exchange") is not None:
                exchange, samples = exchange + event["exchange"], samples + 1
        if not samples:
            return cls(waiting, None, seconds)
        communication = min(seconds, collectives + exchange / samples * count)
        return cls(waiting, communication, seconds - communication)

    @property
    def total(self) -> float:
        return self.waiting + (self.communication or 0.0) + self.computing

    def shares(self) -> str:
        """Say the split in a few words."""
        parts = {
            "computing": self.computing,
            "communicating": self.communication,
            "waiting for batches": self.waiting,
        }
        total = self.total or 1.0
        return ", ".join(f"{100 * value / total:.0f} % {name}" for name, value in parts.items() if value is not None)

    def hint(self) -> str | None:
        """Say what to do when the loader is what training waits for; None when it is not."""
        if self.total <= 0 or self.waiting < NOTABLE_WAIT * self.total:
            return None
        share = 100 * self.waiting / self.total
        return (
            f"the loader is the bottleneck: training waits for batches {share:.0f} % of the time; give it more cores "
            "(workers.cpus, loader.threads), or build the shards at training size (--image squash:PIXELS)"
        )
