"""One process that trains attempts of a tiny run, and what two runs must share to have ended alike."""

from __future__ import annotations

from pathlib import Path

import torch

from sharding.index import read_split
from trainer.config import RunConfig
from trainer.run import checkpoint
from trainer.run.coordination import RunCoordinator
from trainer.run.events import read_events, step_history
from trainer.run.registry import RunRegistry
from trainer.training import train
from trainer.watch.telemetry import Telemetry
from trainer.world import World

ALONE = World(0, 1, torch.device("cpu"))


def start(config: RunConfig, runs: Path) -> RunRegistry:
    dataset = read_split(config.dataset.path, config.dataset.train).dataset
    return RunRegistry.create(str(runs), config, dataset)


def attempt(registry: RunRegistry, stop_at: int | None = None) -> bool:
    """Train until the end, or until ``stop_at`` steps are done; returns whether the end was reached."""
    number = registry.begin_attempt(1)
    coordinator = RunCoordinator(registry, registry.config(), number)

    def report(telemetry: Telemetry) -> bool:
        return stop_at is not None and telemetry.step >= stop_at - 1

    try:
        return train(registry, registry.config(), ALONE, number, coordinator.commit, report)
    finally:
        coordinator.close()
        registry.end_attempt(number, "finished")


def last_model(registry: RunRegistry) -> dict[str, torch.Tensor]:
    return checkpoint.read_model(registry.url, registry.checkpoints()[-1])


def losses(registry: RunRegistry) -> list[float]:
    return [event["loss"] for event in step_history(read_events(registry.url))]


def assert_same_end(one: RunRegistry, other: RunRegistry) -> None:
    """Weights, optimizer state, corrections and loss history are bitwise the same."""
    assert losses(one) == losses(other)
    first, second = (checkpoint.read_checkpoint(r.url, r.checkpoints()[-1]) for r in (one, other))
    assert first.model.keys() == second.model.keys()
    assert all(torch.equal(first.model[name], second.model[name]) for name in first.model)
    for key, state in first.optimizer["state"].items():
        assert all(torch.equal(value, second.optimizer["state"][key][name]) for name, value in state.items())
    assert first.corrections == second.corrections
    torch.testing.assert_close(first.loss, second.loss, rtol=0, atol=0, equal_nan=True)  # NaN: nothing is known yet
