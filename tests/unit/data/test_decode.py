"""Every kind of image becomes the RGB picture that Pillow shows."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from trainer.data.decode import CorruptImage, decode, decode_rgb, squash, squash_into

Y, X = np.mgrid[0:40, 0:60]
RGB = Image.fromarray(np.stack([X * 4, Y * 6, (X + Y) * 2], -1).astype(np.uint8))
ALPHA = RGB.copy()
ALPHA.putalpha(Image.fromarray((X * 4).astype(np.uint8)))


def encode(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def turned(kind: str, orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x112] = orientation
    return encode(RGB, kind, exif=exif)


def on_white(image: Image.Image) -> np.ndarray:
    colour, share = np.asarray(image.convert("RGB"), float), np.asarray(image.getchannel("A"), float)[..., None] / 255
    return colour * share + 255 * (1 - share)


KINDS: dict[str, Callable[[], bytes]] = {
    "jpeg": lambda: encode(RGB, "JPEG"),
    "progressive jpeg": lambda: encode(RGB, "JPEG", progressive=True),
    "grey jpeg": lambda: encode(RGB.convert("L"), "JPEG"),
    "cmyk jpeg": lambda: encode(RGB.convert("CMYK"), "JPEG"),
    "png": lambda: encode(RGB, "PNG"),
    "grey png": lambda: encode(RGB.convert("L"), "PNG"),
    "palette png": lambda: encode(RGB.convert("P"), "PNG"),
    "black-and-white png": lambda: encode(RGB.convert("1"), "PNG"),
    "webp": lambda: encode(RGB, "WEBP", lossless=True),
    "animated gif": lambda: encode(RGB, "GIF", save_all=True, append_images=[ImageOps.mirror(RGB)]),
    "bmp": lambda: encode(RGB, "BMP"),
    "turned png": lambda: turned("PNG", 6),
    "turned webp": lambda: turned("WEBP", 8),
} | {f"jpeg of orientation {o}": lambda o=o: turned("JPEG", o) for o in range(1, 9)}


@pytest.mark.parametrize("kind", KINDS)
def test_decodes_as_pillow_shows(kind: str) -> None:
    data = KINDS[kind]()
    image = decode_rgb(data)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"), int)
    assert image.dtype == torch.uint8
    assert image.shape == (3, *expected.shape[:2])
    assert np.abs(image.permute(1, 2, 0).numpy() - expected).max() <= 2
    assert decode(data, 32).shape == (3, 32, 32)


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_transparency_lies_on_white(kind: str) -> None:
    image = decode_rgb(encode(ALPHA, kind, lossless=True))
    assert np.abs(image.permute(1, 2, 0).numpy() - on_white(ALPHA)).max() <= 2


def test_16_bit_grey_keeps_its_scale() -> None:
    image = decode_rgb(encode(Image.fromarray((X * 1000).astype(np.uint16)), "PNG"))
    assert np.abs(image.permute(1, 2, 0).numpy() - (X * 1000 / 257)[..., None]).max() <= 1


NO_IMAGES = {
    "empty": b"",
    "three bytes": b"\xff\xd8\xff",
    "html": b"<html>no</html>",
    "cut jpeg": encode(RGB, "JPEG")[:500],
    "cut png": encode(RGB, "PNG")[:80],
    "zeros": b"\xff\xd8" + b"\0" * 99,
}


@pytest.mark.parametrize("data", NO_IMAGES.values(), ids=NO_IMAGES)
def test_what_is_no_image_is_corrupt(data: bytes) -> None:
    with pytest.raises(CorruptImage) as caught:
        decode_rgb(data)
    assert str(caught.value)
    assert "\n" not in str(caught.value)


def test_squash_equals_pillows_antialiased_bilinear() -> None:
    """Pillow's is the published runs' resize; the two round differently by at most one grey level."""
    data = encode(RGB, "PNG")
    ours = decode(data, 24).permute(1, 2, 0).numpy().astype(int)
    assert np.abs(ours - np.asarray(RGB.resize((24, 24), Image.Resampling.BILINEAR), int)).max() <= 1


@pytest.mark.parametrize("kind", ["jpeg", "grey jpeg", "png"])
def test_resizing_into_a_batch_equals_resizing(kind: str) -> None:
    image = decode_rgb(KINDS[kind]())
    batch = torch.empty(3, 3, 24, 24, dtype=torch.uint8, memory_format=torch.channels_last)
    squash_into(image, batch[1:2])
    assert torch.equal(batch[1], squash(image, 24))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("kind", [kind for kind in KINDS if "jpeg" in kind])
def test_gpu_decoding_agrees_with_the_cpus(kind: str) -> None:
    data = KINDS[kind]()
    on_gpu = decode_rgb(data, "cuda")
    assert on_gpu.is_cuda
    assert (on_gpu.cpu().int() - decode_rgb(data).int()).abs().float().mean() < 3
