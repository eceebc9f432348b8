"""hybrid_loss with gradient_in_forward == hybrid_loss without, and what it promises besides."""

from __future__ import annotations

import itertools
import math
import typing
from typing import Any

import pytest
import torch
from objective_cases import ONE_SWEEP, SOFT_CASES, WEIGHTING_CASES
from pydantic import ValidationError
from torch import Tensor
from vocab_inputs import computed, make_labels, make_logits

from bgkd_megatron import ops
from bgkd_megatron.loss import hybrid_loss
from bgkd_megatron.objectives import HybridObjective, ObjectiveConfig, TokenLosses, Weighting
from bgkd_megatron.objectives.named import named_objective
from bgkd_megatron.statistics import Feature, VocabStats
from bgkd_megatron.vocab_shard import VocabShard

VOCAB, COLUMNS = 1000, 1024
SHARD = VocabShard.even(VOCAB, COLUMNS)


def inputs(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """Of 9 tokens, some of them ignored, with padded columns that must not be read."""
    student, teacher = (make_logits(9, COLUMNS, seed, dtype=dtype) for seed in (0, 1))
    student[:, VOCAB:] = teacher[:, VOCAB:] = math.nan
    return student, teacher, make_labels(9, VOCAB, seed=2)


def solve(
    objective: HybridObjective, of: tuple[Tensor, Tensor, Tensor], upstream: Tensor, **options: Any
) -> tuple[Any, VocabStats, Tensor]:
    student, teacher, labels = of
    leaf = student.requires_grad_()
    losses, stats = hybrid_loss(
        leaf * 1.0,
        teacher if objective.config.needs_teacher else None,
        labels,
        objective,
        shard=SHARD,
        progress=0.1,
        **options,
    )
    losses.loss.backward(upstream)
    assert leaf.grad is not None
    return losses, stats, leaf.grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("config", ONE_SWEEP, ids=str)
def test_equals_the_gradient_in_backward(config: ObjectiveConfig, dtype: torch.dtype) -> None:
    objective = HybridObjective(config, VOCAB)
    assert objective.named(0.1) is not None
    upstream = torch.tensor([1.0, 1.0, 0.5, 0.0, -2.0, 1.0, 3.0, 0.1, 1.0])
    expected, expected_stats, expected_gradient = solve(objective, inputs(dtype), upstream)
    losses, stats, gradient = solve(objective, inputs(dtype), upstream, gradient_in_forward=True)
    for name, value, other in zip(losses._fields, losses, expected, strict=True):
        torch.testing.assert_close(value, other, rtol=1e-5, atol=1e-6, msg=name)
    for name, value in computed(stats).items():
        torch.testing.assert_close(value, expected_stats.require(name).detach(), rtol=0, atol=0)
    # Rounded twice, before and after the multiplication.
    rtol = max(2 * torch.finfo(dtype).eps, 1e-5)
    torch.testing.assert_close(gradient, expected_gradient, rtol=rtol, atol=1e-6)


def rows_at_the_bounds() -> tuple[Tensor, Tensor, Tensor]:
    """Where weights are clamped or 0, and where what has no weight is infinite. The label is 5."""
    student, teacher = (make_logits(9, COLUMNS, seed) for seed in (0, 1))
    student[:, VOCAB:] = teacher[:, VOCAB:] = math.nan
    student[1, 5] = teacher[2, 5] = -30.0  # a probability below 1e-8
    student[3, 5], teacher[3, 5] = 40.0, -30.0
    student[4, 5], teacher[4, 5] = -30.0, 40.0
    student[5, 5] = teacher[5, 5] = 60.0  # no logarithm left
    teacher[6, 5] = -math.inf
    teacher[7, :VOCAB] = 0.0
    teacher[8, :VOCAB] = -math.inf
    teacher[8, 7] = 0.0  # no doubt: w_s or w_h is 0
    return student, teacher, torch.full((9,), 5)


@pytest.mark.parametrize("soft", ["forward_kl", "reverse_kl", "adaptive_kl"])
@pytest.mark.parametrize("excluded", [[], [5], [7], [5, 7]], ids=str)
@pytest.mark.parametrize("weighting", WEIGHTING_CASES)
def test_weights_at_their_bounds(weighting: str, excluded: list[int], soft: Any) -> None:
    """excluded: tokens of probability 0 to the student."""
    objective = HybridObjective(ObjectiveConfig(soft=soft, **WEIGHTING_CASES[weighting]), VOCAB)
    student, teacher, labels = rows_at_the_bounds()
    student[:, excluded] = -math.inf
    ways: list[dict[str, bool]] = [{}, {"gradient_in_forward": True}]
    (expected, _, expected_gradient), (losses, _, gradient) = (
        solve(objective, (student.clone(), teacher, labels), torch.ones(9), **way) for way in ways
    )
    for name, value, other in zip(losses._fields, losses, expected, strict=True):
        torch.testing.assert_close(value, other, rtol=1e-5, atol=1e-6, equal_nan=True, msg=name)
        if name.endswith("weight"):
            assert (value == 0).equal(other == 0), name
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-5, atol=1e-6, equal_nan=True)


def choices() -> list[dict[str, Any]]:
    """Every combination of the settings that name something."""
    values: dict[str, tuple[Any, ...]] = {}
    for name, field in ObjectiveConfig.model_fields.items():
        if typing.get_origin(field.annotation) is typing.Literal:
            values[name] = typing.get_args(field.annotation)
        elif field.annotation is bool:
            values[name] = (False, True)
    return [
        dict(zip(values, chosen, strict=True)) for chosen in itertools.product(*values.values())
    ]


def test_every_objective_of_one_sweep_is_named() -> None:
    for settings in choices():
        try:
            objective = HybridObjective(ObjectiveConfig(**settings), VOCAB)
        except ValidationError:  # of settings that another one leaves unread
            continue
        takes_other_way = objective.fdivergence is not None or objective.config.couples_positions
        assert (objective.named(0.5) is None) == takes_other_way, settings


def others() -> list[ObjectiveConfig]:
    every = [ObjectiveConfig(**settings) for settings in SOFT_CASES.values()]
    return [config for config in every if config.fdivergence is not None]


@pytest.mark.parametrize("config", others(), ids=str)
def test_what_the_kernels_do_not_evaluate_takes_the_way_of_backward(
    config: ObjectiveConfig,
) -> None:
    objective = HybridObjective(config, VOCAB)
    assert objective.named(0.1) is None
    expected, _, expected_gradient = solve(objective, inputs(), torch.ones(9))
    losses, _, gradient = solve(objective, inputs(), torch.ones(9), gradient_in_forward=True)
    assert losses.loss.equal(expected.loss)
    assert gradient.equal(expected_gradient)


def run(objective: HybridObjective | None = None, **options: Any) -> tuple[Any, VocabStats, Tensor]:
    """Losses, statistics, and the student's logits that were passed."""
    student, teacher, labels = inputs(options.pop("dtype", torch.float32))
    logits = student.requires_grad_() * 1.0
    objective = objective or HybridObjective(ObjectiveConfig(), VOCAB)
    losses, stats = hybrid_loss(
        logits,
        teacher if Feature.TEACHER in objective.features else None,
        labels,
        objective,
        shard=SHARD,
        **{"gradient_in_forward": True, **options},
    )
    return losses, stats, logits


def test_the_gradient_is_there_at_once_and_nothing_is_allocated() -> None:
    losses, _, logits = run()
    assert logits.detach()[:, VOCAB:].eq(0).all()
    before = logits.detach().clone()
    (gradient,) = torch.autograd.grad(losses.loss.sum(), logits)
    assert gradient.data_ptr() == logits.data_ptr()
    assert gradient.equal(before)


def test_only_the_loss_has_a_gradient() -> None:
    losses, stats, _ = run()
    assert losses.loss.requires_grad
    assert not any(value.requires_grad for value in losses[1:])
    assert not any(value.requires_grad for value in computed(stats).values())


def test_a_loss_of_weight_zero_has_no_gradient_be_it_not_finite() -> None:
    student, teacher, labels = inputs()
    student[0, 3] = math.nan
    logits = student.requires_grad_() * 1.0
    objective = HybridObjective(ObjectiveConfig(), VOCAB)
    losses, _ = hybrid_loss(
        logits, teacher, labels, objective, shard=SHARD, gradient_in_forward=True
    )
    assert losses.loss[0].isnan()
    (gradient,) = torch.autograd.grad(losses.loss[1:].sum(), logits)
    assert gradient[0].eq(0).all()
    assert gradient.isfinite().all()


@pytest.mark.parametrize(
    ("objective", "dtype"),
    [
        (HybridObjective(ObjectiveConfig(soft="jensen_shannon"), VOCAB), torch.float32),
        (
            HybridObjective(
                ObjectiveConfig(),
                VOCAB,
                Weighting(Feature(0), lambda stats, _: torch.full_like(stats.student_lse, 0.3)),
            ),
            torch.float32,
        ),
        (HybridObjective(ObjectiveConfig(), VOCAB), torch.float16),
    ],
    ids=["two sweeps", "own weighting", "float16"],
)
def test_else_the_gradient_comes_in_backward(
    objective: HybridObjective, dtype: torch.dtype
) -> None:
    losses, _, logits = run(objective, dtype=dtype)
    assert logits.detach()[:, VOCAB:].isnan().all()
    (gradient,) = torch.autograd.grad(losses.loss.sum(), logits)
    assert gradient.data_ptr() == logits.data_ptr()


def test_without_a_gradient_the_logits_stay() -> None:
    with torch.no_grad():
        _, _, logits = run()
    assert logits[:, VOCAB:].isnan().all()


def test_a_second_backward_is_refused() -> None:
    losses, _, _ = run()
    losses.loss.sum().backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="gradient_in_forward there is one backward"):
        losses.loss.sum().backward()


def test_nothing_to_learn_has_no_gradient_be_its_mean_nan() -> None:
    student, teacher, _ = inputs()
    logits = student.requires_grad_() * 1.0
    objective = HybridObjective(ObjectiveConfig(), VOCAB)
    losses, stats = hybrid_loss(
        logits, teacher, torch.full((9,), -100), objective, shard=SHARD, gradient_in_forward=True
    )
    (gradient,) = torch.autograd.grad(losses.loss.sum() / stats.valid.sum(), logits)
    assert gradient.eq(0).all()


def test_a_class_of_your_own_is_asked() -> None:
    class Tenfold(HybridObjective):
        def __call__(self, *arguments: Any, **options: Any) -> TokenLosses:
            losses = super().__call__(*arguments, **options)
            return losses._replace(loss=10 * losses.loss)

    expected, _, _ = run()
    losses, _, _ = run(Tenfold(ObjectiveConfig(), VOCAB))
    torch.testing.assert_close(losses.loss, 10 * expected.loss)


def test_a_second_derivative_is_refused() -> None:
    losses, _, logits = run()
    with pytest.raises(NotImplementedError, match="no second derivative"):
        torch.autograd.grad(losses.loss.sum(), logits, create_graph=True)


def test_whoever_saved_the_logits_is_told() -> None:
    student, teacher, labels = inputs()
    logits = student.requires_grad_() * 1.0
    other = logits.square().sum()
    hybrid_loss(
        logits,
        teacher,
        labels,
        HybridObjective(ObjectiveConfig(), VOCAB),
        shard=SHARD,
        gradient_in_forward=True,
    )
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        other.backward()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"teacher": None}, "reads the teacher's logits: pass teacher_logits"),
        ({"labels": torch.full((9,), VOCAB)}, f"{VOCAB} is outside the vocabulary"),
        ({"labels": None}, r"must be token ids \[N\], got None: pass labels, or"),
        ({"tokens_per_chunk": 0}, "tokens_per_chunk must be an int, at least 1, got 0"),
        ({"tokens_per_chunk": 2.5}, "tokens_per_chunk must be an int, at least 1, got 2.5"),
        ({"teacher": torch.zeros(12, COLUMNS)}, "teacher_logits must have the student's 9 rows"),
        ({"labels": torch.zeros(12).long()}, "labels must have the student's 9 rows"),
        ({"leaf": True}, "are a leaf tensor"),
        ({"progress": 1.5}, r"progress must be in \[0, 1\]"),
        ({"vocab": VOCAB + 1}, "the objective is of a vocabulary"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_refuses_before_anything_is_changed(change: dict[str, Any], message: str) -> None:
    student, teacher, labels = inputs()
    student.requires_grad_()
    logits = student if change.get("leaf") else student * 1.0
    before = logits.detach().clone()
    arguments = {"teacher": teacher, "labels": labels} | change
    options = {k: change[k] for k in ("tokens_per_chunk", "progress") if k in change}
    with pytest.raises(ValueError, match=message):
        hybrid_loss(
            logits,
            arguments["teacher"],
            arguments["labels"],
            HybridObjective(ObjectiveConfig(), change.get("vocab", VOCAB)),
            shard=SHARD,
            gradient_in_forward=True,
            **options,
        )
    torch.testing.assert_close(logits.detach(), before, rtol=0, atol=0, equal_nan=True)


def test_no_tokens() -> None:
    empty = torch.empty(0, COLUMNS, requires_grad=True)
    losses, _ = hybrid_loss(
        empty * 1.0,
        torch.empty(0, COLUMNS),
        torch.empty(0, dtype=torch.int64),
        HybridObjective(ObjectiveConfig(), VOCAB),
        shard=SHARD,
        gradient_in_forward=True,
    )
    losses.loss.sum().backward()
    assert empty.grad is not None
    assert empty.grad.shape == (0, COLUMNS)


# ---- the operators


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("columns", [1, 31, 1003])
def test_scale_rows(dtype: torch.dtype, columns: int) -> None:
    memory = make_logits(6, columns + 3, seed=0, dtype=dtype)
    rows, slack = memory[:, :columns], memory[:, columns:].clone()
    rows[3] = math.inf
    scale = torch.tensor([1.0, 0.5, -3.0, 0.0, 1e-3, 1.0])
    expected = (rows.float() * scale[:, None]).to(dtype)
    expected[3] = 0
    ops.scale_rows_(rows, scale)
    assert rows.equal(expected)
    assert memory[:, columns:].equal(slack)


def test_opcheck() -> None:
    student, teacher, labels = inputs()
    options = (0b111, 1.0, 1.0, -100)
    partial = ops.vocab_stats(student, teacher, labels, VOCAB, 0, *options)
    objective = named_objective(ObjectiveConfig(weighting="static"), VOCAB, progress=0.0)
    assert objective is not None
    torch.library.opcheck(ops.merge_loss, (partial[None], labels, *options, *objective))
    torch.library.opcheck(ops.scale_rows_, (make_logits(9, 20, seed=3), torch.rand(9)))


@pytest.mark.parametrize(
    ("scale", "error", "message"),
    [
        (torch.ones(5), ValueError, r"scale must be a contiguous \[6\], got shape \[5\]"),
        (torch.ones(6).double(), TypeError, "scale must be float32, got Double"),
    ],
)
def test_scale_rows_refuses(scale: Tensor, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^scale_rows_: {message}"):
        ops.scale_rows_(torch.ones(6, 4), scale)
