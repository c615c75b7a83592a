"""Explanations: the maps are what the logits are made of, at any image size, with any alpha."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sharding.errors import UserError
from sharding.index import read_split
from tests.trained_run import build_scenes, train_run
from trainer.evaluation import load_model, score_split
from trainer.explain.boxes import read_boxes
from trainer.explain.maps import Explainer, best_or_last, class_numbers, probability, sample_image
from trainer.explain.overlay import draw_explanation, highest_attribution, overlay, score_text
from trainer.run.registry import RunRegistry


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return build_scenes(tmp_path_factory.mktemp("scenes") / "digits")


@pytest.fixture(scope="module")
def run(data: str, tmp_path_factory: pytest.TempPathFactory) -> RunRegistry:
    return train_run(str(tmp_path_factory.mktemp("runs")), data, "model.alpha=1")


def encoded(width: int, height: int, kind: str = "PNG", mode: str = "RGB") -> bytes:
    pixels = np.random.default_rng(3).integers(0, 256, (height, width, 3), np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(out, kind)
    return out.getvalue()


def test_the_logits_are_those_that_evaluation_sees(run: RunRegistry, data: str) -> None:
    explainer, index = Explainer(run), read_split(data, "test")
    scores = score_split(load_model(run, best_or_last(run), run.config()), index, run.config(), torch.device("cpu"))
    entries = scores.entries
    for sample in (0, 7, 23):
        seen = explainer.explain(sample_image(data, "test", index.sample_id(sample)))
        mine = entries.samples == sample
        np.testing.assert_allclose(seen.logits[entries.classes[mine]], entries.scores[mine], rtol=1e-4, atol=1e-5)


def test_the_mean_of_a_map_is_the_logit_and_alpha_changes_its_positive_part_only(run: RunRegistry) -> None:
    image, plainly, boosting = encoded(64, 64), Explainer(run), Explainer(run, run.config(["model.alpha=5"]))
    with torch.no_grad():  # hardly trained: shift the maps so that they have both signs
        shift = torch.from_numpy(plainly.explain(image).logits)
        plainly.model.head.bias -= shift
        boosting.model.head.bias -= shift
    plain, boosted = plainly.explain(image), boosting.explain(image)
    assert plain.cam.dtype == np.float32
    assert (plain.cam > 0).any()
    assert (plain.cam < 0).any()
    np.testing.assert_array_equal(boosted.cam, np.maximum(plain.cam, np.float32(5) * plain.cam))
    np.testing.assert_allclose(boosted.logits, boosted.cam.mean((1, 2)), rtol=1e-6)
    direct = boosting.logits(torch.from_numpy(boosted.image).permute(2, 0, 1)[None])
    np.testing.assert_allclose(boosted.logits, direct[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("width", "height", "kind", "mode"),
    [(200, 31, "PNG", "RGB"), (17, 120, "JPEG", "L"), (1, 1, "PNG", "RGBA"), (640, 480, "WEBP", "RGB")],
)
def test_images_of_any_size_and_kind_are_explained(
    run: RunRegistry, width: int, height: int, kind: str, mode: str
) -> None:
    seen = Explainer(run).explain(encoded(width, height, kind, mode))
    assert seen.image.shape == (height, width, 3)
    assert seen.image.dtype == np.uint8
    assert seen.cam.shape == (10, 6, 6)
    assert np.isfinite(seen.logits).all()


@pytest.mark.parametrize("data_bytes", [b"", b"not an image", encoded(20, 20)[:60]])
def test_what_is_no_image_is_named(run: RunRegistry, data_bytes: bytes) -> None:
    with pytest.raises(UserError, match=r"cat\.jpg cannot be decoded"):
        Explainer(run).explain(data_bytes, "cat.jpg")


def test_the_best_checkpoint_is_taken_and_the_newest_while_none_was_evaluated(data: str, tmp_path: Path) -> None:
    run = train_run(str(tmp_path), data, "checkpoint.keep_last=5")
    names = [m.name for m in run.checkpoints()]
    assert len(names) == 2
    for name, score in zip(names, (0.9, 0.1), strict=True):
        run.record_evaluation(name, "val", {"map": score})
    assert best_or_last(run).name == names[0]
    for name in names:
        run.record_evaluation(name, "val", {"error": "evaluator died"})
    assert best_or_last(run).name == names[1]
    for manifest in run.checkpoints():
        run.delete_checkpoint(manifest)
    with pytest.raises(UserError, match="no checkpoint yet"):
        Explainer(run)


def test_unknown_samples_and_classes_are_refused(data: str) -> None:
    with pytest.raises(UserError, match="no sample 'nobody'"):
        sample_image(data, "test", "nobody")
    assert class_numbers(["cat", "dog"], ["dog", "cat"]) == [1, 0]
    with pytest.raises(UserError, match="did you mean 'dog'"):
        class_numbers(["cat", "dog"], ["dig"])


def test_probability_is_the_sigmoid_without_overflow() -> None:
    logits = np.array([-1000.0, -2.0, 0.0, 2.0, 1000.0])
    np.testing.assert_allclose(probability(logits), [0, 1 / (1 + np.e**2), 0.5, 1 / (1 + np.e**-2), 1], atol=1e-15)
    assert score_text(-2.0) == "−2.00 · 11.9 %"
    assert score_text(0.0) == "+0.00 · 50.0 %"


def test_colour_is_where_the_map_is_positive_and_brightest_where_it_is_highest() -> None:
    image = np.full((40, 60, 3), 128, np.uint8)
    cam = np.array([[-3.0, -1.0, -2.0], [-2.0, -1.0, 8.0]], np.float32)
    painted = overlay(image, cam, 8.0)
    assert painted.shape == image.shape
    assert painted.dtype == np.uint8
    spread = painted.max(2).astype(int) - painted.min(2)
    assert (spread[:, :20] == 0).all(), "no colour where the map is negative"
    assert spread[35, 58] == spread.max() > 100
    half = overlay(image, cam, 80.0)
    assert (half.max(2).astype(int) - half.min(2)).max() < spread.max(), "a common scale dims the weaker map"
    assert (overlay(image, -np.abs(cam), 0.0) == overlay(image, -np.abs(cam), 5.0)).all()


def test_the_common_scale_is_the_highest_value_and_never_negative() -> None:
    assert highest_attribution([np.array([[1.0, -2.0]]), np.array([[3.5]])]) == 3.5
    assert highest_attribution([np.array([[-1.0]])]) == 0.0


@pytest.mark.parametrize(("width", "height", "classes"), [(64, 64, 4), (300, 20, 1), (20, 300, 7)])
def test_the_drawing_is_a_png_of_all_panels(run: RunRegistry, width: int, height: int, classes: int) -> None:
    explainer = Explainer(run)
    seen = explainer.explain(encoded(width, height))
    png = draw_explanation(seen, explainer.classes, seen.top(classes), "a caption")
    with Image.open(io.BytesIO(png)) as picture:
        assert picture.format == "PNG"
        assert picture.width > 250 * min(5, classes + 1)


def test_boxes_of_a_sample_are_read_from_its_tar(data: str) -> None:
    index = read_split(data, "test")
    for sample in range(len(index)):
        boxes = read_boxes(index, sample)
        assert sorted(boxes) == sorted(index.labels.pos.row(sample).tolist())
        assert all(len(box) == 4 for found in boxes.values() for box in found)
