"""The divergences of the second sweep == dense formulas in float64, with and without statistics
beside them in the loss."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
import torch
from fdiv_checks import DIVERGENCES, assert_equals_dense, dense_fdiv, name_of
from operator_checks import COLUMNS, DTYPES, VOCAB, Precision, arguments, assert_near
from torch import Tensor
from vocab_inputs import ALL_FEATURES, computed, make_labels, make_logits

from bgkd_megatron import ops
from bgkd_megatron.fdivergence import FDivergence, FKind
from bgkd_megatron.statistics import Feature
from bgkd_megatron.vocab_fdiv import vocab_fdiv
from bgkd_megatron.vocab_shard import VocabShard
from bgkd_megatron.vocab_stats import vocab_stats

JSD, SKEW_FORWARD = DIVERGENCES[0], DIVERGENCES[2]
every_divergence = pytest.mark.parametrize("divergence", DIVERGENCES, ids=name_of)
every_dtype = pytest.mark.parametrize("precision", DTYPES)
# As in test_vocab_stats.py: no token; q = p = 1; a tail alone; blocks and a tail; many tokens.
SHAPES = [(0, 127), (1, 1), (7, 7), (7, 1000), (33, 4099)]


# ---- values and gradients


@every_divergence
@every_dtype
@pytest.mark.parametrize(("num_tokens", "vocab_size"), SHAPES)
def test_equals_dense(
    num_tokens: int, vocab_size: int, precision: Precision, divergence: FDivergence
) -> None:
    z, t = (make_logits(num_tokens, vocab_size, seed, precision[0]) for seed in (0, 1))
    labels = make_labels(num_tokens, vocab_size, seed=2)
    assert_equals_dense(z, t, labels, vocab_size, divergence, precision=precision)


@every_divergence
@every_dtype
@pytest.mark.parametrize("inplace_backward", [False, True])
@pytest.mark.parametrize(
    "features",
    [
        pytest.param(Feature.TEACHER | Feature.LABEL, id="hard"),
        pytest.param(Feature.TEACHER | Feature.LABEL | Feature.FORWARD_KL, id="linear"),
        pytest.param(ALL_FEATURES & ~Feature.SOFTENED, id="general"),
        pytest.param(ALL_FEATURES, id="softened"),
    ],
)
def test_with_statistics_in_the_loss(
    features: Feature, inplace_backward: bool, precision: Precision, divergence: FDivergence
) -> None:
    """Log-sum-exp, log q at the label and at the argmax; then KLs, entropy, softened KLs."""
    z, t = (make_logits(7, 1003, seed, precision[0]) for seed in (0, 1))
    assert_equals_dense(
        z,
        t,
        make_labels(7, 1000, seed=2),
        1000,
        divergence,
        features,
        precision=precision,
        statistics=1.0,
        inplace_backward=inplace_backward,
    )


@every_divergence
@pytest.mark.parametrize(
    "hard_label", ["student_label_logprob", "student_logprob_at_teacher_argmax"]
)
def test_a_hybrid_loss(hard_label: str, divergence: FDivergence) -> None:
    """w D + (1 - w) CE, w = 1 for one token and 0 for another."""
    z, t = (make_logits(4, 1000, seed) for seed in (0, 1))
    labels = torch.tensor([3, 4, 5, 6])
    weight = torch.tensor([0.3, 0.0, 1.0, 0.7])
    leaf, leaf64 = z.clone().requires_grad_(), z.double().requires_grad_()
    stats, value = vocab_fdiv(
        leaf,
        t,
        labels,
        shard=VocabShard.even(1000, 1000),
        divergence=divergence,
        features=Feature.TEACHER | Feature.LABEL,
    )
    (weight * value - (1 - weight) * stats.require(hard_label)).sum().backward()
    ids = labels if hard_label == "student_label_logprob" else t.argmax(dim=-1)
    hard = torch.nn.functional.cross_entropy(leaf64, ids, reduction="none")
    soft = dense_fdiv(leaf64, t.double(), divergence)
    (weight * soft + (1 - weight) * hard).sum().backward()
    assert leaf.grad is not None
    assert leaf64.grad is not None
    assert_near(leaf.grad.double(), leaf64.grad, "gradient")


@pytest.mark.parametrize("kind", [FKind.JENSEN_SHANNON, FKind.SKEW_FORWARD, FKind.SKEW_REVERSE])
@pytest.mark.parametrize("lam", [2.0**-24, 1e-3, 0.9, 1 - 2.0**-24])
def test_any_mixture(lam: float, kind: FKind) -> None:
    """Also where one model excludes what the other one does not: every divergence is finite."""
    z, t = (make_logits(5, 1000, seed) for seed in (0, 1))
    z[0, :300] = t[1, 200:700] = -math.inf
    labels = torch.full((5,), 900)
    for statistics in (0.0, 1.0):
        value, gradient = assert_equals_dense(
            z, t, labels, 1000, FDivergence(kind, lam), Feature.TEACHER, statistics=statistics
        )
        assert value.isfinite().all()
        assert gradient.isfinite().all()


@every_divergence
@every_dtype
def test_excluded_tokens(precision: Precision, divergence: FDivergence) -> None:
    """Logits of -inf: of both, of one, a whole block, everything but one token."""
    z, t = (make_logits(6, 1000, seed, precision[0]) for seed in (0, 1))
    for logits in (z, t):
        logits[0, 0] = -math.inf
        logits[1, :600] = -math.inf
        logits[2, 4:] = -math.inf
        logits[3, :999] = -math.inf
    z[4, 100:700] = t[5, 100:700] = -math.inf
    labels = torch.tensor([7, 999, 3, 999, 8, 9])
    features = Feature.TEACHER | Feature.LABEL
    value, gradient = assert_equals_dense(
        z, t, labels, 1000, divergence, features, precision=precision, statistics=1.0
    )
    assert value[3].item() == pytest.approx(0, abs=1e-6)
    assert gradient.isfinite().all()


@every_divergence
@pytest.mark.parametrize("garbage", [math.nan, math.inf, -math.inf])
def test_ignored_rows_and_padding_are_never_read(garbage: float, divergence: FDivergence) -> None:
    z, t = make_logits(6, 130, seed=0), make_logits(6, 150, seed=1)
    labels = make_labels(6, 127, seed=2)
    z[:, 127:] = t[:, 127:] = garbage
    z[1::3] = t[1::3] = garbage
    value, gradient = assert_equals_dense(z, t, labels, 127, divergence, statistics=1.0)
    assert value[1::3].eq(0).all()
    assert gradient[1::3].eq(0).all()


@every_divergence
def test_without_labels_every_row_counts(divergence: FDivergence) -> None:
    z, t = (make_logits(4, 127, seed) for seed in (0, 1))
    value, gradient = assert_equals_dense(z, t, None, 127, divergence, Feature.TEACHER)
    assert value.gt(0).all()
    assert gradient.any(dim=-1).all()


@every_divergence
@pytest.mark.parametrize("offset", [1e4, -1e4])
def test_huge_logits(offset: float, divergence: FDivergence) -> None:
    z, t = make_logits(3, 1000, seed=0) + offset, make_logits(3, 1000, seed=1) - offset
    assert_equals_dense(z, t, None, 1000, divergence, Feature.TEACHER)


@every_divergence
def test_logits_that_span_1e4(divergence: FDivergence) -> None:
    """Probabilities of exactly 0 and 1."""
    z, t = (torch.linspace(-1e4, 1e4, 1000).roll(shift)[None] for shift in (0, 300))
    _, gradient = assert_equals_dense(z, t, torch.tensor([5]), 1000, divergence)
    assert gradient.isfinite().all()


@every_divergence
def test_equal_student_and_teacher(divergence: FDivergence) -> None:
    z = make_logits(3, 4099, seed=0)
    value, gradient = assert_equals_dense(z, z.clone(), None, 4099, divergence, Feature.TEACHER)
    assert value.abs().max() < 2e-6  # log2 of 2^60 times the mixture: its last digit is 2^-18
    assert gradient.abs().max() < 2e-6


@every_divergence
@pytest.mark.parametrize("column", [0, 500, 999])
@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("of_teacher", [False, True])
def test_a_broken_logit_is_seen(
    of_teacher: bool, value: float, column: int, divergence: FDivergence
) -> None:
    """NaN in that row's divergence and gradient, never a finite number."""
    z, t = (make_logits(2, 1000, seed) for seed in (0, 1))
    (t if of_teacher else z)[0, column] = value
    z.requires_grad_()
    shard = VocabShard.even(1000, 1000)
    _, result = vocab_fdiv(z, t, shard=shard, divergence=divergence)
    assert result.isnan().tolist() == [True, False]
    (gradient,) = torch.autograd.grad(result.sum(), z)
    assert gradient.isnan().any(dim=-1).tolist() == [True, False]


# ---- manners


def call(**changes: Any) -> tuple[Any, Tensor]:
    return vocab_fdiv(**arguments(divergence=JSD) | changes)


def test_the_statistics_are_those_of_vocab_stats() -> None:
    stats, expected = call()[0], vocab_stats(**arguments())
    for name, value in computed(expected).items():
        assert value.equal(stats.require(name)), name


def test_divergence_and_statistics_alone_or_together() -> None:
    """What has no part in the loss adds nothing to the gradient, and takes nothing from it."""
    gradients = []
    for of_stats, of_divergence in [(1, 0), (0, 1), (1, 1)]:
        leaf = make_logits(6, COLUMNS, seed=0).requires_grad_()
        stats, value = call(student_logits=leaf)
        terms = [stats.require("student_label_logprob").sum()] * of_stats
        terms += [value.sum()] * of_divergence
        gradients.append(torch.autograd.grad(sum(terms), leaf)[0])
    torch.testing.assert_close(gradients[0] + gradients[1], gradients[2], rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_inplace_backward_overwrites_the_logits(dtype: torch.dtype) -> None:
    """The gradient that leaves the operator lies in the logits' memory, with the same bits."""
    z, t = (make_logits(6, COLUMNS, seed, dtype) for seed in (0, 1))
    gradients = []
    for inplace in (False, True):
        leaf = z.clone().requires_grad_()
        logits = leaf * 1.0
        arrived: list[Tensor] = []
        logits.register_hook(arrived.append)
        stats, value = call(student_logits=logits, teacher_logits=t, inplace_backward=inplace)
        loss = value.sum() - stats.require("student_label_logprob").sum()
        (gradient,) = torch.autograd.grad(loss, leaf, retain_graph=True)
        gradients.append(gradient)
        assert (arrived[0].data_ptr() == logits.data_ptr()) == inplace
        if inplace:
            with pytest.raises(RuntimeError, match="modified by an inplace operation"):
                value.sum().backward()
    assert gradients[0].equal(gradients[1])


def test_no_graph_for_a_student_without_gradient() -> None:
    stats, value = call()
    assert not value.requires_grad
    assert not stats.student_lse.requires_grad


def test_a_second_derivative_is_refused() -> None:
    z = make_logits(6, COLUMNS, seed=0).requires_grad_()
    with pytest.raises(NotImplementedError, match="no second derivative"):
        torch.autograd.grad(call(student_logits=z)[1].sum(), z, create_graph=True)


def test_same_bits_for_any_number_of_threads() -> None:
    z, t = make_logits(64, 4099, seed=0), make_logits(64, 4099, seed=1)
    threads = torch.get_num_threads()
    results = []
    try:
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            leaf = z.clone().requires_grad_()
            shard = VocabShard.even(4099, 4099)
            _, value = vocab_fdiv(leaf, t, shard=shard, divergence=SKEW_FORWARD)
            results.append((value.detach(), *torch.autograd.grad(value.sum(), leaf)))
    finally:
        torch.set_num_threads(threads)
    assert all(a.equal(b) for other in results for a, b in zip(other, results[0], strict=True))


@pytest.mark.parametrize("inplace_backward", [False, True])
def test_compiles_whole(inplace_backward: bool) -> None:
    good = arguments(divergence=JSD, inplace_backward=inplace_backward)

    def step(leaf: Tensor) -> Tensor:
        stats, value = vocab_fdiv(**good | {"student_logits": leaf * 1.0})
        return (0.3 * value - 0.7 * stats.require("student_label_logprob")).sum()

    results = []
    for function in (step, torch.compile(step, fullgraph=True, backend="aot_eager")):
        leaf = make_logits(6, COLUMNS, seed=0).requires_grad_()
        loss = function(leaf)
        loss.backward()
        results.append((loss.detach(), leaf.grad))
    torch.testing.assert_close(results[1], results[0], rtol=0, atol=0)


def operator_arguments(dtype: torch.dtype) -> dict[str, tuple[Any, ...]]:
    z, t = (make_logits(6, COLUMNS, seed, dtype) for seed in (0, 1))
    labels = make_labels(6, VOCAB, seed=2)
    features = int(ALL_FEATURES)
    scalars = (features, 2.0, 0.5, -100)
    partial = ops.vocab_stats(z, t, labels, VOCAB, 0, *scalars)[None]
    stats = ops.merge_stats(partial, labels, *scalars)
    forward = (z, t, labels, stats, VOCAB, 0, features, 0, 0.5, 0.0, 0.0, -100)
    sums = ops.vocab_fdiv(*forward)
    upstream = (torch.ones_like(stats), sums, torch.ones(6))
    backward = (t, labels, VOCAB, 0, features, 2.0, 0, 0.5, 0.0, 0.0, -100)
    return {
        "vocab_fdiv": forward,
        "vocab_fdiv_backward": (stats, *upstream, z, *backward),
        "vocab_fdiv_backward_": (z, stats, *upstream, *backward),
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", operator_arguments(torch.float32))
def test_opcheck(name: str, dtype: torch.dtype) -> None:
    torch.library.opcheck(getattr(ops, name), operator_arguments(dtype)[name])


# ---- refusals. What the operators refuse: test_ops_refusals.py.

REFUSED: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"divergence": "jsd"}, TypeError, "divergence must be an FDivergence, got str"),
    (
        {"teacher_logits": None, "features": Feature.LABEL},
        ValueError,
        "needs teacher_logits and Feature.TEACHER among the features",
    ),
    ({"features": Feature.LABEL}, ValueError, "needs teacher_logits and Feature.TEACHER"),
    # what vocab_stats refuses
    ({"shard": None}, TypeError, "shard must be a VocabShard"),
    ({"labels": torch.zeros(6, dtype=torch.int32)}, TypeError, "labels must be int64"),
    ({"labels": torch.full((6,), VOCAB)}, ValueError, "is outside the vocabulary of 127"),
    ({"temperature": 0.0}, ValueError, "temperature must be a finite number above 0"),
    (
        {"teacher_logits": torch.zeros(6, COLUMNS, requires_grad=True)},
        ValueError,
        "teacher_logits require a gradient",
    ),
    (
        {"student_logits": torch.zeros(6, COLUMNS, requires_grad=True), "inplace_backward": True},
        ValueError,
        "inplace_backward would overwrite student_logits, which are a leaf tensor",
    ),
    (
        {"student_logits": torch.zeros(6, COLUMNS, device="meta")},
        ValueError,
        "student_logits are on meta, this build has kernels for cpu",
    ),
]


@pytest.mark.parametrize(("changes", "error", "message"), REFUSED)
def test_refuses(changes: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        call(**changes)


def test_inplace_refuses_a_teacher_in_the_memory_of_the_student() -> None:
    logits = torch.zeros(6, COLUMNS, requires_grad=True) * 1.0
    with pytest.raises(ValueError, match="would overwrite teacher_logits"):
        call(student_logits=logits, teacher_logits=logits.detach(), inplace_backward=True)


@pytest.mark.parametrize("lam", [0.0, 1.0, -0.5, math.nan, 2.0**-25, 1 - 2.0**-25])
def test_refuses_what_is_no_mixture(lam: float) -> None:
    with pytest.raises(ValueError, match=rf"lam of SKEW_REVERSE must be .*, got {lam}\. At 0"):
        FDivergence(FKind.SKEW_REVERSE, lam)


@pytest.mark.parametrize(
    ("alpha", "beta"),
    [(0.001, 1.0), (1.0, -0.005), (0.5, -0.495), (11.0, 0.0), (math.nan, 1.0), (math.inf, 0.0)],
)
def test_refuses_exponents_that_float32_cannot_divide_by(alpha: float, beta: float) -> None:
    with pytest.raises(ValueError, match=r"each be 0 or of a size between 0\.01 and 10"):
        FDivergence(FKind.ALPHA_BETA, alpha=alpha, beta=beta)


@pytest.mark.parametrize(
    ("kind", "given", "name"),
    [
        (FKind.TOTAL_VARIATION, {"lam": 0.5}, "lam"),
        (FKind.ALPHA_BETA, {"lam": 0.5, "alpha": 1.0, "beta": 1.0}, "lam"),
        (FKind.ALPHA_BETA, {"alpha": 1.0}, "beta"),
        (FKind.JENSEN_SHANNON, {}, "lam"),
        (FKind.JENSEN_SHANNON, {"lam": 0.5, "alpha": 1.0}, "alpha"),
    ],
)
def test_refuses_parameters_of_another_kind(
    kind: FKind, given: dict[str, float], name: str
) -> None:
    with pytest.raises(ValueError, match=rf"{name} of {kind.name} must be"):
        FDivergence(kind, **given)
