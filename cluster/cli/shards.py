"""``boostlu shards``: build, verify and describe datasets."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from sharding.errors import UserError

app = typer.Typer(add_completion=False, no_args_is_help=True, rich_markup_mode=None)

Dataset = Annotated[str, typer.Argument(help="The dataset: a folder or any fsspec URL.", show_default=False)]
Processes = Annotated[int, typer.Option("--processes", "-p", min=1, help="Worker processes on this machine.")]
Ray = Annotated[
    str | None,
    typer.Option(
        help="Run on a Ray cluster: its address, 'auto', or 'local' for one started here.", show_default=False
    ),
]
_CORES = os.cpu_count() or 1


@app.callback()
def shards() -> None:
    """Build, verify and describe datasets of WebDataset shards.

    Example:  boostlu shards build coco --source ~/coco --output data/coco
    """


@app.command()
def build(
    source: Annotated[str, typer.Argument(help="Name of the source; `boostlu shards sources` lists them.")],
    output: Annotated[str, typer.Option("--output", "-o", help="Where the dataset goes: a folder or URL.")],
    source_path: Annotated[str | None, typer.Option("--source", "-s", help="Folder, file or URL to read.")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="An option of the source; repeatable.")
    ] = None,
    image: Annotated[str, typer.Option(help="original | fit:PIXELS | squash:PIXELS")] = "original",
    format_: Annotated[str, typer.Option("--format", help="Of re-encoded images: jpeg, png, webp.")] = "jpeg",
    quality: Annotated[int, typer.Option(min=1, max=100, help="Of re-encoded JPEG and WebP images.")] = 90,
    max_pixels: Annotated[int, typer.Option(min=1, help="Reject larger images unread.")] = 100_000_000,
    on_conflict: Annotated[
        str | None, typer.Option(help="Labels both positive and negative: error, positive, negative, unobserved.")
    ] = None,
    check: Annotated[str, typer.Option(help="Of original images: structure, or decode (every pixel).")] = "structure",
    samples_per_shard: Annotated[int | None, typer.Option(min=1, help="Default: what suits the source.")] = None,
    max_rejected: Annotated[float, typer.Option(min=0, max=1, help="Share of unusable images to tolerate.")] = 0.05,
    single_positive: Annotated[
        int | None, typer.Option(metavar="SEED", help="Also write the single-positive overlay of train.")
    ] = None,
    processes: Processes = _CORES,
    ray: Ray = None,
    download: Annotated[
        bool, typer.Option("--download", help="First fetch the official archives into --source.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the plan and a size estimate; write nothing.")
    ] = False,
) -> None:
    """Build a dataset. Interrupted at any moment, the same command goes on where it stopped.

    Examples:

      boostlu shards build digits --output data/digits

      boostlu shards build coco --source ~/coco --set year=2014 --image fit:512 --output s3://bucket/coco

      boostlu shards build table --source labels.csv --set images=photos --output data/mine
    """
    from cluster.cli import shards_view as view
    from sharding import sources
    from sharding.build import completed, make_plan, run_plan
    from sharding.overlays import write_single_positive
    from sharding.pool import inline, warm_up

    if processes > 1 and ray is None and not dry_run:
        warm_up()
    options = _options(source, source_path, [*(set_ or []), *([f"on_conflict={on_conflict}"] if on_conflict else [])])
    if download:
        _download(source, options)
    images = _image_options(image, format=format_, quality=quality, max_pixels=max_pixels, check=check)
    data = sources.load(source, options)
    plan = make_plan(data, output, source, options, images, samples_per_shard)
    view.show_plan(plan)
    if dry_run:
        return
    if completed(plan):
        run_plan(plan, inline)  # removes what a build that was killed at its very end left behind
        view.show_complete(output)
    else:
        with _engine(ray, processes, output) as engine, view.build_progress(plan) as progress:
            info = run_plan(plan, engine, max_rejected, progress)
        view.show_dataset(output, info)
    if single_positive is not None:
        typer.echo(f"overlay: {write_single_positive(output, single_positive)}")


@app.command()
def sources(name: Annotated[str | None, typer.Argument(help="Show the options of this source.")] = None) -> None:
    """List the sources, or the options of one.

    Example:  boostlu shards sources coco
    """
    from cluster.cli import shards_view as view

    view.show_sources(name)


@app.command()
def verify(
    dataset: Dataset,
    decode: Annotated[str, typer.Option(help="Images to decode in each shard: a number, or all.")] = "8",
    repair: Annotated[bool, typer.Option("--repair", help="Rebuild what is damaged, from --source.")] = False,
    source_path: Annotated[str | None, typer.Option("--source", "-s", help="For --repair: the original.")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="For --repair: other paths of the build.")
    ] = None,
    processes: Processes = _CORES,
    ray: Ray = None,
) -> None:
    """Check hashes, counts, keys, labels and pixels; exit status 1 when something is wrong.

    Example:  boostlu shards verify data/coco --decode all
    """
    from cluster.cli import shards_view as view
    from sharding.repair import plan_again
    from sharding.repair import repair as rebuild
    from sharding.verify import verify as check

    if decode != "all" and not decode.isdigit():
        raise UserError(f"--decode {decode!r} is no number", "give how many images a shard, or all")
    with _engine(ray, processes, dataset) as engine, view.shard_progress("verifying") as progress:
        report = check(dataset, -1 if decode == "all" else int(decode), engine, progress)
    view.show_report(dataset, report)
    if not report.problems:
        return
    if not repair:
        raise typer.Exit(1)
    plan = plan_again(
        dataset, {"source": source_path, **dict(pair.split("=", 1) for pair in set_ or [] if "=" in pair)}
    )
    with _engine(ray, processes, dataset) as engine:
        typer.echo(f"rebuilt: {', '.join(rebuild(plan, report, engine))}")
        again = check(dataset, 0, engine)
    view.show_report(dataset, again)
    if again.problems:
        raise typer.Exit(1)


@app.command()
def stats(
    dataset: Dataset,
    labels: Annotated[str, typer.Option(help="full, or the name of a label overlay.")] = "full",
    png: Annotated[Path | None, typer.Option(help="Also draw this picture.", show_default=False)] = None,
    split: Annotated[str | None, typer.Option(help="Split of the picture and the class table.")] = None,
    classes: Annotated[int, typer.Option(min=0, help="Rows of the class table; 0 for all.")] = 20,
) -> None:
    """Count labels per class and per image, image sizes and co-occurrence.

    Example:  boostlu shards stats data/coco --labels single-positive-1200 --png stats.png
    """
    from cluster.cli import shards_view as view
    from sharding.errors import did_you_mean
    from sharding.stats import dataset_stats

    info, found = dataset_stats(dataset, labels)
    by_name = {one.split: one for one in found}
    if split is not None and split not in by_name:
        raise UserError(f"{dataset} has no split {split!r} under labels {labels!r}", did_you_mean(split, by_name))
    chosen = by_name[split or ("train" if "train" in by_name else next(iter(by_name)))]
    view.show_stats(dataset, info, found, chosen, classes)
    if png is not None:
        from sharding.stats_figure import draw_stats

        png.write_bytes(draw_stats(dataset, info, chosen))
        typer.echo(f"picture: {png}")


@app.command()
def observe(
    dataset: Dataset,
    protocol: Annotated[str, typer.Option(help="cole2021 | positives | fpc | rps | full")] = "cole2021",
    positives: Annotated[int, typer.Option(min=-1, help="Positives a sample (fpc: a class); -1 for all.")] = 1,
    negatives: Annotated[int, typer.Option(min=-1, help="Verified negatives, likewise.")] = 0,
    keep: Annotated[float, typer.Option(min=0, max=1, help="rps: probability that a label is observed.")] = 0.5,
    seed: Annotated[int, typer.Option(min=0)] = 1200,
    split: Annotated[list[str] | None, typer.Option(help="Default: train; repeatable.")] = None,
    name: Annotated[str | None, typer.Option(help="Name of the overlay.", show_default=False)] = None,
) -> None:
    """Choose which of the known labels training may see, and write the choice as a label overlay.

    Example:  boostlu shards observe data/coco --protocol cole2021 --positives 1
    """
    from sharding.errors import did_you_mean
    from sharding.overlays import write_overlay
    from sharding.protocols import PROTOCOLS, Observation

    if protocol not in PROTOCOLS:
        raise UserError(f"unknown protocol {protocol!r}", did_you_mean(protocol, PROTOCOLS))
    fields = {"protocol": protocol, "positives": positives, "negatives": negatives, "keep": keep, "seed": seed}
    typer.echo(f"overlay: {write_overlay(dataset, Observation.model_validate(fields), split or ['train'], name)}")


@app.command()
def preview(
    dataset: Dataset,
    output: Annotated[Path, typer.Option("--output", "-o", help="The PNG to write.")] = Path("preview.png"),
    split: Annotated[str, typer.Option()] = "train",
    labels: Annotated[str, typer.Option(help="full, or the name of a label overlay.")] = "full",
    count: Annotated[int, typer.Option(min=1, max=600)] = 24,
    seed: Annotated[int, typer.Option(min=0, help="Chooses the samples.")] = 0,
) -> None:
    """Draw a contact sheet of random samples with the names of their labels.

    Example:  boostlu shards preview data/coco --split test -o sheet.png
    """
    from sharding.preview import contact_sheet

    output.write_bytes(contact_sheet(dataset, split, labels, count, seed))
    typer.echo(f"picture: {output}")


@app.command("export-labels")
def export_labels(
    dataset: Dataset,
    output: Annotated[str, typer.Option("--output", "-o", help="The Parquet file to write.")] = "labels.parquet",
    labels: Annotated[str, typer.Option(help="full, or the name of a label overlay.")] = "full",
    split: Annotated[str | None, typer.Option(help="Default: all.", show_default=False)] = None,
) -> None:
    """Write the labels as one flat Parquet table: split, sample, class, value (1 or -1).

    Example:  boostlu shards export-labels data/coco -o labels.parquet
    """
    from sharding.export import export_labels as export

    typer.echo(f"{export(dataset, output, labels, split)} labels: {output}")


def _download(source: str, options: dict[str, Any]) -> None:
    from sharding.download import archives_of, download

    if "source" not in options:
        raise UserError("--download needs a folder to fetch into", "give it with --source")
    download(archives_of(source, options), Path(options["source"]), typer.echo)


def _options(source: str, path: str | None, pairs: list[str]) -> dict[str, Any]:
    from sharding import sources
    from sharding.errors import did_you_mean

    known = sources.options_of(source).model_fields
    options: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals:
            raise UserError(f"--set {pair!r} has no value", "write --set KEY=VALUE")
        if key not in known:
            raise UserError(f"source {source!r} has no option {key!r}", did_you_mean(key, known))
        options[key] = value
    if path is not None:
        if "source" not in known:
            raise UserError(f"source {source!r} makes its own images", "leave --source out")
        options["source"] = path
    return options


def _image_options(mode: str, **rest: Any) -> Any:
    from pydantic import ValidationError

    from sharding.images import ImageOptions

    try:
        return ImageOptions.parse(mode, **rest)
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(f"--{str(first['loc'][0]).replace('_', '-')}: {first['msg']}", "see --help") from error


def _engine(ray: str | None, processes: int, url: str) -> Any:
    """Return a context manager that gives the engine to run shard tasks on."""
    from contextlib import nullcontext

    if ray is not None:
        from cluster.shard_engine import ray_engine

        return ray_engine(ray, processes)
    from sharding.build import default_engine

    return nullcontext(default_engine(url, processes))
