"""``boostlu report``: one HTML page about one or more runs."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from cluster.cli.train import Runs


def report(
    run: Annotated[list[str], typer.Argument(metavar="RUN...", help="Names of runs below --runs, or paths or URLs.")],
    output: Annotated[str, typer.Option(help="The HTML file to write.")] = "report.html",
    gallery: Annotated[bool, typer.Option(help="Draw class-activation maps of test images.")] = True,
    runs: Runs = "runs",
) -> None:
    """Write one self-contained HTML page about one or more runs: results, curves, label noise, what the models see.

    Example:  boostlu report full an ll-r-boostlu --output report.html

    The pictures compare the last run with the AN run among them, so name the most interesting one last.
    """
    from trainer.report import ReportRun, default_columns
    from trainer.report.published import method
    from trainer.run.registry import RunRegistry, find_run

    registries = [RunRegistry.open(find_run(runs, name)) for name in run]
    titles = [method(registry.config()) for registry in registries]
    titles = [t if titles.count(t) == 1 else r.name for t, r in zip(titles, registries, strict=True)]
    shown = [ReportRun(title, registry.url) for title, registry in zip(titles, registries, strict=True)]
    columns = default_columns(shown) if gallery else None
    heading = f"Report: {', '.join(titles)}" if len(titles) < 4 else f"Report on {len(titles)} runs"
    write_with_progress(shown, output, columns, heading)
    print(f"report: {output}")


def write_with_progress(runs: list[Any], output: str, columns: list[Any] | None, title: str) -> None:
    """Write a report (see :func:`trainer.report.write_report`) with a progress bar on the terminal."""
    from rich.progress import Progress

    from trainer.report import write_report

    with Progress(transient=True) as bar:
        task = bar.add_task("report", total=None)

        def note(what: str, done: int, total: int) -> None:
            bar.update(task, description=what, completed=done, total=total)

        write_report(runs, output, columns, title, note)
