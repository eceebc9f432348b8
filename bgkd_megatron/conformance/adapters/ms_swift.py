"""ms-swift's vocabulary-parallel KL: the one file that it is in, which needs Megatron-Core."""

from __future__ import annotations

import torch.distributed as dist
from torch import Tensor

from bgkd_megatron.conformance.adapters.one_file import load_file
from bgkd_megatron.conformance.candidate import Candidate, Loss, Setting
from bgkd_megatron.conformance.claims import CLAIMS

__all__ = ["CANDIDATES"]

_FILE = "swift/megatron/trainers/vocab_parallel_utils.py"


def _kl(setting: Setting, *, reverse: bool) -> Loss:
    module = load_file("ms-swift", _FILE)

    def loss(student: Tensor, teacher: Tensor, labels: Tensor, group: dist.ProcessGroup) -> Tensor:
        log_q = module.vocab_parallel_log_softmax(student)
        log_p = module.vocab_parallel_log_softmax(teacher)
        q_and_p = (log_p, log_q) if reverse else (log_q, log_p)  # (input, target) of F.kl_div
        return module.vocab_parallel_kl_div(*q_and_p)

    return loss


def _forward_kl(setting: Setting) -> Loss:
    return _kl(setting, reverse=False)


def _reverse_kl(setting: Setting) -> Loss:
    return _kl(setting, reverse=True)


CANDIDATES = {
    "swift:forward_kl": Candidate(
        name="vocab_parallel_kl_div",
        claim=CLAIMS["forward_kl"],
        make=_forward_kl,
        package="ms-swift",
        needs_megatron=True,
    ),
    "swift:reverse_kl": Candidate(
        name="vocab_parallel_kl_div, reverse",
        claim=CLAIMS["reverse_kl"],
        make=_reverse_kl,
        package="ms-swift",
        needs_megatron=True,
    ),
}
