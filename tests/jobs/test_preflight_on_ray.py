"""The question is put to each node of a real cluster, and answers carry the node's name."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.nodes.local import ray_cluster
from cluster.runs.preflight import ask_nodes, check_cluster, checks_of, host_of
from sharding.errors import UserError
from sharding.index import read_split
from tests.faults.nodes import RAY
from trainer.config import make_config

pytestmark = [pytest.mark.slow, pytest.mark.timeout(280)]


def test_nodes_answer_by_name(
    tiny_dataset: Path, tiny_values: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    # A process keeps the first token that it uses, and other tests may have used one in this process before.
    monkeypatch.setenv("RAY_AUTH_TOKEN", RAY["RAY_AUTH_TOKEN"])
    (tmp_path / "run.json").write_text("{}")
    index, config = read_split(str(tiny_dataset), "train"), make_config(tiny_values)
    checks = checks_of(str(tmp_path), index)
    with ray_cluster(None, 3, 0):
        [node] = ray.nodes()
        gone = {**node, "NodeID": "e" * 56, "NodeManagerHostname": "gone"}
        assert ask_nodes([node], checks) == {}
        found = ask_nodes([node, gone], checks.model_copy(update={"dataset": "/nowhere/dataset.json"}))
        assert set(found) == {host_of(node), host_of(gone)}
        assert "cannot read /nowhere/dataset.json" in found[host_of(node)][0][0]
        assert "cannot run a task" in found[host_of(gone)][0][0]

        check_cluster(str(tmp_path), config, index)
        with pytest.raises(UserError, match=r"asks for 1e\+03 GPUs|asks for 1000 GPUs"):
            check_cluster(str(tmp_path), make_config(tiny_values, ["workers.gpus=500"]), index)
        with pytest.raises(UserError, match="does not see the run's folder"):
            check_cluster(str(tmp_path / "elsewhere"), config, index)
