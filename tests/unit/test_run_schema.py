"""A run that an earlier version left is read, and gone on with, by this one; a later version's is refused by name.

``golden/run_schema_1`` is the directory of a finished run, as the first version with that schema wrote it.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from sharding import storage
from sharding.errors import UserError
from trainer.run import checkpoint
from trainer.run.coordination import RunCoordinator
from trainer.run.events import read_events, step_history
from trainer.run.registry import SCHEMA_VERSION, RunRegistry

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(params=range(1, SCHEMA_VERSION + 1))
def registry(request: pytest.FixtureRequest, tmp_path: Path) -> RunRegistry:
    return RunRegistry.open(shutil.copytree(GOLDEN / f"run_schema_{request.param}", tmp_path / "golden"))


def test_everything_of_an_older_run_is_read(registry: RunRegistry) -> None:
    assert registry.state() == "finished"
    assert registry.config().loss.name == "ll-cp"
    assert [a["outcome"] for a in registry.attempts().values()] == ["finished"]
    assert [e["step"] for e in step_history(read_events(registry.url))] == [0, 1, 2, 3]
    assert {len(r["ap"]) for split in ("val", "test") for r in registry.evaluations(split).values()} == {10}
    (manifest,) = registry.checkpoints()
    assert checkpoint.problems(registry.url, manifest) == []
    latest, content = registry.latest()
    assert latest == manifest
    assert content is not None
    assert content.position.step == 4
    assert content.corrections is not None


def test_an_older_run_goes_on(registry: RunRegistry) -> None:
    """Its attempts say nothing of settings and its evaluations nothing of attempts."""
    storage.remove(registry.path("result.json"))
    registry.amend(["epochs=3"])
    core = RunCoordinator(registry, registry.config(), registry.begin_attempt(1))
    assert core.attempt == 2
    assert core.take_evaluation() is None
    assert core.best() is not None
    core.close()


def test_a_newer_schema_is_refused_by_name(registry: RunRegistry) -> None:
    path = Path(registry.path("run.json"))
    path.write_text(json.dumps({**json.loads(path.read_text()), "schema_version": SCHEMA_VERSION + 1}))
    with pytest.raises(
        UserError, match=rf"has run schema {SCHEMA_VERSION + 1}.*reads {SCHEMA_VERSION}.*newer version"
    ):
        RunRegistry.open(registry.url)


def test_a_checkpoint_of_another_version_is_not_cleared_away(registry: RunRegistry) -> None:
    """Its manifest is whole but holds what this version does not know; a torn one is that of a save that died."""
    (manifest,) = registry.checkpoints()
    path = Path(registry.path("checkpoints", manifest.name, "manifest.json"))
    content = path.read_text()
    path.write_text(json.dumps({**json.loads(content), "compression": "zstd"}))
    assert registry.checkpoints() == registry.orphans() == []
    path.write_text(content[:-30])
    assert registry.orphans() == [manifest.name]
