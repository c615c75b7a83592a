"""One run on a cluster with a token, watched from outside: its metrics as Prometheus reads them, its traces, and
where the token is not."""

from __future__ import annotations

import gzip
import json
import signal
import subprocess
import time
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from cluster.runs.metrics import METRICS, exported
from sharding.build import build_dataset
from sharding.overlays import write_single_positive
from tests.faults.jobs import BOOSTLU
from tests.jobs.ray_head import RayHead, ray_head
from trainer.run.events import read_events, step_history
from trainer.run.registry import RunRegistry

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

SAMPLES = 160


@dataclass
class Observed:
    """registry: of the run · scraped: metric → value while it trained · token · command_lines: of all processes ·
    texts: file → content of what the run and Ray have written"""

    registry: RunRegistry
    token: str
    scraped: dict[str, float] = field(default_factory=dict)
    command_lines: list[str] = field(default_factory=list)
    texts: dict[str, bytes] = field(default_factory=dict)


@pytest.fixture(scope="module")
def observed(tmp_path_factory: pytest.TempPathFactory) -> Observed:
    folder = tmp_path_factory.mktemp("observed")
    config = _config(folder)
    registry = RunRegistry(str(folder / "runs" / "watched"))
    with ray_head(cpus=3) as head:
        found = Observed(registry, head.token_file.read_text())
        # Else Ray takes 127.0.0.1 for a mistake and looks for the head at the machine's outside address.
        environment = head.environment | {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
        command = [*BOOSTLU, "train", str(config), "--runs", str(folder / "runs"), "--address", head.address]
        with (
            open(folder / "driver.log", "wb") as log,
            subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT) as driver,
        ):
            try:
                _scrape_until_complete(head, driver, found, folder / "driver.log")
            finally:
                driver.send_signal(signal.SIGTERM)
        assert driver.returncode == 130, (folder / "driver.log").read_text()
        _read_everything(found, folder, head.token_file.parent / "ray")
        found.texts.pop(str(head.token_file), None)
    return found


def _config(folder: Path) -> Path:
    root = str(folder / "digits")
    build_dataset("digits", root, {"train": SAMPLES, "val": 24, "test": 24, "side": 64})
    write_single_positive(root)
    values = {
        "name": "watched",
        "epochs": 5000,
        "dataset": {"path": root, "labels": "single-positive-1200", "image_size": 32},
        "plan": {"global_batch": 16},
        "loader": {"threads": 1},
        "model": {"backbone": "small_resnet:4", "weights": "none"},
        "loss": {"name": "ll-cp", "delta": 2},
        "workers": {"num": 2},
        "profile": {"steps": "4:8"},
    }
    path = folder / "watched.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def _scrape_until_complete(head: RayHead, driver: subprocess.Popen[bytes], found: Observed, log: Path) -> None:
    """Ask every endpoint that Ray lists for Prometheus until the run's metrics are all there."""
    targets = head.token_file.parent / "ray" / "prom_metrics_service_discovery.json"
    deadline = time.monotonic() + 480
    while {exported(name) for name in METRICS} - found.scraped.keys():
        assert driver.poll() is None, log.read_text()
        assert time.monotonic() < deadline, sorted({exported(n) for n in METRICS} - found.scraped.keys())
        time.sleep(1)
        if targets.exists():
            for endpoint in json.loads(targets.read_text())[0]["targets"]:
                found.scraped |= _scrape(endpoint)
    found.command_lines = [" ".join(p.info["cmdline"] or []) for p in psutil.process_iter(["cmdline"])]


def _scrape(endpoint: str) -> dict[str, float]:
    try:
        with urllib.request.urlopen(f"http://{endpoint}/metrics", timeout=5) as answer:
            text = answer.read().decode()
    except OSError:
        return {}
    samples = (sample for family in text_string_to_metric_families(text) for sample in family.samples)
    return {s.name: s.value for s in samples if s.labels.get("run") == "watched"}


def _read_everything(found: Observed, *folders: Path) -> None:
    for folder in folders:
        for path in folder.rglob("*"):
            if path.is_file() and not path.is_symlink():
                content = path.read_bytes()
                found.texts[str(path)] = gzip.decompress(content) if path.suffix == ".gz" else content


def test_prometheus_finds_every_metric_with_the_run_s_name(observed: Observed) -> None:
    value: dict[str, Any] = {name: observed.scraped[exported(name)] for name in METRICS}
    history = step_history(read_events(observed.registry.url))
    losses = [event["loss"] for event in history]
    assert any(value["boostlu_loss"] == pytest.approx(loss, rel=1e-6) for loss in losses)
    assert 0 < value["boostlu_step"] <= len(history)
    assert 0 < value["boostlu_steps"] <= len(history)
    assert 0 < value["boostlu_samples"] <= SAMPLES * value["boostlu_epoch"]
    assert value["boostlu_samples"] == 16 * value["boostlu_steps"]
    assert value["boostlu_samples_per_second"] > 0
    assert 0 < value["boostlu_step_seconds"] <= max(event["seconds"] for event in history)
    total = sum(event["seconds"] + event["waited"] for event in history)
    parts = [value[f"boostlu_{name}_seconds"] for name in ("computing", "communication", "data_wait")]
    assert all(part > 0 for part in parts)
    assert sum(parts) <= total
    assert value["boostlu_device_memory_bytes"] > 50e6
    assert 0 < value["boostlu_checkpoint_stall_seconds"] <= value["boostlu_checkpoint_seconds"]
    assert value["boostlu_corrections"] > 0
    assert value["boostlu_evaluation_queue"] >= 0
    assert 0 < value["boostlu_validation_map"] <= value["boostlu_validation_map_best"] <= 1


def test_every_rank_leaves_its_trace(observed: Observed) -> None:
    folder = Path(observed.registry.url) / "profile"
    assert sorted(path.name for path in folder.iterdir()) == ["0001-0000.json.gz", "0001-0001.json.gz"]
    for path in folder.iterdir():
        names = [event["name"] for event in json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]]
        assert names.count("Optimizer.step#Adam.step") == 4
        assert "aten::convolution_backward" in names
        assert any("allreduce" in name for name in names), "the gradient all-reduce"


def test_the_token_is_in_no_file_and_on_no_command_line(observed: Observed) -> None:
    """The run's directory, the driver's output, all that Ray logs; and every process of the machine."""
    assert len(observed.token) == 64
    assert any("RayTrainWorker" in line for line in observed.command_lines)
    assert len(observed.texts) > 20
    assert not [name for name, content in observed.texts.items() if observed.token.encode() in content]
    assert not [line for line in observed.command_lines if observed.token in line]
