"""A trace of a few steps, by ``torch.profiler``, in the run directory."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from pydantic import Field, field_validator

from sharding import storage
from sharding.schema import Strict
from trainer.world import World


class ProfileConfig(Strict):
    steps: str | None = Field(default=None, pattern=r"^\d+:\d+$")
    """FIRST:END, as 20:30 = the ten steps from the run's step 20 on (counted from 0): every rank writes their trace
    to ``RUN/profile/ATTEMPT-RANK.json.gz``, for chrome://tracing or Perfetto. These steps are slower. null = none."""

    @field_validator("steps", mode="before")
    @classmethod
    def _not_an_hour(cls, value: Any) -> Any:
        if value is None:
            return None
        # YAML 1.1 reads an unquoted 20:30 as a number to the base 60.
        return f"{value // 60}:{value % 60:02d}" if isinstance(value, int) and value >= 60 else str(value)

    @field_validator("steps")
    @classmethod
    def _in_order(cls, value: str | None) -> str | None:
        if value is not None and not cls._range(value):
            raise ValueError("FIRST must be below END, as in 20:30")
        return value

    @staticmethod
    def _range(steps: str) -> range:
        first, end = steps.split(":")
        return range(int(first), int(end))

    def wanted(self) -> range:
        """Return the numbers of the steps to profile."""
        return self._range(self.steps) if self.steps else range(0)


class StepProfiler:
    """Call :meth:`before` each step; use as a context manager, so that a run that ends early leaves what it has."""

    def __init__(self, config: ProfileConfig, run_url: str, attempt: int, world: World) -> None:
        self._wanted = config.wanted()
        self._target = storage.join(run_url, "profile", f"{attempt:04d}-{world.rank:04d}.json.gz")
        self._device = world.device
        self._profiler: Any = None

    def before(self, step: int) -> None:
        """Start or stop recording, as step ``step`` asks for."""
        if self._profiler is None and step in self._wanted:
            activities = [torch.profiler.ProfilerActivity.CPU]
            if self._device.type == "cuda":
                activities.append(torch.profiler.ProfilerActivity.CUDA)
            self._profiler = torch.profiler.profile(activities=activities)
            self._profiler.start()
        elif self._profiler is not None and step not in self._wanted:
            self._finish()

    def _finish(self) -> None:
        profiler, self._profiler = self._profiler, None
        profiler.stop()
        with tempfile.TemporaryDirectory() as folder:
            trace = Path(folder) / "trace.json.gz"
            profiler.export_chrome_trace(str(trace))
            storage.upload(trace, self._target)

    def __enter__(self) -> StepProfiler:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if self._profiler is None:
            return
        if kind is None:
            self._finish()
        else:
            self._profiler.stop()
