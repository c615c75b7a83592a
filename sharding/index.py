"""A split's index in memory: where every image lies and which labels it has, as flat arrays.

Labels are kept in compressed sparse rows: 9 M samples cost tens of bytes each, never samples × classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sharding import storage
from sharding.errors import UserError, did_you_mean
from sharding.schema import INDEX, OVERLAY, DatasetInfo, SplitInfo, read_dataset_info


@dataclass(frozen=True)
class SparseRows:
    """Rows of class numbers. Row i is ``values[starts[i]:starts[i + 1]]``.

    starts: int64 (N + 1,) · values: int32 (total,)
    """

    starts: np.ndarray
    values: np.ndarray

    @classmethod
    def from_arrow(cls, column: pa.ChunkedArray | pa.Array) -> SparseRows:
        lengths = pc.fill_null(pc.list_value_length(column), 0)
        starts = np.zeros(len(column) + 1, np.int64)
        np.cumsum(lengths.to_numpy(), out=starts[1:])
        return cls(starts, pc.list_flatten(column).to_numpy().astype(np.int32, copy=False))

    def __len__(self) -> int:
        return len(self.starts) - 1

    def row(self, i: int) -> np.ndarray:
        return self.values[self.starts[i] : self.starts[i + 1]]

    def entries(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return (position within ``rows``, class number) of every entry of the chosen rows, int64 each."""
        begins, counts = self.starts[rows], self.starts[rows + 1] - self.starts[rows]
        position = np.repeat(np.arange(len(rows)), counts)
        within = np.arange(len(position)) - np.repeat(np.cumsum(counts) - counts, counts)
        return position, self.values[begins[position] + within].astype(np.int64)


@dataclass(frozen=True)
class Labels:
    """Verified labels of a split's samples; a class in neither is unobserved."""

    pos: SparseRows
    neg: SparseRows


@dataclass(frozen=True)
class SplitIndex:
    """One split of a dataset, ready for reading by (shard, offset, size).

    Arrays have one entry a sample, in tar order: ``sample_ids`` and ``keys`` Arrow strings, ``shard`` int32,
    ``offset`` and ``size`` int64 (bytes), ``labels`` the full labels of the tars.
    """

    name: str
    dataset: DatasetInfo
    root: str
    sample_ids: pa.ChunkedArray
    keys: pa.ChunkedArray
    shard: np.ndarray
    offset: np.ndarray
    size: np.ndarray
    labels: Labels

    def __len__(self) -> int:
        return len(self.shard)

    @property
    def shard_sizes(self) -> np.ndarray:
        """Samples in each shard, int64 (shards,)."""
        return np.bincount(self.shard, minlength=len(self.dataset.splits[self.name].shards)).astype(np.int64)

    def shard_url(self, shard: int) -> str:
        return storage.locate(self.root, self.dataset.splits[self.name].shards[shard].name)

    def sample_id(self, i: int) -> str:
        return str(self.sample_ids[int(i)].as_py())

    def key(self, i: int) -> str:
        return str(self.keys[int(i)].as_py())


def read_split(root: str, split: str) -> SplitIndex:
    """Read the index of ``split``; checks that it is the one that ``dataset.json`` commits to."""
    info = read_dataset_info(root)
    if split not in info.splits:
        raise UserError(f"{root} has no split {split!r}", did_you_mean(split, info.splits))
    path = storage.join(root, split, "index.parquet")
    with storage.open_file(path) as file:
        table = pq.read_table(file, schema=INDEX)
    if len(table) != info.splits[split].samples:
        raise UserError(
            f"{path} lists {len(table)} samples, dataset.json {info.splits[split].samples}",
            f"run `boostlu shards verify {root}`",
        )
    check_places(path, info.splits[split], *(table[name].to_numpy() for name in ("shard", "offset", "size")))
    return SplitIndex(
        name=split,
        dataset=info,
        root=root,
        sample_ids=table["sample_id"],
        keys=table["key"],
        shard=table["shard"].to_numpy(),
        offset=table["offset"].to_numpy(),
        size=table["size"].to_numpy(),
        labels=Labels(SparseRows.from_arrow(table["pos"]), SparseRows.from_arrow(table["neg"])),
    )


def check_places(path: str, split: SplitInfo, shard: np.ndarray, offset: np.ndarray, size: np.ndarray) -> None:
    """Raise UserError when an entry of the index lies outside the shards that ``dataset.json`` lists.

    shard: int32 (n,) · offset, size: int64 (n,), bytes. The end is known where the shard's length is.
    """
    if not len(shard):
        return
    wrong = (shard < 0) | (shard >= len(split.shards)) | (offset < 0) | (size < 0)
    lengths = np.array([s.bytes or np.iinfo(np.int64).max for s in split.shards] or [0], np.int64)
    wrong |= offset > lengths[np.where(wrong, 0, shard)] - size
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        raise UserError(
            f"{path}, row {row}: {size[row]} bytes at {offset[row]} of shard {shard[row]} are not in the dataset",
            "the index is damaged or of another dataset; build it again",
        )


def read_labels(index: SplitIndex, overlay: str) -> Labels:
    """Return the labels to train on: ``full`` = those of the tars, else overlay ``labels/<overlay>.parquet``.

    Every sample of the split must be covered by the overlay, with class numbers the dataset has.
    """
    if overlay == "full":
        return index.labels
    folder = storage.join(index.root, "labels")
    path = storage.join(folder, f"{overlay}.parquet")
    names = [name.removesuffix(".parquet") for name in storage.list_names(folder)]
    if overlay not in names:
        raise UserError(f"no label overlay at {path}", did_you_mean(overlay, [*names, "full"]))
    with storage.open_file(path) as file:
        table = pq.read_table(file, schema=OVERLAY)
    table = table.filter(pc.equal(table["split"], index.name))
    rows = pc.index_in(index.sample_ids, value_set=table["sample_id"])
    if rows.null_count:
        missing = index.sample_id(int(np.flatnonzero(rows.is_null().to_numpy())[0]))
        raise UserError(
            f"{path} lacks {rows.null_count} samples of split {index.name!r}, first {missing!r}",
            "make the overlay again with `boostlu shards observe`",
        )
    table = table.take(rows)
    labels = Labels(SparseRows.from_arrow(table["pos"]), SparseRows.from_arrow(table["neg"]))
    _check_classes(path, labels, len(index.dataset.classes))
    return labels


def _check_classes(path: str, labels: Labels, classes: int) -> None:
    for rows in (labels.pos, labels.neg):
        if len(rows.values) and not 0 <= int(rows.values.min()) <= int(rows.values.max()) < classes:
            raise UserError(f"{path} has class numbers outside 0..{classes - 1}", "the overlay is of another dataset")
    row = np.repeat(np.arange(len(labels.pos)), np.diff(labels.pos.starts))
    pos = row * classes + labels.pos.values
    row = np.repeat(np.arange(len(labels.neg)), np.diff(labels.neg.starts))
    both = np.intersect1d(pos, row * classes + labels.neg.values)
    if len(both):
        raise UserError(
            f"{path}: {len(both)} labels are both positive and negative, first: sample {both[0] // classes}, "
            f"class {both[0] % classes}",
            "make the overlay again with `boostlu shards observe`",
        )
