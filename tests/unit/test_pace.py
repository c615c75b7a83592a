"""Who is reported as holding up the others."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, cast

import torch

from trainer.watch.pace import SAMPLES, Pace
from trainer.watch.timing import StepTimes
from trainer.world import World


@dataclass(frozen=True)
class Ranks(World):
    """A world whose other ranks report what they are told to: (seconds, of them waiting for data, host)."""

    others: list[tuple[float, float, str]] = field(default_factory=list)

    def gather(self, value: Any) -> list[Any]:
        return [value, *self.others]


def pace(*others: tuple[float, float, str]) -> Pace:
    return Pace(cast(World, Ranks(0, 1 + len(others), torch.device("cpu"), list(others))), factor=2.0)


def told(subject: Pace, times: StepTimes, steps: int = SAMPLES) -> list[dict[str, Any]]:
    return [slow for _ in range(steps) for slow in subject.add(times)]


def test_a_slow_rank_is_named_with_its_host() -> None:
    """This rank computes for 0.1 s; the rest of its 1.0 s it waits for others, which does not make it slow."""
    mine = StepTimes(seconds=1.0, waited=0.0, collectives=0.5, exchange=0.4)
    slow = (0.9, 0.8, "second")
    (straggler,) = told(pace(slow, (0.11, 0.0, "third")), mine)
    assert (straggler["rank"], straggler["host"], straggler["seconds"], straggler["waited"]) == (
        1,
        "second",
        0.9,
        0.8,
    )
    assert 0.09 < straggler["median"] < 0.12


def test_ranks_of_about_the_same_pace_are_not_named() -> None:
    mine = StepTimes(seconds=0.2, waited=0.0, collectives=0.05, exchange=0.05)
    assert told(pace((0.15, 0.0, "second")), mine, steps=4 * SAMPLES) == []


def test_steps_without_a_sample_of_the_exchange_do_not_count() -> None:
    subject = pace((9.0, 0.0, "second"))
    assert told(subject, StepTimes(1.0, 0.0, 0.0, None), steps=100) == []
    assert told(subject, StepTimes(1.0, 0.0, 0.0, 0.5), steps=SAMPLES)[0]["rank"] == 1
