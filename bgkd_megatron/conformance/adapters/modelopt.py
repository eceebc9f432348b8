"""nvidia-modelopt's distillation losses for Megatron.

Its losses are modules that return ([b, s] losses, whether they are parts of a sum over the
tensor-parallel ranks, ...).  Megatron-LM's loss function adds such parts with a plain all-reduce;
the adapter does the same, per token.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable
from typing import Any

import torch.distributed as dist
from torch import Tensor

from bgkd_megatron.conformance.candidate import Candidate, Loss, Setting
from bgkd_megatron.conformance.claims import CLAIMS, top_k

__all__ = ["CANDIDATES"]

_TOP_K = 64
_SUMMED = "the last of its collectives is that of Megatron-LM's loss function, there of a scalar"


def _loss_of(criterion: Callable[[Tensor, Tensor], Any]) -> Loss:
    def loss(student: Tensor, teacher: Tensor, labels: Tensor, group: dist.ProcessGroup) -> Tensor:
        losses, is_part, _ = criterion(student.unsqueeze(1), teacher.unsqueeze(1))  # [s, b, V]
        if is_part:
            dist.all_reduce(losses, group=group)
        return losses.squeeze(0)

    return loss


def _config(setting: Setting) -> Any:
    """All that the losses read of a TransformerConfig."""
    return types.SimpleNamespace(
        tensor_model_parallel_size=setting.group.size(), sequence_parallel=False
    )


def _kl(reverse: bool, setting: Setting) -> Loss:
    from modelopt.torch.distill.plugins.megatron import LogitsKLLoss

    return _loss_of(LogitsKLLoss(_config(setting), reverse=reverse))


def _top_k_kl(setting: Setting) -> Loss:
    from modelopt.torch.distill.plugins.megatron import TopKLogitsKLLoss

    return _loss_of(TopKLogitsKLLoss(_config(setting), top_k=_TOP_K))


CANDIDATES = {
    "modelopt:forward_kl": Candidate(
        name="LogitsKLLoss",
        claim=CLAIMS["forward_kl"],
        make=functools.partial(_kl, False),
        package="nvidia-modelopt",
        needs_megatron=True,
        note=_SUMMED,
    ),
    "modelopt:reverse_kl": Candidate(
        name="LogitsKLLoss, reverse",
        claim=CLAIMS["reverse_kl"],
        make=functools.partial(_kl, True),
        package="nvidia-modelopt",
        needs_megatron=True,
        note=_SUMMED,
    ),
    "modelopt:top_k_kl": Candidate(
        name=f"TopKLogitsKLLoss, k = {_TOP_K}",
        claim=top_k(_TOP_K),
        make=_top_k_kl,
        package="nvidia-modelopt",
        needs_megatron=True,
        note="claims a renormalised top-k, and is compared with that",
    ),
}
