"""A large split's index as memory-mapped files, which all processes of a node share instead of each holding a copy.

Converting reads the Parquet file in pieces, once a node; opening what is converted costs milliseconds and no memory
but the page cache. The folder's name carries the index's hash, so a rebuilt dataset gets a new one.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sharding import storage
from sharding.errors import UserError
from sharding.index import Labels, SparseRows, SplitIndex, check_places, read_labels, read_split
from sharding.schema import INDEX, SplitInfo, read_dataset_info
from trainer.data.cache import CacheConfig

#: Splits with fewer samples are read whole: a copy a process is smaller than what torch itself takes.
MAPPED_FROM = 500_000

_PIECE = 1 << 18  # rows converted at a time
_NUMBERS = {"shard": np.int32, "offset": np.int64, "size": np.int64}
_STRINGS = ("sample_id", "key")
_ROWS = ("pos", "neg")


def open_split(
    root: str, split: str, config: CacheConfig | None = None, mapped_from: int = MAPPED_FROM
) -> SplitIndex:
    """Return what :func:`sharding.index.read_split` returns; from ``mapped_from`` samples on, memory-mapped."""
    info = read_dataset_info(root)
    if split not in info.splits or info.splits[split].samples < mapped_from:
        return read_split(root, split)
    # The hash of the index alone is not enough: a converted file must be exactly what this dataset.json commits to.
    identity = hashlib.sha256(f"{split} {info.splits[split].index_sha256} {info.splits[split].samples}".encode())
    folder = _folder(config) / f"index-{identity.hexdigest()[:32]}"
    _once(folder, lambda building: _convert(storage.join(root, split, "index.parquet"), info.splits[split], building))
    strings = {name: pa.ipc.open_file(pa.memory_map(str(folder / name))).read_all()[name] for name in _STRINGS}
    numbers = {name: _map(folder / name, dtype) for name, dtype in _NUMBERS.items()}
    if len(numbers["shard"]) != info.splits[split].samples:
        raise UserError(
            f"{root}/{split}/index.parquet lists {len(numbers['shard'])} samples, dataset.json "
            f"{info.splits[split].samples}",
            f"run `boostlu shards verify {root}`, then remove {folder}",
        )
    return SplitIndex(
        name=split,
        dataset=info,
        root=root,
        sample_ids=strings["sample_id"],
        keys=strings["key"],
        shard=numbers["shard"],
        offset=numbers["offset"],
        size=numbers["size"],
        labels=_map_labels(folder),
    )


def open_labels(index: SplitIndex, overlay: str, config: CacheConfig | None = None) -> Labels:
    """Return what :func:`sharding.index.read_labels` returns; memory-mapped where the index is."""
    if overlay == "full" or not isinstance(index.shard, np.memmap):
        return read_labels(index, overlay)
    url = storage.join(index.root, "labels", f"{overlay}.parquet")
    if not storage.exists(url):
        return read_labels(index, overlay)  # says what is wrong
    fs, path = storage.filesystem(url)
    identity = f"{index.dataset.fingerprint} {index.name} {hashlib.sha256(fs.cat_file(path)).hexdigest()}"
    folder = _folder(config) / f"labels-{hashlib.sha256(identity.encode()).hexdigest()[:32]}"

    def convert(building: Path) -> None:
        labels = read_labels(index, overlay)
        for name, rows in zip(_ROWS, (labels.pos, labels.neg), strict=True):
            rows.starts.tofile(building / f"{name}-starts")
            rows.values.tofile(building / f"{name}-values")

    _once(folder, convert)
    return _map_labels(folder)


def _folder(config: CacheConfig | None) -> Path:
    return (config or CacheConfig()).place


def _once(folder: Path, build: Callable[[Path], None]) -> None:
    """Let one process of the node build the folder, under another name until it is complete; the others wait."""
    if folder.exists():
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(folder.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if folder.exists():
            return
        building = Path(tempfile.mkdtemp(prefix=f"{folder.name}.", suffix=".tmp", dir=folder.parent))
        try:
            build(building)
            os.rename(building, folder)
        finally:
            shutil.rmtree(building, ignore_errors=True)


def _convert(url: str, split: SplitInfo, folder: Path) -> None:
    """Write the columns of an index as flat files: numbers and labels as raw arrays, strings as Arrow IPC."""
    columns = [*_NUMBERS, *_STRINGS, *_ROWS]
    schema = pa.schema([INDEX.field(name) for name in columns])
    ends = dict.fromkeys(_ROWS, 0)
    with ExitStack() as stack:
        raw = {
            name: stack.enter_context(open(folder / name, "wb"))
            for name in [*_NUMBERS, *(f"{name}-{part}" for name in _ROWS for part in ("starts", "values"))]
        }
        strings = {
            name: stack.enter_context(pa.ipc.new_file(str(folder / name), pa.schema([schema.field(name)])))
            for name in _STRINGS
        }
        for name in _ROWS:
            np.zeros(1, np.int64).tofile(raw[f"{name}-starts"])
        source = stack.enter_context(storage.open_file(url))
        for piece in pq.ParquetFile(source).iter_batches(_PIECE, columns=columns):
            table = pa.Table.from_batches([piece]).select(columns).cast(schema)
            check_places(url, split, *(table[name].to_numpy() for name in _NUMBERS))
            for name, dtype in _NUMBERS.items():
                table[name].to_numpy().astype(dtype, copy=False).tofile(raw[name])
            for name in _STRINGS:
                strings[name].write_table(table.select([name]))
            for name in _ROWS:
                rows = SparseRows.from_arrow(table[name])
                (rows.starts[1:] + ends[name]).tofile(raw[f"{name}-starts"])
                rows.values.tofile(raw[f"{name}-values"])
                ends[name] += len(rows.values)


def _map(path: Path, dtype: type) -> np.ndarray:
    if not path.stat().st_size:  # which cannot be mapped
        return np.empty(0, dtype)
    return np.memmap(path, dtype, mode="r")


def _map_labels(folder: Path) -> Labels:
    pos, neg = (
        SparseRows(_map(folder / f"{name}-starts", np.int64), _map(folder / f"{name}-values", np.int32))
        for name in _ROWS
    )
    return Labels(pos, neg)
