"""``boostlu explain``: what a run's model sees in an image."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Annotated, Any

import typer

from cluster.cli.train import Overrides, Runs
from sharding.errors import UserError

#: Classes shown when none are named.
TOP = 4


def explain(
    run: Annotated[str, typer.Argument(help="Name of the run below --runs, or its path or URL.")],
    image: Annotated[str, typer.Option(help="Image file or URL, of any size.")],
    overrides: Overrides = None,
    classes: Annotated[
        str | None, typer.Option(help=f"Class names, separated by commas; default: the {TOP} that score highest.")
    ] = None,
    checkpoint: Annotated[str | None, typer.Option(help="best, last, or a step; default: best if known.")] = None,
    output: Annotated[str | None, typer.Option(help="PNG file to write; default: IMAGE.RUN.png, here.")] = None,
    runs: Runs = "runs",
) -> None:
    """Draw class-activation maps over an image, with the score of each class above its map.

    Example:  boostlu explain an --image photo.jpg --classes dog,cat model.alpha=5
    """
    from cluster.cli.evaluate import choose_checkpoint
    from sharding import storage
    from trainer.explain.maps import Explainer, class_numbers
    from trainer.explain.overlay import draw_explanation
    from trainer.run.registry import RunRegistry, find_run

    registry = RunRegistry.open(find_run(runs, run))
    try:
        data = storage.read_bytes(image)
    except (FileNotFoundError, IsADirectoryError) as error:
        raise UserError(f"no image file {image}", "check --image") from error
    manifest = choose_checkpoint(registry, checkpoint) if checkpoint is not None else None
    explainer = Explainer(registry, registry.config(overrides or []), manifest)
    wanted = class_numbers(explainer.classes, [name.strip() for name in classes.split(",")]) if classes else None
    explanation = explainer.explain(data, image)
    shown = wanted if wanted is not None else explanation.top(TOP)
    target = output or f"{PurePosixPath(image).stem}.{registry.name}.png"
    caption = (
        f"run {registry.name}, epoch {explainer.manifest.epoch}, alpha {explainer.alpha:g}; one scale for all maps"
    )
    storage.write_atomic(target, draw_explanation(explanation, explainer.classes, shown, caption))
    print_scores(explanation, explainer.classes, shown)
    print(f"maps: {target}")


def print_scores(explanation: Any, names: list[str], shown: list[int]) -> None:
    from rich.table import Table

    from cluster.cli.terminal import terminal

    table = Table("class", "logit", "probability", box=None, header_style="bold")
    for number in shown:
        logit, probability = explanation.logits[number], explanation.probabilities[number]
        table.add_row(names[number], f"{logit:.3f}", f"{100 * probability:.1f} %")
    terminal().print(table)
