"""The process group of workers on several hosts: each host may name its network interfaces differently."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import psutil
from ray.train.torch import TorchConfig
from ray.util import get_node_ip_address


def choose_interface() -> None:
    """Let gloo listen where Ray reaches this node. Left alone, it asks what the host's name resolves to, which in a
    container is often loopback or nothing. (NCCL looks for itself; a setting of the user stays.)"""
    if name := interface_of(get_node_ip_address()):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", name)


def interface_of(address: str) -> str | None:
    """Return the name of this host's interface that has the IP ``address``."""
    for name, addresses in psutil.net_if_addrs().items():
        if any(entry.address == address for entry in addresses):
            return name
    return None


class _Backend(TorchConfig().backend_cls):  # type: ignore[misc]
    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        worker_group.execute(choose_interface)
        super().on_start(worker_group, backend_config)


@dataclass
class HostsTorchConfig(TorchConfig):
    """Ray's :class:`TorchConfig` whose workers choose their network interface first."""

    @property
    def backend_cls(self) -> Any:
        return _Backend
