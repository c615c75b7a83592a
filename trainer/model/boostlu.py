"""BoostLU on class activation maps, and the classification head built on it.

Kim et al., "Bridging the Gap between Model Explanations in Partially Annotated Multi-label Classification",
CVPR 2023, eq. 4: BoostLU(x) = max(x, αx). The head is a 1×1 convolution (with bias) that gives one map a class
(the CAM), BoostLU on every element of it, and the spatial mean.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from sharding.errors import UserError

#: Elements of the CAM that are in memory at once: enough for full-speed matrix products, small beside a batch's CAM.
CHUNK_ELEMENTS = 1 << 24


def check_alpha(alpha: float) -> float:
    """Return ``alpha`` if BoostLU is defined for it (finite, ≥ 1), else raise UserError."""
    if not (math.isfinite(alpha) and alpha >= 1):
        raise UserError(
            f"model.alpha is {alpha}: BoostLU needs α ≥ 1", "use 5 (published), or 1 to switch BoostLU off"
        )
    return float(alpha)


def boostlu(x: Tensor, alpha: float) -> Tensor:
    """max(x, αx) elementwise: any shape and float dtype, same out."""
    return torch.maximum(x, alpha * x) if alpha != 1 else x


class BoostLUHead(nn.Module):
    """Feature map → logits, by way of a boosted CAM that is never wholly in memory.

    ``weight`` (C, F) and ``bias`` (C) are those of the 1×1 convolution. ``alpha`` may be set at any time; a model
    trained with 1 can be boosted at inference only (the paper's section 5.4).
    """

    def __init__(self, in_channels: int, num_classes: int, alpha: float = 5.0) -> None:
        super().__init__()
        self.alpha = check_alpha(alpha)
        self.weight = nn.Parameter(torch.empty(num_classes, in_channels))
        self.bias = nn.Parameter(torch.empty(num_classes))
        bound = 1 / math.sqrt(in_channels)  # the default initialisation of a 1×1 convolution
        nn.init.uniform_(self.weight, -bound, bound)
        nn.init.uniform_(self.bias, -bound, bound)

    def extra_repr(self) -> str:
        return f"{self.weight.shape[1]}, {self.weight.shape[0]}, alpha={self.alpha}"

    def forward(self, features: Tensor) -> Tensor:
        """(B, F, h, w) of any float dtype → logits (B, C), float32 (float64 for float64 features)."""
        dtype = _compute_dtype(features)
        with torch.autocast(features.device.type, enabled=False):
            if self.alpha == 1:  # the mean commutes with a linear map: no CAM is needed
                wide = torch.promote_types(features.dtype, torch.float32)
                pooled = features.mean((2, 3), dtype=wide)
                return nn.functional.linear(pooled, self.weight.to(wide), self.bias.to(wide))
            logits: Tensor = _BoostedMean.apply(
                features.to(dtype), self.weight.to(dtype), self.bias.to(dtype), self.alpha
            )
            return logits

    def cam(self, features: Tensor) -> Tensor:
        """(B, F, h, w) → the CAM after BoostLU, (B, C, h, w), in the dtype of ``features``; its mean is the logit."""
        weight = self.weight.to(features.dtype)[:, :, None, None]
        return boostlu(nn.functional.conv2d(features, weight, self.bias.to(features.dtype)), self.alpha)


def _compute_dtype(features: Tensor) -> torch.dtype:
    kind = features.device.type
    if torch.is_autocast_enabled(kind) and features.dtype != torch.float64:
        return torch.get_autocast_dtype(kind)
    return features.dtype


def _chunks(batch: int, elements_per_sample: int) -> list[slice]:
    size = max(1, CHUNK_ELEMENTS // max(1, elements_per_sample))
    return [slice(start, min(start + size, batch)) for start in range(0, batch, size)]


def _pixels(features: Tensor) -> Tensor:
    """(n, F, h, w) → (n·h·w, F); free of copies for channels_last."""
    return features.permute(0, 2, 3, 1).reshape(-1, features.shape[1])


class _BoostedMean(torch.autograd.Function):
    """mean over pixels of BoostLU(features · weightᵀ + bias).

    Kept for backward: one byte a CAM element (its sign), against four or eight times that with stock modules. The
    gradient of an element is g/(h·w) where it is ≤ 0 and αg/(h·w) where it is > 0, so backward rebuilds the CAM's
    gradient chunk by chunk from the signs.
    """

    @staticmethod
    def forward(ctx: Any, features: Tensor, weight: Tensor, bias: Tensor, alpha: float) -> Tensor:
        batch, _, height, width = features.shape
        pixels, classes = height * width, weight.shape[0]
        out_dtype = torch.promote_types(features.dtype, torch.float32)
        logits = features.new_empty((batch, classes), dtype=out_dtype)
        positive = torch.empty((batch, pixels, classes), dtype=torch.bool, device=features.device)
        for rows in _chunks(batch, pixels * classes):
            cam = torch.addmm(bias, _pixels(features[rows]), weight.t()).view(-1, pixels, classes)
            torch.gt(cam, 0, out=positive[rows])
            total = cam.sum(1, dtype=out_dtype)
            total += (alpha - 1) * cam.relu_().sum(1, dtype=out_dtype)  # max(x, αx) = x + (α − 1)·max(x, 0)
            logits[rows] = total / pixels
        ctx.save_for_backward(features, weight, positive)
        ctx.alpha = alpha
        return logits

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_logits: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        features, weight, positive = ctx.saved_tensors
        batch, channels, height, width = features.shape
        pixels, classes = height * width, weight.shape[0]
        small = grad_logits / pixels
        grad_features = torch.empty_like(features) if ctx.needs_input_grad[0] else None
        grad_weight = torch.zeros_like(weight, dtype=grad_logits.dtype)
        grad_bias = torch.zeros(classes, dtype=grad_logits.dtype, device=weight.device)
        for rows in _chunks(batch, pixels * classes):
            low = small[rows, None].to(features.dtype)
            grad_cam = torch.where(positive[rows], ctx.alpha * low, low).view(-1, classes)
            grad_bias += grad_cam.sum(0, dtype=grad_logits.dtype)
            grad_weight += grad_cam.t() @ _pixels(features[rows])
            if grad_features is not None:
                back = (grad_cam @ weight).view(-1, height, width, channels)
                grad_features[rows] = back.permute(0, 3, 1, 2)
        return grad_features, grad_weight.to(weight.dtype), grad_bias.to(weight.dtype), None
