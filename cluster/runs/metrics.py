"""A run's metrics for Prometheus, by way of Ray: every Ray node serves what its processes record as text.

They are set in the coordinator's process from what the first rank tells it every half second, so that recording and
serving them takes no time from a step. Ray puts ``ray_`` before a name, and ``_total`` after that of a counter.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from trainer.watch.telemetry import Telemetry


@dataclass(frozen=True)
class Metric:
    kind: Literal["gauge", "counter"]
    description: str


#: What there is, each with the run's name as the tag ``run``. Counters begin at 0 with each attempt.
METRICS = {
    "boostlu_step": Metric("gauge", "Steps done in the run."),
    "boostlu_epoch": Metric("gauge", "Epoch of the next step, from 1."),
    "boostlu_loss": Metric("gauge", "Loss of the newest step."),
    "boostlu_step_seconds": Metric("gauge", "Seconds of the newest step, without the wait for its batch."),
    "boostlu_samples_per_second": Metric("gauge", "Samples a second since the report before, waiting included."),
    "boostlu_samples": Metric("counter", "Samples trained on."),
    "boostlu_steps": Metric("counter", "Steps done."),
    "boostlu_computing_seconds": Metric("counter", "Seconds in steps, computing."),
    "boostlu_communication_seconds": Metric("counter", "Seconds in steps, in exchange with other ranks."),
    "boostlu_data_wait_seconds": Metric("counter", "Seconds waiting for batches."),
    "boostlu_device_memory_bytes": Metric("gauge", "Most device memory used by the first rank; on a CPU its memory."),
    "boostlu_checkpoint_stall_seconds": Metric("gauge", "How long the newest checkpoint held up the steps."),
    "boostlu_checkpoint_seconds": Metric("gauge", "How long the newest checkpoint took until it was committed."),
    "boostlu_corrections": Metric("gauge", "Labels that LL-Cp has corrected."),
    "boostlu_evaluation_queue": Metric("gauge", "Checkpoints that wait for their evaluation."),
    "boostlu_validation_map": Metric("gauge", "mAP of the checkpoint evaluated last, 0 to 1."),
    "boostlu_validation_map_best": Metric("gauge", "Best validation mAP so far, 0 to 1."),
}


def exported(name: str) -> str:
    """Return the name under which Ray serves a metric."""
    return f"ray_{name}" + ("_total" if METRICS[name].kind == "counter" else "")


class RunMetrics:
    """Sets the metrics of one attempt of a run; only within a Ray process."""

    def __init__(self, run: str) -> None:
        from ray.util.metrics import Counter, Gauge

        kinds = {"gauge": Gauge, "counter": Counter}
        self._metrics: dict[str, Any] = {}
        for name, metric in METRICS.items():
            self._metrics[name] = kinds[metric.kind](name, description=metric.description, tag_keys=("run",))
            self._metrics[name].set_default_tags({"run": run})
        self._before = Telemetry(step=0, epoch=1)

    def training(self, now: Telemetry) -> None:
        """Record how training goes; ``now`` follows what was recorded before, from the same attempt."""
        for name, value in values(now, self._before).items():
            self._set(name, value)
        self._before = now

    def evaluation(self, waiting: int, newest: float | None = None, best: float | None = None) -> None:
        """Record the evaluations: how many wait, the newest mAP, the best so far; None leaves a value as it is."""
        for name, value in (
            ("boostlu_evaluation_queue", float(waiting)),
            ("boostlu_validation_map", newest),
            ("boostlu_validation_map_best", best),
        ):
            if value is not None:
                self._set(name, value)

    def _set(self, name: str, value: float) -> None:
        if METRICS[name].kind == "gauge":
            self._metrics[name].set(value)
        elif value > 0:
            self._metrics[name].inc(value)


def values(now: Telemetry, before: Telemetry) -> dict[str, float]:
    """Return name → value of a gauge, or what a counter grows by, for those that are known."""
    took = now.seconds + now.waited - before.seconds - before.waited
    communicated = now.communicated - before.communicated
    found = {
        "boostlu_step": now.step,
        "boostlu_epoch": now.epoch,
        "boostlu_loss": now.loss,
        "boostlu_step_seconds": now.last_step_seconds,
        "boostlu_samples_per_second": (now.samples - before.samples) / took if took > 0 else None,
        "boostlu_samples": now.samples - before.samples,
        "boostlu_steps": now.steps - before.steps,
        "boostlu_computing_seconds": now.seconds - before.seconds - communicated,
        "boostlu_communication_seconds": communicated,
        "boostlu_data_wait_seconds": now.waited - before.waited,
        "boostlu_device_memory_bytes": now.memory_bytes,
        "boostlu_checkpoint_stall_seconds": now.checkpoint_stall,
        "boostlu_checkpoint_seconds": now.checkpoint_seconds,
        "boostlu_corrections": now.corrections,
    }
    return {name: float(value) for name, value in found.items() if value is not None}
