"""A run's classes beside those of a dataset: the same, a part of them, or others."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from sharding.errors import UserError
from sharding.index import SplitIndex

if TYPE_CHECKING:
    from trainer.run.registry import RunRegistry


def output_columns(registry: RunRegistry, index: SplitIndex) -> np.ndarray:
    """Return the model's output column of each of the dataset's classes, found by id: int64 (C of the dataset,).

    The dataset may have fewer classes, in another order. One that the model does not know is a :class:`UserError`:
    a mean over the rest would be compared with means over all.
    """
    columns = {c["id"]: number for number, c in enumerate(registry.description()["classes"])}
    unknown = [c for c in index.dataset.classes if c.id not in columns]
    if unknown:
        named = ", ".join(f"{c.id!r} ({c.name})" if c.name != c.id else repr(c.id) for c in unknown[:3])
        raise UserError(
            f"{index.root} has {len(unknown)} of {len(index.dataset.classes)} classes that the run {registry.name!r} "
            f"was not trained on: {named}{', ...' if len(unknown) > 3 else ''}",
            "build the dataset with the run's class ids, or leave these classes out",
        )
    return np.array([columns[c.id] for c in index.dataset.classes], np.int64)


def require_same_classes(registry: RunRegistry, index: SplitIndex) -> None:
    """Refuse a dataset whose classes are not those that the run's model was made for, in their order."""
    trained = [c["id"] for c in registry.description()["classes"]]
    given = [c.id for c in index.dataset.classes]
    if trained != given:
        raise UserError(
            f"{index.root} has {len(given)} classes, the run {registry.name!r} was trained on {len(trained)} others"
            if len(trained) != len(given)
            else f"{index.root} has other classes, or another order, than the run {registry.name!r}",
            "use a dataset with the run's classes",
        )
