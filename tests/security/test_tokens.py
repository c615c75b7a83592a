"""Whatever listens beyond loopback wants a token, and the token comes by file or environment only."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.deploy import files
from cluster.deploy.plan import plan
from trainer.config import RunConfig, load_config

ROOT = Path(__file__).resolve().parents[2]
RAY = str(Path(sys.executable).parent / "ray")


def rendered(target: str) -> dict[str, str]:
    config = load_config(str(ROOT / "configs" / "openimages_v3.yaml"))
    return files.render(target, plan(config, "boostlu", "s3://bucket"))


def test_the_image_s_ray_wants_a_token() -> None:
    assert re.search(r"^ENV .*(\\\n.*)*RAY_AUTH_MODE=token", (ROOT / "Dockerfile").read_text(), re.MULTILINE)


def test_with_that_mode_ray_does_not_start_without_a_token(tmp_path: Path) -> None:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    environment |= {"RAY_AUTH_MODE": "token", "HOME": str(tmp_path), "RAY_USAGE_STATS_ENABLED": "0"}
    started = subprocess.run(
        [RAY, "start", "--head", "--port", "0", "--node-ip-address", "127.0.0.1", "--temp-dir", str(tmp_path / "r")],
        env=environment, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert started.returncode != 0
    assert "token" in (started.stderr + started.stdout).lower()


def test_a_private_cluster_has_a_token_of_its_own_on_loopback() -> None:
    from cluster.nodes import local

    source = ast.parse(Path(local.__file__).read_text())
    keywords = {k.arg: ast.unparse(k.value) for n in ast.walk(source) if isinstance(n, ast.Call) for k in n.keywords}
    assert keywords["_node_ip_address"] == "'127.0.0.1'"
    assert keywords["include_dashboard"] == "False"
    assert local._LOCAL_ENVIRONMENT["RAY_AUTH_MODE"] == "token"


#: Stands for a run; when its URL is asked for, the cluster that evaluates it is there, and is looked at.
LOOKS_AT_THE_CLUSTER = """
from types import SimpleNamespace
from cluster.cli.evaluate import _evaluate_there
from trainer.evaluation import EvaluateConfig

class Run:
    def config(self, _):
        return SimpleNamespace(evaluate=EvaluateConfig())

    @property
    def url(self):
        import ray

        print("nodes at", [node["NodeManagerAddress"] for node in ray.nodes()])
        raise SystemExit

_evaluate_there("local", Run(), None, "val", [])
"""


@pytest.mark.slow
def test_the_cluster_of_evaluate_ray_local_stays_on_loopback() -> None:
    """Ray must not be imported before its settings are made: it would listen where the whole network reaches it."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    done = subprocess.run(
        [sys.executable, "-c", LOOKS_AT_THE_CLUSTER],
        env=environment, cwd=ROOT, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert "nodes at ['127.0.0.1']" in done.stdout, done.stderr


def test_compose_wants_a_token_and_publishes_loopback_only() -> None:
    services = yaml.safe_load(rendered("compose")["compose.yaml"])["services"]
    ray_services = {name: s for name, s in services.items() if s.get("entrypoint") == ["ray"]}
    assert ray_services.keys() == {"head", "worker", "evaluator"}
    for service in ray_services.values():
        assert service["environment"]["RAY_AUTH_MODE"] == "token"
        assert "ray.env" in service["env_file"]
        assert "ports" not in service
    for service in services.values():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))


def test_kuberay_wants_a_token_and_opens_no_way_in() -> None:
    for text in rendered("kuberay").values():
        document = list(yaml.safe_load_all(text))[1]
        cluster: dict[str, Any] = document["spec"].get("rayClusterSpec", document["spec"])
        assert cluster["authOptions"]["mode"] == "token"
        assert cluster["headGroupSpec"]["serviceType"] == "ClusterIP"
        assert "enableIngress" not in cluster["headGroupSpec"]


def test_ray_up_wants_a_token() -> None:
    content = yaml.safe_load(rendered("ray-up")["ray-up-aws.yaml"])
    assert "--env=RAY_AUTH_MODE=token" in content["docker"]["run_options"]
    starts = [*content["head_start_ray_commands"], *content["worker_start_ray_commands"]]
    assert all("ray.env" in command for command in starts if "ray start" in command)


@pytest.mark.parametrize("target", files.TARGETS)
def test_the_dashboard_stays_on_loopback(target: str) -> None:
    """KubeRay's operator and submitter need it in the pod network, with the token; our files open it no further."""
    hosts = [
        host for text in rendered(target).values() for host in re.findall(r"dashboard-host[^0-9]*([\d.]+)", text)
    ]
    assert set(hosts) <= {"127.0.0.1"}
    assert hosts or target == "kuberay"


def test_no_option_takes_a_token() -> None:
    """A command line is for every user of the machine to see."""
    import typer

    from cluster.cli import main as cli

    group: Any = typer.main.get_command(cli.app)
    pending, options = [group.get_command(None, name) for name in cli.COMMANDS], []
    while pending:
        command = pending.pop()
        pending += getattr(command, "commands", {}).values()
        options += [option for parameter in command.params for option in parameter.opts]
    assert len(options) > 50
    assert not [option for option in options if re.search("token|password|secret|credential", option)]


def test_no_setting_takes_a_token() -> None:
    """A configuration is copied into the run's directory, the report and the job."""

    def keys(schema: Any) -> list[str]:
        if isinstance(schema, dict):
            own = list(schema.get("properties", {}))
            return own + [key for value in schema.values() for key in keys(value)]
        return [key for value in schema for key in keys(value)] if isinstance(schema, list) else []

    found = keys(RunConfig.model_json_schema())
    assert len(found) > 50
    assert not [key for key in found if re.search("token|password|secret|credential", key)]
