"""The files of a target, from its rendered documents; and the secrets beside them, which no rendered file holds."""

from __future__ import annotations

import os
import secrets
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from cluster.deploy import compose, kuberay, ray_up
from cluster.deploy.plan import Cloud, Deployment
from sharding.errors import UserError

TARGETS = ("compose", "kuberay", "ray-up")
#: Of Grafana, the same for every run: copied as they are.
GRAFANA = ("datasources.yaml", "dashboards.yaml", "boostlu.json")

HEADER = "# Written by `boostlu deploy render {target}` for the run {name!r}; docs/DEPLOY.md says how to use it.\n"


def render(target: str, deployment: Deployment, cloud: Cloud = "aws", spot: bool = False) -> dict[str, str]:
    """Return path → content of every file of ``target`` (one of TARGETS)."""
    head = HEADER.format(target=target, name=deployment.config.name)
    config = {"run.yaml": head + deployment.run_yaml}
    if target == "kuberay":
        return {
            "rayjob.yaml": head + _yaml(*kuberay.render_job(deployment, cloud, spot)),
            "raycluster.yaml": head + _yaml(*kuberay.render_cluster(deployment, cloud, spot)),
        }
    if target == "ray-up":
        return {f"ray-up-{cloud}.yaml": head + _yaml(ray_up.render(deployment, cloud, spot)), **config}
    here = files("cluster.deploy")
    return {
        "compose.yaml": head + _yaml(compose.render(deployment)),
        "prometheus.yaml": head + _yaml(compose.prometheus(deployment)),
        **config,
        **{f"grafana/{name}": here.joinpath("grafana", name).read_text() for name in GRAFANA},
    }


class _Plain(yaml.SafeDumper):
    """Writes every value where it is used: no anchors, which people overlook when they edit."""

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002 — the base class's signature
        return True

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:  # noqa: ARG002
        return super().increase_indent(flow, False)


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style="|" if "\n" in value else None)


_Plain.add_representer(str, _text)


def _yaml(*documents: dict[str, Any]) -> str:
    return yaml.dump_all(documents, Dumper=_Plain, sort_keys=False, width=118, allow_unicode=True)


def write(folder: Path, content: dict[str, str]) -> list[Path]:
    """Write files below ``folder``; returns their paths."""
    written = []
    for name, text in content.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        written.append(path)
    return written


def write_secrets(folder: Path) -> list[Path]:
    """Make the cluster's token, keys of Compose's own S3 server and Grafana's password: random, for their owner only.

    What exists is never replaced: raises UserError.
    """
    key, secret = secrets.token_hex(10), secrets.token_hex(20)
    content: dict[str, dict[str, str]] = {
        compose.RAY_ENV: {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)},
        compose.STORAGE_ENV: {
            "AWS_ACCESS_KEY_ID": key,
            "AWS_SECRET_ACCESS_KEY": secret,
            "AWS_DEFAULT_REGION": "us-east-1",
        },
        compose.SERVER_ENV: {"MINIO_ROOT_USER": key, "MINIO_ROOT_PASSWORD": secret},
        compose.GRAFANA_ENV: {"GF_SECURITY_ADMIN_PASSWORD": secrets.token_hex(16)},
    }
    there = [name for name in content if (folder / name).exists()]
    if there:
        raise UserError(f"{folder} has {', '.join(there)} already", "delete them first if you want new ones")
    folder.mkdir(parents=True, exist_ok=True)
    for name, values in content.items():
        descriptor = os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(descriptor, "w") as file:
            file.writelines(f"{variable}={value}\n" for variable, value in values.items())
    return [folder / name for name in content]
