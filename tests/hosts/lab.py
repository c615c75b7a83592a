"""Containers of the project's image with addresses of their own, on a machine without a container engine.

buildah (chroot isolation) builds the image and gives each container its files; a network namespace on a bridge gives
it its address. Host k is 10.78.0.k; this machine is 10.78.0.254 to them, and they reach nothing else.
"""

from __future__ import annotations

import hashlib
import os
import resource
import shutil
import subprocess
import time
import tomllib
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[2]
BRIDGE = "boostlubr"
BASE = "localhost/boostlu-base"
PROGRAMS = ("buildah", "debootstrap", "ip", "crun", "fuse-overlayfs")
#: Where the image keeps the packages; those of this checkout are mounted over them.
CODE = ("sharding", "trainer", "cluster")
PACKAGES = "/opt/venv/lib/python3.11/site-packages"


def missing() -> str | None:
    """Return why containers cannot be run here, or None."""
    if os.geteuid() != 0:
        return "needs root, for network namespaces"
    if absent := [name for name in PROGRAMS if shutil.which(name) is None]:
        return f"needs the Debian packages buildah crun fuse-overlayfs uidmap debootstrap iproute2 (no {absent[0]})"
    return None


def address(number: int) -> str:
    return f"10.78.0.{number}"


def run(*command: str, timeout: float = 120) -> str:
    """Run a command to its end and return what it prints."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stdout}{done.stderr}"
    return done.stdout.strip()


def image() -> str:
    """Build the project's image if it is not there, and return its name.

    It is named after what decides its dependencies: code is mounted over it, so that minutes of building are needed
    once. Building needs Debian's and Python's package registries, as this machine knows them.
    """
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    decisive = [(ROOT / name).read_text() for name in ("Dockerfile", "constraints.txt")]
    decisive += [
        *project["dependencies"],
        *project["optional-dependencies"]["timm"],
        *project["optional-dependencies"]["s3"],
    ]
    tag = f"localhost/boostlu-hosts:{hashlib.sha256(repr(decisive).encode()).hexdigest()[:12]}"
    if run("buildah", "images", "--quiet", "--filter", f"reference={tag}"):
        return tag
    _base()
    certificates = [Path("/etc/ssl/certs"), Path("/usr/local/share/ca-certificates")]
    mounts = [f"--volume={path}:{path}:ro" for path in certificates if path.is_dir()]
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    run(
        "buildah", "bud", "--layers", "--isolation", "chroot", "--network", "host",
        f"--ulimit=nofile={files}:{files}", "--ulimit=nproc=32768:32768", *mounts,
        "--build-arg", f"BASE_IMAGE={BASE}",
        "--env", "PIP_CERT=/etc/ssl/certs/ca-certificates.crt", "--unsetenv", "PIP_CERT", "--format", "docker",
        "--tag", tag, "--file", str(ROOT / "Dockerfile"), str(ROOT), timeout=1800,
    )  # fmt: skip
    return tag


def _base() -> None:
    """Make a base image of Debian bookworm with Python, where none can be pulled."""
    if run("buildah", "images", "--quiet", "--filter", f"reference={BASE}"):
        return
    sources = "".join(path.read_text() for path in Path("/etc/apt/sources.list.d").glob("*.sources"))
    mirror = next(line.split()[1] for line in sources.splitlines() if line.startswith("URIs:"))
    root = run("mktemp", "-d")
    packages = "python3,python3-pip,python3-venv,ca-certificates,iproute2,procps"
    run("debootstrap", "--variant=minbase", f"--include={packages}", "bookworm", root, mirror, timeout=900)
    container = run("buildah", "from", "scratch")
    run("buildah", "add", "--quiet", container, root, "/", timeout=300)
    run("buildah", "config", "--env", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", container)
    run("buildah", "commit", "--quiet", container, BASE, timeout=300)
    run("buildah", "rm", container)
    shutil.rmtree(root)


class Lab:
    """Some hosts.

    environment: what every container gets · shared: a folder of this machine that all see, read-only, as /shared
    · logs: where the output of what is started goes
    """

    def __init__(self, image: str, logs: Path, shared: Path, environment: dict[str, str]) -> None:
        self.image, self.logs, self.shared, self.environment = image, logs, shared, environment
        for name in CODE:  # a copy: whoever edits the checkout meanwhile must not give the hosts different code
            shutil.copytree(ROOT / name, shared / name, ignore=shutil.ignore_patterns("__pycache__"))
        self._hosts: set[int] = set()
        self._processes: list[subprocess.Popen[bytes]] = []
        run("ip", "link", "add", BRIDGE, "type", "bridge")
        run("ip", "address", "add", f"{address(254)}/24", "dev", BRIDGE)
        run("ip", "link", "set", BRIDGE, "up")

    def add_network(self, number: int) -> None:
        """Give host ``number`` an address; what runs there is up to the caller."""
        name = f"bl{number}"
        run("ip", "netns", "add", name)
        self._hosts.add(number)
        run("ip", "link", "add", f"{name}h", "type", "veth", "peer", "name", f"{name}c")
        run("ip", "link", "set", f"{name}h", "master", BRIDGE, "up")
        run("ip", "link", "set", f"{name}c", "netns", name)
        run("ip", "-n", name, "link", "set", f"{name}c", "name", "eth0")
        run("ip", "-n", name, "address", "add", f"{address(number)}/24", "dev", "eth0")
        run("ip", "-n", name, "link", "set", "eth0", "up")
        run("ip", "-n", name, "link", "set", "lo", "up")

    def add_host(self, number: int) -> None:
        """Make host ``number`` with a container of the image."""
        self.add_network(number)
        run("buildah", "from", "--name", f"bl{number}", self.image)
        # One mount for all processes of a container: through another one they would not meet at Ray's sockets.
        run("buildah", "mount", f"bl{number}")

    def command(self, number: int, *arguments: str, **environment: str) -> list[str]:
        """Return the command line that runs ``arguments`` in the container of host ``number``."""
        mounts = [f"--volume={self.shared / name}:{PACKAGES}/{name}:ro" for name in CODE]
        mounts.append(f"--volume={self.shared}:/shared:ro")
        settings = [
            part for key, value in (self.environment | environment).items() for part in ("--env", f"{key}={value}")
        ]
        return [
            "ip", "netns", "exec", f"bl{number}", "buildah", "run", "--isolation", "chroot", "--network", "host",
            *mounts, *settings, f"bl{number}", "--", *arguments,
        ]  # fmt: skip

    def run(self, number: int, *arguments: str, timeout: float = 300) -> str:
        """Run a command in a container to its end and return what it prints."""
        return run(*self.command(number, *arguments), timeout=timeout)

    def start(self, name: str, command: list[str]) -> subprocess.Popen[bytes]:
        """Start a process of this machine that is ended with the lab; its output goes to ``logs/NAME``."""
        with open(self.logs / name, "ab") as log:
            process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
        self._processes.append(process)
        return process

    def cut(self, number: int) -> None:
        """Take a host off the network; nothing on it is told."""
        run("ip", "link", "set", f"bl{number}h", "down")

    def heal(self, number: int) -> None:
        run("ip", "link", "set", f"bl{number}h", "up")

    def stop(self, number: int) -> None:
        """Kill everything that runs on a host at once, as a power cut does."""
        deadline = time.monotonic() + 30
        while members := self._members(number):
            assert time.monotonic() < deadline, members
            for member in members:
                try:
                    member.kill()
                except psutil.NoSuchProcess:
                    continue
            time.sleep(0.1)

    def processes(self, number: int, title: str) -> list[psutil.Process]:
        """Return the processes of a host with ``title`` in their command line."""
        found = []
        for member in self._members(number):
            try:
                if title in " ".join(member.cmdline()):
                    found.append(member)
            except psutil.NoSuchProcess:
                continue
        return found

    def sent(self, number: int) -> int:
        """Return the bytes that a host has put on the wire so far; what its end of the cable sends, ours receives."""
        return int(Path(f"/sys/class/net/bl{number}h/statistics/rx_bytes").read_text())

    def reaches(self, number: int) -> bool:
        """Whether a host is on the network."""
        return "state UP" in run("ip", "link", "show", f"bl{number}h")

    def _members(self, number: int) -> list[psutil.Process]:
        found = []
        for pid in run("ip", "netns", "pids", f"bl{number}").split():
            try:
                process = psutil.Process(int(pid))
                if process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except psutil.NoSuchProcess:
                continue
        return found

    def close(self) -> None:
        for number in sorted(self._hosts):
            self.stop(number)
            subprocess.run(["buildah", "umount", f"bl{number}"], capture_output=True, check=False)
            subprocess.run(["buildah", "rm", f"bl{number}"], capture_output=True, check=False)
            subprocess.run(["ip", "netns", "delete", f"bl{number}"], capture_output=True, check=False)
            subprocess.run(["ip", "link", "delete", f"bl{number}h"], capture_output=True, check=False)
        for process in self._processes:
            process.wait(30)
        subprocess.run(["ip", "link", "delete", BRIDGE], capture_output=True, check=False)
