"""A rank whose data come slowly is reported with its host, by a run of two real ranks."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from trainer.run.events import read_events

#: Rank 1 takes 0.6 s longer over its images than the other one.
SLOW = """
import os, sys, time
from trainer import step
plain = step._images
def slow(*arguments):
    if os.environ["RANK"] == "1":
        time.sleep(0.6)
    return plain(*arguments)
step._images = slow
from trainer.__main__ import main
main(sys.argv[1:])
"""


def test_a_slow_rank_is_reported(tiny_values: dict[str, Any], tmp_path: Path) -> None:
    config, script = tmp_path / "tiny.yaml", tmp_path / "slow.py"
    config.write_text(yaml.safe_dump(tiny_values))
    script.write_text(SLOW)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run(
        [*command, str(config), "--runs", str(tmp_path)], env=environment, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    found = [e for e in read_events(str(tmp_path / "tiny")) if e["event"] == "straggler"]
    assert {(e["rank"], e["host"]) for e in found} == {(1, socket.gethostname())}
    assert all(e["seconds"] > 2 * e["median"] for e in found)
