"""Random histories of a run (commit, crash, evaluate, take over, damage) against the real registry and policies.

The model remembers what was committed and evaluated, and works out anew, without the policies' code, which
checkpoints must still be there.
"""

from __future__ import annotations

import uuid
from typing import Any

import pyarrow as pa
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from sharding import storage
from sharding.schema import DatasetInfo, SplitInfo
from trainer.config import make_config
from trainer.data.plan import PlanIdentity
from trainer.run import checkpoint
from trainer.run.checkpoint import Manifest, Snapshot, TrainingPosition
from trainer.run.coordination import RunCoordinator
from trainer.run.registry import RunRegistry, StaleAttempt

DATASET = DatasetInfo(name="d", classes=[], splits={"train": SplitInfo(samples=33, shards=[], index_sha256="0")})
PLAN = PlanIdentity(dataset="f" * 64, split="train", seed=0, global_batch=4, lanes=2, window=8)
EPOCH = 3
"""Steps of an epoch."""


def snapshot(step: int, attempt: int) -> Snapshot:
    position = TrainingPosition(
        step=step,
        epoch=1 + step // EPOCH,
        step_in_epoch=step % EPOCH,
        epoch_end=step % EPOCH == 0,
        attempt=attempt,
        plan=PLAN,
    )
    return Snapshot({"w": torch.tensor([float(step)])}, {"state": {}}, {}, {}, pa.table({"a": [step]}), position)


class Driver:
    """One attempt: its coordinator, how far its training is, and what it has taken to evaluate."""

    def __init__(self, registry: RunRegistry) -> None:
        config = registry.config()
        self.attempt = registry.begin_attempt(config.workers.num, take_over=True)
        self.coordinator = RunCoordinator(registry, config, self.attempt)
        manifest, content = registry.latest()
        self.step = manifest.step if manifest is not None else 0
        assert content is None or content.model["w"].item() == self.step
        self.evaluating: Manifest | None = None


class RunHistories(RuleBasedStateMachine):
    @initialize(keep_last=st.integers(1, 3), every=st.sampled_from([None, 2]), backlog=st.integers(1, 2))
    def create(self, keep_last: int, every: int | None, backlog: int) -> None:
        self.keep_last, self.every = keep_last, every
        values: dict[str, Any] = {"name": "run", "dataset": {"path": "/d"}, "evaluate": {"max_backlog": backlog}}
        values["checkpoint"] = {"keep_last": keep_last, "keep_every_epochs": every}
        self.registry = RunRegistry.create(f"memory://{uuid.uuid4().hex}", make_config(values), DATASET)
        self.committed: list[Manifest] = []  # in the order of the commits
        self.damaged: set[str] = set()
        self.scores: dict[str, float | None] = {}
        self.stale: list[Driver] = []
        self.driver: Driver | None = None

    # ── what can happen ──────────────────────────────────────────────────────────────────────────────────────

    @rule()
    def start_or_take_over(self) -> None:
        """The driver before may be dead or only thought to be."""
        if self.driver is not None:
            self.stale.append(self.driver)
        self.driver = Driver(self.registry)

    @precondition(lambda self: self.driver is not None)
    @rule(saves=st.lists(st.integers(1, 3), min_size=1, max_size=4))
    def train_and_commit(self, saves: list[int]) -> None:
        assert self.driver is not None
        for steps in saves:
            manifest = self._write(self.driver, steps)
            self.driver.coordinator.commit(manifest)
            self.committed.append(manifest)
            self.nothing_that_a_rule_keeps_is_lost()

    @precondition(lambda self: self.driver is not None)
    @rule(steps=st.integers(1, 3))
    def die_while_saving(self, steps: int) -> None:
        assert self.driver is not None
        self._write(self.driver, steps)
        self.driver = None

    @precondition(lambda self: self.driver is not None and self.driver.evaluating is None)
    @rule()
    def take_an_evaluation(self) -> None:
        assert self.driver is not None
        self.driver.evaluating = self.driver.coordinator.take_evaluation()

    @precondition(lambda self: self.driver is not None and self.driver.evaluating is not None)
    @rule(score=st.sampled_from([None, 0.1, 0.5, 0.5, 0.9]))
    def record_an_evaluation(self, score: float | None) -> None:
        """None: it failed for good."""
        assert self.driver is not None
        assert self.driver.evaluating is not None
        manifest, self.driver.evaluating = self.driver.evaluating, None
        self.driver.coordinator.record(manifest, "val", {"map": score} if score is not None else {"error": "boom"})
        self.scores[manifest.name] = score

    @precondition(lambda self: self.stale)
    @rule(data=st.data(), steps=st.integers(1, 3))
    def a_stale_driver_wakes_up(self, data: st.DataObject, steps: int) -> None:
        """Nothing that it does may reach the run."""
        old = data.draw(st.sampled_from(self.stale))
        before = self._names()
        for act in (
            lambda: old.coordinator.commit(self._write(old, steps)),
            lambda: old.coordinator.conclude(None),
            lambda: old.coordinator.record(old.evaluating or self.committed[-1], "val", {"map": 1.0}),
        ):
            try:
                act()
            except (StaleAttempt, IndexError):
                continue
            if self.driver is not None or max(self.registry.attempts()) != old.attempt:
                raise AssertionError("a stale driver could write")
        assert self._names() == before

    @precondition(lambda self: self.keep_last > 1 and self.committed and not self.damaged)
    @rule(content=st.sampled_from([b"", b"torn"]), file=st.sampled_from(["model.safetensors", "manifest.json"]))
    def die_and_damage_the_newest_checkpoint(self, content: bytes, file: str) -> None:
        self.driver = None
        newest = max(self.committed, key=lambda m: (m.step, m.attempt))
        storage.write_atomic(checkpoint.checkpoint_url(self.registry.url, newest.name, file), content)
        self.damaged.add(newest.name)

    # ── what must be true at any time ────────────────────────────────────────────────────────────────────────

    @invariant()
    def nothing_that_a_rule_keeps_is_lost(self) -> None:
        lost = self._must_be_there() - self._names() - self.damaged
        assert not lost, f"lost: {lost}"

    @invariant()
    def the_newest_sound_checkpoint_loads(self) -> None:
        manifest, content = self.registry.latest()
        sound = [m for m in self.committed if m.name not in self.damaged]
        if not sound:
            assert manifest is None
            return
        assert manifest is not None
        assert content is not None
        assert manifest.step >= sound[-1].step
        assert content.model["w"].item() == content.position.step == manifest.step

    @invariant()
    def only_owners_have_committed(self) -> None:
        assert self._names() <= {m.name for m in self.committed}

    def _names(self) -> set[str]:
        return {m.name for m in self.registry.checkpoints()}

    def _must_be_there(self) -> set[str]:
        """The last committed, the best, what waits for its evaluation or is in one, every so many epochs' end."""
        keep = {m.name for m in self.committed[-self.keep_last :]}
        scored = [(score, -m.step, m.name) for m in self.committed if (score := self.scores.get(m.name)) is not None]
        if scored:
            keep.add(max(scored)[2])
        keep |= {m.name for m in self.committed if m.epoch_end and m.name not in self.scores}
        if self.every is not None:
            keep |= {m.name for m in self.committed if m.epoch_end and m.epoch % self.every == 0}
        if self.driver is not None and self.driver.evaluating is not None:
            keep.add(self.driver.evaluating.name)
        return keep

    def _write(self, driver: Driver, steps: int) -> Manifest:
        """Train some steps, at most to the end of the epoch, and write all of a checkpoint but its commit."""
        driver.step = min(driver.step + steps, (driver.step // EPOCH + 1) * EPOCH)
        return checkpoint.write_checkpoint(self.registry.url, snapshot(driver.step, driver.attempt))


TestRunHistories = RunHistories.TestCase
TestRunHistories.settings = settings(settings.default, max_examples=30, stateful_step_count=20)
