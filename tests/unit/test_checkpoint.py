"""Checkpoints: complete or not there, damage is noticed, nothing in them can run code."""

from __future__ import annotations

import hashlib
import io
import os
import tempfile
import uuid
from pathlib import Path

import pyarrow as pa
import pytest
import torch

from sharding import storage
from sharding.errors import UserError
from trainer.data.plan import PlanIdentity
from trainer.run import checkpoint
from trainer.run.checkpoint import Manifest, Snapshot, TrainingPosition
from trainer.run.registry import RunRegistry

PLAN = PlanIdentity(dataset="f" * 64, split="train", seed=0, global_batch=4, lanes=2, window=8)


def snapshot(step: int = 3, attempt: int = 1) -> Snapshot:
    model = torch.nn.Linear(4, 2)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(1, 4)).sum().backward()
    optimizer.step()
    position = TrainingPosition(step=step, epoch=1, step_in_epoch=step, epoch_end=False, attempt=attempt, plan=PLAN)
    corrections = pa.table({"sample": pa.array([1], pa.int64())})
    return Snapshot(
        dict(model.state_dict()),
        optimizer.state_dict(),
        {"average": torch.ones(1)},
        {"memory": torch.ones(2)},
        corrections,
        position,
    )


def written(url: str, step: int = 3) -> Manifest:
    manifest = checkpoint.write_checkpoint(url, snapshot(step))
    checkpoint.commit(url, manifest)
    return manifest


@pytest.fixture(params=["local", "memory"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "run") if request.param == "local" else f"memory://{uuid.uuid4().hex}/run"


def test_what_is_read_is_what_was_written(url: str) -> None:
    original = snapshot()
    manifest = checkpoint.write_checkpoint(url, original)
    checkpoint.commit(url, manifest)
    read = checkpoint.read_checkpoint(url, manifest)
    assert read.position == original.position
    assert read.corrections == original.corrections
    assert all(torch.equal(read.model[name], tensor) for name, tensor in original.model.items())
    assert read.optimizer["param_groups"] == original.optimizer["param_groups"]
    for key, state in original.optimizer["state"].items():
        assert all(torch.equal(read.optimizer["state"][key][name], value) for name, value in state.items())


def test_without_its_manifest_a_checkpoint_does_not_exist(url: str) -> None:
    first = written(url, step=1)
    checkpoint.write_checkpoint(url, snapshot(step=2))
    assert [m.name for m in RunRegistry(url).checkpoints()] == [first.name]


@pytest.mark.parametrize(
    "file", ["model.safetensors", "optimizer.pt", "state.json", "loss.safetensors", "corrections.parquet"]
)
@pytest.mark.parametrize("damage", ["truncated", "flipped", "missing"])
def test_damage_is_noticed_and_the_one_before_is_used(url: str, file: str, damage: str) -> None:
    sound, broken = written(url, step=1), written(url, step=2)
    target = checkpoint.checkpoint_url(url, broken.name, file)
    content = storage.read_bytes(target)
    if damage == "missing":
        storage.remove(target)
    else:
        middle = len(content) // 2
        flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
        storage.write_atomic(target, flipped if damage == "flipped" else content[:-1])
    assert len(checkpoint.problems(url, broken)) == 1
    assert file in checkpoint.problems(url, broken)[0]
    latest, content_of_latest = RunRegistry(url).latest()
    assert latest is not None
    assert latest.name == sound.name
    assert content_of_latest is not None
    assert content_of_latest.position.step == 1


def test_a_torn_manifest_is_no_manifest(url: str) -> None:
    manifest = written(url)
    storage.write_atomic(checkpoint.checkpoint_url(url, manifest.name, "manifest.json"), b'{"schema_version": 1, "st')
    assert RunRegistry(url).checkpoints() == []


class _Exploit:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("exploited",)


def test_loading_never_runs_code(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    manifest = checkpoint.write_checkpoint(url, snapshot())
    buffer = io.BytesIO()
    torch.save({"state": _Exploit()}, buffer)
    evil = buffer.getvalue()
    storage.write_atomic(checkpoint.checkpoint_url(url, manifest.name, "optimizer.pt"), evil)
    files = {**manifest.files, "optimizer.pt": {"bytes": len(evil), "sha256": hashlib.sha256(evil).hexdigest()}}
    checkpoint.commit(url, manifest.model_copy(update={"files": files}))
    with pytest.raises(UserError, match="more than data"):
        checkpoint.read_checkpoint(url, RunRegistry(url).checkpoints()[0])
    assert not (tmp_path / "exploited").exists()


def test_a_host_copy_is_independent_of_what_it_was_taken_from() -> None:
    live = {"a": torch.zeros(3), "b": [{"c": torch.ones(2)}, 5]}
    copy = checkpoint.HostMemory().copy(live)
    live["a"] += 1
    live["b"][0]["c"] += 1
    assert copy["a"].sum() == 0
    assert copy["b"][0]["c"].sum() == 2
    assert copy["b"][1] == 5


def test_the_next_copy_uses_the_memory_again_unless_the_shape_has_changed() -> None:
    memory = checkpoint.HostMemory()
    first = memory.copy({"a": torch.zeros(3), "b": torch.zeros(3)}, "model")
    second = memory.copy({"a": torch.ones(3), "b": torch.ones(4)}, "model")
    other = memory.copy({"a": torch.ones(3)}, "optimizer")
    assert second["a"].data_ptr() == first["a"].data_ptr() != other["a"].data_ptr()
    assert second["a"].tolist() == [1, 1, 1]
    assert second["b"].tolist() == [1, 1, 1, 1]


def test_no_scratch_space_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors are serialised by way of a temporary file, where there is room for one."""
    original = snapshot()
    expected = checkpoint.write_checkpoint(str(tmp_path / "with"), original)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "no such folder"))
    assert checkpoint.write_checkpoint(str(tmp_path / "without"), original) == expected


def test_a_storage_that_fails_for_a_while_costs_time_only(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, waits = storage.write_atomic, []
    failing = iter([True, True, False, True])

    def flaky(target: str, content: bytes) -> None:
        if next(failing, False):
            raise OSError("503 Slow Down")
        plain(target, content)

    monkeypatch.setattr(storage, "write_atomic", flaky)
    monkeypatch.setattr("trainer.run.checkpoint.time.sleep", waits.append)
    manifest = checkpoint.write_checkpoint(url, snapshot())
    checkpoint.commit(url, manifest)
    assert waits == [0.5, 1, 0.5]
    assert checkpoint.problems(url, manifest) == []


def test_a_storage_that_fails_for_ever_is_an_error(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_target: str, _content: bytes) -> None:
        raise OSError("503 Slow Down")

    monkeypatch.setattr(storage, "write_atomic", broken)
    monkeypatch.setattr("trainer.run.checkpoint.time.sleep", lambda _seconds: None)
    with pytest.raises(OSError, match="503"):
        checkpoint.write_checkpoint(url, snapshot())
    assert RunRegistry(url).checkpoints() == []
