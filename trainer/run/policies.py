"""What to keep, what to evaluate next, what is best, whether to try again, with how many workers, who is slow: pure
functions over plain data."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Literal

from trainer.run.checkpoint import Manifest

#: Waiting time before attempt n + 1 after n failures in a row: 1, 2, 4 ... seconds, at most this.
LONGEST_BACKOFF_SECONDS = 60.0


def best_checkpoint(manifests: Sequence[Manifest], scores: Mapping[str, float]) -> Manifest | None:
    """Return the checkpoint with the highest validation score; on a tie the earliest step."""
    scored = [m for m in manifests if m.name in scores]
    return max(scored, key=lambda m: (scores[m.name], -m.step), default=None)


def next_evaluation(manifests: Sequence[Manifest], done: Set[str], max_backlog: int) -> Manifest | None:
    """Return the checkpoint to evaluate next, None when nothing waits.

    Epoch ends are evaluated, in order while at most ``max_backlog`` of them wait; when evaluation falls further
    behind, the newest goes first, so that the curve stays current and the gaps are filled at the end.
    """
    waiting = [m for m in manifests if m.epoch_end and m.name not in done]
    if not waiting:
        return None
    pick = max if len(waiting) > max_backlog else min
    return pick(waiting, key=lambda m: (m.step, m.attempt))


def superfluous(
    manifests: Sequence[Manifest],
    scores: Mapping[str, float],
    pinned: Set[str],
    keep_last: int,
    keep_every_epochs: int | None = None,
) -> list[Manifest]:
    """Return the checkpoints that may be deleted: neither among the ``keep_last`` newest, nor best, nor pinned, nor
    the end of every ``keep_every_epochs``-th epoch.

    Newest is what was committed last, not the highest step: an attempt that found the newest checkpoint damaged
    starts before it, and what it commits then must outlive the damaged one."""
    ordered = sorted(manifests, key=lambda m: (m.attempt, m.step))
    keep = {m.name for m in ordered[-keep_last:]} | set(pinned)
    best = best_checkpoint(manifests, scores)
    if best is not None:
        keep.add(best.name)
    if keep_every_epochs is not None:
        keep |= {m.name for m in ordered if m.epoch_end and m.epoch % keep_every_epochs == 0}
    return [m for m in ordered if m.name not in keep]


@dataclass(frozen=True)
class Scale:
    """``start`` an attempt with so many workers, ``wait`` for room, ``keep`` the attempt as it is, or end it at a
    checkpoint to ``grow``."""

    action: Literal["start", "wait", "keep", "grow"]
    workers: int


def scale(running: int, room: int, least: int, most: int, settled: bool) -> Scale:
    """Decide how many workers a run is to have.

    running: workers of the attempt under way, 0 = none · room: workers that the cluster could hold, those included ·
    least, most: ``workers.min`` and ``workers.num`` · settled: whether ``room`` has been the same for long enough to
    be believed. An attempt is never ended to shrink: when its node goes, it fails by itself.
    """
    fits = min(room, most)
    if running:
        return Scale("grow", fits) if settled and fits > running else Scale("keep", running)
    if fits == most or (settled and fits >= least):
        return Scale("start", fits)
    return Scale("wait", 0)


def stragglers(seconds: Sequence[float], factor: float) -> list[int]:
    """Return the ranks that take more than ``factor`` times the median rank's seconds (the lower of two medians, so
    that one of two ranks can be found)."""
    usual = statistics.median_low(seconds)
    return [rank for rank, own in enumerate(seconds) if own > factor * usual]


@dataclass(frozen=True)
class Failure:
    """How one attempt ended: the error, the last step it did, the last step it committed (-1 = none)."""

    error: str
    step: int
    committed: int
    deterministic: bool = False
    """Whether the same error is certain to come back (bad configuration, NaN loss)."""


@dataclass(frozen=True)
class Restart:
    """Whether to start another attempt, after how long, and why."""

    again: bool
    delay: float
    reason: str


def after_failure(failures: Sequence[Failure], max_failures: int) -> Restart:
    """Decide after the newest of ``failures``.

    A deterministic error, or the same error at the same step twice in a row, ends the run. Otherwise the run goes
    on until ``max_failures`` attempts in a row have failed without a new checkpoint: progress refills the budget.
    """
    newest = failures[-1]
    if newest.deterministic:
        return Restart(False, 0.0, "the error would come back")
    if len(failures) > 1 and (failures[-2].error, failures[-2].step) == (newest.error, newest.step):
        return Restart(False, 0.0, f"the same error at step {newest.step} twice")
    in_a_row = 1
    while in_a_row < len(failures) and failures[-in_a_row - 1].committed >= newest.committed:
        in_a_row += 1
    if in_a_row > max_failures:
        return Restart(False, 0.0, f"{in_a_row} failures without a new checkpoint")
    return Restart(True, min(LONGEST_BACKOFF_SECONDS, 2.0 ** (in_a_row - 1)), f"failure {in_a_row} of {max_failures}")
