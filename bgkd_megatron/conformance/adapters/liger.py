"""liger-kernel.

Its kernels are Triton's and need a GPU; on a CPU Triton's interpreter executes them, which is
enough to check numbers and collectives, not to count bytes that a kernel moves.
"""

from __future__ import annotations

import functools

import torch.distributed as dist
from torch import Tensor

from bgkd_megatron.conformance.candidate import Candidate, Loss, Setting
from bgkd_megatron.conformance.claims import CLAIMS

__all__ = ["CANDIDATES"]


def _megatron_cross_entropy(setting: Setting) -> Loss:
    from liger_kernel.megatron import LigerMegatronCrossEntropy

    criterion = LigerMegatronCrossEntropy()

    def loss(student: Tensor, teacher: Tensor, labels: Tensor, group: dist.ProcessGroup) -> Tensor:
        return criterion(student.unsqueeze(1), labels.unsqueeze(1), group).squeeze(1)

    return loss


def _jsd_function(beta: float, setting: Setting) -> Loss:
    from liger_kernel.chunked_loss.jsd_loss import LigerFusedLinearJSDFunction

    def loss(student: Tensor, teacher: Tensor, labels: Tensor, group: dist.ProcessGroup) -> Tensor:
        return LigerFusedLinearJSDFunction.distillation_loss_fn(
            student, teacher, beta=beta, target=labels
        )

    return loss


CANDIDATES = {
    "liger:cross_entropy": Candidate(
        name="LigerMegatronCrossEntropy",
        claim=CLAIMS["cross_entropy"],
        make=_megatron_cross_entropy,
        package="liger-kernel",
        ignore_index=-100,
        environment={"TRITON_INTERPRET": "1"},
        note="run by Triton's interpreter; the bytes moved are the interpreter's",
    ),
    "liger:forward_kl": Candidate(
        name="JSD loss of one chunk, beta = 0",
        claim=CLAIMS["forward_kl"],
        make=functools.partial(_jsd_function, 0.0),
        package="liger-kernel",
        reduction="sum",
        ignore_index=-100,
        tp_sizes=(1,),
        note="not vocabulary-parallel",
    ),
    "liger:jensen_shannon": Candidate(
        name="JSD loss of one chunk, beta = 1/2",
        claim=CLAIMS["jensen_shannon"],
        make=functools.partial(_jsd_function, 0.5),
        package="liger-kernel",
        reduction="sum",
        ignore_index=-100,
        tp_sizes=(1,),
        note="not vocabulary-parallel",
    ),
}
