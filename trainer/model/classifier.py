"""The classifier: backbone → 1×1 convolution → class-activation maps → BoostLU → mean → logits."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from sharding.schema import Strict
from trainer.model.backbones import build_backbone
from trainer.model.boostlu import BoostLUHead


class ModelConfig(Strict):
    backbone: str = "resnet50"
    """``small_resnet[:WIDTH]``, a torchvision name (``resnet50``), or ``timm:NAME``."""
    weights: str = "default"
    """``none`` (from scratch), ``default`` (the library's ImageNet weights, downloaded), or a path or URL."""
    alpha: float = Field(default=5.0, ge=1.0)
    """BoostLU's slope for positive attributions; 1 switches BoostLU off."""
    boost: Literal["always", "inference", "training"] = "always"
    """When alpha applies. ``inference`` is the published ablation: train plainly, boost only when predicting."""
    batch_norm: Literal["train", "frozen", "sync"] = "train"
    """``frozen`` keeps the running statistics (results then do not depend on the number of workers); ``sync``
    shares batch statistics among workers (GPU)."""
    mean: tuple[float, float, float] | None = None
    """Per-channel mean in 0..255 units; default: the backbone's own."""
    std: tuple[float, float, float] | None = None
    """Per-channel standard deviation in 0..255 units; default: the backbone's own."""


class Classifier(nn.Module):
    """images (B, 3, H, W), normalised float → logits (B, classes), float32.

    ``mean`` and ``std`` (3,) are what images must be normalised with, in 0..255 units.
    """

    def __init__(self, config: ModelConfig, num_classes: int) -> None:
        super().__init__()
        backbone = build_backbone(config.backbone, config.weights)
        self.backbone = backbone.module
        self.head = BoostLUHead(backbone.channels, num_classes, config.alpha)
        self.mean = config.mean or backbone.mean
        self.std = config.std or backbone.std
        self._boost, self._alpha = config.boost, config.alpha
        self._batch_norm = config.batch_norm
        self.train()

    def train(self, mode: bool = True) -> Classifier:
        """Switch mode: batch norm stays in evaluation mode when frozen, alpha follows ``boost``."""
        super().train(mode)
        if self._batch_norm == "frozen":
            for module in self.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        off = {"always": False, "inference": mode, "training": not mode}[self._boost]
        self.head.alpha = 1.0 if off else self._alpha
        return self

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.backbone(images))

    def cam(self, images: Tensor) -> Tensor:
        """Return the boosted class-activation maps, (B, classes, h, w); their spatial mean is the logits."""
        return self.head.cam(self.backbone(images))


def build_model(config: ModelConfig, num_classes: int, seed: int) -> Classifier:
    """Build the classifier with initial weights that depend on ``seed`` alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Classifier(config, num_classes)
