"""Jobs to disturb: starting them, waiting for a step, killing, comparing what they leave."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from cluster.bench.victims import family_of, kill
from trainer.run.comparison import differences
from trainer.run.events import read_events, step_history
from trainer.run.registry import RunRegistry

BOOSTLU = [sys.executable, "-m", "cluster.cli.main"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "trainer"]
STEPS = 30


def undisturbed(config: Path, runs: Path, **environment: str) -> RunRegistry:
    """Two ranks under torchrun, without Ray: the same run by the other launcher."""
    done = subprocess.run(
        [*TORCHRUN, str(config), "--runs", str(runs)],
        env=ENVIRONMENT | environment,
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr
    return RunRegistry(str(runs / "tiny"))


def kill_when(process: subprocess.Popen[bytes], ready: Callable[[], bool]) -> None:
    """Wait for ``ready``, then SIGKILL the process and all that it started, Ray's daemons included."""
    wait_until(process, ready)
    kill(family_of(process.pid))
    process.wait()


def wait_until(process: subprocess.Popen[bytes], ready: Callable[[], bool], seconds: float = 240) -> None:
    """Wait for ``ready`` while the process lives."""
    deadline = time.monotonic() + seconds
    while not ready():
        assert process.poll() is None, "the run ended before it came so far"
        assert time.monotonic() < deadline, "the run never came so far"
        time.sleep(0.02)


def boostlu(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command of the project to its end."""
    return subprocess.run(
        [*BOOSTLU, *arguments], env=ENVIRONMENT | environment, capture_output=True, text=True, timeout=280
    )


def start_training(config: Path, runs: Path, *arguments: str, **environment: str) -> subprocess.Popen[bytes]:
    """Start ``boostlu train``, leader of its own process group; its output goes to ``runs``.log."""
    with open(f"{runs}.log", "wb") as log:
        command = [*BOOSTLU, "train", str(config), *arguments, "--runs", str(runs)]
        return subprocess.Popen(
            command, env=ENVIRONMENT | environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )


def steps_done(registry: RunRegistry) -> int:
    history = step_history(read_events(registry.url))
    return history[-1]["step"] + 1 if history else 0


def assert_same_end(one: RunRegistry, other: RunRegistry, steps: int = STEPS) -> None:
    """Weights, optimizer, corrections, loss history and evaluations are the same to the last bit."""
    assert differences(one, other) == []
    assert one.checkpoints()[-1].step == steps
