"""A run on one, two and three hosts: speed, processor time, bytes a step over the wire, seconds to start.

    python -m tests.hosts.scaling > table.md

Every host is a container with one worker, and all share this machine's cores: where those are fewer than hosts, the
speed by the clock cannot grow with the hosts. The processor time an image does not see the waiting, and the bytes
depend on nothing but the run. Each host gets the same images a step; every run trains one epoch of the same dataset.
"""

from __future__ import annotations

import argparse
import bisect
import os
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
import yaml

from cluster.bench.scaling_model import ring_bytes, selection_payload
from sharding import storage
from sharding.errors import UserError
from tests.hosts import lab as containers
from tests.hosts.cluster_of_hosts import S3, URL, ClusterOfHosts, make_lab
from tests.hosts.lab import Lab
from trainer.run import checkpoint
from trainer.run.events import read_events, step_history
from trainer.run.registry import RunRegistry

HOSTS = (1, 2, 3)
DATASET, RUNS = "s3://lab/digits", "s3://lab/runs"
#: Steps that warm up, and steps at the end that are left out: there the checkpoint is written.
WARM_UP, WIND_DOWN = 20, 5
COLUMNS = ("hosts", "images/s", "efficiency by the clock", "ms of processor an image", "efficiency by processor time",
           "bytes a host sends a step", "by formula", "seconds to the first step", "load before")  # fmt: skip


@dataclass(frozen=True)
class Sample:
    """At one moment (seconds since 1970): bytes that the hosts with a worker have sent, processor seconds of the
    workers."""

    time: float
    sent: int
    processor: float


@dataclass(frozen=True)
class Result:
    """One run: steady speed, mean over the hosts that trained."""

    hosts: int
    images_per_second: float
    processor_ms_an_image: float
    sent_a_step: float
    sent_by_formula: float
    seconds_to_first_step: float
    load: float


class Watch(threading.Thread):
    """Samples counters of hosts that have a worker twice a second until stopped."""

    def __init__(self, lab: Lab, numbers: list[int]) -> None:
        super().__init__(daemon=True)
        self._lab, self._numbers = lab, numbers
        self._over = threading.Event()
        self.samples: list[Sample] = []

    def run(self) -> None:
        while not self._over.wait(0.5):
            processor, sent = 0.0, 0
            for number in self._numbers:
                workers = self._lab.processes(number, "RayTrainWorker")
                if workers:
                    sent += self._lab.sent(number)
                processor += sum(map(_seconds, workers))
            self.samples.append(Sample(time.time(), sent, processor))

    def stop(self) -> list[Sample]:
        self._over.set()
        self.join()
        return self.samples


def _seconds(process: psutil.Process) -> float:
    try:
        return sum(process.cpu_times()[:2])
    except psutil.NoSuchProcess:
        return 0.0


def write_config(folder: Path, hosts: int, name: str, batch: int, backbone: str) -> Path:
    values = {
        "name": name,
        "epochs": 1,
        "dataset": {"path": DATASET, "image_size": 64},
        "plan": {"global_batch": batch * hosts},
        "loader": {"threads": 1},
        "model": {"backbone": backbone, "weights": "none"},
        "loss": {"name": "ll-r"},
        "evaluate": {"cpus": 0},
        "workers": {"num": hosts, "threads": 1},
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def measure(cluster: ClusterOfHosts, config: Path, hosts: int) -> Result:
    """Submit the run, watch it to its end and work out its figures."""
    load = os.getloadavg()[0]
    watch = Watch(cluster.lab, cluster.workers)
    watch.start()
    started = time.time()
    done = cluster.boostlu("submit", config, "--runs", RUNS, "--address", URL, "--follow")
    samples = watch.stop()
    if done.returncode:
        raise UserError(f"the run on {hosts} hosts failed: {done.stdout[-2000:]}{done.stderr[-2000:]}", "see above")
    registry = RunRegistry(storage.join(RUNS, config.stem))
    history = step_history(read_events(registry.url))
    ends = [event["time"] for event in history]
    begin, *_, end = [s for s in samples if ends[WARM_UP] < s.time < ends[-WIND_DOWN]]
    first, last = bisect.bisect(ends, begin.time), bisect.bisect(ends, end.time)
    images = sum(event["samples"] for event in history[first:last])
    model = checkpoint.read_model(registry.url, registry.checkpoints()[-1])
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    gradients = 4 * sum(tensor.numel() for name, tensor in model.items() if not name.endswith(statistics))
    return Result(
        hosts=hosts,
        images_per_second=images / (end.time - begin.time),
        processor_ms_an_image=1000 * (end.processor - begin.processor) / images,
        sent_a_step=(end.sent - begin.sent) / (last - first) / hosts,
        sent_by_formula=ring_bytes(gradients, hosts) + ring_bytes(selection_payload(), hosts),
        seconds_to_first_step=history[0]["time"] - history[0]["seconds"] - started,
        load=load,
    )


def table(results: list[Result]) -> str:
    """Return a Markdown table, a row a run; efficiencies against the one-host run of the same round."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    for result in results:
        if result.hosts == 1:
            alone = result
        cells = (
            f"{result.hosts}",
            f"{result.images_per_second:.0f}",
            f"{result.images_per_second / (result.hosts * alone.images_per_second):.2f}",
            f"{result.processor_ms_an_image:.2f}",
            f"{alone.processor_ms_an_image / result.processor_ms_an_image:.2f}",
            f"{result.sent_a_step:,.0f}",
            f"{result.sent_by_formula:,.0f}",
            f"{result.seconds_to_first_step:.0f}",
            f"{result.load:.1f}",
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.hosts.scaling", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--backbone", default="small_resnet:32", help="as model.backbone")
    parser.add_argument("--batch", type=int, default=16, help="images a host and step")
    parser.add_argument(
        "--steps", type=int, default=200, help="steps on three hosts; one host does three times as many"
    )
    parser.add_argument("--rounds", type=int, default=2, help="rounds of one, two and three hosts")
    asked = parser.parse_args()
    if reason := containers.missing():
        sys.exit(f"cannot run containers here: {reason}")
    os.environ.update(S3)
    with tempfile.TemporaryDirectory(prefix="boostlu-hosts-") as place:
        folder = Path(place)
        cluster = ClusterOfHosts(make_lab(containers.image(), folder), workers=[2, 3, 4])
        try:
            results = _rounds(cluster, folder, asked)
        finally:
            cluster.close()
    print(f"\n{os.cpu_count()} cores, {asked.backbone}, {asked.batch} images a host and step\n\n{table(results)}")


def _rounds(cluster: ClusterOfHosts, folder: Path, asked: argparse.Namespace) -> list[Result]:
    cluster.start_storage()
    images = max(HOSTS) * asked.batch * asked.steps
    sizes = [part for key, value in (("train", images), ("val", 32), ("test", 32), ("side", 64))
             for part in ("--set", f"{key}={value}")]  # fmt: skip
    built = cluster.boostlu("shards", "build", "digits", *sizes, "--output", DATASET)
    if built.returncode:
        raise UserError(f"building failed: {built.stderr[-2000:]}", "see above")
    cluster.add_hosts()
    started = time.time()
    cluster.start_head()
    for number in cluster.workers:
        cluster.start_worker(number)
    cluster.await_nodes(1 + len(cluster.workers))
    print(f"a head and three workers: {time.time() - started:.0f} s from `ray start` to four nodes", file=sys.stderr)
    results: list[Result] = []
    for turn in range(asked.rounds):
        for hosts in HOSTS:
            config = write_config(folder, hosts, f"hosts-{hosts}-{turn}", asked.batch, asked.backbone)
            results.append(measure(cluster, config, hosts))
            print(results[-1], file=sys.stderr)
    return results


if __name__ == "__main__":
    try:
        main()
    except (UserError, subprocess.TimeoutExpired) as problem:
        sys.exit(str(problem))
