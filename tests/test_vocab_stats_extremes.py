"""Logits that break careless softmax code: the operator still equals the oracle, or the true limit.

Padding, ignored rows, excluded tokens (-inf), huge values, equal models, ties.
"""

from __future__ import annotations

import math

import pytest
import torch
from operator_checks import DTYPES, Precision, assert_equals_oracle, assert_near, compute
from vocab_inputs import (
    ALL_FEATURES,
    computed,
    contract,
    make_labels,
    make_logits,
    upstream,
)

from bgkd_megatron.statistics import Feature

pytestmark = pytest.mark.usefixtures("device")


@pytest.mark.parametrize("garbage", [math.nan, math.inf, -math.inf])
def test_ignored_rows_and_padding_are_never_read(garbage: float) -> None:
    """Teacher and student are padded differently, as by different tensor-parallel sizes."""
    z, t = make_logits(6, 130, seed=0), make_logits(6, 150, seed=1)
    labels = make_labels(6, 127, seed=2)
    z[:, 127:] = garbage
    t[:, 127:] = garbage
    z[1::3] = garbage
    t[1::3] = garbage
    stats, gradient = assert_equals_oracle(z, t, labels, 127)
    assert gradient[1::3].eq(0).all()
    for name, value in computed(stats).items():
        assert value[1::3].eq(0).all(), name


def test_all_rows_ignored() -> None:
    z = torch.full((5, 127), math.nan, requires_grad=True)
    labels = torch.full((5,), -100)
    stats = compute(z, z.detach(), labels, 127)
    for name, value in computed(stats).items():
        assert value.eq(0).all(), name
    (gradient,) = torch.autograd.grad(contract(stats, upstream(stats, seed=0)), z)
    assert gradient.eq(0).all()


@pytest.mark.parametrize("precision", DTYPES)
def test_tokens_that_both_exclude(precision: Precision) -> None:
    """Logits of -inf are absent: first column, a whole block, everything but one token."""
    z, t = (make_logits(4, 1000, seed, precision[0]) for seed in (0, 1))
    labels = torch.tensor([7, 999, 3, 500])
    for logits in (z, t):
        logits[0, 0] = -math.inf
        logits[1, :600] = -math.inf
        logits[2, 4:] = -math.inf
        logits[3] = -math.inf
        logits[3, 500] = 2.0
    stats, gradient = assert_equals_oracle(z, t, labels, 1000, precision=precision)
    assert stats.require("forward_kl")[3] == 0
    assert stats.require("student_entropy")[3] == 0
    assert gradient.isfinite().all()


def test_tokens_that_the_teacher_excludes() -> None:
    """They weigh nothing in KL(p||q); KL(q||p) is infinite."""
    z, t = (make_logits(3, 1000, seed) for seed in (0, 1))
    t[:, 100:700] = -math.inf
    labels = torch.tensor([3, 4, 5])
    features = ALL_FEATURES & ~(Feature.REVERSE_KL | Feature.SOFTENED)
    assert_equals_oracle(z, t, labels, 1000, features)
    assert (compute(z, t, labels, 1000).require("reverse_kl") == math.inf).all()


def test_tokens_that_the_student_excludes() -> None:
    """KL(p||q) is infinite where p > 0, never NaN, wherever the token stands in the row."""
    z, t = (make_logits(4, 1000, seed) for seed in (0, 1))
    for row, token in enumerate((0, 1, 500, 999)):
        z[row, token] = -math.inf
        t[row, token] = t[row].max()
    features = ALL_FEATURES & ~Feature.LABEL
    stats = compute(z, t, None, 1000, features)
    exact = compute(z, t, None, 1000, features, exact=True)
    for name in ("forward_kl", "soft_forward_kl"):
        assert (stats.require(name) == math.inf).all(), name
        assert (exact.require(name) == math.inf).all(), name
    assert_near(stats.require("reverse_kl").double(), exact.require("reverse_kl"), "reverse_kl")


@pytest.mark.parametrize("offset", [1e4, -1e4])
def test_huge_logits(offset: float) -> None:
    """A common offset of 1e4 costs no digit but those that float32 lacks for the logits."""
    z, t = (make_logits(3, 1000, seed) + offset for seed in (0, 1))
    labels = make_labels(3, 1000, seed=2)
    stats, _ = assert_equals_oracle(z, t, labels, 1000)
    assert stats.require("forward_kl").max() < 100


def test_logits_that_span_1e4() -> None:
    """Probabilities of exactly 0 and 1; logit differences of 2e4."""
    z, t = (torch.linspace(-1e4, 1e4, 1000).roll(shift)[None] for shift in (0, 300))
    stats, gradient = assert_equals_oracle(z, t, torch.tensor([5]), 1000)
    assert stats.require("student_entropy").item() == pytest.approx(0, abs=1e-6)
    assert gradient.isfinite().all()


@pytest.mark.parametrize("precision", DTYPES)
@pytest.mark.parametrize("vocab_size", [1, 127, 4099, 50_257])
def test_equal_student_and_teacher(vocab_size: int, precision: Precision) -> None:
    """Both divergences are exactly 0: every term is."""
    z = make_logits(3, vocab_size, seed=0, dtype=precision[0])
    features = ALL_FEATURES & ~Feature.LABEL
    stats, _ = assert_equals_oracle(z, z.clone(), None, vocab_size, features, precision=precision)
    for name in ("forward_kl", "reverse_kl", "soft_forward_kl", "soft_reverse_kl"):
        assert stats.require(name).eq(0).all(), name
    leaf = z.clone().requires_grad_()
    stats = compute(leaf, z, None, vocab_size, ALL_FEATURES & ~Feature.LABEL)
    for name in ("forward_kl", "soft_forward_kl"):
        (gradient,) = torch.autograd.grad(stats.require(name).sum(), leaf, retain_graph=True)
        assert gradient.eq(0).all(), name


@pytest.mark.parametrize("columns", [(0, 1), (3, 126), (40, 700, 990), (511, 512), (15, 16, 999)])
def test_argmax_takes_the_lowest_of_equal_ids(columns: tuple[int, ...]) -> None:
    """Ties within a vector, between lanes, blocks and the tail."""
    z, t = (make_logits(1, 1000, seed) for seed in (0, 1))
    z[0, list(columns)] = z.max() + 1
    t[0, list(columns)] = t.max() + 1
    labels = torch.tensor([columns[-1]])
    stats, _ = assert_equals_oracle(z, t, labels, 1000)
    assert stats.student_argmax.item() == columns[0]
    assert stats.require("teacher_argmax").item() == columns[0]


@pytest.mark.parametrize("column", [0, 500, 999])
@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("of_teacher", [False, True])
def test_a_broken_logit_is_seen(of_teacher: bool, value: float, column: int) -> None:
    """NaN in that row's loss and gradient, never a finite number; the other row is untouched."""
    z, t = (make_logits(2, 1000, seed) for seed in (0, 1))
    (t if of_teacher else z)[0, column] = value
    z.requires_grad_()
    stats = compute(z, t, torch.tensor([3, 4]), 1000)
    for name in ("forward_kl", "reverse_kl", "soft_forward_kl", "soft_reverse_kl"):
        assert stats.require(name).isnan().tolist() == [True, False], name
    (gradient,) = torch.autograd.grad(stats.require("forward_kl").sum(), z)
    assert gradient.isnan().any(dim=-1).tolist() == [True, False]
