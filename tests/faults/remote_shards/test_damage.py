"""Shards on S3 that come late, short, altered or not at all; and an end that does not wait for them."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from sharding.errors import UserError
from sharding.index import SplitIndex
from tests.faults.flaky_s3 import FlakyS3
from tests.faults.remote_shards.reading import (
    always,
    cache_config,
    make_cache,
    on_disk,
    read_epochs,
    wait_until,
)
from trainer.data.loader import Loader, LoaderConfig, Request
from trainer.data.plan import SamplePlan, rank_slots, training_schedule

pytestmark = pytest.mark.timeout(120)


@pytest.mark.parametrize("fault", ["errors", "truncated", "flipped"])
def test_transient_faults_are_retried(s3: FlakyS3, index: SplitIndex, tmp_path: Path, fault: str) -> None:
    """Of every shard the first request fails in one way and the second in it again; the third is sound."""

    def inject(key: str, number: int, body: bytes) -> tuple[int, bytes, int]:
        if not key.endswith(".tar") or number > 2:
            return 200, body, len(body)
        if fault == "errors":
            return 503, b"", 0
        if fault == "truncated":
            return 200, body[: len(body) // 2], len(body)
        return 200, bytes([body[0] ^ 1]) + body[1:], len(body)

    s3.fault = inject
    assert sorted(read_epochs(index, cache_config(tmp_path, index))) == list(range(len(index)))


def test_a_short_object_is_named(s3: FlakyS3, index: SplitIndex, tmp_path: Path) -> None:
    s3.fault = always(lambda body: (200, body[:-10], len(body) - 10))
    cache = make_cache(index, cache_config(tmp_path, index, retries=1))
    with pytest.raises(UserError, match=r"000003\.tar: \d+ bytes came instead of \d+ \(2 tries\)"):
        cache.fetch(3)
    assert on_disk(tmp_path) == 0
    cache.close()


def test_wrong_content_never_gets_a_name(s3: FlakyS3, index: SplitIndex, tmp_path: Path) -> None:
    s3.fault = always(lambda body: (200, b"x" * len(body), len(body)))
    cache = make_cache(index, cache_config(tmp_path, index, retries=1))
    with pytest.raises(UserError, match=r"000000\.tar.*sha256"):
        cache.fetch(0)
    assert not list(tmp_path.glob("*.tar"))
    assert not list(tmp_path.glob("*.part"))
    cache.close()


def test_a_missing_shard_ends_the_run_at_once_and_names_it(s3: FlakyS3, index: SplitIndex, tmp_path: Path) -> None:
    s3.fault = always(lambda _: (404, b"", 0), "000005.tar")
    with pytest.raises(UserError, match=r"000005\.tar"):
        read_epochs(index, cache_config(tmp_path, index))


def test_closing_interrupts_a_download_in_retries(s3: FlakyS3, index: SplitIndex, tmp_path: Path) -> None:
    s3.fault = always(lambda _: (503, b"", 0))
    loader = Loader(index, LoaderConfig(threads=2, cache=cache_config(tmp_path, index, retries=1000)), 16)
    batches = loader.batches([Request(0, np.arange(4), np.ones(4, bool))])
    failure: list[BaseException] = []

    def consume() -> None:
        try:
            next(batches)
        except BaseException as error:
            failure.append(error)

    consumer = threading.Thread(target=consume)
    consumer.start()
    wait_until(lambda: sum(s3.requests.values()) > 3, "retries")
    loader.close()
    consumer.join(30)
    assert not consumer.is_alive()
    assert isinstance(failure[0], RuntimeError)


def test_closing_does_not_wait_for_a_storage_that_hangs(s3: FlakyS3, index: SplitIndex, tmp_path: Path) -> None:
    s3.latency = 25
    plan = SamplePlan(index.shard_sizes, seed=0, global_batch=6, lanes=2, window=12)
    schedule = training_schedule(plan, rank_slots(6, 1, 0), 1)
    loader = Loader(index, LoaderConfig(threads=2, cache=cache_config(tmp_path, index)), 16, schedule)
    batches = loader.batches([Request(0, *plan.batch(1, 0), 1)])
    consumer = threading.Thread(target=lambda: suppressed(RuntimeError, lambda: next(batches)))
    consumer.start()
    wait_until(lambda: sum(s3.requests.values()) > 0, "a request")
    closer = threading.Thread(target=loader.close)
    closer.start()
    for thread in (closer, consumer):
        thread.join(30)
        assert not thread.is_alive()


def suppressed(kind: type[Exception], call: Callable[[], object]) -> None:
    with contextlib.suppress(kind):
        call()
