"""Optimisers, learning-rate schedules and gradient clipping.

The learning rate is a pure function of the step, so there is no scheduler state to save or to get wrong on resume.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from pydantic import Field
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from sharding.errors import UserError, did_you_mean
from sharding.schema import Strict
from trainer.model.classifier import Classifier


class OptimizerConfig(Strict):
    name: Literal["adam", "adamw", "sgd"] = "adam"
    """``sgd`` is Nesterov momentum 0.9."""
    lr: float = Field(default=1e-5, gt=0)
    """Peak learning rate of the backbone."""
    head_lr_multiplier: float = Field(default=10.0, gt=0)
    """The head learns this many times faster (the authors' setting is 10)."""
    weight_decay: float = Field(default=0.0, ge=0)
    schedule: Literal["constant", "cosine", "one-cycle"] = "constant"
    """``cosine`` decays to 0 over the run; ``one-cycle`` rises for 30 % of it first."""
    warmup_steps: int = Field(default=0, ge=0)
    """Linear rise from 0 over so many steps, on top of the schedule."""
    reference_batch: int | None = Field(default=None, ge=1)
    """The global batch that ``lr`` was chosen for. With another one, rates scale by the ratio of the two (sgd) or by
    its square root (adam, adamw). None = ``lr`` as it is."""
    freeze: tuple[str, ...] = ()
    """Parameters whose name begins so are not trained, for example ``backbone.model.layer1``."""
    ema_decay: float | None = Field(default=None, gt=0, lt=1)
    """Also keep an exponential moving average of the weights, evaluated beside the raw ones; None = none."""
    clip_norm: float | None = Field(default=None, gt=0)
    """Largest allowed 2-norm of the whole gradient; None = no clipping."""


def build_optimizer(config: OptimizerConfig, model: Classifier, global_batch: int) -> torch.optim.Optimizer:
    """Two parameter groups, backbone and head; ``base_lr`` in each is its peak learning rate.

    Frozen parameters are left out; a backbone that is wholly frozen leaves the head alone.
    """
    lr = config.lr * batch_scale(config, global_batch)
    head_lr = lr * config.head_lr_multiplier
    groups = [
        {"params": [p for p in module.parameters() if p.requires_grad], "lr": rate, "base_lr": rate}
        for module, rate in ((model.backbone, lr), (model.head, head_lr))
    ]
    if config.name == "sgd":
        return torch.optim.SGD(groups, lr=lr, momentum=0.9, nesterov=True, weight_decay=config.weight_decay)
    kind = torch.optim.Adam if config.name == "adam" else torch.optim.AdamW
    return kind(groups, lr=lr, weight_decay=config.weight_decay)


def batch_scale(config: OptimizerConfig, global_batch: int) -> float:
    """Return the factor for a global batch other than ``reference_batch``: linear for SGD (Goyal et al., 2017), its
    square root for the Adam family (Malladi et al., NeurIPS 2022)."""
    if config.reference_batch is None:
        return 1.0
    ratio = global_batch / config.reference_batch
    return ratio if config.name == "sgd" else math.sqrt(ratio)


def freeze(config: OptimizerConfig, model: Classifier) -> None:
    """Exclude parameters from training by the beginnings of their names; one that fits nothing is refused."""
    names = [name for name, _ in model.named_parameters()]
    for prefix in config.freeze:
        if not any(name.startswith(prefix) for name in names):
            parents = {name.rpartition(".")[0] for name in names}
            raise UserError(f"optimizer.freeze: no parameter begins with {prefix!r}", did_you_mean(prefix, parents))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not name.startswith(config.freeze))


def moving_average(config: OptimizerConfig, model: Classifier) -> AveragedModel | None:
    """Return the average of the weights that ``ema_decay`` asks for, buffers included."""
    if config.ema_decay is None:
        return None
    return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(config.ema_decay), use_buffers=True)


def lr_factor(config: OptimizerConfig, step: int, total_steps: int) -> float:
    """Return the multiple of the peak learning rate at 0-based ``step`` of ``total_steps``."""
    warmup = min(1.0, (step + 1) / config.warmup_steps) if config.warmup_steps else 1.0
    progress = step / max(1, total_steps)
    if config.schedule == "constant":
        return warmup
    if config.schedule == "cosine":
        return warmup * 0.5 * (1 + math.cos(math.pi * progress))
    rise = 0.3
    if progress < rise:
        return warmup * (0.04 + 0.96 * 0.5 * (1 - math.cos(math.pi * progress / rise)))
    return warmup * 0.5 * (1 + math.cos(math.pi * (progress - rise) / (1 - rise)))


def set_learning_rate(optimizer: torch.optim.Optimizer, factor: float) -> float:
    """Set every group's rate to ``factor`` of its peak; return the backbone's."""
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor
    return float(optimizer.param_groups[0]["lr"])
