"""Second link of the oracle chain: the operator == statistics in plain PyTorch, in float64.

Both see the same (rounded) logits, so only the operator's float32 arithmetic and the rounding of a
16-bit gradient remain.  Sharding over processes: distributed/test_tensor_parallel.py.
Refusals, torch.compile and memory layout: test_vocab_stats_interface.py.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from vocab_inputs import (
    ALL_FEATURES,
    WITHOUT_GRADIENT,
    computed,
    contract,
    gradient_noise,
    make_labels,
    make_logits,
    upstream,
)

from bgkd_megatron import reference
from bgkd_megatron.statistics import FEATURE_OF, Feature, VocabStats
from bgkd_megatron.vocab_stats import VocabShard, vocab_stats

# (dtype, atol, rtol) of the gradient's own rounding, on top of `gradient_noise`.
# fp32: a few operations; probabilities below 2^-126 are flushed to 0, times a logit difference.
# 16 bits: half the distance between neighbours, for it is rounded once; below the smallest normal
# number of fp16 that distance no longer shrinks.
FP32 = (torch.float32, 2.0**-110, 2.0**-22)
DTYPES = [
    pytest.param(FP32, id="fp32"),
    pytest.param((torch.bfloat16, 0.0, 2.0**-8), id="bf16"),
    pytest.param((torch.float16, 2.0**-25, 2.0**-11), id="fp16"),
]

# (tokens, columns):
#   0 tokens          an empty micro-batch
#   1 column          q = p = 1, every difference is exactly 0
#   7 and 127         less than one vector; a tail behind a few vectors
#   1000              some blocks of the kernel and a tail
#   4099              prime: no alignment of rows, block counters beyond one
#   50257             GPT-2: the online maximum moves often, long sums
#   33 tokens         more than one task of a thread
SHAPES = [(0, 127), (1, 1), (7, 7), (33, 127), (7, 1000), (33, 4099), (3, 50_257)]


def compute(
    z: Tensor,
    t: Tensor | None,
    labels: Tensor | None,
    vocab_size: int,
    features: Feature = ALL_FEATURES,
    *,
    temperature: float = 2.0,
    power_exponent: float = 0.3,
    exact: bool = False,
    inplace_backward: bool = False,
) -> VocabStats:
    """Statistics of the operator, or the oracle's if `exact`."""
    if exact:
        return reference.vocab_stats(
            z.double(),
            None if t is None else t.double(),
            labels,
            vocab_size=vocab_size,
            features=features,
            temperature=temperature,
            power_exponent=power_exponent,
        )
    return vocab_stats(
        z,
        t,
        labels,
        shard=VocabShard.even(vocab_size, z.shape[1]),
        features=features,
        temperature=temperature,
        power_exponent=power_exponent,
        inplace_backward=inplace_backward,
    )


def assert_near(actual: Tensor, expected: Tensor, name: str) -> None:
    """To float32: a few roundings of numbers of size 30, or of a relative 2^-24 each."""
    torch.testing.assert_close(
        actual, expected, rtol=5e-6, atol=5e-6, msg=lambda text: f"{name}: {text}"
    )


def assert_equals_oracle(
    z: Tensor,
    t: Tensor | None,
    labels: Tensor | None,
    vocab_size: int,
    features: Feature = ALL_FEATURES,
    *,
    precision: tuple[torch.dtype, float, float] = FP32,
    temperature: float = 2.0,
    inplace_backward: bool = False,
) -> tuple[VocabStats, Tensor]:
    """Values of all statistics, and the gradient through all at once; returns both."""
    dtype, grad_atol, grad_rtol = precision
    leaf, leaf64 = z.detach().requires_grad_(), z.detach().double().requires_grad_()
    # A copy with the same strides that is no leaf.
    student = torch.empty_strided(z.shape, z.stride(), dtype=z.dtype).copy_(leaf)
    actual = compute(
        student,
        t,
        labels,
        vocab_size,
        features,
        temperature=temperature,
        inplace_backward=inplace_backward,
    )
    expected = compute(leaf64, t, labels, vocab_size, features, temperature=temperature, exact=True)
    assert computed(actual).keys() == computed(expected).keys()
    for name, value in computed(expected).items():
        got = actual.require(name)
        if value.is_floating_point():
            assert got.dtype == torch.float32, name
            assert_near(got.double(), value, name)
        else:
            assert got.dtype == value.dtype, name
            assert got.equal(value), name

    weights = upstream(expected, seed=5)
    (gradient,) = torch.autograd.grad(contract(actual, weights), leaf)
    (gradient64,) = torch.autograd.grad(contract(expected, weights), leaf64)
    assert gradient.dtype == dtype
    assert gradient[:, vocab_size:].eq(0).all()
    real_t = None if t is None else t[:, :vocab_size]
    rows = actual.valid
    noise = torch.zeros_like(gradient64)
    if rows.any():
        noise[rows, :vocab_size] = gradient_noise(
            z[rows, :vocab_size], None if real_t is None else real_t[rows], temperature
        )
    allowed = noise + grad_atol + grad_rtol * gradient64.abs()
    error = (gradient.double() - gradient64).abs()
    worst = (error - allowed).nan_to_num(math.inf).amax() if error.numel() else 0.0
    assert worst <= 0, f"gradient is off by {error.amax():.3g}, {worst:.3g} more than allowed"
    return actual, gradient


@pytest.mark.parametrize("temperature", [1.0, 2.0, 0.5])
@pytest.mark.parametrize("precision", DTYPES)
@pytest.mark.parametrize(("num_tokens", "vocab_size"), SHAPES)
def test_equals_oracle(
    num_tokens: int,
    vocab_size: int,
    precision: tuple[torch.dtype, float, float],
    temperature: float,
) -> None:
    z, t = (make_logits(num_tokens, vocab_size, seed, precision[0]) for seed in (0, 1))
    labels = make_labels(num_tokens, vocab_size, seed=2)
    assert_equals_oracle(z, t, labels, vocab_size, precision=precision, temperature=temperature)


STUDENT_ONLY = [Feature(0), Feature.LABEL, Feature.STUDENT_ENTROPY]
WITH_TEACHER = [Feature.TEACHER | feature for feature in Feature]


@pytest.mark.parametrize("features", STUDENT_ONLY + WITH_TEACHER, ids=lambda f: str(int(f)))
def test_each_feature_alone(features: Feature) -> None:
    """Subsets take other paths through the kernel than the full set."""
    z, t = (make_logits(5, 1000, seed) for seed in (0, 1))
    teacher = t if Feature.TEACHER in features else None
    actual, _ = assert_equals_oracle(z, teacher, make_labels(5, 1000, seed=2), 1000, features)
    for name in VocabStats._fields:
        assert (name in computed(actual)) == (FEATURE_OF.get(name, Feature(0)) in features), name


@pytest.mark.parametrize("name", sorted(set(VocabStats._fields) - WITHOUT_GRADIENT))
def test_gradient_of_each_statistic_alone(name: str) -> None:
    """The kernel chooses its work by which upstream gradients are 0."""
    z, t = (make_logits(5, 1000, seed) for seed in (0, 1))
    labels = make_labels(5, 1000, seed=2)
    leaf, leaf64 = z.clone().requires_grad_(), z.double().requires_grad_()
    value = compute(leaf, t, labels, 1000).require(name)
    value64 = compute(leaf64, t, labels, 1000, exact=True).require(name)
    weights = torch.linspace(-1, 1, 5)
    (gradient,) = torch.autograd.grad((value * weights).sum(), leaf)
    (gradient64,) = torch.autograd.grad((value64 * weights).sum(), leaf64)
    error = (gradient.double() - gradient64).abs()
    allowed = gradient_noise(z, t, 2.0) + FP32[2] * gradient64.abs()
    assert (error <= allowed).all(), f"gradient is off by {error.amax():.3g}"
    assert gradient[0].any()


def test_without_labels_every_row_counts() -> None:
    z, t = (make_logits(4, 127, seed) for seed in (0, 1))
    stats, gradient = assert_equals_oracle(z, t, None, 127, ALL_FEATURES & ~Feature.LABEL)
    assert stats.valid.all()
    assert gradient.any(dim=-1).all()


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
@pytest.mark.parametrize("vocab_size", [7, 4099])
@pytest.mark.parametrize(("first_column", "extra_columns"), [(0, 5), (1, 0), (3, 13)])
@pytest.mark.parametrize("inplace_backward", [False, True])
def test_rows_of_a_bigger_tensor(
    first_column: int,
    extra_columns: int,
    vocab_size: int,
    precision: tuple[torch.dtype, float, float],
    inplace_backward: bool,
) -> None:
    """Row strides beyond the width, and rows that begin at any multiple of 2 bytes."""
    columns = first_column + vocab_size + extra_columns
    z, t = (
        make_logits(5, columns, seed, precision[0])[:, first_column : first_column + vocab_size]
        for seed in (0, 1)
    )
    labels = make_labels(5, vocab_size, seed=2)
    assert_equals_oracle(
        z, t, labels, vocab_size, precision=precision, inplace_backward=inplace_backward
    )


def test_tokens_in_any_order_of_memory() -> None:
    """Every second row; one row for all tokens (stride 0)."""
    labels = make_labels(4, 127, seed=2)
    z, t = make_logits(8, 127, seed=0)[::2], make_logits(1, 127, seed=1).expand(4, 127)
    assert_equals_oracle(z, t, labels, 127)


@pytest.mark.parametrize("precision", DTYPES)
def test_tokens_that_both_exclude(precision: tuple[torch.dtype, float, float]) -> None:
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
def test_equal_student_and_teacher(
    vocab_size: int, precision: tuple[torch.dtype, float, float]
) -> None:
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
