"""What two models make of the same objects: do their explanations agree, and how strong are they?

The analysis of Kim et al., CVPR 2023, section 3: between a model trained with full labels and one trained with
partial labels, the class-activation maps of present classes rank the places of an image alike, but the partial
model's attributions are weaker. Where a dataset knows boxes, they say whether the models look at the object.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from sharding.errors import UserError
from sharding.index import SplitIndex
from trainer.explain.boxes import read_boxes
from trainer.explain.maps import Explainer, ImageBatch, image_batches

#: Points of a map's profile: its values from the highest to the lowest, at equal steps.
PROFILE = 51

_FINE = 8  # sampling points a place and axis, for the share of a place that boxes cover


@dataclass(frozen=True)
class Objects:
    """n present classes: an image of the split and a class that is there, int64 (n,) each.

    covered: share of the image in the class's boxes · touched: share of the map's places that the boxes touch;
    float64 (n,), NaN where no boxes are known. A map that knows nothing has these as ``inside`` and ``hit``.
    """

    sample: np.ndarray
    cls: np.ndarray
    covered: np.ndarray
    touched: np.ndarray


@dataclass(frozen=True)
class View:
    """How one model sees n present classes; float64 (n,).

    logit: the score · peak: the highest attribution · profile: (n, PROFILE), attributions from high to low ·
    inside: share of the positive attribution that lies in the boxes, NaN without boxes or positive attribution ·
    hit: 1 where a box touches the place with the highest attribution, else 0; NaN without boxes (the pointing game)
    """

    logit: np.ndarray
    peak: np.ndarray
    profile: np.ndarray
    inside: np.ndarray
    hit: np.ndarray


@dataclass(frozen=True)
class Comparison:
    """Two models on the same objects.

    correlation: Spearman's rank correlation of the two models' maps, float64 (n,), NaN where one is flat · control:
    of the first's map with the second's of a class that is not in the image, NaN where all are
    """

    objects: Objects
    first: View
    second: View
    correlation: np.ndarray
    control: np.ndarray


def compare(
    first: Explainer,
    second: Explainer,
    index: SplitIndex,
    images: int,
    progress: Callable[[int, int], None] = lambda *_: None,
) -> Comparison:
    """Explain every present class of the first ``images`` images of a split with both models.

    The second's maps are brought to the first's resolution. Raises UserError when no class is there.
    """
    count = min(images, len(index))
    parts = []
    for batch in image_batches(index, range(count), {first.side, second.side}):
        parts.append(_compare_batch(first, second, index, batch))
        progress(int(batch.samples[-1]) + 1, count)
    if not any(len(part.correlation) for part in parts):
        raise UserError(f"no class is there in the first {count} images of {index.name!r}", "choose another split")
    return _joined(parts)


def _compare_batch(first: Explainer, second: Explainer, index: SplitIndex, batch: ImageBatch) -> Comparison:
    one = first.cams(batch.images[first.side])
    two = on_grid(second.cams(batch.images[second.side]), one.shape[2], one.shape[3])
    row, cls = index.labels.pos.entries(batch.samples)
    boxes = [read_boxes(index, int(i)) for i in batch.samples]
    covers = [
        coverage(boxes[r].get(int(c), []), batch.sizes[r], (one.shape[2], one.shape[3]))
        for r, c in zip(row, cls, strict=True)
    ]
    absent = [
        _absent(index.labels.pos.row(int(batch.samples[r])), int(c), one.shape[1])
        for r, c in zip(row, cls, strict=True)
    ]
    control = [
        np.nan if c is None else rank_correlation(one[r, k], two[r, c])
        for r, k, c in zip(row, cls, absent, strict=True)
    ]
    return Comparison(
        objects=Objects(
            sample=batch.samples[row],
            cls=cls,
            covered=np.array([np.nan if c is None else c.mean() for c in covers], float),
            touched=np.array([np.nan if c is None else (c > 0).mean() for c in covers], float),
        ),
        first=view(one[row, cls], covers),
        second=view(two[row, cls], covers),
        correlation=np.array([rank_correlation(one[r, c], two[r, c]) for r, c in zip(row, cls, strict=True)], float),
        control=np.array(control, float),
    )


def view(maps: np.ndarray, covers: Sequence[np.ndarray | None]) -> View:
    """Measure maps (n, h, w) against the coverage (h, w) of their class's boxes, None = unknown."""
    flat = maps.reshape(len(maps), maps.shape[1] * maps.shape[2]).astype(np.float64)
    inside, hit = np.full(len(maps), np.nan), np.full(len(maps), np.nan)
    for k, cover in enumerate(covers):
        if cover is None:
            continue
        positive = flat[k].clip(min=0)
        if positive.any():
            inside[k] = (positive * cover.ravel()).sum() / positive.sum()
        hit[k] = cover.ravel()[flat[k].argmax()] > 0
    ordered = -np.sort(-flat, axis=1)
    places = np.linspace(0, flat.shape[1] - 1, PROFILE)
    low, share = np.floor(places).astype(int), places % 1
    high = np.minimum(low + 1, flat.shape[1] - 1)
    profile = ordered[:, low] * (1 - share) + ordered[:, high] * share
    return View(flat.mean(1), flat.max(1, initial=-np.inf), profile, inside, hit)


def rank_correlation(one: np.ndarray, two: np.ndarray) -> float:
    """Spearman's ρ of two maps of the same shape, ties with their average rank; NaN where one is flat."""
    from scipy.stats import rankdata

    a, b = rankdata(one), rankdata(two)
    a, b = a - a.mean(), b - b.mean()
    scale = np.sqrt((a @ a) * (b @ b))
    return float(a @ b / scale) if scale > 0 else float("nan")


def coverage(boxes: Sequence[Sequence[float]], size: Sequence[int], shape: tuple[int, int]) -> np.ndarray | None:
    """Return which share of each place of a map the boxes [x, y, w, h] cover, float64 of ``shape``; None for none.

    ``size``: the image's (height, width) in the boxes' unit. A place that a box only touches has more than 0.
    """
    if not boxes:
        return None
    (height, width), (rows, columns) = size, shape
    fine = np.zeros((rows * _FINE, columns * _FINE), bool)
    touched = np.zeros((rows, columns), bool)
    y = (np.arange(rows * _FINE) + 0.5) * height / (rows * _FINE)
    x = (np.arange(columns * _FINE) + 0.5) * width / (columns * _FINE)
    tops, lefts = np.arange(rows) * height / rows, np.arange(columns) * width / columns
    for left, top, box_width, box_height in boxes:
        right, bottom = left + box_width, top + box_height
        fine |= ((y >= top) & (y < bottom))[:, None] & ((x >= left) & (x < right))[None]
        vertical = (tops < bottom) & (tops + height / rows > top)
        touched |= vertical[:, None] & ((lefts < right) & (lefts + width / columns > left))[None]
    share = fine.reshape(rows, _FINE, columns, _FINE).mean((1, 3))
    return np.where(touched, np.maximum(share, 1e-9), share)


def on_grid(maps: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Return maps (b, C, h, w) at (rows, columns), bilinear; unchanged where they have it already."""
    if maps.shape[2:] == (rows, columns):
        return maps
    return torch.nn.functional.interpolate(torch.from_numpy(maps), (rows, columns), mode="bilinear").numpy()


def _absent(present: np.ndarray, cls: int, classes: int) -> int | None:
    """Return the first class after ``cls``, going round, that is not in the image."""
    known = set(present.tolist())
    return next((c for c in ((cls + step) % classes for step in range(1, classes)) if c not in known), None)


def _joined(parts: Sequence[Comparison]) -> Comparison:
    def join(values: list[np.ndarray]) -> np.ndarray:
        return np.concatenate(values)

    return Comparison(
        objects=Objects(
            **{
                name: join([getattr(p.objects, name) for p in parts])
                for name in ("sample", "cls", "covered", "touched")
            }
        ),
        first=_joined_views([p.first for p in parts]),
        second=_joined_views([p.second for p in parts]),
        correlation=join([p.correlation for p in parts]),
        control=join([p.control for p in parts]),
    )


def _joined_views(views: Sequence[View]) -> View:
    names = ("logit", "peak", "profile", "inside", "hit")
    return View(**{name: np.concatenate([getattr(v, name) for v in views]) for name in names})


def summary(comparison: Comparison) -> dict[str, float | int | None]:
    """Return the numbers that people quote: means over the objects for which each is defined, None where none is."""
    objects, first, second = comparison.objects, comparison.first, comparison.second
    return {
        "objects": len(objects.cls),
        "images": len(np.unique(objects.sample)),
        "with_boxes": int((~np.isnan(objects.covered)).sum()),
        "correlation": _mean(comparison.correlation),
        "control": _mean(comparison.control),
        "score_first": _mean(first.logit),
        "score_second": _mean(second.logit),
        "found_first": _mean(first.logit > 0),
        "found_second": _mean(second.logit > 0),
        "peak_first": _mean(first.peak),
        "peak_second": _mean(second.peak),
        "inside_first": _mean(first.inside),
        "inside_second": _mean(second.inside),
        "inside_chance": _mean(objects.covered),
        "hit_first": _mean(first.hit),
        "hit_second": _mean(second.hit),
        "hit_chance": _mean(objects.touched),
    }


def _mean(values: np.ndarray) -> float | None:
    known = np.asarray(values, float)
    known = known[~np.isnan(known)]
    return float(known.mean()) if len(known) else None
