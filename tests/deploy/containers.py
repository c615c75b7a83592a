"""The services of a compose.yaml as processes, each with network, /tmp, /dev/shm and home of its own.

What a container engine would do, as far as the file asks for it: names resolve, ``network_mode: service:X`` shares
X's network, env_file and environment are all the environment there is, mounted files are where they should be. The
image is this machine's Python environment, and the S3 server is moto's. Needs root and iproute2.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
BINARIES = Path(sys.executable).parent
NETWORK = "10.78.0"


class Containers:
    """Use as a context manager; everything is gone afterwards."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.services: dict[str, Any] = yaml.safe_load((folder / "compose.yaml").read_text())["services"]
        self._prefix = f"c{uuid.uuid4().hex[:5]}"
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._started: dict[str, str] = {}  # place → service
        self._namespaces: list[str] = []

    def __enter__(self) -> Containers:
        switch = self._namespace("switch")
        _run("ip", "-n", switch, "link", "add", "bridge", "type", "bridge")
        _run("ip", "-n", switch, "addr", "add", f"{NETWORK}.254/24", "dev", "bridge")
        _run("ip", "-n", switch, "link", "set", "bridge", "up")
        places = {"storage": "storage", "head": "head"}
        places |= {f"worker{i}": "worker" for i in range(self.services["worker"]["deploy"]["replicas"])}
        addresses = {place: f"{NETWORK}.{number}" for number, place in enumerate(places, start=1)}
        # The first of two workers of one name counts; each also has a name of its own, which is its host name.
        hosts = "127.0.0.1 localhost\n" + "".join(f"{addresses[p]} {p} {name}\n" for p, name in places.items())
        for number, (place, address) in enumerate(addresses.items()):
            self._connect(self._namespace(place), switch, number, address, hosts)
        return self

    def _namespace(self, place: str) -> str:
        name = f"{self._prefix}-{place}"
        _run("ip", "netns", "add", name)
        self._namespaces.append(name)
        _run("ip", "-n", name, "link", "set", "lo", "up")
        return name

    def _connect(self, namespace: str, switch: str, number: int, address: str, hosts: str) -> None:
        outer = f"p{number}"
        _run("ip", "-n", namespace, "link", "add", "eth0", "type", "veth", "peer", "name", outer, "netns", switch)
        _run("ip", "-n", switch, "link", "set", outer, "master", "bridge", "up")
        _run("ip", "-n", namespace, "addr", "add", f"{address}/24", "dev", "eth0")
        _run("ip", "-n", namespace, "link", "set", "eth0", "up")
        _run("ip", "-n", namespace, "route", "add", "default", "via", f"{NETWORK}.254")
        place = Path("/etc/netns") / namespace  # `ip netns exec` lays what is there over /etc
        place.mkdir(parents=True)
        (place / "hosts").write_text(hosts)
        (place / "resolv.conf").write_text("# no name server: what is not in hosts is unknown at once\n")

    def start(self, service: str, place: str | None = None) -> None:
        """Start a service that stays; its output goes to PLACE.log."""
        place = place or service
        with open(self._folder / f"{place}.log", "ab") as log:
            command = self._command(service, place, None)
            self._processes[place] = subprocess.Popen(
                command, stdout=log, stderr=subprocess.STDOUT, env=self._env(service)
            )
        self._started[place] = service

    def start_storage(self, bucket: str) -> None:
        """Start moto's S3 server where the compose file has MinIO's, with the bucket in it."""
        namespace = f"{self._prefix}-storage"
        serve = [sys.executable, "-m", "moto.server", "-H", "0.0.0.0", "-p", "9000"]
        with open(self._folder / "storage.log", "wb") as log:
            command = ["ip", "netns", "exec", namespace, *serve]
            self._processes["storage"] = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        make = f"import urllib.request as u; u.urlopen(u.Request('http://storage:9000/{bucket}', method='PUT'))"
        self.wait(lambda: _succeeds("ip", "netns", "exec", namespace, sys.executable, "-c", make), "the storage")

    def wait_healthy(self, service: str) -> None:
        """Wait until the service's own health check succeeds."""
        test = self.services[service]["healthcheck"]["test"]
        assert test[0] == "CMD"
        command = self._command(service, service, test[1:])
        self.wait(lambda: _succeeds(*command, env=self._env(service)), service)

    def run(self, service: str, *arguments: str, timeout: float = 600) -> subprocess.CompletedProcess[str]:
        """``docker compose run --rm SERVICE ARGUMENTS``: to its end; without arguments the service's own command."""
        network = self.services[service]["network_mode"].removeprefix("service:")
        entrypoint = self.services[service].get("entrypoint", ["boostlu"])
        words = [*entrypoint, *(arguments or self.services[service]["command"])]
        command = self._command(service, network, words)
        return subprocess.run(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
            env=self._env(service),
        )

    def inside(self, place: str, *command: str) -> str:
        """Run a program of this machine in the network of a service; return what it prints."""
        words = ["ip", "netns", "exec", f"{self._prefix}-{place}", *command]
        return subprocess.run(words, capture_output=True, text=True, check=True, timeout=60).stdout

    def wait(self, done: Callable[[], bool], what: str, seconds: float = 400) -> None:
        deadline = time.monotonic() + seconds
        while not done():
            self._restart()
            assert time.monotonic() < deadline, f"{what} never came up\n{self.logs()}"
            time.sleep(0.5)

    def _restart(self) -> None:
        """``restart: unless-stopped``: Ray gives up when a part of it takes half a minute to start."""
        for place, process in list(self._processes.items()):
            if process.poll() is not None:
                assert place in self._started, self.logs()
                assert self.services[self._started[place]]["restart"] == "unless-stopped"
                self.start(self._started[place], place)

    def logs(self) -> str:
        return "\n".join(f"── {path.name}\n{path.read_text()[-3000:]}" for path in self._folder.glob("*.log"))

    def _command(self, service: str, place: str, words: list[str] | None) -> list[str]:
        content = self.services[service]
        words = words or [*content.get("entrypoint", ["boostlu"]), *content["command"]]
        lines = [
            f"hostname {place}",
            "mount -t tmpfs tmpfs /home", "mkdir -p /home/boostlu",
            f"mount -t tmpfs -o size={content.get('shm_size', '64m')} tmpfs /dev/shm",
        ]  # fmt: skip
        for volume in content.get("volumes", []):
            source, target = volume.split(":")[:2]
            lines += [f"touch {target}", f"mount --bind {(self._folder / source).resolve()} {target}"]
        # Last, since the folder of this test lies in /tmp. Processes of one place see the same /tmp, as in one node.
        own = self._folder / f"temporary-{place}"
        lines += [f"mkdir -p {own}", f"mount --bind {own} /tmp"]
        lines += ["cd /home/boostlu", 'exec "$@"']
        script = " && ".join(lines)
        return [
            "ip",
            "netns",
            "exec",
            f"{self._prefix}-{place}",
            "unshare",
            "--mount",
            "--uts",
            "sh",
            "-c",
            script,
            "sh",
            *words,
        ]

    def _env(self, service: str) -> dict[str, str]:
        environment = {
            "PATH": f"{BINARIES}:/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": "/home/boostlu",
            "PYTHONUNBUFFERED": "1",
        }
        environment["PYTHONPATH"] = str(ROOT)
        for name in self.services[service].get("env_file", []):
            lines = (self._folder / name).read_text().splitlines()
            environment |= dict(line.split("=", 1) for line in lines)
        return environment | self.services[service].get("environment", {})

    def __exit__(self, *_: object) -> None:
        for process in self._processes.values():
            process.terminate()
        for namespace in self._namespaces:
            pids = subprocess.run(["ip", "netns", "pids", namespace], capture_output=True, text=True).stdout.split()
            for pid in pids:
                _succeeds("kill", "-9", pid)
        for process in self._processes.values():
            process.wait(60)
        for namespace in self._namespaces:
            _succeeds("ip", "netns", "del", namespace)
            shutil.rmtree(Path("/etc/netns") / namespace, ignore_errors=True)


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)


def _succeeds(*command: str, env: dict[str, str] | None = None) -> bool:
    return subprocess.run(command, capture_output=True, env=env).returncode == 0


def missing() -> str:
    """Say what is not there of what this needs; empty when nothing is."""
    if os.geteuid() != 0:
        return "needs root, for network namespaces"
    if not shutil.which("ip") or not shutil.which("unshare"):
        return "needs ip and unshare (Debian: iproute2, util-linux)"
    name = f"c{uuid.uuid4().hex[:5]}"
    try:
        _run("ip", "netns", "add", name)
    except subprocess.CalledProcessError as error:
        return f"cannot make a network namespace: {error.stderr.decode().strip()}"
    _run("ip", "netns", "del", name)
    return ""
