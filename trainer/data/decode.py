"""Image bytes to an upright RGB uint8 tensor: JPEG on torchvision's native path, everything else through Pillow."""

from __future__ import annotations

import io

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.io import ImageReadMode
from torchvision.transforms.v2 import functional as F

from sharding.images import RejectedImage, upright_rgb


class CorruptImage(Exception):
    """The bytes are no image that can be decoded; the message is the reason in one line."""


def decode(data: bytes, image_size: int) -> Tensor:
    """Decode and squash to uint8 (3, image_size, image_size). Raises :class:`CorruptImage`."""
    return squash(decode_rgb(data), image_size)


def squash(image: Tensor, image_size: int) -> Tensor:
    """Resize to a square regardless of the aspect, bilinear with antialiasing: what the published runs do."""
    return F.resize(image, [image_size, image_size], antialias=True)


def squash_into(image: Tensor, target: Tensor) -> None:
    """Write ``squash(image)`` into ``target``, uint8 (1, 3, S, S), one image of a channels-last batch.

    Resizing straight into the batch spares a copy: a tenth of the time that decoding and resizing take together. The
    target has a batch dimension because each view made here would take the interpreter's lock once more.
    """
    if image.device.type != "cpu" or target.device.type != "cpu":
        target.copy_(squash(image, target.shape[-1]))
        return
    size = list(target.shape[-2:])
    torch.ops.aten._upsample_bilinear2d_aa.out(image[None], size, False, None, None, out=target)


def decode_rgb(data: bytes, device: str = "cpu") -> Tensor:
    """Decode to uint8 (3, H, W), upright (EXIF orientation applied), as the shard builder shows images to itself.

    Grey, palette and CMYK become RGB, 16-bit samples 8-bit, transparency lies on white, animations give their first
    frame. With ``device="cuda"``, JPEGs are decoded by the GPU and the result lies there. Raises
    :class:`CorruptImage`.
    """
    if not data:
        raise CorruptImage("zero bytes")
    if data.startswith(b"\xff\xd8"):
        try:
            return _decode_jpeg(data, device)
        except RuntimeError:
            pass  # Pillow reads some JPEGs that torchvision does not, and words the reason better for the others
    return _decode_with_pillow(data).to(device)


def _decode_jpeg(data: bytes, device: str) -> Tensor:
    # bytearray: torch warns about buffers that it could write to but must not.
    encoded = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    # The operators behind torchvision.io are called directly, because its functions take the interpreter-wide warning
    # lock on every image since they were deprecated (0.29, in favour of TorchCodec).
    rgb = ImageReadMode.RGB.value
    if device != "cpu" and b"Exif\x00\x00" not in data[:4096]:  # the GPU decoder does not turn images upright
        return torch.ops.image.decode_jpegs_cuda([encoded], rgb, torch.device(device))[0]
    return torch.ops.image.decode_jpeg(encoded, rgb, True).to(device)


def _decode_with_pillow(data: bytes) -> Tensor:
    try:
        with Image.open(io.BytesIO(data)) as image:
            return torch.from_numpy(np.array(upright_rgb(image))).permute(2, 0, 1)
    except RejectedImage as error:
        raise CorruptImage(_line(error)) from error
    except Exception as error:  # Pillow's readers raise many kinds on damaged headers
        raise CorruptImage(_line(error)) from error


def _line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
