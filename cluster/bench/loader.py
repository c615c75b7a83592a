"""Images a second of the loader beside its peers, each in a fresh process, in turn, for several rounds.

What counts is the ratio within one run: rounds alternate the contestants, so that whatever else the machine does
falls on all of them, and each contestant's best round is compared. Timed is the second pass over the photos: workers
are started, files are in the page cache. Beside the speed stands the processor time an image, of all threads and
processes together: on a machine that is busy with other things it is the figure to compare.
"""

from __future__ import annotations

import csv
import hashlib
import io
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from PIL import Image

from cluster.bench.loader_peers import BATCH, PEERS, SIZE
from sharding.build import build_dataset
from sharding.errors import UserError
from sharding.images import ImageOptions
from sharding.index import read_split
from trainer.data.augment import Augment, AugmentConfig
from trainer.data.decode import decode, decode_rgb, squash_into
from trainer.data.loader import Batch, Loader, LoaderConfig, Request
from trainer.data.plan import SamplePlan
from trainer.data.reader import ImageReader

AUTHORS = "authors (PIL, float, processes)"
#: Ratio → what it should reach; the figures that docs/DATA.md discusses.
TARGETS = {
    "ours / authors": 3.6,
    "ours / mosaicml-streaming": 4.0,
    "ours / NVIDIA DALI on CPU": 2.0,
    "ours / ceiling": 0.85,
    "ours from squash:448 shards / authors": 8.0,
}


def measure(photos: str | None, count: int = 1000, rounds: int = 3, only: Iterable[str] = ()) -> dict[str, Any]:
    """Return images/s of every contestant (best and median of rounds), ratios, and the delay of a launch loop."""
    names = [name for name in [*OURS, *PEERS] if not only or name in only]
    cores = os.cpu_count() or 1
    with tempfile.TemporaryDirectory(prefix="boostlu-bench-") as place:
        folder = Path(place)
        prepare(photos, folder, count)
        runs: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
        for _ in range(rounds):
            for name in names:
                runs[name].append(_in_process(name, folder, cores))
    contestants = {name: _summary(results) for name, results in runs.items()}
    return {
        "photos": count,
        "cores": cores,
        "batch": BATCH,
        "image_size": SIZE,
        "rounds": rounds,
        "contestants": contestants,
        "ratios": _ratios(contestants),
    }


def prepare(photos: str | None, folder: Path, count: int) -> None:
    """Lay out ``count`` photos (repeated if fewer are there) as files, original shards and squash:448 shards."""
    found = _photos(photos)
    (folder / "photos").mkdir()
    for number, path in zip(range(count), itertools.cycle(found), strict=False):
        os.symlink(path.resolve(), folder / "photos" / f"{number:06d}.jpg")
    with open(folder / "photos.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "positive"])
        writer.writerows([f"{number:06d}.jpg", f"class{number % 20}"] for number in range(count))
    options = {"source": str(folder / "photos.csv"), "images": str(folder / "photos")}
    for name, image in (("original", "original"), ("squash", f"squash:{SIZE}")):
        build_dataset("table", str(folder / name), options, ImageOptions.parse(image), samples_per_shard=250)


def _photos(folder: str | None) -> list[Path]:
    if folder is None:
        shared = Path(os.environ.get("BOOSTLU_SHARED") or Path(__file__).resolve().parents[3] / "shared")
        folder = str(shared / "data" / "coco-mini")
    found = sorted(path for path in Path(folder).rglob("*") if path.suffix.lower() in {".jpg", ".jpeg"})
    if not found:
        raise UserError(f"no JPEG files below {folder}", "name a folder of photos with --photos DIR")
    return found


def _in_process(name: str, folder: Path, cores: int) -> dict[str, Any]:
    """Run one contestant in a fresh interpreter and return what it prints."""
    command = [sys.executable, "-m", "cluster.bench.loader", name, str(folder), str(cores)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no output"])[-1]
        return {"missing": last[:200]}
    result: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


def _summary(results: list[dict[str, Any]]) -> dict[str, Any]:
    sound = [result for result in results if "missing" not in result]
    if not sound:
        return results[0]
    best = max(sound, key=lambda result: result["images_per_second"])
    return {
        **best,
        "median": statistics.median(result["images_per_second"] for result in sound),
        "cpu_ms_per_image": min(result["cpu_ms_per_image"] for result in sound),
    }


def _ratios(contestants: dict[str, dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Return speed ratios, and beside each the ratio of processor time an image (also: higher is better for ours)."""
    sound = {name: result for name, result in contestants.items() if "missing" not in result}
    if AUTHORS in sound:
        sound["authors"] = sound[AUTHORS]
    ratios = {}
    for ratio, target in TARGETS.items():
        a, b = (sound.get(name) for name in ratio.split(" / "))
        if a and b:
            speed = a["images_per_second"] / b["images_per_second"]
            ratios[ratio] = {
                "speed": speed, "cpu": b["cpu_ms_per_image"] / a["cpu_ms_per_image"], "target": target
            }  # fmt: skip
    return ratios


# ── ours ──────────────────────────────────────────────────────────────────────────────────────────────────────────


class OurEpochs:
    """Passes over the photos in planned order; each pass is an epoch."""

    def __init__(self, root: Path, cores: int, threads: int | None = None) -> None:
        self._index = read_split(str(root), "train")
        self._plan = SamplePlan(self._index.shard_sizes, 0, BATCH, 4, 256)
        self._loader = Loader(self._index, LoaderConfig(threads=threads or cores + 1), SIZE)
        self._epoch = 0

    def __iter__(self) -> Iterator[Batch]:
        self._epoch += 1
        steps = range(self._plan.steps_per_epoch)
        requests = (Request(step, *self._plan.batch(self._epoch, step), self._epoch) for step in steps)
        return self._loader.batches(requests)


def ours(folder: Path, cores: int) -> Iterable[Any]:
    return OurEpochs(folder / "original", cores)


def ours_squash(folder: Path, cores: int) -> Iterable[Any]:
    return OurEpochs(folder / "squash", cores)


def ours_float(folder: Path, cores: int) -> Iterable[Any]:
    """Including what a GPU would do: flip and normalise to float32, here on the same CPU."""
    epochs, augment = OurEpochs(folder / "original", cores), Augment(AugmentConfig(), 0)

    class Floats:
        def __iter__(self) -> Iterator[Any]:
            return (augment.train(batch.images, batch.samples, batch.epoch) for batch in epochs)

    return Floats()


class Ceiling:
    """Decode and resize alone, one thread a core, nothing gathered: what no loader on this path can exceed."""

    def __init__(self, folder: Path, cores: int) -> None:
        index = read_split(str(folder / "original"), "train")
        with ImageReader(index) as reader:
            self._images = [reader.read(i) for i in range(len(index))]
        self._cores = cores

    def __iter__(self) -> Iterator[list[int]]:
        torch.set_num_threads(1)

        def part(first: int) -> list[int]:
            torch.set_num_threads(1)
            return [decode(data, SIZE).shape[0] for data in self._images[first :: self._cores]]

        with ThreadPoolExecutor(self._cores) as pool:
            yield from pool.map(part, range(self._cores))


OURS: dict[str, Callable[[Path, int], Iterable[Any]]] = {
    "ceiling": Ceiling,
    "ours": ours,
    "ours from squash:448 shards": ours_squash,
    "ours, float32 on the same CPU": ours_float,
}


# ── one contestant, in its own process ────────────────────────────────────────────────────────────────────────────


def contest(name: str, folder: Path, cores: int) -> dict[str, Any]:
    """Time the second of two passes; for ours, also memory over further passes and the launch loop's delay."""
    epochs = {**OURS, **PEERS}[name](folder, cores)
    count = len(list((folder / "photos").iterdir()))
    for _ in epochs:
        pass
    started, used = time.perf_counter(), cpu_seconds()
    for _ in epochs:
        pass
    result: dict[str, Any] = {
        "images_per_second": count / (time.perf_counter() - started),
        "cpu_ms_per_image": 1000 * (cpu_seconds() - used) / count,
    }
    if name == "ours":
        before = psutil.Process().memory_info().rss
        for _ in range(2):
            for _ in epochs:
                pass
        result["rss_growth_bytes"] = psutil.Process().memory_info().rss - before
        result["python_ms_per_image"] = min(python_ms_per_image() for _ in range(5))
        result |= launch_loop(folder)
    return result


def cpu_seconds() -> float:
    """Return the processor time of this process and its children, ended ones included."""
    own = psutil.Process()
    total = sum(own.cpu_times()[:4])
    for child in own.children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            total += sum(child.cpu_times()[:4])
    return total


def launch_loop(folder: Path, slices: int = 50, seconds: float = 0.1) -> dict[str, float]:
    """How much one decode thread slows a thread that only launches small operators, and how much of it is the GIL.

    The control keeps a core as busy with hashing, which never needs the interpreter: what it costs is the processor's
    share, what decoding costs beyond it is the lock's. Short slices of the three alternate; each is judged by its
    lower quartile, so that what else runs on the machine weighs little.
    """
    index = read_split(str(folder / "original"), "train")
    block = np.random.default_rng(0).bytes(1 << 22)
    row = torch.empty(1, 3, SIZE, SIZE, dtype=torch.uint8, memory_format=torch.channels_last)
    order = itertools.cycle(range(len(index)))
    with ImageReader(index) as reader:

        def load_image() -> None:
            squash_into(decode_rgb(reader.read(next(order))), row)

        def hash_block() -> None:
            hashlib.sha256(block).digest()

        loads = {"idle": lambda: time.sleep(0.01), "hashing": hash_block, "decoding": load_image}
        times: dict[str, list[float]] = {name: [] for name in loads}
        for _ in range(slices):
            for name, load in loads.items():
                times[name].append(_launches_beside(load, seconds))
    typical = {name: float(np.quantile(values, 0.25)) for name, values in times.items()}
    return {
        "launch_delay": typical["decoding"] / typical["idle"] - 1,
        "launch_delay_of_a_load_without_gil": typical["hashing"] / typical["idle"] - 1,
        "launch_delay_by_gil": typical["decoding"] / typical["hashing"] - 1,
    }


def python_ms_per_image(count: int = 2_000) -> float:
    """Return the processor time of loading an 8 × 8 photo to 8 × 8: all that can need the interpreter's lock.

    Divided by ``cpu_ms_per_image`` it bounds the share of time for which one decode thread holds the lock, on any
    machine, however busy.
    """
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "JPEG")
    image = torch.empty(1, 3, 8, 8, dtype=torch.uint8, memory_format=torch.channels_last)
    started = time.process_time()
    for _ in range(count):
        squash_into(decode_rgb(buffer.getvalue()), image)
    return 1000 * (time.process_time() - started) / count


def _launches_beside(load: Callable[[], None], seconds: float) -> float:
    """Return the mean seconds of a launch while another thread repeats ``load``."""
    stop = threading.Event()

    def work() -> None:
        torch.get_num_threads()
        torch.set_num_threads(1)
        while not stop.is_set():
            load()

    torch.set_num_threads(1)
    thread, x, launches = threading.Thread(target=work), torch.zeros(8), 0
    thread.start()
    started = time.perf_counter()
    while time.perf_counter() - started < seconds:
        for _ in range(200):
            x.add_(1)
        launches += 200
    elapsed = time.perf_counter() - started
    stop.set()
    thread.join()
    return elapsed / launches


if __name__ == "__main__":
    print(json.dumps(contest(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))))
