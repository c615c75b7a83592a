"""Checkpoints: what a save costs the step loop, beside one that waits until everything is written."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch

from trainer.data.plan import PlanIdentity
from trainer.model.classifier import ModelConfig, build_model
from trainer.optimization import OptimizerConfig, build_optimizer
from trainer.run.checkpoint import HostMemory, Snapshot, TrainingPosition, write_checkpoint
from trainer.run.registry import RunRegistry
from trainer.saving import CheckpointWriter
from trainer.world import World

PLAN = PlanIdentity(dataset="0", split="train", seed=0, global_batch=16, lanes=8, window=4096)


def measure(backbone: str, classes: int, rounds: int, device: str) -> dict[str, Any]:
    """Save a model with Adam's state ``rounds`` times each way, in turn; then train with and without saving."""
    model = build_model(ModelConfig(backbone=backbone, weights="none"), classes, 0).to(device)
    optimizer = build_optimizer(OptimizerConfig(), model, 16)
    images = torch.randn(4, 3, 224, 224, device=device)
    step = _step(model, optimizer, images)
    step()  # fills the optimizer's state
    with tempfile.TemporaryDirectory() as folder:
        registry = RunRegistry(folder)
        recorder: Any = SimpleNamespace(sync=lambda: None)
        parts: Any = SimpleNamespace(
            model=model, optimizer=optimizer, corrections=None, average=None, loss=torch.nn.Module()
        )
        parts.loss.synchronize = lambda: None
        world = World(0, 1, torch.device(device))
        stalls, waits = [], []
        with CheckpointWriter(registry, lambda _manifest: None, recorder, in_background=True) as writer:
            for number in range(rounds):
                waits.append(_seconds(lambda n=number: _save_and_wait(folder, parts, n)))  # type: ignore[misc]
                stalls.append(_seconds(lambda n=number: writer.save(parts, world, _position(n + rounds))))  # type: ignore[misc]
                writer.settle(world)
            alone = statistics.median(_seconds(step) for _ in range(2 * rounds))
            during = []
            for number in range(rounds):
                writer.save(parts, world, _position(number + 2 * rounds))
                while writer.busy():
                    during.append(_seconds(step))
    size = sum(t.numel() * t.element_size() for t in model.state_dict().values())
    return {
        "model_bytes": size,
        "synchronous_save_seconds": statistics.median(waits),
        "asynchronous_stall_seconds": statistics.median(stalls),
        "stall_of_synchronous": statistics.median(stalls) / statistics.median(waits),
        "step_seconds_without_saving": alone,
        "step_seconds_while_saving": statistics.median(during) if during else None,
        "throughput_while_saving": alone / statistics.median(during) if during else None,
    }


def _step(model: Any, optimizer: torch.optim.Optimizer, images: torch.Tensor) -> Callable[[], None]:
    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        model(images).sum().backward()
        optimizer.step()
        if images.is_cuda:
            torch.cuda.synchronize()

    return step


def _save_and_wait(folder: str, parts: Any, number: int) -> None:
    state = HostMemory().copy({"model": parts.model.state_dict(), "optimizer": parts.optimizer.state_dict()})
    snapshot = Snapshot(state["model"], state["optimizer"], {}, {}, None, _position(number))
    write_checkpoint(folder, snapshot)


def _position(number: int) -> TrainingPosition:
    return TrainingPosition(step=number, epoch=1, step_in_epoch=number, epoch_end=False, attempt=1, plan=PLAN)


def _seconds(call: Callable[[], None]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started
