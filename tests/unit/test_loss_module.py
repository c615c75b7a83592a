"""Configured losses: every precision, unusual labels, what they pick and remember, configuration errors."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from sharding.errors import UserError
from trainer.losses import Loss, LossConfig, LossOutput, Progress, build_loss
from trainer.losses.binary import assume_negative
from trainer.losses.build import PLAIN, SCHEDULED
from trainer.losses.config import OPTIONS
from trainer.losses.entropy import PseudoLabels
from trainer.losses.role import LabelEstimator


def configured(name: str, **options: float) -> LossConfig:
    if name == "role":
        options.setdefault("expected_positives", 1.5)
    return LossConfig(name=name, **options)


def run(loss: Loss, logits: torch.Tensor, labels: torch.Tensor, epoch: int = 3) -> LossOutput:
    batch = len(logits)
    real = torch.ones(batch, dtype=torch.bool)
    return loss(logits, labels, Progress(epoch, 10), batch, real, samples=torch.arange(batch))


def build(name: str, classes: int, **options: float) -> Loss:
    return build_loss(configured(name, **options), classes, prior=torch.linspace(0, 0.1, classes), num_samples=8)


@pytest.mark.parametrize("name", OPTIONS)
@settings(max_examples=settings().max_examples // 5)
@given(data=st.data())
def test_finite_in_every_precision(name: str, data: st.DataObject) -> None:
    dtype = data.draw(st.sampled_from([torch.float16, torch.bfloat16, torch.float32]))
    logit = st.floats(-60, 60, width=16) | st.sampled_from([-60.0, -17.0, 0.0, 17.0, 60.0])
    rows = data.draw(st.lists(st.lists(logit, min_size=4, max_size=4), min_size=1, max_size=4))
    label_rows = [data.draw(st.lists(st.sampled_from([-1, 0, 1]), min_size=4, max_size=4)) for _ in rows]
    logits = torch.tensor(rows, dtype=dtype, requires_grad=True)
    labels = torch.tensor(label_rows, dtype=torch.int8)
    out = run(build(name, 4), logits, labels, epoch=data.draw(st.integers(1, 10)))
    assert out.entries.dtype == torch.float32
    assert out.entries.isfinite().all()
    out.entries.sum().backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("name", OPTIONS)
def test_all_labels_unobserved(name: str) -> None:
    logits = torch.randn(4, 5, requires_grad=True)
    out = run(build(name, 5), logits, torch.zeros(4, 5, dtype=torch.int8))
    assert out.entries.isfinite().all()


@pytest.mark.parametrize("name", OPTIONS)
def test_verified_labels_are_never_picked(name: str) -> None:
    torch.manual_seed(0)
    labels = torch.randint(-1, 2, (6, 7), dtype=torch.int8)
    out = run(build(name, 7), torch.randn(6, 7) * 5, labels, epoch=10)
    assert out.picks is None or not (out.picks & (labels != 0)).any()


@pytest.mark.parametrize("name", ["ll-r", "ll-ct", "ll-cp"])
def test_padding_is_never_picked(name: str) -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(4, 10), torch.zeros(4, 10, dtype=torch.int8)
    logits[3] = 50.0  # the largest losses of all, but of a sample that is not real
    real = torch.tensor([True, True, True, False])
    out = build(name, 10, delta=10)(logits, labels, Progress(2, 10), 3, real)
    assert out.picks is not None
    assert int(out.picks[:3].sum()) == 3
    assert not out.picks[3].any()


@pytest.mark.parametrize("name", ["ll-r", "ll-ct", "ll-cp"])
def test_first_epoch_is_assume_negative(name: str) -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(4, 10), torch.randint(-1, 2, (4, 10), dtype=torch.int8)
    out = run(build(name, 10), logits, labels, epoch=1)
    assert torch.equal(out.entries, assume_negative(logits, labels))
    assert out.picks is not None
    assert not out.picks.any()


def test_rejected_entries_have_no_gradient_and_corrected_ones_are_pulled_up() -> None:
    torch.manual_seed(0)
    labels = torch.zeros(4, 10, dtype=torch.int8)
    for name, sign in (("ll-r", 0), ("ll-ct", -1)):
        logits = torch.randn(4, 10, requires_grad=True)
        out = run(build(name, 10, delta=10), logits, labels, epoch=2)
        out.entries.sum().backward()
        assert logits.grad is not None
        assert out.picks is not None
        assert int(out.picks.sum()) == 4
        assert (torch.sign(logits.grad[out.picks]) == sign).all()
        assert (logits.grad[~out.picks] > 0).all()


def test_a_corrected_label_is_never_selected_again() -> None:
    torch.manual_seed(0)
    loss, logits = build("ll-cp", 10, delta=10), torch.randn(4, 10)
    labels = torch.zeros(4, 10, dtype=torch.int8)
    for epoch in (2, 3, 4):
        out = run(loss, logits, labels, epoch)
        assert out.picks is not None
        assert int(out.picks.sum()) == 4
        labels[out.picks] = 1
    assert int(labels.sum()) == 12


def test_splc_waits_for_its_warm_up() -> None:
    logits, labels = torch.full((1, 3), 5.0), torch.zeros(1, 3, dtype=torch.int8)
    first, second = (run(build("splc", 3), logits, labels, epoch).picks for epoch in (1, 2))
    assert first is not None
    assert second is not None
    assert not first.any()
    assert second.all()


def test_p_asl_leaves_out_the_likeliest_and_the_frequent() -> None:
    logits = torch.tensor([[3.0, 2.0, 1.0, 0.5], [2.5, -1.0, -2.0, 0.4]])
    labels = torch.tensor([[1, 0, 0, 0], [0, -1, 0, 0]], dtype=torch.int8)
    prior = torch.tensor([0.0, 0.0, 0.0, 0.06])
    out = run(build_loss(LossConfig(name="p-asl", likelihood_top=1), 4, prior), logits, labels)
    assert out.picks is not None
    assert out.picks.tolist() == [[False, True, False, False], [True, False, False, False]]
    assert (out.entries == 0).tolist() == [[False, True, False, True], [True, False, False, True]]


# ── losses with a memory of each sample ──────────────────────────────────────────────────────────────────────────


def test_pseudo_labels_take_the_lowest_scores_of_each_class() -> None:
    memory = PseudoLabels(num_samples=4, num_classes=2, share=0.5, warmup_epochs=1)
    probability = torch.tensor([[0.1, 0.9], [0.2, 0.8], [0.3, 0.7], [0.4, 0.6]], dtype=torch.float64)
    labels = torch.tensor([[0, 0], [0, 0], [0, 0], [0, 1]], dtype=torch.int8)
    memory.record(torch.arange(4), torch.logit(probability), labels)
    memory.choose(epoch=1, epochs=2)  # ⌊0.5·4⌋ of the first class, ⌊0.5·3⌋ of the second, which has one positive
    got = memory.soft.float().nan_to_num(-1)
    torch.testing.assert_close(got, torch.tensor([[0.1, -1], [0.2, -1], [-1, 0.7], [-1, -1]]), rtol=0, atol=1e-3)
    before = memory.soft.clone()
    memory.record(torch.arange(4), torch.logit(probability.flip(0)), labels)
    memory.choose(epoch=2, epochs=2)  # nothing after the last epoch
    torch.testing.assert_close(memory.soft, before, equal_nan=True)


def test_pseudo_labels_grow_and_stay() -> None:
    memory = PseudoLabels(num_samples=10, num_classes=1, share=0.9, warmup_epochs=1)
    labels = torch.zeros(10, 1, dtype=torch.int8)
    seen: dict[int, float] = {}
    for epoch in (1, 2, 3):
        memory.record(torch.arange(10), torch.arange(10.0)[:, None] * epoch, labels)
        memory.choose(epoch, epochs=4)
        current = {i: float(v) for i, v in enumerate(memory.soft[:, 0]) if not v.isnan()}
        assert len(current) == 3 * epoch
        assert seen.items() <= current.items()
        seen = current


def test_role_estimates_start_at_the_verified_labels_and_move_towards_the_predictions() -> None:
    estimator = LabelEstimator(num_samples=3, num_classes=2, lr=0.1)
    samples = torch.tensor([2, 0])
    labels = torch.tensor([[1, 0], [-1, 0]], dtype=torch.int8)
    first = estimator.step(samples, torch.tensor([[0.0, 4.0], [0.0, -4.0]]), labels, expected=1.0, group=None)
    torch.testing.assert_close(first[:, 0], torch.tensor([0.995, 0.005]))
    assert ((first[:, 1] > 0.4) & (first[:, 1] < 0.6)).all()
    for _ in range(50):
        last = estimator.step(samples, torch.tensor([[0.0, 4.0], [0.0, -4.0]]), labels, expected=1.0, group=None)
    assert last[0, 1] > first[0, 1]
    assert last[1, 1] < first[1, 1]
    assert not estimator.seen[1]


def test_role_adam_is_torch_adam() -> None:
    torch.manual_seed(0)
    estimator = LabelEstimator(num_samples=4, num_classes=3, lr=0.05)
    reference = torch.nn.Parameter(estimator.theta.clone())
    adam = torch.optim.Adam([reference], lr=0.05)
    for step in range(5):
        samples = torch.tensor([step % 4, (step + 2) % 4])
        logits, labels = torch.randn(2, 3), torch.zeros(2, 3, dtype=torch.int8)
        estimator.step(samples, logits, labels, expected=1.2, group=None)
        theta = reference[samples]
        cross = torch.nn.functional.binary_cross_entropy_with_logits(theta, logits.sigmoid())
        adam.zero_grad()
        (0.5 * (cross + ((theta.sigmoid().sum(1).mean() - 1.2) / 3) ** 2)).backward()
        adam.step()
    torch.testing.assert_close(estimator.theta, reference.detach())


@pytest.mark.parametrize("name", ["role", "em-apl"])
def test_memory_survives_a_checkpoint(name: str) -> None:
    torch.manual_seed(0)
    loss, labels = (
        build(name, 3, **({"warmup_epochs": 1} if name == "em-apl" else {})),
        torch.zeros(8, 3, dtype=torch.int8),
    )
    batches = torch.randn(4, 8, 3)
    run(loss, batches[0], labels, epoch=1)
    loss.finish_epoch(Progress(1, 10))
    run(loss, batches[1], labels, epoch=2)
    loss.synchronize()
    resumed = build(name, 3, **({"warmup_epochs": 1} if name == "em-apl" else {}))
    resumed.load_state_dict(loss.state_dict())
    for each in (loss, resumed):
        each.finish_epoch(Progress(2, 10))
    assert torch.equal(run(loss, batches[2], labels).entries, run(resumed, batches[2], labels).entries)


@pytest.mark.parametrize("name", [name for name in OPTIONS if name not in ("role", "em-apl")])
def test_other_losses_remember_nothing(name: str) -> None:
    assert not build(name, 3).state_dict()


# ── bad input ────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", ["role", "em-apl"])
def test_memory_of_too_many_entries_is_refused(name: str) -> None:
    with pytest.raises(UserError, match="3400000 × 5000"):
        build_loss(configured(name), 5000, num_samples=3_400_000)


def test_role_needs_the_expected_number_of_positives() -> None:
    with pytest.raises(UserError, match=r"loss\.expected_positives"):
        build_loss(LossConfig(name="role"), 5, num_samples=4)


def test_p_asl_without_a_prior_says_how_to_do_without() -> None:
    with pytest.raises(UserError, match=r"loss\.prior_threshold=1"):
        build_loss(LossConfig(name="p-asl"), 5)
    build_loss(LossConfig(name="p-asl", prior_threshold=1), 5)


def test_an_option_of_another_loss_is_refused() -> None:
    with pytest.raises(ValidationError, match=r"loss 'asl' has no option 'delta'"):
        LossConfig(name="asl", delta=0.5)
    with pytest.raises(ValidationError, match=r"loss 'p-asl' has no option 'gamma', did you mean 'gamma_"):
        LossConfig(name="p-asl", gamma=2)


@pytest.mark.parametrize("bad", [{"name": "ll"}, {"delta": -1}, {"delta": 101}, {"detla": 1}])
def test_bad_configuration_is_refused(bad: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        LossConfig.model_validate(bad)
    with pytest.raises(ValidationError, match="v_width"):
        LossConfig(name="gr", v_width=(0, 1))


@pytest.mark.parametrize("name", OPTIONS)
def test_a_dumped_configuration_can_be_read_back(name: str) -> None:
    config = configured(name)
    assert LossConfig.model_validate(config.model_dump(mode="json")) == config


def test_every_option_is_documented_and_used() -> None:
    used = {key for options in OPTIONS.values() for key in options}
    assert used == set(LossConfig.model_fields) - {"name"}
    assert {*PLAIN, *SCHEDULED} < set(OPTIONS)
