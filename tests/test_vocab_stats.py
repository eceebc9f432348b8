"""Second link of the oracle chain: the operator == statistics in plain PyTorch, in float64.

Every statistic, its gradient, and every place of the logits in memory.
Special logits: test_vocab_stats_extremes.py.  Refusals, torch.compile and determinism:
test_vocab_stats_interface.py.  Sharding over processes: distributed/test_tensor_parallel.py.
"""

from __future__ import annotations

import pytest
import torch
from operator_checks import DTYPES, FP32, Precision, assert_equals_oracle, compute
from vocab_inputs import (
    ALL_FEATURES,
    OF_ONE_SWEEP,
    WITHOUT_GRADIENT,
    computed,
    gradient_noise,
    make_labels,
    make_logits,
)

from bgkd_megatron.statistics import FEATURE_OF, Feature

pytestmark = pytest.mark.usefixtures("device")

# (tokens, columns):
#   0 tokens          an empty micro-batch
#   1 column          q = p = 1, every difference is exactly 0
#   7 and 127         less than one vector; a tail behind a few vectors
#   1000              some blocks of the kernel and a tail
#   4099              prime: no alignment of rows, block counters beyond one
#   50257             GPT-2: the online maximum moves often, long sums
#   33 tokens         more than one task of a thread
SHAPES = [(0, 127), (1, 1), (7, 7), (33, 127), (7, 1000), (33, 4099), (3, 50_257)]


@pytest.mark.parametrize("temperature", [1.0, 2.0, 0.5])
@pytest.mark.parametrize("precision", DTYPES)
@pytest.mark.parametrize(("num_tokens", "vocab_size"), SHAPES)
def test_equals_oracle(
    num_tokens: int,
    vocab_size: int,
    precision: Precision,
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
    for name in OF_ONE_SWEEP:
        assert (name in computed(actual)) == (FEATURE_OF.get(name, Feature(0)) in features), name


@pytest.mark.parametrize("name", sorted(set(OF_ONE_SWEEP) - WITHOUT_GRADIENT))
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


@pytest.mark.parametrize("precision", DTYPES)
@pytest.mark.parametrize("vocab_size", [7, 4099])
@pytest.mark.parametrize(("first_column", "extra_columns"), [(0, 5), (1, 0), (3, 13)])
@pytest.mark.parametrize("inplace_backward", [False, True])
def test_rows_of_a_bigger_tensor(
    first_column: int,
    extra_columns: int,
    vocab_size: int,
    precision: Precision,
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
