"""Shards on S3, read through the node's cache: once, within its room, in time, over any number of ranks."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
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
    shards_served,
    wait_until,
)
from trainer.data.cache import NoRoom, ShardCache
from trainer.data.loader import Loader, LoaderConfig, Request
from trainer.data.plan import SamplePlan, sequential_batches, sequential_schedule

pytestmark = pytest.mark.timeout(120)


def test_each_shard_crosses_the_network_once_for_two_epochs(s3: FlakyS3, index: SplitIndex, tmp_path: Path) -> None:
    seen = read_epochs(index, cache_config(tmp_path, index), epochs=2)
    assert sorted(seen) == sorted([*range(len(index))] * 2)
    assert shards_served(s3) == {f"{i:06d}.tar": index.dataset.splits["train"].shards[i].bytes for i in range(SHARDS)}
    assert not list(tmp_path.glob("*.part"))
    assert not list((tmp_path / "needs").iterdir())


def test_the_disk_bound_holds_and_shards_are_still_read_once(s3: FlakyS3, index: SplitIndex, tmp_path: Path) -> None:
    """Room for 5 of 8 shards: two lanes need at most 4 at a time, so plan-ordered eviction never repeats a shard
    except the one that the lane boundary cuts (it is at the end of one lane and the beginning of the other)."""
    config = cache_config(tmp_path, index, shards=5)
    highest, done = 0, threading.Event()

    def watch() -> None:
        nonlocal highest
        while not done.wait(0.001):
            highest = max(highest, on_disk(tmp_path))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        assert sorted(read_epochs(index, config)) == list(range(len(index)))
    finally:
        done.set()
        watcher.join()
    assert 0 < highest <= 5 * shard_bytes(index)
    assert sum(shards_served(s3).values()) <= (SHARDS + 1) * shard_bytes(index)


def test_reading_never_waits_once_the_look_ahead_runs(s3: FlakyS3, index: SplitIndex, tmp_path: Path) -> None:
    """With every GET slow, whenever a step is asked for, the shards of the next steps are already there."""
    s3.latency = 0.05
    plan = SamplePlan(index.shard_sizes, seed=0, global_batch=6, lanes=2, window=12)
    config = cache_config(tmp_path, index, shards=6)
    cache = make_cache(index, config)
    late: list[int] = []

    def settled(step: int) -> bool:
        soon = {use.shard for use in plan.shard_uses(1, slice(0, 6)) if use.first <= step + 3 and use.last >= step}
        return all(cache.path(shard).exists() for shard in soon)

    def after(step: int) -> None:
        # A training step takes a while: give the look-ahead as long as it wants, and note if reading overtook it.
        if step + 1 < plan.steps_per_epoch:
            wait_until(lambda: settled(step + 1), f"shards of step {step + 1}")

    original = ShardCache.fetch

    def fetch(self: ShardCache, shard: int, place: int = 0, wait: bool = True) -> Path | None:
        if wait:
            late.append(shard)  # only the reader waits
        return original(self, shard, place, wait)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ShardCache, "fetch", fetch)
        read_epochs(index, config, after_step=after)
    first = {use.shard for use in plan.shard_uses(1, slice(0, 6)) if use.first <= 2}
    assert set(late) <= first
    cache.close()


def test_less_room_than_the_plan_needs_reads_from_the_storage(s3: FlakyS3, index: SplitIndex, tmp_path: Path) -> None:
    """Room for one and a half shards, four needed at a time: right, if slow, and still within the bound."""
    assert sorted(read_epochs(index, cache_config(tmp_path, index, shards=1.5))) == list(range(len(index)))
    assert on_disk(tmp_path) <= 1.5 * shard_bytes(index)


def test_eviction_follows_the_plan(s3: FlakyS3, index: SplitIndex, tmp_path: Path) -> None:
    config = cache_config(tmp_path, index, shards=3)
    cache, neighbour = make_cache(index, config), make_cache(index, config)
    cache.declare(in_use=[0], upcoming=[1, 2])
    neighbour.declare(in_use=[], upcoming=[6, 2])
    for shard in (0, 1, 2):
        cache.fetch(shard)
    with pytest.raises(NoRoom):
        cache.fetch(5, place=3)  # all that is there is needed sooner
    cache.fetch(6, place=1)  # needed sooner than 2, which goes although the neighbour needs it, too
    assert [i for i in range(SHARDS) if cache.path(i).exists()] == [0, 1, 6]
    cache.declare(in_use=[1], upcoming=[])
    neighbour.declare(in_use=[6], upcoming=[])
    cache.fetch(5)  # 0 is needed by nobody
    assert [i for i in range(SHARDS) if cache.path(i).exists()] == [1, 5, 6]
    neighbour.close()
    cache.close()


def test_evaluation_reads_every_sample_once_over_ranks(s3: FlakyS3, index: SplitIndex, tmp_path: Path) -> None:
    seen: list[int] = []
    for rank in range(3):
        requests = [
            Request(step, samples, np.ones(len(samples), bool))
            for step, samples in enumerate(sequential_batches(len(index), 5, 3, rank))
        ]
        schedule = sequential_schedule(index.shard_sizes, 5, 3, rank)
        config = LoaderConfig(threads=2, cache=cache_config(tmp_path / str(rank), index, shards=2))
        for step, request in enumerate(requests):
            needed = set(index.shard[request.samples].tolist())
            assert needed == {use.shard for use in schedule(0) if use.first <= step <= use.last}
        with Loader(index, config, 16, schedule) as loader:
            seen += [i for batch in loader.batches(requests) for i in batch.samples.tolist()]
    assert seen == list(range(len(index)))
