"""A cluster that grows: a run that waits for room is what Ray's autoscaler sees, so that the room comes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.faults.jobs import BOOSTLU
from tests.jobs.ray_head import RayHead, ray_head
from trainer.run.registry import RunRegistry

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

#: Takes all that the first node has, and says so.
OCCUPY = """
import ray, sys, time
ray.init(sys.argv[1], log_to_driver=False)
@ray.remote(num_cpus=2)
def hold(): time.sleep(3600)
task = hold.remote()
while ray.cluster_resources().get("CPU", 0) != 2 or ray.available_resources().get("CPU", 0): time.sleep(0.1)
print("occupied", flush=True)
ray.get(task)
"""


@pytest.fixture
def head() -> Iterator[RayHead]:
    """Nodes of 2 CPUs: one is there, a second comes when something asks for it."""
    kind = {
        "resources": {"CPU": 2, "object_store_memory": 10**8},
        "node_config": {},
        "min_workers": 1,
        "max_workers": 2,
    }
    with ray_head(cpus=0, autoscaling={"small": kind}) as running:
        yield running


@pytest.fixture
def occupied(head: RayHead) -> Iterator[subprocess.Popen[str]]:
    """Another driver that holds the node that is there."""
    command = [sys.executable, "-c", OCCUPY, head.address]
    other = subprocess.Popen(command, env=head.environment, stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == "occupied\n"
        yield other
    finally:
        other.kill()
        other.communicate()


def test_a_waiting_run_brings_the_node_that_it_needs(
    head: RayHead, occupied: subprocess.Popen[str], tiny_values: dict[str, Any], tmp_path: Path
) -> None:
    config = tmp_path / "tiny.yaml"
    config.write_text(yaml.safe_dump({**tiny_values, "workers": {"num": 1, "cpus": 1}, "evaluate": {"cpus": 1}}))
    command = [*BOOSTLU, "train", config, "--runs", tmp_path, "--address", head.address]
    done = subprocess.run(
        list(map(str, command)), env=head.environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert occupied.poll() is None, "the first node came free"
    assert RunRegistry(str(tmp_path / "tiny")).result() is not None
