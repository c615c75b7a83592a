"""``boostlu bench``: figures of this machine, each beside a peer measured in the same run."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import Annotated, Any

import typer

from sharding.errors import UserError

app = typer.Typer(add_completion=False, no_args_is_help=True, rich_markup_mode=None)

Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


@app.callback()
def root() -> None:
    """Measure against a peer in the same run: ratios carry over to other machines, seconds do not."""


@app.command()
def loss(
    batch: Annotated[int, typer.Option(help="Images of the global batch.")] = 256,
    classes: Annotated[int, typer.Option(help="Classes.")] = 5_000,
    channels: Annotated[int, typer.Option(help="Channels of the feature map.")] = 2_048,
    samples: Annotated[int, typer.Option(help="Samples of the corrections table.")] = 3_600_000,
    step_images: Annotated[int, typer.Option(help="Images of the training step compared with; scaled up.")] = 4,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    as_json: Json = False,
) -> None:
    """Large-loss selection, the BoostLU head's speed and memory, LL-Cp's corrections. Minutes on a CPU."""
    from cluster.bench.loss import Size, measure

    size = Size(batch=batch, classes=classes, channels=channels, samples=samples, step_images=step_images)
    show(measure(size, device), as_json)


@app.command()
def metrics(
    samples: Annotated[int, typer.Option(help="Images.")] = 125_436,
    entries: Annotated[int, typer.Option(help="Verified labels.")] = 1_670_000,
    classes: Annotated[int, typer.Option(help="Classes.")] = 5_000,
    as_json: Json = False,
) -> None:
    """Average precision from verified labels beside scikit-learn over a dense matrix (which takes 3 GB)."""
    from cluster.bench.metrics import Size, measure

    show(measure(Size(samples=samples, entries=entries, classes=classes)), as_json)


@app.command()
def loader(
    photos: Annotated[str | None, typer.Option(help="Folder of JPEGs; default: the sample data.")] = None,
    count: Annotated[int, typer.Option(help="Photos in a pass; repeated if there are fewer.")] = 1_000,
    rounds: Annotated[int, typer.Option(help="Rounds, each with every contestant; the best counts.")] = 3,
    only: Annotated[list[str] | None, typer.Option(help="Contestants to run; default: all.")] = None,
    as_json: Json = False,
) -> None:
    """Images a second beside other loaders (extra ``bench``) and the bare decoder; memory; a launch loop's delay."""
    from cluster.bench.loader import measure

    show(measure(photos, count, rounds, only or ()), as_json)


@app.command()
def index(
    samples: Annotated[int, typer.Option(help="Samples of the made-up split.")] = 9_000_000, as_json: Json = False
) -> None:
    """Opening a very large split, planning an epoch, resuming late in it, and the memory of eight processes."""
    from cluster.bench.index import measure

    show(measure(samples), as_json)


@app.command()
def shards(
    photos: Annotated[str, typer.Option(help="Folder with JPEGs.")],
    count: Annotated[int, typer.Option(help="Photos to write; repeated if there are fewer.")] = 20_000,
    annotations: Annotated[
        int, typer.Option(help="Rows of made-up Open Images labels; 0 leaves it out.")
    ] = 20_900_000,
    processes: Annotated[int, typer.Option(help="Of our build.")] = 2,
    folder: Annotated[str | None, typer.Option(help="Where to write; needs three times the photos' size.")] = None,
    as_json: Json = False,
) -> None:
    """Building, re-encoding, indexing and planning shards beside a ShardWriter loop, a Pillow loop and tarfile."""
    from cluster.bench.shards import measure

    show(measure(photos, count, annotations, processes, folder), as_json)


@app.command()
def checkpoint(
    backbone: Annotated[str, typer.Option(help="As model.backbone.")] = "resnet50",
    classes: Annotated[int, typer.Option(help="Classes.")] = 80,
    rounds: Annotated[int, typer.Option(help="Saves of each kind; the median counts.")] = 5,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    as_json: Json = False,
) -> None:
    """How long a save holds up the step loop, beside one that waits; training speed while a save is written."""
    from cluster.bench.checkpoint import measure

    show(measure(backbone, classes, rounds, device), as_json)


@app.command()
def scaling(
    model: Annotated[
        bool, typer.Option("--model", help="Only print the table for many GPUs, from the constants.")
    ] = False,
    gpus: Annotated[list[int] | None, typer.Option(help="With --model: numbers of GPUs; default 8, 64, 512.")] = None,
    backbone: Annotated[str, typer.Option(help="As model.backbone.")] = "small_resnet:32",
    batch: Annotated[int, typer.Option(help="Images a process.")] = 16,
    steps: Annotated[int, typer.Option(help="Steps of each run.")] = 80,
    rounds: Annotated[int, typer.Option(help="Rounds of 1 and 2 processes; the best counts.")] = 2,
    as_json: Json = False,
) -> None:
    """One and two processes on this machine, and a Ray of two workers; or, on paper, many GPUs (docs/SCALING.md)."""
    if model:
        _show_model(tuple(gpus or (8, 64, 512)), as_json)
        return
    from cluster.bench.scaling import measure

    show(measure(backbone, batch, steps, rounds), as_json)


def _show_model(gpus: tuple[int, ...], as_json: bool) -> None:
    from dataclasses import asdict

    from cluster.bench.scaling_model import Constants, estimate, table

    if min(gpus) < 1:
        raise UserError(f"--gpus {min(gpus)} is no number of GPUs", "give 1 or more")
    if as_json:
        constants = Constants()
        estimates = [asdict(estimate(count, constants)) for count in gpus]
        print(json.dumps({"constants": asdict(constants), "estimates": estimates}, indent=2))
        return
    from rich.table import Table

    from cluster.cli.terminal import terminal

    head, *rows = table(gpus)
    shown = Table(head[0], box=None, header_style="bold")
    for title in head[1:]:
        shown.add_column(title, justify="right")
    for row in rows:
        shown.add_row(*row)
    terminal().print(shown)


@app.command()
def chaos(
    minutes: Annotated[float, typer.Option(help="How long to disturb; the run then under way is finished.")] = 20,
    seed: Annotated[int, typer.Option(help="Of the choice of faults and of when they come.")] = 0,
    as_json: Json = False,
) -> None:
    """Kill, stop and damage running jobs at random; they must end, bit for bit, where an undisturbed one ends.

    Example:  boostlu bench chaos --minutes 20
    """
    from cluster.bench.chaos import measure

    figures = measure(minutes, seed, say=lambda line: print(line, flush=True, file=sys.stderr))
    show(figures, as_json)
    if figures["lost"] != "nothing":
        raise SystemExit(1)


def show(figures: dict[str, Any], as_json: bool) -> None:
    """Print nested figures, one a line."""
    if as_json:
        print(json.dumps(figures, indent=2))
        return
    lines = list(_lines(figures))
    width = max(len(name) for name, _ in lines)
    for name, value in lines:
        print(f"{name:<{width}}  {value}")


def _lines(figures: Any, name: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(figures, dict | list):
        items = figures.items() if isinstance(figures, dict) else enumerate(figures)
        for key, value in items:
            yield from _lines(value, f"{name}.{key}" if name else str(key))
    elif name.endswith("bytes") and isinstance(figures, int):
        yield name, f"{figures / 1e6:,.1f} MB"
    else:
        yield name, f"{figures:.4g}" if isinstance(figures, float) else str(figures)
