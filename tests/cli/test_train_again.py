"""`boostlu train --resume`: the command that a retried job can repeat as it is."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.cli import main as cli
from sharding.index import read_split
from trainer.config import load_config
from trainer.run.registry import LEASE_SECONDS, RunRegistry


@pytest.fixture
def config_file(tiny_values: dict[str, Any], tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(tiny_values))
    return path


def train(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["boostlu", "train", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return int(ended.value.code or 0)


def test_the_same_command_starts_and_goes_on(
    config_file: Path, tmp_path: Path, driven: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = (config_file, "--runs", tmp_path / "runs", "--resume")
    assert train(monkeypatch, *arguments) == 0
    assert train(monkeypatch, *arguments) == 0
    assert driven == [str(tmp_path / "runs" / "tiny")] * 2


def test_other_settings_under_the_same_name_are_refused(
    config_file: Path,
    tmp_path: Path,
    driven: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = (config_file, "--runs", tmp_path / "runs", "--resume")
    train(monkeypatch, *arguments)
    assert train(monkeypatch, *arguments, "seed=5") == 2
    assert "was made with other settings" in capsys.readouterr().err
    assert len(driven) == 1


def test_a_dead_host_s_lease_is_waited_for(
    config_file: Path, tmp_path: Path, driven: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The driver was on another host and stopped renewing nearly LEASE_SECONDS ago."""
    config = load_config(str(config_file))
    dataset = read_split(config.dataset.path, "train").dataset
    registry = RunRegistry.create(str(tmp_path / "runs"), config, dataset)
    lease = {"host": "gone", "pid": 1, "pid_started": 0.0, "attempt": 1}
    monkeypatch.setattr(
        RunRegistry, "lease", lambda _: lease | {"renewed": started - LEASE_SECONDS + 1}, raising=True
    )
    started = time.time()
    assert train(monkeypatch, config_file, "--runs", tmp_path / "runs", "--resume") == 0
    assert time.time() - started >= 1
    assert driven == [registry.url]
