"""``boostlu train`` and ``boostlu resume``."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from sharding.errors import UserError

Runs = Annotated[str, typer.Option("--runs", help="Folder or URL that holds the runs.")]
Address = Annotated[
    str | None, typer.Option("--address", help="Address of a Ray cluster; default: a private one on this machine.")
]
Method = Annotated[
    str | None,
    typer.Option("--method", help="YAML file laid over CONFIG, such as configs/methods/ll-ct-boostlu.yaml."),
]
#: Seconds between the lines that tell a log where training is.
LOG_SECONDS = 30.0
Overrides = Annotated[list[str] | None, typer.Argument(metavar="[a.b=c]...", help="Settings to change.")]


def train(
    config: Annotated[str, typer.Argument(help="YAML file; see configs/.")],
    overrides: Overrides = None,
    runs: Runs = "runs",
    address: Address = None,
    method: Method = None,
    go_on: Annotated[
        bool, typer.Option("--resume", help="Go on with the run of this name if it exists (for retried jobs).")
    ] = False,
) -> None:
    """Start a run: train on Ray workers, with checkpoints evaluated while training goes on.

    Example:  boostlu train configs/coco_mini.yaml loss.name=ll-r model.alpha=5 workers.num=2

    Ctrl-C stops it at a checkpoint (a second one stops it at once); `boostlu resume` goes on.
    """
    from sharding import storage
    from sharding.index import read_labels, read_split
    from trainer.config import load_config
    from trainer.run.registry import RunRegistry

    settings = load_config(config, overrides or [], method)
    if go_on and storage.exists(storage.join(runs, settings.name, "run.json")):
        _go_on(RunRegistry.open(storage.join(runs, settings.name)), settings, address)
        return
    # What can be seen to be wrong is said before anything is started or written.
    index = read_split(settings.dataset.path, settings.dataset.train)
    read_labels(index, settings.dataset.labels)
    check(settings)
    run_and_print(RunRegistry.create(runs, settings, index.dataset), address)


def resume(
    run: Annotated[str, typer.Argument(help="Name of the run below --runs, or its path or URL.")],
    overrides: Overrides = None,
    runs: Runs = "runs",
    address: Address = None,
    take_over: Annotated[bool, typer.Option("--take-over", help="Even if a driver seems to be at work.")] = False,
) -> None:
    """Go on with a run from its newest sound checkpoint, at the exact step.

    Examples:  boostlu resume coco_mini  ·  boostlu resume coco_mini workers.num=4 epochs=20

    Only settings that leave it the same run may change: epochs, workers.*, checkpoint.*, evaluate.*, loader.* ...
    """
    from trainer.run.registry import RunRegistry, find_run

    registry = RunRegistry.open(find_run(runs, run))
    result = registry.result()
    if result is not None:
        if overrides:
            raise UserError(f"run {registry.name} is finished already", "start a new run with other settings")
        print(f"run {registry.name} is finished already")
        print_result(registry.url, result)
        return
    if not take_over:
        registry.refuse_if_driven()
    registry.amend(overrides or [])
    _check_dataset(registry)
    _say_where(registry)
    run_and_print(registry, address, take_over)


def _go_on(registry: Any, settings: Any, address: str | None) -> None:
    """Resume a run that was started with the same settings. A driver that died on another host leaves a lease that
    nobody renews: a retried job waits until it has run out, and is refused when it does not."""
    import socket
    import time

    from trainer.run.registry import LEASE_SECONDS, lease_is_alive

    if registry.config() != settings:
        raise UserError(f"{registry.url} was made with other settings", "choose another name: name=...")
    deadline = time.monotonic() + LEASE_SECONDS + 5
    while (lease := registry.lease()) is not None and lease_is_alive(lease):
        if lease["host"] == socket.gethostname() or time.monotonic() > deadline:
            break
        time.sleep(0.5)
    resume(registry.url, address=address)


def _check_dataset(registry: Any) -> None:
    """Refuse a dataset that is not the run's own before anything is started."""
    from sharding.index import read_split

    dataset = registry.config().dataset
    found, expected = (
        read_split(dataset.path, dataset.train).dataset.fingerprint,
        registry.description()["fingerprint"],
    )
    if found != expected:
        raise UserError(
            f"{dataset.path} is not the dataset of run {registry.name!r} (fingerprint {found[:12]}, the run's is "
            f"{expected[:12]})",
            "point dataset.path at the original dataset, or start a new run",
        )


def _say_where(registry: Any) -> None:
    """Print which checkpoint the run will go on from, and which newer ones it cannot."""
    from trainer.run.checkpoint import problems

    for manifest in reversed(registry.checkpoints()):
        damage = problems(registry.url, manifest)
        if not damage:
            print(f"going on from step {manifest.step} (checkpoint {manifest.name})")
            return
        print(f"warning: checkpoint {manifest.name} is damaged and not used: {damage[0]}")
    print("no sound checkpoint: starting from the beginning")


def check(settings: Any) -> None:
    """Try out what a run will need: the other splits, the plan, the model with its weights."""
    from sharding.index import read_split
    from trainer.data.plan import SamplePlan
    from trainer.model.classifier import build_model

    splits = [settings.dataset.train, settings.dataset.validation, settings.dataset.test]
    indexes = [read_split(settings.dataset.path, split) for split in splits if split is not None]
    for index in indexes:
        if not len(index):
            raise UserError(f"split {index.name!r} of {index.root} is empty", "build the dataset with images in it")
    SamplePlan.from_config(settings.plan, indexes[0].shard_sizes, settings.seed)
    if settings.workers.num > settings.plan.global_batch:
        raise UserError(
            f"{settings.workers.num} workers cannot share plan.global_batch={settings.plan.global_batch}",
            "raise plan.global_batch or lower workers.num",
        )
    build_model(settings.model, len(indexes[0].dataset.classes), settings.seed)


def run_and_print(registry: Any, address: str | None, take_over: bool = False) -> None:
    """Drive the run with a progress bar; raises UserError or exits with 130 when it does not finish."""
    from cluster.nodes.local import ray_cluster
    from cluster.runs.preflight import check_cluster
    from sharding.index import read_split

    settings = registry.config()
    workers, evaluator = settings.workers, settings.evaluate
    print(f"run {registry.name} → {registry.url}")
    count = workers.least if address else workers.num  # a private cluster is made as large as the run likes
    with ray_cluster(address, count * workers.cpus + evaluator.cpus, count * workers.gpus + evaluator.gpus):
        if address:
            check_cluster(registry.url, settings, read_split(settings.dataset.path, settings.dataset.train))
        outcome = drive_with_progress(registry, take_over)
    if outcome.outcome == "finished":
        print_result(registry.url, outcome.result)
        return
    if outcome.outcome == "interrupted":
        print(f"stopped; go on with `boostlu resume {registry.url}`")
        raise SystemExit(130)
    raise outcome.error


def finish_run(runs: str, config: Any) -> Any:
    """Start the run that ``config`` names, or go on with it, until it is finished; return its registry.

    For commands that make several runs: what is finished stays as it is. Ray must be connected.
    """
    from sharding import storage
    from sharding.index import read_split
    from trainer.run.registry import RunRegistry

    url = storage.join(runs, config.name)
    if storage.exists(storage.join(url, "run.json")):
        registry = RunRegistry.open(url)
        if registry.config() != config:
            raise UserError(f"{url} was made with other settings", "choose another --output, or delete that folder")
        if registry.result() is not None:
            print(f"{config.name}: finished already")
            return registry
    else:
        registry = RunRegistry.create(runs, config, read_split(config.dataset.path, config.dataset.train).dataset)
    outcome = drive_with_progress(registry)
    if outcome.outcome == "interrupted":
        raise KeyboardInterrupt
    if outcome.outcome == "failed":
        raise outcome.error
    return registry


def drive_with_progress(registry: Any, take_over: bool = False) -> Any:
    """Drive the run with a progress bar on the terminal, a line now and then in a log; return its outcome.

    Ray must be connected.
    """
    import time

    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from cluster.cli.terminal import terminal
    from cluster.runs.launch import drive
    from sharding.index import read_split
    from trainer.data.plan import SamplePlan

    settings = registry.config()
    index = read_split(settings.dataset.path, settings.dataset.train)
    plan = SamplePlan.from_config(settings.plan, index.shard_sizes, settings.seed)
    said = time.monotonic()
    columns = (
        TextColumn("{task.description:<18}"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]}  val mAP {task.fields[score]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=terminal(), expand=True) as progress:
        total = settings.epochs * plan.steps_per_epoch
        task = progress.add_task(registry.name, total=total, loss="–", score="–")

        def watch(status: dict[str, Any]) -> None:
            nonlocal said
            loss = "–" if status["loss"] is None else f"{status['loss']:.4f}"
            score = "–" if status["validation_map"] is None else f"{100 * status['validation_map']:.2f}"
            progress.update(task, completed=status["step"], loss=loss, score=score)
            if not progress.console.is_terminal and time.monotonic() - said > LOG_SECONDS:
                print(f"step {status['step']} of {total}, loss {loss}, val mAP {score}", flush=True)
                said = time.monotonic()

        def log(line: str) -> None:
            progress.console.print(line, soft_wrap=True)

        outcome = drive(registry, watch, take_over, log)
        if outcome.outcome == "finished":
            progress.update(task, completed=total)
    return outcome


def print_result(url: str, result: dict[str, Any]) -> None:
    best, test = result["best"], result["test"]
    if best is None:
        print("no checkpoint could be evaluated; see the events of the run")
        return
    print(f"best on validation: epoch {best['epoch']}, mAP {100 * result['validation_map']:.2f}")
    if test is not None and test.get("map") is not None:
        print(f"test mAP of that checkpoint: {100 * test['map']:.2f} over {test['classes_averaged']} classes")
    print(f"everything is in {url}")
