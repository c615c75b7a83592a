"""The evaluator has a node of its own, and that node is lost or cut off in the middle of an evaluation: training does
not notice, and the evaluation is done elsewhere, or the run says what it waits for and why there is no result."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from tests.faults.jobs import assert_same_end, boostlu, start_training, undisturbed, wait_until
from tests.faults.nodes import RAY, evaluators, processes, several_nodes
from tests.faults.test_evaluator import change, failures, shard
from trainer.run.comparison import differences
from trainer.run.events import read_events
from trainer.run.registry import RunRegistry

__all__ = ["shard"]  # the fixture

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

STEPS = 10


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A head with room for two workers; the evaluator's nodes are added by the tests."""
    with several_nodes(monkeypatch, head_cpus=2) as nodes:
        yield nodes


@pytest.fixture
def config(job_config: Path, shard: Path) -> Path:
    """Two epochs, so two evaluations on validation and one on test."""
    values = yaml.safe_load(job_config.read_text())
    job_config.write_text(yaml.safe_dump({**values, "epochs": 2}))
    return job_config


def add_evaluation_node(cluster: Any) -> Any:
    return cluster.add_node(num_cpus=1, node_ip_address="127.0.0.1", labels={"role": "evaluation"})


@contextmanager
def held_in_its_first_evaluation(config: Path, tmp_path: Path, cluster: Any, node: Any, shard: Path) -> Iterator[Any]:
    """Start the run on ``cluster``; once ``node`` evaluates, and waits there for ever for a shard (it is a named pipe
    until then), the shard is whole for whoever opens it next."""
    change(config, evaluate={"label_selector": {"role": "evaluation"}}, checkpoint={"keep_last": 4})
    sound = shard.rename(shard.with_suffix(".sound"))
    os.mkfifo(shard)
    with start_training(config, tmp_path / "runs", "--address", cluster.address, **RAY) as run:
        try:
            wait_until(run, lambda: bool(evaluators(node)))
            opened = evaluators(node)[0]
            wait_until(run, lambda: waits_in_open(opened))
            shard.unlink()
            sound.rename(shard)
            yield run
        finally:
            if run.poll() is None:
                run.send_signal(signal.SIGTERM)
                run.wait(timeout=120)


def waits_in_open(process: psutil.Process) -> bool:
    """Whether a thread of the process sleeps in the opening of a named pipe."""
    threads = Path(f"/proc/{process.pid}/task")
    return any("wait_for_partner" in (thread / "wchan").read_text() for thread in threads.iterdir())


def test_its_node_is_lost_and_another_comes(config: Path, tmp_path: Path, cluster: Any, shard: Path) -> None:
    expected = undisturbed(config, tmp_path / "undisturbed")
    registry = RunRegistry(str(tmp_path / "runs" / "tiny"))
    node = add_evaluation_node(cluster)
    with held_in_its_first_evaluation(config, tmp_path, cluster, node, shard) as run:
        victims = processes(node)
        cluster.remove_node(node, allow_graceful=False)
        psutil.wait_procs(victims, timeout=60)
        wait_until(run, lambda: bool(failures(registry)))
        wait_until(run, lambda: "evaluate.label_selector={role=evaluation}" in log(tmp_path))
        add_evaluation_node(cluster)
        assert run.wait(timeout=400) == 0, log(tmp_path)
    assert len(failures(registry)) == 1
    assert list(registry.attempts()) == [1]
    assert_same_end(registry, expected, steps=STEPS)


def test_its_node_is_lost_and_none_comes(config: Path, tmp_path: Path, cluster: Any, shard: Path) -> None:
    """Both evaluations are recorded as failed once they have waited long enough, and the run ends with that reason;
    with a node again `boostlu resume` does them, without a step of training."""
    expected = undisturbed(config, tmp_path / "undisturbed")
    registry = RunRegistry(str(tmp_path / "runs" / "tiny"))
    node = add_evaluation_node(cluster)
    change(config, evaluate={"timeout_minutes": 0.5})
    with held_in_its_first_evaluation(config, tmp_path, cluster, node, shard) as run:
        cluster.remove_node(node, allow_graceful=False)
        assert run.wait(timeout=400) == 2
    reason = "error: no checkpoint could be evaluated: no node had room for it in 0.5 minutes"
    assert log(tmp_path).strip().splitlines()[-1].startswith(reason)
    assert differences(registry, expected, evaluations=False) == []
    assert registry.result() is None
    assert len([r for r in registry.evaluations("val").values() if "error" in r]) == 2
    add_evaluation_node(cluster)
    resumed = boostlu("resume", "tiny", "--runs", str(tmp_path / "runs"), "--address", cluster.address, **RAY)
    assert resumed.returncode == 0, resumed.stderr
    assert not [e for e in read_events(registry.url) if e["event"] == "step" and e["attempt"] > 1]
    assert_same_end(registry, expected, steps=STEPS)


def test_its_node_is_cut_off(config: Path, tmp_path: Path, cluster: Any, shard: Path) -> None:
    """Stopped by a signal, the node's daemon and evaluator answer nobody, and no connection is closed. Ray takes it
    for dead after a while and the evaluation moves to the other node; when the first wakes up nothing changes."""
    expected = undisturbed(config, tmp_path / "undisturbed")
    registry = RunRegistry(str(tmp_path / "runs" / "tiny"))
    node = add_evaluation_node(cluster)
    with held_in_its_first_evaluation(config, tmp_path, cluster, node, shard) as run:
        silenced = processes(node)
        for process in silenced:
            process.suspend()
        try:
            add_evaluation_node(cluster)
            wait_until(run, lambda: bool(registry.evaluations("val")))
        finally:
            for process in silenced:
                process.resume()
        assert run.wait(timeout=400) == 0, log(tmp_path)
    assert len(failures(registry)) == 1
    assert list(registry.attempts()) == [1]
    assert_same_end(registry, expected, steps=STEPS)


def log(tmp_path: Path) -> str:
    return (tmp_path / "runs.log").read_text(errors="replace")
