"""A run goes on with other settings only where they leave it the same run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from sharding.errors import UserError
from sharding.schema import DatasetInfo, SplitInfo
from trainer.config import make_config
from trainer.run.amendments import changes, may_change
from trainer.run.registry import RunRegistry

DATASET = DatasetInfo(name="d", classes=[], splits={"train": SplitInfo(samples=33, shards=[], index_sha256="0")})


@pytest.fixture
def registry(tmp_path: Path) -> RunRegistry:
    values: dict[str, Any] = {"name": "one", "dataset": {"path": "/d"}, "loss": {"name": "ll-cp"}}
    return RunRegistry.create(str(tmp_path), make_config(values), DATASET)


@pytest.mark.parametrize(
    ("key", "may"),
    [
        ("epochs", True),
        ("workers.num", True),
        ("workers.threads", False),
        ("workers.micro_batch", False),
        ("checkpoint.every_steps", True),
        ("evaluate.timeout_minutes", True),
        ("evaluate.weights", False),
        ("loader.threads", True),
        ("dataset.path", True),
        ("dataset.labels", False),
        ("dataset.image_size", False),
        ("seed", False),
        ("plan.global_batch", False),
        ("model.alpha", False),
        ("loss.delta", False),
        ("optimizer.lr", False),
        ("precision", False),
        ("name", False),
        ("workersnum", False),
    ],
)
def test_what_may_change(key: str, may: bool) -> None:
    assert may_change(key) is may


def test_changes_name_what_differs() -> None:
    before = {"a": {"b": 1, "c": None}, "d": [1]}
    assert changes(before, {"a": {"b": 2}, "d": [1], "e": True}) == {"a.b": (1, 2), "e": (None, True)}


def test_an_allowed_change_lasts(registry: RunRegistry) -> None:
    registry.begin_attempt(2)
    registry.amend(["epochs=20", "workers.num=4"])
    assert (registry.config().epochs, registry.config().workers.num) == (20, 4)
    assert registry.begin_attempt(4) == 2


def test_a_refused_change_is_named_with_the_remedy_and_changes_nothing(registry: RunRegistry) -> None:
    before = registry.config()
    with pytest.raises(UserError, match=r"seed was 0, is 1; workers\.threads was 1, is 2.*new run"):
        registry.amend(["seed=1", "workers.threads=2", "epochs=20"])
    assert registry.config() == before


def test_an_edited_config_file_is_refused_by_name(registry: RunRegistry) -> None:
    """The attempt before says what the settings were."""
    registry.begin_attempt(2)
    path = Path(registry.path("config.yaml"))
    values = yaml.safe_load(path.read_text())
    values["model"]["alpha"] = 7
    path.write_text(yaml.safe_dump(values))
    with pytest.raises(UserError, match=r"model\.alpha was 5\.0, is 7"):
        registry.begin_attempt(2)
    assert list(registry.attempts()) == [1]


def test_a_setting_that_the_version_before_did_not_have_is_no_change(registry: RunRegistry) -> None:
    registry.begin_attempt(2)
    path = Path(registry.path("attempts", "0001.json"))
    record = json.loads(path.read_text())
    del record["config"]["model"]["batch_norm"], record["config"]["precision"]
    path.write_text(json.dumps(record))
    assert registry.begin_attempt(2) == 2
