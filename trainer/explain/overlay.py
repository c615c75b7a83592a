"""Class-activation maps painted over images."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
import torch

from trainer.explain.maps import Explanation, probability

#: The map is drawn where it is positive; this share of the image shines through where it is highest.
_SHINES_THROUGH = 0.2


def overlay(image: np.ndarray, cam: np.ndarray, highest: float) -> np.ndarray:
    """Paint the positive part of ``cam`` (h, w) over ``image``, uint8 (H, W, 3); return the same shape and dtype.

    The image turns grey and darker, so that colour means attribution alone: dark red is a little above 0, yellow is
    ``highest``. Where the map is ≤ 0 there is no colour.
    """
    from matplotlib import colormaps

    height, width = image.shape[:2]
    enlarged = torch.nn.functional.interpolate(
        torch.from_numpy(np.ascontiguousarray(cam, np.float32))[None, None], (height, width), mode="bilinear"
    )[0, 0].numpy()
    strength = np.clip(enlarged / highest, 0, 1) if highest > 0 else np.zeros_like(enlarged)
    grey = (image @ np.array([0.299, 0.587, 0.114]))[..., None] * 0.6
    colour = colormaps["hot"](0.2 + 0.54 * strength)[..., :3] * 255
    share = (1 - _SHINES_THROUGH) * np.sqrt(strength)[..., None]
    return (grey * (1 - share) + colour * share).clip(0, 255).astype(np.uint8)


def highest_attribution(cams: Sequence[np.ndarray]) -> float:
    """Return the value that is painted yellow when ``cams`` are drawn on one scale: their maximum, at least 0."""
    return max(0.0, *(float(cam.max()) for cam in cams))


def score_text(logit: float) -> str:
    """Return a score as people read it: logit and probability."""
    sign = "−" if logit < 0 else "+"
    return f"{sign}{abs(logit):.2f} · {100 * float(probability(np.array(logit))):.1f} %"


def draw_explanation(explanation: Explanation, names: Sequence[str], classes: Sequence[int], caption: str) -> bytes:
    """Return a PNG: the image, then one panel a class with its map over the image and its score above."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = 1 + len(classes)
    columns = min(panels, 5)
    rows = -(-panels // columns)
    height, width = explanation.image.shape[:2]
    panel = 2.6
    figure = Figure(
        figsize=(columns * panel, rows * (panel * min(2.0, height / width) + 0.55) + 0.3), layout="constrained"
    )
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis in axes:
        axis.set_axis_off()
    axes[0].imshow(explanation.image)
    axes[0].set_title("image", fontsize=10)
    highest = highest_attribution([explanation.cam[c] for c in classes])
    for axis, number in zip(axes[1:], classes, strict=False):
        axis.imshow(overlay(explanation.image, explanation.cam[number], highest))
        axis.set_title(f"{names[number]}\n{score_text(float(explanation.logits[number]))}", fontsize=10)
    figure.supxlabel(caption, fontsize=8, color="0.35")
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=110)
    return out.getvalue()
