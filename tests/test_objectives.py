"""Weights, masking and metrics against numbers worked out by hand.

Values and gradients of the losses themselves: test_reference.py.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from vocab_inputs import ALL_FEATURES, make_labels, make_logits

from bgkd_megatron import reference
from bgkd_megatron.objectives import (
    WEIGHTINGS,
    HybridObjective,
    ObjectiveConfig,
    Weighting,
    token_metrics,
)
from bgkd_megatron.statistics import Feature, VocabStats


def stats_of(
    student: list[float], teacher: list[float], label: int = 0, power_exponent: float = 1.0
) -> VocabStats:
    """Statistics of one token from the two distributions."""
    return reference.vocab_stats(
        torch.tensor([student], dtype=torch.float64).log(),
        torch.tensor([teacher], dtype=torch.float64).log(),
        torch.tensor([label]),
        vocab_size=len(student),
        features=ALL_FEATURES,
        power_exponent=power_exponent,
    )


def soft_weight(config: ObjectiveConfig, teacher: list[float], progress: float = 0.0) -> float:
    objective = HybridObjective(config, len(teacher))
    uniform = [1 / len(teacher)] * len(teacher)
    stats = stats_of(uniform, teacher, power_exponent=objective.power_exponent)
    return objective(stats, progress).soft_weight.item()


# ---- which statistics are asked for

WITHOUT_TEACHER = Feature.LABEL | Feature.STUDENT_ENTROPY


def test_objective_refuses_a_vocabulary_without_a_choice() -> None:
    with pytest.raises(ValueError, match="vocab_size must be at least 2, got 1"):
        HybridObjective(ObjectiveConfig(), 1)


@pytest.mark.parametrize("weighting", ["static", "curriculum"])
def test_hard_only_reads_no_teacher(weighting: Any) -> None:
    objective = HybridObjective(ObjectiveConfig(weighting=weighting, soft_weight=0.0), 10)
    assert objective.features == WITHOUT_TEACHER


def test_teacher_argmax_reads_the_teacher_even_without_soft_term() -> None:
    config = ObjectiveConfig(weighting="static", soft_weight=0.0, hard_label="teacher_argmax")
    assert Feature.TEACHER in HybridObjective(config, 10).features


def test_features_follow_temperature_and_entropy() -> None:
    plain = HybridObjective(ObjectiveConfig(), 10)
    assert not plain.features & (Feature.SOFTENED | Feature.POWER_SUM)
    assert Feature.SOFTENED in HybridObjective(ObjectiveConfig(temperature=2.0), 10).features
    tsallis = HybridObjective(ObjectiveConfig(entropy="tsallis", tsallis_gamma=0.3), 10)
    assert Feature.POWER_SUM in tsallis.features
    assert tsallis.power_exponent == 0.3


@pytest.mark.parametrize("feature", Feature)
def test_features_beyond_those_of_the_loss_are_asked_for(feature: Feature) -> None:
    """With the teacher, for those that read it."""
    hard_only = ObjectiveConfig(weighting="static", soft_weight=0.0)
    for config in (ObjectiveConfig(), hard_only):
        asked = HybridObjective(config, 10, extra_features=feature).features
        extra = feature if feature in WITHOUT_TEACHER else feature | Feature.TEACHER
        assert asked == HybridObjective(config, 10).features | extra


def test_a_missing_statistic_is_named() -> None:
    stats = stats_of([0.5, 0.5], [0.5, 0.5])._replace(teacher_entropy=None)
    with pytest.raises(ValueError, match=r"'teacher_entropy' .*Feature.TEACHER.TEACHER_ENTROPY"):
        HybridObjective(ObjectiveConfig(), 2)(stats)


# ---- weights

TEACHER = [0.5, 0.25, 0.125, 0.125]


def test_static_weight() -> None:
    assert soft_weight(ObjectiveConfig(weighting="static", soft_weight=0.3), TEACHER) == 0.3


def test_confidence_weight_is_one_minus_the_largest_probability() -> None:
    config = ObjectiveConfig(weighting="confidence")
    assert soft_weight(config, TEACHER) == pytest.approx(0.5, rel=1e-12)
    assert soft_weight(config, [0.999, 0.001]) == pytest.approx(0.001, rel=1e-9)
    assert soft_weight(config, [1.0, 0.0]) == 0.0


def test_shannon_weight_is_entropy_over_log_vocabulary() -> None:
    config = ObjectiveConfig(weighting="entropy")
    # H = 1.75 bits of log2(4) = 2 bits.
    assert soft_weight(config, TEACHER) == pytest.approx(1.75 / 2, rel=1e-12)
    assert soft_weight(config, [0.25] * 4) == pytest.approx(1.0, rel=1e-12)
    assert soft_weight(config, [1.0, 0.0, 0.0]) == 0.0


@pytest.mark.parametrize(
    ("gamma", "expected"),
    [
        # sum p^2 = 1/4 + 1/16 + 2/64 = 11/32, (11/32 - 1) / (1/4 - 1) = 7/8
        (2.0, 7 / 8),
        # sum sqrt(p) = 0.70711 + 0.5 + 2 * 0.35355 = 1.91421, (1.91421 - 1) / (sqrt(4) - 1)
        (0.5, 0.5 + math.sqrt(2) - 1),
    ],
)
def test_tsallis_weight(gamma: float, expected: float) -> None:
    config = ObjectiveConfig(entropy="tsallis", tsallis_gamma=gamma)
    assert soft_weight(config, TEACHER) == pytest.approx(expected, rel=1e-12)
    assert soft_weight(config, [0.25] * 4) == pytest.approx(1.0, rel=1e-12)
    assert soft_weight(config, [1.0, 0.0, 0.0]) == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("gamma", [0.998, 1.002])
def test_tsallis_tends_to_shannon(gamma: float) -> None:
    tsallis = ObjectiveConfig(entropy="tsallis", tsallis_gamma=gamma)
    assert soft_weight(tsallis, TEACHER) == pytest.approx(
        soft_weight(ObjectiveConfig(), TEACHER), abs=1e-3
    )


@pytest.mark.parametrize("entropy", ["shannon", "tsallis"])
def test_float32_rounding_never_leaves_the_unit_interval(entropy: Any) -> None:
    """A uniform teacher's float32 entropy exceeds log V for some V."""
    objective = HybridObjective(ObjectiveConfig(entropy=entropy), 50_257)
    base = stats_of([0.5, 0.5], [0.5, 0.5])
    one = torch.ones(1)
    stats = base._replace(
        teacher_entropy=one * math.log(50_257) * (1 + 1e-6),
        teacher_power_sum=one * 50_257**0.9 * (1 + 1e-6),
    )
    assert objective(stats).soft_weight.item() == 1.0
    stats = base._replace(teacher_entropy=one * -1e-7, teacher_power_sum=one * (1 - 1e-7))
    assert objective(stats).soft_weight.item() == 0.0


@pytest.mark.parametrize(
    ("progress", "expected"),
    [(0.0, 0.0), (0.1, 0.2), (0.2, 0.4), (0.4, 0.8), (0.9, 0.8), (1.0, 0.8)],
)
def test_curriculum_rises_to_its_final_weight(progress: float, expected: float) -> None:
    config = ObjectiveConfig(weighting="curriculum", soft_weight=0.8, curriculum_fraction=0.4)
    assert soft_weight(config, TEACHER, progress) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("progress", [-0.1, 1.1, math.nan])
def test_progress_outside_the_run_is_refused(progress: float) -> None:
    with pytest.raises(ValueError, match=r"progress must be in \[0, 1\]"):
        soft_weight(ObjectiveConfig(weighting="curriculum"), TEACHER, progress)


def test_a_weighting_of_your_own() -> None:
    def doubtful(stats: VocabStats, progress: float) -> Tensor:
        return (stats.require("teacher_entropy") > 1.0).double() * progress

    weighting = Weighting(Feature.TEACHER_ENTROPY, doubtful)
    # In place of the configured one, which alone would need no teacher.
    config = ObjectiveConfig(weighting="static", soft_weight=0.0)
    objective = HybridObjective(config, 4, weighting=weighting)
    assert Feature.TEACHER | Feature.TEACHER_ENTROPY in objective.features
    doubt = objective(stats_of([0.25] * 4, TEACHER), 0.5)
    sure = objective(stats_of([0.25] * 4, [0.97, 0.01, 0.01, 0.01]), 0.5)
    assert doubt.soft_weight.item() == 0.5
    assert sure.soft_weight.item() == 0.0
    assert sure.loss.item() == sure.hard.item()


@pytest.mark.parametrize(
    ("weight", "error", "message"),
    [
        (torch.ones(4, 1), ValueError, r"of shape \[4\] on cpu, got \[4, 1\] on cpu"),
        (torch.tensor(0.5), ValueError, r"of shape \[4\] on cpu, got \[\] on cpu"),
        (torch.ones(4, device="meta"), ValueError, r"on cpu, got \[4\] on meta"),
        (torch.ones(4, dtype=torch.bool), TypeError, r"floating-point tensor .* got torch.bool"),
        (torch.ones(4, dtype=torch.int64), TypeError, r"floating-point tensor .* got torch.int64"),
        (0.5, TypeError, r"floating-point tensor .* got float"),
    ],
)
def test_what_a_weighting_must_not_return(weight: Any, error: Any, message: str) -> None:
    objective = HybridObjective(
        ObjectiveConfig(), 11, weighting=Weighting(Feature(0), lambda stats, progress: weight)
    )
    with pytest.raises(error, match=f"the weighting must return .*{message}"):
        objective(leaf_stats(4))


def test_a_function_alone_is_no_weighting() -> None:
    with pytest.raises(TypeError, match=r"must be a Weighting\(features, function\).* function$"):
        HybridObjective(ObjectiveConfig(), 11, weighting=lambda stats, progress: 0.5)  # type: ignore[arg-type]


def test_an_unknown_statistic_is_named() -> None:
    with pytest.raises(ValueError, match=r"no statistic 'entropy', only valid, student_lse, .*"):
        leaf_stats(4).require("entropy")


def test_a_weight_is_taken_to_the_precision_of_the_losses() -> None:
    def third(stats: VocabStats, progress: float) -> Tensor:
        return torch.full_like(stats.student_lse, 1 / 3, dtype=torch.bfloat16)

    stats = leaf_stats(4)
    losses = HybridObjective(ObjectiveConfig(), 11, Weighting(Feature(0), third))(stats)
    assert losses.soft_weight.dtype == losses.loss.dtype == torch.float64
    w = torch.tensor(1 / 3, dtype=torch.bfloat16).double()
    expected = w * losses.soft + (1 - w) * losses.hard
    torch.testing.assert_close(losses.loss, expected, rtol=1e-12, atol=1e-12)


# ---- losses


def test_loss_is_the_weighted_sum() -> None:
    config = ObjectiveConfig(weighting="static", soft_weight=0.25)
    losses = HybridObjective(config, 2)(stats_of([0.25, 0.75], [0.5, 0.5], label=1))
    kl = 0.5 * math.log(2) + 0.5 * math.log(2 / 3)
    assert losses.soft.item() == pytest.approx(kl, rel=1e-12)
    assert losses.hard.item() == pytest.approx(-math.log(0.75), rel=1e-12)
    assert losses.loss.item() == pytest.approx(0.25 * kl - 0.75 * math.log(0.75), rel=1e-12)


@pytest.mark.parametrize(("hard_label", "token"), [("data", 2), ("teacher_argmax", 1)])
def test_hard_label_source(hard_label: Any, token: int) -> None:
    config = ObjectiveConfig(hard_label=hard_label)
    student = [0.2, 0.3, 0.5]
    losses = HybridObjective(config, 3)(stats_of(student, [0.1, 0.8, 0.1], label=2))
    assert losses.hard.item() == pytest.approx(-math.log(student[token]), rel=1e-12)


def leaf_stats(num_tokens: int) -> VocabStats:
    """Statistics as leaves that require a gradient, also those of the teacher."""
    z, t = (make_logits(num_tokens, 11, seed, torch.float64) for seed in (0, 1))
    stats = reference.vocab_stats(
        z,
        t,
        make_labels(num_tokens, 11, seed=2),
        vocab_size=11,
        features=ALL_FEATURES,
        temperature=2.0,
        power_exponent=0.1,
    )
    return VocabStats(
        **{
            name: value.requires_grad_() if value.is_floating_point() else value
            for name, value in stats._asdict().items()
            if value is not None
        }
    )


@pytest.mark.parametrize(
    "settings",
    [{"weighting": "entropy", "entropy": "tsallis"}, *({"weighting": name} for name in WEIGHTINGS)],
    ids=str,
)
def test_weights_carry_no_gradient(settings: dict[str, Any]) -> None:
    config = ObjectiveConfig(temperature=2.0, **settings)
    stats = leaf_stats(4)
    losses = HybridObjective(config, 11)(stats, 0.1)
    assert not losses.soft_weight.requires_grad
    losses.loss.sum().backward()
    for name in ("teacher_max_logprob", "teacher_entropy", "teacher_power_sum"):
        assert stats.require(name).grad is None, name


def test_rows_that_do_not_count_give_exact_zeros() -> None:
    """Also when a weighting yields NaN there: 0 * NaN must not enter the gradient."""
    stats = leaf_stats(7)
    weighting = Weighting(Feature.TEACHER, lambda stats, progress: 0.5 / stats.valid.double())
    masked = ~stats.valid
    for own in (None, weighting):
        losses = HybridObjective(ObjectiveConfig(), 11, weighting=own)(stats)
        for values in losses:
            assert values[masked].eq(0).all()
        gradients = torch.autograd.grad(
            losses.loss.sum(),
            [stats.require(name) for name in ("student_label_logprob", "forward_kl")],
        )
        for gradient in gradients:
            assert gradient[masked].eq(0).all()
            assert gradient.isfinite().all()


def test_objective_traces_whole() -> None:
    objective = HybridObjective(ObjectiveConfig(weighting="curriculum"), 11)
    stats = leaf_stats(5)
    compiled = torch.compile(objective, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(stats, 0.1), objective(stats, 0.1))


# ---- metrics


def test_metrics_worked_by_hand() -> None:
    stats = stats_of([0.25, 0.5, 0.25], [0.5, 0.25, 0.25], label=1)
    losses = HybridObjective(ObjectiveConfig(weighting="static", soft_weight=0.25), 3)(stats)
    metrics = token_metrics(stats, losses, torch.tensor([1]))
    log2 = math.log(2)
    expected = {
        "loss": 0.25 * 0.25 * log2 + 0.75 * log2,
        "hard_loss": log2,
        "soft_loss": 0.25 * log2,
        "soft_weight": 0.25,
        "hard_weight": 0.75,
        "student_entropy": 1.5 * log2,
        "nll": log2,
        "accuracy": 1.0,
        "teacher_confidence": 0.5,
        "agreement": 0.0,
        "teacher_nll": 2 * log2,
        "teacher_accuracy": 0.0,
        "forward_kl": 0.25 * log2,
        "reverse_kl": 0.25 * log2,
        "teacher_entropy": 1.5 * log2,
    }
    assert {name: value.item() for name, value in metrics.items()} == pytest.approx(expected)


def test_metrics_follow_the_statistics_that_exist() -> None:
    z = make_logits(3, 11, seed=0)
    labels = make_labels(3, 11, seed=1)
    objective = HybridObjective(ObjectiveConfig(weighting="static", soft_weight=0.0), 11)
    stats = reference.vocab_stats(z, None, labels, vocab_size=11, features=objective.features)
    metrics = token_metrics(stats, objective(stats), labels)
    losses = {"loss", "hard_loss", "soft_loss", "soft_weight", "hard_weight"}
    assert set(metrics) == losses | {"student_entropy", "nll", "accuracy"}


@pytest.mark.parametrize(
    "config",
    [
        ObjectiveConfig(),
        ObjectiveConfig(soft="reverse_kl", temperature=2.0),
        ObjectiveConfig(weighting="static", soft_weight=0.0, hard_label="teacher_argmax"),
    ],
    ids=str,
)
def test_an_objective_with_a_teacher_has_all_metrics(config: ObjectiveConfig) -> None:
    """Both KLs among them, whatever the loss reads."""
    z, t = (make_logits(3, 11, seed) for seed in (0, 1))
    labels = make_labels(3, 11, seed=2)
    objective = HybridObjective(config, 11)
    everything = leaf_stats(3)
    stats = reference.vocab_stats(z, t, labels, vocab_size=11, features=objective.features)
    metrics = token_metrics(stats, objective(stats), labels)
    assert set(metrics) == set(token_metrics(everything, objective(everything), labels))


def test_metrics_are_detached_and_zero_on_ignored_rows() -> None:
    stats, labels = leaf_stats(7), make_labels(7, 11, seed=2)
    metrics = token_metrics(stats, HybridObjective(ObjectiveConfig(), 11)(stats), labels)
    for name, values in metrics.items():
        assert values.is_floating_point(), name
        assert not values.requires_grad, name
        assert values[labels == -100].eq(0).all(), name
