"""One and two processes on this machine, each with the same share of the batch: speed, bytes a step, time to start.

Beside the speed stands the processor time an image: on a machine that is busy with other things it is the figure to
compare, though it does not see a process that waits.

The processes use loopback. Where this may make a network namespace (root), they get one of their own, so that the
bytes that its loopback carries are theirs alone.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import yaml

from cluster.bench.scaling_model import ring_bytes, selection_payload
from sharding.build import build_dataset
from sharding.errors import UserError
from trainer.run.events import read_events, step_history
from trainer.run.registry import RunRegistry
from trainer.watch.timing import TimeSplit

#: Steps that warm up: caches, DDP's bucket layout.
WARM_UP = 10
_ENVIRONMENT = {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}


def measure(backbone: str, batch: int, steps: int, rounds: int) -> dict[str, Any]:
    """Train digit scenes with 1 and 2 processes in turn, ``rounds`` times, and once on Ray; ``batch`` a process."""
    with tempfile.TemporaryDirectory(prefix="boostlu-bench-") as place:
        folder = Path(place)
        data = str(folder / "digits")
        build_dataset("digits", data, {"train": batch * steps, "val": 32, "test": 32})
        runs = {n: [_torchrun(folder, data, backbone, batch, n, number) for number in range(rounds)] for n in (1, 2)}
        ray = _ray(folder, data, backbone, batch)
    best = {n: max(results, key=lambda r: r["images_per_second"]) for n, results in runs.items()}
    payload = best[1].pop("parameter_bytes")
    best[2].pop("parameter_bytes")
    expected = 2 * (ring_bytes(payload, 2) + ring_bytes(selection_payload(), 2))
    return {
        "backbone": backbone,
        "batch_a_process": batch,
        "rounds": rounds,
        "cores": os.cpu_count(),
        "gradient_bytes": payload,
        "processes": best,
        "efficiency": best[2]["images_per_second"] / (2 * best[1]["images_per_second"]),
        "efficiency_by_processor_time": best[1]["processor_ms_an_image"] / best[2]["processor_ms_an_image"],
        "bytes_a_step_by_formula": expected,
        "bytes_a_step_to_formula": best[2]["loopback_bytes_a_step"] / expected,
        "ray_two_workers": ray,
    }


def _config(folder: Path, data: str, backbone: str, batch: int, processes: int, name: str) -> Path:
    """Twice the batch takes half the steps an epoch, so two processes do two epochs."""
    values = {
        "name": name,
        "epochs": processes,
        "dataset": {"path": data, "image_size": 64},
        "plan": {"global_batch": batch * processes},
        "loader": {"threads": 1},
        "model": {"backbone": backbone, "weights": "none"},
        "loss": {"name": "ll-r"},
        "workers": {"num": processes, "threads": 1},
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def _torchrun(folder: Path, data: str, backbone: str, batch: int, processes: int, number: int) -> dict[str, Any]:
    name = f"torchrun-{processes}-{number}"
    config = _config(folder, data, backbone, batch, processes, name)
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}",
        "-m", "trainer", str(config), "--runs", str(folder),
    ]  # fmt: skip
    return _watched(command, RunRegistry(str(folder / name)))


def _ray(folder: Path, data: str, backbone: str, batch: int) -> dict[str, Any]:
    """Two workers on a private Ray: only the time to start and to end is of interest beside torchrun's."""
    config = _config(folder, data, backbone, batch, 2, "ray-2")
    command = [sys.executable, "-m", "cluster.cli.main", "train", str(config), "--runs", str(folder)]
    found = _watched(command, RunRegistry(str(folder / "ray-2")))
    return {key: found[key] for key in ("seconds_to_first_step", "images_per_second", "seconds_in_all")}


def _watched(command: list[str], registry: RunRegistry) -> dict[str, Any]:
    """Run a command to its end, noting what loopback carries once the first steps are done."""
    alone = _own_network()
    started = time.time()
    process = subprocess.Popen(
        [*alone, *command], env={**os.environ, **_ENVIRONMENT}, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    samples: list[Sample] = []
    while process.poll() is None:
        history = step_history(read_events(registry.url))
        if len(history) >= WARM_UP:
            samples += _sample(process.pid, len(history), sum(e["samples"] for e in history))
        time.sleep(0.2)
    if process.returncode:
        last = process.stderr.read().decode().strip().splitlines() if process.stderr else []
        raise UserError(f"{' '.join(command[:4])} ... failed: {last[-1] if last else ''}", "see --debug")
    return _figures(registry, started, samples, bool(alone))


@dataclass(frozen=True)
class Sample:
    """At one moment: steps and images done, bytes that loopback has carried, processor seconds of all processes."""

    steps: int
    images: int
    carried: int
    processor: float


def _sample(pid: int, steps: int, images: int) -> list[Sample]:
    """Take one; none when the process has just ended."""
    try:
        family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
        processor = sum(sum(member.cpu_times()[:2]) for member in family)
        carried = _loopback_bytes(pid)
    except (psutil.NoSuchProcess, OSError):
        return []
    return [Sample(steps, images, carried, processor)]


def _figures(registry: RunRegistry, started: float, samples: list[Sample], alone: bool) -> dict[str, Any]:
    from trainer.run import checkpoint

    history = step_history(read_events(registry.url))
    steady = history[WARM_UP:]
    first = history[0]
    model = checkpoint.read_model(registry.url, registry.checkpoints()[-1])
    # The last samples may show an evaluation, or processes that have ended: steps go on until the last but one.
    begin, end = samples[0], next(s for s in reversed(samples) if s.steps < samples[-1].steps or s is samples[0])
    steps, images = max(1, end.steps - begin.steps), max(1, end.images - begin.images)
    split = TimeSplit.of(steady)
    return {
        "images_per_second": sum(e["samples"] for e in steady) / sum(e["seconds"] + e["waited"] for e in steady),
        "seconds_to_first_step": first["time"] - first["seconds"] - started,
        "seconds_in_all": time.time() - started,
        "steps": len(history),
        "processor_ms_an_image": 1000 * (end.processor - begin.processor) / images,
        "loopback_bytes_a_step": (end.carried - begin.carried) / steps,
        "loopback_is_its_own": alone,
        "milliseconds_a_step": {
            "computing": 1000 * split.computing / len(steady),
            "communicating": 1000 * (split.communication or 0.0) / len(steady),
            "waiting": 1000 * split.waiting / len(steady),
        },
        "parameter_bytes": 4 * sum(t.numel() for name, t in model.items() if not _is_statistic(name)),
    }


def _is_statistic(name: str) -> bool:
    return name.endswith(("running_mean", "running_var", "num_batches_tracked"))


def _own_network() -> list[str]:
    """Return what to put before a command so that it has a loopback of its own; nothing where that cannot be had."""
    if os.geteuid() != 0 or not shutil.which("unshare") or not shutil.which("ip"):
        return []
    prefix = ["unshare", "--net", "sh", "-c", 'ip link set lo up && exec "$@"', "sh"]
    works = subprocess.run([*prefix, "true"], capture_output=True, check=False)
    return prefix if works.returncode == 0 else []


def _loopback_bytes(pid: int) -> int:
    """Return what the loopback of the process's network has sent so far."""
    lines = Path(f"/proc/{pid}/net/dev").read_text().splitlines()
    counts = next(line.split(":")[1].split() for line in lines if line.strip().startswith("lo:"))
    return int(counts[8])
