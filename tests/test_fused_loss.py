"""The fused loss against the statistics, the objective in PyTorch and their autograd."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from objective_cases import ONE_SWEEP
from torch import Tensor

from bgkd_megatron import ops
from bgkd_megatron.loss import hybrid_loss
from bgkd_megatron.objectives import HybridObjective, ObjectiveConfig
from bgkd_megatron.statistics import Feature
from bgkd_megatron.vocab_shard import VocabShard

pytestmark = pytest.mark.usefixtures("device")

VOCAB_SIZE, PADDED = 1003, 1024  # neither the row nor its real part is a multiple of a register
PROGRESS = 0.1
ALL = Feature(255)


def inputs(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    student, teacher = (3 * torch.randn(2, 9, PADDED)).to(dtype)
    labels = torch.randint(VOCAB_SIZE, (9,))
    labels[4] = -100
    student[2, 5:60] = -math.inf  # absent from both distributions
    teacher[2, 5:60] = -math.inf
    labels[2] = 100
    return student, teacher, labels


def arguments(config: ObjectiveConfig) -> tuple[Any, ...]:
    """The operator's last ones."""
    objective = HybridObjective(config, VOCAB_SIZE)
    named = objective.named(PROGRESS)
    assert named is not None
    return (objective.temperature(PROGRESS), objective.power_exponent, -100, *named)


def fused(student: Tensor, teacher: Tensor, labels: Tensor, config: ObjectiveConfig) -> Any:
    """Global statistics and losses; the gradient overwrites `student`."""
    return ops.fused_loss_(student, teacher, labels, VOCAB_SIZE, int(ALL), *arguments(config))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("config", ONE_SWEEP[::4], ids=str)
def test_losses_and_gradient(dtype: torch.dtype, config: ObjectiveConfig) -> None:
    student, teacher, labels = inputs(dtype)
    leaf = student.clone().requires_grad_()
    objective = HybridObjective(config, VOCAB_SIZE, extra_features=Feature.FORWARD_KL)
    shard = VocabShard.even(VOCAB_SIZE, PADDED)
    expected, stats = hybrid_loss(leaf, teacher, labels, objective, shard=shard, progress=PROGRESS)
    expected.loss.sum().backward()
    global_stats, losses = fused(student, teacher, labels, config)
    for ours, theirs in zip(losses, expected, strict=True):
        torch.testing.assert_close(ours, theirs.detach(), rtol=1e-5, atol=1e-6)
    rows = dict(zip(ops.stat_names(ALL), global_stats, strict=True))
    torch.testing.assert_close(rows["forward_kl"], stats.require("forward_kl").detach())
    assert leaf.grad is not None
    # One rounding to the dtype apart, from weights that differ by a float32 rounding.
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(student.float(), leaf.grad.float(), rtol=max(eps, 1e-5), atol=1e-7)
    assert (student[4] == 0).all()
    assert (student[:, VOCAB_SIZE:] == 0).all()


def test_opcheck() -> None:
    student, teacher, labels = inputs(torch.float32)
    objective = arguments(ObjectiveConfig(temperature=2.0))
    torch.library.opcheck(
        ops.fused_loss_, (student, teacher, labels, VOCAB_SIZE, int(ALL), *objective)
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vocab_size": 2000}, "must hold the whole vocabulary of 2000"),
        ({"soft_term": 4}, "unknown objective: soft_term 4"),
        ({"weighting": 6}, "unknown objective: .* weighting 6"),
        ({"hard_label": 2}, "unknown objective: .* hard_label 2"),
        ({"features": 3}, "the objective reads features"),
    ],
)
def test_refusals(change: dict[str, int], message: str) -> None:
    student, teacher, labels = inputs(torch.float32)
    names = [argument.name for argument in ops.fused_loss_._schema.arguments]
    values = (student, teacher, labels, VOCAB_SIZE, int(ALL), *arguments(ObjectiveConfig()))
    before = student.clone()
    with pytest.raises(ValueError, match=message):
        ops.fused_loss_(*(dict(zip(names, values, strict=True)) | change).values())
    assert torch.equal(student, before)


def test_nothing_to_do() -> None:
    empty = torch.empty(0, VOCAB_SIZE)
    labels = torch.empty(0, dtype=torch.int64)
    _, losses = fused(empty, empty.clone(), labels, ObjectiveConfig())
    assert losses.shape == (5, 0)
