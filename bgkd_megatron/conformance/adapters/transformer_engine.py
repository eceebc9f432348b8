"""Transformer Engine's cross entropy.  The package is built for CUDA and imported only there."""

from __future__ import annotations

import torch.distributed as dist
from torch import Tensor

from bgkd_megatron.conformance.candidate import Candidate, Loss, Setting
from bgkd_megatron.conformance.claims import CLAIMS

__all__ = ["CANDIDATES"]


def _cross_entropy(setting: Setting) -> Loss:
    from transformer_engine.pytorch.cross_entropy import parallel_cross_entropy

    def loss(student: Tensor, teacher: Tensor, labels: Tensor, group: dist.ProcessGroup) -> Tensor:
        logits, targets = student.unsqueeze(1), labels.unsqueeze(1)  # [s, b, V], [s, b]
        return parallel_cross_entropy(logits, targets, 0.0, False, group).squeeze(1)

    return loss


CANDIDATES = {
    "te:cross_entropy": Candidate(
        name="parallel_cross_entropy",
        claim=CLAIMS["cross_entropy"],
        make=_cross_entropy,
        package="transformer-engine",
        ignore_index=-100,
    ),
}
