"""A dataset of small shards on an S3 server that can be told to fail."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from sharding.index import SplitIndex, read_split
from tests.faults.flaky_s3 import FlakyS3, flaky_s3, no_fault
from tests.faults.remote_shards.reading import (
    PER_SHARD,
    SHARDS,
)
from tests.unit.data.tiny_dataset import jpeg, write_dataset


@pytest.fixture(scope="package")
def local(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("local")
    write_dataset(root, [[jpeg(s * PER_SHARD + i) for i in range(PER_SHARD)] for s in range(SHARDS)])
    return root


@pytest.fixture(scope="package")
def server(local: Path) -> Iterator[FlakyS3]:
    with flaky_s3() as s3:
        s3.upload(local, "bucket")
        yield s3


@pytest.fixture
def s3(server: FlakyS3, monkeypatch: pytest.MonkeyPatch) -> FlakyS3:
    """The server, holding the dataset in s3://bucket; without faults and with counters at zero."""
    import s3fs

    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")  # the cache tries again by itself
    s3fs.S3FileSystem.clear_instance_cache()
    server.fault, server.latency = no_fault, 0.0
    return server


@pytest.fixture
def index(s3: FlakyS3) -> SplitIndex:
    index = read_split("s3://bucket", "train")
    s3.served.clear()
    s3.requests.clear()
    return index
