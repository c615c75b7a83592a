"""A whole cluster on one machine: Docker Compose."""

from __future__ import annotations

from typing import Any

from cluster.deploy.plan import (
    CONFIG_PATH,
    GCS_PORT,
    METRICS_PORT,
    RAY_ENVIRONMENT,
    SHM_GIB,
    Deployment,
    Nodes,
    ray_start,
)

#: Files beside compose.yaml that hold what it must not: ``boostlu deploy secrets`` makes them.
RAY_ENV = "ray.env"
STORAGE_ENV = "storage.env"
SERVER_ENV = "storage-server.env"
GRAFANA_ENV = "grafana.env"
ENDPOINT = "http://storage:9000"

#: The services that are not ours, each replaceable from the environment: STORAGE_IMAGE=... docker compose up.
IMAGES = {
    "STORAGE_IMAGE": "quay.io/minio/minio:RELEASE.2025-09-07T16-13-09Z",
    "TENSORBOARD_IMAGE": "python:3.11-slim-bookworm",
    "PROMETHEUS_IMAGE": "prom/prometheus:v3.5.0",
    "GRAFANA_IMAGE": "grafana/grafana:12.2.0",
}


def render(deployment: Deployment) -> dict[str, Any]:
    """Return the content of compose.yaml; the files it names are written beside it by ``boostlu deploy``."""
    services = {
        "storage": _storage(deployment),
        "head": _head(deployment),
        "worker": _node(deployment, deployment.training),
        **({"evaluator": _node(deployment, deployment.evaluators)} if deployment.evaluators else {}),
        "train": _job(deployment),
        "boostlu": _command_line(deployment),
        "tensorboard": _tensorboard(deployment),
        "prometheus": _prometheus(),
        "grafana": _grafana(),
    }
    return {"services": services, "volumes": {"storage": {}}}


def _image(name: str) -> str:
    return f"${{{name}:-{IMAGES[name]}}}"


def _bucket(deployment: Deployment) -> str:
    return deployment.storage.split("://", 1)[1].split("/", 1)[0]


def _storage(deployment: Deployment) -> dict[str, Any]:
    """An S3 server with the bucket in it; reachable from the cluster only."""
    make_and_serve = f"mkdir -p /data/{_bucket(deployment)} && exec minio server /data"
    return {
        "image": _image("STORAGE_IMAGE"),
        "entrypoint": ["/bin/sh", "-c", make_and_serve],
        "env_file": [SERVER_ENV],
        "volumes": ["storage:/data"],
        "healthcheck": {"test": ["CMD", "mc", "ready", "local"], "interval": "5s", "retries": 12},
    }


def _ours(deployment: Deployment) -> dict[str, Any]:
    """What every container of the project's image has: token and keys, from files."""
    return {
        "image": deployment.image,
        "init": True,
        "env_file": [RAY_ENV, STORAGE_ENV],
        "environment": {**RAY_ENVIRONMENT, "AWS_ENDPOINT_URL": ENDPOINT},
    }


def _ray_node(deployment: Deployment, nodes: Nodes, head: str | None) -> dict[str, Any]:
    command = ray_start(head=head, metrics_port=METRICS_PORT, cpus=nodes.cpus, gpus=nodes.gpus)
    return {
        **_ours(deployment),
        "entrypoint": ["ray"],
        "command": command,
        "shm_size": f"{SHM_GIB}g",
        "stop_grace_period": "2m",
        "restart": "unless-stopped",
    }


def _head(deployment: Deployment) -> dict[str, Any]:
    return {
        **_ray_node(deployment, deployment.head, None),
        "depends_on": {"storage": {"condition": "service_healthy"}},
        "healthcheck": {"test": ["CMD", "ray", "health-check"], "interval": "5s", "timeout": "30s", "retries": 24},
    }


def _node(deployment: Deployment, nodes: Nodes) -> dict[str, Any]:
    service: dict[str, Any] = {
        **_ray_node(deployment, nodes, f"head:{GCS_PORT}"),
        "depends_on": {"head": {"condition": "service_healthy"}},
        "deploy": {"replicas": nodes.count},
    }
    if nodes.gpus:
        devices = [{"driver": "nvidia", "count": nodes.gpus, "capabilities": ["gpu"]}]
        service["deploy"]["resources"] = {"reservations": {"devices": devices}}
    return service


def _beside_head(deployment: Deployment) -> dict[str, Any]:
    """In the head's network, where its loopback is: the dashboard, and so the jobs, answer there only."""
    return {
        **_ours(deployment),
        "volumes": [f"./run.yaml:{CONFIG_PATH}:ro"],
        "network_mode": "service:head",
        "depends_on": {"head": {"condition": "service_healthy"}},
    }


def _job(deployment: Deployment) -> dict[str, Any]:
    """``docker compose run --rm train``: submits the run as a Ray job and follows it; again, it goes on."""
    submit = ["submit", CONFIG_PATH, "--runs", deployment.runs, "--follow"]
    return {**_beside_head(deployment), "profiles": ["train"], "command": submit}


def _command_line(deployment: Deployment) -> dict[str, Any]:
    """``docker compose run --rm boostlu ...``: any command, with the storage and the token at hand."""
    return {**_beside_head(deployment), "profiles": ["tools"], "command": ["--help"]}


def _tensorboard(deployment: Deployment) -> dict[str, Any]:
    install_and_serve = (
        "pip install --quiet --target /tmp/tensorboard tensorboard==2.20.0 'setuptools<81' boto3 && "
        "PYTHONPATH=/tmp/tensorboard exec python -m tensorboard.main "
        f"--logdir {deployment.runs} --host 0.0.0.0 --port 6006"
    )
    return {
        "image": _image("TENSORBOARD_IMAGE"),
        "profiles": ["tensorboard"],
        "env_file": [STORAGE_ENV],
        "environment": {"S3_ENDPOINT": ENDPOINT, "AWS_ENDPOINT_URL": ENDPOINT},
        "command": ["/bin/sh", "-c", install_and_serve],
        "ports": ["127.0.0.1:6006:6006"],
    }


def _prometheus() -> dict[str, Any]:
    return {
        "image": _image("PROMETHEUS_IMAGE"),
        "profiles": ["metrics"],
        "volumes": ["./prometheus.yaml:/etc/prometheus/prometheus.yml:ro"],
        "ports": ["127.0.0.1:9090:9090"],
    }


def _grafana() -> dict[str, Any]:
    provisioning = "/etc/grafana/provisioning"
    return {
        "image": _image("GRAFANA_IMAGE"),
        "profiles": ["metrics"],
        "env_file": [GRAFANA_ENV],
        "volumes": [
            f"./grafana/datasources.yaml:{provisioning}/datasources/boostlu.yaml:ro",
            f"./grafana/dashboards.yaml:{provisioning}/dashboards/boostlu.yaml:ro",
            "./grafana/boostlu.json:/var/lib/grafana/dashboards/boostlu.json:ro",
        ],
        "ports": ["127.0.0.1:3000:3000"],
        "depends_on": ["prometheus"],
    }


def prometheus(deployment: Deployment) -> dict[str, Any]:
    """Return the content of prometheus.yaml: scrape every Ray node, however many there are."""
    services = ["head", "worker", *(["evaluator"] if deployment.evaluators else [])]
    nodes = {"names": services, "type": "A", "port": METRICS_PORT}
    return {
        "global": {"scrape_interval": "5s"},
        "scrape_configs": [{"job_name": "ray", "dns_sd_configs": [nodes]}],
    }
