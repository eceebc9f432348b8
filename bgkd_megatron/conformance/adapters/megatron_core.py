"""Megatron-Core's own cross-entropies."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from bgkd_megatron.conformance.adapters.one_file import load_file
from bgkd_megatron.conformance.candidate import TOLERANCES, Candidate, Loss, Setting, Tolerance
from bgkd_megatron.conformance.claims import CLAIMS, top_k_and_rest

__all__ = ["CANDIDATES"]

_TOP_K = 64
_ROUNDED = Tolerance(TOLERANCES[torch.float32].value, TOLERANCES[torch.bfloat16].gradient)


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


def _top_k_kl(setting: Setting) -> Loss:
    module = load_file("megatron-core", "megatron/training/distillation/cached_logits_loss.py")

    def loss(student: Tensor, teacher: Tensor, labels: Tensor, group: dist.ProcessGroup) -> Tensor:
        columns = [torch.empty_like(teacher) for _ in range(group.size())]
        dist.all_gather(columns, teacher, group)
        cached = torch.cat(columns, dim=1).float().log_softmax(-1).topk(_TOP_K)
        losses = module.topk_kl_div(
            student.unsqueeze(1),
            cached.values.unsqueeze(1),
            cached.indices.unsqueeze(1),
            group.size(),
            group.rank(),
            group,
            add_ghost_token=True,
        ).squeeze(0)
        dist.all_reduce(losses, group=group)  # as LossFuncCallable does with their sum
        return losses

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
        tolerances={**TOLERANCES, torch.float32: _ROUNDED},
        note="its gradient is rounded to bfloat16 also where the logits are float32, which is "
        "allowed for here; its fused parts run without torch.compile, so more bytes are moved than "
        "on a GPU",
    ),
    "megatron:top_k_kl": Candidate(
        name=f"topk_kl_div, k = {_TOP_K}, ghost token",
        claim=top_k_and_rest(_TOP_K),
        make=_top_k_kl,
        package="megatron-core",
        needs_megatron=True,
        note="needs Python 3.12; its cache of the teacher is made by the adapter, with one "
        "all-gather and softmax",
    ),
}
