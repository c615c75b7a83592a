"""Cluster files of ``ray up`` for AWS and GCP, with nodes that come back when they are lost."""

from __future__ import annotations

from typing import Any

from cluster.deploy.plan import (
    GCS_PORT,
    HOME,
    METRICS_PORT,
    RAY_ENVIRONMENT,
    SHM_GIB,
    Cloud,
    Deployment,
    Nodes,
)
from sharding.errors import UserError

#: Machine types: (GPUs, vCPUs, name), smallest first in each list.
MACHINES: dict[str, list[tuple[int, int, str]]] = {
    "aws": [
        (0, 4, "m6i.xlarge"),
        (0, 8, "m6i.2xlarge"),
        (0, 16, "m6i.4xlarge"),
        (0, 32, "m6i.8xlarge"),
        (0, 64, "m6i.16xlarge"),
        (1, 8, "g6e.2xlarge"),
        (1, 16, "g6e.4xlarge"),
        (4, 48, "g6e.12xlarge"),
        (8, 192, "p5.48xlarge"),
    ],
    "gcp": [
        (0, 4, "n2-standard-4"),
        (0, 8, "n2-standard-8"),
        (0, 16, "n2-standard-16"),
        (0, 32, "n2-standard-32"),
        (0, 64, "n2-standard-64"),
        (1, 12, "a2-highgpu-1g"),
        (2, 24, "a2-highgpu-2g"),
        (4, 48, "a2-highgpu-4g"),
        (8, 208, "a3-highgpu-8g"),
    ],
}
REGIONS = {"aws": {"region": "us-west-2"}, "gcp": {"region": "us-central1", "availability_zone": "us-central1-a"}}
#: Ubuntu with the NVIDIA driver and Docker; on AWS Ray itself chooses such an image for the region.
GCP_IMAGE = "projects/deeplearning-platform-release/global/images/family/common-cu128-ubuntu-2204-nvidia-570"
DISK_GIB = 200
#: Files that ``ray up`` copies to every node; what they set, Ray's processes and so the jobs inherit.
ENVIRONMENT_FILES = {f"{HOME}/ray.env": "./ray.env", f"{HOME}/storage.env": "./storage.env"}


def render(deployment: Deployment, cloud: Cloud, spot: bool) -> dict[str, Any]:
    """Return the content of the file that ``ray up`` reads. The token and the store's keys are files beside it, which
    Ray copies to the nodes; the dashboard stays on the head's loopback (``ray dashboard FILE`` opens a tunnel)."""
    types = {
        "head": _node_type(deployment.head, cloud, False, 0, 0),
        "training": _node_type(deployment.training, cloud, spot, deployment.training.count),
    }
    if deployment.evaluators is not None:
        types["evaluator"] = _node_type(deployment.evaluators, cloud, False, deployment.evaluators.count)
    sourced = "; ".join(f". {path}" for path in ENVIRONMENT_FILES)
    start = f"set -a; {sourced}; set +a; ulimit -n 65536; ray start --metrics-export-port {METRICS_PORT}"
    head = f"--head --port {GCS_PORT} --dashboard-host 127.0.0.1 --autoscaling-config ~/ray_bootstrap_config.yaml"
    provider: dict[str, Any] = {"type": cloud, **REGIONS[cloud]}
    if cloud == "gcp":
        provider["project_id"] = "PROJECT"
    return {
        "cluster_name": deployment.name,
        "max_workers": sum(node.get("max_workers", 0) for node in types.values()),
        "idle_timeout_minutes": 10,
        "provider": provider,
        "auth": {"ssh_user": "ubuntu"},
        "docker": {
            "image": deployment.image,
            "container_name": "boostlu",
            "pull_before_run": True,
            "run_options": [
                "--entrypoint=/usr/bin/env",  # Ray runs `bash`, and the image's entry point is boostlu
                f"--shm-size={SHM_GIB}g",
                "--ulimit=nofile=65536:65536",
                *(f"--env={name}={value}" for name, value in RAY_ENVIRONMENT.items()),
            ],
        },
        "file_mounts": dict(ENVIRONMENT_FILES),
        "head_node_type": "head",
        "available_node_types": types,
        "head_start_ray_commands": ["ray stop", f"{start} {head}"],
        "worker_start_ray_commands": ["ray stop", f"{start} --address $RAY_HEAD_IP:{GCS_PORT}"],
    }


def _node_type(nodes: Nodes, cloud: Cloud, spot: bool, at_least: int, at_most: int | None = None) -> dict[str, Any]:
    """``at_least`` nodes are kept, lost ones replaced; up to twice as many while several runs are there."""
    return {
        "resources": {"CPU": nodes.cpus, "GPU": nodes.gpus},
        "min_workers": at_least,
        "max_workers": 2 * at_least if at_most is None else at_most,
        "node_config": _aws(nodes, spot) if cloud == "aws" else _gcp(nodes, spot),
    }


def machine(nodes: Nodes, cloud: Cloud) -> str:
    """Return the smallest machine type of ``cloud`` with the node's CPUs and GPUs."""
    for gpus, cpus, name in MACHINES[cloud]:
        if gpus >= nodes.gpus and cpus >= nodes.cpus and bool(gpus) == bool(nodes.gpus):
            return name
    raise UserError(
        f"no machine type of {cloud} is known with {nodes.cpus} CPUs and {nodes.gpus} GPUs",
        "spread the run over more nodes: --workers N",
    )


def _aws(nodes: Nodes, spot: bool) -> dict[str, Any]:
    config: dict[str, Any] = {
        "InstanceType": machine(nodes, "aws"),
        "BlockDeviceMappings": [
            {"DeviceName": "/dev/sda1", "Ebs": {"VolumeSize": DISK_GIB, "VolumeType": "gp3", "Encrypted": True}}
        ],
        "MetadataOptions": {"HttpTokens": "required", "HttpPutResponseHopLimit": 2},
    }
    if spot:
        config["InstanceMarketOptions"] = {"MarketType": "spot"}
    return config


def _gcp(nodes: Nodes, spot: bool) -> dict[str, Any]:
    disk = {
        "boot": True,
        "autoDelete": True,
        "type": "PERSISTENT",
        "initializeParams": {"diskSizeGb": DISK_GIB, "sourceImage": GCP_IMAGE},
    }
    config: dict[str, Any] = {"machineType": machine(nodes, "gcp"), "disks": [disk]}
    scheduling: dict[str, Any] = {}
    if nodes.gpus or spot:
        scheduling["onHostMaintenance"] = "TERMINATE"
    if spot:
        scheduling |= {"provisioningModel": "SPOT", "instanceTerminationAction": "DELETE"}
    if scheduling:
        config["scheduling"] = scheduling
    return config
