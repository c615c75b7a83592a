"""Real images and annotations, from the official layout to an evaluated checkpoint."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from trainer.config import load_config
from trainer.evaluation import evaluate
from trainer.run.coordination import RunCoordinator
from trainer.run.events import read_events, step_history
from trainer.run.registry import RunRegistry
from trainer.training import train
from trainer.world import World

CONFIG = Path(__file__).parents[2] / "configs" / "coco_mini.yaml"


@pytest.fixture
def dataset(shared_data: Path, tmp_path: Path) -> Path:
    from sharding.build import build_dataset

    root = tmp_path / "coco-mini"
    build_dataset("coco", str(root), {"source": str(shared_data / "coco-mini")}, processes=1)
    return root


def test_coco_images_train_a_pretrained_network(dataset: Path, shared_data: Path, tmp_path: Path) -> None:
    """Three epochs on small images already rank far better than chance, which is a class's share of positives."""
    weights = shared_data / "weights" / "tf_efficientnet_lite0.safetensors"
    overrides = [f"dataset.path={dataset}", f"model.weights={weights}", "dataset.image_size=96", "epochs=3"]
    config = load_config(str(CONFIG), [*overrides, "optimizer.lr=3.0e-4"])
    from sharding.index import read_split

    index = read_split(str(dataset), "train")
    assert len(index.dataset.classes) == 80
    registry = RunRegistry.create(str(tmp_path / "runs"), config, index.dataset)
    coordinator = RunCoordinator(registry, config, registry.begin_attempt(1))
    assert train(registry, config, World(0, 1, torch.device("cpu")), 1, coordinator.commit)
    coordinator.close()

    history = step_history(read_events(registry.url))
    assert np.mean([e["loss"] for e in history[-5:]]) < 0.5 * history[0]["loss"]
    record = evaluate(registry, registry.checkpoints()[-1], "test", config)
    positives, negatives = np.array(record["positives"]), np.array(record["negatives"])
    chance = np.mean((positives / (positives + negatives))[positives > 0])
    assert record["classes_averaged"] == (positives > 0).sum() == 79
    assert record["map"] > 3 * chance
