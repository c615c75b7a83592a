"""What a run needs of a cluster: nodes by role, storage, the command; from it every target is rendered."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal

import yaml

from sharding import storage
from sharding.errors import UserError
from trainer.config import RunConfig

Cloud = Literal["aws", "gcp"]

#: Where the image's user is at home, and where each target puts the run's configuration and the token.
HOME = "/home/boostlu"
CONFIG_PATH = f"{HOME}/run.yaml"
GCS_PORT = 6379
METRICS_PORT = 8080
#: /dev/shm of a node, for Ray's object store: weights and manifests pass through it, no images.
SHM_GIB = 2

#: Of every Ray process on every node. A stopped job gets as long as a checkpoint may take.
RAY_ENVIRONMENT = {
    "RAY_AUTH_MODE": "token",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_JOB_STOP_WAIT_TIME_S": "120",
}


@dataclass(frozen=True)
class Nodes:
    """``count`` equal nodes; ``cpus`` and ``gpus`` are what Ray may hand out on each, ``memory_gib`` its memory."""

    count: int
    cpus: int
    gpus: int
    memory_gib: int


@dataclass(frozen=True)
class Deployment:
    """A run and the nodes that it takes. ``evaluators`` is None where the evaluator runs on the head's CPUs."""

    config: RunConfig
    image: str
    storage: str
    head: Nodes
    training: Nodes
    evaluators: Nodes | None

    @property
    def name(self) -> str:
        """The run's name as Kubernetes and the clouds accept it."""
        return "boostlu-" + re.sub(r"[^a-z0-9]+", "-", self.config.name.lower()).strip("-")[:40]

    @property
    def runs(self) -> str:
        return storage.join(self.storage, "runs")

    @property
    def run_yaml(self) -> str:
        """The configuration as YAML: what was set; what was not is the image's default."""
        values = self.config.model_dump(mode="json", exclude_unset=True)
        return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)

    @property
    def command(self) -> list[str]:
        """What the job runs: start the run or, when it is tried again, go on with it."""
        return ["boostlu", "train", CONFIG_PATH, "--resume", "--address", "auto", "--runs", self.runs]


def plan(
    config: RunConfig, image: str, storage_url: str, nodes: int | None = None, memory_gib: int = 8
) -> Deployment:
    """Spread the run's workers over ``nodes`` (default: one worker a node) and make room for its evaluator.

    memory_gib: of one training worker, and of the evaluator. A local ``dataset.path`` becomes the folder of the same
    name in STORAGE/data: no node but this one has the local one.
    """
    if "://" not in storage_url or storage.is_local(storage_url):
        raise UserError(
            f"--storage {storage_url} is not a URL that every node reaches", "name an object store: s3://BUCKET"
        )
    workers, evaluator = config.workers, config.evaluate
    nodes = workers.num if nodes is None else nodes
    if not 1 <= nodes <= workers.num:
        raise UserError(
            f"--workers {nodes} nodes for workers.num={workers.num} training processes",
            f"choose from 1 to {workers.num}, or change workers.num",
        )
    if workers.gpus and workers.gpus != int(workers.gpus):
        raise UserError(f"workers.gpus={workers.gpus:g} is a part of a GPU", "give each training worker whole GPUs")
    share = math.ceil(workers.num / nodes)
    on_head = not evaluator.gpus
    # One CPU beyond the evaluator's, so that the job's own processes are never without.
    head = Nodes(1, math.ceil(evaluator.cpus) + 1 if on_head else 2, 0, 2 * memory_gib if on_head else memory_gib)
    training = Nodes(nodes, math.ceil(share * workers.cpus), math.ceil(share * workers.gpus), share * memory_gib)
    evaluators = Nodes(1, math.ceil(evaluator.cpus), math.ceil(evaluator.gpus), memory_gib)
    return Deployment(
        config=_relocated(config, storage_url),
        image=image,
        storage=storage_url.rstrip("/"),
        head=head,
        training=training,
        evaluators=None if on_head else evaluators,
    )


def _relocated(config: RunConfig, storage_url: str) -> RunConfig:
    path = config.dataset.path
    if not storage.is_local(path):
        return config
    there = storage.join(storage_url, "data", storage.local_path(path).name)
    return config.model_copy(update={"dataset": config.dataset.model_copy(update={"path": there})})


def ray_start(*, head: str | None, metrics_port: int, cpus: int, gpus: int) -> list[str]:
    """Return the arguments of ``ray`` that start a node: the head itself, or a node of the cluster at ``head``.

    The dashboard, which also takes jobs, stays on the head's loopback (Ray's default, said here so that it stays).
    """
    role = (
        ["--head", "--port", str(GCS_PORT), "--dashboard-host", "127.0.0.1"] if head is None else ["--address", head]
    )
    return [
        "start",
        *role,
        "--num-cpus",
        str(cpus),
        "--num-gpus",
        str(gpus),
        "--metrics-export-port",
        str(metrics_port),
        "--block",
    ]
