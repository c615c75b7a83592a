"""What a node must find before training starts, and how what it misses is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.runs.preflight import Checks, checks_of, find_problems, raise_problems
from sharding.errors import UserError
from sharding.index import read_split


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text("{}")
    return tmp_path / "run"


@pytest.fixture
def checks(tiny_dataset: Path, run: Path) -> Checks:
    return checks_of(str(run), read_split(str(tiny_dataset), "train"))


def problems(checks: Checks, **changes: object) -> list[tuple[str, str]]:
    return find_problems({**checks.model_dump(), **changes})


def test_a_sound_node_leaves_nothing_behind(checks: Checks, run: Path) -> None:
    assert problems(checks) == []
    assert [path.name for path in run.iterdir()] == ["run.json"]


def test_no_dataset_there(checks: Checks) -> None:
    [(problem, remedy)] = problems(checks, dataset="/nowhere/dataset.json")
    assert "cannot read /nowhere/dataset.json: FileNotFoundError" in problem
    assert "object store" in remedy


def test_another_dataset_there(checks: Checks) -> None:
    [(problem, _)] = problems(checks, dataset_sha256="0" * 64)
    assert "sees another dataset at" in problem


@pytest.mark.parametrize("content", [None, b"", b"no tar" * 100])
def test_a_shard_that_is_none(checks: Checks, tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "000000.tar"
    if content is not None:
        path.write_bytes(content)
    [(problem, _)] = problems(checks, shard=str(path))
    assert str(path) in problem


def test_storage_that_is_not_shared(checks: Checks, tmp_path: Path) -> None:
    """The folder could be made here, but the driver's run is not in it."""
    [(problem, _)] = problems(checks, run=str(tmp_path / "elsewhere"))
    assert "does not see the run's folder" in problem
    assert not (tmp_path / "elsewhere").exists()


def test_storage_that_cannot_be_written(checks: Checks, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(url: str, content: bytes) -> None:
        raise PermissionError("Access Denied")

    monkeypatch.setattr("cluster.runs.preflight.storage.write_atomic", refuse)
    [(problem, _)] = problems(checks)
    assert f"cannot write to {run}: PermissionError: Access Denied" in problem


def test_other_code(checks: Checks) -> None:
    [(problem, remedy)] = problems(checks, version="0.0.9+00000000")
    assert "the driver 0.0.9+00000000" in problem
    assert "image" in remedy


def test_the_error_names_hosts_and_remedies() -> None:
    raise_problems({})
    found = {f"host{i}": [("cannot read s3://b/d", "grant access"), ("more", "other")] for i in range(5)}
    with pytest.raises(UserError) as error:
        raise_problems(found)
    assert "host0 cannot read s3://b/d; host1 cannot" in error.value.problem
    assert "and 2 more nodes" in error.value.problem
    assert error.value.remedy == "grant access"
