"""Evaluation on a dataset whose classes are a part of the run's, in another order, or others."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from sharding import sources
from sharding.build import make_plan, run_plan
from sharding.errors import UserError
from sharding.images import ImageOptions
from sharding.index import read_split
from sharding.pool import inline
from sharding.records import SourceData, SplitRecords, record_table
from sharding.schema import ClassInfo
from tests.trained_run import build_scenes, train_run
from trainer.classes import output_columns, require_same_classes
from trainer.evaluation import evaluate
from trainer.run.registry import RunRegistry

ORDER = [7, 2, 9, 0]


def digits_with(root: Path, classes: list[int], extra: list[ClassInfo] | None = None) -> str:
    """Build the scenes of ``build_scenes`` with labels of some classes only, in the given order."""
    data = sources.load("digits", {"train": 32, "val": 12, "test": 24, "side": 64})
    assert isinstance(data, SourceData)
    place = {old: new for new, old in enumerate(classes)}

    def relabelled(split: SplitRecords) -> SplitRecords:
        columns = split.table.to_pydict()
        pos, neg = ([[place[c] for c in row if c in place] for row in columns[side]] for side in ("pos", "neg"))
        return replace(split, table=record_table(columns["sample_id"], columns["image"], pos, neg))

    chosen = replace(
        data,
        classes=[data.classes[c] for c in classes] + (extra or []),
        splits={name: relabelled(split) for name, split in data.splits.items()},
    )
    run_plan(make_plan(chosen, str(root), "digits", {}, ImageOptions(), 40), inline)
    return str(root)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunRegistry:
    folder = tmp_path_factory.mktemp("classes")
    return train_run(str(folder / "runs"), build_scenes(folder / "digits"))


def test_fewer_classes_in_another_order_are_found_by_id(run: RunRegistry, tmp_path: Path) -> None:
    manifest = run.checkpoints()[-1]
    whole = evaluate(run, manifest, "test", run.config())
    other = digits_with(tmp_path / "other", ORDER)
    part = evaluate(run, manifest, "test", run.config([f"dataset.path={other}"]))
    for key in ("ap", "positives", "negatives", "thresholds"):
        assert part[key] == [whole[key][c] for c in ORDER], key
    with pytest.raises(UserError, match=r"4 classes, the run .* was trained on 10 others"):
        require_same_classes(run, read_split(other, "test"))


def test_a_class_that_the_model_does_not_know_is_named(run: RunRegistry, tmp_path: Path) -> None:
    other = digits_with(tmp_path / "other", ORDER, [ClassInfo(id="/m/0x", name="zebra")])
    with pytest.raises(UserError, match=r"1 of 5 classes .* not trained on: '/m/0x' \(zebra\)"):
        output_columns(run, read_split(other, "test"))
