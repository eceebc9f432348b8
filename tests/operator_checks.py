"""Comparison of the operator with the oracle: statistics, and the gradient through them.

Both see the same (rounded) logits, so only the operator's float32 arithmetic and the rounding of a
16-bit gradient remain.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from vocab_inputs import (
    ALL_FEATURES,
    computed,
    contract,
    gradient_noise,
    make_labels,
    make_logits,
    upstream,
)

from bgkd_megatron import reference
from bgkd_megatron.statistics import Feature, VocabStats
from bgkd_megatron.vocab_shard import VocabShard
from bgkd_megatron.vocab_stats import vocab_stats

# (dtype, atol, rtol) of the gradient's own rounding, on top of `gradient_noise`.
# fp32: a few operations; probabilities below 2^-126 are flushed to 0, times a logit difference.
# 16 bits: half the distance between neighbours, for it is rounded once; below the smallest normal
# number of fp16 that distance no longer shrinks.
Precision = tuple[torch.dtype, float, float]
FP32: Precision = (torch.float32, 2.0**-110, 2.0**-22)
DTYPES = [
    pytest.param(FP32, id="fp32"),
    pytest.param((torch.bfloat16, 0.0, 2.0**-8), id="bf16"),
    pytest.param((torch.float16, 2.0**-25, 2.0**-11), id="fp16"),
]


VOCAB, COLUMNS = 127, 130
SHARD = VocabShard.even(VOCAB, COLUMNS)


def arguments(**changes: Any) -> dict[str, Any]:
    """Good arguments of vocab_stats but for `changes`, of which those on the CPU are moved."""
    good = {
        "student_logits": make_logits(6, COLUMNS, seed=0),
        "teacher_logits": make_logits(6, COLUMNS, seed=1),
        "labels": make_labels(6, VOCAB, seed=2),
        "shard": SHARD,
        "features": ALL_FEATURES,
    }
    return good | {name: _on_device(value) for name, value in changes.items()}


def _on_device(value: Any) -> Any:
    device = torch.get_default_device()
    if not isinstance(value, Tensor) or value.device.type != "cpu" or device.type == "cpu":
        return value
    return value.detach().to(device).requires_grad_(value.requires_grad)  # a leaf stays one


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
    precision: Precision = FP32,
    temperature: float = 2.0,
    inplace_backward: bool = False,
) -> tuple[VocabStats, Tensor]:
    """Values of all statistics, and the gradient through all at once; returns both."""
    dtype, grad_atol, grad_rtol = precision
    leaf, leaf64 = z.detach().requires_grad_(), z.detach().double().requires_grad_()
    # No leaf, but the same place in memory as z: offset and strides.
    memory = torch.empty(z.untyped_storage().nbytes() // z.element_size(), dtype=z.dtype)
    student = memory.as_strided(z.shape, z.stride(), z.storage_offset()).copy_(leaf)
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
    rows = actual.valid
    noise = torch.zeros_like(gradient64)
    noise[rows, :vocab_size] = gradient_noise(
        z[rows, :vocab_size], None if t is None else t[rows, :vocab_size], temperature
    )
    allowed = noise + grad_atol + grad_rtol * gradient64.abs()
    error = (gradient.double() - gradient64).abs()
    worst = (error - allowed).nan_to_num(math.inf).amax() if error.numel() else 0.0
    assert worst <= 0, f"gradient is off by {error.amax():.3g}, {worst:.3g} more than allowed"
    return actual, gradient
