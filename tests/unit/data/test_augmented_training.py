"""Crops, policies and mixing reach a run, and leave it exactly resumable."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sharding.errors import UserError
from tests.attempts import assert_same_end, attempt, losses, start
from trainer.config import make_config

AUGMENT = {"crop_area": [0.3, 1.0], "policy": "randaugment", "mixup": 0.4, "cutmix": 1.0}


def test_a_stopped_run_with_all_augmentations_ends_as_the_undisturbed_one(
    tiny_values: dict[str, Any], tmp_path: Path
) -> None:
    config = make_config({**tiny_values, "augment": AUGMENT, "loader": {"threads": 0}})
    undisturbed = start(config, tmp_path / "a")
    assert attempt(undisturbed)
    stopped = start(make_config({**tiny_values, "augment": AUGMENT, "loader": {"threads": 3}}), tmp_path / "b")
    assert not attempt(stopped, 7)
    assert attempt(stopped)
    assert_same_end(undisturbed, stopped)


@pytest.mark.parametrize("setting", [{"crop_area": [0.3, 1.0]}, {"policy": "trivialaugment"}, {"mixup": 1}])
def test_each_setting_changes_what_is_trained_on(
    tiny_values: dict[str, Any], tmp_path: Path, setting: dict[str, Any]
) -> None:
    first = []
    for name, augment in (("plain", {}), ("augmented", setting)):
        registry = start(make_config({**tiny_values, "augment": augment}), tmp_path / name)
        attempt(registry, 1)
        first.append(losses(registry)[0])
    assert first[0] != first[1]


def test_ll_cp_cannot_correct_mixed_images(tiny_values: dict[str, Any], tmp_path: Path) -> None:
    values = {**tiny_values, "augment": {"cutmix": 1}, "loss": {"name": "ll-cp", "delta": 5}}
    with pytest.raises(UserError, match=r"ll-cp corrects the labels of single images"):
        attempt(start(make_config(values), tmp_path))
