"""Everything one training process works with, built from the configuration."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from sharding.errors import UserError
from sharding.index import Labels, SplitIndex
from trainer.config import RunConfig
from trainer.corrections import Corrections
from trainer.data.augment import Augment
from trainer.data.mapped import open_labels, open_split
from trainer.data.plan import PlanIdentity, SamplePlan, rank_slots
from trainer.evaluation import load_state
from trainer.losses import Loss, build_loss
from trainer.model.classifier import Classifier, build_model
from trainer.optimization import build_optimizer, freeze, moving_average
from trainer.run.checkpoint import Snapshot
from trainer.world import World


@dataclass
class Parts:
    """``network`` is ``model`` or its DDP wrapper; ``labels`` what training may see, ``index.labels`` the truth."""

    config: RunConfig
    index: SplitIndex
    labels: Labels
    plan: SamplePlan
    identity: PlanIdentity
    model: Classifier
    network: nn.Module
    optimizer: torch.optim.Optimizer
    average: AveragedModel | None
    loss: Loss
    augment: Augment
    corrections: Corrections | None

    @property
    def num_classes(self) -> int:
        return len(self.index.dataset.classes)


def build_parts(config: RunConfig, world: World) -> Parts:
    """Build model, data plan, loss and optimizer for this rank. Collective."""
    index = open_split(config.dataset.path, config.dataset.train, config.loader.cache)
    labels = open_labels(index, config.dataset.labels, config.loader.cache)
    plan = SamplePlan.from_config(config.plan, index.shard_sizes, config.seed)
    if world.size > config.plan.global_batch:
        raise UserError(
            f"{world.size} workers cannot share a global batch of {config.plan.global_batch}",
            "raise plan.global_batch or lower workers.num",
        )
    if config.augment.mixes and config.loss.name == "ll-cp":
        raise UserError("ll-cp corrects the labels of single images, augment.mixup/cutmix mix them", "use ll-ct")
    classes = len(index.dataset.classes)
    model = build_model(config.model, classes, config.seed).to(world.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    freeze(config.optimizer, model)
    network = _distribute(model, config, world)
    augment_config = config.augment.model_copy(update={"mean": model.mean, "std": model.std})
    return Parts(
        config=config,
        index=index,
        labels=labels,
        plan=plan,
        identity=plan.identity(index.dataset.fingerprint, index.name),
        model=model,
        network=network,
        optimizer=build_optimizer(config.optimizer, model, config.plan.global_batch),
        average=moving_average(config.optimizer, model),
        loss=build_loss(config.loss, classes, _prior(labels, classes), len(index)).to(world.device),
        augment=Augment(augment_config, config.seed, world.device),
        corrections=Corrections(len(index), classes) if config.loss.name == "ll-cp" else None,
    )


def restore(parts: Parts, snapshot: Snapshot) -> None:
    """Put a checkpoint's state into freshly built parts; refuses one of another dataset or sample order."""
    parts.identity.require_same(snapshot.position.plan)
    load_state(parts.model, snapshot.model, "the checkpoint")
    parts.optimizer.load_state_dict(snapshot.optimizer)
    if parts.average is not None:
        load_state(parts.average, snapshot.average, "the checkpoint's moving average")
    load_state(parts.loss, snapshot.loss, "the checkpoint's loss")
    if parts.corrections is not None and snapshot.corrections is not None:
        parts.corrections = Corrections.from_table(snapshot.corrections, len(parts.index), parts.num_classes)


def _distribute(model: Classifier, config: RunConfig, world: World) -> nn.Module:
    """Wrap the model for gradient averaging, with the bucket layout settled.

    DDP lays its gradient buckets out anew after the first backward pass. From three ranks on the layout decides the
    order of additions, so a resumed run's first step would round differently from the undisturbed run's same step.
    One pass on zeros before the weights are loaded puts every start on the settled layout.
    """
    if config.compile:
        model.compile()
    if world.size == 1:
        return model
    network: nn.Module = model
    if config.model.batch_norm == "sync":
        network = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    gpu = [world.device.index] if world.device.type == "cuda" else None
    ddp = DistributedDataParallel(network, device_ids=gpu)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    size = config.dataset.image_size
    slots = rank_slots(config.plan.global_batch, world.size, world.rank)
    images = torch.zeros(slots.stop - slots.start, 3, size, size, device=world.device)
    images = images[: config.workers.micro_batch]
    for _ in range(2):  # the new layout takes effect at the second forward pass
        ddp(images).sum().mul(0).backward()
    ddp.zero_grad(set_to_none=True)
    model.load_state_dict(before)
    return ddp


def _prior(labels: Labels, classes: int) -> torch.Tensor:
    """Return each class's share of positives among the samples, float32 (C,), as far as training may see."""
    counts = np.bincount(labels.pos.values, minlength=classes)
    return torch.from_numpy(counts / max(1, len(labels.pos))).float()
