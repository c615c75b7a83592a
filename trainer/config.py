"""The configuration of one run: strict models, YAML files, ``a.b=c`` overrides.

Each section is declared beside the code that it steers; this file only joins them. An unknown key is refused with
the name of the nearest valid one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import yaml
from pydantic import BaseModel, Field, ValidationError, ValidationInfo, field_validator

from sharding import storage
from sharding.errors import UserError, did_you_mean
from sharding.schema import Strict
from trainer.data.augment import AugmentConfig
from trainer.data.loader import LoaderConfig
from trainer.data.plan import PlanConfig
from trainer.evaluation import EvaluateConfig
from trainer.losses import LossConfig
from trainer.model.classifier import ModelConfig
from trainer.optimization import OptimizerConfig
from trainer.run.checkpoint import CheckpointConfig
from trainer.watch.profiling import ProfileConfig


class DatasetConfig(Strict):
    path: str
    """The dataset (folder or fsspec URL) that ``boostlu shards build`` made."""
    labels: str = "full"
    """What training may see: ``full`` (the labels in the tars) or the name of an overlay in DATASET/labels."""
    train: str = "train"
    """Split to train on."""
    validation: str = "val"
    """Split that chooses the best checkpoint; its full labels are used."""
    test: str | None = "test"
    """Split on which the best checkpoint is finally evaluated; null = none."""
    image_size: int = Field(default=448, ge=16)
    """Side of the square, in pixels, that images are resized to."""


class WorkersConfig(Strict):
    num: int = Field(default=2, ge=1)
    """DDP workers, one process each. Under torchrun ``--nproc-per-node`` decides instead."""
    min: int | None = Field(default=None, ge=1)
    """Fewest workers to go on with while the cluster has no room for ``num``; with room again the run grows back. The
    global batch stays the same. None = always ``num``."""
    cpus: float = Field(default=1, gt=0)
    """CPUs that Ray reserves for one worker."""
    gpus: float = Field(default=0, ge=0)
    """GPUs that Ray reserves for one worker; 0 trains on the CPU."""
    threads: int = Field(default=1, ge=1)
    """Threads of torch's CPU operators in one worker. Part of what makes two CPU runs bitwise equal."""
    hang_seconds: float = Field(default=120, gt=0)
    """A worker whose next step takes longer than this, and longer than ``hang_factor`` times the usual, is ended with
    its stacks on record, and the run goes on with the next attempt. (The first steps may take ten times this.)"""
    hang_factor: float = Field(default=50, gt=1)
    """See ``hang_seconds``."""
    micro_batch: int | None = Field(default=None, ge=1)
    """Most images that a worker passes through the network at once with gradients; larger shares of the global
    batch are accumulated exactly, large-loss selection included. None = no limit."""
    max_failures: int = Field(default=3, ge=0)
    """Failed attempts in a row without a new checkpoint before the run is given up."""
    grace_seconds: float = Field(default=60, gt=0)
    """How long after SIGTERM the run may take to reach its checkpoint; then it ends without. Set it below the time
    after which your cluster kills (Kubernetes: terminationGracePeriodSeconds; a spot machine's notice)."""
    straggler_factor: float = Field(default=2.0, gt=1)
    """A rank that takes this many times the median rank's time of a step, waits for others left out, is reported."""

    @field_validator("min")
    @classmethod
    def _at_most_num(cls, value: int | None, info: ValidationInfo) -> int | None:
        if value is not None and value > info.data.get("num", value):
            raise ValueError(f"that is more than workers.num={info.data['num']}")
        return value

    @property
    def least(self) -> int:
        """Fewest workers that an attempt starts with."""
        return self.num if self.min is None else self.min


class RunConfig(Strict):
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Name of the run and of its folder below ``--runs``."""
    seed: int = Field(default=0, ge=0)
    """Seeds initial weights, sample order, augmentation and dropout."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the network's operators; ``auto`` is bfloat16 autocast on a GPU that has it, else float32."""
    deterministic: bool = False
    """Refuse operators whose result may vary from run to run (slower on a GPU; on a CPU runs repeat anyway)."""
    compile: bool = False
    """Compile the network with ``torch.compile``: pays on a GPU, after a minute or so."""
    epochs: int = Field(default=10, ge=1)
    dataset: DatasetConfig
    plan: PlanConfig = PlanConfig()
    loader: LoaderConfig = LoaderConfig()
    augment: AugmentConfig = AugmentConfig()
    model: ModelConfig = ModelConfig()
    loss: LossConfig = LossConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    workers: WorkersConfig = WorkersConfig()
    profile: ProfileConfig = ProfileConfig()

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def load_config(url: str, overrides: Iterable[str] = (), method: str | None = None) -> RunConfig:
    """Read a YAML file, lay the file ``method`` (see configs/methods) over it, apply ``a.b=c`` overrides, validate.

    ``name`` defaults to the file's name; a relative ``dataset.path`` is made absolute, so that the run can be
    resumed from another folder.
    """
    values = _read_yaml(url)
    values.setdefault("name", Path(url).stem)
    if method is not None:
        for section, content in _read_yaml(method).items():
            # The options of a loss mean nothing to another, so that section is replaced; others are merged.
            merge = isinstance(content, dict) and isinstance(values.get(section), dict) and section != "loss"
            values[section] = {**values[section], **content} if merge else content
    return make_config(values, overrides, url)


def _read_yaml(url: str) -> dict[str, Any]:
    try:
        text = storage.read_bytes(url).decode()
    except (FileNotFoundError, IsADirectoryError) as error:
        raise UserError(f"no config file {url}", "ready-made ones are in configs/") from error
    try:
        values = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        raise UserError(f"{url} is not valid YAML: {error}", "check indentation and quotes") from error
    if not isinstance(values, dict):
        raise UserError(f"{url} must hold a mapping, not {type(values).__name__}", "see configs/digits.yaml")
    return values


def make_config(values: Mapping[str, Any], overrides: Iterable[str] = (), origin: str = "config") -> RunConfig:
    """Validate a mapping plus overrides; ``origin`` is named in errors."""
    merged: dict[str, Any] = yaml.safe_load(yaml.safe_dump(dict(values)))
    for override in overrides:
        _apply(merged, override)
    try:
        config = RunConfig.model_validate(merged)
    except ValidationError as error:
        raise UserError(f"{origin}: {_explain(error)}", "`boostlu config show CONFIG` prints every key") from error
    path = config.dataset.path
    if storage.is_local(path):
        dataset = config.dataset.model_copy(update={"path": str(storage.local_path(path).absolute())})
        config = config.model_copy(update={"dataset": dataset})
    return config


def _apply(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise UserError(f"override {override!r} is not of the form key=value", "for example: model.alpha=5")
    *parents, last = key.split(".")
    for parent in parents:
        values = values.setdefault(parent, {})
        if not isinstance(values, dict):
            raise UserError(f"override {override!r}: {parent} is no section", "`boostlu config show` prints the keys")
    try:
        value = yaml.safe_load(text)
        if key == "loss.name" and value != values.get("name"):
            values.clear()  # the options given so far are those of another loss
        values[last] = value
    except yaml.YAMLError as error:
        raise UserError(f"override {override!r}: {text!r} is not valid YAML", "quote the value") from error


def _explain(error: ValidationError) -> str:
    """Say what is wrong with the first few keys; for unknown ones name the nearest valid key."""
    sentences = []
    for problem in error.errors()[:3]:
        location = [str(part) for part in problem["loc"]]
        key = ".".join(location)
        if problem["type"] == "extra_forbidden":
            valid = _keys_at(location[:-1])
            sentences.append(f"unknown key {key!r}, {did_you_mean(location[-1], valid)}")
        elif problem["type"] == "missing":
            sentences.append(f"{key} is required")
        else:
            sentences.append(f"{key}={problem['input']!r}: {problem['msg']}")
    return "; ".join(sentences)


def _keys_at(location: list[str]) -> list[str]:
    """Return the valid keys of the section at ``location`` (models inside unions included)."""
    model: Any = RunConfig
    for part in location:
        field = model.model_fields.get(part)
        if field is None:
            return []
        candidates = [field.annotation, *get_args(field.annotation)]
        model = next((c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)), None)
        if model is None:
            return []
    return list(model.model_fields)
