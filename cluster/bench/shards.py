"""Preparing shards, beside what one would otherwise write: a ShardWriter loop, a Pillow loop, tarfile.

Rates of one machine say little; the ratios to a peer in the same run are what to compare. ``cpu`` figures are CPU
seconds, which a busy machine does not distort.
"""

from __future__ import annotations

import io
import resource
import shutil
import tarfile
import tempfile
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
from PIL import Image

from sharding import sources
from sharding.build import make_plan, run_plan, run_task
from sharding.files import FolderImages
from sharding.images import ImageOptions, prepare
from sharding.inplace import LabelFields, TarTask, index_tar
from sharding.plan import Plan
from sharding.pool import process_pool
from sharding.records import SourceData, SplitRecords, record_table
from sharding.reencode import target_size
from sharding.schema import ClassInfo

Figures = dict[str, Any]


def measure(photos: str, count: int, annotations: int, processes: int, folder: str | None = None) -> Figures:
    """Run all comparisons: ``count`` photos (repeated), ``annotations`` rows of Open Images (0: leave it out)."""
    files = sorted(str(path) for path in Path(photos).rglob("*.jpg"))
    with tempfile.TemporaryDirectory(prefix="boostlu-bench-", dir=folder) as place:
        result: Figures = {"pass_through": pass_through(files, count, processes, Path(place))}
        result["reencode"] = reencode(files[:100])
        result["index"] = index(files, count, Path(place))
        if annotations:
            result["openimages"] = openimages(annotations, Path(place))
    return result


def timed(work: Callable[[], object]) -> Figures:
    """Wall and CPU seconds (this process and its finished children)."""

    def cpu() -> float:
        usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        return sum(usage.ru_utime + usage.ru_stime for usage in usages)

    began, spent = time.perf_counter(), cpu()
    work()
    return {"seconds": time.perf_counter() - began, "cpu_seconds": cpu() - spent}


def pass_through(files: list[str], count: int, processes: int, place: Path, rounds: int = 3) -> Figures:
    """Original bytes into shards of 1 000: a plain ShardWriter loop against a build, hashes and index included.

    The two alternate, and the best round of each counts: whatever writes gigabytes first also pays for the memory.
    """
    chosen = [files[i % len(files)] for i in range(count)]
    size = sum(Path(file).stat().st_size for file in chosen)
    loop, plan = partial(_shardwriter_loop, chosen, place / "peer"), _photo_plan(chosen, place / "ours")
    contestants: dict[str, Callable[[], object]] = {
        "shardwriter_loop": loop,
        f"ours_{processes}_processes": lambda: run_plan(plan, process_pool(processes)),
        "ours_shard_tasks_alone": lambda: deque(map(run_task, plan.tasks(plan.names())), 0),
    }
    best: Figures = {}
    for _ in range(rounds):
        for name, work in contestants.items():
            figures = timed(work)
            for written in ("peer", "ours"):
                shutil.rmtree(place / written, ignore_errors=True)
            best[name] = min(figures, best.get(name, figures), key=lambda one: one["seconds"])
    theirs, ours, tasks = best.values()
    del ours["cpu_seconds"]  # workers are no children of this process: their time is not in it
    for figures in best.values():
        figures["mb_per_second"] = size / 1e6 / figures["seconds"]
    return {
        "input_bytes": size,
        **best,
        "speed_ratio": theirs["seconds"] / ours["seconds"],
        "cpu_ratio_per_process": theirs["cpu_seconds"] / tasks["cpu_seconds"],
    }


def _shardwriter_loop(files: list[str], folder: Path) -> None:
    from webdataset.writer import ShardWriter

    folder.mkdir()
    with ShardWriter(str(folder / "%06d.tar"), maxcount=1000, verbose=0) as writer:
        for number, file in enumerate(files):
            labels = b'{"pos":[1],"neg":[2]}'
            writer.write({"__key__": f"{number:09}", "jpg": Path(file).read_bytes(), "json": labels})


def _photo_plan(files: list[str], folder: Path) -> Plan:
    count = len(files)
    table = record_table([f"{n:09}" for n in range(count)], files, [[1]] * count, [[2]] * count)
    classes = [ClassInfo(id=str(i), name=str(i)) for i in range(3)]
    data = SourceData("bench", classes, {"train": SplitRecords(table, "bench")}, FolderImages("/"))
    return make_plan(data, str(folder), "bench", {}, ImageOptions(), 1000)


def reencode(files: list[str]) -> Figures:
    """``fit:512`` at quality 90 in one process: a plain Pillow loop (bicubic) against ours, CPU seconds an image."""
    options = ImageOptions.parse("fit:512", quality=90)

    def plain(content: bytes) -> None:
        image = Image.open(io.BytesIO(content)).convert("RGB")
        image = image.resize(target_size(*image.size, options), Image.Resampling.BICUBIC)
        image.save(io.BytesIO(), "JPEG", quality=options.quality)

    def enlarged(content: bytes, size: tuple[int, int]) -> bytes:
        out = io.BytesIO()
        Image.open(io.BytesIO(content)).convert("RGB").resize(size).save(out, "JPEG", quality=92)
        return out.getvalue()

    originals = [Path(file).read_bytes() for file in files]
    sets = {"as_they_are": originals}
    for size in ((1024, 768), (1600, 1200)):
        sets["{}x{}".format(*size)] = [enlarged(content, size) for content in originals[:30]]
    result: Figures = {}
    for name, contents in sets.items():
        theirs = timed(partial(deque, map(plain, contents), 0))["cpu_seconds"]
        ours = timed(partial(deque, (prepare(content, options) for content in contents), 0))["cpu_seconds"]
        milliseconds = {"pillow_ms": theirs / len(contents) * 1e3, "ours_ms": ours / len(contents) * 1e3}
        result[name] = milliseconds | {"cpu_ratio": theirs / ours}
    return result


def index(files: list[str], count: int, place: Path) -> Figures:
    """A tar of others: ``tarfile`` iteration against indexing (headers, JSON labels, the part), one process each."""
    path = place / "other.tar"
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for number in range(count):
            content = Path(files[number % len(files)]).read_bytes()
            for extension, member in (("jpg", content), ("json", b'{"pos":[1],"neg":[2]}')):
                info = tarfile.TarInfo(f"{number:09}.{extension}")
                info.size = len(member)
                tar.addfile(info, io.BytesIO(member))

    def iterate() -> None:
        with tarfile.open(path) as tar:
            for _ in tar:
                pass

    names = ("a", "b", "c")
    task = TarTask("train", 0, str(place), str(path), str(place / "work"), names, LabelFields())
    iterate()  # fill the page cache
    theirs, ours = timed(iterate), timed(lambda: index_tar(task))
    size = path.stat().st_size
    path.unlink()
    return {
        "tar_bytes": size,
        "tarfile": theirs | {"gb_per_second": size / 1e9 / theirs["seconds"]},
        "ours": ours | {"gb_per_second": size / 1e9 / ours["seconds"]},
        "speed_ratio": theirs["seconds"] / ours["seconds"],
        "cpu_ratio": theirs["cpu_seconds"] / ours["cpu_seconds"],
    }


def openimages(rows: int, place: Path) -> Figures:
    """Made-up annotations in the official format: read, joined and planned, with the peak memory of that process."""
    folder = place / "openimages"
    write_annotations(folder, rows)
    with get_context("spawn").Pool(1) as pool:
        return pool.apply(_plan_openimages, (str(folder), str(place / "out")))


def write_annotations(folder: Path, rows: int, classes: int = 5000) -> None:
    """Write ``rows`` labels (a little less: repeated ones are left out) of rows / 5.8 images over skewed classes."""
    rng = np.random.default_rng(0)
    images = max(1, round(rows / 5.8))
    (folder / "train").mkdir(parents=True)
    names = pa.array([f"/m/0{i:05x}" for i in range(classes)])
    (folder / "classes-trainable.txt").write_text("\n".join(names.to_pylist()) + "\n")
    weights = 1 / np.arange(1, classes + 1) ** 0.8
    chosen = rng.choice(classes, rows, p=weights / weights.sum())
    both = np.unique(np.sort(rng.integers(0, images, rows)) * classes + chosen)
    ids = pa.array([f"{i * 5_000_011:016x}" for i in range(images)])
    columns = {
        "ImageID": ids.take(pa.array(both // classes)),
        "Source": pa.array(["verification"]).take(pa.array(np.zeros(len(both), np.int64))),
        "LabelName": names.take(pa.array(both % classes)),
        "Confidence": pa.array((rng.random(len(both)) < 0.465).astype(np.int8)),
    }
    options = pa_csv.WriteOptions(quoting_style="none")
    pa_csv.write_csv(pa.table(columns), folder / "train/annotations-human.csv", options)


def _plan_openimages(folder: str, output: str) -> Figures:
    held: dict[str, Any] = {}

    def work() -> None:
        held["data"] = sources.load("openimages-v3", {"source": folder})
        held["plan"] = make_plan(held["data"], output, "openimages-v3", {}, ImageOptions())

    figures = timed(work)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    table = held["data"].splits["train"].table
    labels = sum(len(pc.list_flatten(table[side])) for side in ("pos", "neg"))
    return {"images": held["plan"].samples, "labels": labels, **figures, "peak_bytes": peak}
