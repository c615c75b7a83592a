"""The evaluator needs more memory than its node may use: Ray's own memory monitor kills it, and nobody else."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest
import yaml

from tests.faults.jobs import assert_same_end, boostlu, start_training, undisturbed
from tests.faults.test_evaluator import change, failures
from trainer.run.comparison import differences
from trainer.run.events import read_events
from trainer.run.registry import RunRegistry

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

GIB = 2**30
#: What the whole job may take beside what is in use already. It takes 3 GiB without the evaluation's batch.
ALLOWED = 6 * GIB
#: One batch of the evaluation: 1200 images of 640 × 640 take 1.4 GiB as bytes and 5.5 GiB more as float32.
IMAGES, SIDE = 1200, 640
STEPS = 160


def test_the_evaluator_is_killed_for_its_memory(job_config: Path, tmp_path: Path) -> None:
    """Each try of both evaluations is killed; they are recorded as failed with that reason, training is bitwise that
    of an undisturbed run, and resuming with smaller batches does the evaluations and no step."""
    memory = psutil.virtual_memory()
    if memory.available < 2.5 * ALLOWED:
        pytest.skip(f"needs {2.5 * ALLOWED / GIB:.0f} GiB of free memory: a real shortage is made in them")
    many_validation_images(job_config, tmp_path)
    expected = undisturbed(job_config, tmp_path / "undisturbed")
    change(job_config, evaluate={"batch": IMAGES, "retries": 1}, checkpoint={"keep_last": 4})
    registry = RunRegistry(str(tmp_path / "runs" / "tiny"))
    share = (memory.total - memory.available + ALLOWED) / memory.total
    with start_training(job_config, tmp_path / "runs", RAY_memory_usage_threshold=f"{share:.3f}") as run:
        assert run.wait(timeout=400) == 2
    log = (tmp_path / "runs.log").read_text()
    assert "no checkpoint could be evaluated: OutOfMemoryError" in log
    assert "Traceback" not in log
    assert len(failures(registry)) == 4
    assert all(text.startswith("OutOfMemoryError") for text in failures(registry))
    assert killed_while_training(registry) >= 1
    assert list(registry.attempts()) == [1]
    assert differences(registry, expected, evaluations=False) == []
    resumed = boostlu("resume", "tiny", "evaluate.batch=16", "--runs", str(tmp_path / "runs"))
    assert resumed.returncode == 0, resumed.stderr
    assert not [e for e in read_events(registry.url) if e["event"] == "step" and e["attempt"] > 1]
    assert_same_end(registry, expected, steps=STEPS)


def many_validation_images(config: Path, tmp_path: Path) -> None:
    from sharding.build import build_dataset
    from sharding.overlays import write_single_positive

    root = str(tmp_path / "digits")
    build_dataset("digits", root, {"train": STEPS // 2 * 16, "val": IMAGES, "test": 24, "side": 64})
    write_single_positive(root)
    values = yaml.safe_load(config.read_text())
    values["dataset"] |= {"path": root, "image_size": SIDE}
    # With fewer than 16 channels torch 2.15 damages its memory in the backward pass of images as large as these.
    values["model"]["backbone"] = "small_resnet:16"
    config.write_text(yaml.safe_dump({**values, "epochs": 2, "checkpoint": {"every_steps": 40}}))


def killed_while_training(registry: RunRegistry) -> int:
    events = read_events(registry.url)
    last_step = max(e["time"] for e in events if e["event"] == "step")
    return sum(e["event"] == "evaluation_failed" and e["time"] < last_step for e in events)
