"""`profile.steps=FIRST:END`: a trace that exists and holds the step's operators, and nothing when it is off."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from sharding.errors import UserError
from tests.attempts import attempt, losses, start
from trainer.config import load_config, make_config


def operators(trace: Path) -> list[str]:
    return [event["name"] for event in json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]]


def test_the_trace_of_the_asked_steps_is_in_the_run(tiny_values: dict[str, Any], tmp_path: Path) -> None:
    registry = start(make_config(tiny_values, ["profile.steps=2:4"]), tmp_path)
    assert attempt(registry)
    traces = list((Path(registry.url) / "profile").iterdir())
    assert [trace.name for trace in traces] == ["0001-0000.json.gz"]
    found = operators(traces[0])
    assert "aten::conv2d" in found
    assert "aten::convolution_backward" in found
    assert found.count("Optimizer.step#Adam.step") == 2


def test_profiling_changes_no_result(tiny_values: dict[str, Any], tmp_path: Path) -> None:
    plain, profiled = (
        start(make_config(tiny_values, overrides), tmp_path / str(number))
        for number, overrides in enumerate(([], ["profile.steps=1:3"]))
    )
    for registry in (plain, profiled):
        attempt(registry)
    assert losses(plain) == losses(profiled)
    assert not (Path(plain.url) / "profile").exists()


def test_a_run_that_stops_within_the_range_leaves_what_it_has(tiny_values: dict[str, Any], tmp_path: Path) -> None:
    registry = start(make_config(tiny_values, ["profile.steps=2:1000"]), tmp_path)
    assert not attempt(registry, stop_at=4)
    assert operators(Path(registry.url) / "profile" / "0001-0000.json.gz").count("Optimizer.step#Adam.step") == 2


@pytest.mark.parametrize("written", ["profile: {steps: 20:30}", "profile: {steps: '20:30'}"])
def test_a_range_that_yaml_takes_for_a_time_is_read_as_written(written: str, tmp_path: Path) -> None:
    """YAML 1.1 reads 20:30 as 1230, a number to the base 60."""
    path = tmp_path / "x.yaml"
    path.write_text(f"dataset: {{path: /data}}\n{written}\n")
    config = load_config(str(path))
    assert config.profile.wanted() == range(20, 30)
    assert make_config({"name": "x", "dataset": {"path": "/data"}}, ["profile.steps=20:30"]).profile == config.profile
    again = tmp_path / "again.yaml"
    again.write_text(config.to_yaml())
    assert load_config(str(again)).profile == config.profile


@pytest.mark.parametrize("wrong", ["30:20", "20:20", "20", "a:b", "5"])
def test_a_wrong_range_is_refused(wrong: str) -> None:
    with pytest.raises(UserError, match=r"profile\.steps"):
        make_config({"name": "x", "dataset": {"path": "/data"}}, [f"profile.steps={wrong}"])
