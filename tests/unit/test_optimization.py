"""Learning rates, freezing, averages, micro-batches: each against what it stands for."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import nn

from sharding.errors import UserError
from trainer.microbatch import MicroBatches
from trainer.model.classifier import ModelConfig, build_model
from trainer.optimization import (
    OptimizerConfig,
    batch_scale,
    build_optimizer,
    freeze,
    lr_factor,
    moving_average,
    set_learning_rate,
)

MODEL = ModelConfig(backbone="small_resnet:4", weights="none")


def options(**values: Any) -> OptimizerConfig:
    return OptimizerConfig.model_validate(values)


@pytest.mark.parametrize(
    ("schedule", "step", "expected"),
    [
        ("constant", 0, 1.0),
        ("constant", 99, 1.0),
        ("cosine", 0, 1.0),
        ("cosine", 50, 0.5),
        ("cosine", 100, 0.0),
        ("one-cycle", 0, 0.04),
        ("one-cycle", 30, 1.0),
        ("one-cycle", 65, 0.5),
        ("one-cycle", 100, 0.0),
    ],
)
def test_schedules_by_hand(schedule: str, step: int, expected: float) -> None:
    assert lr_factor(options(schedule=schedule), step, 100) == pytest.approx(expected, abs=1e-12)


def test_warm_up_rises_linearly_to_the_schedule() -> None:
    config = options(warmup_steps=4)
    assert [lr_factor(config, step, 100) for step in range(6)] == [0.25, 0.5, 0.75, 1, 1, 1]


def test_the_head_learns_faster_and_both_follow_the_schedule() -> None:
    model = build_model(MODEL, 3, 0)
    optimizer = build_optimizer(options(lr=0.1, head_lr_multiplier=10), model, 16)
    assert set_learning_rate(optimizer, 0.5) == pytest.approx(0.05)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.05, 0.5])
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(model.parameters()))


@pytest.mark.parametrize(("name", "factor"), [("sgd", 4), ("adam", 2), ("adamw", 2)])
def test_rates_follow_the_global_batch(name: str, factor: float) -> None:
    config = options(name=name, lr=0.1, reference_batch=16)
    assert batch_scale(config, 64) == factor
    optimizer = build_optimizer(config, build_model(MODEL, 3, 0), 64)
    assert optimizer.param_groups[0]["base_lr"] == pytest.approx(0.1 * factor)


def test_frozen_parameters_do_not_move() -> None:
    model = build_model(MODEL, 3, 0)
    config = options(lr=0.1, freeze=["backbone.stem"])
    freeze(config, model)
    before = copy.deepcopy(model.state_dict())
    optimizer = build_optimizer(config, model, 16)
    model(torch.randn(4, 3, 32, 32)).sum().backward()
    optimizer.step()
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) == name.startswith("backbone.stem"), name
    with pytest.raises(UserError, match=r"'backbone\.stem"):
        freeze(options(freeze=["backbone.stm"]), model)


def test_the_average_is_exponential() -> None:
    model = build_model(MODEL, 3, 0)
    average = moving_average(options(ema_decay=0.75), model)
    assert average is not None
    weight = model.head.weight
    values = [1.0, 2.0, 4.0]
    for value in values:
        nn.init.constant_(weight, value)
        average.update_parameters(model)
    # The first update copies; then 0.75·1 + 0.25·2 = 1.25 and 0.75·1.25 + 0.25·4 = 1.9375.
    averaged = dict(average.module.named_parameters())["head.weight"]
    assert averaged.flatten()[0].item() == pytest.approx(1.9375)
    assert moving_average(options(), model) is None


class DroppingNet(nn.Module):
    """Dropout makes the two passes differ unless they draw the same numbers."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3), norm, nn.ReLU(), nn.Flatten(), nn.LazyLinear(5))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.body(images)


@pytest.mark.parametrize("limit", [1, 3, 4, 16])
def test_micro_batches_give_the_gradient_of_the_whole_batch(limit: int) -> None:
    """With a loss that couples all entries of the batch, as a large-loss selection does."""
    network = DroppingNet(nn.GroupNorm(1, 4)).double()
    images = torch.randn(8, 3, 6, 6, dtype=torch.float64)
    cast = torch.autocast("cpu", enabled=False)
    network(images)  # sizes the lazy layer
    gradients = []
    for chosen in (None, limit):
        network.zero_grad()
        passes = MicroBatches(network, images, chosen, seed=7, cast=cast)
        logits = passes.forward()
        loss = (logits.softmax(0) * logits).max(1).values.sum() / logits.norm()
        passes.backward(loss)
        gradients.append([p.grad.clone() for p in network.parameters() if p.grad is not None])
    # Logits are handed over in float32, which bounds the agreement.
    for whole, chunked in zip(*gradients, strict=True):
        torch.testing.assert_close(chunked, whole, rtol=1e-5, atol=1e-6)


def test_both_passes_drop_the_same_units() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(12, 1, bias=False))
    images = torch.ones(6, 3, 2, 2)
    passes = MicroBatches(network, images, 2, seed=3, cast=torch.autocast("cpu", enabled=False))
    logits = passes.forward()
    weight = network[2].weight
    dropped = logits.detach().clone()
    passes.backward(logits.sum())
    # d(sum of logits)/d(weight) · weight = sum of logits, if and only if the masks are the same.
    assert (weight.grad * weight).sum().item() == pytest.approx(dropped.sum().item(), rel=1e-5)


def test_running_statistics_move_once_for_each_chunk() -> None:
    network = nn.Sequential(nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(12, 2))
    reference = copy.deepcopy(network)
    images = torch.randn(6, 3, 2, 2)
    passes = MicroBatches(network, images, 3, seed=0, cast=torch.autocast("cpu", enabled=False))
    passes.backward(passes.forward().sum())
    for chunk in images.split(3):
        reference(chunk)
    for name, buffer in reference.named_buffers():
        torch.testing.assert_close(dict(network.named_buffers())[name], buffer)
    assert math.isclose(float(network[0].num_batches_tracked), 2)
