"""``boostlu explain``, ``report`` and ``analyze``: what they print and write, and how they refuse."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from PIL import Image

from cluster.cli.main import main
from tests.trained_run import SINGLE, build_scenes, train_run
from trainer.explain.maps import sample_image
from trainer.report.facts import epochs
from trainer.run.events import read_events, step_history


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run ``an`` below ``runs``, and a test scene ``scene.jpg``."""
    root = tmp_path_factory.mktemp("place")
    data = build_scenes(root / "digits")
    train_run(str(root / "runs"), data, "name=an", SINGLE, "model.alpha=1")
    (root / "scene.jpg").write_bytes(sample_image(data, "test", "test-00003"))
    return root


class Result:
    def __init__(self, status: int, output: str, error: str) -> None:
        self.status, self.output, self.error = status, output, error


@pytest.fixture
def boostlu(place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):  # type: ignore[no-untyped-def]
    """Return a function that runs the command line in the folder."""
    monkeypatch.chdir(place)

    def run(*arguments: str) -> Result:
        monkeypatch.setattr(sys, "argv", ["boostlu", *arguments])
        with pytest.raises(SystemExit) as end:
            main()
        printed = capsys.readouterr()
        return Result(int(end.value.code or 0), printed.out, printed.err)

    return run


def test_explain_draws_the_four_best_classes_by_default(boostlu, place: Path) -> None:  # type: ignore[no-untyped-def]
    result = boostlu("explain", "an", "--image", "scene.jpg")
    assert result.status == 0, result.error
    assert "scene.an.png" in result.output
    scores = [float(line.split()[1]) for line in result.output.splitlines() if line.rstrip().endswith("%")]
    assert len(scores) == 4
    assert scores == sorted(scores, reverse=True)
    with Image.open(place / "scene.an.png") as picture:
        assert picture.format == "PNG"


def test_explain_takes_classes_checkpoint_output_and_alpha(boostlu, place: Path) -> None:  # type: ignore[no-untyped-def]
    options = ("--image", "scene.jpg", "--classes", "7, 2", "--checkpoint", "2", "--output")
    plain = boostlu("explain", "an", *options, "plain.png")
    boosted = boostlu("explain", "an", *options, "boosted.png", "model.alpha=5")
    assert plain.status == boosted.status == 0
    rows = [line.split()[0] for line in plain.output.splitlines() if line.rstrip().endswith("%")]
    assert rows == ["7", "2"]
    assert (place / "plain.png").read_bytes() != (place / "boosted.png").read_bytes(), "the caption names alpha"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("an", "--image", "nothing.jpg"), "no image file nothing.jpg"),
        (("an", "--image", "digits/dataset.json"), "digits/dataset.json cannot be decoded"),
        (("ann", "--image", "scene.jpg"), "did you mean 'an'?"),
        (("an", "--image", "scene.jpg", "--classes", "3,eleven"), "no class 'eleven'"),
        (("an", "--image", "scene.jpg", "--checkpoint", "77"), "no checkpoint '77'"),
        (("an", "--image", "scene.jpg", "model.alhpa=5"), "did you mean 'alpha'?"),
        (("an", "--image", "scene.jpg", "model.backbone=small_resnet:4"), "does not fit the model"),
    ],
)
def test_explain_refuses_in_one_line(boostlu, arguments: tuple[str, ...], message: str) -> None:  # type: ignore[no-untyped-def]
    result = boostlu("explain", *arguments, "--output", "never.png")
    assert result.status == 2
    assert message in result.error
    assert len(result.error.strip().splitlines()) == 1
    assert not Path("never.png").exists()


def test_report_writes_a_page_with_pictures_unless_told_not_to(boostlu, place: Path) -> None:  # type: ignore[no-untyped-def]
    assert boostlu("report", "an", "--output", "with.html").status == 0
    assert boostlu("report", "an", "--output", "without.html", "--no-gallery").status == 0
    assert "What the models see" in (place / "with.html").read_text()
    assert "What the models see" not in (place / "without.html").read_text()


def test_report_of_an_unknown_run_names_the_known_one(boostlu, place: Path) -> None:  # type: ignore[no-untyped-def]
    result = boostlu("report", "an", "na", "--output", "never.html")
    assert result.status == 2
    assert "did you mean 'an'?" in result.error
    assert not (place / "never.html").exists()


@pytest.mark.parametrize("command", ["explain", "report", "analyze"])
def test_help_shows_an_example(boostlu, command: str) -> None:  # type: ignore[no-untyped-def]
    result = boostlu(command, "--help")
    assert result.status == 0
    assert f"Example:  boostlu {command}" in result.output


def test_runs_show_says_how_good_the_picks_were(boostlu, place: Path) -> None:  # type: ignore[no-untyped-def]
    run = train_run(
        str(place / "runs"), str(place / "digits"), "name=ll-r", SINGLE, "loss.name=ll-r", "loss.delta=20"
    )
    epoch = epochs(step_history(read_events(run.url)))[1]
    result = boostlu("runs", "show", "ll-r")
    assert result.status == 0, result.error
    assert f"epoch 2: {epoch.picks} large losses, {100 * epoch.picks_true / epoch.picks:.2f} % truly" in result.output
    assert f"{100 * epoch.picks_true / epoch.hidden:.2f} % of the false negatives" in result.output
    assert "large losses" not in boostlu("runs", "show", "an").output


def test_analyze_prints_the_numbers_and_writes_the_page(boostlu, place: Path) -> None:  # type: ignore[no-untyped-def]
    result = boostlu("analyze", "an", "an", "model.alpha=5", "--images", "6", "--output", "analysis.html")
    assert result.status == 0, result.error
    assert "rank correlation of the two models' maps: 1.000" in result.output
    assert "in 6 images" in result.output
    assert "an model.alpha=5" in (place / "analysis.html").read_text()
    unknown = boostlu("analyze", "an", "na")
    assert unknown.status == 2
    assert "did you mean 'an'?" in unknown.error
