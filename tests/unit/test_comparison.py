"""The comparison that fault tests rest on notices every bit."""

from __future__ import annotations

import pytest
import torch

from trainer.run.comparison import _equal


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (torch.tensor([1.0, float("nan")]), torch.tensor([1.0, float("nan")]), True),
        (torch.tensor([0.0]), torch.tensor([float("nan")]), False),
        (torch.tensor([0.0]), torch.tensor([-0.0]), False),
        (torch.tensor(1.0), torch.nextafter(torch.tensor(1.0), torch.tensor(2.0)), False),
        (torch.zeros(2, 1), torch.zeros(1, 2), False),
        (torch.zeros(1), torch.zeros(1, dtype=torch.int32), False),
        ({"a": [torch.ones(1), 3]}, {"a": [torch.ones(1), 3]}, True),
        ({"a": [torch.ones(1), 3]}, {"a": [torch.ones(1), 4]}, False),
        ({"a": 1}, {"a": 1, "b": 2}, False),
        ([1], [1, 2], False),
        (torch.empty(0), torch.empty(0), True),
    ],
)
def test_every_bit_counts(one: object, other: object, same: bool) -> None:
    assert _equal(one, other) is same
