"""The coordinator actor: commits checkpoints and has them evaluated while training goes on."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from typing import Any

import ray
from ray._common.ray_option_utils import validate_label_selector
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster.runs.metrics import RunMetrics
from sharding.errors import UserError
from trainer.evaluation import EvaluateConfig, evaluate
from trainer.run.checkpoint import Manifest
from trainer.run.coordination import RunCoordinator
from trainer.run.registry import RunRegistry
from trainer.watch.telemetry import Telemetry

#: Seconds between looks whether the evaluator's node is still there.
LOOK_SECONDS = 2.0


@ray.remote(max_retries=0)
def evaluate_task(
    run_url: str,
    manifest: Manifest,
    split: str,
    overrides: tuple[str, ...] = (),
    began: tuple[Any, int] | None = None,
) -> dict[str, Any]:
    """Evaluate one checkpoint in a process of its own, so that its death is nobody else's.

    began: the coordinator that wants to know when the wait for resources is over, and which try this is.
    """
    import torch

    if began is not None:
        coordinator, number = began
        coordinator.evaluation_began.remote(number, ray.get_runtime_context().get_node_id())
    registry = RunRegistry(run_url)
    config = registry.config(list(overrides))
    torch.set_num_threads(config.evaluate.threads)
    return evaluate(registry, manifest, split, config)


def evaluation_options(settings: EvaluateConfig) -> dict[str, Any]:
    """Return the options of an evaluation task: its resources and the nodes that it may run on."""
    options: dict[str, Any] = {"num_cpus": settings.cpus, "num_gpus": settings.gpus}
    if settings.label_selector:
        problem = validate_label_selector(settings.label_selector)
        if problem is not None:
            raise UserError(f"evaluate.label_selector={settings.label_selector}: {problem}", "see Ray's node labels")
        options["label_selector"] = settings.label_selector
    return options


def describe_need(settings: EvaluateConfig) -> str:
    """Say in configuration keys what a node must have to evaluate."""
    need = f"evaluate.cpus={settings.cpus:g}, evaluate.gpus={settings.gpus:g}"
    selector = ",".join(f"{label}={value}" for label, value in settings.label_selector.items())
    return need + (f", evaluate.label_selector={{{selector}}}" if selector else "")


@dataclass
class _Wait:
    """The newest try of an evaluation, and since when (monotonic seconds) it waits for resources; None = it has them
    or is over. node: the id of the one that evaluates, once it does."""

    number: int = 0
    since: float | None = None
    node: str | None = None


class Coordinator:
    """The actor's class. Coordinates one attempt. Methods run in threads; evaluation has a thread of its own."""

    def __init__(self, run_url: str, attempt: int) -> None:
        registry = RunRegistry(run_url)
        self._config = registry.config()
        self._core = RunCoordinator(registry, self._config, attempt)
        self._metrics = RunMetrics(registry.name)
        self._metrics.evaluation(self._core.backlog)
        self._position: dict[str, Any] = {"step": 0, "loss": None, "training": False}
        self._evaluating = False
        self._wait = _Wait()
        self._me = ray.get_runtime_context().current_actor
        self._stop = threading.Event()
        self._training_done = threading.Event()
        self._error: BaseException | None = None
        self._evaluator = threading.Thread(target=self._evaluate_backlog, name="evaluator", daemon=True)
        self._evaluator.start()

    def ready(self) -> bool:
        """Return once the actor can work."""
        return True

    def commit(self, manifest: Manifest) -> None:
        self._core.commit(manifest)
        self._metrics.evaluation(self._core.backlog)

    def report(self, telemetry: Telemetry) -> bool:
        """Take note of how training goes; returns whether it should stop."""
        self._position = {"step": telemetry.step, "loss": telemetry.loss, "training": True}
        self._metrics.training(telemetry)
        return self._stop.is_set()

    def request_stop(self) -> None:
        """Ask training to stop after the step that it is at."""
        self._stop.set()

    def status(self) -> dict[str, Any]:
        """Return step, loss, whether the workers train yet, the best validation result, whether the evaluator is at
        work, and for how many seconds it has waited for a node, 0 where it does not."""
        best, since = self._core.best(), self._wait.since
        return {
            **self._position,
            "validation_map": best[1] if best else None,
            "evaluating": self._evaluating,
            "evaluation_waits": 0.0 if since is None else time.monotonic() - since,
        }

    def evaluation_began(self, number: int, node: str) -> None:
        """Take note that try ``number`` of an evaluation has its resources; an older one says nothing any more."""
        if number == self._wait.number:
            self._wait.since, self._wait.node, self._evaluating = None, node, True

    def finish(self) -> dict[str, Any]:
        """Wait for the evaluations that are due, evaluate the best checkpoint on test, write the result."""
        self._training_done.set()
        self._evaluator.join()
        if self._error is not None:
            raise self._error
        best, split = self._core.best(), self._config.dataset.test
        test = None
        if best is not None and split is not None:
            test = self._evaluate(best[0], split)
            self._core.record(best[0], split, test)
        result = self._core.conclude(test)
        self._core.close()
        return result

    def _evaluate_backlog(self) -> None:
        split = self._config.dataset.validation
        try:
            while True:
                done = self._training_done.is_set()
                manifest = self._core.take_evaluation()
                if manifest is not None:
                    record = self._evaluate(manifest, split)
                    self._core.record(manifest, split, record)
                    best = self._core.best()
                    self._metrics.evaluation(self._core.backlog, record.get("map"), best[1] if best else None)
                elif done:
                    return
                else:
                    time.sleep(0.2)
        except BaseException as error:
            self._error = error

    def _evaluate(self, manifest: Manifest, split: str) -> dict[str, Any]:
        """Return the evaluation, or ``{"error": ...}`` once all tries have failed. Never raises for the evaluator."""
        settings, failure = self._config.evaluate, ""
        for _ in range(settings.retries + 1):
            waited = False
            try:
                return self._try_to_evaluate(manifest, split)
            except ray.exceptions.GetTimeoutError:
                waited, minutes = self._wait.since is not None, f"{settings.timeout_minutes:g} minutes"
                failure = f"no node had room for it in {minutes}" if waited else f"took longer than {minutes}"
            except ray.exceptions.RayError as error:
                failure = _in_a_line(error)
            finally:
                self._evaluating, self._wait.since = False, None
            self._core.event("evaluation_failed", checkpoint=manifest.name, split=split, error=failure)
            if waited:  # another try would only wait as long once more
                break
        return {"checkpoint": manifest.name, "step": manifest.step, "split": split, "error": failure}

    def _try_to_evaluate(self, manifest: Manifest, split: str) -> dict[str, Any]:
        settings = self._config.evaluate
        wait = self._wait = _Wait(self._wait.number + 1, time.monotonic())
        deadline = time.monotonic() + 60 * settings.timeout_minutes
        task = evaluate_task.options(**evaluation_options(settings)).remote(
            self._core.registry.url, manifest, split, began=(self._me, wait.number)
        )
        try:
            while not ray.wait([task], timeout=max(0.0, min(LOOK_SECONDS, deadline - time.monotonic())))[0]:
                if wait.node is not None and not _is_alive(wait.node):
                    raise ray.exceptions.NodeDiedError(f"node {wait.node[:12]} is gone or cut off")
                if time.monotonic() >= deadline:
                    raise ray.exceptions.GetTimeoutError
        except ray.exceptions.RayError:
            ray.cancel(task, force=True)
            raise
        return ray.get(task)


def _is_alive(node: str) -> bool:
    """Whether Ray has not given up the node. Of a task there it would wait for the end of a connection, which a node
    without power or network never sends."""
    return any(entry["NodeID"] == node and entry["Alive"] for entry in ray.nodes())


def _in_a_line(error: ray.exceptions.RayError) -> str:
    """Return what failed: the exception of a task that raised, or what happened to its process or node."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[-1] if isinstance(error, ray.exceptions.RayTaskError) else f"{type(error).__name__}: {lines[0]}"


def start_coordinator(run_url: str, attempt: int) -> Any:
    """Start the actor on the driver's own node: losing any other node must not cost the coordinator."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    # Threads beside the evaluator's: commits, reports, status and finish must not wait for each other.
    options = {"num_cpus": 0, "max_concurrency": 8, "max_restarts": 0, "scheduling_strategy": here}
    return ray.remote(Coordinator).options(**options).remote(run_url, attempt)
