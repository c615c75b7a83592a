"""Reading a small remote dataset through the node's cache, and looking at what that left."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from sharding.index import SplitIndex
from tests.faults.flaky_s3 import Fault, FlakyS3, no_fault
from trainer.data.cache import CacheConfig, RemoteShard, ShardCache
from trainer.data.loader import Loader, LoaderConfig, Request
from trainer.data.plan import SamplePlan, rank_slots, training_schedule

SHARDS, PER_SHARD = 8, 12


def shard_bytes(index: SplitIndex) -> int:
    return max(shard.bytes for shard in index.dataset.splits["train"].shards)


def cache_config(folder: Path, index: SplitIndex, shards: float = 100, **options: object) -> CacheConfig:
    """Room for ``shards`` shards."""
    gib = shards * shard_bytes(index) / 2**30
    return CacheConfig.model_validate({"folder": str(folder), "gib": gib, **options})


def make_cache(index: SplitIndex, config: CacheConfig) -> ShardCache:
    shards = index.dataset.splits["train"].shards
    return ShardCache(config, [RemoteShard(index.shard_url(i), s.bytes, s.sha256) for i, s in enumerate(shards)])


def on_disk(folder: Path) -> int:
    total = 0
    for path in folder.glob("*.*"):
        if path.suffix in {".tar", ".part"}:
            try:
                total += path.stat().st_size
            except FileNotFoundError:
                continue
    return total


def shards_served(s3: FlakyS3) -> dict[str, int]:
    return {key.rsplit("/", 1)[1]: count for key, count in s3.served.items() if key.endswith(".tar")}


def always(answer: Callable[[bytes], tuple[int, bytes, int]], suffix: str = "") -> Fault:
    def fault(key: str, number: int, body: bytes) -> tuple[int, bytes, int]:
        return answer(body) if key.endswith(suffix) else no_fault(key, number, body)

    return fault


def wait_until(condition: Callable[[], bool], what: str, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.01)


def read_epochs(
    index: SplitIndex, config: CacheConfig, epochs: int = 1, after_step: Callable[[int], None] = lambda _: None
) -> list[int]:
    """Read planned epochs as one rank, check every image, and return the samples in order."""
    plan = SamplePlan(index.shard_sizes, seed=0, global_batch=6, lanes=2, window=12)
    requests = (
        Request(step, *plan.batch(epoch, step), epoch)
        for epoch in range(1, epochs + 1)
        for step in range(plan.steps_per_epoch)
    )
    schedule = training_schedule(plan, rank_slots(6, 1, 0), epochs)
    seen: list[int] = []
    with Loader(index, LoaderConfig(threads=2, ahead=2, cache=config), 16, schedule) as loader:
        for batch in loader.batches(requests):
            for image, number in zip(batch.images, batch.samples.tolist(), strict=True):
                colour = np.array([37 * number % 256, 91 * number % 256, number * number % 256])
                assert np.abs(image.float().mean((1, 2)).numpy() - colour).max() < 4
            seen += batch.samples[batch.real].tolist()
            after_step(batch.step)
    return seen
