"""From facts, charts and pictures to the page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

from sharding import storage
from sharding.errors import UserError
from trainer.explain.overlay import score_text
from trainer.report import charts, panels
from trainer.report.facts import ReportRun, RunFacts, gather
from trainer.report.gallery import Gallery, GalleryColumn, Progress, build_gallery
from trainer.report.published import method, published_voc
from trainer.report.svg import SERIES


def write_report(
    runs: Sequence[ReportRun],
    output: str,
    gallery: Sequence[GalleryColumn] | None = None,
    title: str = "Training report",
    progress: Progress | None = None,
) -> None:
    """Write the report about ``runs`` to ``output`` (a path or URL).

    ``gallery``: the columns of the class-activation pictures, the last compared with the AN column; None = no
    pictures. Runs may be unfinished. When the pictures cannot be made the page says why. Raises UserError when
    there is no run at a URL.
    """
    if not runs:
        raise UserError("a report needs at least one run", "name one or more runs")
    tell = progress or (lambda *_: None)
    facts = []
    for number, run in enumerate(runs):
        tell("reading runs", number, len(runs))
        facts.append(gather(run))
    pictures, why_not = _gallery(gallery, tell)
    tell("writing the page", 0, 1)
    storage.write_atomic(output, render(facts, pictures, title, why_not).encode())
    tell("writing the page", 1, 1)


def render(runs: Sequence[RunFacts], gallery: Gallery | None, title: str, why_no_gallery: str = "") -> str:
    """Return the page as HTML, with nothing loaded from elsewhere."""
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    folder = files("trainer.report")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(percent=_percent, seconds=_seconds)
    template = environment.from_string(folder.joinpath("page.html").read_text())
    drawn = {name: Markup(svg) for name, svg in _charts(runs).items()}  # noqa: S704 — made here, texts escaped
    summary = _summary(runs, gallery)
    return template.render(
        title=title,
        style=Markup(folder.joinpath("page.css").read_text()),  # noqa: S704 — a file of this package
        runs=runs,
        summary=summary,
        methods=any(row["method"] != row["title"] for row in summary),
        charts=drawn,
        picks=[run for run in runs if run.picks],
        gallery=gallery,
        gallery_rows=_gallery_rows(gallery) if gallery else [],
        kinds=Counter(row.choice.kind for row in gallery.rows) if gallery else {},
        why_no_gallery=why_no_gallery,
        attempts=[_attempts(run) for run in runs],
        differences=differences(runs),
        configs=[(run.title, run.config.to_yaml()) for run in runs],
        series=SERIES,
        classes_shown=charts.CLASSES_SHOWN,
    )


def _gallery(columns: Sequence[GalleryColumn] | None, tell: Progress) -> tuple[Gallery | None, str]:
    if not columns:
        return None, ""
    try:
        return build_gallery(columns, tell), ""
    except UserError as error:
        return None, str(error)


def _charts(runs: Sequence[RunFacts]) -> dict[str, str]:
    made: dict[str, str] = {}
    if any(run.epochs for run in runs):
        made |= {"loss": charts.loss_chart(runs), "time": charts.time_chart(runs)}
    if any(run.scores for run in runs):
        made["score"] = charts.score_chart(runs)
    if any(run.per_class for run in runs):
        made["classes"] = charts.class_chart(runs)
    if any(run.picks for run in runs):
        made |= {"precision": charts.precision_chart(runs), "recall": charts.recall_chart(runs)}
    return made


def _summary(runs: Sequence[RunFacts], gallery: Gallery | None) -> list[dict[str, Any]]:
    """Make the rows of the summary table: the runs, each followed by what was boosted at inference only."""
    rows = []
    for number, run in enumerate(runs):
        rows.append(
            {
                "title": run.title,
                "series": number % SERIES + 1,
                "method": method(run.config),
                "labels": _labels(run),
                "alpha": run.config.model.alpha,
                "state": run.state,
                "epochs": f"{run.best_epoch} of {run.config.epochs}" if run.best_epoch else None,
                "validation": run.best_score,
                "test": run.test["map"] if run.test else None,
                "published": published_voc(run.config),
            }
        )
        rows += _boosted_rows(run, rows[-1], gallery)
    best = max((row["test"] for row in rows if row["test"] is not None), default=None)
    return [row | {"best": row["test"] is not None and row["test"] == best} for row in rows]


def _boosted_rows(run: RunFacts, row: dict[str, Any], gallery: Gallery | None) -> list[dict[str, Any]]:
    """Make rows of the gallery's columns that change this run's alpha, where their test mAP is known exactly."""
    if gallery is None or gallery.split != run.config.dataset.test:
        return []
    made: list[dict[str, Any]] = []
    for column, score, alpha in zip(gallery.columns, gallery.maps, gallery.alphas, strict=True):
        if column.url.rstrip("/") == run.url and column.overrides and score is not None:
            config = run.config.model_copy(update={"model": run.config.model.model_copy(update={"alpha": alpha})})
            trained = run.config.model.alpha
            changed = {
                "title": column.title,
                "method": method(config, trained),
                "alpha": f"{trained:g} → {alpha:g}",
                "validation": None,
                "test": score,
                "published": published_voc(config, trained),
            }
            made.append(row | changed)
    return made


def _labels(run: RunFacts) -> str:
    """Say what training saw, a sample on average."""
    if run.seen is None:
        return run.config.dataset.labels
    if run.seen.share >= 1:
        return "all"
    negatives = f", {run.seen.negatives:.3g} negative" if run.seen.negatives else ""
    return f"{run.seen.positives:.3g} positive{negatives} of {len(run.classes)} labels an image"


def _attempts(run: RunFacts) -> str:
    """Say how each attempt ended."""
    told = []
    for attempt in run.attempts:
        outcome = attempt.get("outcome", "running" if run.state == "running" else "ended without a word")
        reason = f" ({attempt['reason']})" if attempt.get("reason") else ""
        told.append(f"{attempt['attempt']}: {outcome}{reason}")
    return "; ".join(told)


def _gallery_rows(gallery: Gallery) -> list[dict[str, Any]]:
    """Make the picture's rows: the image, then a panel a column with its score and a text for who cannot see it."""
    rows = []
    for row in gallery.rows:
        cls = row.choice.cls
        name = gallery.classes[cls]
        cells = []
        for column, cell, picture in zip(gallery.columns, row.cells, panels.cam_panels(row), strict=True):
            logit = float(cell.logits[cls])
            peak = float(cell.cam[cls].max())
            alt = (
                f"Map of class {name} by {column.title} over image {row.sample_id}: score {logit:.2f}, "
                f"highest attribution {peak:.1f}{_where(row, cls, cell.cam[cls])}"
            )
            cells.append({"picture": picture, "alt": alt, "score": score_text(logit), "found": logit > 0})
        others = [gallery.classes[c] for c in row.present if c != cls]
        image_alt = f"Test image {row.sample_id}, showing {', '.join([name, *others])}"
        rows.append(
            {
                "sample": row.sample_id,
                "name": name,
                "others": others,
                "kind": row.choice.kind,
                "image": panels.image_panel(row),
                "alt": image_alt,
                "boxed": bool(row.boxes.get(cls)),
                "cells": cells,
            }
        )
    return rows


def _where(row: Any, cls: int, cam: Any) -> str:
    """Say whether the map's highest place lies in a box of the class."""
    boxes = row.boxes.get(cls)
    if not boxes:
        return ""
    height, width = row.cells[0].image.shape[:2]
    down, right = divmod(int(cam.argmax()), cam.shape[1])
    x, y = (right + 0.5) * width / cam.shape[1], (down + 0.5) * height / cam.shape[0]
    inside = any(left <= x <= left + w and top <= y <= top + h for left, top, w, h in boxes)
    return f", {'inside' if inside else 'outside'} the object's box"


def differences(runs: Sequence[RunFacts]) -> list[tuple[str, list[str]]]:
    """Return (key, value of each run) for the settings in which the runs differ."""
    flat = [_flat(run.config.model_dump(mode="json")) for run in runs]
    keys = list(dict.fromkeys(key for values in flat for key in values))
    table = [(key, [values.get(key) for values in flat]) for key in keys]
    return [(key, [_text(v) for v in values]) for key, values in table if any(v != values[0] for v in values)]


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return found


def _text(value: Any) -> str:
    return "–" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _percent(value: float | None, digits: int = 2) -> str:
    return "–" if value is None else f"{100 * value:.{digits}f}"


def _seconds(value: float) -> str:
    return f"{value:.1f} s" if value < 100 else f"{value / 60:.1f} min"
