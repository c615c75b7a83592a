"""The training loop in one process: exact resume, corrections, evaluation, options."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from sharding.index import read_labels, read_split
from tests.attempts import ALONE, assert_same_end, attempt, last_model, losses, start
from trainer.config import make_config
from trainer.evaluation import evaluate
from trainer.run import checkpoint
from trainer.run.checkpoint import Manifest
from trainer.run.coordination import RunCoordinator
from trainer.run.events import read_events, step_history
from trainer.training import train

OPTIONS = {
    "ll-cp": {"delta": 5},
    "ll-r": {"delta": 5},
    "em-apl": {"warmup_epochs": 1},
    "role": {"expected_positives": 3},
    "gr": {},
}


@pytest.mark.parametrize("method", OPTIONS)
@pytest.mark.parametrize("stop_at", [3, 5, 8])
def test_a_stopped_run_ends_as_the_undisturbed_one(
    tiny_values: dict[str, Any], tmp_path: Path, method: str, stop_at: int
) -> None:
    """Within the first epoch, at its end, and within the second (5 steps an epoch)."""
    config = make_config({**tiny_values, "loss": {"name": method, **OPTIONS[method]}, "epochs": 3})
    undisturbed = start(config, tmp_path / "a")
    assert attempt(undisturbed)
    stopped = start(config, tmp_path / "b")
    assert not attempt(stopped, stop_at)
    assert stopped.checkpoints()[-1].step == stop_at
    assert attempt(stopped)
    assert len(losses(undisturbed)) == 15
    assert_same_end(undisturbed, stopped)


def test_corrections_of_ll_cp_reach_later_epochs(tiny_values: dict[str, Any], tmp_path: Path) -> None:
    """The picks of epoch 2 and 3 are in the checkpoint, only on entries that the overlay left unobserved."""
    config = make_config({**tiny_values, "loss": {"name": "ll-cp", "delta": 5}, "epochs": 3})
    registry = start(config, tmp_path)
    attempt(registry)
    table = checkpoint.read_checkpoint(registry.url, registry.checkpoints()[-1]).corrections
    assert table is not None
    picks = dict.fromkeys((1, 2, 3), 0)
    for event in step_history(read_events(registry.url)):
        picks[event["epoch"]] += event["picks"]
    by_epoch = {e: table["epoch"].to_pylist().count(e) for e in (1, 2, 3)}
    # k = ⌈5 % of 16 · 10⌉ = 8 a step, five steps; an entry that is corrected is not unobserved any more.
    assert picks == by_epoch == {1: 0, 2: 40, 3: 40}
    index = read_split(config.dataset.path, "train")
    observed = read_labels(index, config.dataset.labels)
    for sample, cls in zip(table["sample"].to_pylist(), table["class"].to_pylist(), strict=True):
        assert cls not in observed.pos.row(sample)


def test_epoch_one_modifies_nothing(tiny_values: dict[str, Any], tmp_path: Path) -> None:
    registry = start(make_config(tiny_values), tmp_path)
    attempt(registry)
    history = step_history(read_events(registry.url))
    assert {event["picks"] for event in history if event["epoch"] == 1} == {0}
    assert {event["picks"] for event in history if event["epoch"] == 2} == {16}  # ⌈10 % of 16 · 10⌉
    assert all(0 <= event["picks_true"] <= min(event["picks"], event["hidden"]) for event in history)


def test_only_best_and_last_checkpoints_stay(tiny_values: dict[str, Any], tmp_path: Path) -> None:
    config = make_config({**tiny_values, "epochs": 4, "checkpoint": {"keep_last": 1, "every_steps": 2}})
    registry = start(config, tmp_path)
    number = registry.begin_attempt(1)
    coordinator = RunCoordinator(registry, config, number)

    def commit(manifest: Manifest) -> None:
        coordinator.commit(manifest)
        while (waiting := coordinator.take_evaluation()) is not None:
            coordinator.record(waiting, "val", evaluate(registry, waiting, "val", config))

    train(registry, config, ALONE, number, commit, in_background=False)
    coordinator.conclude(None)
    coordinator.close()
    result = registry.result()
    assert result is not None
    scores = {r["step"]: r["map"] for r in registry.evaluations("val").values()}
    best = max(scores, key=lambda step: (scores[step], -step))
    assert result["best"]["step"] == best
    assert {m.step for m in registry.checkpoints()} == {best, 20}


def test_a_damaged_checkpoint_is_reported_and_the_one_before_it_used(
    tiny_values: dict[str, Any], tmp_path: Path
) -> None:
    config = make_config(tiny_values, ["checkpoint.every_steps=2"])
    undisturbed, damaged = start(config, tmp_path / "a"), start(config, tmp_path / "b")
    attempt(undisturbed)
    attempt(damaged, stop_at=7)
    newest = damaged.checkpoints()[-1]
    victim = Path(checkpoint.checkpoint_url(damaged.url, newest.name, "optimizer.pt"))
    victim.write_bytes(victim.read_bytes()[:-100])
    attempt(damaged)
    events = read_events(damaged.url)
    assert [e["checkpoint"] for e in events if e["event"] == "checkpoint_damaged"] == [newest.name]
    assert [e["step"] for e in events if e["event"] == "resumed"] == [6]
    assert_same_end(undisturbed, damaged)


def test_an_evaluation_equals_scikit_learn(tiny_values: dict[str, Any], tmp_path: Path) -> None:
    from sklearn.metrics import average_precision_score

    from trainer.evaluation import load_model, score_split

    registry = start(make_config(tiny_values), tmp_path)
    attempt(registry)
    config, manifest = registry.config(), registry.checkpoints()[-1]
    record = evaluate(registry, manifest, "test", config)
    index = read_split(config.dataset.path, "test")
    scores = score_split(load_model(registry, manifest, config), index, config, torch.device("cpu"))
    entries = scores.entries
    assert len(entries) == len(index) * 10  # fully labelled: every entry is verified
    of_class = [entries.classes == cls for cls in range(10)]
    expected = [average_precision_score(entries.positive[own], entries.scores[own]) for own in of_class]
    assert record["ap"] == pytest.approx(expected, abs=1e-12)
    assert record["map"] == pytest.approx(sum(expected) / 10, abs=1e-12)


def test_boosting_at_inference_changes_scores_but_not_training(
    tiny_values: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``boost: inference`` trains exactly as alpha = 1 does; evaluation then uses alpha."""
    plain = start(make_config(tiny_values, ["model.alpha=1", "name=plain"]), tmp_path)
    boosted = start(make_config(tiny_values, ["model.alpha=5", "model.boost=inference", "name=boosted"]), tmp_path)
    for registry in (plain, boosted):
        attempt(registry)
    assert_same_end(plain, boosted)
    records = [evaluate(r, r.checkpoints()[-1], "val", r.config()) for r in (plain, boosted)]
    assert [record["alpha"] for record in records] == [1, 5]
    assert records[0]["map"] != records[1]["map"]


def test_thresholds_are_fitted_on_validation_and_used_on_test(tiny_values: dict[str, Any], tmp_path: Path) -> None:
    registry = start(make_config(tiny_values), tmp_path)
    attempt(registry)
    config, manifest = registry.config(), registry.checkpoints()[-1]
    assert evaluate(registry, manifest, "test", config)["thresholds"] is None
    validation = evaluate(registry, manifest, "val", config)
    registry.record_evaluation(manifest.name, "val", validation)
    test = evaluate(registry, manifest, "test", config)
    assert test["thresholds"] == validation["thresholds"]
    assert test["decisions"].keys() == {"half", "top3", "fitted"}
    # Other boosting gives other logits: the stored thresholds do not apply to them.
    assert evaluate(registry, manifest, "test", registry.config(["model.alpha=2"]))["thresholds"] is None


def test_micro_batches_change_nothing_but_memory(tiny_values: dict[str, Any], tmp_path: Path) -> None:
    """The same picks and, to rounding, the same losses; 16 slots in passes of 5, 5, 5 and 1."""
    base = ["model.batch_norm=frozen", "loss.name=ll-ct", "loss.delta=5"]
    whole = start(make_config(tiny_values, [*base, "name=whole"]), tmp_path)
    chunked = start(make_config(tiny_values, [*base, "name=chunked", "workers.micro_batch=5"]), tmp_path)
    for registry in (whole, chunked):
        attempt(registry)
    histories = [step_history(read_events(registry.url)) for registry in (whole, chunked)]
    assert [e["picks_true"] for e in histories[0]] == [e["picks_true"] for e in histories[1]]
    assert [e["loss"] for e in histories[0]] == pytest.approx([e["loss"] for e in histories[1]], rel=1e-4)


def test_average_and_raw_weights_are_evaluated_and_resume(tiny_values: dict[str, Any], tmp_path: Path) -> None:
    config = make_config(tiny_values, ["optimizer.ema_decay=0.9", "optimizer.freeze=[backbone.stem]"])
    undisturbed, stopped = start(config, tmp_path / "a"), start(config, tmp_path / "b")
    attempt(undisturbed)
    attempt(stopped, stop_at=3)
    attempt(stopped)
    assert_same_end(undisturbed, stopped)
    first, second = (checkpoint.read_average(r.url, r.checkpoints()[-1]) for r in (undisturbed, stopped))
    assert first.keys() == last_model(undisturbed).keys()
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    manifest = undisturbed.checkpoints()[-1]
    raw = evaluate(undisturbed, manifest, "val", config)
    ema = evaluate(undisturbed, manifest, "val", undisturbed.config(["evaluate.weights=ema"]))
    assert (raw["map_ema"], raw["map"]) == (ema["map"], ema["map_raw"])
    assert raw["map"] != ema["map"]


def test_compile_and_deterministic_mode_reach_torch(
    tiny_values: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[object] = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module: compiled.append(module))
    registry = start(make_config(tiny_values, ["compile=true", "deterministic=true", "epochs=1"]), tmp_path)
    try:
        attempt(registry)
        assert torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(False)
    assert [type(module).__name__ for module in compiled] == ["Classifier"]
