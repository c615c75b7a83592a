"""One optimizer step over one global batch: forward, loss, large-loss selection, backward, update."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sharding.errors import UserError
from trainer.data.augment import Augment
from trainer.data.labels import dense_labels
from trainer.data.loader import Batch
from trainer.evaluation import autocast
from trainer.losses import Progress
from trainer.microbatch import MicroBatches
from trainer.parts import Parts
from trainer.world import World


class NonFiniteLoss(UserError):
    """The loss or its gradient became NaN or infinite; training on would destroy the weights."""


@dataclass(frozen=True)
class StepResult:
    """What a step reports, over all ranks.

    samples: real samples · picks: entries selected as large losses · picks_true: those that are positive in the full
    labels · hidden: unobserved entries that are positive in the full labels (None when those are not known) ·
    stop, save: whether any rank wished to stop, or to take a checkpoint, after this step
    """

    loss: float
    samples: int
    picks: int
    picks_true: int | None
    hidden: int | None
    grad_norm: float
    stop: bool
    save: bool


def step_seed(seed: int, step: int, rank: int) -> int:
    """Return the seed of all random numbers that ``rank`` draws in ``step`` (dropout and the like).

    Reseeding at each step leaves no generator state to save, so resume cannot get it wrong.
    """
    return int(np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)[0] >> np.uint64(1))


def training_step(
    parts: Parts, world: World, batch: Batch, progress: Progress, step: int, stop: bool, save: bool
) -> StepResult:
    """Do optimizer step ``step`` (0-based) with this rank's ``batch``. Collective, ``stop`` and ``save`` included:
    a wish of one rank is known to all afterwards.

    Raises :class:`NonFiniteLoss` on every rank, before any weight changes, when loss or gradient is not finite.
    """
    config = parts.config
    images = _images(parts.augment, batch, progress.epoch, world)
    labels, truth = _labels(parts, batch, world)
    real = torch.from_numpy(batch.real).to(world.device)
    if config.augment.mixes:
        images, labels = parts.augment.mix(images, labels * real[:, None], batch.samples, progress.epoch)
    samples, stop_votes, save_votes = world.sum([float(batch.real.sum()), float(stop), float(save)])

    # ── forward ──────────────────────────────────────────────────────────────────────────────────────────────
    seed = step_seed(config.seed, step, world.rank)
    passes = MicroBatches(parts.network, images, config.workers.micro_batch, seed, autocast(config, world.device))
    logits = passes.forward()
    numbers = torch.from_numpy(batch.samples).to(world.device)
    out = parts.loss(logits, labels, progress, int(samples), real, samples=numbers)
    entries = out.entries[real].sum()
    picked = out.picks & real[:, None] if out.picks is not None else None
    hidden = (labels == 0) & (truth == 1) & real[:, None] if truth is not None else None
    total, bad, picks, picks_true, hidden_count = world.sum(
        [
            entries,
            ~(torch.isfinite(logits[real]).all() & torch.isfinite(entries)),
            picked.sum() if picked is not None else 0.0,
            (picked & hidden).sum() if picked is not None and hidden is not None else 0.0,
            hidden.sum() if hidden is not None else 0.0,
        ]
    )
    scale = max(1.0, samples) * labels.shape[1]
    if bad:
        raise _non_finite(parts, world, batch, step, total / scale, logits)

    # ── backward: DDP averages over ranks, the loss is a mean over the global batch ─────────────────────────────
    parts.optimizer.zero_grad(set_to_none=True)
    passes.backward(entries * (world.size / scale))
    norm = _update(parts)
    if not np.isfinite(norm):
        raise _non_finite(parts, world, batch, step, total / scale, logits)

    if picked is not None and config.loss.name == "ll-cp":
        _remember(parts, batch, picked, logits, progress.epoch)
    known = truth is not None
    return StepResult(
        loss=total / scale,
        samples=int(samples),
        picks=int(picks),
        picks_true=int(picks_true) if known else None,
        hidden=int(hidden_count) if known else None,
        grad_norm=norm,
        stop=stop_votes > 0,
        save=save_votes > 0,
    )


def _update(parts: Parts) -> float:
    """Clip the gradient and change the weights; returns its norm before. One that is not finite changes nothing."""
    limit = parts.config.optimizer.clip_norm or float("inf")
    norm = float(torch.nn.utils.clip_grad_norm_(parts.model.parameters(), limit))
    if np.isfinite(norm):
        parts.optimizer.step()
        if parts.average is not None:
            parts.average.update_parameters(parts.model)
    return norm


def _images(augment: Augment, batch: Batch, epoch: int, world: World) -> Tensor:
    images = batch.images.to(world.device, non_blocking=True)
    return augment.train(images, batch.samples, epoch)


def _labels(parts: Parts, batch: Batch, world: World) -> tuple[Tensor, Tensor | None]:
    """Return (what training may see, with corrections; the full labels where an overlay hides some), int8 (b, C)."""
    labels = dense_labels(parts.labels, batch.samples, parts.num_classes, world.device)
    if parts.corrections is not None:
        parts.corrections.apply(labels, torch.from_numpy(batch.samples))
    if parts.labels is parts.index.labels:
        return labels, None
    return labels, dense_labels(parts.index.labels, batch.samples, parts.num_classes, world.device)


def _remember(parts: Parts, batch: Batch, picked: Tensor, logits: Tensor, epoch: int) -> None:
    """LL-Cp: the picked labels are positive from now on."""
    rows, classes = picked.nonzero(as_tuple=True)
    samples = torch.from_numpy(batch.samples)[rows.cpu()]
    scores = torch.sigmoid(logits.detach()[rows, classes])
    assert parts.corrections is not None  # noqa: S101 — built together with an ll-cp loss
    parts.corrections.add(samples, classes, epoch, scores)


def _non_finite(parts: Parts, world: World, batch: Batch, step: int, loss: float, logits: Tensor) -> NonFiniteLoss:
    """Build the error that names the step and the samples; collective, so that every rank raises the same one."""
    finite = torch.isfinite(logits.detach()).all(1).cpu().numpy()
    suspects = batch.samples[~finite & batch.real]
    if not len(suspects):
        suspects = batch.samples[batch.real]
    own = [parts.index.sample_id(int(sample)) for sample in suspects]
    ids = [sample for part in world.gather(own) for sample in part]
    shown = ", ".join(ids[:8]) + (f" and {len(ids) - 8} more" if len(ids) > 8 else "")
    return NonFiniteLoss(
        f"the loss or its gradient is not finite at step {step} (loss {loss}); samples: {shown}",
        "the last good checkpoint is kept; lower optimizer.lr or set optimizer.clip_norm, then start a new run",
    )
