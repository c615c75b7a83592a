"""Training on damaged, unfitting or too little data, and on numbers that are none."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from sharding.errors import UserError
from sharding.index import read_split
from tests.attempts import ALONE, attempt, start
from trainer.config import RunConfig, make_config
from trainer.evaluation import evaluate
from trainer.run import checkpoint
from trainer.run.coordination import RunCoordinator
from trainer.run.events import read_events, step_history
from trainer.step import NonFiniteLoss
from trainer.training import train
from trainer.world import World


@pytest.fixture
def own_dataset(tiny_dataset: Path, tmp_path: Path) -> Path:
    """A copy of the tiny dataset that a test may damage."""
    return Path(shutil.copytree(tiny_dataset, tmp_path / "dataset"))


def damage_image(root: Path, sample: int) -> str:
    """Overwrite the middle of a training image inside its tar; return its sample id."""
    index = read_split(str(root), "train")
    with open(index.shard_url(int(index.shard[sample])), "r+b") as tar:
        tar.seek(int(index.offset[sample]))
        tar.write(b"\x00" * int(index.size[sample]))
    return index.sample_id(sample)


def config_on(root: Path, values: dict[str, Any], *overrides: str) -> RunConfig:
    return make_config(values, [f"dataset.path={root}", *overrides])


def test_a_corrupt_image_is_skipped_counted_and_named(
    own_dataset: Path, tiny_values: dict[str, Any], tmp_path: Path
) -> None:
    broken = damage_image(own_dataset, 7)
    registry = start(config_on(own_dataset, tiny_values, "loader.max_corrupt_share=0.05"), tmp_path / "runs")
    assert attempt(registry)
    events = read_events(registry.url)
    assert [e["sample_id"] for e in events if e["event"] == "corrupt_sample"] == [broken]
    for epoch in (1, 2):
        assert sum(e["samples"] for e in events if e["event"] == "step" and e["epoch"] == epoch) == 79
    final = checkpoint.read_checkpoint(registry.url, registry.checkpoints()[-1])
    assert final.position.corrupt == [broken]


def test_too_many_corrupt_images_stop_the_run(own_dataset: Path, tiny_values: dict[str, Any], tmp_path: Path) -> None:
    broken = {damage_image(own_dataset, sample) for sample in (3, 9)}
    registry = start(config_on(own_dataset, tiny_values, "loader.max_corrupt_share=0.02"), tmp_path / "runs")
    with pytest.raises(UserError, match=r"max_corrupt_share=0\.02") as caught:
        attempt(registry)
    assert any(sample in str(caught.value) for sample in broken)


def test_a_truncated_tar_is_named(own_dataset: Path, tiny_values: dict[str, Any], tmp_path: Path) -> None:
    shard = own_dataset / "train" / "000002.tar"
    shard.write_bytes(shard.read_bytes()[:2000])
    registry = start(config_on(own_dataset, tiny_values), tmp_path / "runs")
    with pytest.raises(UserError, match=r"000002\.tar.*boostlu shards verify"):
        attempt(registry)


def test_an_index_that_disagrees_with_dataset_json_is_refused(own_dataset: Path) -> None:
    shutil.copy(own_dataset / "val" / "index.parquet", own_dataset / "train" / "index.parquet")
    with pytest.raises(UserError, match="boostlu shards verify"):
        read_split(str(own_dataset), "train")


def test_nan_stops_and_names_step_and_samples(
    tiny_values: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bad step changes no weight: the last checkpoint is the one that was good."""
    from trainer import step as step_module

    registry = start(make_config({**tiny_values, "checkpoint": {"every_steps": 1}}), tmp_path)
    index = read_split(registry.config().dataset.path, "train")
    plain = step_module._images
    poisoned: list[str] = []

    def poison(augment: Any, batch: Any, epoch: int, world: World) -> torch.Tensor:
        images = plain(augment, batch, epoch, world)
        if (epoch, batch.step) == (2, 1):
            images[4] = float("nan")
            poisoned.append(index.sample_id(int(batch.samples[4])))
        return images

    monkeypatch.setattr(step_module, "_images", poison)
    # Batch statistics would spread one image's NaN over the whole batch.
    config = make_config(registry.config().model_dump(), ["model.batch_norm=frozen"])
    number = registry.begin_attempt(1)
    coordinator = RunCoordinator(registry, config, number)
    with pytest.raises(NonFiniteLoss, match="at step 6") as caught:
        train(registry, config, ALONE, number, coordinator.commit)
    coordinator.close()
    assert f"samples: {poisoned[0]}" in str(caught.value).replace(" — ", "\n").split("\n")[0]
    latest, content = registry.latest()
    assert latest is not None
    assert latest.step == 6
    assert content is not None
    assert all(torch.isfinite(tensor).all() for tensor in content.model.values())


def test_a_batch_larger_than_the_dataset_is_refused(tiny_values: dict[str, Any], tmp_path: Path) -> None:
    registry = start(make_config(tiny_values, ["plan.global_batch=81"]), tmp_path)
    with pytest.raises(UserError, match=r"plan\.global_batch is 81 but the split has 80"):
        attempt(registry)


def test_a_batch_that_leaves_a_remainder_sees_every_sample_once(tiny_values: dict[str, Any], tmp_path: Path) -> None:
    registry = start(make_config(tiny_values, ["plan.global_batch=32"]), tmp_path)
    attempt(registry)
    history = step_history(read_events(registry.url))
    assert [event["samples"] for event in history] == [32, 32, 16] * 2


def test_another_dataset_is_refused_on_resume(own_dataset: Path, tiny_values: dict[str, Any], tmp_path: Path) -> None:
    registry = start(config_on(own_dataset, tiny_values), tmp_path / "runs")
    attempt(registry, stop_at=3)
    from sharding.build import build_dataset

    shutil.rmtree(own_dataset)
    options = {"train": 80, "val": 24, "test": 24, "side": 64, "seed": 7}
    build_dataset("digits", str(own_dataset), options, samples_per_shard=16, processes=1)
    from sharding.overlays import write_single_positive

    write_single_positive(str(own_dataset))
    with pytest.raises(UserError, match="fingerprint"):
        attempt(registry)


@pytest.fixture
def one_image_each(tmp_path: Path) -> Path:
    from sharding.build import build_dataset

    root = tmp_path / "single"
    build_dataset("digits", str(root), {"train": 1, "val": 1, "test": 1, "side": 64}, processes=1)
    return root


def test_one_image_a_split_trains_and_evaluates(
    one_image_each: Path, tiny_values: dict[str, Any], tmp_path: Path
) -> None:
    """No class has both a positive and a negative there, so mAP is not defined, and says so."""
    overrides = ["dataset.labels=full", "plan.global_batch=1", "plan.lanes=1", "model.batch_norm=frozen"]
    config = config_on(one_image_each, tiny_values, *overrides)
    registry = start(config, tmp_path / "runs")
    assert attempt(registry)
    record = evaluate(registry, registry.checkpoints()[-1], "val", config)
    assert (record["map"], record["classes_averaged"]) == (None, 0)
    assert [ap is None for ap in record["ap"]] == [count == 0 for count in record["positives"]]
