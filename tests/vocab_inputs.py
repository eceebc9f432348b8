"""Inputs shared by the tests of the operator chain."""

from __future__ import annotations

import torch
from torch import Tensor

from bgkd_megatron.statistics import Feature, VocabStats

ALL_FEATURES = (
    Feature.TEACHER
    | Feature.LABEL
    | Feature.FORWARD_KL
    | Feature.REVERSE_KL
    | Feature.STUDENT_ENTROPY
    | Feature.TEACHER_ENTROPY
    | Feature.POWER_SUM
    | Feature.SOFTENED
)

# The last field is that of a second sweep: test_vocab_fdiv.py.
OF_ONE_SWEEP = tuple(name for name in VocabStats._fields if name != "fdivergence")
WITHOUT_GRADIENT = frozenset({"valid", "student_argmax"}) | frozenset(
    name for name in VocabStats._fields if name.startswith("teacher_")
)


def make_logits(
    num_tokens: int, num_columns: int, seed: int, dtype: torch.dtype = torch.float32
) -> Tensor:
    """[num_tokens, num_columns] normal logits with three outliers a row, as real models have.

    Without outliers the maximum hardly moves during an online sweep and no probability underflows,
    so a wrong rescaling would pass unseen.
    """
    with torch.device("cpu"):  # the same numbers on every device
        generator = torch.Generator().manual_seed(seed)
        logits = 2 * torch.randn(num_tokens, num_columns, generator=generator, dtype=torch.float64)
        columns = torch.randint(num_columns, (num_tokens, 3), generator=generator)
        heights = 5 + 15 * torch.rand(num_tokens, 3, generator=generator, dtype=torch.float64)
        logits.scatter_add_(1, columns, heights)
    return logits.to(torch.get_default_device(), dtype)


def make_labels(num_tokens: int, vocab_size: int, seed: int) -> Tensor:
    """[num_tokens] random ids; the second of each three rows is ignored (-100)."""
    with torch.device("cpu"):
        generator = torch.Generator().manual_seed(seed)
        labels = torch.randint(vocab_size, (num_tokens,), generator=generator)
    labels[1::3] = -100
    return labels.to(torch.get_default_device())


def computed(stats: VocabStats) -> dict[str, Tensor]:
    """The statistics that are there."""
    return {name: value for name, value in stats._asdict().items() if value is not None}


def differentiable(stats: VocabStats) -> dict[str, Tensor]:
    """The statistics that carry a gradient to the student."""
    return {name: v for name, v in computed(stats).items() if name not in WITHOUT_GRADIENT}


def upstream(stats: VocabStats, seed: int) -> dict[str, Tensor]:
    """A random gradient [N] float64 for each differentiable statistic."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(value.shape, generator=generator, dtype=torch.float64, device="cpu").to(
            value.device
        )
        for name, value in differentiable(stats).items()
    }


def contract(stats: VocabStats, gradients: dict[str, Tensor]) -> Tensor:
    """Scalar sum of statistic * gradient: its derivative is the backward of all statistics."""
    values = differentiable(stats)
    return sum(
        (
            (values[name] * gradient.to(values[name].dtype)).sum()
            for name, gradient in gradients.items()
        ),
        start=stats.student_lse.new_zeros(()),
    )


def gradient_noise(z: Tensor, t: Tensor | None, temperature: float) -> Tensor:
    """How far apart [N, V] float32 gradients may be.

    An element of the gradient is a sum of probabilities, each times at most a difference of two
    log-probabilities.  A probability inherits an error of 2^-24 times its exponent, here to 2^6.
    """
    logits = [z.double()] if t is None else [z.double(), t.double()]
    mass = sum(torch.softmax(x, dim=-1) + torch.softmax(x / temperature, dim=-1) for x in logits)
    finite = torch.stack([x.where(x.isfinite(), 0.0) for x in logits])
    spread = (finite.amax() - finite.amin()) / min(temperature, 1.0) if finite.numel() else 0.0
    return 2.0**-18 * (1 + spread) * torch.as_tensor(mass)
