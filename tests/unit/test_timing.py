"""Where the time of a step goes, and what is said about it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from trainer.watch.telemetry import Totals
from trainer.watch.timing import StepMeter, StepTimes, TimeSplit, collective

CPU = torch.device("cpu")


def step(seconds: float, waited: float, collectives: float = 0.0, exchange: float | None = None) -> dict[str, Any]:
    return {"seconds": seconds, "waited": waited, "collectives": collectives, "exchange": exchange}


def test_unsampled_steps_count_as_the_mean_of_the_samples() -> None:
    """Collectives 0.1 + 0.1 + 0.2; exchange sampled twice, mean 0.2, so 0.6 for three steps; 1.0 of 3.0 seconds."""
    split = TimeSplit.of([step(1, 0.5, 0.1, 0.1), step(1, 0.5, 0.1), step(1, 0, 0.2, 0.3)])
    assert split.communication == pytest.approx(1.0)
    assert split.computing == pytest.approx(2.0)
    assert split.waiting == 1.0
    assert split.shares() == "50 % computing, 25 % communicating, 25 % waiting for batches"


def test_a_run_without_such_measurements_has_none() -> None:
    """One process, or an older run, whose events lack the fields."""
    split = TimeSplit.of([{"seconds": 3.0, "waited": 1.0}])
    assert (split.communication, split.computing, split.waiting) == (None, 3.0, 1.0)
    assert split.shares() == "75 % computing, 25 % waiting for batches"


def test_the_hint_names_the_loader_only_when_it_is_the_bottleneck() -> None:
    assert TimeSplit.of([]).hint() is None
    assert TimeSplit.of([step(0.9, 0.1)]).hint() is None
    hint = TimeSplit.of([step(0.8, 0.2)]).hint()
    assert hint is not None
    assert "loader is the bottleneck: training waits for batches 20 %" in hint


def test_collectives_count_only_within_a_measured_step() -> None:
    meter = StepMeter(torch.nn.Linear(1, 1), CPU)
    with collective(CPU):
        pass
    with meter.step():
        assert meter.collectives == 0
        with collective(CPU):
            sum(range(100_000))
    once = meter.collectives
    assert once > 0
    assert meter.exchange is None  # no DDP
    with meter.step():
        pass
    assert meter.collectives == 0
    assert meter.times(2.0, 1.0) == StepTimes(2.0, 1.0, 0.0, None)


def test_totals_take_the_newest_exchange_for_steps_without_one() -> None:
    totals = Totals()
    for times in (
        StepTimes(1, 0.5, 0.1),
        StepTimes(1, 0.5, 0.1, 0.4),
        StepTimes(1, 0.5, 0.1),
        StepTimes(0.2, 0, 1.0),
    ):
        totals.add(loss=0.3, samples=8, times=times)
    # 0.1, then 0.1 + 0.4 twice, then at most the step itself.
    assert totals.communicated == pytest.approx(0.1 + 0.5 + 0.5 + 0.2)
    assert (totals.samples, totals.steps, totals.waited, totals.last, totals.loss) == (32, 4, 1.5, 0.2, 0.3)
