"""The whole job is killed at a random step; ``boostlu resume`` ends where an undisturbed run ends, bit for bit."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.faults.jobs import STEPS, assert_same_end, boostlu, kill_when, start_training, steps_done, undisturbed
from trainer.run.registry import RunRegistry


@pytest.mark.timeout(590)
def test_kill_9_of_the_whole_job(job_config: Path, tmp_path: Path) -> None:
    expected = undisturbed(job_config, tmp_path / "undisturbed")
    registry = RunRegistry(str(tmp_path / "runs" / "tiny"))
    step = random.randrange(1, STEPS - 2)
    with start_training(job_config, tmp_path / "runs") as run:
        kill_when(run, lambda: steps_done(registry) >= step)
    assert registry.state() == "stopped", f"killed at step {step}"
    assert registry.result() is None

    resumed = boostlu("resume", "tiny", "--runs", str(tmp_path / "runs"))
    assert resumed.returncode == 0, resumed.stderr
    assert registry.state() == "finished"
    assert list(registry.attempts()) == [1, 2]
    assert_same_end(registry, expected)
