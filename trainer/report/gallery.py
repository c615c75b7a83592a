"""The paper's picture: what differently trained models see in the same test images."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from sharding.index import SplitIndex, read_split
from trainer.classes import require_same_classes
from trainer.data.reader import ImageReader
from trainer.explain.boxes import Boxes, read_boxes
from trainer.explain.maps import Explainer, Explanation, image_batches
from trainer.metrics import average_precision
from trainer.report.facts import ReportRun
from trainer.run.registry import RunRegistry

#: Images of the split that are scored to choose from, from its beginning: at most and at least so many, and between
#: them as many as have this many pixels in all, so that large models on a CPU take minutes, not hours.
MOST, FEWEST, PIXELS = 1000, 60, 10_000_000
#: Rows that show what the target finds and the baseline misses, and rows the other way round.
ROWS, REVERSE_ROWS = 5, 1

#: Told how far it is: (what is being done, done, total).
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class GalleryColumn:
    """One model of the picture: title, run, and changes to the run's config (``model.alpha=5``) for prediction."""

    title: str
    url: str
    overrides: tuple[str, ...] = ()


@dataclass(frozen=True)
class Choice:
    """One row to show: an image, and a class that is there. kind: what the target does, against the baseline."""

    image: int
    cls: int
    kind: Literal["finds", "misses", "other"]


@dataclass(frozen=True)
class Row:
    """``cells``: one explanation a column, of the same image."""

    choice: Choice
    sample_id: str
    present: list[int]
    boxes: Boxes
    cells: list[Explanation]


@dataclass(frozen=True)
class Counts:
    """How often models score above 0, over all images that were looked at.

    present: pairs (image, class that is there) · found, lost: those of them that only the target, or only the
    baseline, scores above 0 · absent: pairs with a class that is verified absent · alarms: those of them that each
    column scores above 0
    """

    present: int
    found: int
    lost: int
    absent: int
    alarms: list[int]


@dataclass(frozen=True)
class Gallery:
    """The picture with what its caption needs.

    baseline, target: numbers of the columns that the choice compares · images: how many were looked at · maps: mAP of
    each column over these images, None unless they are the whole split · alphas: of each column's model
    """

    columns: list[GalleryColumn]
    classes: list[str]
    split: str
    rows: list[Row]
    baseline: int
    target: int
    images: int
    counts: Counts
    maps: list[float | None]
    alphas: list[float]


def build_gallery(columns: Sequence[GalleryColumn], progress: Progress = lambda *_: None) -> Gallery:
    """Score the first images of the test split with every column's model and explain the chosen ones.

    Raises UserError when a run has no checkpoint, or the runs' classes or the dataset do not fit together.
    """
    explainers = []
    for number, column in enumerate(columns):
        progress("loading models", number, len(columns))
        registry = RunRegistry.open(column.url)
        explainers.append(Explainer(registry, registry.config(list(column.overrides))))
    config = explainers[0].config
    index = read_split(config.dataset.path, config.dataset.test or config.dataset.validation)
    for column in columns:
        require_same_classes(RunRegistry.open(column.url), index)
    images = min(candidates(max(explainer.side for explainer in explainers)), len(index))
    logits, readable = _score(explainers, index, images, progress)
    baseline, target = _compared(explainers)
    present = [index.labels.pos.row(i).tolist() if readable[i] else [] for i in range(images)]
    compared = baseline != target
    choices = choose(present, logits[baseline], logits[target]) if compared else choose_alone(present, logits[0])
    return Gallery(
        columns=list(columns),
        classes=[c.name for c in index.dataset.classes],
        split=index.name,
        rows=list(_rows(choices, explainers, index, present)),
        baseline=baseline,
        target=target,
        images=images,
        counts=_counts(index, np.flatnonzero(readable), logits, baseline, target),
        maps=[_mean_ap(index, column, readable) if images == len(index) else None for column in logits],
        alphas=[explainer.alpha for explainer in explainers],
    )


def candidates(side: int) -> int:
    """Return how many images of ``side`` × ``side`` pixels are scored to choose from."""
    return min(MOST, max(FEWEST, PIXELS // side**2))


def _counts(
    index: SplitIndex, samples: np.ndarray, logits: Sequence[np.ndarray], baseline: int, target: int
) -> Counts:
    row, cls = index.labels.pos.entries(samples)
    low, high = (logits[column][samples[row], cls] > 0 for column in (baseline, target))
    absent_row, absent_cls = index.labels.neg.entries(samples)
    return Counts(
        present=len(row),
        found=int((high & ~low).sum()),
        lost=int((low & ~high).sum()),
        absent=len(absent_row),
        alarms=[int((column[samples[absent_row], absent_cls] > 0).sum()) for column in logits],
    )


def choose(present: Sequence[Sequence[int]], low: np.ndarray, high: np.ndarray) -> list[Choice]:
    """Choose rows by a fixed rule, from logits (N, C) of baseline (``low``) and target (``high``).

    Images with at least two classes are gone through in order. Wanted are those with a class that is there, that the
    target scores above 0 and the baseline does not; of several the one with the largest difference. No class is
    shown twice while other rows can be had. Then one row the other way round. What is missing to the full number is
    filled with the first other images, each with the class that the baseline scores lowest.
    """
    several = [i for i, classes in enumerate(present) if len(classes) > 1]
    chosen = _pick(several, present, low, high, ROWS, "finds")
    others = [i for i in several if i not in {c.image for c in chosen}]
    reverse = _pick(others, present, high, low, REVERSE_ROWS, "misses")
    rest = [i for i in several if i not in {c.image for c in chosen + reverse}]
    rest += [i for i, classes in enumerate(present) if len(classes) == 1]
    missing = ROWS + REVERSE_ROWS - len(chosen) - len(reverse)
    filling = [Choice(i, min(present[i], key=lambda c, i=i: (low[i, c], c)), "other") for i in rest[:missing]]  # type: ignore[misc]
    return chosen + filling + reverse


def choose_alone(present: Sequence[Sequence[int]], logits: np.ndarray) -> list[Choice]:
    """Choose rows for a single model: the first images with two classes, else one, new best classes first."""
    images = sorted((i for i, classes in enumerate(present) if classes), key=lambda i: (len(present[i]) < 2, i))
    best = [Choice(i, max(present[i], key=lambda c: (logits[i, c], -c)), "other") for i in images]
    return _new_classes_first(best)[: ROWS + REVERSE_ROWS]


def _pick(
    images: Sequence[int],
    present: Sequence[Sequence[int]],
    low: np.ndarray,
    high: np.ndarray,
    count: int,
    kind: Literal["finds", "misses"],
) -> list[Choice]:
    """Return the first ``count`` images with a class above 0 in ``high`` only, new classes before repeated ones."""
    suitable = []
    for i in images:
        classes = [c for c in present[i] if high[i, c] > 0 >= low[i, c]]
        if classes:
            suitable.append(Choice(i, max(classes, key=lambda c, i=i: (high[i, c] - low[i, c], -c)), kind))  # type: ignore[misc]
    return sorted(_new_classes_first(suitable)[:count], key=lambda choice: choice.image)


def _new_classes_first(choices: Sequence[Choice]) -> list[Choice]:
    shown: set[int] = set()
    new: list[Choice] = []
    repeated: list[Choice] = []
    for choice in choices:
        (repeated if choice.cls in shown else new).append(choice)
        shown.add(choice.cls)
    return new + repeated


def _compared(explainers: Sequence[Explainer]) -> tuple[int, int]:
    """Return (baseline, target): the first model trained with AN (else the first) against the last."""
    plain = [n for n, e in enumerate(explainers[:-1]) if e.config.loss.name == "an"]
    return (plain[0] if plain else 0), len(explainers) - 1


def _score(
    explainers: Sequence[Explainer], index: SplitIndex, count: int, progress: Progress
) -> tuple[list[np.ndarray], np.ndarray]:
    """Return each model's logits, float32 (count, C), and which images could be decoded, bool (count,)."""
    logits = [np.full((count, len(index.dataset.classes)), -np.inf, np.float32) for _ in explainers]
    readable = np.zeros(count, bool)
    for batch in image_batches(index, range(count), {explainer.side for explainer in explainers}):
        progress("scoring test images", int(batch.samples[0]), count)
        readable[batch.samples] = True
        for column, explainer in zip(logits, explainers, strict=True):
            column[batch.samples] = explainer.logits(batch.images[explainer.side])
    progress("scoring test images", count, count)
    return logits, readable


def _rows(
    choices: Sequence[Choice], explainers: Sequence[Explainer], index: SplitIndex, present: Sequence[list[int]]
) -> Iterator[Row]:
    with ImageReader(index) as reader:
        for choice in choices:
            data, sample_id = reader.read(choice.image), index.sample_id(choice.image)
            cells = [explainer.explain(data, sample_id) for explainer in explainers]
            yield Row(choice, sample_id, present[choice.image], read_boxes(index, choice.image), cells)


def _mean_ap(index: SplitIndex, logits: np.ndarray, readable: np.ndarray) -> float | None:
    """Return mAP over the verified labels of the readable images."""
    samples = np.flatnonzero(readable)
    entries = [rows.entries(samples) for rows in (index.labels.pos, index.labels.neg)]
    row, cls = (np.concatenate([entry[k] for entry in entries]) for k in (0, 1))
    positive = np.arange(len(row)) < len(entries[0][0])
    ap = average_precision(cls, logits[samples[row], cls], positive, logits.shape[1]).ap
    return None if np.isnan(ap).all() else float(np.nanmean(ap))


def default_columns(runs: Sequence[ReportRun]) -> list[GalleryColumn]:
    """Make a column of each run that has a checkpoint; plain AN also boosted at inference.

    The best one, in the order given, should be the last: it is compared with AN to choose the images.
    """
    columns = []
    for run in runs:
        registry = RunRegistry.open(run.url)
        if not registry.checkpoints():
            continue
        columns.append(GalleryColumn(run.title, run.url))
        config = registry.config()
        if config.loss.name == "an" and config.model.alpha == 1:
            columns.append(GalleryColumn(f"{run.title} + BoostLU at inference", run.url, ("model.alpha=5",)))
    return columns
