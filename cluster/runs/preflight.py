"""Before training starts on a cluster: can every node that may hold a worker do what a worker must?

A worker without access to the data, or with other code, would otherwise show as a failed attempt minutes later, or
as a run that silently mixes versions. One light task a node looks; a failure names the host and what to do.
"""

from __future__ import annotations

import hashlib
import socket
import uuid
from collections.abc import Callable, Sequence
from typing import Any

from cluster.jobs.code_version import code_version
from cluster.nodes import capacity
from sharding import storage
from sharding.errors import UserError
from sharding.index import SplitIndex
from sharding.schema import Strict
from trainer.config import RunConfig

#: A node that has not answered after this time is named as one that cannot start processes.
TIMEOUT_SECONDS = 120.0

_SHARED = "put it where every node sees it under this name: an object store, or a shared folder mounted everywhere"
_SAME_CODE = "run the same image on every node, or send the code along: boostlu submit --working-dir DIR"


class Checks(Strict):
    """What a node is to find."""

    dataset: str
    """URL of dataset.json."""
    dataset_sha256: str
    shard: str | None
    """URL of one shard, if there is any."""
    run: str
    """URL of the run's folder, which the driver has made."""
    version: str
    """The driver's code; see :func:`cluster.jobs.code_version.code_version`."""


def check_cluster(run_url: str, config: RunConfig, index: SplitIndex) -> None:
    """Raise :class:`UserError` unless the run fits on the connected cluster and all its nodes are fit for it."""
    import ray

    need = capacity.Need.of(config)
    nodes = _nodes_that_fit(ray, need)
    found = ask_nodes([n for n in nodes if capacity.holds_worker(size_of(n), need)], checks_of(run_url, index))
    # A node that was lost meanwhile takes no part; what is left must still do.
    alive = {host_of(node) for node in (_nodes_that_fit(ray, need) if found else nodes)}
    raise_problems({host: problems for host, problems in found.items() if host in alive})


def _nodes_that_fit(ray: Any, need: capacity.Need) -> list[dict[str, Any]]:
    """Return the nodes that are alive; raises :class:`UserError` unless there is room for ``need`` on them."""
    nodes = [node for node in ray.nodes() if node["Alive"]]
    reason = capacity.why_not(need, [size_of(node) for node in nodes])
    if reason is not None:
        raise UserError(reason, "lower workers.num, workers.cpus, workers.gpus or evaluate.gpus, or add nodes")
    return nodes


def size_of(node: dict[str, Any]) -> capacity.Node:
    """Return an entry of ``ray.nodes()`` as what the capacity rules know."""
    there = node["Resources"]
    return capacity.Node(host_of(node), there.get("CPU", 0), there.get("GPU", 0))


def host_of(node: dict[str, Any]) -> str:
    name, address = node["NodeManagerHostname"], node["NodeManagerAddress"]
    return name if name == address else f"{name} ({address})"


def checks_of(run_url: str, index: SplitIndex) -> Checks:
    dataset = storage.join(index.root, "dataset.json")
    shards = index.dataset.splits[index.name].shards
    return Checks(
        dataset=dataset,
        dataset_sha256=hashlib.sha256(storage.read_bytes(dataset)).hexdigest(),
        shard=index.shard_url(0) if shards else None,
        run=run_url,
        version=code_version(),
    )


def ask_nodes(nodes: Sequence[dict[str, Any]], checks: Checks) -> dict[str, list[tuple[str, str]]]:
    """Run :func:`find_problems` on every node at once; return host → (problem, remedy), for those that have any."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    task = ray.remote(num_cpus=0, max_retries=0)(find_problems)
    asked = {
        task.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)).remote(
            checks.model_dump()
        ): host_of(node)
        for node in nodes
    }
    done, silent = ray.wait(list(asked), num_returns=len(asked), timeout=TIMEOUT_SECONDS)
    found = {asked[reference]: _answer(reference) for reference in done}
    for reference in silent:
        ray.cancel(reference, force=True)
        found[asked[reference]] = [(f"did not answer within {TIMEOUT_SECONDS:g} s", "look at that node's Ray logs")]
    return {host: problems for host, problems in found.items() if problems}


def _answer(reference: Any) -> list[tuple[str, str]]:
    import ray

    try:
        return ray.get(reference)
    except ray.exceptions.RayError as error:
        reason = str(error).strip().splitlines()[-1]
        if "ModuleNotFoundError" in str(error):
            return [(f"lacks this project's code ({reason})", _SAME_CODE)]
        return [(f"cannot run a task ({reason})", "look at that node's Ray logs")]


def raise_problems(found: dict[str, list[tuple[str, str]]]) -> None:
    """Raise what the nodes found as one error, if they found anything: the first problem of each host."""
    if not found:
        return
    lines = [f"{host} {problems[0][0]}" for host, problems in sorted(found.items())]
    more = f" (and {len(lines) - 3} more nodes)" if len(lines) > 3 else ""
    remedies = list(dict.fromkeys(problems[0][1] for _, problems in sorted(found.items())))
    raise UserError(f"not every node can take part: {'; '.join(lines[:3])}{more}", "; ".join(remedies[:2]))


def find_problems(checks: dict[str, Any]) -> list[tuple[str, str]]:
    """Look, on this host, for what would stop a worker; return (problem, remedy) pairs."""
    wanted = Checks.model_validate(checks)
    found: list[tuple[str, str]] = []
    if code_version() != wanted.version:
        found.append((f"has boostlu {code_version()}, the driver {wanted.version}", _SAME_CODE))
    for look in (_dataset, _shard, _run):
        problem = _attempt(look, wanted)
        if problem is not None:
            found.append(problem)
    return found


def _attempt(look: Callable[[Checks], tuple[str, str] | None], wanted: Checks) -> tuple[str, str] | None:
    """A library's way of saying no is as good as an answer: access denied, no such bucket, no route to host ..."""
    try:
        return look(wanted)
    except Exception as error:
        what = {"_dataset": wanted.dataset, "_shard": wanted.shard, "_run": wanted.run}[look.__name__]
        verb = "write to" if look is _run else "read"
        return f"cannot {verb} {what}: {type(error).__name__}: {error}", _SHARED


def _dataset(wanted: Checks) -> tuple[str, str] | None:
    content = storage.read_bytes(wanted.dataset)
    if hashlib.sha256(content).hexdigest() != wanted.dataset_sha256:
        return f"sees another dataset at {wanted.dataset}", _SHARED
    return None


def _shard(wanted: Checks) -> tuple[str, str] | None:
    if wanted.shard is not None and storage.read_range(wanted.shard, 0, 512)[257:262] != b"ustar":
        return f"reads something that is no tar from {wanted.shard}", _SHARED
    return None


def _run(wanted: Checks) -> tuple[str, str] | None:
    if not storage.exists(storage.join(wanted.run, "run.json")):
        return f"does not see the run's folder {wanted.run}", _SHARED
    probe = storage.join(wanted.run, f"probe-{socket.gethostname()}-{uuid.uuid4().hex[:8]}")
    storage.write_atomic(probe, b"")
    storage.remove(probe)
    return None
