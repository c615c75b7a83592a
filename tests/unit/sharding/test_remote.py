"""Datasets and images on S3: a real S3 server on loopback, with faults put into its answers."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from fault_images import MadeImages, jpeg, source

from sharding import storage
from sharding.build import make_plan, run_plan
from sharding.errors import UserError
from sharding.files import RemoteImages, open_images, redacted
from sharding.images import ImageOptions
from sharding.plan import Plan
from sharding.pool import inline, process_pool
from sharding.records import MissingImage
from sharding.verify import verify
from tests.faults.flaky_s3 import FlakyS3, flaky_s3, no_fault

pytestmark = pytest.mark.timeout(120)
SECRET = "wJalrXUtnFEMI-K7MDENG"


@pytest.fixture(scope="module")
def server() -> Iterator[FlakyS3]:
    with flaky_s3() as s3:
        s3._direct("PUT", "/photos")
        s3._direct("PUT", "/datasets")
        for n in range(30):
            s3._direct("PUT", f"/photos/{n}", jpeg(n))
        yield s3


@pytest.fixture
def s3(server: FlakyS3, monkeypatch: pytest.MonkeyPatch) -> FlakyS3:
    import s3fs

    from sharding import files

    variables = {
        "AWS_ENDPOINT_URL": server.endpoint,
        "AWS_ACCESS_KEY_ID": "AKIATEST",
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    files._filesystem.cache_clear()
    server.fault, server.write_fault = no_fault, None
    server.writes.clear()
    return server


def plan(root: str, images: object = None) -> Plan:
    return make_plan(source(images or MadeImages()), root, "made", {}, ImageOptions(), 5)


def same_as_local(url: str, tmp_path: Path) -> None:
    """Compare every file below ``url`` with an undisturbed local build."""
    run_plan(plan(str(tmp_path / "reference")), inline)
    fs, path = storage.filesystem(url)
    fs.invalidate_cache()
    held = {name.removeprefix(path).lstrip("/"): fs.cat_file(name) for name in fs.find(path)}
    files = [p for p in (tmp_path / "reference").rglob("*") if p.is_file()]
    expected = {str(p.relative_to(tmp_path / "reference")): p.read_bytes() for p in files}
    assert {n: hashlib.sha256(c).hexdigest() for n, c in held.items()} == {
        n: hashlib.sha256(c).hexdigest() for n, c in expected.items()
    }


def test_build_on_s3_by_processes_equals_a_local_one(s3: FlakyS3, tmp_path: Path) -> None:
    run_plan(plan("s3://datasets/plain"), process_pool(2))
    same_as_local("s3://datasets/plain", tmp_path)
    assert not verify("s3://datasets/plain", decode=-1).problems


_KILLED = """
import os, signal, sys
sys.path.insert(0, {here!r})
from fault_images import MadeImages, source
from sharding.build import make_plan, run_plan
from sharding.images import ImageOptions
from sharding.pool import inline

def progress(state):
    if state.shards_done == 3:
        os.kill(os.getpid(), signal.SIGKILL)

run_plan(make_plan(source(MadeImages()), {url!r}, "made", {{}}, ImageOptions(), 5), inline, progress=progress)
"""


def test_killed_build_on_s3_is_taken_over_and_finished(s3: FlakyS3, tmp_path: Path) -> None:
    url = "s3://datasets/killed"
    script = _KILLED.format(here=str(Path(__file__).parent), url=url)
    died = subprocess.run([sys.executable, "-c", script], cwd=Path(__file__).parents[3], timeout=100, check=False)
    assert died.returncode == -9
    assert storage.exists(f"{url}/_build/lock.json")  # the lease of the dead process
    states = []
    run_plan(plan(url), inline, progress=states.append)
    assert states[-1].resumed == 3
    same_as_local(url, tmp_path)


@pytest.mark.parametrize("status", [500, 503])
def test_build_comes_through_refused_writes(
    s3: FlakyS3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")  # s3fs retries by itself, sooner
    s3.write_fault = lambda key, number: status if number % 2 and key.endswith(("1.tar", "dataset.json")) else 200
    run_plan(plan(f"s3://datasets/refused{status}"), inline)
    same_as_local(f"s3://datasets/refused{status}", tmp_path)
    assert s3.writes[f"/datasets/refused{status}/train/000001.tar"] >= 2


def test_build_that_cannot_write_any_more_stops_and_goes_on_later(
    s3: FlakyS3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    url = "s3://datasets/broken"
    s3.write_fault = lambda key, _: 503 if "000003" in key else 200
    with pytest.raises(UserError, match=r"s3://datasets/broken.*(SlowDown|reduce your request rate)"):
        run_plan(plan(url), inline)
    s3.write_fault = None
    states = []
    run_plan(plan(url), inline, progress=states.append)
    assert states[-1].resumed == 3
    same_as_local(url, tmp_path)


def test_images_come_through_500s_and_slow_downs(s3: FlakyS3, tmp_path: Path) -> None:
    def fault(key: str, number: int, body: bytes) -> tuple[int, bytes, int]:
        error = b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
        return (503, error, len(error)) if number % 2 else (200, body, len(body))

    s3.fault = fault
    run_plan(plan(str(tmp_path / "out"), RemoteImages("s3://photos", pause=0.01, concurrency=4)), inline)
    same_as_local(str(tmp_path / "out"), tmp_path)


def test_an_object_that_stays_unreachable_is_recorded(
    s3: FlakyS3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempts = []

    class Broken:
        def cat_file(self, path: str) -> bytes:
            attempts.append(path)
            if path.endswith("/4"):
                raise OSError("connection reset")
            if path.endswith("/9"):
                raise FileNotFoundError(path)
            return jpeg(int(path.rsplit("/", 1)[-1]))

    monkeypatch.setattr("sharding.files._filesystem", lambda *_: Broken())
    images = RemoteImages("s3://photos", pause=0.001, attempts=3)
    info = run_plan(plan(str(tmp_path), images), inline, max_rejected=0.2)
    assert info.splits["train"].rejected == 2
    reasons = {r["sample_id"]: r["reason"] for r in pq.read_table(tmp_path / "rejected.parquet").to_pylist()}
    assert reasons == {"img4": "gave up after 3 attempts: OSError", "img9": "not found"}
    assert attempts.count("s3://photos/4") == 3
    assert attempts.count("s3://photos/9") == 1


def test_absent_objects_are_recorded(s3: FlakyS3) -> None:
    with pytest.raises(MissingImage, match="not found"):
        RemoteImages("s3://photos").read("none")


def test_wrong_credentials_are_one_clear_message_without_a_secret(s3: FlakyS3, tmp_path: Path) -> None:
    body = b"<Error><Code>InvalidAccessKeyId</Code><Message>The key AKIATEST does not exist</Message></Error>"
    s3.fault = lambda *_: (403, body, len(body))
    with pytest.raises(UserError, match="refused the credentials") as caught:
        run_plan(plan(str(tmp_path), RemoteImages("s3://photos", pause=0.01)), inline)
    assert SECRET not in str(caught.value)
    assert "AKIATEST" not in str(caught.value)


def test_secrets_in_addresses_are_not_repeated() -> None:
    assert redacted("https://user:pass@host/a/b.jpg?X-Amz-Signature=abc") == "https://host/a/b.jpg"


def test_urls_choose_their_reader(tmp_path: Path) -> None:
    assert isinstance(open_images("s3://bucket/x"), RemoteImages)
    assert type(open_images(str(tmp_path))).__name__ == "FolderImages"
    with pytest.raises(UserError, match="out of order"):
        open_images("photos.tar.gz")
    with pytest.raises(UserError, match="no archive"):
        open_images(str(tmp_path / "photos.zip"))
