"""Backbones: networks that turn images into a feature map, from this file, torchvision or timm.

A backbone maps normalised images (B, 3, H, W) to features (B, channels, h, w). Its classifier, if it had one, is
gone; parameter names stay those of the library, so published weight files load.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from safetensors.torch import load as load_safetensors
from torch import Tensor, nn

from sharding import storage
from sharding.errors import UserError, did_you_mean

IMAGENET_MEAN = (123.675, 116.28, 103.53)
IMAGENET_STD = (58.395, 57.12, 57.375)

#: torchvision families offered, with the module whose output is the last feature map.
_TORCHVISION_FEATURES = {
    "resnet": "layer4",
    "resnext": "layer4",
    "wide_resnet": "layer4",
    "convnext": "features",
    "efficientnet": "features",
    "mobilenet": "features",
    "densenet": "features",
    "regnet": "trunk_output",
}


@dataclass(frozen=True)
class Backbone:
    """A feature extractor with what the rest needs to know about it.

    channels: of the feature map · mean, std: per colour channel, in units of 0..255
    """

    module: nn.Module
    channels: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


class SmallResNet(nn.Module):
    """A ResNet for small images trained from scratch (He et al. 2016; 0.2 M parameters at width 32).

    Output stride 8, so a 64×64 image gives an 8×8 class-activation map. The stem goes to stride 4 at once: most of
    the time of a small network is spent on its largest feature maps.
    """

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        from torchvision.models.resnet import BasicBlock

        self.channels = 3 * width
        self.stem = nn.Sequential(
            nn.Conv2d(3, width, 5, stride=4, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)
        )
        stages: list[nn.Module] = []
        before = width
        for after, stride in ((2 * width, 2), (3 * width, 1)):
            shortcut = nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after))
            stages.append(BasicBlock(before, after, stride, shortcut))
            before = after
        self.stages = nn.Sequential(*stages)

    def forward(self, images: Tensor) -> Tensor:
        return self.stages(self.stem(images))


class _TimmFeatures(nn.Module):
    """A timm model reduced to ``forward_features``."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return self.model.forward_features(images)  # type: ignore[operator]


class _NamedOutput(nn.Module):
    """Unwraps the one-entry dictionary of torchvision's feature extractor."""

    def __init__(self, extractor: nn.Module) -> None:
        super().__init__()
        self.model = extractor

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images)["features"]


def build_backbone(name: str, weights: str) -> Backbone:
    """Build backbone ``name`` with ``weights``: ``none``, ``default`` (the library's download), or a path or URL.

    Names: ``small_resnet`` or ``small_resnet:WIDTH``, a torchvision classifier such as ``resnet50``, or
    ``timm:NAME``. Raises :class:`UserError` for an unknown name, a failed download, and weights of another
    architecture.
    """
    if name.partition(":")[0] == "small_resnet":
        backbone = _small_resnet(name, weights)
    elif name.startswith("timm:"):
        backbone = _timm(name.removeprefix("timm:"), weights)
    else:
        backbone = _torchvision(name, weights)
    if weights not in ("none", "default"):
        _load_weights(backbone.module, weights, name)
    return backbone


def _small_resnet(name: str, weights: str) -> Backbone:
    width = name.partition(":")[2] or "32"
    if not width.isdigit() or int(width) < 1:
        raise UserError(f"model.backbone: {name!r}: {width!r} is no width", "write small_resnet:32")
    if weights == "default":
        raise UserError(f"model.weights: {name} has no published weights", "use model.weights=none")
    module = SmallResNet(int(width))
    return Backbone(module, module.channels, IMAGENET_MEAN, IMAGENET_STD)


def _torchvision(name: str, weights: str) -> Backbone:
    import torchvision
    from torchvision.models.feature_extraction import create_feature_extractor

    known = [n for n in torchvision.models.list_models(module=torchvision.models) if _feature_module(n)]
    if name not in known:
        raise UserError(f"model.backbone: no backbone {name!r}", did_you_mean(name, [*known, "small_resnet"]))
    with _explained_download(name, weights):
        model = torchvision.models.get_model(name, weights="DEFAULT" if weights == "default" else None)
    training_state = model.training
    module = _NamedOutput(create_feature_extractor(model, {_feature_module(name): "features"}))
    module.train(training_state)
    return Backbone(module, _count_channels(module), IMAGENET_MEAN, IMAGENET_STD)


def _feature_module(name: str) -> str:
    return next((module for family, module in _TORCHVISION_FEATURES.items() if name.startswith(family)), "")


def _timm(name: str, weights: str) -> Backbone:
    try:
        import timm
    except ImportError as error:
        raise UserError(f"model.backbone: timm:{name} needs the timm package", "pip install timm") from error
    if name not in timm.list_models():
        raise UserError(f"model.backbone: timm has no model {name!r}", did_you_mean(name, timm.list_models()))
    with _explained_download(f"timm:{name}", weights):
        model = timm.create_model(name, pretrained=weights == "default", num_classes=0)
    module = _TimmFeatures(model)
    published: Any = model.pretrained_cfg
    red, green, blue = (255.0 * value for value in published["mean"])
    mean, std = (red, green, blue), tuple(255.0 * value for value in published["std"])
    return Backbone(module, _count_channels(module), mean, (std[0], std[1], std[2]))


def _count_channels(module: nn.Module) -> int:
    """Return the channels of the feature map; anything but a (B, C, h, w) map is a :class:`UserError`."""
    was_training = module.training
    module.eval()
    with torch.no_grad():
        features = module(torch.zeros(1, 3, 224, 224))
    module.train(was_training)
    if features.dim() != 4 or features.shape[2] != features.shape[3]:
        raise UserError(
            f"model.backbone: its features have shape {tuple(features.shape)}, not (B, channels, h, w)",
            "choose a convolutional backbone; class-activation maps need a spatial feature map",
        )
    return int(features.shape[1])


class _explained_download:
    """Turns whatever a model library raises when a download fails into the remedy."""

    def __init__(self, backbone: str, weights: str) -> None:
        self.backbone, self.active = backbone, weights == "default"

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if self.active and isinstance(error, Exception):
            raise UserError(
                f"model.weights: default: downloading the weights of {self.backbone} failed ({error})",
                "get the file elsewhere and pass it: model.weights=/path/to/file.safetensors (or .pth)",
            ) from error


def read_state(url: str) -> dict[str, Tensor]:
    """Read a flat ``name -> tensor`` file (safetensors, or a torch file loaded with ``weights_only=True``)."""
    try:
        with storage.open_file(url) as file:
            if url.endswith(".safetensors"):
                return load_safetensors(file.read())
            content = torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise UserError(f"model.weights: no file {url}", "check the path; `none` trains from scratch") from error
    except Exception as error:
        remedy = "pass a safetensors or state-dict file"
        raise UserError(f"model.weights: cannot read {url}: {error}", remedy) from error
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        remedy = "export it with torch.save(model.state_dict(), FILE)"
        raise UserError(f"model.weights: {url} is not a flat state dict", remedy)
    return content


def _load_weights(module: nn.Module, url: str, name: str) -> None:
    """Load backbone weights; the classifier in the file is ignored, anything else that differs is refused."""
    inner = module.model if isinstance(module, _NamedOutput | _TimmFeatures) else module
    state = read_state(url)
    expected = inner.state_dict()
    # Old files lack the counters that later batch-norm layers carry; they do not affect the outputs.
    missing = [key for key in expected if key not in state and not key.endswith("num_batches_tracked")]
    wrong = [key for key in expected if key in state and expected[key].shape != state[key].shape]
    if missing or wrong:
        first = (missing + wrong)[0]
        why = "is missing" if missing else f"is {tuple(state[first].shape)}, not {tuple(expected[first].shape)}"
        raise UserError(
            f"model.weights: {url} is of another architecture than {name}: {len(missing)} tensors missing, "
            f"{len(wrong)} of another shape; first: {first} {why}",
            "pass the weights of this backbone, or set model.backbone to theirs",
        )
    inner.load_state_dict({key: state[key] for key in expected if key in state}, strict=False)
