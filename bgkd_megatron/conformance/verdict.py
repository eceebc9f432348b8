"""What the numbers say: right within the tolerance, or which known mistake they agree with."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bgkd_megatron.conformance.candidate import Candidate
from bgkd_megatron.conformance.expected import Expected, expected
from bgkd_megatron.conformance.measure import Measured
from bgkd_megatron.conformance.mistakes import (
    gradient_predictions,
    two_path_gradients,
    value_predictions,
)
from bgkd_megatron.conformance.problems import Problem

__all__ = ["Verdict", "judge"]

# What is predicted is in float64, what came is rounded, perhaps more than a right loss would be: a
# loss in bfloat16 rounds log-probabilities, which are about 10 times its own size.
_SLACK = 16.0


@dataclass(frozen=True)
class Verdict:
    """Of one problem at one tensor-parallel size."""

    value_error: float
    """Of the worst token of the worst rank."""
    gradient_error: float
    mistake: str | None = None
    """A key of MISTAKES; None: it passes."""
    detail: str = ""


@dataclass(frozen=True)
class _Case:
    candidate: Candidate
    problem: Problem
    losses: list[Tensor]
    """Of each rank."""
    gradient: Tensor
    """Of all ranks, side by side."""
    right: Expected

    @property
    def compared(self) -> Tensor:
        """Mask of the losses: without masked tokens where the candidate knows no mask."""
        if self.candidate.reduction != "none":
            return torch.tensor(True)
        if self.candidate.ignore_index is not None:
            return torch.ones_like(self.problem.valid)
        return self.problem.valid

    @property
    def tp_size(self) -> int:
        return len(self.losses)

    def value_error(self, expected_of_ranks: Sequence[Tensor]) -> float:
        errors = [
            ((loss - right).abs() / (1 + right.abs()))[self.compared].max()
            for loss, right in zip(self.losses, expected_of_ranks, strict=True)
        ]
        return float(torch.stack(errors).max())

    def gradient_error(self, gradient: Tensor) -> float:
        return float((self.gradient - gradient).norm() / self.right.gradient.norm())


def judge(candidate: Candidate, problem: Problem, ranks: Sequence[Measured]) -> Verdict:
    """ranks: what each rank of the group measured, in order."""
    case = _Case(
        candidate,
        problem,
        [rank.loss for rank in ranks],
        torch.cat([rank.gradient for rank in ranks], dim=1),
        expected(candidate.claim, problem, candidate.reduction),
    )
    tolerance = candidate.tolerances[problem.student.dtype]
    errors = Verdict(
        case.value_error([case.right.loss] * case.tp_size),
        case.gradient_error(case.right.gradient),
    )
    if not (math.isfinite(errors.value_error) and math.isfinite(errors.gradient_error)):
        mistake, detail = "not finite", ""
    elif tolerance.value < errors.value_error <= _SLACK * tolerance.value:
        mistake, detail = "rounding", f"the loss is off by {errors.value_error:.2g}"
    elif errors.value_error > tolerance.value:
        mistake, detail = _explain_value(case, _SLACK * tolerance.value)
        if mistake == "cross term alone" and errors.gradient_error > tolerance.gradient:
            another, about_it = _explain_gradient(case, _SLACK * tolerance.gradient)
            detail = f"{detail} and {another}: {about_it}".strip()
    elif tolerance.gradient < errors.gradient_error <= _SLACK * tolerance.gradient:
        mistake, detail = "rounding", f"the gradient is off by {errors.gradient_error:.2g}"
    elif errors.gradient_error > tolerance.gradient:
        mistake, detail = _explain_gradient(case, _SLACK * tolerance.gradient)
    elif case.gradient[~problem.valid].any():
        mistake, detail = "masked tokens", "they have a gradient"
    else:
        return errors
    return replace(errors, mistake=mistake, detail=detail)


def _explain_value(case: _Case, tolerance: float) -> tuple[str, str]:
    for prediction in value_predictions(case.candidate, case.problem, case.tp_size):
        if case.value_error(prediction.values) <= tolerance:
            return prediction.mistake, prediction.detail
    if case.problem.has_padding:
        everything = replace(case.problem, vocab_size=case.problem.num_columns)
        wrong = expected(case.candidate.claim, everything, case.candidate.reduction).loss
        if case.value_error([wrong] * case.tp_size) <= tolerance:
            return "columns of padding", ""
    if case.candidate.reduction == "none":
        valid = case.problem.valid
        ignoring_them = [case.right.loss.where(valid, loss) for loss in case.losses]
        if case.value_error(ignoring_them) <= tolerance:
            return "masked tokens", "they have a loss"
    if any(not loss.equal(case.losses[0]) for loss in case.losses):
        return "ranks disagree", ""
    factor = _factor(case.losses[0].where(case.compared, 0.0), case.right.loss)
    if case.value_error([factor * case.right.loss] * case.tp_size) <= tolerance:
        return "other reduction", f"{factor:.4g} times the claimed loss"
    return "unexplained", ""


def _explain_gradient(case: _Case, tolerance: float) -> tuple[str, str]:
    for prediction in gradient_predictions(case.candidate, case.problem, case.tp_size):
        if case.gradient_error(prediction.values[0]) <= tolerance:
            return prediction.mistake, prediction.detail
    factor = _factor(case.gradient, case.right.gradient)
    if case.gradient_error(factor * case.right.gradient) <= tolerance:
        is_ranks = case.tp_size > 1 and abs(factor / case.tp_size - 1) <= tolerance
        mistake = "doubled backward" if is_ranks else "scaled gradient"
        return mistake, f"{factor:.4g} times the right gradient"
    return _explain_paths(case, tolerance)


def _explain_paths(case: _Case, tolerance: float) -> tuple[str, str]:
    """A gradient that is right up to a factor of each path: direct, and through the normaliser."""
    direct, normaliser = two_path_gradients(case.candidate, case.problem)
    paths = torch.stack([direct.flatten(), normaliser.flatten()], dim=1)
    solution = torch.linalg.lstsq(paths, case.gradient.flatten()[:, None]).solution[:, 0]
    fit = (paths @ solution).view_as(case.gradient)
    a, b = solution.tolist()
    if case.gradient_error(fit) > tolerance:
        cosine = torch.cosine_similarity(case.gradient.flatten(), case.right.gradient.flatten(), 0)
        return "unexplained", f"cosine with the right gradient {cosine:.3f}"
    if abs(b) <= tolerance:
        return "constant normaliser", ""
    is_doubled = case.tp_size > 1 and max(a, b) > 1 + tolerance
    mistake = "doubled backward" if is_doubled else "scaled gradient"
    return mistake, f"{a:.3g} times directly, {b:.3g} times through the normaliser"


def _factor(actual: Tensor, right: Tensor) -> float:
    return float((actual * right).sum() / (right * right).sum())
