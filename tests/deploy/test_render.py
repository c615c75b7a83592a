"""`boostlu deploy`: files made for a configuration, valid by the tools that will read them, and without secrets."""

from __future__ import annotations

import copy
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from cluster.cli import main as cli
from cluster.deploy import files, kuberay, ray_up
from cluster.deploy.plan import Deployment, plan
from sharding.errors import UserError
from tests.deploy import kuberay_schema
from trainer.config import load_config

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "configs"
PRESETS = sorted(CONFIGS.glob("*.yaml"))


def deployment(preset: str = "digits", *overrides: str, nodes: int | None = None) -> Deployment:
    config = load_config(str(CONFIGS / f"{preset}.yaml"), overrides)
    return plan(config, "registry.example/boostlu:1", "s3://bucket/team", nodes)


def documents(text: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(text))


# ── from a configuration to nodes ─────────────────────────────────────────────────────────────────────────────────


def test_nodes_have_what_the_run_reserves() -> None:
    """Eight training workers of 6 CPUs and 1 GPU, an evaluator of 4 CPUs and 1 GPU; four workers a node."""
    planned = deployment("openimages_v3", nodes=2)
    assert (planned.training.count, planned.training.cpus, planned.training.gpus) == (2, 24, 4)
    assert planned.evaluators is not None
    assert (planned.evaluators.count, planned.evaluators.cpus, planned.evaluators.gpus) == (1, 4, 1)
    assert planned.head.gpus == 0


def test_an_evaluator_without_a_gpu_runs_on_the_head() -> None:
    planned = deployment("coco", "evaluate.cpus=3")
    assert planned.evaluators is None
    assert planned.head.cpus >= 3


def test_uneven_workers_round_up() -> None:
    assert deployment("digits", "workers.num=5", "workers.cpus=1.5", nodes=2).training.cpus == 5  # 3 x 1.5


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"nodes": 3}, "3 nodes for workers.num=2"),
        ({"nodes": 0}, "0 nodes"),
        ({"storage_url": "/data"}, "not a URL that every node reaches"),
        ({"storage_url": "file:///data"}, "not a URL that every node reaches"),
    ],
)
def test_what_cannot_be_deployed_is_said(change: dict[str, Any], expected: str) -> None:
    arguments = {"image": "boostlu", "storage_url": "s3://b", "nodes": None, **change}
    with pytest.raises(UserError, match=expected):
        plan(load_config(str(CONFIGS / "digits.yaml")), **arguments)


def test_a_machine_type_that_is_too_small_is_not_chosen() -> None:
    assert ray_up.machine(deployment("openimages_v3", nodes=2).training, "aws") == "g6e.12xlarge"
    with pytest.raises(UserError, match="no machine type of gcp"):
        ray_up.machine(deployment("openimages_v3", "workers.cpus=300", nodes=8).training, "gcp")


def test_the_local_dataset_is_looked_for_on_the_storage() -> None:
    assert deployment().config.dataset.path == "s3://bucket/team/data/digits"
    remote = deployment("digits", "dataset.path=s3://elsewhere/digits")
    assert remote.config.dataset.path == "s3://elsewhere/digits"


# ── Docker Compose ────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_committed_compose_files_are_the_rendered_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`boostlu deploy render compose configs/digits.yaml --output cluster/deploy` makes them."""
    arguments = ["boostlu", "deploy", "render", "compose", str(CONFIGS / "digits.yaml"), "--output", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit):
        cli.main()
    rendered = {path.relative_to(tmp_path): path.read_text() for path in tmp_path.rglob("*") if path.is_file()}
    assert Path("compose.yaml") in rendered
    committed = ROOT / "cluster" / "deploy"
    assert {name: (committed / name).read_text() for name in rendered} == rendered
    kept = {path.relative_to(committed) for path in committed.rglob("*") if path.suffix in {".yaml", ".json"}}
    assert kept == set(rendered)


@pytest.mark.parametrize("preset", ["digits", "openimages_v3"])
def test_compose_s_own_parser_accepts_the_file(preset: str, tmp_path: Path) -> None:
    """`config` reads, merges and validates without a daemon, and wants the files that are named to exist."""
    if (compose := _compose_command()) is None:
        pytest.skip("needs docker compose (Debian: docker-compose)")
    folder = tmp_path / "deploy"
    files.write(folder, files.render("compose", deployment(preset)))
    files.write_secrets(folder)
    everything = [f"--profile={name}" for name in ("train", "tools", "tensorboard", "metrics")]
    if compose == ["docker-compose"]:  # version 1 takes the profiles from the environment
        everything = []
    done = subprocess.run(
        [*compose, "-f", str(folder / "compose.yaml"), *everything, "config"],
        capture_output=True, text=True, timeout=60,
        env={"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": str(tmp_path),
             "COMPOSE_PROFILES": "train,tools,tensorboard,metrics"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    resolved = yaml.safe_load(done.stdout)["services"]
    assert {"head", "worker", "storage", "train", "boostlu", "prometheus", "grafana", "tensorboard"} <= set(resolved)
    assert resolved["head"]["environment"]["RAY_AUTH_MODE"] == "token"
    assert len(resolved["worker"]["environment"]["RAY_AUTH_TOKEN"]) == 64


def _compose_command() -> list[str] | None:
    if shutil.which("docker-compose"):
        return ["docker-compose"]
    if shutil.which("docker"):
        known = subprocess.run(["docker", "compose", "version"], capture_output=True, check=False)
        if known.returncode == 0:
            return ["docker", "compose"]
    return None


def test_compose_names_only_what_it_has() -> None:
    """Dependencies, volumes and mounted files exist; every port is on the host's loopback."""
    rendered = files.render("compose", deployment())
    content = yaml.safe_load(rendered["compose.yaml"])
    services = content["services"]
    for service in services.values():
        assert set(service.get("depends_on", [])) <= set(services)
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            assert source in content["volumes"] or source.removeprefix("./") in rendered
    assert services["train"]["network_mode"] == services["boostlu"]["network_mode"] == "service:head"
    assert not [
        name for name, service in services.items() if name != "grafana" and "head" in str(service.get("ports"))
    ]


def test_gpus_are_reserved_where_the_run_uses_them() -> None:
    services = yaml.safe_load(files.render("compose", deployment("openimages_v3", nodes=1))["compose.yaml"])[
        "services"
    ]
    reserved = {
        name: service["deploy"]["resources"]["reservations"]["devices"][0]["count"]
        for name, service in services.items()
        if "resources" in service.get("deploy", {})
    }
    assert reserved == {"worker": 8, "evaluator": 1}


# ── KubeRay ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("preset", PRESETS, ids=lambda path: path.stem)
@pytest.mark.parametrize("spot", [False, True])
def test_kuberay_manifests_are_valid(preset: Path, spot: bool) -> None:
    """Every field is known to the operator; pods and config maps are valid Kubernetes objects."""
    import kubernetes_validate

    rendered = files.render("kuberay", deployment(preset.stem), "gcp", spot)
    for name, kind, spec in (
        ("rayjob.yaml", "RayJob", kuberay_schema.JOB),
        ("raycluster.yaml", "RayCluster", kuberay_schema.CLUSTER),
    ):
        config_map, document = documents(rendered[name])
        jsonschema.validate(document, kuberay_schema.resource(kind, spec))
        kubernetes_validate.validate(config_map, "1.33", strict=True)
        for number, template in enumerate(_templates(document)):
            pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": f"pod-{number}"}, "spec": template["spec"]}
            kubernetes_validate.validate(pod, "1.33", strict=True)
        assert load_config_text(config_map["data"]["run.yaml"]) == deployment(preset.stem).config


def load_config_text(text: str) -> Any:
    from trainer.config import make_config

    return make_config(yaml.safe_load(text))


def _cluster(document: dict[str, Any]) -> dict[str, Any]:
    return document["spec"].get("rayClusterSpec", document["spec"])


def _templates(document: dict[str, Any]) -> list[dict[str, Any]]:
    cluster = _cluster(document)
    return [cluster["headGroupSpec"]["template"], *(group["template"] for group in cluster["workerGroupSpecs"])]


def test_the_structural_check_refuses_what_the_operator_does_not_know() -> None:
    _, document = kuberay.render_job(deployment(), "aws", False)
    wrong = copy.deepcopy(document)
    wrong["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["replica"] = 2
    with pytest.raises(jsonschema.ValidationError, match="replica"):
        jsonschema.validate(wrong, kuberay_schema.resource("RayJob", kuberay_schema.JOB))


def test_spot_nodes_are_for_training_only() -> None:
    _, document = kuberay.render_job(deployment("openimages_v3"), "aws", spot=True)
    head, training, evaluators = (template["spec"] for template in _templates(document))
    assert training["nodeSelector"] == {"eks.amazonaws.com/capacityType": "SPOT"}
    assert "nodeSelector" not in head
    assert "nodeSelector" not in evaluators
    assert {t["key"] for t in training["tolerations"]} == {"nvidia.com/gpu", "eks.amazonaws.com/capacityType"}
    assert "tolerations" not in head


def test_a_retried_job_goes_on_with_its_run() -> None:
    """Every try is a new cluster, so the command itself must be one that can be repeated."""
    _, document = kuberay.render_job(deployment(), "aws", False)
    assert document["spec"]["backoffLimit"] > 0
    assert "--resume" in document["spec"]["entrypoint"].split()
    assert document["spec"]["rayClusterSpec"]["authOptions"]["mode"] == "token"


def test_requests_are_limits() -> None:
    """A pod with less memory than it may use is the first to be ended when its node runs short."""
    for documents_ in (kuberay.render_job, kuberay.render_cluster):
        for template in _templates(documents_(deployment("openimages_v3"), "aws", False)[1]):
            resources = template["spec"]["containers"][0]["resources"]
            assert resources["requests"] == resources["limits"]


# ── ray up ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("preset", PRESETS, ids=lambda path: path.stem)
@pytest.mark.parametrize("cloud", ["aws", "gcp"])
@pytest.mark.parametrize("spot", [False, True])
def test_ray_s_own_validator_accepts_the_cluster_file(preset: Path, cloud: Any, spot: bool) -> None:
    """What `ray up` does before it calls a cloud: lay the file over the provider's defaults, check, split by type."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    content = ray_up.render(deployment(preset.stem), cloud, spot)
    prepared = prepare_config(copy.deepcopy(content))
    validate_config(prepared)
    # The defaults' own node types must not come along.
    assert set(prepared["available_node_types"]) == set(content["available_node_types"])


def test_ray_s_validator_would_refuse_a_wrong_key() -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    content = ray_up.render(deployment(), "aws", False)
    content["available_node_types"]["training"]["minimum_workers"] = 1
    with pytest.raises(jsonschema.ValidationError):
        validate_config(prepare_config(content))


def test_lost_nodes_are_replaced_and_idle_ones_are_not_kept() -> None:
    content = ray_up.render(deployment("openimages_v3", nodes=2), "aws", spot=True)
    training = content["available_node_types"]["training"]
    assert (training["min_workers"], training["max_workers"]) == (2, 4)
    assert training["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert "InstanceMarketOptions" not in content["available_node_types"]["evaluator"]["node_config"]
    assert content["max_workers"] == 6


# ── every target ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("target", files.TARGETS)
def test_commands_in_the_files_are_commands(target: str) -> None:
    """Each `ray start`, `boostlu train` and `boostlu submit` parses with the options of the version at hand."""
    from ray.scripts.scripts import start

    group: Any = cli.typer.main.get_command(cli.app)
    parsers = {
        ("ray", "start"): start,
        **{("boostlu", name): group.get_command(None, name) for name in ("train", "submit")},
    }
    found = 0
    for words in _commands(files.render(target, deployment())):
        for prefix, parser in parsers.items():
            if tuple(words[: len(prefix)]) == prefix:
                parser.make_context(" ".join(prefix), words[len(prefix) :], resilient_parsing=False).close()
                found += 1
    assert found >= 1


def _commands(rendered: dict[str, str]) -> list[list[str]]:
    """Return every command line that the files run, as words."""
    import shlex

    lines: list[list[str]] = []
    for name, text in rendered.items():
        for document in documents(text) if name.endswith(".yaml") else []:
            services = document.get("services", {}).values()
            lines += [[*service.get("entrypoint", ["boostlu"]), *service.get("command", [])] for service in services]
            for key in ("head_start_ray_commands", "worker_start_ray_commands"):
                lines += [shlex.split(part) for line in document.get(key, []) for part in line.split(";")]
            if document.get("kind") == "RayJob":
                lines.append(shlex.split(document["spec"]["entrypoint"]))
    return lines


@pytest.mark.parametrize("target", files.TARGETS)
def test_no_secret_and_no_local_place_is_in_a_file(target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "a-token-that-must-not-leak")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a-key-that-must-not-leak")
    everything = "\n".join(files.render(target, deployment()).values())
    assert "must-not-leak" not in everything
    assert str(ROOT) not in everything
    assert "RAY_AUTH_TOKEN=" not in everything


def test_secrets_are_random_private_and_never_replaced(tmp_path: Path) -> None:
    first, second = files.write_secrets(tmp_path / "a"), files.write_secrets(tmp_path / "b")
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in first)
    assert all(a.read_text() != b.read_text() for a, b in zip(first, second, strict=True))
    before = [path.read_text() for path in first]
    with pytest.raises(UserError, match=r"ray\.env"):
        files.write_secrets(tmp_path / "a")
    assert [path.read_text() for path in first] == before


def test_secrets_are_not_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["boostlu", "deploy", "secrets", "--output", str(tmp_path)])
    with pytest.raises(SystemExit):
        cli.main()
    printed = capsys.readouterr()
    values = [line.partition("=")[2] for path in tmp_path.iterdir() for line in path.read_text().splitlines()]
    assert not [value for value in values if len(value) > 16 and value in printed.out + printed.err]
