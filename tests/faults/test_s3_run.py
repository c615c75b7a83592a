"""Dataset and run on an S3 server: the whole job ends as on a local disk, also when the server has a bad day."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sharding import storage
from tests.faults.flaky_s3 import FlakyS3, flaky_s3
from tests.faults.jobs import BOOSTLU, ENVIRONMENT, assert_same_end, undisturbed, wait_until
from trainer.run.registry import RunRegistry

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[FlakyS3]:
    with flaky_s3() as server:
        for key, value in server.environment.items():
            monkeypatch.setenv(key, value)
        yield server


def test_a_run_on_s3_is_the_run_on_disk(s3: FlakyS3, job_config: Path, tiny_dataset: Path, tmp_path: Path) -> None:
    expected = undisturbed(job_config, tmp_path / "local")
    with start(s3, "sound", job_config, tiny_dataset, tmp_path) as run:
        assert run.wait(timeout=500) == 0, log(tmp_path)
    registry = RunRegistry("s3://runs-sound/all/tiny")
    assert registry.state() == "finished"
    assert_same_end(registry, expected)
    assert any("tfevents" in name for name in storage.list_names(registry.path("tensorboard")))


def test_an_s3_that_is_slow_and_refuses_writes_for_a_while(
    s3: FlakyS3, job_config: Path, tiny_dataset: Path, tmp_path: Path
) -> None:
    """Every request takes its time for the whole run, and for 25 s, longer than any file is tried, nothing can be
    written. The run comes to its end by itself, and to the very result."""
    expected = undisturbed(job_config, tmp_path / "local")
    s3.latency, s3.write_latency = 0.02, 0.05
    registry = RunRegistry("s3://runs-bad/all/tiny")
    with start(s3, "bad", job_config, tiny_dataset, tmp_path) as run:
        wait_until(run, lambda: bool(registry.checkpoints()))
        s3.write_fault = lambda _key, _number: 503
        ends = time.monotonic() + 25
        wait_until(run, lambda: time.monotonic() > ends)
        s3.write_fault = None
        assert run.wait(timeout=500) == 0, log(tmp_path)
    assert sum(s3.writes.values()) > 0
    assert_same_end(registry, expected)


def start(s3: FlakyS3, name: str, config: Path, dataset: Path, tmp_path: Path) -> subprocess.Popen[bytes]:
    """Start the job with its dataset and its runs in buckets of its own; moto's servers share what they hold."""
    runs = s3.upload(tmp_path / "nothing", f"runs-{name}")
    settings = [f"dataset.path={s3.upload(dataset, f'data-{name}')}", f"loader.cache.folder={tmp_path / 'cache'}"]
    with open(tmp_path / "log", "wb") as file:
        return subprocess.Popen(
            [*BOOSTLU, "train", str(config), *settings, "--runs", f"{runs}/all"],
            env={**os.environ, **ENVIRONMENT, **s3.environment},
            stdout=file,
            stderr=subprocess.STDOUT,
        )


def log(tmp_path: Path) -> str:
    return (tmp_path / "log").read_text(errors="replace")
