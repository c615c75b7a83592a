"""Several ranks do what one does: the same batches, the same selected entries, the same losses."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from trainer.run import checkpoint
from trainer.run.events import read_events, step_history
from trainer.run.registry import RunRegistry


def torchrun(ranks: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run ``python -m trainer`` in ``ranks`` processes on loopback."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    return subprocess.run(
        [*command, "-m", "trainer", *arguments], env=environment, capture_output=True, text=True, timeout=240
    )


@pytest.fixture
def config_file(tiny_values: dict[str, Any], tmp_path: Path) -> Path:
    """Frozen batch norm: with batch statistics of its own share, a rank would see other activations."""
    values = {**tiny_values, "model": {**tiny_values["model"], "batch_norm": "frozen"}}
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def run(config: Path, ranks: int, runs: Path, *overrides: str) -> RunRegistry:
    done = torchrun(ranks, str(config), "--runs", str(runs), f"name=ranks{ranks}", *overrides)
    assert done.returncode == 0, done.stderr
    return RunRegistry(str(runs / f"ranks{ranks}"))


@pytest.mark.parametrize("method", ["ll-cp", "ll-r"])
def test_ranks_select_the_same_entries(config_file: Path, tmp_path: Path, method: str) -> None:
    """One, two and three ranks (16 is not divisible by 3); LL-Cp's corrections name the very entries."""
    overrides = (f"loss.name={method}", "loss.delta=5", "epochs=3")
    one, *others = (run(config_file, ranks, tmp_path, *overrides) for ranks in (1, 2, 3))
    expected = step_history(read_events(one.url))
    for other in others:
        history = step_history(read_events(other.url))
        for key in ("step", "samples", "picks", "picks_true", "hidden"):
            assert [e[key] for e in history] == [e[key] for e in expected], key
        assert [e["loss"] for e in history] == pytest.approx([e["loss"] for e in expected], rel=1e-4)
        if method == "ll-cp":
            first, second = (checkpoint.read_checkpoint(r.url, r.checkpoints()[-1]).corrections for r in (one, other))
            assert first is not None
            assert second is not None
            assert first.num_rows == 80
            assert first.select(["sample", "class", "epoch"]) == second.select(["sample", "class", "epoch"])


def test_two_ranks_then_one_then_three_end_where_two_end(config_file: Path, tmp_path: Path) -> None:
    """The run is cut at steps 4 and 12 (an epoch has 5), and goes on each time on another number of ranks."""
    whole = run(config_file, 2, tmp_path / "a", "epochs=3")
    registry = run(config_file, 2, tmp_path / "b", "epochs=3", "checkpoint.every_steps=2", "checkpoint.keep_last=9")
    for step, ranks in ((4, 1), (12, 3)):
        for manifest in registry.checkpoints():
            if manifest.step > step:
                registry.delete_checkpoint(manifest)
        (Path(registry.url) / "result.json").unlink()
        done = torchrun(ranks, "ranks2", "--runs", str(tmp_path / "b"), "--resume")
        assert done.returncode == 0, done.stderr
    resumed = [e for e in read_events(registry.url) if e["event"] == "resumed"]
    assert [(e["step"], e["workers"]) for e in resumed] == [(4, 1), (12, 3)]
    history, expected = (step_history(read_events(r.url)) for r in (registry, whole))
    assert [e["attempt"] for e in history] == [1] * 4 + [2] * 8 + [3] * 3
    for key in ("step", "samples", "picks", "hidden"):
        assert [e[key] for e in history] == [e[key] for e in expected], key
    assert [e["loss"] for e in history] == pytest.approx([e["loss"] for e in expected], rel=1e-4)
    first, second = (checkpoint.read_model(r.url, r.checkpoints()[-1]) for r in (registry, whole))
    assert all(torch.allclose(first[name], second[name], rtol=1e-3, atol=1e-5) for name in first)


def test_more_ranks_than_the_batch_has_slots_are_refused(config_file: Path, tmp_path: Path) -> None:
    done = torchrun(2, str(config_file), "--runs", str(tmp_path), "plan.global_batch=1", "plan.lanes=1")
    assert done.returncode != 0
    assert "error: 2 workers cannot share a global batch of 1" in done.stderr
