"""Errors, class names and paths may hold what rich takes for markup; all of it reaches the user as it is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cluster.cli.evaluate import print_record
from cluster.cli.shards_view import console
from cluster.cli.train import drive_with_progress
from sharding.index import read_split
from trainer.config import make_config
from trainer.run.registry import RunRegistry

#: From a message of gloo's: a closing tag that closes nothing. Unescaped it is an exception. Then what would be
#: swallowed as a style, and what would become a picture.
TEXTS = ("[/__w/gloo/pair.cc:545] Read error", "traffic [bold] light", "a :warning: sign")


@pytest.mark.parametrize("text", TEXTS)
def test_what_a_driver_says(
    text: str,
    tiny_values: dict[str, Any],
    tiny_dataset: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from cluster.runs import launch

    def drive(registry: object, watch: object, take_over: bool, log: Callable[[str], None]) -> launch.Outcome:
        log(f"attempt 1 failed ({text}); trying again in 1 s: failure 1 of 3 without a new checkpoint in between")
        return launch.Outcome("finished", result={})

    monkeypatch.setattr(launch, "drive", drive)
    dataset = read_split(str(tiny_dataset), "train").dataset
    registry = RunRegistry.create(str(tmp_path), make_config(tiny_values), dataset)
    assert drive_with_progress(registry).outcome == "finished"
    lines = capsys.readouterr().out.splitlines()
    assert any(f"({text}); trying again in 1 s" in line for line in lines), "whole, and in one line"


@pytest.mark.parametrize("text", TEXTS)
def test_the_name_of_a_class(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    record = {"ap": [0.5], "positives": [1], "negatives": [2], "map": 0.5, "classes_averaged": 1}
    print_record(record | {"checkpoint": "00000001-a0001", "split": "val", "alpha": 5}, [text])
    assert text in capsys.readouterr().out


@pytest.mark.parametrize("text", TEXTS)
def test_a_path_of_shards(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    console().print(f"complete: /data/{text}")
    assert text in capsys.readouterr().out
