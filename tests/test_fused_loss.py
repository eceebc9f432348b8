"""The fused loss against the statistics, the objective in PyTorch and their autograd."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from bgkd_megatron import ops
from bgkd_megatron.loss import hybrid_loss
from bgkd_megatron.objectives import HybridObjective, ObjectiveConfig
from bgkd_megatron.statistics import Feature
from bgkd_megatron.vocab_shard import VocabShard

pytestmark = pytest.mark.usefixtures("device")

VOCAB_SIZE, PADDED = 1003, 1024  # neither the row nor its real part is a multiple of a register
SOFT = {"forward_kl": 1, "reverse_kl": 2}
WEIGHTING = {"static": 0, "confidence": 1, "shannon": 2, "tsallis": 3}
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


def fused(student: Tensor, teacher: Tensor, labels: Tensor, config: ObjectiveConfig) -> Any:
    """Global statistics and losses; the gradient overwrites `student`."""
    name = config.entropy if config.weighting == "entropy" else config.weighting
    gamma = config.tsallis_gamma
    scale = {
        "shannon": 1.0 / math.log(VOCAB_SIZE),
        "tsallis": 1.0 / math.expm1((1.0 - gamma) * math.log(VOCAB_SIZE)),
    }
    return ops.fused_loss_(
        *(student, teacher, labels, VOCAB_SIZE, int(ALL), config.temperature, gamma, -100),
        *(SOFT[config.soft], config.temperature != 1.0, WEIGHTING[name], config.soft_weight),
        *(scale.get(name, 0.0), int(config.hard_label == "teacher_argmax")),
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("soft", ["forward_kl", "reverse_kl"])
@pytest.mark.parametrize("hard_label", ["data", "teacher_argmax"])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize(
    "weighting",
    [
        {"weighting": "static", "soft_weight": 0.3},
        {"weighting": "confidence"},
        {"weighting": "entropy"},
        {"weighting": "entropy", "entropy": "tsallis"},
    ],
    ids=lambda settings: settings.get("entropy", settings["weighting"]),
)
def test_losses_and_gradient(
    dtype: torch.dtype,
    soft: Any,
    hard_label: Any,
    temperature: float,
    weighting: dict[str, Any],
) -> None:
    config = ObjectiveConfig(soft=soft, hard_label=hard_label, temperature=temperature, **weighting)
    student, teacher, labels = inputs(dtype)
    leaf = student.clone().requires_grad_()
    objective = HybridObjective(config, VOCAB_SIZE)
    shard = VocabShard.even(VOCAB_SIZE, PADDED)
    expected, stats = hybrid_loss(leaf, teacher, labels, objective, shard=shard)
    expected.loss.sum().backward()
    global_stats, losses = fused(student, teacher, labels, config)
    for ours, theirs in zip(losses, expected[:4], strict=True):  # the hard weight is 1 - w
        torch.testing.assert_close(ours, theirs.detach(), rtol=1e-5, atol=1e-6)
    rows = dict(zip(ops.stat_names(ALL), global_stats, strict=True))
    torch.testing.assert_close(rows["forward_kl"], stats.forward_kl.detach())
    assert leaf.grad is not None
    # One rounding to the dtype apart, from weights that differ by a float32 rounding.
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(student.float(), leaf.grad.float(), rtol=max(eps, 1e-5), atol=1e-7)
    assert (student[4] == 0).all()
    assert (student[:, VOCAB_SIZE:] == 0).all()


def test_opcheck() -> None:
    student, teacher, labels = inputs(torch.float32)
    arguments = (student, teacher, labels, VOCAB_SIZE, int(ALL), 2.0, 0.3, -100, 1, True, 0, 0.5)
    torch.library.opcheck(ops.fused_loss_, (*arguments, 0.0, 0))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vocab_size": 2000}, "must hold the whole vocabulary of 2000"),
        ({"soft_term": 3}, "unknown objective"),
        ({"features": 3}, "the objective reads features"),
    ],
)
def test_refusals(change: dict[str, int], message: str) -> None:
    student, teacher, labels = inputs(torch.float32)
    chosen = {"vocab_size": VOCAB_SIZE, "features": int(ALL), "soft_term": 1, **change}
    before = student.clone()
    with pytest.raises(ValueError, match=message):
        ops.fused_loss_(
            *(student, teacher, labels, chosen["vocab_size"], chosen["features"], 1.0, 1.0, -100),
            *(chosen["soft_term"], False, 0, 0.5, 0.0, 0),
        )
    assert torch.equal(student, before)


def test_nothing_to_do() -> None:
    empty = torch.empty(0, VOCAB_SIZE)
    labels = torch.empty(0, dtype=torch.int64)
    _, losses = fused(empty, empty.clone(), labels, ObjectiveConfig())
    assert losses.shape == (4, 0)
