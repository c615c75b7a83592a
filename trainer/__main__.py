"""Training without Ray: ``torchrun --nproc-per-node N -m trainer CONFIG [--runs URL] [a.b=c ...]``.

The first rank commits and evaluates in line; the run's files are those of ``boostlu train``. Running the same
command again with ``--resume`` goes on from the newest checkpoint.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

import torch.distributed as dist

from sharding.errors import UserError
from sharding.index import read_split
from trainer.config import RunConfig, load_config
from trainer.evaluation import evaluate
from trainer.run.checkpoint import Manifest
from trainer.run.coordination import RunCoordinator
from trainer.run.registry import RunRegistry, find_run
from trainer.training import train
from trainer.world import World, join_torchrun


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m trainer", description=__doc__)
    parser.add_argument("config", help="YAML file; with --resume, the run (a name below --runs, or a path)")
    parser.add_argument("overrides", nargs="*", help="a.b=c", metavar="a.b=c")
    parser.add_argument("--runs", default="runs", help="folder or URL that holds the runs (default: runs)")
    parser.add_argument("--resume", action="store_true", help="go on with an existing run")
    options = parser.parse_intermixed_args(arguments)
    world = join_torchrun()
    try:
        run_here(world, options.config, options.overrides, options.runs, options.resume)
    except UserError as error:
        if world.is_first:
            print(f"error: {error}", file=sys.stderr, flush=True)
        raise SystemExit(2) from error
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def run_here(world: World, config_url: str, overrides: list[str], runs: str, resume: bool) -> None:
    """Start or resume a run in this world of processes."""
    opened: tuple[str, int] | UserError | None = None
    if world.is_first:
        try:
            opened = _open(config_url, overrides, runs, resume, world.size)
        except UserError as error:
            opened = error
    opened = world.gather(opened)[0]
    if isinstance(opened, UserError):
        raise opened
    assert opened is not None  # noqa: S101 — rank 0 always fills it
    url, attempt = opened
    registry = RunRegistry(url)
    config = registry.config()
    coordinator = RunCoordinator(registry, config, attempt) if world.is_first else None
    outcome, reason = "failed", ""
    try:
        finished = train(registry, config, world, attempt, _commit_in_line(coordinator), in_background=False)
        outcome = "finished" if finished else "interrupted"
        if coordinator is not None and finished:
            _conclude(coordinator, registry, config)
    except BaseException as error:
        reason = f"{type(error).__name__}: {error}"
        raise
    finally:
        if coordinator is not None:
            coordinator.close()
            registry.end_attempt(attempt, outcome, reason)


def _open(config_url: str, overrides: list[str], runs: str, resume: bool, workers: int) -> tuple[str, int]:
    if resume:
        registry = RunRegistry.open(find_run(runs, config_url))
        registry.amend(overrides)
    else:
        config = load_config(config_url, overrides)
        registry = RunRegistry.create(runs, config, read_split(config.dataset.path, config.dataset.train).dataset)
    return registry.url, registry.begin_attempt(workers)


def _commit_in_line(coordinator: RunCoordinator | None) -> Callable[[Manifest], None]:
    """Return the commit function of the first rank: commit, then evaluate what waits."""

    def commit(manifest: Manifest) -> None:
        assert coordinator is not None  # noqa: S101 — only the first rank commits
        coordinator.commit(manifest)
        coordinator.registry.renew_lease(coordinator.attempt)
        split = coordinator.config.dataset.validation
        while (waiting := coordinator.take_evaluation()) is not None:
            coordinator.record(waiting, split, evaluate(coordinator.registry, waiting, split, coordinator.config))

    return commit


def _conclude(coordinator: RunCoordinator, registry: RunRegistry, config: RunConfig) -> None:
    best, split = coordinator.best(), config.dataset.test
    test = None
    if best is not None and split is not None:
        test = evaluate(registry, best[0], split, config)
        coordinator.record(best[0], split, test)
    result = coordinator.conclude(test)
    print(f"validation mAP {result['validation_map']:.4f}", flush=True)
    if test is not None:
        print(f"test mAP {test['map']:.4f}", flush=True)


if __name__ == "__main__":
    main()
