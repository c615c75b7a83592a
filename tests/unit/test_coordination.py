"""What a coordinator does with evaluations that fail, and where it lets them run."""

from __future__ import annotations

import uuid
from typing import Any

import pytest

from cluster.runs.coordinator import evaluation_options
from sharding.errors import UserError
from sharding.schema import DatasetInfo, SplitInfo
from trainer.config import make_config
from trainer.evaluation import EvaluateConfig
from trainer.run.checkpoint import Manifest
from trainer.run.coordination import RunCoordinator
from trainer.run.registry import RunRegistry, StaleAttempt

DATASET = DatasetInfo(name="d", classes=[], splits={"train": SplitInfo(samples=33, shards=[], index_sha256="0")})


@pytest.fixture
def registry() -> RunRegistry:
    config = make_config({"name": "run", "dataset": {"path": "/d"}})
    return RunRegistry.create(f"memory://{uuid.uuid4().hex}", config, DATASET)


def coordinator(registry: RunRegistry) -> RunCoordinator:
    return RunCoordinator(registry, registry.config(), registry.begin_attempt(1, take_over=True))


def commit(core: RunCoordinator, step: int) -> Manifest:
    manifest = Manifest(step=step, epoch=step, attempt=core.attempt, epoch_end=True, files={})
    core.commit(manifest)
    return manifest


def fail(core: RunCoordinator, manifest: Manifest) -> None:
    core.record(manifest, "val", {"checkpoint": manifest.name, "error": "boom"})


def test_a_failed_evaluation_is_final_for_its_attempt_and_tried_again_by_the_next(registry: RunRegistry) -> None:
    first = coordinator(registry)
    manifest = commit(first, 1)
    assert first.take_evaluation() == manifest
    fail(first, manifest)
    assert first.take_evaluation() is None
    second = coordinator(registry)
    assert second.take_evaluation() == manifest
    second.record(manifest, "val", {"map": 0.5})
    assert second.take_evaluation() is None
    assert second.best() == (manifest, 0.5)


def test_a_run_without_any_validation_result_is_not_finished(registry: RunRegistry) -> None:
    core = coordinator(registry)
    fail(core, commit(core, 1))
    with pytest.raises(UserError, match=r"no checkpoint could be evaluated: boom.*boostlu resume"):
        core.conclude(None)
    assert registry.result() is None


def test_a_run_whose_test_evaluation_failed_is_not_finished(registry: RunRegistry) -> None:
    core = coordinator(registry)
    core.record(commit(core, 1), "val", {"map": 0.5})
    with pytest.raises(UserError, match=r"on test: boom.*boostlu resume"):
        core.conclude({"error": "boom"})
    assert registry.result() is None
    assert core.conclude({"map": 0.4})["validation_map"] == 0.5


def test_some_failed_evaluations_leave_the_best_of_the_others(registry: RunRegistry) -> None:
    core = coordinator(registry)
    core.record(commit(core, 1), "val", {"map": 0.5})
    fail(core, commit(core, 2))
    assert core.conclude({"map": 0.4})["best"]["step"] == 1


def test_a_stale_attempt_records_and_concludes_nothing(registry: RunRegistry) -> None:
    old = coordinator(registry)
    manifest = commit(old, 1)
    coordinator(registry)
    for act in (lambda: old.record(manifest, "val", {"map": 1.0}), lambda: old.conclude(None)):
        with pytest.raises(StaleAttempt, match="attempt 2 took over"):
            act()
    assert registry.evaluations("val") == {}


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"cpus": 2, "gpus": 1}, {"num_cpus": 2, "num_gpus": 1}),
        (
            {"label_selector": {"role": "evaluation"}},
            {"num_cpus": 1, "num_gpus": 0, "label_selector": {"role": "evaluation"}},
        ),
    ],
)
def test_where_evaluations_run(settings: dict[str, Any], expected: dict[str, Any]) -> None:
    assert evaluation_options(EvaluateConfig(**settings)) == expected


def test_a_label_selector_that_ray_does_not_understand_is_refused() -> None:
    with pytest.raises(UserError, match=r"evaluate\.label_selector"):
        evaluation_options(EvaluateConfig(label_selector={"role": "in(a"}))
