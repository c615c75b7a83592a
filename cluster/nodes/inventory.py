"""What a cluster has and what of it is in use, as its dashboard tells."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

from cluster.jobs.dashboard import Dashboard
from cluster.nodes.capacity import Need, Node, why_not
from sharding.errors import UserError

#: Seconds between looks at a cluster whose nodes are awaited.
LOOK_SECONDS = 2.0


def read_nodes(dashboard: Dashboard) -> list[Node]:
    """Return the nodes that are alive, the head first."""
    answer = dashboard.get(
        "/api/v0/nodes?limit=10000&detail=true&filter_keys=state&filter_predicates=%3D&filter_values=ALIVE"
    )
    return parse_nodes(answer["data"]["result"]["result"])


def parse_nodes(entries: Iterable[dict[str, Any]]) -> list[Node]:
    """Turn entries of Ray's list of nodes into what the capacity rules know; dead ones are left out."""
    alive = [entry for entry in entries if entry["state"] == "ALIVE"]
    alive.sort(key=lambda entry: (not entry.get("is_head_node"), entry["node_ip"]))
    return [
        Node(entry["node_ip"], entry["resources_total"].get("CPU", 0), entry["resources_total"].get("GPU", 0))
        for entry in alive
    ]


def read_used(dashboard: Dashboard) -> dict[str, float]:
    """Return how much of each resource is reserved on the whole cluster; Ray refreshes it every few seconds."""
    status = dashboard.get("/api/cluster_status")["data"].get("clusterStatus") or {}
    usage = (status.get("loadMetricsReport") or {}).get("usage") or {}
    return {name: float(used) for name, (used, _) in usage.items()}


def await_room(dashboard: Dashboard, need: Need, seconds: float) -> None:
    """Return once a run with ``need`` fits on the cluster; raise :class:`UserError` when it does not in that time."""
    deadline = time.monotonic() + seconds
    while reason := why_not(need, read_nodes(dashboard)):
        if time.monotonic() >= deadline:
            raise UserError(
                reason,
                "lower workers.num, workers.gpus or evaluate.gpus; `boostlu cluster status` shows the nodes; "
                "if more are starting, add --wait MINUTES",
            )
        time.sleep(LOOK_SECONDS)
