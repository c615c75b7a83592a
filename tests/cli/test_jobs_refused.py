"""Jobs that cannot work are refused at once, by their reason; the dashboard here is a small HTTP server."""

from __future__ import annotations

import json
import socket
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml

from cluster.cli import main as cli
from cluster.jobs.dashboard import dashboard_url, open_dashboard, read_token
from cluster.jobs.job import check_version
from cluster.jobs.submission import Job, next_id
from cluster.nodes.capacity import Need
from cluster.nodes.connection import explain, reach
from cluster.nodes.inventory import await_room
from sharding.errors import UserError

TOKEN = "s3cret-token-of-the-cluster"


class FakeDashboard:
    """Answers like Ray's: ``answers`` maps a path to JSON; without TOKEN 401, with another 403."""

    def __init__(self) -> None:
        self.answers: dict[str, Any] = {"/api/version": {"ray_version": ray.__version__}}
        fake = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                token = self.headers.get("Authorization")
                status = 401 if token is None else 200 if token == f"Bearer {TOKEN}" else 403
                answer = fake.answers.get(self.path.split("?")[0])
                self.send_response(status if answer is not None or status != 200 else 404)
                self.end_headers()
                self.wfile.write(answer if isinstance(answer, bytes) else json.dumps(answer).encode())

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"


@pytest.fixture
def fake() -> Iterator[FakeDashboard]:
    dashboard = FakeDashboard()
    thread = threading.Thread(target=dashboard.server.serve_forever, args=(0.02,))
    thread.start()
    yield dashboard
    dashboard.server.shutdown()
    dashboard.server.server_close()
    thread.join()


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE", "RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.fixture
def config_file(tiny_values: dict[str, Any], tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(tiny_values))
    return path


def refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: object, status: int = 2
) -> str:
    """Run ``boostlu ARGUMENTS``; return what it says when it ends with ``status``."""
    monkeypatch.setattr(sys, "argv", ["boostlu", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    out, err = capsys.readouterr()
    assert ended.value.code == status, out + err
    return err if status == 2 else out


def closed_port() -> int:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return int(bound.getsockname()[1])


def test_no_cluster_at_the_address(config_file, monkeypatch, capsys):
    url = f"http://127.0.0.1:{closed_port()}"
    for command in (["submit", config_file], ["jobs", "list"], ["jobs", "stop", "tiny"], ["cluster", "status"]):
        said = refused(monkeypatch, capsys, *command, "--address", url)
        assert f"no Ray cluster answers at {url}" in said
        assert "tunnel" in said


@pytest.mark.parametrize("address", ["auto", "ray://head:10001", "http://", "http://me:word@head:8265"])
def test_an_address_of_another_kind(address):
    with pytest.raises(UserError) as error:
        dashboard_url(address)
    assert "word" not in error.value.problem.replace("password", "")


def test_a_bare_host_is_a_url():
    assert dashboard_url("head:8265") == "http://head:8265"
    assert dashboard_url("https://head/ray/") == "https://head"


def test_missing_and_wrong_tokens(fake, monkeypatch):
    monkeypatch.setenv("RAY_AUTH_TOKEN", "another")
    with pytest.raises(UserError, match="refuses the token") as wrong:
        open_dashboard(fake.url)
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    with pytest.raises(UserError, match="wants a token and none was found") as missing:
        open_dashboard(fake.url)
    assert all("RAY_AUTH_TOKEN_PATH" in error.value.remedy for error in (wrong, missing))
    assert "another" not in str(wrong.value)


def test_the_token_comes_from_a_file_and_is_never_shown(fake, monkeypatch, tmp_path):
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "absent"))
    with pytest.raises(UserError, match="cannot read RAY_AUTH_TOKEN_PATH"):
        read_token()
    (tmp_path / "token").write_text(TOKEN + "\n")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    dashboard = open_dashboard(fake.url)
    assert TOKEN not in repr(dashboard)
    assert dashboard.get("/api/version")["ray_version"] == ray.__version__


def test_another_version_of_ray(fake):
    fake.answers["/api/version"] = {"ray_version": "2.9.1"}
    with pytest.raises(UserError, match=r"runs Ray 2\.9\.1, this machine has Ray") as error:
        open_dashboard(fake.url)
    assert "ray[default,train]==2.9.1" in error.value.remedy


@pytest.mark.parametrize("answer", [b"<html>hello</html>", {}, [], None])
def test_something_else_listens_there(fake, answer):
    fake.answers["/api/version"] = answer
    with pytest.raises(UserError, match=r"not the dashboard|answers 404"):
        open_dashboard(fake.url)


def test_more_than_there_is(fake, config_file, monkeypatch, capsys):
    node = {"state": "ALIVE", "node_ip": "10.0.0.1", "is_head_node": True, "resources_total": {"CPU": 8.0}}
    fake.answers["/api/v0/nodes"] = {"data": {"result": {"result": [node]}}}
    fake.answers["/api/cluster_status"] = {
        "data": {"clusterStatus": {"loadMetricsReport": {"usage": {"CPU": [7, 8]}}}}
    }
    said = refused(monkeypatch, capsys, "submit", config_file, "workers.gpus=1", "--address", fake.url)
    assert "asks for 2 GPUs with its evaluator, the cluster has 0" in said
    said = refused(
        monkeypatch, capsys, "cluster", "status", config_file, "workers.num=9", "--address", fake.url, status=1
    )
    assert "free: 1 of 8 CPUs" in said
    assert "tiny does not fit: the run asks for 10 CPUs" in said
    said = refused(monkeypatch, capsys, "cluster", "status", config_file, "--address", fake.url, status=0)
    assert "tiny fits" in said
    assert "would have to wait" in said


def test_nodes_that_are_starting_are_waited_for(fake, monkeypatch):
    node = {"state": "ALIVE", "node_ip": "10.0.0.1", "resources_total": {"CPU": 2.0}}
    looks: list[float] = []
    nodes = fake.answers["/api/v0/nodes"] = {"data": {"result": {"result": [node]}}}
    monkeypatch.setattr(
        "cluster.nodes.inventory.time.sleep",
        lambda _: (looks.append(0), nodes["data"]["result"]["result"].append(node)),
    )
    await_room(open_dashboard(fake.url), Need(4, 1, 0, 1, 0), 60)
    assert len(looks) == 2
    with pytest.raises(UserError, match=r"asks for 9 CPUs") as error:
        await_room(open_dashboard(fake.url), Need(8, 1, 0, 1, 0), 0)
    assert "--wait" in error.value.remedy


def test_credentials_do_not_travel(config_file, monkeypatch, capsys):
    said = refused(monkeypatch, capsys, "submit", config_file, "--runs", "s3://key:hidden@bucket/runs")
    assert "--runs holds a user name and password" in said
    assert "hidden" not in said


def job(run: str, number: int, status: str) -> Job:
    return Job(f"boostlu-{run}" + (f"-r{number}" if number > 1 else ""), run, "s3://b/runs", status, number, None, "")


def test_ids_follow_the_name():
    assert next_id("coco", []) == "boostlu-coco"
    done = [job("coco", 1, "FAILED"), job("coco", 2, "STOPPED"), job("coco-r7", 1, "RUNNING")]
    assert next_id("coco", done) == "boostlu-coco-r3"
    with pytest.raises(UserError, match=r"run 'coco' has a job on this cluster already: boostlu-coco-r3, pending"):
        next_id("coco", [*done, job("coco", 3, "PENDING")])


def test_the_cluster_has_another_version():
    assert check_version("0.1.0+aaaa", "0.1.0+aaaa") is None
    assert "other code of that release: 0.1.0+bbbb" in str(check_version("0.1.0+aaaa", "0.1.0+bbbb"))
    with pytest.raises(UserError, match=r"submitted by boostlu 0\.2\.0\+aaaa, the cluster has 0\.1\.0\+bbbb"):
        check_version("0.2.0+aaaa", "0.1.0+bbbb")


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("http://127.0.0.1:8265", "is a dashboard"),
        ("head", "is not HOST:PORT"),
        ("head:ray", "is not HOST:PORT"),
    ],
)
def test_joining_at_an_address_of_another_kind(address, message):
    with pytest.raises(UserError, match=message):
        reach(address)


def test_joining_where_nobody_listens(config_file, tmp_path, monkeypatch, capsys):
    address = f"127.0.0.1:{closed_port()}"
    said = refused(monkeypatch, capsys, "train", config_file, "--runs", tmp_path / "runs", "--address", address)
    assert f"no Ray cluster answers at {address}" in said


def test_loopback_is_not_where_ray_would_go(monkeypatch):
    """Ray replaces 127.0.0.1 by the machine's outside address and would wait there for minutes."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        address = f"127.0.0.1:{listening.getsockname()[1]}"
        monkeypatch.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
        reach(address)
        monkeypatch.delenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER")
        monkeypatch.setattr("ray.util.get_node_ip_address", lambda: "127.0.0.77")
        with pytest.raises(UserError, match=rf"which Ray takes {address} to be"):
            reach(address)


def test_what_ray_says_on_joining():
    mismatch = (
        "Version mismatch: The cluster was started with:\n    Ray: 2.9.1\n    Python: 3.10.2\n"
        "This process on node 10.0.0.2 was started with:\n    Ray: 2.60.0\n    Python: 3.11.9\n"
    )
    said = str(explain(RuntimeError(mismatch), "h:6379"))
    assert "runs Ray 2.9.1, Python 3.10.2, this machine Ray 2.60.0, Python 3.11.9" in said
    slow = Exception("The current node timed out during startup. This could happen because some of the raylet ...")
    assert "a private Ray cluster was not up in time — the machine is very busy" in str(explain(slow, None))
    assert "token is missing or wrong" in str(explain(RuntimeError("InvalidAuthToken: ..."), "h:6379"))
    assert "cannot connect to the cluster at h:6379: strange" in str(
        explain(ConnectionError("strange\nmore"), "h:6379")
    )
