"""Who this process is among the training processes, and the few collective operations that training needs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from trainer.watch.timing import collective


@dataclass(frozen=True)
class World:
    """rank and size count training processes; ``device`` is where this one computes."""

    rank: int
    size: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def sum(self, values: Sequence[float | Tensor]) -> list[float]:
        """Return the element-wise sum over all ranks (float64) of numbers and one-element tensors.

        Waits for the device once, however many values there are.
        """
        parts = [torch.as_tensor(value, device=self.device).detach().double().reshape(()) for value in values]
        total = torch.stack(parts)
        if self.size > 1:
            with collective(self.device):
                dist.all_reduce(total)
        return total.tolist()

    def gather(self, value: Any) -> list[Any]:
        """Return every rank's picklable ``value``, by rank."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def barrier(self) -> None:
        if self.size > 1:
            dist.barrier()


def current_world(device: torch.device | None = None) -> World:
    """Describe the initialised process group, or a world of one."""
    if dist.is_initialized():
        rank, size = dist.get_rank(), dist.get_world_size()
    else:
        rank, size = 0, 1
    return World(rank, size, device or torch.device("cpu"))


def join_torchrun() -> World:
    """Form the process group that ``torchrun`` describes in the environment; alone without it."""
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    use_gpu = torch.cuda.is_available()
    device = torch.device("cuda", local_rank) if use_gpu else torch.device("cpu")
    if use_gpu:
        torch.cuda.set_device(device)
    if "WORLD_SIZE" in os.environ:
        dist.init_process_group("nccl" if use_gpu else "gloo")
    return current_world(device)
