"""Running attempts of a run on Ray: start workers and coordinator, watch, stop cleanly, try again."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import ray
from pyarrow.fs import FSSpecHandler, PyFileSystem
from ray.exceptions import RayError, RayTaskError
from ray.train import FailureConfig, ScalingConfig
from ray.train import RunConfig as RayRunConfig
from ray.train.torch import TorchTrainer
from ray.train.v2.api.exceptions import TrainingFailedError, WorkerGroupError

from cluster.runs.coordinator import describe_need, evaluation_options, start_coordinator
from cluster.runs.head import Head, HeadLost
from cluster.runs.network import HostsTorchConfig
from cluster.runs.scaling import SAY_SECONDS, Growth, wait_for_workers
from cluster.runs.stopping import StopSignals
from sharding import storage
from sharding.errors import UserError
from trainer.config import RunConfig
from trainer.run.checkpoint import Manifest
from trainer.run.policies import Failure, after_failure
from trainer.run.registry import RunRegistry, StaleAttempt
from trainer.watch.telemetry import Telemetry

#: Seconds between a worker's reports to the coordinator, and so the delay of a stop request.
REPORT_SECONDS = 0.5
LEASE_RENEWAL_SECONDS = 5.0
#: How long the workers of a failed attempt get to end by themselves.
WORKER_EXIT_SECONDS = 60.0
#: An evaluation that has waited so long for its resources, the start of a process included, is worth a line.
EVALUATION_WAITS_SECONDS = 20.0

#: Seconds between the tries to read or write what attempts begin and end with: five minutes in all.
STORAGE_WAITS = (1, 2, 4, 8, 15, 30, 60, 60, 60, 60)

Result = TypeVar("Result")
#: Told now and then where the run is: (step, loss, best validation mAP so far).
Watch = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Outcome:
    """How a run, or an attempt of it, ended: ``finished`` (with its result), ``interrupted``, ``failed``, or, of an
    attempt only, ``resized``: stopped to go on with more workers."""

    outcome: str
    result: dict[str, Any] | None = None
    error: BaseException | None = None
    reason: str = ""


def drive(
    registry: RunRegistry, watch: Watch, take_over: bool = False, log: Callable[[str], None] = print
) -> Outcome:
    """Run attempts until the run is finished, stopped by a signal, or not worth another try.

    The first SIGINT or SIGTERM stops training at a checkpoint, the second at once. Every attempt has as many workers
    as the cluster has room for; see :mod:`cluster.runs.scaling`. When the cluster's head is lost the run ends.
    """
    config = registry.config()
    evaluation_options(config.evaluate)  # a wrong one is said now, not at the first evaluation
    failures: list[Failure] = []
    stopped_to_grow = 0
    head = Head(ray.get_runtime_context().gcs_address, log)
    with StopSignals(config.workers.grace_seconds) as signals:
        while True:
            workers = wait_for_workers(config, log, signals.__bool__, head)
            if workers is None:
                return Outcome("interrupted")
            attempt = _patiently(signals, registry.begin_attempt, workers, take_over)
            growth = Growth(config, workers, again=workers <= stopped_to_grow)
            outcome = _Attempt(registry, config, attempt, growth, watch, signals, log, head).run()
            reason = describe(outcome.error) if outcome.error is not None else outcome.reason
            _patiently(signals, registry.end_attempt, attempt, outcome.outcome, reason)
            stopped_to_grow = workers if outcome.outcome == "resized" else 0
            if stopped_to_grow:
                log(f"attempt {attempt} stopped at a checkpoint: {reason}")
                continue
            if outcome.error is None:
                return outcome
            failures.append(_patiently(signals, _failure, registry, attempt, outcome.error))
            restart = after_failure(failures, config.workers.max_failures)
            if not restart.again:
                return outcome
            log(f"attempt {attempt} failed ({reason}); trying again in {restart.delay:g} s: {restart.reason}")
            signals.sleep(restart.delay)


def _patiently(signals: StopSignals, call: Callable[..., Result], *arguments: Any) -> Result:
    """Call until storage answers; give up after some minutes, or at the second signal."""
    for wait in (*STORAGE_WAITS, None):
        try:
            return call(*arguments)
        except Exception as error:
            if not storage.is_trouble(error):
                raise
            if wait is None or signals.is_final():
                raise UserError(
                    f"the run's storage does not answer: {error}",
                    "once it does, `boostlu resume` goes on from the newest checkpoint",
                ) from error
            signals.sleep(wait)
    raise AssertionError  # the last wait is None


@dataclass
class _Attempt:
    """One attempt, from the start of its processes to their end."""

    registry: RunRegistry
    config: RunConfig
    number: int
    growth: Growth
    watch: Watch
    signals: StopSignals
    log: Callable[[str], None]
    head: Head
    said: float = -math.inf
    """When (monotonic seconds) the user was last told that an evaluation waits."""

    def run(self) -> Outcome:
        """Return how it ended; never raises for what goes wrong inside it."""
        coordinator = start_coordinator(self.registry.url, self.number)
        training: _Background | None = None
        try:
            ray.get(coordinator.ready.remote())
            training = _Background(lambda: self._trainer(coordinator).fit())
            more = self._follow(training, coordinator, self.growth)
            if self.signals:
                return Outcome("interrupted")
            if more is not None:
                return Outcome("resized", reason=f"{self.growth.running} workers, now there is room for {more}")
            finishing = _Background(lambda: ray.get(coordinator.finish.remote()))
            self._follow(finishing, coordinator)
            return Outcome("interrupted") if self.signals else Outcome("finished", result=finishing.value)
        except KeyboardInterrupt:
            return Outcome("interrupted")
        except (TrainingFailedError, RayError, UserError, StaleAttempt) as error:
            if self.signals:  # sent to the whole process group, a signal also ends a private cluster's own processes
                return Outcome("interrupted")
            if training is not None and not isinstance(error, HeadLost):
                # Workers without a coordinator fail at their next report; a new attempt needs their resources.
                training.settle(WORKER_EXIT_SECONDS)
            return Outcome("failed", error=root_cause(error))
        finally:
            ray.kill(coordinator)

    def _follow(self, work: _Background, coordinator: Any, growth: Growth | None = None) -> int | None:
        """Wait for ``work``, keeping lease and watcher up to date and passing on wishes to stop.

        Returns the number of workers that there is room for, if training was asked to stop for them. A second signal
        raises KeyboardInterrupt.
        """
        renewed, asked, more = time.monotonic(), False, None
        status: dict[str, Any] = {"training": False}
        while not work.wait(0.2):
            if self.signals.is_final():
                raise KeyboardInterrupt
            there = self.head.answers()
            # Until the workers train their room looks free.
            if there and growth is not None and more is None and status["training"]:
                more = growth.wanted(status["evaluating"])
            if (self.signals or more is not None) and not asked:
                coordinator.request_stop.remote()
                asked = True
            if time.monotonic() - renewed > LEASE_RENEWAL_SECONDS:
                self._renew_lease()
                renewed = time.monotonic()
            answer = coordinator.status.remote()
            if ray.wait([answer], timeout=1.0)[0]:
                status = ray.get(answer)
                self.watch(status)
                self._say_if_an_evaluation_waits(status["evaluation_waits"])
        return more

    def _say_if_an_evaluation_waits(self, seconds: float) -> None:
        """One that no node can take holds up nothing but the end of the run, and that for as long as it may take."""
        settings, now = self.config.evaluate, time.monotonic()
        if seconds > EVALUATION_WAITS_SECONDS and now - self.said > SAY_SECONDS:
            self.log(
                f"an evaluation waits for a node with room for it ({describe_need(settings)}), "
                f"{settings.timeout_minutes:g} minutes at most"
            )
            self.said = now

    def _renew_lease(self) -> None:
        """Storage that does not answer for a while is no reason to end a run; a newer attempt is."""
        with storage.tolerate_trouble():
            self.registry.check_owner(self.number)
            self.registry.renew_lease(self.number)

    def _trainer(self, coordinator: Any) -> TorchTrainer:
        """Describe the worker group. Ray Train's own records are kept apart and only say that an attempt took place:
        the registry alone decides what a run resumes from."""
        fs, path = storage.filesystem(self.registry.path("ray"))
        local, needs = storage.is_local(self.registry.url), self.config.workers
        return TorchTrainer(
            _worker,
            train_loop_config={"run": self.registry.url, "attempt": self.number, "coordinator": coordinator},
            torch_config=HostsTorchConfig(backend="nccl" if needs.gpus else "gloo"),
            scaling_config=ScalingConfig(
                num_workers=self.growth.running,
                use_gpu=needs.gpus > 0,
                resources_per_worker={"CPU": needs.cpus, **({"GPU": needs.gpus} if needs.gpus else {})},
            ),
            run_config=RayRunConfig(
                name=f"attempt-{self.number:04d}",
                storage_path=path,
                storage_filesystem=None if local else PyFileSystem(FSSpecHandler(fs)),
                failure_config=FailureConfig(max_failures=0),
            ),
        )


def _worker(settings: dict[str, Any]) -> None:
    """Train in one worker process of the group that Ray Train has formed."""
    import ray.train.torch

    from trainer.training import train
    from trainer.world import current_world

    registry = RunRegistry(settings["run"])
    coordinator = settings["coordinator"]
    world = current_world(ray.train.torch.get_device())

    def commit(manifest: Manifest) -> None:
        ray.get(coordinator.commit.remote(manifest))

    train(registry, registry.config(), world, settings["attempt"], commit, _Reporter(coordinator))


class _Reporter:
    """Tells the coordinator where training is, now and then, without ever waiting for it."""

    def __init__(self, coordinator: Any) -> None:
        self._coordinator = coordinator
        self._answer: Any = None
        self._asked_at = 0.0

    def __call__(self, telemetry: Telemetry) -> bool:
        stop = False
        if self._answer is not None and ray.wait([self._answer], timeout=0)[0]:
            stop = ray.get(self._answer)
            self._answer = None
        if self._answer is None and time.monotonic() - self._asked_at > REPORT_SECONDS:
            self._answer = self._coordinator.report.remote(telemetry)
            self._asked_at = time.monotonic()
        return stop


class _Background:
    """A call in another thread, so that the main thread stays free for signals and progress."""

    def __init__(self, call: Callable[[], Any]) -> None:
        self._call = call
        self.value: Any = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self.value = self._call()
        except BaseException as error:
            self._error = error

    def wait(self, seconds: float) -> bool:
        """Return whether the call has ended; raises what it raised."""
        self._thread.join(seconds)
        if self._error is not None:
            raise self._error
        return not self._thread.is_alive()

    def settle(self, seconds: float) -> None:
        """Wait for the call to end, whichever way."""
        self._thread.join(seconds)


def root_cause(error: BaseException) -> BaseException:
    """Return the error of the user's or this project's own making that lies within Ray's wrappers."""
    if isinstance(error, WorkerGroupError) and error.worker_failures:
        failures = [root_cause(failure) for _, failure in sorted(error.worker_failures.items())]
        # When one worker fails the others fail for want of it: prefer the one that says what happened.
        return next((f for f in failures if isinstance(f, UserError)), failures[0])
    inner = getattr(error, "cause", None) or error.__cause__
    # Ray's wrapper of a task's UserError is a UserError too, whose text is a traceback.
    if isinstance(inner, BaseException) and (isinstance(error, RayTaskError) or not isinstance(error, UserError)):
        return root_cause(inner)
    return error


def describe(error: BaseException) -> str:
    """Say in one line what went wrong."""
    if isinstance(error, UserError):
        return str(error)
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[-1] if lines else ''}"


def _failure(registry: RunRegistry, attempt: int, error: BaseException) -> Failure:
    from trainer.run.events import read_events, step_history

    steps = [e for e in step_history(read_events(registry.url)) if e["attempt"] == attempt]
    committed = [m.step for m in registry.checkpoints()]
    return Failure(
        error=describe(error),
        step=steps[-1]["step"] if steps else -1,
        committed=max(committed, default=-1),
        deterministic=isinstance(error, UserError | StaleAttempt),
    )
