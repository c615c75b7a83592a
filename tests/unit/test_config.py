"""Configuration: what is accepted, and what a mistake is told."""

from pathlib import Path

import pytest
import yaml

from sharding.errors import UserError
from trainer.config import load_config, make_config

CONFIGS = Path(__file__).parents[2] / "configs"
MINIMAL = {"name": "x", "dataset": {"path": "/data"}}


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_preset_is_valid(path: Path) -> None:
    assert load_config(str(path)).name == path.stem


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("optimzer.lr=1", "'optimizer'"),
        ("optimizer.learnig_rate=1", "optimizer.learnig_rate"),
        ("model.alhpa=3", "'alpha'"),
        ("dataset.lables=full", "'labels'"),
        ("epoch=3", "'epochs'"),
    ],
)
def test_a_typo_names_the_key_and_the_nearest_valid_one(override: str, expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        make_config(MINIMAL, [override])


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("model.alpha=0.5", "model.alpha"),
        ("epochs=0", "epochs"),
        ("loss.name=an2", "loss.name"),
        ("plan.global_batch=many", "plan.global_batch"),
        ("name=../escape", "name"),
    ],
)
def test_a_wrong_value_names_its_key(override: str, key: str) -> None:
    with pytest.raises(UserError, match=key):
        make_config(MINIMAL, [override])


def test_overrides_are_typed_and_reach_nested_keys() -> None:
    config = make_config(MINIMAL, ["optimizer.lr=0.25", "augment.flip=false", "dataset.test=null", "name=y"])
    assert (config.optimizer.lr, config.augment.flip, config.dataset.test, config.name) == (0.25, False, None, "y")


@pytest.mark.parametrize("override", ["model.alpha", "=3", "name.x=1", "a=[1"])
def test_a_malformed_override_is_refused(override: str) -> None:
    with pytest.raises(UserError):
        make_config(MINIMAL, [override])


def test_a_resolved_config_reads_back_as_itself(tmp_path: Path) -> None:
    config = make_config(MINIMAL, ["loss.name=ll-ct", "model.mean=[1,2,3]"])
    (tmp_path / "c.yaml").write_text(config.to_yaml())
    assert load_config(str(tmp_path / "c.yaml")) == config


def test_a_relative_dataset_becomes_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert make_config({"name": "x", "dataset": {"path": "d"}}).dataset.path == str(tmp_path / "d")
    assert make_config({"name": "x", "dataset": {"path": "s3://b/d"}}).dataset.path == "s3://b/d"


def test_a_missing_or_broken_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"absent\.yaml"):
        load_config(str(tmp_path / "absent.yaml"))
    (tmp_path / "broken.yaml").write_text("a: [1")
    with pytest.raises(UserError, match=r"broken\.yaml is not valid YAML"):
        load_config(str(tmp_path / "broken.yaml"))


def test_yaml_cannot_construct_objects(tmp_path: Path) -> None:
    (tmp_path / "evil.yaml").write_text("name: !!python/object/apply:os.getcwd []\ndataset: {path: d}\n")
    with pytest.raises(UserError, match="not valid YAML"):
        load_config(str(tmp_path / "evil.yaml"))


def test_the_name_defaults_to_the_file(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump({"dataset": {"path": "/d"}}))
    assert load_config(str(tmp_path / "mine.yaml")).name == "mine"


@pytest.mark.parametrize("method", sorted((CONFIGS / "methods").glob("*.yaml")), ids=lambda path: path.stem)
@pytest.mark.parametrize("preset", ["digits", "voc", "openimages_v3"])
def test_every_method_fits_every_preset(preset: str, method: Path) -> None:
    config = load_config(str(CONFIGS / f"{preset}.yaml"), method=str(method))
    plain = load_config(str(CONFIGS / f"{preset}.yaml"))
    assert (config.model.alpha > 1) == method.stem.endswith("-boostlu")
    assert config.optimizer == plain.optimizer
    assert (config.dataset.labels == "full") == (method.stem == "full" or preset == "openimages_v3")


def test_another_loss_does_not_inherit_the_options_of_the_first() -> None:
    values = {**MINIMAL, "loss": {"name": "ll-r", "delta": 2}}
    assert make_config(values, ["loss.name=ll-ct"]).loss.delta is None
    assert make_config(values, ["loss.name=ll-r"]).loss.delta == 2
    assert make_config(values, ["loss.name=ll-ct", "loss.delta=3"]).loss.delta == 3


def test_presets_are_the_authors_settings() -> None:
    for name in ("voc", "coco", "nuswide", "cub"):
        config = load_config(str(CONFIGS / f"{name}.yaml"))
        assert (config.model.backbone, config.dataset.image_size, config.model.alpha) == ("resnet50", 448, 5)
        assert (config.optimizer.name, config.optimizer.lr, config.optimizer.head_lr_multiplier) == ("adam", 1e-5, 10)
        assert (config.plan.global_batch, config.epochs, config.augment.flip) == (16, 10, True)
        assert (config.optimizer.schedule, config.optimizer.weight_decay) == ("constant", 0)
        assert config.dataset.labels == "single-positive-1200"


def test_more_workers_at_least_than_at_most_are_refused() -> None:
    values = {"name": "a", "dataset": {"path": "/d"}}
    assert make_config(values, ["workers.num=3"]).workers.least == 3
    assert make_config(values, ["workers.num=3", "workers.min=2"]).workers.least == 2
    with pytest.raises(UserError, match=r"workers\.min=4: .*more than workers\.num=3"):
        make_config(values, ["workers.num=3", "workers.min=4"])
