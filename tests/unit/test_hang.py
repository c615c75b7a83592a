"""The watch over a process that stops making progress."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from trainer.watch.hang import HangWatch

STUCK = """
import sys, time
from trainer.watch.hang import HangWatch

def waits_for_ever():
    time.sleep(300)

with HangWatch(sys.argv[1], attempt=2, rank=1, seconds=0.3, factor=2) as watch:
    for _ in range(5):
        watch.beat()
    waits_for_ever()
"""


def test_a_stuck_process_ends_and_leaves_its_stacks(tmp_path: Path) -> None:
    ended = subprocess.run([sys.executable, "-c", STUCK, str(tmp_path)], capture_output=True, text=True, timeout=120)
    assert ended.returncode == 1
    assert "waits_for_ever" in (tmp_path / "stacks" / "0002-0001.txt").read_text()


def test_patience_follows_the_median_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr("trainer.watch.hang.time.monotonic", lambda: clock[0])
    with HangWatch(str(tmp_path), 1, 0, seconds=60, factor=20) as watch:
        watch.beat()
        assert watch.patience() == 600  # nothing is known yet
        for duration in (1, 1, 90, 1):  # one slow step, as a checkpoint can cause, does not count
            clock[0] += duration
            watch.beat()
        assert watch.patience() == 60
        for _ in range(60):
            clock[0] += 5
            watch.beat()
        assert watch.patience() == 100


def test_a_process_that_progresses_leaves_nothing(tmp_path: Path) -> None:
    with HangWatch(str(tmp_path), 1, 0, seconds=60, factor=20) as watch:
        watch.beat()
    assert list((tmp_path / "stacks").iterdir()) == []
