"""The cluster's head is lost and the driver, on a node that is still there, survives it: the user gets one line that
says so and what to do, and the same command goes on with the run once there is a head again."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from cluster.bench.victims import kill, named
from tests.faults.jobs import assert_same_end, boostlu, start_training, steps_done, undisturbed, wait_until
from tests.faults.nodes import RAY, processes, several_nodes
from trainer.run.registry import RunRegistry

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def test_the_head_is_lost(job_config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its control service is killed, which is what a driver elsewhere sees of a head, and a worker falls silent."""
    expected = undisturbed(job_config, tmp_path / "undisturbed")
    registry = RunRegistry(str(tmp_path / "runs" / "tiny"))
    with several_nodes(monkeypatch, head_cpus=3) as cluster:
        address = cluster.address
        with start_training(job_config, tmp_path / "runs", "--resume", "--address", address, **RAY) as run:
            wait_until(run, lambda: len(workers(cluster)) == 2)
            silent = workers(cluster)[0]
            wait_until(run, lambda: steps_done(registry) >= 5)
            silent.suspend()
            try:
                cluster.head_node.kill_gcs_server(check_alive=False)
                assert run.wait(timeout=150) == 2, log(tmp_path)
            finally:
                kill([silent])
    last = log(tmp_path).strip().splitlines()[-1]
    assert last.startswith(f"error: the cluster's head at {address} has not answered for 3")
    assert "`boostlu resume` goes on from the newest checkpoint" in last
    assert "Traceback" not in log(tmp_path)
    assert [a["outcome"] for a in registry.attempts().values()] == ["failed"]

    with several_nodes(monkeypatch, head_cpus=3) as cluster:
        again = ("train", str(job_config), "--resume", "--runs", str(tmp_path / "runs"), "--address", cluster.address)
        resumed = boostlu(*again, **RAY)
        assert resumed.returncode == 0, resumed.stderr
    assert [a["outcome"] for a in registry.attempts().values()] == ["failed", "finished"]
    assert_same_end(registry, expected)


def workers(cluster: object) -> list[psutil.Process]:
    return named(processes(cluster.head_node), "ray::RayTrainWorker")  # type: ignore[attr-defined]


def log(tmp_path: Path) -> str:
    return (tmp_path / "runs.log").read_text(errors="replace")
