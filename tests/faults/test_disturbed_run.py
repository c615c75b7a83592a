"""One part of a running job fails; the job ends where an undisturbed run ends, bit for bit."""

from __future__ import annotations

import os
import random
import signal
from pathlib import Path

import psutil
import pytest
import yaml

from cluster.bench.victims import family_of, kill, named
from tests.faults.jobs import (
    STEPS,
    assert_same_end,
    boostlu,
    start_training,
    steps_done,
    undisturbed,
    wait_until,
)
from trainer.run.events import read_events
from trainer.run.registry import RunRegistry

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.mark.parametrize("victim", ["RayTrainWorker", "ray::Coordinator"])
def test_a_part_of_the_job_is_killed(job_config: Path, tmp_path: Path, victim: str) -> None:
    """The run starts a second attempt by itself and finishes."""
    expected = undisturbed(job_config, tmp_path / "undisturbed")
    registry = RunRegistry(str(tmp_path / "runs" / "tiny"))
    step = random.randrange(2, STEPS - 6)
    with start_training(job_config, tmp_path / "runs") as run:
        wait_until(run, lambda: steps_done(registry) >= step)
        named(family_of(run.pid), victim)[0].kill()
        assert run.wait(timeout=400) == 0, (tmp_path / "runs.log").read_text()
    attempts = registry.attempts()
    assert [attempts[n]["outcome"] for n in attempts] == ["failed", "finished"], f"killed at step {step}"
    assert_same_end(registry, expected)


def test_only_the_driver_is_killed(job_config: Path, tmp_path: Path) -> None:
    """Its workers, still at work when the run is resumed, commit nothing any more and end by themselves."""
    expected = undisturbed(job_config, tmp_path / "undisturbed")
    registry = RunRegistry(str(tmp_path / "runs" / "tiny"))
    step = random.randrange(2, STEPS - 6)
    with start_training(job_config, tmp_path / "runs") as run:
        wait_until(run, lambda: steps_done(registry) >= step)
        family = family_of(run.pid)
        run.kill()
    resumed = boostlu("resume", "tiny", "--runs", str(tmp_path / "runs"))
    assert resumed.returncode == 0, resumed.stderr
    assert list(registry.attempts()) == [1, 2], f"killed at step {step}"
    assert_same_end(registry, expected)
    _, alive = psutil.wait_procs(family, timeout=120)
    assert not alive


def test_a_worker_hangs(job_config: Path, tmp_path: Path) -> None:
    """Stopped by a signal it cannot handle, it answers nobody; the other worker ends itself, and the run goes on."""
    expected = undisturbed(job_config, tmp_path / "undisturbed")
    values = yaml.safe_load(job_config.read_text())
    values["workers"] |= {"hang_seconds": 20, "hang_factor": 20}
    job_config.write_text(yaml.safe_dump(values))
    registry = RunRegistry(str(tmp_path / "runs" / "tiny"))
    with start_training(job_config, tmp_path / "runs") as run:
        wait_until(run, lambda: steps_done(registry) >= 8)
        named(family_of(run.pid), "RayTrainWorker")[1].suspend()
        assert run.wait(timeout=600) == 0, (tmp_path / "runs.log").read_text()
    attempts = registry.attempts()
    assert [attempts[n]["outcome"] for n in attempts] == ["failed", "finished"]
    stacks = [path.read_text() for path in (Path(registry.url) / "stacks").iterdir()]
    assert any("trainer/training.py" in text for text in stacks)
    assert_same_end(registry, expected)


def test_the_evaluator_is_killed(job_config: Path, tmp_path: Path) -> None:
    """The evaluation is tried again; training does not notice. 1500 images, so that there is time to hit it."""
    from sharding.build import build_dataset
    from sharding.overlays import write_single_positive

    root = str(tmp_path / "digits")
    build_dataset("digits", root, {"train": 80, "val": 1500, "test": 24, "side": 64})
    write_single_positive(root)
    values = yaml.safe_load(job_config.read_text())
    values["dataset"]["path"] = root
    job_config.write_text(yaml.safe_dump(values))
    expected = undisturbed(job_config, tmp_path / "undisturbed")
    registry = RunRegistry(str(tmp_path / "runs" / "tiny"))
    with start_training(job_config, tmp_path / "runs") as run:
        wait_until(run, lambda: bool(named(family_of(run.pid), "ray::evaluate_task")))
        named(family_of(run.pid), "ray::evaluate_task")[0].kill()
        assert run.wait(timeout=400) == 0, (tmp_path / "runs.log").read_text()
    assert list(registry.attempts()) == [1]
    assert [e["split"] for e in read_events(registry.url) if e["event"] == "evaluation_failed"] == ["val"]
    assert_same_end(registry, expected)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_at_a_checkpoint(job_config: Path, tmp_path: Path, number: signal.Signals) -> None:
    """Nothing is left running; resume goes on from the very step."""
    expected = undisturbed(job_config, tmp_path / "undisturbed")
    registry = RunRegistry(str(tmp_path / "runs" / "tiny"))
    with start_training(job_config, tmp_path / "runs") as run:
        wait_until(run, lambda: steps_done(registry) >= 5)
        family = family_of(run.pid)
        run.send_signal(number)
        assert run.wait(timeout=120) == 130, (tmp_path / "runs.log").read_text()
    _, alive = psutil.wait_procs(family, timeout=60)
    assert not alive
    assert registry.state() == "interrupted"
    assert "boostlu resume" in (tmp_path / "runs.log").read_text()
    stopped_at = steps_done(registry)
    assert registry.checkpoints()[-1].step == stopped_at < STEPS
    resumed = boostlu("resume", "tiny", "--runs", str(tmp_path / "runs"))
    assert resumed.returncode == 0, resumed.stderr
    assert [e["step"] for e in read_events(registry.url) if e["event"] == "resumed"] == [stopped_at]
    assert_same_end(registry, expected)


def test_a_signal_to_the_whole_process_group_interrupts(job_config: Path, tmp_path: Path) -> None:
    """Ctrl-C in a terminal reaches Ray's own processes as well, and may end them before the checkpoint. The run
    counts as interrupted, not as failed, and at most the steps since the last checkpoint are done again."""
    expected = undisturbed(job_config, tmp_path / "undisturbed")
    registry = RunRegistry(str(tmp_path / "runs" / "tiny"))
    with start_training(job_config, tmp_path / "runs") as run:
        wait_until(run, lambda: steps_done(registry) >= 5)
        family = family_of(run.pid)
        os.killpg(run.pid, signal.SIGINT)
        assert run.wait(timeout=120) == 130, (tmp_path / "runs.log").read_text()
    _, alive = psutil.wait_procs(family, timeout=60)
    assert not alive
    assert [a["outcome"] for a in registry.attempts().values()] == ["interrupted"]
    assert boostlu("resume", "tiny", "--runs", str(tmp_path / "runs")).returncode == 0
    assert_same_end(registry, expected)


def test_sigterm_with_ten_seconds_to_live(job_config: Path, tmp_path: Path) -> None:
    """As a spot machine goes: SIGTERM, and SIGKILL for everything ten seconds later. No step is lost."""
    expected = undisturbed(job_config, tmp_path / "undisturbed")
    values = yaml.safe_load(job_config.read_text())
    values["workers"]["grace_seconds"] = 9
    job_config.write_text(yaml.safe_dump(values))
    registry = RunRegistry(str(tmp_path / "runs" / "tiny"))
    with start_training(job_config, tmp_path / "runs") as run:
        wait_until(run, lambda: steps_done(registry) >= 5)
        family = family_of(run.pid)
        run.send_signal(signal.SIGTERM)
        psutil.wait_procs(family, timeout=10)
        kill(family)
    stopped_at = steps_done(registry)
    assert registry.checkpoints()[-1].step == stopped_at < STEPS
    assert boostlu("resume", "tiny", "--runs", str(tmp_path / "runs")).returncode == 0
    assert_same_end(registry, expected)


def test_two_signals_stop_at_once_and_lose_only_steps(job_config: Path, tmp_path: Path) -> None:
    expected = undisturbed(job_config, tmp_path / "undisturbed")
    registry = RunRegistry(str(tmp_path / "runs" / "tiny"))
    with start_training(job_config, tmp_path / "runs") as run:
        wait_until(run, lambda: steps_done(registry) >= 5)
        family = family_of(run.pid)
        run.send_signal(signal.SIGINT)
        run.send_signal(signal.SIGTERM)
        assert run.wait(timeout=120) == 130
    _, alive = psutil.wait_procs(family, timeout=60)
    assert not alive
    assert boostlu("resume", "tiny", "--runs", str(tmp_path / "runs")).returncode == 0
    assert_same_end(registry, expected)


def test_a_second_driver_is_refused(job_config: Path, tmp_path: Path) -> None:
    values = yaml.safe_load(job_config.read_text())
    job_config.write_text(yaml.safe_dump({**values, "epochs": 2000}))  # it must not end before the second comes
    registry = RunRegistry(str(tmp_path / "runs" / "tiny"))
    with start_training(job_config, tmp_path / "runs") as run:
        wait_until(run, lambda: steps_done(registry) >= 2)
        second = boostlu("resume", "tiny", "--runs", str(tmp_path / "runs"))
        assert second.returncode == 2
        assert f"is being driven by process {run.pid}" in second.stderr
        run.send_signal(signal.SIGTERM)
        assert run.wait(timeout=120) == 130
    assert list(registry.attempts()) == [1]
