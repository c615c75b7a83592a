"""What a dataset on disk is: the models of ``dataset.json`` and the Arrow schemas of its tables.

::

    DATASET/
      dataset.json          written last; its presence means the dataset is complete
      SPLIT/000000.tar      plain WebDataset: KEY.jpg (or .png, .webp) + KEY.json {"pos": [...], "neg": [...]}
      SPLIT/index.parquet   one row a sample, in tar order (INDEX)
      labels/NAME.parquet   label overlays: other observations of the same samples (OVERLAY)
      rejected.parquet      inputs that could not become samples, with the reason (REJECTED)
      duplicates.parquet    identical images, or ids alike, in two splits (DUPLICATES)

Labels are three-valued and sparse: ``pos`` and ``neg`` list the class numbers that were verified present and
verified absent; every class in neither list is unobserved. A fully labelled image lists all its absent classes.
"""

from __future__ import annotations

import hashlib
from typing import Any, Literal

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from sharding import storage
from sharding.errors import UserError

_LABELS = [("pos", pa.list_(pa.int32())), ("neg", pa.list_(pa.int32()))]

#: One row a sample. ``offset``/``size``: the image member's bytes inside the tar. ``width``/``height``: pixels as
#: displayed (EXIF orientation applied), 0 where unknown (tars indexed without decoding).
INDEX = pa.schema(
    [
        ("sample_id", pa.string()),
        ("key", pa.string()),
        ("shard", pa.int32()),
        ("offset", pa.int64()),
        ("size", pa.int64()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        *_LABELS,
    ]
)

#: What ``SPLIT/index.parquet`` holds: INDEX, which readers need, and ``row``, the image's number in the official list
#: that the split was cut from, by which public observation protocols count.
INDEX_FILE = INDEX.append(pa.field("row", pa.int64()))

#: One row a sample that the overlay covers; ``split`` is where it lies.
OVERLAY = pa.schema([("split", pa.string()), ("sample_id", pa.string()), *_LABELS])

#: One row an input that could not become a sample. ``image`` is where it was looked for. Labels and ``row`` are kept:
#: a public observation protocol draws random numbers for every listed image, also for those that are gone.
REJECTED = pa.schema(
    [
        ("split", pa.string()),
        ("sample_id", pa.string()),
        ("image", pa.string()),
        ("reason", pa.string()),
        *_LABELS,
        ("row", pa.int64()),
    ]
)

#: One row a pair of samples with identical images in different splits, or ids that differ only in spelling.
DUPLICATES = pa.schema(
    [
        ("kind", pa.string()),
        ("split_a", pa.string()),
        ("sample_a", pa.string()),
        ("split_b", pa.string()),
        ("sample_b", pa.string()),
    ]
)


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class ClassInfo(Strict):
    """One class. Its number (position in the list) is what labels refer to; its id is what survives elsewhere."""

    id: str
    """Stable identity in the source, e.g. ``/m/0bt9lr`` (OpenImages) or ``18`` (COCO category id)."""
    name: str
    group: int | None = None
    """1..5 for OpenImages' G1..G5 (ascending number of training annotations), else None."""


class ShardInfo(Strict):
    name: str
    """Path of the tar relative to the dataset (``train/000000.tar``), or an absolute URL when indexed in place."""
    samples: int
    bytes: int
    sha256: str = Field(pattern=r"^([0-9a-f]{64})?$")
    """Hex digits; empty where a dataset indexed in place was not hashed. Names the local copy of a remote shard."""

    @field_validator("name")
    @classmethod
    def _stays_inside(cls, name: str) -> str:
        # "::" chains fsspec drivers, any of which may lead elsewhere.
        if not name or {".", ".."} & set(name.split("/")) or "::" in name or "\\" in name or "\0" in name:
            raise ValueError(f"{name!r} is no place inside the dataset")
        return name


class SplitInfo(Strict):
    samples: int
    rejected: int = 0
    dropped: dict[str, int] = Field(default_factory=dict)
    """Images that the split rules leave out, by reason; they are no samples and not rejected either."""
    source_list: str = ""
    """The official list that the split was cut from; splits cut from one list share it (``row`` counts in it)."""
    shards: list[ShardInfo]
    index_sha256: str
    """Of ``SPLIT/index.parquet``."""


class DatasetInfo(Strict):
    """The content of ``dataset.json``."""

    schema_version: Literal[1] = 1
    name: str
    classes: list[ClassInfo]
    splits: dict[str, SplitInfo]
    built: dict[str, Any] = Field(default_factory=dict)
    """How it was built: source, options, licence. No clock times and no machine names: builds are reproducible."""

    @field_validator("splits")
    @classmethod
    def _are_folders(cls, splits: dict[str, SplitInfo]) -> dict[str, SplitInfo]:
        for name in splits:
            if not name or name.startswith(".") or set("/\\\0") & set(name):
                raise ValueError(f"{name!r} is no name of a split")
        return splits

    @property
    def fingerprint(self) -> str:
        """Identity of classes and samples (order, places, labels): what a sample plan and a checkpoint rely on."""
        digest = hashlib.sha256()
        digest.update(repr([(c.id, c.name) for c in self.classes]).encode())
        for name in sorted(self.splits):
            split = self.splits[name]
            digest.update(repr((name, split.index_sha256, [(s.name, s.sha256) for s in split.shards])).encode())
        return digest.hexdigest()


def read_dataset_info(url: str) -> DatasetInfo:
    """Read ``dataset.json``; says what to do when the folder is no dataset or not complete."""
    path = storage.join(url, "dataset.json")
    try:
        content = storage.read_json(path)
    except (FileNotFoundError, NotADirectoryError) as error:
        found = storage.list_names(url)
        if found:
            raise UserError(
                f"{url} has no dataset.json, so it is not a finished dataset (found: {', '.join(found[:6])})",
                "if a build was interrupted, run the same `boostlu shards build` command again",
            ) from error
        raise UserError(
            f"no dataset at {url}", "check dataset.path, or build it with `boostlu shards build`"
        ) from error
    try:
        info = DatasetInfo.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise UserError(f"{path}: {key}: {first['msg']}", "rebuild the dataset with this version") from error
    if not storage.is_local(url):
        _refuse_local_shards(path, info)
    return info


def _refuse_local_shards(path: str, info: DatasetInfo) -> None:
    """A dataset that comes from elsewhere must not name files of the machine that reads it."""
    for split in info.splits.values():
        for shard in split.shards:
            if shard.name.startswith("/") or shard.name.partition("://")[0] in ("file", "local"):
                raise UserError(
                    f"{path} names the local file {shard.name}",
                    "index the shards again where every reader reaches them",
                )


def write_dataset_info(url: str, info: DatasetInfo) -> None:
    """Write ``dataset.json``: the commit of a build."""
    storage.write_json(storage.join(url, "dataset.json"), info.model_dump(mode="json"))
