"""Tables of reproduction: published numbers, settings of each method, what is written."""

from __future__ import annotations

import csv
import io
from importlib.resources import files
from typing import Any

import pytest
from PIL import Image

from cluster.cli.reproduce import _config
from cluster.reproduction.published import TABLES, TITLES
from cluster.reproduction.tables import (
    Contestant,
    Row,
    cells,
    comma_separated,
    contestants,
    header,
    markdown,
    plot,
    row,
)

ROWS = [Row("an", "AN", [60.0, 62.0, 64.0], 64.92), Row("gr", "GR", [70.0], None)]


def config(table: str, method: str, *overrides: str) -> Any:
    return _config(table, Contestant(method, method, ""), 3, list(overrides))


@pytest.mark.parametrize("table", TABLES)
def test_every_method_of_every_table_has_a_valid_config(table: str) -> None:
    for method in TABLES[table].methods:
        made = config(table, method, "dataset.path=/d")
        assert (made.name, made.seed) == (f"{method}-seed3", 3)
        assert (made.model.alpha > 1) == method.endswith("-boostlu")


@pytest.mark.parametrize(
    ("table", "method", "published"),
    [
        ("voc", "ll-r-boostlu", 89.29),
        ("coco", "an", 64.92),
        ("nuswide", "ll-cp", 47.92),
        ("cub", "full", 30.90),
        ("openimages-v3", "ll-cp-boostlu", 84.04),
    ],
)
def test_published_numbers_sit_in_their_rows(table: str, method: str, published: float) -> None:
    assert TABLES[table].published[method] == published


def test_published_groups_have_the_published_mean() -> None:
    """OpenImages' groups are of one size, so the mean over all classes is the mean of the groups."""
    entry = TABLES["openimages-v3"]
    for method, groups in entry.groups.items():
        assert len(groups) == 5
        assert sum(groups) / 5 == pytest.approx(entry.published[method], abs=0.02), method


def test_role_is_told_the_mean_number_of_positives() -> None:
    assert config("voc", "role").loss.expected_positives == 1.5
    assert config("cub", "role").loss.expected_positives == 31.4


def test_alphas_add_lines_of_the_methods_that_boost() -> None:
    lines = contestants(["an", "ll-r-boostlu"], [2, 3.5])
    assert [line.name for line in lines] == ["an", "ll-r-boostlu", "ll-r-boostlu-alpha2", "ll-r-boostlu-alpha3.5"]
    assert lines[3].title == "LL-R + BoostLU, α = 3.5"
    made = _config("digits", lines[3], 1, [])
    assert (made.name, made.model.alpha) == ("ll-r-boostlu-alpha3.5-seed1", 3.5)
    assert _config("digits", lines[1], 1, []).model.alpha == 5


def test_mean_and_sample_deviation() -> None:
    assert (ROWS[0].mean, ROWS[0].deviation) == (62.0, 2.0)
    assert (ROWS[1].mean, ROWS[1].deviation) == (70.0, 0.0)
    assert "| AN | 62.00 ± 2.00 | 3 | 64.92 |" in markdown(ROWS)
    assert "| GR | 70.00 ± 0.00 | 1 | – |" in markdown(ROWS)
    assert markdown(ROWS[1:]) == "| method | test mAP | seeds |\n| --- | --- | --- |\n| GR | 70.00 ± 0.00 | 1 |\n"


def test_groups_stand_beside_the_published_ones() -> None:
    def record(mean: float, low: float) -> dict[str, Any]:
        averages = [
            {"convention": c, "group": g, "mean": m}
            for c, shift in (("authors", 0.0), ("imcl", 0.3))
            for g, m in ((None, mean), (1, low + shift), (2, None))
        ]
        return {"map": mean, "averages": averages}

    one = row(contestants(["ll-r"])[0], "openimages-v3", [record(0.8, 0.5), record(0.82, 0.6)])
    swept = row(contestants(["ll-r-boostlu"], [2])[1], "openimages-v3", [record(0.8, 0.5)])
    assert header([one]) == ["method", "test mAP", "seeds", "published", "G1 (published)"]
    assert cells(one, [one]) == ["LL-R", "81.00 ± 1.41", "2", "82.53", "55.00 (77.76)"]
    assert cells(swept, [one, swept])[3:] == ["–", "50.00"]


def test_the_csv_reads_back() -> None:
    read = list(csv.DictReader(io.StringIO(comma_separated(ROWS))))
    assert [(r["method"], float(r["test_map"])) for r in read] == [("an", 60), ("an", 62), ("an", 64), ("gr", 70)]


def test_the_plot_is_a_png() -> None:
    assert Image.open(io.BytesIO(plot(ROWS, "coco"))).width > 500


def test_titles_are_those_of_existing_methods() -> None:
    names = {entry.name.removesuffix(".yaml") for entry in files("configs").joinpath("methods").iterdir()}
    assert names == set(TITLES)
