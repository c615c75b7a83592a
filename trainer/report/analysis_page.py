"""The page about two models' explanations: charts and numbers of a :class:`~trainer.explain.analysis.Comparison`."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from typing import Any

import numpy as np

from trainer.explain.analysis import PROFILE, Comparison
from trainer.report.svg import DASHES, MUTED, figure, series_colour, to_svg

#: Measures that both models have: (key of the summary, what it is, how it is printed).
MEASURES = (
    ("score", "score (logit)", "{:.2f}"),
    ("found", "scored above 0", "{:.1%}"),
    ("peak", "highest attribution", "{:.2f}"),
    ("inside", "share of attribution inside the boxes", "{:.1%}"),
    ("hit", "highest place in a box (pointing game)", "{:.1%}"),
)


def render_analysis(comparison: Comparison, numbers: dict[str, Any], titles: tuple[str, str], split: str) -> str:
    """Return the page as HTML, with nothing loaded from elsewhere."""
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    folder = files("trainer.report")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    drawn = {
        "correlation": correlation_chart(comparison),
        "profile": profile_chart(comparison, titles),
        "scores": scores_chart(comparison, titles),
    }
    if numbers["with_boxes"]:
        drawn["inside"] = inside_chart(comparison, titles)
    return environment.from_string(folder.joinpath("analysis.html").read_text()).render(
        style=Markup(folder.joinpath("page.css").read_text()),  # noqa: S704 — a file of this package
        titles=titles,
        split=split,
        numbers=numbers,
        measures=[
            (label, [_shown(numbers.get(f"{key}_{which}"), form) for which in ("first", "second", "chance")])
            for key, label, form in MEASURES
        ],
        charts={name: Markup(svg) for name, svg in drawn.items()},  # noqa: S704 — made here, texts escaped
    )


def _shown(value: float | None, form: str) -> str:
    return "–" if value is None else form.format(value).replace("-", "−")


def correlation_chart(comparison: Comparison) -> str:
    """How alike the two models' maps rank the places, against the second's map of an absent class."""
    known = [_known(comparison.correlation), _known(comparison.control)]
    with figure(6.0, 3.4) as drawn:
        axes = drawn.subplots()
        edges = np.linspace(-1, 1, 41)
        _histogram(axes, known[1], edges, MUTED, DASHES[1], "an absent class")
        _histogram(axes, known[0], edges, series_colour(2), DASHES[0], "the same class")
        axes.set_title("rank correlation of the two models' maps, % of objects")
        axes.set_xlabel("Spearman's ρ")
        axes.legend(loc="upper left")
        alt = f"Histogram of rank correlations. Median {_median(known[0])}, of an absent class {_median(known[1])}."
        return to_svg(drawn, "correlation", alt)


def profile_chart(comparison: Comparison, titles: Sequence[str]) -> str:
    """Attributions from the highest place of a map to the lowest, mean over objects."""
    with figure(6.0, 3.4) as drawn:
        axes = drawn.subplots()
        share = np.linspace(0, 100, PROFILE)
        said = []
        for number, (view, title) in enumerate(zip((comparison.first, comparison.second), titles, strict=True)):
            mean = view.profile.mean(0)
            low, high = np.quantile(view.profile, [0.25, 0.75], axis=0)
            axes.plot(share, mean, color=series_colour(number), linestyle=DASHES[number], label=title)
            axes.fill_between(share, low, high, color=series_colour(number), alpha=0.18, linewidth=0)
            said.append(f"{title} falls from {mean[0]:.1f} to {mean[-1]:.1f}")
        axes.axhline(0, color=MUTED, linewidth=1)
        axes.set_title("attribution, places in order of attribution")
        axes.set_xlabel("places of the map, %")
        axes.legend()
        return to_svg(drawn, "profile", f"Line chart of sorted attributions: {'; '.join(said)}.")


def scores_chart(comparison: Comparison, titles: Sequence[str]) -> str:
    """Scores of the objects, one model against the other."""
    one, two = comparison.first.logit, comparison.second.logit
    with figure(6.0, 3.8) as drawn:
        axes = drawn.subplots()
        shown = slice(None, None, max(1, len(one) // 1500))  # more points only make the file larger
        axes.scatter(one[shown], two[shown], s=7, color=series_colour(2), alpha=0.4, linewidths=0)
        ends = [min(one.min(), two.min()), max(one.max(), two.max())]
        axes.plot(ends, ends, color=MUTED, linewidth=1, linestyle=DASHES[1])
        axes.axhline(0, color=MUTED, linewidth=1)
        axes.axvline(0, color=MUTED, linewidth=1)
        axes.set_title("score of each object, second against first")
        axes.set_xlabel(titles[0])
        axes.set_ylabel(titles[1])
        below = float((two < one).mean())
        return to_svg(
            drawn, "scores", f"Scatter plot of scores; {below:.0%} of objects score lower with {titles[1]}."
        )


def inside_chart(comparison: Comparison, titles: Sequence[str]) -> str:
    """Share of positive attribution inside the boxes."""
    with figure(6.0, 3.8) as drawn:
        axes = drawn.subplots()
        edges = np.linspace(0, 100, 26)
        said = []
        for number, (view, title) in enumerate(zip((comparison.first, comparison.second), titles, strict=True)):
            values = 100 * _known(view.inside)
            _histogram(axes, values, edges, series_colour(number), DASHES[number], title)
            said.append(f"{title} median {_median(values)}")
        chance = 100 * float(np.nanmean(comparison.objects.covered))
        axes.axvline(chance, color=MUTED, linewidth=1.2, linestyle=DASHES[2], label="by chance (mean)")
        axes.set_title("attribution inside the object's boxes, % of objects")
        axes.set_xlabel("% of the positive attribution")
        axes.legend()
        return to_svg(
            drawn, "inside", f"Histogram of the share inside boxes: {', '.join(said)}, chance {chance:.0f}."
        )


def _histogram(axes: Any, values: np.ndarray, edges: np.ndarray, colour: str, dash: Any, label: str) -> None:
    if not len(values):
        return
    counts = 100 * np.histogram(values, edges)[0] / len(values)
    axes.stairs(counts, edges, color=colour, linestyle=dash, linewidth=1.8, label=label)
    axes.stairs(counts, edges, color=colour, fill=True, alpha=0.15)


def _known(values: np.ndarray) -> np.ndarray:
    return values[~np.isnan(values)]


def _median(values: np.ndarray) -> str:
    return f"{np.median(values):.2f}" if len(values) else "unknown"
