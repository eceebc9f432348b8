"""The losses of this package."""

from __future__ import annotations

import functools

import torch.distributed as dist
from torch import Tensor

from bgkd_megatron.conformance.candidate import Candidate, Loss, Setting
from bgkd_megatron.conformance.claims import CLAIMS
from bgkd_megatron.fdivergence import FDivergence, FKind
from bgkd_megatron.loss import hybrid_loss
from bgkd_megatron.objectives import HybridObjective, ObjectiveConfig
from bgkd_megatron.vocab_fdiv import vocab_fdiv
from bgkd_megatron.vocab_shard import VocabShard

__all__ = ["CANDIDATES"]

_HYBRID = {
    "cross_entropy": ObjectiveConfig(weighting="static", soft_weight=0.0),
    "forward_kl": ObjectiveConfig(weighting="static", soft_weight=1.0),
    "reverse_kl": ObjectiveConfig(weighting="static", soft_weight=1.0, soft="reverse_kl"),
    "forward_kl_temperature_2": ObjectiveConfig(
        weighting="static", soft_weight=1.0, temperature=2.0
    ),
    "hybrid": ObjectiveConfig(weighting="static", soft_weight=0.5),
    "hybrid_entropy": ObjectiveConfig(weighting="entropy"),
}
_TWO_SWEEPS = {
    "jensen_shannon": FDivergence(FKind.JENSEN_SHANNON, 0.5),
    "skew_forward_kl": FDivergence(FKind.SKEW_FORWARD, 0.1),
    "skew_reverse_kl": FDivergence(FKind.SKEW_REVERSE, 0.1),
    "total_variation": FDivergence(FKind.TOTAL_VARIATION),
}


def _hybrid(config: ObjectiveConfig, setting: Setting) -> Loss:
    objective = HybridObjective(config, setting.vocab_size)
    shard = VocabShard(setting.vocab_size, setting.widths, setting.group)

    def loss(student: Tensor, teacher: Tensor, labels: Tensor, group: dist.ProcessGroup) -> Tensor:
        needed = teacher if config.needs_teacher else None
        losses, _ = hybrid_loss(
            student, needed, labels, objective, shard=shard, inplace_backward=True
        )
        return losses.loss

    return loss


def _two_sweeps(divergence: FDivergence, setting: Setting) -> Loss:
    shard = VocabShard(setting.vocab_size, setting.widths, setting.group)

    def loss(student: Tensor, teacher: Tensor, labels: Tensor, group: dist.ProcessGroup) -> Tensor:
        _, value = vocab_fdiv(
            student, teacher, labels, shard=shard, divergence=divergence, inplace_backward=True
        )
        return value

    return loss


_MAKERS = {
    **{name: functools.partial(_hybrid, config) for name, config in _HYBRID.items()},
    **{name: functools.partial(_two_sweeps, fdiv) for name, fdiv in _TWO_SWEEPS.items()},
}

CANDIDATES = {
    f"ours:{name}": Candidate(
        name=f"{'hybrid_loss' if name in _HYBRID else 'vocab_fdiv'}, {name}",
        claim=CLAIMS[name],
        make=make,
        package="bgkd-megatron",
        ignore_index=-100,
        knows_padding=True,
        takes_uneven_shards=True,
    )
    for name, make in _MAKERS.items()
}
