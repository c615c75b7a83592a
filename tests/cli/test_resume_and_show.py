"""`boostlu resume` with other settings or another dataset, and what `boostlu runs show` says of a run's attempts."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from cluster.cli import main as cli
from sharding import storage
from sharding.index import read_split
from trainer.config import make_config
from trainer.run.events import EventLog
from trainer.run.registry import RunRegistry


@pytest.fixture
def registry(tiny_values: dict[str, Any], tmp_path: Path) -> RunRegistry:
    config = make_config(tiny_values)
    return RunRegistry.create(str(tmp_path / "runs"), config, read_split(config.dataset.path, "train").dataset)


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["boostlu", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return int(ended.value.code or 0)


def test_resume_takes_settings_that_leave_it_the_same_run(
    registry: RunRegistry, driven: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert call(monkeypatch, "resume", registry.url, "epochs=7", "workers.num=1") == 0
    assert (registry.config().epochs, registry.config().workers.num) == (7, 1)
    assert driven == [registry.url]


def test_resume_refuses_others_by_name(
    registry: RunRegistry, driven: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, "resume", registry.url, "model.alpha=9", "epochs=7") == 2
    said = capsys.readouterr().err
    assert "model.alpha was 5.0, is 9" in said
    assert "start a new run" in said
    assert registry.config().epochs == 2
    assert driven == []


def test_resume_refuses_another_dataset_before_it_starts_anything(
    registry: RunRegistry,
    driven: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from sharding.build import build_dataset

    other = str(tmp_path / "other")
    options = {"train": 80, "val": 24, "test": 24, "side": 64, "seed": 7}
    build_dataset("digits", other, options, samples_per_shard=16, processes=1)
    assert call(monkeypatch, "resume", registry.url, f"dataset.path={other}") == 2
    assert "is not the dataset of run 'tiny' (fingerprint" in capsys.readouterr().err
    assert driven == []


def test_a_finished_run_takes_no_other_settings(
    registry: RunRegistry, driven: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    registry.write_result({"best": None, "validation_map": None, "test": None})
    assert call(monkeypatch, "resume", registry.url, "epochs=7") == 2
    assert "finished already" in capsys.readouterr().err
    assert registry.config().epochs == 2


def test_show_says_how_every_attempt_ended(
    registry: RunRegistry, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first = registry.begin_attempt(2)
    log = EventLog(registry.url, first, "train")
    step = {"epoch": 1, "loss": 0.5, "samples": 16, "picks": 0, "seconds": 0.1, "waited": 0.0, "lr": 0.1}
    for number in (0, 1, 2):
        log.write("step", step=number, **step, picks_true=None, hidden=None)
    log.write("straggler", step=2, rank=1, host="slowhost", seconds=3.0, median=1.0, waited=2.5)
    log.close()
    registry.end_attempt(first, "failed", "OSError: 503")
    registry.amend(["workers.num=1"])
    second = registry.begin_attempt(1)
    registry.end_attempt(second, "interrupted")
    third = registry.begin_attempt(1)
    storage.write_atomic(registry.path("attempts", f"{third:04d}.json"), b"{torn")
    assert call(monkeypatch, "runs", "show", registry.url) == 0
    said = capsys.readouterr().out
    assert "2 workers" in said
    assert "steps 0 to 2, failed: OSError: 503" in said
    assert "workers.num changed from 2 to 1" in said
    assert "no step, interrupted" in said
    assert "attempt 3   start unknown" in said
    assert "straggler   rank 1 on slowhost: 3.00 s a step, the median 1.00 s, 2.50 s of it for data" in said
    assert "evaluated   0 checkpoints, 0 failed, 0 waiting" in said
