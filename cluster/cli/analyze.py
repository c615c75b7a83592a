"""``boostlu analyze``: do two models explain the same objects alike, and how strongly?"""

from __future__ import annotations

from typing import Annotated, Any

import typer

from cluster.cli.train import Overrides, Runs


def analyze(
    first: Annotated[
        str, typer.Argument(metavar="RUN_A", help="The reference, for example trained with full labels.")
    ],
    second: Annotated[str, typer.Argument(metavar="RUN_B", help="The run to compare with it.")],
    overrides: Overrides = None,
    split: Annotated[str | None, typer.Option(help="Split of RUN_A's dataset; default: its test split.")] = None,
    images: Annotated[int, typer.Option(min=1, help="How many images of the split, from its beginning.")] = 1000,
    output: Annotated[str, typer.Option(help="The HTML file to write.")] = "analysis.html",
    runs: Runs = "runs",
) -> None:
    """Compare the class-activation maps of two runs: their order, their strength, and whether they lie in the boxes.

    A table here, the plots in an HTML page. Settings change RUN_B only.

    Example:  boostlu analyze full an model.alpha=5 --output analysis.html
    """
    from rich.progress import Progress

    from sharding import storage
    from sharding.index import read_split
    from trainer.classes import require_same_classes
    from trainer.explain.analysis import compare, summary
    from trainer.explain.maps import Explainer
    from trainer.report.analysis_page import render_analysis
    from trainer.run.registry import RunRegistry, find_run

    one, two = (RunRegistry.open(find_run(runs, run)) for run in (first, second))
    explainers = Explainer(one), Explainer(two, two.config(overrides or []))
    config = explainers[0].config
    index = read_split(config.dataset.path, split or config.dataset.test or config.dataset.validation)
    for registry in (one, two):
        require_same_classes(registry, index)
    with Progress(transient=True) as bar:
        task = bar.add_task("explaining images", total=None)
        comparison = compare(*explainers, index, images, lambda done, of: bar.update(task, completed=done, total=of))
    titles = one.name, " ".join([two.name, *(overrides or [])])
    numbers = summary(comparison)
    storage.write_atomic(output, render_analysis(comparison, numbers, titles, index.name).encode())
    print_summary(numbers, titles)
    print(f"plots: {output}")


def print_summary(numbers: dict[str, Any], titles: tuple[str, str]) -> None:
    from rich.table import Table

    from cluster.cli.terminal import terminal
    from trainer.report.analysis_page import MEASURES

    table = Table("mean over present classes", *titles, "by chance", box=None, header_style="bold")
    for key, label, form in MEASURES:
        cells = [numbers.get(f"{key}_{which}") for which in ("first", "second", "chance")]
        table.add_row(label, *("–" if cell is None else form.format(cell) for cell in cells))
    terminal().print(table)
    print(
        f"{numbers['objects']} present classes in {numbers['images']} images, boxes known for {numbers['with_boxes']}"
    )
    if numbers["correlation"] is not None:
        control = (
            "" if numbers["control"] is None else f" (with the map of an absent class: {numbers['control']:.3f})"
        )
        print(f"rank correlation of the two models' maps: {numbers['correlation']:.3f}{control}")
