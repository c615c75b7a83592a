"""A tiny real run in one process: digit scenes, a small network, all files that a run leaves."""

from __future__ import annotations

from pathlib import Path

import torch

from sharding.build import build_dataset
from sharding.index import read_split
from sharding.overlays import write_single_positive
from sharding.pool import inline
from trainer.config import make_config
from trainer.evaluation import evaluate
from trainer.run.checkpoint import Manifest
from trainer.run.coordination import RunCoordinator
from trainer.run.registry import RunRegistry
from trainer.training import train
from trainer.world import World

ALONE = World(0, 1, torch.device("cpu"))
SINGLE = "dataset.labels=single-positive-1200"


def build_scenes(root: Path) -> str:
    """Build 32 training, 12 validation and 24 test scenes with one-positive labels beside the full ones."""
    build_dataset("digits", str(root), {"train": 32, "val": 12, "test": 24, "side": 64}, engine=inline)
    write_single_positive(str(root))
    return str(root)


def train_run(runs: str, data: str, *overrides: str, finish: bool = True) -> RunRegistry:
    """Train two epochs of two steps; evaluate each checkpoint; without ``finish`` stop before the test result."""
    values = {
        "name": "tiny",
        "epochs": 2,
        "dataset": {"path": data, "image_size": 48},
        "plan": {"global_batch": 16, "lanes": 2},
        "loader": {"threads": 1},
        "model": {"backbone": "small_resnet:2", "weights": "none"},
        "loss": {"name": "an"},
        "optimizer": {"lr": 0.01},
    }
    config = make_config(values, overrides)
    registry = RunRegistry.create(runs, config, read_split(data, config.dataset.train).dataset)
    attempt = registry.begin_attempt(1)
    coordinator = RunCoordinator(registry, config, attempt)

    def commit(manifest: Manifest) -> None:
        coordinator.commit(manifest)
        coordinator.record(manifest, "val", evaluate(registry, manifest, "val", config))

    try:
        train(registry, config, ALONE, attempt, commit, in_background=False)
        best = coordinator.best()
        if finish and best is not None:
            coordinator.conclude(evaluate(registry, best[0], "test", config))
    finally:
        coordinator.close()
        registry.end_attempt(attempt, "finished" if finish else "interrupted")
    return registry
