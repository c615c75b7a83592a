"""Nothing that is read from storage runs as code: no pickle, no YAML tags, no shell."""

from __future__ import annotations

import ast
import hashlib
import io
import json
import os
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from sharding.errors import UserError
from tests.attempts import attempt, start
from trainer.config import load_config, make_config
from trainer.model.backbones import read_state
from trainer.run import checkpoint

ROOT = Path(__file__).resolve().parents[2]

FORBIDDEN_CALLS = {
    "pickle.load", "pickle.loads", "dill.load", "dill.loads", "cloudpickle.load", "cloudpickle.loads", "joblib.load",
    "marshal.loads", "shelve.open", "pandas.read_pickle", "eval", "exec", "compile", "os.system", "os.popen",
    "yaml.load", "yaml.load_all", "yaml.unsafe_load", "yaml.full_load", "yaml.unsafe_load_all", "yaml.full_load_all",
}  # fmt: skip


def violations(source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        options = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        if name in FORBIDDEN_CALLS:
            yield f"{node.lineno}: {name}"
        if name == "torch.load" and options.get("weights_only") != "True":
            yield f"{node.lineno}: torch.load without weights_only=True"
        if name.endswith("np.load") and options.get("allow_pickle", "False") != "False":
            yield f"{node.lineno}: np.load with pickles"
        if options.get("shell", "False") != "False":
            yield f"{node.lineno}: a shell"


@pytest.mark.parametrize("layer", ["sharding", "trainer", "cluster"])
def test_no_call_could_run_what_it_reads(layer: str) -> None:
    found = [
        f"{path.relative_to(ROOT)}:{violation}"
        for path in (ROOT / layer).rglob("*.py")
        for violation in violations(path.read_text())
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "source",
    ["pickle.load(f)", "torch.load(f)", "torch.load(f, weights_only=False)", "yaml.load(t, Loader=yaml.Loader)",
     "subprocess.run(c, shell=True)", "np.load(f, allow_pickle=True)", "eval(t)"],
)  # fmt: skip
def test_the_check_finds_what_it_should(source: str) -> None:
    assert list(violations(source))


class Bomb:
    """Unpickled, it makes the folder that it was told of."""

    def __init__(self, folder: Path) -> None:
        self.folder = str(folder)

    def __reduce__(self) -> Any:
        return os.mkdir, (self.folder,)


def test_the_bomb_works(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Bomb(tmp_path / "exploded")))  # noqa: S301
    assert (tmp_path / "exploded").is_dir()


def test_a_pickle_in_a_checkpoint_is_refused_and_not_run(tiny_values: dict[str, Any], tmp_path: Path) -> None:
    """Its size and hash are those of the manifest: whoever wrote it could write that as well."""
    registry = start(make_config(tiny_values), tmp_path)
    attempt(registry)
    manifest = registry.checkpoints()[-1]
    folder = Path(registry.url) / "checkpoints" / manifest.name
    buffer = io.BytesIO()
    torch.save({"state": Bomb(tmp_path / "exploded")}, buffer)
    (folder / "optimizer.pt").write_bytes(buffer.getvalue())
    told = json.loads((folder / "manifest.json").read_text())
    digest = hashlib.sha256(buffer.getvalue()).hexdigest()
    told["files"]["optimizer.pt"] = {"bytes": len(buffer.getvalue()), "sha256": digest}
    (folder / "manifest.json").write_text(json.dumps(told))
    changed = next(m for m in registry.checkpoints() if m.name == manifest.name)
    with pytest.raises(UserError, match="holds more than data"):
        checkpoint.read_checkpoint(registry.url, changed)
    assert not (tmp_path / "exploded").exists()


def test_a_pickle_as_weights_is_refused_and_not_run(tmp_path: Path) -> None:
    torch.save({"fc.weight": Bomb(tmp_path / "exploded")}, tmp_path / "weights.pth")
    with pytest.raises(UserError):
        read_state(str(tmp_path / "weights.pth"))
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("where", ["file", "override"])
def test_a_yaml_tag_is_refused_and_not_run(tmp_path: Path, where: str) -> None:
    bomb = f"!!python/object/apply:os.mkdir ['{tmp_path / 'exploded'}']"
    path = tmp_path / "x.yaml"
    path.write_text("dataset: {path: /data}\n" + (f"seed: {bomb}\n" if where == "file" else ""))
    with pytest.raises(UserError, match="not valid YAML"):
        load_config(str(path), [f"seed={bomb}"] if where == "override" else [])
    assert not (tmp_path / "exploded").exists()
