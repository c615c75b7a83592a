"""The evaluator raises or hangs: that is recorded, training does not notice, and what is missing is done later."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.faults.jobs import boostlu, start_training, undisturbed, wait_until
from trainer.run.comparison import differences
from trainer.run.events import read_events
from trainer.run.registry import RunRegistry

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture
def shard(job_config: Path, tiny_dataset: Path, tmp_path: Path) -> Path:
    """A shard of validation images, in a copy of the dataset that the job uses."""
    root = shutil.copytree(tiny_dataset, tmp_path / "dataset")
    change(job_config, dataset={"path": str(root)})
    return Path(root) / "val" / "000000.tar"


def change(config: Path, **sections: dict[str, Any]) -> None:
    values = yaml.safe_load(config.read_text())
    for section, settings in sections.items():
        values[section] = {**values.get(section, {}), **settings}
    config.write_text(yaml.safe_dump(values))


def failures(registry: RunRegistry) -> list[str]:
    return [e["error"] for e in read_events(registry.url) if e["event"] == "evaluation_failed"]


def test_the_evaluator_raises(job_config: Path, tmp_path: Path, shard: Path) -> None:
    """Validation data cannot be read. Training ends as ever, the run is not called finished, and once the data are
    back `boostlu resume` evaluates what is missing, without a step of training."""
    expected = undisturbed(job_config, tmp_path / "undisturbed")
    change(job_config, evaluate={"retries": 1}, checkpoint={"keep_last": 4})
    registry = RunRegistry(str(tmp_path / "runs" / "tiny"))
    hidden = shard.rename(shard.with_suffix(".hidden"))
    with start_training(job_config, tmp_path / "runs") as run:
        assert run.wait(timeout=400) == 2
    log = (tmp_path / "runs.log").read_text()
    assert "no checkpoint could be evaluated" in log
    assert "000000.tar" in log
    assert differences(registry, expected, evaluations=False) == []
    assert registry.result() is None
    assert all("error" in record for record in registry.evaluations("val").values())
    assert len(failures(registry)) >= 2 * len(registry.evaluations("val"))
    hidden.rename(shard)
    resumed = boostlu("resume", "tiny", "--runs", str(tmp_path / "runs"))
    assert resumed.returncode == 0, resumed.stderr
    assert registry.result() is not None
    assert not [e for e in read_events(registry.url) if e["event"] == "step" and e["attempt"] > 1]
    scores = {name: record["map"] for name, record in registry.evaluations("val").items() if "map" in record}
    reference = {name: record["map"] for name, record in expected.evaluations("val").items()}
    assert scores == {name: reference[name] for name in scores}
    assert len(scores) >= 2


def test_the_evaluator_hangs(job_config: Path, tmp_path: Path, shard: Path) -> None:
    """Opening a named pipe waits for ever. The evaluation is stopped at its time limit and recorded as failed; the
    others, and training, are those of the undisturbed run."""
    expected = undisturbed(job_config, tmp_path / "undisturbed")
    change(job_config, evaluate={"retries": 0, "timeout_minutes": 0.5})
    registry = RunRegistry(str(tmp_path / "runs" / "tiny"))
    sound = shard.rename(shard.with_suffix(".sound"))
    os.mkfifo(shard)
    with start_training(job_config, tmp_path / "runs") as run:
        wait_until(run, lambda: bool(failures(registry)))
        shard.unlink()
        sound.rename(shard)
        assert run.wait(timeout=400) == 0, (tmp_path / "runs.log").read_text()
    assert failures(registry)[0] == "took longer than 0.5 minutes"
    assert list(registry.attempts()) == [1]
    assert differences(registry, expected, evaluations=False) == []
    records = registry.evaluations("val")
    failed = [name for name, record in records.items() if "error" in record]
    assert len(failed) == 1
    reference = expected.evaluations("val")
    assert {n: r["ap"] for n, r in records.items() if n not in failed} == {
        n: r["ap"] for n, r in reference.items() if n not in failed
    }
    assert registry.result() is not None
