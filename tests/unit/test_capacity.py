"""Would a run fit: counted node by node, for a worker or an evaluator cannot be split over two."""

from __future__ import annotations

import pytest

from cluster.nodes.capacity import Need, Node, holds_worker, room_for_workers, why_not
from cluster.nodes.inventory import parse_nodes
from trainer.config import make_config


def need(workers: int = 2, cpus: float = 1, gpus: float = 0, evaluator: tuple[float, float] = (1, 0)) -> Need:
    return Need(workers, cpus, gpus, *evaluator)


def nodes(*sizes: tuple[float, float]) -> list[Node]:
    return [Node(f"10.0.0.{i}", cpus, gpus) for i, (cpus, gpus) in enumerate(sizes)]


@pytest.mark.parametrize(
    ("wanted", "there"),
    [
        (need(), nodes((3, 0))),
        (need(), nodes((1, 0), (1, 0), (1, 0))),
        (need(8, 8, 1), nodes((64, 8), (1, 0))),
        (need(8, 8, 1, (4, 1)), nodes((64, 8), (4, 1))),
        # The evaluator must go where it takes no worker's place.
        (need(2, 2, 0, (1, 0)), nodes((2, 0), (3, 0))),
        (need(10, 0.1), nodes((1, 0), (1, 0))),
        (need(1, 1, 0, (0, 0)), nodes((1, 0))),
    ],
)
def test_what_fits(wanted, there):
    assert why_not(wanted, there) is None


@pytest.mark.parametrize(
    ("wanted", "there", "reason"),
    [
        (need(8, 1, 1), nodes((64, 4)), "asks for 8 GPUs with its evaluator, the cluster has 4"),
        (need(2, 1, 1, (1, 1)), nodes((64, 2)), "asks for 3 GPUs"),
        (need(4), nodes((2, 0), (2, 0)), "asks for 5 CPUs"),
        (need(1, 4), nodes((3, 0), (3, 0)), r"no node has room for one worker \(4 CPUs and 0 GPUs\); .* 3 CPUs"),
        (need(1, 1, 0, (4, 0)), nodes((3, 0), (3, 0)), r"no node has room for the evaluator \(4 CPUs"),
        (need(2, 2), nodes((3, 0), (2, 0), (0, 8)), None),
        (need(3, 2), nodes((3, 0), (3, 0), (1, 0)), "room for 2 workers, the run asks for 3"),
        (need(), [], "the cluster has 0"),
    ],
)
def test_why_not(wanted, there, reason):
    import re

    said = why_not(wanted, there)
    assert (said is None) if reason is None else re.search(reason, said)


def test_a_head_without_cpus_holds_no_worker():
    assert not holds_worker(Node("head", 0, 0), need())
    assert holds_worker(Node("node", 1, 0), need())
    assert not holds_worker(Node("node", 8, 0), need(1, 1, 1))


def test_nodes_of_the_dashboard_head_first_dead_ones_left_out():
    def entry(ip: str, head: bool, state: str, **resources: float) -> dict[str, object]:
        return {"node_ip": ip, "is_head_node": head, "state": state, "resources_total": {"memory": 1e9} | resources}

    listed = [
        entry("10.0.0.2", False, "ALIVE", CPU=4, GPU=2),
        entry("10.0.0.3", False, "DEAD", CPU=4, GPU=2),
        entry("10.0.0.9", True, "ALIVE"),
    ]
    assert parse_nodes(listed) == [Node("10.0.0.9", 0, 0), Node("10.0.0.2", 4, 2)]


@pytest.mark.parametrize(
    ("wanted", "free", "beside", "room"),
    [
        (need(), nodes((3, 0)), True, 2),
        (need(), nodes((3, 0)), False, 3),  # the evaluator is at work, and what is free is free
        (need(), nodes((1, 0), (1, 0)), True, 1),
        (need(), nodes((0, 0)), True, 0),
        (need(), [], True, 0),
        (need(2, 2), nodes((3, 0), (2, 0)), True, 2),
        (need(2, 2), nodes((1, 0), (1, 0)), False, 0),
        (need(4, 8, 1, (4, 1)), nodes((32, 4)), True, 3),
        (need(4, 8, 1, (0, 0)), nodes((32, 4), (8, 0)), True, 4),
    ],
)
def test_how_many_workers_there_is_room_for(wanted, free, beside, room):
    assert room_for_workers(wanted, free, beside_evaluator=beside) == room


def test_an_elastic_run_needs_only_its_minimum():
    config = make_config({"name": "a", "dataset": {"path": "/d"}, "workers": {"num": 8, "min": 2}})
    assert Need.of(config).workers == 2
