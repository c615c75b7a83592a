"""The comparison of two models' explanations: each measure by hand or against an oracle, then end to end."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr

from sharding.errors import UserError
from sharding.index import read_split
from tests.html_page import Page, assert_stands_alone
from tests.trained_run import SINGLE, build_scenes, train_run
from trainer.explain.analysis import PROFILE, compare, coverage, on_grid, rank_correlation, summary, view
from trainer.explain.maps import Explainer, sample_image
from trainer.report.analysis_page import render_analysis
from trainer.run.registry import RunRegistry


@given(st.integers(0, 10_000), st.integers(2, 40), st.integers(1, 6))
def test_rank_correlation_is_spearmans(seed: int, places: int, levels: int) -> None:
    rng = np.random.default_rng(seed)
    one, two = rng.integers(0, levels + 1, (2, places)).astype(np.float32)
    mine = rank_correlation(one.reshape(1, -1), two.reshape(1, -1))
    if len(set(one)) == 1 or len(set(two)) == 1:
        assert np.isnan(mine)
    else:
        assert mine == pytest.approx(spearmanr(one, two).statistic, abs=1e-12)


def test_a_place_counts_by_the_share_that_boxes_cover() -> None:
    share = coverage([[0, 0, 20, 10]], (40, 40), (4, 4))
    assert share is not None
    np.testing.assert_allclose(share[0], [1, 1, 0, 0], atol=1e-8)
    assert (share[1:] == 0).all()
    np.testing.assert_allclose(
        coverage([[5, 0, 10, 10], [10, 5, 10, 5]], (20, 20), (2, 2)),  # where two boxes overlap counts once
        [[0.5, 0.75], [0, 0]],
    )
    tiny = coverage([[31.01, 31.01, 0.001, 0.001]], (40, 40), (4, 4))
    assert tiny is not None
    assert list(zip(*np.nonzero(tiny), strict=True)) == [(3, 3)], "touched, though nearly nothing of it is covered"
    assert coverage([], (40, 40), (4, 4)) is None


@given(st.integers(0, 10_000))
def test_coverage_sums_to_the_area_of_the_boxes(seed: int) -> None:
    rng = np.random.default_rng(seed)
    height, width = (int(n) for n in rng.integers(20, 200, 2))
    rows, columns = (int(n) for n in rng.integers(1, 15, 2))
    x, y = rng.uniform(0, width * 0.7), rng.uniform(0, height * 0.7)
    box = [x, y, rng.uniform(1, width - x), rng.uniform(1, height - y)]
    share = coverage([box], (height, width), (rows, columns))
    assert share is not None
    # Sampled at 8 points a place and axis: each edge is off by at most one point.
    error = (1 / (8 * rows) + 1 / (8 * columns)) * 2
    assert share.mean() == pytest.approx(box[2] * box[3] / (height * width), abs=error)


def test_measures_of_a_map_by_hand() -> None:
    maps = np.array([[[4.0, -2.0], [1.0, 5.0]], [[-1.0, -2.0], [-3.0, -4.0]], [[1.0, 0.0], [0.0, 0.0]]], np.float32)
    covers = [np.array([[1.0, 0.0], [0.5, 0.0]]), np.array([[0.25, 0.0], [0.0, 0.0]]), None]
    seen = view(maps, covers)
    np.testing.assert_allclose(seen.logit, [2, -2.5, 0.25])
    np.testing.assert_allclose(seen.peak, [5, -1, 1])
    np.testing.assert_allclose(seen.inside, [4.5 / 10, np.nan, np.nan])
    np.testing.assert_allclose(seen.hit, [0, 1, np.nan])
    assert seen.profile.shape == (3, PROFILE)
    np.testing.assert_allclose(seen.profile[0, [0, -1]], [5, -2])
    np.testing.assert_allclose(seen.profile[0, (PROFILE - 1) // 2], (4 + 1) / 2)
    assert (np.diff(seen.profile, axis=1) <= 0).all()


def test_maps_of_another_resolution_are_brought_to_the_first() -> None:
    maps = np.arange(8, dtype=np.float32).reshape(1, 2, 2, 2)
    assert on_grid(maps, 2, 2) is maps
    larger = on_grid(maps, 4, 4)
    assert larger.shape == (1, 2, 4, 4)
    np.testing.assert_allclose(larger.mean((2, 3)), maps.mean((2, 3)))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return build_scenes(tmp_path_factory.mktemp("scenes") / "digits")


@pytest.fixture(scope="module")
def run(data: str, tmp_path_factory: pytest.TempPathFactory) -> RunRegistry:
    return train_run(str(tmp_path_factory.mktemp("runs")), data, SINGLE, "model.alpha=1")


def test_boostlu_keeps_the_order_of_places_and_raises_what_is_positive(run: RunRegistry, data: str) -> None:
    index = read_split(data, "test")
    plain, boosted = Explainer(run), Explainer(run, run.config(["model.alpha=5"]))
    # Hardly trained maps are negative everywhere; shifted, they have both signs.
    shift = plain.explain(sample_image(data, "test", "test-00000")).logits
    for explainer in (plain, boosted):
        explainer.model.head.bias.data -= explainer.model.head.bias.data.new_tensor(shift)
    done: list[tuple[int, int]] = []
    both = compare(plain, boosted, index, 10, lambda *news: done.append(news))
    assert done[-1] == (10, 10)
    assert len(both.objects.cls) == sum(len(index.labels.pos.row(i)) for i in range(10))
    np.testing.assert_allclose(both.correlation, 1, atol=1e-12)
    assert (both.second.profile >= both.first.profile - 1e-6).all()
    assert (both.second.peak > both.first.peak).any()
    seen = plain.explain(sample_image(data, "test", index.sample_id(3)))
    mine = both.objects.sample == 3
    np.testing.assert_allclose(both.first.logit[mine], seen.logits[both.objects.cls[mine]], rtol=1e-4, atol=1e-5)
    numbers = summary(both)
    assert numbers["with_boxes"] == numbers["objects"] == mine.size
    assert numbers["images"] == 10
    assert 0 < numbers["inside_chance"] < numbers["hit_chance"] < 1  # type: ignore[operator]


def test_models_of_other_resolutions_are_compared_and_drawn(run: RunRegistry, data: str) -> None:
    index = read_split(data, "test")
    both = compare(Explainer(run), Explainer(run, run.config(["dataset.image_size=32"])), index, 5)
    assert np.isfinite(both.correlation).any()
    page = Page(render_analysis(both, summary(both), ("a <b>", "c & d"), "test"))
    assert_stands_alone(page)
    assert "Explanations: a <b> and c & d" in page.text
    assert sum(tag == "svg" for tag, _ in page.tags) == 4


def test_without_boxes_the_page_says_so(run: RunRegistry, data: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.explain.analysis.read_boxes", lambda *_: {})
    both = compare(Explainer(run), Explainer(run), read_split(data, "test"), 4)
    numbers = summary(both)
    assert (numbers["with_boxes"], numbers["inside_first"], numbers["hit_chance"]) == (0, None, None)
    page = Page(render_analysis(both, numbers, ("a", "b"), "test"))
    assert "The dataset knows no boxes" in page.text
    assert sum(tag == "svg" for tag, _ in page.tags) == 3


def test_a_split_without_positives_is_refused(run: RunRegistry, data: str, tmp_path: Path) -> None:
    index = read_split(data, "test")
    empty = type(index.labels.pos)(np.zeros(len(index) + 1, np.int64), np.zeros(0, np.int32))
    bare = type(index)(**{**vars(index), "labels": type(index.labels)(empty, index.labels.neg)})
    with pytest.raises(UserError, match="no class is there"):
        compare(Explainer(run), Explainer(run), bare, 4)
