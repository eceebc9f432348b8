"""Every objective of the family on a cut vocabulary == its definition, dense and in float64.

Uneven shards, one of them of three columns and with four ranks one of none; the teacher has other
padding than the student.  Each rank computes with its shard; one of them, another one for each
objective, compares the gathered gradient with the whole.
"""

from __future__ import annotations

import itertools
import math
from functools import cache, partial
from typing import Any

import pytest
import torch
import torch.distributed as dist
from launch import Case
from objective_cases import SOFT_CASES, WEIGHTING_CASES
from operator_checks import DTYPES, FP32, Precision
from sharded_problem import Problem
from torch import Tensor
from vocab_inputs import computed, gradient_noise

from bgkd_megatron import reference
from bgkd_megatron.drawn_labels import drawn_labels
from bgkd_megatron.loss import hybrid_loss
from bgkd_megatron.objectives import HybridObjective, ObjectiveConfig
from bgkd_megatron.vocab_shard import VocabShard

VOCAB, EXCLUDED, PADDING, TEACHER_PADDING = 165, 5, 4, 9
WIDTHS = {1: (165,), 2: (3, 162), 3: (3, 100, 62), 4: (3, 100, 0, 62)}
HARD_LABELS = ["data", "teacher_argmax", "teacher_sample", "random"]
SEED, PROGRESS, DEVICE = 11, 0.1, torch.device("cpu")
WAYS: list[dict[str, bool]] = [{}, {"inplace_backward": True}, {"gradient_in_forward": True}]


@cache
def problem(dtype: torch.dtype, is_masked: bool = False) -> Problem:
    """Rows: excluded tokens; ignored; plain; a logit of 1e4 in both, at one token and at two."""
    own = Problem.random(6, VOCAB, dtype)
    own.student[0, EXCLUDED] = own.teacher[0, EXCLUDED] = -math.inf
    own.student[1] = math.nan
    own.student[3, 7] = own.teacher[3, 7] = 1e4
    own.student[5, 120], own.teacher[5, 8] = 1e4, 9e3
    labels = torch.tensor([130, -100, 2, 7, -100, 40])
    return Problem(own.student, own.teacher, torch.full_like(labels, -100) if is_masked else labels)


@cache
def noise(dtype: torch.dtype, temperature: float) -> Tensor:
    """[N, V]: each row's by its own spread."""
    own = problem(dtype)
    rows = zip(own.student.split(1), own.teacher.split(1), strict=True)
    return torch.cat([gradient_noise(z.nan_to_num(0.0), t, temperature) for z, t in rows])


def spread_of_rows(own: Problem) -> Tensor:
    """[N] the largest finite logit of a row: its rounding is in every difference of logarithms."""
    z, t = (
        x.double().where(x.isfinite(), 0.0).abs().amax(dim=-1) for x in (own.student, own.teacher)
    )
    return torch.maximum(z, t)


def label_of(config: ObjectiveConfig, own: Problem) -> Tensor:
    """The labels that the reference gets: those that one rank alone draws."""
    if not config.draws_labels:
        return own.labels
    drawn = drawn_labels(
        own.teacher if config.hard_label == "teacher_sample" else None,
        own.labels,
        num_tokens=len(own.labels),
        shard=VocabShard.even(VOCAB, VOCAB),
        seed=SEED,
        device=own.labels.device,
    )
    assert drawn[0] != EXCLUDED  # its loss would be infinite
    return drawn


def shard_of(group: dist.ProcessGroup) -> VocabShard:
    widths = WIDTHS[group.size()]
    return VocabShard(VOCAB, (*widths[:-1], widths[-1] + PADDING), group)


def solve(
    config: ObjectiveConfig, own: Problem, group: dist.ProcessGroup, **way: bool
) -> tuple[list[Tensor], Tensor]:
    """Losses and statistics, and the gradient of the shard's columns, for upstream factors."""
    shard = shard_of(group)
    is_last = group.rank() == group.size() - 1
    leaf = own.columns(own.student, shard).requires_grad_()
    teacher = own.columns(own.teacher, shard, (TEACHER_PADDING - PADDING) if is_last else 0)
    losses, stats = hybrid_loss(
        leaf * 1.0,
        teacher if config.needs_teacher else None,
        own.labels,
        HybridObjective(config, VOCAB),
        shard=shard,
        progress=PROGRESS,
        seed=SEED,
        **way,
    )
    (gradient,) = torch.autograd.grad((losses.loss * factors(losses.loss)).sum(), leaf)
    values = [*losses, *computed(stats).values()]
    return [value.detach() for value in values], gradient


def factors(like: Tensor) -> Tensor:
    """An error that cancels in the plain sum shows."""
    return torch.linspace(0.5, 2.0, len(like), dtype=like.dtype)


def gathered(values: list[Tensor], gradient: Tensor, group: dist.ProcessGroup) -> Tensor:
    """The whole gradient [N, V], from ranks of which all have the same values."""
    bits = torch.stack([value.double() for value in values])
    columns = torch.zeros(len(gradient), VOCAB + TEACHER_PADDING, dtype=torch.float64)
    columns[:, : gradient.shape[1]] = gradient.double()
    both = torch.cat((bits.flatten(), columns.flatten()))
    everyone = [torch.empty_like(both) for _ in range(group.size())]
    dist.all_gather(everyone, both, group=group)
    parts = []
    for other, width in zip(everyone, shard_of(group).widths, strict=True):
        assert other[: bits.numel()].equal(both[: bits.numel()]), "ranks differ"
        parts.append(other[bits.numel() :].view_as(columns)[:, :width])
    return torch.cat(parts, dim=1)


def assert_equals_definition(
    config: ObjectiveConfig,
    precision: Precision,
    group: dist.ProcessGroup,
    way: dict[str, bool],
    is_mine: bool,
) -> None:
    dtype, grad_atol, grad_rtol = precision
    own = problem(dtype)
    values, local = solve(config, own, group, **way)
    gradient = gathered(values, local, group)
    if not is_mine:
        return
    leaf = own.student.double().requires_grad_()
    labels = label_of(config, own)
    exact = reference.hybrid_loss(
        leaf, own.teacher.double(), labels, config, vocab_size=VOCAB, progress=PROGRESS
    )
    # T^2 and soft_scale multiply the rounding of the soft term.
    rounding = (1 + config.soft_scale) * (2e-5 + 2.0**-20 * spread_of_rows(own))
    for name, value, expected in zip(exact._fields, values[:5], exact, strict=True):
        error = (value - expected).abs()
        allowed = rounding + 5e-6 * expected.abs()
        assert (error <= allowed).all(), f"{config}: {name} is off by {error.tolist()}"
    (expected,) = torch.autograd.grad((exact.loss * factors(exact.loss)).sum(), leaf)
    rows = labels != -100
    powers = 2.0**-20 if config.soft == "alpha_beta" else 0.0
    allowed = noise(dtype, min(config.temperature, 1.0)) + 2.0**-21 + powers
    allowed = allowed * 2 * (1 + exact.soft_weight.detach()[:, None])
    allowed = grad_atol + grad_rtol * expected.abs() + allowed
    error = (gradient[:, :VOCAB] - expected).abs()[rows]
    assert (error <= allowed[rows]).all(), f"{config}: gradient is off by {error.amax(-1)}"
    assert gradient[~rows].eq(0).all(), f"{config}: gradient of ignored rows"
    assert gradient[:, VOCAB:].eq(0).all(), f"{config}: gradient of padded columns"


def all_of(group: dist.ProcessGroup, configs: list[ObjectiveConfig], precision: Precision) -> None:
    wrong = []
    # The whole product takes half a minute on four ranks; every third one has all labels, too.
    some = configs if group.size() < 3 else configs[::3]
    for i, config in enumerate(some):
        is_mine = i % group.size() == group.rank()
        try:
            assert_equals_definition(config, precision, group, WAYS[i % 3], is_mine)
        except AssertionError as error:  # the other ranks go on with the next one
            wrong.append(str(error))
    assert not wrong, f"{len(wrong)} are wrong, the first one: {wrong[0]}"


def nothing_counts(group: dist.ProcessGroup) -> None:
    """A micro-batch without a label: zeros, a gradient of zeros, and every collective."""
    for soft, hard_label in zip(SOFT_CASES.values(), itertools.cycle(HARD_LABELS)):
        config = ObjectiveConfig(hard_label=hard_label, **soft)
        values, gradient = solve(config, problem(torch.float32, is_masked=True), group)
        assert all(value.eq(0).all() for value in values), config
        assert gradient.eq(0).all(), config


def a_draw_that_one_rank_refuses_is_told_to_all(group: dist.ProcessGroup) -> None:
    """Before the labels are drawn, which communicates."""
    own = problem(torch.float32)
    shard, is_last = shard_of(group), group.rank() == group.size() - 1

    def call(seed: int | None, progress: float, hard_label: Any = "teacher_sample") -> None:
        hybrid_loss(
            own.columns(own.student, shard),
            own.columns(own.teacher, shard),
            own.labels,
            HybridObjective(ObjectiveConfig(hard_label=hard_label), VOCAB),
            shard=shard,
            progress=progress,
            seed=seed,
            check_ranks=True,
        )

    call(3, 0.5)
    with pytest.raises(ValueError, match=r"hard_label='teacher_sample' needs a seed"):
        call(None if is_last else 3, 0.5)
    with pytest.raises(ValueError, match=r"progress must be in \[0, 1\]"):
        call(3, 1.5 if is_last else 0.5)
    if group.size() == 1:
        return
    with pytest.raises(ValueError, match=r"^hybrid_loss: .* differ in seed \(3 on rank"):
        call(4 if is_last else 3, 0.5)
    with pytest.raises(ValueError, match=r"differ in hard_label of the objective \(teacher_sample"):
        call(3, 0.5, "random" if is_last else "teacher_sample")


def labels_are_drawn_alike(group: dist.ProcessGroup) -> None:
    """On all ranks and for every cut those of one rank alone, from the teacher or uniform."""
    shard, whole = shard_of(group), VocabShard.even(VOCAB, VOCAB)
    wrong = []
    for dtype, seed in itertools.product((torch.float32, torch.bfloat16, torch.float16), range(5)):
        own = Problem.random(400, VOCAB, dtype)
        own.teacher[:, :3] = -math.inf  # the first rank has nothing to draw
        own.teacher[7] = math.nan
        own.teacher[8, 3:] = -math.inf
        for of_shard, of_all in ((own.columns(own.teacher, shard), own.teacher), (None, None)):
            drawn, expected = (
                drawn_labels(t, own.labels, num_tokens=400, shard=s, seed=seed, device=DEVICE)
                for t, s in ((of_shard, shard), (of_all, whole))
            )
            if not drawn.equal(expected):
                wrong.append((dtype, seed, of_all is None, (drawn != expected).nonzero()))
    assert not wrong, wrong


def config_of(soft: str, weighting: str, hard_label: Any) -> ObjectiveConfig:
    return ObjectiveConfig(hard_label=hard_label, **SOFT_CASES[soft], **WEIGHTING_CASES[weighting])


CASES: dict[str, Case] = {
    f"family_{soft}": partial(
        all_of,
        configs=[
            config_of(soft, *rest) for rest in itertools.product(WEIGHTING_CASES, HARD_LABELS)
        ],
        precision=FP32,
    )
    for soft in SOFT_CASES
}
# Every divergence and every weighting: the product is of the float32 numbers in between.
_thinned = [
    config_of(soft, weighting, hard_label)
    for soft, weighting, hard_label in itertools.chain(
        zip(SOFT_CASES, itertools.cycle(["shannon"]), itertools.cycle(HARD_LABELS)),
        zip(itertools.cycle(["forward_kl"]), WEIGHTING_CASES, itertools.cycle(HARD_LABELS)),
        zip(itertools.cycle(["jensen_shannon"]), WEIGHTING_CASES, itertools.cycle(HARD_LABELS)),
    )
]
CASES |= {
    f"family_{case.id}": partial(all_of, configs=_thinned, precision=case.values[0])
    for case in DTYPES[1:]
}
CASES |= {
    case.__name__: case
    for case in (
        nothing_counts,
        a_draw_that_one_rank_refuses_is_told_to_all,
        labels_are_drawn_alike,
    )
}
