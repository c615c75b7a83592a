"""What travels with a job: code and small files; never data, runs or environments, and never much."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from cluster.jobs import code_package
from cluster.jobs.code_package import package
from cluster.jobs.code_version import code_version, digest
from sharding.errors import UserError


def write(root: Path, *names: str, size: int = 10) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * size)


def test_only_code_travels(tmp_path):
    source = tmp_path / "source"
    write(source, "trainer/step.py", "configs/mine.yaml", "notes.txt")
    write(source, "data/coco/dataset.json", "data/coco/train/000000.tar", "data/half/train/000000.tar")
    write(source, "runs/one/run.json", "runs/one/checkpoints/1/model.safetensors")
    write(
        source, ".venv/lib/x.py", "env/pyvenv.cfg", "env/lib/y.py", ".git/config", ".env", "trainer/__pycache__/a.pyc"
    )
    (source / "link.py").symlink_to("/etc/hostname")
    count, size = package(str(source), tmp_path / "code.zip")
    with zipfile.ZipFile(tmp_path / "code.zip") as archive:
        assert sorted(archive.namelist()) == ["configs/mine.yaml", "notes.txt", "trainer/step.py"]
    assert (count, size) == (3, 30)


def test_the_same_files_make_the_same_package(tmp_path):
    for name in ("one", "two"):
        write(tmp_path / name, "b.py", "a/c.py")
        package(str(tmp_path / name), tmp_path / f"{name}.zip")
    assert (tmp_path / "one.zip").read_bytes() == (tmp_path / "two.zip").read_bytes()


def test_too_large_names_the_largest(tmp_path, monkeypatch):
    monkeypatch.setattr(code_package, "MAX_BYTES", 3_000_000)
    write(tmp_path / "w", "weights/a.bin", "weights/b.bin", size=2_000_000)
    write(tmp_path / "w", "video.mp4", size=1_000_000)
    write(tmp_path / "w", "train.py")
    with pytest.raises(
        UserError, match=r"5 MB to send, at most 3 MB .* largest: weights/ 4 MB, video\.mp4 1 MB"
    ) as error:
        package(str(tmp_path / "w"), tmp_path / "code.zip")
    assert not (tmp_path / "code.zip").exists()
    assert "storage" in error.value.remedy


@pytest.mark.parametrize("folder", ["absent", "empty"])
def test_nothing_to_send(tmp_path, folder):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"--working-dir .*(is no folder|holds nothing)"):
        package(str(tmp_path / folder), tmp_path / "code.zip")


def test_the_version_tells_code_apart(tmp_path):
    write(tmp_path, "trainer/a.py", "cluster/b.py", "sharding/c.py", "tests/d.py")
    before = digest(tmp_path)
    write(tmp_path, "tests/d.py", "trainer/__pycache__/a.pyc", "docs/e.md", size=11)
    assert digest(tmp_path) == before
    write(tmp_path, "trainer/a.py", size=11)
    assert digest(tmp_path) != before
    release, _, rest = code_version().partition("+")
    assert release.count(".") == 2
    assert rest == digest(Path(__file__).resolve().parents[2])
