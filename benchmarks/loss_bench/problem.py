"""What every variant is given: a task, its inputs, and the float64 answer it must reproduce."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from bgkd_megatron import reference
from bgkd_megatron.objectives import ObjectiveConfig
from loss_bench.eager import DOCUMENT_TOKENS
from loss_bench.family import FAMILY

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
HEAD_SIZE = 64
"""Hidden size of the output layer in the task "head_kl": small, so that the loss stays visible."""

Task = str
"""hybrid: CE on the label and forward KL, weighted per token by the teacher's entropy.
kl: forward KL alone.  ce: CE alone.  head_kl: both output layers (one GEMM each), then forward KL.
Or a member of the family.
"""

OBJECTIVES: dict[Task, ObjectiveConfig] = {
    "hybrid": ObjectiveConfig(),
    "kl": ObjectiveConfig(weighting="static", soft_weight=1.0),
    "ce": ObjectiveConfig(weighting="static", soft_weight=0.0),
    "head_kl": ObjectiveConfig(weighting="static", soft_weight=1.0),
    **{name: member.config for name, member in FAMILY.items()},
}

LossFunction = Callable[..., Tensor]
"""(student_logits, teacher_logits, labels) -> mean loss; for "head_kl" (student_hidden,
student_weight, teacher_hidden, teacher_weight, labels) -> mean loss.  Differentiable in the
student's tensors, which it may overwrite if they are logits."""

# Whole documents.
_REFERENCE_ROWS = 2 * DOCUMENT_TOKENS  # tokens per float64 block: the oracle's memory stays small
_CHECKED_ROWS = DOCUMENT_TOKENS  # tokens whose gradient is compared


@dataclass(frozen=True)
class Setting:
    """Size, dtype and device of the logits, [num_tokens, vocab_size]."""

    vocab_size: int
    num_tokens: int
    dtype: str
    device: str = "cpu"

    @property
    def pairs(self) -> int:
        return self.num_tokens * self.vocab_size

    @property
    def logits_bytes(self) -> int:
        """Of one of the two logits tensors."""
        return self.pairs * DTYPES[self.dtype].itemsize


class Problem(Protocol):
    """Inputs of one task.  Call `forward`, then backward of its result, then `restore`."""

    def forward(self, loss: LossFunction) -> Tensor: ...

    def gradient(self) -> Tensor:
        """[N, ...] after the backward."""
        ...

    def restore(self) -> None:
        """Makes the inputs what they were and drops the gradient."""
        ...

    def double(self, rows: slice) -> tuple[Tensor, LossFunction]:
        """The student's input of these tokens in float64, and the oracle's sum of their losses."""
        ...


class LogitsProblem:
    """The tasks on logits: the student's come from a layer, as in a model, and are no leaf."""

    def __init__(self, setting: Setting, task: Task) -> None:
        dtype, shape = DTYPES[setting.dtype], (setting.num_tokens, setting.vocab_size)
        random = torch.Generator(setting.device).manual_seed(0)
        made: dict[str, Any] = {"generator": random, "device": setting.device}
        teacher = torch.randn(shape, **made).mul_(4)
        student = torch.randn(shape, **made).add_(teacher, alpha=0.9)
        self._task = task
        self._teacher = teacher.to(dtype)
        self._original = student.to(dtype)
        self._student = self._original.clone()
        self._labels = torch.randint(setting.vocab_size, shape[:1], **made)
        self._anchor = torch.zeros((), requires_grad=True, device=setting.device)
        self._received: list[Tensor] = []

    def forward(self, loss: LossFunction) -> Tensor:
        logits = _LayerOutput.apply(self._anchor, self._student, self._received)
        return loss(logits, self._teacher, self._labels)

    def gradient(self) -> Tensor:
        return self._received[-1]

    def restore(self) -> None:
        self._received.clear()
        self._student.copy_(self._original)

    def double(self, rows: slice) -> tuple[Tensor, LossFunction]:
        teacher, labels = self._teacher[rows].double(), self._labels[rows]
        return self._original[rows].double(), lambda z: _exact(z, teacher, labels, self._task)


class HeadProblem:
    """The task with the output layers; gradients to the student's hidden states and weight."""

    def __init__(self, setting: Setting) -> None:
        dtype, hidden_shape = DTYPES[setting.dtype], (setting.num_tokens, HEAD_SIZE)
        random = torch.Generator(setting.device).manual_seed(0)
        made: dict[str, Any] = {"generator": random, "device": setting.device}
        weight = torch.randn((setting.vocab_size, HEAD_SIZE), **made) * 0.5
        teacher = torch.randn(hidden_shape, **made)
        student = torch.randn(hidden_shape, **made) * 0.3 + teacher * 0.9
        self._teacher, self._teacher_weight = teacher.to(dtype), weight.to(dtype)
        self._student = student.to(dtype).requires_grad_()
        self._weight = weight.to(dtype).requires_grad_()
        self._labels = torch.randint(setting.vocab_size, (setting.num_tokens,), **made)

    def forward(self, loss: LossFunction) -> Tensor:
        return loss(self._student, self._weight, self._teacher, self._teacher_weight, self._labels)

    def gradient(self) -> Tensor:
        assert self._student.grad is not None
        return self._student.grad

    def restore(self) -> None:
        self._student.grad = self._weight.grad = None

    def double(self, rows: slice) -> tuple[Tensor, LossFunction]:
        weight = self._weight.detach().double()
        teacher = self._teacher[rows].double() @ self._teacher_weight.double().T
        teacher, labels = _rounded(teacher, self._weight.dtype), self._labels[rows]
        return self._student.detach()[rows].double(), lambda hidden: _exact(
            _rounded(hidden @ weight.T, self._weight.dtype), teacher, labels, "head_kl"
        )


class _LayerOutput(torch.autograd.Function):
    """Makes a tensor the output of a layer, at no cost, and keeps the gradient it receives."""

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, logits: Tensor, received: list[Tensor]) -> Tensor:
        ctx.received = received
        # No view, or autograd would refuse a loss that writes over it.
        alias = torch.empty(0, dtype=logits.dtype, device=logits.device)
        return alias.set_(logits.untyped_storage(), 0, logits.size(), logits.stride())

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, None, None]:
        ctx.received.append(gradients[0])
        return None, None, None


def make_problem(setting: Setting, task: Task) -> Problem:
    return HeadProblem(setting) if task == "head_kl" else LogitsProblem(setting, task)


@functools.cache
def exact_loss(setting: Setting, task: Task) -> float:
    """Mean loss of all tokens in float64."""
    problem, total = make_problem(setting, task), 0.0
    for start in range(0, setting.num_tokens, _REFERENCE_ROWS):
        student, loss = problem.double(slice(start, start + _REFERENCE_ROWS))
        total += float(loss(student))
    return total / setting.num_tokens


def gradient_error(problem: Problem, num_tokens: int) -> float:
    """|g - g64| / |g64| over some tokens, g the gradient of the mean loss as just computed."""
    start = num_tokens // 2 // _CHECKED_ROWS * _CHECKED_ROWS
    rows = slice(start, start + _CHECKED_ROWS)
    student, loss = problem.double(rows)
    student.requires_grad_()
    (exact,) = torch.autograd.grad(loss(student) / num_tokens, student)
    return float((problem.gradient()[rows].double() - exact).norm() / exact.norm())


def _rounded(logits: Tensor, dtype: torch.dtype) -> Tensor:
    """Logits as an output layer of this dtype hands them on; the gradient passes through."""
    return logits + (logits.to(dtype).double() - logits).detach()


def _exact(student: Tensor, teacher: Tensor, labels: Tensor, task: Task) -> Tensor:
    losses = reference.hybrid_loss(
        student, teacher, labels, OBJECTIVES[task], vocab_size=teacher.shape[1],
        documents=torch.arange(len(labels), device=labels.device) // DOCUMENT_TOKENS,
    )  # fmt: skip
    return losses.loss.sum()
