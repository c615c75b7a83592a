"""What a dataset or a checkpoint names cannot lead outside of it, whoever wrote it."""

from __future__ import annotations

import copy
import io
import json
import tarfile
import uuid
import zipfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sharding import download, storage
from sharding.build import build_dataset
from sharding.errors import UserError
from sharding.index import read_split
from sharding.pool import inline
from sharding.schema import INDEX, read_dataset_info
from tests.unit.data.tiny_dataset import jpeg, write_dataset
from trainer.data.cache import CacheConfig
from trainer.data.mapped import open_split
from trainer.data.reader import ImageReader
from trainer.run.checkpoint import Manifest, read_manifest

SECRET = b"not for the dataset"


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    (tmp_path / "secret.tar").write_bytes(SECRET * 1000)
    root = tmp_path / "dataset"
    write_dataset(root, [[jpeg(0), jpeg(1)], [jpeg(2)]])
    return root


def tamper(root: Path, **changes: Any) -> None:
    """Change fields of the first shard in dataset.json."""
    content = json.loads((root / "dataset.json").read_text())
    content["splits"]["train"]["shards"][0].update(changes)
    (root / "dataset.json").write_text(json.dumps(content))


CLIMBING = [
    "../secret.tar",
    "train/../../secret.tar",
    "s3://bucket/train/../../secret.tar",
    "./train/000000.tar",
    "train\\..\\secret.tar",
    "simplecache::file:///etc/hostname",
    "train/0\0.tar",
    "",
]


@pytest.mark.parametrize("name", CLIMBING)
def test_a_shard_s_name_cannot_climb_out(dataset: Path, name: str) -> None:
    tamper(dataset, name=name)
    with pytest.raises(UserError, match="no place inside the dataset"):
        read_split(str(dataset), "train")


@pytest.mark.parametrize("digest", ["../../evil", "/tmp/evil", "0" * 63, "G" * 64])  # noqa: S108
def test_a_shard_s_hash_names_its_copy_and_nothing_else(dataset: Path, digest: str) -> None:
    """The local copy of a remote shard is called by its hash."""
    tamper(dataset, sha256=digest)
    with pytest.raises(UserError, match="sha256"):
        read_dataset_info(str(dataset))


@pytest.mark.parametrize("split", ["../outside", "a/b", ".", "..", ".hidden", "", "a\\b"])
def test_a_split_s_name_is_one_folder(dataset: Path, split: str) -> None:
    content = json.loads((dataset / "dataset.json").read_text())
    content["splits"][split] = copy.deepcopy(content["splits"]["train"])
    (dataset / "dataset.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="no name of a split"):
        read_dataset_info(str(dataset))


def upload(dataset: Path) -> str:
    url = f"memory://{uuid.uuid4().hex}"
    for path in dataset.rglob("*"):
        if path.is_file():
            storage.write_atomic(storage.join(url, str(path.relative_to(dataset))), path.read_bytes())
    return url


@pytest.mark.parametrize("scheme", ["", "file://", "local://"])
def test_a_remote_dataset_cannot_name_files_of_the_reader(dataset: Path, tmp_path: Path, scheme: str) -> None:
    tamper(dataset, name=f"{scheme}{tmp_path / 'secret.tar'}")
    with pytest.raises(UserError, match="names the local file"):
        read_split(upload(dataset), "train")


def test_reading_a_remote_dataset_writes_into_the_cache_only(dataset: Path, tmp_path: Path) -> None:
    before = set(tmp_path.rglob("*"))
    cache = tmp_path / "cache"
    index = read_split(upload(dataset), "train")
    with ImageReader(index, CacheConfig(folder=str(cache))) as reader:
        assert reader.read(2) == jpeg(2)
    new = set(tmp_path.rglob("*")) - before
    assert new
    assert all(path == cache or cache in path.parents for path in new)


@pytest.mark.parametrize(
    "change",
    [
        {"shard": -1},
        {"shard": 2},
        {"offset": -512},
        {"size": -1},
        {"size": 1 << 60},
        {"offset": 1 << 62},
        {"offset": 9_000, "size": 9_000},
    ],
    ids=str,
)
@pytest.mark.parametrize("mapped", [False, True])
def test_an_index_points_into_its_shards(dataset: Path, tmp_path: Path, change: dict[str, int], mapped: bool) -> None:
    path = dataset / "train" / "index.parquet"
    rows = pq.read_table(path).to_pylist()
    rows[1].update(change)
    pq.write_table(pa.Table.from_pylist(rows, schema=INDEX), path)
    cache = CacheConfig(folder=str(tmp_path / "cache"))
    with pytest.raises(UserError, match=r"row 1: .* are not in the dataset"):
        open_split(str(dataset), "train", cache, mapped_from=0 if mapped else 1000)


def tar_with(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def test_members_of_foreign_tars_are_names_and_not_places(tmp_path: Path) -> None:
    """Indexed in place and read: their names are keys of samples, and no file is made after them."""
    tars = tmp_path / "tars"
    tars.mkdir()
    names = ["../../climbs", "/absolute/evil", "plain"]
    members = {f"{name}.jpg": jpeg(number) for number, name in enumerate(names)}
    members |= {f"{name}.json": b'{"pos": [0], "neg": []}' for name in names}
    tar_with(tars / "000000.tar", dict(sorted(members.items())))
    (tmp_path / "classes.txt").write_text("thing\n")
    root = tmp_path / "dataset"
    options = {"source": str(tars), "classes": str(tmp_path / "classes.txt")}
    build_dataset("webdataset", str(root), options, engine=inline)
    index = read_split(str(root), read_dataset_info(str(root)).splits.popitem()[0])
    with ImageReader(index) as reader:
        found = {index.sample_id(i): reader.read(i) for i in range(len(index))}
    assert sorted(found.values()) == sorted(jpeg(number) for number in range(3))
    assert not [path for path in tmp_path.parent.rglob("*") if "climbs" in path.name or "evil" in path.name]


@pytest.mark.parametrize("name", ["../outside.txt", "/tmp/boostlu-outside.txt"])  # noqa: S108
def test_a_downloaded_archive_unpacks_into_its_folder(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "a" / "b"
    folder.mkdir(parents=True)
    tar = tar_with(tmp_path / "images.tar", {name: SECRET})
    try:
        download._unpack(tar, folder)
    except UserError as error:
        assert "cannot be unpacked" in str(error)  # noqa: PT017 — either refused or made harmless
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        archive.writestr(name, SECRET)
    download._unpack(tmp_path / "images.zip", folder)
    made = [path for path in tmp_path.rglob("*outside.txt") if path.is_file()]
    assert made
    assert all(folder in path.parents for path in made)
    assert not Path("/tmp/boostlu-outside.txt").exists()  # noqa: S108


def test_an_archive_s_link_cannot_lead_out(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "images.tar", "w") as tar:
        link = tarfile.TarInfo("link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc"
        tar.addfile(link)
    with pytest.raises(UserError, match="cannot be unpacked"):
        download._unpack(tmp_path / "images.tar", tmp_path / "folder")


@pytest.mark.parametrize("name", ["../../../secret", "a/b", "..", ""])
def test_a_manifest_names_files_of_its_own_folder(tmp_path: Path, name: str) -> None:
    manifest = Manifest(step=1, epoch=1, attempt=1, epoch_end=False, files={})
    folder = tmp_path / "checkpoints" / manifest.name
    folder.mkdir(parents=True)
    content = manifest.model_dump() | {"files": {name: {"bytes": 1, "sha256": "0" * 64}}}
    (folder / "manifest.json").write_text(json.dumps(content))
    assert read_manifest(str(tmp_path), manifest.name) is None
