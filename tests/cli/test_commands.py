"""How people meet the command line: help with examples, one clear line on errors, nothing started on bad input."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.cli import main as cli
from sharding.errors import UserError
from trainer.run.checkpoint import Snapshot, write_checkpoint
from trainer.run.registry import RunRegistry

CONFIGS = Path(__file__).parents[2] / "configs"


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """Run ``boostlu ARGUMENTS`` in this process; return its exit status."""
    monkeypatch.setattr(sys, "argv", ["boostlu", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    code = ended.value.code
    return code if isinstance(code, int) else 0


@pytest.fixture
def config_file(tiny_values: dict[str, Any], tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(tiny_values))
    return path


COMMANDS = [
    ("demo",),
    ("train",),
    ("resume",),
    ("submit",),
    ("jobs", "list"),
    ("jobs", "logs"),
    ("jobs", "stop"),
    ("cluster", "status"),
    ("evaluate",),
    ("explain",),
    ("report",),
    ("runs", "list"),
    ("runs", "show"),
    ("runs", "compare"),
    ("checkpoints", "list"),
    ("checkpoints", "verify"),
    ("checkpoints", "prune"),
    ("checkpoints", "export"),
    ("reproduce",),
    ("deploy", "render"),
    ("deploy", "secrets"),
    ("config", "show"),
    ("config", "check"),
    ("shards", "build"),
    ("shards", "verify"),
    ("shards", "stats"),
]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_help_shows_an_example(
    command: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, *command, "--help") == 0
    assert f"boostlu {' '.join(command)}" in capsys.readouterr().out.split("xample")[1]


def test_the_list_of_commands_does_not_import_torch_or_ray() -> None:
    import subprocess

    program = (
        "import sys; sys.argv = ['boostlu', '--help']\n"
        "from cluster.cli.main import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "assert not {'torch', 'ray', 'sklearn', 'matplotlib'} & set(sys.modules), sorted(sys.modules)\n"
    )
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert shown.returncode == 0, shown.stderr
    assert all(name in shown.stdout for name in cli.COMMANDS)


def test_a_misspelt_command_is_answered_with_the_likely_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, "shads") == 2
    assert "'shards'" in capsys.readouterr().err


def test_no_arguments_show_the_commands(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    call(monkeypatch)
    assert "Look at a Ray cluster." in capsys.readouterr().err


BAD_STARTS = {
    "a typo": (["optimizr.lr=1"], "'optimizer'"),
    "no dataset there": (["dataset.path=/nowhere/digits"], "no dataset at /nowhere/digits"),
    "a wrong split": (["dataset.validation=vall"], "'val'"),
    "a wrong overlay": (["dataset.labels=single-positive-12"], "'single-positive-1200'"),
    "an unknown backbone": (["model.backbone=resnet51"], "resnet50"),
    "a missing weights file": (["model.weights=/nowhere/w.safetensors"], "no file /nowhere/w.safetensors"),
    "too large a batch": (["plan.global_batch=4000"], "plan.global_batch is 4000 but the split has 80"),
    "more workers than slots": (["workers.num=17"], "17 workers cannot share plan.global_batch=16"),
}


@pytest.mark.parametrize("case", BAD_STARTS.values(), ids=BAD_STARTS.keys())
def test_bad_input_is_one_line_and_starts_nothing(
    case: tuple[list[str], str],
    config_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    overrides, expected = case
    assert call(monkeypatch, "train", str(config_file), *overrides, "--runs", str(tmp_path / "runs")) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert expected in error
    assert not (tmp_path / "runs").exists()


def test_debug_shows_the_traceback(config_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["boostlu", "train", str(config_file), "optimizr.lr=1", "--debug"])
    with pytest.raises(UserError):
        cli.main()


def test_weights_of_another_architecture_are_refused(
    config_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from safetensors.torch import save_file

    from trainer.model.backbones import SmallResNet

    save_file(SmallResNet(8).state_dict(), tmp_path / "wide.safetensors")
    runs = str(tmp_path / "runs")
    weights = f"model.weights={tmp_path / 'wide.safetensors'}"
    assert call(monkeypatch, "train", str(config_file), weights, "--runs", runs) == 2
    assert "is of another architecture than small_resnet:4" in capsys.readouterr().err


def test_an_unwritable_runs_folder_is_found_before_training(
    config_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("not a folder")
    assert call(monkeypatch, "train", str(config_file), "--runs", str(tmp_path / "file")) == 2
    assert "cannot write to" in capsys.readouterr().err


@pytest.fixture
def registry(config_file: Path, tmp_path: Path) -> RunRegistry:
    """A run with one committed checkpoint, made without training."""
    from sharding.index import read_split
    from trainer.config import load_config
    from trainer.data.plan import SamplePlan
    from trainer.model.classifier import build_model
    from trainer.run.checkpoint import TrainingPosition

    config = load_config(str(config_file))
    index = read_split(config.dataset.path, "train")
    registry = RunRegistry.create(str(tmp_path / "runs"), config, index.dataset)
    number = registry.begin_attempt(2)
    identity = SamplePlan.from_config(config.plan, index.shard_sizes, 0).identity(index.dataset.fingerprint, "train")
    position = TrainingPosition(step=5, epoch=2, step_in_epoch=0, epoch_end=True, attempt=number, plan=identity)
    model = build_model(config.model, 10, seed=3)
    registry.commit(number, write_checkpoint(registry.url, Snapshot(model.state_dict(), {}, {}, {}, None, position)))
    registry.end_attempt(number, "interrupted")
    return registry


def test_an_existing_run_is_not_overwritten(
    registry: RunRegistry, config_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, "train", str(config_file), "--runs", os.path.dirname(registry.url)) == 2
    assert f"boostlu resume {registry.url}" in capsys.readouterr().err


def test_evaluate_writes_the_record(
    registry: RunRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import json

    output = tmp_path / "record.json"
    arguments = [registry.url, "--checkpoint", "last", "--split", "val", "--output", str(output), "model.alpha=1"]
    monkeypatch.setattr(sys, "argv", ["boostlu", "evaluate", *arguments])
    with pytest.raises(SystemExit):
        cli.main()
    record = json.loads(output.read_text())
    assert (record["step"], record["split"], record["alpha"], record["samples"]) == (5, "val", 1.0, 24)
    assert f"mAP {100 * record['map']:.2f} over 10 of 10 classes" in capsys.readouterr().out


def test_evaluate_names_the_checkpoints_there_are(
    registry: RunRegistry, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, "evaluate", registry.url, "--checkpoint", "7") == 2
    assert "steps 5" in capsys.readouterr().err


def test_runs_list_and_show(
    registry: RunRegistry, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, "runs", "list", "--runs", os.path.dirname(registry.url)) == 0
    assert "interrupted" in capsys.readouterr().out
    assert call(monkeypatch, "runs", "show", "tiny", "--runs", os.path.dirname(registry.url)) == 0
    shown = capsys.readouterr().out
    assert "00000005-a0001" in shown
    assert "not evaluated" in shown


@pytest.mark.parametrize("preset", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_config_check_accepts_every_preset(
    preset: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, "config", "check", str(preset)) == 0
    assert capsys.readouterr().out == f"{preset}: ok\n"


def test_runs_compare_shows_what_differs(
    registry: RunRegistry, config_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from sharding.index import read_split
    from trainer.config import load_config

    other = load_config(str(config_file), ["name=other", "model.alpha=1", "seed=4"])
    runs = os.path.dirname(registry.url)
    RunRegistry.create(runs, other, read_split(other.dataset.path, "train").dataset)
    assert call(monkeypatch, "runs", "compare", "tiny", "other", "--runs", runs) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["model.alpha", "5.0", "1.0"] in rows
    assert ["seed", "0", "4"] in rows
    assert not [row for row in rows if row and row[0] == "epochs"]


def test_an_empty_split_is_refused(
    tiny_dataset: Path,
    config_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    import pyarrow.parquet as pq

    from sharding.schema import INDEX, read_dataset_info, write_dataset_info

    root = tmp_path / "empty"
    info = read_dataset_info(str(tiny_dataset))
    split = info.splits["train"].model_copy(update={"samples": 0, "shards": []})
    splits = dict.fromkeys(info.splits, split)
    for name in splits:
        (root / name).mkdir(parents=True)
        pq.write_table(INDEX.empty_table(), root / name / "index.parquet")
    write_dataset_info(str(root), info.model_copy(update={"splits": splits}))
    overrides = [f"dataset.path={root}", "dataset.labels=full"]
    assert call(monkeypatch, "train", str(config_file), *overrides, "--runs", str(tmp_path / "runs")) == 2
    assert f"split 'train' of {root} is empty" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()
