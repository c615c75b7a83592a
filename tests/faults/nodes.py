"""Ray clusters of several nodes on this machine, on loopback and with a token: nodes can be added, lost, cut off."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psutil
import pytest

from cluster.bench.victims import family_of, named

#: Environment of a cluster and of who connects to it.
RAY = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": secrets.token_hex(32),
}


@contextmanager
def several_nodes(monkeypatch: pytest.MonkeyPatch, head_cpus: int) -> Iterator[Any]:
    """Start a head with room for ``head_cpus`` workers; shuts down whatever was added to it."""
    for name, value in RAY.items():
        monkeypatch.setenv(name, value)
    from ray.cluster_utils import Cluster

    head = {"num_cpus": head_cpus, "node_ip_address": "127.0.0.1", "include_dashboard": False}
    nodes = Cluster(initialize_head=True, head_node_args=head)
    try:
        yield nodes
    finally:
        nodes.shutdown()


def processes(node: Any) -> list[psutil.Process]:
    """Return a node's daemon and all that it started, its workers among them."""
    return family_of(node.all_processes["raylet"][0].process.pid)


def evaluators(node: Any) -> list[psutil.Process]:
    """Return the processes that evaluate on a node just now."""
    return named(processes(node), "ray::evaluate_task")
