"""Several hosts, each with an address of its own: shards, training and checkpoints over the network and its faults.

Needs root and some Debian packages (see lab.py); `pytest -m hosts` runs them. The first run builds the image.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from sharding import storage
from sharding.schema import read_dataset_info
from tests.faults.jobs import BOOSTLU, assert_same_end, steps_done, undisturbed
from tests.hosts import lab as containers
from tests.hosts.cluster_of_hosts import HEAD, S3, URL, ClusterOfHosts, make_lab, wait_for
from tests.hosts.lab import address
from trainer.run.events import read_events, step_history
from trainer.run.registry import RunRegistry

pytestmark = [pytest.mark.hosts, pytest.mark.timeout(1200)]

STEPS = 120
SPARE = 4
DATASET, RUNS = "s3://lab/digits", "s3://lab/runs"
BUILD = ("shards", "build", "digits", "--set", "train=80", "--set", "val=24", "--set", "test=24", "--set", "side=64",
         "--samples-per-shard", "16", "--single-positive", "1200")  # fmt: skip


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClusterOfHosts]:
    """A head and two workers, with S3; what is on them is left by one test for the next."""
    if reason := containers.missing():
        pytest.skip(reason)
    made = ClusterOfHosts(make_lab(containers.image(), tmp_path_factory.mktemp("lab")), workers=[2, 3])
    saved = {key: os.environ.get(key) for key in S3}
    os.environ.update(S3)
    try:
        made.start_storage()
        made.add_hosts(SPARE)
        made.start_head()
        for number in made.workers:
            made.start_worker(number)
        made.await_nodes(3)
        yield made
    finally:
        made.close()
        for key, value in saved.items():
            os.environ.pop(key) if value is None else os.environ.update({key: value})


@pytest.fixture(scope="module")
def dataset(cluster: ClusterOfHosts) -> str:
    cluster.lab.run(HEAD, "boostlu", *BUILD, "--output", DATASET, "--ray", "auto")
    return DATASET


@pytest.fixture(scope="module")
def config(dataset: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """120 steps on two workers; the evaluator needs no CPU of its own, as the hosts have one each."""
    values = {
        "name": "tiny",
        "epochs": 6,
        "dataset": {"path": dataset, "labels": "single-positive-1200", "image_size": 160},
        "plan": {"global_batch": 4, "lanes": 4, "shuffle_window": 32},
        "loader": {"threads": 1},
        "model": {"backbone": "small_resnet:4", "weights": "none", "alpha": 5},
        "loss": {"name": "ll-cp", "delta": 2},
        "optimizer": {"lr": 1e-3, "head_lr_multiplier": 1},
        "evaluate": {"cpus": 0, "batch": 16},
        "checkpoint": {"every_steps": 5},
        "workers": {"num": 2},
    }
    path = tmp_path_factory.mktemp("config") / "tiny.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.fixture(scope="module")
def expected(config: Path) -> RunRegistry:
    """The same run on this machine alone, under torchrun."""
    values = yaml.safe_load(config.read_text())
    values["loader"]["cache"] = {"folder": str(config.parent / "cache")}
    alone = config.parent / "alone.yaml"
    alone.write_text(yaml.safe_dump(values))
    return undisturbed(alone, config.parent / "alone", **S3)


def submit(cluster: ClusterOfHosts, config: Path, name: str, *more: str) -> RunRegistry:
    done = cluster.boostlu("submit", config, f"name={name}", "--runs", RUNS, "--address", URL, *more)
    assert done.returncode == 0, done.stdout + done.stderr
    return RunRegistry(storage.join(RUNS, name))


def finish(cluster: ClusterOfHosts, registry: RunRegistry, seconds: float = 600) -> None:
    """Wait for the result, and for the end of its attempt, which is noted after it; attempts may fail on the way."""
    try:
        wait_for(lambda: registry.result() is not None, "the end of the run", seconds)
        wait_for(lambda: outcomes(registry)[-1] != "none", "the end of the last attempt", 60)
    except AssertionError:
        print(cluster.boostlu("jobs", "logs", registry.name, "--address", URL).stdout)
        raise


def outcomes(registry: RunRegistry) -> list[str]:
    return [attempt.get("outcome", "none") for attempt in registry.attempts().values()]


def test_shards_are_built_by_the_cluster(dataset: str, tmp_path: Path) -> None:
    """What the workers wrote into S3 is what this machine writes to its disk."""
    done = subprocess.run([*BOOSTLU, *BUILD, "--output", str(tmp_path / "here")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    here, there = read_dataset_info(str(tmp_path / "here")), read_dataset_info(dataset)
    assert there == here


def test_two_hosts_end_as_one_machine_does(cluster: ClusterOfHosts, config: Path, expected: RunRegistry) -> None:
    """A worker a host, gradients over the network, checkpoints in S3: the same run to the last bit."""
    registry = submit(cluster, config, "plain", "--follow")
    assert outcomes(registry) == ["finished"]
    assert_same_end(registry, expected, STEPS)


def test_the_network_is_cut_and_heals(cluster: ClusterOfHosts, config: Path, expected: RunRegistry) -> None:
    """Ten seconds without one host: the others wait for it, and nothing is done again."""
    import time

    registry = submit(cluster, config, "healed")
    wait_for(lambda: steps_done(registry) >= 10, "step 10")
    cluster.lab.cut(3)
    time.sleep(10)
    cluster.lab.heal(3)
    finish(cluster, registry)
    assert outcomes(registry) == ["finished"]
    assert_same_end(registry, expected, STEPS)


def test_the_head_is_stopped_and_started(cluster: ClusterOfHosts, config: Path, expected: RunRegistry) -> None:
    """The cluster is gone with its head, the run is in S3: submitted to the new cluster, it goes on."""
    registry = submit(cluster, config, "head")
    wait_for(lambda: steps_done(registry) >= 10 and bool(registry.checkpoints()), "step 10 and a checkpoint")
    cluster.lab.stop(HEAD)
    for number in cluster.workers:
        cluster.lab.stop(number)  # without a head they end by themselves after a minute
    assert registry.result() is None
    cluster.start_head()
    for number in cluster.workers:
        cluster.start_worker(number)
    cluster.await_nodes(3)
    submit(cluster, config, "head", "--follow")
    assert [e["step"] for e in read_events(registry.url) if e["event"] == "resumed"] != []
    assert len(registry.attempts()) == 2
    assert_same_end(registry, expected, STEPS)


def test_fewer_hosts_go_on(cluster: ClusterOfHosts, config: Path, expected: RunRegistry) -> None:
    """With workers.min one of two hosts may be lost for good: the other does all that is left of the same batches."""
    registry = submit(cluster, config, "fewer", "workers.min=1")
    wait_for(lambda: steps_done(registry) >= 10 and bool(registry.checkpoints()), "step 10 and a checkpoint")
    cluster.lab.cut(3)
    try:
        finish(cluster, registry)
        assert not cluster.lab.reaches(3), "it was not healed meanwhile"
    finally:
        cluster.lab.stop(3)
        cluster.lab.heal(3)
        cluster.start_worker(3)
    cluster.await_nodes(3)
    assert outcomes(registry) == ["failed", "finished"]
    assert [attempt["workers"] for attempt in registry.attempts().values()] == [2, 1]
    ours, theirs = (step_history(read_events(r.url)) for r in (registry, expected))
    for key in ("step", "epoch", "lr", "samples"):
        assert [e[key] for e in ours] == [e[key] for e in theirs], key


def test_a_host_without_access_is_named_before_training(cluster: ClusterOfHosts, config: Path) -> None:
    """A third worker host that may not read the storage: the job ends at once, and the run has no attempt."""
    cluster.start_worker(SPARE, AWS_ENDPOINT_URL=f"http://{address(SPARE)}:5000")
    try:
        cluster.await_nodes(4)
        done = cluster.boostlu("submit", config, "name=refused", "--runs", RUNS, "--address", URL, "--follow")
    finally:
        cluster.lab.stop(SPARE)
    cluster.await_nodes(3)
    assert done.returncode == 1
    assert "not every node can take part" in done.stdout
    assert f"({address(SPARE)}) cannot read {DATASET}/dataset.json" in done.stdout
    assert RunRegistry(f"{RUNS}/refused").attempts() == {}


def test_a_host_is_cut_off_for_good(cluster: ClusterOfHosts, config: Path, expected: RunRegistry) -> None:
    """A third worker host stands by: the run goes on with the two that are left, the same to the last bit."""
    cluster.start_worker(SPARE)
    cluster.await_nodes(4)
    registry = submit(cluster, config, "cut")
    wait_for(lambda: steps_done(registry) >= 10 and bool(registry.checkpoints()), "step 10 and a checkpoint")
    lost = next(number for number in (3, 2, SPARE) if cluster.lab.processes(number, "RayTrainWorker"))
    cluster.lab.cut(lost)
    finish(cluster, registry)
    assert outcomes(registry) == ["failed", "finished"]
    assert not cluster.lab.reaches(lost), "it was not healed meanwhile"
    assert_same_end(registry, expected, STEPS)
