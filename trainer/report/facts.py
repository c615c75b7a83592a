"""What a report says about a run, gathered from the run's own files; any part may still be missing."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from sharding.errors import UserError
from sharding.index import read_labels, read_split
from trainer.config import RunConfig
from trainer.run.events import read_events, step_history
from trainer.run.registry import RunRegistry
from trainer.watch.timing import TimeSplit


@dataclass(frozen=True)
class ReportRun:
    """A run to report on: how to call it, and where it lies."""

    title: str
    url: str


@dataclass(frozen=True)
class Epoch:
    """Sums over the steps of one epoch so far.

    loss: mean over samples · seconds: in steps · waited: seconds for batches · picks: large losses selected ·
    picks_true: those that are positive in the full labels · hidden: unobserved labels that are positive in the full
    labels (None when those are not known)
    """

    number: int
    loss: float
    samples: int
    steps: int
    seconds: float
    waited: float
    picks: int
    picks_true: int | None
    hidden: int | None

    @property
    def precision(self) -> float | None:
        """Share of the picks that are hidden positives."""
        return self.picks_true / self.picks if self.picks and self.picks_true is not None else None

    @property
    def recall(self) -> float | None:
        """Share of the hidden positives that were picked."""
        return self.picks_true / self.hidden if self.picks and self.hidden and self.picks_true is not None else None


@dataclass(frozen=True)
class SeenLabels:
    """What training may see, a sample on average: positives, negatives, and the share of all labels observed."""

    positives: float
    negatives: float
    share: float


@dataclass(frozen=True)
class RunFacts:
    """``scores``: epoch → validation mAP · ``per_class``: the record whose per-class AP is shown, test before val."""

    title: str
    url: str
    name: str
    state: str
    config: RunConfig
    classes: list[str]
    epochs: list[Epoch]
    scores: dict[int, float]
    best_epoch: int | None
    best_score: float | None
    test: dict[str, Any] | None
    per_class: dict[str, Any] | None
    attempts: list[dict[str, Any]]
    corrupt: int
    evaluation_seconds: float
    seen: SeenLabels | None
    time: TimeSplit

    @property
    def picks(self) -> bool:
        """Whether any large losses were picked."""
        return any(epoch.picks for epoch in self.epochs)

    @property
    def seconds(self) -> float:
        return math.fsum(epoch.seconds for epoch in self.epochs)

    @property
    def waited(self) -> float:
        return math.fsum(epoch.waited for epoch in self.epochs)

    @property
    def steps(self) -> int:
        return sum(epoch.steps for epoch in self.epochs)

    @property
    def samples(self) -> int:
        return sum(epoch.samples for epoch in self.epochs)

    def chance(self) -> float | None:
        """Precision that picking unobserved labels at random would have; None when the labels cannot be read."""
        hidden = sum(epoch.hidden or 0 for epoch in self.epochs)
        unobserved = self.samples * len(self.classes) * (1 - self.seen.share) if self.seen else 0
        return hidden / unobserved if hidden and unobserved else None


def gather(run: ReportRun) -> RunFacts:
    """Read everything about a run; raises UserError when there is no run at the URL."""
    registry = RunRegistry.open(run.url)
    config, result = registry.config(), registry.result()
    classes = [str(c["name"]) for c in registry.description()["classes"]]
    events = read_events(registry.url)
    steps = step_history(events)
    validation = [r for r in registry.evaluations(config.dataset.validation).values() if r.get("map") is not None]
    best = max(validation, key=lambda r: (r["map"], -r["step"]), default=None)
    test = (result or {}).get("test")
    test = test if test and test.get("map") is not None else None
    return RunFacts(
        title=run.title,
        url=registry.url,
        name=registry.name,
        state=registry.state(),
        config=config,
        classes=classes,
        epochs=epochs(steps),
        scores={r["epoch"]: r["map"] for r in sorted(validation, key=lambda r: r["step"])},
        best_epoch=best["epoch"] if best else None,
        best_score=best["map"] if best else None,
        test=test,
        per_class=test or best,
        attempts=list(registry.attempts().values()),
        corrupt=len({e["sample_id"] for e in events if e["event"] == "corrupt_sample"}),
        evaluation_seconds=math.fsum(e.get("seconds", 0.0) for e in events if e["event"] == "evaluation"),
        seen=_seen(config, len(classes)),
        time=TimeSplit.of(steps),
    )


def epochs(steps: list[dict[str, Any]]) -> list[Epoch]:
    """Sum step events by epoch, in order."""
    groups: dict[int, list[dict[str, Any]]] = {}
    for step in steps:
        groups.setdefault(step["epoch"], []).append(step)
    return [_epoch(number, group) for number, group in sorted(groups.items())]


def _epoch(number: int, steps: list[dict[str, Any]]) -> Epoch:
    samples = sum(step["samples"] for step in steps)
    known = all(step.get("hidden") is not None for step in steps)
    return Epoch(
        number=number,
        loss=math.fsum(step["loss"] * step["samples"] for step in steps) / max(1, samples),
        samples=samples,
        steps=len(steps),
        seconds=math.fsum(step["seconds"] for step in steps),
        waited=math.fsum(step["waited"] for step in steps),
        picks=sum(step.get("picks") or 0 for step in steps),
        picks_true=sum(step["picks_true"] for step in steps) if known else None,
        hidden=sum(step["hidden"] for step in steps) if known else None,
    )


def _seen(config: RunConfig, classes: int) -> SeenLabels | None:
    """Count what the overlay shows; None when the dataset has been moved, deleted or rebuilt."""
    try:
        labels = read_labels(read_split(config.dataset.path, config.dataset.train), config.dataset.labels)
    except (UserError, OSError):
        return None
    samples = max(1, len(labels.pos))
    positives, negatives = len(labels.pos.values) / samples, len(labels.neg.values) / samples
    return SeenLabels(positives, negatives, (positives + negatives) / classes)
