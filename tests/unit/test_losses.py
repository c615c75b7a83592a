"""Every loss worked by hand on one row."""

import math

import pytest
import torch

from trainer.losses.asymmetric import asymmetric, partial_asymmetric
from trainer.losses.binary import assume_negative, bce, label_smoothing, weak_assume_negative
from trainer.losses.entropy import entropy_maximisation, with_pseudo_labels
from trainer.losses.large_loss import correct, entries_to_modify, reject
from trainer.losses.robust import generalized_robust
from trainer.losses.role import role
from trainer.losses.splc import missing, splc

LN2, LN3 = math.log(2), math.log(3)
LN43 = math.log(4 / 3)

# Probabilities 3/4, 1/2, 3/4, 1/4: a positive, a verified negative, and two unobserved entries.
LOGITS = torch.tensor([[LN3, 0.0, LN3, -LN3]], dtype=torch.float64)
LABELS = torch.tensor([[1, -1, 0, 0]], dtype=torch.int8)


def values(entries: torch.Tensor) -> list[float]:
    return entries.squeeze(0).tolist()


def test_bce_by_hand() -> None:
    assert values(bce(LOGITS, LABELS)) == pytest.approx([LN43, LN2, 0, 0])


def test_assume_negative_by_hand() -> None:
    assert values(assume_negative(LOGITS, LABELS)) == pytest.approx([LN43, LN2, 2 * LN2, LN43])


def test_weak_assume_negative_by_hand() -> None:
    assert values(weak_assume_negative(LOGITS, LABELS)) == pytest.approx([LN43, LN2, 2 * LN2 / 3, LN43 / 3])


def test_label_smoothing_by_hand() -> None:
    near, far = 0.9 * LN43 + 0.1 * 2 * LN2, 0.1 * LN43 + 0.9 * 2 * LN2
    assert values(label_smoothing(LOGITS, LABELS, 0.1)) == pytest.approx([near, LN2, far, near])


def test_asymmetric_by_hand() -> None:
    # shift 1/4: p_m = 1/4, 1/2, 0 for the negatives; γ₋ = 2, γ₊ = 1
    got = asymmetric(LOGITS, LABELS, gamma_pos=1, gamma_neg=2, clip=0.25)
    assert values(got) == pytest.approx([0.25 * LN43, 0.0625 * LN43, 0.25 * LN2, 0])


def test_partial_asymmetric_by_hand() -> None:
    ignored = torch.tensor([[True, True, True, False]])
    got = partial_asymmetric(LOGITS, LABELS, ignored, gamma_pos=0, gamma_neg=1, gamma_unobserved=2, clip=0)
    # verified entries are never ignored
    assert values(got) == pytest.approx([LN43, 0.5 * LN2, 0, 0.0625 * LN43])


def test_entropy_maximisation_by_hand() -> None:
    entropy = 0.75 * LN43 + 0.25 * 2 * LN2
    assert values(entropy_maximisation(LOGITS, LABELS, 0.1)) == pytest.approx(
        [LN43, LN2, -0.1 * entropy, -0.1 * entropy]
    )


def test_pseudo_labels_by_hand() -> None:
    entropy = 0.75 * LN43 + 0.25 * 2 * LN2
    soft = torch.tensor([[0.5, 0.5, math.nan, 0.2]])  # on verified entries a soft label has no effect
    got = with_pseudo_labels(LOGITS, LABELS, soft, entropy_weight=0.1, pseudo_weight=0.9)
    assert values(got) == pytest.approx([LN43, LN2, -0.1 * entropy, 0.9 * (0.2 * 2 * LN2 + 0.8 * LN43)])


def test_splc_by_hand() -> None:
    # a margin of ln 3 takes the positive's logit to 0; the third entry is corrected, without a margin
    corrected = missing(LOGITS, LABELS, tau=0.6)
    assert values(corrected) == [False, False, True, False]
    got = splc(LOGITS, LABELS, corrected, margin=LN3, gamma=2)
    assert values(got) == pytest.approx([0.25 * LN2, 0.25 * LN2, 0.0625 * LN43, 0.0625 * LN43])


def test_generalized_robust_by_hand() -> None:
    # second epoch of two: w = 1, b = 0 (half-way), μ = 1/2, σ = 1/4 (at the end); q2 = q3 = 1: linear losses
    got = generalized_robust(LOGITS, LABELS, 2, 2, (0, 2), (0, 0), (0, 0.5), (1, 0.25), 1, 1)
    weight = math.exp(-0.5)
    k1, k2 = 1 / (1 + math.exp(-0.75)), 1 / (1 + math.exp(-0.25))
    high = weight * (k1 * 0.25 + (1 - k1) * 0.75)
    low = weight * (k2 * 0.75 + (1 - k2) * 0.25)
    assert values(got) == pytest.approx([LN43, LN2, high, low])


def test_role_by_hand() -> None:
    estimate = torch.tensor([[1.0, 0.0, 0.5, 0.0]])
    got = role(LOGITS, LABELS, estimate, expected=1.25, found=LOGITS.sigmoid().sum())
    # one image: Σp = 2.25, so the regulariser is 1/16, in the mean over the four entries
    assert got.mean().item() == pytest.approx(
        0.5 * ((2 * LN43 + 2 * LN2 + 0.5 * (LN43 + 2 * LN2) + LN43) / 4 + 1 / 16)
    )


def test_large_loss_by_hand() -> None:
    picks = torch.tensor([[False, False, True, False]])
    assert values(reject(LOGITS, LABELS, picks)) == pytest.approx([LN43, LN2, 0, LN43])
    assert values(correct(LOGITS, LABELS, picks)) == pytest.approx([LN43, LN2, LN43, LN43])


@pytest.mark.parametrize(
    ("scheme", "delta", "epoch", "samples", "classes", "k"),
    [
        ("ll-r", 0.5, 1, 16, 80, 0),
        ("ll-r", 0.5, 2, 16, 80, 7),  # 6.4
        ("ll-ct", 0.2, 6, 16, 80, 13),  # 12.8
        ("ll-cp", 0.1, 1, 16, 80, 0),
        ("ll-cp", 0.1, 2, 16, 80, 2),  # 1.28
        ("ll-cp", 0.1, 9, 16, 80, 2),  # constant
        ("ll-r", 0.1, 4, 200, 5000, 3000),  # exact: 3·0.1 % in floats is above 0.003, and would give 3001
        ("ll-ct", 0.2, 4, 100, 5000, 3000),
        ("ll-r", 100, 9, 2, 3, 6),  # never more than there are
        ("ll-r", 0.5, 2, 0, 80, 0),
    ],
)
def test_entries_to_modify(scheme: str, delta: float, epoch: int, samples: int, classes: int, k: int) -> None:
    assert entries_to_modify(scheme, delta, epoch, samples, classes) == k
