"""The whole chain at once: hybrid_loss of the operator == the dense loss in float64."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from objective_cases import SOFT_CASES, WEIGHTING_CASES
from vocab_inputs import gradient_noise, make_labels, make_logits

from bgkd_megatron import rank_check, reference
from bgkd_megatron.loss import hybrid_loss
from bgkd_megatron.objectives import (
    HybridObjective,
    ObjectiveConfig,
    token_metrics,
)
from bgkd_megatron.sequence_layout import SequenceLayout
from bgkd_megatron.vocab_shard import VocabShard

pytestmark = pytest.mark.usefixtures("device")

VOCAB = 1000
OBJECTIVES = [
    ObjectiveConfig(hard_label=hard_label, **soft, **weighting)
    for soft, hard_label, weighting in itertools.product(
        SOFT_CASES.values(), ("data", "teacher_argmax"), WEIGHTING_CASES.values()
    )
]


@pytest.mark.parametrize("config", OBJECTIVES, ids=str)
def test_equals_the_dense_loss(config: ObjectiveConfig) -> None:
    z, t = (make_logits(9, VOCAB, seed) for seed in (0, 1))
    labels = make_labels(9, VOCAB, seed=2)
    z[1::3] = math.nan  # ignored
    teacher = t if config.needs_teacher else None
    leaf, leaf64 = z.clone().requires_grad_(), z.double().requires_grad_()
    losses, stats = hybrid_loss(
        leaf * 1.0,
        teacher,
        labels,
        HybridObjective(config, VOCAB),
        shard=VocabShard.even(VOCAB, VOCAB),
        progress=0.1,
        inplace_backward=True,
    )
    expected = reference.hybrid_loss(
        leaf64, t.double(), labels, config, vocab_size=VOCAB, progress=0.1
    )
    for name, value, exact in zip(losses._fields, losses, expected, strict=True):
        # T^2 and soft_scale multiply the rounding of the soft term.
        error = (value - exact).abs()
        assert (error <= max(1.0, config.soft_scale) * 2e-5 + 5e-6 * exact.abs()).all(), (
            f"{name} is off by {error.amax():.3g}"
        )
    metrics = token_metrics(stats, losses, labels)
    assert all(value.isfinite().all() for value in metrics.values())

    losses.loss.sum().backward()
    expected.loss.sum().backward()
    assert leaf.grad is not None
    assert leaf64.grad is not None
    rows = stats.valid
    assert leaf.grad[~rows].eq(0).all()
    # The rounding of the weight, too, which at the label multiplies 1.
    allowed = gradient_noise(z[rows], t[rows], config.temperature_at(0.1)) + 2.0**-21
    # Powers of small probabilities are larger than they are.
    powers = 2.0**-20 if config.soft == "alpha_beta" else 0.0
    allowed = (allowed + powers) * expected.soft_weight.detach()[rows, None].clamp(min=1.0)
    error = (leaf.grad.double() - leaf64.grad)[rows].abs()
    assert (error <= allowed).all(), f"gradient is off by {error.amax():.3g}"


def test_teacher_argmax_needs_no_labels() -> None:
    z, t = (make_logits(4, VOCAB, seed) for seed in (0, 1))
    config = ObjectiveConfig(hard_label="teacher_argmax")
    objective = HybridObjective(config, VOCAB)
    losses, stats = hybrid_loss(z, t, None, objective, shard=VocabShard.even(VOCAB, VOCAB))
    expected = reference.hybrid_loss(z.double(), t.double(), None, config, vocab_size=VOCAB)
    torch.testing.assert_close(losses.loss.double(), expected.loss, rtol=5e-6, atol=5e-6)
    metrics = token_metrics(stats, losses)
    assert "forward_kl" in metrics
    assert "nll" not in metrics


def test_one_rank_compares_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its labels are neither copied nor hashed."""
    monkeypatch.delattr(rank_check, "digest")
    z, t = (make_logits(4, VOCAB, seed) for seed in (0, 1))
    objective, shard = HybridObjective(ObjectiveConfig(), VOCAB), VocabShard.even(VOCAB, VOCAB)
    labels = make_labels(4, VOCAB, seed=2)
    checked, _ = hybrid_loss(z, t, labels, objective, shard=shard, check_ranks=True)
    assert checked.loss.equal(hybrid_loss(z, t, labels, objective, shard=shard)[0].loss)


@pytest.mark.parametrize("gradient_in_forward", [False, True])
def test_data_labels_that_are_missing_are_named(gradient_in_forward: bool) -> None:
    """Also without weight of the hard term: the kernels read the label all the same."""
    z, t = (make_logits(4, VOCAB, seed) for seed in (0, 1))
    z = z.requires_grad_() * 1.0
    objective = HybridObjective(ObjectiveConfig(weighting="static", soft_weight=1.0), VOCAB)
    message = (
        r"reads the data's labels .* got None: pass labels, or take hard_label='teacher_argmax'"
    )
    with pytest.raises(ValueError, match=message):
        hybrid_loss(
            z, t, None, objective, shard=VocabShard.even(VOCAB, VOCAB),
            gradient_in_forward=gradient_in_forward,
        )  # fmt: skip


def test_a_term_without_weight_cannot_spoil_the_loss() -> None:
    """The label is excluded by the student (hard = +inf) while only the soft term has weight."""
    z, t = (make_logits(1, VOCAB, seed) for seed in (0, 1))
    label = torch.tensor([7])
    z[0, 7] = t[0, 7] = -math.inf
    leaf = z.clone().requires_grad_()
    losses, _ = hybrid_loss(
        leaf * 1.0,
        t,
        label,
        HybridObjective(ObjectiveConfig(weighting="static", soft_weight=1.0), VOCAB),
        shard=VocabShard.even(VOCAB, VOCAB),
    )
    losses.loss.sum().backward()
    q, p = z.double().log_softmax(-1), t.double().log_softmax(-1)
    kept = p > -math.inf
    exact = (p.exp() * (p - q))[kept].sum()
    torch.testing.assert_close(losses.loss.double().sum(), exact, rtol=5e-6, atol=5e-6)
    assert leaf.grad is not None
    assert leaf.grad.isfinite().all()


def test_a_teacher_that_is_not_read_is_refused() -> None:
    z, t = (make_logits(1, VOCAB, seed) for seed in (0, 1))
    config = ObjectiveConfig(weighting="static", soft_weight=0.0)
    with pytest.raises(ValueError, match=r"soft_weight=0.0, .* no use for a teacher: pass .*=None"):
        hybrid_loss(
            z,
            t,
            torch.tensor([3]),
            HybridObjective(config, VOCAB),
            shard=VocabShard.even(VOCAB, VOCAB),
        )


def test_an_infinite_adaptive_kl_without_weight_has_no_gradient() -> None:
    """At the start of a curriculum; the derivative of its own weight is infinite, too."""
    z, t = (make_logits(1, VOCAB, seed) for seed in (0, 1))
    z[0, 7] = -math.inf
    config = ObjectiveConfig(soft="adaptive_kl", weighting="curriculum")
    leaf = z.clone().requires_grad_()
    losses, _ = hybrid_loss(
        leaf * 1.0,
        t,
        torch.tensor([3]),
        HybridObjective(config, VOCAB),
        shard=VocabShard.even(VOCAB, VOCAB),
    )
    losses.loss.sum().backward()
    assert losses.soft.isinf().all()
    expected = z.softmax(-1) - torch.nn.functional.one_hot(torch.tensor([3]), VOCAB)
    torch.testing.assert_close(leaf.grad, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("soft", ["forward_kl", "reverse_kl"])
def test_the_hottest_temperature_keeps_its_digits(soft: Any) -> None:
    """Why ObjectiveConfig.temperature ends there: beyond, the rounding outgrows the loss."""
    torch.manual_seed(0)
    t = 3 * torch.randn(8, 50_257)
    z = (t + 0.5 * torch.randn(t.shape)).requires_grad_()
    z64 = z.detach().double().requires_grad_()
    config = ObjectiveConfig(soft=soft, weighting="static", soft_weight=1.0, temperature=100.0)
    shard = VocabShard.even(50_257, 50_257)
    labels = torch.zeros(8, dtype=torch.int64)
    losses, _ = hybrid_loss(z, t, labels, HybridObjective(config, 50_257), shard=shard)
    exact = reference.hybrid_loss(z64, t.double(), labels, config, vocab_size=50_257)
    torch.testing.assert_close(losses.soft.double(), exact.soft, rtol=0.05, atol=0)
    (gradient,) = torch.autograd.grad(losses.loss.sum(), z)
    (gradient64,) = torch.autograd.grad(exact.loss.sum(), z64)
    assert (gradient.double() - gradient64).norm() <= 3e-4 * gradient64.norm()


def test_the_objective_and_the_shard_are_of_one_vocabulary() -> None:
    """Padding counted as vocabulary would change every entropy weight, silently."""
    z, t = (make_logits(4, VOCAB + 24, seed) for seed in (0, 1))
    message = f"objective is of a vocabulary of {VOCAB + 24} .* the shard of one of {VOCAB}: .*real"
    with pytest.raises(ValueError, match=message):
        hybrid_loss(
            z,
            t,
            make_labels(4, VOCAB, seed=2),
            HybridObjective(ObjectiveConfig(), VOCAB + 24),
            shard=VocabShard.even(VOCAB, VOCAB + 24),
        )


@pytest.mark.parametrize(
    "settings",
    [
        {"hard": "risk_guided"},
        {"soft": "jensen_shannon"},
        {"soft": "alpha_beta", "alpha": 0.5, "beta": 0.5},
        {"soft": "total_variation", "hard": "risk_guided"},
        {"hard_label": "teacher_sample"},
    ],
    ids=str,
)
@pytest.mark.parametrize("inplace", [False, True])
def test_there_is_no_second_derivative(settings: dict[str, Any], inplace: bool) -> None:
    z, t = (make_logits(6, VOCAB, seed) for seed in (0, 1))
    z.requires_grad_()
    losses, _ = hybrid_loss(
        z * 1.0,
        t,
        make_labels(6, VOCAB, seed=2),
        HybridObjective(ObjectiveConfig(**settings), VOCAB),
        shard=VocabShard.even(VOCAB, VOCAB),
        sequences=SequenceLayout(3, 2),
        seed=1,
        inplace_backward=inplace,
    )
    with pytest.raises(NotImplementedError, match="no second derivative: call backward"):
        torch.autograd.grad(losses.loss.sum(), z, create_graph=True)
