"""The statistics of csrc/core/statistics.h in float64, from all logits at once, with bounds.

What a kernel may lose: an exponential has a relative error of 2^-22, and of ln 2 times the error of
its exponent, which is rounded relative to itself; a rescaled sum has that of one more exponential;
a sum in blocks has a few roundings of its size. Differences of logits are those of numbers
relative to their maxima, so their error is relative to these numbers, not to the logits.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .bounded import EPSILON, LN2, Bounded, finite, masked, weighted
from .contract import LOWEST, NO_TOKEN, STATS, Feature, stat_rows

FLUSHED = -126.0  # 2^x below 2^-126 is 0 in float32
# in units of EPSILON: two exponentials (2 * 4), and sums of blocks, lanes and warps
ROUNDINGS = 16.0


class Weights:
    """2^x', with x' = (x - max x) log2 e, at a temperature."""

    def __init__(self, logits: np.ndarray, scale: float = 1.0) -> None:
        """logits: [N, V] float64."""
        self.maximum = np.maximum(logits.max(1, initial=-np.inf), LOWEST)
        with np.errstate(all="ignore"):
            relative = (logits - self.maximum[:, None]) / LN2
        self.log2 = relative  # at temperature 1
        exponent = relative * scale
        self.weight = np.where(exponent >= FLUSHED, np.exp2(exponent), 0.0)
        self.relative_error = EPSILON * (ROUNDINGS + 2 * LN2 * np.abs(finite(exponent)))
        # Of log2. A kernel forms it from a number that is off by the rounding of the maximum.
        maximum = np.where(self.maximum > LOWEST, self.maximum, 0.0)
        self.size = np.abs(finite(relative)) + 4 * EPSILON * np.abs(maximum)[:, None] / LN2

    def expectation(self, x: np.ndarray, size: np.ndarray) -> Bounded:
        """S weight * x; size: of the numbers that x was formed from."""
        terms = weighted(self.weight, x)
        error = finite(np.abs(terms)) * self.relative_error
        error = error + 3 * EPSILON * self.weight * size
        return Bounded(terms.sum(1), error.sum(1))

    def sum(self) -> Bounded:
        ones = np.ones_like(self.weight)
        return self.expectation(ones, np.zeros_like(ones))


@dataclass
class Model:
    """Logits of student and teacher, [N, V] float64, of a shard or of the whole vocabulary."""

    z: np.ndarray
    t: np.ndarray
    labels: np.ndarray  # [N] token ids
    vocab_start: int
    vocab_size: int
    inv_temperature: float
    power_exponent: float
    ignore_index: int = -100

    def __post_init__(self) -> None:
        self.student, self.teacher = Weights(self.z), Weights(self.t)
        self.soft_student = Weights(self.z, self.inv_temperature)
        self.soft_teacher = Weights(self.t, self.inv_temperature)
        z, t = self.student.log2, self.teacher.log2
        with np.errstate(invalid="ignore"):
            self.gap = t - z  # log2 (p / q), up to a constant
        self.gap_size = self.student.size + self.teacher.size

    @property
    def skipped(self) -> np.ndarray:
        return self.labels == self.ignore_index

    def argmax(self, logits: np.ndarray) -> np.ndarray:
        """Columns; the lowest on ties, and where no logit is finite."""
        return logits.argmax(1) if logits.shape[1] else np.zeros(len(logits), np.int64)

    def at(self, logits: np.ndarray, columns: np.ndarray) -> np.ndarray:
        return logits[np.arange(len(logits)), columns]

    def at_label(self, logits: np.ndarray) -> np.ndarray:
        """0 where another shard has the label, NaN where no shard has."""
        columns = self.labels - self.vocab_start
        here = (columns >= 0) & (columns < logits.shape[1])
        values = np.zeros(len(logits))
        values[here] = self.at(logits, np.where(here, columns, 0))[here]
        return np.where((self.labels < 0) | (self.labels >= self.vocab_size), np.nan, values)

    def partial(self) -> dict[str, Bounded]:
        """Of this shard; a row that is skipped, or without columns, changes nothing in a merge."""
        if not self.z.shape[1]:
            return {name: Bounded(np.full(len(self.z), neutral(name))) for name in STATS}
        q, p, soft_q, soft_p = self.student, self.teacher, self.soft_student, self.soft_teacher
        first, gap, size = self.vocab_start, self.gap, self.gap_size
        teacher_argmax = self.argmax(self.t)
        power = Weights(self.t, self.power_exponent)
        stats = {
            "student_max": Bounded(q.maximum),
            "student_sum": q.sum(),
            "student_argmax": Bounded(first + self.argmax(self.z)),
            "student_entropy": q.expectation(q.log2, q.size),
            "student_at_label": Bounded(self.at_label(self.z)),
            "teacher_max": Bounded(p.maximum),
            "teacher_sum": p.sum(),
            "teacher_argmax": Bounded(first + teacher_argmax),
            "student_at_teacher_argmax": Bounded(self.at(self.z, teacher_argmax)),
            "teacher_entropy": p.expectation(p.log2, p.size),
            "teacher_at_label": Bounded(self.at_label(self.t)),
            "forward_kl": p.expectation(gap, size),
            "reverse_kl": q.expectation(-gap, size),
            "teacher_power_sum": power.sum(),
            "soft_student_sum": soft_q.sum(),
            "soft_teacher_sum": soft_p.sum(),
            "soft_forward_kl": soft_p.expectation(gap, size),
            "soft_reverse_kl": soft_q.expectation(-gap, size),
        }
        skipped = self.skipped
        return {
            name: Bounded(np.where(skipped, neutral(name), b.value), np.where(skipped, 0, b.error))
            for name, b in stats.items()
        }

    def finished(self) -> dict[str, Bounded]:
        """Global statistics; these logits are the whole vocabulary. Zeros where skipped."""
        partial = self.partial()
        q, p = partial["student_sum"], partial["teacher_sum"]
        soft_q, soft_p = partial["soft_student_sum"], partial["soft_teacher_sum"]
        scale = LN2 * self.inv_temperature

        def at(name: str, maximum: np.ndarray, weights: Bounded) -> Bounded:
            log = _log(weights)
            below = partial[name].value - maximum
            error = log.error + 2 * EPSILON * (finite(np.abs(below)) + np.abs(log.value))
            return Bounded(below - log.value, error)

        def power_sum() -> Bounded:
            power, g = partial["teacher_power_sum"], self.power_exponent
            value = power.value * p.value**-g
            relative = power.error / power.value + g * p.error / p.value
            return Bounded(value, value * (relative + EPSILON * (8 + 2 * g * np.log(p.value))))

        with np.errstate(all="ignore"):
            stats = {
                **{name: partial[name] for name in STATS if name.endswith(("max", "argmax"))},
                "student_sum": _log(q),
                "student_entropy": _difference(_log(q), _mean(partial["student_entropy"], q)),
                "student_at_label": at("student_at_label", self.student.maximum, q),
                "teacher_sum": _log(p),
                "student_at_teacher_argmax": at(
                    "student_at_teacher_argmax", self.student.maximum, q
                ),
                "teacher_entropy": _difference(_log(p), _mean(partial["teacher_entropy"], p)),
                "teacher_at_label": at("teacher_at_label", self.teacher.maximum, p),
                "forward_kl": _divergence(partial["forward_kl"], p, q, LN2),
                "reverse_kl": _divergence(partial["reverse_kl"], q, p, LN2),
                "teacher_power_sum": power_sum(),
                "soft_student_sum": _log(soft_q),
                "soft_teacher_sum": _log(soft_p),
                "soft_forward_kl": _divergence(partial["soft_forward_kl"], soft_p, soft_q, scale),
                "soft_reverse_kl": _divergence(partial["soft_reverse_kl"], soft_q, soft_p, scale),
            }
        return {name: masked(b, self.skipped) for name, b in stats.items()}


def neutral(name: str) -> float:
    if name.endswith("_argmax") and not name.endswith("at_teacher_argmax"):
        return NO_TOKEN
    return LOWEST if name.endswith("_max") else 0.0


def _log(x: Bounded) -> Bounded:
    value = np.log(x.value)
    return Bounded(value, x.error / x.value + 2 * EPSILON * np.abs(value))


def _mean(total: Bounded, weights: Bounded, scale: float = LN2) -> Bounded:
    """scale * total / weights."""
    value = scale * total.value / weights.value
    relative = weights.error / weights.value + 4 * EPSILON
    return Bounded(value, scale * total.error / weights.value + finite(np.abs(value)) * relative)


def _difference(a: Bounded, b: Bounded) -> Bounded:
    value = a.value - b.value
    return Bounded(value, a.error + b.error + EPSILON * finite(np.abs(value)))


def _divergence(total: Bounded, weights: Bounded, others: Bounded, scale: float) -> Bounded:
    """scale * total / weights - (ln weights - ln others)."""
    return _difference(_mean(total, weights, scale), _difference(_log(weights), _log(others)))


def stacked(stats: dict[str, Bounded], features: Feature) -> np.ndarray:
    """As a tensor of statistics, [rows, N] float32."""
    return np.stack([stats[name].value for name in stat_rows(features)]).astype(np.float32)
