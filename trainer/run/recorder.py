"""What the first rank records of every step: events, and curves for TensorBoard."""

from __future__ import annotations

import math
from dataclasses import asdict

from trainer.run.events import EventLog, TensorBoard
from trainer.run.registry import RunRegistry
from trainer.step import StepResult
from trainer.watch.timing import StepTimes
from trainer.world import World


class Recorder:
    """Events and TensorBoard scalars of the first rank; silent on the others."""

    def __init__(self, registry: RunRegistry, attempt: int, world: World) -> None:
        self._log = EventLog(registry.url, attempt, "train") if world.is_first else None
        self._board = TensorBoard(registry.url, attempt) if world.is_first else None

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, *_: object) -> None:
        for sink in (self._log, self._board):
            if sink is not None:
                sink.close()

    def event(self, event: str, **fields: object) -> None:
        if self._log is not None:
            self._log.write(event, **fields)

    def step(self, step: int, epoch: int, lr: float, result: StepResult, times: StepTimes) -> None:
        """Record one step."""
        if self._log is None or self._board is None:
            return
        fields = {
            "loss": result.loss,
            "samples": result.samples,
            "picks": result.picks,
            "picks_true": result.picks_true,
            "hidden": result.hidden,
            "grad_norm": result.grad_norm,
        }
        self._log.write("step", step=step, epoch=epoch, lr=lr, **asdict(times), **fields)
        scalars = {"train/loss": result.loss, "train/lr": lr, "train/grad_norm": result.grad_norm}
        scalars["speed/samples_per_second"] = result.samples / (times.seconds + times.waited)
        if result.picks:
            scalars["train/picks"] = float(result.picks)
        self._board.add(step, {name: value for name, value in scalars.items() if math.isfinite(value)})

    def sync(self) -> None:
        """Let readers elsewhere see what was recorded so far."""
        if self._log is not None and self._board is not None:
            self._log.flush()
            self._board.sync()
