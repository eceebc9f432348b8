"""Megatron-Core's own cross-entropies."""

from __future__ import annotations

import torch.distributed as dist
from torch import Tensor

from bgkd_megatron.conformance.candidate import Candidate, Loss, Setting
from bgkd_megatron.conformance.claims import CLAIMS

__all__ = ["CANDIDATES"]


def _cross_entropy(setting: Setting) -> Loss:
    from megatron.core.tensor_parallel import vocab_parallel_cross_entropy

    def loss(student: Tensor, teacher: Tensor, labels: Tensor, group: dist.ProcessGroup) -> Tensor:
        logits, targets = student.unsqueeze(1), labels.unsqueeze(1)  # [s, b, V], [s, b]
        return vocab_parallel_cross_entropy(logits, targets, tp_group=group).squeeze(1)

    return loss


def _fused_cross_entropy(setting: Setting) -> Loss:
    from megatron.core.fusions.fused_cross_entropy import fused_vocab_parallel_cross_entropy

    def loss(student: Tensor, teacher: Tensor, labels: Tensor, group: dist.ProcessGroup) -> Tensor:
        logits, targets = student.unsqueeze(1), labels.unsqueeze(1)
        return fused_vocab_parallel_cross_entropy(logits, targets, group).squeeze(1)

    return loss


CANDIDATES = {
    "megatron:cross_entropy": Candidate(
        name="vocab_parallel_cross_entropy",
        claim=CLAIMS["cross_entropy"],
        make=_cross_entropy,
        package="megatron-core",
        needs_megatron=True,
    ),
    "megatron:fused_cross_entropy": Candidate(
        name="fused_vocab_parallel_cross_entropy",
        claim=CLAIMS["cross_entropy"],
        make=_fused_cross_entropy,
        package="megatron-core",
        needs_megatron=True,
        note="its fused parts run without torch.compile, so more bytes are moved than on a GPU",
    ),
}
