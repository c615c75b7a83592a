"""What another host writes into a folder that was listed before is seen, and so is what it deletes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sharding import storage
from tests.faults.flaky_s3 import flaky_s3

OTHER = """
import sys
from sharding import storage
folder = sys.argv[1]
storage.write_atomic(f"{folder}/result.json", b"{}")
storage.remove(f"{folder}/lease.json")
"""


def test_a_folder_that_was_listed_is_not_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with flaky_s3() as s3:
        for key, value in s3.environment.items():
            monkeypatch.setenv(key, value)
        folder = storage.join(s3.upload(tmp_path, "listings"), "run")
        storage.write_atomic(f"{folder}/lease.json", b"{}")
        filesystem, path = storage.filesystem(folder)
        assert filesystem.ls(path, detail=False) == [f"{path}/lease.json"]
        subprocess.run([sys.executable, "-c", OTHER, folder], env=dict(os.environ), check=True, timeout=100)
        assert storage.read_json(f"{folder}/result.json") == {}
        assert storage.exists(f"{folder}/result.json")
        assert not storage.exists(f"{folder}/lease.json")
        assert filesystem.ls(path, detail=False) == [f"{path}/result.json"]
