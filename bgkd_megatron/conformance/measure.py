"""One candidate on one problem, on one rank."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from bgkd_megatron.conformance.candidate import Candidate, Setting
from bgkd_megatron.conformance.counters import CostCounter
from bgkd_megatron.conformance.expected import SCALAR_UPSTREAM
from bgkd_megatron.conformance.problems import Problem

__all__ = ["Cost", "Measured", "measure"]

# Seconds.  Gloo's thread holds the tensors of a collective for a moment after it has ended.
_GLOO_LETS_GO = 0.02


@dataclass(frozen=True)
class Cost:
    """Of this rank."""

    forward_collectives: dict[str, int]
    backward_collectives: dict[str, int]
    sent_bytes: int
    moved_bytes: int
    kept_bytes: int
    num_tokens: int
    num_logits: int
    """Of the student, on this rank."""
    logit_bytes: int
    """Of one logit."""


@dataclass(frozen=True)
class Measured:
    """What one rank got from a candidate, and what it cost."""

    loss: Tensor
    """As returned: [N] or a scalar, float64."""
    gradient: Tensor
    """[N, V_local] float64, of this rank's columns."""
    overwrites_student: bool
    """The logits are other numbers after the call; during backward is not looked at."""
    overwrites_teacher: bool
    cost: Cost


def measure(candidate: Candidate, problem: Problem, group: dist.ProcessGroup) -> Measured:
    """Collective over `group`.  Raises whatever the candidate raises, and ValueError for a loss of
    another shape than claimed."""
    columns = problem.columns(group.rank(), group.size())
    leaf = problem.student[:, columns].clone().requires_grad_()
    # Like the output of a layer: not a leaf, and the candidate's to overwrite.
    student, teacher = leaf.clone(), problem.teacher[:, columns].clone()
    labels, upstream = _masked(candidate, problem)
    widths = problem.widths(group.size())
    setting = Setting(problem.vocab_size, student.shape[1], widths, group)
    loss_function = candidate.make(setting)

    with CostCounter() as forward:
        loss = loss_function(student, teacher, labels, group)
    _check_shape(candidate, loss, problem)
    time.sleep(_GLOO_LETS_GO)
    kept = forward.kept_bytes(leaf, student, teacher, labels, loss)
    before = leaf.detach(), problem.teacher[:, columns]
    overwrites = [
        not now.detach().equal(old) for now, old in zip((student, teacher), before, strict=True)
    ]
    value = loss.detach().double().clone()
    weights = upstream if loss.ndim else torch.tensor(SCALAR_UPSTREAM)
    del student
    with CostCounter() as backward:
        loss.backward(weights.to(loss.dtype))
    gradient = torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
    return Measured(
        loss=value,
        gradient=gradient.double(),
        overwrites_student=overwrites[0],
        overwrites_teacher=overwrites[1],
        cost=Cost(
            dict(forward.collectives),
            dict(backward.collectives),
            forward.payload_bytes + backward.payload_bytes,
            forward.moved_bytes + backward.moved_bytes,
            kept,
            len(labels),
            leaf.numel(),
            leaf.element_size(),
        ),
    )


def _masked(candidate: Candidate, problem: Problem) -> tuple[Tensor, Tensor]:
    """Labels and upstream gradients [N], with masked tokens as the candidate knows them."""
    if candidate.ignore_index is None:
        return problem.labels.clone(), problem.upstream * problem.valid
    return problem.labels.where(problem.valid, candidate.ignore_index), problem.upstream


def _check_shape(candidate: Candidate, loss: object, problem: Problem) -> None:
    shape = list(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
    wanted = [len(problem.labels)] if candidate.reduction == "none" else []
    if shape != wanted:
        raise ValueError(
            f"the loss must be of shape {wanted} (reduction {candidate.reduction!r}), got {shape}"
        )
    assert isinstance(loss, Tensor)
    if not loss.requires_grad:
        raise ValueError("the loss has no gradient: it is not connected to the student's logits")
