"""``boostlu demo``: the whole road on generated digit scenes."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Annotated, Any

import typer

from sharding import storage


@dataclass(frozen=True)
class Method:
    """One row of the demo. ``published``: test mAP on PASCAL VOC, one positive an image (BoostLU, CVPR 2023)."""

    title: str
    run: str
    overrides: tuple[str, ...]
    published: float


METHODS = (
    Method(
        "full labels", "full", ("loss.name=bce", "loss.delta=null", "dataset.labels=full", "model.alpha=1"), 89.42
    ),
    Method("AN", "an", ("loss.name=an", "loss.delta=null", "model.alpha=1"), 85.89),
    Method("LL-R", "ll-r", ("loss.name=ll-r", "model.alpha=1"), 88.27),
    Method("LL-R + BoostLU", "ll-r-boostlu", ("loss.name=ll-r",), 89.29),
)
#: The published ablation: a model trained with plain AN, boosted only when predicting.
BOOSTED_AT_INFERENCE = ("AN + BoostLU at inference", 87.31)


def demo(
    output: Annotated[str, typer.Option(help="Folder for the dataset, the runs and the report.")] = "demo",
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[a.b=c]...", help="Settings to change in every run.")
    ] = None,
) -> None:
    """Build digit scenes, train four methods on two workers, write a report.

    Example:  boostlu demo --output /tmp/demo epochs=2

    Run it again after Ctrl-C: what is finished is kept, the rest goes on.
    """
    from cluster.cli.train import finish_run
    from cluster.nodes.local import ray_cluster
    from trainer.run.registry import RunRegistry

    began = time.perf_counter()
    data, runs = storage.join(output, "data", "digits"), storage.join(output, "runs")
    print("── 1. dataset: scenes of real handwritten digits → WebDataset shards")
    _build(data)
    configs = [_config(method, data, overrides or []) for method in METHODS]
    print("── 2. training: two DDP workers on a local Ray, evaluation beside them")
    workers, evaluator = configs[0].workers, configs[0].evaluate
    with ray_cluster(None, workers.num * workers.cpus + evaluator.cpus, workers.num * workers.gpus + evaluator.gpus):
        for config in configs:
            finish_run(runs, config)
    registries = [RunRegistry(storage.join(runs, method.run)) for method in METHODS]
    boosted = _boost_at_inference(registries[1])
    print("── 3. result: test mAP of the checkpoint that is best on validation")
    _table(registries, boosted)
    report = storage.join(output, "report.html")
    _report(registries, report)
    print(f"report: {report}")
    print(f"took {time.perf_counter() - began:.0f} s; next: boostlu runs list --runs {runs}")


def _build(data: str) -> None:
    from rich.progress import Progress

    from sharding.build import build_dataset
    from sharding.overlays import write_single_positive

    with Progress() as progress:
        task = progress.add_task("scenes", total=None)

        def note(state: Any) -> None:
            progress.update(task, completed=state.samples_done, total=state.samples)

        info = build_dataset("digits", data, progress=note)
        samples = sum(split.samples for split in info.splits.values())
        progress.update(task, completed=samples, total=samples)
    write_single_positive(data)
    sizes = ", ".join(f"{name} {split.samples}" for name, split in info.splits.items())
    print(f"{data}: {sizes} scenes; training sees one positive label of each")


def _config(method: Method, data: str, overrides: list[str]) -> Any:
    from importlib.resources import files

    from trainer.config import load_config

    preset = str(files("configs").joinpath("digits.yaml"))
    return load_config(preset, [f"name={method.run}", f"dataset.path={data}", *method.overrides, *overrides])


def _boost_at_inference(registry: Any) -> dict[str, Any]:
    """Evaluate the AN run's best checkpoint on test with BoostLU switched on."""
    from cluster.cli.evaluate import choose_checkpoint
    from trainer.evaluation import evaluate

    config = registry.config(["model.alpha=5"])
    return evaluate(registry, choose_checkpoint(registry, "best"), config.dataset.test, config)


def _table(registries: list[Any], boosted: dict[str, Any]) -> None:
    from rich.table import Table

    from cluster.cli.terminal import terminal

    table = Table(header_style="bold")
    table.add_column("method", no_wrap=True)
    for title in ("digits: val mAP", "digits: test mAP", "published: VOC"):
        table.add_column(title, justify="right")
    for method, registry in zip(METHODS, registries, strict=True):
        result = registry.result()
        row = (f"{100 * result['validation_map']:.2f}", f"{100 * result['test']['map']:.2f}")
        table.add_row(method.title, *row, f"{method.published:.2f}")
        if method.run == "an":
            title, published = BOOSTED_AT_INFERENCE
            table.add_row(title, "", f"{100 * boosted['map']:.2f}", f"{published:.2f}")
    terminal().print(table)
    print("one positive label an image, except full labels; the VOC column is for orientation, not for comparison")


def _report(registries: list[Any], report: str) -> None:
    from cluster.cli.report import write_with_progress
    from trainer.report import GalleryColumn, ReportRun

    titles = [method.title for method in METHODS]
    runs = [ReportRun(title, registry.url) for title, registry in zip(titles, registries, strict=True)]
    full, an, _, boosted = (registry.url for registry in registries)
    gallery = [
        GalleryColumn("full labels", full, ()),
        GalleryColumn("AN", an, ()),
        GalleryColumn(BOOSTED_AT_INFERENCE[0], an, ("model.alpha=5",)),
        GalleryColumn("LL-R + BoostLU", boosted, ()),
    ]
    write_with_progress(runs, report, gallery, "Digit scenes with one positive label an image")
