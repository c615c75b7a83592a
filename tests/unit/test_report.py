"""The report: what it says is what the runs recorded, and the page stands alone."""

from __future__ import annotations

import shutil
import uuid
from pathlib import Path

import numpy as np
import pytest
import torch

from sharding import storage
from sharding.errors import UserError
from sharding.index import read_split
from tests.html_page import Page, assert_stands_alone
from tests.trained_run import SINGLE, build_scenes, train_run
from trainer.config import RunConfig, make_config
from trainer.evaluation import evaluate, load_model, score_split
from trainer.explain.maps import best_or_last
from trainer.report import GalleryColumn, ReportRun, default_columns, write_report
from trainer.report.charts import CLASSES_SHOWN, shown_classes
from trainer.report.facts import epochs, gather
from trainer.report.gallery import Choice, build_gallery, candidates, choose, choose_alone
from trainer.report.page import differences
from trainer.report.published import method, published_voc
from trainer.run.registry import RunRegistry


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return build_scenes(tmp_path_factory.mktemp("scenes") / "digits")


@pytest.fixture(scope="module")
def runs(data: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, RunRegistry]:
    """AN, and LL-R + BoostLU that picks many labels in epoch 2."""
    root = str(tmp_path_factory.mktemp("runs"))
    return {
        "an": train_run(root, data, "name=an", SINGLE, "model.alpha=1"),
        "ll-r": train_run(root, data, "name=ll-r", SINGLE, "loss.name=ll-r", "loss.delta=20", "model.alpha=5"),
    }


@pytest.fixture(scope="module")
def page(runs: dict[str, RunRegistry], tmp_path_factory: pytest.TempPathFactory) -> Page:
    output = tmp_path_factory.mktemp("report") / "report.html"
    told: list[tuple[str, int, int]] = []
    columns = [
        GalleryColumn("AN", runs["an"].url),
        GalleryColumn("AN, boosted", runs["an"].url, ("model.alpha=5",)),
        GalleryColumn("LL-R + BoostLU", runs["ll-r"].url),
    ]
    shown = [ReportRun("AN", runs["an"].url), ReportRun("LL-R + BoostLU", runs["ll-r"].url)]
    write_report(shown, str(output), columns, title="Two <runs> & more", progress=lambda *news: told.append(news))
    assert {what for what, _, _ in told} == {
        "reading runs",
        "loading models",
        "scoring test images",
        "writing the page",
    }
    assert all(0 <= done <= total for _, done, total in told)
    return Page(output.read_text())


def test_the_page_stands_alone(page: Page) -> None:
    assert_stands_alone(page)
    assert "#0100" not in page.html, "every placeholder colour became a variable"
    assert "#0200" not in page.html
    assert "<h1>Two &lt;runs&gt; &amp; more</h1>" in page.html


def test_the_summary_says_what_the_runs_recorded(page: Page, runs: dict[str, RunRegistry]) -> None:
    for title, name, alpha, published in (("AN", "an", "1", "85.89"), ("LL-R + BoostLU", "ll-r", "5", "89.29")):
        result = runs[name].result()
        assert result is not None
        row = page.row(title)
        assert row[1:3] == [title, "1 positive of 10 labels an image"]
        assert row[3] == alpha
        assert row[4] == f"{result['best']['epoch']} of 2"
        assert row[5:7] == [f"{100 * result['validation_map']:.2f}", f"{100 * result['test']['map']:.2f}"]
        assert row[7:] == [published, "finished"]


def test_boosting_at_inference_has_a_row_of_its_own(page: Page, runs: dict[str, RunRegistry]) -> None:
    run = runs["an"]
    expected = evaluate(run, best_or_last(run), "test", run.config(["model.alpha=5"]))
    row = page.row("AN, boosted")
    assert row[1] == "AN + BoostLU at inference"
    assert row[3] == "1 → 5"
    assert row[5:8] == ["–", f"{100 * expected['map']:.2f}", "87.31"]


def test_picks_are_counted_against_the_full_labels(page: Page, runs: dict[str, RunRegistry]) -> None:
    facts = gather(ReportRun("LL-R", runs["ll-r"].url))
    first, second = facts.epochs
    assert (first.picks, first.precision, first.recall) == (0, None, None)
    assert second.picks >= 64  # two steps of ceil(20 % of 16 × 10) each
    assert second.picks_true is not None
    assert second.hidden is not None
    assert f">{second.picks}<" in page.html
    assert f">{100 * second.picks_true / second.picks:.1f}<" in page.html
    labels = read_split(facts.config.dataset.path, "train").labels
    hidden = len(labels.pos.values) - 32
    assert second.hidden == hidden
    assert facts.chance() == pytest.approx(hidden / (32 * 9))
    assert "picking at random" in page.html
    assert not gather(ReportRun("AN", runs["an"].url)).picks


def test_the_picture_has_a_panel_for_every_model_and_row(page: Page) -> None:
    alts = [attrs["alt"] or "" for tag, attrs in page.tags if tag == "img"]
    assert len(alts) == 6 * (1 + 3)
    assert sum(alt.startswith("Test image") for alt in alts) == 6
    assert all("side the object's box" in alt for alt in alts if alt.startswith("Map of class"))
    assert "How the rows were chosen" in page.text


def test_the_caption_counts_who_scores_what_above_0(runs: dict[str, RunRegistry], data: str) -> None:
    columns = [GalleryColumn("AN", runs["an"].url), GalleryColumn("LL-R", runs["ll-r"].url)]
    gallery = build_gallery(columns)
    index = read_split(data, "test")
    seen = []
    for column in columns:
        run = RunRegistry.open(column.url)
        scores = score_split(
            load_model(run, best_or_last(run), run.config()), index, run.config(), torch.device("cpu")
        )
        seen.append(scores.entries)
    low, high = (entries.scores > 0 for entries in seen)
    there = seen[0].positive
    counts = gallery.counts
    assert (counts.present, counts.absent) == (there.sum(), (~there).sum())
    assert (counts.found, counts.lost) == ((there & high & ~low).sum(), (there & low & ~high).sum())
    assert counts.alarms == [(~there & low).sum(), (~there & high).sum()]


def test_one_run_without_picks_or_pictures(runs: dict[str, RunRegistry], tmp_path: Path) -> None:
    write_report([ReportRun("AN", runs["an"].url)], str(tmp_path / "r.html"))
    page = Page((tmp_path / "r.html").read_text())
    assert_stands_alone(page)
    assert "What the large losses were" not in page.text
    assert "What the models see" not in page.text
    assert "Settings that differ" not in page.text
    assert "1 run," in page.text


def test_an_unfinished_run_on_remote_storage(data: str) -> None:
    root = f"memory://{uuid.uuid4().hex}"
    run = train_run(root, data, "name=remote", SINGLE, "loss.name=ll-cp", "loss.delta=5", finish=False)
    shown = [ReportRun("LL-Cp", run.url)]
    write_report(shown, storage.join(root, "report.html"), default_columns(shown))
    page = Page(storage.read_bytes(storage.join(root, "report.html")).decode())
    assert_stands_alone(page)
    row = page.row("LL-Cp")
    assert row[6] == "–"
    assert row[8] == "interrupted"
    assert "What the large losses were" in page.text
    assert "What the models see" in page.text
    assert "1: interrupted" in page.text


def test_a_driver_that_vanished_is_told(data: str, tmp_path: Path) -> None:
    run = train_run(str(tmp_path), data, SINGLE, finish=False)
    run.begin_attempt(1)
    storage.remove(run.path("lease.json"))
    write_report([ReportRun("gone", run.url)], str(tmp_path / "r.html"))
    page = Page((tmp_path / "r.html").read_text())
    assert "1: interrupted; 2: ended without a word" in page.text
    assert page.row("gone")[8] == "stopped"


def test_a_run_that_never_made_a_step(data: str, tmp_path: Path) -> None:
    config = make_config({"name": "new", "dataset": {"path": data}})
    run = RunRegistry.create(str(tmp_path), config, read_split(data, "train").dataset)
    shown = [ReportRun("new", run.url)]
    assert default_columns(shown) == []
    write_report(shown, str(tmp_path / "r.html"), [GalleryColumn("new", run.url)])
    page = Page((tmp_path / "r.html").read_text())
    assert_stands_alone(page)
    assert "has no checkpoint yet" in page.text
    assert page.row("new")[4:7] == ["–", "–", "–"]


def test_a_dataset_that_is_gone_costs_the_pictures_only(data: str, tmp_path: Path) -> None:
    copy = str(tmp_path / "copy")
    shutil.copytree(data, copy)
    run = train_run(str(tmp_path), copy, "name=orphan", SINGLE)
    shutil.rmtree(copy)
    write_report([ReportRun("orphan", run.url)], str(tmp_path / "r.html"), [GalleryColumn("orphan", run.url)])
    page = Page((tmp_path / "r.html").read_text())
    assert "No class-activation maps: no dataset at" in page.text
    assert page.row("orphan")[2] == "single-positive-1200"


def test_no_run_at_all_is_the_users_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no run at"):
        write_report([ReportRun("x", str(tmp_path / "x"))], str(tmp_path / "r.html"))
    with pytest.raises(UserError, match="at least one run"):
        write_report([], str(tmp_path / "r.html"))
    assert not (tmp_path / "r.html").exists()


def test_default_columns_boost_plain_an_at_inference(runs: dict[str, RunRegistry]) -> None:
    shown = [ReportRun("A", runs["an"].url), ReportRun("B", runs["ll-r"].url)]
    titles = [(c.title, c.overrides) for c in default_columns(shown)]
    assert titles == [("A", ()), ("A + BoostLU at inference", ("model.alpha=5",)), ("B", ())]


def test_sums_of_an_epoch_by_hand() -> None:
    def step(epoch: int, loss: float, samples: int, picks: int, true: int | None, hidden: int | None) -> dict:
        rest = {"picks": picks, "picks_true": true, "hidden": hidden, "seconds": 0.5, "waited": 0.25}
        return {"epoch": epoch, "loss": loss, "samples": samples, **rest}

    one, two = epochs([step(1, 1.0, 30, 0, 0, 9), step(1, 4.0, 10, 4, 3, 6), step(2, 2.0, 5, 2, None, None)])
    assert (one.number, one.samples, one.steps, one.seconds, one.waited) == (1, 40, 2, 1.0, 0.5)
    assert one.loss == pytest.approx(1.75)
    assert one.precision == pytest.approx(3 / 4)
    assert one.recall == pytest.approx(3 / 15)
    assert (two.picks, two.precision, two.recall) == (2, None, None)


def test_rows_are_chosen_by_the_stated_rule() -> None:
    present = [[0], [0, 1], [0, 2], [1, 2], [0, 1], [2, 3], [0, 3], [1, 3]]
    low, high = np.full((8, 4), -2.0, np.float32), np.full((8, 4), -1.0, np.float32)
    high[0, 0] = 5  # only one class there
    high[1, [0, 1]] = 1, 3  # class 1 differs more
    high[3, 1] = 9  # class 1 again: only when nothing new is left
    high[4, 0] = 1
    high[4, 3] = 50  # not there
    low[2, 2] = 1  # the other way round
    choices = choose(present, low, high)
    wanted = [(1, 1), (3, 1), (4, 0)]
    assert [(c.image, c.cls) for c in choices[:3]] == wanted
    assert choices[-1] == Choice(2, 2, "misses")
    assert [c.image for c in choices[3:-1]] == [5, 6], "filled with the first other images"
    assert len(choices) == 6
    many = [[c, (c + 1) % 4] for c in range(4)] * 3
    clear = np.eye(4)[[classes[0] for classes in many]] - 0.5
    rows = choose(many, np.full((12, 4), -1.0), clear)
    assert len(rows) == 6
    assert len({row.cls for row in rows[:5]}) == 4, "every class before one is repeated"
    assert choose([], np.zeros((0, 4)), np.zeros((0, 4))) == []


def test_fewer_images_are_scored_where_they_are_large() -> None:
    assert [candidates(side) for side in (64, 96, 224, 448, 2000)] == [1000, 1000, 199, 60, 60]


def test_a_single_model_shows_its_best_classes_new_ones_first() -> None:
    present = [[2], [0, 1], [], [0, 3], [0, 1], [1, 2], [1, 3], [0, 2], [0, 3]]
    logits = np.tile(np.array([[3.0, 1.0, 2.0, 0.0]]), (9, 1))
    chosen = [(c.image, c.cls) for c in choose_alone(present, logits)]
    assert chosen == [(1, 0), (5, 2), (6, 1), (3, 0), (4, 0), (7, 0)]
    assert choose_alone([[]], logits[:1]) == []


def test_classes_that_differ_most_are_shown_in_order() -> None:
    assert shown_classes([[0.1, None, 0.3], [0.2, None, 0.4]]) == [0, 2]
    rng = np.random.default_rng(0)
    base = rng.random(80)
    other = base.copy()
    moved = np.sort(rng.permutation(80)[:CLASSES_SHOWN])
    other[moved] += 0.5
    assert shown_classes([base.tolist(), other.tolist()]) == moved.tolist()


def config(*overrides: str) -> RunConfig:
    return make_config({"name": "x", "dataset": {"path": "d", "labels": "single"}}, overrides)


def test_methods_have_their_usual_names_and_published_numbers() -> None:
    full = config("loss.name=bce", "dataset.labels=full", "model.alpha=1")
    assert (method(full), published_voc(full)) == ("full labels", 89.42)
    assert published_voc(config("loss.name=bce", "model.alpha=1")) is None
    assert published_voc(config("loss.name=an", "model.alpha=1", "dataset.labels=full")) is None
    assert method(config("loss.name=ll-ct")) == "LL-Ct + BoostLU"
    assert published_voc(config("loss.name=ll-ct")) == 88.61
    inference = config("loss.name=an", "model.boost=inference")
    assert (method(inference), published_voc(inference)) == ("AN + BoostLU at inference", 87.31)
    assert published_voc(config("loss.name=an")) is None


def test_settings_that_differ_are_named_with_their_values(runs: dict[str, RunRegistry]) -> None:
    found = dict(differences([gather(ReportRun(name, run.url)) for name, run in runs.items()]))
    assert found["loss.name"] == ["an", "ll-r"]
    assert found["loss.delta"] == ["–", "20"]
    assert found["model.alpha"] == ["1", "5"]
    assert "optimizer.lr" not in found
