"""Write one shard: the work that a pool or a cluster does many times, exactly once as far as anyone can see."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import tempfile
import uuid
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from sharding import storage
from sharding.errors import UserError
from sharding.images import RejectedImage, StoredImage, prepare
from sharding.keys import tar_key
from sharding.plan import ShardTask
from sharding.records import MissingImage
from sharding.schema import INDEX_FILE, ShardInfo
from sharding.tar import TarStream

#: A part has the rows of its shard, accepted and rejected, in plan order. ``content``: 64 bits of a hash of the
#: stored image, to find candidates for identical images; ``reason``: why an image is not in the tar, else null.
PART = pa.schema([*INDEX_FILE, ("image", pa.string()), ("content", pa.int64()), ("reason", pa.string())])
_INFO = b"boostlu.shard"


@dataclass(frozen=True)
class ShardResult:
    """What the builder is told of a finished shard."""

    split: str
    number: int
    info: ShardInfo
    rejected: int
    reasons: tuple[str, ...]
    """The first few rejections, as ``image: reason``."""


def write_shard(task: ShardTask) -> ShardResult:
    """Write the tar under its final name, then the part that marks it finished."""
    digest = hashlib.sha256()
    with explain_write_errors(task.root), _published(task) as file:
        tar = TarStream(file, digest)
        records = task.table().to_pylist()
        rows = [
            _add(tar, task, record, content)
            for record, content in zip(records, _contents(task, records), strict=True)
        ]
        tar.finish()
    accepted = sum(row["reason"] is None for row in rows)
    info = ShardInfo(name=task.name, samples=accepted, bytes=tar.bytes, sha256=digest.hexdigest())
    with explain_write_errors(task.root):
        write_part(task.part, rows, info)
    return result_of(task.split, task.number, info, rows)


def result_of(split: str, number: int, info: ShardInfo, rows: list[dict[str, Any]]) -> ShardResult:
    """Summarise a finished shard for the builder."""
    bad = [f"{row['image']}: {row['reason']}" for row in rows if row["reason"] is not None]
    return ShardResult(split, number, info, len(bad), tuple(bad[:3]))


def _contents(task: ShardTask, records: list[dict[str, Any]]) -> Iterator[bytes | MissingImage]:
    """Read the images in order; those of slow places several at a time, at most twice that many waiting."""

    def read(record: dict[str, Any]) -> bytes | MissingImage:
        try:
            return task.images.read(record["image"])
        except MissingImage as error:
            return error

    threads = getattr(task.images, "concurrency", 1)
    if threads == 1:
        yield from map(read, records)
        return
    with ThreadPoolExecutor(threads) as pool:
        ahead: deque[Future[bytes | MissingImage]] = deque()
        try:
            for record in records:
                ahead.append(pool.submit(read, record))
                if len(ahead) > 2 * threads:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _add(tar: TarStream, task: ShardTask, record: dict[str, Any], content: bytes | MissingImage) -> dict[str, Any]:
    """Check and append one image; return its row of the part."""
    row = {name: record[name] for name in ("sample_id", "image", "pos", "neg", "row")}
    row |= {"key": tar_key(record["sample_id"]), "shard": task.number, "reason": None}
    try:
        if isinstance(content, MissingImage):
            raise content
        stored = prepare(content, task.image)
    except (RejectedImage, MissingImage) as error:
        return row | {"reason": str(error)}
    members = {stored.extension: stored.content, "json": _sidecar(record)}
    offsets = {extension: tar.add(f"{row['key']}.{extension}", members[extension]) for extension in sorted(members)}
    return row | {
        "offset": offsets[stored.extension],
        "size": len(stored.content),
        "width": stored.width,
        "height": stored.height,
        "content": content_mark(stored),
    }


def _sidecar(record: dict[str, Any]) -> bytes:
    fields = {"sample_id": record["sample_id"], "pos": record["pos"], "neg": record["neg"]}
    if record["extra"]:
        fields |= json.loads(record["extra"])
    return json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode()


def content_mark(stored: StoredImage) -> int:
    """64 bits of a hash of the size and both ends: equal images have equal marks, at a cost that ignores the size."""
    content = stored.content
    ends = content if len(content) <= 4096 else content[:2048] + content[-2048:]
    digest = hashlib.blake2b(ends, digest_size=8, key=len(content).to_bytes(8, "little")).digest()
    return int.from_bytes(digest, "little", signed=True)


def write_part(url: str, rows: list[dict[str, Any]], info: ShardInfo) -> None:
    table = pa.Table.from_pylist(rows, schema=PART.with_metadata({_INFO: info.model_dump_json().encode()}))
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    storage.write_atomic(url, sink.getvalue().to_pybytes())


def read_part(url: str) -> tuple[pa.Table, ShardInfo]:
    """Return the rows of a part and the shard they describe."""
    table = pq.read_table(pa.BufferReader(storage.read_bytes(url)))
    return table, ShardInfo.model_validate_json(table.schema.metadata[_INFO])


@contextmanager
def _published(task: ShardTask) -> Iterator[IO[bytes]]:
    """Give a file to write the tar to; it gets its final name only when the block ends without an error."""
    url = storage.join(task.root, task.name)
    if storage.is_local(url):
        target = storage.local_path(url)
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp")
    else:
        temporary = Path(tempfile.mkdtemp(prefix="boostlu-")) / target_name(task)
    try:
        with open(temporary, "wb", buffering=1 << 17) as file:
            yield file
        if storage.is_local(url):
            os.replace(temporary, target)
        else:
            storage.upload(temporary, url)
    finally:
        temporary.unlink(missing_ok=True)
        if not storage.is_local(url):
            temporary.parent.rmdir()


def target_name(task: ShardTask) -> str:
    return f"{task.split}-{task.number:06d}.tar"


@contextmanager
def explain_write_errors(root: str) -> Iterator[None]:
    """Turn storage's errors (full disk, no permission, an answer of 503) into a :class:`UserError`."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(
                f"no space left while writing {root}",
                "free some space and run the same command: finished shards are kept",
            ) from error
        if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM, errno.ENOTDIR) or isinstance(
            error, PermissionError
        ):
            raise UserError(
                f"cannot write to {root}: {error.strerror or error}", "choose a writable --output"
            ) from error
        raise UserError(
            f"the storage of {root} failed: {error}",
            "run the same command when it works again: finished shards are kept",
        ) from error
