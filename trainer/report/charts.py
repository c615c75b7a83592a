"""The charts of a report, each from plain facts to one SVG; every run has the same colour and marker throughout."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from trainer.report.facts import RunFacts
from trainer.report.svg import MUTED, PAPER, figure, series_colour, series_style, to_svg

#: Classes shown in the per-class chart; of more, those in which the runs differ most.
CLASSES_SHOWN = 24


def loss_chart(runs: Sequence[RunFacts]) -> str:
    """Mean training loss by epoch."""
    with figure(6.0, 3.4) as drawn:
        axes = drawn.subplots()
        for number, run in enumerate(runs):
            points = [(e.number, e.loss) for e in run.epochs]
            axes.plot(*_columns(points), label=run.title, **series_style(number))
        axes.set_title("training loss")
        _epoch_axis(axes)
        axes.set_ylim(bottom=0)
        ends = [f"{run.title} ends at {run.epochs[-1].loss:.3f}" for run in runs if run.epochs]
        return to_svg(drawn, "loss", f"Line chart: training loss by epoch. {_sentence(ends)}")


def score_chart(runs: Sequence[RunFacts]) -> str:
    """Validation mAP by epoch; the best epoch has a ring."""
    with figure(6.0, 3.4) as drawn:
        axes, said = drawn.subplots(), []
        for number, run in enumerate(runs):
            points = [(epoch, 100 * score) for epoch, score in sorted(run.scores.items())]
            axes.plot(*_columns(points), label=run.title, **series_style(number))
            if run.best_epoch is not None and run.best_score is not None:
                ring = {"markersize": 12, "markerfacecolor": "none", "markeredgecolor": series_colour(number)}
                axes.plot([run.best_epoch], [100 * run.best_score], "o", **ring)
                said.append(f"{run.title} is best in epoch {run.best_epoch} with {100 * run.best_score:.1f} %")
        axes.set_title("validation mAP, %")
        _epoch_axis(axes)
        return to_svg(drawn, "score", f"Line chart: validation mAP by epoch. {_sentence(said)}")


def class_chart(runs: Sequence[RunFacts]) -> str:
    """AP of each class, one bar a run."""
    known = [(number, run) for number, run in enumerate(runs) if run.per_class]
    classes = shown_classes([run.per_class["ap"] for _, run in known if run.per_class])
    names = [known[0][1].classes[c] for c in classes]
    with figure(12.4, 3.6) as drawn:
        axes = drawn.subplots()
        width = 0.82 / len(known)
        for place, (number, run) in enumerate(known):
            values = [100 * ((run.per_class or {})["ap"][c] or 0) for c in classes]
            offset = (place - (len(known) - 1) / 2) * width
            axes.bar(
                np.arange(len(classes)) + offset, values, width * 0.92, color=series_colour(number), label=run.title
            )
        axes.set_xticks(range(len(classes)), names, rotation=0 if max(map(len, names)) * len(names) < 110 else 45)
        axes.set_xlim(-0.6, len(classes) - 0.4)
        axes.set_title("average precision of each class, %")
        axes.grid(visible=False, axis="x")
        means = ", ".join(f"{run.title} {100 * run.per_class['map']:.1f}" for _, run in known if run.per_class)
        return to_svg(drawn, "classes", f"Bar chart: average precision of {len(classes)} classes. Means: {means}.")


def shown_classes(per_run: Sequence[Sequence[float | None]]) -> list[int]:
    """Return the class numbers to show, in order: all, or those whose AP differs most between runs."""
    values = np.array([[np.nan if ap is None else ap for ap in run] for run in per_run], float)
    defined = np.flatnonzero(~np.isnan(values).all(axis=0))
    if len(defined) <= CLASSES_SHOWN:
        return [int(c) for c in defined]
    spread = np.nanmax(values[:, defined], axis=0) - np.nanmin(values[:, defined], axis=0)
    return sorted(int(c) for c in defined[np.argsort(-spread, kind="stable")[:CLASSES_SHOWN]])


def precision_chart(runs: Sequence[RunFacts]) -> str:
    """Share of large-loss picks that are hidden positives, by epoch, beside what picking at random would give."""
    with figure(6.0, 3.4) as drawn:
        axes = drawn.subplots()
        said = _plot_picks(axes, runs, [[(e.number, e.precision) for e in run.epochs] for run in runs])
        chance = next((chance for run in runs if run.picks and (chance := run.chance()) is not None), None)
        if chance is not None:
            axes.axhline(100 * chance, color=MUTED, linewidth=1.2, linestyle=(0, (2, 2)))
            text = f"picking at random: {100 * chance:.0f} %"
            place = {"xycoords": axes.get_yaxis_transform(), "textcoords": "offset points", "ha": "right"}
            axes.annotate(text, (1, 100 * chance), (0, 4), color=MUTED, fontsize=9, **place)
            said += f" Picking at random would give {100 * chance:.0f} %."
        axes.set_title("precision: picks that are false negatives, %")
        axes.set_ylim(0, 103)
        return to_svg(drawn, "precision", f"Line chart: precision of picks by epoch. {said}")


def recall_chart(runs: Sequence[RunFacts]) -> str:
    """Share of hidden positives that were picked, by epoch."""
    with figure(6.0, 3.4) as drawn:
        axes = drawn.subplots()
        said = _plot_picks(axes, runs, [[(e.number, e.recall) for e in run.epochs] for run in runs])
        axes.set_title("recall: false negatives that were picked, %")
        axes.set_ylim(bottom=0)
        return to_svg(drawn, "recall", f"Line chart: recall of picks by epoch. {said}")


def _plot_picks(axes: Any, runs: Sequence[RunFacts], lines: Sequence[Sequence[tuple[int, float | None]]]) -> str:
    """Draw one line a run that has values; return in words where each ends."""
    said = []
    for number, (run, line) in enumerate(zip(runs, lines, strict=True)):
        points = [(epoch, 100 * value) for epoch, value in line if value is not None]
        if points:
            axes.plot(*_columns(points), label=run.title, **series_style(number))
            said.append(f"{run.title} ends at {points[-1][1]:.0f} %")
    _epoch_axis(axes)
    return _sentence(said)


def time_chart(runs: Sequence[RunFacts]) -> str:
    """Where the seconds of training went: computing, exchanging with other ranks, waiting for batches."""
    with figure(12.4, 0.9 + 0.42 * len(runs)) as drawn:
        axes = drawn.subplots()
        places = np.arange(len(runs))[::-1]
        computing = np.array([run.time.computing for run in runs])
        exchanging = np.array([run.time.communication or 0.0 for run in runs])
        waiting = [run.time.waiting for run in runs]
        colours = [series_colour(number) for number in range(len(runs))]
        light = {"color": PAPER, "edgecolor": colours, "linewidth": 1}
        axes.barh(places, computing, 0.62, color=colours)
        axes.barh(places, exchanging, 0.62, left=computing, hatch="....", **light)
        axes.barh(places, waiting, 0.62, left=computing + exchanging, hatch="////", **light)
        axes.set_yticks(places, [run.title for run in runs])
        axes.set_title("seconds of training: solid computing, dotted exchanging, hatched waiting for batches")
        axes.grid(visible=False, axis="y")
        split = "; ".join(f"{run.title}: {run.time.shares()}" for run in runs)
        return to_svg(drawn, "time", f"Bar chart of training time. {split}.")


def _columns(points: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [x for x, _ in points], [y for _, y in points]


def _epoch_axis(axes: Any) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.margins(x=0.04)


def _sentence(parts: Sequence[str]) -> str:
    return "; ".join(parts) + "." if parts else "No values yet."
