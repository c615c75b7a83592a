"""What a coordinator does, whoever runs it: commit, prune, choose what to evaluate, record, conclude.

Under Ray an actor does this beside training; under ``torchrun`` the first rank does it in line. Both use this class,
so both leave the same files.
"""

from __future__ import annotations

import threading
from typing import Any

from sharding import storage
from sharding.errors import UserError
from trainer.config import RunConfig
from trainer.run.checkpoint import Manifest
from trainer.run.events import EventLog
from trainer.run.policies import best_checkpoint, next_evaluation, superfluous
from trainer.run.registry import RunRegistry

_EVALUATE_AGAIN = "all checkpoints are kept; `boostlu resume` does the evaluations that are missing"


class RunCoordinator:
    """Coordinates one attempt of a run. Thread-safe: committing and evaluating happen in different threads."""

    def __init__(self, registry: RunRegistry, config: RunConfig, attempt: int) -> None:
        self.registry, self.config, self.attempt = registry, config, attempt
        self._log = EventLog(registry.url, attempt, "coordinator")
        self._lock = threading.RLock()
        self._pinned: set[str] = set()
        #: Checkpoints that wait for their evaluation on validation.
        self.backlog = 0
        # What earlier attempts were writing when they died; nobody else writes before this attempt's first commit.
        for name in registry.orphans():
            registry.delete_orphan(name)

    def commit(self, manifest: Manifest) -> None:
        """Make a written checkpoint exist, delete those that no rule keeps. Raises StaleAttempt when fenced off."""
        with self._lock:
            self.registry.commit(self.attempt, manifest)
            self.event("checkpoint", checkpoint=manifest.name, step=manifest.step, epoch=manifest.epoch)
            self._prune()

    def take_evaluation(self) -> Manifest | None:
        """Return the next checkpoint to evaluate on validation, protected from deletion until it is recorded."""
        with self._lock:
            manifest = next_evaluation(self.registry.checkpoints(), self._done(), self.config.evaluate.max_backlog)
            if manifest is not None:
                self._pinned.add(manifest.name)
            return manifest

    def record(self, manifest: Manifest, split: str, record: dict[str, Any]) -> None:
        """Keep an evaluation, or the reason why there is none (``error`` in ``record``). Raises StaleAttempt when
        fenced off: a stale attempt may not prune either, it does not know what its successor is evaluating."""
        with self._lock:
            self.registry.check_owner(self.attempt)
            self.registry.record_evaluation(manifest.name, split, {**record, "attempt": self.attempt})
            self._pinned.discard(manifest.name)
            fields = {key: record[key] for key in ("map", "classes_averaged", "seconds", "error") if key in record}
            self.event("evaluation", checkpoint=manifest.name, step=manifest.step, split=split, **fields)
            self._prune()

    def best(self) -> tuple[Manifest, float] | None:
        """Return the checkpoint that is best on validation, and its mAP."""
        with self._lock:
            scores = self._scores()
            best = best_checkpoint(self.registry.checkpoints(), scores)
            return (best, scores[best.name]) if best is not None else None

    def conclude(self, test: dict[str, Any] | None) -> dict[str, Any]:
        """Write the run's result: the best checkpoint and its test record; the run is finished then.

        Raises :class:`UserError` when evaluations that the result needs have failed: the run is not done without."""
        with self._lock:
            self.registry.check_owner(self.attempt)
            chosen = self.best()
            failed = [
                r["error"] for r in self.registry.evaluations(self.config.dataset.validation).values() if "error" in r
            ]
            if chosen is None and failed:
                raise UserError(f"no checkpoint could be evaluated: {failed[-1]}", _EVALUATE_AGAIN)
            if test is not None and "error" in test:
                raise UserError(
                    f"the best checkpoint could not be evaluated on test: {test['error']}", _EVALUATE_AGAIN
                )
            result: dict[str, Any] = {"best": None, "validation_map": None, "test": test}
            if chosen is not None:
                manifest, score = chosen
                result.update(
                    best={"checkpoint": manifest.name, "step": manifest.step, "epoch": manifest.epoch},
                    validation_map=score,
                )
            self.registry.write_result(result)
            self.event("finished", validation_map=result["validation_map"], test_map=(test or {}).get("map"))
            return result

    def event(self, event: str, **fields: Any) -> None:
        with self._lock:
            self._log.write(event, **fields)

    def close(self) -> None:
        with self._lock:
            self._log.close()

    def _done(self) -> set[str]:
        """Return the checkpoints that need no evaluation on validation any more. One that failed for good stays so
        for its attempt; the next attempt, perhaps on a sound evaluator, tries again."""
        records = self.registry.evaluations(self.config.dataset.validation)
        return {name for name, r in records.items() if "error" not in r or r.get("attempt") == self.attempt}

    def _scores(self) -> dict[str, float]:
        records = self.registry.evaluations(self.config.dataset.validation)
        return {name: record["map"] for name, record in records.items() if record.get("map") is not None}

    def _prune(self) -> None:
        manifests, scores, done = self.registry.checkpoints(), self._scores(), self._done()
        waiting = {m.name for m in manifests if m.epoch_end and m.name not in done}
        self.backlog = len(waiting)
        rule = self.config.checkpoint
        pinned = self._pinned | waiting
        for manifest in superfluous(manifests, scores, pinned, rule.keep_last, rule.keep_every_epochs):
            with storage.tolerate_trouble():  # a storage that refuses just now is asked again at the next commit
                self.registry.delete_checkpoint(manifest)
                self.event("checkpoint_deleted", checkpoint=manifest.name)
