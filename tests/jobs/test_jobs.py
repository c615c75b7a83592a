"""Runs as jobs of a real Ray head: submitted from outside, followed, stopped at a checkpoint, submitted again."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from sharding import storage
from tests.faults.jobs import BOOSTLU, assert_same_end, steps_done, undisturbed
from tests.jobs.ray_head import RayHead, ray_head
from trainer.run.events import read_events
from trainer.run.registry import RunRegistry

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[2]
STEPS = 120


@pytest.fixture(scope="module")
def head() -> Iterator[RayHead]:
    with ray_head() as running:
        yield running


@pytest.fixture
def config(tiny_values: dict[str, Any], tmp_path: Path) -> Path:
    """120 steps with corrections, long enough to be stopped in between; a checkpoint every 20, at an epoch's end."""
    values = {**tiny_values, "epochs": 6, "loss": {"name": "ll-cp", "delta": 2}}
    values["plan"] = {**values["plan"], "global_batch": 4}
    values["dataset"] = {**values["dataset"], "image_size": 160}
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def boostlu(head: RayHead, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [*BOOSTLU, *map(str, arguments)]
    return subprocess.run(
        command, env=head.environment | environment, capture_output=True, text=True, timeout=300, check=False
    )


def at(head: RayHead) -> tuple[str, str]:
    return "--address", head.url


def wait_for(ready: Callable[[], bool], what: str, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.05)


def test_a_job_runs_to_its_end_is_listed_and_evaluated(head: RayHead, config: Path, tmp_path: Path) -> None:
    """Submitted with --follow, from another folder; then again: finished stays finished. A task evaluates it."""
    runs = tmp_path / "runs"
    submit = ("submit", config, "epochs=2", "--runs", runs, *at(head))
    first = boostlu(head, *submit, "--follow")
    assert first.returncode == 0, first.stdout + first.stderr
    registry = RunRegistry(str(runs / "tiny"))
    assert registry.state() == "finished"
    assert "job boostlu-tiny is succeeded" in first.stdout
    assert f"everything is in {registry.url}" in first.stdout
    assert not list(runs.glob("tiny/probe-*"))
    again = boostlu(head, *submit, "--follow")
    assert "run tiny is finished already" in again.stdout
    assert "job boostlu-tiny-r2 is succeeded" in again.stdout
    assert list(registry.attempts()) == [1]
    listed = boostlu(head, "jobs", "list", *at(head)).stdout
    assert listed.count("succeeded") == 2
    evaluated = boostlu(
        head,
        "evaluate",
        "tiny",
        "--runs",
        runs,
        "--ray",
        head.address,
        "--split",
        "test",
        "--output",
        tmp_path / "there.json",
    )
    assert evaluated.returncode == 0, evaluated.stderr
    there = storage.read_json(str(tmp_path / "there.json"))
    assert there["ap"] == registry.result()["test"]["ap"]  # type: ignore[index]


def test_stop_and_submit_again_end_as_undisturbed(head: RayHead, config: Path, tmp_path: Path) -> None:
    expected = undisturbed(config, tmp_path / "undisturbed")
    registry = RunRegistry(str(tmp_path / "runs" / "tiny"))
    submit = ("submit", config, "--runs", tmp_path / "runs", *at(head))
    assert boostlu(head, *submit).returncode == 0
    wait_for(lambda: steps_done(registry) >= 5, "step 5")
    taken = boostlu(head, *submit)
    assert taken.returncode == 2
    assert "run 'tiny' has a job on this cluster already" in taken.stderr
    stopped = boostlu(head, "jobs", "stop", "tiny", *at(head))
    assert stopped.returncode == 0, stopped.stderr
    assert "is stopped" in stopped.stdout
    assert registry.state() == "interrupted"
    step = registry.checkpoints()[-1].step
    assert step == steps_done(registry) < STEPS, "the checkpoint is of the step at which it stopped"
    assert boostlu(head, "jobs", "stop", "tiny", *at(head)).returncode == 2
    resumed = boostlu(head, *submit, "--follow")
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    assert [e["step"] for e in read_events(registry.url) if e["event"] == "resumed"] == [step]
    assert_same_end(registry, expected, steps=STEPS)


def test_a_failing_job_says_why(head: RayHead, config: Path, tmp_path: Path) -> None:
    """The dataset is where this machine sees it and the run where no node may write."""
    submit = ("submit", config, "dataset.path=/nowhere", "--runs", tmp_path / "runs", *at(head), "--follow")
    done = boostlu(head, *submit)
    assert done.returncode == 1
    assert "error: no dataset at /nowhere" in done.stdout or "/nowhere" in done.stdout
    assert "is failed" in done.stdout


def test_code_that_travels(head: RayHead, config: Path, tmp_path: Path) -> None:
    """--working-dir: driver and workers run the code that was sent, not the installed one."""
    import shutil

    source = tmp_path / "source"
    for package in ("sharding", "trainer", "cluster"):
        shutil.copytree(ROOT / package, source / package, ignore=shutil.ignore_patterns("__pycache__"))
    with open(source / "trainer" / "training.py", "a") as module:
        module.write('\nprint("the code that was sent")\n')
    submit = (
        "submit",
        config,
        "epochs=1",
        "--runs",
        tmp_path / "runs",
        "--working-dir",
        source,
        *at(head),
        "--follow",
    )
    done = boostlu(head, *submit)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "the cluster runs other code of that release" in done.stdout
    assert RunRegistry(str(tmp_path / "runs" / "tiny")).state() == "finished"


def test_wrong_and_missing_tokens(head: RayHead, config: Path, tmp_path: Path) -> None:
    for command in (
        ("jobs", "list", *at(head)),
        ("train", config, "--runs", tmp_path / "runs", "--address", head.address),
    ):
        wrong = boostlu(head, *command, RAY_AUTH_TOKEN="wrong")
        assert wrong.returncode == 2, wrong.stdout
        assert "token" in wrong.stderr
        missing = boostlu(head, *command, RAY_AUTH_TOKEN_PATH="", HOME=str(tmp_path))
        assert missing.returncode == 2, missing.stdout
        assert "token" in missing.stderr


def test_shards_built_on_the_cluster(head: RayHead, tmp_path: Path) -> None:
    """The same command with and without --ray: the same bytes."""
    command = (
        "shards",
        "build",
        "digits",
        "--set",
        "train=40",
        "--set",
        "val=8",
        "--set",
        "test=8",
        "--samples-per-shard",
        "16",
    )
    for name, where in (("here", ()), ("there", ("--ray", head.address))):
        built = boostlu(head, *command, "--output", tmp_path / name, *where)
        assert built.returncode == 0, built.stderr
    files = sorted(p.relative_to(tmp_path / "here") for p in (tmp_path / "here").rglob("*") if p.is_file())
    assert files == sorted(p.relative_to(tmp_path / "there") for p in (tmp_path / "there").rglob("*") if p.is_file())
    assert all((tmp_path / "here" / f).read_bytes() == (tmp_path / "there" / f).read_bytes() for f in files)
