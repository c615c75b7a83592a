"""Grafana's dashboard asks only for metrics that a run has, and shows all of them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml

from cluster.runs.metrics import METRICS, exported, values
from trainer.watch.telemetry import Telemetry

FOLDER = Path(__file__).resolve().parents[2] / "cluster" / "deploy" / "grafana"
DASHBOARD = json.loads((FOLDER / "boostlu.json").read_text())


def queries() -> list[str]:
    variables = [variable["query"] for variable in DASHBOARD["templating"]["list"]]
    return [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]] + variables


@pytest.mark.parametrize("query", queries())
def test_every_query_names_metrics_that_exist(query: str) -> None:
    named = set(re.findall(r"\bray_\w+", query))
    assert named
    assert named <= {exported(name) for name in METRICS}
    assert query.count("(") == query.count(")")


def test_every_metric_is_shown() -> None:
    shown = {name for query in queries() for name in re.findall(r"\bray_\w+", query)}
    assert shown == {exported(name) for name in METRICS}


def test_only_counters_are_rated() -> None:
    rated = {name for query in queries() for name in re.findall(r"rate\((\w+)", query)}
    assert rated == {exported(name) for name, metric in METRICS.items() if metric.kind == "counter"}


def test_panels_use_the_provisioned_source() -> None:
    sources = yaml.safe_load((FOLDER / "datasources.yaml").read_text())["datasources"]
    assert {panel["datasource"]["uid"] for panel in DASHBOARD["panels"]} == {source["uid"] for source in sources}


def test_what_is_recorded_from_two_reports() -> None:
    """160 samples in 4 seconds of steps and 1 of waiting; half a second of the steps was communication."""
    before = Telemetry(step=10, epoch=1, samples=160, steps=10, seconds=4.0, waited=1.0, communicated=0.5)
    now = Telemetry(
        step=20, epoch=2, loss=0.25, samples=320, steps=20, seconds=8.0, waited=2.0, communicated=1.0,
        last_step_seconds=0.4, memory_bytes=1000, checkpoint_stall=0.1, checkpoint_seconds=0.5, corrections=7,
    )  # fmt: skip
    found = values(now, before)
    assert found.keys() == METRICS.keys() - {
        "boostlu_evaluation_queue", "boostlu_validation_map", "boostlu_validation_map_best"
    }  # fmt: skip
    assert found["boostlu_samples_per_second"] == 32
    assert found["boostlu_computing_seconds"] == pytest.approx(3.5)
    assert found["boostlu_communication_seconds"] == pytest.approx(0.5)
    assert (found["boostlu_steps"], found["boostlu_samples"], found["boostlu_corrections"]) == (10, 160, 7)
    assert "boostlu_loss" not in values(before, before)


def test_the_documented_metrics_are_those_that_exist() -> None:
    documented = (FOLDER.parents[2] / "docs" / "OBSERVABILITY.md").read_text()
    rows = dict(re.findall(r"^\| `(ray_\w+)` \| (.*) \|$", documented, re.MULTILINE))
    assert rows == {exported(name): metric.description for name, metric in METRICS.items()}
