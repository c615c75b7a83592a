"""Connecting to Ray: a private cluster on this machine, or one that is already there."""

from __future__ import annotations

import ipaddress
import logging
import os
import secrets
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from cluster.nodes.connection import explain, reach
from sharding.errors import UserError

#: Set before Ray starts, so that its processes inherit it; what the user set already stays.
_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    # Workers keep the folder that the user started in, so that relative paths mean the same everywhere.
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    # An attempt starts only when there is room for it; when its node goes just then, this is what that costs.
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "20",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
_KEEP_LOOPBACK = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
_LOCAL_ENVIRONMENT = {
    # Ray otherwise replaces 127.0.0.1 by the host's outside address; a private cluster must stay on loopback.
    _KEEP_LOOPBACK: "0",
    "GLOO_SOCKET_IFNAME": "lo",
    "RAY_AUTH_MODE": "token",
}


@contextmanager
def ray_cluster(address: str | None, cpus: float, gpus: float, verbose: bool = False) -> Iterator[None]:
    """Connect to the cluster at ``address``, or start a private one for the duration of the ``with`` block.

    A private cluster listens on loopback only, has at least ``cpus`` logical CPUs (more than the machine has where
    a run wants an evaluator beside its workers) and a token of its own that is never written to disk.
    """
    settings = dict(_ENVIRONMENT) if address else {**_ENVIRONMENT, **_LOCAL_ENVIRONMENT}
    for key, value in settings.items():
        os.environ.setdefault(key, value)
    if not address and "RAY_AUTH_TOKEN_PATH" not in os.environ:
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    if address:
        reach(address)
    elif "ray" in sys.modules and os.environ[_KEEP_LOOPBACK] == "0" and not _keeps_loopback():
        raise RuntimeError("Ray was imported before its settings were made; a private cluster would leave loopback")
    import ray

    quiet: dict[str, Any] = {} if verbose else {"log_to_driver": False, "logging_level": logging.ERROR}
    try:
        if address:
            ray.init(address=address, **quiet)
        else:
            ray.init(
                address="local",
                num_cpus=max(int(cpus + 0.999), os.cpu_count() or 1),
                include_dashboard=False,
                object_store_memory=256 * 1024**2,
                _node_ip_address="127.0.0.1",
                **quiet,
            )
    except Exception as error:  # a start that takes too long is to Ray no more than that
        raise explain(error, address) from error
    try:
        _check_resources(ray, cpus, gpus)
        yield
    finally:
        ray.shutdown()


def _keeps_loopback() -> bool:
    """Whether Ray, which looks at its environment only when it is imported, takes 127.0.0.1 for what it says."""
    from ray.util import get_node_ip_address

    return ipaddress.ip_address(get_node_ip_address()).is_loopback


def _check_resources(ray: Any, cpus: float, gpus: float) -> None:
    """Say at once what would otherwise show as a start that never happens."""
    there = ray.cluster_resources()
    for kind, wanted in (("CPU", cpus), ("GPU", gpus)):
        if wanted > there.get(kind, 0):
            raise UserError(
                f"the run asks for {wanted:g} {kind}s with its evaluator, the cluster has {there.get(kind, 0):g}",
                "lower workers.num, workers.gpus or evaluate.gpus",
            )
