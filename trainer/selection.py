"""The k largest losses of a global batch, exactly, wherever its entries lie.

A radix select: non-negative float32 numbers order like the integers of their bit patterns, so the k-th largest is
found in three passes that fix 11, 10 and 10 of its 31 bits. Each pass counts the local values by the next bits and
adds up the counts over the ranks. Cost: three all-reduces of at most 2 048 integers, whatever k and however many
entries; every rank computes the same threshold, so the result does not depend on how entries are spread over ranks.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch import distributed as dist

from trainer.gather import is_distributed
from trainer.watch.timing import collective

_DIGITS = ((20, 11), (10, 10), (0, 10))  # (shift, bits), from the most significant
_LARGEST_FLOAT = torch.finfo(torch.float32).max
_NOTHING = 2**31 - 1  # the bits of a NaN: above those of every number


def kth_largest(values: Tensor, k: int, group: dist.ProcessGroup | None = None) -> Tensor:
    """Return the k-th largest of all ranks' ``values``, as a float32 scalar tensor on their device.

    values: float32, any shape, non-negative (−0 counts as 0); a NaN takes part in nothing. k counts from 1 and is
    clamped to the number of values of all ranks; +inf when k < 1 or there are no values. ``group``: as everywhere in
    torch.distributed, None is the default group; without torch.distributed this process is alone. Collective: every
    rank of the group must call it with the same k (its values may be empty).
    """
    bits = _ordered_bits(values.detach().to(torch.float32).reshape(-1), torch.inf)
    threshold = _radix_select(bits, k, group)
    return torch.where(threshold == _NOTHING, torch.inf, threshold.view(torch.float32))


def select_large(losses: Tensor, eligible: Tensor, k: int, group: dist.ProcessGroup | None = None) -> Tensor:
    """Return which entries are eligible and among the k largest eligible losses of all ranks: bool (b, C).

    losses: (b, C), compared in float32. Entries equal to the k-th largest are all selected, so more than k may be.
    A loss that is not finite is never selected: rejecting it would hide that training has diverged.
    Collective, as ``kth_largest``; k is clamped to the number of eligible entries, k = 0 selects nothing.
    """
    bits = _ordered_bits(losses.detach().to(torch.float32), _LARGEST_FLOAT).masked_fill_(~eligible, -1)
    return (bits >= _radix_select(bits.reshape(-1), k, group)) & eligible


def _ordered_bits(values: Tensor, largest: float) -> Tensor:
    """int32 that order like the float32 values (negative ones as 0); −1 for NaN and what is above ``largest``."""
    bits = (values.clamp(min=0) + 0.0).view(torch.int32)
    highest = int(torch.tensor(largest, dtype=torch.float32).view(torch.int32))
    return torch.where(bits > highest, -1, bits)


def _radix_select(bits: Tensor, k: int, group: dist.ProcessGroup | None) -> Tensor:
    """k-th largest of all ranks' int32 (n,), not counting negative ones; _NOTHING when k < 1 or there are none.

    Each pass keeps the local values that agree with the digits chosen so far.
    """
    threshold = torch.full((), _NOTHING, dtype=torch.int32, device=bits.device)
    if k < 1:
        return threshold
    prefix = torch.zeros((), dtype=torch.int32, device=bits.device)
    wanted = torch.tensor(k, dtype=torch.int64, device=bits.device)
    for shift, width in _DIGITS:
        size = 1 << width
        digit = (bits >> shift) - (prefix << width)  # of the values that are left; −1 of negative ones
        counts = torch.bincount(digit + 1, minlength=size + 1)[1:].contiguous()
        if is_distributed():
            with collective(bits.device):
                dist.all_reduce(counts, group=group)
        total = counts.sum()
        wanted = torch.minimum(wanted, total)  # only the first pass can find fewer
        at_least = counts.flip(0).cumsum(0)  # at_least[i]: values whose digit is ≥ size − 1 − i
        step = torch.searchsorted(at_least, wanted[None]).squeeze(0).clamp(max=size - 1)
        chosen = size - 1 - step
        wanted = wanted - (at_least[step] - counts[chosen])
        prefix = (prefix << width) | chosen.to(torch.int32)
        bits = bits[digit == chosen]
    return torch.where(total > 0, prefix, threshold)
