"""The risk-guided hard term against the per-sequence objective that it is the closed form of.

For a document with valid positions of ranks k_i, l_i = z_i[y_i], V_i = logsumexp z_i, V_(i+1) = 0
where the next position is not valid or not in the document, e the last valid one, and
phi(x) = x - x^2 / 4:

    J = -sum_i gamma^k_i [ phi(alpha r_i) / alpha - (V_i - gamma V_(i+1)) ]
        - gamma^k_e [ phi(alpha (1 - gamma) V_e) / (alpha (1 - gamma)) - V_e ],
    r_i = l_i - gamma V_(i+1)
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from statistics_route import by_statistics
from torch import Tensor
from vocab_inputs import make_logits

from bgkd_megatron import reference
from bgkd_megatron.loss import hybrid_loss
from bgkd_megatron.objectives import HybridObjective, ObjectiveConfig, TokenLosses
from bgkd_megatron.sequence_layout import SequenceLayout
from bgkd_megatron.vocab_shard import VocabShard

VOCAB, BATCH, LENGTH = 37, 4, 12


def phi(x: Tensor) -> Tensor:
    return x - x**2 / 4


def objective_of_document(z: Tensor, tokens: Tensor, valid: Tensor, config: Any) -> Tensor:
    """J of the positions [n, V] of one document."""
    if not valid.any():
        return z.new_zeros(())
    alpha, gamma = config.risk_alpha, config.risk_gamma
    z = torch.where(valid[:, None], z, 0.0)
    value = z.logsumexp(dim=-1)
    following = torch.cat(((value * valid)[1:], value.new_zeros(1)))
    own = z.gather(1, tokens[:, None]).squeeze(1)
    discount = gamma ** (valid.cumsum(0) - 1).to(z.dtype)
    data = phi(alpha * (own - gamma * following)) / alpha - (value - gamma * following)
    total = -(discount * data)[valid].sum()
    if gamma < 1:
        last, rate = int(valid.nonzero().max()), alpha * (1 - gamma)
        end = phi(rate * value[last]) / rate - value[last]
        total = total - config.risk_terminal * discount[last] * end
    return total


def objective_of_batch(
    z: Tensor, tokens: Tensor, valid: Tensor, ends: Tensor, config: Any
) -> Tensor:
    """[documents] of z [b, s, V], tokens, valid and ends [b, s]."""
    totals = []
    for sequence in range(len(z)):
        cuts = [i + 1 for i in range(LENGTH - 1) if ends[sequence, i]]
        for start, stop in zip([0, *cuts], [*cuts, LENGTH], strict=True):
            part = (sequence, slice(start, stop))
            totals.append(objective_of_document(z[part], tokens[part], valid[part], config))
    return torch.stack(totals)


def batch(masked: bool) -> tuple[Tensor, Tensor]:
    """z [b, s, V] float64, labels [b, s]."""
    z = make_logits(BATCH * LENGTH, VOCAB, seed=0, dtype=torch.float64).view(BATCH, LENGTH, VOCAB)
    generator = torch.Generator().manual_seed(1)
    labels = torch.randint(VOCAB, (BATCH, LENGTH), generator=generator)
    if masked:
        labels[0, :3] = labels[0, 6:8] = labels[1, -2:] = -100  # ahead, a gap, and behind
        labels[2, 5:9] = -100  # with `packed` a whole document
        labels[3] = -100
        z[labels == -100] = torch.nan
    return z, labels


def packed() -> Tensor:
    """[b, s]: True at the last position of a document but the last one's."""
    ends = torch.zeros(BATCH, LENGTH, dtype=torch.bool)
    ends[0, [1, 6]] = ends[1, [0, 10]] = ends[2, [4, 8]] = True
    return ends


def layout_of(ends: Tensor | None, batch_first: bool) -> SequenceLayout:
    if ends is not None:
        ends = flat(ends, batch_first)
    return SequenceLayout(LENGTH, BATCH, batch_first=batch_first, ends=ends)


def flat(rows: Tensor, batch_first: bool) -> Tensor:
    """[b, s, ...] -> [N, ...]"""
    return (rows if batch_first else rows.transpose(0, 1)).flatten(0, 1)


def risk(
    z: Tensor, t: Tensor | None, labels: Tensor, config: ObjectiveConfig, layout: SequenceLayout
) -> TokenLosses:
    return by_statistics(z, t, labels, config, vocab_size=VOCAB, sequences=layout)


def hard_only(**settings: Any) -> ObjectiveConfig:
    return ObjectiveConfig(weighting="static", soft_weight=0.0, hard="risk_guided", **settings)


@pytest.mark.parametrize("batch_first", [True, False], ids=["b_s", "s_b"])
@pytest.mark.parametrize("masked", [False, True], ids=["full", "masked"])
@pytest.mark.parametrize("ends", [None, packed()], ids=["whole", "packed"])
@pytest.mark.parametrize(
    "settings",
    [
        {"risk_alpha": 0.1},
        {"risk_alpha": 0.05, "risk_gamma": 0.9999},
        {"risk_alpha": 0.3, "risk_gamma": 0.9},
        {"risk_alpha": 2.0, "risk_gamma": 0.5, "risk_terminal": 7.5},
        {"risk_alpha": 0.3, "risk_gamma": 0.9, "risk_terminal": 0.0},
    ],
    ids=str,
)
def test_sums_to_the_objective_of_each_document(
    settings: dict[str, Any], ends: Tensor | None, masked: bool, batch_first: bool
) -> None:
    config = hard_only(**settings)
    z, labels = batch(masked)
    z.requires_grad_()
    layout = layout_of(ends, batch_first)
    losses = by_statistics(
        flat(z, batch_first),
        None,
        flat(labels, batch_first),
        config,
        vocab_size=VOCAB,
        sequences=layout,
    )
    valid = labels != -100
    cuts = torch.zeros_like(valid) if ends is None else ends
    totals = objective_of_batch(z, labels.clamp(min=0), valid, cuts, config)
    # Each document by a factor of its own: what crosses a border shows.
    document = (cuts.flatten().roll(1) | (torch.arange(BATCH * LENGTH) % LENGTH == 0)).cumsum(0) - 1
    factor = torch.linspace(1.0, 2.0, len(totals), dtype=torch.float64)
    own = (losses.loss * flat(factor[document].view(BATCH, LENGTH), batch_first)).sum()
    torch.testing.assert_close(own, totals @ factor, rtol=1e-11, atol=1e-11)
    (gradient,) = torch.autograd.grad(own, z)
    (expected,) = torch.autograd.grad(totals @ factor, z)
    torch.testing.assert_close(gradient, expected, rtol=1e-10, atol=1e-12)
    assert gradient[~valid].eq(0).all()


def test_teacher_argmax_is_the_token() -> None:
    """In the risk, too; -log q of it in the loss."""
    config = hard_only(hard_label="teacher_argmax", risk_gamma=0.9, risk_alpha=0.3)
    z, labels = batch(masked=True)
    t = make_logits(BATCH * LENGTH, VOCAB, seed=2, dtype=torch.float64)
    valid = labels != -100
    losses = by_statistics(
        flat(z, True),
        t,
        labels.flatten(),
        config,
        vocab_size=VOCAB,
        sequences=layout_of(packed(), True),
    )
    tokens = t.argmax(dim=-1).view(BATCH, LENGTH)
    totals = objective_of_batch(z, tokens, valid, packed(), config)
    torch.testing.assert_close(losses.loss.sum(), totals.sum(), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_kernels_padding_and_a_soft_term(dtype: torch.dtype) -> None:
    """hybrid_loss: padded columns are never read, and both terms have their weight."""
    config = ObjectiveConfig(hard="risk_guided", risk_gamma=0.9, risk_alpha=0.3)
    z, labels = batch(masked=True)
    t = make_logits(BATCH * LENGTH, VOCAB, seed=2, dtype=dtype)
    z = flat(z, True).to(dtype)
    padded = torch.cat((z, z.new_full((len(z), 3), 1e30)), dim=1).requires_grad_()
    z64 = z.double().requires_grad_()
    shard = VocabShard.even(VOCAB, VOCAB + 3)
    losses, _ = hybrid_loss(
        padded,
        torch.cat((t, t.new_full((len(t), 3), torch.nan)), dim=1),
        labels.flatten(),
        HybridObjective(config, VOCAB),
        shard=shard,
        sequences=layout_of(packed(), True),
    )
    starts = torch.arange(BATCH * LENGTH) % LENGTH == 0
    documents = (packed().flatten().roll(1) | starts).cumsum(0)
    exact = reference.hybrid_loss(
        z64, t.double(), labels.flatten(), config, vocab_size=VOCAB, documents=documents
    )
    for name, value, expected in zip(losses._fields, losses, exact, strict=True):
        torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=1e-5, msg=name)
    (gradient,) = torch.autograd.grad(losses.loss.sum(), padded)
    (expected,) = torch.autograd.grad(exact.loss.sum(), z64)
    rtol = max(torch.finfo(dtype).eps, 1e-5)
    torch.testing.assert_close(gradient[:, :VOCAB].double(), expected, rtol=rtol, atol=1e-5)
    assert gradient[:, VOCAB:].eq(0).all()


def test_is_not_invariant_under_a_shift() -> None:
    """The risk is in absolute logits; the cross-entropy beside it is not."""
    z, labels = batch(masked=False)
    layout, config = layout_of(None, True), hard_only()
    own = by_statistics(
        z.flatten(0, 1), None, labels.flatten(), config, vocab_size=VOCAB, sequences=layout
    ).loss
    shifted = by_statistics(
        z.flatten(0, 1) + 3.0, None, labels.flatten(), config, vocab_size=VOCAB, sequences=layout
    ).loss
    # Only the last position's risk, l_e - 0, moves as a whole: with gamma = 1 the others cancel.
    is_last = torch.arange(BATCH * LENGTH) % LENGTH == LENGTH - 1
    torch.testing.assert_close(own[~is_last], shifted[~is_last], rtol=1e-10, atol=1e-10)
    assert not own[is_last].isclose(shifted[is_last]).any()


def test_a_risk_needs_to_know_the_sequences() -> None:
    z, labels = batch(masked=False)
    shard, objective = VocabShard.even(VOCAB, VOCAB), HybridObjective(hard_only(), VOCAB)
    z = flat(z, True).float()
    with pytest.raises(ValueError, match=r"hard='risk_guided' needs to know how .*SequenceLayout"):
        hybrid_loss(z, None, labels.flatten(), objective, shard=shard)
    layout = SequenceLayout(LENGTH + 1, BATCH)
    with pytest.raises(ValueError, match="the loss has 48 tokens, its SequenceLayout 4 sequences"):
        hybrid_loss(z, None, labels.flatten(), objective, shard=shard, sequences=layout)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 4), "sequence_length must be at least 1, got 0"),
        ((4, 0), "batch_size must be at least 1, got 0"),
        ((4, 2, True, None, torch.zeros(7, dtype=torch.bool)), r"must be bool \[8\].* got .*\[7\]"),
        ((4, 2, True, None, torch.zeros(8)), r"must be bool \[8\] .* got torch.float32 \[8\]"),
    ],
)
def test_layout_refuses(arguments: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"^SequenceLayout: .*{message}"):
        SequenceLayout(*arguments)
