"""Nodes go and come: the run goes on with the workers that there is room for, on the very same global batches."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.faults.jobs import ENVIRONMENT, TORCHRUN, start_training, steps_done, wait_until
from tests.faults.nodes import RAY, several_nodes
from trainer.run.events import read_events, step_history
from trainer.run.registry import RunRegistry

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A head with room for one worker."""
    with several_nodes(monkeypatch, head_cpus=1) as nodes:
        yield nodes


@pytest.fixture
def elastic_config(job_config: Path, tmp_path: Path) -> Path:
    """1 or 2 workers, more steps than the test waits for, batch norm that does not see how a batch is shared out."""
    from sharding.build import build_dataset
    from sharding.overlays import write_single_positive

    root = str(tmp_path / "digits")
    build_dataset("digits", root, {"train": 1600, "val": 24, "test": 24, "side": 64}, samples_per_shard=100)
    write_single_positive(root)
    values = yaml.safe_load(job_config.read_text())
    values["dataset"]["path"] = root
    values["epochs"] = 100
    values["workers"] |= {"num": 2, "min": 1}
    values["model"]["batch_norm"] = "frozen"
    values["evaluate"] |= {"cpus": 0}
    values["checkpoint"] = {"every_steps": 20}
    values["loss"]["delta"] = 0.01
    job_config.write_text(yaml.safe_dump(values))
    return job_config


def attempts(registry: RunRegistry) -> list[tuple[int, str]]:
    return [(a["workers"], a.get("outcome", "running")) for a in registry.attempts().values()]


def history(registry: RunRegistry, key: str) -> list[Any]:
    return [e[key] for e in step_history(read_events(registry.url))]


def steps_of(registry: RunRegistry, attempt: int) -> int:
    return sum(e["event"] == "step" and e["attempt"] == attempt for e in read_events(registry.url))


def undisturbed_until(step: int, config: Path, runs: Path) -> RunRegistry:
    """Two ranks all along, without Ray, killed once they have come so far."""
    registry = RunRegistry(str(runs / "tiny"))
    command = [*TORCHRUN, str(config), "--runs", str(runs)]
    with subprocess.Popen(command, env=ENVIRONMENT, start_new_session=True) as run:
        wait_until(run, lambda: steps_done(registry) >= step)
        os.killpg(run.pid, signal.SIGKILL)
    return registry


def test_a_node_goes_and_another_comes(elastic_config: Path, tmp_path: Path, cluster: Any) -> None:
    """Two workers, then one, then two again, and in every step the samples and, but for rounding, the loss of a run
    that had two all along."""
    node = cluster.add_node(num_cpus=1, node_ip_address="127.0.0.1")
    registry = RunRegistry(str(tmp_path / "runs" / "tiny"))
    with start_training(elastic_config, tmp_path / "runs", "--address", cluster.address, **RAY) as run:
        try:
            wait_until(run, lambda: steps_done(registry) >= 30)
            cluster.remove_node(node, allow_graceful=False)
            wait_until(run, lambda: steps_of(registry, 2) >= 5)
            assert attempts(registry) == [(2, "failed"), (1, "running")]
            cluster.add_node(num_cpus=1, node_ip_address="127.0.0.1")
            wait_until(run, lambda: steps_of(registry, 3) >= 5)
            assert attempts(registry) == [(2, "failed"), (1, "resized"), (2, "running")]
        finally:
            run.send_signal(signal.SIGTERM)
            assert run.wait(timeout=120) == 130, (tmp_path / "runs.log").read_text()
    resumed = [e["step"] for e in read_events(registry.url) if e["event"] == "resumed"]
    assert resumed[1] == resumed[0] + steps_of(registry, 2)  # growing repeats no step
    done = steps_done(registry)
    assert history(registry, "step") == list(range(done))
    expected = undisturbed_until(done, elastic_config, tmp_path / "undisturbed")
    for key in ("epoch", "samples", "lr"):
        assert history(registry, key) == history(expected, key)[:done], key
    assert history(registry, "loss") == pytest.approx(history(expected, "loss")[:done], rel=0.02)


def test_the_evaluator_goes_where_its_labels_say(cluster: Any) -> None:
    """A task with the options of an evaluation runs on the node that has the label, though the head is free."""
    import ray

    from cluster.runs.coordinator import evaluation_options
    from trainer.evaluation import EvaluateConfig

    node = cluster.add_node(num_cpus=1, node_ip_address="127.0.0.1", labels={"role": "evaluation"})
    ray.init(address=cluster.address, log_to_driver=False)
    try:
        options = evaluation_options(EvaluateConfig(label_selector={"role": "evaluation"}))
        where = ray.remote(lambda: ray.get_runtime_context().get_node_id()).options(**options)
        assert {ray.get(where.remote(), timeout=120) for _ in range(3)} == {node.node_id}
    finally:
        ray.shutdown()
