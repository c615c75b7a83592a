"""What every test relies on: quiet engines, reproducible property tests, and the optional real sample data."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

# Before anything imports them: no usage reports, 127.0.0.1 is taken for what it says, clusters of the tests' own
# process want a token, and no display.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
os.environ.setdefault("RAY_AUTH_MODE", "token")
os.environ.setdefault("MPLBACKEND", "Agg")

# No deadlines: the machine may be busy, and a test's verdict must not depend on that. The quick profile repeats the
# same examples at each run; `make test-all` searches new ones (--hypothesis-profile=thorough).
settings.register_profile(
    "quick", deadline=None, derandomize=True, max_examples=50, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile(
    "thorough", deadline=None, max_examples=500, print_blob=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("quick")

#: Real data that is too large for the repository: the folder ``shared`` beside the checkout.
SHARED = Path(os.environ.get("BOOSTLU_SHARED") or Path(__file__).resolve().parents[2] / "shared")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Return ``shared/data`` (coco-mini/, labels/, weights/); skips the test where it is absent."""
    data = SHARED / "data"
    if not data.is_dir():
        pytest.skip(f"needs the sample data at {data} (BOOSTLU_SHARED names another place)")
    return data


@pytest.fixture(scope="session")
def tiny_dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of 80 + 24 + 24 digit scenes in shards of 16, with a single-positive overlay. Do not change it."""
    from sharding.build import build_dataset
    from sharding.overlays import write_single_positive

    root = tmp_path_factory.mktemp("tiny") / "digits"
    options = {"train": 80, "val": 24, "test": 24, "side": 64}
    build_dataset("digits", str(root), options, samples_per_shard=16, processes=1)
    write_single_positive(str(root))
    return root


@pytest.fixture
def tiny_values(tiny_dataset: Path) -> dict[str, Any]:
    """Values of a configuration that trains on :func:`tiny_dataset` in a second or two."""
    return {
        "name": "tiny",
        "epochs": 2,
        "dataset": {"path": str(tiny_dataset), "labels": "single-positive-1200", "image_size": 32},
        "plan": {"global_batch": 16, "lanes": 4, "shuffle_window": 32},
        "loader": {"threads": 1},
        "model": {"backbone": "small_resnet:4", "weights": "none", "alpha": 5},
        "loss": {"name": "ll-r", "delta": 10},
        "optimizer": {"lr": 1e-3, "head_lr_multiplier": 1},
        "evaluate": {"batch": 16},
        "workers": {"num": 2},
    }
