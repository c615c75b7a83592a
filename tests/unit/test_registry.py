"""The run directory: names, attempts, fencing, leases."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import Any

import pytest

from sharding import storage
from sharding.errors import UserError
from sharding.schema import DatasetInfo, SplitInfo
from trainer.config import make_config
from trainer.run.checkpoint import Manifest
from trainer.run.registry import LEASE_SECONDS, RunRegistry, StaleAttempt, _started, lease_is_alive, list_runs

DATASET = DatasetInfo(name="d", classes=[], splits={"train": SplitInfo(samples=33, shards=[], index_sha256="0")})
CONFIG = make_config({"name": "one", "dataset": {"path": "/d"}})


@pytest.fixture(params=["local", "memory"])
def runs(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "runs") if request.param == "local" else f"memory://{uuid.uuid4().hex}/runs"


def manifest(step: int, attempt: int) -> Manifest:
    return Manifest(step=step, epoch=1, attempt=attempt, epoch_end=True, files={})


def test_a_name_that_is_taken_is_never_overwritten(runs: str) -> None:
    first = RunRegistry.create(runs, CONFIG, DATASET)
    before = storage.read_bytes(first.path("run.json"))
    with pytest.raises(UserError, match="boostlu resume"):
        RunRegistry.create(runs, CONFIG, DATASET)
    assert storage.read_bytes(first.path("run.json")) == before
    assert first.config() == CONFIG
    assert first.description()["steps_per_epoch"] == 3  # 33 samples in batches of 16
    assert [registry.name for registry in list_runs(runs)] == ["one"]


def test_a_wrong_name_names_the_nearest_run(runs: str) -> None:
    RunRegistry.create(runs, CONFIG, DATASET)
    with pytest.raises(UserError, match="'one'"):
        RunRegistry.open(storage.join(runs, "onee"))


def test_an_unwritable_place_is_said_with_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(UserError, match="--runs"):
        RunRegistry.create(str(tmp_path / "file" / "runs"), CONFIG, DATASET)


def test_a_stale_attempt_cannot_commit(runs: str) -> None:
    registry = RunRegistry.create(runs, CONFIG, DATASET)
    old = registry.begin_attempt(2)
    registry.commit(old, manifest(1, old))
    new = registry.begin_attempt(2, take_over=True)
    assert new == old + 1
    with pytest.raises(StaleAttempt, match=f"attempt {new} took over"):
        registry.commit(old, manifest(2, old))
    registry.commit(new, manifest(2, new))
    assert [(m.step, m.attempt) for m in registry.checkpoints()] == [(1, old), (2, new)]


def test_a_living_driver_keeps_others_away(runs: str) -> None:
    """The lease of a process that runs on this host is honoured; once it is dead, it no longer counts."""
    registry = RunRegistry.create(runs, CONFIG, DATASET)
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        lease = {"attempt": 1, "renewed": 0.0, "host": os.uname().nodename, "pid": other.pid}
        storage.write_json(registry.path("lease.json"), {**lease, "ticks": _started(other.pid)})
        assert registry.state() == "running"
        with pytest.raises(UserError, match=f"process {other.pid}"):
            registry.begin_attempt(2)
        assert other.stdin is not None
        other.stdin.close()
        other.wait(timeout=60)
    assert registry.begin_attempt(2) == 1


def test_a_lease_from_elsewhere_expires() -> None:
    lease: dict[str, Any] = {"host": "another-host", "pid": 1, "ticks": 0}
    assert lease_is_alive({**lease, "renewed": time.time()})
    assert not lease_is_alive({**lease, "renewed": time.time() - LEASE_SECONDS - 1})


@pytest.mark.parametrize("jump", [-86_400.0, 86_400.0])
def test_a_jump_of_the_clock_frees_no_living_driver_s_lease(
    runs: str, jump: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the driver's own host processes are told apart by ticks since boot, not by the wall clock."""
    registry = RunRegistry.create(runs, CONFIG, DATASET)
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        lease = {"attempt": 1, "renewed": time.time(), "host": os.uname().nodename, "pid": other.pid}
        storage.write_json(registry.path("lease.json"), {**lease, "ticks": _started(other.pid)})
        now = time.time
        monkeypatch.setattr("trainer.run.registry.time.time", lambda: now() + jump)
        with pytest.raises(UserError, match=f"process {other.pid}"):
            registry.begin_attempt(2)
        other.communicate(b"\n")
    assert registry.begin_attempt(2) == 1


@pytest.mark.parametrize("jump", [-86_400.0, 86_400.0])
def test_after_a_jump_of_another_host_s_clock_one_writer_is_left(
    runs: str, jump: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A lease a day old or a day ahead keeps nobody away for ever, and who it let in is fenced off or fences off."""
    registry = RunRegistry.create(runs, CONFIG, DATASET)
    old = registry.begin_attempt(2)
    registry.commit(old, manifest(1, old))
    lease = registry.lease()
    assert lease is not None
    storage.write_json(registry.path("lease.json"), {**lease, "host": "another-host"})
    now = time.time
    monkeypatch.setattr("trainer.run.registry.time.time", lambda: now() + jump)
    new = registry.begin_attempt(2)
    with pytest.raises(StaleAttempt):
        registry.commit(old, manifest(2, old))
    registry.commit(new, manifest(2, new))
    assert [m.name for m in registry.checkpoints()] == [manifest(1, old).name, manifest(2, new).name]
    registry.end_attempt(new, "interrupted")
    assert registry.begin_attempt(2) == new + 1


@pytest.mark.parametrize(
    "file", ["lease.json", "attempts/0001.json", "attempts/0001.end.json", "evaluations/x.val.json", "result.json"]
)
def test_a_torn_file_costs_no_run(runs: str, file: str) -> None:
    """It counts as absent, except that an attempt's number stays taken."""
    registry = RunRegistry.create(runs, CONFIG, DATASET)
    number = registry.begin_attempt(2)
    registry.commit(number, manifest(1, number))
    registry.record_evaluation("x", "val", {"map": 0.5})
    registry.write_result({"best": None})
    registry.end_attempt(number, "finished")
    registry.renew_lease(number)
    storage.write_atomic(registry.path(file), storage.read_bytes(registry.path(file))[:-20])
    assert registry.result() is None or file != "result.json"
    assert registry.evaluations("val").keys() == ({"x"} if "evaluations" not in file else set())
    assert registry.begin_attempt(2) == number + 1
    assert len(registry.checkpoints()) == 1


def test_a_storage_that_fails_for_a_while_loses_no_record(runs: str, monkeypatch: pytest.MonkeyPatch) -> None:
    registry = RunRegistry.create(runs, CONFIG, DATASET)
    number = registry.begin_attempt(2)
    plain, failures = storage.write_atomic, iter([True] * 5)
    waits: list[float] = []

    def flaky(target: str, content: bytes) -> None:
        if next(failures, False):
            raise OSError("503 Slow Down")
        plain(target, content)

    monkeypatch.setattr(storage, "write_atomic", flaky)
    monkeypatch.setattr("trainer.run.checkpoint.time.sleep", waits.append)
    registry.end_attempt(number, "failed", "boom")
    assert registry.attempts()[number]["reason"] == "boom"
    assert waits == [0.5, 1, 2, 4, 8]


def test_how_an_attempt_ended_is_kept(runs: str) -> None:
    registry = RunRegistry.create(runs, CONFIG, DATASET)
    number = registry.begin_attempt(2)
    registry.end_attempt(number, "failed", "boom")
    assert registry.attempts()[number]["reason"] == "boom"
    assert registry.state() == "failed"
    assert registry.lease() is None
    registry.write_result({"best": None})
    assert registry.state() == "finished"
