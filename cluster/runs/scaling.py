"""How many workers an attempt gets: as many as the cluster has room for, between ``workers.min`` and ``workers.num``.

What to do is decided by :func:`trainer.run.policies.scale`; this file looks at the cluster and waits.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import ray
from ray._private.state import available_resources_per_node
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group

from cluster.nodes.capacity import Need, Node, room_for_workers
from cluster.runs.head import Head
from trainer.config import RunConfig
from trainer.run.policies import scale

#: Less room than ``workers.num`` is believed after this time: a failed attempt's resources come free one by one.
SHRINK_AFTER_SECONDS = 5.0
#: More room is believed after this time: a node that comes up may go down at once.
GROW_AFTER_SECONDS = 10.0
POLL_SECONDS = 0.5
LOOK_SECONDS = 2.0
#: While a run waits for room it says so this often.
SAY_SECONDS = 60.0
#: A node whose daemon does not take a connection in this time is taken for lost, before Ray itself notices.
CONNECT_SECONDS = 1.0


def free_nodes() -> list[Node]:
    """Return what is free on each node that answers.

    Ray's public functions tell what is free on the whole cluster, or what each node has when nothing runs there; what
    is free on each node only its developers' API does (Ray's own ``ray.util.tpu`` uses it too).
    """
    free = available_resources_per_node()
    return [
        Node(node["NodeManagerAddress"], there.get("CPU", 0), there.get("GPU", 0))
        for node in ray.nodes()
        if node["Alive"] and (there := free.get(node["NodeID"])) is not None and _answers(node)
    ]


def _answers(node: dict[str, Any]) -> bool:
    """Whether the node's daemon is there. Ray needs up to half a minute to notice that a node has gone."""
    try:
        address = (node["NodeManagerAddress"], node["NodeManagerPort"])
        with socket.create_connection(address, timeout=CONNECT_SECONDS):
            return True
    except OSError:
        return False


def _need(config: RunConfig) -> Need:
    """An evaluator with a label selector has nodes of its own, so none of the workers' room is kept for it."""
    need = Need.of(config)
    return replace(need, evaluator_cpus=0, evaluator_gpus=0) if config.evaluate.label_selector else need


def wait_for_workers(
    config: RunConfig, log: Callable[[str], None], stopped: Callable[[], bool], head: Head
) -> int | None:
    """Wait until the cluster has room for an attempt; return its number of workers, None when ``stopped``.

    Raises :class:`cluster.runs.head.HeadLost`.
    """
    need, workers = _need(config), config.workers
    since = time.monotonic()
    said, before = since - SAY_SECONDS + SHRINK_AFTER_SECONDS, -1
    with Demand(need, workers.num) as demand:
        while not stopped():
            if not head.answers():  # whoever asks it what is free waits for ever
                time.sleep(POLL_SECONDS)
                continue
            room, now = room_for_workers(need, free_nodes()), time.monotonic()
            if room != before:
                before, since = room, now
            settled = now - since > SHRINK_AFTER_SECONDS
            decision = scale(0, room, workers.least, workers.num, settled)
            if decision.action == "start":
                if decision.workers < workers.num:
                    log(f"room for {room} of {workers.num} workers: going on with {decision.workers}")
                return decision.workers
            if settled:
                demand.show()
            if now - said > SAY_SECONDS:
                there = f"the cluster has room for {room} workers beside the evaluator"
                log(f"waiting: {there}, {workers.least} are needed")
                said = now
            time.sleep(POLL_SECONDS)
    return None


class Demand:
    """What an autoscaler sees of a run that waits: a placement group for its workers and its evaluator.

    Once the group has its resources it is given up, so that the run finds them free: which workers start, and
    where, is decided by what is free then.
    """

    def __init__(self, need: Need, workers: int) -> None:
        shares = [(need.worker_cpus, need.worker_gpus)] * workers + [(need.evaluator_cpus, need.evaluator_gpus)]
        self._bundles = [
            bundle
            for cpus, gpus in shares
            if (bundle := {kind: amount for kind, amount in (("CPU", cpus), ("GPU", gpus)) if amount})
        ]
        self._group: PlacementGroup | None = None

    def show(self) -> None:
        """Ask for the resources, or give them up again where they have come."""
        if self._group is None:
            self._group = placement_group(self._bundles)
        elif self._group.wait(0):
            self.drop()

    def drop(self) -> None:
        if self._group is not None:
            remove_placement_group(self._group)
            self._group = None

    def __enter__(self) -> Demand:
        return self

    def __exit__(self, *_: object) -> None:
        self.drop()


class Growth:
    """Watches for room for more workers than an attempt of ``running`` workers has.

    again: whether the attempt before was stopped to grow and this one found no more room after all: one that never
    settles must not be restarted for ever.
    """

    def __init__(self, config: RunConfig, running: int, again: bool = False) -> None:
        self._need, self._least = _need(config), config.workers.least
        self._most = running if again else config.workers.num
        self.running, self._since = running, time.monotonic()
        self._room, self._looked = running, 0.0

    def wanted(self, evaluating: bool) -> int | None:
        """Return the number of workers to go on with instead, None to leave things as they are.

        evaluating: whether the evaluator holds its resources just now; if not, its share must stay free.
        """
        if self.running >= self._most or time.monotonic() - self._looked < LOOK_SECONDS:
            return None
        self._looked = time.monotonic()
        room = self.running + room_for_workers(self._need, free_nodes(), beside_evaluator=not evaluating)
        if room != self._room:
            self._room, self._since = room, time.monotonic()
        settled = time.monotonic() - self._since > GROW_AFTER_SECONDS
        decision = scale(self.running, room, self._least, self._most, settled)
        return decision.workers if decision.action == "grow" else None
