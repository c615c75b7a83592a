"""The training loop of one process, from the newest checkpoint to the last epoch."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext

import torch

from sharding.errors import UserError
from trainer.config import RunConfig
from trainer.data.loader import Batch, Corrupt, Loader, Request
from trainer.data.plan import SamplePlan, rank_slots, training_schedule
from trainer.data.transforms import image_transform
from trainer.losses import Progress
from trainer.optimization import lr_factor, set_learning_rate
from trainer.parts import Parts, build_parts, restore
from trainer.run.checkpoint import Manifest, TrainingPosition
from trainer.run.recorder import Recorder
from trainer.run.registry import RunRegistry
from trainer.saving import CheckpointWriter
from trainer.step import training_step
from trainer.watch.hang import HangWatch
from trainer.watch.pace import Pace
from trainer.watch.profiling import StepProfiler
from trainer.watch.telemetry import Telemetry, Totals, memory_bytes
from trainer.watch.timing import StepMeter
from trainer.world import World


def train(
    registry: RunRegistry,
    config: RunConfig,
    world: World,
    attempt: int,
    commit: Callable[[Manifest], None],
    report: Callable[[Telemetry], bool] = lambda _: False,
    in_background: bool = True,
) -> bool:
    """Train until the last epoch; return True when it is reached, False when asked to stop before.

    Called by every process of the world. ``commit`` makes a written checkpoint exist (rank 0 only; from another
    thread, unless ``in_background`` is off, for a commit that itself computes with torch). ``report`` is told before
    every step on rank 0 how training goes, and says whether to stop; stopping takes a checkpoint first.
    """
    torch.set_num_threads(config.workers.threads)
    torch.use_deterministic_algorithms(config.deterministic)
    parts = build_parts(config, world)
    total_steps = config.epochs * parts.plan.steps_per_epoch
    with (
        Recorder(registry, attempt, world) as recorder,
        CheckpointWriter(registry, commit, recorder, in_background, config.checkpoint.timeout_minutes) as writer,
        _open_loader(parts, world) as loader,
        StepProfiler(config.profile, registry.url, attempt, world) as profiler,
        # In line, the first rank evaluates while the others wait for it: no hang, however long.
        _hang_watch(registry, config, attempt, world) if in_background else nullcontext() as watch,
    ):
        step, epoch, step_in_epoch, corrupt = _resume(registry, parts, world, recorder)
        excuse = watch.excuse if watch is not None else lambda: None
        pace = Pace(world, config.workers.straggler_factor)
        finished, totals, meter = True, Totals(), StepMeter(parts.network, world.device)
        batches = loader.batches(_requests(parts.plan, config, world, epoch, step_in_epoch))
        waited_from = time.perf_counter()
        for batch in batches:
            # ── one step ─────────────────────────────────────────────────────────────────────────────────────────
            started = time.perf_counter()
            factor = lr_factor(config.optimizer, step, total_steps)
            lr = set_learning_rate(parts.optimizer, factor)
            stop = world.is_first and report(_telemetry(step, batch.epoch, totals, writer, parts, world))
            save = world.is_first and writer.is_due(config.checkpoint.every_minutes)
            profiler.before(step)
            with meter.step():
                result = training_step(parts, world, batch, Progress(batch.epoch, config.epochs), step, stop, save)
            corrupt = _note_corrupt(world, batch, corrupt, parts, recorder)
            times = meter.times(time.perf_counter() - started, started - waited_from)
            totals.add(result.loss, result.samples, times)
            for straggler in pace.add(times):
                recorder.event("straggler", step=step, **straggler)
            recorder.step(step, batch.epoch, lr, result, times)
            step, step_in_epoch = step + 1, batch.step + 1

            # ── where that leaves us ─────────────────────────────────────────────────────────────────────────────
            epoch_end = step_in_epoch == parts.plan.steps_per_epoch
            epoch = batch.epoch + 1 if epoch_end else batch.epoch
            every = config.checkpoint.every_steps
            if epoch_end:
                parts.loss.finish_epoch(Progress(batch.epoch, config.epochs))
            if epoch_end or result.stop or result.save or (every is not None and step % every == 0):
                within = 0 if epoch_end else step_in_epoch
                writer.save(parts, world, _position(parts, attempt, step, epoch, within, corrupt), excuse)
            if result.stop and step < total_steps:
                finished = False
                break
            if watch is not None:
                watch.beat()
            waited_from = time.perf_counter()
        writer.settle(world, excuse)
        batches.close()
    world.barrier()
    return finished


def _open_loader(parts: Parts, world: World) -> Loader:
    """Open this rank's loader, which knows ahead of time which shards the plan will ask it for."""
    config = parts.config
    slots = rank_slots(config.plan.global_batch, world.size, world.rank)
    schedule = training_schedule(parts.plan, slots, config.epochs)
    transform = image_transform(config.augment, config.seed, config.dataset.image_size)
    return Loader(parts.index, config.loader, config.dataset.image_size, schedule, transform)


def _telemetry(
    step: int, epoch: int, totals: Totals, writer: CheckpointWriter, parts: Parts, world: World
) -> Telemetry:
    return Telemetry(
        step=step,
        epoch=epoch,
        loss=totals.loss,
        samples=totals.samples,
        steps=totals.steps,
        seconds=totals.seconds,
        waited=totals.waited,
        communicated=totals.communicated,
        last_step_seconds=totals.last,
        memory_bytes=memory_bytes(world.device),
        checkpoint_stall=writer.stall_seconds,
        checkpoint_seconds=writer.seconds,
        corrections=len(parts.corrections) if parts.corrections is not None else None,
    )


def _position(
    parts: Parts, attempt: int, step: int, epoch: int, step_in_epoch: int, corrupt: frozenset[str]
) -> TrainingPosition:
    """Describe the place after ``step`` steps; with none done of ``epoch``, the one before it has just ended."""
    return TrainingPosition(
        step=step,
        epoch=epoch,
        step_in_epoch=step_in_epoch,
        epoch_end=step_in_epoch == 0,
        attempt=attempt,
        plan=parts.identity,
        corrupt=sorted(corrupt),
    )


def _hang_watch(registry: RunRegistry, config: RunConfig, attempt: int, world: World) -> HangWatch:
    return HangWatch(registry.url, attempt, world.rank, config.workers.hang_seconds, config.workers.hang_factor)


def _resume(
    registry: RunRegistry, parts: Parts, world: World, recorder: Recorder
) -> tuple[int, int, int, frozenset[str]]:
    """Continue from the newest sound checkpoint; return (step, epoch, step in epoch, corrupt sample ids).

    Rank 0 chooses, so that all ranks start from the same one even while storage changes.
    """

    def note(damaged: Manifest, error: UserError) -> None:
        recorder.event("checkpoint_damaged", checkpoint=damaged.name, step=damaged.step, reason=str(error))

    manifest, snapshot = registry.latest(note) if world.is_first else (None, None)
    manifest = world.gather(manifest)[0]
    if manifest is None:
        return 0, 1, 0, frozenset()
    if snapshot is None:
        from trainer.run.checkpoint import read_checkpoint

        snapshot = read_checkpoint(registry.url, manifest)
    restore(parts, snapshot)
    position = snapshot.position
    recorder.event("resumed", checkpoint=manifest.name, step=position.step, workers=world.size)
    return position.step, position.epoch, position.step_in_epoch, frozenset(position.corrupt)


def _requests(plan: SamplePlan, config: RunConfig, world: World, epoch: int, first_step: int) -> Iterator[Request]:
    """Yield this rank's share of every global batch from (epoch, step) to the end of the run."""
    slots = rank_slots(config.plan.global_batch, world.size, world.rank)
    for number in range(epoch, config.epochs + 1):
        for step in range(first_step, plan.steps_per_epoch):
            samples, real = plan.batch(number, step)
            yield Request(step, samples[slots], real[slots], number)
        first_step = 0


def _note_corrupt(
    world: World, batch: Batch, known: frozenset[str], parts: Parts, recorder: Recorder
) -> frozenset[str]:
    """Report newly found corrupt samples; stop the run when they are more than the configured share."""
    if not world.sum([float(len(batch.corrupt))])[0]:
        return known
    found = [(bad.sample_id, bad.shard, bad.reason) for rank in world.gather(batch.corrupt) for bad in rank]
    for sample_id, shard, reason in found:
        if sample_id not in known:
            recorder.event("corrupt_sample", sample_id=sample_id, shard=shard, reason=reason)
    known = known | {sample_id for sample_id, _, _ in found}
    parts.config.loader.check_corrupt(parts.index, known, Corrupt(*found[-1]))
    return known
