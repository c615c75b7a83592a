"""``boostlu checkpoints``: on a run with two checkpoints, made without training."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from cluster.cli import main as cli
from trainer.config import make_config
from trainer.data.plan import PlanIdentity
from trainer.model.classifier import build_model
from trainer.run.checkpoint import Snapshot, TrainingPosition, checkpoint_url, write_checkpoint
from trainer.run.registry import RunRegistry


@pytest.fixture
def registry(tiny_values: dict[str, Any], tmp_path: Path) -> RunRegistry:
    from sharding.index import read_split

    config = make_config(tiny_values)
    dataset = read_split(config.dataset.path, "train").dataset
    registry = RunRegistry.create(str(tmp_path / "runs"), config, dataset)
    number = registry.begin_attempt(1)
    plan = PlanIdentity(dataset="0", split="train", seed=0, global_batch=16, lanes=4, window=32)
    for step in (5, 10, 15):
        position = TrainingPosition(
            step=step, epoch=1, step_in_epoch=step, epoch_end=False, attempt=number, plan=plan
        )
        state = build_model(config.model, 10, seed=step).state_dict()
        registry.commit(number, write_checkpoint(registry.url, Snapshot(state, {}, {}, {}, None, position)))
    registry.end_attempt(number, "interrupted")
    return registry


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["boostlu", "checkpoints", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return ended.value.code if isinstance(ended.value.code, int) else 0


def test_verify_names_what_is_damaged(
    registry: RunRegistry, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, "verify", registry.url) == 0
    assert capsys.readouterr().out.count(": sound") == 3
    victim = Path(checkpoint_url(registry.url, "00000010-a0001", "model.safetensors"))
    victim.write_bytes(victim.read_bytes()[:-1])
    assert call(monkeypatch, "verify", registry.url) == 1
    shown = capsys.readouterr().out
    assert shown.count(": sound") == 2
    assert "00000010-a0001: model.safetensors" in shown


def test_prune_keeps_the_newest_and_removes_what_was_never_committed(
    registry: RunRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    orphan = Path(checkpoint_url(registry.url, "00000020-a0001"))
    orphan.mkdir()
    (orphan / "model.safetensors").write_bytes(b"half")
    assert call(monkeypatch, "prune", registry.url, "--keep-last", "2") == 0
    assert [m.step for m in registry.checkpoints()] == [10, 15]
    assert not orphan.exists()


def test_an_exported_model_carries_what_it_needs(
    registry: RunRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "model.safetensors"
    assert call(monkeypatch, "export", registry.url, "--checkpoint", "10", "--output", str(output)) == 0
    expected = build_model(registry.config().model, 10, seed=10).state_dict()
    with safe_open(output, "pt") as file:
        assert set(file.keys()) == expected.keys()
        assert all(torch.equal(file.get_tensor(name), tensor) for name, tensor in expected.items())
        metadata = file.metadata()
    assert [c["name"] for c in json.loads(metadata["classes"])] == [str(digit) for digit in range(10)]
    assert metadata["alpha"] == "5.0"
    assert call(monkeypatch, "export", registry.url, "--weights", "ema", "--output", str(output)) == 2
    assert call(monkeypatch, "export", registry.url, "--checkpoint", "last", "--weights", "ema", "--output", "x") == 2
    assert "ema_decay" in capsys.readouterr().err


def test_list_shows_every_checkpoint(
    registry: RunRegistry, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, "list", registry.url) == 0
    shown = capsys.readouterr().out
    assert all(m.name in shown for m in registry.checkpoints())
