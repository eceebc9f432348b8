"""First link of the oracle chain, in float64: dense formulas == objective of the statistics.

The two routes of bgkd_megatron.reference share no formula, so a mistake in either shows here.
Float64 leaves ~1e-15 of rounding; the tolerances allow for sums over the vocabulary.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from objective_cases import SOFT_CASES, WEIGHTING_CASES
from statistics_route import by_statistics
from torch import Tensor
from torch.nn import functional
from vocab_inputs import ALL_FEATURES, computed, make_labels, make_logits

from bgkd_megatron import reference
from bgkd_megatron.objectives import DIVERGENCES, ObjectiveConfig, TokenLosses
from bgkd_megatron.statistics import FEATURE_OF, Feature

VOCAB = 41


def assert_routes_agree(
    z: Tensor, t: Tensor | None, labels: Tensor | None, config: ObjectiveConfig
) -> Tensor:
    """Both routes give equal losses and d losses / d z, which is returned."""
    z = z.clone().requires_grad_()
    direct = reference.hybrid_loss(z, t, labels, config, vocab_size=VOCAB, progress=0.2)
    routed = by_statistics(z, t, labels, config, vocab_size=VOCAB, progress=0.2)
    for name, expected, actual in zip(TokenLosses._fields, direct, routed, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-11, atol=1e-11, msg=name)
    # A different factor for each token: an error that cancels in the plain sum shows.
    factor = torch.linspace(0.5, 2.0, len(z), dtype=z.dtype)
    (expected,) = torch.autograd.grad((direct.loss * factor).sum(), z)
    (actual,) = torch.autograd.grad((routed.loss * factor).sum(), z)
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-13)
    return actual


@pytest.mark.parametrize("hard_label", ["data", "teacher_argmax"])
@pytest.mark.parametrize("weighting", WEIGHTING_CASES)
@pytest.mark.parametrize("soft", SOFT_CASES)
def test_dense_loss_equals_objective_of_statistics(
    soft: str, weighting: str, hard_label: Any
) -> None:
    config = ObjectiveConfig(
        hard_label=hard_label, **SOFT_CASES[soft], **WEIGHTING_CASES[weighting]
    )
    z = make_logits(13, VOCAB + 3, seed=0, dtype=torch.float64)
    t = make_logits(13, VOCAB + 7, seed=1, dtype=torch.float64)
    labels = make_labels(13, VOCAB, seed=2)
    # Whatever must not be read would show: padded columns and ignored rows.
    z[:, VOCAB:] = math.nan
    t[:, VOCAB:] = math.inf
    z[1::3] = math.nan
    # Tokens that both exclude are absent from the vocabulary.
    z[:, 5] = t[:, 5] = -math.inf
    labels[labels == 5] = 6
    gradient = assert_routes_agree(z, t, labels, config)
    assert gradient.isfinite().all()
    assert not gradient[:, VOCAB:].any()
    assert not gradient[1::3].any()
    assert gradient[0].any()


@pytest.mark.parametrize("weighting", WEIGHTING_CASES)
def test_teacher_excludes_tokens_that_the_student_has(weighting: str) -> None:
    """p_v = 0 contributes nothing to KL(p||q), and the gradient there is q_v alone."""
    z, t = (make_logits(5, VOCAB, seed, torch.float64) for seed in (0, 1))
    t[:, 3:9] = -math.inf
    labels = torch.arange(10, 15)
    config = ObjectiveConfig(**WEIGHTING_CASES[weighting])
    assert assert_routes_agree(z, t, labels, config).isfinite().all()


def test_student_excludes_a_token_of_the_teacher() -> None:
    """KL(p||q) is +inf, never a silent 0 or NaN."""
    z, t = (make_logits(1, VOCAB, seed, torch.float64) for seed in (0, 1))
    z[0, t[0].argmax()] = -math.inf
    config = ObjectiveConfig(weighting="static", soft_weight=0.5)
    labels = z.argmax(dim=-1)
    assert by_statistics(z, t, labels, config, vocab_size=VOCAB).soft.item() == math.inf
    direct = reference.hybrid_loss(z, t, labels, config, vocab_size=VOCAB)
    assert direct.soft.item() == math.inf


@pytest.mark.parametrize(
    ("soft", "temperature"),
    [(soft, 1.0) for soft in DIVERGENCES] + [("forward_kl", 2.0), ("reverse_kl", 2.0)],
)
def test_equal_student_and_teacher(soft: Any, temperature: float) -> None:
    """The soft loss is 0 and its gradient too."""
    z = make_logits(7, VOCAB, seed=0, dtype=torch.float64)
    labels = make_labels(7, VOCAB, seed=1)
    config = ObjectiveConfig(
        soft=soft, weighting="static", soft_weight=1.0, temperature=temperature
    )
    gradient = assert_routes_agree(z, z.clone(), labels, config)
    assert gradient.abs().max() < 1e-14
    assert by_statistics(z, z.clone(), labels, config, vocab_size=VOCAB).soft.abs().max() < 1e-13


@pytest.mark.parametrize("labels", [torch.full((4,), -100), torch.empty(0, dtype=torch.int64)])
def test_no_token_counts(labels: Tensor) -> None:
    """All ignored, or no token at all: zero loss that keeps the graph, zero gradient."""
    z = make_logits(len(labels), VOCAB, seed=0, dtype=torch.float64)
    gradient = assert_routes_agree(z, z.clone(), labels, ObjectiveConfig())
    assert gradient.shape == z.shape
    assert not gradient.any()


def test_without_labels_every_row_counts() -> None:
    z, t = (make_logits(4, VOCAB, seed, torch.float64) for seed in (0, 1))
    gradient = assert_routes_agree(z, t, None, ObjectiveConfig(hard_label="teacher_argmax"))
    assert gradient.any(dim=-1).all()


def test_hard_only_needs_no_teacher() -> None:
    z = make_logits(6, VOCAB, seed=0, dtype=torch.float64)
    labels = make_labels(6, VOCAB, seed=1)
    config = ObjectiveConfig(weighting="static", soft_weight=0.0)
    assert_routes_agree(z, None, labels, config)
    loss = by_statistics(z, None, labels, config, vocab_size=VOCAB).loss
    expected = functional.cross_entropy(z, labels, reduction="none", ignore_index=-100)
    torch.testing.assert_close(loss, expected)


def test_forward_kl_equals_pytorch() -> None:
    z, t = (make_logits(6, VOCAB, seed, torch.float64) for seed in (0, 1))
    labels = torch.zeros(6, dtype=torch.int64)
    config = ObjectiveConfig(weighting="static", soft_weight=1.0, temperature=2.0)
    soft = reference.hybrid_loss(z, t, labels, config, vocab_size=VOCAB).soft
    expected = 4 * functional.kl_div(
        functional.log_softmax(z / 2, dim=-1), functional.softmax(t / 2, dim=-1), reduction="none"
    ).sum(dim=-1)
    torch.testing.assert_close(soft, expected)


def test_statistics_of_a_row_worked_by_hand() -> None:
    """Teacher p = (1/2, 1/4, 1/4), student q = (1/4, 1/2, 1/4), as unnormalized logits."""
    t = torch.tensor([[0.5, 0.25, 0.25]], dtype=torch.float64).log() + 3.0
    z = torch.tensor([[0.25, 0.5, 0.25]], dtype=torch.float64).log() - 1.0
    stats = reference.vocab_stats(
        z,
        t,
        torch.tensor([1]),
        vocab_size=3,
        features=ALL_FEATURES,
        temperature=0.5,
        power_exponent=0.5,
    )
    log2 = math.log(2)
    expected = {
        "valid": True,
        "student_lse": -1.0,
        "student_argmax": 1,
        "student_entropy": 1.5 * log2,
        "student_label_logprob": -log2,
        "teacher_lse": 3.0,
        "teacher_argmax": 0,
        "teacher_max_logprob": -log2,
        "student_logprob_at_teacher_argmax": -2 * log2,
        "teacher_entropy": 1.5 * log2,
        "teacher_label_logprob": -2 * log2,
        "forward_kl": 0.25 * log2,
        "reverse_kl": 0.25 * log2,
        "teacher_power_sum": 0.5**0.5 + 2 * 0.25**0.5,
        # At temperature 1/2 probabilities are squared: p^T = (4, 1, 1) / 6, q^T = (1, 4, 1) / 6.
        "soft_forward_kl": (4 - 1) / 6 * 2 * log2,
        "soft_reverse_kl": (4 - 1) / 6 * 2 * log2,
    }
    values = {name: value.item() for name, value in computed(stats).items()}
    assert values == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("feature", list(Feature))
def test_features_select_the_statistics(feature: Feature) -> None:
    features = feature if feature in (Feature.LABEL, Feature.STUDENT_ENTROPY) else feature | 1
    z = make_logits(2, VOCAB, seed=0)
    stats = reference.vocab_stats(
        z, z, torch.zeros(2, dtype=torch.int64), vocab_size=VOCAB, features=features
    )
    for name, value in stats._asdict().items():
        if name != "fdivergence":  # not one of the features
            assert (value is not None) == (FEATURE_OF.get(name, Feature(0)) in features), name


def test_missing_inputs_are_named() -> None:
    z = make_logits(2, VOCAB, seed=0)
    with pytest.raises(ValueError, match="teacher_logits are needed"):
        reference.vocab_stats(z, vocab_size=VOCAB, features=Feature.TEACHER)
    with pytest.raises(ValueError, match="labels are needed"):
        reference.vocab_stats(z, vocab_size=VOCAB, features=Feature.LABEL)
    with pytest.raises(ValueError, match="teacher_logits are needed"):
        reference.hybrid_loss(
            z, None, torch.zeros(2, dtype=torch.int64), ObjectiveConfig(), vocab_size=VOCAB
        )
