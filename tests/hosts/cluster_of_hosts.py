"""A Ray cluster of containers: a head without CPUs, workers with one each, S3 on a host of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from cluster.jobs.dashboard import open_dashboard
from cluster.nodes.inventory import read_nodes
from sharding.errors import UserError
from tests.faults.jobs import BOOSTLU
from tests.hosts.lab import Lab, address

HEAD, STORAGE = 1, 9
URL = f"http://{address(HEAD)}:8265"
S3 = {
    "AWS_ENDPOINT_URL": f"http://{address(STORAGE)}:5000",
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_DEFAULT_REGION": "us-east-1",
}
#: A dead host is found after 3 × (2 + 4) seconds instead of 5 × (3 + 10).
_HEALTH = {
    "RAY_health_check_period_ms": "2000",
    "RAY_health_check_timeout_ms": "4000",
    "RAY_health_check_failure_threshold": "3",
}


def make_lab(image: str, folder: Path) -> Lab:
    """Make a lab whose containers share a token, by a file, and the S3 server's address."""
    shared = Path(os.path.realpath(folder)) / "shared"
    shared.mkdir()
    (shared / "token").write_text(os.urandom(32).hex())
    environment = {
        **S3, **_HEALTH, "OMP_NUM_THREADS": "1", "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": "/shared/token"
    }  # fmt: skip
    return Lab(image, folder, shared, environment)


class ClusterOfHosts:
    """Starts and stops the parts; ``workers`` are the numbers of the hosts that train."""

    def __init__(self, lab: Lab, workers: list[int]) -> None:
        self.lab, self.workers = lab, workers
        #: For commands of this machine.
        self.environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")} | {
            **S3, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(lab.shared / "token"), "OMP_NUM_THREADS": "1"
        }  # fmt: skip

    def start_storage(self) -> None:
        """An S3 server of this machine's Python, on a network of its own; returns once the bucket is made."""
        self.lab.add_network(STORAGE)
        server = Path(sys.executable).parent / "moto_server"
        listen = ["--host", address(STORAGE), "--port", "5000"]
        self.lab.start("s3.log", ["ip", "netns", "exec", f"bl{STORAGE}", str(server), *listen])
        wait_for(_bucket_is_made, "the S3 server")

    def add_hosts(self, *spare: int) -> None:
        for number in (HEAD, *self.workers, *spare):
            self.lab.add_host(number)

    def start_head(self, cpus: int = 0) -> None:
        self._ray(HEAD, "--head", "--port", "6379", "--dashboard-host", address(HEAD), "--num-cpus", str(cpus))

    def start_worker(self, number: int, **environment: str) -> None:
        self._ray(number, "--address", f"{address(HEAD)}:6379", "--num-cpus", "1", **environment)

    def _ray(self, number: int, *options: str, **environment: str) -> None:
        common = ["--block", "--node-ip-address", address(number), "--object-store-memory", "150000000"]
        command = self.lab.command(number, "ray", "start", *common, "--disable-usage-stats", *options, **environment)
        self.lab.start(f"host{number}.log", command)

    def await_nodes(self, count: int, seconds: float = 400) -> None:
        """Wait until the cluster has exactly ``count`` nodes."""
        before = dict(os.environ)
        os.environ.update(self.environment)
        try:
            wait_for(lambda: self._nodes() == count, f"{count} nodes", seconds)
        finally:
            os.environ.clear()
            os.environ.update(before)

    def _nodes(self) -> int:
        try:
            return len(read_nodes(open_dashboard(URL)))
        except UserError:
            return 0

    def boostlu(self, *arguments: object) -> subprocess.CompletedProcess[str]:
        """Run a command of the project on this machine, as one with the cluster's token and the storage's keys."""
        command = [*BOOSTLU, *map(str, arguments)]
        return subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=600, check=False)

    def close(self) -> None:
        self.lab.close()
        shutil.rmtree(self.lab.shared, ignore_errors=True)


def _bucket_is_made() -> bool:
    import s3fs

    try:
        s3fs.S3FileSystem(skip_instance_cache=True).mkdir("lab")
    except OSError:
        return False
    return True


def wait_for(ready: Callable[[], bool], what: str, seconds: float = 400) -> None:
    """Poll ``ready`` until it holds; fails after ``seconds``."""
    deadline = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < deadline, f"waited {seconds:g} s in vain for {what}"
        time.sleep(0.3)  # what is asked goes to the S3 server, which shares the cores with the hosts
