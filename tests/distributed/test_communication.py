"""What a rank counts as communication: waiting in a collective for a rank that comes late, nothing else."""

from __future__ import annotations

import json
import time
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.nn.parallel import DistributedDataParallel

from tests.distributed.test_ranks import config_file, run  # noqa: F401 — a fixture
from trainer.run.events import read_events, step_history
from trainer.watch.timing import StepMeter, TimeSplit
from trainer.world import World

LATE = 0.3
CPU = torch.device("cpu")


def measured(rank: int, folder: str) -> None:
    """Three steps on two ranks: nobody late; rank 1 late for a sum; rank 1 late for the gradients."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    network = DistributedDataParallel(torch.nn.Linear(4, 4))
    meter, found = StepMeter(network, CPU), []
    for late in (None, "sum", "gradients"):
        dist.barrier()
        with meter.step():
            loss = network(torch.ones(2, 4)).sum()
            if rank == 1 and late == "sum":
                time.sleep(LATE)
            World(rank, 2, CPU).sum([1.0])
            if rank == 1 and late == "gradients":
                time.sleep(LATE)
            loss.backward()
        found.append(meter.collectives)
    with meter.step():  # DDP tells the times of a backward pass at the next forward pass
        network(torch.ones(2, 4)).sum().backward()
    Path(folder, f"{rank}.json").write_text(json.dumps({"collectives": found, "exchange": meter.exchange}))
    dist.destroy_process_group()


def test_a_rank_that_waits_for_another_counts_it(tmp_path: Path) -> None:
    mp.spawn(measured, (str(tmp_path),), nprocs=2)
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    # The sleep is a lower bound of what the first rank waits, and no bound at all for the one that slept.
    assert first["collectives"][1] >= 0.9 * LATE
    assert first["exchange"] >= 0.9 * LATE
    assert second["exchange"] is not None


def test_every_step_of_a_run_says_what_it_spent_on_communication(config_file: Path, tmp_path: Path) -> None:  # noqa: F811
    registry = run(config_file, 2, tmp_path, "epochs=6")
    history = step_history(read_events(registry.url))
    assert len(history) == 30
    assert all(0 < event["collectives"] < event["seconds"] for event in history)
    sampled = [event["step"] for event in history if event["exchange"] is not None]
    # Two passes settle DDP's buckets before the first step; of the rest every tenth is sampled.
    assert 8 <= len(sampled) <= 14
    split = TimeSplit.of(history)
    assert split.communication is not None
    assert 0 < split.communication < split.communication + split.computing
    alone = run(config_file, 1, tmp_path)
    assert TimeSplit.of(step_history(read_events(alone.url))).communication is None
