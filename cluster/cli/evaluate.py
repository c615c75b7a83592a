"""``boostlu evaluate``: one checkpoint, one split, on this machine or on a Ray cluster."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from cluster.cli.train import Overrides, Runs
from sharding.errors import UserError


def evaluate(
    run: Annotated[str, typer.Argument(help="Name of the run below --runs, or its path or URL.")],
    overrides: Overrides = None,
    checkpoint: Annotated[str, typer.Option(help="best, last, or a step.")] = "best",
    split: Annotated[str | None, typer.Option(help="Split of the dataset; default: the run's test split.")] = None,
    runs: Runs = "runs",
    output: Annotated[str | None, typer.Option(help="Also write the record to this JSON file.")] = None,
    ray: Annotated[
        str | None,
        typer.Option(help="Evaluate on a Ray cluster: its address, 'auto', or 'local' for one started here."),
    ] = None,
) -> None:
    """Evaluate a checkpoint and print mAP and the average precision of each class.

    Example:  boostlu evaluate coco_mini --checkpoint best --split test model.alpha=5 model.boost=always
    """
    from sharding import storage
    from sharding.index import read_split
    from trainer.evaluation import evaluate as evaluate_checkpoint
    from trainer.run.registry import RunRegistry, find_run

    registry = RunRegistry.open(find_run(runs, run))
    settings = registry.config(overrides or [])
    manifest = choose_checkpoint(registry, checkpoint)
    split = split or settings.dataset.test or settings.dataset.validation
    classes = read_split(settings.dataset.path, split).dataset.classes
    if ray is None:
        record = evaluate_checkpoint(registry, manifest, split, settings)
    else:
        record = _evaluate_there(ray, registry, manifest, split, overrides or [])
    print_record(record, [c.name for c in classes])
    if output is not None:
        storage.write_json(output, record)


def _evaluate_there(address: str, registry: Any, manifest: Any, split: str, overrides: list[str]) -> dict[str, Any]:
    """Evaluate as a task of the cluster at ``address``, with the CPUs and GPUs that ``evaluate`` names."""
    from cluster.nodes.local import ray_cluster

    needs = registry.config(overrides).evaluate
    with ray_cluster(None if address == "local" else address, needs.cpus, needs.gpus):
        import ray

        from cluster.runs.coordinator import evaluate_task, evaluation_options
        from cluster.runs.launch import root_cause

        task = evaluate_task.options(**evaluation_options(needs))
        try:
            return ray.get(task.remote(registry.url, manifest, split, tuple(overrides)))
        except ray.exceptions.RayError as error:
            raise root_cause(error) from error


def choose_checkpoint(registry: Any, wanted: str) -> Any:
    """Return the manifest of ``best``, ``last`` or a step number."""
    from trainer.run.policies import best_checkpoint

    manifests = registry.checkpoints()
    if not manifests:
        raise UserError(f"run {registry.name!r} has no checkpoint yet", "wait for the first epoch to end")
    if wanted == "last":
        return manifests[-1]
    if wanted == "best":
        records = registry.evaluations(registry.config().dataset.validation)
        scores = {name: r["map"] for name, r in records.items() if r.get("map") is not None}
        best = best_checkpoint(manifests, scores)
        if best is None:
            raise UserError(f"no checkpoint of run {registry.name!r} was evaluated", "use --checkpoint last")
        return best
    for manifest in reversed(manifests):
        if wanted.isdigit() and manifest.step == int(wanted):
            return manifest
    steps = ", ".join(str(m.step) for m in manifests)
    raise UserError(f"run {registry.name!r} has no checkpoint {wanted!r}", f"there are best, last and steps {steps}")


def print_record(record: dict[str, Any], names: list[str]) -> None:
    from rich.table import Table

    from cluster.cli.terminal import terminal

    table = Table("class", "positives", "negatives", "AP", box=None, header_style="bold")
    for name, ap, positives, negatives in zip(
        names, record["ap"], record["positives"], record["negatives"], strict=True
    ):
        table.add_row(name, str(positives), str(negatives), "–" if ap is None else f"{100 * ap:.2f}")
    terminal().print(table)
    print(f"checkpoint {record['checkpoint']} on {record['split']} (alpha {record['alpha']:g})")
    if record["map"] is None:
        print("no class has a positive; mAP is not defined")
        return
    print(f"mAP {100 * record['map']:.2f} over {record['classes_averaged']} of {len(names)} classes")
