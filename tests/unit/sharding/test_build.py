"""The build: exact content, the same bytes however it runs, and nothing lost when it is killed."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from fault_images import KillingImages, MadeImages, jpeg, source

from sharding import storage
from sharding.build import WORK, make_plan, run_plan
from sharding.errors import UserError
from sharding.images import ImageOptions
from sharding.index import read_split
from sharding.lock import build_lock
from sharding.plan import BuildPlan
from sharding.pool import inline, process_pool
from sharding.schema import read_dataset_info


def plan(root: Path | str, images: object = None, **counts: int) -> BuildPlan:
    return make_plan(source(images or MadeImages(), **counts), str(root), "made", {}, ImageOptions(), 5)


def digests(root: Path) -> dict[str, str]:
    """Hash of every file of a dataset, hidden ones included."""
    files = sorted(p for p in root.rglob("*") if p.is_file())
    return {str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The undisturbed build in one process."""
    root = tmp_path_factory.mktemp("reference")
    run_plan(plan(root), inline)
    return digests(root)


def test_index_points_at_the_image_bytes(tmp_path: Path) -> None:
    run_plan(plan(tmp_path), inline)
    index = read_split(str(tmp_path), "train")
    assert len(index) == 23
    assert index.shard_sizes.tolist() == [5, 5, 5, 5, 3]
    for i in range(len(index)):
        content = storage.read_range(index.shard_url(int(index.shard[i])), int(index.offset[i]), int(index.size[i]))
        assert content == jpeg(i)
        assert index.labels.pos.row(i).tolist() == [i % 5]
        assert index.labels.neg.row(i).tolist() == [(i + 1) % 5]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # webdataset leaves files open
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_stock_webdataset_reads_the_shards(tmp_path: Path) -> None:
    import gc

    import webdataset

    run_plan(plan(tmp_path), inline)
    tars = sorted(str(path) for path in (tmp_path / "train").glob("*.tar"))
    samples = list(webdataset.WebDataset(tars, shardshuffle=False))
    gc.collect()  # so that its unclosed files are noticed here and not in another test
    assert [sample["__key__"] for sample in samples] == [f"img{n}" for n in range(23)]
    for n, sample in enumerate(samples):
        assert sample["jpg"] == jpeg(n)
        assert json.loads(sample["json"]) == {"sample_id": f"img{n}", "pos": [n % 5], "neg": [(n + 1) % 5]}


@pytest.mark.parametrize("processes", [2, 8])
def test_processes_do_not_change_a_byte(tmp_path: Path, reference: dict[str, str], processes: int) -> None:
    run_plan(plan(tmp_path), process_pool(processes))
    assert digests(tmp_path) == reference


def test_killed_worker_is_replaced(tmp_path: Path, reference: dict[str, str]) -> None:
    images = KillingImages("12", str(tmp_path / "died"))
    run_plan(plan(tmp_path / "out", images), process_pool(2))
    assert (tmp_path / "died").exists()
    assert digests(tmp_path / "out") == reference


@pytest.mark.slow
def test_a_task_that_always_kills_its_worker_is_named(tmp_path: Path) -> None:
    images = KillingImages("12", str(tmp_path / "died"), always=True)
    with pytest.raises(UserError, match=r"train/000002\.tar died 3 times"):
        run_plan(plan(tmp_path / "out", images), process_pool(1))


_KILLED_BUILD = """
import os, signal, sys
sys.path.insert(0, {here!r})
from fault_images import MadeImages, source
from sharding.build import make_plan, run_plan
from sharding.images import ImageOptions
from sharding.pool import inline, process_pool

def progress(state):
    if state.shards_done == {after}:
        os.kill(os.getpid(), signal.SIGKILL)

if __name__ == "__main__":
    plan = make_plan(source(MadeImages()), {root!r}, "made", {{}}, ImageOptions(), 5)
    run_plan(plan, {engine}, progress=progress)
"""


@pytest.mark.parametrize(("after", "engine"), [(1, "inline"), (4, "process_pool(2)"), (7, "inline")])
def test_killed_build_resumes_to_the_same_bytes(
    tmp_path: Path, reference: dict[str, str], after: int, engine: str
) -> None:
    script = tmp_path / "build.py"
    script.write_text(
        _KILLED_BUILD.format(here=str(Path(__file__).parent), root=str(tmp_path / "out"), after=after, engine=engine)
    )
    died = subprocess.run([sys.executable, str(script)], cwd=Path(__file__).parents[3], timeout=120, check=False)
    assert died.returncode == -9
    assert not (tmp_path / "out" / "dataset.json").exists()
    redone = []
    run_plan(plan(tmp_path / "out"), inline, progress=redone.append)
    assert redone[-1].resumed >= after
    assert digests(tmp_path / "out") == reference


def test_a_cut_or_lost_tar_of_an_interrupted_build_is_written_again(
    tmp_path: Path, reference: dict[str, str]
) -> None:
    def stop(state: object) -> None:
        if state.shards_done == 3:  # type: ignore[attr-defined]
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_plan(plan(tmp_path), inline, progress=stop)
    (tmp_path / "train" / "000000.tar").unlink()
    with open(tmp_path / "train" / "000001.tar", "r+b") as file:
        file.truncate(1000)
    (tmp_path / "train" / ".000002.tar.abc.tmp").write_bytes(b"left by a killed writer")
    states = []
    run_plan(plan(tmp_path), inline, progress=states.append)
    assert states[0].resumed == 1
    assert digests(tmp_path) == reference


def test_complete_dataset_is_left_alone_and_another_plan_refused(tmp_path: Path) -> None:
    run_plan(plan(tmp_path), inline)
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
    run_plan(plan(tmp_path), inline)
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")} == before
    with pytest.raises(UserError, match="already holds the dataset 'made'"):
        run_plan(plan(tmp_path, train=9), inline)


def test_unfinished_build_of_another_plan_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        run_plan(plan(tmp_path), inline, progress=lambda _: 1 // 0)
    other = make_plan(source(MadeImages()), str(tmp_path), "made", {}, ImageOptions(), 6)
    with pytest.raises(UserError, match="unfinished build with other samples_per_shard"):
        run_plan(other, inline)


@pytest.mark.parametrize("scheme", ["", "memory://"])
def test_second_builder_is_refused(tmp_path: Path, scheme: str) -> None:
    root = f"{scheme}{tmp_path}"
    with build_lock(f"{root}/{WORK}"), pytest.raises(UserError, match="is being built by process"):
        run_plan(plan(root), inline)
    run_plan(plan(root), inline)  # free again
    storage.remove(root)


def test_lease_of_a_dead_process_is_taken_over(tmp_path: Path) -> None:
    import socket
    import time

    folder = f"memory://lease{tmp_path}"
    holder = {"host": socket.gethostname(), "pid": 2**22 + 1, "renewed": time.time()}
    storage.write_json(f"{folder}/lock.json", holder)
    with build_lock(folder):
        assert storage.read_json(f"{folder}/lock.json")["pid"] != holder["pid"]
    assert not storage.exists(f"{folder}/lock.json")
    storage.write_json(f"{folder}/lock.json", holder | {"host": "elsewhere"})
    with pytest.raises(UserError, match="on elsewhere"), build_lock(folder):
        pass
    storage.write_json(f"{folder}/lock.json", holder | {"host": "elsewhere", "renewed": time.time() - 500})
    with build_lock(folder):
        pass


def test_missing_images_are_recorded_and_limited(tmp_path: Path) -> None:
    images = MadeImages(missing=("3", "25"))
    with pytest.raises(UserError, match=r"cannot be used \(e\.g\. 3: file not found"):
        run_plan(plan(tmp_path, images), inline, max_rejected=0.01)
    info = run_plan(plan(tmp_path, images), inline, max_rejected=0.5)
    assert (info.splits["train"].samples, info.splits["train"].rejected) == (22, 1)
    rejected = pq.read_table(tmp_path / "rejected.parquet").to_pylist()
    assert [(r["split"], r["sample_id"], r["image"], r["reason"], r["row"]) for r in rejected] == [
        ("train", "img3", "3", "file not found", 3),
        ("test", "img25", "25", "file not found", 2),
    ]


def test_a_shard_without_any_good_image_is_no_shard(tmp_path: Path) -> None:
    images = MadeImages(missing=("5", "6", "7", "8", "9"))
    info = run_plan(plan(tmp_path, images), inline, max_rejected=0.5)
    names = [shard.name for shard in info.splits["train"].shards]
    assert names == [f"train/00000{n}.tar" for n in (0, 2, 3, 4)]
    assert not (tmp_path / "train" / "000001.tar").exists()
    index = read_split(str(tmp_path), "train")
    content = storage.read_range(index.shard_url(1), int(index.offset[5]), int(index.size[5]))
    assert content == jpeg(10)


def test_identical_images_and_like_names_across_splits_are_reported(tmp_path: Path) -> None:
    data = source(MadeImages())
    table = data.splits["test"].table
    ids = table["sample_id"].to_pylist()
    ids[0] = "photos/IMG-4.jpg"  # like img4 of train
    pictures = ["2", *table["image"].to_pylist()[1:]]  # the picture of img2
    for name, values in (("sample_id", ids), ("image", pictures)):
        table = table.set_column(table.schema.get_field_index(name), name, [values])
    object.__setattr__(data.splits["test"], "table", table)
    info = run_plan(make_plan(data, str(tmp_path), "made", {}, ImageOptions(), 5), inline)
    assert info.built["duplicates"] == {"image": 1, "id": 1}
    found = {
        (r["kind"], r["sample_a"], r["sample_b"]) for r in pq.read_table(tmp_path / "duplicates.parquet").to_pylist()
    }
    assert found == {("image", "img2", "photos/IMG-4.jpg"), ("id", "img4", "photos/IMG-4.jpg")}


def test_an_id_in_two_splits_is_refused(tmp_path: Path) -> None:
    data = source(MadeImages())
    object.__setattr__(data, "splits", {**data.splits, "val": data.splits["train"]})
    with pytest.raises(UserError, match=r"23 sample ids .*'img0' in train and val"):
        make_plan(data, str(tmp_path), "made", {}, ImageOptions())


def test_full_disk_keeps_finished_shards(
    tmp_path: Path, reference: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from sharding import tar

    original, written = tar.TarStream.add, []

    def add(self: tar.TarStream, name: str, content: bytes) -> int:
        written.append(name)
        if len(written) > 25:
            raise OSError(errno.ENOSPC, "No space left on device")
        return original(self, name, content)

    monkeypatch.setattr(tar.TarStream, "add", add)
    with pytest.raises(UserError, match="no space left"):
        run_plan(plan(tmp_path), inline)
    monkeypatch.undo()
    assert not list(tmp_path.rglob("*.tmp"))
    states = []
    run_plan(plan(tmp_path), inline, progress=states.append)
    assert states[-1].resumed == 2
    assert digests(tmp_path) == reference


def test_memory_is_a_place_like_any_other(tmp_path: Path, reference: dict[str, str]) -> None:
    root = f"memory://build{tmp_path}"
    info = run_plan(plan(root), inline)
    assert info.fingerprint == read_dataset_info(root).fingerprint
    for name, digest in reference.items():
        assert hashlib.sha256(storage.read_bytes(f"{root}/{name}")).hexdigest() == digest


def test_plan_is_a_function_of_records_and_options(tmp_path: Path) -> None:
    assert plan(tmp_path / "a").fingerprint == plan(tmp_path / "b").fingerprint
    assert plan(tmp_path, train=22).fingerprint != plan(tmp_path).fingerprint
    rows = np.concatenate(
        [task.table()["row"].to_numpy() for task in plan(tmp_path).tasks(plan(tmp_path).names()[:5])]
    )
    assert rows.tolist() == list(range(23))


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
def test_small_disk_and_read_only_disk_lose_nothing(tmp_path: Path, reference: dict[str, str]) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()

    def mount(*options: str) -> None:
        subprocess.run(["mount", "-t", "tmpfs", "-o", ",".join(options), "tmpfs", str(disk)], check=True)

    mount("size=96k")
    try:
        with pytest.raises(UserError, match="no space left"):
            run_plan(plan(disk / "out"), inline)
        assert not list(disk.rglob("*.tmp"))
        mount("remount", "size=4m", "ro")
        with pytest.raises(UserError, match="cannot write to"):
            run_plan(plan(disk / "out"), inline)
        mount("remount", "rw")
        states = []
        run_plan(plan(disk / "out"), inline, progress=states.append)
        assert states[-1].resumed >= 1
        assert digests(disk / "out") == reference
    finally:
        subprocess.run(["umount", str(disk)], check=True)
