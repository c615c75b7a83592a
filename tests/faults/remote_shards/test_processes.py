"""The node's cache shared by processes, one of which may be killed."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from sharding.index import SplitIndex
from tests.faults.flaky_s3 import FlakyS3
from tests.faults.remote_shards.reading import (
    SHARDS,
    cache_config,
    make_cache,
    on_disk,
    read_epochs,
    shard_bytes,
    wait_until,
)

pytestmark = pytest.mark.timeout(120)


READ_ALL = """
import sys, json
from sharding.index import read_split
from trainer.data.cache import CacheConfig
from trainer.data.loader import Loader, LoaderConfig, Request
from trainer.data.plan import SamplePlan, rank_slots, training_schedule
root, folder, gib, world, rank = sys.argv[1], sys.argv[2], float(sys.argv[3]), int(sys.argv[4]), int(sys.argv[5])
index = read_split(root, "train")
plan = SamplePlan(index.shard_sizes, 0, 6, 2, 12)
slots = rank_slots(6, world, rank)
requests = (Request(s, *(part[slots] for part in plan.batch(1, s)), 1) for s in range(plan.steps_per_epoch))
config = LoaderConfig(threads=2, cache=CacheConfig(folder=folder, gib=gib))
print("ready", flush=True)
sys.stdin.readline()
with Loader(index, config, 16, training_schedule(plan, slots, 1)) as loader:
    read = [int(i) for b in loader.batches(requests) for i in b.samples[b.real]]
    print(json.dumps({"read": read, "downloaded": loader._reader._cache.downloaded}), flush=True)
"""


def start_reader(index: SplitIndex, folder: Path, world: int, rank: int) -> subprocess.Popen[str]:
    gib = 100 * shard_bytes(index) / 2**30
    return subprocess.Popen(
        [sys.executable, "-c", READ_ALL, index.root, str(folder), str(gib), str(world), str(rank)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip


def let_go(*readers: subprocess.Popen[str], first: Callable[[], None] = lambda: None) -> None:
    for reader in readers:
        assert reader.stdout.readline() == "ready\n"
    first()
    for reader in readers:
        reader.stdin.write("go\n")
        reader.stdin.flush()


def test_two_processes_download_each_shard_once_together(s3: FlakyS3, index: SplitIndex, tmp_path: Path) -> None:
    readers = [start_reader(index, tmp_path, 2, rank) for rank in range(2)]
    let_go(*readers)
    outputs = [json.loads(reader.communicate(timeout=100)[0]) for reader in readers]
    assert sorted(outputs[0]["read"] + outputs[1]["read"]) == list(range(len(index)))
    # Not counted at the server: there a request that the S3 client repeats by itself would count twice.
    assert sorted(outputs[0]["downloaded"] + outputs[1]["downloaded"]) == list(range(SHARDS))


def test_a_process_killed_in_a_download_leaves_nothing_behind(s3: FlakyS3, index: SplitIndex, tmp_path: Path) -> None:
    reader = start_reader(index, tmp_path, 1, 0)
    let_go(reader, first=lambda: setattr(s3, "latency", 30))
    wait_until(lambda: bool(list(tmp_path.glob("*.part"))), "a download")
    reader.send_signal(signal.SIGKILL)
    reader.wait(30)
    reader.stdin.close()
    reader.stdout.close()
    s3.latency = 0
    assert list(tmp_path.glob("*.part"))
    config = cache_config(tmp_path, index, shards=2)
    cache = make_cache(index, config)
    cache.fetch(0)
    cache.fetch(1)  # the room that the dead process had reserved is needed
    assert on_disk(tmp_path) <= 2 * shard_bytes(index)
    assert sorted(read_epochs(index, cache_config(tmp_path, index))) == list(range(len(index)))
    assert not list(tmp_path.glob("*.part"))
    cache.close()
