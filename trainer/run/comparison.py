"""Do two runs agree to the last bit? What every claim about surviving a fault is measured by."""

from __future__ import annotations

from typing import Any

import torch

from trainer.run.checkpoint import Snapshot
from trainer.run.events import read_events, step_history
from trainer.run.registry import RunRegistry

#: Of each step's record: what the step computed, not how long it took.
_HISTORY = ("step", "epoch", "loss", "lr", "picks", "picks_true", "grad_norm")


def differences(one: RunRegistry, other: RunRegistry, evaluations: bool = True) -> list[str]:
    """Return in what two runs differ: the history of steps, position, weights, optimizer, loss memory and corrections
    of the newest checkpoint, and the evaluations. Empty = none of them in any bit."""
    found = _history(one, other) + _state(_newest(one), _newest(other))
    if evaluations:
        found += [f"evaluations on {s}" for s in _splits(one) if _scores(one, s) != _scores(other, s)]
    return found


def _history(one: RunRegistry, other: RunRegistry) -> list[str]:
    first, second = (step_history(read_events(registry.url)) for registry in (one, other))
    return [f"history of {key}" for key in _HISTORY if [e[key] for e in first] != [e[key] for e in second]]


def _newest(registry: RunRegistry) -> Snapshot | None:
    return registry.latest()[1]


def _state(one: Snapshot | None, other: Snapshot | None) -> list[str]:
    if one is None or other is None:
        return [] if one is other else ["one has no sound checkpoint"]
    parts: dict[str, tuple[Any, Any]] = {
        "step": (one.position.step, other.position.step),
        "weights": (one.model, other.model),
        "averaged weights": (one.average, other.average),
        "optimizer state": (one.optimizer, other.optimizer),
        "memory of the loss": (one.loss, other.loss),
    }
    found = [name for name, (first, second) in parts.items() if not _equal(first, second)]
    return found if one.corrections == other.corrections else [*found, "corrections"]


def _equal(one: Any, other: Any) -> bool:
    """Compare tensors bit by bit, so that NaN equals NaN, at any depth of dicts and lists."""
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        same_kind = (one.dtype, one.shape) == (other.dtype, other.shape)
        return same_kind and torch.equal(*(t.contiguous().reshape(-1).view(torch.uint8) for t in (one, other)))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_equal(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(_equal, one, other))
    return bool(one == other)


def _splits(registry: RunRegistry) -> list[str]:
    dataset = registry.config().dataset
    return sorted({split for split in (dataset.validation, dataset.test) if split is not None})


def _scores(registry: RunRegistry, split: str) -> dict[int, Any]:
    """Step → average precisions; a checkpoint of a repeated step has the same ones."""
    return {record["step"]: record.get("ap") for record in registry.evaluations(split).values()}
