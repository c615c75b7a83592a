"""The road of docs/DEPLOY.md with Compose: from the rendered files to a finished run of two workers."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from cluster.deploy import files
from cluster.deploy.plan import plan
from tests.deploy.containers import ROOT, Containers, missing
from trainer.config import load_config

pytestmark = [pytest.mark.slow, pytest.mark.hosts, pytest.mark.timeout(1500)]


def test_from_nothing_to_a_finished_run_of_two_workers(tmp_path: Path) -> None:
    if reason := missing():
        pytest.skip(reason)
    config = load_config(str(ROOT / "configs" / "digits.yaml"), ["epochs=2", "workers.hang_seconds=300"])
    files.write(tmp_path, files.render("compose", plan(config, "boostlu", "s3://boostlu")))
    files.write_secrets(tmp_path)
    with Containers(tmp_path) as containers:
        containers.start_storage("boostlu")
        containers.start("head")
        containers.wait_healthy("head")
        for number in range(2):
            containers.start("worker", f"worker{number}")
        build = "shards build digits --output s3://boostlu/data/digits --single-positive 1200 --set train=640"
        built = containers.run("boostlu", *build.split())
        assert built.returncode == 0, built.stdout
        # The two workers' CPUs beside the head's two.
        containers.wait(lambda: "of 4 CPUs" in containers.run("boostlu", "cluster", "status").stdout, "the workers")
        trained = containers.run("train", timeout=900)
        assert trained.returncode == 0, trained.stdout + containers.logs()
        assert "test mAP of that checkpoint" in trained.stdout
        shown = containers.run("boostlu", "runs", "show", "digits", "--runs", "s3://boostlu/runs").stdout
        assert "digits (finished) at s3://boostlu/runs/digits" in shown
        again = containers.run("train")
        assert again.returncode == 0
        assert "finished already" in again.stdout
        _metrics_are_served(containers)


def _metrics_are_served(containers: Containers) -> None:
    """At the port that prometheus.yaml scrapes, from another place; from there the dashboard cannot be reached."""
    read = "import sys, urllib.request as u; print(u.urlopen(sys.argv[1], timeout=20).read().decode())"
    for host in ("head", "worker"):
        assert "ray_" in containers.inside("storage", sys.executable, "-c", read, f"http://{host}:8080/metrics")
    probe = "import socket; s = socket.socket(); s.settimeout(5); print(s.connect_ex(('head', 8265)))"
    assert containers.inside("storage", sys.executable, "-c", probe).strip() != "0"
    assert containers.inside("head", sys.executable, "-c", probe.replace("head", "127.0.0.1")).strip() == "0"
