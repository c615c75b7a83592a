"""Disks that fill up, storage that fails or is slow, shards that go bad: in one training process, without Ray."""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sharding import storage
from sharding.errors import UserError
from sharding.index import read_split
from tests.attempts import ALONE, start
from trainer.config import RunConfig, make_config
from trainer.run import checkpoint
from trainer.run.comparison import differences
from trainer.run.coordination import RunCoordinator
from trainer.run.events import read_events
from trainer.run.registry import RunRegistry
from trainer.training import train
from trainer.watch.telemetry import Telemetry


def attempt(registry: RunRegistry, at_step: Callable[[int], bool | None] = lambda _: False) -> bool:
    """Train until the end; ``at_step`` is called before every step and may say that it is time to stop."""
    number = registry.begin_attempt(1)
    coordinator = RunCoordinator(registry, registry.config(), number)

    def report(telemetry: Telemetry) -> bool:
        return bool(at_step(telemetry.step))

    try:
        return train(registry, registry.config(), ALONE, number, coordinator.commit, report)
    finally:
        coordinator.close()


@pytest.fixture
def config(tiny_values: dict[str, Any]) -> RunConfig:
    return make_config({**tiny_values, "epochs": 3, "checkpoint": {"every_steps": 2}, "loss": {"name": "ll-cp"}})


@pytest.fixture
def undisturbed(config: RunConfig, tmp_path: Path) -> RunRegistry:
    registry = start(config, tmp_path / "undisturbed")
    assert attempt(registry)
    return registry


# ── disks ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MiB."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to mount a tmpfs")
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip(f"cannot mount a tmpfs here: {mounted.stderr.decode().strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_that_fills_up_while_saving(config: RunConfig, undisturbed: RunRegistry, small_disk: Path) -> None:
    """The run stops and says so, what was committed stays sound, and with room again it ends as ever."""
    registry, ballast = start(config, small_disk), small_disk / "ballast"

    def fill(step: int) -> None:
        if step == 5:  # leaves room for events, not for a checkpoint
            while registry.checkpoints()[-1].step < 5:  # the end of the first epoch, written in the background
                time.sleep(0.01)
            usage = shutil.disk_usage(small_disk)
            ballast.write_bytes(bytes(usage.free - 16 * 1024))

    with pytest.raises(UserError, match=r"no space left for .*checkpoints.*free some space and resume"):
        attempt(registry, fill)
    assert registry.checkpoints()[-1].step == 5
    assert all(checkpoint.problems(registry.url, m) == [] for m in registry.checkpoints())
    ballast.unlink()
    assert attempt(registry)
    assert registry.orphans() == []
    assert differences(registry, undisturbed) == []


# ── object storage ───────────────────────────────────────────────────────────────────────────────────────────────


class Storage:
    """Stands before :func:`storage.write_atomic`: ``before(url)`` is called first, and the write refused if
    ``fails(number of the write, url)``."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.fails: Callable[[int, str], bool] = lambda _number, _url: False
        self.before: Callable[[str], None] = lambda _url: None
        self.writes = 0
        self._plain = storage.write_atomic
        monkeypatch.setattr(storage, "write_atomic", self._write)

    def _write(self, url: str, content: bytes) -> None:
        self.writes += 1
        self.before(url)
        if self.fails(self.writes, url):
            raise OSError("503 Slow Down")
        self._plain(url, content)


@pytest.fixture
def flaky(monkeypatch: pytest.MonkeyPatch) -> Storage:
    monkeypatch.setattr(checkpoint, "WRITE_WAITS", (0.01, 0.02))
    monkeypatch.setattr(checkpoint.write_with_retries, "__defaults__", ((0.01, 0.02),))
    return Storage(monkeypatch)


def test_a_storage_that_fails_now_and_then(
    config: RunConfig, undisturbed: RunRegistry, tmp_path: Path, flaky: Storage
) -> None:
    """Every third write of a checkpoint fails; a write is tried three times."""
    registry = start(config, tmp_path / "runs")
    flaky.fails = lambda number, url: "checkpoints" in url and number % 3 == 0
    assert attempt(registry)
    assert differences(registry, undisturbed) == []


def test_a_storage_that_fails_for_ever(
    config: RunConfig, undisturbed: RunRegistry, tmp_path: Path, flaky: Storage
) -> None:
    """The attempt fails at the save after; what was committed before is what the next one starts from."""
    registry = start(config, tmp_path / "runs")
    flaky.fails = lambda _number, url: (
        "checkpoints" in url and "/000000" in url and int(url.split("/000000")[1][:2]) > 6
    )
    with pytest.raises(OSError, match="503"):
        attempt(registry)
    assert registry.checkpoints()[-1].step == 6
    flaky.fails = lambda _number, _url: False
    assert attempt(registry)
    assert differences(registry, undisturbed) == []


def test_a_wait_for_a_slow_save_is_no_hang(
    config: RunConfig, undisturbed: RunRegistry, tmp_path: Path, flaky: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the step loop waits for a save, it winds up the watchdog again and again: a write of the saves of step 5
    or 6 goes on only after that has happened five times more."""
    wound_up: list[float] = []
    monkeypatch.setattr(
        "trainer.watch.hang.faulthandler.dump_traceback_later", lambda patience, **_: wound_up.append(patience)
    )
    registry = start(config, tmp_path / "runs")
    seen: list[int] = []

    def wait(url: str) -> None:
        if "checkpoints/00000005" in url or "checkpoints/00000006" in url:
            before, deadline = len(wound_up), time.monotonic() + 30
            while len(wound_up) < before + 5 and time.monotonic() < deadline:
                time.sleep(0.01)
            seen.append(len(wound_up) - before)

    flaky.before = wait
    assert attempt(registry)
    assert len(seen) >= 10
    assert min(seen) >= 5
    assert differences(registry, undisturbed) == []


def test_a_save_that_never_ends_fails_the_attempt(
    config: RunConfig, undisturbed: RunRegistry, tmp_path: Path, flaky: Storage
) -> None:
    short = config.model_copy(
        update={"checkpoint": config.checkpoint.model_copy(update={"timeout_minutes": 0.5 / 60})}
    )
    registry = start(short, tmp_path / "runs")

    def stuck(url: str) -> None:
        if "checkpoints/00000006" in url:
            assert released.wait(60)

    released, flaky.before = threading.Event(), stuck
    with pytest.raises(TimeoutError, match="was not written within"):
        attempt(registry)
    released.set()
    flaky.before = lambda _url: None
    assert registry.checkpoints()[-1].step >= 4
    assert attempt(registry)
    assert differences(registry, undisturbed) == []


# ── shards ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_shard_that_goes_bad_during_a_run(
    config: RunConfig, undisturbed: RunRegistry, tiny_dataset: Path, tmp_path: Path
) -> None:
    """Cut short while it is in use: the run stops and names it. Restored, the run ends as the undisturbed one."""
    root = Path(shutil.copytree(tiny_dataset, tmp_path / "dataset"))
    moved = make_config(config.model_dump(), [f"dataset.path={root}"])
    registry = start(moved, tmp_path / "runs")
    shards = sorted((root / "train").glob("*.tar"))
    sound = {shard: shard.read_bytes() for shard in shards}

    def cut(step: int) -> None:
        if step == 7:
            for shard in shards:
                os.truncate(shard, 2048)

    with pytest.raises(UserError, match=r"train/\d+\.tar.*boostlu shards verify"):
        attempt(registry, cut)
    assert registry.checkpoints()[-1].step >= 6
    for shard, content in sound.items():
        shard.write_bytes(content)
    assert attempt(registry)
    assert differences(registry, undisturbed) == []


def test_images_that_go_bad_during_a_run_are_named(config: RunConfig, tiny_dataset: Path, tmp_path: Path) -> None:
    """One image overwritten while the run is under way is left out from then on, counted and named."""
    root = Path(shutil.copytree(tiny_dataset, tmp_path / "dataset"))
    values = config.model_dump()
    moved = make_config(values, [f"dataset.path={root}", "loader.max_corrupt_share=0.05"])
    registry = start(moved, tmp_path / "runs")
    index = read_split(str(root), "train")

    def overwrite(step: int) -> None:
        if step == 6:
            with open(index.shard_url(int(index.shard[7])), "r+b") as tar:
                tar.seek(int(index.offset[7]))
                tar.write(bytes(int(index.size[7])))

    assert attempt(registry, overwrite)
    named = [e["sample_id"] for e in read_events(registry.url) if e["event"] == "corrupt_sample"]
    assert named == [index.sample_id(7)]
