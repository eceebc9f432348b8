"""NeMo Automodel's distillation loss: the one file that it is in, which needs PyTorch alone."""

from __future__ import annotations

import torch.distributed as dist
from torch import Tensor

from bgkd_megatron.conformance.adapters.one_file import load_file
from bgkd_megatron.conformance.candidate import Candidate, Loss, Setting
from bgkd_megatron.conformance.claims import CLAIMS

__all__ = ["CANDIDATES"]


def _kd_loss(setting: Setting) -> Loss:
    module = load_file("nemo-automodel", "nemo_automodel/components/loss/kd_loss.py")
    criterion = module.KDLoss(tp_group=setting.group if setting.group.size() > 1 else None)

    def loss(student: Tensor, teacher: Tensor, labels: Tensor, group: dist.ProcessGroup) -> Tensor:
        return criterion(student, teacher, labels)

    return loss


CANDIDATES = {
    "automodel:forward_kl": Candidate(
        name="KDLoss",
        claim=CLAIMS["forward_kl"],
        make=_kd_loss,
        package="nemo-automodel",
        reduction="mean",
        ignore_index=-100,
    )
}
