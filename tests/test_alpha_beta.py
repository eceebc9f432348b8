"""The alpha-beta divergence on all its branches: as float64 has it, up to the roundings of
powers that may be huge."""

from __future__ import annotations

import math

import pytest
import torch
from fdiv_checks import alpha_beta
from torch import Tensor
from vocab_inputs import make_labels, make_logits

from bgkd_megatron.fdivergence import FDivergence, FKind
from bgkd_megatron.statistics import Feature
from bgkd_megatron.vocab_fdiv import vocab_fdiv
from bgkd_megatron.vocab_shard import VocabShard
from bgkd_megatron.vocab_stats import vocab_stats

# general; negative exponents; negative sum; and every limit
EXPONENTS = [
    (1.0, 1.0), (0.2, 0.7), (2.0, 0.5), (0.9, -0.3), (-0.4, 1.2), (-1.5, 0.5), (0.3, -0.3),
    (-0.3, 0.3), (0.6, 0.0), (1.0, 0.0), (-0.5, 0.0), (0.0, 0.6), (0.0, 1.0), (0.0, -0.5),
    (0.0, 0.0), (0.01, 0.01), (-0.1, 0.12),
]  # fmt: skip
every_branch = pytest.mark.parametrize(("alpha", "beta"), EXPONENTS)


def computed(
    z: Tensor, t: Tensor, labels: Tensor | None, alpha: float, beta: float, vocab_size: int
) -> tuple[Tensor, Tensor]:
    """Divergence, and the gradient of its sum."""
    leaf = z.clone().requires_grad_()
    _, value = vocab_fdiv(
        leaf,
        t,
        labels,
        shard=VocabShard.even(vocab_size, z.shape[1]),
        divergence=FDivergence(FKind.ALPHA_BETA, alpha=alpha, beta=beta),
        features=Feature.TEACHER | (Feature(0) if labels is None else Feature.LABEL),
    )
    (gradient,) = torch.autograd.grad(value.sum(), leaf)
    return value.detach(), gradient


def assert_exact(z: Tensor, t: Tensor, alpha: float, beta: float) -> None:
    """Of rows without -inf."""
    value, gradient = computed(z, t, None, alpha, beta, z.shape[1])
    leaf = z.double().requires_grad_()
    log_q, log_p = torch.log_softmax(leaf, -1), torch.log_softmax(t.double(), -1)
    value64 = alpha_beta(log_p, log_q, alpha, beta)
    (gradient64,) = torch.autograd.grad(value64.sum(), leaf)
    with torch.no_grad():
        # Every power inherits the error of its logarithm; what is divided by an exponent grows.
        logs = [c * x for c, x in ((alpha + beta, log_p), (alpha + beta, log_q))]
        logs.append(alpha * log_p + beta * log_q)
        ratio = (log_q - log_p).abs()
        divided = math.prod(1 / abs(c) for c in (alpha, beta) if c) * (1 + ratio * ratio)
        sizes = sum(x.exp() * (8 + x.abs()) for x in logs) * divided + ratio * (1 + ratio)
        noise = 2.0**-22 * sizes
        assert ((value - value64).abs() <= noise.sum(-1) + 1e-6).all()
        of_sum = log_q.exp() * noise.sum(-1, keepdim=True)
        rounding = gradient64.abs() * {torch.bfloat16: 2.0**-8, torch.float32: 2.0**-22}[z.dtype]
        assert ((gradient - gradient64).abs() <= noise + of_sum + rounding + 1e-7).all()


@every_branch
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [1, 7, 1000, 4099])
def test_value_and_gradient(size: int, dtype: torch.dtype, alpha: float, beta: float) -> None:
    assert_exact(*(make_logits(5, size, seed, dtype) for seed in (0, 1)), alpha, beta)


@every_branch
def test_logits_with_an_offset(alpha: float, beta: float) -> None:
    z, t = make_logits(3, 1000, seed=0) + 1e4, make_logits(3, 1000, seed=1) - 1e4
    assert_exact(z, t, alpha, beta)


@pytest.mark.parametrize(("exponents", "name"), [((1, 0), "forward_kl"), ((0, 1), "reverse_kl")])
def test_the_kls_are_among_them(exponents: tuple[float, float], name: str) -> None:
    z, t = (make_logits(5, 1000, seed) for seed in (0, 1))
    value, _ = computed(z, t, None, *exponents, 1000)
    features = Feature.TEACHER | Feature.FORWARD_KL | Feature.REVERSE_KL
    stats = vocab_stats(z, t, shard=VocabShard.even(1000, 1000), features=features)
    torch.testing.assert_close(value, stats.require(name), rtol=1e-5, atol=1e-5)


@every_branch
def test_tokens_that_both_exclude_are_absent(alpha: float, beta: float) -> None:
    """Also where p^a and q^b would be 1 or infinite for them."""
    z, t = (make_logits(3, 900, seed) for seed in (0, 1))
    holes = torch.full((3, 100), -math.inf)
    expected = computed(z, t, None, alpha, beta, 900)
    value, gradient = computed(
        *(torch.cat((x[:, :400], holes, x[:, 400:]), 1) for x in (z, t)), None, alpha, beta, 1000
    )
    torch.testing.assert_close(value, expected[0], rtol=1e-5, atol=1e-6)
    kept = torch.cat((gradient[:, :400], gradient[:, 500:]), 1)
    size = expected[1].abs().amax().item()  # all subtract q times the same sum
    torch.testing.assert_close(kept, expected[1], rtol=1e-5, atol=4e-6 * size + 1e-5)
    assert gradient[:, 400:500].eq(0).all()


@every_branch
def test_masked_rows_and_padding_are_never_read(alpha: float, beta: float) -> None:
    z, t = make_logits(6, 130, seed=0), make_logits(6, 150, seed=1)
    labels = make_labels(6, 127, seed=2)
    good = [(labels != -100).nonzero().squeeze(-1)]
    expected = computed(z[good[0], :127], t[good[0], :127], None, alpha, beta, 127)
    z[:, 127:] = t[:, 127:] = math.nan
    z[labels == -100] = t[labels == -100] = math.nan
    value, gradient = computed(z, t, labels, alpha, beta, 127)
    assert value[labels == -100].eq(0).all()
    assert gradient[labels == -100].eq(0).all()
    assert gradient[:, 127:].eq(0).all()
    torch.testing.assert_close(value[good[0]], expected[0], rtol=1e-6, atol=0)
    torch.testing.assert_close(gradient[good[0], :127], expected[1], rtol=1e-6, atol=1e-6)


@every_branch
def test_a_broken_logit_is_seen(alpha: float, beta: float) -> None:
    z, t = (make_logits(2, 1000, seed) for seed in (0, 1))
    for broken, value in ((z, math.nan), (t, math.inf)):
        before = broken[0, 5].clone()
        broken[0, 5] = value
        result, gradient = computed(z, t, None, alpha, beta, 1000)
        assert result.isnan().tolist() == [True, False]
        assert gradient.isnan().any(-1).tolist() == [True, False]
        broken[0, 5] = before


@every_branch
def test_equal_distributions(alpha: float, beta: float) -> None:
    z = make_logits(3, 1000, seed=0)
    assert_exact(z, z.clone(), alpha, beta)


@pytest.mark.parametrize(
    ("alpha", "beta", "infinite"),
    [(0.6, 0.7, False), (0.6, 0.0, True), (0.0, 0.6, False), (0.9, -0.3, True), (0.3, -0.3, True)],
)
def test_a_token_that_the_student_excludes(alpha: float, beta: float, infinite: bool) -> None:
    """What should be infinite is huge, never a plausible number or NaN."""
    z, t = (make_logits(2, 1000, seed) for seed in (0, 1))
    z[0, 3] = -math.inf
    value, _ = computed(z, t, None, alpha, beta, 1000)
    assert (value[0] > 1e20) == infinite
    assert value[1] < 1e4


@pytest.mark.parametrize(("alpha", "beta"), [(0.01, -3.0), (-3.0, 0.5), (3.0, -3.0), (-0.5, -3.0)])
def test_powers_that_overflow(alpha: float, beta: float) -> None:
    """Huge, not negative, and nothing where the loss gives the row no weight."""
    t = make_logits(2, 1000, seed=1)
    z = -t * 4  # unlikely where the teacher is sure, and the other way round
    value, gradient = computed(z, t, None, alpha, beta, 1000)
    assert (value > 1e20).all()
    assert gradient.isfinite().all()
    leaf = z.requires_grad_()
    stats, value = vocab_fdiv(
        leaf,
        t,
        shard=VocabShard.even(1000, 1000),
        divergence=FDivergence(FKind.ALPHA_BETA, alpha=alpha, beta=beta),
    )
    (gradient,) = torch.autograd.grad((0.0 * value + stats.student_lse).sum(), leaf)
    torch.testing.assert_close(gradient, z.detach().softmax(-1), rtol=1e-5, atol=1e-6)
