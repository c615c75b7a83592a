"""`boostlu runs show` and the report say where the time went, and when the loader is what training waits for."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from cluster.cli import main as cli
from sharding.index import read_split
from trainer.config import make_config
from trainer.report import ReportRun, write_report
from trainer.run.events import EventLog
from trainer.run.registry import RunRegistry


@pytest.fixture
def run(tiny_values: dict[str, Any], tmp_path: Path) -> RunRegistry:
    config = make_config(tiny_values)
    dataset = read_split(config.dataset.path, "train").dataset
    registry = RunRegistry.create(str(tmp_path / "runs"), config, dataset)
    registry.end_attempt(registry.begin_attempt(2), "interrupted")
    return registry


def log_steps(registry: RunRegistry, waited: float) -> None:
    """Ten steps of a second: a tenth of it in collectives, another tenth in the gradient exchange of every other."""
    log = EventLog(registry.url, 1, "train")
    for step in range(10):
        times = {"seconds": 1.0, "waited": waited, "collectives": 0.1, "exchange": 0.1 if step % 2 else None}
        log.write("step", step=step, epoch=1, lr=0.1, loss=1.0, samples=16, picks=0, **times)
    log.close()


def shown(registry: RunRegistry, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    monkeypatch.setattr(sys, "argv", ["boostlu", "runs", "show", registry.url])
    with pytest.raises(SystemExit):
        cli.main()
    return capsys.readouterr().out


def test_a_starved_run_is_told_why(
    run: RunRegistry, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    log_steps(run, waited=1.0)
    said = shown(run, monkeypatch, capsys)
    assert "40 % computing, 10 % communicating, 50 % waiting for batches" in said
    assert "hint        the loader is the bottleneck: training waits for batches 50 % of the time" in said
    write_report([ReportRun("starved", run.url)], str(tmp_path / "report.html"))
    page = (tmp_path / "report.html").read_text()
    assert "the loader is the bottleneck" in page
    assert '<td class="number">2.0 s</td>' in page  # ten steps exchange for 0.2 s each


def test_a_fed_run_is_not(
    run: RunRegistry, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    log_steps(run, waited=0.0)
    said = shown(run, monkeypatch, capsys)
    assert "80 % computing, 20 % communicating, 0 % waiting for batches" in said
    assert "bottleneck" not in said
    write_report([ReportRun("fed", run.url)], str(tmp_path / "report.html"))
    assert "bottleneck" not in (tmp_path / "report.html").read_text()
