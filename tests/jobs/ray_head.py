"""A Ray head on loopback with a dashboard and a token of its own, as ``ray start --head`` makes one."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from cluster.jobs.dashboard import open_dashboard
from cluster.nodes.inventory import read_nodes
from sharding.errors import UserError

#: What Ray's fake provider of nodes takes the head's to be.
HEAD_NODE_ID = "fffffffffffffffffffffffffffffffffffffffffffffffffff00000"
BINARIES = Path(sys.executable).parent


@dataclass(frozen=True)
class RayHead:
    """address: of the head itself, for drivers on its nodes · url: of its dashboard, for jobs"""

    address: str
    url: str
    token_file: Path

    @property
    def environment(self) -> dict[str, str]:
        """What a command needs in its environment to be let in."""
        clean = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
        return clean | {
            "OMP_NUM_THREADS": "1",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(self.token_file),
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # drivers take 127.0.0.1 for what it says
            "RAY_USAGE_STATS_ENABLED": "0",
        }


@contextmanager
def ray_head(cpus: int = 3, autoscaling: dict[str, Any] | None = None) -> Iterator[RayHead]:
    """Start a head with ``cpus`` logical CPUs; yields once its dashboard takes jobs, ends all of its processes.

    autoscaling: node type → what it has, for an autoscaler whose nodes are processes of this machine.
    """
    folder = Path(tempfile.mkdtemp(prefix="head", dir="/tmp"))  # Ray's socket paths must be short
    token_file = folder / "token"
    token_file.write_text(os.urandom(32).hex())
    gcs, http = free_port(), free_port()
    head = RayHead(f"127.0.0.1:{gcs}", f"http://127.0.0.1:{http}", token_file)
    # Jobs are started with the head's environment: "python" there must be this one.
    environment = head.environment | {"PATH": f"{BINARIES}:{os.environ['PATH']}"}
    command = [
        str(BINARIES / "ray"), "start", "--head", "--block", "--node-ip-address", "127.0.0.1", "--port", str(gcs),
        "--include-dashboard", "true", "--dashboard-host", "127.0.0.1", "--dashboard-port", str(http),
        "--num-cpus", str(cpus), "--num-gpus", "0", "--object-store-memory", "200000000",
        "--dashboard-agent-listen-port", str(free_port()), "--temp-dir", str(folder / "ray"),
    ]  # fmt: skip
    if autoscaling is not None:
        (folder / "autoscaling.json").write_text(json.dumps(_autoscaling(autoscaling, head)))
        command.append(f"--autoscaling-config={folder / 'autoscaling.json'}")
        environment |= {
            "AUTOSCALER_UPDATE_INTERVAL_S": "1",
            "RAY_FAKE_CLUSTER": "1",
            "RAY_enable_autoscaler_v2": "1",
            "RAY_CLOUD_INSTANCE_ID": HEAD_NODE_ID,
            "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD_NODE_ID,
        }
    with open(folder / "log", "wb") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
    try:
        _await_dashboard(head, process, folder / "log")
        yield head
    finally:
        _end(process)
        shutil.rmtree(folder, ignore_errors=True)


def _autoscaling(types: dict[str, Any], head: RayHead) -> dict[str, Any]:
    """Return a configuration for Ray's own fake provider, which starts a node as processes beside the head."""
    commands = ("setup", "head_setup", "worker_setup", "initialization", "head_start_ray", "worker_start_ray")
    lists = [*(f"{kind}_commands" for kind in commands), "cluster_synced_files", "rsync_exclude", "rsync_filter"]
    return {
        **{key: [] for key in lists},
        "cluster_name": "fake",
        "max_workers": sum(kind["max_workers"] for kind in types.values()),
        "upscaling_speed": 1.0,
        "idle_timeout_minutes": 10,
        "provider": {
            "type": "external",
            "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
            "gcs_address": head.address,
            "head_node_id": HEAD_NODE_ID,
            "launch_multiple": True,
        },
        "file_mounts": {},
        "file_mounts_sync_continuously": False,
        "auth": {},
        "head_node_type": "ray.head.default",
        "available_node_types": {"ray.head.default": {"resources": {}, "node_config": {}, "max_workers": 0}, **types},
    }


def free_port() -> int:
    """Return a free port outside the range that Ray gives to its workers."""
    while True:
        with socket.socket() as bound:
            bound.bind(("127.0.0.1", 0))
            port = int(bound.getsockname()[1])
        if not 10000 <= port < 20000:
            return port


def _await_dashboard(head: RayHead, process: subprocess.Popen[bytes], log: Path) -> None:
    before = dict(os.environ)
    os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN_PATH=str(head.token_file))
    os.environ.pop("RAY_AUTH_TOKEN", None)
    deadline = time.monotonic() + 120
    try:
        while True:
            try:
                if read_nodes(open_dashboard(head.url)):
                    return
            except UserError:
                pass
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)
    finally:
        os.environ.clear()
        os.environ.update(before)


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is not None:
        return
    family = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGTERM)
    _, alive = psutil.wait_procs([*family, psutil.Process(process.pid)], timeout=15)
    for member in alive:
        member.kill()
    process.wait(30)
