"""Which settings of a run may change between its attempts, and why the others may not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from sharding.errors import UserError

#: Settings that say how a run is carried out, not what it computes. A name stands for all that is below it.
MAY_CHANGE = (
    "epochs",
    "workers",
    "checkpoint",
    "evaluate",
    "loader",
    "profile",
    "dataset.path",  # a dataset may move: its fingerprint says whether it is the same one
)
#: Exceptions from the above, with the reason.
MAY_NOT_CHANGE = {
    "evaluate.weights": "scores of raw and averaged weights cannot be compared",
    "workers.threads": "the threads of an operator decide the order of its additions",
    "workers.micro_batch": "batch statistics are those of a micro-batch",
}

Changes = dict[str, tuple[Any, Any]]


def changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> Changes:
    """Return ``a.b`` → (value before, value after) for every setting that differs; absent counts as None."""
    first, second = dict(_leaves(before)), dict(_leaves(after))
    return {
        key: (first.get(key), second.get(key))
        for key in sorted(first.keys() | second.keys())
        if first.get(key) != second.get(key)
    }


def refuse_changes(found: Changes, run: str) -> None:
    """Raise :class:`UserError`, naming every setting in ``found`` that makes it another run."""
    refused = [key for key in found if not may_change(key)]
    if not refused:
        return
    named = "; ".join(f"{key} was {found[key][0]!r}, is {found[key][1]!r}" for key in refused)
    reasons = [f" ({MAY_NOT_CHANGE[key]})" for key in refused if key in MAY_NOT_CHANGE]
    raise UserError(
        f"run {run!r} cannot go on with other settings: {named}{reasons[0] if reasons else ''}",
        f"set them back, or start a new run (name=...); what may change: {', '.join(MAY_CHANGE)}",
    )


def may_change(key: str) -> bool:
    return key not in MAY_NOT_CHANGE and any(key == name or key.startswith(f"{name}.") for name in MAY_CHANGE)


def _leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        elif value is not None and value != {}:
            yield f"{prefix}{key}", value
