"""Policies as tables: what is kept, evaluated, best, tried again."""

from __future__ import annotations

import pytest

from trainer.run.checkpoint import Manifest
from trainer.run.policies import (
    Failure,
    Scale,
    after_failure,
    best_checkpoint,
    next_evaluation,
    scale,
    stragglers,
    superfluous,
)


def manifest(step: int, epoch_end: bool = True, attempt: int = 1) -> Manifest:
    return Manifest(step=step, epoch=step, attempt=attempt, epoch_end=epoch_end, files={})


ALL = [manifest(step) for step in (1, 2, 3, 4, 5)]
NAMES = [m.name for m in ALL]


def test_best_is_the_highest_score_and_the_earliest_of_equals() -> None:
    scores = dict(zip(NAMES, [0.1, 0.5, 0.5, 0.2], strict=False))
    best = best_checkpoint(ALL, scores)
    assert best is not None
    assert best.step == 2
    assert best_checkpoint(ALL, {}) is None


@pytest.mark.parametrize(
    ("done", "backlog", "step"),
    [
        ((), 5, 1),  # in order while evaluation keeps up
        ((), 4, 5),  # the newest when it does not
        ((1, 2), 4, 3),
        ((1, 2, 3, 4, 5), 4, None),
    ],
)
def test_what_is_evaluated_next(done: tuple[int, ...], backlog: int, step: int | None) -> None:
    chosen = next_evaluation(ALL, {NAMES[s - 1] for s in done}, backlog)
    assert (chosen.step if chosen else None) == step


def test_checkpoints_within_an_epoch_are_not_evaluated() -> None:
    assert next_evaluation([manifest(3, epoch_end=False)], set(), 4) is None


def test_newest_best_and_pinned_are_kept() -> None:
    scores = dict(zip(NAMES, [0.1, 0.9, 0.2, 0.3, 0.4], strict=True))
    doomed = superfluous(ALL, scores, pinned={NAMES[2]}, keep_last=1)
    assert [m.step for m in doomed] == [1, 4]
    assert superfluous(ALL, {}, set(), keep_last=5) == []
    assert [m.step for m in superfluous(ALL, {}, set(), keep_last=1, keep_every_epochs=2)] == [1, 3]


def test_newest_is_what_was_committed_last() -> None:
    """Attempt 2 found step 5 damaged and went on from step 3: its step 4 is the newest, and outlives step 5."""
    damaged, again = manifest(5, attempt=1), manifest(4, attempt=2)
    assert superfluous([manifest(3), damaged, again], {}, set(), keep_last=1) == [manifest(3), damaged]


def failure(error: str = "boom", step: int = 10, committed: int = 5, deterministic: bool = False) -> Failure:
    return Failure(error, step, committed, deterministic)


@pytest.mark.parametrize(
    ("failures", "again"),
    [
        ([failure()], True),
        ([failure(deterministic=True)], False),
        ([failure(step=10), failure(step=10)], False),  # the same error at the same step
        ([failure(step=10), failure(step=11), failure(step=12)], False),  # budget of two used up
        ([failure(step=10), failure(step=11), failure(step=22, committed=20)], True),  # progress refills it
        ([failure("a"), failure("b")], True),
    ],
)
def test_whether_a_failed_run_is_tried_again(failures: list[Failure], again: bool) -> None:
    assert after_failure(failures, max_failures=2).again is again


def test_waiting_doubles_and_is_bounded() -> None:
    failures = [failure(step=step) for step in range(20)]
    delays = [after_failure(failures[:n], max_failures=50).delay for n in range(1, 21)]
    assert delays[:3] == [1, 2, 4]
    assert max(delays) == delays[-1] == 60


@pytest.mark.parametrize(
    ("running", "room", "settled", "expected"),
    [
        # before an attempt
        (0, 4, False, Scale("start", 4)),
        (0, 9, False, Scale("start", 4)),  # never more than asked for
        (0, 3, False, Scale("wait", 0)),  # perhaps the rest is only not free yet
        (0, 3, True, Scale("start", 3)),
        (0, 2, True, Scale("start", 2)),
        (0, 1, True, Scale("wait", 0)),  # fewer than workers.min
        (0, 0, True, Scale("wait", 0)),
        # during one
        (2, 4, False, Scale("keep", 2)),
        (2, 4, True, Scale("grow", 4)),
        (2, 3, True, Scale("grow", 3)),
        (2, 2, True, Scale("keep", 2)),
        (3, 2, True, Scale("keep", 3)),  # its node has gone: it will fail by itself
        (4, 9, True, Scale("keep", 4)),
    ],
)
def test_how_many_workers_a_run_has(running: int, room: int, settled: bool, expected: Scale) -> None:
    assert scale(running, room, least=2, most=4, settled=settled) == expected


@pytest.mark.parametrize(("room", "action"), [(4, "start"), (3, "wait")])
def test_without_a_minimum_the_number_is_fixed(room: int, action: str) -> None:
    assert scale(0, room, least=4, most=4, settled=True).action == action


@pytest.mark.parametrize(
    ("seconds", "slow"),
    [([1, 1, 1, 3], [3]), ([1, 3], [1]), ([1, 1.9], []), ([2, 2], []), ([5], []), ([0, 0], [])],
)
def test_who_is_a_straggler(seconds: list[float], slow: list[int]) -> None:
    assert stragglers(seconds, factor=2) == slow
