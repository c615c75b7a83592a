"""Checkpoints on storage: written file by file, hashed, committed by the manifest that is written last.

::

    RUN/checkpoints/00000120-a0002/     step 120, written in attempt 2
      model.safetensors                 parameters and buffers
      optimizer.pt                      read with weights_only=True: no code is ever unpickled
      average.safetensors               moving average of the weights (only with optimizer.ema_decay)
      loss.safetensors                  what a loss remembers of each sample (only em-apl and role)
      corrections.parquet               LL-Cp's permanent corrections (only with ll-cp)
      state.json                        where training stands (TrainingPosition)
      manifest.json                     size and SHA-256 of every file; its presence is the commit

A folder without a manifest does not exist as far as readers are concerned. Two attempts never write into the same
folder, so a stale one cannot damage what a newer one wrote.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import pickle
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from safetensors.torch import save_file
from torch import Tensor

from sharding import storage
from sharding.errors import UserError
from sharding.schema import Strict
from trainer.data.plan import PlanIdentity

#: Seconds between the tries to write one file.
WRITE_WAITS = (0.5, 1, 2, 4, 8)


class CheckpointConfig(Strict):
    every_steps: int | None = Field(default=None, ge=1)
    """Checkpoint each so many steps, besides the one at every epoch's end. These are not evaluated."""
    every_minutes: float | None = Field(default=None, gt=0)
    """Checkpoint when so many minutes have passed since the last one, by the first worker's clock."""
    keep_every_epochs: int | None = Field(default=None, ge=1)
    """Also keep the checkpoint at the end of every so many epochs, for good."""
    timeout_minutes: float = Field(default=30, gt=0)
    """A checkpoint that is not written after so long fails the attempt. (While training waits for one it counts as
    no hang, however slow the storage is.)"""
    keep_last: int = Field(default=2, ge=1)
    """Newest checkpoints to keep. The best on validation is always kept, and so is one being evaluated."""


class TrainingPosition(BaseModel):
    """Where training stands when a checkpoint is taken; with the run's config it determines all that follows."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    step: int
    """Optimizer steps done since the start of the run."""
    epoch: int
    """Epoch of the next step, 1-based."""
    step_in_epoch: int
    """Steps done within that epoch."""
    epoch_end: bool
    """Whether this checkpoint closes an epoch; those are evaluated."""
    attempt: int
    plan: PlanIdentity
    """What the position counts in: dataset, split, seed, batch and order."""
    corrupt: list[str] = []
    """Sample ids skipped so far because their image could not be decoded."""


@dataclass(frozen=True)
class Snapshot:
    """A checkpoint's content in host memory, independent of the live model."""

    model: dict[str, Tensor]
    optimizer: dict[str, Any]
    average: dict[str, Tensor]
    loss: dict[str, Tensor]
    corrections: pa.Table | None
    position: TrainingPosition


class Manifest(BaseModel):
    """What a complete checkpoint consists of."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: int = 1
    step: int
    epoch: int
    attempt: int
    epoch_end: bool
    files: dict[str, dict[str, Any]]
    """name → {"bytes": size, "sha256": hex}"""

    @field_validator("files")
    @classmethod
    def _lie_in_the_folder(cls, files: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        if any("/" in name or name in ("", ".", "..") for name in files):
            raise ValueError("a file outside the checkpoint's folder")
        return files

    @property
    def name(self) -> str:
        return f"{self.step:08d}-a{self.attempt:04d}"


class HostMemory:
    """Host memory for snapshots, used again by every snapshot: touching fresh memory takes longer than copying.

    Pinned for tensors of a GPU, which copies into it by itself. A copy is valid until the next one is taken.
    """

    def __init__(self) -> None:
        self._kept: dict[tuple[Any, ...], Tensor] = {}

    def copy(self, value: Any, *path: Any) -> Any:
        """Return ``value`` with every tensor, at any depth of dicts and lists, copied into host memory. ``path`` is
        the place: what is copied there again, in the same shape, goes into the same memory."""
        copied = self._copy(value, path)
        if torch.cuda.is_available():
            torch.cuda.current_stream().synchronize()
        return copied

    def _copy(self, value: Any, path: tuple[Any, ...]) -> Any:
        if isinstance(value, Tensor):
            kept = self._kept.get(path)
            if kept is None or kept.shape != value.shape or kept.dtype != value.dtype:
                kept = self._kept[path] = torch.empty_like(
                    value, device="cpu", requires_grad=False, pin_memory=value.is_cuda
                )
            return kept.copy_(value.detach(), non_blocking=True)
        if isinstance(value, dict):
            return {key: self._copy(item, (*path, key)) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(self._copy(item, (*path, place)) for place, item in enumerate(value))
        return value


def write_checkpoint(run_url: str, snapshot: Snapshot) -> Manifest:
    """Write all files of ``snapshot`` but the manifest, which the caller commits; return that manifest."""
    position = snapshot.position
    contents = {
        "model.safetensors": _safetensors_bytes(snapshot.model),
        "optimizer.pt": _torch_bytes(snapshot.optimizer),
        "state.json": (json.dumps(position.model_dump(), indent=2) + "\n").encode(),
    }
    for part, tensors in (("average", snapshot.average), ("loss", snapshot.loss)):
        if tensors:
            contents[f"{part}.safetensors"] = _safetensors_bytes(tensors)
    if snapshot.corrections is not None:
        contents["corrections.parquet"] = _parquet_bytes(snapshot.corrections)
    manifest = Manifest(
        step=position.step,
        # The epoch that the checkpoint closes or lies in.
        epoch=position.epoch - 1 if position.epoch_end else position.epoch,
        attempt=position.attempt,
        epoch_end=position.epoch_end,
        files={
            name: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
            for name, content in contents.items()
        },
    )
    for name, content in contents.items():
        write_with_retries(checkpoint_url(run_url, manifest.name, name), content)
    return manifest


def write_with_retries(url: str, content: bytes, waits: Sequence[float] = WRITE_WAITS) -> None:
    """Write a file; storage that fails for a while costs time, not the file. A full disk does not heal by itself."""
    for wait in (*waits, None):
        try:
            storage.write_atomic(url, content)
            return
        except Exception as error:
            if isinstance(error, OSError) and error.errno == errno.ENOSPC:
                raise UserError(f"no space left for {url}", "free some space and resume; nothing is lost") from error
            if wait is None or not storage.is_trouble(error):
                raise
            time.sleep(wait)


def commit(run_url: str, manifest: Manifest) -> None:
    """Make the checkpoint exist."""
    content = json.dumps(manifest.model_dump(), indent=2, sort_keys=True) + "\n"
    write_with_retries(checkpoint_url(run_url, manifest.name, "manifest.json"), content.encode())


def checkpoint_url(run_url: str, name: str, file: str = "") -> str:
    return storage.join(run_url, "checkpoints", name, file) if file else storage.join(run_url, "checkpoints", name)


def read_manifest(run_url: str, name: str) -> Manifest | None:
    """Return the manifest of a committed checkpoint, None when it is not committed or its manifest is damaged."""
    try:
        content = storage.read_bytes(checkpoint_url(run_url, name, "manifest.json"))
        return Manifest.model_validate_json(content)
    except (FileNotFoundError, NotADirectoryError, ValidationError):
        return None


def problems(run_url: str, manifest: Manifest) -> list[str]:
    """Return what is wrong with a checkpoint's files: missing, cut short or altered. Empty = sound."""
    found = []
    for name, expected in manifest.files.items():
        try:
            _verified(run_url, manifest, name)
        except (UserError, FileNotFoundError) as error:
            found.append(f"{name} ({expected['bytes']} bytes): {error}")
    return found


def _verified(run_url: str, manifest: Manifest, file: str) -> bytes:
    """Read a file of a checkpoint, refusing one that is not what the manifest says."""
    url = checkpoint_url(run_url, manifest.name, file)
    try:
        content = storage.read_bytes(url)
    except FileNotFoundError as error:
        raise UserError(f"{url} is missing", "use an older checkpoint") from error
    expected = manifest.files[file]
    if len(content) != expected["bytes"]:
        raise UserError(f"{url} has {len(content)} bytes, not {expected['bytes']}", "use an older checkpoint")
    if hashlib.sha256(content).hexdigest() != expected["sha256"]:
        raise UserError(f"{url} does not have the SHA-256 of its manifest", "use an older checkpoint")
    return content


def read_model(run_url: str, manifest: Manifest) -> dict[str, Tensor]:
    """Return the verified parameters and buffers."""
    return _read_tensors(run_url, manifest, "model")


def read_average(run_url: str, manifest: Manifest) -> dict[str, Tensor]:
    """Return the verified moving average of parameters and buffers, named as the model's; empty without one."""
    tensors = _read_tensors(run_url, manifest, "average")
    return {name.removeprefix("module."): t for name, t in tensors.items() if name.startswith("module.")}


def _read_tensors(run_url: str, manifest: Manifest, part: str) -> dict[str, Tensor]:
    file = f"{part}.safetensors"
    return load_safetensors(_verified(run_url, manifest, file)) if file in manifest.files else {}


def read_checkpoint(run_url: str, manifest: Manifest) -> Snapshot:
    """Read and verify a whole checkpoint into host memory."""
    content = io.BytesIO(_verified(run_url, manifest, "optimizer.pt"))
    try:
        optimizer = torch.load(content, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        url = checkpoint_url(run_url, manifest.name, "optimizer.pt")
        raise UserError(f"{url} holds more than data: {error}", "do not use checkpoints from strangers") from error
    average, loss = (_read_tensors(run_url, manifest, part) for part in ("average", "loss"))
    corrections = None
    if "corrections.parquet" in manifest.files:
        corrections = pq.read_table(pa.BufferReader(_verified(run_url, manifest, "corrections.parquet")))
    position = TrainingPosition.model_validate_json(_verified(run_url, manifest, "state.json"))
    return Snapshot(read_model(run_url, manifest), optimizer, average, loss, corrections, position)


def _safetensors_bytes(tensors: dict[str, Tensor]) -> bytes:
    """Serialise by way of a file: ``safetensors.save`` keeps every other Python thread, and so the launching of GPU
    kernels, waiting for 0.1 s per 100 MB; ``save_file`` does not, and takes a third of the time."""
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    try:
        with tempfile.TemporaryDirectory(prefix="boostlu-") as folder:
            save_file(tensors, Path(folder) / "tensors")
            return (Path(folder) / "tensors").read_bytes()
    except (OSError, SafetensorError):  # no room for the detour
        return save_safetensors(tensors)


def _torch_bytes(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def _parquet_bytes(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    return sink.getvalue().to_pybytes()
