"""Hard labels that are drawn: their distribution, what is never drawn, and what is refused.

The same labels on every rank and for every cut: distributed/family_cases.py.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from vocab_inputs import make_labels, make_logits

from bgkd_megatron import drawn_labels as module
from bgkd_megatron.drawn_labels import drawn_labels
from bgkd_megatron.loss import hybrid_loss
from bgkd_megatron.objectives import HybridObjective, ObjectiveConfig
from bgkd_megatron.vocab_shard import VocabShard

VOCAB = 24
SHARD = VocabShard.even(VOCAB, VOCAB + 4)
NUM_DRAWS = 20_000
# 99.9 % of a chi-square distribution of 23 degrees of freedom.
LARGEST_CHI_SQUARE = 49.7


def draw(teacher: Tensor | None, labels: Tensor | None = None, **options: Any) -> Tensor:
    if teacher is not None:
        padding = teacher.new_full((len(teacher), SHARD.num_columns - VOCAB), math.nan)
        teacher = torch.cat((teacher, padding), dim=1)
        options.setdefault("num_tokens", len(teacher))
    return drawn_labels(
        teacher, labels, **{"shard": SHARD, "seed": 0, "device": torch.device("cpu")} | options
    )


def chi_square(drawn: Tensor, p: Tensor) -> float:
    expected = p * len(drawn)
    return ((drawn.bincount(minlength=VOCAB) - expected).square() / expected).sum().item()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("seed", [0, 1])
def test_frequencies_are_the_teachers_probabilities(dtype: torch.dtype, seed: int) -> None:
    teacher = torch.randn(1, VOCAB, generator=torch.Generator().manual_seed(4)).to(dtype)
    drawn = draw(teacher.expand(NUM_DRAWS, -1), seed=seed)
    assert chi_square(drawn, teacher.double().softmax(-1)[0]) < LARGEST_CHI_SQUARE
    # It tells distributions apart.
    assert chi_square(drawn, torch.full((VOCAB,), 1 / VOCAB)) > 5 * LARGEST_CHI_SQUARE


@pytest.mark.parametrize("seed", [0, 1])
def test_without_a_teacher_every_token_is_as_likely(seed: int) -> None:
    drawn = draw(None, num_tokens=NUM_DRAWS, seed=seed)
    assert chi_square(drawn, torch.full((VOCAB,), 1 / VOCAB)) < LARGEST_CHI_SQUARE


def test_what_has_no_probability_is_never_drawn() -> None:
    teacher = make_logits(NUM_DRAWS, VOCAB, seed=0)
    teacher[:, ::2] = teacher[:, 3] = -math.inf
    teacher[:, 3] = teacher.amax(dim=-1) - 40.0  # less likely than 2^-38 of the likeliest
    drawn = draw(teacher)
    assert (drawn % 2 == 1).all()
    assert (drawn != 3).all()


@pytest.mark.parametrize(("uniform", "token"), [(0.0, 3), (1 - 2.0**-53, VOCAB - 2)])
def test_the_ends_of_the_unit_interval(
    monkeypatch: pytest.MonkeyPatch, uniform: float, token: int
) -> None:
    """The first and the last token that has a probability."""
    teacher = torch.zeros(1, VOCAB)
    teacher[:, [0, 1, 2, VOCAB - 1]] = -math.inf
    monkeypatch.setattr(
        torch, "rand", lambda *shape, dtype, **_: torch.full(shape, uniform, dtype=dtype)
    )
    assert draw(teacher).item() == token


@pytest.mark.parametrize("height", [-3e38, -1e4, 0.0, 1e4, 3e38])
def test_one_token_alone_is_always_drawn(height: float) -> None:
    teacher = torch.full((VOCAB, VOCAB), -math.inf).fill_diagonal_(height)
    assert draw(teacher).equal(torch.arange(VOCAB))


def test_a_shift_of_the_logits_changes_nothing() -> None:
    teacher = make_logits(500, VOCAB, seed=0).round()
    assert draw(teacher + 64.0).equal(draw(teacher))


def test_the_seed_decides() -> None:
    teacher = torch.zeros(500, VOCAB)
    before = torch.random.get_rng_state()
    assert draw(teacher).equal(draw(teacher))
    assert (draw(teacher) != draw(teacher, seed=1)).any()
    assert torch.random.get_rng_state().equal(before), "the global generator was used"


def test_rows_that_do_not_count_stay_so() -> None:
    teacher, labels = make_logits(9, VOCAB, seed=0), make_labels(9, VOCAB, seed=1)
    for source in (teacher, None):
        drawn = draw(source, labels, num_tokens=9)
        assert drawn.eq(-100).equal(labels.eq(-100))
        # The label of one row does not depend on which others count.
        kept = labels != -100
        assert drawn[kept].equal(draw(source, num_tokens=9)[kept])
    other = torch.where(labels == -100, -1, labels)
    assert draw(teacher, other, ignore_index=-1).eq(-1).equal(labels == -100)


@pytest.mark.parametrize("value", [math.nan, -math.inf, math.inf])
def test_a_row_without_a_distribution_gives_a_token(value: float) -> None:
    """Of the vocabulary: the loss tells that the logits are bad."""
    drawn = draw(torch.full((50, VOCAB), value))
    assert ((drawn >= 0) & (drawn < VOCAB)).all()


def test_no_tokens() -> None:
    assert draw(torch.zeros(0, VOCAB)).shape == draw(None, num_tokens=0).shape == (0,)


def test_parts_of_the_rows_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = make_logits(50, VOCAB, seed=0)
    whole = draw(teacher)
    monkeypatch.setattr(module, "_CHUNK", 7 * VOCAB)
    assert draw(teacher).equal(whole)


# ---- in the loss


def loss_of(hard_label: Any, labels: Tensor | None, **options: Any) -> Any:
    z, t = (make_logits(9, VOCAB + 4, seed) for seed in (0, 1))
    objective = HybridObjective(ObjectiveConfig(hard_label=hard_label), VOCAB)
    arguments = {"teacher": t, "seed": 0} | options
    teacher = arguments.pop("teacher")
    return hybrid_loss(z, teacher, labels, objective, shard=SHARD, **arguments)


@pytest.mark.parametrize("hard_label", ["teacher_sample", "random"])
def test_the_loss_takes_the_drawn_label(hard_label: str) -> None:
    labels, teacher = make_labels(9, VOCAB, seed=2), make_logits(9, VOCAB + 4, seed=1)
    source = teacher[:, :VOCAB] if hard_label == "teacher_sample" else None
    for given in (labels, None):
        drawn = draw(source, given, num_tokens=9)
        losses, stats = loss_of(hard_label, given)
        expected, _ = loss_of("data", drawn)
        for value, exact in zip(losses, expected, strict=True):
            assert value.equal(exact)
        # Nobody takes it for the likelihood of the data.
        assert stats.student_label_logprob is None
        assert stats.teacher_label_logprob is None


@pytest.mark.parametrize(
    ("hard_label", "options", "message"),
    [
        ("teacher_sample", {"seed": None}, "hard_label='teacher_sample' needs a seed, the same on"),
        ("random", {"seed": None}, "hard_label='random' needs a seed, the same on"),
        ("teacher_sample", {"teacher": None}, ".*'teacher_sample'.* pass teacher_logits"),
    ],
)
def test_what_a_drawn_label_needs(hard_label: str, options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"^hybrid_loss: {message}"):
        loss_of(hard_label, None, **options)
