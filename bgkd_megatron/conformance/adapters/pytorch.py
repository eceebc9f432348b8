"""PyTorch's own cross entropy under `loss_parallel`, on logits that are a DTensor."""

from __future__ import annotations

import contextlib

import torch.distributed as dist
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from bgkd_megatron.conformance.candidate import Candidate, Loss, Setting
from bgkd_megatron.conformance.claims import CLAIMS

__all__ = ["CANDIDATES"]

_ENTERED = contextlib.ExitStack()


def _loss_parallel(setting: Setting) -> Loss:
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor import DTensor, Shard
    from torch.distributed.tensor.parallel import loss_parallel

    mesh = DeviceMesh.from_group(setting.group, "cpu")
    # Backward must run within, too: for the life of this process, which is the candidate's own.
    _ENTERED.enter_context(loss_parallel())

    def loss(student: Tensor, teacher: Tensor, labels: Tensor, group: dist.ProcessGroup) -> Tensor:
        logits = DTensor.from_local(student, mesh, [Shard(1)])
        total = F.cross_entropy(logits, labels, reduction="sum")
        assert isinstance(total, DTensor)
        return total.to_local()

    return loss


CANDIDATES = {
    "torch:cross_entropy": Candidate(
        name="loss_parallel, F.cross_entropy",
        claim=CLAIMS["cross_entropy"],
        make=_loss_parallel,
        package="torch",
        reduction="sum",
        ignore_index=-100,
    ),
}
