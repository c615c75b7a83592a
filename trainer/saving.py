"""Checkpoints beside training: the step loop waits for a copy to host memory, a thread does the rest."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import replace

from trainer.corrections import Corrections
from trainer.parts import Parts
from trainer.run.checkpoint import (
    CheckpointConfig,
    HostMemory,
    Manifest,
    Snapshot,
    TrainingPosition,
    write_checkpoint,
)
from trainer.run.recorder import Recorder
from trainer.run.registry import RunRegistry
from trainer.world import World

#: Of the thread that writes checkpoints.
NICENESS = 19


class CheckpointWriter:
    """Takes snapshots in the step loop and writes them from one background thread.

    An error while writing surfaces at the next save, or at the end: a run never goes on for long without checkpoints.
    """

    def __init__(
        self,
        registry: RunRegistry,
        commit: Callable[[Manifest], None],
        recorder: Recorder,
        in_background: bool,
        timeout_minutes: float = CheckpointConfig().timeout_minutes,
    ) -> None:
        self._timeout = 60 * timeout_minutes
        self._memory = HostMemory()
        self._registry, self._commit, self._recorder = registry, commit, recorder
        self._in_background = in_background
        self._saved_at = time.monotonic()
        #: Of the newest checkpoint: how long it held up the steps, and how long it took until it was committed.
        self.stall_seconds: float | None = None
        self.seconds: float | None = None
        # Only this thread becomes nicer, where priorities are a thread's own (Linux): hashing yields to training.
        self._thread = ThreadPoolExecutor(1, "checkpoint", initializer=os.nice, initargs=(NICENESS,))
        self._pending: Future[None] | None = None

    def busy(self) -> bool:
        """Whether a save is still being written."""
        return self._pending is not None and not self._pending.done()

    def is_due(self, minutes: float | None) -> bool:
        """Whether so many minutes have passed since the last checkpoint."""
        return minutes is not None and time.monotonic() - self._saved_at > 60 * minutes

    def settle(self, world: World, excuse: Callable[[], None] = lambda: None) -> None:
        """Wait until the save before is written and raise what went wrong with it. Collective, with all ranks waiting
        in step, so that each of them can ``excuse`` itself from the hang watch."""
        pause = 0.005
        while True:
            late = self.busy() and time.monotonic() - self._saved_at > self._timeout
            busy, given_up = world.sum([float(self.busy()), float(late)])
            if given_up:
                raise TimeoutError(f"a checkpoint was not written within {self._timeout / 60:g} minutes")
            if not busy:
                break
            excuse()
            time.sleep(pause)
            pause = min(0.2, 2 * pause)
        if self._pending is not None:
            self._pending.result()
            self._pending = None

    def save(
        self, parts: Parts, world: World, position: TrainingPosition, excuse: Callable[[], None] = lambda: None
    ) -> None:
        """Copy the state to host memory and return; the rest happens in the background. Collective."""
        began = time.perf_counter()
        if parts.corrections is not None:
            parts.corrections.merge()
        parts.loss.synchronize()
        self.settle(world, excuse)
        if not world.is_first:
            return
        self._saved_at = time.monotonic()
        snapshot = Snapshot(
            model=self._memory.copy(parts.model.state_dict(), "model"),
            optimizer=self._memory.copy(parts.optimizer.state_dict(), "optimizer"),
            average=self._memory.copy(parts.average.state_dict(), "average") if parts.average is not None else {},
            loss=self._memory.copy(parts.loss.state_dict(), "loss"),
            corrections=None,
            position=position,
        )
        corrections = parts.corrections.frozen() if parts.corrections is not None else None
        self._recorder.sync()
        if self._in_background:
            self._pending = self._thread.submit(self._write, snapshot, corrections, began)
        else:
            self._write(snapshot, corrections, began)
        self.stall_seconds = time.perf_counter() - began

    def _write(self, snapshot: Snapshot, corrections: Corrections | None, began: float) -> None:
        if corrections is not None:  # sorting a large table takes seconds, so not in the step loop
            snapshot = replace(snapshot, corrections=corrections.to_table())
        self._commit(write_checkpoint(self._registry.url, snapshot))
        self.seconds = time.perf_counter() - began

    def __enter__(self) -> CheckpointWriter:
        return self

    def __exit__(self, *_: object) -> None:
        """After an error a save under way may still be completed, and then be what the next attempt starts from."""
        if self._pending is not None:
            wait([self._pending], timeout=max(0.0, self._saved_at + self._timeout - time.monotonic()))
        self._thread.shutdown(wait=False)
