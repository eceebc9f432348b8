"""The losses that are compared.  Packages of others are imported only where they are run."""

from __future__ import annotations

import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from bgkd_megatron.loss import hybrid_loss
from bgkd_megatron.objectives import HybridObjective
from bgkd_megatron.sequence_layout import SequenceLayout
from bgkd_megatron.vocab_shard import VocabShard
from loss_bench import eager
from loss_bench.eager import DOCUMENT_TOKENS
from loss_bench.family import FAMILY, ours_and_eager
from loss_bench.problem import OBJECTIVES, LossFunction, Setting, Task


@dataclass(frozen=True)
class Variant:
    """One row of the table."""

    title: str
    task: Task
    make: Callable[[Setting], LossFunction]
    """May raise whatever a missing package or an unsupported machine raises."""
    ours: bool = False
    gradient_in_forward: bool = False
    """Of ours: one read of the logits instead of two."""
    compiled: bool = False
    """Its operations are invisible to the byte counter."""
    has_loss: bool = True
    """False: a floor that computes no loss, so there is no value to check."""
    devices: tuple[str, ...] = ("cpu", "cuda")
    """Where it is run unless it is asked for by name."""


# ---- ours


def _ours(task: Task, gradient_in_forward: bool = False) -> Callable[[Setting], LossFunction]:
    def make(setting: Setting) -> LossFunction:
        config = OBJECTIVES[task]
        objective = HybridObjective(config, setting.vocab_size)
        shard = VocabShard.even(setting.vocab_size, setting.vocab_size)
        sequences = _documents(setting) if config.couples_positions else None

        def loss(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
            losses, _ = hybrid_loss(
                student, teacher if config.needs_teacher else None, labels, objective, shard=shard,
                inplace_backward=True, gradient_in_forward=gradient_in_forward,
                sequences=sequences,
            )  # fmt: skip
            return losses.loss.mean()

        return _with_head(loss) if task == "head_kl" else loss

    return make


def _documents(setting: Setting) -> SequenceLayout:
    place = torch.arange(1, setting.num_tokens + 1, device=setting.device)
    return SequenceLayout(setting.num_tokens, 1, ends=place % DOCUMENT_TOKENS == 0)


def _with_head(loss: LossFunction) -> LossFunction:
    def head_loss(
        hidden: Tensor, weight: Tensor, teacher: Tensor, teacher_weight: Tensor, labels: Tensor
    ) -> Tensor:
        with torch.no_grad():
            teacher_logits = teacher @ teacher_weight.T
        return loss(hidden @ weight.T, teacher_logits, labels)

    return head_loss


def _compiled(loss: LossFunction) -> Callable[[Setting], LossFunction]:
    return lambda _: torch.compile(loss, dynamic=False, fullgraph=True)


# ---- other packages


def _modelopt(setting: Setting) -> LossFunction:
    if setting.device == "cpu":
        from bgkd_megatron.megatron import cpu_compat

        cpu_compat.install()  # it imports Megatron-Core
    from modelopt.torch.distill.plugins.megatron import LogitsKLLoss

    parallel = types.SimpleNamespace(tensor_model_parallel_size=1, sequence_parallel=False)
    criterion = LogitsKLLoss(parallel)

    def loss(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
        per_token, *_ = criterion(student.unsqueeze(1), teacher.unsqueeze(1))  # [s, b, V]
        return per_token.mean()

    return loss


def _liger(compiled: bool) -> Callable[[Setting], LossFunction]:
    def make(setting: Setting) -> LossFunction:
        from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

        # Its Jensen-Shannon loss with beta = 0 is KL(p||q).  Chunks of 1024 tokens, its default.
        return LigerFusedLinearJSDLoss(
            weight_hard_loss=0.0, weight_soft_loss=1.0, beta=0.0, compiled=compiled
        )

    return make


def _liger_on_logits(setting: Setting) -> LossFunction:
    from liger_kernel.chunked_loss.jsd_loss import LigerFusedLinearJSDFunction

    def loss(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
        total = LigerFusedLinearJSDFunction.distillation_loss_fn(
            student, teacher, beta=0.0, target=labels
        )
        return total / len(labels)

    return loss


def _liger_kl_div(setting: Setting) -> LossFunction:
    from liger_kernel.transformers import LigerKLDIVLoss

    divergence = LigerKLDIVLoss(reduction="batchmean", log_target=True)

    def loss(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
        log_q = F.log_softmax(student.float(), dim=-1)
        return divergence(log_q, F.log_softmax(teacher.float(), dim=-1))

    return loss


def _liger_ce(setting: Setting) -> LossFunction:
    from liger_kernel.transformers import LigerCrossEntropyLoss

    criterion = LigerCrossEntropyLoss()
    return lambda student, teacher, labels: criterion(student, labels)


def _te_ce(setting: Setting) -> LossFunction:
    from transformer_engine.pytorch.cross_entropy import parallel_cross_entropy

    def loss(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
        # [s, b, V]; no label smoothing, a loss for each token, no group
        logits, targets = student.unsqueeze(1), labels.unsqueeze(1)
        return parallel_cross_entropy(logits, targets, 0.0, False, None).mean()

    return loss


class _GivenGradient(torch.autograd.Function):
    """A loss that costs nothing: 0, and d logits is a tensor that exists."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, gradient: Tensor) -> Tensor:
        ctx.save_for_backward(gradient)
        return logits.new_zeros(())

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None]:
        return ctx.saved_tensors[0], None


def _head_alone(setting: Setting) -> LossFunction:
    return _with_head(lambda student, teacher, labels: _GivenGradient.apply(student, teacher))


def _always(loss: LossFunction) -> Callable[[Setting], LossFunction]:
    return lambda _: loss


_EAGER_HYBRID = eager.hybrid(eager.entropy)
_EAGER_KL = eager.mean_of(eager.forward_kl)

_GPU = ("cuda",)  # written for it, or there to compare with what is


def _ours_once(title: str, task: Task) -> Variant:
    make = _ours(task, gradient_in_forward=True)
    return Variant(title, task, make, ours=True, gradient_in_forward=True, devices=_GPU)


VARIANTS: dict[str, Variant] = {
    "ours_hybrid": Variant("ours, hybrid", "hybrid", _ours("hybrid"), ours=True),
    "ours_hybrid_once": _ours_once("ours, hybrid, one read", "hybrid"),
    "eager_hybrid": Variant("PyTorch eager, hybrid", "hybrid", _always(_EAGER_HYBRID)),
    "compiled_hybrid": Variant(
        "PyTorch torch.compile, hybrid", "hybrid", _compiled(_EAGER_HYBRID), compiled=True
    ),
    "ours_kl": Variant("ours, forward KL", "kl", _ours("kl"), ours=True),
    "ours_kl_once": _ours_once("ours, forward KL, one read", "kl"),
    "eager_kl": Variant("PyTorch eager, forward KL", "kl", _always(_EAGER_KL)),
    "lean_kl": Variant("PyTorch eager, F.kl_div", "kl", _always(eager.kl_div)),
    "compiled_kl": Variant(
        "PyTorch torch.compile, forward KL", "kl", _compiled(_EAGER_KL), compiled=True, devices=_GPU
    ),
    "modelopt": Variant("nvidia-modelopt LogitsKLLoss", "kl", _modelopt),
    "liger_logits": Variant("liger-kernel, one chunk's loss", "kl", _liger_on_logits),
    "liger_kl_div": Variant(
        "log_softmax, liger-kernel KLDIVLoss", "kl", _liger_kl_div, compiled=True, devices=_GPU
    ),
    "ours_ce": Variant("ours, CE", "ce", _ours("ce"), ours=True, devices=_GPU),
    "eager_ce": Variant("PyTorch eager, CE", "ce", _always(eager.cross_entropy), devices=_GPU),
    "compiled_ce": Variant(
        "PyTorch torch.compile, CE",
        "ce",
        _compiled(eager.cross_entropy),
        compiled=True,
        devices=_GPU,
    ),
    "liger_ce": Variant("liger-kernel CE", "ce", _liger_ce, compiled=True, devices=_GPU),
    "te_ce": Variant("Transformer Engine CE", "ce", _te_ce, compiled=True, devices=_GPU),
    "ours_head": Variant("output layers + ours", "head_kl", _ours("head_kl"), ours=True),
    "head_alone": Variant("output layers alone, no loss", "head_kl", _head_alone, has_loss=False),
    "liger": Variant("liger-kernel fused linear, eager", "head_kl", _liger(compiled=False)),
    "liger_compiled": Variant(
        "liger-kernel fused linear, compiled", "head_kl", _liger(compiled=True), compiled=True
    ),
}
"""In the order of the table; the first of each task is ours, which the others are compared to."""

for _name, _member in FAMILY.items():
    _ours_name, _eager_name = ours_and_eager(_name)
    VARIANTS[_ours_name] = Variant(
        f"ours, {_member.title}", _name, _ours(_name), ours=True, devices=()
    )
    VARIANTS[_eager_name] = Variant(
        f"PyTorch eager, {_member.title}", _name, _always(_member.eager), devices=()
    )
