"""Evaluation of one checkpoint on one split, against verified labels only."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from textwrap import shorten
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from sharding.errors import UserError
from sharding.index import SplitIndex
from sharding.schema import Strict
from trainer.classes import output_columns
from trainer.data.augment import Augment
from trainer.data.labels import dense_labels
from trainer.data.loader import Loader, Request
from trainer.data.mapped import open_split
from trainer.data.plan import sequential_batches, sequential_schedule
from trainer.metrics import VerifiedEntries, fit_thresholds, join_entries, rank_entries, verified_entries
from trainer.metrics import evaluate as measure
from trainer.model.classifier import Classifier, build_model
from trainer.run import checkpoint

if TYPE_CHECKING:
    from trainer.config import RunConfig
    from trainer.run.checkpoint import Manifest
    from trainer.run.registry import RunRegistry


class EvaluateConfig(Strict):
    batch: int = Field(default=64, ge=1)
    """Images a forward pass."""
    cpus: float = Field(default=1, ge=0)
    """CPUs that Ray reserves for the evaluator, beside those of the workers."""
    gpus: float = Field(default=0, ge=0)
    """GPUs that Ray reserves for the evaluator; 0 evaluates on the CPU."""
    label_selector: dict[str, str] = Field(default_factory=dict)
    """Ray labels of the nodes that may evaluate, such as ``{role: evaluation}`` or ``{ray.io/accelerator-type: L4}``;
    ``!value`` and ``in(a, b)`` work as in Ray. Empty = any node."""
    threads: int = Field(default=1, ge=1)
    """Threads of torch's CPU operators in the evaluator."""
    timeout_minutes: float = Field(default=60, gt=0)
    """An evaluation that takes longer, its wait for resources included, is stopped and counts as failed."""
    weights: Literal["raw", "ema"] = "raw"
    """Whose mAP chooses the best checkpoint, and what is evaluated and explained; the other is reported beside it
    where ``optimizer.ema_decay`` keeps one."""
    retries: int = Field(default=2, ge=0)
    """Further tries of a failed evaluation before it is recorded as failed."""
    bootstrap_rounds: int = Field(default=0, ge=0)
    """Resamplings of the images for a 95 % interval of mAP; 0 = none."""
    max_backlog: int = Field(default=4, ge=1)
    """While more checkpoints than this wait, the newest is evaluated first."""


@dataclass(frozen=True)
class Scores:
    """entries: the verified labels with their logits · corrupt: ids of samples that could not be read"""

    entries: VerifiedEntries
    corrupt: list[str]


def score_split(
    model: Classifier,
    index: SplitIndex,
    config: RunConfig,
    device: torch.device,
    progress: Callable[[int], None] | None = None,
    columns: np.ndarray | None = None,
) -> Scores:
    """Run the model over every sample of ``index`` once; keep the logits of verified entries only.

    ``progress`` is called with the number of samples done; ``columns`` int64 (C of the dataset,) says which output of
    the model is which class (default: the same order). Unreadable samples are left out and named.
    """
    model.eval()
    augment = Augment(config.augment.model_copy(update={"mean": model.mean, "std": model.std}), config.seed, device)
    requests = (
        Request(number, samples, np.ones(len(samples), bool))
        for number, samples in enumerate(sequential_batches(len(index), config.evaluate.batch, 1, 0))
    )
    parts: list[VerifiedEntries] = []
    corrupt: list[str] = []
    done = 0
    schedule = sequential_schedule(index.shard_sizes, config.evaluate.batch, 1, 0)
    with Loader(index, config.loader, config.dataset.image_size, schedule) as loader:
        for batch in loader.batches(requests):
            images = augment.normalise(batch.images.to(device, non_blocking=True))
            with torch.no_grad(), autocast(config, device):
                logits = model(images).float()
            logits = logits if columns is None else logits[:, torch.from_numpy(columns).to(device)]
            labels = dense_labels(index.labels, batch.samples, logits.shape[1], device)
            labels[torch.from_numpy(~batch.real)] = 0
            parts.append(verified_entries(torch.from_numpy(batch.samples), logits, labels))
            corrupt += [bad.sample_id for bad in batch.corrupt]
            if batch.corrupt:
                config.loader.check_corrupt(index, corrupt, batch.corrupt[-1])
            done += len(batch.samples)
            if progress is not None:
                progress(done)
    return Scores(join_entries(parts), corrupt)


def autocast(config: RunConfig, device: torch.device) -> torch.autocast:
    """Return the autocast context that ``precision`` asks for on ``device``."""
    automatic = device.type == "cuda" and torch.cuda.is_bf16_supported()
    use = automatic if config.precision == "auto" else config.precision == "bfloat16"
    return torch.autocast(device.type, torch.bfloat16, enabled=use)


def load_model(registry: RunRegistry, manifest: Manifest, config: RunConfig) -> Classifier:
    """Build the run's classifier with a checkpoint's weights, on the CPU, in evaluation mode."""
    classes = registry.description()["classes"]
    # The checkpoint holds every tensor; initial weights need not be fetched again.
    model_config = config.model.model_copy(update={"weights": "none"})
    model = build_model(model_config, len(classes), seed=0)
    ema = config.evaluate.weights == "ema"
    if ema and config.optimizer.ema_decay is None:
        raise UserError("evaluate.weights=ema, but the run keeps no average", "train with optimizer.ema_decay=0.999")
    state = (checkpoint.read_average if ema else checkpoint.read_model)(registry.url, manifest)
    load_state(model, state, f"checkpoint {manifest.name}")
    return model.eval()


def load_state(model: torch.nn.Module, state: dict[str, Tensor], origin: str) -> None:
    """Load a complete state dict; one of another model is a :class:`UserError`."""
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        lines = str(error).splitlines()[1:] or [str(error)]  # the first line only says that there are errors
        raise UserError(f"{origin} does not fit the model: {shorten(lines[0], 200)}", "use its own model") from error


def evaluate(
    registry: RunRegistry,
    manifest: Manifest,
    split: str,
    config: RunConfig,
    progress: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    """Evaluate a checkpoint on ``split`` and return the record that the registry keeps.

    ``config`` may differ from the run's in ``model.alpha``, ``model.boost``, ``evaluate`` and ``dataset.path``;
    another dataset's classes are found by their ids, and the record has them in that dataset's order.
    """
    started = time.perf_counter()
    device = torch.device("cuda" if config.evaluate.gpus and torch.cuda.is_available() else "cpu")
    index = open_split(config.dataset.path, split, config.loader.cache)
    columns = output_columns(registry, index)
    model = load_model(registry, manifest, config).to(device)
    scores = score_split(model, index, config, device, progress, columns)
    entries, classes = scores.entries, index.dataset.classes
    if not np.isfinite(entries.scores).all():
        raise UserError(f"checkpoint {manifest.name} gives scores that are not finite", "use an older checkpoint")
    fitted_here = split == config.dataset.validation
    stored = stored_thresholds(registry, manifest, config)
    thresholds = _fit(entries, len(classes)) if fitted_here else None if stored is None else stored[columns]
    measured = measure(
        entries,
        len(index) - len(scores.corrupt),
        len(classes),
        groups=[c.group for c in classes],
        thresholds=thresholds,
        bootstrap_rounds=config.evaluate.bootstrap_rounds,
    )
    summary = measured.to_dict()
    return {
        "checkpoint": manifest.name,
        "step": manifest.step,
        "epoch": manifest.epoch,
        "split": split,
        "alpha": model.head.alpha,
        "map": summary.pop("map"),
        "classes_averaged": summary.pop("map_classes"),
        "ap": [None if np.isnan(ap) else float(ap) for ap in measured.per_class.ap],
        "positives": measured.per_class.positives.tolist(),
        "negatives": measured.per_class.negatives.tolist(),
        **summary,
        "thresholds": None if thresholds is None else [float(t) for t in thresholds],
        "samples": len(index) - len(scores.corrupt),
        "corrupt": scores.corrupt,
        **_other_weights(registry, manifest, index, config, device),
        "seconds": round(time.perf_counter() - started, 3),
    }


def _other_weights(
    registry: RunRegistry, manifest: Manifest, index: SplitIndex, config: RunConfig, device: torch.device
) -> dict[str, Any]:
    """Return the mAP of the weights that ``evaluate.weights`` does not name, ``{}`` where there is no average."""
    if config.optimizer.ema_decay is None:
        return {}
    other: Literal["raw", "ema"] = "raw" if config.evaluate.weights == "ema" else "ema"
    chosen = config.model_copy(update={"evaluate": config.evaluate.model_copy(update={"weights": other})})
    columns = output_columns(registry, index)
    scores = score_split(load_model(registry, manifest, chosen).to(device), index, config, device, columns=columns)
    measured = measure(scores.entries, len(index), len(index.dataset.classes)).to_dict()
    return {f"map_{other}": measured["map"]}


def _fit(entries: VerifiedEntries, num_classes: int) -> np.ndarray:
    """Return the logit threshold of each class that maximises its F1 on these entries, float32 (C,)."""
    return fit_thresholds(rank_entries(entries.classes, entries.scores, entries.positive), num_classes)


def stored_thresholds(registry: RunRegistry, manifest: Manifest, config: RunConfig) -> np.ndarray | None:
    """Return the thresholds that were fitted when this checkpoint was evaluated on validation; None before that,
    and with another boosting than then, under which they would mean something else."""
    record = registry.evaluations(config.dataset.validation).get(manifest.name, {})
    trained = registry.config().model
    if record.get("thresholds") is None or (trained.alpha, trained.boost) != (config.model.alpha, config.model.boost):
        return None
    return np.array(record["thresholds"], np.float32)
