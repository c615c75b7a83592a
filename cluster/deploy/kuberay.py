"""Manifests for KubeRay (operator 1.6 or newer): a RayJob that runs once, a RayCluster that stays."""

from __future__ import annotations

from typing import Any

from cluster.deploy.plan import CONFIG_PATH, METRICS_PORT, RAY_ENVIRONMENT, SHM_GIB, Cloud, Deployment, Nodes

#: Made by hand before the first run (docs/DEPLOY.md); no manifest holds what is in them.
TOKEN_SECRET = "boostlu-ray-token"  # noqa: S105 — its name
STORAGE_SECRET = "boostlu-storage"  # noqa: S105

#: How a cloud's Kubernetes marks its spot nodes.
SPOT_NODES = {
    "aws": {"eks.amazonaws.com/capacityType": "SPOT"},
    "gcp": {"cloud.google.com/gke-spot": "true"},
}
#: Time to write a checkpoint between a node's notice and its end.
GRACE_SECONDS = 120


def render_job(deployment: Deployment, cloud: Cloud, spot: bool) -> list[dict[str, Any]]:
    """Return the documents of rayjob.yaml. A failed try gets a new cluster and goes on with the run: attempts are
    numbered on storage, and one that a newer one has replaced can commit nothing."""
    spec = {
        "entrypoint": " ".join(deployment.command),
        "submissionMode": "K8sJobMode",
        "backoffLimit": 3,
        "shutdownAfterJobFinishes": True,
        "ttlSecondsAfterFinished": 600,
        "rayClusterSpec": _cluster(deployment, cloud, spot, autoscale=False),
    }
    return [_config_map(deployment), _document("ray.io/v1", "RayJob", deployment, spec=spec)]


def render_cluster(deployment: Deployment, cloud: Cloud, spot: bool) -> list[dict[str, Any]]:
    """Return the documents of raycluster.yaml: the same nodes, up to twice as many while several runs are there."""
    spec = _cluster(deployment, cloud, spot, autoscale=True)
    return [_config_map(deployment), _document("ray.io/v1", "RayCluster", deployment, spec=spec)]


def _document(api: str, kind: str, deployment: Deployment, **content: Any) -> dict[str, Any]:
    labels = {"app.kubernetes.io/name": "boostlu", "app.kubernetes.io/instance": deployment.name}
    return {"apiVersion": api, "kind": kind, "metadata": {"name": deployment.name, "labels": labels}, **content}


def _config_map(deployment: Deployment) -> dict[str, Any]:
    return _document("v1", "ConfigMap", deployment, data={"run.yaml": deployment.run_yaml})


def _cluster(deployment: Deployment, cloud: Cloud, spot: bool, autoscale: bool) -> dict[str, Any]:
    from importlib.metadata import version

    groups = [_group("training", deployment, deployment.training, SPOT_NODES[cloud] if spot else {}, autoscale)]
    if deployment.evaluators is not None:
        groups.append(_group("evaluators", deployment, deployment.evaluators, {}, autoscale))
    spec: dict[str, Any] = {
        "rayVersion": version("ray"),
        # The operator sets RAY_AUTH_MODE and the token from this secret in every Ray container and in the submitter.
        "authOptions": {"mode": "token", "secretName": TOKEN_SECRET},
        "enableInTreeAutoscaling": autoscale,
        "headGroupSpec": {
            "serviceType": "ClusterIP",
            "rayStartParams": _start_parameters(deployment.head),
            "template": _pod(deployment, deployment.head, {}, "ray-head"),
        },
        "workerGroupSpecs": groups,
    }
    if autoscale:
        spec["autoscalerOptions"] = {"idleTimeoutSeconds": 300, "upscalingMode": "Default"}
    return spec


def _group(
    name: str, deployment: Deployment, nodes: Nodes, selector: dict[str, str], autoscale: bool
) -> dict[str, Any]:
    return {
        "groupName": name,
        "replicas": nodes.count,
        "minReplicas": nodes.count,
        "maxReplicas": nodes.count * (2 if autoscale else 1),
        "rayStartParams": _start_parameters(nodes),
        "template": _pod(deployment, nodes, selector, "ray-worker"),
    }


def _start_parameters(nodes: Nodes) -> dict[str, str]:
    return {
        "num-cpus": str(nodes.cpus),
        "num-gpus": str(nodes.gpus),
        "metrics-export-port": str(METRICS_PORT),
    }


def _pod(deployment: Deployment, nodes: Nodes, selector: dict[str, str], container: str) -> dict[str, Any]:
    resources = {"cpu": str(nodes.cpus), "memory": f"{nodes.memory_gib + SHM_GIB}Gi"}
    if nodes.gpus:
        resources["nvidia.com/gpu"] = str(nodes.gpus)
    ours = {
        "name": container,
        "image": deployment.image,
        # RAY_AUTH_MODE and the token come from the operator (authOptions).
        "env": [{"name": name, "value": value} for name, value in RAY_ENVIRONMENT.items() if "AUTH" not in name],
        "envFrom": [{"secretRef": {"name": STORAGE_SECRET}}],
        "ports": [{"name": "metrics", "containerPort": METRICS_PORT}],
        "resources": {"requests": resources, "limits": resources},
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
        "volumeMounts": [
            {"name": "shm", "mountPath": "/dev/shm"},  # noqa: S108 — Ray's object store
            {"name": "config", "mountPath": CONFIG_PATH, "subPath": "run.yaml", "readOnly": True},
        ],
    }
    spec: dict[str, Any] = {
        "terminationGracePeriodSeconds": GRACE_SECONDS,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": 1000,
            "runAsGroup": 1000,
            "fsGroup": 1000,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [ours],
        "volumes": [
            {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": f"{SHM_GIB}Gi"}},
            {"name": "config", "configMap": {"name": deployment.name}},
        ],
    }
    if selector:
        spec["nodeSelector"] = selector
    tolerations = [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}] if nodes.gpus else []
    tolerations += [
        {"key": key, "operator": "Equal", "value": value, "effect": "NoSchedule"} for key, value in selector.items()
    ]
    if tolerations:
        spec["tolerations"] = tolerations
    return {"metadata": {"labels": {"app.kubernetes.io/name": "boostlu"}}, "spec": spec}
