"""``boostlu deploy``: files that run a configuration on Docker Compose, Kubernetes or a cloud."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from cluster.cli.train import Method
from sharding.errors import UserError, did_you_mean

app = typer.Typer(
    add_completion=False, no_args_is_help=True, help="Write what runs a configuration on a cluster: docs/DEPLOY.md."
)


@app.command()
def render(
    target: Annotated[str, typer.Argument(help="compose, kuberay or ray-up.")],
    config: Annotated[str, typer.Argument(help="YAML file; see configs/.")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[a.b=c]...", help="Settings to change.")] = None,
    image: Annotated[str, typer.Option(help="The image, as every node can pull it.")] = "boostlu",
    workers: Annotated[int | None, typer.Option(help="Nodes; default: one for each of workers.num.")] = None,
    memory: Annotated[int, typer.Option(help="GiB of memory a training worker, and the evaluator.")] = 8,
    storage: Annotated[str, typer.Option(help="Object store for dataset and runs.")] = "s3://boostlu",
    cloud: Annotated[str, typer.Option(help="aws or gcp: machine types, spot marks.")] = "aws",
    spot: Annotated[bool, typer.Option("--spot", help="Training on spot machines; head and evaluator not.")] = False,
    method: Method = None,
    output: Annotated[str, typer.Option(help="Folder to write to.")] = "deploy",
) -> None:
    """Write the files of a target, filled in for one run: its CPUs, GPUs, workers, evaluator, storage.

    Example:  boostlu deploy render kuberay configs/openimages_v3.yaml --image REGISTRY/boostlu --storage s3://BUCKET

    No file holds a secret; `boostlu deploy secrets` makes those, docs/DEPLOY.md says where they go.
    """
    from cluster.deploy.files import TARGETS, write
    from cluster.deploy.files import render as render_files
    from cluster.deploy.plan import plan
    from trainer.config import load_config

    if target not in TARGETS:
        raise UserError(f"no target {target!r}", did_you_mean(target, TARGETS))
    if cloud not in ("aws", "gcp"):
        raise UserError(f"no cloud {cloud!r}", did_you_mean(cloud, ("aws", "gcp")))
    deployment = plan(load_config(config, overrides or [], method), image, storage, workers, memory)
    chosen: Any = cloud
    for path in write(Path(output), render_files(target, deployment, chosen, spot)):
        print(path)


@app.command()
def secrets(
    output: Annotated[str, typer.Option(help="Folder of the rendered files.")] = "deploy",
) -> None:
    """Make a random cluster token, keys for Compose's own S3 server and a Grafana password, each in a file.

    Example:  boostlu deploy secrets --output deploy

    The files are readable by their owner only, and nothing is printed but their names.
    """
    from cluster.deploy.files import write_secrets

    for path in write_secrets(Path(output)):
        print(path)
