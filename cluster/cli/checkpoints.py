"""``boostlu checkpoints``: what is kept of a run, whether it is sound, and weights for use elsewhere."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from cluster.cli.train import Runs
from sharding.errors import UserError

app = typer.Typer(add_completion=False, no_args_is_help=True, help="List, verify, prune and export checkpoints.")

Run = Annotated[str, typer.Argument(help="Name of the run below --runs, or its path or URL.")]


@app.command("list")
def list_(run: Run, runs: Runs = "runs") -> None:
    """List a run's committed checkpoints with size and validation mAP.

    Example:  boostlu checkpoints list digits-ll-r
    """
    from rich.table import Table

    from cluster.cli.terminal import terminal

    registry = _open(run, runs)
    records = registry.evaluations(registry.config().dataset.validation)
    table = Table("checkpoint", "step", "epoch", "MB", "val mAP", box=None, header_style="bold")
    for manifest in registry.checkpoints():
        size = sum(file["bytes"] for file in manifest.files.values()) / 1e6
        score = records.get(manifest.name, {}).get("map")
        shown = "–" if score is None else f"{100 * score:.2f}"
        table.add_row(manifest.name, str(manifest.step), str(manifest.epoch), f"{size:.1f}", shown)
    terminal().print(table)


@app.command()
def verify(run: Run, runs: Runs = "runs") -> None:
    """Check every file of every checkpoint against its manifest; exit status 1 when something is damaged.

    Example:  boostlu checkpoints verify s3://bucket/runs/coco
    """
    from trainer.run.checkpoint import problems

    registry, damaged = _open(run, runs), 0
    for manifest in registry.checkpoints():
        found = problems(registry.url, manifest)
        damaged += bool(found)
        print(f"{manifest.name}: {'; '.join(found) or 'sound'}")
    if damaged:
        print(f"{damaged} damaged; resume uses the newest sound one")
        raise SystemExit(1)


@app.command()
def prune(
    run: Run,
    runs: Runs = "runs",
    keep_last: Annotated[int, typer.Option(min=1, help="Newest checkpoints to keep beside the best.")] = 1,
) -> None:
    """Delete all checkpoints but the best and the newest, and what failed saves left behind.

    Example:  boostlu checkpoints prune digits-ll-r --keep-last 1
    """
    from trainer.run.policies import superfluous

    registry = _open(run, runs)
    if registry.state() == "running":
        raise UserError(f"run {registry.name!r} is running", "stop it first: its coordinator prunes meanwhile")
    records = registry.evaluations(registry.config().dataset.validation)
    scores = {name: record["map"] for name, record in records.items() if record.get("map") is not None}
    doomed = superfluous(registry.checkpoints(), scores, set(), keep_last)
    for manifest in doomed:
        registry.delete_checkpoint(manifest)
        print(f"deleted {manifest.name}")
    for name in registry.orphans():
        registry.delete_orphan(name)
        print(f"deleted {name}, which was never committed")
    print(f"{len(registry.checkpoints())} checkpoints are left")


@app.command()
def export(
    run: Run,
    output: Annotated[str, typer.Option(help="File to write: safetensors.")],
    runs: Runs = "runs",
    checkpoint: Annotated[str, typer.Option(help="best, last, or a step.")] = "best",
    weights: Annotated[str, typer.Option(help="raw, or ema where the run keeps an average.")] = "raw",
) -> None:
    """Write a checkpoint's weights as one safetensors file with classes, alpha and configuration as metadata.

    Example:  boostlu checkpoints export digits-ll-r --checkpoint best --output model.safetensors
    """
    import json

    from safetensors.torch import save

    from cluster.cli.evaluate import choose_checkpoint
    from sharding import storage
    from trainer.run.checkpoint import read_average, read_model

    registry = _open(run, runs)
    manifest = choose_checkpoint(registry, checkpoint)
    if weights not in ("raw", "ema"):
        raise UserError(f"--weights {weights!r}", "choose raw or ema")
    tensors = (read_average if weights == "ema" else read_model)(registry.url, manifest)
    if not tensors:
        raise UserError(f"run {registry.name!r} keeps no moving average", "train with optimizer.ema_decay=0.999")
    metadata = {
        "classes": json.dumps(registry.description()["classes"], ensure_ascii=False),
        "alpha": str(registry.config().model.alpha),
        "config": registry.config().to_yaml(),
        "checkpoint": manifest.name,
    }
    storage.write_atomic(output, save(tensors, metadata))
    print(f"{manifest.name} ({weights} weights) → {output}")


def _open(run: str, runs: str) -> Any:
    from trainer.run.registry import RunRegistry, find_run

    return RunRegistry.open(find_run(runs, run))
