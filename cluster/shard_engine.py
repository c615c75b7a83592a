"""Run shard tasks on a Ray cluster: the same tasks as the local process pool, the same bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any

from cluster.nodes.local import ray_cluster
from sharding.errors import UserError
from sharding.pool import Engine

#: A task whose worker or node dies is run again this often before the build gives up.
RETRIES = 3


@contextmanager
def ray_engine(address: str, processes: int = 2, retries: int = RETRIES) -> Iterator[Engine]:
    """Connect to Ray (``local`` starts a private cluster with ``processes`` CPUs) and give an engine that uses it.

    One task takes one CPU. At most two tasks a CPU are under way, so that the plan is never in the object store as a
    whole. The output must be reachable from every node: a shared folder or an object store.
    """
    local = address == "local"
    with ray_cluster(None if local else address, cpus=processes if local else 1, gpus=0):
        yield _engine(retries)


def _engine(retries: int) -> Engine:
    def run(function: Callable[[Any], Any], tasks: Iterable[Any]) -> Iterator[Any]:
        import ray

        remote = ray.remote(num_cpus=1, max_retries=retries)(function)
        waiting = iter(tasks)
        limit = 2 * max(1, int(ray.cluster_resources().get("CPU", 1)))
        pending: dict[Any, str] = {}
        try:
            while True:
                for task in islice(waiting, limit - len(pending)):
                    pending[remote.remote(task)] = getattr(task, "name", "a task")
                if not pending:
                    return
                for done in ray.wait(list(pending), num_returns=1)[0]:
                    yield _result(done, pending.pop(done), retries)
        finally:
            for reference in pending:
                ray.cancel(reference, force=True)

    return run


def _result(reference: Any, name: str, retries: int) -> Any:
    import ray

    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None
    except ray.exceptions.RayError as error:
        problem = f"the Ray task for {name} was lost {retries + 1} times ({type(error).__name__})"
        raise UserError(problem, "look at the nodes' memory; the same command goes on from here") from error
