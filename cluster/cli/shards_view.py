"""What ``boostlu shards`` prints: plans, progress, summaries, tables."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from cluster.cli.terminal import terminal
from sharding import sources
from sharding.build import BuildProgress
from sharding.estimate import estimate
from sharding.plan import BuildPlan, Plan
from sharding.schema import DatasetInfo
from sharding.stats import SplitStats
from sharding.verify import Report

_UNITS = ("B", "kB", "MB", "GB", "TB")


def console() -> Console:
    """Made for each use: it must write to the stdout of the moment."""
    out = terminal(highlight=False, soft_wrap=True)
    return out if out.is_terminal else terminal(highlight=False, soft_wrap=True, width=120)


def size_text(count: float) -> str:
    """Bytes as people read them: 1536000 → ``1.5 MB``."""
    for unit in _UNITS:
        if count < 1000 or unit == _UNITS[-1]:
            break
        count /= 1000
    return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"


def show_plan(plan: Plan) -> None:
    """The plan and the size estimate, before anything is written."""
    out = console()
    if not isinstance(plan, BuildPlan):
        tars = ", ".join(f"{split}: {count}" for split, count in plan.shard_counts().items())
        out.print(f"{plan.source.name}: tars to index where they lie ({tars}), {len(plan.source.classes)} classes")
        return
    guess = estimate(plan)
    size = f"about {size_text(guess.bytes)}" if guess.bytes else "size unknown (no image could be read)"
    out.print(f"{plan.source.name}: {plan.samples} images, {len(plan.source.classes)} classes → {plan.root}, {size}")
    for split, count in plan.shard_counts().items():
        records = plan.source.splits[split]
        dropped = "".join(f", {n} dropped: {reason}" for reason, n in records.dropped.items())
        out.print(f"  {split}: {len(records.table)} images in {count} shards{dropped}")
    if plan.source.licence:
        out.print(f"  licence: {plan.source.licence}")
    if guess.free is not None and guess.bytes > guess.free:
        out.print(f"  warning: only {size_text(guess.free)} free at {plan.root}")


@contextmanager
def build_progress(plan: Plan) -> Iterator[Callable[[BuildProgress], None]]:
    """A bar over images, with the rate, the rejected count and the time left."""
    bar = Progress(
        TextColumn("building"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TextColumn("{task.fields[rejected]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console(),
    )
    with bar:
        task = bar.add_task("", total=plan.samples or None, rate="", rejected="")

        def show(state: BuildProgress) -> None:
            rate = f"{state.samples_done / max(state.seconds, 1e-9):.0f} images/s"
            rejected = f"{state.rejected} rejected" if state.rejected else ""
            bar.update(task, completed=state.samples_done, rate=rate, rejected=rejected)

        yield show


@contextmanager
def shard_progress(what: str) -> Iterator[Callable[[int, int], None]]:
    bar = Progress(TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=console())
    with bar:
        task = bar.add_task("", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def show_complete(root: str) -> None:
    console().print(f"{root} is already complete; nothing to do")


def show_dataset(root: str, info: DatasetInfo) -> None:
    """The summary after a build."""
    out = console()
    for split, about in info.splits.items():
        size = size_text(sum(shard.bytes for shard in about.shards))
        rejected = f", {about.rejected} rejected (see rejected.parquet)" if about.rejected else ""
        out.print(f"{split}: {about.samples} images, {len(about.shards)} shards, {size}{rejected}")
    for kind, count in info.built.get("duplicates", {}).items():
        what = "identical images" if kind == "image" else "ids that differ only in spelling"
        out.print(f"warning: {count} pairs of {what} in two splits (see duplicates.parquet)")
    out.print(f"complete: {root} (fingerprint {info.fingerprint[:12]})")


def show_sources(name: str | None) -> None:
    out = console()
    if name is None:
        for known in sources.SOURCES:
            out.print(f"{known:14} {_first_line(sources.module(known).__doc__)}")
        return
    module = sources.module(name)
    out.print((module.__doc__ or "").strip())
    for key, about in sources.options_of(name).model_fields.items():
        default = "required" if about.is_required() else f"default {about.default!r}"
        out.print(f"\n  {key} ({default})\n      {' '.join((about.description or '').split())}")


def _first_line(text: str | None) -> str:
    return (text or "").strip().splitlines()[0]


def show_report(root: str, report: Report) -> None:
    """What a verification found."""
    out = console()
    done = f"{report.shards} shards, {report.samples} samples, {size_text(report.bytes)}, {report.decoded} decoded"
    if not report.problems:
        out.print(f"{root} is sound: {done}")
        return
    for problem in report.problems:
        out.print(f"  {problem.shard or problem.split or 'dataset'}: {problem.what}")
    out.print(f"{root}: {len(report.problems)} problems ({done})")
    if report.damaged_shards:
        out.print(f"to rebuild: {', '.join(report.damaged_shards)} (boostlu shards verify --repair --source ...)")


def show_stats(root: str, info: DatasetInfo, found: list[SplitStats], chosen: SplitStats, classes: int) -> None:
    out = console()
    table = Table(title=f"{info.name}, {len(info.classes)} classes, labels {chosen.labels}")
    for head in (
        "split",
        "images",
        "rejected",
        "dropped",
        "size",
        "pos/image",
        "neg/image",
        "unobserved",
        "median size",
    ):
        table.add_column(head, justify="left" if head == "split" else "right")
    for one in found:
        share = one.unobserved.sum() / max(1, one.samples * len(one.positives))
        middle = f"{int(np.median(one.width))}×{int(np.median(one.height))}" if one.width.any() else "unknown"
        cells = [one.samples, one.rejected, sum(one.dropped.values()), size_text(one.bytes)]
        per_image = [f"{one.positives_per_image.mean():.2f}", f"{one.negatives_per_image.mean():.2f}"]
        table.add_row(one.split, *map(str, cells), *per_image, f"{share:.1%}", middle)
    out.print(table, soft_wrap=False)
    ranked = np.argsort(-chosen.positives, kind="stable")
    table = Table(title=f"classes of {chosen.split} by positives")
    for head in ("class", "group", "positive", "negative", "unobserved"):
        table.add_column(head, justify="left" if head == "class" else "right")
    for i in ranked[: classes or None]:
        counts = (chosen.positives[i], chosen.negatives[i], chosen.unobserved[i])
        table.add_row(info.classes[i].name, str(info.classes[i].group or ""), *map(str, counts))
    out.print(table)
    none = int((chosen.positives == 0).sum())
    if none:
        out.print(f"{none} classes have no positive in {chosen.split}")
    for kind, count in info.built.get("duplicates", {}).items():
        out.print(f"{count} duplicate pairs across splits ({kind}): see {root}/duplicates.parquet")
