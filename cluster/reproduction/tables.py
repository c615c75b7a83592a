"""A reproduced table: which runs make it up, and how it is shown beside what was published."""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from cluster.reproduction.published import TABLES, TITLES

#: The convention of mAP that the published code uses; see trainer/metrics/averages.py.
CONVENTION = "authors"


@dataclass(frozen=True)
class Contestant:
    """One line of the table: a method, perhaps with settings of its own."""

    name: str
    method: str
    title: str
    settings: tuple[str, ...] = ()


def contestants(methods: Sequence[str], alphas: Sequence[float] = ()) -> list[Contestant]:
    """Return the methods, and each that boosts again with every one of ``alphas`` in its place."""
    lines = []
    for method in methods:
        lines.append(Contestant(method, method, TITLES[method]))
        for alpha in alphas if method.endswith("-boostlu") else ():
            title = f"{TITLES[method]}, α = {alpha:g}"
            lines.append(Contestant(f"{method}-alpha{alpha:g}", method, title, (f"model.alpha={alpha:g}",)))
    return lines


@dataclass(frozen=True)
class Row:
    """One contestant: test mAP (percent) of each seed, and what was published; the same of groups of classes."""

    method: str
    title: str
    scores: list[float]
    published: float | None
    groups: dict[str, list[float]] = field(default_factory=dict)
    published_groups: tuple[float, ...] = ()

    @property
    def mean(self) -> float:
        return statistics.fmean(self.scores)

    @property
    def deviation(self) -> float:
        """Sample standard deviation over seeds, 0 for one seed."""
        return statistics.stdev(self.scores) if len(self.scores) > 1 else 0.0


def row(contestant: Contestant, table: str, results: Sequence[dict[str, Any]]) -> Row:
    """Join the test records of a contestant's seeds; its own settings make published values somebody else's."""
    entry, own = TABLES[table], bool(contestant.settings)
    groups: dict[str, list[float]] = {}
    for record in results:
        for average in record["averages"]:
            if average["group"] is not None and average["convention"] == CONVENTION and average["mean"] is not None:
                groups.setdefault(f"G{average['group']}", []).append(100 * average["mean"])
    return Row(
        contestant.name,
        contestant.title,
        [100 * record["map"] for record in results],
        None if own else entry.published.get(contestant.method),
        groups,
        () if own else entry.groups.get(contestant.method, ()),
    )


def header(rows: Sequence[Row]) -> list[str]:
    published = ["published"] if _compared(rows) else []
    return ["method", "test mAP", "seeds", *published, *(f"{group} (published)" for group in _groups(rows))]


def cells(one: Row, rows: Sequence[Row]) -> list[str]:
    """Return a row's text, one cell for each column of :func:`header`."""
    groups = [
        f"{statistics.fmean(one.groups[name]):.2f}" + (f" ({published:.2f})" if published is not None else "")
        if name in one.groups
        else "–"
        for name, published in zip(_groups(rows), [*one.published_groups, *[None] * len(_groups(rows))], strict=False)
    ]
    published = ["–" if one.published is None else f"{one.published:.2f}"] if _compared(rows) else []
    return [one.title, f"{one.mean:.2f} ± {one.deviation:.2f}", str(len(one.scores)), *published, *groups]


def _compared(rows: Sequence[Row]) -> bool:
    """Whether anything was published of what is in the table."""
    return any(one.published is not None for one in rows)


def _groups(rows: Sequence[Row]) -> list[str]:
    return sorted({name for one in rows for name in one.groups})


def markdown(rows: Sequence[Row]) -> str:
    """Return the table as Markdown."""
    lines = [header(rows), ["---"] * len(header(rows)), *(cells(one, rows) for one in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def comma_separated(rows: Sequence[Row]) -> str:
    """Return one line a run: method, seed's place, test mAP, published mAP, mAP of each group."""
    sink = io.StringIO()
    writer = csv.writer(sink, lineterminator="\n")
    writer.writerow(["method", "run", "test_map", "published", *_groups(rows)])
    for one in rows:
        for number, score in enumerate(one.scores):
            groups = [repr(one.groups[name][number]) if name in one.groups else "" for name in _groups(rows)]
            published = "" if one.published is None else one.published
            writer.writerow([one.method, number, repr(score), published, *groups])
    return sink.getvalue()


def plot(rows: Sequence[Row], title: str) -> bytes:
    """Draw mean ± standard deviation of each method with every seed as a dot, published values as marks; PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 0.45 * len(rows) + 1.5), layout="constrained")
    axes = figure.add_subplot()
    places = range(len(rows))
    axes.errorbar([r.mean for r in rows], places, xerr=[r.deviation for r in rows], fmt="o", capsize=4, label="ours")
    for place, one in zip(places, rows, strict=True):
        axes.scatter(one.scores, [place] * len(one.scores), s=12, color="grey", zorder=3)
    known = [(one.published, place) for place, one in zip(places, rows, strict=True) if one.published is not None]
    if known:
        values, at = zip(*known, strict=True)
        axes.scatter(values, at, marker="|", s=200, color="black", label="published")
    axes.set_yticks(list(places), [one.title for one in rows])
    axes.invert_yaxis()
    axes.set_xlabel("test mAP, percent")
    axes.set_title(title)
    axes.legend()
    sink = io.BytesIO()
    figure.savefig(sink, format="png", dpi=120)
    return sink.getvalue()
