"""Rows of logits, one for each way in which a kernel could go wrong."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

Pair = tuple[np.ndarray, np.ndarray]  # student's and teacher's logits of a row
Generator = np.random.Generator
INF = np.inf


def ordinary(rng: Generator, size: int) -> Pair:
    """A few logits stand out, as in real models: maxima move, and probabilities span decades."""
    z, t = rng.normal(0, 2, (2, size))
    z[rng.integers(size, size=3)] += rng.uniform(5, 15, 3)
    t[rng.integers(size, size=3)] += rng.uniform(5, 15, 3)
    return z, t


def even(rng: Generator, size: int) -> Pair:
    """Every column counts: a mistake in one of them cannot hide behind a larger one."""
    z, t = rng.uniform(-1, 1, (2, size))
    return z, t


def close(rng: Generator, size: int) -> Pair:
    """Differences are small, so what is left of them shows errors of either."""
    z, _ = ordinary(rng, size)
    return z, z + rng.normal(0, 0.05, size)


def equal(rng: Generator, size: int) -> Pair:
    """Every divergence is 0."""
    z, _ = ordinary(rng, size)
    return z, z.copy()


def large(rng: Generator, size: int) -> Pair:
    """Up to 1e4: all but a few exponentials underflow, and a wrong reference overflows."""
    z, t = rng.uniform(-1e4, 1e4, (2, size))
    return z, t


def offset(rng: Generator, size: int) -> Pair:
    """Far from 0: only differences count. In 16 bits it makes many maxima tie."""
    z, t = ordinary(rng, size)
    return z + 1e4, t - 1e4


def rising(rng: Generator, size: int) -> Pair:
    """Every block of columns has a new maximum, for one model; for the other only the first."""
    z, t = ordinary(rng, size)
    return np.sort(z), np.sort(t)[::-1].copy()


def ties(rng: Generator, size: int) -> Pair:
    """The maximum at a few columns in lanes, warps and parts that chance picks: the lowest counts.

    At least the last two columns have it, so that a row's end is not forgotten."""
    z, t = np.zeros((2, size))
    z[rng.integers(size // 2, size, 5)] = z[-2:] = 3
    t[rng.integers(size // 3, size, 5)] = t[-2:] = 3
    return z, t


def flat(rng: Generator, size: int) -> Pair:
    """Everything ties; negative, so that a zero from a missing column would be the maximum."""
    return np.full(size, -7.0), np.full(size, -70.0)


def common_holes(rng: Generator, size: int) -> Pair:
    """-inf in both: 0 * (inf - inf) in every expectation."""
    z, t = ordinary(rng, size)
    z[3::7] = t[3::7] = -INF
    return z, t


def student_holes(rng: Generator, size: int) -> Pair:
    """-inf where the teacher has probability: the forward divergence is infinite. The first column
    stays, here and below, so that a row of one is not empty."""
    z, t = ordinary(rng, size)
    z[max(1, size // 2) :: 5] = -INF
    return z, t


def teacher_holes(rng: Generator, size: int) -> Pair:
    """-inf where the student has probability: the reverse divergence is infinite."""
    z, t = ordinary(rng, size)
    t[max(1, size // 2) :: 5] = -INF
    return z, t


def holes_without_weight(rng: Generator, size: int) -> Pair:
    """-inf in one model where the other has no probability, in lanes, warps and parts whose maxima
    are so low that nothing of their sums is left: not even of an infinite one."""
    z, t = ordinary(rng, size)
    z[size // 2 :] -= 1e4
    t[size // 2 :] -= 1e4
    z[1 + size // 2 :: 6] = -INF
    t[2 + size // 2 :: 6] = -INF
    return z, t


def first_half_absent(rng: Generator, size: int) -> Pair:
    """Lanes, warps and parts without a finite logit before one with: references move far."""
    z, t = ordinary(rng, size)
    z[: size // 2] = t[: size // 2] = -INF
    return z, t


def second_half_absent(rng: Generator, size: int) -> Pair:
    """... and after it."""
    z, t = ordinary(rng, size)
    z[1 + size // 2 :] = t[1 + size // 2 :] = -INF
    return z, t


def one_finite(rng: Generator, size: int) -> Pair:
    """One column, the last: probability 1, entropies exactly 0."""
    z, t = np.full((2, size), -INF)
    z[-1], t[-1] = 2.5, -3.5
    return z, t


def student_absent(rng: Generator, size: int) -> Pair:
    """No finite logit of the student in this shard."""
    _, t = ordinary(rng, size)
    return np.full(size, -INF), t


def teacher_absent(rng: Generator, size: int) -> Pair:
    z, _ = ordinary(rng, size)
    return z, np.full(size, -INF)


def absent(rng: Generator, size: int) -> Pair:
    """A shard whose every token is ruled out."""
    return np.full(size, -INF), np.full(size, -INF)


def student_nan(rng: Generator, size: int) -> Pair:
    """A model that has diverged: it must not look healthy."""
    z, t = ordinary(rng, size)
    z[size // 3] = np.nan
    return z, t


def teacher_nan(rng: Generator, size: int) -> Pair:
    z, t = ordinary(rng, size)
    t[size // 3] = np.nan
    return z, t


def student_overflow(rng: Generator, size: int) -> Pair:
    """+inf, as float16 makes it of a large logit."""
    z, t = ordinary(rng, size)
    z[size // 3] = INF
    return z, t


Pattern = Callable[[Generator, int], Pair]


def maxima_at(student: int, teacher: int) -> Pattern:
    """At these columns; the same number is the teacher's maximum, or the student's."""

    def pattern(rng: Generator, size: int) -> Pair:
        z, t = even(rng, size)
        z[student % size], t[teacher % size] = 2, 2
        return z, t

    return pattern


def with_hole(pattern: Pattern, column: int) -> Pattern:
    """-inf in both at this column, which spoils sums: the row is gone through once more."""

    def holed(rng: Generator, size: int) -> Pair:
        z, t = pattern(rng, size)
        z[column % size] = t[column % size] = -INF
        return z, t

    return holed


# ... whose statistics over the whole vocabulary are finite
FINITE: tuple[Pattern, ...] = (ordinary, even, close, equal, large, offset, rising, ties, flat,
                               common_holes, holes_without_weight, first_half_absent,
                               second_half_absent, one_finite)  # fmt: skip
INFINITE: tuple[Pattern, ...] = (student_holes, teacher_holes)
ABSENT: tuple[Pattern, ...] = (student_absent, teacher_absent, absent)
