"""What every objective of the family keeps, whatever the logits: properties by hypothesis.

Float64 and dense for the mathematics, the operators in float32 for what they promise bit for bit.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from objective_cases import SOFT_CASES, WEIGHTING_CASES
from statistics_route import by_statistics
from torch import Tensor

from bgkd_megatron.loss import hybrid_loss
from bgkd_megatron.objectives import HybridObjective, ObjectiveConfig, TokenLosses
from bgkd_megatron.vocab_shard import VocabShard

TOKENS = 3
# The same examples in each run; no deadline on a machine that others use.
few = settings(
    max_examples=8,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)
CONFIGS = st.builds(
    lambda soft, weighting, hard_label: ObjectiveConfig(
        hard_label=hard_label, **SOFT_CASES[soft], **WEIGHTING_CASES[weighting]
    ),
    st.sampled_from(sorted(SOFT_CASES)),
    st.sampled_from(sorted(WEIGHTING_CASES)),
    st.sampled_from(["data", "teacher_argmax"]),
)


@st.composite
def problems(draw: Any) -> tuple[Tensor, Tensor, Tensor]:
    """z, t [TOKENS, V] float64, labels: from flat rows to rows of one token."""
    vocab_size = draw(st.integers(2, 33))
    seed, spread = draw(st.integers(0, 2**31)), draw(st.sampled_from([0.0, 0.1, 1.0, 5.0, 20.0]))
    generator = torch.Generator().manual_seed(seed)
    z, t = spread * torch.randn(2, TOKENS, vocab_size, generator=generator, dtype=torch.float64)
    return z, t, torch.randint(vocab_size, (TOKENS,), generator=generator)


def losses_of(z: Tensor, t: Tensor, labels: Tensor, config: ObjectiveConfig) -> TokenLosses:
    return by_statistics(z, t, labels, config, vocab_size=z.shape[1], progress=0.3)


def assert_same(losses: TokenLosses, others: TokenLosses) -> None:
    for name, value, other in zip(TokenLosses._fields, losses, others, strict=True):
        torch.testing.assert_close(value, other, rtol=1e-9, atol=1e-9, msg=name)


@few
@given(problems(), CONFIGS, st.floats(-50, 50), st.floats(-50, 50))
def test_a_shift_of_a_row_changes_nothing(
    problem: tuple[Tensor, Tensor, Tensor], config: ObjectiveConfig, of_z: float, of_t: float
) -> None:
    """But for the risk-guided term: test_risk_guided.py."""
    z, t, labels = problem
    # The teacher's likeliest token must not depend on the rounding of a shifted tie.
    t = t if t.any() else t + 1e-3 * torch.arange(t.shape[1])
    losses = losses_of(z, t, labels, config)
    assert_same(losses_of(z + of_z, t + of_t, labels, config), losses)


@few
@given(problems(), CONFIGS, st.randoms(use_true_random=False))
def test_the_order_of_the_tokens_does_not_matter(
    problem: tuple[Tensor, Tensor, Tensor], config: ObjectiveConfig, random: Any
) -> None:
    """Hence neither does that of the shards."""
    z, t, labels = problem
    t = t if t.any() else t + 1e-3 * torch.arange(t.shape[1])  # of ties the lowest id wins
    order = list(range(z.shape[1]))
    random.shuffle(order)
    moved = torch.tensor([order.index(token) for token in labels.tolist()])
    assert_same(losses_of(z[:, order], t[:, order], moved, config), losses_of(z, t, labels, config))


@pytest.mark.parametrize("soft", SOFT_CASES)
@few
@given(problems())
def test_a_soft_term_is_a_distance(soft: str, problem: tuple[Tensor, Tensor, Tensor]) -> None:
    """Never negative, and 0 with gradient 0 where student and teacher are equal."""
    z, t, labels = problem
    config = ObjectiveConfig(
        **SOFT_CASES[soft] | {"weighting": "static", "soft_weight": 1.0, "skew_cross_term": False}
    )
    assert (losses_of(z, t, labels, config).soft >= -1e-12).all()
    equal = t.clone().requires_grad_()
    losses = losses_of(equal, t, labels, config)
    assert losses.soft.abs().max() < 1e-12
    (gradient,) = torch.autograd.grad(losses.soft.sum(), equal)
    assert gradient.abs().max() < 1e-12


@few
@given(problems(), CONFIGS)
def test_the_gradient_of_a_row_sums_to_zero(
    problem: tuple[Tensor, Tensor, Tensor], config: ObjectiveConfig
) -> None:
    z, t, labels = problem
    z.requires_grad_()
    (gradient,) = torch.autograd.grad(losses_of(z, t, labels, config).loss.sum(), z)
    assert gradient.sum(dim=-1).abs().max() <= 1e-11 * (1 + gradient.abs().max())


@few
@given(problems(), CONFIGS, st.data())
def test_the_cut_into_microbatches_does_not_matter(
    problem: tuple[Tensor, Tensor, Tensor], config: ObjectiveConfig, data: st.DataObject
) -> None:
    """The operators: sums over parts divided by one number of tokens, to the bit of every row."""
    z, t, labels = (torch.cat((x, x.flip(0))) for x in problem)
    labels[data.draw(st.integers(0, len(labels) - 1))] = -100
    objective, shard = HybridObjective(config, z.shape[1]), VocabShard.even(z.shape[1], z.shape[1])

    def gradient(*cuts: int) -> Tensor:
        leaf = z.float().requires_grad_()
        for start, stop in zip([0, *cuts], [*cuts, len(z)], strict=True):
            rows = slice(start, stop)
            losses, _ = hybrid_loss(
                leaf[rows], t[rows].float(), labels[rows], objective, shard=shard, progress=0.3
            )
            (losses.loss.sum() / (labels != -100).sum()).backward()
        assert leaf.grad is not None
        return leaf.grad

    cut = data.draw(st.integers(0, len(z)))  # 0 and 6: a part without tokens
    assert gradient(cut).equal(gradient())
