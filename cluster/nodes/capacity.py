"""Would a run fit on a cluster, and why not: decided from what the nodes have, before anything is started."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import floor, inf
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trainer.config import RunConfig


@dataclass(frozen=True)
class Node:
    """One node of a cluster: what Ray counts there, used or not."""

    host: str
    cpus: float
    gpus: float


@dataclass(frozen=True)
class Need:
    """What a run asks Ray for: at least ``workers`` equal shares and one for the evaluator, each on one node."""

    workers: int
    worker_cpus: float
    worker_gpus: float
    evaluator_cpus: float
    evaluator_gpus: float

    @classmethod
    def of(cls, config: RunConfig) -> Need:
        workers, evaluate = config.workers, config.evaluate
        return cls(workers.least, workers.cpus, workers.gpus, evaluate.cpus, evaluate.gpus)

    @property
    def cpus(self) -> float:
        return self.workers * self.worker_cpus + self.evaluator_cpus

    @property
    def gpus(self) -> float:
        return self.workers * self.worker_gpus + self.evaluator_gpus


def holds_worker(node: Node, need: Need) -> bool:
    """Whether a worker could run on ``node`` when nothing else does."""
    return _room(node.cpus, node.gpus, need) >= 1


def why_not(need: Need, nodes: Sequence[Node]) -> str | None:
    """Return why a run does not fit on ``nodes`` when nothing else runs there, or None when it does."""
    for kind, wanted, there in (
        ("GPUs", need.gpus, sum(node.gpus for node in nodes)),
        ("CPUs", need.cpus, sum(node.cpus for node in nodes)),
    ):
        if wanted > there:
            return f"the run asks for {wanted:g} {kind} with its evaluator, the cluster has {there:g}"
    if not any(holds_worker(node, need) for node in nodes):
        share = f"{need.worker_cpus:g} CPUs and {need.worker_gpus:g} GPUs"
        return f"no node has room for one worker ({share}); the largest have {_largest(nodes)}"
    placed = max((_placed(need, nodes, i) for i in range(len(nodes))), default=-1)
    if placed < 0:
        share = f"{need.evaluator_cpus:g} CPUs and {need.evaluator_gpus:g} GPUs"
        return f"no node has room for the evaluator ({share}); the largest have {_largest(nodes)}"
    if placed < need.workers:
        return f"beside the evaluator the nodes have room for {placed} workers, the run asks for {need.workers}"
    return None


def room_for_workers(need: Need, nodes: Sequence[Node], beside_evaluator: bool = True) -> int:
    """Return how many workers fit, at best, on what ``nodes`` have, beside the evaluator unless that is placed."""
    if not beside_evaluator:
        return sum(_room(node.cpus, node.gpus, need) for node in nodes)
    return max(0, max((_placed(need, nodes, i) for i in range(len(nodes))), default=0))


def _placed(need: Need, nodes: Sequence[Node], evaluator_on: int) -> int:
    """Return how many workers fit when the evaluator is on node ``evaluator_on``; -1 when it has no room there."""
    total = 0
    for i, node in enumerate(nodes):
        cpus, gpus = node.cpus, node.gpus
        if i == evaluator_on:
            cpus, gpus = cpus - need.evaluator_cpus, gpus - need.evaluator_gpus
            if cpus < 0 or gpus < 0:
                return -1
        total += _room(cpus, gpus, need)
    return total


def _room(cpus: float, gpus: float, need: Need) -> int:
    by_gpu = gpus / need.worker_gpus if need.worker_gpus else inf
    return floor(min(cpus / need.worker_cpus, by_gpu) + 1e-9)


def _largest(nodes: Sequence[Node]) -> str:
    cpus, gpus = max((n.cpus for n in nodes), default=0), max((n.gpus for n in nodes), default=0)
    return f"{cpus:g} CPUs and {gpus:g} GPUs"
