"""Losses that are wrong on purpose, beyond the examples of docs/conformance.md."""

from __future__ import annotations

import dataclasses
import os
import sys
import time
from collections.abc import Callable

import page
import torch
import torch.distributed as dist
from torch import Tensor

from bgkd_megatron.conformance.candidate import Candidate, Loss, Setting
from bgkd_megatron.conformance.claims import CLAIMS

log_softmax, plain_all_reduce = page.log_softmax, page.plain_all_reduce


def right_cross_entropy(
    student: Tensor, _: Tensor, labels: Tensor, group: dist.ProcessGroup
) -> Tensor:
    log_q = log_softmax(student, group)
    local = labels - group.rank() * student.shape[1]
    inside = (local >= 0) & (local < student.shape[1])
    found = log_q.gather(1, local.where(inside, 0)[:, None])[:, 0].where(inside, 0.0)
    return -plain_all_reduce(found, group)


def right_mean(student: Tensor, _: Tensor, labels: Tensor, group: dist.ProcessGroup) -> Tensor:
    valid = labels != -100
    losses = right_cross_entropy(student, _, labels.where(valid, 0), group)
    return losses[valid].mean()


def constant_normaliser(
    student: Tensor, teacher: Tensor, _: Tensor, group: dist.ProcessGroup
) -> Tensor:
    def add(x: Tensor, group: dist.ProcessGroup) -> Tensor:
        return plain_all_reduce(x.detach(), group)

    log_q, log_p = log_softmax(student, group, add), log_softmax(teacher, group)
    return plain_all_reduce((log_p.exp() * (log_p - log_q)).sum(-1), group)


def doubled_at_the_end(
    student: Tensor, teacher: Tensor, _: Tensor, group: dist.ProcessGroup
) -> Tensor:
    log_q, log_p = log_softmax(student, group), log_softmax(teacher, group)
    return page.dist_nn.all_reduce((log_p.exp() * (log_p - log_q)).sum(-1), group=group)


def doubled_normaliser(
    student: Tensor, teacher: Tensor, _: Tensor, group: dist.ProcessGroup
) -> Tensor:
    """-sum_v p_v z_v summed rightly; the normaliser, replicated, through a backward that adds."""
    z = student.float()
    top = z.detach().amax(-1)
    dist.all_reduce(top, dist.ReduceOp.MAX, group)
    total = page.dist_nn.all_reduce((z - top[:, None]).exp().sum(-1), group=group)
    log_p = log_softmax(teacher, group)
    cross = plain_all_reduce((log_p.exp() * (log_p - (z - top[:, None]))).sum(-1), group)
    return cross + total.log()


def tempered(student: Tensor, teacher: Tensor, _: Tensor, group: dist.ProcessGroup) -> Tensor:
    """A gradient scaled by 1/2."""
    loss = page.right_kl(student, teacher, _, group)
    return 0.5 * loss + 0.5 * loss.detach()


class _Ignorant(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, loss: Tensor) -> Tensor:
        return loss.clone()

    @staticmethod
    def backward(ctx: object, *upstream: Tensor) -> Tensor:
        return torch.ones_like(upstream[0])


def ignores_upstream(
    student: Tensor, teacher: Tensor, _: Tensor, group: dist.ProcessGroup
) -> Tensor:
    return _Ignorant.apply(page.right_kl(student, teacher, _, group))


def max_in_the_graph(
    student: Tensor, teacher: Tensor, _: Tensor, group: dist.ProcessGroup
) -> Tensor:
    top = student.float().max(-1, keepdim=True).values
    dist.all_reduce(top, dist.ReduceOp.MAX, group)
    z = student.float() - top
    log_q = z - plain_all_reduce(z.exp().sum(-1, keepdim=True), group).log()
    log_p = log_softmax(teacher, group)
    return plain_all_reduce((log_p.exp() * (log_p - log_q)).sum(-1), group)


def cross_term(student: Tensor, teacher: Tensor, _: Tensor, group: dist.ProcessGroup) -> Tensor:
    log_q, log_p = log_softmax(student, group), log_softmax(teacher, group)
    return -plain_all_reduce((log_p.exp() * log_q).sum(-1), group)


def partial_sum(student: Tensor, teacher: Tensor, _: Tensor, group: dist.ProcessGroup) -> Tensor:
    log_q, log_p = log_softmax(student, group), log_softmax(teacher, group)
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def shard_alone(student: Tensor, teacher: Tensor, _: Tensor, group: dist.ProcessGroup) -> Tensor:
    log_q, log_p = student.float().log_softmax(-1), teacher.float().log_softmax(-1)
    return plain_all_reduce((log_p.exp() * (log_p - log_q)).sum(-1), group)


def no_maximum(student: Tensor, _: Tensor, labels: Tensor, group: dist.ProcessGroup) -> Tensor:
    total = page.dist_nn.all_reduce(student.float().exp().sum(-1), group=group)
    shifted = right_cross_entropy(student, _, labels, group)
    return shifted - total.log().detach() + total.log().detach()


def per_token_mean(student: Tensor, teacher: Tensor, _: Tensor, group: dist.ProcessGroup) -> Tensor:
    return page.right_kl(student, teacher, _, group) / len(student)


def tail_cut_off(student: Tensor, teacher: Tensor, _: Tensor, group: dist.ProcessGroup) -> Tensor:
    log_p, ids = teacher.float().log_softmax(-1).topk(16)
    log_q = student.float().log_softmax(-1).gather(1, ids)
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def slightly_off(student: Tensor, teacher: Tensor, _: Tensor, group: dist.ProcessGroup) -> Tensor:
    return page.right_kl(student, teacher, _, group) * 1.0001


class _To16Bits(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, logits: Tensor) -> Tensor:
        return logits.clone()

    @staticmethod
    def backward(ctx: object, *upstream: Tensor) -> Tensor:
        return upstream[0].bfloat16().to(upstream[0].dtype)


def gradient_in_16_bits(
    student: Tensor, teacher: Tensor, _: Tensor, group: dist.ProcessGroup
) -> Tensor:
    return page.right_kl(_To16Bits.apply(student), teacher, _, group)


def in_16_bits(student: Tensor, teacher: Tensor, _: Tensor, group: dist.ProcessGroup) -> Tensor:
    """The logarithms of the probabilities are kept in the dtype of the logits."""
    log_q = log_softmax(student, group).to(student.dtype)
    log_p = log_softmax(teacher, group).to(student.dtype)
    return plain_all_reduce((log_p.exp() * (log_p - log_q)).sum(-1), group)


def softened(student: Tensor, teacher: Tensor, _: Tensor, group: dist.ProcessGroup) -> Tensor:
    return 4 * page.right_kl(student / 2, teacher / 2, _, group)


def not_a_number(student: Tensor, *_: object) -> Tensor:
    return student.float().sum(-1) * float("nan")


def raises(student: Tensor, *_: object) -> Tensor:
    raise IndexError("index 300 is out of bounds")


def needs_a_package(student: Tensor, *_: object) -> Tensor:
    raise ImportError("No module named 'not_there'")


def disconnected(student: Tensor, *_: object) -> Tensor:
    return student.detach().sum(-1)


def dies_on_rank_1(student: Tensor, teacher: Tensor, _: Tensor, group: dist.ProcessGroup) -> Tensor:
    if group.rank() == 1:
        os._exit(42)
    return page.right_kl(student, teacher, _, group)


def waits_alone(student: Tensor, teacher: Tensor, _: Tensor, group: dist.ProcessGroup) -> Tensor:
    if group.rank() == 1:
        return student.float().sum(-1)
    return page.right_kl(student, teacher, _, group)


def never_ends(student: Tensor, *_: object) -> Tensor:
    while True:
        time.sleep(1)


def _claiming_padding(setting: Setting) -> Loss:
    return page.right_kl


SUMS_PADDING = Candidate(
    "sums padding", CLAIMS["forward_kl"], _claiming_padding, knows_padding=True
)
SEES_NO_MASK = Candidate("sees no mask", CLAIMS["forward_kl"], _claiming_padding, ignore_index=-100)
IS_MISSING = Candidate(
    "is missing", CLAIMS["forward_kl"], _claiming_padding, package="no-such-package-of-losses"
)
SUPPOSES_EVEN_SHARDS = Candidate(
    "supposes even shards",
    CLAIMS["cross_entropy"],
    lambda setting: right_cross_entropy,
    takes_uneven_shards=True,
)
NEEDS_ONE_RANK = dataclasses.replace(SUMS_PADDING, knows_padding=False, tp_sizes=(1,))


def _only_in_a_new_process(setting: Setting) -> Loss:
    """At the first call; a measurement then imports torch._dynamo."""
    if os.environ.get("BGKD_PLANTED") != "1" or "torch._dynamo" in sys.modules:
        raise RuntimeError("something was imported before the variable was set")
    return page.right_kl


def _once(make: Callable[[Setting], Loss]) -> Callable[[Setting], Loss]:
    """Settings differ from problem to problem; the first decides."""
    made: list[Loss] = []

    def cached(setting: Setting) -> Loss:
        if not made:
            made.append(make(setting))
        return made[0]

    return cached


NEEDS_A_VARIABLE = Candidate(
    "needs a variable",
    CLAIMS["forward_kl"],
    _once(_only_in_a_new_process),
    environment={"BGKD_PLANTED": "1"},
)
