"""The gallery's pictures as data URIs: the image with its boxes, and class-activation maps over it."""

from __future__ import annotations

import base64
import io

import numpy as np
from PIL import Image, ImageDraw

from trainer.explain.overlay import highest_attribution, overlay
from trainer.report.gallery import Row

#: Longer side of a panel in pixels; shown at about half that.
SIDE = 320


def image_panel(row: Row) -> str:
    """The image, with the boxes of the row's class where they are known."""
    pixels = row.cells[0].image
    picture = _enlarged(pixels)
    scale = picture.width / pixels.shape[1]
    pen = ImageDraw.Draw(picture)
    for x, y, width, height in row.boxes.get(row.choice.cls, []):
        corners = (x * scale - 3, y * scale - 3, (x + width) * scale + 2, (y + height) * scale + 2)
        pen.rectangle(corners, outline=(0, 0, 0), width=4)
        pen.rectangle(
            tuple(c + d for c, d in zip(corners, (1, 1, -1, -1), strict=True)), outline=(255, 255, 255), width=2
        )
    return _uri(picture)


def cam_panels(row: Row) -> list[str]:
    """One panel a column: the map of the row's class over the image, all on the row's common scale."""
    cams = [cell.cam[row.choice.cls] for cell in row.cells]
    highest = highest_attribution(cams)
    big = np.asarray(_enlarged(row.cells[0].image))
    return [_uri(Image.fromarray(overlay(big, cam, highest))) for cam in cams]


def _enlarged(pixels: np.ndarray) -> Image.Image:
    height, width = pixels.shape[:2]
    scale = SIDE / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)


def _uri(picture: Image.Image) -> str:
    out = io.BytesIO()
    picture.save(out, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(out.getvalue()).decode()
