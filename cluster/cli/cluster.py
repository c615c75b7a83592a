"""``boostlu cluster``: what a Ray cluster has, and whether a run would fit on it."""

from __future__ import annotations

from typing import Annotated

import typer

from cluster.cli.jobs import DEFAULT, Dashboard
from cluster.cli.train import Method, Overrides

app = typer.Typer(add_completion=False, no_args_is_help=True, help="Look at a Ray cluster.")


@app.callback()
def root() -> None:
    """Look at a Ray cluster."""


@app.command()
def status(
    config: Annotated[
        str | None, typer.Argument(help="Also say whether this run would fit.", show_default=False)
    ] = None,
    overrides: Overrides = None,
    address: Dashboard = DEFAULT,
    method: Method = None,
) -> None:
    """Show the nodes with CPUs and GPUs, and what is free; with CONFIG, whether that run fits. Exits with 1 if not.

    Example:  boostlu cluster status configs/coco.yaml workers.num=8 workers.gpus=1 --address http://head:8265
    """
    from rich.table import Table

    from cluster.cli.terminal import terminal
    from cluster.jobs.dashboard import open_dashboard
    from cluster.nodes.capacity import Need, why_not
    from cluster.nodes.inventory import read_nodes, read_used
    from trainer.config import load_config

    settings = load_config(config, overrides or [], method) if config is not None else None
    dashboard = open_dashboard(address)
    nodes, used = read_nodes(dashboard), read_used(dashboard)
    table = Table("node", "CPUs", "GPUs", box=None, header_style="bold")
    for node in nodes:
        table.add_row(node.host, f"{node.cpus:g}", f"{node.gpus:g}")
    terminal().print(table)
    cpus, gpus = sum(node.cpus for node in nodes), sum(node.gpus for node in nodes)
    free = cpus - used.get("CPU", 0), gpus - used.get("GPU", 0)
    print(f"Ray {dashboard.ray_version}; free: {free[0]:g} of {cpus:g} CPUs, {free[1]:g} of {gpus:g} GPUs")
    if settings is None:
        return
    need = Need.of(settings)
    if reason := why_not(need, nodes):
        print(f"{settings.name} does not fit: {reason}")
        raise SystemExit(1)
    print(f"{settings.name} fits: {need.workers} workers and an evaluator, {need.cpus:g} CPUs and {need.gpus:g} GPUs")
    if need.cpus > free[0] or need.gpus > free[1]:
        print("it would have to wait: not enough of them are free now")
