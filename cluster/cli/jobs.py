"""``boostlu submit`` and ``boostlu jobs``: training on a Ray cluster from outside."""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING, Annotated

import typer

from cluster.cli.train import Method, Overrides
from sharding.errors import UserError

if TYPE_CHECKING:
    from cluster.jobs.submission import Job, Jobs

app = typer.Typer(add_completion=False, no_args_is_help=True, help="List, follow and stop the jobs of a Ray cluster.")

Dashboard = Annotated[
    str, typer.Option("--address", help="URL of the cluster's dashboard.", envvar="RAY_API_SERVER_ADDRESS")
]
Run = Annotated[str, typer.Argument(help="Name of the run.")]
DEFAULT = "http://127.0.0.1:8265"


def submit(
    config: Annotated[str, typer.Argument(help="YAML file; see configs/.")],
    overrides: Overrides = None,
    address: Dashboard = DEFAULT,
    runs: Annotated[
        str, typer.Option("--runs", help="Folder or URL that holds the runs, as the cluster sees it.")
    ] = "runs",
    method: Method = None,
    follow: Annotated[bool, typer.Option("--follow", help="Show the job's output until it ends.")] = False,
    wait: Annotated[float, typer.Option("--wait", min=0, help="Minutes to wait for nodes that are starting.")] = 0,
    working_dir: Annotated[
        str | None, typer.Option("--working-dir", help="Send the code in this folder along; default: the image's.")
    ] = None,
) -> None:
    """Train as a job of a Ray cluster. The run goes on when this command ends; submitted again, it resumes.

    Example:  boostlu submit configs/coco.yaml --runs s3://bucket/runs --address http://head:8265

    CONFIG is read here and travels with the job; dataset and runs must be where every node reaches them.
    """
    from cluster.jobs.code_version import code_version
    from cluster.jobs.dashboard import open_dashboard
    from cluster.jobs.job import JobSpec
    from cluster.jobs.submission import Jobs
    from cluster.nodes.capacity import Need
    from cluster.nodes.inventory import await_room
    from sharding import storage
    from trainer.config import load_config

    settings = load_config(config, overrides or [], method)
    runs = str(storage.local_path(runs).absolute()) if storage.is_local(runs) else runs
    for key, url in (("dataset.path", settings.dataset.path), ("--runs", runs)):
        _refuse_credentials(key, url)
    dashboard = open_dashboard(address)
    await_room(dashboard, Need.of(settings), 60 * wait)
    jobs = Jobs(dashboard)
    spec = JobSpec(config=settings.to_yaml(), runs=runs, version=code_version())
    submission = jobs.submit(settings.name, spec, working_dir)
    at = "" if address == DEFAULT else f" --address {address}"
    print(f"run {settings.name} → {storage.join(runs, settings.name)}, job {submission}")
    print(f"watch it:  boostlu jobs logs {settings.name} --follow{at}")
    print(f"stop it:   boostlu jobs stop {settings.name}{at}   (at a checkpoint; submitted again, it goes on)")
    if follow:
        _follow(jobs, jobs.newest(settings.name))


@app.command("list")
def list_(address: Dashboard = DEFAULT) -> None:
    """List the jobs that `boostlu submit` started on a cluster.

    Example:  boostlu jobs list --address http://head:8265
    """
    from rich.table import Table

    from cluster.cli.terminal import terminal

    found = _jobs(address).list()
    if not found:
        print(f"no jobs of this project at {address}")
        return
    table = Table("run", "job", "status", "started", "took", "runs", box=None, header_style="bold")
    for job in found:
        started = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(job.started))
        took = f"{((job.ended or time.time()) - job.started) / 60:.1f} min"
        table.add_row(job.run, job.id, job.status.lower(), started, took, job.runs)
    terminal().print(table)


@app.command()
def logs(
    run: Run,
    address: Dashboard = DEFAULT,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the job ends.")] = False,
) -> None:
    """Print what the newest job of a run has said.

    Example:  boostlu jobs logs coco --follow --address http://head:8265
    """
    jobs = _jobs(address)
    job = jobs.newest(run)
    if follow and not job.is_over:
        _follow(jobs, job)
    else:
        print(jobs.logs(job), end="")


@app.command()
def stop(run: Run, address: Dashboard = DEFAULT) -> None:
    """Stop a run's job at a checkpoint, and wait for that. Submitted again, the run goes on at that very step.

    Example:  boostlu jobs stop coco --address http://head:8265
    """
    from cluster.jobs.submission import STOP_SECONDS

    jobs = _jobs(address)
    job = jobs.newest(run)
    if job.is_over:
        raise UserError(
            f"run {run!r} has no job at work: {job.id} is {job.status.lower()}", "`boostlu jobs list` shows all"
        )
    print(f"stopping job {job.id} at a checkpoint ...", flush=True)
    jobs.stop(job)
    job = jobs.wait(job, STOP_SECONDS + 30)
    if not job.is_over:
        raise UserError(f"job {job.id} still runs", f"see `boostlu jobs logs {run}`")
    print(f"job {job.id} is {job.status.lower()}; its last words:")
    print("\n".join(jobs.logs(job).strip().splitlines()[-3:]))


def _jobs(address: str) -> Jobs:
    from cluster.jobs.dashboard import open_dashboard
    from cluster.jobs.submission import Jobs

    return Jobs(open_dashboard(address))


def _follow(jobs: Jobs, job: Job) -> None:
    """Print the job's output until it ends; Ctrl-C only ends the printing. Exits with 1 when the job failed."""
    import asyncio

    async def show() -> None:
        async for lines in jobs.follow(job):
            print(lines, end="", flush=True)

    try:
        asyncio.run(show())
    except KeyboardInterrupt:
        print(f"\nthe job goes on; see it again with `boostlu jobs logs {job.run} --follow`")
        return
    job = jobs.wait(job, 30)
    print(f"job {job.id} is {job.status.lower()}")
    if job.status != "SUCCEEDED":
        raise SystemExit(1)


def _refuse_credentials(key: str, url: str) -> None:
    if re.match(r"[a-z0-9+.-]+://[^/@]*:[^/@]*@", url):
        raise UserError(
            f"{key} holds a user name and password, and would travel with the job for all to see",
            "give credentials to the cluster's nodes by their environment",
        )
