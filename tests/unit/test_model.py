"""Backbones and classifier: feature maps, weights files, when BoostLU applies."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from sharding.errors import UserError
from trainer.model.backbones import build_backbone
from trainer.model.classifier import Classifier, ModelConfig, build_model


@pytest.mark.parametrize(
    ("name", "channels", "stride"),
    [
        ("small_resnet:4", None, None),
        ("resnet18", 512, 32),
        ("resnet50", 2048, 32),
        ("resnext50_32x4d", 2048, 32),
        ("convnext_tiny", 768, 32),
        ("efficientnet_b0", 1280, 32),
        ("mobilenet_v3_small", 576, 32),
        ("densenet121", 1024, 32),
        ("regnet_y_400mf", 440, 32),
    ],
)
def test_backbones_give_a_feature_map(name: str, channels: int | None, stride: int | None) -> None:
    backbone = build_backbone(name, "none")
    features = backbone.module.eval()(torch.zeros(2, 3, 64, 64))
    assert features.shape[:2] == (2, backbone.channels)
    assert features.shape[2] == features.shape[3] >= 2
    if channels is not None and stride is not None:
        assert backbone.channels == channels
        assert features.shape[2] == 64 // stride


def test_published_weight_names_load(tmp_path: Path) -> None:
    """A torchvision state dict, classifier included, as one downloads it."""
    import torchvision

    torch.manual_seed(3)
    published = torchvision.models.resnet18()
    torch.save(published.state_dict(), tmp_path / "resnet18.pth")
    backbone = build_backbone("resnet18", str(tmp_path / "resnet18.pth"))
    images = torch.randn(1, 3, 64, 64)
    expected = published.eval()(images)
    features = backbone.module.eval()(images)
    torch.testing.assert_close(published.fc(features.mean((2, 3))), expected)


def test_weights_of_another_architecture_name_the_difference(tmp_path: Path) -> None:
    import torchvision

    save_file(torchvision.models.resnet34().state_dict(), tmp_path / "resnet34.safetensors")
    with pytest.raises(UserError, match=r"another architecture than resnet50: \d+ tensors missing"):
        build_backbone("resnet50", str(tmp_path / "resnet34.safetensors"))


def test_a_failed_download_says_how_to_pass_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_args: object, **_kwargs: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", offline)
    with pytest.raises(UserError, match=r"no route to host.*model\.weights=/path"):
        build_backbone("resnet18", "default")


@pytest.mark.parametrize("name", ["resnet51", "timm:resnet5", "vgg"])
def test_an_unknown_backbone_is_refused(name: str) -> None:
    with pytest.raises(UserError, match=r"model\.backbone"):
        build_backbone(name, "none")


def test_a_transformer_without_a_map_is_refused() -> None:
    with pytest.raises(UserError, match="class-activation maps need"):
        build_backbone("timm:vit_tiny_patch16_224", "none")


def test_pretrained_efficientnet_lite_from_a_file(shared_data: Path) -> None:
    weights = shared_data / "weights" / "tf_efficientnet_lite0.safetensors"
    backbone = build_backbone("timm:tf_efficientnet_lite0", str(weights))
    assert backbone.channels == 1280
    assert backbone.mean == pytest.approx((127.5, 127.5, 127.5))
    assert backbone.module.eval()(torch.zeros(1, 3, 64, 64)).shape == (1, 1280, 2, 2)
    with pytest.raises(UserError, match="another architecture"):
        build_backbone("timm:efficientnet_b0", str(weights))


@pytest.mark.parametrize(
    ("boost", "while_training", "at_inference"), [("always", 5, 5), ("inference", 1, 5), ("training", 5, 1)]
)
def test_when_boostlu_applies(boost: str, while_training: float, at_inference: float) -> None:
    config = ModelConfig.model_validate({"backbone": "small_resnet:4", "weights": "none", "alpha": 5, "boost": boost})
    model = Classifier(config, 3)
    assert model.train().head.alpha == while_training
    assert model.eval().head.alpha == at_inference


def test_frozen_batch_norm_keeps_its_statistics() -> None:
    config = ModelConfig(backbone="small_resnet:4", weights="none", batch_norm="frozen")
    model = Classifier(config, 3).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items() if "running" in name}
    model(torch.randn(4, 3, 32, 32))
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in before.items())


def test_logits_are_the_mean_of_the_map() -> None:
    model = build_model(ModelConfig(backbone="small_resnet:4", weights="none"), 5, seed=1).eval()
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(model.cam(images).mean((2, 3)), model(images))


def test_initial_weights_depend_on_the_seed_alone() -> None:
    config = ModelConfig(backbone="small_resnet:4", weights="none")
    torch.manual_seed(5)
    first = build_model(config, 3, seed=1).state_dict()
    state = torch.get_rng_state()
    second = build_model(config, 3, seed=1).state_dict()
    other = build_model(config, 3, seed=2).state_dict()
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)
